//! AWQ: four bits, eight columns in a word, read by [`super::gptq`].
//!
//! Source: AutoAWQ (`models/_config.py`).

use super::{ConfigReader, everywhere};
use crate::config::{Group, IntegerSpec, Packing, Spec, ZeroPoints};
use moec_ir::diag::Diagnostic;

/// `quant_method` awq, and AutoAWQ's own file.
pub(super) const CONFIG: ConfigReader = ConfigReader {
    is: |method, q| method == "awq" || method.is_empty() && q.get("w_bit").is_some(),
    read: |q, _| {
        let whole = |a: &str, b: &str| -> Result<Option<i64>, Diagnostic> { Ok(q.whole(a)?.or(q.whole(b)?)) };
        let refuse = |key: &str, what: &str| {
            Diagnostic::input(
                "quantised-checkpoint",
                format!("`{}` says {what}, which moec does not read", q.path(key)),
            )
            .help("docs/checkpoints.md lists the formats that are read")
        };
        if whole("bits", "w_bit")? != Some(4) {
            return Err(refuse("bits", "codes of another width than 4 bits"));
        }
        let group = match whole("group_size", "q_group_size")? {
            Some(size) if size > 0 => Group::Columns(size as u64),
            Some(-1) => Group::Row,
            Some(_) => return Err(q.wrong("group_size", "a number of columns, or -1 for all")),
            None => Group::Unsaid,
        };
        if !matches!(q.word("version")?.as_deref(), None | Some("gemm")) {
            return Err(refuse("version", "another packing than `gemm`"));
        }
        if !matches!(q.word("data_type")?.as_deref(), None | Some("int")) {
            return Err(refuse("data_type", "codes that are no integers"));
        }
        // AutoRound's word for the same.
        let _ = q.flag("sym")?;
        let symmetric = q.flag("zero_point")?.map(|has| !has);
        let words = "AWQ with 4 bits".to_string();
        Ok(everywhere(Spec::Integers(IntegerSpec {
            words,
            packing: Packing::Awq,
            bits: 4,
            group,
            symmetric,
            ordered: false,
            zeros: ZeroPoints::AsTheyAre,
            kernels: None,
        })))
    },
    irrelevant: &[
        "do_fuse",
        "fuse_max_seq_len",
        "modules_to_fuse",
        "exllama_config",
        "model_seqlen",
        "desc_act",
        "lm_head",
        "meta",
        "pack_dtype",
        "checkpoint_format",
        "format",
        "method",
    ],
};
