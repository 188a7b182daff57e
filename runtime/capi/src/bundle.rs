//! Bundles: opened from a path or out of memory.

use crate::describe::describe;
use crate::handles::Handles;
use crate::memory::{give, null, text};
use crate::status::{c_string, guard, moec_status};
use ::moec_bundle::Bundle;
use moec_ir::diag::Diagnostic;
use std::ffi::{CString, c_char, c_void};
use std::sync::Arc;

/// A compiled layer that was read: what `moec compile` writes.
#[allow(dead_code, reason = "C sees pointers to it only, and none points to anything")]
pub struct moec_bundle {
    _private: [u8; 0],
}

/// What a handle stands for.
pub(crate) struct Opened {
    pub bundle: Bundle,
    description: CString,
}

static BUNDLES: Handles<Opened> = Handles::new("bundle");

pub(crate) fn get(handle: *const moec_bundle) -> Result<Arc<Opened>, Diagnostic> {
    BUNDLES.get(handle as usize)
}

/// Opens a path; for [`crate::tvm`] as well.
pub(crate) fn open(path: &str) -> Result<usize, Diagnostic> {
    Bundle::open(path).map(add)
}

pub(crate) fn free(handle: usize) -> Result<(), Diagnostic> {
    BUNDLES.free(handle)
}

/// A handle for a bundle that was made in this process.
pub fn adopt_bundle(bundle: Bundle) -> *mut moec_bundle {
    add(bundle) as *mut moec_bundle
}

fn add(bundle: Bundle) -> usize {
    let description = c_string(&describe(bundle.manifest()).to_string());
    BUNDLES.add(Opened { bundle, description })
}

/// Opens the bundle at `path`: the folder that `moec compile -o DIR` wrote, or the file of `-o NAME.tar`. All of it is
/// checked against its hashes.
///
/// Errors: `bundle-not-found`, `bundle-corrupt`, `bundle-version-unsupported`, `bundle-invalid`.
///
/// # Safety
/// `path` is null or ends with a zero; `out` is null or valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moec_bundle_open(path: *const c_char, out: *mut *mut moec_bundle) -> moec_status {
    guard(|| {
        // SAFETY: the caller's contract.
        let path = unsafe { text(path, "path") }?;
        if out.is_null() {
            return Err(null("out"));
        }
        // SAFETY: as above.
        unsafe { give(out, open(path)? as *mut moec_bundle, "out") }
    })
}

/// Opens a bundle that lies in memory: the bytes of a `.tar`. Nothing of `bytes` is kept.
///
/// Errors: `bundle-corrupt`, `bundle-version-unsupported`, `bundle-invalid`.
///
/// # Safety
/// `bytes` is null or has `size` bytes; `out` is null or valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moec_bundle_open_memory(
    bytes: *const c_void,
    size: usize,
    out: *mut *mut moec_bundle,
) -> moec_status {
    guard(|| {
        if bytes.is_null() {
            return Err(null("bytes"));
        }
        if out.is_null() {
            return Err(null("out"));
        }
        let most = isize::MAX as usize;
        if size > most {
            return Err(Diagnostic::input("argument-invalid", format!("`size` is {size}, more than memory can hold")));
        }
        // SAFETY: the caller's contract.
        let archive = unsafe { std::slice::from_raw_parts(bytes.cast::<u8>(), size) };
        // SAFETY: as above.
        unsafe { give(out, add(Bundle::from_archive(archive)?) as *mut moec_bundle, "out") }
    })
}

/// What the bundle is, as JSON: name, inputs, outputs, parameters, targets. The text is valid until the bundle is freed.
///
/// Errors: `argument-null`, `handle-invalid`.
///
/// # Safety
/// `json` is null or valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moec_bundle_describe(bundle: *const moec_bundle, json: *mut *const c_char) -> moec_status {
    guard(|| {
        let opened = get(bundle)?;
        // SAFETY: the caller's contract. The text lives as long as the handle.
        unsafe { give(json, opened.description.as_ptr(), "json") }
    })
}

/// Forgets a bundle; layers that were made of it stay. Null is none.
///
/// Errors: `handle-invalid`.
#[unsafe(no_mangle)]
pub extern "C" fn moec_bundle_free(bundle: *mut moec_bundle) -> moec_status {
    guard(|| free(bundle as usize))
}
