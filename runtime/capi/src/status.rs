//! What a call came to: the status it returns, and the error that this thread can ask for afterwards.

use moec_ir::diag::{Diagnostic, Fault};
use std::cell::RefCell;
use std::ffi::{CString, c_char};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// What a call came to.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum moec_status {
    /// Done.
    MOEC_OK = 0,
    /// An argument, a bundle or a checkpoint is wrong.
    MOEC_ERROR_INPUT = 1,
    /// This machine lacks something: memory, a driver, a device.
    MOEC_ERROR_MACHINE = 2,
    /// A bug of moec.
    MOEC_ERROR_INTERNAL = 70,
}

/// The last error of a thread, as C reads it.
#[derive(Default)]
struct LastError {
    code: CString,
    message: CString,
    help: CString,
}

thread_local! {
    static LAST: RefCell<LastError> = RefCell::default();
}

/// Text that C can read: it ends where a zero byte would.
pub(crate) fn c_string(text: &str) -> CString {
    CString::new(text.split('\0').next().unwrap_or_default()).unwrap_or_default()
}

/// Runs the body of an exported function: nothing unwinds out of it, and its error is kept for this thread.
pub fn guard(body: impl FnOnce() -> Result<(), Diagnostic>) -> moec_status {
    let panicked = |_| Err(Diagnostic::internal("internal-error", "moec panicked: this is a bug of moec"));
    let Err(error) = catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(panicked) else {
        return moec_status::MOEC_OK;
    };
    let help: Vec<&str> = error.notes.iter().map(String::as_str).chain(error.help.as_deref()).collect();
    let last =
        LastError { code: c_string(&error.code), message: c_string(&error.message), help: c_string(&help.join("\n")) };
    // A thread that is being torn down has nobody left to ask.
    let _ = LAST.try_with(|slot| slot.replace(last));
    match error.fault {
        Fault::Input => moec_status::MOEC_ERROR_INPUT,
        Fault::Machine => moec_status::MOEC_ERROR_MACHINE,
        Fault::Internal => moec_status::MOEC_ERROR_INTERNAL,
    }
}

fn last(part: impl Fn(&LastError) -> &CString) -> *const c_char {
    LAST.try_with(|slot| part(&slot.borrow()).as_ptr()).unwrap_or(c"".as_ptr())
}

/// The error of this thread's last call that failed, for [`crate::tvm`].
pub(crate) fn last_error_text() -> String {
    let text = |s: &CString| s.to_string_lossy().into_owned();
    let made = LAST.try_with(|slot| {
        let e = slot.borrow();
        let help = if e.help.is_empty() { String::new() } else { format!("\n{}", text(&e.help)) };
        format!("[{}] {}{help}", text(&e.code), text(&e.message))
    });
    made.unwrap_or_default()
}

/// The code of this thread's last call that failed, such as `tensor-shape-mismatch`: `moec explain CODE` prints a page on
/// it. Empty when none has failed. The text is valid until another call fails on this thread.
#[unsafe(no_mangle)]
pub extern "C" fn moec_last_error_code() -> *const c_char {
    last(|e| &e.code)
}

/// What was wrong, in one sentence with the caller's names: as [`moec_last_error_code`].
#[unsafe(no_mangle)]
pub extern "C" fn moec_last_error_message() -> *const c_char {
    last(|e| &e.message)
}

/// Why it is wrong and what to do, a line each; may be empty: as [`moec_last_error_code`].
#[unsafe(no_mangle)]
pub extern "C" fn moec_last_error_help() -> *const c_char {
    last(|e| &e.help)
}

/// Version of this interface: raised when a program that was built with an older header would no longer work.
pub const MOEC_ABI_VERSION: u32 = 1;

/// The `MOEC_ABI_VERSION` of the library; a host that was built with another one does not call it.
#[unsafe(no_mangle)]
pub extern "C" fn moec_abi_version() -> u32 {
    MOEC_ABI_VERSION
}

/// The version of moec, such as `0.1.0`.
#[unsafe(no_mangle)]
pub extern "C" fn moec_version() -> *const c_char {
    concat!(env!("CARGO_PKG_VERSION"), "\0").as_ptr().cast()
}
