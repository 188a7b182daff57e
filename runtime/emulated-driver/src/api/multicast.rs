//! Multicast groups: one address for the memory of several devices.

use crate::call::*;
use crate::state::state;
use crate::structs::MulticastProp;
use std::ffi::c_uint;

api! {
    fn cuMulticastGetGranularity(bytes: *mut usize, prop: *const MulticastProp, _option: c_uint) {
        if (*prop).n_devices as usize > state()?.gpus.len() {
            return Err(INVALID_VALUE);
        }
        put(bytes, 2 << 20)
    }
}
