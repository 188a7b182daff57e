//! What a layer and each of its kernels take on a GPU, by its own clock.

use super::{CudaIo, CudaLayer, DeviceMemory};
use crate::times::Times;
use moec_bundle::Manifest;
use moec_ir::Tensor;
use moec_ir::diag::Diagnostic;

/// Memory that no second-level cache holds, a copy of which drives everything else out of it.
pub(crate) struct Flush {
    from: DeviceMemory,
    to: DeviceMemory,
}

impl Flush {
    pub(crate) fn new(layer: &CudaLayer) -> Result<Flush, Diagnostic> {
        let (device, bytes) = (layer.device(), layer.device().info().l2_bytes.max(32 << 20));
        let allocate = || device.allocate(bytes, "overwriting the cache");
        let (mut from, to) = (allocate()?, allocate()?);
        from.fill(0, layer.own_stream())?;
        Ok(Flush { from, to })
    }

    /// Copies, in the order of the layer's own stream; does not wait. Gives the bytes that are read and written.
    pub(crate) fn copy(&mut self, layer: &CudaLayer) -> Result<u64, Diagnostic> {
        self.to.copy_from(&self.from, layer.own_stream())?;
        Ok(2 * self.from.bytes())
    }
}

impl CudaLayer {
    /// Times of a run on host tensors, each launch with the weights out of the cache.
    pub(crate) fn time_host(
        &mut self,
        manifest: &Manifest,
        inputs: &[Tensor],
        n_tokens: u64,
    ) -> Result<Times, Diagnostic> {
        self.upload(manifest, inputs, n_tokens)?;
        let mut flush = match self.flush.take() {
            Some(flush) => flush,
            None => Flush::new(self)?,
        };
        let timed = self.time(manifest, n_tokens, &mut flush);
        self.flush = Some(flush);
        timed
    }

    fn time(&self, manifest: &Manifest, n_tokens: u64, flush: &mut Flush) -> Result<Times, Diagnostic> {
        let stream = self.own_stream();
        let (inputs, outputs) = self.own_io(manifest);
        let io = CudaIo { inputs: &inputs, outputs: &outputs, token_count: self.own_token_count() };
        // SAFETY: the layer's own memory and stream, made for up to `max_tokens` tokens, and nobody else uses them: this is
        // called with the layer borrowed for writing. The same holds for the launches below.
        let mut graph = stream.capture(|stream| unsafe { self.launch(&io, n_tokens, stream) })?;
        let (begin, start, end) = (self.device().event()?, self.device().event()?, self.device().event()?);
        let mut copies = Vec::new();
        let mut seconds = |launch: &mut dyn FnMut() -> Result<(), Diagnostic>| {
            begin.record(stream)?;
            let bytes = flush.copy(self)?;
            start.record(stream)?;
            launch()?;
            end.record(stream)?;
            let took = end.seconds_since(&start)?;
            copies.push(bytes as f64 / start.seconds_since(&begin)?);
            Ok(took)
        };
        // SAFETY: as above; `seconds` waits for the launch.
        let all = seconds(&mut || unsafe { graph.launch(stream.raw()) })?;
        let mut kernels = Vec::new();
        for k in 0..self.kernels(n_tokens)?.len() {
            // SAFETY: as above. What a kernel reads was written by the launch of the whole layer.
            kernels.push(seconds(&mut || unsafe { self.launch_kernel(k, &io, n_tokens, stream.raw()) })?);
        }
        Ok(Times { all, kernels, copies })
    }
}
