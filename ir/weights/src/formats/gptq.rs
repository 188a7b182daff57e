//! GPTQ: `stem.qweight` packed from the transposed matrix. AWQ shares the names, and is told by its shape.
//!
//! | packing | codes | zero points | scales | groups |
//! |---|---|---|---|---|
//! | GPTQ | I32 `[K·bits/32, N]`, low bits first along K | `stem.qzeros` `[G, N·bits/32]`; stored less one, but in `gptq_v2` | `stem.scales` `[G, N]` | `stem.g_idx` `[K]` |
//! | planes (`gptq_p`) | as GPTQ, but of 32 codes first the words of their low bits | alike, as they are | `stem.scales` `[G, N]` | as GPTQ |
//! | AWQ | I32 `[K, N/8]`, columns 0 2 4 6 1 3 5 7 from the low bits | `stem.qzeros` `[G, N/8]` alike | `stem.scales` `[G, N]` | equal |
//!
//! Symmetric codes have one zero point, the middle. Tools store it as it is or less one whatever the config's version says, or not
//! at all: what is stored has to be one of these, and is the middle then.
//! Sources: AutoGPTQ and GPTQModel (`qlinear_torch`, `quantization/config.py`), AutoAWQ (`packing_utils`).

use super::compressed_tensors::group_indices;
use super::read::{Found, float_scales};
use super::shapes::plausible;
use super::{ConfigReader, Scheme, everywhere};
use crate::config::{Declared, Group, IntegerSpec, Keys, Packing, Pattern, Rule, Spec, ZeroPoints};
use crate::decode::integers::Zeros;
use crate::decode::{Elements, Integers};
use crate::read::safetensors::{StoredType, TensorView};
use moec_ir::diag::Diagnostic;
use std::sync::Arc;

/// `quant_method` gptq, and AutoGPTQ's own file, which does not name itself.
pub(super) const CONFIG: ConfigReader = ConfigReader {
    is: |method, q| method == "gptq" || method.is_empty() && q.get("bits").is_some() && q.get("desc_act").is_some(),
    read: |q, _| {
        let spec = spec(q, None)?;
        let mut rules = Vec::new();
        // GPTQModel's exceptions: expressions after `+:` have settings of their own, those after `-:` stay floats.
        for (pattern, own) in q.rules("dynamic")? {
            let own = own.object()?;
            let text = pattern.strip_prefix("+:").unwrap_or(pattern);
            let (text, spec) = match (text.strip_prefix("-:"), own) {
                (Some(text), _) => (text, Spec::Floats),
                (None, Some(own)) => {
                    let own_spec = self::spec(&own, Some(&spec))?;
                    own.finish(METHOD_KEYS)?;
                    (text, Spec::Integers(own_spec))
                }
                (None, None) => (text, Spec::Integers(spec.clone())),
            };
            rules.push(Rule { modules: Some(vec![Pattern::new(&format!("re:{text}"))]), spec });
        }
        if q.flag("is_marlin_format")? == Some(true) {
            return Err(unread(q, "is_marlin_format", "Marlin's packing"));
        }
        if let Some(adapter) = q.object("adapter")?
            && adapter.names().next().is_some()
        {
            return Err(unread(q, "adapter", "an adapter whose output is added"));
        }
        rules.extend(everywhere(Spec::Integers(spec)));
        Ok(rules)
    },
    irrelevant: METHOD_KEYS,
};

/// Keys about how the codes were found, or about programs that run them.
const METHOD_KEYS: &[&str] = &[
    "damp_percent",
    "damp_auto_increment",
    "static_groups",
    "true_sequential",
    "lm_head",
    "model_file_base_name",
    "model_name_or_path",
    "model_seqlen",
    "meta",
    "use_exllama",
    "disable_exllama",
    "exllama_config",
    "max_input_length",
    "cache_block_outputs",
    "modules_in_block_to_quantize",
    "tokenizer",
    "dataset",
    "block_name_to_quantize",
    "module_name_preceding_first_block",
    "batch_size",
    "pad_token_id",
    "use_cuda_fp16",
    "use_cuda_fp32",
    "mse",
    "hyb_act",
    "act_group_aware",
    "parallel_packing",
    "offload_to_disk",
    "offload_to_disk_path",
    "fail_safe",
    "failsafe",
    "v2",
    "v2_alpha",
    "gptaq",
    "foem",
    "weight_only",
    "compute_device_filter",
    "auto_forward_data_parallelism",
    "device",
    "mock_quantization",
    "rotation",
    "moe",
    "fallback",
    "smooth",
    "hessian",
    "process",
    "gc_mode",
    "wait_for_submodule_finalizers",
    "vram_strategy",
    "dense_vram_strategy",
    "moe_vram_strategy",
    "preprocessors",
    "export",
];

fn unread(q: &Keys<'_>, key: &str, what: &str) -> Diagnostic {
    Diagnostic::input("quantised-checkpoint", format!("`{}` says {what}, which moec does not read", q.path(key)))
        .help("docs/checkpoints.md lists the formats that are read")
}

/// The settings of a module: its own, and for those that it does not have, those of `all`.
fn spec(q: &Keys<'_>, all: Option<&IntegerSpec>) -> Result<IntegerSpec, Diagnostic> {
    let bits = match q.whole("bits")? {
        Some(bits @ 2..=8) => bits as u32,
        Some(bits) => return Err(unread(q, "bits", &format!("codes of {bits} bits"))),
        None => all.map(|a| a.bits).ok_or_else(|| q.wrong("bits", "2 to 8"))?,
    };
    let group = match q.whole("group_size")? {
        Some(size) if size > 0 => Group::Columns(size as u64),
        Some(-1) => Group::Row,
        Some(_) => return Err(q.wrong("group_size", "a number of columns, or -1 for all")),
        None => all.map_or(Group::Unsaid, |a| a.group),
    };
    let symmetric = q.flag("sym")?.or(all.and_then(|a| a.symmetric));
    let ordered = q.flag("desc_act")?.unwrap_or(all.is_some_and(|a| a.ordered));
    // GPTQModel says it twice; `meta` is otherwise about how the codes were found.
    let meta = q.object("meta")?;
    let in_meta = |key| meta.as_ref().map(|m| m.word(key)).transpose().map(Option::flatten);
    let said = [q.word("checkpoint_format")?, q.word("format")?, in_meta("checkpoint_format")?, in_meta("format")?];
    let said: Vec<String> = said.into_iter().flatten().collect();
    if said.iter().any(|f| *f != said[0]) {
        return Err(unread(q, "checkpoint_format", &format!("several things ({})", said.join(", "))));
    }
    let format = said.first().cloned();
    let zeros = match format.as_deref() {
        Some("gptq") => ZeroPoints::LessOne,
        Some("gptq_v2" | "gptq_p") => ZeroPoints::AsTheyAre,
        None => match all {
            Some(all) => all.zeros,
            None if by_gptqmodel(q)? => ZeroPoints::Unsaid,
            // The first version had no name for itself.
            None => ZeroPoints::LessOne,
        },
        Some(other) => return Err(unread(q, "checkpoint_format", &format!("`{other}`, a packing"))),
    };
    // Codes of 5, 6 and 7 bits exist in planes only; of 2, 4 and 8 bits there is one plane, which is a stream of bits.
    let packing = match (format.as_deref(), bits) {
        (Some("gptq_p"), 3 | 5..=7) => Packing::GptqPlanes,
        (None, 3 | 5..=7) if all.is_some_and(|a| a.packing == Packing::GptqPlanes) => Packing::GptqPlanes,
        (_, 5..=7) => return Err(unread(q, "bits", &format!("codes of {bits} bits in another packing than `gptq_p`"))),
        _ => Packing::Gptq,
    };
    if let Some(method) = q.word("method")?
        && method != "gptq"
    {
        return Err(unread(q, "method", &format!("`{method}`")));
    }
    if let Some(kind) = q.word("data_type")?
        && kind != "int"
    {
        return Err(unread(q, "data_type", "codes that are no integers"));
    }
    if let Some(pack) = q.word("pack_dtype")?
        && pack != "int32"
    {
        return Err(unread(q, "pack_dtype", "words of another size"));
    }
    let words = format!("GPTQ with {bits} bits{}", if ordered { ", columns in an order of their own" } else { "" });
    Ok(IntegerSpec { words, packing, bits, group, symmetric, ordered, zeros, kernels: None })
}

/// Whether GPTQModel says that it wrote the checkpoint: it names the packing always.
fn by_gptqmodel(q: &Keys<'_>) -> Result<bool, Diagnostic> {
    let Some(meta) = q.object("meta")? else { return Ok(false) };
    Ok(meta.words("quantizer")?.iter().any(|w| w.starts_with("gptqmodel")))
}

/// The tensors.
pub(super) const SCHEME: Scheme = Scheme {
    name: "GPTQ or AWQ",
    codes: |name| name.strip_suffix(".weight").map(|stem| format!("{stem}.qweight")),
    takes: |_| true,
    read: |at| read(at).map(Some),
};

fn read<'a>(at: &Found<'a, '_>) -> Result<Elements<'a>, Diagnostic> {
    let stem = at.stem();
    let spec = match at.declared {
        Declared::As(Spec::Unread(why)) => return Err(at.unread(&format!("as {why}"))),
        Declared::As(Spec::Coded(_)) => return Err(at.contradicts("integers")),
        Declared::As(Spec::Integers(i)) => Some(i),
        Declared::As(Spec::Floats | Spec::Unsaid) | Declared::NoConfig | Declared::Left => None,
    };
    let (scales_name, scales) = at.need(&[format!("{stem}.scales")], "floats, one for each group and row")?;
    let (&[code_rows, code_cols], &[n_groups, n]) = (at.codes.shape, scales.shape) else {
        return Err(at.fits_not(&scales_name, &scales, "codes and scales are matrices"));
    };
    if at.codes.dtype != StoredType::I32 || n == 0 || n_groups == 0 {
        return Err(at.fits_not(&scales_name, &scales, "codes are I32, scales one for each group and column"));
    }
    let scale = float_scales(scales.dtype)
        .ok_or_else(|| at.fits_not(&scales_name, &scales, "scales of integers are F32, BF16 or F16"))?;
    let planes = spec.is_some_and(|s| s.packing == Packing::GptqPlanes);
    let packing = match code_cols == n {
        true if planes => Packing::GptqPlanes,
        true => Packing::Gptq,
        false => Packing::Awq,
    };
    if packing == Packing::Awq && code_cols.checked_mul(8) != Some(n) {
        let why = "a word holds eight columns (AWQ), or a row of words has a word for each column (GPTQ)";
        return Err(at.fits_not(&scales_name, &scales, why));
    }
    if spec.is_some_and(|s| s.packing != packing) {
        return Err(at.contradicts(if packing == Packing::Awq { "packed as AWQ" } else { "packed as GPTQ" }));
    }
    let spec = spec.ok_or_else(|| at.needs_config("bits, groups, and how zero points are stored"))?;
    let bits = u64::from(spec.bits);
    let k = if packing == Packing::Awq { code_rows } else { code_rows.saturating_mul(32) / bits };
    if planes && !(code_rows.is_multiple_of(bits) && n.is_multiple_of(32)) {
        return Err(at.fits_not(&scales_name, &scales, "codes in planes come 32 at a time, along rows and columns"));
    }
    let group_size = match spec.group {
        Group::Columns(size) if !plausible(size, k) => {
            let why = format!("no tool writes groups of {size} columns for {k}");
            return Err(at.fits_not(&scales_name, &scales, &why));
        }
        Group::Columns(size) if k.div_ceil(size) == n_groups => size,
        Group::Columns(size) => {
            let why =
                format!("the config says groups of {size} columns, of which {k} columns are {}", k.div_ceil(size));
            return Err(at.fits_not(&scales_name, &scales, &why));
        }
        Group::Row if n_groups == 1 => k.max(1),
        Group::Row | Group::Matrix => return Err(at.fits_not(&scales_name, &scales, "the config says one group")),
        Group::Unsaid if n_groups == 1 => k.max(1),
        Group::Unsaid => return Err(at.needs_config("how many columns a group has")),
    };
    let index_name = format!("{stem}.g_idx");
    let group_of = match at.tensor(&index_name)?.filter(|g| !g.data.is_empty()) {
        Some(g) => group_indices(at, &index_name, g, (k, n_groups, group_size), spec.ordered)?,
        None if spec.ordered => {
            let expected = format!("I32[{k}], the group of each column");
            let what = "the groups of its columns are";
            return Err(at.missing("quantised-scale-missing", what, &[index_name], &expected));
        }
        None => None,
    };
    let mut q = Integers {
        leading: Vec::new(),
        n,
        k,
        packing,
        bits: spec.bits,
        dense: true,
        codes: at.codes.data,
        code_cols,
        scales: scales.data,
        scale,
        by_group: true,
        zeros: Zeros::All(1 << (spec.bits - 1)),
        n_groups,
        group_size,
        one_row: false,
        group_of,
        column_scales: Vec::new(),
        global: 1.0,
        scales_name,
    };
    if let Some(zeros) = zero_points(at, spec, &q)? {
        q.zeros = zeros;
    }
    Ok(Elements::Integers(Arc::new(q)))
}

/// The zero points; `None` when all are the middle.
fn zero_points<'a>(at: &Found<'a, '_>, spec: &IntegerSpec, q: &Integers<'a>) -> Result<Option<Zeros<'a>>, Diagnostic> {
    let name = format!("{}.qzeros", at.stem());
    let bits = u64::from(spec.bits);
    let words = (q.n * bits).div_ceil(32);
    let expected = format!("I32[{}, {words}]", q.n_groups);
    // Of less columns than a word has codes, some tools store no word at all.
    let tensor = at.tensor(&name)?.filter(|z| !(z.data.is_empty() && spec.symmetric == Some(true)));
    let Some(z) = tensor else {
        return match spec.symmetric {
            Some(true) => Ok(None),
            Some(false) => Err(at.missing("quantised-zero-point-missing", "its zero points are", &[name], &expected)),
            None => Err(at.needs_config("whether codes are symmetric (`sym`), and there are no zero points")),
        };
    };
    if z.dtype != StoredType::I32 || z.shape != [q.n_groups, words] {
        return Err(at.fits_not(&name, &z, &format!("zero points are packed, one row for each group: {expected}")));
    }
    if spec.symmetric == Some(true) {
        return check_middle(at, &name, &z, spec, q).map(|()| None);
    }
    if spec.symmetric.is_none() && spec.zeros != ZeroPoints::AsTheyAre && check_middle(at, &name, &z, spec, q).is_ok() {
        // All are the middle as it is, or less one: symmetric codes, of a config that does not say so.
        return Ok(None);
    }
    let add = match (q.packing, spec.zeros) {
        (Packing::Awq, _) | (_, ZeroPoints::AsTheyAre) => 0,
        (_, ZeroPoints::LessOne) => 1,
        (_, ZeroPoints::Unsaid) => return Err(at.needs_config("whether zero points are stored less one")),
    };
    check_no_middle(at, &name, (&z, words), q, add)?;
    Ok(Some(Zeros::Packed { words: z.data, cols: words, add }))
}

/// Refuses zero points that are all next to the middle: they are those of symmetric codes, stored the other way.
fn check_no_middle(
    at: &Found<'_, '_>,
    name: &str,
    (z, cols): (&TensorView<'_>, u64),
    q: &Integers<'_>,
    add: u32,
) -> Result<(), Diagnostic> {
    let middle = 1 << (q.bits - 1);
    let stored = |g: u64, r: u64| q.packed_zero(z.data, cols, 0, r, g);
    let first = stored(0, 0);
    let used = first + add as i32;
    let all = || (0..q.n_groups).flat_map(|g| (0..q.n).map(move |r| (g, r))).all(|(g, r)| stored(g, r) == first);
    if q.n_groups * q.n < 16 || ![middle - 1, middle + 1].contains(&used) || !all() {
        return Ok(());
    }
    let what = format!("stored with the zero point {first} for every column and group (`{name}`)");
    Err(at.contradicts(&what).note(format!(
        "these are the zero points of symmetric codes, {middle}; read as the config says, they are {used}"
    )))
}

/// Checks that the zero points of symmetric codes are the middle, as it is or less one.
fn check_middle(
    at: &Found<'_, '_>,
    name: &str,
    z: &TensorView<'_>,
    spec: &IntegerSpec,
    q: &Integers<'_>,
) -> Result<(), Diagnostic> {
    let (middle, cols) = (1 << (spec.bits - 1), (q.n * u64::from(spec.bits)).div_ceil(32));
    let stored = |g: u64, r: u64| q.packed_zero(z.data, cols, 0, r, g);
    let first = stored(0, 0);
    let places = || (0..q.n_groups).flat_map(|g| (0..q.n).map(move |r| (g, r)));
    let other = places().find(|&(g, r)| stored(g, r) != first || ![middle, middle - 1].contains(&first));
    let Some((g, r)) = other else { return Ok(()) };
    let what = format!("stored with the zero point {} for column {r} of group {g} (`{name}`)", stored(g, r));
    Err(at
        .contradicts(&what)
        .note(format!("symmetric codes (`sym`) have the zero point {middle}, stored as it is or less one")))
}
