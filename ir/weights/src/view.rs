//! A host's own memory as a weight: copied from where it lies, whatever the distances of its axes.

use crate::decode::Elements;
use crate::pack::{Layout, out_of_range, parts};
use crate::pack::{Rows, copy_rows};
use crate::resolve::{fixed_shape, unsupported};
use crate::strided::Strided;
use moec_ir::DType;
use moec_ir::abi::Strides;
use moec_ir::diag::Diagnostic;
use moec_ir::graph::Param;
use moec_ir::tile::Buffer;

/// Elements in memory that belongs to somebody else.
#[derive(Clone, Debug)]
pub struct MemoryView<'a> {
    /// Their type.
    pub dtype: DType,
    /// `(length, stride)` of each axis, outermost first; strides count elements.
    pub axes: Vec<(u64, u64)>,
    /// From the first element to the last, whatever lies between.
    pub bytes: &'a [u8],
}

impl MemoryView<'_> {
    /// Bytes from the first element to the end of the last one; `None` when that is more than memory can hold.
    pub fn extent(dtype: DType, axes: &[(u64, u64)]) -> Option<u64> {
        if axes.iter().any(|a| a.0 == 0) {
            return Some(0);
        }
        let last = axes.iter().try_fold(0u64, |sum, &(n, stride)| sum.checked_add((n - 1).checked_mul(stride)?))?;
        last.checked_add(1)?.checked_mul(dtype.bytes() as u64).filter(|&n| n <= i64::MAX as u64)
    }

    /// Lengths of the axes.
    pub fn shape(&self) -> Vec<u64> {
        self.axes.iter().map(|a| a.0).collect()
    }

    /// How the memory stands for the parameter's buffer where it lies, for kernels that read the buffer at any strides
    /// (`strided`) or as it was compiled; else why it does not.
    ///
    /// # Errors
    /// In words.
    pub fn in_place(&self, param: &Param, buffer: &Buffer, strided: bool) -> Result<Strides, String> {
        if parts::is_part(buffer) {
            return Err("kernels read it as codes and scales".into());
        }
        if param.ty.dtype != buffer.dtype {
            return Err(format!("kernels read {}, it is {}", buffer.dtype, param.ty.dtype));
        }
        self.lies_as(buffer, strided)
    }

    /// As [`MemoryView::in_place`], whatever the elements mean.
    pub(crate) fn lies_as(&self, buffer: &Buffer, strided: bool) -> Result<Strides, String> {
        if self.dtype != buffer.dtype {
            return Err(format!("kernels read {}, it is {}", buffer.dtype, self.dtype));
        }
        if buffer.pitch != buffer.cols {
            return Err(format!("kernels read rows of {} elements that lie {} apart", buffer.cols, buffer.pitch));
        }
        if self.axes.iter().any(|a| a.0 == 0) || Strided::of_axes(self.axes.clone()).contiguous().is_some() {
            return Ok(Strides::of(buffer));
        }
        if !strided {
            return Err("its elements do not lie one behind the other".into());
        }
        let (bytes, dense) = (self.dtype.bytes() as u64, Strides::of(buffer));
        // Of an axis of one entry any distance is right.
        let of = |&(n, stride): &(u64, u64), dense: u64| if n == 1 { dense } else { stride * bytes };
        match &self.axes[..] {
            [.., (n, step)] if *n > 1 && *step != 1 => Err(format!("the elements of a row lie {step} apart")),
            [row, _] => Ok(Strides { matrix: dense.matrix, row: of(row, dense.row) }),
            [matrix, row, _] => Ok(Strides { matrix: of(matrix, dense.matrix), row: of(row, dense.row) }),
            _ => Err("it is no stack of matrices".into()),
        }
    }

    /// Fills `dst` with the elements in the layout of `buffer`, rounded to the parameter's type and then to the buffer's.
    /// Padding becomes zero.
    ///
    /// # Errors
    /// `tensor-shape-mismatch`, `weight-type-unsupported`, `weight-out-of-range`, `buffer-shape-mismatch`, and
    /// `stored-format-mismatch` for a buffer of codes or scales.
    pub fn pack(&self, param: &Param, buffer: &Buffer, dst: &mut [u8]) -> Result<(), Diagnostic> {
        if parts::is_part(buffer) {
            return Err(parts::given_as_floats(param));
        }
        let layout = Layout::new(param, buffer, dst.len())?;
        let rows: &Rows = &layout.copied;
        let shape = self.shape();
        let too_short = MemoryView::extent(self.dtype, &self.axes).is_none_or(|n| n > self.bytes.len() as u64);
        if Some(&shape) != fixed_shape(param).as_ref() || too_short {
            return Err(Diagnostic::input(
                "tensor-shape-mismatch",
                format!("the weight `{}` is {}{shape:?}, but the layer asks for {}", param.name, self.dtype, param.ty),
            ));
        }
        if self.dtype.is_float() != buffer.dtype.is_float() || self.dtype == DType::F64 {
            return Err(unsupported(param, "the tensor that was given", &self.dtype.to_string()));
        }
        let (view, elements) = (Strided::of_axes(self.axes.clone()), Elements::Plain(self.dtype, self.bytes));
        copy_rows(rows, dst, |row| (view.row(row), &elements), |_| ())
            .map_err(|value| out_of_range(param, buffer, value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use moec_ir::shape::{Dim, TensorType};
    use moec_ir::tile::Role;
    use moec_ir::weights::WeightSource;

    fn param(shape: &[u64]) -> Param {
        let ty = TensorType::fixed(DType::F32, shape);
        Param { name: "w".into(), ty, source: WeightSource::tensor("w"), stored: None }
    }

    fn buffer(batch: u64, rows: u64, cols: u64, pitch: u64) -> Buffer {
        let (name, dtype, rows) = ("w".into(), DType::F32, Dim::Fixed(rows));
        Buffer { name, dtype, batch, rows, cols, pitch, role: Role::Weight(0) }
    }

    fn bytes(values: &[f32]) -> Vec<u8> {
        values.iter().flat_map(|v| v.to_le_bytes()).collect()
    }

    /// `[E, 2I, H]` with gate before up, as transformers holds it: each half is a view.
    #[test]
    fn half_of_a_concatenated_matrix_is_packed_where_it_lies() {
        let both: Vec<f32> = (0..2 * 4 * 3).map(|i| i as f32).collect();
        let memory = bytes(&both);
        let up = MemoryView { dtype: DType::F32, axes: vec![(2, 12), (2, 3), (3, 1)], bytes: &memory[6 * 4..] };
        let mut dst = vec![0xAA; 2 * 2 * 4 * 4];
        up.pack(&param(&[2, 2, 3]), &buffer(2, 2, 3, 4), &mut dst).expect("packed");
        let want = [6., 7., 8., 0., 9., 10., 11., 0., 18., 19., 20., 0., 21., 22., 23., 0.];
        assert_eq!(dst, bytes(&want));
        let (param, buffer) = (param(&[2, 2, 3]), buffer(2, 2, 3, 3));
        assert!(up.in_place(&param, &buffer, false).is_err());
        assert_eq!(up.in_place(&param, &buffer, true), Ok(Strides { matrix: 48, row: 12 }));
        let whole = MemoryView { axes: vec![(2, 6), (2, 3), (3, 1)], ..up.clone() };
        assert_eq!(whole.in_place(&param, &buffer, false), Ok(Strides::of(&buffer)));
        let transposed = MemoryView { axes: vec![(2, 6), (2, 1), (3, 2)], ..up.clone() };
        assert!(transposed.in_place(&param, &buffer, true).unwrap_err().contains("2 apart"));
    }

    #[test]
    fn a_transposed_view_is_packed_in_rows() {
        let memory = bytes(&[1., 2., 3., 4., 5., 6.]);
        let view = MemoryView { dtype: DType::F32, axes: vec![(3, 1), (2, 3)], bytes: &memory };
        let mut dst = vec![0; 24];
        view.pack(&param(&[3, 2]), &buffer(1, 3, 2, 2), &mut dst).expect("packed");
        assert_eq!(dst, bytes(&[1., 4., 2., 5., 3., 6.]));
    }

    #[test]
    fn memory_that_is_too_short_is_refused() {
        let memory = bytes(&[0.0; 5]);
        let view = MemoryView { dtype: DType::F32, axes: vec![(3, 2), (2, 1)], bytes: &memory };
        let refused = view.pack(&param(&[3, 2]), &buffer(1, 3, 2, 2), &mut [0; 24]).expect_err("too short");
        assert_eq!(refused.code, "tensor-shape-mismatch");
        assert_eq!(MemoryView::extent(DType::F32, &[(u64::MAX, 2)]), None);
        assert_eq!(MemoryView::extent(DType::F32, &[(0, 9), (3, 1)]), Some(0));
    }
}
