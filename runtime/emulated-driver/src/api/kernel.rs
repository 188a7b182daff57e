//! What is known of kernels, and what programs may choose about them.

use crate::call::*;
use crate::state::{Function, State, current, state};
use crate::structs::Handle;
use std::ffi::{c_char, c_int, c_uint};

/// `CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES`
pub const MAX_DYNAMIC_SHARED: c_uint = 8;
/// `CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED`
pub const NON_PORTABLE_CLUSTER: c_uint = 14;
/// Bytes of shared memory that need no attribute.
pub const USUAL_SHARED: u32 = 48 << 10;

impl Function {
    /// Registers of a thread: as many as the PTX names, as NVIDIA's assembler is not here to use fewer, but so few that the
    /// largest block that the kernel allows has room.
    pub fn registers(&self) -> u32 {
        // They come in eights.
        let most = 65536 / self.program.max_threads().unwrap_or(1024).max(1) / 8 * 8;
        self.program.virtual_registers().clamp(16, most.clamp(16, 255))
    }

    fn attribute(&self, which: c_uint) -> Option<c_int> {
        let program = &self.program;
        let cluster = program.required_cluster();
        let sm = program.target().sm as c_int;
        Some(match which {
            0 => program.max_threads().unwrap_or(1024) as c_int,
            1 => program.static_shared_bytes() as c_int,
            2 => program.const_bytes() as c_int,
            3 => program.local_bytes() as c_int,
            4 => self.registers() as c_int,
            5 | 6 => sm,
            MAX_DYNAMIC_SHARED => {
                let usual = (USUAL_SHARED.saturating_sub(program.static_shared_bytes())) as c_int;
                self.attributes.get(&which).copied().unwrap_or(usual)
            }
            9 => self.attributes.get(&which).copied().unwrap_or(-1),
            10 => c_int::from(program.uses_cluster()),
            11..=13 => match cluster {
                Some(c) => c[which as usize - 11] as c_int,
                None => self.attributes.get(&which).copied().unwrap_or(0),
            },
            7 | 14 | 15 => self.attributes.get(&which).copied().unwrap_or(0),
            _ => return None,
        })
    }
}

impl State {
    fn set_attribute(&mut self, function: Handle, which: c_uint, value: c_int) -> Call {
        let most = self.gpus[0].chip.target().max_shared_bytes();
        let f = self.functions.get_mut(function)?;
        let room = most.saturating_sub(f.program.static_shared_bytes());
        let fits = match which {
            MAX_DYNAMIC_SHARED => u32::try_from(value).is_ok_and(|v| v <= room),
            9 => (-1..=100).contains(&value),
            11..=13 => value >= 0 && f.program.required_cluster().is_none(),
            NON_PORTABLE_CLUSTER | 15 => true,
            _ => false,
        };
        if !fits {
            return Err(INVALID_VALUE);
        }
        f.attributes.insert(which, value);
        Ok(())
    }
}

api! {
    fn cuFuncGetAttribute(value: *mut c_int, which: c_uint, function: Handle) {
        put(value, state()?.functions.get(function)?.attribute(which).ok_or(INVALID_VALUE)?)
    }

    fn cuFuncSetAttribute(function: Handle, which: c_uint, value: c_int) {
        state()?.set_attribute(function, which, value)
    }

    fn cuKernelGetAttribute(value: *mut c_int, which: c_uint, kernel: Handle, _device: c_int) {
        put(value, state()?.functions.get(kernel)?.attribute(which).ok_or(INVALID_VALUE)?)
    }

    fn cuKernelSetAttribute(which: c_uint, value: c_int, kernel: Handle, _device: c_int) {
        state()?.set_attribute(kernel, which, value)
    }

    fn cuKernelGetFunction(place: *mut Handle, kernel: Handle) {
        current()?;
        state()?.functions.get(kernel)?;
        put(place, kernel)
    }

    fn cuKernelGetLibrary(place: *mut Handle, kernel: Handle) {
        put(place, state()?.functions.get(kernel)?.module)
    }

    fn cuFuncGetModule(place: *mut Handle, function: Handle) {
        put(place, state()?.functions.get(function)?.module)
    }

    fn cuFuncGetName(name: *mut *const c_char, function: Handle) {
        put(name, state()?.functions.get(function)?.name.as_ptr())
    }

    fn cuKernelGetName(name: *mut *const c_char, kernel: Handle) {
        put(name, state()?.functions.get(kernel)?.name.as_ptr())
    }

    fn cuFuncGetParamInfo(function: Handle, index: usize, offset: *mut usize, bytes: *mut usize) {
        let s = state()?;
        let (at, n) = *s.functions.get(function)?.program.params().get(index).ok_or(INVALID_VALUE)?;
        put_if(offset, at as usize);
        put_if(bytes, n as usize);
        Ok(())
    }

    fn cuKernelGetParamInfo(kernel: Handle, index: usize, offset: *mut usize, bytes: *mut usize) {
        let code = cuFuncGetParamInfo(kernel, index, offset, bytes);
        if code == 0 { Ok(()) } else { Err(Error(code)) }
    }

    fn cuFuncSetCacheConfig(function: Handle, _config: c_uint) {
        state()?.functions.get(function).map(|_| ())
    }

    fn cuKernelSetCacheConfig(kernel: Handle, _config: c_uint, _device: c_int) {
        state()?.functions.get(kernel).map(|_| ())
    }

    fn cuFuncSetSharedMemConfig(function: Handle, _config: c_uint) {
        state()?.functions.get(function).map(|_| ())
    }

    fn cuFuncIsLoaded(loaded: *mut c_uint, function: Handle) {
        state()?.functions.get(function)?;
        put(loaded, 1)
    }

    fn cuFuncLoad(function: Handle) {
        state()?.functions.get(function).map(|_| ())
    }
}
