//! A stand-in for libcuda with host memory and two kernels, for tests of the loader on machines without a GPU.
//!
//! It is stricter than the driver: a call without a current context, an allocation during a capture, a wrong parameter or
//! something not given back is an error or ends the process. Compiled by `tests/cuda.rs` to a shared library.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::sync::Mutex;

const OK: c_uint = 0;
const INVALID_VALUE: c_uint = 1;
const OUT_OF_MEMORY: c_uint = 2;
const NO_DEVICE: c_uint = 100;
const INVALID_CONTEXT: c_uint = 201;
const INVALID_PTX: c_uint = 218;
const NOT_FOUND: c_uint = 500;
const CAPTURE_UNSUPPORTED: c_uint = 900;

const COLS: usize = 6;
const PITCH: usize = 8;

struct State {
    /// Start of each allocation: its memory.
    memory: BTreeMap<u64, Box<[u64]>>,
    /// Streams, events, modules and graphs that have not been destroyed.
    objects: i64,
    capture: Option<Vec<Op>>,
    launches: u64,
}

#[derive(Clone)]
enum Op {
    Launch { entry: usize, threads: u64, params: Vec<u64> },
    Fill32 { at: u64, value: u32, n: usize },
    Fill8 { at: u64, value: u8, n: usize },
}

static STATE: Mutex<State> = Mutex::new(State { memory: BTreeMap::new(), objects: 0, capture: None, launches: 0 });

thread_local! { static DEPTH: RefCell<i32> = const { RefCell::new(0) }; }

fn entered() -> bool {
    DEPTH.with(|d| *d.borrow() > 0)
}

fn setting(name: &str, default: i32) -> i32 {
    std::env::var(name).ok().and_then(|v| v.parse().ok()).unwrap_or(default)
}

macro_rules! need_context {
    () => {
        if !entered() {
            return INVALID_CONTEXT;
        }
    };
}

impl State {
    /// The bytes from `at` on, when `n` of them lie within one allocation.
    fn bytes(&mut self, at: u64, n: usize) -> Option<&mut [u8]> {
        let (start, memory) = self.memory.range_mut(..=at).next_back()?;
        let offset = (at - start) as usize;
        // SAFETY: any bytes are valid u8s; the length is that of the words.
        let bytes = unsafe { std::slice::from_raw_parts_mut(memory.as_mut_ptr().cast::<u8>(), memory.len() * 8) };
        bytes.get_mut(offset..)?.get_mut(..n)
    }

    fn float(&mut self, at: u64) -> Option<f32> {
        self.bytes(at, 4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
    }

    fn run(&mut self, op: &Op) -> c_uint {
        let done = match op {
            Op::Fill8 { at, value, n } => self.bytes(*at, *n).map(|b| b.fill(*value)),
            Op::Fill32 { at, value, n } => {
                self.bytes(*at, n * 4).map(|b| b.chunks_mut(4).for_each(|c| c.copy_from_slice(&value.to_le_bytes())))
            }
            Op::Launch { entry, threads, params } => self.kernel(*entry, *threads, params),
        };
        if done.is_some() { OK } else { INVALID_VALUE }
    }

    /// `to[t, c] = 2 * from[t, c]`, rows as in the sample bundle.
    fn kernel(&mut self, entry: usize, threads: u64, params: &[u64]) -> Option<()> {
        self.launches += 1;
        let (from_pitch, to_pitch) = if entry == 1 { (COLS, PITCH) } else { (PITCH, COLS) };
        let [from, to, count] = params[..] else { return None };
        let n = self.bytes(count, 4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]))?;
        // A launch with too few threads leaves rows undone, as a GPU would.
        for t in 0..u64::from(n).min(threads) {
            for c in 0..COLS as u64 {
                let value = 2.0 * self.float(from + (t * from_pitch as u64 + c) * 4)?;
                self.bytes(to + (t * to_pitch as u64 + c) * 4, 4)?.copy_from_slice(&value.to_le_bytes());
            }
        }
        Some(())
    }

    fn submit(&mut self, op: Op) -> c_uint {
        match &mut self.capture {
            Some(list) => {
                list.push(op);
                OK
            }
            None => self.run(&op),
        }
    }
}

fn state() -> std::sync::MutexGuard<'static, State> {
    STATE.lock().expect("the fake driver does not panic while it holds its state")
}

fn make(object: *mut *mut c_void, id: usize) -> c_uint {
    need_context!();
    state().objects += 1;
    // SAFETY: the loader gives a valid pointer.
    unsafe { *object = id as *mut c_void };
    OK
}

fn destroy() -> c_uint {
    need_context!();
    state().objects -= 1;
    OK
}

#[unsafe(no_mangle)]
extern "C" fn cuInit(_: c_uint) -> c_uint {
    setting("FAKE_CUDA_INIT", 0) as c_uint
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDriverGetVersion(version: *mut c_int) -> c_uint {
    unsafe { *version = setting("FAKE_CUDA_VERSION", 12080) };
    OK
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceGetCount(count: *mut c_int) -> c_uint {
    unsafe { *count = 1 };
    OK
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceGet(device: *mut c_int, ordinal: c_int) -> c_uint {
    unsafe { *device = 40 + ordinal };
    if ordinal == 0 { OK } else { NO_DEVICE }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceGetName(name: *mut c_char, n: c_int, device: c_int) -> c_uint {
    if device != 40 || n < 5 {
        return INVALID_VALUE;
    }
    unsafe { std::ptr::copy_nonoverlapping(c"Fake".as_ptr(), name, 5) };
    OK
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceGetAttribute(value: *mut c_int, attribute: c_uint, _: c_int) -> c_uint {
    let found = match attribute {
        75 => setting("FAKE_CUDA_MAJOR", 8),
        76 => 6,
        16 => 4,
        38 => 1 << 20,
        97 => 100 << 10,
        _ => return INVALID_VALUE,
    };
    unsafe { *value = found };
    OK
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDevicePrimaryCtxRetain(context: *mut *mut c_void, _: c_int) -> c_uint {
    unsafe { *context = 77 as *mut c_void };
    OK
}

#[unsafe(no_mangle)]
extern "C" fn cuDevicePrimaryCtxRelease_v2(_: c_int) -> c_uint {
    let s = state();
    if !s.memory.is_empty() || s.objects != 0 || entered() {
        eprintln!("LEAK: {} allocations, {} objects", s.memory.len(), s.objects);
        std::process::exit(99);
    }
    OK
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxPushCurrent_v2(context: *mut c_void) -> c_uint {
    if context as usize != 77 {
        return INVALID_CONTEXT;
    }
    DEPTH.with(|d| *d.borrow_mut() += 1);
    OK
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxPopCurrent_v2(_: *mut *mut c_void) -> c_uint {
    need_context!();
    DEPTH.with(|d| *d.borrow_mut() -= 1);
    OK
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamCreate(stream: *mut *mut c_void, flags: c_uint) -> c_uint {
    if flags == 1 { make(stream, 5) } else { INVALID_VALUE }
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamDestroy_v2(_: *mut c_void) -> c_uint {
    destroy()
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamSynchronize(stream: *mut c_void) -> c_uint {
    need_context!();
    if state().capture.is_some() {
        return CAPTURE_UNSUPPORTED;
    }
    if stream as usize == 5 { OK } else { INVALID_VALUE }
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamBeginCapture_v2(_: *mut c_void, _: c_uint) -> c_uint {
    need_context!();
    state().capture = Some(Vec::new());
    OK
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuStreamEndCapture(_: *mut c_void, graph: *mut *mut c_void) -> c_uint {
    need_context!();
    let ops = state().capture.take();
    state().objects += 1;
    unsafe { *graph = Box::into_raw(Box::new(ops.unwrap_or_default())).cast() };
    OK
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuGraphInstantiateWithFlags(exec: *mut *mut c_void, graph: *mut c_void, _: u64) -> c_uint {
    need_context!();
    state().objects += 1;
    unsafe { *exec = Box::into_raw(Box::new((*graph.cast::<Vec<Op>>()).clone())).cast() };
    OK
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuGraphDestroy(graph: *mut c_void) -> c_uint {
    drop(unsafe { Box::from_raw(graph.cast::<Vec<Op>>()) });
    destroy()
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuGraphExecDestroy(graph: *mut c_void) -> c_uint {
    drop(unsafe { Box::from_raw(graph.cast::<Vec<Op>>()) });
    destroy()
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuGraphLaunch(graph: *mut c_void, _: *mut c_void) -> c_uint {
    need_context!();
    let ops = unsafe { (*graph.cast::<Vec<Op>>()).clone() };
    ops.iter().map(|op| state().run(op)).find(|r| *r != OK).unwrap_or(OK)
}

#[unsafe(no_mangle)]
extern "C" fn cuEventCreate(event: *mut *mut c_void, _: c_uint) -> c_uint {
    make(event, 9)
}

#[unsafe(no_mangle)]
extern "C" fn cuEventDestroy_v2(_: *mut c_void) -> c_uint {
    destroy()
}

#[unsafe(no_mangle)]
extern "C" fn cuEventRecord(_: *mut c_void, _: *mut c_void) -> c_uint {
    need_context!();
    OK
}

#[unsafe(no_mangle)]
extern "C" fn cuEventSynchronize(_: *mut c_void) -> c_uint {
    need_context!();
    OK
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuEventElapsedTime(ms: *mut f32, _: *mut c_void, _: *mut c_void) -> c_uint {
    need_context!();
    unsafe { *ms = 0.25 };
    OK
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemAlloc_v2(pointer: *mut u64, n: usize) -> c_uint {
    need_context!();
    let mut s = state();
    if s.capture.is_some() {
        return CAPTURE_UNSUPPORTED;
    }
    if n == 0 {
        return INVALID_VALUE;
    }
    if n > 1 << 30 {
        return OUT_OF_MEMORY;
    }
    // Filled with NaN, so that what nobody wrote is not zero by chance; addresses leave gaps that nobody may touch.
    let memory = vec![u64::MAX; n.div_ceil(8)].into_boxed_slice();
    let next =
        s.memory.iter().next_back().map_or(0x1000, |(at, m)| at + (m.len() as u64 * 8 + 4096).next_multiple_of(256));
    s.memory.insert(next, memory);
    unsafe { *pointer = next };
    OK
}

#[unsafe(no_mangle)]
extern "C" fn cuMemFree_v2(pointer: u64) -> c_uint {
    need_context!();
    if state().memory.remove(&pointer).is_some() { OK } else { INVALID_VALUE }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize) -> c_uint {
    unsafe { (*free, *total) = (1 << 30, 2 << 30) };
    OK
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemcpyHtoD_v2(to: u64, from: *const c_void, n: usize) -> c_uint {
    need_context!();
    let from = unsafe { std::slice::from_raw_parts(from.cast::<u8>(), n) };
    if n == 0 {
        return OK;
    }
    state().bytes(to, n).map_or(INVALID_VALUE, |b| {
        b.copy_from_slice(from);
        OK
    })
}

/// At once, whatever the stream.
#[unsafe(no_mangle)]
extern "C" fn cuMemcpyDtoDAsync_v2(to: u64, from: u64, n: usize, _stream: *mut c_void) -> c_uint {
    need_context!();
    let Some(copied) = state().bytes(from, n).map(|b| b.to_vec()) else { return INVALID_VALUE };
    state().bytes(to, n).map_or(INVALID_VALUE, |b| {
        b.copy_from_slice(&copied);
        OK
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemcpyDtoH_v2(to: *mut c_void, from: u64, n: usize) -> c_uint {
    need_context!();
    let to = unsafe { std::slice::from_raw_parts_mut(to.cast::<u8>(), n) };
    if n == 0 {
        return OK;
    }
    state().bytes(from, n).map_or(INVALID_VALUE, |b| {
        to.copy_from_slice(b);
        OK
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemsetD8Async(at: u64, value: u8, n: usize, _: *mut c_void) -> c_uint {
    need_context!();
    state().submit(Op::Fill8 { at, value, n })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemsetD32Async(at: u64, value: c_uint, n: usize, _: *mut c_void) -> c_uint {
    need_context!();
    state().submit(Op::Fill32 { at, value, n })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuModuleLoadDataEx(
    module: *mut *mut c_void,
    image: *const c_void,
    n_options: c_uint,
    options: *const c_uint,
    values: *const *mut c_void,
) -> c_uint {
    need_context!();
    let text = unsafe { CStr::from_ptr(image.cast()) }.to_string_lossy();
    if text.contains(".entry") {
        return make(module, 3);
    }
    let options = unsafe { std::slice::from_raw_parts(options, n_options as usize) };
    let values = unsafe { std::slice::from_raw_parts(values, n_options as usize) };
    let find = |wanted| options.iter().position(|&o| o == wanted).map(|i| values[i]);
    // 5: error log, 6: its size.
    if let (Some(log), Some(size)) = (find(5), find(6)) {
        let line = c"ptxas fatal: no entry in this file";
        if size as usize >= line.count_bytes() + 1 {
            unsafe { std::ptr::copy_nonoverlapping(line.as_ptr(), log.cast(), line.count_bytes() + 1) };
        }
    }
    INVALID_PTX
}

#[unsafe(no_mangle)]
extern "C" fn cuModuleUnload(_: *mut c_void) -> c_uint {
    destroy()
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuModuleGetFunction(f: *mut *mut c_void, _: *mut c_void, name: *const c_char) -> c_uint {
    need_context!();
    let id = match unsafe { CStr::from_ptr(name) }.to_bytes() {
        b"first" => 1usize,
        b"second" => 2,
        _ => return NOT_FOUND,
    };
    unsafe { *f = id as *mut c_void };
    OK
}

#[unsafe(no_mangle)]
extern "C" fn cuFuncSetAttribute(_: *mut c_void, attribute: c_uint, value: c_int) -> c_uint {
    need_context!();
    // 8: dynamic shared memory.
    if attribute == 8 && value > 100 << 10 { INVALID_VALUE } else { OK }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuFuncGetAttribute(value: *mut c_int, attribute: c_uint, _: *mut c_void) -> c_uint {
    need_context!();
    unsafe { *value = if attribute == 4 { 21 } else { 0 } };
    OK
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuOccupancyMaxActiveClusters(n: *mut c_int, _: *mut c_void, config: *const Config) -> c_uint {
    need_context!();
    let c = unsafe { &*config };
    let Some((cluster, _)) = (unsafe { c.attributes() }) else { return INVALID_VALUE };
    if cluster < 2 || c.grid[0] % cluster != 0 {
        return INVALID_VALUE;
    }
    unsafe { *n = clusters_at_once() };
    OK
}

fn clusters_at_once() -> c_int {
    setting("FAKE_CUDA_CLUSTERS", 1)
}

#[repr(C)]
struct Config {
    grid: [c_uint; 3],
    block: [c_uint; 3],
    shared_bytes: c_uint,
    stream: *mut c_void,
    attributes: *const Attribute,
    n_attributes: c_uint,
}

#[repr(C)]
struct Attribute {
    id: c_uint,
    padding: c_uint,
    value: [c_uint; 16],
}

impl Config {
    /// Blocks of a cluster, and whether the kernel may start before the one in front of it has ended. `None` where an
    /// attribute is another one or has a wrong value.
    unsafe fn attributes(&self) -> Option<(c_uint, bool)> {
        let (mut cluster, mut early) = (1, false);
        for a in unsafe { std::slice::from_raw_parts(self.attributes, self.n_attributes as usize) } {
            match (a.id, &a.value[..3]) {
                // CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION
                (4, &[x, 1, 1]) => cluster = x,
                // CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
                (6, &[1, ..]) => early = true,
                _ => return None,
            }
        }
        Some((cluster, early))
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuLaunchKernelEx(
    config: *const Config,
    f: *mut c_void,
    params: *const *const u64,
    extra: *const c_void,
) -> c_uint {
    need_context!();
    let c = unsafe { &*config };
    let whole = c.grid.iter().chain(&c.block).all(|&n| n > 0);
    let Some((cluster, true)) = (unsafe { c.attributes() }) else { return INVALID_VALUE };
    if !whole || c.block[0] > 1024 || c.stream as usize != 5 || !extra.is_null() || c.grid[0] % cluster != 0 {
        return INVALID_VALUE;
    }
    // The kernels have three parameters each.
    let params = (0..3).map(|i| unsafe { **params.add(i) }).collect();
    // Blocks in clusters take rows until none is left. More of them than run at once would wait for the first to end:
    // here that is an error.
    let threads = match cluster {
        1 => u64::from(c.grid[0]) * u64::from(c.block[0]),
        _ if i64::from(c.grid[0] / cluster) > clusters_at_once().into() => return INVALID_VALUE,
        _ => u64::MAX,
    };
    state().submit(Op::Launch { entry: f as usize, threads, params })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuGetErrorName(error: c_uint, text: *mut *const c_char) -> c_uint {
    let name = match error {
        INVALID_VALUE => c"CUDA_ERROR_INVALID_VALUE",
        NO_DEVICE => c"CUDA_ERROR_NO_DEVICE",
        INVALID_CONTEXT => c"CUDA_ERROR_INVALID_CONTEXT",
        INVALID_PTX => c"CUDA_ERROR_INVALID_PTX",
        NOT_FOUND => c"CUDA_ERROR_NOT_FOUND",
        CAPTURE_UNSUPPORTED => c"CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED",
        _ => return INVALID_VALUE,
    };
    unsafe { *text = name.as_ptr() };
    OK
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuGetErrorString(_: c_uint, text: *mut *const c_char) -> c_uint {
    unsafe { *text = c"said by the fake driver".as_ptr() };
    OK
}
