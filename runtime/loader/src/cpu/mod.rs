//! Layers on the host's processor.

mod object_file;
mod pool;

pub use object_file::{Code, check_features};
pub use pool::Pool;

use crate::host;
use crate::memory::allocate;
use crate::plan::{Place, Plan};
use crate::weights::{Keep, Weights};
use memmap2::MmapMut;
use moec_bundle::Bundle;
use moec_bundle::manifest::{Launch, Manifest, TargetEntry, WorkspaceRule};
use moec_ir::Tensor;
use moec_ir::abi::{BUFFER_ALIGN, CpuContext, CpuKernel, CpuMath};
use moec_ir::diag::Diagnostic;
use moec_ir::tile::{Buffer, CpuLaunch};
use pool::Stage;
use std::any::Any;
use std::sync::Arc;

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
    workspace: MmapMut,
    /// `n_threads` pieces of `scratch_stride` bytes.
    scratch: MmapMut,
    scratch_stride: usize,
    math: Box<CpuMath>,
    pool: Arc<Pool>,
    /// The buffer pointers of all kernels of a run, one behind the other; filled at every launch.
    pointers: Vec<*mut u8>,
    /// The stages of a run; filled at every launch.
    stages: Vec<Stage>,
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
}

enum WeightMemory {
    Packed(MmapMut),
    /// A part of a mapped checkpoint, kept mapped beside it.
    Mapped(*const u8, #[allow(dead_code, reason = "held for what it keeps mapped")] Keep),
}

// SAFETY: the raw pointers are into memory that the layer owns or keeps mapped (weights), or are written anew at the
// start of each launch, which takes `&mut self`. Nothing is tied to a thread.
unsafe impl Send for CpuLayer {}
// SAFETY: no method that takes `&self` follows a raw pointer.
unsafe impl Sync for CpuLayer {}

impl CpuLayer {
    /// Loads the `cpu` target of a bundle. With `jit` the kernels come from there and not from the object file;
    /// `workspace` replaces the bundle's workspace rule.
    ///
    /// # Errors
    /// `target-not-in-bundle`, `too-many-tokens`, `cpu-features-missing`, `cpu-object-invalid`, `out-of-memory`, and
    /// those of packing weights.
    pub fn load(
        bundle: &Bundle,
        weights: &Weights<'_>,
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
        let scratch_stride = scratch_bytes.next_multiple_of(BUFFER_ALIGN).max(BUFFER_ALIGN);
        let n_pointers = variants.iter().map(|v| v.kernels.iter().map(|k| k.operands.len()).sum()).max().unwrap_or(0);
        let n_stages = variants.iter().map(|v| v.kernels.len()).max().unwrap_or(0);
        if n_stages > pool::MAX_STAGES {
            return Err(Diagnostic::internal(
                "internal-error",
                format!("a program of {n_stages} kernels cannot be run"),
            ));
        }
        let staging = plan.io_sizes(manifest).into_iter().map(|n| allocate(n, "inputs and outputs"));
        Ok(CpuLayer {
            weights: load_weights(manifest, &plan, weights)?,
            workspace: allocate(plan.workspace_bytes, "workspace")?,
            scratch: allocate(scratch_stride * pool.n_threads() as u64, "scratch memory")?,
            scratch_stride: scratch_stride as usize,
            math: Box::new(CpuMath::standard()),
            pointers: Vec::with_capacity(n_pointers),
            stages: Vec::with_capacity(n_stages),
            staging: staging.collect::<Result<_, _>>()?,
            plan,
            variants,
            pool,
            _code: code,
        })
    }

    pub(crate) fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Runs the layer on the caller's memory. Does not allocate.
    ///
    /// `inputs` and `outputs` stand in the manifest's order. Rows lie at the pitch of the chosen variant's buffers, which
    /// the compiler makes equal to the number of columns for inputs and outputs.
    ///
    /// # Errors
    /// `too-many-tokens`; `input-missing` when the number of pointers is not the manifest's.
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
        let variant = &self.variants[self.plan.variant_for(n_tokens)?];
        self.pointers.clear();
        self.stages.clear();
        let workspace = self.workspace.as_mut_ptr();
        for step in &variant.kernels {
            for place in &step.operands {
                let pointer = match *place {
                    Place::Input(i) => inputs.get(i).map(|p| p.cast_mut()),
                    Place::Output(i) => outputs.get(i).copied(),
                    Place::Weight(w) => Some(self.weights[w].pointer()),
                    // The offset lies within the workspace: both come from the same layout.
                    Place::Workspace(offset) => Some(workspace.wrapping_add(offset as usize)),
                };
                let missing = || {
                    Diagnostic::input(
                        "input-missing",
                        format!("the layer was given {} inputs and {} outputs, too few", inputs.len(), outputs.len()),
                    )
                };
                self.pointers.push(pointer.ok_or_else(missing)?);
            }
        }
        let mut at = 0;
        for step in &variant.kernels {
            let context = CpuContext {
                // `pointers` was made with room for all kernels of any variant, so it does not move.
                buffers: self.pointers[at..].as_ptr(),
                n_tokens,
                scratch: self.scratch.as_mut_ptr(),
                math: &raw const *self.math,
            };
            at += step.operands.len();
            let items = step.launch.items.at(n_tokens);
            self.stages.push(Stage { kernel: step.kernel, context, scratch_stride: self.scratch_stride, items });
        }
        // SAFETY: the kernels are the backend's for these operands, in the order of the calling convention; the pointers
        // are valid for their buffers' sizes (the caller's contract for inputs and outputs, this layer's own allocations
        // for the rest, laid out for at least `n_tokens` tokens); scratch has `n_threads` pieces of at least the size
        // that any kernel asks for.
        unsafe { self.pool.run(&self.stages) };
        Ok(())
    }

    /// An intermediate buffer as the last run left it: rows without padding.
    pub(crate) fn read_buffer(&self, name: &str, n_tokens: u64) -> Result<(Buffer, Vec<u8>), Diagnostic> {
        let v = self.plan.variant_for(n_tokens)?;
        let (i, buffer) = self.plan.intermediate(v, name)?;
        let Place::Workspace(offset) = self.plan.places[v][i] else {
            return Err(Diagnostic::internal("internal-error", format!("`{name}` should lie in the workspace")));
        };
        let bytes = self.workspace.get(offset as usize..).and_then(|b| host::read_matrix(buffer, n_tokens, b));
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
        for (i, buffer) in self.plan.input_buffers(v, n_inputs).into_iter().enumerate() {
            if let Some(buffer) = buffer {
                host::write_rows(&inputs[i], buffer, &mut self.staging[i]);
            }
        }
        let input_pointers: Vec<*const u8> = self.staging[..n_inputs].iter().map(|m| m.as_ptr()).collect();
        let output_pointers: Vec<*mut u8> = self.staging[n_inputs..].iter_mut().map(|m| m.as_mut_ptr()).collect();
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
}

impl WeightMemory {
    fn pointer(&self) -> *mut u8 {
        match self {
            WeightMemory::Packed(m) => m.as_ptr().cast_mut(),
            WeightMemory::Mapped(p, _) => p.cast_mut(),
        }
    }
}

fn load_weights(manifest: &Manifest, plan: &Plan, weights: &Weights<'_>) -> Result<Vec<WeightMemory>, Diagnostic> {
    let weights = weights.find(manifest)?;
    let load = |slot: &crate::plan::WeightSlot| {
        let param = &manifest.params[slot.param];
        weights.begin(param, &slot.buffer);
        if let Some((pointer, keep)) = weights.borrow(param, &slot.buffer)? {
            return Ok(WeightMemory::Mapped(pointer, keep));
        }
        let bytes = slot.buffer.bytes(0);
        let mut memory = allocate(bytes, &format!("the weight `{}`", param.name))?;
        weights.pack(param, &slot.buffer, &mut memory[..bytes as usize])?;
        Ok(WeightMemory::Packed(memory))
    };
    plan.weights.iter().map(load).collect()
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
