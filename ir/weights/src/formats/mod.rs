//! The schemes in which weights are published: one file each, and two tables.
//!
//! A scheme says how a config names it ([`CONFIGS`]), and how the tensors look that stand for a float tensor ([`SCHEMES`]): what
//! they are called, their types and shapes, what a code means. Families name float tensors (`….gate_proj.weight`); a quantised
//! checkpoint has codes and scales under names that follow a convention of its publisher, not of the family. In what follows `N`
//! is the float tensor's name and `stem` that name without `.weight`.

mod auto_round;
mod awq;
mod compressed_tensors;
mod fp8;
pub mod ggml;
mod gpt_oss;
mod gptq;
mod modelopt;
mod qmoe;
mod quark;
mod read;
mod shapes;
mod single_bytes;
mod unread;

pub(crate) use read::{Found, bad_scale, contains, find, scales_beside, stem};

use crate::config::{Declared, Keys, Pattern, Published, Rule, Source, Spec};
use crate::decode::Elements;
use crate::read::safetensors::StoredType;
use moec_ir::DType;
use moec_ir::diag::Diagnostic;

/// How one scheme's config is read.
pub(crate) struct ConfigReader {
    /// Whether the config is one of this scheme: `method` is `quant_method` in lower case with dashes.
    pub is: fn(method: &str, q: &Keys<'_>) -> bool,
    /// What it says.
    pub read: fn(q: &Keys<'_>, context: &Context<'_>) -> Result<Vec<Rule>, Diagnostic>,
    /// Keys that do not bear on what the weights are.
    pub irrelevant: &'static [&'static str],
}

/// What else there is to know when a config is read.
pub(crate) struct Context<'a> {
    /// The type of the model.
    pub dtype: DType,
    /// `expert_dtype` of DeepSeek-V4.
    pub expert_dtype: Option<&'a str>,
}

/// The readers of configs; the first that takes one counts.
const CONFIGS: &[ConfigReader] = &[
    modelopt::CONFIG,
    compressed_tensors::CONFIG,
    fp8::CONFIG,
    fp8::MISTRAL,
    gpt_oss::CONFIG,
    gptq::CONFIG,
    awq::CONFIG,
    auto_round::CONFIG,
    quark::CONFIG,
];

/// How the tensors of one scheme are read.
pub(crate) struct Scheme {
    /// Its name in messages.
    pub name: &'static str,
    /// The name of the tensor of codes that stands for a float tensor.
    pub codes: fn(name: &str) -> Option<String>,
    /// Whether it has codes of this type; `true` also for types that it will refuse.
    pub takes: fn(StoredType) -> bool,
    /// The elements; `None` when the tensor is of another scheme, or no quantised one.
    pub read: for<'a> fn(&Found<'a, '_>) -> Result<Option<Elements<'a>>, Diagnostic>,
}

/// The schemes of tensors.
const SCHEMES: &[Scheme] = &[
    gpt_oss::SCHEME,
    compressed_tensors::SCHEME,
    gptq::SCHEME,
    fp8::SCHEME,
    modelopt::SCHEME,
    single_bytes::SCHEME,
    qmoe::FOUR,
    qmoe::EIGHT,
    unread::HQQ,
    unread::QUANTO,
    unread::QUANTO_PACKED,
    unread::SCALED_INPUT,
];

/// Keys of every publisher that do not bear on what the weights are: they are about activations, about how the quantiser came to
/// its codes, or about programs that run them.
const IRRELEVANT: &[&str] = &[
    "quant_method",
    "activation_scheme",
    "scale_fmt",
    "kv_cache_scheme",
    "kv_cache_quant_algo",
    "producer",
    "version_info",
    "backend",
    "dequantize",
];

/// Keys that list modules which stay floats.
const EXCLUDED: &[&str] = &["modules_to_not_convert", "ignore", "exclude_modules", "ignored_layers", "exclude"];

/// Reads a config: see [`Published::read`].
pub(crate) fn read_config(source: Source, dtype: DType) -> Result<Published, Diagnostic> {
    let empty = serde_json::Map::new();
    let q = Keys::new(source.config.as_object().unwrap_or(&empty), source.place.clone());
    let method = q.word("quant_method")?.unwrap_or_default().replace('_', "-");
    let words = words(&q)?;
    let mut excluded = Vec::new();
    for key in EXCLUDED {
        excluded.extend(q.words(key)?.iter().map(|w| Pattern::new(w)));
    }
    let context = Context { dtype, expert_dtype: source.expert_dtype.as_deref() };
    let reader = CONFIGS.iter().find(|r| (r.is)(&method, &q));
    let read = match reader {
        None => Err(unread(&q, &words)),
        Some(r) => (r.read)(&q, &context).and_then(|rules| {
            // AutoRound exports to the formats of others, with its own keys beside theirs.
            let all = IRRELEVANT.iter().chain(r.irrelevant).chain(auto_round::ABOUT_THE_RUN);
            let irrelevant: Vec<&str> = all.copied().collect();
            q.finish(&irrelevant)?;
            let mut modules = rules.iter().flat_map(|r| r.modules.iter().flatten());
            match modules.find(|p| !p.is_known()) {
                Some(p) => Err(not_understood(&q, p)),
                None => Ok(rules),
            }
        }),
    };
    let (rules, refusal) = match read {
        Ok(rules) => (rules, None),
        Err(d) if d.code == "config-key-type" => return Err(d),
        Err(d) => (Vec::new(), Some(d)),
    };
    let (experts_only, contested) = (method == "mxfp4", method == "compressed-tensors");
    drop(q);
    Ok(Published { words, rules, excluded, experts_only, contested, refusal, source })
}

/// The error of a method that no scheme here has.
fn unread(q: &Keys<'_>, words: &str) -> Diagnostic {
    let method = q.get("quant_method").and_then(|v| v.as_str()).unwrap_or("none");
    Diagnostic::input(
        "quantised-checkpoint",
        format!("the weights are stored quantised ({words}), a format that moec does not read"),
    )
    .note(format!("`{}` is `{method}`", q.path("quant_method")))
    .help("use a float checkpoint, or one in a format that docs/checkpoints.md lists")
}

/// The error of a rule of which nobody here knows the modules: the next rule would count for them.
fn not_understood(q: &Keys<'_>, p: &Pattern) -> Diagnostic {
    Diagnostic::input(
        "quantisation-not-described",
        format!("`{}` in `{}` stands for modules that moec cannot tell", p.text(), q.place()),
    )
    .note("it is a class of modules, or an expression that moec does not understand")
    .help("name the modules by an expression over their names, or take a checkpoint with one format for all")
}

/// The format in a few words.
fn words(q: &Keys<'_>) -> Result<String, Diagnostic> {
    let mut words: Vec<String> = Vec::new();
    for key in ["quant_method", "quant_algo", "format", "fmt", "qformat_weight"] {
        if let Some(v) = q.get(key).and_then(|v| v.as_str()) {
            words.push(v.to_string());
        }
    }
    if let Some((rows, cols)) = q.block("weight_block_size")? {
        words.push(format!("{rows}x{cols} blocks"));
    }
    if let Some(bits) = q.whole("bits")? {
        words.push(format!("{bits} bits"));
    }
    words.dedup();
    Ok(if words.is_empty() { "unnamed format".to_string() } else { words.join(" ") })
}

/// One rule for every linear layer.
fn everywhere(spec: Spec) -> Vec<Rule> {
    vec![Rule { modules: None, spec }]
}

/// A description of what a config says, for messages.
pub(crate) fn said(declared: Declared<'_>) -> String {
    match declared {
        Declared::NoConfig => "no config says how it is stored".to_string(),
        Declared::Left => "the config leaves it as floats".to_string(),
        Declared::As(spec) => format!("the config says {}", spec.words()),
    }
}
