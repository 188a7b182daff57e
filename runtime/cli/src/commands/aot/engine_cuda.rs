
use core::ffi::{c_char, c_void};

/// `CUlaunchAttribute`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Attribute {
    id: u32,
    padding: u32,
    value: [u32; 16],
}

/// `CUlaunchConfig`.
#[repr(C)]
pub struct Config {
    grid: [u32; 3],
    block: [u32; 3],
    shared_bytes: u32,
    stream: *mut c_void,
    attributes: *mut Attribute,
    n_attributes: u32,
}

/// The CUDA driver as the host has it: functions of libcuda.so.1, by the names on the right.
#[derive(Clone, Copy)]
pub struct Cuda {
    pub ctx_get_device: unsafe extern "C" fn(*mut i32) -> i32, // cuCtxGetDevice
    pub device_get_attribute: unsafe extern "C" fn(*mut i32, i32, i32) -> i32, // cuDeviceGetAttribute
    pub module_load_data: unsafe extern "C" fn(*mut *mut c_void, *const c_void) -> i32, // cuModuleLoadData
    pub module_unload: unsafe extern "C" fn(*mut c_void) -> i32, // cuModuleUnload
    pub module_get_function: unsafe extern "C" fn(*mut *mut c_void, *mut c_void, *const c_char) -> i32, // cuModuleGetFunction
    pub func_set_attribute: unsafe extern "C" fn(*mut c_void, i32, i32) -> i32, // cuFuncSetAttribute
    pub occupancy_max_active_clusters: unsafe extern "C" fn(*mut i32, *mut c_void, *const Config) -> i32, // cuOccupancyMaxActiveClusters
    pub memset_d32_async: unsafe extern "C" fn(u64, u32, usize, *mut c_void) -> i32, // cuMemsetD32Async
    #[allow(clippy::type_complexity)]
    pub tensor_map_encode_tiled: unsafe extern "C" fn(
        *mut c_void,
        u32,
        u32,
        u64,
        *const u64,
        *const u64,
        *const u32,
        *const u32,
        u32,
        u32,
        u32,
        u32,
    ) -> i32, // cuTensorMapEncodeTiled
    pub launch_kernel_ex: unsafe extern "C" fn(*const Config, *mut c_void, *mut *mut c_void, *mut *mut c_void) -> i32, // cuLaunchKernelEx
}

/// Kernels that were loaded into a context; unloaded when dropped.
pub struct Loaded {
    cuda: Cuda,
    n_multiprocessors: u64,
    modules: Vec<*mut c_void>,
    /// For each kernel of each variant: its function, and how many clusters run at once (0: not asked).
    functions: Vec<(*mut c_void, u64)>,
}

// SAFETY: handles of the driver may be used from any thread.
unsafe impl Send for Loaded {}
// SAFETY: as above; nothing changes after loading.
unsafe impl Sync for Loaded {}

/// 128 bytes as kernels take them.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
struct Map([u8; 128]);

const MOST_PARAMS: usize = 64;
const MOST_MAPS: usize = 16;

fn ok(result: i32) -> Result<(), Error> {
    if result == 0 { Ok(()) } else { Err(Error::Cuda(result)) }
}

/// CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION is 4, CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION 6.
fn attribute(id: u32, first: [u32; 3]) -> Attribute {
    let mut value = [0; 16];
    value[..3].copy_from_slice(&first);
    Attribute { id, padding: 0, value }
}

impl Loaded {
    /// Loads a target's kernels into the current context.
    ///
    /// # Safety
    /// The functions are the driver's.
    unsafe fn new(target: &Target, cuda: Cuda) -> Result<Loaded, Error> {
        let mut loaded = Loaded { cuda, n_multiprocessors: 0, modules: Vec::new(), functions: Vec::new() };
        let (mut device, mut value) = (0, 0);
        // SAFETY: places for the values; what is loaded ends with a zero.
        unsafe {
            ok((cuda.ctx_get_device)(&mut device))?;
            // CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT
            ok((cuda.device_get_attribute)(&mut value, 16, device))?;
            loaded.n_multiprocessors = value as u64;
            for image in target.images {
                let (mut module, text) = (core::ptr::null_mut(), [*image, &[0]].concat());
                ok((cuda.module_load_data)(&mut module, text.as_ptr().cast()))?;
                loaded.modules.push(module);
            }
            for kernel in target.variants.iter().flat_map(|v| v.kernels) {
                let (mut function, name) = (core::ptr::null_mut(), format!("{}\0", kernel.entry));
                ok((cuda.module_get_function)(&mut function, loaded.modules[kernel.image], name.as_ptr().cast()))?;
                // CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED
                ok((cuda.func_set_attribute)(function, 8, kernel.dynamic_smem_bytes as i32))?;
                if kernel.cluster > 8 {
                    ok((cuda.func_set_attribute)(function, 14, 1))?;
                }
                let mut clusters = 0;
                if kernel.persistent && kernel.cluster > 1 {
                    let mut attribute = attribute(4, [kernel.cluster, 1, 1]);
                    let config = Config {
                        grid: [kernel.cluster, 1, 1],
                        block: [kernel.block_threads, 1, 1],
                        shared_bytes: kernel.dynamic_smem_bytes,
                        stream: core::ptr::null_mut(),
                        attributes: &mut attribute,
                        n_attributes: 1,
                    };
                    ok((cuda.occupancy_max_active_clusters)(&mut value, function, &config))?;
                    clusters = u64::try_from(value).unwrap_or(0);
                    if clusters == 0 {
                        return Err(Error::Processor);
                    }
                }
                loaded.functions.push((function, clusters));
            }
        }
        Ok(loaded)
    }

    fn bytes(v: &Variant, n_tokens: u64, offsets: &mut [u64]) -> u64 {
        512 + Self::counter_bytes(v, n_tokens) + v.layout(n_tokens, offsets)
    }

    /// Counters lie one behind the other, each at a multiple of 256 bytes.
    fn counter_bytes(v: &Variant, n_tokens: u64) -> u64 {
        v.buffers.iter().filter(|b| b.role == Role::Counter).map(|b| aligned(b.bytes(n_tokens))).sum()
    }

    /// Launches a variant whose first kernel is number `first`; `memory` has the addresses of inputs, outputs and weights.
    ///
    /// # Safety
    /// As the layer's `launch`.
    unsafe fn run(
        &self,
        (v, first): (&Variant, usize),
        memory: [&[u64]; 3],
        n_tokens: u64,
        workspace: u64,
        offsets: &mut [u64],
        stream: *mut c_void,
    ) -> Result<(), Error> {
        let cuda = &self.cuda;
        let (count, mut counter_bytes) = (aligned(workspace), 0);
        v.layout(n_tokens, offsets);
        for (buffer, offset) in v.buffers.iter().zip(offsets.iter_mut()) {
            if buffer.role == Role::Counter {
                *offset = counter_bytes;
                counter_bytes += aligned(buffer.bytes(n_tokens));
            }
        }
        let counters = count + 256;
        // SAFETY: the caller's contract: the workspace is as large as `bytes` says.
        unsafe {
            ok((cuda.memset_d32_async)(count, n_tokens as u32, 1, stream))?;
            if counter_bytes > 0 {
                ok((cuda.memset_d32_async)(counters, 0, counter_bytes as usize / 4, stream))?;
            }
        }
        for (k, kernel) in v.kernels.iter().enumerate() {
            let (function, clusters) = self.functions[first + k];
            let mut blocks = kernel.grid.map(|e| e.at(n_tokens));
            let cluster = u64::from(kernel.cluster);
            let most = if clusters > 0 { self.n_multiprocessors.min(clusters * cluster) } else { self.n_multiprocessors };
            if kernel.persistent {
                blocks[0] = blocks[0].min((most / cluster).max(1) * cluster);
            }
            blocks[0] = blocks[0].next_multiple_of(cluster);
            if blocks.contains(&0) {
                continue;
            }
            let n = kernel.operands.len();
            let mut addresses = [0u64; MOST_PARAMS];
            for (address, &b) in addresses.iter_mut().zip(kernel.operands) {
                *address = match v.buffers[b].role {
                    Role::Input(i) => memory[0][i],
                    Role::Output(i) => memory[1][i],
                    Role::Weight(i) => memory[2][i],
                    Role::Counter => counters + offsets[b],
                    Role::Workspace => counters + counter_bytes + offsets[b],
                };
            }
            addresses[n] = count;
            let mut maps = [Map([0; 128]); MOST_MAPS];
            for (to, m) in maps.iter_mut().zip(kernel.tensor_maps) {
                let mut dims = [1u64; 5];
                for (i, d) in dims.iter_mut().enumerate() {
                    *d = (m.dims[i] + m.dims_per_token[i] * n_tokens).max(1);
                }
                // SAFETY: lists of five entries; a place for the map. 3 is CU_TENSOR_MAP_L2_PROMOTION_L2_256B.
                ok(unsafe {
                    (cuda.tensor_map_encode_tiled)(
                        (to as *mut Map).cast(),
                        m.elem,
                        m.rank,
                        addresses[m.operand],
                        dims.as_ptr(),
                        m.strides.as_ptr(),
                        m.box_dims.as_ptr(),
                        [1u32; 5].as_ptr(),
                        0,
                        m.swizzle,
                        3,
                        0,
                    )
                })?;
            }
            let mut params = [core::ptr::null_mut::<c_void>(); MOST_PARAMS];
            let (pointers, of_maps) = params.split_at_mut(n + 1);
            pointers.iter_mut().zip(&mut addresses).for_each(|(p, a)| *p = (a as *mut u64).cast());
            of_maps.iter_mut().zip(&mut maps).for_each(|(p, m)| *p = (m as *mut Map).cast());
            let mut attributes = [attribute(4, [kernel.cluster, 1, 1]); 2];
            let mut n_attributes = u32::from(kernel.cluster > 1);
            if kernel.programmatic {
                attributes[n_attributes as usize] = attribute(6, [1, 0, 0]);
                n_attributes += 1;
            }
            let config = Config {
                grid: blocks.map(|n| n as u32),
                block: [kernel.block_threads, 1, 1],
                shared_bytes: kernel.dynamic_smem_bytes,
                stream,
                attributes: attributes.as_mut_ptr(),
                n_attributes,
            };
            // SAFETY: a pointer for each parameter, which the driver copies; the rest is the caller's contract.
            ok(unsafe { (cuda.launch_kernel_ex)(&config, function, params.as_mut_ptr(), core::ptr::null_mut()) })?;
        }
        Ok(())
    }
}

impl Drop for Loaded {
    fn drop(&mut self) {
        for &module in &self.modules {
            // SAFETY: loaded by `new`, and unloaded once. There is nobody to tell of a failure.
            let _ = unsafe { (self.cuda.module_unload)(module) };
        }
    }
}
