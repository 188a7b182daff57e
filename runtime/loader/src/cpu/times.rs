//! What a layer and each of its kernels take.

use super::CpuLayer;
use moec_bundle::manifest::Manifest;
use moec_ir::Tensor;
use moec_ir::diag::Diagnostic;
use std::time::Instant;

/// Times of two runs on the CPU, in seconds of the clock.
#[derive(Clone, Debug)]
pub struct Times {
    /// A launch, as engines do it.
    pub all: f64,
    /// Each kernel of another launch, whose threads are woken for every kernel.
    pub kernels: Vec<f64>,
}

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
            for stage in stages {
                let start = Instant::now();
                self.pool.run(std::slice::from_ref(stage));
                kernels.push(start.elapsed().as_secs_f64());
            }
        }
        Ok(Times { all, kernels })
    }
}
