//! Named buffers in device memory: reading and writing safetensors files, and comparing results.

use std::collections::BTreeMap;

pub use safetensors::Dtype;
use safetensors::tensor::TensorView;
use safetensors::{SafeTensorError, SafeTensors};

/// The content of one buffer: bytes as they lie in device memory, little-endian, with the type they stand for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Buffer {
    /// Element type. Packed 4-bit types travel as `U8`.
    pub dtype: Dtype,
    /// Extents, outermost first. Their product times the element width is the length of `bytes`.
    pub shape: Vec<usize>,
    /// The content.
    pub bytes: Vec<u8>,
}

/// Buffers by name, in the order of their names.
pub type Buffers = BTreeMap<String, Buffer>;

/// Why a file of buffers cannot be read or written, or two buffers cannot be compared.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BufferError {
    /// The bytes are not a safetensors file.
    #[error("not a safetensors file: {0}")]
    Malformed(#[from] SafeTensorError),
    /// Shape and byte count of a buffer disagree.
    #[error("buffer `{name}`: {dtype:?}{shape:?} takes {want} bytes, but {found} are given")]
    Size {
        /// Name of the buffer.
        name: String,
        /// Its element type.
        dtype: Dtype,
        /// Its shape.
        shape: Vec<usize>,
        /// Bytes that type and shape need.
        want: usize,
        /// Bytes given.
        found: usize,
    },
    /// The buffers differ in type or shape.
    #[error("found {found_dtype:?}{found_shape:?}, expected {want_dtype:?}{want_shape:?}")]
    Shape {
        /// Type that was computed.
        found_dtype: Dtype,
        /// Shape that was computed.
        found_shape: Vec<usize>,
        /// Type that was expected.
        want_dtype: Dtype,
        /// Shape that was expected.
        want_shape: Vec<usize>,
    },
    /// The type has no number for an element.
    #[error("elements of type {0:?} cannot be compared")]
    Type(Dtype),
}

impl Buffer {
    /// A buffer of raw bytes, shape `[len]`, type `U8`.
    #[must_use]
    pub fn raw(bytes: Vec<u8>) -> Self {
        Self { dtype: Dtype::U8, shape: vec![bytes.len()], bytes }
    }

    /// A buffer of f32 values, shape `[len]`.
    #[must_use]
    pub fn f32(values: &[f32]) -> Self {
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Self { dtype: Dtype::F32, shape: vec![values.len()], bytes }
    }

    /// A buffer of u32 values, shape `[len]`.
    #[must_use]
    pub fn u32(values: &[u32]) -> Self {
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Self { dtype: Dtype::U32, shape: vec![values.len()], bytes }
    }

    /// A buffer of `len` zeros of type `dtype`, shape `[len]`.
    #[must_use]
    pub fn zeros(dtype: Dtype, len: usize) -> Self {
        Self { dtype, shape: vec![len], bytes: vec![0; len * dtype.bitsize() / 8] }
    }

    /// The bytes as 32-bit words, whatever the type; a rest of less than four bytes is left out.
    #[must_use]
    pub fn words(&self) -> Vec<u32> {
        self.bytes.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
    }

    /// The elements as f64. Exact for every type but 64-bit integers, which are rounded.
    ///
    /// # Errors
    /// [`BufferError::Type`] for types that are no single number (complex, packed 4-bit and 6-bit).
    pub fn to_f64(&self) -> Result<Vec<f64>, BufferError> {
        let bytes = &self.bytes;
        let values = match self.dtype {
            Dtype::F64 => elements(bytes, f64::from_le_bytes),
            Dtype::F32 => elements(bytes, |b| f64::from(f32::from_le_bytes(b))),
            Dtype::F16 => elements(bytes, |b| small_float(u32::from(u16::from_le_bytes(b)), 5, 10, true)),
            Dtype::BF16 => elements(bytes, |b| f64::from(f32::from_bits(u32::from(u16::from_le_bytes(b)) << 16))),
            Dtype::F8_E5M2 => elements(bytes, |[b]: [u8; 1]| small_float(u32::from(b), 5, 2, true)),
            Dtype::F8_E4M3 => elements(bytes, |[b]: [u8; 1]| match b & 0x7f {
                0x7f => f64::NAN,
                _ => small_float(u32::from(b), 4, 3, false),
            }),
            Dtype::F8_E8M0 => elements(bytes, |[b]: [u8; 1]| match b {
                0xff => f64::NAN,
                _ => (f64::from(b) - 127.0).exp2(),
            }),
            Dtype::U8 | Dtype::BOOL => elements(bytes, |[b]: [u8; 1]| f64::from(b)),
            Dtype::I8 => elements(bytes, |b| f64::from(i8::from_le_bytes(b))),
            Dtype::U16 => elements(bytes, |b| f64::from(u16::from_le_bytes(b))),
            Dtype::I16 => elements(bytes, |b| f64::from(i16::from_le_bytes(b))),
            Dtype::U32 => elements(bytes, |b| f64::from(u32::from_le_bytes(b))),
            Dtype::I32 => elements(bytes, |b| f64::from(i32::from_le_bytes(b))),
            Dtype::U64 => elements(bytes, |b| u64::from_le_bytes(b) as f64),
            Dtype::I64 => elements(bytes, |b| i64::from_le_bytes(b) as f64),
            other => return Err(BufferError::Type(other)),
        };
        Ok(values)
    }
}

fn elements<const N: usize>(bytes: &[u8], decode: impl Fn([u8; N]) -> f64) -> Vec<f64> {
    bytes.as_chunks::<N>().0.iter().map(|chunk| decode(*chunk)).collect()
}

/// An IEEE-like float of up to 16 bits; `has_infinity` says whether the highest exponent means infinity and NaN.
fn small_float(bits: u32, exponent_bits: u32, mantissa_bits: u32, has_infinity: bool) -> f64 {
    let sign = if bits >> (exponent_bits + mantissa_bits) & 1 == 1 { -1.0 } else { 1.0 };
    let exponent = bits >> mantissa_bits & ((1 << exponent_bits) - 1);
    let mantissa = f64::from(bits & ((1 << mantissa_bits) - 1));
    let one = f64::from(1u32 << mantissa_bits);
    let bias = (1i32 << (exponent_bits - 1)) - 1;
    if has_infinity && exponent == (1 << exponent_bits) - 1 {
        return if mantissa == 0.0 { sign * f64::INFINITY } else { f64::NAN };
    }
    let (significand, scale) = match exponent {
        0 => (mantissa / one, 1 - bias),
        _ => (1.0 + mantissa / one, exponent as i32 - bias),
    };
    sign * significand * f64::from(scale).exp2()
}

/// Reads every buffer of a safetensors file.
///
/// # Errors
/// [`BufferError::Malformed`] when the header or an offset is wrong.
pub fn read(file: &[u8]) -> Result<Buffers, BufferError> {
    let tensors = SafeTensors::deserialize(file)?;
    Ok(tensors
        .iter()
        .map(|(name, view)| {
            let buffer = Buffer { dtype: view.dtype(), shape: view.shape().to_vec(), bytes: view.data().to_vec() };
            (name.to_string(), buffer)
        })
        .collect())
}

/// Writes buffers as a safetensors file. The same buffers give the same bytes.
///
/// # Errors
/// [`BufferError::Size`] when a buffer's bytes do not fill its shape.
pub fn write(buffers: &Buffers) -> Result<Vec<u8>, BufferError> {
    let mut views = Vec::with_capacity(buffers.len());
    for (name, buffer) in buffers {
        let view =
            TensorView::new(buffer.dtype, buffer.shape.clone(), &buffer.bytes).map_err(|_| BufferError::Size {
                name: name.clone(),
                dtype: buffer.dtype,
                shape: buffer.shape.clone(),
                want: buffer.shape.iter().fold(buffer.dtype.bitsize(), |n, extent| n.saturating_mul(*extent)) / 8,
                found: buffer.bytes.len(),
            })?;
        views.push((name.as_str(), view));
    }
    Ok(safetensors::serialize(views, None)?)
}

/// How far one result is from what was expected.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Difference {
    /// ‖got − want‖ / ‖want‖ over all elements, in f64; infinite when an element that should be finite is not.
    pub rel_fro: f64,
    /// Elements whose values differ; −0 equals 0, and a NaN equals a NaN.
    pub unequal: usize,
    /// Index of the first of them, in row-major order.
    pub first: Option<usize>,
}

impl Difference {
    /// Whether the result is within `tolerance`; 0 asks for equal values.
    #[must_use]
    pub fn within(&self, tolerance: f64) -> bool {
        if tolerance == 0.0 { self.unequal == 0 } else { self.rel_fro <= tolerance }
    }
}

/// Compares a result with what was expected.
///
/// # Errors
/// [`BufferError::Shape`] when type or shape differ, [`BufferError::Type`] for types without a value an element.
pub fn compare(got: &Buffer, want: &Buffer) -> Result<Difference, BufferError> {
    if got.dtype != want.dtype || got.shape != want.shape || got.bytes.len() != want.bytes.len() {
        return Err(BufferError::Shape {
            found_dtype: got.dtype,
            found_shape: got.shape.clone(),
            want_dtype: want.dtype,
            want_shape: want.shape.clone(),
        });
    }
    let (a, b) = (got.to_f64()?, want.to_f64()?);
    let width = (got.dtype.bitsize() / 8).max(1);
    let exact_integers = matches!(got.dtype, Dtype::I64 | Dtype::U64);
    let (mut error, mut norm) = (0f64, 0f64);
    let (mut unequal, mut first) = (0, None);
    for (index, (a, b)) in a.iter().zip(&b).enumerate() {
        let bytes = index * width..(index + 1) * width;
        let same_bits = got.bytes[bytes.clone()] == want.bytes[bytes];
        let same = same_bits || (!exact_integers && (a == b || (a.is_nan() && b.is_nan())));
        if !same {
            unequal += 1;
            first = first.or(Some(index));
            let d = a - b;
            error += if d.is_nan() { f64::INFINITY } else { d * d };
        }
        if b.is_finite() {
            norm += b * b;
        }
    }
    let rel_fro = if error == 0.0 { 0.0 } else { error.sqrt() / norm.sqrt().max(1e-30) };
    Ok(Difference { rel_fro, unequal, first })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_f16_and_e5m2_value_is_decoded_as_half_does_by_hand() {
        for (bits, value) in [(0x3c00, 1.0), (0x0001, 2f64.powi(-24)), (0x7bff, 65504.0), (0xfc00, f64::NEG_INFINITY)] {
            assert_eq!(small_float(bits, 5, 10, true), value);
        }
        let e5m2 = Buffer { dtype: Dtype::F8_E5M2, shape: vec![3], bytes: vec![0x7b, 0x01, 0xbc] };
        assert_eq!(e5m2.to_f64().unwrap(), [57344.0, 2f64.powi(-16), -1.0]);
        let e4m3 = Buffer { dtype: Dtype::F8_E4M3, shape: vec![3], bytes: vec![0x7e, 0x01, 0x78] };
        assert_eq!(e4m3.to_f64().unwrap(), [448.0, 2f64.powi(-9), 256.0]);
        let e8m0 = Buffer { dtype: Dtype::F8_E8M0, shape: vec![2], bytes: vec![0, 254] };
        assert_eq!(e8m0.to_f64().unwrap(), [2f64.powi(-127), 2f64.powi(127)]);
    }

    #[test]
    fn files_keep_type_shape_and_bytes() {
        let mut buffers = Buffers::new();
        for (name, dtype, shape) in [
            ("a", Dtype::BF16, vec![2, 3]),
            ("b", Dtype::F8_E4M3, vec![5]),
            ("c", Dtype::F8_E5M2, vec![0]),
            ("d", Dtype::U8, vec![]),
            ("e", Dtype::F64, vec![1, 1, 1]),
            ("f", Dtype::BOOL, vec![4]),
        ] {
            let n = shape.iter().product::<usize>() * dtype.bitsize() / 8;
            buffers.insert(name.to_string(), Buffer { dtype, shape, bytes: (0..n).map(|i| i as u8 & 1).collect() });
        }
        let file = write(&buffers).unwrap();
        assert_eq!(read(&file).unwrap(), buffers);
        assert_eq!(write(&buffers).unwrap(), file);
    }

    #[test]
    fn a_shape_that_does_not_fit_the_bytes_is_refused_with_both_sizes() {
        let buffers =
            Buffers::from([("x".to_string(), Buffer { dtype: Dtype::F32, shape: vec![3], bytes: vec![0; 8] })]);
        assert_eq!(write(&buffers).unwrap_err().to_string(), "buffer `x`: F32[3] takes 12 bytes, but 8 are given");
    }

    #[test]
    fn a_truncated_file_is_an_error() {
        let file = write(&Buffers::from([("x".to_string(), Buffer::f32(&[1.0, 2.0]))])).unwrap();
        for length in 0..file.len() {
            assert!(read(&file[..length]).is_err(), "{length}");
        }
    }

    #[test]
    fn tolerance_zero_asks_for_equal_values_and_takes_minus_zero_for_zero() {
        let want = Buffer::f32(&[0.0, 3.0, 4.0]);
        assert!(compare(&Buffer::f32(&[-0.0, 3.0, 4.0]), &want).unwrap().within(0.0));
        let off = compare(&Buffer::f32(&[0.0, 3.0, 4.5]), &want).unwrap();
        assert_eq!(off, Difference { rel_fro: 0.1, unequal: 1, first: Some(2) });
        assert!(!off.within(0.0) && off.within(0.1) && !off.within(0.09));
        assert!(!compare(&Buffer::f32(&[f32::NAN, 3.0, 4.0]), &want).unwrap().within(1e9));
    }

    #[test]
    fn wide_integers_are_compared_exactly() {
        let of = |v: u64| Buffer { dtype: Dtype::U64, shape: vec![1], bytes: v.to_le_bytes().to_vec() };
        let difference = compare(&of(1 << 60 | 1), &of(1 << 60)).unwrap();
        assert_eq!(difference.unequal, 1);
        assert!(!difference.within(0.0));
    }
}
