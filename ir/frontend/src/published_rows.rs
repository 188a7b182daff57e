//! What a config says about the activations of its quantised layers.
//!
//! | says so | activations |
//! |---|---|
//! | `quant_method` fp8, `activation_scheme` dynamic | FP8 in blocks of 128 where weights have blocks (`scale_fmt` ue8m0: powers of two), else for each row |
//! | `input_activations` of a group of compressed-tensors | FP8 for each row or in blocks of 128, MXFP8, MXFP4, when `dynamic`; NVFP4 |
//! | `quant_algo` (ModelOpt) | NVFP4, MXFP8, or FP8 for each row |
//! | all others | as they are; or in a format whose scale is stored beside the weights, which is told |

use crate::json::{Json, Object};
use moec_ir::ActQuant;
use moec_ir::diag::Diagnostic;

/// How the rows before the quantised matrices of a checkpoint are meant to be rounded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum PublishedRows {
    /// Not at all.
    #[default]
    Floats,
    /// To a format whose scales follow from the rows, or to NVFP4, whose global scale the checkpoint holds.
    Rounded(ActQuant),
    /// To a format, in words, that moec does not round to by itself: its scale comes from calibration, or its codes are
    /// integers.
    Other(String),
}

impl PublishedRows {
    /// Reads the config of a model: `root` is the file, `text` its decoder.
    ///
    /// # Errors
    /// `config-key-type` for a value of another type than every config has there.
    pub(crate) fn of(root: &Object, text: &Object) -> Result<PublishedRows, Diagnostic> {
        let keys = ["quantization_config", "compression_config"];
        if let Some(node) = keys.iter().find_map(|k| text.get(k).or_else(|| root.get(k))) {
            return read(&node.object()?);
        }
        if let Some(q) = root.get("quantization").filter(|q| q.is_object()) {
            return read(&q.object()?);
        }
        // DeepSeek's own configs.
        Ok(match (word(root, "dtype").as_str(), word(root, "scale_fmt").as_str()) {
            ("fp8", "ue8m0") => PublishedRows::Rounded(ActQuant::FP8_BLOCK_POW2),
            ("fp8", _) => PublishedRows::Rounded(ActQuant::FP8_BLOCK),
            _ => PublishedRows::Floats,
        })
    }

    /// Reads ModelOpt's `hf_quant_config.json`.
    ///
    /// # Errors
    /// As [`PublishedRows::of`].
    pub(crate) fn of_modelopt(top: &Object) -> Result<PublishedRows, Diagnostic> {
        match top.get("quantization").filter(|q| q.is_object()) {
            Some(q) => read(&q.object()?),
            None => Ok(PublishedRows::Floats),
        }
    }
}

fn read(q: &Object) -> Result<PublishedRows, Diagnostic> {
    let algo = word(q, "quant_algo").to_uppercase();
    if !algo.is_empty() {
        return Ok(by_algo(&algo));
    }
    if q.get("config_groups").is_some() {
        return of_groups(q);
    }
    let blocks = q.get("weight_block_size").is_some_and(|v| v.is_list());
    Ok(match (word(q, "quant_method").as_str(), word(q, "activation_scheme").as_str()) {
        ("fp8", "dynamic") if blocks && word(q, "scale_fmt") == "ue8m0" => {
            PublishedRows::Rounded(ActQuant::FP8_BLOCK_POW2)
        }
        ("fp8", "dynamic") if blocks => PublishedRows::Rounded(ActQuant::FP8_BLOCK),
        ("fp8", "dynamic") => PublishedRows::Rounded(ActQuant::FP8_TOKEN),
        ("fp8", "static") => PublishedRows::Other("FP8 with a static scale".to_string()),
        ("fbgemm_fp8", _) => PublishedRows::Other("FP8 for each row, cut off at an upper bound".to_string()),
        _ => PublishedRows::Floats,
    })
}

fn by_algo(algo: &str) -> PublishedRows {
    match algo {
        "MXFP8" => PublishedRows::Rounded(ActQuant::MXFP8),
        "FP8_PER_CHANNEL_PER_TOKEN" => PublishedRows::Rounded(ActQuant::FP8_TOKEN),
        "FP8" => PublishedRows::Other("FP8 with a static scale".to_string()),
        "NVFP4" | "FP4" => PublishedRows::Rounded(ActQuant::NVFP4),
        "MIXED_PRECISION" => PublishedRows::Other("formats that differ from layer to layer".to_string()),
        _ => PublishedRows::Floats,
    }
}

/// The first group whose rows are quantised.
fn of_groups(q: &Object) -> Result<PublishedRows, Diagnostic> {
    let Some(all) = q.get("config_groups").filter(|v| v.is_object()) else { return Ok(PublishedRows::Floats) };
    for (_, group) in all.object()?.members() {
        let Some(rows) = group.object().ok().and_then(|g| g.get("input_activations").cloned()) else { continue };
        if rows.is_object() {
            return Ok(of_group(&rows.object()?));
        }
    }
    Ok(PublishedRows::Floats)
}

fn of_group(rows: &Object) -> PublishedRows {
    let shown = |key: &str| rows.get(key).map(Json::shown).unwrap_or_default();
    let (bits, block) = (shown("num_bits"), shown("group_size"));
    let is_float = word(rows, "type") == "float";
    let by_itself = shown("dynamic") == "true";
    let known = match (is_float && by_itself, bits.as_str(), block.as_str()) {
        (true, "8", "32") => Some(ActQuant::MXFP8),
        (true, "8", "128") => Some(ActQuant::FP8_BLOCK),
        (true, "8", _) if word(rows, "strategy") == "token" => Some(ActQuant::FP8_TOKEN),
        (true, "4", "32") => Some(ActQuant::MXFP4),
        _ => None,
    };
    match known {
        Some(q) => PublishedRows::Rounded(q),
        None if is_float && bits == "4" && block == "16" => PublishedRows::Rounded(ActQuant::NVFP4),
        None => {
            let what = if is_float { "FP" } else { "INT" };
            let how = if by_itself { "" } else { " with a static scale" };
            PublishedRows::Other(format!("{what}{bits}{how}"))
        }
    }
}

/// The text of `key`; empty when it is absent or no text.
fn word(o: &Object, key: &str) -> String {
    o.get(key).filter(|v| v.is_string()).and_then(|v| v.string().ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ModelConfig;

    #[test]
    fn what_published_configs_say_is_understood() {
        let of = |quantization: &str| {
            let text = format!(
                r#"{{"model_type": "mixtral", "hidden_size": 64, "intermediate_size": 32, "num_local_experts": 4,
                    "num_experts_per_tok": 2, "num_hidden_layers": 1 {quantization}}}"#
            );
            ModelConfig::from_text("config.json", text).expect("a config").published_rows().clone()
        };
        let fp8 = |more: &str| of(&format!(r#", "quantization_config": {{"quant_method": "fp8" {more}}}"#));
        let blocks = r#", "activation_scheme": "dynamic", "weight_block_size": [128, 128]"#;
        assert_eq!(fp8(blocks), PublishedRows::Rounded(ActQuant::FP8_BLOCK));
        assert_eq!(
            fp8(&format!(r#"{blocks}, "scale_fmt": "ue8m0""#)),
            PublishedRows::Rounded(ActQuant::FP8_BLOCK_POW2)
        );
        assert_eq!(fp8(r#", "activation_scheme": "dynamic""#), PublishedRows::Rounded(ActQuant::FP8_TOKEN));
        assert!(matches!(fp8(r#", "activation_scheme": "static""#), PublishedRows::Other(_)));
        assert_eq!(of(r#", "quantization_config": {"quant_method": "mxfp4"}"#), PublishedRows::Floats);
        assert_eq!(of(""), PublishedRows::Floats);
        let group = |rows: &str| {
            of(&format!(
                r#", "quantization_config": {{"quant_method": "compressed-tensors", "config_groups": {{"group_0":
                    {{"targets": ["Linear"], "weights": {{"num_bits": 8, "type": "float", "strategy": "channel"}},
                      "input_activations": {rows}}}}}}}"#
            ))
        };
        let token = r#"{"num_bits": 8, "type": "float", "strategy": "token", "dynamic": true}"#;
        assert_eq!(group(token), PublishedRows::Rounded(ActQuant::FP8_TOKEN));
        assert_eq!(group("null"), PublishedRows::Floats);
        let nvfp4 = r#"{"num_bits": 4, "type": "float", "group_size": 16, "dynamic": "local"}"#;
        assert_eq!(group(nvfp4), PublishedRows::Rounded(ActQuant::NVFP4));
        let int8 = r#"{"num_bits": 8, "type": "int", "strategy": "token", "dynamic": true}"#;
        assert_eq!(group(int8), PublishedRows::Other("INT8".into()));
        let mx = r#"{"num_bits": 8, "type": "float", "group_size": 32, "dynamic": true}"#;
        assert_eq!(group(mx), PublishedRows::Rounded(ActQuant::MXFP8));
    }
}
