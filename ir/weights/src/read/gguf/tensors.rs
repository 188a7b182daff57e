//! The tensors of a GGUF file under the names that families have for them. Stacks of experts become one tensor for each
//! expert, which lies in the stack; what does not belong to an MoE layer keeps its name.

use super::architectures::Names;
use super::container::Gguf;
use crate::read::safetensors::{Entry, describe};
use moec_ir::diag::Diagnostic;
use std::collections::BTreeMap;
use std::path::Path;

/// The most experts that a stack is taken apart into.
const MAX_EXPERTS: u64 = 65_536;

/// All tensors of a file.
///
/// # Errors
/// `gguf-invalid` when two tensors come to the same name; `gguf-model-unsupported` for a tensor of an MoE layer that has no name, `gguf-metadata-mismatch` for one of another shape
/// than its name says.
pub(crate) fn tensors(file: &Path, gguf: Gguf, names: &Names) -> Result<BTreeMap<String, Entry>, Diagnostic> {
    let mut out = BTreeMap::new();
    for (name, entry) in gguf.tensors {
        let block = name.strip_prefix("blk.").and_then(|rest| rest.split_once('.'));
        let block = block.filter(|(number, _)| number.parse::<u32>().is_ok());
        let placed = match block {
            None => Placed::AsItIs,
            Some((number, kind)) => {
                let tensor = Tensor { file, name: &name, entry: &entry, prefix: format!("model.layers.{number}.") };
                tensor.place(kind, names)?
            }
        };
        let placed = match placed {
            Placed::AsItIs => vec![(name.clone(), entry)],
            Placed::Under(list) => list,
        };
        for (new, entry) in placed {
            if out.insert(new.clone(), entry).is_some() {
                let what = format!("`{}` has two tensors for `{new}`, one of them `{name}`", file.display());
                return Err(Diagnostic::input("gguf-invalid", what)
                    .help("the file was written by a faulty tool; convert the model again"));
            }
        }
    }
    Ok(out)
}

enum Placed {
    AsItIs,
    Under(Vec<(String, Entry)>),
}

/// A tensor of a layer.
struct Tensor<'a> {
    file: &'a Path,
    name: &'a str,
    entry: &'a Entry,
    prefix: String,
}

impl Tensor<'_> {
    /// `kind` is the name without the number of the layer.
    fn place(&self, kind: &str, names: &Names) -> Result<Placed, Diagnostic> {
        let (stem, [gate, up, down]) = names.experts;
        let matrix = |m: &str| match m {
            "gate" => Some(gate),
            "up" => Some(up),
            "down" => Some(down),
            _ => None,
        };
        let (front, end) = kind.rsplit_once('.').unwrap_or((kind, ""));
        let ffn = front.strip_prefix("ffn_");
        if let Some(m) = ffn.and_then(|f| matrix(f.strip_suffix("_exps")?)) {
            return match end {
                "weight" => self.stack(3, 1, |e, _| format!("{stem}.{e}.{m}.weight")),
                "bias" => self.stack(2, 1, |e, _| format!("{stem}.{e}.{m}.bias")),
                _ => Err(self.unknown()),
            };
        }
        // One expert by itself, as files from before 2024 have them.
        if let Some((m, e)) = ffn.and_then(|f| f.split_once('.')).filter(|(_, e)| e.parse::<u32>().is_ok()) {
            return match matrix(m).filter(|_| end == "weight") {
                Some(m) => Ok(self.under(format!("{stem}.{e}.{m}.weight"))),
                None => Err(self.unknown()),
            };
        }
        let shared = names.shared.zip(ffn.and_then(|f| f.strip_suffix("_shexp")));
        match (kind, names) {
            ("ffn_gate_up_exps.weight", _) => {
                self.stack(3, 2, |e, half| format!("{stem}.{e}.{}.weight", if half == 0 { gate } else { up }))
            }
            ("ffn_gate_inp.weight" | "ffn_gate_inp.bias", _) => Ok(self.under(format!("{}.{end}", names.router))),
            ("exp_probs_b.bias" | "exp_probs_b", Names { selection_bias: Some(bias), .. }) => {
                Ok(self.under((*bias).to_string()))
            }
            // A row of one matrix, stored as a vector.
            ("ffn_gate_inp_shexp.weight", Names { shared_gate: Some(gate), .. }) => {
                let length = self.entry.shape.iter().product();
                Ok(self.under_as((*gate).to_string(), vec![1, length]))
            }
            _ => match shared {
                Some((shared, m @ ("gate" | "up" | "down"))) if end == "weight" => {
                    Ok(self.under(format!("{shared}.{m}_proj.weight")))
                }
                _ if about_experts(kind) => Err(self.unknown()),
                _ => Ok(Placed::AsItIs),
            },
        }
    }

    /// One tensor for each expert, each in `parts` along its first axis.
    fn stack(&self, axes: usize, parts: u64, name: impl Fn(u64, u64) -> String) -> Result<Placed, Diagnostic> {
        let Entry { dtype, shape, start, end } = self.entry;
        let shown = describe(*dtype, shape);
        let (Some((&n_experts, one)), true) = (shape.split_first(), shape.len() == axes) else {
            return Err(self.mismatch(format!("is {shown}; a stack of experts has {axes} axes")));
        };
        let rows = one.first().copied().unwrap_or(1);
        if n_experts > MAX_EXPERTS || !rows.is_multiple_of(parts) {
            return Err(self.mismatch(format!("is {shown}, which is no stack of experts")));
        }
        let mut shape = one.to_vec();
        if let Some(first) = shape.first_mut() {
            *first = rows / parts;
        }
        // Whole rows of whole blocks, so that the bytes divide.
        let bytes = (end - start) / (n_experts * parts).max(1) as usize;
        let slice = |e: u64, part: u64| {
            let start = start + (e * parts + part) as usize * bytes;
            let entry = Entry { dtype: *dtype, shape: shape.clone(), start, end: start + bytes };
            (format!("{}{}", self.prefix, name(e, part)), entry)
        };
        let slice = &slice;
        Ok(Placed::Under((0..n_experts).flat_map(|e| (0..parts).map(move |part| slice(e, part))).collect()))
    }

    fn under(&self, name: String) -> Placed {
        self.under_as(name, self.entry.shape.clone())
    }

    fn under_as(&self, name: String, shape: Vec<u64>) -> Placed {
        Placed::Under(vec![(format!("{}{name}", self.prefix), Entry { shape, ..self.entry.clone() })])
    }

    fn mismatch(&self, what: String) -> Diagnostic {
        Diagnostic::input("gguf-metadata-mismatch", format!("`{}` in `{}` {what}", self.name, self.file.display()))
            .help("the file was written by a faulty tool, or for another architecture than it says; convert it again")
    }

    fn unknown(&self) -> Diagnostic {
        Diagnostic::input(
            "gguf-model-unsupported",
            format!(
                "`{}` in `{}` belongs to an MoE layer, but moec does not know what it means there",
                self.name,
                self.file.display()
            ),
        )
        .note("left out, the layer would compute something else than llama.cpp")
        .help("use the model's safetensors checkpoint, or a file of another quantisation")
    }
}

/// Whether a tensor of a layer, by its name, has to do with experts.
fn about_experts(kind: &str) -> bool {
    kind.contains("exps")
        || kind.contains("shexp")
        || kind.contains("exp_")
        || kind.starts_with("ffn_gate_inp")
        || kind.contains("latent")
}
