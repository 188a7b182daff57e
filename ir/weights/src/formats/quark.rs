//! AMD Quark: one `weight` description for all linear layers, and others for patterns of names.
//!
//! The tensors are those of other publishers: `N` U8 `[N, K/2]` with `N_scale` e8m0 (MXFP4, [`super::modelopt`]), `N` F8_E4M3 with
//! `N_scale` ([`super::fp8`]).
//! Source: Quark (`torch/quantization/config/config.py`, `torch/export/json_export`).

use super::fp8::{CHANNEL, MXFP4, MXFP8, TENSOR};
use super::{ConfigReader, everywhere};
use crate::config::{CodedSpec, Group, IntegerSpec, Keys, Packing, Pattern, Rule, Spec, ZeroPoints};
use moec_ir::diag::Diagnostic;

/// `quant_method` quark.
pub(super) const CONFIG: ConfigReader = ConfigReader {
    is: |method, _| method == "quark",
    read: |q, _| {
        let mut rules = Vec::new();
        for (pattern, own) in q.rules("layer_quant_config")? {
            if let Some(own) = own.object()? {
                let spec = of_layer(&own)?;
                rules.push(Rule { modules: Some(vec![Pattern::new(pattern)]), spec });
            }
        }
        if let Some(types) = q.object("layer_type_quant_config")?
            && types.names().next().is_some()
        {
            return Ok(everywhere(Spec::Unread("settings by `layer_type_quant_config` of Quark".to_string())));
        }
        if let Some(export) = q.object("export")? {
            let format = export.word("weight_format")?;
            if !matches!(format.as_deref(), None | Some("real_quantized")) {
                let what = format!("`weight_format` {} of Quark", format.unwrap_or_default());
                return Ok(everywhere(Spec::Unread(what)));
            }
            // `pack_method` reorders integers of 4 bits only, which are not read.
            export.finish(&["kv_cache_group", "min_kv_scale", "weight_merge_groups", "pack_method"])?;
        }
        if let Some(global) = q.object("global_quant_config")? {
            rules.extend(everywhere(of_layer(&global)?));
        }
        Ok(rules)
    },
    irrelevant: &[
        "algo_config",
        "kv_cache_quant_config",
        "kv_cache_post_rope",
        "quant_mode",
        "softmax_quant_spec",
        "version",
        "kv_cache_group",
    ],
};

/// A layer's settings: `weight`, and of the rest only activations.
fn of_layer(q: &Keys<'_>) -> Result<Spec, Diagnostic> {
    let spec = match q.get("weight") {
        Some(serde_json::Value::Array(_)) => Spec::Unread("several steps (`weight` is a list) of Quark".to_string()),
        _ => match q.object("weight")? {
            Some(w) => of_weight(&w)?,
            None => Spec::Floats,
        },
    };
    q.finish(&["input_tensors", "output_tensors", "bias", "target_device"])?;
    Ok(spec)
}

fn of_weight(w: &Keys<'_>) -> Result<Spec, Diagnostic> {
    let dtype = w.word("dtype")?.unwrap_or_default();
    let scheme = w.word("qscheme")?.unwrap_or_default();
    let size = w.whole("group_size")?;
    let scales = w.word("scale_format")?.unwrap_or_default();
    let element = w.word("mx_element_dtype")?;
    let symmetric = w.flag("symmetric")?;
    let axis = w.whole("ch_axis")?;
    let is_last = axis.is_none_or(|a| a == -1 || a == 1);
    w.finish(&[
        "observer_cls",
        "is_dynamic",
        "round_method",
        "scale_type",
        "scale_calculation_mode",
        "is_scale_quant",
        "zero_point_type",
        "block_size",
        "qat_spec",
        "enable_buffer_reuse",
        "max_input_numel",
    ])?;
    let coded = |name: &str, format| {
        let words = format!("{name} of Quark");
        Ok(Spec::Coded(CodedSpec { words, format, blocks_said: true }))
    };
    let integers = |group| {
        Ok(Spec::Integers(IntegerSpec {
            words: "8-bit integers of Quark".to_string(),
            packing: Packing::Bytes,
            bits: 8,
            group,
            symmetric,
            ordered: false,
            zeros: ZeroPoints::AsTheyAre,
            kernels: None,
        }))
    };
    match (dtype.as_str(), scheme.as_str(), size, scales.as_str()) {
        ("int8", "per_tensor", _, _) => integers(Group::Matrix),
        ("int8", "per_channel", _, _) if matches!(axis, None | Some(0)) => integers(Group::Row),
        ("fp4", "per_group", Some(32), "e8m0") if is_last => coded("MXFP4", MXFP4),
        ("mx", "per_group", Some(32), _) if element.as_deref() == Some("fp4") && is_last => coded("MXFP4", MXFP4),
        ("fp8_e4m3" | "fp8_e4m3fn", "per_group", Some(32), "e8m0") if is_last => coded("MXFP8", MXFP8),
        ("fp8_e4m3" | "fp8_e4m3fn", "per_tensor", _, _) => coded("FP8 with one scale a matrix", TENSOR),
        ("fp8_e4m3" | "fp8_e4m3fn", "per_channel", _, _) if matches!(axis, None | Some(0)) => {
            coded("FP8 with one scale a row", CHANNEL)
        }
        _ => Ok(Spec::Unread(format!("`{dtype}` `{scheme}` of Quark"))),
    }
}
