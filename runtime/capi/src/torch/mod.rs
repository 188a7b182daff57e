//! Layers as operators of PyTorch, without Python between PyTorch's dispatcher and the kernels.
//!
//! The Python package defines the operators, with what PyTorch asks for when it traces; this gives them their CPU kernels and the
//! choice that autograd takes. Nothing is linked with PyTorch: its stable C ABI is looked up when it is in the process.
//!
//! | operator | CPU | autograd |
//! |---|---|---|
//! | `layer(Tensor[] inputs, int layer) -> Tensor[]` | runs a layer by its handle | chooses one of the two |
//! | `experts(Tensor x, Tensor ids, Tensor weights, Tensor[] params, str form) -> Tensor` | finds the layer for `params`, runs it | chooses one of the two |
//! | `…_forward` | the same | PyTorch's own |
//! | `…_tracked` | the same | Python: its backward says that there is none |
//!
//! Errors are raised as `RuntimeError`, with moec's code, message and help.

mod experts;
mod run;
mod shim;

use crate::status::{guard, last_error_text, moec_status};
use moec_ir::diag::Diagnostic;
use shim::{Kernel, Shim, Value};
use std::ffi::{CStr, CString, c_int};

/// Registers the kernels with the PyTorch of this process. 1: done; 0: it has none, or one before 2.10, and Python does the
/// work; -1: an error.
///
/// cbindgen:ignore
#[unsafe(no_mangle)]
pub extern "C" fn moec_torch_register() -> c_int {
    let Some(shim) = shim::find() else {
        return 0;
    };
    let cpu: [(&CStr, Kernel); 6] = [
        (c"layer", layer),
        (c"layer_forward", layer),
        (c"layer_tracked", layer),
        (c"experts", experts),
        (c"experts_forward", experts),
        (c"experts_tracked", experts),
    ];
    let autograd: [(&CStr, Kernel); 2] = [(c"layer", choose_layer), (c"experts", choose_experts)];
    match guard(|| shim.register(c"CPU", &cpu).and_then(|()| shim.register(c"Autograd", &autograd))) {
        moec_status::MOEC_OK => 1,
        _ => -1,
    }
}

/// Forgets what was prepared as this layer.
///
/// cbindgen:ignore
#[unsafe(no_mangle)]
pub extern "C" fn moec_torch_forget(layer: usize) {
    guard(|| {
        experts::forget(layer);
        Ok(())
    });
}

/// Runs a kernel's body, and raises what it came to once nothing is owned here any more.
fn kernel(body: impl FnOnce(&'static Shim) -> Result<(), Diagnostic>) {
    // It is there: it has called this.
    let Some(shim) = shim::find() else { return };
    if guard(|| body(shim)) == moec_status::MOEC_OK {
        return;
    }
    thread_local! {
        /// The exception copies it; nobody is left to free it.
        static TEXT: std::cell::RefCell<CString> = std::cell::RefCell::default();
    }
    let text = CString::new(last_error_text().replace('\0', " ")).unwrap_or_default();
    let text = TEXT.with(|slot| {
        slot.replace(text);
        slot.borrow().as_ptr()
    });
    // SAFETY: the text stays in its slot until the next error of this thread.
    shim.raise(unsafe { CStr::from_ptr(text) })
}

unsafe extern "C-unwind" fn layer(stack: *mut Value, _: u64, _: u64) {
    kernel(|shim| {
        // SAFETY: the convention of `Kernel`: the stack has the operator's two arguments, and room for its result.
        let stack = unsafe { std::slice::from_raw_parts_mut(stack, 2) };
        let inputs = shim.tensors(stack[0])?;
        let found = crate::layer::get(stack[1] as usize)?;
        stack[0] = shim.list(run::run(shim, &found, inputs)?)?;
        Ok(())
    });
}

unsafe extern "C-unwind" fn experts(stack: *mut Value, _: u64, _: u64) {
    kernel(|shim| {
        // SAFETY: as above, five arguments.
        let stack = unsafe { std::slice::from_raw_parts_mut(stack, 5) };
        stack[0] = experts::run(shim, stack)?;
        Ok(())
    });
}

/// Gives the call to the operator that autograd looks at, or the one that it does not.
fn choose(stack: *mut Value, n: usize, tracked: &CStr, forward: &CStr) {
    kernel(|shim| {
        // SAFETY: the convention of `Kernel`; all arguments go on to an operator of the same schema.
        let stack = unsafe { std::slice::from_raw_parts_mut(stack, n) };
        shim.call_any(if shim.grad_enabled() { tracked } else { forward }, c"", stack)
    });
}

unsafe extern "C-unwind" fn choose_layer(stack: *mut Value, _: u64, _: u64) {
    choose(stack, 2, c"moec::layer_tracked", c"moec::layer_forward");
}

unsafe extern "C-unwind" fn choose_experts(stack: *mut Value, _: u64, _: u64) {
    choose(stack, 5, c"moec::experts_tracked", c"moec::experts_forward");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_without_pytorch_gets_no_kernels() {
        assert_eq!(moec_torch_register(), 0);
        // Nothing was prepared, so nothing is forgotten.
        moec_torch_forget(7);
    }

    #[test]
    fn an_error_of_an_operator_keeps_its_code_and_help() {
        let error = shim::coded("tensor-invalid", "a tensor is odd\nmake it even\nor not");
        assert_eq!((&*error.code, &*error.message), ("tensor-invalid", "a tensor is odd"));
        assert_eq!(error.help.as_deref(), Some("make it even\nor not"));
    }

    #[test]
    fn an_error_that_came_through_python_is_the_same() {
        let direct = shim::moecs_own("[tensor-invalid] a tensor is odd\nmake it even");
        assert_eq!(direct, Some(shim::coded("tensor-invalid", "a tensor is odd\nmake it even")));
        let raised = "[tensor-invalid] a tensor is odd\nmake it even\n\nAt:\n  torch/_ops.py(926): redispatch\n";
        for class in ["RuntimeError", "moec._errors.MoecError"] {
            assert_eq!(shim::moecs_own(&format!("{class}: {raised}")), direct);
        }
        assert_eq!(shim::moecs_own("IndexError: list index out of range"), None);
        assert_eq!(shim::moecs_own("no kernel for `x: [T]`"), None);
    }
}
