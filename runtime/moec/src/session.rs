//! Compiled layers in this process, ready to run.

use crate::compile::Compiled;
use moec_bundle::Bundle;
use moec_cpu::{Jit, JitProgram};
use moec_ir::Tensor;
use moec_ir::diag::Diagnostic;
use moec_runtime::cpu::JitKernels;
use moec_runtime::{Device, Layer, LoadOptions, RunResult, Weights};
use std::sync::Arc;

/// A layer that has been loaded onto a device.
#[derive(Debug)]
pub struct Session {
    layer: Layer,
}

impl Session {
    /// Loads a bundle onto a device, for runs of up to `max_tokens` tokens.
    ///
    /// # Errors
    /// Those of [`Layer::load`]: what the bundle, the checkpoint or the device lacks.
    pub fn load(
        bundle: &Bundle,
        weights: &Weights<'_>,
        device: Device,
        max_tokens: u64,
    ) -> Result<Session, Diagnostic> {
        let layer = Layer::load(bundle, weights, LoadOptions { device, max_tokens, ..LoadOptions::default() })?;
        Ok(Session { layer })
    }

    /// Compiles the CPU programs of `compiled` in this process, with everything that the processor has, and loads them.
    ///
    /// # Errors
    /// `target-not-in-bundle` when the layer was not compiled for `cpu`; `cpu-jit-host`; those of [`Session::load`].
    pub fn jit(compiled: &Compiled, weights: &Weights<'_>, max_tokens: u64) -> Result<Session, Diagnostic> {
        let cpu = compiled.targets.iter().find(|t| t.target.is_cpu()).ok_or_else(|| {
            Diagnostic::input("target-not-in-bundle", "the layer was not compiled for `cpu`")
                .help("add `cpu` to the targets of the compile")
        })?;
        let compiler = Jit::native();
        let programs = cpu.variants.iter().map(|v| compiler.compile(&v.program));
        let programs: Arc<Vec<JitProgram>> = Arc::new(programs.collect::<Result<_, _>>()?);
        let kernels = programs.iter().map(|p| p.kernels().iter().map(|k| k.function).collect()).collect();
        // SAFETY: the kernels are those of the programs that `compiled.bundle` was built from, by variant and in launch
        // order; `programs` owns their code and is kept as long as they may be called.
        let jit = unsafe { JitKernels::new(kernels, programs) };
        let options = LoadOptions { device: Device::Cpu, max_tokens, jit: Some(jit), ..LoadOptions::default() };
        Ok(Session { layer: Layer::load(&compiled.bundle, weights, options)? })
    }

    /// Runs on host tensors and waits. `inputs` are found by name; the usual one is `input`, `[T, H]`.
    ///
    /// # Errors
    /// `input-missing`, `input-shape-mismatch`, `input-type-mismatch`, `too-many-tokens`, and those of the device.
    pub fn run(&mut self, inputs: &[(&str, &Tensor)]) -> Result<RunResult, Diagnostic> {
        self.layer.run_host(inputs)
    }

    /// The loaded layer: workspace size, and the device's own interface for engines.
    pub fn layer(&mut self) -> &mut Layer {
        &mut self.layer
    }
}
