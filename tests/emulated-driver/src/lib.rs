//! A stand-in for libcuda whose kernels run: PTX is executed by moec's emulator, with all its checks. A test copies the library
//! to a folder as `libcuda.so.1` or `libcuda.so`, or fills a table with its functions.
//!
//! It has the part of the driver's interface that moec and its generated C use. Everything is done when a call returns; streams
//! are only looked at. What the checks find is told on stderr, and is an error of the launch.
//!
//! `MOEC_EMULATED_CUDA` names the GPU: `sm_90a`, `sm_100a`. The default is `sm_80`.
#![allow(non_snake_case, reason = "the names are the driver's")]
#![allow(
    clippy::missing_safety_doc,
    clippy::print_stderr,
    reason = "the contract of each function is the driver's; tests read stderr"
)]

mod structs;

use moec_ptx::ast::Module;
use moec_ptx::exec::{Device, Launch, Options, Param, Program, Target};
use moec_ptx::tensor::swizzle::Swizzle;
use moec_ptx::tensor::tensormap::{self, MapElem};
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use structs::Config;

const OK: c_uint = 0;
const INVALID_VALUE: c_uint = 1;
const OUT_OF_MEMORY: c_uint = 2;
const INVALID_PTX: c_uint = 218;
const NOT_FOUND: c_uint = 500;
const LAUNCH_FAILED: c_uint = 719;

/// Multiprocessors: few, so that persistent kernels do several tiles a block.
const MULTIPROCESSORS: c_int = 4;

struct State {
    device: Device,
    /// Modules that were loaded: their text. Handles count from 1.
    modules: Vec<Option<Module>>,
    programs: Vec<Program>,
}

/// The name of the GPU, and its compute capability.
fn target() -> (Target, c_int, c_int) {
    let name = std::env::var("MOEC_EMULATED_CUDA").unwrap_or_else(|_| "sm_80".into());
    let digits: String = name.chars().filter(char::is_ascii_digit).collect();
    let number: c_int = digits.parse().unwrap_or(80);
    (Target::parse(&name).unwrap_or_else(|| panic!("no GPU is called {name}")), number / 10, number % 10)
}

fn state() -> MutexGuard<'static, State> {
    static STATE: OnceLock<Mutex<State>> = OnceLock::new();
    let new = || {
        Mutex::new(State {
            device: Device::with_capacity(target().0, 1 << 40),
            modules: Vec::new(),
            programs: Vec::new(),
        })
    };
    STATE.get_or_init(new).lock().unwrap_or_else(PoisonError::into_inner)
}

fn code<T, E: std::fmt::Display>(result: Result<T, E>, error: c_uint) -> c_uint {
    match result {
        Ok(_) => OK,
        Err(e) => {
            eprintln!("emulated driver: {e}");
            error
        }
    }
}

/// Functions without an effect here: contexts, streams, attributes.
macro_rules! nothing {
    ($($name:ident($($arg:ident: $ty:ty),*);)*) => {
        $(#[unsafe(no_mangle)]
        pub extern "C" fn $name($(_: $ty),*) -> c_uint {
            OK
        })*
    };
}

nothing! {
    cuInit(flags: c_uint);
    cuDevicePrimaryCtxRelease_v2(device: c_int);
    cuCtxPushCurrent_v2(context: *mut c_void);
    cuCtxPopCurrent_v2(context: *mut *mut c_void);
    cuStreamDestroy_v2(stream: *mut c_void);
    cuStreamSynchronize(stream: *mut c_void);
    cuFuncSetAttribute(function: *mut c_void, attribute: c_uint, value: c_int);
}

/// Functions that give one value.
macro_rules! gives {
    ($($name:ident($out:ident: $ty:ty $(, $arg:ident: $arg_ty:ty)*) = $value:expr;)*) => {
        $(#[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name($out: *mut $ty $(, _: $arg_ty)*) -> c_uint {
            // SAFETY: the driver's contract: a place for the value.
            unsafe { *$out = $value };
            OK
        })*
    };
}

gives! {
    cuDriverGetVersion(version: c_int) = 13000;
    cuDeviceGetCount(count: c_int) = 1;
    cuDeviceGet(device: c_int, ordinal: c_int) = 0;
    cuCtxGetDevice(device: c_int) = 0;
    cuDevicePrimaryCtxRetain(context: *mut c_void, device: c_int) = std::ptr::dangling_mut();
    cuStreamCreate(stream: *mut c_void, flags: c_uint) = std::ptr::dangling_mut();
    cuFuncGetAttribute(value: c_int, attribute: c_uint, function: *mut c_void) = 0;
    cuOccupancyMaxActiveClusters(n: c_int, function: *mut c_void, config: *const Config) = 2;
    cuGetErrorName(text: *const c_char, error: c_uint) = c"CUDA_ERROR".as_ptr();
    cuGetErrorString(text: *const c_char, error: c_uint) = c"said by the emulated driver".as_ptr();
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetName(name: *mut c_char, n: c_int, _: c_int) -> c_uint {
    let text = c"Emulated";
    if (n as usize) < text.count_bytes() + 1 {
        return INVALID_VALUE;
    }
    // SAFETY: `name` has `n` bytes.
    unsafe { std::ptr::copy_nonoverlapping(text.as_ptr(), name, text.count_bytes() + 1) };
    OK
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetAttribute(value: *mut c_int, attribute: c_uint, _: c_int) -> c_uint {
    let (_, major, minor) = target();
    let found = match attribute {
        16 => MULTIPROCESSORS,
        38 => 1 << 20,
        75 => major,
        76 => minor,
        _ => return INVALID_VALUE,
    };
    // SAFETY: a place for the value.
    unsafe { *value = found };
    OK
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemAlloc_v2(pointer: *mut u64, n: usize) -> c_uint {
    let made = state().device.alloc(n as u64);
    // SAFETY: a place for the address.
    code(made.map(|p| unsafe { *pointer = p }), OUT_OF_MEMORY)
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemFree_v2(pointer: u64) -> c_uint {
    code(state().device.free(pointer), INVALID_VALUE)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize) -> c_uint {
    // SAFETY: places for the values.
    unsafe { (*free, *total) = (1 << 40, 1 << 40) };
    OK
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyHtoD_v2(to: u64, from: *const u8, n: usize) -> c_uint {
    if n == 0 {
        return OK;
    }
    // SAFETY: `from` has `n` bytes.
    let from = unsafe { std::slice::from_raw_parts(from, n) };
    code(state().device.upload(to, from), INVALID_VALUE)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyDtoH_v2(to: *mut u8, from: u64, n: usize) -> c_uint {
    if n == 0 {
        return OK;
    }
    let read = state().device.download(from, n);
    // SAFETY: `to` has `n` bytes.
    code(read.map(|bytes| unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, n) }), INVALID_VALUE)
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemsetD32Async(at: u64, value: c_uint, n: usize, _: *mut c_void) -> c_uint {
    code(state().device.upload(at, &value.to_le_bytes().repeat(n)), INVALID_VALUE)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleLoadData(module: *mut *mut c_void, image: *const c_char) -> c_uint {
    // SAFETY: PTX ends with a zero.
    let text = unsafe { CStr::from_ptr(image) }.to_string_lossy();
    match Module::parse(&text) {
        Ok(parsed) => {
            let mut s = state();
            s.modules.push(Some(parsed));
            // SAFETY: a place for the handle.
            unsafe { *module = s.modules.len() as *mut c_void };
            OK
        }
        Err(e) => code::<(), _>(Err(e), INVALID_PTX),
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleLoadDataEx(
    module: *mut *mut c_void,
    image: *const c_char,
    _: c_uint,
    _: *mut c_uint,
    _: *mut *mut c_void,
) -> c_uint {
    // SAFETY: as the function's own.
    unsafe { cuModuleLoadData(module, image) }
}

#[unsafe(no_mangle)]
pub extern "C" fn cuModuleUnload(module: *mut c_void) -> c_uint {
    let mut s = state();
    match s.modules.get_mut((module as usize).wrapping_sub(1)).and_then(Option::take) {
        Some(_) => OK,
        None => INVALID_VALUE,
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleGetFunction(
    function: *mut *mut c_void,
    module: *mut c_void,
    name: *const c_char,
) -> c_uint {
    let mut s = state();
    // SAFETY: the name ends with a zero.
    let name = unsafe { CStr::from_ptr(name) }.to_string_lossy();
    let Some(Some(module)) = s.modules.get((module as usize).wrapping_sub(1)) else { return INVALID_VALUE };
    match Program::compile(module, &name) {
        Ok(program) => {
            s.programs.push(program);
            // SAFETY: a place for the handle.
            unsafe { *function = s.programs.len() as *mut c_void };
            OK
        }
        Err(e) => code::<(), _>(Err(e), NOT_FOUND),
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuTensorMapEncodeTiled(
    map: *mut [u8; 128],
    elem: c_uint,
    rank: c_uint,
    address: u64,
    dims: *const u64,
    strides: *const u64,
    box_dims: *const u32,
    element_strides: *const u32,
    interleave: c_uint,
    swizzle: c_uint,
    promotion: c_uint,
    fill: c_uint,
) -> c_uint {
    /// In the order of `CUtensorMapDataType`.
    const ELEMS: [MapElem; 16] = [
        MapElem::U8,
        MapElem::U16,
        MapElem::U32,
        MapElem::S32,
        MapElem::U64,
        MapElem::S64,
        MapElem::F16,
        MapElem::F32,
        MapElem::F64,
        MapElem::Bf16,
        MapElem::F32Ftz,
        MapElem::Tf32,
        MapElem::Tf32Ftz,
        MapElem::B4x16,
        MapElem::B4x16P64,
        MapElem::B6x16P32,
    ];
    const SWIZZLES: [Swizzle; 4] = [Swizzle::None, Swizzle::B32, Swizzle::B64, Swizzle::B128];
    let rank = rank as usize;
    let (Some(elem), Some(swizzle)) = (ELEMS.get(elem as usize), SWIZZLES.get(swizzle as usize)) else {
        return INVALID_VALUE;
    };
    // moec asks for 256 bytes of promotion, and for zeros outside.
    if !(1..=5).contains(&rank) || (promotion, fill) != (3, 0) {
        return INVALID_VALUE;
    }
    let mut out = tensormap::TensorMap {
        address,
        elem: *elem,
        rank,
        dims: [1; 5],
        strides: [0; 4],
        box_dims: [1; 5],
        element_strides: [1; 5],
        interleave: interleave as u8,
        swizzle: *swizzle,
        fill_nan: false,
    };
    for i in 0..rank {
        // SAFETY: the lists have as many entries as the map dimensions; of strides one less.
        unsafe {
            out.dims[i] = *dims.add(i);
            out.box_dims[i] = *box_dims.add(i);
            out.element_strides[i] = *element_strides.add(i);
            if i > 0 {
                out.strides[i - 1] = *strides.add(i - 1);
            }
        }
    }
    // SAFETY: a place for the map.
    code(out.encode().map(|bytes| unsafe { *map = bytes }), INVALID_VALUE)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuLaunchKernelEx(
    config: *const Config,
    function: *mut c_void,
    params: *const *const u8,
    _: *const *const c_void,
) -> c_uint {
    // SAFETY: the driver's contract.
    let config = unsafe { &*config };
    // SAFETY: as above.
    let Some(cluster) = (unsafe { config.cluster() }) else { return INVALID_VALUE };
    let mut s = state();
    let State { device, programs, .. } = &mut *s;
    let Some(program) = programs.get((function as usize).wrapping_sub(1)) else { return INVALID_VALUE };
    let param = |(i, &(_, bytes)): (usize, &(u32, u32))| {
        // SAFETY: there is a pointer for each parameter, to as many bytes as it has.
        Param::Bytes(unsafe { std::slice::from_raw_parts(*params.add(i), bytes as usize) }.to_vec())
    };
    let launch = Launch {
        grid: config.grid,
        block: config.block,
        cluster: [cluster, 1, 1],
        dynamic_smem_bytes: config.shared_bytes,
        params: program.params().iter().enumerate().map(param).collect(),
    };
    let options = Options { counters: false, ..Options::default() };
    match device.launch(program, &launch, &options) {
        Ok(report) if report.findings.is_empty() => OK,
        Ok(report) => {
            report.findings.iter().for_each(|f| eprintln!("emulated driver: {}: {f}", program.entry()));
            LAUNCH_FAILED
        }
        Err(e) => code::<(), _>(Err(e), LAUNCH_FAILED),
    }
}
