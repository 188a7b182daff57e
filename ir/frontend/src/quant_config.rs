//! What a config says about the format of its weights: `quantization_config`, or ModelOpt's own file beside the config.
//!
//! | says so | formats |
//! |---|---|
//! | `quant_method` fp8, fbgemm_fp8 | FP8 in blocks of `weight_block_size`, for each row, or with one scale |
//! | `quant_method` mxfp4, mxfp8, nvfp4 | those |
//! | `quant_method` compressed-tensors | what `weights` of each of `config_groups` says, for the modules among its `targets` |
//! | `quant_algo` (ModelOpt) | NVFP4, MXFP4, MXFP8, FP8 in three forms; MIXED_PRECISION: what each of `quantized_layers` says |
//! | `quantization` in Mistral's `params.json` | compressed-tensors, or `qformat_weight` fp8_e4m3 with one scale |
//! | `quant_method` gptq, awq, auto-round | integers with zero points: made floats when they are loaded |

use crate::json::{Json, Object};
use crate::patterns::Pattern;
use moec_ir::DType;
use moec_ir::diag::Diagnostic;
use moec_ir::quant::{Code, QuantFormat, ScaleCode};

/// The formats of a quantised checkpoint's linear layers, and which of them they cover.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Scheme {
    /// In a few words.
    pub words: String,
    /// Whether the loader reads the format, as codes or as floats.
    pub is_read: bool,
    /// The first that names a module decides, then the first for all modules. A format of `None` has no codes that kernels
    /// read: its weights become floats.
    pub rules: Vec<Rule>,
    /// Modules that are left as floats.
    pub excluded: Vec<Pattern>,
    /// Only routed experts are quantised.
    pub experts_only: bool,
}

/// A format, and the modules that it is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rule {
    /// Without patterns: every linear layer.
    pub modules: Option<Vec<Pattern>>,
    pub format: Option<QuantFormat>,
}

/// How a named format lies in a checkpoint.
enum Known {
    Codes(QuantFormat),
    /// Read, but not kept as codes.
    Floats,
    Unread,
}

pub(crate) const FP8_TENSOR: QuantFormat = format(Code::E4M3, ScaleCode::F32, 0, 0);
pub(crate) const FP8_CHANNEL: QuantFormat = format(Code::E4M3, ScaleCode::F32, 1, 0);
pub(crate) const FP8_BLOCK: QuantFormat = format(Code::E4M3, ScaleCode::F32, 128, 128);
pub(crate) const MXFP8: QuantFormat = format(Code::E4M3, ScaleCode::E8M0, 1, 32);
pub(crate) const MXFP4: QuantFormat = format(Code::E2M1, ScaleCode::E8M0, 1, 32);
pub(crate) const NVFP4: QuantFormat = format(Code::E2M1, ScaleCode::E4M3, 1, 16);

const fn format(code: Code, scale: ScaleCode, block_rows: u64, block_cols: u64) -> QuantFormat {
    QuantFormat { code, scale, block_rows, block_cols }
}

impl Scheme {
    /// Reads the config of a model: `root` is the file, `text` its decoder. `None` when the weights are floats.
    ///
    /// # Errors
    /// `config-key-type` for a value of another type than every config has there.
    pub(crate) fn of(root: &Object, text: &Object, dtype: DType) -> Result<Option<Scheme>, Diagnostic> {
        let keys = ["quantization_config", "compression_config"];
        let Some(node) = keys.iter().find_map(|k| text.get(k).or_else(|| root.get(k))) else {
            if let Some(q) = root.get("quantization").filter(|q| q.is_object()) {
                return mistral(&q.object()?, dtype).map(Some);
            }
            // DeepSeek's own configs.
            let native = root.get("dtype").and_then(|v| v.string().ok()).filter(|w| w == "fp8");
            return Ok(native.map(|_| Scheme::plain("fp8 128x128 blocks", Known::Codes(FP8_BLOCK))));
        };
        let mut scheme = Scheme::read(&node.object()?, dtype)?;
        // DeepSeek-V4 says `fp8` of its linear layers, and of its routed experts, elsewhere, that they are MXFP4.
        let expert_type = text.get("expert_dtype").or_else(|| root.get("expert_dtype")).filter(|v| v.is_string());
        let is_fp8 = matches!(&scheme.rules[..], [Rule { format: Some(f), .. }] if f.code == Code::E4M3);
        if is_fp8 && expert_type.map(|v| v.string()).transpose()?.as_deref() == Some("fp4") {
            scheme.rules.insert(0, Rule { modules: Some(vec![Pattern::new("experts.*")]), format: Some(MXFP4) });
        }
        Ok(Some(scheme))
    }

    /// Reads ModelOpt's `hf_quant_config.json`: its member `quantization`.
    ///
    /// # Errors
    /// As [`Scheme::of`].
    pub(crate) fn of_modelopt(top: &Object, dtype: DType) -> Result<Option<Scheme>, Diagnostic> {
        let Some(q) = top.get("quantization").filter(|q| q.is_object()) else { return Ok(None) };
        let mut scheme = Scheme::read(&q.object()?, dtype)?;
        if !scheme.words.contains("modelopt") {
            scheme.words = format!("modelopt {}", scheme.words);
        }
        Ok(Some(scheme))
    }

    fn plain(words: &str, known: Known) -> Scheme {
        let (format, is_read) = match known {
            Known::Codes(f) => (Some(f), true),
            Known::Floats => (None, true),
            Known::Unread => (None, false),
        };
        let rules = vec![Rule { modules: None, format }];
        Scheme { words: words.to_string(), is_read, rules, excluded: Vec::new(), experts_only: false }
    }

    fn read(q: &Object, dtype: DType) -> Result<Scheme, Diagnostic> {
        let method = word(q, "quant_method")?.replace('_', "-").to_lowercase();
        let algo = word(q, "quant_algo")?.to_uppercase();
        let (rules, is_read) = if !algo.is_empty() || method.starts_with("modelopt") {
            modelopt(q, &algo, dtype)?
        } else if method == "compressed-tensors" || q.get("config_groups").is_some() {
            groups(q, dtype)?
        } else {
            let known = by_method(&method, q)?;
            let one = Scheme::plain("", known);
            (one.rules, one.is_read)
        };
        let mut excluded = Vec::new();
        for key in ["modules_to_not_convert", "ignore", "exclude_modules", "ignored_layers"] {
            if let Some(list) = q.get(key).filter(|v| v.is_list()) {
                for name in list.list()?.iter().filter(|v| v.is_string()) {
                    excluded.push(Pattern::new(&name.string()?));
                }
            }
        }
        let words = words(q)?;
        // gpt-oss quantises its experts and nothing else.
        Ok(Scheme { words, is_read, rules, excluded, experts_only: method == "mxfp4" })
    }
}

/// `quantization` of Mistral's `params.json`: what compressed-tensors writes, or the format of all linear layers.
fn mistral(q: &Object, dtype: DType) -> Result<Scheme, Diagnostic> {
    let named = word(q, "qformat_weight")?;
    Ok(match named.as_str() {
        "" => Scheme::read(q, dtype)?,
        "fp8_e4m3" => Scheme::plain(&named, Known::Codes(FP8_TENSOR)),
        _ => Scheme::plain(&named, Known::Unread),
    })
}

/// Sizes of a block that are read: a block has two, and what has more is none.
const MOST_SIZES: usize = 3;

/// The format in a few words.
fn words(q: &Object) -> Result<String, Diagnostic> {
    let mut words = Vec::new();
    for key in ["quant_method", "quant_algo", "format", "fmt"] {
        if let Some(v) = q.get(key).filter(|v| v.is_string()) {
            words.push(v.string()?);
        }
    }
    if let Some(v) = q.get("weight_block_size").filter(|v| v.is_list()) {
        let sizes: Vec<String> = v.list()?.iter().take(MOST_SIZES).map(Json::shown).collect();
        words.push(format!("{} blocks", sizes.join("x")));
    }
    if let Some(v) = q.get("bits") {
        words.push(format!("{} bits", v.shown()));
    }
    words.dedup();
    Ok(if words.is_empty() { "unnamed format".to_string() } else { words.join(" ") })
}

fn by_method(method: &str, q: &Object) -> Result<Known, Diagnostic> {
    let bits = q.get("bits").map(Json::shown);
    Ok(match method {
        "fp8" => match q.get("weight_block_size").filter(|v| v.is_list()) {
            Some(sizes) => match &whole(sizes)?[..] {
                // Powers of two with one for every 32 columns are MXFP8.
                [1, 32] => Known::Codes(MXFP8),
                &[rows, cols] if rows > 0 && cols > 0 => Known::Codes(format(Code::E4M3, ScaleCode::F32, rows, cols)),
                _ => Known::Unread,
            },
            None => Known::Codes(FP8_TENSOR),
        },
        "fbgemm-fp8" => Known::Codes(FP8_CHANNEL),
        "mxfp4" => Known::Codes(MXFP4),
        "mxfp8" => Known::Codes(MXFP8),
        "nvfp4" => Known::Codes(NVFP4),
        "gptq" | "auto-round" if bits.as_deref().is_some_and(|b| !matches!(b, "4" | "8")) => Known::Unread,
        "awq" if bits.as_deref().is_some_and(|b| b != "4") => Known::Unread,
        "gptq" | "awq" | "auto-round" => Known::Floats,
        _ => Known::Unread,
    })
}

/// ModelOpt's names of formats, weights first: `W4A8_…` are weights of four bits.
fn by_algo(algo: &str) -> Known {
    match algo {
        "NVFP4" | "W4A16_NVFP4" | "W4A8_NVFP4_FP8" => Known::Codes(NVFP4),
        "MXFP4" | "W4A16_MXFP4" | "W4A8_MXFP4_FP8" | "W4A8_MXFP4_MXFP8" => Known::Codes(MXFP4),
        "MXFP8" => Known::Codes(MXFP8),
        "FP8" => Known::Codes(FP8_TENSOR),
        "FP8_PER_CHANNEL_PER_TOKEN" => Known::Codes(FP8_CHANNEL),
        "FP8_PB_WO" | "FP8_BLOCK_SCALES" => Known::Codes(FP8_BLOCK),
        _ => Known::Unread,
    }
}

fn modelopt(q: &Object, algo: &str, dtype: DType) -> Result<(Vec<Rule>, bool), Diagnostic> {
    if algo != "MIXED_PRECISION" {
        if algo.is_empty() {
            return groups(q, dtype);
        }
        let one = Scheme::plain("", by_algo(algo));
        return Ok((one.rules, one.is_read));
    }
    let mut rules: Vec<Rule> = Vec::new();
    let mut is_read = true;
    let Some(layers) = q.get("quantized_layers").filter(|v| v.is_object()) else {
        // A mixture that says of no part what it is: found out when it is loaded.
        return Ok((Vec::new(), true));
    };
    for (name, node) in layers.object()?.members().iter().filter(|(_, v)| v.is_object()) {
        let format = match by_algo(&word(&node.object()?, "quant_algo")?.to_uppercase()) {
            Known::Codes(f) => Some(f),
            Known::Floats => None,
            Known::Unread => {
                is_read = false;
                None
            }
        };
        let pattern = Pattern::new(name);
        // Thousands of layers, few formats.
        match rules.iter_mut().find(|r| r.format == format) {
            Some(Rule { modules: Some(modules), .. }) => modules.push(pattern),
            _ => rules.push(Rule { modules: Some(vec![pattern]), format }),
        }
    }
    Ok((rules, is_read))
}

/// The groups of compressed-tensors. Targets are names of modules and, for all of them, classes of modules.
fn groups(q: &Object, dtype: DType) -> Result<(Vec<Rule>, bool), Diagnostic> {
    let (mut rules, mut is_read) = (Vec::new(), true);
    let Some(all) = q.get("config_groups").filter(|v| v.is_object()) else { return Ok((rules, is_read)) };
    for (name, group) in all.object()?.members() {
        // A list of targets under the name of a preset (`"FP8": ["Linear"]`) says nothing else.
        let (targets, known) = if group.is_object() {
            let group = group.object()?;
            let named = word(&group, "format")?;
            let named = if named.is_empty() { word(q, "format")? } else { named };
            let known = match group.get("weights").filter(|w| w.is_object()) {
                Some(w) => of_group(&w.object()?, &named, dtype)?,
                None => continue,
            };
            (group.get("targets").cloned(), known)
        } else {
            (Some(group.clone()), by_algo(&name.to_uppercase()))
        };
        is_read &= !matches!(known, Known::Unread);
        let format = match known {
            Known::Codes(f) => Some(f),
            Known::Floats | Known::Unread => None,
        };
        let mut modules = Vec::new();
        for target in targets.filter(|t| t.is_list()).map(|t| t.list()).transpose()?.unwrap_or_default() {
            let target = if target.is_string() { target.string()? } else { continue };
            // Classes are written in capitals, modules in lower case.
            if target.starts_with(|c: char| c.is_ascii_uppercase()) {
                rules.push(Rule { modules: None, format });
            } else {
                modules.push(Pattern::new(&target));
            }
        }
        if !modules.is_empty() {
            rules.push(Rule { modules: Some(modules), format });
        }
    }
    Ok((rules, is_read))
}

/// `weights` of a group.
fn of_group(w: &Object, named: &str, dtype: DType) -> Result<Known, Diagnostic> {
    let shown = |key: &str| w.get(key).map(|v| v.shown()).unwrap_or_default();
    let flag = |key: &str, absent: bool| w.get(key).map_or(absent, |v| v.shown() == "true");
    let size = match w.get("group_size") {
        Some(v) => v.shown().parse::<u64>().unwrap_or(0),
        None => 0,
    };
    let strategy = word(w, "strategy")?;
    let power_of_two = shown("scale_dtype").contains("uint8") || named.starts_with("mxfp");
    // Columns in an order of activations have group indices, which no kernel reads.
    let plain = flag("symmetric", true) && !w.get("actorder").is_some_and(|v| v.is_string());
    let scale = if dtype == DType::F16 { ScaleCode::F16 } else { ScaleCode::BF16 };
    Ok(match (word(w, "type")?.as_str(), shown("num_bits").as_str()) {
        _ if named.contains("sparse") || named.contains("marlin") => Known::Unread,
        ("float", "8") => match (strategy.as_str(), size) {
            (_, 32) if power_of_two => Known::Codes(MXFP8),
            ("tensor", _) => Known::Codes(FP8_TENSOR),
            ("channel", _) => Known::Codes(FP8_CHANNEL),
            ("block", _) => match w.get("block_structure").filter(|b| b.is_list()).map(whole).transpose()?.as_deref() {
                Some(&[rows, cols]) if rows > 0 && cols > 0 => {
                    Known::Codes(format(Code::E4M3, ScaleCode::F32, rows, cols))
                }
                _ => Known::Floats,
            },
            (_, cols) if cols > 0 => Known::Codes(format(Code::E4M3, ScaleCode::F32, 1, cols)),
            _ => Known::Floats,
        },
        ("float", "4") if size == 32 || named.starts_with("mxfp4") => Known::Codes(MXFP4),
        ("float", "4") if size == 16 || named.starts_with("nvfp4") => Known::Codes(NVFP4),
        ("int", "4") if !plain => Known::Floats,
        ("int", "4") if named == "int-quantized" => Known::Floats,
        ("int", "4") if strategy == "channel" => Known::Codes(format(Code::Int4, scale, 1, 0)),
        ("int", "4") if size > 0 => Known::Codes(format(Code::Int4, scale, 1, size)),
        ("int", "4" | "8") => Known::Floats,
        _ => Known::Unread,
    })
}

/// The text of `key`; empty when it is absent or no text.
fn word(o: &Object, key: &str) -> Result<String, Diagnostic> {
    o.get(key).filter(|v| v.is_string()).map(|v| v.string()).transpose().map(Option::unwrap_or_default)
}

fn whole(list: &Json) -> Result<Vec<u64>, Diagnostic> {
    Ok(list.list()?.iter().take(MOST_SIZES).map(|v| v.shown().parse().unwrap_or(0)).collect())
}
