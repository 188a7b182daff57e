//! Between host tensors and the buffers of a program.

use moec_bundle::manifest::TensorInfo;
use moec_ir::diag::Diagnostic;
use moec_ir::shape::Dim;
use moec_ir::tensor::Data;
use moec_ir::tile::Buffer;
use moec_ir::{DType, Tensor};

/// The inputs in the layer's order and type, and the token count that they agree on.
///
/// Values are converted where nothing is lost: bf16 and f16 to f32, integers between i32 and i64.
///
/// # Errors
/// `input-missing`, `input-shape-mismatch`, `input-type-mismatch`.
pub(crate) fn bind_inputs(wanted: &[TensorInfo], given: &[(&str, &Tensor)]) -> Result<(Vec<Tensor>, u64), Diagnostic> {
    let mut n_tokens: Option<(u64, &str)> = None;
    let mut out = Vec::with_capacity(wanted.len());
    for info in wanted {
        let (_, tensor) = given.iter().find(|(name, _)| *name == info.name).ok_or_else(|| {
            let names: Vec<String> = given.iter().map(|(n, t)| format!("`{n}` {}", describe(t))).collect();
            Diagnostic::input("input-missing", format!("the layer needs the input `{}`, {}", info.name, info.ty))
                .note(format!("given: {}", if names.is_empty() { "nothing".into() } else { names.join(", ") }))
        })?;
        let mismatch = |why: &str| {
            Diagnostic::input(
                "input-shape-mismatch",
                format!("the input `{}` is {}, but the layer asks for {}{why}", info.name, describe(tensor), info.ty),
            )
        };
        if tensor.shape.len() != info.ty.shape.len() {
            return Err(mismatch(""));
        }
        for (&found, dim) in tensor.shape.iter().zip(&info.ty.shape) {
            match dim {
                Dim::Fixed(n) if *n == found as u64 => {}
                Dim::Fixed(_) => return Err(mismatch("")),
                Dim::PerToken(k) => {
                    let n = found as u64 / (*k).max(1);
                    if n * k != found as u64 {
                        return Err(mismatch(""));
                    }
                    match n_tokens {
                        Some((t, other)) if t != n => {
                            return Err(mismatch(&format!("; `{other}` has {t} tokens")));
                        }
                        Some(_) => {}
                        None => n_tokens = Some((n, &info.name)),
                    }
                }
            }
        }
        out.push(convert(info, tensor)?);
    }
    Ok((out, n_tokens.map_or(0, |(t, _)| t)))
}

pub(crate) fn convert(info: &TensorInfo, tensor: &Tensor) -> Result<Tensor, Diagnostic> {
    use DType::{BF16, F16, F32, I32, I64};
    let wrong = |help: &str| {
        Diagnostic::input(
            "input-type-mismatch",
            format!("the input `{}` is {}, but the layer computes in {}", info.name, tensor.dtype, info.ty.dtype),
        )
        .help(help)
    };
    match (tensor.dtype, info.ty.dtype, &tensor.data) {
        (a, b, _) if a == b => Ok(tensor.clone()),
        (BF16 | F16, F32, Data::Float(_)) => Ok(tensor.cast(F32)),
        (I64 | I32, I32 | I64, Data::Int(v)) => {
            if info.ty.dtype == I32 && v.iter().any(|&x| i32::try_from(x).is_err()) {
                return Err(wrong("the values do not fit 32 bits"));
            }
            Ok(Tensor::int(info.ty.dtype, &tensor.shape, v.clone()))
        }
        _ => Err(wrong("convert it first: moec does not round inputs on its own")),
    }
}

fn describe(t: &Tensor) -> String {
    format!("{}{:?}", t.dtype, t.shape)
}

/// Writes a tensor's rows into a buffer at its pitch; columns behind are left as they are.
pub(crate) fn write_rows(tensor: &Tensor, buffer: &Buffer, dst: &mut [u8]) {
    let bytes = tensor.to_bytes();
    let row = buffer.cols as usize * buffer.dtype.bytes();
    let pitch = buffer.pitch as usize * buffer.dtype.bytes();
    if row == pitch {
        dst[..bytes.len()].copy_from_slice(&bytes);
    } else if row > 0 {
        bytes.chunks_exact(row).zip(dst.chunks_mut(pitch)).for_each(|(from, to)| to[..row].copy_from_slice(from));
    }
}

/// The tensor that a buffer holds, in the shape of `info` at `n_tokens` tokens.
///
/// # Errors
/// `internal-error` when the buffer has another size, which a verified manifest rules out.
pub(crate) fn read_rows(info: &TensorInfo, buffer: &Buffer, n_tokens: u64, src: &[u8]) -> Result<Tensor, Diagnostic> {
    let shape: Vec<usize> = info.ty.shape.iter().map(|d| d.at(n_tokens) as usize).collect();
    let tensor = read_matrix(buffer, n_tokens, src).and_then(|bytes| Tensor::from_bytes(buffer.dtype, &shape, &bytes));
    tensor.ok_or_else(|| {
        Diagnostic::internal(
            "internal-error",
            format!("`{}` should fill {} at {n_tokens} tokens", buffer.name, info.ty),
        )
    })
}

/// The rows of a buffer without padding; `None` when `src` is too short.
pub(crate) fn read_matrix(buffer: &Buffer, n_tokens: u64, src: &[u8]) -> Option<Vec<u8>> {
    let row = buffer.cols as usize * buffer.dtype.bytes();
    let pitch = buffer.pitch as usize * buffer.dtype.bytes();
    let src = src.get(..buffer.bytes(n_tokens) as usize)?;
    if row == pitch {
        return Some(src.to_vec());
    }
    Some(src.chunks_exact(pitch).flat_map(|r| &r[..row]).copied().collect())
}
