//! PTX modules, compiled by the driver.

use super::driver::{CudaDevice, RawStream, check};
use super::tensor_map;
use crate::device::best_target;
use cudarc::driver::sys::{self, CUjit_option, CUresult, CUtensorMap};
use moec_bundle::MAX_TENSOR_MAPS;
use moec_ir::diag::Diagnostic;
use moec_ir::ptx_release::{PtxRelease, ptx_version};
use moec_ir::target::TARGETS;
use moec_ir::tile::GpuLaunch;
use std::ffi::{CString, c_void};

/// A module on a device; unloaded when dropped.
#[derive(Debug)]
pub(crate) struct Module {
    device: CudaDevice,
    module: sys::CUmodule,
}

// SAFETY: modules and functions of the driver API may be used from any thread.
unsafe impl Send for Module {}
// SAFETY: as above.
unsafe impl Sync for Module {}

/// A kernel of a module. Used only while its module lives.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Function {
    handle: sys::CUfunction,
    /// Clusters that run at once, of a persistent kernel in clusters: fewer than multiprocessors have room for, because a
    /// cluster lies in one group of them.
    clusters: Option<u32>,
}

// SAFETY: as for modules.
unsafe impl Send for Function {}
// SAFETY: as above.
unsafe impl Sync for Function {}

/// What the driver says about a compiled kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct FunctionInfo {
    /// Registers of a thread.
    pub registers: u32,
    /// Local memory of a thread in bytes; spilled registers are there.
    pub local_bytes: u32,
}

const LOG_BYTES: usize = 16 * 1024;

impl Module {
    /// Compiles PTX on the device.
    ///
    /// # Errors
    /// `ptx-rejected` with the driver's log; `cuda-driver-too-old` when the driver does not know the PTX version.
    pub fn load(device: &CudaDevice, file: &str, ptx: &str) -> Result<Module, Diagnostic> {
        let image = CString::new(ptx)
            .map_err(|_| Diagnostic::input("ptx-rejected", format!("`{file}` has a zero byte, which no PTX has")))?;
        let _entered = device.enter()?;
        let (mut errors, mut infos) = (vec![0u8; LOG_BYTES], vec![0u8; LOG_BYTES]);
        let mut options = [
            CUjit_option::CU_JIT_ERROR_LOG_BUFFER,
            CUjit_option::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES,
            CUjit_option::CU_JIT_INFO_LOG_BUFFER,
            CUjit_option::CU_JIT_INFO_LOG_BUFFER_SIZE_BYTES,
        ];
        // Sizes are handed over in place of pointers. One byte less than there is: the text then always ends in zero.
        let limit = (LOG_BYTES - 1) as *mut c_void;
        let mut values = [errors.as_mut_ptr().cast::<c_void>(), limit, infos.as_mut_ptr().cast::<c_void>(), limit];
        let mut module = std::ptr::null_mut();
        // SAFETY: the image is null-terminated text; options and values have the length that is given; the buffers have
        // the sizes that are given and outlive the call.
        let result = unsafe {
            sys::cuModuleLoadDataEx(
                &mut module,
                image.as_ptr().cast::<c_void>(),
                options.len() as u32,
                options.as_mut_ptr(),
                values.as_mut_ptr(),
            )
        };
        if result == CUresult::CUDA_SUCCESS {
            return Ok(Module { device: device.clone(), module });
        }
        let info = device.info();
        let failed = check(result, "compile PTX").map_or_else(|d| d.message, |()| String::new());
        let mut d = if result == CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION {
            Diagnostic::machine(
                "cuda-driver-too-old",
                format!(
                    "the driver, for CUDA {}.{}, does not know the PTX version of `{file}`",
                    info.driver_version / 1000,
                    info.driver_version % 1000 / 10
                ),
            )
            .help(match ptx_version(ptx).and_then(PtxRelease::of) {
                Some(release) => format!("it needs {}; or compile for an older target", release.sentence()),
                None => "install a newer NVIDIA driver, or compile for an older target".to_string(),
            })
        } else {
            Diagnostic::machine("ptx-rejected", format!("{} does not accept `{file}`: {failed}", info.name))
        };
        for log in [errors, infos] {
            let text = String::from_utf8_lossy(&log);
            for line in text.trim_end_matches('\0').lines().map(str::trim_end).filter(|l| !l.is_empty()) {
                d = d.note(line.trim_matches('\0'));
            }
        }
        Err(d)
    }

    /// GPUs that run a target's code may have less shared memory than it was planned for: sm_80 has 163 KiB for a block, 8.6
    /// and 8.9 have 99.
    fn fits(&self, file: &str, entry: &str, launch: &GpuLaunch) -> Result<(), Diagnostic> {
        let info = self.device.info();
        let (asked, has) = (u64::from(launch.dynamic_smem_bytes), info.smem_per_block);
        if has == 0 || asked <= has {
            return Ok(());
        }
        let (major, minor) = info.capability;
        let text = format!(
            "the kernel `{entry}` of `{file}` needs {asked} bytes of shared memory; {} (compute capability {major}.{minor}) has {has}",
            info.name
        );
        let d = Diagnostic::input("target-not-in-bundle", text);
        Err(match best_target(TARGETS.iter().map(|t| t.name), major, minor) {
            Some(target) => d.help(format!("compile the layer for this GPU: `--target {target}`")),
            None => d,
        })
    }

    /// The kernel called `entry`, prepared for its launch.
    ///
    /// # Errors
    /// `target-not-in-bundle` when a block has less shared memory here than on the GPUs of the bundle's target;
    /// `ptx-rejected` when there is no such kernel or it cannot be launched like this.
    pub fn function(&self, file: &str, entry: &str, launch: &GpuLaunch) -> Result<Function, Diagnostic> {
        self.fits(file, entry, launch)?;
        let rejected = |why: String| {
            Diagnostic::machine("ptx-rejected", format!("the kernel `{entry}` of `{file}` cannot be launched: {why}"))
        };
        let name = CString::new(entry).map_err(|e| rejected(e.to_string()))?;
        let _entered = self.device.enter()?;
        let mut function = std::ptr::null_mut();
        // SAFETY: the module is alive; the name is null-terminated.
        check(unsafe { sys::cuModuleGetFunction(&mut function, self.module, name.as_ptr()) }, "find it")
            .map_err(|d| rejected(d.message))?;
        let set = |attribute, value: i32, what: &str| {
            // SAFETY: the function is of a living module.
            check(unsafe { sys::cuFuncSetAttribute(function, attribute, value) }, what).map_err(|d| rejected(d.message))
        };
        use sys::CUfunction_attribute_enum as A;
        // Beyond 48 KiB a kernel has to ask for its dynamic shared memory; below, asking is harmless.
        if launch.dynamic_smem_bytes > 0 {
            let what = format!("give it {} bytes of shared memory", launch.dynamic_smem_bytes);
            set(A::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, launch.dynamic_smem_bytes as i32, &what)?;
        }
        if launch.cluster > 8 {
            set(A::CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED, 1, "give it a cluster of more than 8 blocks")?;
        }
        let mut clusters = None;
        if launch.persistent && launch.cluster > 1 {
            let mut attribute = cluster_attribute(launch.cluster);
            let config = sys::CUlaunchConfig {
                gridDimX: launch.cluster,
                gridDimY: 1,
                gridDimZ: 1,
                blockDimX: launch.block_threads,
                blockDimY: 1,
                blockDimZ: 1,
                sharedMemBytes: launch.dynamic_smem_bytes,
                hStream: std::ptr::null_mut(),
                attrs: &mut attribute,
                numAttrs: 1,
            };
            let mut n = 0;
            let what = format!("count the clusters of {} blocks that it runs at once", launch.cluster);
            // SAFETY: the function is of a living module; configuration and attribute outlive the call.
            check(unsafe { sys::cuOccupancyMaxActiveClusters(&mut n, function, &config) }, &what)
                .map_err(|d| rejected(d.message))?;
            clusters = u32::try_from(n).ok().filter(|&n| n > 0);
            if clusters.is_none() {
                return Err(rejected(format!("no cluster of {} of its blocks fits", launch.cluster)));
            }
        }
        Ok(Function { handle: function, clusters })
    }
}

fn cluster_attribute(blocks: u32) -> sys::CUlaunchAttribute {
    let value = sys::CUlaunchAttributeValue {
        clusterDim: sys::CUlaunchAttributeValue_union__bindgen_ty_1 { x: blocks, y: 1, z: 1 },
    };
    sys::CUlaunchAttribute { id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION, pad: [0; 4], value }
}

impl Drop for Module {
    fn drop(&mut self) {
        if let Ok(_entered) = self.device.enter() {
            // SAFETY: loaded by `load` and unloaded once.
            let _ = unsafe { sys::cuModuleUnload(self.module) };
        }
    }
}

impl Function {
    /// Registers and local memory.
    pub fn info(self, device: &CudaDevice) -> FunctionInfo {
        let Ok(_entered) = device.enter() else { return FunctionInfo::default() };
        let get = |attribute| {
            let mut value = 0;
            // SAFETY: the function is alive; the pointer is valid for the write. A failure leaves 0.
            let _ = unsafe { sys::cuFuncGetAttribute(&mut value, attribute, self.handle) };
            u32::try_from(value).unwrap_or(0)
        };
        use sys::CUfunction_attribute_enum as A;
        FunctionInfo {
            registers: get(A::CU_FUNC_ATTRIBUTE_NUM_REGS),
            local_bytes: get(A::CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES),
        }
    }

    /// Launches the kernel for up to `n_tokens` tokens, on a GPU with `n_sms` multiprocessors. Does not allocate or wait.
    ///
    /// # Safety
    /// The context is current, the module alive, and `params` are the kernel's pointers, as many as it has. Its tensor
    /// maps were checked with its manifest.
    pub unsafe fn launch(
        self,
        launch: &GpuLaunch,
        n_tokens: u64,
        params: &mut [u64],
        n_sms: u32,
        stream: RawStream,
    ) -> Result<(), CUresult> {
        let at_once = self.clusters.map_or(n_sms, |n| n_sms.min(n.saturating_mul(launch.cluster)));
        let grid = launch.blocks(n_tokens, at_once.into());
        if grid.contains(&0) {
            return Ok(());
        }
        let mut pointers = [std::ptr::null_mut::<c_void>(); moec_bundle::MAX_KERNEL_PARAMS];
        let mut maps = [tensor_map::EMPTY; MAX_TENSOR_MAPS];
        for ((to, map), pointer) in maps.iter_mut().zip(&launch.tensor_maps).zip(&mut pointers[params.len()..]) {
            // SAFETY: a context is current, so the driver is loaded, and older ones than CUDA 12.0 were refused.
            *to = unsafe { tensor_map::encode(map, params[map.operand as usize], n_tokens)? };
            *pointer = (to as *mut CUtensorMap).cast::<c_void>();
        }
        for (pointer, param) in pointers.iter_mut().zip(params.iter_mut()) {
            *pointer = (param as *mut u64).cast::<c_void>();
        }
        let early = sys::CUlaunchAttribute {
            id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
            pad: [0; 4],
            value: sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 },
        };
        let cluster = cluster_attribute(launch.cluster);
        let (mut attributes, n) = match (launch.cluster > 1, launch.programmatic) {
            (true, true) => ([cluster, early], 2),
            (true, false) => ([cluster, early], 1),
            (false, early_only) => ([early, cluster], u32::from(early_only)),
        };
        let config = sys::CUlaunchConfig {
            // Checked against the GPU's limits when the manifest was verified.
            gridDimX: grid[0] as u32,
            gridDimY: grid[1] as u32,
            gridDimZ: grid[2] as u32,
            blockDimX: launch.block_threads,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: launch.dynamic_smem_bytes,
            hStream: stream,
            attrs: attributes.as_mut_ptr(),
            numAttrs: n,
        };
        // SAFETY: the caller's contract; the parameter list has a pointer for every parameter, and list and attributes
        // outlive the call, which copies them.
        let result =
            unsafe { sys::cuLaunchKernelEx(&config, self.handle, pointers.as_mut_ptr(), std::ptr::null_mut()) };
        if result == CUresult::CUDA_SUCCESS { Ok(()) } else { Err(result) }
    }
}
