//! Layers: created, finished, launched.

use crate::bundle::{self, moec_bundle};
use crate::handles::Handles;
use crate::memory::{element, give, null, optional_text};
use crate::status::{c_string, guard, moec_status};
use crate::structs::{self, moec_launch, moec_layer_options, moec_param};
use crate::tensor::{self, Given, moec_tensor};
use ::moec_bundle::manifest::{ParamInfo, TensorInfo};
use ::moec_bundle::{Bundle, Manifest};
use moec_ir::diag::Diagnostic;
use moec_ir::shape::Dim;
use moec_runtime::cpu::Pool;
use moec_runtime::cuda::{DEVICE_ALIGN, RawStream};
use moec_runtime::{Device, Layer, LayerBuilder, LoadOptions};
use std::ffi::{CString, c_void};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

/// A layer on a device.
#[allow(dead_code, reason = "C sees pointers to it only, and none points to anything")]
pub struct moec_layer {
    _private: [u8; 0],
}

/// Most inputs, and most outputs, of a layer: a launch makes its lists without allocating.
const MAX_TENSORS: usize = 16;

/// What a handle stands for.
pub(crate) struct Created {
    manifest: Manifest,
    pub(crate) device: Device,
    params: Vec<ParamText>,
    /// Until the layer is finished.
    building: Mutex<Option<LayerBuilder>>,
    finished: OnceLock<Layer>,
}

/// A parameter as C reads it.
struct ParamText {
    name: CString,
    shape: Vec<i64>,
}

static LAYERS: Handles<Created> = Handles::new("layer");

/// Threads of all layers that do not ask for their own.
fn shared_pool() -> Arc<Pool> {
    static POOL: OnceLock<Arc<Pool>> = OnceLock::new();
    POOL.get_or_init(|| Arc::new(Pool::for_all_cores())).clone()
}

pub(crate) fn get(handle: usize) -> Result<Arc<Created>, Diagnostic> {
    LAYERS.get(handle)
}

pub(crate) fn free(handle: usize) -> Result<(), Diagnostic> {
    LAYERS.free(handle)
}

/// Creates a layer; a handle for it.
pub(crate) fn create(
    bundle: &Bundle,
    device: &str,
    max_tokens: u64,
    n_threads: u32,
    memory_limit: u64,
) -> Result<usize, Diagnostic> {
    let device = Device::parse(device)?;
    let manifest = bundle.manifest().clone();
    if manifest.inputs.len() > MAX_TENSORS || manifest.outputs.len() > MAX_TENSORS {
        let (i, o) = (manifest.inputs.len(), manifest.outputs.len());
        return Err(Diagnostic::input(
            "unsupported-layer",
            format!("a layer of {i} inputs and {o} outputs cannot be launched from C"),
        ));
    }
    let pool = match n_threads {
        0 => shared_pool(),
        n => Arc::new(Pool::new(n as usize)?),
    };
    let options = LoadOptions {
        device: device.clone(),
        max_tokens: max_tokens.max(1),
        pool: (device == Device::Cpu).then_some(pool),
        callers_memory: true,
        memory_limit: (memory_limit > 0).then_some(memory_limit),
        ..LoadOptions::default()
    };
    let builder = LayerBuilder::new(bundle, options)?;
    let text = |p: &ParamInfo| ParamText {
        name: c_string(&p.name),
        // A verified manifest has no parameter whose shape depends on the token count, and none beyond 2^46 bytes.
        shape: p.ty.shape.iter().map(|d| d.fixed().unwrap_or(0) as i64).collect(),
    };
    let params = manifest.params.iter().map(text).collect();
    let building = Mutex::new(Some(builder));
    Ok(LAYERS.add(Created { manifest, device, params, building, finished: OnceLock::new() }))
}

impl Created {
    fn builder(&self) -> MutexGuard<'_, Option<LayerBuilder>> {
        // A panic while it was held is a bug that has been reported; the builder itself is replaced piece by piece.
        self.building.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn layer(&self) -> Result<&Layer, Diagnostic> {
        self.finished.get().ok_or_else(|| {
            Diagnostic::input("layer-not-finished", format!("the layer `{}` is not finished", self.manifest.layer.name))
                .help("give it its weights and finish it before it is launched")
        })
    }

    pub(crate) fn change<T>(
        &self,
        what: impl FnOnce(&mut LayerBuilder) -> Result<T, Diagnostic>,
    ) -> Result<T, Diagnostic> {
        match &mut *self.builder() {
            Some(builder) => what(builder),
            None => Err(Diagnostic::input(
                "layer-finished",
                format!("the layer `{}` is finished: its weights no longer change", self.manifest.layer.name),
            )
            .help("create another layer of the same bundle")),
        }
    }

    pub fn finish(&self) -> Result<(), Diagnostic> {
        let mut slot = self.builder();
        let Some(builder) = &*slot else {
            let name = &self.manifest.layer.name;
            return Err(Diagnostic::input("layer-finished", format!("the layer `{name}` was finished before")));
        };
        // What is missing is told without losing what is there.
        builder.check()?;
        if let Some(builder) = slot.take() {
            // Nobody else has the lock, so this is the first.
            let _ = self.finished.set(builder.finish()?);
        }
        Ok(())
    }

    pub fn workspace_bytes(&self, n_tokens: u64) -> Result<u64, Diagnostic> {
        if let Some(layer) = self.finished.get() {
            return bytes_of(layer, n_tokens);
        }
        match &*self.builder() {
            Some(builder) => builder.launch_bytes(n_tokens),
            None => bytes_of(self.layer()?, n_tokens),
        }
    }

    /// Number of inputs and of outputs.
    pub fn n_tensors(&self) -> (usize, usize) {
        (self.manifest.inputs.len(), self.manifest.outputs.len())
    }

    /// Inputs and outputs, in the order of a launch.
    pub fn tensors(&self) -> (&[TensorInfo], &[TensorInfo]) {
        (&self.manifest.inputs, &self.manifest.outputs)
    }

    /// Launches; does not allocate unless it fails. `tensor` gives input or output number `i` of those that were handed in.
    ///
    /// # Safety
    /// As [`moec_layer_launch`], with the tensors that `tensor` gives.
    pub unsafe fn launch(
        &self,
        n_given: (usize, usize),
        tensor: impl Fn(bool, usize) -> *const moec_tensor,
        workspace: (*mut c_void, u64),
        stream: *mut c_void,
    ) -> Result<(), Diagnostic> {
        let layer = self.layer()?;
        let (inputs, outputs) = (&self.manifest.inputs, &self.manifest.outputs);
        if n_given != (inputs.len(), outputs.len()) {
            return Err(Diagnostic::input(
                "input-missing",
                format!(
                    "the layer takes {} inputs and gives {} outputs; {} and {} tensors were handed in",
                    inputs.len(),
                    outputs.len(),
                    n_given.0,
                    n_given.1
                ),
            )
            .help(format!("in this order: {}; {}", names(inputs), names(outputs))));
        }
        let mut n_tokens: Option<(u64, &str)> = None;
        let mut addresses = [[0u64; MAX_TENSORS]; 2];
        for (is_output, list) in [(false, inputs), (true, outputs)] {
            for (i, info) in list.iter().enumerate() {
                // SAFETY: the caller's contract.
                let given = unsafe { Given::read(tensor(is_output, i), &info.name) }?;
                self.check_tensor(info, &given, &mut n_tokens)?;
                addresses[usize::from(is_output)][i] = given.address;
            }
        }
        let n_tokens = n_tokens.map_or(0, |(n, _)| n);
        let (inputs, outputs) = (&addresses[0][..inputs.len()], &addresses[1][..outputs.len()]);
        if let Some(cuda) = layer.cuda() {
            // SAFETY: the caller's contract; shapes, types, device and alignment of the tensors were checked.
            return unsafe {
                cuda.launch_in(workspace.0 as u64, workspace.1, n_tokens, inputs, outputs, stream as RawStream)
            };
        }
        let cpu = layer.cpu().ok_or_else(|| Diagnostic::internal("internal-error", "a layer should have a device"))?;
        let mut from = [std::ptr::null(); MAX_TENSORS];
        let mut to = [std::ptr::null_mut(); MAX_TENSORS];
        from.iter_mut().zip(inputs).for_each(|(p, a)| *p = *a as *const u8);
        to.iter_mut().zip(outputs).for_each(|(p, a)| *p = *a as *mut u8);
        let (from, to) = (&from[..inputs.len()], &to[..outputs.len()]);
        // SAFETY: as above.
        unsafe { cpu.launch_in(workspace.0.cast(), workspace.1, n_tokens, from, to) }
    }

    fn check_tensor<'a>(
        &self,
        info: &'a TensorInfo,
        given: &Given,
        n_tokens: &mut Option<(u64, &'a str)>,
    ) -> Result<(), Diagnostic> {
        let name = &info.name;
        if given.dtype != info.ty.dtype {
            return Err(Diagnostic::input(
                "input-type-mismatch",
                format!("the tensor given for `{name}` is {given}, but the layer asks for {}", info.ty),
            )
            .help("convert it first: a launch does not copy"));
        }
        let mismatch = |why: String| {
            Diagnostic::input(
                "input-shape-mismatch",
                format!("the tensor given for `{name}` is {given}, but the layer asks for {}{why}", info.ty),
            )
        };
        if given.axes().len() != info.ty.shape.len() {
            return Err(mismatch(String::new()));
        }
        for (&(found, _), dim) in given.axes().iter().zip(&info.ty.shape) {
            match *dim {
                Dim::Fixed(n) if n == found => {}
                Dim::Fixed(_) => return Err(mismatch(String::new())),
                Dim::PerToken(k) => {
                    let n = found / k.max(1);
                    if n * k != found {
                        return Err(mismatch(String::new()));
                    }
                    match *n_tokens {
                        Some((t, other)) if t != n => return Err(mismatch(format!("; `{other}` has {t} tokens"))),
                        Some(_) => {}
                        None => *n_tokens = Some((n, name)),
                    }
                }
            }
        }
        let (there, align) = match self.device {
            Device::Cuda { ordinal } => (given.on_cuda(ordinal), DEVICE_ALIGN),
            Device::Cpu | Device::Emulator { .. } => (given.on_cpu(), 1),
        };
        if !there {
            return Err(elsewhere(name, &self.device));
        }
        given.check_place(name, align)
    }
}

fn bytes_of(layer: &Layer, n_tokens: u64) -> Result<u64, Diagnostic> {
    match (layer.cpu(), layer.cuda()) {
        (Some(cpu), _) => cpu.launch_bytes(n_tokens),
        (None, Some(cuda)) => cuda.launch_bytes(n_tokens),
        (None, None) => Err(Diagnostic::internal("internal-error", "a layer should have a device")),
    }
}

pub(crate) fn elsewhere(name: &str, device: &Device) -> Diagnostic {
    Diagnostic::input("tensor-device-mismatch", format!("the tensor given for `{name}` does not lie on {device}"))
        .help("move it to the layer's device, or create the layer on the tensor's")
}

fn names(list: &[TensorInfo]) -> String {
    list.iter().map(|t| format!("`{}` {}", t.name, t.ty)).collect::<Vec<_>>().join(", ")
}

/// Creates a layer of a bundle on a device: kernels are ready, weights are missing. `options` may be null: the CPU, one
/// token.
///
/// Errors: `target-not-in-bundle`, `too-many-tokens`, `unknown-device`, `out-of-memory`; on the CPU `cpu-features-missing`; on
/// GPUs `cuda-driver-missing`, `cuda-device-missing`, `cuda-driver-too-old`, `ptx-rejected`, `cuda-call-failed`.
///
/// # Safety
/// `options` is null or has `struct_size` bytes and a `device` that ends with a zero; `out` is null or valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moec_layer_create(
    bundle: *const moec_bundle,
    options: *const moec_layer_options,
    out: *mut *mut moec_layer,
) -> moec_status {
    guard(|| {
        let opened = bundle::get(bundle)?;
        if out.is_null() {
            return Err(null("out"));
        }
        let (mut device, mut max_tokens, mut n_threads, mut memory_limit) = ("cpu", 1, 0, 0);
        if !options.is_null() {
            // SAFETY: the caller's contract.
            let options = unsafe { structs::read(options) }?;
            // SAFETY: as above.
            device = unsafe { optional_text(options.device, "device") }?.unwrap_or(device);
            (max_tokens, n_threads) = (options.max_tokens, options.n_threads);
            memory_limit = options.memory_limit;
        }
        let handle = create(&opened.bundle, device, max_tokens, n_threads, memory_limit)?;
        // SAFETY: the caller's contract.
        unsafe { give(out, handle as *mut moec_layer, "out") }
    })
}

/// How many parameters the layer has.
///
/// Errors: `argument-null`, `handle-invalid`.
///
/// # Safety
/// `count` is null or valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moec_layer_param_count(layer: *const moec_layer, count: *mut usize) -> moec_status {
    guard(|| {
        let layer = get(layer as usize)?;
        // SAFETY: the caller's contract.
        unsafe { give(count, layer.params.len(), "count") }
    })
}

/// Parameter number `index`, counted from 0.
///
/// Errors: `argument-null`, `handle-invalid`, `unknown-parameter`, `struct-size-invalid`.
///
/// # Safety
/// `param` is null or has `struct_size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moec_layer_param(
    layer: *const moec_layer,
    index: usize,
    param: *mut moec_param,
) -> moec_status {
    guard(|| {
        let layer = get(layer as usize)?;
        let (Some(text), Some(info)) = (layer.params.get(index), layer.manifest.params.get(index)) else {
            let n = layer.params.len();
            return Err(Diagnostic::input(
                "unknown-parameter",
                format!("there are {n} parameters, none is number {index}"),
            ));
        };
        let is_set = layer.builder().as_ref().is_none_or(|b| b.is_set(index));
        let value = moec_param {
            struct_size: size_of::<moec_param>(),
            name: text.name.as_ptr(),
            dtype: tensor::dtype(info.ty.dtype),
            ndim: text.shape.len() as i32,
            shape: text.shape.as_ptr(),
            is_set: i32::from(is_set),
            is_coded: i32::from(info.stored.is_some()),
            code_dtype: info.stored.map_or(tensor::NO_DTYPE, |f| tensor::code_dtype(f.code)),
            scale_dtype: info.stored.map_or(tensor::NO_DTYPE, |f| tensor::scale_dtype(f.scale)),
            block_rows: info.stored.map_or(0, |f| f.block_rows as i64),
            block_cols: info.stored.map_or(0, |f| f.block_cols as i64),
            has_global: i32::from(info.stored.is_some_and(|f| f.has_global())),
            reserved: 0,
        };
        // SAFETY: the caller's contract.
        unsafe { structs::write(param, value) }
    })
}

/// Makes the layer ready to be launched; its weights no longer change.
///
/// Errors: `parameter-not-set`, naming those without a weight, after which they can still be given; `layer-finished`.
#[unsafe(no_mangle)]
pub extern "C" fn moec_layer_finish(layer: *mut moec_layer) -> moec_status {
    guard(|| get(layer as usize)?.finish())
}

/// Bytes of workspace that a launch of `n_tokens` tokens needs: the same at every call, and no less for more tokens within one
/// layer's range. Any address will do.
///
/// Errors: `too-many-tokens`, `argument-null`, `handle-invalid`.
///
/// # Safety
/// `bytes` is null or valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moec_layer_workspace_bytes(
    layer: *const moec_layer,
    n_tokens: u64,
    bytes: *mut u64,
) -> moec_status {
    guard(|| {
        let needed = get(layer as usize)?.workspace_bytes(n_tokens)?;
        // SAFETY: the caller's contract.
        unsafe { give(bytes, needed, "bytes") }
    })
}

/// Runs the layer on the caller's tensors; the token count is that of their shapes. Does not allocate. On the CPU the results
/// are there when it returns. On CUDA it only puts kernels on the stream, and can be captured into a graph: inputs, outputs and
/// workspace stay until the stream has come past them. Threads may launch one layer at the same time, each in its own
/// workspace.
///
/// Errors: `layer-not-finished`, `input-missing`, `input-shape-mismatch`, `input-type-mismatch`, `too-many-tokens`,
/// `workspace-too-small`, `tensor-not-dense`, `tensor-misaligned`, `tensor-device-mismatch`, `tensor-invalid`,
/// `cuda-call-failed`.
///
/// # Safety
/// `launch` is null or has `struct_size` bytes; its arrays have as many tensors as it says, whose memory is valid for
/// reads (inputs) and writes (outputs), and no output overlaps another tensor or the workspace; `workspace` has
/// `workspace_bytes` bytes on the layer's device; `stream` is null or a living stream of it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moec_layer_launch(layer: *const moec_layer, launch: *const moec_launch) -> moec_status {
    guard(|| {
        let layer = get(layer as usize)?;
        // SAFETY: the caller's contract.
        let l = unsafe { structs::read(launch) }?;
        for (array, n, what) in [(l.inputs, l.n_inputs, "inputs"), (l.outputs, l.n_outputs, "outputs")] {
            if array.is_null() && n > 0 {
                return Err(null(what));
            }
        }
        let tensor = |is_output: bool, i: usize| {
            let array = if is_output { l.outputs } else { l.inputs };
            // SAFETY: the caller's contract; `i` is below the number that was checked.
            unsafe { element(array, i) }
        };
        // SAFETY: the caller's contract.
        unsafe { layer.launch((l.n_inputs, l.n_outputs), tensor, (l.workspace, l.workspace_bytes), l.stream) }
    })
}

/// Frees a layer; launches that are running on other threads end first. On CUDA, the caller waits for its streams before.
/// Null is none.
///
/// Errors: `handle-invalid`.
#[unsafe(no_mangle)]
pub extern "C" fn moec_layer_free(layer: *mut moec_layer) -> moec_status {
    guard(|| free(layer as usize))
}
