//! The parts of the CUDA driver API that the loader uses, checked: every call's result becomes a diagnostic.
//!
//! The driver is looked for when [`CudaDevice::open`] is called. Nothing here panics when there is none: the raw
//! bindings would, so no raw function is called before the library has been found and is new enough to have them all.

use crate::memory::size;
use cudarc::driver::sys::{self, CUresult};
use moec_ir::diag::Diagnostic;
use std::ffi::{CStr, c_void};
use std::sync::Arc;

/// A stream of the driver API, as engines hand it around.
pub type RawStream = sys::CUstream;

/// A device pointer.
pub type DevicePtr = u64;

/// Oldest driver that has every function and launch attribute used here: CUDA 12.0.
const OLDEST_DRIVER: i32 = 12000;

/// Turns the result of a driver call into a diagnostic that names the call.
pub(crate) fn check(result: CUresult, what: &str) -> Result<(), Diagnostic> {
    if result == CUresult::CUDA_SUCCESS {
        return Ok(());
    }
    let (name, text) = (error_text(result, sys::cuGetErrorName), error_text(result, sys::cuGetErrorString));
    Err(Diagnostic::machine("cuda-call-failed", format!("the CUDA driver refused to {what}: {name} ({text})")))
}

type ErrorText = unsafe fn(CUresult, *mut *const std::ffi::c_char) -> CUresult;

fn error_text(result: CUresult, get: ErrorText) -> String {
    let mut text = std::ptr::null();
    // SAFETY: a driver call has returned `result`, so the library is loaded; the text is static and null-terminated, and
    // stays null for codes that the driver does not know.
    unsafe {
        if get(result, &mut text) != CUresult::CUDA_SUCCESS || text.is_null() {
            return format!("error {}", result as u32);
        }
        CStr::from_ptr(text).to_string_lossy().into_owned()
    }
}

/// An NVIDIA GPU with its primary context.
#[derive(Clone, Debug)]
pub struct CudaDevice {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    device: sys::CUdevice,
    context: sys::CUcontext,
    info: DeviceInfo,
}

// SAFETY: a context of the driver API may be used from any thread; each use makes it current there first.
unsafe impl Send for Inner {}
// SAFETY: as above.
unsafe impl Sync for Inner {}

/// Figures of a GPU.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeviceInfo {
    /// Its number, as the driver counts.
    pub ordinal: usize,
    /// Product name.
    pub name: String,
    /// Compute capability.
    pub capability: (u32, u32),
    /// Streaming multiprocessors.
    pub n_sms: u32,
    /// Size of the second-level cache in bytes.
    pub l2_bytes: u64,
    /// Bytes of shared memory that a block may ask for; 0 when the driver does not say.
    pub smem_per_block: u64,
    /// Memory clock in kHz times two, times bus width in bytes: peak bandwidth in kB/s; 0 when the driver does not say.
    pub memory_kb_per_s: u64,
    /// CUDA version of the driver, as `major * 1000 + minor * 10`.
    pub driver_version: u32,
}

/// Number of GPUs that the driver shows.
///
/// # Errors
/// `cuda-driver-missing`, `cuda-driver-too-old`, `cuda-call-failed`.
pub fn device_count() -> Result<usize, Diagnostic> {
    driver_version()?;
    let mut count = 0;
    // SAFETY: the library is there and initialised; the pointer is valid for the write.
    check(unsafe { sys::cuDeviceGetCount(&mut count) }, "count GPUs")?;
    Ok(usize::try_from(count).unwrap_or(0))
}

/// Finds and initialises the driver; gives its CUDA version.
///
/// # Errors
/// `cuda-driver-missing`, `cuda-driver-too-old`.
pub fn driver_version() -> Result<u32, Diagnostic> {
    let missing = |why: String| {
        Diagnostic::machine("cuda-driver-missing", "this machine has no usable NVIDIA driver")
            .note(why)
            .help("run on `--device cpu` or `emulator:T`, or install the NVIDIA driver")
    };
    // SAFETY: only tries to load libcuda; its initialisers are the driver's own.
    if !unsafe { sys::is_culib_present() } {
        return Err(missing("libcuda was not found".into()));
    }
    let mut version = 0;
    // SAFETY: the library is there; both functions are in every version of it.
    unsafe {
        let result = sys::cuInit(0);
        if result != CUresult::CUDA_SUCCESS {
            return Err(missing(format!("it does not start: {}", error_text(result, sys::cuGetErrorName))));
        }
        check(sys::cuDriverGetVersion(&mut version), "tell its version")?;
    }
    if version < OLDEST_DRIVER {
        return Err(Diagnostic::machine(
            "cuda-driver-too-old",
            format!("the NVIDIA driver is for CUDA {}.{}", version / 1000, version % 1000 / 10),
        )
        .help("install a driver for CUDA 12.0 or later"));
    }
    Ok(version as u32)
}

impl CudaDevice {
    /// Opens a GPU and its primary context.
    ///
    /// # Errors
    /// `cuda-driver-missing`, `cuda-driver-too-old`, `cuda-device-missing`, `cuda-call-failed`.
    pub fn open(ordinal: usize) -> Result<CudaDevice, Diagnostic> {
        let driver_version = driver_version()?;
        let count = device_count()?;
        if ordinal >= count {
            return Err(Diagnostic::machine(
                "cuda-device-missing",
                format!("there is no GPU {ordinal}; the driver shows {count}"),
            )
            .help("give `cuda:N` with a smaller N; check CUDA_VISIBLE_DEVICES"));
        }
        let (mut device, mut context) = (0, std::ptr::null_mut());
        let mut name = [0 as std::ffi::c_char; 256];
        // SAFETY: `device` is valid for the write and then a device of the driver; `name` has the length that is given.
        unsafe {
            check(sys::cuDeviceGet(&mut device, ordinal as i32), "open the GPU")?;
            check(sys::cuDeviceGetName(name.as_mut_ptr(), 255, device), "name the GPU")?;
            check(sys::cuDevicePrimaryCtxRetain(&mut context, device), "make a context")?;
        }
        use sys::CUdevice_attribute as A;
        let attribute = |which| {
            let mut value = 0;
            // SAFETY: `value` is valid for the write.
            match unsafe { sys::cuDeviceGetAttribute(&mut value, which, device) } {
                CUresult::CUDA_SUCCESS => u64::try_from(value).unwrap_or(0),
                _ => 0,
            }
        };
        // SAFETY: the driver wrote a null-terminated text of at most 255 bytes into 256 that were zero.
        let name = unsafe { CStr::from_ptr(name.as_ptr()) }.to_string_lossy().into_owned();
        let info = DeviceInfo {
            ordinal,
            name,
            capability: (
                attribute(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR) as u32,
                attribute(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR) as u32,
            ),
            n_sms: attribute(A::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT) as u32,
            l2_bytes: attribute(A::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE),
            smem_per_block: attribute(A::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN),
            memory_kb_per_s: 2
                * attribute(A::CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE)
                * (attribute(A::CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH) / 8),
            driver_version,
        };
        Ok(CudaDevice { inner: Arc::new(Inner { device, context, info }) })
    }

    /// Figures of the GPU.
    pub fn info(&self) -> &DeviceInfo {
        &self.inner.info
    }

    /// Makes the context current on this thread until the guard is dropped.
    pub(crate) fn enter(&self) -> Result<Entered, Diagnostic> {
        // SAFETY: the context is retained as long as `inner` lives.
        check(unsafe { sys::cuCtxPushCurrent_v2(self.inner.context) }, "make its context current")?;
        Ok(Entered)
    }

    /// A new stream that does not wait for the legacy default stream.
    ///
    /// # Errors
    /// `cuda-call-failed`.
    pub fn stream(&self) -> Result<CudaStream, Diagnostic> {
        let _entered = self.enter()?;
        let mut stream = std::ptr::null_mut();
        let flags = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
        // SAFETY: the context is current; the pointer is valid for the write.
        check(unsafe { sys::cuStreamCreate(&mut stream, flags) }, "make a stream")?;
        Ok(CudaStream { device: self.clone(), stream })
    }

    /// A new timing event.
    ///
    /// # Errors
    /// `cuda-call-failed`.
    pub fn event(&self) -> Result<CudaEvent, Diagnostic> {
        let _entered = self.enter()?;
        let mut event = std::ptr::null_mut();
        // SAFETY: as for streams.
        check(unsafe { sys::cuEventCreate(&mut event, 0) }, "make an event")?;
        Ok(CudaEvent { device: self.clone(), event })
    }

    /// Device memory, aligned to 256 bytes; its content is not defined.
    ///
    /// # Errors
    /// `out-of-memory`, `cuda-call-failed`.
    pub fn allocate(&self, bytes: u64, what: &str) -> Result<DeviceMemory, Diagnostic> {
        let _entered = self.enter()?;
        let mut pointer = 0;
        // SAFETY: the context is current; the pointer is valid for the write. At least one byte: the driver refuses none.
        let result = unsafe { sys::cuMemAlloc_v2(&mut pointer, bytes.max(1) as usize) };
        if result == CUresult::CUDA_ERROR_OUT_OF_MEMORY {
            let (mut free, mut total) = (0, 0);
            // SAFETY: as above. A failure leaves both 0, which only makes the message poorer.
            let _ = unsafe { sys::cuMemGetInfo_v2(&mut free, &mut total) };
            return Err(Diagnostic::machine(
                "out-of-memory",
                format!(
                    "the GPU has no room for {} of {what}: {} of {} are free",
                    size(bytes),
                    size(free as u64),
                    size(total as u64)
                ),
            )
            .help("load with fewer tokens, or free memory that other programs hold"));
        }
        check(result, "allocate memory")?;
        Ok(DeviceMemory { device: self.clone(), pointer, bytes })
    }

    /// Copies device memory to the host and waits for that. Work in streams that writes it must have been waited for.
    ///
    /// # Errors
    /// `cuda-call-failed`.
    ///
    /// # Safety
    /// `from` has `to.len()` bytes of this device's memory.
    pub(crate) unsafe fn read(&self, from: DevicePtr, to: &mut [u8]) -> Result<(), Diagnostic> {
        if to.is_empty() {
            return Ok(());
        }
        let _entered = self.enter()?;
        // SAFETY: the caller's contract.
        check(unsafe { sys::cuMemcpyDtoH_v2(to.as_mut_ptr().cast::<c_void>(), from, to.len()) }, "copy from the GPU")
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // SAFETY: retained once in `open`. A failure at exit (driver already gone) is nobody's concern.
        let _ = unsafe { sys::cuDevicePrimaryCtxRelease_v2(self.device) };
    }
}

/// Keeps a context current on this thread.
pub(crate) struct Entered;

impl Drop for Entered {
    fn drop(&mut self) {
        let mut context = std::ptr::null_mut();
        // SAFETY: pops what `enter` pushed; the pointer is valid for the write.
        let _ = unsafe { sys::cuCtxPopCurrent_v2(&mut context) };
    }
}

/// A piece of device memory; freed when dropped.
#[derive(Debug)]
pub struct DeviceMemory {
    device: CudaDevice,
    pointer: DevicePtr,
    bytes: u64,
}

impl DeviceMemory {
    /// Its address.
    pub fn pointer(&self) -> DevicePtr {
        self.pointer
    }

    /// Its size.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Copies to the start of it and waits.
    ///
    /// # Errors
    /// `cuda-call-failed`; also when `from` is longer than the memory.
    pub fn upload(&mut self, from: &[u8]) -> Result<(), Diagnostic> {
        self.fits(0, from.len())?;
        let _entered = self.device.enter()?;
        // SAFETY: both sides have `from.len()` bytes, checked above.
        let result = unsafe { sys::cuMemcpyHtoD_v2(self.pointer, from.as_ptr().cast::<c_void>(), from.len()) };
        check(result, "copy to the GPU")
    }

    /// Copies from `offset` on and waits. Work in streams that writes it must have been waited for.
    ///
    /// # Errors
    /// `cuda-call-failed`; also when the memory ends before.
    pub fn download(&self, offset: u64, to: &mut [u8]) -> Result<(), Diagnostic> {
        self.fits(offset, to.len())?;
        // SAFETY: there are so many bytes, checked above.
        unsafe { self.device.read(self.pointer + offset, to) }
    }

    /// Sets every byte, in the order of `stream`. Does not wait.
    ///
    /// # Errors
    /// `cuda-call-failed`.
    pub fn fill(&mut self, byte: u8, stream: &CudaStream) -> Result<(), Diagnostic> {
        let _entered = self.device.enter()?;
        // SAFETY: the memory has `bytes` bytes.
        let result = unsafe { sys::cuMemsetD8Async(self.pointer, byte, self.bytes as usize, stream.stream) };
        check(result, "fill memory")
    }

    /// Copies as much of `from`, of the same device, as both have, in the order of `stream`. Does not wait.
    ///
    /// # Errors
    /// `cuda-call-failed`.
    pub fn copy_from(&mut self, from: &DeviceMemory, stream: &CudaStream) -> Result<(), Diagnostic> {
        let _entered = self.device.enter()?;
        let bytes = self.bytes.min(from.bytes) as usize;
        // SAFETY: both have so many bytes.
        let result = unsafe { sys::cuMemcpyDtoDAsync_v2(self.pointer, from.pointer, bytes, stream.stream) };
        check(result, "copy memory")
    }

    fn fits(&self, offset: u64, len: usize) -> Result<(), Diagnostic> {
        if offset.checked_add(len as u64).is_some_and(|end| end <= self.bytes) {
            return Ok(());
        }
        let message = format!("a copy of {len} bytes at {offset} does not fit {} bytes of device memory", self.bytes);
        Err(Diagnostic::internal("internal-error", message))
    }
}

impl Drop for DeviceMemory {
    fn drop(&mut self) {
        if let Ok(_entered) = self.device.enter() {
            // SAFETY: allocated by `allocate` and freed once.
            let _ = unsafe { sys::cuMemFree_v2(self.pointer) };
        }
    }
}

/// A stream of the loader's own.
#[derive(Debug)]
pub struct CudaStream {
    device: CudaDevice,
    stream: RawStream,
}

// SAFETY: streams of the driver API may be used from any thread.
unsafe impl Send for CudaStream {}
// SAFETY: as above.
unsafe impl Sync for CudaStream {}

impl CudaStream {
    /// The driver's handle.
    pub fn raw(&self) -> RawStream {
        self.stream
    }

    /// Waits until everything in the stream is done.
    ///
    /// # Errors
    /// `cuda-call-failed`, also for kernels that failed while running.
    pub fn synchronize(&self) -> Result<(), Diagnostic> {
        let _entered = self.device.enter()?;
        // SAFETY: the stream is alive.
        check(unsafe { sys::cuStreamSynchronize(self.stream) }, "finish the launched kernels")
    }

    /// Records what `work` puts into the stream instead of running it. `work` must not wait or allocate on the device.
    ///
    /// # Errors
    /// `cuda-call-failed`, and those of `work`.
    pub fn capture(&self, work: impl FnOnce(RawStream) -> Result<(), Diagnostic>) -> Result<CudaGraph, Diagnostic> {
        let _entered = self.device.enter()?;
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream is alive and of this context.
        check(unsafe { sys::cuStreamBeginCapture_v2(self.stream, mode) }, "begin a capture")?;
        let done = work(self.stream);
        let (mut graph, mut exec) = (std::ptr::null_mut(), std::ptr::null_mut());
        // SAFETY: the pointers are valid for the writes; the capture is ended also when `work` failed, or the stream
        // could not be used again.
        let ended = unsafe { sys::cuStreamEndCapture(self.stream, &mut graph) };
        done?;
        check(ended, "end a capture")?;
        // SAFETY: `graph` was made by the capture above; it is not needed once the executable exists or cannot.
        let result = unsafe {
            let result = sys::cuGraphInstantiateWithFlags(&mut exec, graph, 0);
            let _ = sys::cuGraphDestroy(graph);
            result
        };
        check(result, "instantiate a graph")?;
        Ok(CudaGraph { device: self.device.clone(), exec })
    }
}

impl Drop for CudaStream {
    fn drop(&mut self) {
        if let Ok(_entered) = self.device.enter() {
            // SAFETY: made by `stream` and destroyed once; the driver finishes what is still in it.
            let _ = unsafe { sys::cuStreamDestroy_v2(self.stream) };
        }
    }
}

/// Launches that were recorded and can be repeated as one.
#[derive(Debug)]
pub struct CudaGraph {
    device: CudaDevice,
    exec: sys::CUgraphExec,
}

// SAFETY: an executable graph may be launched from any thread, one at a time; `launch` takes `&mut self`.
unsafe impl Send for CudaGraph {}

impl CudaGraph {
    /// Puts the recorded work into a stream.
    ///
    /// # Errors
    /// `cuda-call-failed`.
    ///
    /// # Safety
    /// The stream is alive, and so is everything that the recorded launches use.
    pub unsafe fn launch(&mut self, stream: RawStream) -> Result<(), Diagnostic> {
        let _entered = self.device.enter()?;
        // SAFETY: the graph is alive; the rest is the caller's contract.
        check(unsafe { sys::cuGraphLaunch(self.exec, stream) }, "launch a graph")
    }
}

impl Drop for CudaGraph {
    fn drop(&mut self) {
        if let Ok(_entered) = self.device.enter() {
            // SAFETY: made by `capture` and destroyed once.
            let _ = unsafe { sys::cuGraphExecDestroy(self.exec) };
        }
    }
}

/// A point in a stream, for measuring time.
#[derive(Debug)]
pub struct CudaEvent {
    device: CudaDevice,
    event: sys::CUevent,
}

impl CudaEvent {
    /// Puts the event into a stream.
    ///
    /// # Errors
    /// `cuda-call-failed`.
    pub fn record(&self, stream: &CudaStream) -> Result<(), Diagnostic> {
        let _entered = self.device.enter()?;
        // SAFETY: event and stream are alive and of one context when they are of one device, which the driver checks.
        check(unsafe { sys::cuEventRecord(self.event, stream.stream) }, "record an event")
    }

    /// Waits for this event; gives the seconds since `start`, at a resolution of half a microsecond.
    ///
    /// # Errors
    /// `cuda-call-failed`, also when one of the two was not recorded.
    pub fn seconds_since(&self, start: &CudaEvent) -> Result<f64, Diagnostic> {
        let _entered = self.device.enter()?;
        let mut milliseconds = 0f32;
        // SAFETY: both events are alive; the pointer is valid for the write.
        unsafe {
            check(sys::cuEventSynchronize(self.event), "finish the launched kernels")?;
            check(sys::cuEventElapsedTime(&mut milliseconds, start.event, self.event), "measure time")?;
        }
        Ok(f64::from(milliseconds) / 1e3)
    }
}

impl Drop for CudaEvent {
    fn drop(&mut self) {
        if let Ok(_entered) = self.device.enter() {
            // SAFETY: made by `event` and destroyed once.
            let _ = unsafe { sys::cuEventDestroy_v2(self.event) };
        }
    }
}
