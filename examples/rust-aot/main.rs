//! A layer from what `moec compile --emit rust` writes, without any crate: on the CPU, or on a GPU.
//!
//! ```text
//! moec compile models/mixtral --layer 0 --target cpu,sm_100a --emit rust -o layer
//! moec pack layer --target cpu --weights models/mixtral -o layer.safetensors
//! rustc --edition 2024 -O main.rs -C link-arg=layer/cpu/layer.o -L lib -l static=moec_kernels -l m -l dl
//! ./main cpu layer.safetensors < input.bf16 > output.bf16
//! ```
//!
//! Standard input has rows of HIDDEN bf16 numbers, one for each token; standard output gets as many.
#[path = "layer/layer.rs"]
mod layer;

use layer::{Alone, Cuda, Error, cpu, sm_100a};
use std::ffi::{CStr, c_char, c_void};
use std::io::{Read, Write};

/// The data of a safetensors file, found by name.
struct Weights {
    header: String,
    data: Vec<u8>,
}

impl Weights {
    fn read(path: &str) -> Weights {
        let bytes = std::fs::read(path).expect("a file of weights");
        let n = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        Weights { header: String::from_utf8(bytes[8..8 + n].to_vec()).unwrap(), data: bytes[8 + n..].to_vec() }
    }

    fn get(&self, name: &str) -> &[u8] {
        let entry = &self.header[self.header.find(&format!("\"{name}\":")).expect("the weight")..];
        let list = &entry[entry.find("\"data_offsets\":[").unwrap() + 16..];
        let (from, to) = list[..list.find(']').unwrap()].split_once(',').unwrap();
        &self.data[from.parse().unwrap()..to.parse().unwrap()]
    }
}

fn on_cpu(weights: &Weights, input: &[u8], n_tokens: u64) -> Vec<u8> {
    let (mut output, mut ids, mut shares) = (vec![0u8; input.len()], [0u8; 4096], [0u8; 4096]);
    let tensors = cpu::Tensors {
        input: input.as_ptr(),
        output: output.as_mut_ptr(),
        topk_ids: ids.as_mut_ptr(),
        topk_weights: shares.as_mut_ptr(),
        router_weight: weights.get("router.weight").as_ptr(),
        experts_gate: weights.get("experts.gate").as_ptr(),
        experts_up: weights.get("experts.up").as_ptr(),
        experts_down: weights.get("experts.down").as_ptr(),
    };
    let size = cpu::workspace_bytes(n_tokens, 1).expect("few tokens");
    let mut workspace = vec![0xCDu8; size as usize];
    // SAFETY: memory of the tensors' sizes.
    unsafe {
        cpu::launch(&tensors, n_tokens, workspace.as_mut_ptr(), size, &Alone).expect("launched");
        let small = cpu::launch(&tensors, n_tokens, workspace.as_mut_ptr(), size - 1, &Alone);
        assert_eq!(small, Err(Error::WorkspaceTooSmall));
    }
    assert_eq!(cpu::workspace_bytes(1 << 40, 1), Err(Error::TooManyTokens));
    output
}

unsafe extern "C" {
    fn dlopen(name: *const c_char, flags: i32) -> *mut c_void;
    fn dlsym(library: *mut c_void, name: *const c_char) -> *mut c_void;
}

/// A function of the driver.
fn find<F: Copy>(library: *mut c_void, name: &CStr) -> F {
    // SAFETY: a library and a name; the callers know the types of the driver's functions.
    unsafe {
        let found = dlsym(library, name.as_ptr());
        assert!(!found.is_null(), "the driver has no {name:?}");
        std::mem::transmute_copy(&found)
    }
}

fn on_gpu(weights: &Weights, input: &[u8], n_tokens: u64) -> Vec<u8> {
    // SAFETY: a name; RTLD_NOW.
    let library = unsafe { dlopen(c"libcuda.so.1".as_ptr(), 2) };
    assert!(!library.is_null(), "there is no driver");
    let cuda = Cuda {
        ctx_get_device: find(library, c"cuCtxGetDevice"),
        device_get_attribute: find(library, c"cuDeviceGetAttribute"),
        module_load_data: find(library, c"cuModuleLoadData"),
        module_unload: find(library, c"cuModuleUnload"),
        module_get_function: find(library, c"cuModuleGetFunction"),
        func_set_attribute: find(library, c"cuFuncSetAttribute"),
        occupancy_max_active_clusters: find(library, c"cuOccupancyMaxActiveClusters"),
        memset_d32_async: find(library, c"cuMemsetD32Async"),
        tensor_map_encode_tiled: find(library, c"cuTensorMapEncodeTiled"),
        launch_kernel_ex: find(library, c"cuLaunchKernelEx"),
    };
    let init: unsafe extern "C" fn(u32) -> i32 = find(library, c"cuInit");
    let retain: unsafe extern "C" fn(*mut *mut c_void, i32) -> i32 = find(library, c"cuDevicePrimaryCtxRetain");
    let push: unsafe extern "C" fn(*mut c_void) -> i32 = find(library, c"cuCtxPushCurrent_v2");
    let allocate: unsafe extern "C" fn(*mut u64, usize) -> i32 = find(library, c"cuMemAlloc_v2");
    let upload: unsafe extern "C" fn(u64, *const u8, usize) -> i32 = find(library, c"cuMemcpyHtoD_v2");
    let download: unsafe extern "C" fn(*mut u8, u64, usize) -> i32 = find(library, c"cuMemcpyDtoH_v2");
    let device = |bytes: &[u8], size: usize| {
        let mut at = 0;
        // SAFETY: a place for the address, then memory of this size.
        unsafe {
            assert_eq!(allocate(&mut at, size), 0);
            assert_eq!(upload(at, bytes.as_ptr(), bytes.len()), 0);
        }
        at
    };
    let weight = |name: &str| device(weights.get(name), weights.get(name).len());
    // SAFETY: the driver's functions, of the driver's types; all on the default stream.
    unsafe {
        let mut context = std::ptr::null_mut();
        assert_eq!((init(0), retain(&mut context, 0), push(context)), (0, 0, 0));
        let loaded = sm_100a::load(cuda).expect("loaded");
        let mut tensors = sm_100a::Tensors {
            input: device(input, input.len()),
            output: device(&[], input.len()),
            topk_ids: device(&[], 4096),
            topk_weights: device(&[], 4096),
            router_weight: weight("router.weight"),
            experts_gate: weight("experts.gate"),
            experts_up: weight("experts.up"),
            experts_down: weight("experts.down"),
        };
        let size = sm_100a::workspace_bytes(n_tokens).expect("few tokens");
        let (workspace, stream) = (device(&[], size as usize), std::ptr::null_mut());
        sm_100a::launch(&loaded, &tensors, n_tokens, workspace, size, stream).expect("launched");
        let mut output = vec![0u8; input.len()];
        assert_eq!(download(output.as_mut_ptr(), tensors.output, output.len()), 0);
        tensors.input += 8;
        let odd = sm_100a::launch(&loaded, &tensors, n_tokens, workspace, size, stream);
        assert_eq!(odd, Err(Error::Address));
        output
    }
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let weights = Weights::read(&args[2]);
    let mut input = Vec::new();
    std::io::stdin().read_to_end(&mut input).expect("rows");
    let n_tokens = (input.len() / 2 / layer::HIDDEN) as u64;
    let output = if args[1] == "cpu" { on_cpu(&weights, &input, n_tokens) } else { on_gpu(&weights, &input, n_tokens) };
    std::io::stdout().write_all(&output).expect("written");
}
