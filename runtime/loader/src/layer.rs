//! A loaded layer on any device.

use crate::builder::LayerBuilder;
use crate::cpu::{CpuLayer, JitKernels, Pool};
use crate::device::Device;
use crate::host::bind_inputs;
use crate::times::Times;
use crate::weights::Weights;
use moec_bundle::{Bundle, Manifest};
use moec_ir::Tensor;
use moec_ir::diag::Diagnostic;
use moec_ir::tile::Role;
use std::path::PathBuf;
use std::sync::Arc;

/// How a layer is loaded.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// Where it runs.
    pub device: Device,
    /// Most tokens of one run; decides how much workspace is allocated.
    pub max_tokens: u64,
    /// CPU: the threads; a pool of one thread for each core is made when there is none. Share one between layers.
    pub pool: Option<Arc<Pool>>,
    /// CPU: kernels compiled in this process, instead of the bundle's object file.
    pub jit: Option<JitKernels>,
    /// CPU, Linux: most bytes of routed experts in memory. They stay in the file that is mapped (the cache of packed weights, or the
    /// checkpoint where nothing has to be packed) and come as they are chosen; those that were used longest ago go.
    pub memory_limit: Option<u64>,
    /// With a memory limit: where experts are written to that lie in no file as kernels read them. The files have no name and go
    /// with the layer.
    pub spill_folder: Option<PathBuf>,
    /// CUDA: leave out the layer's own workspace and memory for inputs and outputs; [`crate::cuda::CudaLayer::launch_in`]
    /// takes the caller's.
    pub callers_memory: bool,
    /// Whether intermediates can be read after a run ([`Layer::read_buffer`]); takes a larger workspace.
    pub keep_intermediates: bool,
    /// Emulator: what is checked and counted, and how far a kernel may run; all checks and no counters unless told
    /// otherwise.
    #[cfg(feature = "emulator")]
    pub emulator: moec_ptx::exec::Options,
}

impl Default for LoadOptions {
    fn default() -> LoadOptions {
        LoadOptions {
            device: Device::Cpu,
            max_tokens: 1,
            pool: None,
            jit: None,
            memory_limit: None,
            spill_folder: None,
            callers_memory: false,
            keep_intermediates: false,
            #[cfg(feature = "emulator")]
            // Counting costs a third of the time.
            emulator: moec_ptx::exec::Options { counters: false, ..moec_ptx::exec::Options::default() },
        }
    }
}

impl LoadOptions {
    /// That memory is not limited, on a device that has all experts in its own.
    ///
    /// # Errors
    /// `memory-limit-unsupported`.
    pub(crate) fn refuse_limit(&self) -> Result<(), Diagnostic> {
        if self.memory_limit.is_none() {
            return Ok(());
        }
        let what = format!("experts are not streamed to {}: a memory limit is for layers on the CPU", self.device);
        Err(Diagnostic::machine("memory-limit-unsupported", what).help("load without a memory limit, or on the CPU"))
    }
}

/// What a run on host tensors gives.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct RunResult {
    /// The results in the layer's order: `output`, `topk_ids`, `topk_weights`.
    pub outputs: Vec<(String, Tensor)>,
    /// Emulator only: what its checks found, for people. Empty is good.
    pub findings: Vec<String>,
    /// Name of the target that ran.
    pub target: String,
    /// Index of the variant that was chosen for the token count.
    pub variant: usize,
}

impl RunResult {
    /// What several ranks gave together.
    pub fn of_ranks(outputs: Vec<(String, Tensor)>, findings: Vec<String>, target: &str) -> RunResult {
        RunResult { outputs, findings, target: target.to_string(), variant: 0 }
    }

    /// The result called `name`.
    pub fn output(&self, name: &str) -> Option<&Tensor> {
        self.outputs.iter().find(|(n, _)| n == name).map(|(_, t)| t)
    }
}

/// A layer that is ready to run.
pub struct Layer {
    manifest: Manifest,
    engine: Engine,
}

pub(crate) enum Engine {
    Cpu(Box<CpuLayer>),
    #[cfg(feature = "cuda")]
    Cuda(Box<crate::cuda::CudaLayer>),
    #[cfg(feature = "emulator")]
    Emulator(Box<crate::emulator::EmulatorLayer>),
}

impl Layer {
    /// Loads a layer: packs its weights for the device and allocates everything that runs of up to
    /// `options.max_tokens` tokens need.
    ///
    /// # Errors
    /// Those of the bundle, of packing ([`moec_weights::Plan`]) and of [`LayerBuilder::new`]; `device-not-built-in` when the crate was built without the device's feature.
    pub fn load(bundle: &Bundle, weights: &Weights<'_>, options: LoadOptions) -> Result<Layer, Diagnostic> {
        #[cfg(feature = "emulator")]
        if let Device::Emulator { target } = options.device {
            options.refuse_limit()?;
            let layer =
                crate::emulator::EmulatorLayer::load(bundle, weights, target, options.max_tokens, options.emulator)?;
            return Ok(Layer { manifest: bundle.manifest().clone(), engine: Engine::Emulator(Box::new(layer)) });
        }
        let mut builder = LayerBuilder::new(bundle, options)?;
        builder.load(weights)?;
        builder.finish()
    }

    pub(crate) fn new(manifest: Manifest, engine: Engine) -> Layer {
        Layer { manifest, engine }
    }

    /// What the layer is: inputs, outputs, parameters.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Name of the target that runs.
    pub fn target(&self) -> &str {
        &self.plan().target
    }

    /// Most tokens of one run.
    pub fn max_tokens(&self) -> u64 {
        self.plan().max_tokens
    }

    /// Bytes of workspace that were allocated.
    pub fn workspace_bytes(&self) -> u64 {
        self.plan().workspace_bytes
    }

    /// Bytes of packed weights on the device, or mapped in place.
    pub fn weight_bytes(&self) -> u64 {
        self.plan().weights.iter().map(|w| w.buffer.bytes(0)).sum()
    }

    /// What is in memory of the experts, of a layer on the CPU that was loaded under a memory limit.
    pub fn expert_memory(&self) -> Option<crate::cpu::ExpertMemory> {
        self.cpu().and_then(CpuLayer::expert_memory)
    }

    fn plan(&self) -> &crate::plan::Plan {
        match &self.engine {
            Engine::Cpu(l) => l.plan(),
            #[cfg(feature = "cuda")]
            Engine::Cuda(l) => l.plan(),
            #[cfg(feature = "emulator")]
            Engine::Emulator(l) => l.plan(),
        }
    }

    /// Runs the layer on host tensors and waits for the results. `inputs` are found by name; more may be given than the
    /// layer needs.
    ///
    /// # Errors
    /// `input-missing`, `input-shape-mismatch`, `input-type-mismatch`, `too-many-tokens`, and those of the device.
    pub fn run_host(&mut self, inputs: &[(&str, &Tensor)]) -> Result<RunResult, Diagnostic> {
        let (inputs, n_tokens) = bind_inputs(&self.manifest.inputs, inputs)?;
        let variant = self.plan().variant_for(n_tokens)?;
        let (outputs, findings) = match &mut self.engine {
            Engine::Cpu(l) => (l.run_host(&self.manifest, &inputs, n_tokens)?, Vec::new()),
            #[cfg(feature = "cuda")]
            Engine::Cuda(l) => (l.run_host(&self.manifest, &inputs, n_tokens)?, Vec::new()),
            #[cfg(feature = "emulator")]
            Engine::Emulator(l) => l.run_host(&self.manifest, &inputs, n_tokens)?,
        };
        let names = self.manifest.outputs.iter().map(|o| o.name.clone());
        Ok(RunResult { outputs: names.zip(outputs).collect(), findings, target: self.target().to_string(), variant })
    }

    /// Times of a run on host tensors, as a whole and by kernel. `before` is called before each of the two runs on the CPU; on a GPU a
    /// copy of memory comes before each launch. On the emulator it is the host's time.
    ///
    /// # Errors
    /// As [`Layer::run_host`].
    pub fn time_host(&mut self, inputs: &[(&str, &Tensor)], before: &mut dyn FnMut()) -> Result<Times, Diagnostic> {
        let (inputs, n_tokens) = bind_inputs(&self.manifest.inputs, inputs)?;
        match &mut self.engine {
            Engine::Cpu(layer) => layer.time_host(&self.manifest, &inputs, n_tokens, before),
            #[cfg(feature = "cuda")]
            Engine::Cuda(layer) => layer.time_host(&self.manifest, &inputs, n_tokens),
            #[cfg(feature = "emulator")]
            Engine::Emulator(layer) => {
                layer.run_host(&self.manifest, &inputs, n_tokens)?;
                Ok(layer.times())
            }
        }
    }

    /// Names of the intermediate buffers of the variant that runs `n_tokens` tokens.
    ///
    /// # Errors
    /// `too-many-tokens`.
    pub fn intermediates(&self, n_tokens: u64) -> Result<Vec<&str>, Diagnostic> {
        let plan = self.plan();
        let buffers = &plan.variants[plan.variant_for(n_tokens)?].buffers;
        Ok(buffers.iter().filter(|b| b.role == Role::Workspace).map(|b| b.name.as_str()).collect())
    }

    /// An intermediate buffer as the last run, of `n_tokens` tokens, left it: `[batch * rows, cols]`, without padding.
    /// Of use only when the layer was loaded with `keep_intermediates`; else later kernels may have reused the memory.
    ///
    /// # Errors
    /// `too-many-tokens`, `no-such-buffer`, and those of the device.
    pub fn read_buffer(&self, name: &str, n_tokens: u64) -> Result<Tensor, Diagnostic> {
        let (buffer, bytes) = match &self.engine {
            Engine::Cpu(l) => l.read_buffer(name, n_tokens)?,
            #[cfg(feature = "cuda")]
            Engine::Cuda(l) => l.read_buffer(name, n_tokens, n_tokens)?,
            #[cfg(feature = "emulator")]
            Engine::Emulator(l) => l.read_buffer(name, n_tokens)?,
        };
        let rows = (buffer.batch * buffer.rows.at(n_tokens)) as usize;
        Tensor::from_bytes(buffer.dtype, &[rows, buffer.cols as usize], &bytes)
            .ok_or_else(|| Diagnostic::internal("internal-error", format!("`{name}` should fill its shape")))
    }

    /// The layer on the CPU, when that is where it is: for launches in the caller's memory.
    pub fn cpu(&self) -> Option<&CpuLayer> {
        match &self.engine {
            Engine::Cpu(l) => Some(l),
            #[cfg(feature = "cuda")]
            Engine::Cuda(_) => None,
            #[cfg(feature = "emulator")]
            Engine::Emulator(_) => None,
        }
    }

    /// The layer on a GPU, when that is where it is: for launches in the caller's memory.
    #[cfg(feature = "cuda")]
    pub fn cuda(&self) -> Option<&crate::cuda::CudaLayer> {
        match &self.engine {
            Engine::Cuda(l) => Some(l),
            Engine::Cpu(_) => None,
            #[cfg(feature = "emulator")]
            Engine::Emulator(_) => None,
        }
    }

    /// The layer on the CPU, when that is where it is.
    pub fn as_cpu(&mut self) -> Option<&mut CpuLayer> {
        match &mut self.engine {
            Engine::Cpu(l) => Some(l),
            #[cfg(feature = "cuda")]
            Engine::Cuda(_) => None,
            #[cfg(feature = "emulator")]
            Engine::Emulator(_) => None,
        }
    }

    /// The layer on the emulator, when that is where it is.
    #[cfg(feature = "emulator")]
    pub fn as_emulator(&mut self) -> Option<&mut crate::emulator::EmulatorLayer> {
        match &mut self.engine {
            Engine::Emulator(l) => Some(l),
            Engine::Cpu(_) => None,
            #[cfg(feature = "cuda")]
            Engine::Cuda(_) => None,
        }
    }

    /// The layer on a GPU, when that is where it is.
    #[cfg(feature = "cuda")]
    pub fn as_cuda(&mut self) -> Option<&mut crate::cuda::CudaLayer> {
        match &mut self.engine {
            Engine::Cuda(l) => Some(l),
            Engine::Cpu(_) => None,
            #[cfg(feature = "emulator")]
            Engine::Emulator(_) => None,
        }
    }
}

impl std::fmt::Debug for Layer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Layer").field("name", &self.manifest.layer.name).field("target", &self.target()).finish()
    }
}
