//! How a call of the driver becomes a Rust function.

use std::ffi::c_uint;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Why a call failed: a code of `data/errors.txt`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Error(pub c_uint);

/// What every call gives.
pub type Call = Result<(), Error>;

pub const INVALID_VALUE: Error = Error(1);
pub const OUT_OF_MEMORY: Error = Error(2);
pub const NOT_INITIALIZED: Error = Error(3);
pub const INVALID_DEVICE: Error = Error(101);
pub const INVALID_IMAGE: Error = Error(200);
pub const INVALID_CONTEXT: Error = Error(201);
pub const NO_BINARY_FOR_GPU: Error = Error(209);
pub const INVALID_PTX: Error = Error(218);
pub const FILE_NOT_FOUND: Error = Error(301);
pub const INVALID_HANDLE: Error = Error(400);
pub const ILLEGAL_STATE: Error = Error(401);
pub const NOT_FOUND: Error = Error(500);
pub const LAUNCH_TIMEOUT: Error = Error(702);
pub const PEER_ACCESS_ALREADY_ENABLED: Error = Error(704);
pub const PEER_ACCESS_NOT_ENABLED: Error = Error(705);
pub const HOST_MEMORY_ALREADY_REGISTERED: Error = Error(712);
pub const HOST_MEMORY_NOT_REGISTERED: Error = Error(713);
pub const LAUNCH_FAILED: Error = Error(719);
pub const COOPERATIVE_LAUNCH_TOO_LARGE: Error = Error(720);
pub const NOT_SUPPORTED: Error = Error(801);
pub const STREAM_CAPTURE_UNSUPPORTED: Error = Error(900);
pub const STREAM_CAPTURE_INVALIDATED: Error = Error(901);
pub const STREAM_CAPTURE_UNMATCHED: Error = Error(903);
pub const STREAM_CAPTURE_UNJOINED: Error = Error(904);
pub const STREAM_CAPTURE_ISOLATION: Error = Error(905);
pub const STREAM_CAPTURE_IMPLICIT: Error = Error(906);
pub const CAPTURED_EVENT: Error = Error(907);
pub const GRAPH_EXEC_UPDATE_FAILURE: Error = Error(910);
pub const INVALID_CLUSTER_SIZE: Error = Error(912);
pub const UNKNOWN: Error = Error(999);

/// Tells something on standard error, as all that this library tells.
pub fn tell(text: &str) {
    eprintln!("moec: {text}");
}

/// Runs a call; a panic of ours must not go through the program's frames.
pub fn guard(name: &str, body: impl FnOnce() -> Call) -> c_uint {
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => 0,
        Ok(Err(Error(code))) => code,
        Err(_) => {
            tell(&format!("{name} failed in the emulated driver; this is a bug of moec"));
            UNKNOWN.0
        }
    }
}

/// Writes a result to where the program wants it.
///
/// # Safety
/// The place is null or valid for the write.
pub unsafe fn put<T>(place: *mut T, value: T) -> Call {
    if place.is_null() {
        return Err(INVALID_VALUE);
    }
    // SAFETY: the caller's contract. Structs of programs may be packed.
    unsafe { place.write_unaligned(value) };
    Ok(())
}

/// As [`put`], where the program may leave the place out.
///
/// # Safety
/// As of [`put`].
pub unsafe fn put_if<T>(place: *mut T, value: T) {
    if !place.is_null() {
        // SAFETY: the caller's contract.
        unsafe { place.write_unaligned(value) };
    }
}

/// Defines calls of the driver. A body may follow the pointers that it was given: the driver's contract is that they are valid.
macro_rules! api {
    ($($(#[$meta:meta])* fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $body:block)*) => {$(
        $(#[$meta])*
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name($($arg: $ty),*) -> std::ffi::c_uint {
            $crate::call::guard(stringify!($name), || {
                // SAFETY: the driver's contract, which the caller keeps.
                #[allow(unused_unsafe, reason = "not every body follows pointers")]
                unsafe { $body }
            })
        }
    )*};
}
pub(crate) use api;
