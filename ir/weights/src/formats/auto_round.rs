//! AutoRound: GPTQ's or AWQ's tensors, and a config of its own.
//!
//! `packing_format` says which: `auto_round` and `auto_round:gptqmodel` store zero points as they are, `auto_round:auto_gptq` less
//! one, `auto_round:auto_awq` is AWQ, `auto_round:llm_compressor` compressed-tensors. Symmetric codes have scales of either sign:
//! a negative one where the largest magnitude of a group belongs to a negative value. `extra_config` gives modules settings of their own; 16 bits are floats.
//! Source: AutoRound (`export/export_to_autoround/export.py`, `inference/backend.py`).

use super::fp8::{MXFP4, TENSOR};
use super::modelopt::NVFP4;
use super::{ConfigReader, everywhere};
use crate::config::{CodedSpec, Group, IntegerSpec, Keys, Packing, Pattern, Rule, Spec, ZeroPoints};
use moec_ir::diag::Diagnostic;
use moec_ir::quant::QuantFormat;

/// `quant_method` auto-round, and what it was called at first.
pub(super) const CONFIG: ConfigReader = ConfigReader {
    is: |method, _| matches!(method, "auto-round" | "intel/auto-round"),
    read: |q, _| {
        let packing = match q.word("packing_format")? {
            Some(p) => Some(p),
            None => q.word("backend")?,
        };
        let all = Settings::read(q, None)?;
        // Names of modules count before expressions over them.
        let (mut rules, mut expressions) = (Vec::new(), Vec::new());
        for (module, own) in q.rules("extra_config")? {
            let Some(own) = own.object()? else { continue };
            let settings = Settings::read(&own, Some(&all))?;
            own.finish(ABOUT_THE_RUN)?;
            let is_expression = module.contains(['*', '\\', '[', '(', '|', '^', '$', '+']);
            let pattern = Pattern::new(&if is_expression { format!("re:{module}") } else { module.to_string() });
            let rule = Rule { modules: Some(vec![pattern]), spec: settings.spec(packing.as_deref()) };
            if is_expression { expressions.push(rule) } else { rules.push(rule) }
        }
        rules.extend(expressions);
        rules.extend(everywhere(all.spec(packing.as_deref())));
        Ok(rules)
    },
    irrelevant: ABOUT_THE_RUN,
};

/// Keys about activations, and about how the codes were found.
pub(super) const ABOUT_THE_RUN: &[&str] = &[
    "act_bits",
    "act_data_type",
    "act_dynamic",
    "act_group_size",
    "act_sym",
    "amp",
    "autoround_version",
    "batch_size",
    "block_name_to_quantize",
    "dataset",
    "enable_minmax_tuning",
    "enable_norm_bias_tuning",
    "enable_quanted_input",
    "gradient_accumulate_steps",
    "iters",
    "model_free",
    "low_gpu_mem_usage",
    "lr",
    "minmax_lr",
    "nsamples",
    "scale_dtype",
    "seqlen",
    "supported_types",
    "to_quant_block_names",
    "quant_block_list",
    "sym_minmax",
    "enable_alg_ext",
    "momentum",
    "static_kv_dtype",
    "static_attention_dtype",
    "super_bits",
    "super_group_size",
    "tmp_dtype",
    "fixed_by_user",
    "in_blocks",
    "layer_config",
    "ignore_layers",
    "provider",
    "fmt",
    "activation_scheme",
    "regex_config",
];

/// What is said of a module.
struct Settings {
    bits: i64,
    group: Group,
    /// Rows and columns of a block, where `group_size` has both.
    block: Option<(u64, u64)>,
    symmetric: Option<bool>,
    data_type: String,
}

impl Settings {
    fn read(q: &Keys<'_>, all: Option<&Settings>) -> Result<Settings, Diagnostic> {
        let is_block = q.get("group_size").is_some_and(serde_json::Value::is_array);
        let block = if is_block { q.block("group_size")? } else { all.and_then(|a| a.block) };
        let size = if is_block { None } else { q.whole("group_size")? };
        let group = match size {
            Some(size) if size > 0 => Group::Columns(size as u64),
            Some(-1) => Group::Row,
            Some(0) => Group::Matrix,
            Some(_) => return Err(q.wrong("group_size", "a number of columns, -1 for all, or 0 for the matrix")),
            None => all.map_or(Group::Unsaid, |a| a.group),
        };
        for key in ["transform_config", "rotation_config", "hadamard_config"] {
            if q.get(key).and_then(|v| v.as_object()).is_some_and(|o| !o.is_empty()) {
                return Err(Diagnostic::input(
                    "quantised-checkpoint",
                    format!("`{}` rotates activations before the products, which moec does not do", q.path(key)),
                )
                .help("use a checkpoint without it; docs/checkpoints.md lists the formats that are read"));
            }
        }
        Ok(Settings {
            bits: q.whole("bits")?.or(all.map(|a| a.bits)).ok_or_else(|| q.wrong("bits", "a whole number"))?,
            group,
            block,
            symmetric: q.flag("sym")?.or(all.and_then(|a| a.symmetric)),
            data_type: q.word("data_type")?.or(all.map(|a| a.data_type.clone())).unwrap_or_else(|| "int".to_string()),
        })
    }

    fn spec(&self, packing: Option<&str>) -> Spec {
        let coded = |words: &str, format| {
            let words = format!("{words} of AutoRound");
            Spec::Coded(CodedSpec { words, format, blocks_said: true })
        };
        let grouped = |f: QuantFormat| match self.group {
            Group::Columns(block_cols) => QuantFormat { block_cols, ..f },
            Group::Unsaid | Group::Row | Group::Matrix => f,
        };
        match (self.data_type.as_str(), self.bits) {
            (_, 16..) => Spec::Floats,
            ("mx_fp" | "mx_fp4" | "mx_fp_rceil", 4) => coded("MXFP4", grouped(MXFP4)),
            ("mx_fp" | "mx_fp8" | "mx_fp_rceil", 8) => coded("MXFP8", grouped(super::fp8::MXFP8)),
            ("fp" | "fp8" | "fp8_e4m3" | "fp8_sym", 8) => {
                let (block_rows, block_cols) = match (self.block, self.group) {
                    (Some(block), _) => block,
                    (None, Group::Matrix) => (0, 0),
                    (None, Group::Columns(size)) => (1, size),
                    (None, Group::Row | Group::Unsaid) => (1, 0),
                };
                coded("FP8", QuantFormat { block_rows, block_cols, ..TENSOR })
            }
            (t, 4) if t.starts_with("nv_fp") || t.starts_with("fp4_v2") => coded("NVFP4", grouped(NVFP4)),
            // Values that were rounded, and stored as floats.
            _ if packing.is_some_and(|p| p.ends_with(":fake") || p == "fake") => Spec::Floats,
            ("int" | "int_sym" | "int_asym", 2 | 3 | 4 | 8) => self.integers(packing),
            (t, bits) => Spec::Unread(format!("{bits}-bit `{t}` of AutoRound")),
        }
    }

    fn integers(&self, packing: Option<&str>) -> Spec {
        let of = packing.map(|p| p.rsplit(':').next().unwrap_or(p));
        let has = |names: &[&str]| packing.is_some_and(|p| p.split(':').any(|part| names.contains(&part)));
        let (packing, zeros) = match of {
            // Whatever program is named behind it.
            _ if has(&["gptq", "auto_gptq"]) => (Packing::Gptq, ZeroPoints::LessOne),
            _ if has(&["awq", "auto_awq"]) => (Packing::Awq, ZeroPoints::AsTheyAre),
            Some("auto_round" | "gptqmodel" | "gptq_zp" | "exllamav2") => (Packing::Gptq, ZeroPoints::AsTheyAre),
            Some("gemm") => (Packing::Awq, ZeroPoints::AsTheyAre),
            Some("llm_compressor") => (Packing::Rows, ZeroPoints::AsTheyAre),
            None | Some("auto") => (Packing::Gptq, ZeroPoints::Unsaid),
            Some(other) => return Spec::Unread(format!("`{other}`, a packing of AutoRound")),
        };
        Spec::Integers(IntegerSpec {
            words: format!("AutoRound with {} bits, packed as `{}`", self.bits, of.unwrap_or("(not said)")),
            packing,
            bits: self.bits as u32,
            group: self.group,
            symmetric: self.symmetric,
            ordered: false,
            zeros,
            kernels: None,
        })
    }
}
