//! Compiled layers in this process, ready to run.

use crate::compile::{CompileRequest, Compiled};
use crate::model::ModelLayer;
use crate::view::{self, View, ViewMut};
use moec_bundle::Bundle;
use moec_cpu::{Jit, JitProgram};
use moec_ir::Tensor;
use moec_ir::diag::Diagnostic;
use moec_ir::target::Target;
use moec_runtime::cpu::JitKernels;
use moec_runtime::{Device, Layer, LoadOptions, RunResult, Weights};
use moec_weights::Checkpoint;
use std::sync::Arc;

/// A layer that has been loaded onto a device.
#[derive(Debug)]
pub struct Session {
    layer: Layer,
}

impl Session {
    /// Compiles a layer of a model for a device and loads it with the model's weights, for runs of up to `max_tokens`
    /// tokens.
    ///
    /// # Errors
    /// `weights-missing` when there are none beside the config; those of [`crate::compile`] and [`Session::load`];
    /// `cuda-driver-missing` and others when there is no such GPU.
    pub fn open(layer: &ModelLayer, device: Device, max_tokens: u64) -> Result<Session, Diagnostic> {
        let Some(checkpoint) = &layer.checkpoint else {
            let what = format!("there are no weights beside the config of {}", layer.info.name);
            return Err(Diagnostic::input("weights-missing", what).help("give a model directory that holds them"));
        };
        if let Some(d) = &layer.not_loadable {
            return Err(d.clone());
        }
        let target = match device {
            Device::Cpu => "cpu",
            Device::Cuda { ordinal } => {
                let (major, minor) = moec_runtime::cuda::CudaDevice::open(ordinal)?.info().capability;
                let names = moec_ir::target::TARGETS.iter().map(|t| t.name);
                moec_runtime::best_target(names, major, minor).ok_or_else(|| {
                    let what = format!("moec has no target for a GPU of compute capability {major}.{minor}");
                    Diagnostic::input("target-not-in-bundle", what)
                })?
            }
            Device::Emulator { target } => target,
        };
        let target = Target::by_name(target).ok_or_else(|| {
            Diagnostic::internal("internal-error", format!("the device's target {target} should be known"))
        })?;
        let request = CompileRequest { info: layer.info.clone(), ..CompileRequest::new(&layer.graph, vec![target]) };
        let compiled = crate::compile(&request)?;
        let weights = Weights::from_checkpoint(Checkpoint::open(checkpoint)?);
        match device {
            Device::Cpu => Session::jit(&compiled, &weights, max_tokens),
            _ => Session::load(&compiled.bundle, &weights, device, max_tokens),
        }
    }

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
        Session::load_with(bundle, weights, LoadOptions { device, max_tokens, ..LoadOptions::default() })
    }

    /// Loads a bundle as the options say: under a memory limit, on threads of one's own.
    ///
    /// # Errors
    /// Those of [`Layer::load`].
    pub fn load_with(bundle: &Bundle, weights: &Weights<'_>, options: LoadOptions) -> Result<Session, Diagnostic> {
        Ok(Session { layer: Layer::load(bundle, weights, options)? })
    }

    /// Compiles the CPU programs of `compiled` in this process, with everything that the processor has, and loads them.
    ///
    /// # Errors
    /// `target-not-in-bundle` when the layer was not compiled for `cpu`; `cpu-jit-host`; those of [`Session::load`].
    pub fn jit(compiled: &Compiled, weights: &Weights<'_>, max_tokens: u64) -> Result<Session, Diagnostic> {
        Session::jit_with(compiled, weights, LoadOptions { max_tokens, ..LoadOptions::default() })
    }

    /// As [`Session::jit`], loaded as the options say; the device is the CPU.
    ///
    /// # Errors
    /// As [`Session::jit`].
    pub fn jit_with(compiled: &Compiled, weights: &Weights<'_>, options: LoadOptions) -> Result<Session, Diagnostic> {
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
        Session::load_with(&compiled.bundle, weights, LoadOptions { device: Device::Cpu, jit: Some(jit), ..options })
    }

    /// Runs on host tensors and waits. `inputs` are found by name; the usual one is `input`, `[T, H]`.
    ///
    /// # Errors
    /// `input-missing`, `input-shape-mismatch`, `input-type-mismatch`, `too-many-tokens`, and those of the device.
    pub fn run(&mut self, inputs: &[(&str, &Tensor)]) -> Result<RunResult, Diagnostic> {
        self.layer.run_host(inputs)
    }

    /// Runs the layer on tensors where they lie: nothing is copied or converted on the CPU. `outputs` are found by name;
    /// those that the layer has and nobody asks for are written into memory of the session.
    ///
    /// # Errors
    /// `input-missing`, `input-shape-mismatch`, `input-type-mismatch` for inputs and outputs alike, `output-name-mismatch` for an
    /// output that the layer does not have, `duplicate-name` for one that is asked for twice, `too-many-tokens`, and those of the
    /// device.
    pub fn run_into(
        &mut self,
        inputs: &[(&str, View<'_>)],
        outputs: &mut [(&str, ViewMut<'_>)],
    ) -> Result<(), Diagnostic> {
        let manifest = self.layer.manifest();
        for (i, (name, _)) in outputs.iter().enumerate() {
            if !manifest.outputs.iter().any(|o| o.name == *name) {
                let all: Vec<&str> = manifest.outputs.iter().map(|o| o.name.as_str()).collect();
                let what = format!("the layer has no output `{name}`; it has {}", all.join(", "));
                return Err(Diagnostic::input("output-name-mismatch", what));
            }
            if outputs[..i].iter().any(|(other, _)| other == name) {
                return Err(Diagnostic::input("duplicate-name", format!("the output `{name}` is asked for twice")));
            }
        }
        let input = |name: &str| inputs.iter().find(|(n, _)| *n == name).map(|(_, v)| v);
        let n_tokens = view::tokens(&manifest.inputs, |name| input(name).map(View::kind))?.unwrap_or(0);
        let asked: Vec<_> =
            manifest.outputs.iter().filter(|o| outputs.iter().any(|(n, _)| *n == o.name)).cloned().collect();
        let kind = |name: &str| outputs.iter().find(|(n, _)| *n == name).map(|(_, v)| v.kind());
        let out_tokens = view::tokens(&asked, kind)?;
        if out_tokens.is_some_and(|t| t != n_tokens) {
            let what = format!("the inputs have {n_tokens} tokens, the outputs {}", out_tokens.unwrap_or(0));
            return Err(Diagnostic::input("input-shape-mismatch", what));
        }
        if self.layer.cpu().is_none() {
            let tensors: Vec<(&str, Option<Tensor>)> = inputs.iter().map(|(n, v)| (*n, v.to_tensor())).collect();
            let tensors: Vec<(&str, &Tensor)> =
                tensors.iter().filter_map(|(n, t)| t.as_ref().map(|t| (*n, t))).collect();
            let result = self.layer.run_host(&tensors)?;
            for (name, out) in outputs {
                result.output(name).into_iter().for_each(|t| out.write(t));
            }
            return Ok(());
        }
        let pointers: Vec<*const u8> =
            manifest.inputs.iter().filter_map(|i| input(&i.name)).map(View::pointer).collect();
        let mut unasked: Vec<Vec<u64>> = Vec::new();
        let mut out_pointers = Vec::with_capacity(manifest.outputs.len());
        for info in &manifest.outputs {
            match outputs.iter_mut().find(|(n, _)| *n == info.name) {
                Some((_, v)) => out_pointers.push(v.pointer()),
                None => {
                    let mut memory = vec![0u64; (info.ty.bytes(n_tokens) as usize).div_ceil(8)];
                    out_pointers.push(memory.as_mut_ptr().cast::<u8>());
                    unasked.push(memory);
                }
            }
        }
        let Some(cpu) = self.layer.as_cpu() else {
            return Err(Diagnostic::internal("internal-error", "a layer on the CPU should stay there"));
        };
        // SAFETY: `tokens` has checked types and shapes of all inputs and outputs against the layer at `n_tokens`, and the
        // views were made of as many bytes at aligned addresses; outputs are borrowed for writing, so that none overlaps
        // another tensor; those that nobody asked for have memory of their size in `unasked`.
        unsafe { cpu.launch(n_tokens, &pointers, &out_pointers) }
    }

    /// The loaded layer alone, which several threads may launch in memory of their own ([`Layer::cpu`], [`Layer::cuda`]).
    pub fn into_layer(self) -> Layer {
        self.layer
    }

    /// The loaded layer: workspace size, and the device's own interface for engines.
    pub fn layer(&mut self) -> &mut Layer {
        &mut self.layer
    }
}
