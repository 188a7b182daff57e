//! Structures that a host fills in, each with its size as the host knows it.

use crate::memory::null;
use crate::tensor::{moec_dtype, moec_tensor};
use moec_ir::diag::Diagnostic;
use std::ffi::{c_char, c_void};

/// How a layer is created. Zero means the usual choice for every field but `struct_size`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct moec_layer_options {
    /// `sizeof(moec_layer_options)`.
    pub struct_size: usize,
    /// `"cpu"` or `"cuda:0"`; null for `"cpu"`.
    pub device: *const c_char,
    /// Most tokens of one launch; 0 for 1.
    pub max_tokens: u64,
    /// CPU: the threads, the caller's among them, up to 1024; 0 for one for each core, which all such layers of the process
    /// share.
    pub n_threads: u32,
    /// Not used; 0.
    pub reserved: u32,
    /// CPU, Linux: most bytes of routed experts in memory, the others being read as they are chosen from the `cache` that the layer
    /// is loaded with, or from a checkpoint that needs no packing; 0 for no limit.
    pub memory_limit: u64,
}

/// Called before each weight is loaded: bytes done and bytes in all, as kernels read them.
pub type moec_progress =
    Option<unsafe extern "C" fn(user: *mut c_void, param: *const c_char, done_bytes: u64, total_bytes: u64)>;

/// Where a layer's weights are.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct moec_checkpoint_options {
    /// `sizeof(moec_checkpoint_options)`.
    pub struct_size: usize,
    /// A folder of `*.safetensors`, one such file, or a GGUF file.
    pub path: *const c_char,
    /// A folder that keeps the packed form for the next time; null for none.
    pub cache: *const c_char,
    /// Told of each weight; null for nobody. Called on the thread that loads.
    pub progress: moec_progress,
    /// Given to `progress`.
    pub user: *mut c_void,
}

/// One parameter of a layer; what it points to is valid until the layer is freed.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct moec_param {
    /// `sizeof(moec_param)`.
    pub struct_size: usize,
    /// Its name within the layer: `experts.gate`.
    pub name: *const c_char,
    /// The type that its values are rounded to.
    pub dtype: moec_dtype,
    /// Number of axes.
    pub ndim: i32,
    /// Lengths of the axes, outermost first.
    pub shape: *const i64,
    /// 1 when it has its weight.
    pub is_set: i32,
    /// 1 when it is published as codes and scales, which `moec_layer_set_codes` gives.
    pub is_coded: i32,
    /// Of a coded parameter: the type of its codes; bytes of two for INT4 (`u - 8`, the low half first), which DLPack has no
    /// type for. Else all zero, as are the fields below.
    pub code_dtype: moec_dtype,
    /// The type of its scales.
    pub scale_dtype: moec_dtype,
    /// Rows of the block that a scale is for; 0 for all rows.
    pub block_rows: i64,
    /// Columns of the block that a scale is for; 0 for all columns.
    pub block_cols: i64,
    /// 1 when each matrix may have a scale of its own over those of its blocks.
    pub has_global: i32,
    /// Not used; 0.
    pub reserved: i32,
}

/// A parameter as codes and scales: the value of an element is `code · (scale · global)`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct moec_codes {
    /// `sizeof(moec_codes)`.
    pub struct_size: usize,
    /// The codes: `[.., N, K]` of FP8, or `[.., N, K / 2]` of bytes that hold two codes, the low half first. The last axis of
    /// bytes may be cut into blocks, as in `[.., N, K / 32, 16]`. Bytes (`u8`) are codes of the parameter's type.
    pub codes: *const moec_tensor,
    /// The scales, one for each block: `[.., blocks along N, blocks along K]`. Bytes (`u8`) are scales of the parameter's type,
    /// or e8m0 where that is a float. Scales of another type are converted where that is exact.
    pub scales: *const moec_tensor,
    /// Scales of whole matrices: `f32`, one or one for each, in the host's memory; null for 1.
    pub globals: *const moec_tensor,
}

/// One launch of a layer.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct moec_launch {
    /// `sizeof(moec_launch)`.
    pub struct_size: usize,
    /// The inputs in the bundle's order, dense, on the layer's device.
    pub inputs: *const *const moec_tensor,
    /// How many there are.
    pub n_inputs: usize,
    /// Where the results go, in the bundle's order, dense, on the layer's device; they overlap nothing.
    pub outputs: *const *const moec_tensor,
    /// How many there are.
    pub n_outputs: usize,
    /// Memory on the layer's device that nobody else uses until the launch is done; what is in it does not matter.
    pub workspace: *mut c_void,
    /// Its size: at least what `moec_layer_workspace_bytes` says for the token count.
    pub workspace_bytes: u64,
    /// CUDA: the `CUstream` to launch on, null for the default stream. CPU: not used.
    pub stream: *mut c_void,
}

/// A structure that a host fills in: plain data, all zero by default, `struct_size` in front.
///
/// # Safety
/// `#[repr(C)]`, valid for any bytes that the host may write, zeros among them; the first field is its size, a `usize`.
pub unsafe trait HostStruct: Copy {
    /// Its name in C.
    const NAME: &str;
    /// Its size in the first version of the interface, on 64-bit machines: hosts may know that much of it.
    const OLDEST: usize;
}

// SAFETY: integers and pointers, size first.
unsafe impl HostStruct for moec_layer_options {
    const NAME: &str = "moec_layer_options";
    const OLDEST: usize = 32;
}
// SAFETY: pointers and an optional function, size first.
unsafe impl HostStruct for moec_checkpoint_options {
    const NAME: &str = "moec_checkpoint_options";
    const OLDEST: usize = 40;
}
// SAFETY: integers and pointers, size first.
unsafe impl HostStruct for moec_param {
    const NAME: &str = "moec_param";
    const OLDEST: usize = 40;
}
// SAFETY: pointers, size first.
unsafe impl HostStruct for moec_codes {
    const NAME: &str = "moec_codes";
    const OLDEST: usize = 32;
}
// SAFETY: integers and pointers, size first.
unsafe impl HostStruct for moec_launch {
    const NAME: &str = "moec_launch";
    const OLDEST: usize = 64;
}

/// Reads a structure of the host: what an older host does not know is zero, what a newer host added is left.
///
/// # Errors
/// `argument-null`; `struct-size-invalid` for a size that no version has.
///
/// # Safety
/// Null, or `struct_size` bytes long.
pub unsafe fn read<T: HostStruct>(from: *const T) -> Result<T, Diagnostic> {
    if from.is_null() {
        return Err(null(T::NAME));
    }
    // SAFETY: every such structure has its size in front.
    let size = unsafe { size(from)? };
    let mut value = std::mem::MaybeUninit::<T>::zeroed();
    // SAFETY: both have as many bytes; the rest is zero, which is valid (the trait's contract).
    unsafe {
        std::ptr::copy_nonoverlapping(from.cast::<u8>(), value.as_mut_ptr().cast::<u8>(), size.min(size_of::<T>()));
        Ok(value.assume_init())
    }
}

/// Writes a structure that the host gets: as much as it knows of.
///
/// # Errors
/// As [`read`].
///
/// # Safety
/// As [`read`], valid for writes.
pub(crate) unsafe fn write<T: HostStruct>(to: *mut T, value: T) -> Result<(), Diagnostic> {
    if to.is_null() {
        return Err(null(T::NAME));
    }
    // SAFETY: the caller's contract; the first field, the host's own size, stays.
    unsafe {
        let known = size(to)?.min(size_of::<T>());
        let head = size_of::<usize>();
        let (from, to) = ((&raw const value).cast::<u8>(), to.cast::<u8>());
        std::ptr::copy_nonoverlapping(from.add(head), to.add(head), known - head);
    }
    Ok(())
}

/// # Safety
/// As [`read`], not null.
unsafe fn size<T: HostStruct>(of: *const T) -> Result<usize, Diagnostic> {
    // SAFETY: the first field is the size.
    let size = unsafe { of.cast::<usize>().read_unaligned() };
    // Structures only grow; a number far beyond is a field that was not filled in.
    if (T::OLDEST..=4096).contains(&size) {
        return Ok(size);
    }
    Err(Diagnostic::input(
        "struct-size-invalid",
        format!("`{0}.struct_size` is {size}; it should be sizeof({0}), {1} here", T::NAME, size_of::<T>()),
    )
    .help("set it before the call, and build host and library with the same header"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_pointer_width = "64")]
    fn structures_have_their_first_size_or_more() {
        fn check<T: HostStruct>() {
            assert!(size_of::<T>() >= T::OLDEST, "{}", T::NAME);
        }
        check::<moec_layer_options>();
        check::<moec_checkpoint_options>();
        check::<moec_param>();
        check::<moec_codes>();
        check::<moec_launch>();
    }

    /// A host that knows less of a structure than the library.
    #[test]
    fn what_an_older_host_does_not_know_is_zero() {
        #[repr(C)]
        #[derive(Clone, Copy)]
        struct Grown {
            size: usize,
            old: u64,
            new: u64,
        }
        // SAFETY: integers, size first.
        unsafe impl HostStruct for Grown {
            const NAME: &str = "grown";
            const OLDEST: usize = 16;
        }
        let mut host = Grown { size: 16, old: 7, new: 9 };
        // SAFETY: the host has at least as much as it says.
        let seen = unsafe { read(&host) }.unwrap();
        assert_eq!((seen.old, seen.new), (7, 0));
        // SAFETY: as above.
        unsafe { write(&mut host, Grown { size: 24, old: 1, new: 2 }) }.unwrap();
        assert_eq!((host.size, host.old, host.new), (16, 1, 9), "what the host does not know is not touched");
        host.size = 8;
        // SAFETY: as above.
        assert_eq!(unsafe { read(&host) }.map(|_| ()).unwrap_err().code, "struct-size-invalid");
    }
}
