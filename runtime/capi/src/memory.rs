//! Reads what a host points to, without trusting more than C lets one check.

use moec_ir::diag::Diagnostic;
use std::ffi::{CStr, c_char};

/// The error for a pointer that should not be null.
pub fn null(what: &str) -> Diagnostic {
    Diagnostic::input("argument-null", format!("`{what}` is null"))
}

/// Text of the host.
///
/// # Errors
/// `argument-null`; `argument-invalid` when it is no UTF-8.
///
/// # Safety
/// Null, or a string that ends with a zero and stays as it is for `'a`.
pub unsafe fn text<'a>(pointer: *const c_char, what: &str) -> Result<&'a str, Diagnostic> {
    // SAFETY: the caller's contract.
    unsafe { optional_text(pointer, what) }?.ok_or_else(|| null(what))
}

/// As [`text`]; `None` for null.
///
/// # Safety
/// As [`text`].
pub unsafe fn optional_text<'a>(pointer: *const c_char, what: &str) -> Result<Option<&'a str>, Diagnostic> {
    if pointer.is_null() {
        return Ok(None);
    }
    // SAFETY: the caller's contract.
    let text = unsafe { CStr::from_ptr(pointer) };
    let text = text.to_str().map_err(|e| Diagnostic::input("argument-invalid", format!("`{what}` is not UTF-8: {e}")));
    text.map(Some)
}

/// Writes a result.
///
/// # Errors
/// `argument-null`.
///
/// # Safety
/// Null, or valid for a write.
pub unsafe fn give<T>(to: *mut T, value: T, what: &str) -> Result<(), Diagnostic> {
    if to.is_null() {
        return Err(null(what));
    }
    // SAFETY: the caller's contract; C does not promise alignment when pointers were cast.
    unsafe { to.write_unaligned(value) };
    Ok(())
}

/// Element `i` of an array of the host.
///
/// # Safety
/// The array has more than `i` elements.
pub(crate) unsafe fn element<T: Copy>(array: *const T, i: usize) -> T {
    // SAFETY: the caller's contract; alignment is not asked for.
    unsafe { array.add(i).read_unaligned() }
}
