//! The same functions for hosts with Apache TVM's FFI: `tvm_ffi.load_module("libmoec_c.so")` finds them by their names.
//!
//! A layer is an integer. Errors are raised as Python exceptions with moec's code, message and help.
//!
//! | function | arguments | gives |
//! |---|---|---|
//! | `moec_open` | path, device, max_tokens, n_threads | a layer |
//! | `moec_set_param` | layer, name, tensor, hold | |
//! | `moec_set_codes` | layer, name, codes, scales, global scales or `None`, hold | |
//! | `moec_load_checkpoint` | layer, path, cache or `""` | |
//! | `moec_finish` | layer | |
//! | `moec_workspace_bytes` | layer, n_tokens | bytes |
//! | `moec_launch` | layer, inputs…, outputs…, workspace | |
//! | `moec_free` | layer | |
//!
//! `moec_launch` runs on the stream that the host has set for the device. Nothing here is linked with `libtvm_ffi`: a host
//! that calls these functions has it in its process.
//!
//! Source: `tvm/ffi/c_api.h` of apache-tvm-ffi 0.1: `TVMFFISafeCallType`, `TVMFFIAny`, `TVMFFITypeIndex`.

use crate::bundle;
use crate::layer;
use crate::status::{guard, last_error_text, moec_status};
use crate::tensor::moec_tensor;
use crate::weights::hold;
use moec_ir::diag::Diagnostic;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::sync::OnceLock;

/// An argument or result: 16 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct TVMFFIAny {
    /// What it is.
    pub type_index: i32,
    /// Bytes of a small string.
    pub small_len: u32,
    /// An integer, the bits of a float, a pointer, or up to seven characters.
    pub value: u64,
}

const NONE: i32 = 0;
const INT: i32 = 1;
const BOOL: i32 = 2;
const DL_TENSOR_PTR: i32 = 7;
const RAW_STR: i32 = 8;
const SMALL_STR: i32 = 11;
const STR: i32 = 65;
const TENSOR: i32 = 70;
/// A heap object begins with a reference count, its type and its deleter.
const OBJECT_HEADER: usize = 24;

/// The arguments of a call, read one after another.
struct Args<'a> {
    list: &'a [TVMFFIAny],
    next: usize,
}

impl<'a> Args<'a> {
    fn any(&mut self, what: &str) -> Result<&'a TVMFFIAny, Diagnostic> {
        let found = self.list.get(self.next);
        self.next += 1;
        found.ok_or_else(|| {
            Diagnostic::input(
                "argument-invalid",
                format!("`{what}` is missing: {} arguments were given", self.list.len()),
            )
        })
    }

    fn int(&mut self, what: &str) -> Result<i64, Diagnostic> {
        let any = self.any(what)?;
        match any.type_index {
            INT | BOOL => Ok(any.value as i64),
            other => Err(wrong(what, "an integer", other)),
        }
    }

    fn count(&mut self, what: &str) -> Result<u64, Diagnostic> {
        let n = self.int(what)?;
        u64::try_from(n).map_err(|_| Diagnostic::input("argument-invalid", format!("`{what}` is {n}")))
    }

    fn layer(&mut self) -> Result<usize, Diagnostic> {
        // What is no number of a handle is told as such.
        Ok(self.int("layer")? as usize)
    }

    /// # Safety
    /// The argument is what its type says, and lives as long as the call.
    unsafe fn text(&mut self, what: &str) -> Result<&'a str, Diagnostic> {
        let any = self.any(what)?;
        let bytes = match any.type_index {
            SMALL_STR => {
                let start = (&raw const any.value).cast::<u8>();
                // SAFETY: a small string lies in the value itself: at most seven bytes and a zero.
                unsafe { std::slice::from_raw_parts(start, (any.small_len as usize).min(7)) }
            }
            // SAFETY: a pointer to a C string.
            RAW_STR if any.value != 0 => unsafe { CStr::from_ptr(any.value as *const c_char) }.to_bytes(),
            STR if any.value != 0 => {
                let array = (any.value as usize + OBJECT_HEADER) as *const (*const u8, usize);
                // SAFETY: a string object holds pointer and length behind its header.
                unsafe {
                    let (start, length) = array.read();
                    std::slice::from_raw_parts(start, length)
                }
            }
            other => return Err(wrong(what, "a string", other)),
        };
        std::str::from_utf8(bytes)
            .map_err(|e| Diagnostic::input("argument-invalid", format!("`{what}` is not UTF-8: {e}")))
    }
}

/// The tensor of an argument.
fn tensor(any: &TVMFFIAny, what: &str) -> Result<*const moec_tensor, Diagnostic> {
    match any.type_index {
        DL_TENSOR_PTR => Ok(any.value as *const moec_tensor),
        TENSOR if any.value != 0 => Ok((any.value as usize + OBJECT_HEADER) as *const moec_tensor),
        other => Err(wrong(what, "a tensor", other)),
    }
}

fn wrong(what: &str, expected: &str, type_index: i32) -> Diagnostic {
    let found = match type_index {
        NONE => "None".to_string(),
        INT => "an integer".to_string(),
        3 => "a float".to_string(),
        RAW_STR | SMALL_STR | STR => "a string".to_string(),
        DL_TENSOR_PTR | TENSOR => "a tensor".to_string(),
        other => format!("a value of type {other}"),
    };
    Diagnostic::input("argument-invalid", format!("`{what}` should be {expected}; it is {found}"))
}

/// A function of libtvm_ffi, which the host has in its process; null when there is none.
fn host(name: &CStr) -> *mut c_void {
    // SAFETY: looks a name up among the libraries that are loaded globally.
    unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) }
}

/// Tells the host of the error of this thread's last call.
fn raise(status: moec_status) {
    type Raise = unsafe extern "C" fn(*const c_char, *const c_char);
    static RAISE: OnceLock<Option<Raise>> = OnceLock::new();
    let raise = RAISE.get_or_init(|| {
        let found = host(c"TVMFFIErrorSetRaisedFromCStr");
        // SAFETY: libtvm_ffi's function of this name has this type; null becomes `None`.
        unsafe { std::mem::transmute::<*mut c_void, Option<Raise>>(found) }
    });
    let kind = if status == moec_status::MOEC_ERROR_INPUT { c"ValueError" } else { c"RuntimeError" };
    if let Some(raise) = raise {
        let text = CString::new(last_error_text().replace('\0', " ")).unwrap_or_default();
        // SAFETY: two strings that end with a zero; the function copies them.
        unsafe { raise(kind.as_ptr(), text.as_ptr()) };
    }
}

/// The stream that the host works on.
fn stream(device_type: i32, device_id: i32) -> *mut c_void {
    type GetStream = unsafe extern "C" fn(i32, i32) -> *mut c_void;
    static GET: OnceLock<Option<GetStream>> = OnceLock::new();
    let get = GET.get_or_init(|| {
        let found = host(c"TVMFFIEnvGetStream");
        // SAFETY: libtvm_ffi's function of this name has this type; null becomes `None`.
        unsafe { std::mem::transmute::<*mut c_void, Option<GetStream>>(found) }
    });
    // SAFETY: any numbers will do.
    get.map_or(std::ptr::null_mut(), |get| unsafe { get(device_type, device_id) })
}

/// # Safety
/// `args` has `n` arguments that live as long as the call; `result` is null or valid for a write.
unsafe fn call(
    args: *const TVMFFIAny,
    n: i32,
    result: *mut TVMFFIAny,
    most: usize,
    body: impl FnOnce(&mut Args<'_>) -> Result<Option<i64>, Diagnostic>,
) -> c_int {
    let status = guard(|| {
        let n = usize::try_from(n).unwrap_or(0);
        // SAFETY: the caller's contract.
        let list = if args.is_null() { &[][..] } else { unsafe { std::slice::from_raw_parts(args, n) } };
        // Before anything is done: a layer is not freed by a call that fails.
        if list.len() > most {
            let message = format!("{} arguments were given, {most} are taken", list.len());
            return Err(Diagnostic::input("argument-invalid", message));
        }
        let value = body(&mut Args { list, next: 0 })?;
        if !result.is_null() {
            let any = match value {
                Some(n) => TVMFFIAny { type_index: INT, small_len: 0, value: n as u64 },
                None => TVMFFIAny { type_index: NONE, small_len: 0, value: 0 },
            };
            // SAFETY: the caller's contract.
            unsafe { result.write(any) };
        }
        Ok(())
    });
    if status == moec_status::MOEC_OK {
        return 0;
    }
    raise(status);
    -1
}

macro_rules! export {
    ($(#[$doc:meta])* $name:ident, $most:expr, $args:ident => $body:expr) => {
        $(#[$doc])*
        ///
        /// # Safety
        /// The calling convention of TVM's FFI: `args` has `n` arguments that live as long as the call; `result` is null
        /// or valid for a write.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name(
            _: *mut c_void,
            args: *const TVMFFIAny,
            n: i32,
            result: *mut TVMFFIAny,
        ) -> c_int {
            let body = |$args: &mut Args<'_>| -> Result<Option<i64>, Diagnostic> { $body };
            // SAFETY: the caller's contract.
            unsafe { call(args, n, result, $most, body) }
        }
    };
}

export!(
    /// `(path, device, max_tokens, n_threads) -> layer`
    __tvm_ffi_moec_open, 4, args => {
        // SAFETY: the caller's contract.
        let (path, device) = unsafe { (args.text("path")?, args.text("device")?) };
        let (max_tokens, n_threads) = (args.count("max_tokens")?, args.count("n_threads")?);
        let threads = u32::try_from(n_threads).unwrap_or(u32::MAX);
        let opened = bundle::open(path)?;
        let made = layer::create(&bundle::get(opened as *const _)?.bundle, device, max_tokens, threads, 0);
        bundle::free(opened)?;
        Ok(Some(made? as i64))
    }
);

export!(
    /// `(layer, name, tensor, hold)`; `hold` is a [`crate::moec_hold`].
    __tvm_ffi_moec_set_param, 4, args => {
        let layer = layer::get(args.layer()?)?;
        // SAFETY: the caller's contract.
        let name = unsafe { args.text("name") }?;
        let tensor = tensor(args.any("tensor")?, "tensor")?;
        let hold = hold(i32::try_from(args.int("hold")?).unwrap_or(-1))?;
        // SAFETY: the caller's contract.
        unsafe { layer.set_param(name, tensor, hold) }?;
        Ok(None)
    }
);

export!(
    /// `(layer, name, codes, scales, globals, hold)`; `globals` may be `None`.
    __tvm_ffi_moec_set_codes, 6, args => {
        let layer = layer::get(args.layer()?)?;
        // SAFETY: the caller's contract.
        let name = unsafe { args.text("name") }?;
        let codes = tensor(args.any("codes")?, "codes")?;
        let scales = tensor(args.any("scales")?, "scales")?;
        let globals = match args.any("globals")? {
            any if any.type_index == NONE => std::ptr::null(),
            any => tensor(any, "globals")?,
        };
        let hold = hold(i32::try_from(args.int("hold")?).unwrap_or(-1))?;
        // SAFETY: the caller's contract.
        unsafe { layer.set_codes(name, [codes, scales, globals], hold) }?;
        Ok(None)
    }
);

export!(
    /// `(layer, path, cache)`; an empty `cache` is none.
    __tvm_ffi_moec_load_checkpoint, 3, args => {
        let layer = layer::get(args.layer()?)?;
        // SAFETY: the caller's contract.
        let (path, cache) = unsafe { (args.text("path")?, args.text("cache")?) };
        layer.load(path, Some(cache).filter(|c| !c.is_empty()), &|_, _, _| {})?;
        Ok(None)
    }
);

export!(
    /// `(layer)`
    __tvm_ffi_moec_finish, 1, args => layer::get(args.layer()?)?.finish().map(|()| None)
);

export!(
    /// `(layer, n_tokens) -> bytes`
    __tvm_ffi_moec_workspace_bytes, 2, args => {
        let layer = layer::get(args.layer()?)?;
        Ok(Some(layer.workspace_bytes(args.count("n_tokens")?)? as i64))
    }
);

export!(
    /// `(layer, inputs…, outputs…, workspace)`; the workspace is a dense tensor of bytes.
    __tvm_ffi_moec_launch, usize::MAX, args => {
        let layer = layer::get(args.layer()?)?;
        let (n_inputs, n_outputs) = layer.n_tensors();
        let rest = &args.list[1..];
        if rest.len() != n_inputs + n_outputs + 1 {
            return Err(Diagnostic::input(
                "input-missing",
                format!("the layer takes {n_inputs} inputs, {n_outputs} outputs and a workspace; {} tensors were given", rest.len()),
            ));
        }
        for any in rest {
            tensor(any, "tensor")?;
        }
        let workspace = tensor(&rest[n_inputs + n_outputs], "workspace")?;
        if workspace.is_null() {
            return Err(crate::memory::null("workspace"));
        }
        // SAFETY: the caller's contract.
        let device = unsafe { workspace.read_unaligned() }.device;
        // SAFETY: as above.
        let given = unsafe { crate::tensor::Given::read(workspace, "workspace") }?;
        given.check_place("workspace", 1)?;
        let bytes = given.axes().iter().map(|a| a.0).product::<u64>() * given.dtype.bytes() as u64;
        let at = |is_output: bool, i: usize| {
            let any = &rest[if is_output { n_inputs + i } else { i }];
            // Each was looked at above.
            tensor(any, "tensor").unwrap_or(std::ptr::null())
        };
        let stream = stream(device.device_type, device.device_id);
        // SAFETY: the caller's contract.
        unsafe { layer.launch((n_inputs, n_outputs), at, (given.address as *mut c_void, bytes), stream) }?;
        Ok(None)
    }
);

export!(
    /// `(layer)`
    __tvm_ffi_moec_free, 1, args => layer::free(args.layer()?).map(|()| None)
);
