//! Layers on NVIDIA GPUs.
//!
//! Loading packs the weights into device memory, compiles the PTX and allocates everything. After that
//! [`CudaLayer::launch`] only launches kernels on the caller's stream: it can be captured into a CUDA graph, and a graph
//! that was captured for up to N tokens runs any smaller number, which the kernels read from device memory.

mod driver;
mod module;
mod tensor_map;
mod times;

pub use driver::{
    CudaDevice, CudaEvent, CudaGraph, CudaStream, DeviceInfo, DeviceMemory, DevicePtr, RawStream, device_count,
    driver_version,
};
pub use module::FunctionInfo;
pub(crate) use times::Flush;

use crate::device::best_target;
use crate::host;
use crate::memory::allocate;
use crate::plan::{Place, Plan};
use cudarc::driver::sys;
use driver::check;
use module::{Function, Module};
use moec_bundle::manifest::{Launch, Manifest, ParamInfo, WorkspaceRule};
use moec_bundle::{Bundle, MAX_KERNEL_PARAMS};
use moec_ir::Tensor;
use moec_ir::abi::{BUFFER_ALIGN, Strides};
use moec_ir::diag::Diagnostic;
use moec_ir::tile::{Buffer, GpuLaunch};
use std::collections::BTreeMap;

/// Least alignment of the caller's inputs, outputs and weights: that of the widest access of a kernel.
pub const DEVICE_ALIGN: u64 = 16;

/// A layer that is ready to run on a GPU.
pub struct CudaLayer {
    device: CudaDevice,
    plan: Plan,
    variants: Vec<Vec<CudaStep>>,
    weights: Vec<WeightMemory>,
    /// What [`CudaLayer::launch`] and [`CudaLayer::run_host`] work in.
    own: OwnMemory,
    stream: CudaStream,
    /// Made when the layer is first timed.
    flush: Option<Flush>,
    /// Keeps the functions of `variants` callable; dropped after nothing can be launched any more.
    _modules: Vec<Module>,
}

/// Where a weight lies.
pub(crate) enum WeightMemory {
    Packed(DeviceMemory),
    /// Memory of the caller, who keeps it as long as the layer lives, and how it lies there.
    Borrowed(DevicePtr, Strides),
}

/// The layer's own memory; empty for hosts that hand theirs in.
#[derive(Default)]
struct OwnMemory {
    workspace: Option<DeviceMemory>,
    /// One u32.
    token_count: Option<DeviceMemory>,
    /// Inputs, then outputs.
    staging: Vec<DeviceMemory>,
}

struct CudaStep {
    name: String,
    function: Function,
    launch: GpuLaunch,
    operands: Vec<Place>,
}

/// Device memory of one launch.
#[derive(Clone, Copy, Debug)]
pub struct CudaIo<'a> {
    /// The inputs, in the manifest's order.
    pub inputs: &'a [DevicePtr],
    /// The outputs, in the manifest's order.
    pub outputs: &'a [DevicePtr],
    /// The token count: one `u32`.
    pub token_count: DevicePtr,
}

impl CudaLayer {
    /// Loads the target of a bundle that suits the GPU best, without weights. `workspace` replaces the bundle's workspace
    /// rule: with [`WorkspaceRule::Disjoint`] every intermediate can be read after a run. With `own_memory` the layer gets a
    /// workspace and memory for inputs and outputs of its own.
    ///
    /// # Errors
    /// `target-not-in-bundle`, `too-many-tokens`, `out-of-memory`, `ptx-rejected`, `cuda-driver-too-old`,
    /// `cuda-call-failed`.
    pub(crate) fn without_weights(
        bundle: &Bundle,
        device: &CudaDevice,
        max_tokens: u64,
        workspace: Option<WorkspaceRule>,
        own_memory: bool,
    ) -> Result<CudaLayer, Diagnostic> {
        let manifest = bundle.manifest();
        let (major, minor) = device.info().capability;
        let names = || manifest.targets.iter().map(|t| t.name.as_str());
        let target = best_target(names(), major, minor).and_then(|t| manifest.target(t)).ok_or_else(|| {
            Diagnostic::input(
                "target-not-in-bundle",
                format!(
                    "{} (compute capability {major}.{minor}) runs none of the bundle's targets: {}",
                    device.info().name,
                    names().collect::<Vec<_>>().join(", ")
                ),
            )
            .help("compile the layer for this GPU as well; `moec compile --help` lists the targets")
        })?;
        let plan = Plan::new(target, max_tokens, workspace)?;
        let (variants, modules) = load_kernels(bundle, &plan, device)?;
        let own = if own_memory {
            let staging = plan.io_sizes(manifest).into_iter().map(|n| device.allocate(n, "inputs and outputs"));
            let mut workspace = device.allocate(plan.workspace_bytes, "workspace")?;
            workspace.upload(&vec![0; plan.counter_bytes as usize])?;
            OwnMemory {
                workspace: Some(workspace),
                token_count: Some(device.allocate(4, "the token count")?),
                staging: staging.collect::<Result<_, _>>()?,
            }
        } else {
            OwnMemory::default()
        };
        Ok(CudaLayer {
            weights: Vec::new(),
            own,
            stream: device.stream()?,
            flush: None,
            device: device.clone(),
            plan,
            variants,
            _modules: modules,
        })
    }

    /// Gives the layer its weights, one for each slot of the plan.
    pub(crate) fn set_weights(&mut self, weights: Vec<WeightMemory>) {
        for step in self.variants.iter_mut().flatten() {
            for map in &mut step.launch.tensor_maps {
                if let Some(Place::Weight(w)) = step.operands.get(map.operand as usize)
                    && let Some(WeightMemory::Borrowed(_, given)) = weights.get(*w)
                {
                    map.lay(*given);
                }
            }
        }
        self.weights = weights;
    }

    pub(crate) fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Whether kernels take weight number `slot` at this address, with matrices and rows that lie so.
    pub(crate) fn takes(&self, slot: usize, pointer: DevicePtr, strides: Strides) -> bool {
        let of_slot = |step: &CudaStep, operand: u32| step.operands.get(operand as usize) == Some(&Place::Weight(slot));
        let mut steps = self.variants.iter().flatten();
        let maps =
            |s: &CudaStep| s.launch.tensor_maps.iter().all(|m| !of_slot(s, m.operand) || m.takes(pointer, strides));
        pointer.is_multiple_of(DEVICE_ALIGN) && steps.all(maps)
    }

    /// The GPU.
    pub fn device(&self) -> &CudaDevice {
        &self.device
    }

    /// The layer's own stream, used by [`CudaLayer::run_host`].
    pub fn own_stream(&self) -> &CudaStream {
        &self.stream
    }

    /// The layer's own token count in device memory, for [`CudaIo::token_count`].
    pub fn own_token_count(&self) -> DevicePtr {
        self.own.token_count.as_ref().map_or(0, DeviceMemory::pointer)
    }

    /// Sets the layer's own token count, in the order of `stream`. Does not wait; can be captured.
    ///
    /// # Errors
    /// `too-many-tokens`, `cuda-call-failed`.
    ///
    /// # Safety
    /// `stream` is a living stream of this device.
    pub unsafe fn set_token_count(&self, n_tokens: u64, stream: RawStream) -> Result<(), Diagnostic> {
        self.plan.variant_for(n_tokens)?;
        let _entered = self.device.enter()?;
        // SAFETY: the memory holds one u32; the stream is the caller's contract. `n_tokens` is at most 2^30.
        let result = unsafe { sys::cuMemsetD32Async(self.own_token_count(), n_tokens as u32, 1, stream) };
        check(result, "set the token count")
    }

    /// Bytes of device memory that [`CudaLayer::launch_in`] needs for `n_tokens` tokens: the token count, intermediates,
    /// and room to begin at a multiple of 256. The same for all token counts of one variant.
    ///
    /// # Errors
    /// `too-many-tokens`.
    pub fn launch_bytes(&self, n_tokens: u64) -> Result<u64, Diagnostic> {
        Ok(self.plan.variant_bytes[self.plan.variant_for(n_tokens)?] + 2 * BUFFER_ALIGN)
    }

    /// Launches the whole layer on a stream, in device memory of the caller. Does not allocate, wait or read back; can be
    /// captured. Launches may run at the same time when each has its own `memory`, whose content does not matter.
    ///
    /// # Errors
    /// As [`CudaLayer::launch`], and `workspace-too-small`.
    ///
    /// # Safety
    /// As [`CudaLayer::launch`]; `memory` is device memory of `bytes` bytes that nobody else uses until the launch is done.
    pub unsafe fn launch_in(
        &self,
        memory: DevicePtr,
        bytes: u64,
        n_tokens: u64,
        inputs: &[DevicePtr],
        outputs: &[DevicePtr],
        stream: RawStream,
    ) -> Result<(), Diagnostic> {
        crate::workspace::check(self.launch_bytes(n_tokens)?, bytes, memory == 0, n_tokens)?;
        let token_count = memory.next_multiple_of(BUFFER_ALIGN);
        let workspace = token_count + BUFFER_ALIGN;
        let variant = self.plan.variant_for(n_tokens)?;
        let _entered = self.device.enter()?;
        // SAFETY: both lie in the caller's memory, whose size was checked; `n_tokens` is at most 2^30.
        unsafe {
            check(sys::cuMemsetD32Async(token_count, n_tokens as u32, 1, stream), "set the token count")?;
            if self.plan.counter_bytes > 0 {
                let words = self.plan.counter_bytes as usize / 4;
                check(sys::cuMemsetD32Async(workspace, 0, words, stream), "clear the counters")?;
            }
        }
        let io = CudaIo { inputs, outputs, token_count };
        for k in 0..self.variants[variant].len() {
            // SAFETY: the caller's contract.
            unsafe { self.launch_step(variant, k, &io, n_tokens, workspace, stream)? };
        }
        Ok(())
    }

    /// Launches the whole layer on a stream, in the layer's own workspace. Does not allocate, wait or read back.
    ///
    /// `at_most` chooses the variant and the sizes of the grids; the token count in device memory may be smaller, down
    /// to 0. Rows of inputs and outputs lie at the pitch of the chosen variant's buffers, which the compiler makes equal
    /// to the number of columns.
    ///
    /// # Errors
    /// `too-many-tokens`; `input-missing` when the number of pointers is not the manifest's; `cuda-call-failed`.
    ///
    /// # Safety
    /// The stream is a living stream of this device. The pointers are device memory, aligned to [`DEVICE_ALIGN`], of at least
    /// their buffers' sizes at `at_most` tokens, and outputs overlap nothing. The token count in memory is at most
    /// `at_most` when the kernels run. Two launches of one layer do not run at the same time: they share a workspace.
    pub unsafe fn launch(&self, io: &CudaIo<'_>, at_most: u64, stream: RawStream) -> Result<(), Diagnostic> {
        let variant = self.plan.variant_for(at_most)?;
        let _entered = self.device.enter()?;
        for k in 0..self.variants[variant].len() {
            // SAFETY: the caller's contract.
            unsafe { self.launch_step(variant, k, io, at_most, self.own_workspace()?, stream)? };
        }
        Ok(())
    }

    /// Launches one kernel of a variant: for measuring it. What it reads must have been written by those before it.
    ///
    /// # Errors
    /// As [`CudaLayer::launch`].
    ///
    /// # Safety
    /// As [`CudaLayer::launch`].
    pub unsafe fn launch_kernel(
        &self,
        kernel: usize,
        io: &CudaIo<'_>,
        at_most: u64,
        stream: RawStream,
    ) -> Result<(), Diagnostic> {
        let variant = self.plan.variant_for(at_most)?;
        let _entered = self.device.enter()?;
        // SAFETY: the caller's contract.
        unsafe { self.launch_step(variant, kernel, io, at_most, self.own_workspace()?, stream) }
    }

    fn own_workspace(&self) -> Result<DevicePtr, Diagnostic> {
        let none = || Diagnostic::input("workspace-too-small", "the layer was loaded without a workspace of its own");
        self.own.workspace.as_ref().map(DeviceMemory::pointer).ok_or_else(none)
    }

    unsafe fn launch_step(
        &self,
        variant: usize,
        kernel: usize,
        io: &CudaIo<'_>,
        at_most: u64,
        workspace: DevicePtr,
        stream: RawStream,
    ) -> Result<(), Diagnostic> {
        let step = &self.variants[variant][kernel];
        let mut params = [0u64; MAX_KERNEL_PARAMS];
        for (param, place) in params.iter_mut().zip(&step.operands) {
            let pointer = match *place {
                Place::Input(i) => io.inputs.get(i).copied(),
                Place::Output(i) => io.outputs.get(i).copied(),
                Place::Weight(w) => self.weights.get(w).map(WeightMemory::pointer),
                Place::Workspace(offset) => Some(workspace + offset),
            };
            *param = pointer.ok_or_else(|| {
                Diagnostic::input(
                    "input-missing",
                    format!("the layer was given {} inputs and {} outputs, too few", io.inputs.len(), io.outputs.len()),
                )
            })?;
        }
        // Operands are fewer than MAX_KERNEL_PARAMS: checked when the manifest was verified.
        let n = step.operands.len();
        params[n] = io.token_count;
        let n_sms = self.device.info().n_sms;
        // SAFETY: the context is current and the module is held; the parameters follow the calling convention: a pointer
        // for each operand, then the token count. The tensor maps were checked when the manifest was verified.
        let launched = unsafe { step.function.launch(&step.launch, at_most, &mut params[..=n], n_sms, stream) };
        launched.or_else(|e| check(e, &format!("launch `{}`", step.name)))
    }

    /// Names of the kernels that run for up to `at_most` tokens, with their registers and local memory.
    ///
    /// # Errors
    /// `too-many-tokens`.
    pub fn kernels(&self, at_most: u64) -> Result<Vec<(&str, FunctionInfo)>, Diagnostic> {
        let steps = &self.variants[self.plan.variant_for(at_most)?];
        Ok(steps.iter().map(|s| (s.name.as_str(), s.function.info(&self.device))).collect())
    }

    /// An intermediate buffer as the last run for up to `at_most` tokens left it: rows without padding.
    ///
    /// # Errors
    /// `too-many-tokens`, `no-such-buffer`, `cuda-call-failed`.
    pub fn read_buffer(&self, name: &str, at_most: u64, n_tokens: u64) -> Result<(Buffer, Vec<u8>), Diagnostic> {
        let v = self.plan.variant_for(at_most)?;
        let (i, buffer) = self.plan.intermediate(v, name)?;
        let lost = || Diagnostic::internal("internal-error", format!("`{name}` should lie in the workspace"));
        let Place::Workspace(offset) = self.plan.places[v][i] else { return Err(lost()) };
        self.stream.synchronize()?;
        let mut bytes = vec![0; buffer.bytes(n_tokens) as usize];
        self.own.workspace.as_ref().ok_or_else(lost)?.download(offset, &mut bytes)?;
        Ok((buffer.clone(), host::read_matrix(buffer, n_tokens, &bytes).ok_or_else(lost)?))
    }

    /// The layer's own device memory for inputs and outputs at up to its largest token count: `(inputs, outputs)`.
    pub fn own_io(&self, manifest: &Manifest) -> (Vec<DevicePtr>, Vec<DevicePtr>) {
        let (inputs, outputs) = self.own.staging.split_at(manifest.inputs.len().min(self.own.staging.len()));
        (inputs.iter().map(DeviceMemory::pointer).collect(), outputs.iter().map(DeviceMemory::pointer).collect())
    }

    /// Copies host tensors to the layer's own inputs and sets its own token count.
    ///
    /// # Errors
    /// Those of [`crate::Layer::run_host`].
    pub fn upload_inputs(&mut self, manifest: &Manifest, inputs: &[(&str, &Tensor)]) -> Result<u64, Diagnostic> {
        let (inputs, n_tokens) = host::bind_inputs(&manifest.inputs, inputs)?;
        self.upload(manifest, &inputs, n_tokens)?;
        Ok(n_tokens)
    }

    fn upload(&mut self, manifest: &Manifest, inputs: &[Tensor], n_tokens: u64) -> Result<(), Diagnostic> {
        let v = self.plan.variant_for(n_tokens)?;
        for (i, buffer) in self.plan.input_buffers(v, manifest.inputs.len()).into_iter().enumerate() {
            if let Some(buffer) = buffer {
                let mut bytes = vec![0; buffer.bytes(n_tokens) as usize];
                host::write_rows(&inputs[i], buffer, &mut bytes);
                self.own.staging[i].upload(&bytes)?;
            }
        }
        // SAFETY: the layer's own stream.
        unsafe { self.set_token_count(n_tokens, self.stream.raw()) }
    }

    /// Reads the layer's own outputs after its own stream has finished.
    ///
    /// # Errors
    /// `too-many-tokens`, `cuda-call-failed`.
    pub fn download_outputs(&self, manifest: &Manifest, n_tokens: u64) -> Result<Vec<Tensor>, Diagnostic> {
        let v = self.plan.variant_for(n_tokens)?;
        self.stream.synchronize()?;
        let buffers = self.plan.output_buffers(v);
        let mut out = Vec::with_capacity(buffers.len());
        for (i, (info, buffer)) in manifest.outputs.iter().zip(buffers).enumerate() {
            let mut bytes = vec![0; buffer.bytes(n_tokens) as usize];
            self.own.staging[manifest.inputs.len() + i].download(0, &mut bytes)?;
            out.push(host::read_rows(info, buffer, n_tokens, &bytes)?);
        }
        Ok(out)
    }

    /// Runs the layer on host tensors on its own stream and waits.
    pub(crate) fn run_host(
        &mut self,
        manifest: &Manifest,
        inputs: &[Tensor],
        n_tokens: u64,
    ) -> Result<Vec<Tensor>, Diagnostic> {
        self.upload(manifest, inputs, n_tokens)?;
        let (inputs, outputs) = self.own_io(manifest);
        let io = CudaIo { inputs: &inputs, outputs: &outputs, token_count: self.own_token_count() };
        // SAFETY: stream, inputs, outputs and token count are the layer's own, made for up to `max_tokens` tokens, and
        // `&mut self` keeps other launches away.
        unsafe { self.launch(&io, n_tokens, self.stream.raw())? };
        self.download_outputs(manifest, n_tokens)
    }
}

impl WeightMemory {
    fn pointer(&self) -> DevicePtr {
        match self {
            WeightMemory::Packed(memory) => memory.pointer(),
            WeightMemory::Borrowed(pointer, _) => *pointer,
        }
    }

    /// Device memory of the buffer's size with what `pack` writes.
    pub(crate) fn packed(
        device: &CudaDevice,
        param: &ParamInfo,
        buffer: &Buffer,
        pack: impl FnOnce(&mut [u8]) -> Result<(), Diagnostic>,
    ) -> Result<WeightMemory, Diagnostic> {
        let bytes = buffer.bytes(0);
        let what = format!("the weight `{}`", param.name);
        let mut host = allocate(bytes, &what)?;
        pack(&mut host[..bytes as usize])?;
        let mut memory = device.allocate(bytes, &what)?;
        memory.upload(&host[..bytes as usize])?;
        Ok(WeightMemory::Packed(memory))
    }
}

impl Drop for CudaLayer {
    fn drop(&mut self) {
        // Memory and modules must not go while kernels use them. A failed kernel is reported where it was waited for.
        let _ = self.stream.synchronize();
    }
}

type Kernels = (Vec<Vec<CudaStep>>, Vec<Module>);

/// Compiles every PTX file that the plan's variants name, each once.
fn load_kernels(bundle: &Bundle, plan: &Plan, device: &CudaDevice) -> Result<Kernels, Diagnostic> {
    let mut modules: Vec<Module> = Vec::new();
    let mut by_file: BTreeMap<&str, usize> = BTreeMap::new();
    let mut variants = Vec::new();
    for (variant, places) in plan.variants.iter().zip(&plan.places) {
        let mut steps = Vec::new();
        for entry in &variant.kernels {
            let Launch::Gpu { file, launch } = &entry.launch else {
                return Err(Diagnostic::input("bundle-invalid", format!("`{}` is no GPU kernel", entry.name)));
            };
            let module = match by_file.get(file.as_str()) {
                Some(&m) => m,
                None => {
                    modules.push(Module::load(device, file, bundle.text(file)?)?);
                    by_file.insert(file, modules.len() - 1);
                    modules.len() - 1
                }
            };
            steps.push(CudaStep {
                name: entry.name.clone(),
                function: modules[module].function(file, &entry.entry, launch)?,
                launch: launch.clone(),
                operands: entry.operands.iter().map(|o| places[o.buffer.index()]).collect(),
            });
        }
        variants.push(steps);
    }
    Ok((variants, modules))
}
