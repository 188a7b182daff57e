//! A launch on PyTorch's tensors: results and workspace are made here.

use super::shim::{Shim, Tensor};
use crate::layer::Created;
use crate::moec_tensor;
use moec_ir::DType;
use moec_ir::diag::Diagnostic;
use moec_ir::shape::Dim;
use std::cell::Cell;

thread_local! {
    /// Workspace of this thread's launches; it stays, because new memory costs more than most launches.
    static WORKSPACE: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// Runs a layer; all its outputs.
///
/// Inputs with other than dense rows are copied, ids of another width as well.
///
/// # Errors
/// Those of [`crate::moec_layer_launch`].
pub fn run(shim: &'static Shim, layer: &Created, inputs: Vec<Tensor>) -> Result<Vec<Tensor>, Diagnostic> {
    let (wanted, outputs) = layer.tensors();
    let mut given = Vec::with_capacity(inputs.len());
    for (i, tensor) in inputs.into_iter().enumerate() {
        given.push(fitting(shim, tensor, wanted.get(i).map(|w| w.ty.dtype))?);
    }
    let views = given.iter().map(Tensor::view).collect::<Result<Vec<_>, _>>()?;
    let n_tokens = match views.first() {
        // SAFETY: PyTorch's tensors have as many lengths as axes.
        Some(x) if x.ndim > 0 => unsafe { x.shape.read() },
        _ => 0,
    };
    let mut made = Vec::with_capacity(outputs.len());
    for output in outputs {
        let mut shape = [0; crate::tensor::MAX_AXES];
        for (length, dim) in shape.iter_mut().zip(&output.ty.shape) {
            *length = match *dim {
                Dim::Fixed(n) => n as i64,
                Dim::PerToken(k) => n_tokens * k as i64,
            };
        }
        made.push(shim.empty(&shape[..output.ty.shape.len()], output.ty.dtype)?);
    }
    let results = made.iter().map(Tensor::view).collect::<Result<Vec<_>, _>>()?;
    let bytes = layer.workspace_bytes(n_tokens as u64)?;
    let mut workspace = WORKSPACE.take();
    if (workspace.capacity() as u64) < bytes {
        // Not grown, which would copy what nobody reads.
        workspace = Vec::with_capacity(bytes as usize);
    }
    let at = |is_output: bool, i: usize| -> *const moec_tensor {
        let list = if is_output { &results } else { &views };
        list.get(i).map_or(std::ptr::null(), std::ptr::from_ref)
    };
    let room = (workspace.as_mut_ptr().cast(), bytes);
    // SAFETY: PyTorch's tensors are valid, its results are new, and the workspace has room for `bytes`.
    let done = unsafe { layer.launch((views.len(), results.len()), at, room, std::ptr::null_mut()) };
    WORKSPACE.set(workspace);
    done.map(|()| made)
}

/// The tensor as kernels read it: rows dense, and ids in the layer's width. Everything else is the launch's to refuse.
fn fitting(shim: &'static Shim, tensor: Tensor, wanted: Option<DType>) -> Result<Tensor, Diagnostic> {
    let tensor = if tensor.is_contiguous() { tensor } else { tensor.contiguous()? };
    let ids = [DType::I32, DType::I64];
    match wanted {
        Some(to) if ids.contains(&to) => {
            let found = tensor.view()?.dtype;
            let other = ids.into_iter().find(|d| *d != to && crate::tensor::dtype(*d) == found);
            match other {
                Some(DType::I64) => narrowed(shim, &tensor),
                Some(_) => tensor.to(to),
                None => Ok(tensor),
            }
        }
        _ => Ok(tensor),
    }
}

/// Dense ids of 64 bits in 32. One that has no room there is no expert's, and stays none.
fn narrowed(shim: &'static Shim, ids: &Tensor) -> Result<Tensor, Diagnostic> {
    let from = ids.view()?;
    // SAFETY: PyTorch's tensors have as many lengths as axes.
    let shape = unsafe { std::slice::from_raw_parts(from.shape, from.ndim as usize) };
    if shape.len() > crate::tensor::MAX_AXES {
        return Err(Diagnostic::input("tensor-invalid", format!("ids have {} axes", shape.len())));
    }
    let made = shim.empty(shape, DType::I32)?;
    let to = made.view()?;
    for i in 0..shape.iter().product::<i64>() as usize {
        // SAFETY: both are dense and have so many elements.
        unsafe {
            let id = from.data.cast::<i64>().add(i).read();
            to.data.cast::<i32>().add(i).write(i32::try_from(id).unwrap_or(-1));
        }
    }
    Ok(made)
}
