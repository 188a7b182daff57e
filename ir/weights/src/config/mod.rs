//! What a config says about the format of its weights, module by module.
//!
//! A publisher's `quantization_config` becomes a list of rules: patterns over module names, each with a [`Spec`]. Which keys mean
//! what is the matter of the files of [`crate::formats`]; this one holds what they have in common.

mod keys;
pub mod ordered;
mod patterns;

pub use keys::Keys;
pub use patterns::Pattern;

use moec_ir::DType;
use moec_ir::diag::Diagnostic;
use moec_ir::quant::QuantFormat;
use serde_json::Value;
use std::path::Path;

/// What a config says of its weights.
#[derive(Clone, Debug)]
pub struct Published {
    /// The format in a few words: `gptq 4 bits`.
    pub words: String,
    /// The first rule that names a module decides (but see `contested`), then the first for all modules.
    pub rules: Vec<Rule>,
    /// Modules that are left as floats.
    pub excluded: Vec<Pattern>,
    /// Only routed experts are quantised.
    pub experts_only: bool,
    /// Whether of two rules that name a module not the first counts for the publisher's own reader, but the first in order of
    /// names, names before expressions (compressed-tensors). Modules for which that is another are refused.
    pub contested: bool,
    /// Why no weights are read at all: a method or a key that is not known.
    pub refusal: Option<Diagnostic>,
    /// The config's own words, as a bundle keeps them.
    pub source: Source,
}

/// The part of a config that speaks of weights, and what else is needed to read it.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// Where it was found: `quantization_config`.
    pub place: String,
    /// The object.
    pub config: Value,
    /// `expert_dtype` of DeepSeek-V4, which says of routed experts that they are FP4.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expert_dtype: Option<String>,
}

/// A format, and the modules that it is for.
#[derive(Clone, Debug)]
pub struct Rule {
    /// Without patterns: every linear layer.
    pub modules: Option<Vec<Pattern>>,
    /// What their weights are.
    pub spec: Spec,
}

/// What the weights of a module are, as its config says.
#[derive(Clone, Debug, PartialEq)]
pub enum Spec {
    /// Not quantised.
    Floats,
    /// The config does not say; the tensors have to.
    Unsaid,
    /// Codes with a scale for each block.
    Coded(CodedSpec),
    /// Integers with scales and zero points.
    Integers(IntegerSpec),
    /// A format that is not read; why.
    Unread(String),
}

/// Codes with a scale for each block.
#[derive(Clone, Debug, PartialEq)]
pub struct CodedSpec {
    /// In words: `NVFP4 of ModelOpt`.
    pub words: String,
    /// Codes, scales and blocks. Scales of FP8 may be stored in any type of floats.
    pub format: QuantFormat,
    /// Whether the config gives the blocks; else the tensors do.
    pub blocks_said: bool,
}

/// Integers with scales and zero points.
#[derive(Clone, Debug, PartialEq)]
pub struct IntegerSpec {
    /// In words: `GPTQ with 4 bits`.
    pub words: String,
    /// How codes lie in words.
    pub packing: Packing,
    /// Bits of a code.
    pub bits: u32,
    /// What has a scale.
    pub group: Group,
    /// Whether all zero points are the middle of the codes.
    pub symmetric: Option<bool>,
    /// Whether columns have groups in an order of their own, which a tensor must give.
    pub ordered: bool,
    /// What is added to zero points as they are stored.
    pub zeros: ZeroPoints,
    /// The form in which kernels read these codes, if they can.
    pub kernels: Option<QuantFormat>,
}

/// How integer codes are packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packing {
    /// `qweight` `[K·bits/32, N]`, low bits first along K.
    Gptq,
    /// `qweight` `[K·bits/32, N]`, of 32 codes first the words of their low bits, then those of higher planes.
    GptqPlanes,
    /// `qweight` `[K, N/8]`, columns 0 2 4 6 1 3 5 7 of a word.
    Awq,
    /// `weight_packed` `[N, K·bits/32]`, low bits first along K, offset binary.
    Rows,
    /// Signed bytes `[N, K]`.
    Bytes,
    /// Two rows in a byte, `[N/2, K]`, two's complement, the even row in the low nibble.
    RowPairs,
}

/// What has a scale of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// The config does not say.
    Unsaid,
    /// The whole matrix.
    Matrix,
    /// A row.
    Row,
    /// This many columns of a row, the last group cut short.
    Columns(u64),
}

/// How zero points are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ZeroPoints {
    /// As they are.
    AsTheyAre,
    /// Less one, and zero as all ones.
    LessOne,
    /// The config does not say.
    Unsaid,
}

/// What is known of a module before its tensors are looked at.
#[derive(Clone, Copy, Debug)]
pub enum Declared<'a> {
    /// There is no config that speaks of weights.
    NoConfig,
    /// A config speaks of weights, and leaves this module as floats or does not name it.
    Left,
    /// The config names the module, and says this.
    As(&'a Spec),
}

impl Spec {
    /// The form in which kernels can read the codes, if they can.
    pub fn kernels(&self) -> Option<QuantFormat> {
        match self {
            // Kernels know NVFP4 with a scale for 16 codes.
            Spec::Coded(c) => Some(c.format).filter(|f| !f.has_global() || f.block_cols == 16),
            Spec::Integers(i) => i.kernels,
            Spec::Floats | Spec::Unsaid | Spec::Unread(_) => None,
        }
    }

    /// Whether two configs may mean the same by these: what one leaves open, the other may say.
    fn agrees(&self, other: &Spec) -> bool {
        match (self, other) {
            (Spec::Integers(a), Spec::Integers(b)) => {
                let group = a.group == b.group || a.group == Group::Unsaid || b.group == Group::Unsaid;
                let zeros = a.zeros == b.zeros || a.zeros == ZeroPoints::Unsaid || b.zeros == ZeroPoints::Unsaid;
                let symmetric = a.symmetric.zip(b.symmetric).is_none_or(|(a, b)| a == b);
                group && zeros && symmetric && (a.packing, a.bits) == (b.packing, b.bits)
            }
            (Spec::Coded(a), Spec::Coded(b)) => {
                let blocks = |f: &QuantFormat| (f.block_rows, f.block_cols);
                let open = !a.blocks_said || !b.blocks_said;
                a.format.code == b.format.code && (open || blocks(&a.format) == blocks(&b.format))
            }
            (Spec::Integers(_), Spec::Coded(_)) | (Spec::Coded(_), Spec::Integers(_)) => false,
            (Spec::Floats | Spec::Unsaid | Spec::Unread(_), _) | (_, Spec::Floats | Spec::Unsaid | Spec::Unread(_)) => {
                true
            }
        }
    }

    /// In a few words.
    pub fn words(&self) -> &str {
        match self {
            Spec::Coded(c) => &c.words,
            Spec::Integers(i) => &i.words,
            Spec::Floats => "floats",
            Spec::Unsaid => "a format that it does not name",
            Spec::Unread(what) => what,
        }
    }
}

impl Published {
    /// Reads what a config says. `dtype` is the type of the model, in which some publishers store scales.
    ///
    /// # Errors
    /// `config-key-type` for a value of another type than every config has there. What is not known becomes
    /// [`Published::refusal`]: a layer can be compiled all the same.
    pub fn read(source: Source, dtype: DType) -> Result<Published, Diagnostic> {
        crate::formats::read_config(source, dtype)
    }

    /// What is said of the weights in `folder`: by `quantization_config` of its `config.json`, by ModelOpt's, AutoGPTQ's and
    /// AutoRound's own files, or by Mistral's `params.json`. `None` when none of them speaks of weights, or there is none.
    ///
    /// # Errors
    /// `checkpoint-config-invalid` for a file that is no JSON, and those of [`Published::read`].
    pub fn beside(folder: &Path, dtype: DType) -> Result<Option<Published>, Diagnostic> {
        let mut first: Option<(&str, Published)> = None;
        for (file, places) in FILES {
            let path = folder.join(file);
            let Some(root) = json(&path)? else { continue };
            let Some(source) = Source::within(&root, places) else { continue };
            let published = Published::read(source, dtype)?;
            match &first {
                None => first = Some((file, published)),
                Some((name, first)) => first.check_agrees(&published, name, file)?,
            }
        }
        Ok(first.map(|(_, published)| published))
    }

    /// Compares what two configs say of all weights; what is said of single modules is left to the first.
    ///
    /// # Errors
    /// `quantisation-contradicts-config` with both, which are called `own_name` and `other_name`.
    pub fn check_agrees(&self, other: &Published, own_name: &str, other_name: &str) -> Result<(), Diagnostic> {
        let general = |p: &Published| p.rules.iter().find(|r| r.modules.is_none()).map(|r| r.spec.clone());
        let (Some(own), Some(theirs)) = (general(self), general(other)) else { return Ok(()) };
        if own.agrees(&theirs) {
            return Ok(());
        }
        let message = format!("`{own_name}` says {}, but `{other_name}` says {}", own.words(), theirs.words());
        Err(Diagnostic::input("quantisation-contradicts-config", message)
            .note(format!("one says {own:?}, the other {theirs:?}"))
            .help("keep the config that was published with the weights, and remove the other"))
    }

    /// What is said of a module that has these names, whether or not it is among those that stay floats: how its codes are to be
    /// read if it has codes all the same.
    pub(crate) fn described(&self, modules: &[String]) -> Declared<'_> {
        let named =
            |patterns: &Vec<Pattern>| modules.iter().any(|m| patterns.iter().any(|p| p.covers(m) == Some(true)));
        let mut named = self.rules.iter().filter(|r| r.modules.as_ref().is_some_and(named));
        let own = named.next();
        if let (true, Some(first)) = (self.contested, own) {
            // In order of names: the least pattern that covers the module.
            let key = |r: &&Rule| {
                let covers = |p: &&Pattern| modules.iter().any(|m| p.covers(m) == Some(true));
                let texts = r
                    .modules
                    .iter()
                    .flatten()
                    .filter(covers)
                    .map(|p| (p.text().starts_with("re:"), p.text().to_string()));
                texts.min()
            };
            let by_name = std::iter::once(first).chain(named).min_by_key(key);
            if by_name.is_some_and(|r| r.spec != first.spec) {
                return Declared::As(&CONTESTED);
            }
        }
        match own.or_else(|| self.rules.iter().find(|r| r.modules.is_none())) {
            Some(rule) => Declared::As(&rule.spec),
            None => Declared::Left,
        }
    }

    /// What is said of a module that has these names.
    pub fn declared(&self, modules: &[String]) -> Declared<'_> {
        let covered = |p: &Pattern| modules.iter().any(|m| p.covers(m) != Some(false));
        if self.excluded.iter().any(covered) {
            return Declared::Left;
        }
        self.described(modules)
    }
}

/// What a module is for which order and names give different rules.
static CONTESTED: std::sync::LazyLock<Spec> = std::sync::LazyLock::new(|| {
    Spec::Unread(
        "two groups of `config_groups` say, of which compressed-tensors takes the first by name, and not the first that stands"
            .to_string(),
    )
});

/// The files that speak of weights, the first that does so counts, and the places of the object in them.
const FILES: &[(&str, &[&str])] = &[
    ("config.json", PLACES),
    ("hf_quant_config.json", &["quantization"]),
    ("quantize_config.json", &[""]),
    ("quantization_config.json", &[""]),
    ("params.json", &["quantization"]),
];

/// Where a config of transformers speaks of weights; nested decoders first, which speak of themselves.
pub const PLACES: &[&str] = &[
    "text_config.quantization_config",
    "language_config.quantization_config",
    "llm_config.quantization_config",
    "thinker_config.text_config.quantization_config",
    "thinker_config.quantization_config",
    "text_config.compression_config",
    "quantization_config",
    "compression_config",
    "quantization",
];

impl Source {
    /// The first object at one of `places` of a config.
    pub fn within(root: &Value, places: &[&str]) -> Option<Source> {
        let at = |place: &&&str| place.split('.').filter(|p| !p.is_empty()).try_fold(root, |v, key| v.get(key));
        let expert_dtype = ["", "text_config"].iter().find_map(|p| at(&p)?.get("expert_dtype")?.as_str());
        let found = places.iter().find_map(|p| at(&p).filter(|v| v.is_object()).map(|v| (*p, v)));
        if let Some((place, config)) = found {
            let place = if place.is_empty() { "quantization" } else { place }.to_string();
            return Some(Source { place, config: config.clone(), expert_dtype: expert_dtype.map(str::to_string) });
        }
        // DeepSeek's own configs name the type of all weights.
        (root.get("dtype").and_then(Value::as_str) == Some("fp8") && places.contains(&"quantization_config")).then(
            || {
                let config = serde_json::json!({ "quant_method": "fp8", "weight_block_size": [128, 128] });
                Source { place: "dtype".to_string(), config, expert_dtype: expert_dtype.map(str::to_string) }
            },
        )
    }
}

/// The largest config that is read, in bytes.
const MAX_CONFIG_BYTES: u64 = 64 << 20;

/// The object in a file, when there is one.
fn json(path: &Path) -> Result<Option<Value>, Diagnostic> {
    let Ok(meta) = std::fs::metadata(path) else { return Ok(None) };
    let invalid = |why: String| {
        Diagnostic::input(
            "checkpoint-config-invalid",
            format!("`{}` beside the weights cannot be read: {why}", path.display()),
        )
        .help("it says how the weights are stored; download it again, or remove it when it belongs to another model")
    };
    if !meta.is_file() || meta.len() > MAX_CONFIG_BYTES {
        return Err(invalid("it is no file, or too large for a config".to_string()));
    }
    let text = std::fs::read(path).map_err(|e| invalid(e.to_string()))?;
    ordered::read(&text).map(Some).map_err(|e| invalid(e.to_string()))
}
