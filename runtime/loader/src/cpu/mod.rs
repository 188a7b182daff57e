//! Layers on the host's processor.

mod affinity;
mod interleave;
mod object_file;
mod pool;
mod spill;
mod streamed;
mod times;

pub use affinity::parse_cpus;
pub use interleave::Interleaving;
pub use object_file::{Code, check_features};
pub use pool::{MAX_THREADS, Pool};
pub(crate) use spill::Room;
pub use streamed::ExpertMemory;

use crate::host;
use crate::memory::allocate;
use crate::plan::{Place, Plan};
use crate::weights::{FoundWeights, Keep};
use memmap2::MmapMut;
use moec_bundle::Bundle;
use moec_bundle::manifest::{Launch, Manifest, ParamInfo, TargetEntry, WorkspaceRule};
use moec_ir::Tensor;
use moec_ir::abi::{BUFFER_ALIGN, CpuContext, CpuKernel, CpuKernels, CpuMath, Strides};
use moec_ir::diag::Diagnostic;
use moec_ir::tile::{Buffer, CpuLaunch};
use pool::Stage;
use std::any::Any;
use std::sync::Arc;
use streamed::Streamed;

/// Kernels that were compiled in this process, for the variants of a bundle's `cpu` target.
#[derive(Clone)]
pub struct JitKernels {
    variants: Vec<Vec<CpuKernel>>,
    keep: Arc<dyn Any + Send + Sync>,
}

impl JitKernels {
    /// Kernels by variant and, within it, in launch order. `keep` is held as long as any of them may be called.
    ///
    /// # Safety
    /// The kernels were compiled from the same tile programs as the bundle's entries, by the rules of
    /// [`moec_ir::abi`], and stay callable as long as `keep` is not dropped.
    pub unsafe fn new(variants: Vec<Vec<CpuKernel>>, keep: Arc<dyn Any + Send + Sync>) -> JitKernels {
        JitKernels { variants, keep }
    }
}

impl std::fmt::Debug for JitKernels {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JitKernels").field("variants", &self.variants.len()).finish()
    }
}

/// A layer that is ready to run on the host's processor.
pub struct CpuLayer {
    plan: Plan,
    variants: Vec<CpuVariant>,
    weights: Vec<WeightMemory>,
    /// Under a memory limit: what is in memory of the experts.
    streamed: Option<Streamed>,
    /// What [`CpuLayer::launch`] works in.
    memory: MmapMut,
    scratch_stride: usize,
    math: Box<CpuMath>,
    kernels: Box<CpuKernels>,
    pool: Arc<Pool>,
    /// Inputs, then outputs, of [`CpuLayer::run_host`].
    staging: Vec<MmapMut>,
    /// Keeps what the kernels' function pointers point to.
    _code: Arc<dyn Any + Send + Sync>,
}

struct CpuVariant {
    kernels: Vec<CpuStep>,
}

struct CpuStep {
    kernel: CpuKernel,
    launch: CpuLaunch,
    operands: Vec<Place>,
    /// Of each operand; those of weights are set with them.
    strides: Vec<Strides>,
}

/// Where a weight lies.
pub(crate) enum WeightMemory {
    Packed(MmapMut),
    /// A part of a mapped checkpoint, kept mapped beside it.
    Mapped(*const u8, #[allow(dead_code, reason = "held for what it keeps mapped")] Keep),
    /// Memory of the caller, who keeps it as long as the layer lives, and how it lies there.
    Borrowed(*const u8, Strides),
}

// SAFETY: the raw pointers are into memory that the layer owns, keeps mapped, or was promised. Nothing is tied to a thread.
unsafe impl Send for WeightMemory {}
// SAFETY: kernels only read what they point to.
unsafe impl Sync for WeightMemory {}

/// How the memory of one launch is cut: offsets in bytes from an aligned start.
struct Cut {
    /// `n_threads` pieces of scratch memory; the workspace lies before.
    scratch: usize,
    /// The buffer pointers of all kernels of a run, one behind the other.
    pointers: usize,
    /// The stages of a run.
    stages: usize,
    /// All of it.
    bytes: usize,
}

impl CpuLayer {
    /// Loads the `cpu` target of a bundle, without weights. With `jit` the kernels come from there and not from the object
    /// file; `workspace` replaces the bundle's workspace rule.
    ///
    /// # Errors
    /// `target-not-in-bundle`, `too-many-tokens`, `cpu-features-missing`, `cpu-object-invalid`, `out-of-memory`.
    pub(crate) fn without_weights(
        bundle: &Bundle,
        max_tokens: u64,
        pool: Arc<Pool>,
        jit: Option<JitKernels>,
        workspace: Option<WorkspaceRule>,
    ) -> Result<CpuLayer, Diagnostic> {
        let manifest = bundle.manifest();
        let target = crate::plan::find_target(manifest, "cpu")?;
        let plan = Plan::new(target, max_tokens, workspace)?;
        let (variants, code) = bind_kernels(bundle, target, &plan, jit)?;
        let steps = || variants.iter().flat_map(|v| &v.kernels);
        let scratch_bytes = steps().map(|k| k.launch.scratch_bytes).max().unwrap_or(0);
        let scratch_stride = scratch_bytes.next_multiple_of(BUFFER_ALIGN).max(BUFFER_ALIGN) as usize;
        let n_stages = variants.iter().map(|v| v.kernels.len()).max().unwrap_or(0);
        if n_stages > pool::MAX_STAGES {
            return Err(Diagnostic::internal(
                "internal-error",
                format!("a program of {n_stages} kernels cannot be run"),
            ));
        }
        let staging = plan.io_sizes(manifest).into_iter().map(|n| allocate(n, "inputs and outputs"));
        let mut layer = CpuLayer {
            weights: Vec::new(),
            streamed: None,
            memory: allocate(0, "workspace")?,
            scratch_stride,
            math: Box::new(CpuMath::standard()),
            kernels: Box::new(moec_cpu_kernels::table()),
            staging: staging.collect::<Result<_, _>>()?,
            plan,
            variants,
            pool,
            _code: code,
        };
        let bytes = (0..layer.variants.len()).map(|v| layer.cut(v).bytes).max().unwrap_or(0);
        layer.memory = allocate(bytes as u64, "workspace")?;
        Ok(layer)
    }

    /// Gives the layer its weights, one for each slot of the plan. With a limit, experts that are mapped take no more memory.
    ///
    /// # Errors
    /// `memory-limit-too-small`, `memory-limit-unsupported`.
    pub(crate) fn set_weights(&mut self, weights: Vec<WeightMemory>, limit: Option<u64>) -> Result<(), Diagnostic> {
        for step in self.variants.iter_mut().flat_map(|v| &mut v.kernels) {
            for (place, strides) in step.operands.iter().zip(&mut step.strides) {
                if let Place::Weight(w) = *place
                    && let Some(WeightMemory::Borrowed(_, given)) = weights.get(w)
                {
                    *strides = *given;
                }
            }
        }
        self.streamed = limit.map(|n| Streamed::new(&self.plan, &self.variants, &weights, n)).transpose()?;
        self.weights = weights;
        Ok(())
    }

    /// What is in memory of the experts, of a layer that was loaded under a memory limit.
    pub fn expert_memory(&self) -> Option<ExpertMemory> {
        self.streamed.as_ref().map(Streamed::memory)
    }

    pub(crate) fn plan(&self) -> &Plan {
        &self.plan
    }

    fn cut(&self, variant: usize) -> Cut {
        let kernels = &self.variants[variant].kernels;
        let n_pointers: usize = kernels.iter().map(|k| k.operands.len()).sum();
        let aligned = |bytes: usize| bytes.next_multiple_of(BUFFER_ALIGN as usize);
        let scratch = aligned(self.plan.variant_bytes[variant] as usize);
        let pointers = scratch + self.scratch_stride * self.pool.n_threads();
        let stages = aligned(pointers + n_pointers * size_of::<*mut u8>());
        Cut { scratch, pointers, stages, bytes: aligned(stages + kernels.len() * size_of::<Stage>()) }
    }

    /// Bytes of memory that [`CpuLayer::launch_in`] needs for `n_tokens` tokens: intermediates, scratch memory of each
    /// thread, and room to begin at a multiple of 256. The same for all token counts of one variant.
    ///
    /// # Errors
    /// `too-many-tokens`.
    pub fn launch_bytes(&self, n_tokens: u64) -> Result<u64, Diagnostic> {
        Ok(self.cut(self.plan.variant_for(n_tokens)?).bytes as u64 + BUFFER_ALIGN)
    }

    /// Runs the layer on the caller's memory, in the layer's own workspace. Does not allocate, but for lists of a few experts under
    /// a memory limit.
    ///
    /// `inputs` and `outputs` stand in the manifest's order; their elements may lie at any address. Rows lie at the pitch of
    /// the chosen variant's buffers, which the compiler makes equal to the number of columns for inputs and outputs.
    ///
    /// # Errors
    /// `too-many-tokens`; `input-missing` when the number of pointers is not the manifest's; under a memory limit
    /// `experts-unreadable`.
    ///
    /// # Safety
    /// Every pointer is valid for its buffer's size at `n_tokens`, for reads (inputs) or writes (outputs), and no output
    /// overlaps another buffer.
    pub unsafe fn launch(
        &mut self,
        n_tokens: u64,
        inputs: &[*const u8],
        outputs: &[*mut u8],
    ) -> Result<(), Diagnostic> {
        let memory = self.memory.as_mut_ptr();
        // SAFETY: the caller's contract; the memory has room for any variant from its start, a page, and `&mut self` keeps
        // other launches out of it.
        unsafe { self.launch_at(memory, n_tokens, inputs, outputs) }
    }

    /// As [`CpuLayer::launch`], in memory of the caller: several threads may do so at the same time, each in its own.
    ///
    /// # Errors
    /// As [`CpuLayer::launch`], and `workspace-too-small`.
    ///
    /// # Safety
    /// As [`CpuLayer::launch`]; `memory` is valid for reads and writes of `bytes` bytes, and nobody else uses it meanwhile.
    pub unsafe fn launch_in(
        &self,
        memory: *mut u8,
        bytes: u64,
        n_tokens: u64,
        inputs: &[*const u8],
        outputs: &[*mut u8],
    ) -> Result<(), Diagnostic> {
        crate::workspace::check(self.launch_bytes(n_tokens)?, bytes, memory.is_null(), n_tokens)?;
        // `launch_bytes` has room for this step.
        let start = memory.wrapping_add(memory.align_offset(BUFFER_ALIGN as usize));
        // SAFETY: the caller's contract; the memory has room for the variant from its aligned start.
        unsafe { self.launch_at(start, n_tokens, inputs, outputs) }
    }

    /// # Safety
    /// As [`CpuLayer::launch_in`]; `memory` is aligned to [`BUFFER_ALIGN`] and has room for the variant's [`Cut`].
    unsafe fn launch_at(
        &self,
        memory: *mut u8,
        n_tokens: u64,
        inputs: &[*const u8],
        outputs: &[*mut u8],
    ) -> Result<(), Diagnostic> {
        // SAFETY: the caller's contract; the stages are those of a launch.
        unsafe {
            let stages = &*self.stages_at(memory, n_tokens, inputs, outputs)?;
            match &self.streamed {
                Some(streamed) => {
                    streamed.run(&self.pool, self.plan.variant_for(n_tokens)?, stages, &mut |_| ())?;
                }
                None => self.pool.run(stages),
            }
        }
        Ok(())
    }

    /// Writes the stages of a launch into its memory: its kernels, in order. They may be run for as long as what they were
    /// made of is valid: the kernels are the backend's for these operands, in the order of the calling convention; the
    /// pointers are valid for their buffers' sizes (the caller's contract for inputs, outputs and `memory`, this layer's own
    /// or the lender's for weights); scratch has `n_threads` pieces of at least the size that any kernel asks for.
    ///
    /// # Safety
    /// As [`CpuLayer::launch_at`].
    unsafe fn stages_at(
        &self,
        memory: *mut u8,
        n_tokens: u64,
        inputs: &[*const u8],
        outputs: &[*mut u8],
    ) -> Result<*const [Stage], Diagnostic> {
        let v = self.plan.variant_for(n_tokens)?;
        let (variant, cut) = (&self.variants[v], self.cut(v));
        // SAFETY: counters lie at the start of the workspace, which `memory` has room for.
        unsafe { memory.write_bytes(0, self.plan.counter_bytes as usize) };
        let pointers = memory.wrapping_add(cut.pointers).cast::<*mut u8>();
        let stages = memory.wrapping_add(cut.stages).cast::<Stage>();
        let mut n_pointers = 0;
        for (k, step) in variant.kernels.iter().enumerate() {
            let context = CpuContext {
                buffers: pointers.wrapping_add(n_pointers),
                n_tokens,
                scratch: memory.wrapping_add(cut.scratch),
                math: &raw const *self.math,
                kernels: &raw const *self.kernels,
                strides: step.strides.as_ptr(),
            };
            for place in &step.operands {
                let pointer = match *place {
                    Place::Input(i) => inputs.get(i).map(|p| p.cast_mut()),
                    Place::Output(i) => outputs.get(i).copied(),
                    Place::Weight(w) => self.weights.get(w).map(WeightMemory::pointer),
                    // The offset lies within the workspace: both come from the same layout.
                    Place::Workspace(offset) => Some(memory.wrapping_add(offset as usize)),
                };
                let missing = || {
                    Diagnostic::input(
                        "input-missing",
                        format!("the layer was given {} inputs and {} outputs, too few", inputs.len(), outputs.len()),
                    )
                };
                let pointer = pointer.ok_or_else(missing)?;
                // SAFETY: `cut` has room for the pointers of all kernels of the variant.
                unsafe { pointers.add(n_pointers).write(pointer) };
                n_pointers += 1;
            }
            let items = step.launch.items.at(n_tokens);
            let stage = Stage { kernel: step.kernel, context, scratch_stride: self.scratch_stride, items };
            // SAFETY: `cut` has room for a stage for each kernel of the variant.
            unsafe { stages.add(k).write(stage) };
        }
        Ok(std::ptr::slice_from_raw_parts(stages.cast_const(), variant.kernels.len()))
    }

    /// An intermediate buffer as the last run left it: rows without padding.
    pub(crate) fn read_buffer(&self, name: &str, n_tokens: u64) -> Result<(Buffer, Vec<u8>), Diagnostic> {
        let v = self.plan.variant_for(n_tokens)?;
        let (i, buffer) = self.plan.intermediate(v, name)?;
        let Place::Workspace(offset) = self.plan.places[v][i] else {
            return Err(Diagnostic::internal("internal-error", format!("`{name}` should lie in the workspace")));
        };
        let bytes = self.memory.get(offset as usize..).and_then(|b| host::read_matrix(buffer, n_tokens, b));
        let bytes =
            bytes.ok_or_else(|| Diagnostic::internal("internal-error", "the workspace should hold its buffers"));
        Ok((buffer.clone(), bytes?))
    }

    /// Runs the layer on host tensors: copies in, runs, copies out.
    pub(crate) fn run_host(
        &mut self,
        manifest: &Manifest,
        inputs: &[Tensor],
        n_tokens: u64,
    ) -> Result<Vec<Tensor>, Diagnostic> {
        let v = self.plan.variant_for(n_tokens)?;
        let n_inputs = manifest.inputs.len();
        let (input_pointers, output_pointers) = self.stage_inputs(v, inputs, n_inputs);
        // SAFETY: each piece of staging memory was allocated for the buffer's largest size over all variants at the
        // largest token count, and is a mapping of its own.
        unsafe { self.launch(n_tokens, &input_pointers, &output_pointers)? };
        let buffers = self.plan.output_buffers(v);
        let mut out = Vec::with_capacity(buffers.len());
        for (i, (info, buffer)) in manifest.outputs.iter().zip(buffers).enumerate() {
            out.push(host::read_rows(info, buffer, n_tokens, &self.staging[n_inputs + i])?);
        }
        Ok(out)
    }

    /// Copies inputs to staging memory; returns where inputs and outputs lie there.
    fn stage_inputs(&mut self, v: usize, inputs: &[Tensor], n_inputs: usize) -> (Vec<*const u8>, Vec<*mut u8>) {
        for (i, buffer) in self.plan.input_buffers(v, n_inputs).into_iter().enumerate() {
            if let Some(buffer) = buffer {
                host::write_rows(&inputs[i], buffer, &mut self.staging[i]);
            }
        }
        let input_pointers: Vec<*const u8> = self.staging[..n_inputs].iter().map(|m| m.as_ptr()).collect();
        let output_pointers: Vec<*mut u8> = self.staging[n_inputs..].iter_mut().map(|m| m.as_mut_ptr()).collect();
        (input_pointers, output_pointers)
    }
}

impl WeightMemory {
    fn pointer(&self) -> *mut u8 {
        match self {
            WeightMemory::Packed(m) => m.as_ptr().cast_mut(),
            WeightMemory::Mapped(p, _) | WeightMemory::Borrowed(p, _) => p.cast_mut(),
        }
    }
}

impl WeightMemory {
    /// The packed form of a parameter; memory of its file where that is the packed form.
    pub(crate) fn of(
        weights: &FoundWeights<'_>,
        param: &ParamInfo,
        buffer: &Buffer,
        room: &Room,
    ) -> Result<WeightMemory, Diagnostic> {
        if let Some((pointer, keep)) = weights.borrow(param, buffer)? {
            return Ok(WeightMemory::Mapped(pointer, keep));
        }
        WeightMemory::packed(param, buffer, room, |dst| weights.pack(param, buffer, dst))
    }

    /// Memory of the buffer's size that `pack` fills; a mapped file where memory is limited and the weight is one of experts.
    pub(crate) fn packed(
        param: &ParamInfo,
        buffer: &Buffer,
        room: &Room,
        pack: impl FnOnce(&mut [u8]) -> Result<(), Diagnostic>,
    ) -> Result<WeightMemory, Diagnostic> {
        let is_limited = room.limit.is_some() && streamed::is_stack(buffer);
        if is_limited {
            room.check(param)?;
        }
        let bytes = buffer.bytes(0);
        let mut memory = allocate(bytes, &format!("the weight `{}`", param.name))?;
        room.nodes.apply(&mut memory);
        pack(&mut memory[..bytes as usize])?;
        if is_limited {
            return room.spill(param, &memory[..bytes as usize]);
        }
        Ok(WeightMemory::Packed(memory))
    }
}

type Bound = (Vec<CpuVariant>, Arc<dyn Any + Send + Sync>);

fn bind_kernels(
    bundle: &Bundle,
    target: &TargetEntry,
    plan: &Plan,
    jit: Option<JitKernels>,
) -> Result<Bound, Diagnostic> {
    let code = match &jit {
        Some(_) => None,
        None => {
            check_features(&target.requires)?;
            let object = target.object.as_deref().ok_or_else(|| {
                Diagnostic::input("cpu-object-invalid", "the bundle has no object file for the CPU")
                    .help("compile the layer with `--target cpu`")
            })?;
            Some(Code::load(bundle.file(object)?)?)
        }
    };
    let function =
        |variant: usize, kernel: usize, symbol: &str| match (&jit, &code) {
            (Some(jit), _) => jit.variants.get(variant).and_then(|v| v.get(kernel)).copied().ok_or_else(|| {
                Diagnostic::internal("internal-error", format!("no kernel was handed in for `{symbol}`"))
            }),
            (None, Some(code)) => code.kernel(symbol),
            (None, None) => Err(Diagnostic::internal("internal-error", "there is no code to bind")),
        };
    let mut variants = Vec::new();
    for (v, (variant, places)) in plan.variants.iter().zip(&plan.places).enumerate() {
        let mut kernels = Vec::new();
        for (k, entry) in variant.kernels.iter().enumerate() {
            let Launch::Cpu { launch } = &entry.launch else {
                return Err(Diagnostic::input("bundle-invalid", format!("`{}` is no CPU kernel", entry.name)));
            };
            kernels.push(CpuStep {
                kernel: function(v, k, &entry.entry)?,
                launch: launch.clone(),
                operands: entry.operands.iter().map(|o| places[o.buffer.index()]).collect(),
                strides: entry.operands.iter().map(|o| Strides::of(&variant.buffers[o.buffer.index()])).collect(),
            });
        }
        variants.push(CpuVariant { kernels });
    }
    let keep: Arc<dyn Any + Send + Sync> = match jit {
        Some(jit) => jit.keep,
        None => Arc::new(code),
    };
    Ok((variants, keep))
}
