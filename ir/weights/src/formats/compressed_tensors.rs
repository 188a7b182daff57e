//! compressed-tensors (llm-compressor): groups of modules with one format each, and `N_packed`.
//!
//! | codes | scales | beside them | format |
//! |---|---|---|---|
//! | `N_packed` U8 `[.., N, K/2]` | `N_scale` F8_E4M3 `[.., N, K/16]` | `N_global_scale`, divided by | NVFP4 |
//! | `N_packed` U8 `[.., N, K/2]` | `N_scale` U8 `[.., N, K/32]` | | MXFP4 |
//! | `N_packed` I32 `[.., N, K/W]` | `N_scale` `[.., N, G]` | `N_zero_point`, `N_g_idx`, `N_shape` | integers of 2 to 8 bits, `W = 32 / bits`; 3, 5, 6 and 7 bits in one stream of bits, or in whole codes |
//!
//! Integers are offset binary, low bits first; zero points are packed along the rows, `[N/W, G]`, or are signed bytes `[N, G]`.
//! `N` F8 is in [`super::fp8`], `N` I8 in [`super::single_bytes`].
//! Source: compressed-tensors (`compressors/pack_quantized`, `compressors/nvfp4_quantized`, `quantization/quant_args.py`).

use super::fp8::{CHANNEL, MXFP4, MXFP8, TENSOR, words};
use super::modelopt::{NVFP4, by_algo};
use super::read::{Found, float_scales};
use super::shapes::plausible;
use super::{ConfigReader, Context, Scheme};
use crate::config::{CodedSpec, Declared, Group, IntegerSpec, Keys, Packing, Pattern, Rule, Spec, ZeroPoints};
use crate::decode::integers::{Zeros, word};
use crate::decode::{Blocks, Elements, Integers};
use crate::read::safetensors::{StoredType, TensorView};
use moec_ir::DType;
use moec_ir::diag::Diagnostic;
use moec_ir::quant::{Code, QuantFormat, ScaleCode};
use serde_json::Value;
use std::sync::Arc;

/// `quant_method` compressed-tensors, or any config with `config_groups`.
pub(super) const CONFIG: ConfigReader = ConfigReader {
    is: |method, q| method == "compressed-tensors" || q.get("config_groups").is_some(),
    read: |q, context| {
        let says =
            |v: &Value| v.as_object().is_some_and(|o| !o.is_empty()) || v.as_array().is_some_and(|l| !l.is_empty());
        if q.get("transform_config").and_then(Value::as_object).is_some_and(|t| t.values().any(says)) {
            return Err(refused(
                q,
                "transform_config",
                "rotates activations before the products, which moec does not do",
            ));
        }
        if let Some(sparsity) = q.object("sparsity_config")?
            && !matches!(sparsity.word("format")?.as_deref(), None | Some("dense"))
        {
            return Err(refused(
                q,
                "sparsity_config",
                "leaves out weights that are zero, a form that moec does not read",
            ));
        }
        groups(q, context)
    },
    irrelevant: &["format", "quantization_status", "global_compression_ratio", "version"],
};

fn refused(q: &Keys<'_>, key: &str, why: &str) -> Diagnostic {
    Diagnostic::input("quantised-checkpoint", format!("`{}` {why}", q.path(key)))
        .help("use a checkpoint without it; docs/checkpoints.md lists the formats that are read")
}

/// The groups. Targets are names of modules and, for all of them, classes of modules.
pub(super) fn groups(q: &Keys<'_>, context: &Context<'_>) -> Result<Vec<Rule>, Diagnostic> {
    let mut rules = Vec::new();
    let named_above = q.word("format")?;
    for (name, rule) in q.rules("config_groups")? {
        let (targets, spec) = if rule.value.is_object() {
            let Some(group) = rule.object()? else { continue };
            let named = group.word("format")?.or_else(|| named_above.clone()).unwrap_or_default();
            let targets = group.words("targets")?;
            let Some(weights) = group.object("weights")? else { continue };
            let spec = of_group(&weights, &named, context.dtype)?;
            group.finish(&["input_activations", "output_activations"])?;
            (targets, spec)
        } else {
            // A list of targets under the name of a preset (`"FP8": ["Linear"]`) says nothing else.
            (rule.words()?, by_algo(q, &name.to_lowercase())?)
        };
        let mut modules = Vec::new();
        for target in targets {
            // Classes are written in capitals, modules in lower case.
            let is_class = target.starts_with(|c: char| c.is_ascii_uppercase());
            match &*target {
                "Linear" => rules.push(Rule { modules: None, spec: spec.clone() }),
                class if is_class && NO_EXPERTS.iter().any(|w| class.contains(w)) => {}
                class if is_class => modules.push(Pattern::unknown(class)),
                name => modules.push(Pattern::new(name)),
            }
        }
        if !modules.is_empty() {
            rules.push(Rule { modules: Some(modules), spec });
        }
    }
    Ok(rules)
}

/// Words in the names of classes whose modules are no part of a MoE layer.
const NO_EXPERTS: &[&str] = &["Embedding", "Conv", "Attention", "Norm", "LMHead", "Rotary"];

/// `weights` of a group.
fn of_group(w: &Keys<'_>, named: &str, dtype: DType) -> Result<Spec, Diagnostic> {
    let kind = w.word("type")?.unwrap_or_default();
    let bits = w.whole("num_bits")?.unwrap_or(0);
    let size = w.whole("group_size")?.and_then(|n| u64::try_from(n).ok()).filter(|&n| n > 0);
    let strategy = w.word("strategy")?.unwrap_or_default();
    let blocks = w.block("block_structure")?;
    let symmetric = w.flag("symmetric")?.unwrap_or(true);
    let scale_dtype = w.word("scale_dtype")?.unwrap_or_default();
    // `group` has the groups of columns in a tensor; `weight` and `static` order columns while quantising only.
    let actorder = w.word("actorder")?.unwrap_or_default();
    let ordered = matches!(actorder.as_str(), "group" | "dynamic");
    // neural-compressor's word for the formats of OCP MX.
    let is_mx = w.flag("is_mx")? == Some(true);
    w.finish(&["dynamic", "observer", "observer_kwargs", "zp_dtype"])?;
    let power_of_two = is_mx || scale_dtype.contains("uint8") || named.starts_with("mxfp");
    let coded = |name: &str, format: QuantFormat| {
        let words = format!("{name} of compressed-tensors, {}", words(&format));
        Ok(Spec::Coded(CodedSpec { words, format, blocks_said: true }))
    };
    let unread = |what: String| Ok(Spec::Unread(what));
    if named.contains("sparse") || named.contains("marlin") {
        return unread(format!("`{named}` of compressed-tensors"));
    }
    let fp8 = |block_rows, block_cols| QuantFormat { block_rows, block_cols, ..TENSOR };
    match (kind.as_str(), bits) {
        ("float", 8) => match (strategy.as_str(), size, blocks) {
            (_, Some(32), _) if power_of_two => coded("MXFP8", MXFP8),
            ("tensor", _, _) => coded("FP8", TENSOR),
            ("channel", _, _) => coded("FP8", CHANNEL),
            ("block", _, Some((rows, cols))) => coded("FP8", fp8(rows, cols)),
            (_, Some(cols), _) => coded("FP8", fp8(1, cols)),
            _ => unread(format!("FP8 by `{strategy}` without sizes")),
        },
        ("float", 4) if size == Some(32) && !named.starts_with("nvfp4") => coded("MXFP4", MXFP4),
        ("float", 4) if size == Some(16) && !named.starts_with("mxfp4") => coded("NVFP4", NVFP4),
        ("int", 1..=8) => {
            let group = match (strategy.as_str(), size) {
                ("tensor", _) => Group::Matrix,
                ("channel", _) => Group::Row,
                (_, Some(size)) => Group::Columns(size),
                ("block", _) => return unread("integers in blocks of rows and columns".to_string()),
                _ => Group::Unsaid,
            };
            let packing = match named {
                "int-quantized" => Packing::Bytes,
                "naive-quantized" if bits == 8 => Packing::Bytes,
                _ => Packing::Rows,
            };
            let scale = if dtype == DType::F16 { ScaleCode::F16 } else { ScaleCode::BF16 };
            let kernels = |block_cols| QuantFormat { code: Code::Int4, scale, block_rows: 1, block_cols };
            // Columns in an order of activations have group indices, which no kernel reads.
            let plain = bits == 4 && symmetric && !ordered && packing == Packing::Rows;
            let kernels = match group {
                Group::Row if plain => Some(kernels(0)),
                Group::Columns(size) if plain => Some(kernels(size)),
                Group::Unsaid | Group::Matrix | Group::Row | Group::Columns(_) => None,
            };
            let of = match group {
                Group::Unsaid => String::new(),
                Group::Matrix => ", one scale a matrix".to_string(),
                Group::Row => ", one scale a row".to_string(),
                Group::Columns(size) => format!(", groups of {size} columns"),
            };
            let zeros = if symmetric { "" } else { " with zero points" };
            Ok(Spec::Integers(IntegerSpec {
                words: format!("{bits}-bit integers of compressed-tensors{zeros}{of}"),
                packing,
                bits: bits as u32,
                group,
                symmetric: Some(symmetric),
                ordered,
                zeros: ZeroPoints::AsTheyAre,
                kernels,
            }))
        }
        _ => unread(format!("{bits}-bit `{kind}` of compressed-tensors")),
    }
}

/// The tensors.
pub(super) const SCHEME: Scheme = Scheme {
    name: "compressed-tensors",
    codes: |name| Some(format!("{name}_packed")),
    takes: |_| true,
    read: |at| match at.codes.dtype {
        StoredType::U8 | StoredType::I8 | StoredType::F4 => fp4(at).map(Some),
        StoredType::I32 => integers(at).map(Some),
        _ => Err(at.unread(&format!("as {}", at.codes.describe()))),
    },
};

fn fp4<'a>(at: &Found<'a, '_>) -> Result<Elements<'a>, Diagnostic> {
    let names = [format!("{}_scale", at.name)];
    let (scales_name, scales) = at.need(&names, "F8_E4M3 for 16 codes (NVFP4), or U8 for 32 (MXFP4)")?;
    let format = match scales.dtype {
        StoredType::F8_E4M3 => NVFP4,
        StoredType::U8 | StoredType::F8_E8M0 => MXFP4,
        _ => return Err(at.fits_not(&scales_name, &scales, "scales of FP4 are F8_E4M3 or e8m0 bytes")),
    };
    let &[ref leading @ .., n, last] = at.codes.shape else {
        return Err(at.fits_not(&scales_name, &scales, "quantised weights have at least two axes"));
    };
    let k = last.saturating_mul(at.codes.dtype.bits()) / 4;
    if scales.shape.strip_prefix(leading) != Some(&[n, k.div_ceil(format.block_cols)]) {
        let why = format!("one scale for every {} codes of a row is needed", format.block_cols);
        return Err(at.fits_not(&scales_name, &scales, &why));
    }
    at.check_coded(&format, n, k)?;
    let matrices = leading.iter().product();
    let globals = match format.has_global() {
        true => at.globals(&format!("{}_global_scale", at.name), matrices, true)?,
        false => Vec::new(),
    };
    Ok(Elements::Blocks(Arc::new(Blocks {
        format,
        leading: leading.to_vec(),
        n,
        k,
        transposed: false,
        codes: (at.codes.data, Blocks::dense_codes(&format, n, k)),
        scales: (scales.data, Blocks::dense_scales(&format, n, k)),
        globals,
        column_scales: Vec::new(),
        scales_name,
    })))
}

fn integers<'a>(at: &Found<'a, '_>) -> Result<Elements<'a>, Diagnostic> {
    let spec = match at.declared {
        Declared::As(Spec::Unread(why)) => return Err(at.unread(&format!("as {why}"))),
        Declared::As(Spec::Coded(_)) => return Err(at.contradicts("integers")),
        Declared::As(Spec::Integers(i)) if i.packing != Packing::Rows => return Err(at.contradicts("packed integers")),
        Declared::As(_) | Declared::NoConfig | Declared::Left => at.integers(),
    };
    let names = [format!("{}_scale", at.name)];
    let (scales_name, scales) = at.need(&names, "floats, one for each row and group")?;
    let scale = float_scales(scales.dtype)
        .ok_or_else(|| at.fits_not(&scales_name, &scales, "scales of integers are F32, BF16 or F16"))?;
    let &[ref leading @ .., n, code_cols] = at.codes.shape else {
        return Err(at.fits_not(&scales_name, &scales, "quantised weights have at least two axes"));
    };
    let Width { bits, k, dense } = width(at, spec, n, code_cols)?;
    let grid = match scales.shape.strip_prefix(leading) {
        Some(&[rows, groups]) => Some((rows, groups)),
        Some(&[rows]) => Some((rows, 1)),
        Some([]) => Some((1, 1)),
        _ => None,
    };
    let (scale_rows, n_groups) =
        grid.filter(|&(rows, groups)| (rows == n || rows == 1 && groups == 1) && groups > 0)
            .ok_or_else(|| at.fits_not(&scales_name, &scales, "one scale for each row and group is needed"))?;
    let group_size = group_size(at, spec, &scales_name, &scales, (k, scale_rows, n, n_groups))?;
    let zeros = zero_points(at, spec, (bits, dense), leading, n, n_groups)?;
    let group_of = group_order(at, spec, (k, n_groups, group_size))?;
    // Rows of whole words, all zero points in the middle: kernels read these codes as they are.
    let plain =
        bits == 4 && k.is_multiple_of(8) && group_of.is_none() && matches!(zeros, Zeros::All(_)) && scale_rows == n;
    if plain {
        let format = QuantFormat {
            code: Code::Int4,
            scale,
            block_rows: 1,
            block_cols: if n_groups == 1 { 0 } else { group_size },
        };
        return Ok(Elements::Blocks(Arc::new(Blocks {
            format,
            leading: leading.to_vec(),
            n,
            k,
            transposed: false,
            codes: (at.codes.data, Blocks::dense_codes(&format, n, k)),
            scales: (scales.data, Blocks::dense_scales(&format, n, k)),
            globals: Vec::new(),
            column_scales: at.column_scales(k)?,
            scales_name,
        })));
    }
    Ok(Elements::Integers(Arc::new(Integers {
        leading: leading.to_vec(),
        n,
        k,
        packing: Packing::Rows,
        bits,
        dense,
        codes: at.codes.data,
        code_cols,
        scales: scales.data,
        scale,
        by_group: false,
        zeros,
        n_groups,
        group_size,
        one_row: scale_rows != n,
        group_of,
        column_scales: at.column_scales(k)?,
        global: 1.0,
        scales_name,
    })))
}

/// How wide codes and rows are.
struct Width {
    bits: u32,
    /// Columns of a row.
    k: u64,
    /// Whether a row is one stream of bits; else a word holds as many whole codes as fit it.
    dense: bool,
}

/// Words for `n` codes: in one stream of bits, as compressed-tensors 0.19 writes, or in whole codes, as earlier versions did. The
/// two differ for 3, 5, 6 and 7 bits.
fn row_words(bits: u32, n: u64, dense: bool) -> u64 {
    if dense { n.saturating_mul(u64::from(bits)).div_ceil(32) } else { n.div_ceil(u64::from(32 / bits)) }
}

fn width(at: &Found<'_, '_>, spec: Option<&IntegerSpec>, n: u64, code_cols: u64) -> Result<Width, Diagnostic> {
    let name = format!("{}_shape", at.name);
    // Some tools leave the tensor empty.
    let shape = at.tensor(&name)?.filter(|s| !s.data.is_empty());
    let stored = match &shape {
        None => None,
        Some(s) => match small_integers(s).as_deref() {
            Some(&[.., rows, k]) if rows == n => Some(k),
            _ => return Err(at.fits_not(&name, s, "the shape that is stored with the codes has other rows")),
        },
    };
    match (spec.map(|s| s.bits), stored) {
        (Some(bits), Some(k)) => match [true, false].map(|dense| row_words(bits, k, dense) == code_cols) {
            // Codes that all fit the first word lie alike in both.
            [true, true] if 32 % bits != 0 && k > u64::from(32 / bits) => {
                Err(at.needs_config(&format!("which of two packings its {bits}-bit codes have")))
            }
            [true, _] => Ok(Width { bits, k, dense: true }),
            [false, true] => Ok(Width { bits, k, dense: false }),
            [false, false] => {
                let need = row_words(bits, k, true);
                Err(at.contradicts(&format!("{k} columns in {code_cols} words a row, where {bits} bits need {need}")))
            }
        },
        (Some(bits), None) => {
            let k = code_cols.saturating_mul(32) / u64::from(bits);
            Ok(Width { bits, k, dense: true })
        }
        (None, Some(k)) => match [4u32, 8].into_iter().find(|&b| row_words(b, k, true) == code_cols) {
            Some(bits) => Ok(Width { bits, k, dense: true }),
            None => Err(at.needs_config(&format!("how many bits a code has ({k} columns in {code_cols} words a row)"))),
        },
        // Without config and shape, four: codes of another width would have another number of columns than the layer asks for.
        (None, None) => Ok(Width { bits: 4, k: code_cols.saturating_mul(8), dense: true }),
    }
}

/// Columns of a group: what the config says, the last group cut short.
pub(super) fn group_size(
    at: &Found<'_, '_>,
    spec: Option<&IntegerSpec>,
    scales_name: &str,
    scales: &TensorView<'_>,
    (k, scale_rows, n, n_groups): (u64, u64, u64, u64),
) -> Result<u64, Diagnostic> {
    let bad = |why: String| at.fits_not(scales_name, scales, &why);
    match spec.map_or(Group::Unsaid, |s| s.group) {
        Group::Columns(size) if !plausible(size, k) => {
            Err(bad(format!("no tool writes groups of {size} columns for {k}")))
        }
        Group::Columns(size) if k.div_ceil(size) == n_groups && scale_rows == n => Ok(size),
        Group::Columns(size) => {
            Err(bad(format!("the config says groups of {size} columns, of which {k} columns are {}", k.div_ceil(size))))
        }
        Group::Row if n_groups == 1 && scale_rows == n => Ok(k.max(1)),
        Group::Row => Err(bad("the config says one scale for each row".to_string())),
        Group::Matrix if n_groups == 1 && (scale_rows == 1 || n == 1) => Ok(k.max(1)),
        Group::Matrix => Err(bad("the config says one scale for the matrix".to_string())),
        Group::Unsaid if n_groups == 1 => Ok(k.max(1)),
        Group::Unsaid => Err(at.needs_config(&format!("which of {k} columns are in one of {n_groups} groups"))),
    }
}

fn zero_points<'a>(
    at: &Found<'a, '_>,
    spec: Option<&IntegerSpec>,
    (bits, dense): (u32, bool),
    leading: &[u64],
    n: u64,
    n_groups: u64,
) -> Result<Zeros<'a>, Diagnostic> {
    let name = format!("{}_zero_point", at.name);
    let words = row_words(bits, n, dense);
    let middle = Zeros::All(1 << (bits - 1));
    let expected = format!("I32[{words}, {n_groups}]");
    match (at.tensor(&name)?, spec.and_then(|s| s.symmetric)) {
        (None, Some(false)) => {
            Err(at.missing("quantised-zero-point-missing", "its zero points are", &[name], &expected))
        }
        (None, _) => Ok(middle),
        (Some(z), Some(true)) if !is_middle(&z, bits, n, n_groups) => Err(at
            .contradicts(&format!("stored with zero points (`{name}`, {}) that are not all the middle", z.describe()))),
        (Some(_), Some(true)) => Ok(middle),
        (Some(z), _) if leading.is_empty() && z.dtype == StoredType::I32 && z.shape == [words, n_groups] => {
            Ok(Zeros::Packed { words: z.data, cols: n_groups, add: 0 })
        }
        (Some(z), _) if leading.is_empty() && z.dtype == StoredType::I8 && z.shape == [n, n_groups] => {
            Ok(Zeros::Bytes(z.data))
        }
        (Some(z), _) => Err(at.fits_not(&name, &z, &format!("zero points are packed along the rows: {expected}"))),
    }
}

/// Whether all zero points are the middle of the codes, as symmetric ones are.
fn is_middle(z: &TensorView<'_>, bits: u32, n: u64, n_groups: u64) -> bool {
    match z.dtype {
        StoredType::I8 => z.data.iter().all(|&b| b == 0),
        StoredType::I32 if 32 % bits == 0 => {
            let per_word = u64::from(32 / bits);
            let full = z.data.len() as u64 == n.div_ceil(per_word) * n_groups * 4;
            let code = |r: u64, g: u64| word(z.data, r / per_word * n_groups + g) >> (r % per_word * u64::from(bits));
            full && (0..n).all(|r| (0..n_groups).all(|g| code(r, g) & ((1 << bits) - 1) == 1 << (bits - 1)))
        }
        _ => false,
    }
}

fn group_order<'a>(
    at: &Found<'a, '_>,
    spec: Option<&IntegerSpec>,
    (k, n_groups, group_size): (u64, u64, u64),
) -> Result<Option<&'a [u8]>, Diagnostic> {
    let name = format!("{}_g_idx", at.name);
    match at.tensor(&name)?.filter(|g| !g.data.is_empty()) {
        None if spec.is_some_and(|s| s.ordered) => {
            let expected = format!("I32[{k}], the group of each column");
            Err(at.missing("quantised-scale-missing", "the groups of its columns are", &[name], &expected))
        }
        None => Ok(None),
        // -1 stands for groups in order.
        Some(g) if g.dtype == StoredType::I32 && !g.data.is_empty() && g.data.iter().all(|&b| b == 0xff) => Ok(None),
        Some(g) => group_indices(at, &name, g, (k, n_groups, group_size), spec.is_some_and(|s| s.ordered)),
    }
}

/// The group indices, if there is one for each column, each is below `n_groups`, and no group has more columns than it holds. All zero
/// means no order: tools wrote that before they had one.
pub(super) fn group_indices<'a>(
    at: &Found<'a, '_>,
    name: &str,
    g: TensorView<'a>,
    (k, n_groups, group_size): (u64, u64, u64),
    ordered: bool,
) -> Result<Option<&'a [u8]>, Diagnostic> {
    let fits = g.dtype == StoredType::I32 && g.data.len() as u64 == k.saturating_mul(4);
    if !fits || (0..k).any(|i| u64::from(word(g.data, i)) >= n_groups) {
        return Err(at.fits_not(name, &g, &format!("a group below {n_groups} is needed for each of {k} columns")));
    }
    if n_groups > 1 && !ordered && g.data.iter().all(|&b| b == 0) {
        return Ok(None);
    }
    let mut columns = vec![0u64; n_groups as usize];
    (0..k).for_each(|i| columns[word(g.data, i) as usize] += 1);
    match columns.iter().position(|&c| c > group_size) {
        Some(group) => {
            let why = format!("group {group} has {} columns there, and holds {group_size}", columns[group]);
            Err(at.fits_not(name, &g, &why))
        }
        None => Ok(Some(g.data)),
    }
}

/// The values of a short tensor of integers.
fn small_integers(t: &TensorView<'_>) -> Option<Vec<u64>> {
    let tensor = Some(t).filter(|t| t.data.len() <= 64)?.to_tensor().filter(|t| !t.dtype.is_float())?;
    tensor.ints().iter().map(|&i| u64::try_from(i).ok()).collect()
}
