//! What this backend needs of a program beyond what the verifier of the tile IR asks.

use crate::error::internal;
use moec_ir::tile::{Body, Program, RowOpKind, RowProgram, verify};
use moec_ir::{DType, Diagnostic};

/// Largest distance of two rows, in bytes: eight of them are addressed with 32-bit offsets.
const MOST_PITCH: u64 = 1 << 24;
/// Largest scratch memory of a row program's rows, in elements.
const MOST_WIDTH: u64 = 1 << 20;

/// Whether code can be generated for a program.
///
/// # Errors
/// The verifier's first error; `element-type-not-on-cpu` for f64 elements, `row-too-wide` for rows of more than 16 MiB,
/// `internal-error` for what the lowering for this backend should not give.
pub(crate) fn check_program(program: &Program) -> Result<(), Diagnostic> {
    let mut errors = verify(program);
    if !errors.is_empty() {
        return Err(errors.swap_remove(0));
    }
    for b in &program.buffers {
        if b.dtype == DType::F64 {
            return Err(Diagnostic::input(
                "element-type-not-on-cpu",
                format!("buffer `{}` has elements of type f64; CPU kernels take f32, f16, bf16 and integers", b.name),
            )
            .help("give the layer's inputs, parameters and nodes in one of these types"));
        }
        if b.pitch.saturating_mul(b.dtype.bytes() as u64) > MOST_PITCH {
            return Err(Diagnostic::input(
                "row-too-wide",
                format!(
                    "rows of buffer `{}` have {} elements of type {}; CPU kernels take rows of up to 16 MiB",
                    b.name, b.pitch, b.dtype
                ),
            ));
        }
    }
    for kernel in &program.kernels {
        // Values between the operations of a kernel, which are no buffers.
        if matches!(&kernel.body, Body::Rows(p) if p.ops.iter().any(|op| op.dtype == DType::F64)) {
            return Err(Diagnostic::input(
                "element-type-not-on-cpu",
                format!(
                    "kernel `{}` makes values of type f64; CPU kernels take f32, f16, bf16 and integers",
                    kernel.name
                ),
            )
            .help("give the layer's inputs, parameters and nodes in one of these types"));
        }
        let wrong = match &kernel.body {
            Body::Rows(p) if p.plan.is_some() => {
                Some("makes its plan in the router's kernel, which blocks of a GPU can do".to_string())
            }
            Body::Rows(p) if p.logits.is_some() => {
                Some("shares its products among blocks, which those of a GPU can do".to_string())
            }
            Body::Rows(p) if !p.quantise.is_empty() => Some("rounds rows to codes, which have no code".to_string()),
            Body::Rows(p) => rows(program, p),
            Body::Quantise(_) => Some("rounds rows to codes, which have no code".to_string()),
            Body::Contract(c) if c.combine.is_some() => {
                Some("adds slots up in the product's kernel, which blocks of a GPU can do".to_string())
            }
            Body::Contract(c) => c
                .segments
                .iter()
                .any(|s| s.a_quant.is_some() || s.out_quant.is_some())
                .then(|| "multiplies or makes rows of codes, which have no code".to_string()),
            Body::Plan(_) | Body::Map(_) | Body::Combine(_) => None,
        };
        let at_places = match &kernel.body {
            Body::Contract(c) => c.segments.iter().any(|s| s.out_places.is_some()),
            Body::Map(m) => m.out_places.is_some(),
            Body::Plan(p) => p.places.is_some(),
            Body::Rows(_) | Body::Quantise(_) | Body::Combine(_) => false,
        };
        let wrong = wrong.or_else(|| {
            at_places.then(|| "stores rows into memory of other ranks, which GPUs map from each other".to_string())
        });
        if let Some(wrong) = wrong {
            return Err(internal(format!("kernel `{}`: {wrong}", kernel.name)));
        }
    }
    Ok(())
}

fn rows(program: &Program, p: &RowProgram) -> Option<String> {
    p.ops.iter().enumerate().find_map(|(i, op)| {
        let is_float = match &op.kind {
            RowOpKind::Load(b) | RowOpKind::LoadFirst(b) => program.buffer(*b).dtype.is_float() == op.dtype.is_float(),
            RowOpKind::Linear { bias: Some(b), .. } => program.buffer(*b).dtype.is_float(),
            RowOpKind::Linear { bias: None, .. }
            | RowOpKind::Map { .. }
            | RowOpKind::Softmax(_)
            | RowOpKind::RmsNorm { .. }
            | RowOpKind::GroupLimit { .. }
            | RowOpKind::TopK(_)
            | RowOpKind::Gather { .. }
            | RowOpKind::Reduce { .. }
            | RowOpKind::MaskChosen { .. }
            | RowOpKind::Join { .. }
            | RowOpKind::Lookup { .. }
            | RowOpKind::SumOutside { .. }
            | RowOpKind::LocalIds { .. }
            | RowOpKind::Renormalise { .. } => true,
        };
        if op.width > MOST_WIDTH {
            Some(format!("row step {i} has {} values", op.width))
        } else if !is_float {
            Some(format!("row step {i} reads integers as floats or floats as integers"))
        } else {
            None
        }
    })
}
