//! Device memory, shared memory, and the windows of the generic address space.

pub mod global;
pub(crate) mod shadow;
pub mod shared;

use super::program::MemorySpace;

/// Bytes at the start of a CTA's shared window that belong to the system, as on sm_90 and later.
pub const SHARED_RESERVED: u32 = 1024;
/// Generic address of shared address 0. Shared addresses carry the CTA's rank in the cluster from bit 24 on.
pub const SHARED_WINDOW: u64 = 0x7f00_0000_0000;
/// Generic address of a thread's local address 0.
pub const LOCAL_WINDOW: u64 = 0x7f01_0000_0000;
/// Generic address of constant address 0.
pub const CONST_WINDOW: u64 = 0x7f02_0000_0000;
/// Generic address of kernel-parameter address 0.
pub const PARAM_WINDOW: u64 = 0x7f03_0000_0000;
/// "Addresses" of device functions.
pub const FUNCTION_WINDOW: u64 = 0x7f04_0000_0000;
/// First address of device allocations.
pub const HEAP: u64 = 0x7000_0000_0000;
/// End of device allocations.
pub const HEAP_END: u64 = 0x7e00_0000_0000;
const WINDOW_BYTES: u64 = 1 << 32;

/// The space of a generic address, and the address inside that space.
pub fn resolve(address: u64) -> (MemorySpace, u64) {
    let window = |base: u64| address >= base && address < base + WINDOW_BYTES;
    if window(SHARED_WINDOW) {
        (MemorySpace::SharedCluster, address - SHARED_WINDOW)
    } else if window(LOCAL_WINDOW) {
        (MemorySpace::Local, address - LOCAL_WINDOW)
    } else if window(CONST_WINDOW) {
        (MemorySpace::Const, address - CONST_WINDOW)
    } else if window(PARAM_WINDOW) {
        (MemorySpace::Param, address - PARAM_WINDOW)
    } else {
        (MemorySpace::Global, address)
    }
}

/// The generic address of an address inside a space.
pub fn window_base(space: MemorySpace) -> u64 {
    match space {
        MemorySpace::Shared | MemorySpace::SharedCluster => SHARED_WINDOW,
        MemorySpace::Local | MemorySpace::Frame => LOCAL_WINDOW,
        MemorySpace::Const => CONST_WINDOW,
        MemorySpace::Param => PARAM_WINDOW,
        MemorySpace::Global | MemorySpace::Generic => 0,
    }
}
