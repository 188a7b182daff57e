//! The calling conventions between compiled kernels and whoever launches them.
//!
//! # GPU kernels
//!
//! One `.entry` for each kernel of a tile program. Parameters, in this order:
//! 1. a global-memory pointer to each buffer of [`Body::operands`](crate::tile::Body::operands), in that order;
//! 2. a pointer to the token count, one `u32` in global memory;
//! 3. each tensor map of the launch, 128 bytes aligned to 64, as a grid constant: encoded for the pointer of its operand
//!    and the token count that the launch is made for ([`TensorMap`](crate::tile::TensorMap)).
//!
//! A [`Counter`](crate::tile::Role::Counter) holds 0 before the first launch; kernels leave it so.
//! A weight that a kernel has a tensor map of is read through it alone: its rows and matrices lie where the map's strides say.
//! Buffers are aligned to at least [`BUFFER_ALIGN`] bytes. The launch gives at least as many blocks as the kernel's grid
//! asks for at the token count in device memory; a kernel tolerates more. A persistent kernel does all its work with any
//! number of blocks, at least one. A programmatic kernel may be launched so that it starts before the one in front of it
//! is done.
//!
//! # CPU kernels
//!
//! One function with C calling convention for each kernel, [`CpuKernel`]. A kernel's work is cut into items; a call does
//! the items `begin..end`, which may run on any thread in any order. The caller finishes all items of a kernel before it
//! starts the next kernel.

mod products;

pub use products::{Encoding, PRODUCTS_SCRATCH_BYTES, Products, WeightCode, arranged_len};

use crate::DType;
use crate::tile::Buffer;

/// Least alignment of every buffer, in bytes.
pub const BUFFER_ALIGN: u64 = 256;

/// What a CPU kernel is called with. `#[repr(C)]`, read by generated code at these offsets: 0, 8, 16, 24, 32, 40.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct CpuContext {
    /// A pointer to each buffer of [`Body::operands`](crate::tile::Body::operands), in that order.
    pub buffers: *const *mut u8,
    /// The token count `T`.
    pub n_tokens: u64,
    /// Scratch memory of this call: as many bytes as the kernel asked for, aligned to [`BUFFER_ALIGN`].
    pub scratch: *mut u8,
    /// Functions that generated code calls.
    pub math: *const CpuMath,
    /// Matrix products that generated code calls.
    pub kernels: *const CpuKernels,
    /// How far apart matrices and rows of each operand lie; read for [`Body::strided`](crate::tile::Body::strided) only.
    pub strides: *const Strides,
}

/// Where the matrices and rows of a weight lie: [`Strides::of`] for those that were packed.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Strides {
    /// Bytes from a matrix to the next.
    pub matrix: u64,
    /// Bytes from a row to the next.
    pub row: u64,
}

impl Strides {
    /// Those of a buffer that lies as it was compiled.
    pub fn of(buffer: &Buffer) -> Strides {
        let row = buffer.pitch * buffer.dtype.bytes() as u64;
        Strides { matrix: buffer.rows.fixed().unwrap_or(0) * row, row }
    }
}

/// Vector code that generated code calls through this table, so that an object file needs no linking and runs as fast as
/// the processor that it finds. `moec-cpu-kernels` makes the table. All its functions give the same bits on every
/// processor.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct CpuKernels {
    /// Writes a row as `products` reads it: `from`, the row's [`Encoding`] as floats, the number of elements `k`, and where
    /// [`arranged_len`]`(k)` floats go, aligned to 64 bytes.
    pub arrange: unsafe extern "C" fn(from: *const u8, encoding: u64, k: u64, to: *mut f32),
    /// Does what [`Products`] says.
    pub products: unsafe extern "C" fn(job: *const Products),
}

/// Scalar functions that generated code calls through this table, so that an object file needs no linking.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct CpuMath {
    /// `e^x`
    pub exp: extern "C" fn(f32) -> f32,
    /// `ln(1 + e^x)`
    pub softplus: extern "C" fn(f32) -> f32,
    /// `tanh(x)`
    pub tanh: extern "C" fn(f32) -> f32,
    /// Error function.
    pub erf: extern "C" fn(f32) -> f32,
    /// `x^y`
    pub pow: extern "C" fn(f32, f32) -> f32,
}

/// A compiled CPU kernel: does the work items `begin..end`.
pub type CpuKernel = unsafe extern "C" fn(context: *const CpuContext, begin: u64, end: u64);

impl CpuMath {
    /// The table that moec's own runtime hands out: computed in f64 and rounded once.
    pub fn standard() -> CpuMath {
        use crate::expr::Unary;
        extern "C" fn exp(x: f32) -> f32 {
            Unary::Exp.eval(x)
        }
        extern "C" fn softplus(x: f32) -> f32 {
            Unary::Softplus.eval(x)
        }
        extern "C" fn tanh(x: f32) -> f32 {
            Unary::Tanh.eval(x)
        }
        extern "C" fn erf(x: f32) -> f32 {
            Unary::Erf.eval(x)
        }
        extern "C" fn pow(x: f32, y: f32) -> f32 {
            f64::from(x).powf(f64::from(y)) as f32
        }
        CpuMath { exp, softplus, tanh, erf, pow }
    }
}
