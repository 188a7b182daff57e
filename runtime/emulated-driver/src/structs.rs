//! Structs of `cuda.h`, as they lie in memory. Enumerations are numbers here: programs may be newer than this library.

use std::ffi::{c_char, c_int, c_uint, c_void};

/// A handle that this library made; programs do not look behind it.
pub type Handle = usize;

/// `CUlaunchConfig`.
#[repr(C)]
pub struct LaunchConfig {
    pub grid: [c_uint; 3],
    pub block: [c_uint; 3],
    pub shared_bytes: c_uint,
    pub stream: Handle,
    pub attributes: *const LaunchAttribute,
    pub n_attributes: c_uint,
}

/// `CUlaunchAttribute`; also an entry of stream and kernel-node attributes, whose value is the same union.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct LaunchAttribute {
    pub id: c_uint,
    pub padding: c_uint,
    pub value: LaunchValue,
}

/// `CUlaunchAttributeValue`: 64 bytes.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
pub struct LaunchValue(pub [c_uint; 16]);

impl LaunchValue {
    /// The handle at its start.
    pub fn handle(&self) -> Handle {
        (u64::from(self.0[0]) | u64::from(self.0[1]) << 32) as Handle
    }
}

/// `CUDA_MEMCPY2D`.
#[repr(C)]
pub struct Memcpy2d {
    pub src: Side2d,
    pub dst: Side2d,
    pub width: usize,
    pub height: usize,
}

/// One side of [`Memcpy2d`].
#[repr(C)]
pub struct Side2d {
    pub x: usize,
    pub y: usize,
    pub memory_type: c_uint,
    pub host: u64,
    pub device: u64,
    pub array: Handle,
    pub pitch: usize,
}

/// `CUDA_MEMCPY3D`, and `CUDA_MEMCPY3D_PEER`, which has a context where the former has a reserved field.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Memcpy3d {
    pub src: Side3d,
    pub dst: Side3d,
    pub width: usize,
    pub height: usize,
    pub depth: usize,
}

/// One side of [`Memcpy3d`].
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Side3d {
    pub x: usize,
    pub y: usize,
    pub z: usize,
    pub lod: usize,
    pub memory_type: c_uint,
    pub host: u64,
    pub device: u64,
    pub array: Handle,
    pub context: Handle,
    pub pitch: usize,
    pub height: usize,
}

/// `CUDA_KERNEL_NODE_PARAMS_v2`, and v3, which is the same; v1 ends before `kernel`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct KernelNode {
    pub function: Handle,
    pub grid: [c_uint; 3],
    pub block: [c_uint; 3],
    pub shared_bytes: c_uint,
    pub params: *const *const u8,
    pub extra: *const *const c_void,
    pub kernel: Handle,
    pub context: Handle,
}

/// `CUDA_MEMSET_NODE_PARAMS`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct MemsetNode {
    pub dst: u64,
    pub pitch: usize,
    pub value: c_uint,
    pub element_bytes: c_uint,
    pub width: usize,
    pub height: usize,
}

/// What a host function looks like.
pub type HostFn = unsafe extern "C" fn(*mut c_void);

/// `CUDA_HOST_NODE_PARAMS`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct HostNode {
    pub function: Option<HostFn>,
    pub data: *mut c_void,
}

/// `CUgraphNodeParams`: a type, then a union of 29 words.
#[repr(C)]
pub struct NodeParams {
    pub kind: c_uint,
    pub reserved: [c_int; 3],
    pub union: [u64; 29],
    pub reserved2: u64,
}

/// `CUmemLocation`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Location {
    pub kind: c_uint,
    pub id: c_int,
}

/// `CUmemAllocationProp`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AllocationProp {
    pub kind: c_uint,
    pub handle_types: c_uint,
    pub location: Location,
    pub win32: usize,
    pub flags: [u8; 8],
}

/// `CUmemPoolProps`.
#[repr(C)]
pub struct PoolProps {
    pub alloc_type: c_uint,
    pub handle_types: c_uint,
    pub location: Location,
    pub security: usize,
    pub max_size: usize,
    pub usage: u16,
    pub reserved: [u8; 54],
}

/// `CUmemAccessDesc`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct AccessDesc {
    pub location: Location,
    pub flags: c_uint,
}

/// `CUgraphExecUpdateResultInfo`.
#[repr(C)]
pub struct UpdateResult {
    pub result: c_uint,
    pub error_node: Handle,
    pub error_from: Handle,
}

/// `CUuuid`.
#[repr(C)]
pub struct Uuid(pub [c_char; 16]);

/// `CUmulticastObjectProp`.
#[repr(C)]
pub struct MulticastProp {
    pub n_devices: c_uint,
    pub size: usize,
    pub handle_types: u64,
    pub flags: u64,
}
