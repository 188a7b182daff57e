//! Finds the tensors that stand for a float tensor, and what readers of schemes have in common.

use super::{SCHEMES, said};
use crate::config::{CodedSpec, Declared, IntegerSpec, Spec};
use crate::decode::Elements;
use crate::read::checkpoint::Checkpoint;
use crate::read::safetensors::{StoredType, TensorView};
use moec_ir::diag::Diagnostic;
use moec_ir::quant::{QuantFormat, ScaleCode};

/// A tensor of codes that was found, and what is known of it.
pub(crate) struct Found<'a, 'd> {
    pub checkpoint: &'a Checkpoint,
    /// The float tensor that it stands for.
    pub name: &'d str,
    /// The name of the tensor of codes.
    pub codes_name: String,
    pub codes: TensorView<'a>,
    /// What the config says.
    pub declared: Declared<'d>,
}

/// The name of a tensor without `.weight`.
pub(crate) fn stem(name: &str) -> &str {
    name.strip_suffix(".weight").unwrap_or(name)
}

/// Whether the checkpoint has `name`, as it is or quantised in any scheme.
pub(crate) fn contains(checkpoint: &Checkpoint, name: &str) -> bool {
    checkpoint.contains(name) || SCHEMES.iter().any(|s| (s.codes)(name).is_some_and(|n| checkpoint.contains(&n)))
}

/// The tensors of scales that the checkpoint has for `name`, whoever named them.
fn scales_of(checkpoint: &Checkpoint, name: &str) -> impl Iterator<Item = String> {
    let own = ["_scale", "_scale_inv", "_weight_scale"].map(|end| format!("{name}{end}"));
    let stem = name.strip_suffix(".weight");
    let below = [".scale", ".scales"].into_iter().filter_map(move |end| Some(format!("{}{end}", stem?)));
    own.into_iter().chain(below).filter(|n| checkpoint.contains(n))
}

/// The name of a tensor of scales for floats, where there is one. `stem.scale` may be a parameter of its own where the config
/// does not say that there are codes.
pub(crate) fn scales_beside(checkpoint: &Checkpoint, name: &str, declared: Declared<'_>) -> Option<String> {
    if checkpoint.is_alone(name, stem(name)) {
        return None;
    }
    let coded = matches!(declared, Declared::As(Spec::Coded(_) | Spec::Integers(_)));
    scales_of(checkpoint, name).find(|n| coded || !n.ends_with(".scale"))
}

/// The quantised tensor that stands for the float tensor `name`, and what it is called; `None` when `name` is stored as it is, or
/// not at all.
///
/// # Errors
/// `quantised-form-ambiguous` when there are two, those of the schemes, and those of [`Checkpoint::tensor`].
pub(crate) fn find<'a>(
    checkpoint: &'a Checkpoint,
    name: &str,
    declared: Declared<'_>,
) -> Result<Option<(String, Elements<'a>)>, Diagnostic> {
    let is_float = |t: TensorView<'_>| matches!(t.dtype.dtype(), Some(dtype) if dtype.is_float());
    if checkpoint.is_alone(name, stem(name)) && checkpoint.tensor(name)?.is_some_and(is_float) {
        // Tensors of all schemes begin with the stem, so that there are none; experts are many, and so are schemes.
        return Ok(None);
    }
    let mut found: Option<(String, &str, Elements<'a>)> = None;
    for scheme in SCHEMES {
        let Some(codes_name) = (scheme.codes)(name) else { continue };
        let Some(codes) = checkpoint.tensor(&codes_name)? else { continue };
        if !(scheme.takes)(codes.dtype) {
            continue;
        }
        let at = Found { checkpoint, name, codes_name, codes, declared };
        let Some(elements) = (scheme.read)(&at)? else { continue };
        checkpoint.check_listed(&at.codes_name, &format!("{}.", stem(name)))?;
        if let Some(pair) = twice(checkpoint, name, &elements) {
            return Err(scales_twice(&at.codes_name, &at.codes, &pair));
        }
        if let Some((other, by, _)) = &found {
            return Err(ambiguous(checkpoint, name, (other, by), (&at.codes_name, scheme.name)));
        }
        found = Some((at.codes_name, scheme.name, elements));
    }
    match found {
        Some((codes, by, _)) if codes != name && checkpoint.contains(name) => {
            Err(ambiguous(checkpoint, name, (&codes, by), (name, "floats")))
        }
        found => Ok(found.map(|(codes, _, elements)| (codes, elements))),
    }
}

/// Two tensors for one thing: scales, global scales or zero points under the names of two publishers.
fn twice(checkpoint: &Checkpoint, name: &str, elements: &Elements<'_>) -> Option<[String; 2]> {
    let stem = stem(name);
    let scales = match elements {
        Elements::Blocks(b) => b.scales_name.clone(),
        Elements::Integers(i) => i.scales_name.clone(),
        Elements::Plain(..) | Elements::Ggml(_) => return None,
    };
    let other = scales_of(checkpoint, name).find(|n| *n != scales);
    let both = |a: String, b: String| (checkpoint.contains(&a) && checkpoint.contains(&b)).then_some([a, b]);
    other
        .map(|other| [scales, other])
        .or_else(|| both(format!("{name}_scale_2"), format!("{name}_global_scale")))
        .or_else(|| both(format!("{stem}.qzeros"), format!("{name}_zero_point")))
}

fn scales_twice(codes_name: &str, codes: &TensorView<'_>, [one, other]: &[String; 2]) -> Diagnostic {
    Diagnostic::input(
        "quantised-form-ambiguous",
        format!("`{codes_name}` in `{}` has scales or zero points twice: `{one}` and `{other}`", codes.file.display()),
    )
    .note("nothing says which of them count")
    .help("give a checkpoint that holds one of them")
}

fn ambiguous(checkpoint: &Checkpoint, name: &str, one: (&str, &str), other: (&str, &str)) -> Diagnostic {
    let at = checkpoint.path().display();
    let ((one, one_by), (other, other_by)) = (one, other);
    Diagnostic::input(
        "quantised-form-ambiguous",
        format!("`{at}` has the weight `{name}` twice: as `{one}` ({one_by}) and as `{other}` ({other_by})"),
    )
    .note("nothing says which of them counts")
    .help("give a checkpoint that holds one of them")
}

impl<'a> Found<'a, '_> {
    /// The name of the float tensor without `.weight`.
    pub(crate) fn stem(&self) -> &str {
        stem(self.name)
    }

    /// Another tensor of the checkpoint.
    pub(crate) fn tensor(&self, name: &str) -> Result<Option<TensorView<'a>>, Diagnostic> {
        self.checkpoint.tensor(name)
    }

    /// The tensor of `names` that is there, with its name.
    pub(crate) fn first(&self, names: &[String]) -> Result<Option<(String, TensorView<'a>)>, Diagnostic> {
        let mut found = names.iter().filter(|n| self.checkpoint.contains(n));
        let (Some(name), other) = (found.next(), found.next()) else { return Ok(None) };
        if let Some(other) = other {
            return Err(scales_twice(&self.codes_name, &self.codes, &[name.clone(), other.clone()]));
        }
        Ok(self.checkpoint.tensor(name)?.map(|t| (name.clone(), t)))
    }

    /// As [`Found::first`], where one has to be there: `expected` is type and shape.
    pub(crate) fn need(&self, names: &[String], expected: &str) -> Result<(String, TensorView<'a>), Diagnostic> {
        self.first(names)?.ok_or_else(|| self.missing("quantised-scale-missing", "its scales are", names, expected))
    }

    /// The error of a tensor that has to be beside the codes: `what` is a part of the sentence, `its zero points are`.
    pub(crate) fn missing(&self, code: &'static str, what: &str, names: &[String], expected: &str) -> Diagnostic {
        let at = self.codes.file.display();
        let looked: Vec<String> = names.iter().map(|n| format!("`{n}`")).collect();
        Diagnostic::input(
            code,
            format!(
                "`{}` in `{at}` is quantised, {}, but {what} not in the checkpoint",
                self.codes_name,
                self.codes.describe()
            ),
        )
        .note(format!("looked for {}: {expected}", looked.join(", ")))
        .help(format!("give the checkpoint whole, or one in a format that `moec explain {code}` lists"))
    }

    /// The error of a tensor that does not fit the codes.
    pub(crate) fn fits_not(&self, name: &str, other: &TensorView<'_>, why: &str) -> Diagnostic {
        Diagnostic::input(
            "quantised-scale-mismatch",
            format!(
                "`{name}`, {}, does not fit the codes of `{}`, {}, in `{}`",
                other.describe(),
                self.codes_name,
                self.codes.describe(),
                self.codes.file.display()
            ),
        )
        .note(why)
        .help("see `moec explain quantised-scale-mismatch` for the formats that are read")
    }

    /// The error of codes whose form is not read: `how` follows `is stored`.
    pub(crate) fn unread(&self, how: &str) -> Diagnostic {
        Diagnostic::input(
            "quantised-checkpoint",
            format!(
                "`{}` in `{}` is stored {how}, which moec does not read",
                self.codes_name,
                self.codes.file.display()
            ),
        )
        .help("docs/checkpoints.md lists the formats that are read")
    }

    /// The error of a config and tensors that say different things.
    pub(crate) fn contradicts(&self, found: &str) -> Diagnostic {
        Diagnostic::input(
            "quantisation-contradicts-config",
            format!(
                "`{}`, {}, in `{}` is {found}, but {}",
                self.codes_name,
                self.codes.describe(),
                self.codes.file.display(),
                said(self.declared)
            ),
        )
        .note("config and weights belong to different checkpoints, or one of them was changed")
        .help("give the config that was published with these weights")
    }

    /// What only a config can tell, and none does.
    pub(crate) fn needs_config(&self, what: &str) -> Diagnostic {
        Diagnostic::input(
            "quantisation-not-described",
            format!(
                "`{}` in `{}` is quantised, but {} that says {what}",
                self.codes_name,
                self.codes.file.display(),
                match self.declared {
                    Declared::NoConfig => "there is no `quantization_config`",
                    Declared::Left | Declared::As(_) => "nothing in the config",
                }
            ),
        )
        .help("give the `config.json` that was published with the weights: beside them, or as the model")
    }

    /// What the config says, when it says that there are codes with scales for blocks.
    pub(crate) fn coded(&self) -> Option<&CodedSpec> {
        match self.declared {
            Declared::As(Spec::Coded(c)) => Some(c),
            Declared::As(Spec::Floats | Spec::Unsaid | Spec::Integers(_) | Spec::Unread(_))
            | Declared::NoConfig
            | Declared::Left => None,
        }
    }

    /// What the config says, when it says that there are integers.
    pub(crate) fn integers(&self) -> Option<&IntegerSpec> {
        match self.declared {
            Declared::As(Spec::Integers(i)) => Some(i),
            Declared::As(Spec::Floats | Spec::Unsaid | Spec::Coded(_) | Spec::Unread(_))
            | Declared::NoConfig
            | Declared::Left => None,
        }
    }

    /// Refuses codes of another format than the config says.
    pub(crate) fn check_coded(&self, found: &QuantFormat, n: u64, k: u64) -> Result<(), Diagnostic> {
        let good = match self.declared {
            Declared::NoConfig | Declared::Left | Declared::As(Spec::Unsaid | Spec::Floats) => true,
            Declared::As(Spec::Unread(why)) => return Err(self.unread(&format!("as {why}"))),
            Declared::As(Spec::Integers(i)) => i.kernels.is_some_and(|f| f.code == found.code),
            Declared::As(Spec::Coded(c)) => {
                // Scales of FP8 are stored in any type of floats, powers of two among them.
                let same_scales = c.format.scale == found.scale || c.format.scale == ScaleCode::F32;
                c.format.code == found.code && same_scales && (!c.blocks_said || c.format.same_blocks(found, n, k))
            }
        };
        if good { Ok(()) } else { Err(self.contradicts(&found.to_string())) }
    }

    /// Global scales: one for all `matrices`, or one for each; divided by where `divide`.
    ///
    /// # Errors
    /// `quantised-scale-missing`, `quantised-scale-mismatch`, and `quantised-scale-invalid` for one that is no positive number.
    pub(crate) fn globals(&self, name: &str, matrices: u64, divide: bool) -> Result<Vec<f32>, Diagnostic> {
        let tensor = self.tensor(name)?.ok_or_else(|| {
            self.missing(
                "quantised-scale-missing",
                "its global scale is",
                &[name.to_string()],
                "F32, one for each matrix",
            )
        })?;
        let values = floats(&tensor).ok_or_else(|| self.fits_not(name, &tensor, "a global scale is a float"))?;
        if values.len() != 1 && values.len() as u64 != matrices {
            return Err(self.fits_not(name, &tensor, "one global scale for each matrix is needed"));
        }
        for (i, v) in values.iter().enumerate() {
            let used = if divide { 1.0 / v } else { *v };
            if !(v.is_finite() && *v > 0.0 && used.is_finite() && used > 0.0) {
                return Err(bad_scale(name, i as u64, *v, &tensor.file.display().to_string()));
            }
        }
        Ok(values.into_iter().map(|v| if divide { 1.0 / v } else { v }).collect())
    }

    /// What columns were multiplied by before the product (`pre_quant_scale`), when there is such a tensor beside the codes.
    pub(crate) fn column_scales(&self, k: u64) -> Result<Vec<f32>, Diagnostic> {
        let name = format!("{}.pre_quant_scale", self.stem());
        let Some(tensor) = self.tensor(&name)? else { return Ok(Vec::new()) };
        let values = floats(&tensor).filter(|v| v.len() as u64 == k);
        let values =
            values.ok_or_else(|| self.fits_not(&name, &tensor, &format!("one float for each of {k} columns")))?;
        match values.iter().position(|v| !(v.is_finite() && *v > 0.0)) {
            Some(i) => Err(bad_scale(&name, i as u64, values[i], &tensor.file.display().to_string())),
            None => Ok(values),
        }
    }
}

/// The error of a scale that no quantiser writes.
pub(crate) fn bad_scale(tensor: &str, index: u64, value: f32, file: &str) -> Diagnostic {
    Diagnostic::input(
        "quantised-scale-invalid",
        format!("scale {index} of `{tensor}` in `{file}` is {value}; a scale is a positive number"),
    )
    .help("the checkpoint is damaged or was written by a faulty tool; download or quantise it again")
}

/// The values of a short tensor of floats.
pub(crate) fn floats(t: &TensorView<'_>) -> Option<Vec<f32>> {
    t.to_tensor().filter(|t| t.dtype.is_float()).map(|t| t.floats().to_vec())
}

/// The type of scales that are floats.
pub(crate) fn float_scales(dtype: StoredType) -> Option<ScaleCode> {
    match dtype {
        StoredType::F32 => Some(ScaleCode::F32),
        StoredType::BF16 => Some(ScaleCode::BF16),
        StoredType::F16 => Some(ScaleCode::F16),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What [`find`] relies on for tensors that are alone.
    #[test]
    fn codes_of_every_scheme_begin_with_the_stem() {
        for name in ["experts.0.gate_proj.weight", "experts.gate_up_proj"] {
            for codes in SCHEMES.iter().filter_map(|s| (s.codes)(name)) {
                assert!(codes.starts_with(stem(name)), "{codes}");
            }
        }
    }
}
