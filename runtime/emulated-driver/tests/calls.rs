//! The calls of the driver, as programs make them: memory of all kinds, streams, captures, graphs, two GPUs.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use moec_emulated_driver::api::*;
use moec_emulated_driver::structs::*;
use std::ffi::{CStr, CString, c_void};
use std::ptr::{null, null_mut};
use std::sync::{Mutex, MutexGuard, Once, PoisonError};

/// `scale(x, factor)`: x[i] *= factor for a block; `count(x)` adds 1 to a variable of the module and makes `x` at least
/// that; `faulty` writes behind `x`.
const PTX: &CStr = c"
.version 8.0
.target sm_80
.address_size 64
.visible .global .align 4 .u32 counter = 5;
.visible .const .align 4 .u32 offset = 0;
.visible .entry scale(.param .u64 x, .param .u32 factor) {
 .reg .b32 %r<5>; .reg .b64 %rd<4>;
 ld.param.u64 %rd1, [x]; ld.param.u32 %r4, [factor]; mov.u32 %r1, %tid.x; mul.wide.u32 %rd2, %r1, 4; add.s64 %rd3, %rd1, %rd2;
 ld.global.u32 %r2, [%rd3]; mul.lo.u32 %r3, %r2, %r4; st.global.u32 [%rd3], %r3; ret; }
.visible .entry count(.param .u64 x) {
 .reg .b32 %r<5>; .reg .b64 %rd<4>;
 ld.param.u64 %rd1, [x]; atom.global.add.u32 %r1, [counter], 1; add.u32 %r1, %r1, 1;
 ld.const.u32 %r2, [offset]; add.u32 %r3, %r1, %r2; red.global.max.u32 [%rd1], %r3; ret; }
.visible .entry faulty(.param .u64 x) {
 .reg .b32 %r<2>; .reg .b64 %rd<2>;
 ld.param.u64 %rd1, [x]; mov.u32 %r1, 1; st.global.u32 [%rd1+64], %r1; ret; }
";

macro_rules! must {
    ($call:expr) => {
        // SAFETY: the arguments are what the driver's interface says.
        assert_eq!(unsafe { $call }, 0, "{}", stringify!($call))
    };
}

macro_rules! fails {
    ($code:expr, $call:expr) => {
        // SAFETY: as above.
        assert_eq!(unsafe { $call }, $code, "{}", stringify!($call))
    };
}

/// A driver with two B200, and a new context on the first. Captures forbid things to all threads, so tests take turns.
fn driver() -> (MutexGuard<'static, ()>, Handle) {
    static TURN: Mutex<()> = Mutex::new(());
    static START: Once = Once::new();
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    START.call_once(|| {
        // SAFETY: the other tests wait for their turn.
        unsafe { std::env::set_var("MOEC_EMULATED_GPU", "b200,b200") };
        must!(cuInit(0));
    });
    let mut context = 0;
    must!(cuCtxCreate_v2(&mut context, 0, 0));
    (turn, context)
}

fn kernel(module: Handle, name: &str) -> Handle {
    let mut function = 0;
    must!(cuModuleGetFunction(&mut function, module, CString::new(name).unwrap().as_ptr()));
    function
}

fn module() -> Handle {
    let mut module = 0;
    must!(cuModuleLoadData(&mut module, PTX.as_ptr().cast()));
    module
}

fn memory(words: &[u32]) -> u64 {
    let mut at = 0;
    must!(cuMemAlloc_v2(&mut at, words.len() * 4));
    must!(cuMemcpyHtoD_v2(at, words.as_ptr() as u64, words.len() * 4));
    at
}

fn words(at: u64, n: usize) -> Vec<u32> {
    let mut out = vec![0u32; n];
    must!(cuMemcpyDtoH_v2(out.as_mut_ptr() as u64, at, n * 4));
    out
}

fn stream() -> Handle {
    let mut stream = 0;
    must!(cuStreamCreate(&mut stream, 1));
    stream
}

fn event() -> Handle {
    let mut event = 0;
    must!(cuEventCreate(&mut event, 0));
    event
}

/// Launches `scale` on four words; gives the code.
fn scale(function: Handle, at: u64, factor: u32, stream: Handle) -> u32 {
    let params = [(&raw const at).cast::<u8>(), (&raw const factor).cast()];
    // SAFETY: two parameters of 8 and 4 bytes.
    unsafe { cuLaunchKernel(function, 1, 1, 1, 4, 1, 1, 0, stream, params.as_ptr(), null()) }
}

#[test]
fn every_kind_of_memory_is_seen_by_kernels() {
    let (_turn, _) = driver();
    let function = kernel(module(), "scale");
    let stream = stream();
    let (mut pinned, mut managed, mut pooled) = (0, 0, 0);
    must!(cuMemHostAlloc(&mut pinned, 16, 0));
    must!(cuMemAllocManaged(&mut managed, 16, 1));
    must!(cuMemAllocAsync(&mut pooled, 16, stream));
    let mut own = [9u32, 1, 2, 3, 4];
    let registered = own[1..].as_mut_ptr() as u64;
    must!(cuMemHostRegister_v2(registered as *mut c_void, 16, 0));
    for at in [pinned, managed, registered] {
        // SAFETY: memory of the host, which has 16 bytes.
        unsafe { std::slice::from_raw_parts_mut(at as *mut u32, 4) }.copy_from_slice(&[1, 2, 3, 4]);
        assert_eq!(scale(function, at, 3, stream), 0);
        // SAFETY: as above.
        assert_eq!(unsafe { std::slice::from_raw_parts(at as *const u32, 4) }, [3, 6, 9, 12]);
    }
    must!(cuMemcpyHtoDAsync_v2(pooled, [1u32, 2, 3, 4].as_ptr() as u64, 16, stream));
    assert_eq!(scale(function, pooled, 5, stream), 0);
    assert_eq!(words(pooled, 4), [5, 10, 15, 20]);
    let mut kind = 0u32;
    for (at, want) in [(pinned, 1), (managed, 2), (registered, 1), (pooled, 2)] {
        must!(cuPointerGetAttribute((&raw mut kind).cast(), 2, at));
        assert_eq!(kind, want);
    }
    must!(cuMemFreeAsync(pooled, stream));
    must!(cuMemFreeHost(pinned as *mut c_void));
    must!(cuMemFree_v2(managed));
    must!(cuMemHostUnregister(registered as *mut c_void));
    fails!(1, cuMemFree_v2(managed));
    // Memory that is gone is found when a kernel uses it.
    assert_eq!(scale(function, pooled, 5, stream), 719);
}

#[test]
fn physical_memory_has_several_addresses_and_needs_access() {
    let (_turn, _) = driver();
    let function = kernel(module(), "scale");
    let location = Location { kind: 1, id: 0 };
    let prop = AllocationProp { kind: 1, handle_types: 0, location, win32: 0, flags: [0; 8] };
    let (mut page, mut at, mut handle) = (0, 0, 0);
    must!(cuMemGetAllocationGranularity(&mut page, &prop, 0));
    must!(cuMemAddressReserve(&mut at, 2 * page, 0, 0, 0));
    must!(cuMemCreate(&mut handle, page, &prop, 0));
    let (a, b) = (at, at + page as u64);
    must!(cuMemMap(a, page, 0, handle, 0));
    must!(cuMemMap(b, page, 0, handle, 0));
    must!(cuMemRelease(handle));
    must!(cuMemcpyHtoD_v2(a, [1u32, 2, 3, 4].as_ptr() as u64, 16));
    assert_eq!(scale(function, b, 2, 0), 719, "before access is set");
    must!(cuMemSetAccess(at, 2 * page, &AccessDesc { location, flags: 3 }, 1));
    assert_eq!(scale(function, b, 2, 0), 0);
    assert_eq!(words(a, 4), [2, 4, 6, 8]);
    // A copy over both mappings.
    must!(cuMemsetD32_v2(b - 8, 7, 4));
    assert_eq!(words(a, 2), [7, 7]);
    must!(cuMemUnmap(at, 2 * page));
    fails!(1, cuMemcpyDtoH_v2([0u32; 4].as_mut_ptr() as u64, a, 16));
    must!(cuMemAddressFree(at, 2 * page));
}

#[test]
fn variables_of_a_module_last_over_launches() {
    let (_turn, _) = driver();
    let module = module();
    let count = kernel(module, "count");
    let at = memory(&[0]);
    let run = || {
        let params = [(&raw const at).cast::<u8>()];
        must!(cuLaunchKernel(count, 1, 1, 1, 1, 1, 1, 0, 0, params.as_ptr(), null()));
        words(at, 1)[0]
    };
    assert_eq!((run(), run()), (6, 7));
    let (mut address, mut bytes) = (0, 0);
    must!(cuModuleGetGlobal_v2(&mut address, &mut bytes, module, c"counter".as_ptr()));
    assert_eq!((words(address, 1)[0], bytes), (7, 4));
    must!(cuMemcpyHtoD_v2(address, [41u32].as_ptr() as u64, 4));
    must!(cuModuleGetGlobal_v2(&mut address, &mut bytes, module, c"offset".as_ptr()));
    must!(cuMemcpyHtoD_v2(address, [1000u32].as_ptr() as u64, 4));
    assert_eq!(run(), 1042);
    fails!(500, cuModuleGetGlobal_v2(&mut address, &mut bytes, module, c"nothing".as_ptr()));
    must!(cuModuleUnload(module));
    fails!(400, cuModuleUnload(module));
}

#[test]
fn captured_work_runs_when_its_graph_does() {
    let (_turn, _) = driver();
    let function = kernel(module(), "scale");
    let (one, two) = (stream(), stream());
    let (fork, join) = (event(), event());
    let (a, b) = (memory(&[1, 2, 3, 4]), memory(&[0; 4]));
    must!(cuStreamBeginCapture_v2(one, 0));
    assert_eq!(scale(function, a, 3, one), 0);
    must!(cuEventRecord(fork, one));
    must!(cuStreamWaitEvent(two, fork, 0));
    must!(cuMemcpyDtoDAsync_v2(b, a, 16, two));
    must!(cuEventRecord(join, two));
    must!(cuMemsetD32Async(a, 1, 1, one));
    must!(cuStreamWaitEvent(one, join, 0));
    assert_eq!(scale(function, b, 10, one), 0);
    let (mut graph, mut exec, mut n, mut edges) = (0, 0, 0, 0);
    must!(cuStreamEndCapture(one, &mut graph));
    must!(cuGraphGetNodes(graph, null_mut(), &mut n));
    must!(cuGraphGetEdges(graph, null_mut(), null_mut(), &mut edges));
    assert_eq!((n, edges), (4, 4));
    assert_eq!((words(a, 4), words(b, 4)), (vec![1, 2, 3, 4], vec![0; 4]), "nothing ran yet");
    must!(cuGraphInstantiateWithFlags(&mut exec, graph, 0));
    must!(cuGraphDestroy(graph));
    must!(cuGraphLaunch(exec, one));
    assert_eq!((words(a, 4), words(b, 4)), (vec![1, 6, 9, 12], vec![30, 60, 90, 120]));
    must!(cuGraphLaunch(exec, one));
    assert_eq!(words(b, 4), [30, 180, 270, 360]);
    must!(cuGraphExecDestroy(exec));
    let mut milliseconds = 0f32;
    must!(cuEventRecord(fork, one));
    must!(cuEventRecord(join, one));
    must!(cuEventElapsedTime(&mut milliseconds, fork, join));
    assert!((0.0..1e4).contains(&milliseconds));
}

#[test]
fn what_spoils_a_capture_is_refused() {
    let (_turn, _) = driver();
    let (one, two) = (stream(), stream());
    let (mut graph, mut at) = (0, 0);
    must!(cuStreamBeginCapture_v2(one, 0));
    fails!(900, cuMemAlloc_v2(&mut at, 16));
    fails!(901, cuStreamEndCapture(one, &mut graph));
    must!(cuStreamBeginCapture_v2(one, 2));
    must!(cuMemAlloc_v2(&mut at, 16));
    fails!(900, cuStreamSynchronize(one));
    fails!(901, cuStreamEndCapture(one, &mut graph));
    // A stream that was drawn in and that nothing waits for.
    let fork = event();
    must!(cuStreamBeginCapture_v2(one, 0));
    must!(cuMemsetD8Async(at, 0, 4, one));
    must!(cuEventRecord(fork, one));
    must!(cuStreamWaitEvent(two, fork, 0));
    must!(cuMemsetD8Async(at, 1, 4, two));
    fails!(907, cuEventQuery(fork));
    fails!(904, cuStreamEndCapture(one, &mut graph));
    fails!(401, cuStreamEndCapture(two, &mut graph));
}

unsafe extern "C" fn doubles(data: *mut c_void) {
    // SAFETY: the test gives a word.
    unsafe { *data.cast::<u32>() *= 2 };
}

#[test]
fn graphs_are_made_of_nodes_and_changed() {
    let (_turn, _) = driver();
    let function = kernel(module(), "scale");
    let at = memory(&[1, 2, 3, 4]);
    let mut host = 21u32;
    let (mut graph, mut set, mut run, mut call) = (0, 0, 0, 0);
    must!(cuGraphCreate(&mut graph, 0));
    let fill = MemsetNode { dst: at, pitch: 0, value: 5, element_bytes: 4, width: 2, height: 1 };
    must!(cuGraphAddMemsetNode(&mut set, graph, null(), 0, &fill, 0));
    let mut factor = 3u32;
    let params = [(&raw const at).cast::<u8>(), (&raw const factor).cast()];
    let node = |params: &[*const u8; 2]| KernelNode {
        function,
        grid: [1; 3],
        block: [4, 1, 1],
        shared_bytes: 0,
        params: params.as_ptr(),
        extra: null(),
        kernel: 0,
        context: 0,
    };
    must!(cuGraphAddKernelNode_v2(&mut run, graph, &set, 1, &node(&params)));
    let data = (&raw mut host).cast();
    must!(cuGraphAddHostNode(&mut call, graph, &run, 1, &HostNode { function: Some(doubles), data }));
    let mut exec = 0;
    must!(cuGraphInstantiateWithFlags(&mut exec, graph, 0));
    must!(cuGraphLaunch(exec, 0));
    assert_eq!((words(at, 4), host), (vec![15, 15, 9, 12], 42));
    factor = 100;
    must!(cuGraphExecKernelNodeSetParams_v2(exec, run, &node(&params)));
    must!(cuGraphNodeSetEnabled(exec, set, 0));
    must!(cuGraphLaunch(exec, 0));
    assert_eq!((words(at, 4), host, factor), (vec![1500, 1500, 900, 1200], 84, 100));
    let mut info = UpdateResult { result: 9, error_node: 0, error_from: 0 };
    must!(cuGraphExecUpdate_v2(exec, graph, &mut info));
    must!(cuGraphLaunch(exec, 0));
    assert_eq!((words(at, 4), info.result), (vec![4_500, 4_500, 2700, 3600], 0), "{}", 3);
    let mut kind = 9;
    must!(cuGraphNodeGetType(call, &mut kind));
    assert_eq!(kind, 3);
    must!(cuGraphDestroy(graph));
}

#[test]
fn memory_of_another_gpu_needs_peer_access() {
    let (_turn, first) = driver();
    let function = kernel(module(), "scale");
    let mut second = 0;
    must!(cuCtxCreate_v2(&mut second, 0, 1));
    let theirs = memory(&[1, 2, 3, 4]);
    must!(cuCtxSetCurrent(first));
    assert_eq!(scale(function, theirs, 2, 0), 719);
    must!(cuCtxEnablePeerAccess(second, 0));
    fails!(704, cuCtxEnablePeerAccess(second, 0));
    assert_eq!(scale(function, theirs, 2, 0), 0);
    let ours = memory(&[0; 4]);
    must!(cuMemcpyPeer(ours, first, theirs, second, 16));
    assert_eq!(words(ours, 4), [2, 4, 6, 8]);
    let mut ordinal = 9i32;
    must!(cuPointerGetAttribute((&raw mut ordinal).cast(), 9, theirs));
    assert_eq!(ordinal, 1);
    must!(cuCtxDestroy_v2(second));
}

#[test]
fn launches_are_checked_before_and_while_they_run() {
    let (_turn, _) = driver();
    let module = module();
    let (function, at) = (kernel(module, "scale"), memory(&[1, 2, 3, 4]));
    let params = [(&raw const at).cast::<u8>(), (&raw const at).cast()];
    let launch = |shared, block| {
        // SAFETY: parameters of 8 and 4 bytes.
        unsafe { cuLaunchKernel(function, 1, 1, 1, block, 1, 1, shared, 0, params.as_ptr(), null()) }
    };
    assert_eq!(launch(0, 2048), 1);
    assert_eq!(launch(100 << 10, 4), 1);
    must!(cuFuncSetAttribute(function, 8, 100 << 10));
    assert_eq!(launch(100 << 10, 4), 0);
    fails!(1, cuFuncSetAttribute(function, 8, 300 << 10));
    let cluster = LaunchAttribute {
        id: 4,
        padding: 0,
        value: LaunchValue(std::array::from_fn(|i| if i < 3 { [2, 1, 1][i] } else { 0 })),
    };
    let serial = LaunchAttribute { id: 6, padding: 0, value: LaunchValue([1; 16]) };
    let attributes = [cluster, serial];
    let mut config = LaunchConfig {
        grid: [2, 1, 1],
        block: [1, 1, 1],
        shared_bytes: 0,
        stream: 0,
        attributes: attributes.as_ptr(),
        n_attributes: 2,
    };
    must!(cuLaunchKernelEx(&config, kernel(module, "count"), params.as_ptr(), null()));
    config.grid = [3, 1, 1];
    fails!(1, cuLaunchKernelEx(&config, function, params.as_ptr(), null()));
    // All arguments in one buffer.
    let (buffer, bytes) = ([at, 7], 12usize);
    let extra = [
        std::ptr::without_provenance(1),
        buffer.as_ptr().cast(),
        std::ptr::without_provenance(2),
        (&raw const bytes).cast(),
        null(),
    ];
    must!(cuMemsetD32_v2(at, 2, 4));
    must!(cuLaunchKernel(function, 1, 1, 1, 4, 1, 1, 0, 0, null(), extra.as_ptr()));
    assert_eq!(words(at, 4), [14; 4]);
    fails!(720, cuLaunchCooperativeKernel(function, 1 << 20, 1, 1, 4, 1, 1, 0, 0, params.as_ptr()));
    // A finding fails the launch and what waits for it; copies still work.
    let faulty = kernel(module, "faulty");
    fails!(719, cuLaunchKernel(faulty, 1, 1, 1, 1, 1, 1, 0, 0, params.as_ptr(), null()));
    fails!(719, cuCtxSynchronize());
    assert_eq!(words(at, 4), [14; 4]);
}

#[test]
fn images_and_names_that_are_not_there_are_refused() {
    let (_turn, _) = driver();
    let mut handle = 0;
    for (image, code) in [
        (&b"\x7fELF\x02\0"[..], 209),
        (&b"\x50\xed\x55\xba\x01\0"[..], 209),
        (&b".version 8.0 .target sm_80 .visible ???\0"[..], 218),
    ] {
        fails!(code, cuModuleLoadData(&mut handle, image.as_ptr().cast()));
    }
    let module = module();
    fails!(500, cuModuleGetFunction(&mut handle, module, c"nothing".as_ptr()));
    let mut log = [0u8; 200];
    let values = [log.as_mut_ptr().cast::<c_void>(), 200usize as *mut c_void];
    fails!(
        218,
        cuModuleLoadDataEx(
            &mut handle,
            c".version 8.0 .target sm_80 .visible ???".as_ptr().cast(),
            2,
            [5, 6].as_ptr(),
            values.as_ptr()
        )
    );
    assert!(CStr::from_bytes_until_nul(&log).unwrap().to_string_lossy().contains("line 1"));
}

#[test]
fn functions_are_found_by_name_and_version() {
    let (_turn, _) = driver();
    let find = |name: &CStr, version| {
        let (mut function, mut status) = (null(), 9);
        must!(cuGetProcAddress_v2(name.as_ptr(), &mut function, version, 0, &mut status));
        assert_eq!(status == 0, !function.is_null());
        function
    };
    assert_eq!(find(c"cuMemAlloc", 12000), cuMemAlloc_v2 as *const ());
    assert_eq!(find(c"cuCtxCreate", 12000), cuCtxCreate_v3 as *const ());
    assert_eq!(find(c"cuCtxCreate", 13000), cuCtxCreate_v4 as *const ());
    assert_eq!(find(c"cuGraphInstantiate", 12000), cuGraphInstantiateWithFlags as *const ());
    assert_eq!(find(c"cuEventElapsedTime", 12000), cuEventElapsedTime as *const ());
    assert!(find(c"cuFrobnicate", 13000).is_null());
    // What is missing has a function that says so.
    assert!(!find(c"cuTexObjectCreate", 13000).is_null());
    let mut text = null();
    must!(cuGetErrorName(719, &mut text));
    // SAFETY: a text of the driver.
    assert_eq!(unsafe { CStr::from_ptr(text) }, c"CUDA_ERROR_LAUNCH_FAILED");
    fails!(1, cuGetErrorName(12345, &mut text));
}

#[test]
fn occupancy_follows_threads_and_shared_memory() {
    let (_turn, _) = driver();
    let function = kernel(module(), "scale");
    let blocks = |threads, shared| {
        let mut n = 0;
        must!(cuOccupancyMaxActiveBlocksPerMultiprocessor(&mut n, function, threads, shared));
        n
    };
    assert_eq!([blocks(32, 0), blocks(256, 0), blocks(1024, 0), blocks(2048, 0)], [32, 8, 2, 0]);
    assert_eq!([blocks(32, 100 << 10), blocks(32, 200 << 10)], [2, 1]);
    let (mut grid, mut block) = (0, 0);
    must!(cuOccupancyMaxPotentialBlockSize(&mut grid, &mut block, function, None, 0, 0));
    assert_eq!((grid, block), (2 * 148, 1024));
}
