//! Which parameters a checkpoint publishes as codes and scales, from its config.
//!
//! A parameter is marked only where its format is certain and its blocks lie whole in it; every other one stays dense,
//! which is always right: the loader dequantises whatever it finds.

use crate::json::{Json, Object};
use moec_ir::diag::Diagnostic;
use moec_ir::graph::{Graph, Param};
use moec_ir::quant::{Code, QuantFormat, ScaleCode};
use moec_ir::weights::{WeightSource, WeightStep};

/// The format of a quantised checkpoint's linear layers, and which of them it covers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stored {
    format: QuantFormat,
    /// Patterns of the modules that are left as floats.
    excluded: Vec<String>,
    /// Only routed experts are quantised.
    experts_only: bool,
    /// The format of routed experts, where it is another one.
    routed: Option<QuantFormat>,
}

impl Stored {
    /// The format that a `quantization_config` names, when it is one that kernels read.
    pub(crate) fn of(root: &Object, text: &Object) -> Option<Stored> {
        let keys = ["quantization_config", "compression_config"];
        let node = keys.iter().find_map(|k| text.get(k).or_else(|| root.get(k)))?;
        let q = node.object().ok()?;
        let mut stored = Stored::read(&q).ok().flatten()?;
        // DeepSeek-V4 says `fp8` of its linear layers, and of its routed experts, elsewhere, that they are MXFP4.
        let expert_type = text.get("expert_dtype").or_else(|| root.get("expert_dtype")).filter(|v| v.is_string());
        let is_fp8 = stored.format.code == Code::E4M3;
        if is_fp8 && expert_type.and_then(|v| v.string().ok()).as_deref() == Some("fp4") {
            stored.routed =
                Some(QuantFormat { code: Code::E2M1, scale: ScaleCode::E8M0, block_rows: 1, block_cols: 32 });
        }
        Some(stored)
    }

    fn read(q: &Object) -> Result<Option<Stored>, Diagnostic> {
        let word = |o: &Object, key: &str| {
            let value = o.get(key).filter(|v| v.is_string());
            value.map(|v| v.string()).transpose().map(|s| s.unwrap_or_default())
        };
        let format = |code, scale, block_rows, block_cols| QuantFormat { code, scale, block_rows, block_cols };
        let mut excluded = Vec::new();
        for key in ["modules_to_not_convert", "ignore", "exclude_modules"] {
            if let Some(list) = q.get(key).filter(|v| v.is_list()) {
                for name in list.list()?.iter().filter(|v| v.is_string()) {
                    excluded.push(name.string()?);
                }
            }
        }
        let found = match word(q, "quant_method")?.as_str() {
            // DeepSeek: blocks of 128 × 128 with float32 scales.
            // A mixture says of no part here what it is.
            "fp8" if q.get("quant_algo").is_some() => None,
            "fp8" if is_list_of(q.get("weight_block_size"), &[128, 128])? => {
                Some((format(Code::E4M3, ScaleCode::F32, 128, 128), false))
            }
            // gpt-oss.
            "mxfp4" => Some((format(Code::E2M1, ScaleCode::E8M0, 1, 32), true)),
            "compressed-tensors" => {
                let named = word(q, "format")?;
                let Some(group) = weight_group(q, "config_groups", "group_0")? else { return Ok(None) };
                let size = group.get("group_size").map(|v| v.shown()).unwrap_or_default();
                // Columns in an order of activations have group indices, which no kernel reads.
                let ordered = group.get("actorder").is_some_and(|v| v.is_string());
                let symmetric = group.get("symmetric").map(|v| v.shown()).unwrap_or_default() == "true" && !ordered;
                match (named.as_str(), size.as_str()) {
                    ("pack-quantized", "32") if symmetric => Some((format(Code::Int4, ScaleCode::BF16, 1, 32), false)),
                    ("pack-quantized", "128") if symmetric => {
                        Some((format(Code::Int4, ScaleCode::BF16, 1, 128), false))
                    }
                    ("mxfp4-pack-quantized", "32") => Some((format(Code::E2M1, ScaleCode::E8M0, 1, 32), false)),
                    ("nvfp4-pack-quantized", _) => Some((format(Code::E2M1, ScaleCode::E4M3, 1, 16), false)),
                    _ => None,
                }
            }
            "modelopt" if word(q, "quant_algo")? == "NVFP4" => {
                Some((format(Code::E2M1, ScaleCode::E4M3, 1, 16), false))
            }
            _ => None,
        };
        Ok(found.map(|(format, experts_only)| Stored { format, excluded, experts_only, routed: None }))
    }

    /// Marks the expert matrices of a layer that the checkpoint stores in this format.
    pub(crate) fn mark(&self, graph: &mut Graph) {
        for param in &mut graph.params {
            let matrix = param.name.starts_with("experts.") || param.name.starts_with("shared.") && !self.experts_only;
            let routed = self.routed.filter(|_| param.name.starts_with("experts."));
            let format = routed.unwrap_or(self.format);
            let fits = matrix && !param.name.ends_with("bias") && fits(param, &format);
            if fits && !names(&param.source).iter().any(|n| self.is_excluded(n)) {
                param.stored = Some(format);
            }
        }
    }

    fn is_excluded(&self, name: &str) -> bool {
        let module = name.strip_suffix(".weight").unwrap_or(name);
        // An expert stands for all.
        let module = module.replace("{e}", "0");
        self.excluded.iter().any(|pattern| excludes(pattern, &module))
    }
}

/// Whether a parameter is made of whole blocks of a matrix.
fn fits(param: &Param, format: &QuantFormat) -> bool {
    let matrix = param.ty.dtype.is_float() && param.ty.shape.len() >= 2;
    matrix && whole_blocks(&param.source, format)
}

/// Whether a pattern of an exclusion list covers a module: a name, the name of a module around it, a name with `*`, or
/// a regular expression `re:…`, of which `.*` and `(a|b)` are understood; any other one is taken to cover everything.
fn excludes(pattern: &str, module: &str) -> bool {
    if let Some((before, (inside, after))) =
        pattern.split_once('(').and_then(|(b, rest)| Some((b, rest.split_once(')')?)))
        && pattern.starts_with("re:")
        && !inside.contains('(')
        && !after.starts_with(['*', '+', '?', '{'])
    {
        return inside.split('|').any(|choice| excludes(&format!("{before}{choice}{after}"), module));
    }
    let (pattern, star) = match pattern.strip_prefix("re:") {
        Some(re) => (re.trim_start_matches('^').trim_end_matches('$').replace("\\.", "."), ".*"),
        None => (pattern.to_string(), "*"),
    };
    let parts: Vec<&str> = pattern.split(star).collect();
    if star == ".*" && parts.iter().any(|p| p.contains(['[', '(', '|', '+', '?', '{', '\\', '*'])) {
        return true;
    }
    // Every part in order; the first at the start of the name or of a module of it, the last at the end of one.
    let starts = std::iter::once(0).chain(module.match_indices('.').map(|(i, _)| i + 1));
    starts.into_iter().any(|start| {
        let mut rest = &module[start..];
        for (i, part) in parts.iter().enumerate() {
            match if i == 0 { rest.starts_with(part).then_some(0) } else { rest.find(part) } {
                Some(at) => rest = &rest[at + part.len()..],
                None => return false,
            }
        }
        rest.is_empty() || rest.starts_with('.') || parts.last().is_some_and(|p| p.is_empty())
    })
}

fn is_list_of(node: Option<&Json>, wanted: &[u64]) -> Result<bool, Diagnostic> {
    let Some(node) = node.filter(|v| v.is_list()) else { return Ok(false) };
    let found: Vec<String> = node.list()?.iter().map(Json::shown).collect();
    Ok(found == wanted.iter().map(ToString::to_string).collect::<Vec<_>>())
}

/// `q[groups][first]["weights"]`
fn weight_group(q: &Object, groups: &str, first: &str) -> Result<Option<Object>, Diagnostic> {
    let Some(groups) = q.get(groups) else { return Ok(None) };
    let groups = groups.object()?;
    let Some(group) = groups.get(first) else { return Ok(None) };
    let group = group.object()?;
    group.get("weights").map(|w| w.object()).transpose()
}

fn names(source: &WeightSource) -> Vec<&String> {
    match source {
        WeightSource::Tensor { names, .. } | WeightSource::PerExpert { names, .. } => names.iter().collect(),
        WeightSource::FirstOf(list) => list.iter().flat_map(names).collect(),
    }
}

/// Whether every way to make the parameter takes whole rows, or rows and columns from one edge of a block to another.
fn whole_blocks(source: &WeightSource, format: &QuantFormat) -> bool {
    let steps = match source {
        WeightSource::Tensor { steps, .. } | WeightSource::PerExpert { steps, .. } => steps,
        WeightSource::FirstOf(list) => return list.iter().all(|s| whole_blocks(s, format)),
    };
    // Single rows may be chosen as one likes; blocks of rows only whole.
    let any_rows = format.block_rows <= 1;
    steps.iter().all(|step| match step {
        WeightStep::Transpose => true,
        WeightStep::Slice { start, step, len, .. } => {
            any_rows || (*step == 1 && start % format.block_rows == 0 && len % format.block_rows == 0)
        }
        WeightStep::Reshape { .. } => false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exclusion_patterns_cover_modules_and_what_is_within() {
        let module = "model.layers.3.mlp.experts.0.up_proj";
        for pattern in [
            "model.layers.3.mlp.experts.0.up_proj",
            "up_proj",
            "model.layers.3.mlp",
            "experts",
            "model.layers.*.mlp.experts",
            "*.up_proj",
            "model.layers.3.*",
            "re:.*mlp.experts.*",
            "re:model\\.layers\\.[0-9]+.*",
            "re:.*experts.*(gate|up)_proj.*",
        ] {
            assert!(excludes(pattern, module), "{pattern}");
        }
        // The last is Kimi K2 Thinking's.
        for pattern in [
            "lm_head",
            "gate",
            "proj",
            "model.layers.30",
            "model.layers.*.self_attn",
            "re:.*self_attn.*",
            "re:.*mlp\\.(gate|up|gate_up|down)_proj.*",
        ] {
            assert!(!excludes(pattern, module), "{pattern}");
        }
    }

    #[test]
    fn slices_within_blocks_keep_a_parameter_dense() {
        let blocks = QuantFormat { code: Code::E4M3, scale: ScaleCode::F32, block_rows: 128, block_cols: 128 };
        let rows = QuantFormat { block_rows: 1, block_cols: 32, ..blocks };
        let slice = |start, step, len| WeightSource::Tensor {
            names: vec!["w".into()],
            steps: vec![WeightStep::Slice { axis: 0, start, step, len }],
        };
        assert!(whole_blocks(&slice(256, 1, 128), &blocks) && whole_blocks(&slice(1, 2, 40), &rows));
        assert!(!whole_blocks(&slice(40, 1, 128), &blocks) && !whole_blocks(&slice(0, 2, 128), &blocks));
        let either = WeightSource::FirstOf(vec![slice(0, 1, 128), slice(40, 1, 40)]);
        assert!(!whole_blocks(&either, &blocks));
    }
}
