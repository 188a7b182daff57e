//! What a layer and each of its kernels take on the CPU.

use super::CpuLayer;
use crate::times::Times;
use moec_bundle::manifest::Manifest;
use moec_ir::Tensor;
use moec_ir::diag::Diagnostic;
use std::time::Instant;

impl CpuLayer {
    /// Runs the layer twice on host tensors, as a whole and kernel by kernel; `before` is called before each. Copying
    /// inputs is not in the times.
    pub(crate) fn time_host(
        &mut self,
        manifest: &Manifest,
        inputs: &[Tensor],
        n_tokens: u64,
        before: &mut dyn FnMut(),
    ) -> Result<Times, Diagnostic> {
        let v = self.plan.variant_for(n_tokens)?;
        let (inputs, outputs) = self.stage_inputs(v, inputs, manifest.inputs.len());
        before();
        let start = Instant::now();
        // SAFETY: as in `CpuLayer::run_host`.
        unsafe { self.launch(n_tokens, &inputs, &outputs)? };
        let all = start.elapsed().as_secs_f64();
        before();
        let memory = self.memory.as_mut_ptr();
        let mut kernels = Vec::new();
        // SAFETY: as in `CpuLayer::run_host`; the memory has room for any variant, and `&mut self` keeps other launches out
        // of it. Kernels run in their order.
        unsafe {
            let stages = &*self.stages_at(memory, n_tokens, &inputs, &outputs)?;
            let mut start = Instant::now();
            let mut done = |_| kernels.push(std::mem::replace(&mut start, Instant::now()).elapsed().as_secs_f64());
            match &self.streamed {
                Some(streamed) => streamed.run(&self.pool, v, stages, &mut done)?,
                None => stages.iter().enumerate().for_each(|(k, stage)| {
                    self.pool.run(std::slice::from_ref(stage));
                    done(k);
                }),
            }
        }
        Ok(Times { all, kernels, copies: Vec::new() })
    }
}
