//! Static scales of activations, which calibration left beside the matrices of a quantised checkpoint.
//!
//! | of | name | the scale |
//! |---|---|---|
//! | ModelOpt | `stem.input_scale` | as it is: largest magnitude / (6 · 448) for NVFP4 |
//! | compressed-tensors | `stem.input_global_scale` | its inverse |
//!
//! `stem` is the matrix' name without `.weight`. Stacks of experts have `N_input_scale`, one number or one for each expert.

use crate::formats;
use crate::read::checkpoint::Checkpoint;
use crate::resolve::{existing, template};
use moec_ir::diag::Diagnostic;
use moec_ir::weights::WeightSource;

/// The largest scale beside the matrices that these sources name, all experts of them.
///
/// # Errors
/// `quantised-scale-missing` when a matrix has none, `quantised-scale-mismatch` for one that is no positive number, and
/// those of [`Checkpoint::tensor`].
pub(crate) fn largest(checkpoint: &Checkpoint, of: &[WeightSource]) -> Result<f32, Diagnostic> {
    let mut most = 0f32;
    for source in of {
        let mut there = Vec::new();
        existing(checkpoint, source, &mut there);
        let names: Vec<String> = match there.first() {
            Some(WeightSource::Tensor { names, .. }) => {
                names.iter().filter(|n| formats::contains(checkpoint, n)).take(1).cloned().collect()
            }
            Some(WeightSource::PerExpert { names, first, count, .. }) => {
                let template = template(checkpoint, names, *first).map_or("", String::as_str);
                // No more than there are tensors: a damaged bundle may ask for any number.
                let count = (*count).min(checkpoint.names().count() as u64);
                (*first..first.saturating_add(count)).map(|e| template.replace("{e}", &e.to_string())).collect()
            }
            Some(WeightSource::FirstOf(_) | WeightSource::LargestInputScale(_)) | None => Vec::new(),
        };
        if names.is_empty() {
            return Err(missing(checkpoint, &format!("{source:?}"), &[]));
        }
        for name in names {
            most = most.max(one(checkpoint, &name)?);
        }
    }
    Ok(most)
}

/// The scale beside one matrix, or the largest beside a stack of them.
fn one(checkpoint: &Checkpoint, name: &str) -> Result<f32, Diagnostic> {
    let stem = name.strip_suffix(".weight").map_or_else(|| format!("{name}_"), |s| format!("{s}."));
    let tried = [(format!("{stem}input_scale"), false), (format!("{stem}input_global_scale"), true)];
    for (tried, inverse) in &tried {
        let Some(tensor) = checkpoint.tensor(tried)? else { continue };
        let bad = |why: &str| {
            Diagnostic::input(
                "quantised-scale-mismatch",
                format!("`{tried}`, {}, in `{}` is no scale of activations", tensor.describe(), tensor.file.display()),
            )
            .note(why.to_string())
            .help("take `--activations nvfp4`, whose scales follow from the rows")
        };
        let values = tensor.to_tensor().filter(|t| t.dtype.is_float()).ok_or_else(|| bad("scales are floats"))?;
        let scales = values.floats().iter().map(|&v| if *inverse { 1.0 / v } else { v });
        let mut most = 0f32;
        for scale in scales {
            if !(scale.is_finite() && scale > 0.0) {
                return Err(bad("a scale is a positive number"));
            }
            most = most.max(scale);
        }
        return if most > 0.0 { Ok(most) } else { Err(bad("it is empty")) };
    }
    Err(missing(checkpoint, name, &tried.map(|(n, _)| n)))
}

fn missing(checkpoint: &Checkpoint, name: &str, tried: &[String]) -> Diagnostic {
    let d = Diagnostic::input(
        "quantised-scale-missing",
        format!("`{}` has no static scale for the activations of `{name}`", checkpoint.path().display()),
    );
    let tried: Vec<String> = tried.iter().map(|n| format!("`{n}`")).collect();
    let d = if tried.is_empty() { d } else { d.note(format!("looked for {}", tried.join(", "))) };
    d.help("take `--activations nvfp4`, whose scales follow from the rows")
}
