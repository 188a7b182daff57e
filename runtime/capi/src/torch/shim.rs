//! PyTorch's stable C ABI, looked up in the process that has PyTorch loaded.
//!
//! Source: `torch/csrc/inductor/aoti_torch/c/shim.h` and `torch/csrc/stable/c/shim.h` of PyTorch 2.15; all of it is there from 2.10
//! on. PyTorch keeps these functions as they are for two years.

use moec_ir::DType;
use moec_ir::diag::Diagnostic;
use std::ffi::{CStr, c_char, c_void};
use std::sync::OnceLock;

/// A pointer to PyTorch's object: a tensor, list, string or library.
pub type Handle = *mut c_void;
/// An argument or result of an operator: an integer, or a [`Handle`] that its receiver owns.
pub type Value = u64;
/// An operator's implementation: reads its arguments off the stack, frees them, and leaves its results there.
pub type Kernel = unsafe extern "C-unwind" fn(*mut Value, u64, u64);

/// The PyTorch that this is written for: newer ones go on taking values as it does.
const VERSION: u64 = (2 << 56) | (10 << 48);

macro_rules! functions {
    ($($field:ident = $name:literal: ($($arg:ty),*) $(-> $result:ty)?;)*) => {
        /// The functions that are used.
        pub struct Shim { $($field: unsafe extern "C-unwind" fn($($arg),*) $(-> $result)?,)* dtypes: [(DType, i32); 7], what: Option<What> }

        impl Shim {
            fn find(library: Handle) -> Option<Shim> {
                $(
                    // SAFETY: looks a name up in a library that is loaded.
                    let found = unsafe { libc::dlsym(library, $name.as_ptr()) };
                    if found.is_null() {
                        return None;
                    }
                    // SAFETY: PyTorch's function of this name has this type.
                    let $field = unsafe { std::mem::transmute::<*mut c_void, unsafe extern "C-unwind" fn($($arg),*) $(-> $result)?>(found) };
                )*
                Some(Shim { $($field,)* dtypes: dtypes(library)?, what: what(library) })
            }
        }
    };
}

functions! {
    library_impl = c"aoti_torch_library_init_impl": (*const c_char, *const c_char, *const c_char, u32, *mut Handle) -> i32;
    add_kernel = c"torch_library_impl": (Handle, *const c_char, Kernel, u64) -> i32;
    call = c"torch_call_dispatcher": (*const c_char, *const c_char, *mut Value, u64) -> i32;
    grad_enabled = c"aoti_torch_grad_mode_is_enabled": () -> bool;
    check = c"aoti_torch_check": (bool, *const c_char, *const c_char, u32, *const c_char);
    new_reference = c"aoti_torch_new_tensor_handle": (Handle, *mut Handle) -> i32;
    delete_tensor = c"aoti_torch_delete_tensor_object": (Handle) -> i32;
    data = c"torch_get_const_data_ptr": (Handle, *mut *const c_void) -> i32;
    ndim = c"aoti_torch_get_dim": (Handle, *mut i64) -> i32;
    sizes = c"aoti_torch_get_sizes": (Handle, *mut *mut i64) -> i32;
    strides = c"aoti_torch_get_strides": (Handle, *mut *mut i64) -> i32;
    dtype = c"aoti_torch_get_dtype": (Handle, *mut i32) -> i32;
    is_contiguous = c"aoti_torch_is_contiguous": (Handle, *mut bool) -> i32;
    empty = c"aoti_torch_empty_strided": (i64, *const i64, *const i64, i32, i32, i32, *mut Handle) -> i32;
    new_list = c"torch_new_list_reserve_size": (usize, *mut Handle) -> i32;
    list_size = c"torch_list_size": (Handle, *mut usize) -> i32;
    list_item = c"torch_list_get_item": (Handle, usize, *mut Value) -> i32;
    list_push = c"torch_list_push_back": (Handle, Value) -> i32;
    delete_list = c"torch_delete_list": (Handle) -> i32;
    new_string = c"torch_new_string_handle": (*const c_char, usize, *mut Handle) -> i32;
    string_length = c"torch_string_length": (Handle, *mut usize) -> i32;
    string_data = c"torch_string_c_str": (Handle, *mut *const c_char) -> i32;
    delete_string = c"torch_delete_string": (Handle) -> i32;
}

/// What a call that failed came to: the last exception of this thread.
type What = unsafe extern "C" fn() -> *const c_char;

/// It is there from PyTorch 2.13 on.
fn what(library: Handle) -> Option<What> {
    // SAFETY: looks a name up in a library that is loaded.
    let found = unsafe { libc::dlsym(library, c"torch_exception_get_what_without_backtrace".as_ptr()) };
    // SAFETY: PyTorch's function of this name has this type; null becomes `None`.
    unsafe { std::mem::transmute::<*mut c_void, Option<What>>(found) }
}

/// PyTorch's numbers of moec's types.
fn dtypes(library: Handle) -> Option<[(DType, i32); 7]> {
    let number = |name: &CStr| {
        // SAFETY: looks a name up in a library that is loaded.
        let found = unsafe { libc::dlsym(library, name.as_ptr()) };
        // SAFETY: the functions of these names take nothing and give an `int32_t`; null becomes `None`.
        unsafe { std::mem::transmute::<*mut c_void, Option<unsafe extern "C" fn() -> i32>>(found).map(|f| f()) }
    };
    Some([
        (DType::F64, number(c"aoti_torch_dtype_float64")?),
        (DType::F32, number(c"aoti_torch_dtype_float32")?),
        (DType::F16, number(c"aoti_torch_dtype_float16")?),
        (DType::BF16, number(c"aoti_torch_dtype_bfloat16")?),
        (DType::I32, number(c"aoti_torch_dtype_int32")?),
        (DType::I64, number(c"aoti_torch_dtype_int64")?),
        (DType::U8, number(c"aoti_torch_dtype_uint8")?),
    ])
}

static SHIM: OnceLock<Option<Shim>> = OnceLock::new();

/// The functions of the PyTorch in this process, if it has one that is new enough.
pub fn find() -> Option<&'static Shim> {
    SHIM.get_or_init(|| {
        // SAFETY: opens nothing: gives a handle of the library if it is loaded.
        let library = unsafe { libc::dlopen(c"libtorch_cpu.so".as_ptr(), libc::RTLD_LAZY | libc::RTLD_NOLOAD) };
        if library.is_null() { None } else { Shim::find(library) }
    })
    .as_ref()
}

/// A call of PyTorch that it could not do; it has written to its log why.
fn failed(what: &str) -> Diagnostic {
    Diagnostic::input("tensor-invalid", format!("PyTorch cannot {what}"))
}

/// An error as text has it: the message in the first line, and help in the others.
pub fn coded(code: &str, text: &str) -> Diagnostic {
    let (message, help) = text.split_once('\n').unwrap_or((text, ""));
    let mut error = Diagnostic::input("internal-error", message);
    error.code = code.into();
    if help.is_empty() { error } else { error.help(help) }
}

/// The error of moec that an exception's text is. Where Python has come between, it has put the exception's class before the text, and
/// its own lines behind.
pub fn moecs_own(text: &str) -> Option<Diagnostic> {
    let own = text.split_once("\n\nAt:\n").map_or(text, |(own, _)| own);
    let own = match own.split_once(": [") {
        Some((class, _)) if class.chars().all(|c| c.is_alphanumeric() || "._".contains(c)) => &own[class.len() + 2..],
        _ => own,
    };
    let (code, rest) = own.strip_prefix('[')?.split_once("] ")?;
    Some(coded(code, rest))
}

/// A tensor of PyTorch that is let go with this.
pub struct Tensor {
    pub handle: Handle,
    shim: &'static Shim,
}

impl Drop for Tensor {
    fn drop(&mut self) {
        // SAFETY: the handle is owned, and used no more.
        unsafe { (self.shim.delete_tensor)(self.handle) };
    }
}

impl Tensor {
    /// For the operator's caller, who lets it go.
    pub fn into_value(self) -> Value {
        std::mem::ManuallyDrop::new(self).handle as Value
    }

    /// The tensor in DLPack's terms; valid as long as this.
    pub fn view(&self) -> Result<crate::moec_tensor, Diagnostic> {
        let (mut data, mut ndim, mut number) = (std::ptr::null(), 0, 0);
        let (mut shape, mut strides) = (std::ptr::null_mut(), std::ptr::null_mut());
        let (s, t) = (self.shim, self.handle);
        // SAFETY: a living tensor, and places to write to.
        let failures = unsafe {
            (s.data)(t, &mut data)
                | (s.ndim)(t, &mut ndim)
                | (s.dtype)(t, &mut number)
                | (s.sizes)(t, &mut shape)
                | (s.strides)(t, &mut strides)
        };
        if failures != 0 {
            return Err(failed("tell where a tensor lies"));
        }
        let dtype = self.shim.dtypes.iter().find(|d| d.1 == number).map(|d| crate::tensor::dtype(d.0));
        let dtype = dtype.ok_or_else(|| {
            Diagnostic::input(
                "input-type-mismatch",
                format!("a tensor has elements of PyTorch's type {number}, which moec does not have"),
            )
        })?;
        // These kernels are registered for the CPU, so that is where their tensors lie.
        let device = crate::moec_device { device_type: 1, device_id: 0 };
        Ok(crate::moec_tensor {
            data: data.cast_mut(),
            device,
            ndim: ndim as i32,
            dtype,
            shape,
            strides,
            byte_offset: 0,
        })
    }

    /// Whether rows are dense.
    pub fn is_contiguous(&self) -> bool {
        let mut is = false;
        // SAFETY: a living tensor, and a place to write to.
        unsafe { (self.shim.is_contiguous)(self.handle, &mut is) == 0 && is }
    }

    /// The tensor with dense rows; a copy.
    pub fn contiguous(self) -> Result<Tensor, Diagnostic> {
        let shim = self.shim;
        // The second argument: `torch.contiguous_format`.
        shim.call(c"aten::contiguous", c"", &mut [self.into_value(), 0])
    }

    /// The elements in another type; a copy.
    pub fn to(self, dtype: DType) -> Result<Tensor, Diagnostic> {
        let shim = self.shim;
        // Neither asynchronous nor a copy for its own sake, and no memory format.
        shim.call(c"aten::to", c"dtype", &mut [self.into_value(), shim.number(dtype) as Value, 0, 0, 0])
    }

    /// What tells that somebody has written to it.
    pub fn version(&self) -> Result<i64, Diagnostic> {
        let mut stack = [self.again()?.into_value()];
        self.shim.call_any(c"aten::_version", c"", &mut stack)?;
        Ok(stack[0] as i64)
    }

    /// Another reference to it.
    pub fn again(&self) -> Result<Tensor, Diagnostic> {
        let mut handle = std::ptr::null_mut();
        // SAFETY: a living tensor, and a place to write to.
        match unsafe { (self.shim.new_reference)(self.handle, &mut handle) } {
            0 => Ok(Tensor { handle, shim: self.shim }),
            _ => Err(failed("refer to a tensor")),
        }
    }
}

impl Shim {
    fn number(&self, dtype: DType) -> i32 {
        // All of moec's types are in the list.
        self.dtypes.iter().find(|d| d.0 == dtype).map_or(-1, |d| d.1)
    }

    /// Registers kernels of operators in the namespace `moec` for a dispatch key; for as long as the process lives.
    pub fn register(&self, key: &CStr, kernels: &[(&CStr, Kernel)]) -> Result<(), Diagnostic> {
        let mut library = std::ptr::null_mut();
        // SAFETY: strings that end with a zero, and a place to write to.
        let made = unsafe { (self.library_impl)(c"moec".as_ptr(), key.as_ptr(), c"moec".as_ptr(), 1, &mut library) };
        if made != 0 {
            return Err(failed("take operators of moec"));
        }
        for (name, kernel) in kernels {
            // SAFETY: a living library, and a function that keeps to the convention of `Kernel`.
            if unsafe { (self.add_kernel)(library, name.as_ptr(), *kernel, VERSION) } != 0 {
                return Err(failed("take an operator of moec"));
            }
        }
        Ok(())
    }

    /// Calls an operator; its results are on the stack then.
    pub fn call_any(&self, name: &CStr, overload: &CStr, stack: &mut [Value]) -> Result<(), Diagnostic> {
        // SAFETY: the stack has the operator's arguments, which it takes; nothing unwinds out of it.
        match unsafe { (self.call)(name.as_ptr(), overload.as_ptr(), stack.as_mut_ptr(), VERSION) } {
            0 => Ok(()),
            _ => Err(self.failed_call(name)),
        }
    }

    /// The error of an operator. One of moec's own comes out as it was.
    fn failed_call(&self, name: &CStr) -> Diagnostic {
        // SAFETY: takes nothing, and gives null or text that stays until this thread's next exception.
        let text = self.what.map_or(std::ptr::null(), |what| unsafe { what() });
        if text.is_null() {
            return failed(&format!("run {}", name.to_string_lossy()));
        }
        // SAFETY: it ends with a zero.
        let text = unsafe { CStr::from_ptr(text) }.to_string_lossy();
        moecs_own(&text).unwrap_or_else(|| failed(&format!("run {}: {text}", name.to_string_lossy())))
    }

    fn call(&'static self, name: &CStr, overload: &CStr, stack: &mut [Value]) -> Result<Tensor, Diagnostic> {
        self.call_any(name, overload, stack)?;
        Ok(self.tensor(stack[0]))
    }

    /// A tensor that was handed over.
    pub fn tensor(&'static self, value: Value) -> Tensor {
        Tensor { handle: value as Handle, shim: self }
    }

    /// The tensors of a list that was handed over; the list is let go.
    pub fn tensors(&'static self, list: Value) -> Result<Vec<Tensor>, Diagnostic> {
        let list = list as Handle;
        let mut size = 0;
        // SAFETY: a living list, and a place to write to.
        let mut failures = unsafe { (self.list_size)(list, &mut size) };
        let mut tensors = Vec::with_capacity(size);
        for i in 0..size {
            let mut item = 0;
            // SAFETY: as above; `i` is below the size.
            failures |= unsafe { (self.list_item)(list, i, &mut item) };
            if failures == 0 {
                tensors.push(self.tensor(item));
            }
        }
        // SAFETY: the list is owned, and used no more.
        unsafe { (self.delete_list)(list) };
        if failures == 0 { Ok(tensors) } else { Err(failed("read a list of tensors")) }
    }

    /// A list for the operator's caller.
    pub fn list(&self, tensors: Vec<Tensor>) -> Result<Value, Diagnostic> {
        let mut list = std::ptr::null_mut();
        // SAFETY: a place to write to.
        let mut failures = unsafe { (self.new_list)(tensors.len(), &mut list) };
        for tensor in tensors {
            if failures == 0 {
                // SAFETY: a living list, which takes the tensor.
                failures = unsafe { (self.list_push)(list, tensor.into_value()) };
            }
        }
        if failures == 0 { Ok(list as Value) } else { Err(failed("make a list of tensors")) }
    }

    /// A string that was handed over; it is let go.
    pub fn text(&self, string: Value) -> String {
        let string = string as Handle;
        let (mut data, mut length) = (std::ptr::null(), 0);
        // SAFETY: a living string, and places to write to.
        let failures = unsafe { (self.string_data)(string, &mut data) | (self.string_length)(string, &mut length) };
        let bytes = match failures {
            // SAFETY: the string has so many bytes.
            0 => unsafe { std::slice::from_raw_parts(data.cast::<u8>(), length) },
            _ => &[],
        };
        let text = String::from_utf8_lossy(bytes).into_owned();
        // SAFETY: the string is owned, and used no more.
        unsafe { (self.delete_string)(string) };
        text
    }

    /// A string for an operator.
    pub fn string(&self, text: &str) -> Result<Value, Diagnostic> {
        let mut string = std::ptr::null_mut();
        // SAFETY: so many bytes, and a place to write to.
        match unsafe { (self.new_string)(text.as_ptr().cast(), text.len(), &mut string) } {
            0 => Ok(string as Value),
            _ => Err(failed("make a string")),
        }
    }

    /// A new dense tensor on the CPU.
    pub fn empty(&'static self, shape: &[i64], dtype: DType) -> Result<Tensor, Diagnostic> {
        let mut strides = [1; crate::tensor::MAX_AXES];
        for i in (1..shape.len()).rev() {
            strides[i - 1] = strides[i] * shape[i].max(1);
        }
        let mut handle = std::ptr::null_mut();
        // SAFETY: as many lengths and strides as axes; device 0 is the CPU, which has no number.
        let made = unsafe {
            (self.empty)(shape.len() as i64, shape.as_ptr(), strides.as_ptr(), self.number(dtype), 0, -1, &mut handle)
        };
        if made == 0 { Ok(Tensor { handle, shim: self }) } else { Err(failed("give memory for a result")) }
    }

    /// Whether a backward pass may come.
    pub fn grad_enabled(&self) -> bool {
        // SAFETY: takes nothing.
        unsafe { (self.grad_enabled)() }
    }

    /// Raises a `RuntimeError` in Python: the C++ exception of PyTorch unwinds through the caller, who owns nothing.
    pub fn raise(&self, text: &CStr) -> ! {
        // SAFETY: strings that end with a zero. It unwinds, which the type says.
        unsafe { (self.check)(false, c"moec".as_ptr(), c"moec".as_ptr(), 0, text.as_ptr()) };
        // It has unwound.
        std::process::abort()
    }
}
