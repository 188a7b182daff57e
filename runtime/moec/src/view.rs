//! Tensors in the caller's memory, read and written where they lie.

use moec_bundle::manifest::TensorInfo;
use moec_ir::diag::Diagnostic;
use moec_ir::shape::Dim;
use moec_ir::{DType, Tensor};

/// A dense row-major tensor in memory of the caller.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    dtype: DType,
    shape: &'a [usize],
    bytes: &'a [u8],
}

/// A dense row-major tensor in memory of the caller that is written.
#[derive(Debug)]
pub struct ViewMut<'a> {
    dtype: DType,
    shape: &'a [usize],
    bytes: &'a mut [u8],
}

impl<'a> View<'a> {
    /// The tensor of `dtype` and `shape` whose little-endian elements are `bytes`.
    ///
    /// # Errors
    /// `tensor-shape-mismatch` when there are more or fewer bytes; `tensor-misaligned` when they do not begin at a multiple of
    /// an element's size.
    pub fn new(dtype: DType, shape: &'a [usize], bytes: &'a [u8]) -> Result<View<'a>, Diagnostic> {
        check(dtype, shape, bytes)?;
        Ok(View { dtype, shape, bytes })
    }

    /// As a host tensor: a copy.
    pub fn to_tensor(&self) -> Option<Tensor> {
        Tensor::from_bytes(self.dtype, self.shape, self.bytes)
    }

    pub(crate) fn kind(&self) -> (DType, &[usize]) {
        (self.dtype, self.shape)
    }

    pub(crate) fn pointer(&self) -> *const u8 {
        self.bytes.as_ptr()
    }
}

impl<'a> ViewMut<'a> {
    /// As [`View::new`].
    ///
    /// # Errors
    /// As [`View::new`].
    pub fn new(dtype: DType, shape: &'a [usize], bytes: &'a mut [u8]) -> Result<ViewMut<'a>, Diagnostic> {
        check(dtype, shape, bytes)?;
        Ok(ViewMut { dtype, shape, bytes })
    }

    pub(crate) fn kind(&self) -> (DType, &[usize]) {
        (self.dtype, self.shape)
    }

    pub(crate) fn pointer(&mut self) -> *mut u8 {
        self.bytes.as_mut_ptr()
    }

    pub(crate) fn write(&mut self, tensor: &Tensor) {
        self.bytes.copy_from_slice(&tensor.to_bytes());
    }
}

fn check(dtype: DType, shape: &[usize], bytes: &[u8]) -> Result<(), Diagnostic> {
    let wanted = shape.iter().try_fold(dtype.bytes(), |a, &n| a.checked_mul(n));
    if wanted != Some(bytes.len()) {
        let what = format!("a tensor {dtype}{shape:?} was given {} bytes", bytes.len());
        return Err(
            Diagnostic::input("tensor-shape-mismatch", what).help("give as many bytes as type and shape ask for")
        );
    }
    if !bytes.is_empty() && !(bytes.as_ptr() as usize).is_multiple_of(dtype.bytes()) {
        let what = format!("a tensor {dtype}{shape:?} does not begin at a multiple of {} bytes", dtype.bytes());
        return Err(Diagnostic::input("tensor-misaligned", what));
    }
    Ok(())
}

/// Checks type and shape of the tensors for `infos`, all of which must be there, and gives the token count that they agree
/// on; `None` when no shape depends on it.
///
/// # Errors
/// `input-missing`, `input-type-mismatch`, `input-shape-mismatch`.
pub(crate) fn tokens<'b>(
    infos: &[TensorInfo],
    given: impl Fn(&str) -> Option<(DType, &'b [usize])>,
) -> Result<Option<u64>, Diagnostic> {
    let mut n_tokens = None;
    for info in infos {
        let name = &info.name;
        let (dtype, shape) = given(name).ok_or_else(|| {
            Diagnostic::input("input-missing", format!("the layer needs a tensor `{name}`, {}", info.ty))
        })?;
        if dtype != info.ty.dtype {
            let what = format!("`{name}` is {dtype}, but the layer has {}", info.ty.dtype);
            return Err(Diagnostic::input("input-type-mismatch", what)
                .help("convert it, or compile the layer in this type: tensors are used where they lie"));
        }
        let mismatch = || {
            let what = format!("`{name}` is {dtype}{shape:?}, but the layer has {}", info.ty);
            Diagnostic::input("input-shape-mismatch", what)
        };
        if shape.len() != info.ty.shape.len() {
            return Err(mismatch());
        }
        for (&found, dim) in shape.iter().zip(&info.ty.shape) {
            let found = found as u64;
            match dim {
                Dim::Fixed(n) if *n == found => {}
                Dim::PerToken(k)
                    if found.is_multiple_of((*k).max(1)) && n_tokens.is_none_or(|t| t == found / (*k).max(1)) =>
                {
                    n_tokens = Some(found / (*k).max(1));
                }
                Dim::Fixed(_) | Dim::PerToken(_) => return Err(mismatch()),
            }
        }
    }
    Ok(n_tokens)
}
