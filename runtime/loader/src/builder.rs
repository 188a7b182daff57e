//! A layer whose weights come one by one.

use crate::cpu::{self, CpuLayer, Pool};
#[cfg(feature = "cuda")]
use crate::cuda::CudaLayer;
use crate::device::Device;
#[cfg(feature = "cuda")]
use crate::given::Brought;
use crate::given::Given;
use crate::layer::{Engine, Layer, LoadOptions};
use crate::plan::{Plan, WeightSlot};
use crate::weights::Weights;
use moec_bundle::manifest::{ParamInfo, WorkspaceRule};
use moec_bundle::{Bundle, Manifest};
use moec_ir::diag::Diagnostic;
use moec_weights::{CodedView, MemoryView};
use std::sync::Arc;

/// Whose memory a weight stays in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    /// The layer's: the elements are copied.
    Copy,
    /// The giver's, who keeps it unchanged as long as the layer lives; refused where kernels need another layout.
    Borrow,
    /// The giver's where kernels read it as it lies, else the layer's. The giver keeps it either way.
    Either,
}

/// A layer that has everything but some of its weights.
pub struct LayerBuilder {
    manifest: Manifest,
    engine: Building,
}

enum Building {
    Cpu(Box<CpuLayer>, Vec<Option<cpu::WeightMemory>>, cpu::Room),
    #[cfg(feature = "cuda")]
    Cuda(Box<CudaLayer>, Vec<Option<crate::cuda::WeightMemory>>),
}

impl LayerBuilder {
    /// Loads a layer without weights: kernels are ready, and memory for runs of up to `options.max_tokens` tokens is there.
    ///
    /// # Errors
    /// `target-not-in-bundle`, `too-many-tokens`, `out-of-memory`; on the CPU `cpu-features-missing` and
    /// `cpu-object-invalid`; on GPUs `cuda-driver-missing`, `cuda-device-missing`, `cuda-driver-too-old`, `ptx-rejected` and
    /// `cuda-call-failed`; `device-not-built-in` for a device that this build does not have, and for the emulator, which
    /// [`Layer::load`] takes.
    pub fn new(bundle: &Bundle, options: LoadOptions) -> Result<LayerBuilder, Diagnostic> {
        if options.device != Device::Cpu {
            options.refuse_limit()?;
        }
        let rule = options.keep_intermediates.then_some(WorkspaceRule::Disjoint);
        let engine = match options.device {
            Device::Cpu => {
                let pool = options.pool.unwrap_or_else(|| Arc::new(Pool::for_all_cores()));
                let nodes = pool.interleaving().clone();
                let layer = CpuLayer::without_weights(bundle, options.max_tokens, pool, options.jit, rule)?;
                let slots = slots(layer.plan());
                let room = cpu::Room { limit: options.memory_limit, folder: options.spill_folder, nodes };
                Building::Cpu(Box::new(layer), slots, room)
            }
            #[cfg(feature = "cuda")]
            Device::Cuda { ordinal } => {
                let device = crate::cuda::CudaDevice::open(ordinal)?;
                let own = !options.callers_memory;
                let layer = CudaLayer::without_weights(bundle, &device, options.max_tokens, rule, own)?;
                let slots = slots(layer.plan());
                Building::Cuda(Box::new(layer), slots)
            }
            device => {
                return Err(Diagnostic::machine(
                    "device-not-built-in",
                    format!("this build has no support for {device}"),
                )
                .help("build moec-runtime with the features `cuda` and `emulator`"));
            }
        };
        Ok(LayerBuilder { manifest: bundle.manifest().clone(), engine })
    }

    /// What the layer is: inputs, outputs, parameters.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Whether parameter number `param` of the manifest has its weight, or needs none: no kernel reads it.
    pub fn is_set(&self, param: usize) -> bool {
        fn filled<T>(plan: &Plan, slots: &[Option<T>], param: usize) -> bool {
            plan.weights.iter().zip(slots).all(|(w, slot)| w.param != param || slot.is_some())
        }
        match &self.engine {
            Building::Cpu(layer, slots, _) => filled(layer.plan(), slots, param),
            #[cfg(feature = "cuda")]
            Building::Cuda(layer, slots) => filled(layer.plan(), slots, param),
        }
    }

    /// Bytes of all weights as kernels read them.
    pub fn weight_bytes(&self) -> u64 {
        self.plan().weights.iter().map(|w| w.buffer.bytes(0)).sum()
    }

    /// Bytes of memory that a launch of `n_tokens` tokens works in.
    ///
    /// # Errors
    /// `too-many-tokens`.
    pub fn launch_bytes(&self, n_tokens: u64) -> Result<u64, Diagnostic> {
        match &self.engine {
            Building::Cpu(layer, ..) => layer.launch_bytes(n_tokens),
            #[cfg(feature = "cuda")]
            Building::Cuda(layer, _) => layer.launch_bytes(n_tokens),
        }
    }

    fn plan(&self) -> &Plan {
        match &self.engine {
            Building::Cpu(layer, ..) => layer.plan(),
            #[cfg(feature = "cuda")]
            Building::Cuda(layer, _) => layer.plan(),
        }
    }

    /// Number of the parameter called `name`.
    ///
    /// # Errors
    /// `unknown-parameter`, naming those there are.
    pub fn param(&self, name: &str) -> Result<usize, Diagnostic> {
        self.manifest.params.iter().position(|p| p.name == name).ok_or_else(|| {
            let names: Vec<String> = self.manifest.params.iter().map(|p| format!("`{}`", p.name)).collect();
            Diagnostic::input("unknown-parameter", format!("the layer has no parameter `{name}`"))
                .note(format!("it has {}", names.join(", ")))
        })
    }

    /// Gives parameter number `param` its weight, out of host memory in the graph's shape, with any strides. What was given
    /// before is replaced.
    ///
    /// # Errors
    /// `parameter-not-borrowable` for [`Hold::Borrow`]; `tensor-shape-mismatch`, `weight-type-unsupported`,
    /// `weight-out-of-range`; `stored-format-mismatch` for a parameter that kernels read as codes and scales
    /// ([`LayerBuilder::set_codes`]); `out-of-memory`, `cuda-call-failed`.
    ///
    /// # Safety
    /// Unless `hold` is [`Hold::Copy`], the memory stays valid and unchanged until the layer is dropped.
    pub unsafe fn set(&mut self, param: usize, view: &MemoryView<'_>, hold: Hold) -> Result<(), Diagnostic> {
        let info = self.info(param)?;
        check_shape(&info, view)?;
        let given = Given::Floats(view);
        // SAFETY: the caller's contract.
        unsafe { self.fill(&info, param, &given, hold, None) }
    }

    /// Gives parameter number `param`, which is published as codes and scales, both out of host memory, with any strides.
    /// Kernels that read it as floats get its values. With [`Hold::Borrow`] the codes stay where they lie; scales do where
    /// kernels read them so, and are copied where not.
    ///
    /// # Errors
    /// `parameter-not-borrowable` for [`Hold::Borrow`]; `quantised-scale-invalid`, `scale-not-exact`, `stored-format-mismatch`;
    /// `out-of-memory`, `cuda-call-failed`.
    ///
    /// # Safety
    /// As [`LayerBuilder::set`].
    pub unsafe fn set_codes(&mut self, param: usize, view: &CodedView<'_>, hold: Hold) -> Result<(), Diagnostic> {
        let info = self.info(param)?;
        view.check_scales(&info.param())?;
        // SAFETY: the caller's contract.
        unsafe { self.fill(&info, param, &Given::Codes(view), hold, None) }
    }

    /// As [`LayerBuilder::set`], out of the GPU's own memory: `pointer` is that of the first element, and the view has no
    /// bytes. What kernels cannot read where it lies goes through the host's memory, once.
    ///
    /// # Errors
    /// As [`LayerBuilder::set`]; `parameter-not-borrowable` on the CPU.
    ///
    /// # Safety
    /// `pointer` is memory of the layer's GPU that holds the elements and that no stream still writes; unless `hold` is
    /// [`Hold::Copy`], until the layer is dropped.
    #[cfg(feature = "cuda")]
    pub unsafe fn set_from_device(
        &mut self,
        param: usize,
        pointer: crate::cuda::DevicePtr,
        view: &MemoryView<'_>,
        hold: Hold,
    ) -> Result<(), Diagnostic> {
        let info = self.info(param)?;
        check_shape(&info, view)?;
        // SAFETY: the caller's contract.
        unsafe { self.fill(&info, param, &Given::Floats(view), hold, Some([pointer, 0])) }
    }

    /// As [`LayerBuilder::set_codes`], out of the GPU's own memory: addresses of the first code and of the first scale.
    ///
    /// # Errors
    /// As [`LayerBuilder::set_codes`], and [`LayerBuilder::set_from_device`].
    ///
    /// # Safety
    /// As [`LayerBuilder::set_from_device`], of both.
    #[cfg(feature = "cuda")]
    pub unsafe fn set_codes_from_device(
        &mut self,
        param: usize,
        (codes, scales): (crate::cuda::DevicePtr, crate::cuda::DevicePtr),
        view: &CodedView<'_>,
        hold: Hold,
    ) -> Result<(), Diagnostic> {
        let info = self.info(param)?;
        // SAFETY: the caller's contract.
        unsafe { self.fill(&info, param, &Given::Codes(view), hold, Some([codes, scales])) }
    }

    fn info(&self, param: usize) -> Result<ParamInfo, Diagnostic> {
        self.manifest.params.get(param).cloned().ok_or_else(|| {
            let all = self.manifest.params.len();
            Diagnostic::input("unknown-parameter", format!("there are {all} parameters, none is number {param}"))
        })
    }

    /// Fills every slot of a parameter, or none. `on_gpu` has the addresses of what is given when it lies there.
    ///
    /// # Safety
    /// As [`LayerBuilder::set`] and [`LayerBuilder::set_from_device`].
    unsafe fn fill(
        &mut self,
        info: &ParamInfo,
        param: usize,
        given: &Given<'_>,
        hold: Hold,
        on_gpu: Option<[u64; 2]>,
    ) -> Result<(), Diagnostic> {
        match &mut self.engine {
            Building::Cpu(layer, slots, room) => {
                if on_gpu.is_some() {
                    return Err(not_borrowable(info, "a GPU's memory is not the CPU's"));
                }
                let mut filled = Vec::new();
                for (i, slot) in of_param(layer.plan(), param) {
                    let lent = given.lent(info, slot, hold)?;
                    let lent =
                        lent.map(|(part, strides)| cpu::WeightMemory::Borrowed(given.bytes(part).as_ptr(), strides));
                    let pack = |dst: &mut [u8]| given.pack(info, &slot.buffer, dst);
                    filled
                        .push((i, lent.map_or_else(|| cpu::WeightMemory::packed(info, &slot.buffer, room, pack), Ok)?));
                }
                filled.into_iter().for_each(|(i, memory)| slots[i] = Some(memory));
            }
            #[cfg(feature = "cuda")]
            Building::Cuda(layer, slots) => {
                use crate::cuda::WeightMemory;
                if hold == Hold::Borrow && on_gpu.is_none() {
                    return Err(not_borrowable(info, "host memory is not the GPU's"));
                }
                // What lies on the GPU is brought to the host when it has to be packed, and then only.
                let mut brought: Option<Brought> = None;
                let mut filled = Vec::new();
                for (i, slot) in of_param(layer.plan(), param) {
                    if let Some(addresses) = on_gpu
                        && let Some((part, strides)) = given.lent(info, slot, hold)?
                    {
                        let pointer = addresses[part];
                        if layer.takes(i, pointer, strides) {
                            filled.push((i, WeightMemory::Borrowed(pointer, strides)));
                            continue;
                        }
                        if hold == Hold::Borrow && !slot.is_scale() {
                            let why = "kernels take addresses and distances in multiples of 16";
                            return Err(not_borrowable(info, why));
                        }
                    }
                    if let (Some(addresses), None) = (on_gpu, &brought) {
                        // SAFETY: the caller's contract.
                        brought = Some(unsafe { given.bring(layer.device(), addresses)? });
                    }
                    let pack = |dst: &mut [u8]| match &brought {
                        Some(brought) => given.with(info, brought, |given| given.pack(info, &slot.buffer, dst)),
                        None => given.pack(info, &slot.buffer, dst),
                    };
                    filled.push((i, WeightMemory::packed(layer.device(), info, &slot.buffer, pack)?));
                }
                filled.into_iter().for_each(|(i, memory)| slots[i] = Some(memory));
            }
        }
        Ok(())
    }

    /// Gives all parameters their weights. What was given before is replaced.
    ///
    /// # Errors
    /// Those of packing ([`moec_weights::Plan`]), `out-of-memory`, `cuda-call-failed`.
    pub fn load(&mut self, weights: &Weights<'_>) -> Result<(), Diagnostic> {
        let found = weights.find(&self.manifest)?;
        let params = &self.manifest.params;
        match &mut self.engine {
            Building::Cpu(layer, slots, room) => {
                for (slot, memory) in layer.plan().weights.iter().zip(slots) {
                    let param = &params[slot.param];
                    found.begin(param, &slot.buffer);
                    *memory = Some(cpu::WeightMemory::of(&found, param, &slot.buffer, room)?);
                }
            }
            #[cfg(feature = "cuda")]
            Building::Cuda(layer, slots) => {
                for (slot, memory) in layer.plan().weights.iter().zip(slots) {
                    let param = &params[slot.param];
                    found.begin(param, &slot.buffer);
                    let pack = |dst: &mut [u8]| found.pack(param, &slot.buffer, dst);
                    *memory = Some(crate::cuda::WeightMemory::packed(layer.device(), param, &slot.buffer, pack)?);
                }
            }
        }
        Ok(())
    }

    /// That every parameter has its weight.
    ///
    /// # Errors
    /// `parameter-not-set`, naming those without.
    pub fn check(&self) -> Result<(), Diagnostic> {
        let missing: Vec<String> = (0..self.manifest.params.len())
            .filter(|&i| !self.is_set(i))
            .map(|i| format!("`{}`", self.manifest.params[i].name))
            .collect();
        if !missing.is_empty() {
            return Err(Diagnostic::input(
                "parameter-not-set",
                format!(
                    "{} of {} parameters have no weights: {}",
                    missing.len(),
                    self.manifest.params.len(),
                    missing.join(", ")
                ),
            )
            .help("set each of them, or load a checkpoint, before the layer is finished"));
        }
        Ok(())
    }

    /// The layer, ready to run.
    ///
    /// # Errors
    /// `parameter-not-set`, naming those without a weight; `memory-limit-too-small`, naming the least.
    pub fn finish(self) -> Result<Layer, Diagnostic> {
        self.check()?;
        let engine = match self.engine {
            Building::Cpu(mut layer, slots, room) => {
                layer.set_weights(slots.into_iter().flatten().collect(), room.limit)?;
                Engine::Cpu(layer)
            }
            #[cfg(feature = "cuda")]
            Building::Cuda(mut layer, slots) => {
                layer.set_weights(slots.into_iter().flatten().collect());
                Engine::Cuda(layer)
            }
        };
        Ok(Layer::new(self.manifest, engine))
    }
}

impl std::fmt::Debug for LayerBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LayerBuilder").field("name", &self.manifest.layer.name).finish()
    }
}

fn slots<T>(plan: &Plan) -> Vec<Option<T>> {
    plan.weights.iter().map(|_| None).collect()
}

fn of_param(plan: &Plan, param: usize) -> impl Iterator<Item = (usize, &WeightSlot)> {
    plan.weights.iter().enumerate().filter(move |(_, w)| w.param == param)
}

fn check_shape(param: &ParamInfo, view: &MemoryView<'_>) -> Result<(), Diagnostic> {
    let wanted: Option<Vec<u64>> = param.ty.shape.iter().map(|d| d.fixed()).collect();
    if wanted.as_ref() == Some(&view.shape()) {
        return Ok(());
    }
    let (found, name) = (view.shape(), &param.name);
    Err(Diagnostic::input(
        "tensor-shape-mismatch",
        format!("the weight `{name}` is {}{found:?}, but the layer asks for {}", view.dtype, param.ty),
    ))
}

pub(crate) fn not_borrowable(param: &ParamInfo, why: &str) -> Diagnostic {
    Diagnostic::input(
        "parameter-not-borrowable",
        format!("the memory given for `{}`, {}, cannot be used as it lies: {why}", param.name, param.ty),
    )
    .help("let it be copied, or borrow only where possible")
}
