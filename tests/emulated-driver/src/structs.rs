//! `CUlaunchConfig` and `CUlaunchAttribute` as `cuda.h` has them.

use std::ffi::{c_uint, c_void};

#[repr(C)]
pub struct Config {
    pub grid: [c_uint; 3],
    pub block: [c_uint; 3],
    pub shared_bytes: c_uint,
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
    /// Blocks of a cluster; `None` where an attribute is another one or has a wrong value.
    ///
    /// # Safety
    /// There are as many attributes as it says.
    pub unsafe fn cluster(&self) -> Option<c_uint> {
        let mut cluster = 1;
        for i in 0..self.n_attributes as usize {
            // SAFETY: the caller's contract.
            let a = unsafe { &*self.attributes.add(i) };
            match (a.id, &a.value[..3]) {
                // CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION
                (4, &[x, 1, 1]) => cluster = x,
                // CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
                (6, &[1, ..]) => {}
                _ => return None,
            }
        }
        Some(cluster)
    }
}
