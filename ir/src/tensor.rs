//! Host tensors of the reference evaluators.

use crate::DType;

/// Elements of a [`Tensor`], row-major. Every narrower float is held as f32, every integer as i64.
#[derive(Clone, Debug, PartialEq)]
pub enum Data {
    /// Floating-point elements, already rounded to the tensor's type.
    Float(Vec<f32>),
    /// Integer elements.
    Int(Vec<i64>),
}

/// A dense row-major tensor on the host.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    /// Element type the values have been rounded to.
    pub dtype: DType,
    /// Axis lengths, outermost first.
    pub shape: Vec<usize>,
    /// `shape.product()` elements.
    pub data: Data,
}

impl Tensor {
    /// A float tensor; the values are rounded to `dtype`.
    ///
    /// # Panics
    /// When the number of values is not the product of the shape.
    pub fn float(dtype: DType, shape: &[usize], values: Vec<f32>) -> Tensor {
        assert_eq!(
            values.len(),
            shape.iter().product::<usize>(),
            "a tensor should have as many values as its shape says"
        );
        let values = if dtype == DType::F32 { values } else { values.into_iter().map(|v| dtype.round(v)).collect() };
        Tensor { dtype, shape: shape.to_vec(), data: Data::Float(values) }
    }

    /// An integer tensor.
    ///
    /// # Panics
    /// When the number of values is not the product of the shape.
    pub fn int(dtype: DType, shape: &[usize], values: Vec<i64>) -> Tensor {
        assert_eq!(
            values.len(),
            shape.iter().product::<usize>(),
            "a tensor should have as many values as its shape says"
        );
        Tensor { dtype, shape: shape.to_vec(), data: Data::Int(values) }
    }

    /// The float elements; empty for an integer tensor.
    pub fn floats(&self) -> &[f32] {
        match &self.data {
            Data::Float(v) => v,
            Data::Int(_) => &[],
        }
    }

    /// The integer elements; empty for a float tensor.
    pub fn ints(&self) -> &[i64] {
        match &self.data {
            Data::Int(v) => v,
            Data::Float(_) => &[],
        }
    }

    /// Product of the shape.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Length of the innermost axis; 1 for a scalar.
    pub fn cols(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    /// The elements in their own type, little-endian: what a backend's buffer holds.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.elements() * self.dtype.bytes());
        match (&self.data, self.dtype) {
            (Data::Float(v), DType::F64) => v.iter().for_each(|x| out.extend_from_slice(&f64::from(*x).to_le_bytes())),
            (Data::Float(v), DType::F16) => {
                v.iter().for_each(|x| out.extend_from_slice(&half::f16::from_f32(*x).to_le_bytes()));
            }
            (Data::Float(v), DType::BF16) => {
                v.iter().for_each(|x| out.extend_from_slice(&half::bf16::from_f32(*x).to_le_bytes()));
            }
            (Data::Float(v), DType::F32 | DType::I32 | DType::I64 | DType::U8) => {
                v.iter().for_each(|x| out.extend_from_slice(&x.to_le_bytes()));
            }
            (Data::Int(v), DType::U8) => out.extend(v.iter().map(|&x| x as u8)),
            (Data::Int(v), DType::I64) => v.iter().for_each(|x| out.extend_from_slice(&x.to_le_bytes())),
            (Data::Int(v), DType::F64 | DType::F32 | DType::F16 | DType::BF16 | DType::I32) => {
                v.iter().for_each(|x| out.extend_from_slice(&(*x as i32).to_le_bytes()));
            }
        }
        out
    }

    /// The tensor whose elements are `bytes`, little-endian; `None` when the length does not fit the shape.
    pub fn from_bytes(dtype: DType, shape: &[usize], bytes: &[u8]) -> Option<Tensor> {
        let n = shape.iter().try_fold(1usize, |a, &d| a.checked_mul(d))?;
        if bytes.len() != n.checked_mul(dtype.bytes())? {
            return None;
        }
        let word = |c: &[u8]| [c[0], c[1], c[2], c[3]];
        let long = |c: &[u8]| [c[0], c[1], c[2], c[3], c[4], c[5], c[6], c[7]];
        let data = match dtype {
            DType::F64 => Data::Float(bytes.chunks_exact(8).map(|c| f64::from_le_bytes(long(c)) as f32).collect()),
            DType::F32 => Data::Float(bytes.chunks_exact(4).map(|c| f32::from_le_bytes(word(c))).collect()),
            DType::F16 => {
                Data::Float(bytes.chunks_exact(2).map(|c| half::f16::from_le_bytes([c[0], c[1]]).to_f32()).collect())
            }
            DType::BF16 => {
                Data::Float(bytes.chunks_exact(2).map(|c| half::bf16::from_le_bytes([c[0], c[1]]).to_f32()).collect())
            }
            DType::I32 => Data::Int(bytes.chunks_exact(4).map(|c| i64::from(i32::from_le_bytes(word(c)))).collect()),
            DType::U8 => Data::Int(bytes.iter().map(|&b| i64::from(b)).collect()),
            DType::I64 => Data::Int(bytes.chunks_exact(8).map(|c| i64::from_le_bytes(long(c))).collect()),
        };
        Some(Tensor { dtype, shape: shape.to_vec(), data })
    }

    /// The tensor converted to another float type, rounding to nearest even.
    pub fn cast(&self, dtype: DType) -> Tensor {
        Tensor::float(dtype, &self.shape, self.floats().to_vec())
    }

    /// How far from `want`, as one number that is held against a tolerance for relative Frobenius errors: the largest of
    /// that of all elements, half of that of any row (the last axis), and an eighth of any element's difference over the root
    /// mean square of its row. So no few wrong rows or elements hide among many right ones. A row of n
    /// elements that nearly vanishes counts as an n-th of the average, at least a 64th. Infinite for other shapes, and as in [`Tensor::relative_error`].
    pub fn worst_error(&self, want: &Tensor) -> f64 {
        let (whole, cols) = (self.relative_error(want), want.cols().max(1));
        if !whole.is_finite() || whole == 0.0 {
            return whole;
        }
        let square = |&x: &f32| if x.is_finite() { f64::from(x) * f64::from(x) } else { 0.0 };
        let n_rows = (want.elements() / cols).max(1) as f64;
        let average = want.floats().iter().map(square).sum::<f64>() / n_rows;
        let rows = self.floats().chunks(cols).zip(want.floats().chunks(cols));
        rows.fold(whole, |worst, (got, want)| {
            let least = average / (cols.min(64) as f64).powi(2);
            let size = want.iter().map(square).sum::<f64>().max(least);
            let of = |(&a, &b): (&f32, &f32)| {
                if a == b || (a.is_nan() && b.is_nan()) { 0.0 } else { (f64::from(a) - f64::from(b)).powi(2) }
            };
            let differences = || got.iter().zip(want).map(of);
            let row = (differences().sum::<f64>() / size).sqrt() / 2.0;
            let element = (differences().fold(0.0, f64::max) / (size / cols as f64)).sqrt() / 8.0;
            worst.max(row).max(element)
        })
    }

    /// ‖self − want‖ / ‖want‖ in f64 (Frobenius norm over all elements). 0 when both are empty; NaN counts as infinite
    /// unless both have it in the same place.
    pub fn relative_error(&self, want: &Tensor) -> f64 {
        let (mut num, mut den) = (0f64, 0f64);
        if self.elements() != want.elements() {
            return f64::INFINITY;
        }
        for (&a, &b) in self.floats().iter().zip(want.floats()) {
            if (a.is_nan() && b.is_nan()) || a == b {
                den += if b.is_finite() { f64::from(b) * f64::from(b) } else { 0.0 };
                continue;
            }
            let d = f64::from(a) - f64::from(b);
            if d.is_nan() {
                return f64::INFINITY;
            }
            num += d * d;
            den += f64::from(b) * f64::from(b);
        }
        if num == 0.0 {
            0.0
        } else if den == 0.0 {
            f64::INFINITY
        } else {
            (num / den).sqrt()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_wrong_elements_do_not_hide_among_many() {
        let want: Vec<f32> = (0..64 * 512).map(|i| if i % 2 == 0 { 1.0 } else { -1.0 }).collect();
        let tensor = |values: &[f32]| Tensor::float(DType::F32, &[64, 512], values.to_vec());
        let with = |change: &dyn Fn(&mut [f32])| {
            let mut got = want.clone();
            change(&mut got);
            (tensor(&got).relative_error(&tensor(&want)), tensor(&got).worst_error(&tensor(&want)))
        };
        assert_eq!(with(&|_| ()), (0.0, 0.0));
        // One element off by its own size, and a row off by a twentieth.
        let (whole, worst) = with(&|x| x[700] = 0.0);
        assert!(whole < 1e-2 && worst > 0.1, "{whole} {worst}");
        let (whole, worst) = with(&|x| x[512..1024].iter_mut().for_each(|v| *v *= 1.05));
        assert!(whole < 1e-2 && worst > 0.024, "{whole} {worst}");
        // What is spread evenly counts once.
        let (whole, worst) = with(&|x| x.iter_mut().for_each(|v| *v *= 1.01));
        assert!((worst - whole).abs() < 1e-9 && whole > 9e-3, "{whole} {worst}");
        let (_, nan) = with(&|x| x[3] = f32::NAN);
        assert_eq!(nan, f64::INFINITY);
    }

    #[test]
    fn a_row_of_zeros_is_held_against_the_others() {
        let want = Tensor::float(DType::F32, &[2, 2], vec![3.0, 4.0, 0.0, 0.0]);
        let got = Tensor::float(DType::F32, &[2, 2], vec![3.0, 4.0, 1e-6, 0.0]);
        assert!(got.worst_error(&want) < 1e-5);
        let got = Tensor::float(DType::F32, &[2, 2], vec![3.0, 4.0, 0.5, 0.0]);
        assert!(got.worst_error(&want) > 0.1);
    }
}
