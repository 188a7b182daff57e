//! Reads the keys of a config, collecting what is wrong.
//!
//! A getter never fails: it records a diagnostic and gives a harmless value instead, so that a family's function is a
//! plain list of what it reads, and the user sees all mistakes at once. [`Keys::finish`] turns records into an error.

use crate::families::defaults::{Value, default_of, other_names};
use crate::json::{Json, Object};
use moec_ir::diag::Diagnostic;
use moec_ir::{Activation, Curve, DType};
use std::cell::RefCell;

/// Largest hidden size, expert width or vocabulary that is believed.
pub const MAX_WIDTH: u64 = 1 << 20;
/// Largest number of experts that is believed.
pub const MAX_EXPERTS: u64 = 1 << 16;
/// Largest number of layers that is believed; lists of layers are allocated.
pub const MAX_LAYERS: u64 = 1 << 12;

/// Most problems that are kept.
const MAX_PROBLEMS: usize = 100;

/// The keys of one model, and what was wrong with them so far.
pub struct Keys {
    /// The object that holds the decoder's keys: `text_config` of a multimodal model, else the whole config.
    pub text: Object,
    /// The `model_type` that selected the family.
    pub model_type: String,
    /// Element type of the layer.
    pub dtype: DType,
    /// Spellings of what stands before `layers.N.` in tensor names, most usual first.
    pub prefixes: Vec<String>,
    problems: RefCell<Vec<Diagnostic>>,
}

/// A feature of a published model that the graph IR has no operation for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    /// Llama 4: expert inputs scaled, with more than one expert per token.
    ScaledInputs,
    /// Experts of a token that depend on other tokens: Doge's router, and limits on the tokens that an expert takes.
    MixedTokens,
    /// An activation function that moec does not know.
    Activation,
    /// A router variant that no published model of the family uses.
    RouterVariant,
    /// Mixtures outside the feed-forward block.
    AttentionMixture,
    /// A structure that differs between experts or mixes tokens.
    Structure,
}

impl Missing {
    /// Every reason, in declaration order.
    pub const ALL: [Missing; 6] = [
        Missing::ScaledInputs,
        Missing::MixedTokens,
        Missing::Activation,
        Missing::RouterVariant,
        Missing::AttentionMixture,
        Missing::Structure,
    ];

    /// The reason in words.
    pub fn reason(self) -> &'static str {
        match self {
            Missing::ScaledInputs => "experts whose inputs are scaled, with more than one expert per token",
            Missing::MixedTokens => "a router that mixes tokens",
            Missing::Activation => "this activation function",
            Missing::RouterVariant => "this variant of the router",
            Missing::AttentionMixture => "mixtures outside the feed-forward block",
            Missing::Structure => "this structure of experts",
        }
    }
}

impl Keys {
    /// A reader of `text`.
    pub fn new(text: Object, model_type: String, dtype: DType, prefixes: Vec<String>) -> Keys {
        Keys { text, model_type, dtype, prefixes, problems: RefCell::new(Vec::new()) }
    }

    /// Records a problem.
    pub fn problem(&self, d: Diagnostic) {
        let mut problems = self.problems.borrow_mut();
        // A key that is read twice is wrong once.
        if problems.len() < MAX_PROBLEMS && !problems.contains(&d) {
            problems.push(d);
        }
    }

    /// Takes over the problems of a reader of a nested object.
    pub fn adopt(&self, nested: Keys) {
        nested.problems.take().into_iter().for_each(|d| self.problem(d));
    }

    /// Records that the layer needs something that the graph IR does not have.
    pub fn refuse(&self, missing: Missing, detail: impl Into<String>, key: Option<&str>) {
        let origin = key.and_then(|k| self.text.get(k)).map(Json::origin);
        let file = self.text.node().file();
        self.problem(
            Diagnostic::input(
                "unsupported-layer",
                format!("{file}: `{}` needs {}, which moec cannot express", self.model_type, missing.reason()),
            )
            .note(detail)
            .at(origin),
        );
    }

    /// The value, or all problems in file order.
    pub fn finish<T>(&self, value: T) -> Result<T, Vec<Diagnostic>> {
        let mut problems = self.problems.take();
        if problems.is_empty() {
            return Ok(value);
        }
        problems.sort_by_key(|d| d.origin.as_ref().map_or(0, |o| o.start));
        Err(problems)
    }

    /// The first of `names` that is present and not null; then the other names that the family's config class takes.
    pub fn get(&self, names: &[&str]) -> Option<&Json> {
        let others = || names.iter().flat_map(|n| other_names(&self.model_type, n));
        names.iter().find_map(|n| self.text.get(n)).or_else(|| others().find_map(|n| self.text.get(n)))
    }

    /// What the family's own code assumes where none of `names` is in the config. A key that is null is in it.
    fn assumed(&self, names: &[&str]) -> Option<Value> {
        let present = |n: &str| self.text.get_or_null(n).is_some();
        if names.iter().any(|n| present(n) || other_names(&self.model_type, n).any(present)) {
            return None;
        }
        names.iter().find_map(|n| default_of(&self.model_type, n))
    }

    fn read<T>(&self, result: Result<T, Diagnostic>, fallback: T) -> T {
        result.unwrap_or_else(|d| {
            self.problem(d);
            fallback
        })
    }

    fn required<T>(&self, names: &[&str], fallback: T, read: impl Fn(&Json) -> Result<T, Diagnostic>) -> T {
        match self.get(names) {
            Some(v) => self.read(read(v), fallback),
            None => self.read(Err(self.text.missing(names)), fallback),
        }
    }

    /// A required size from 1 to `most`, under the first of `names` that is present.
    pub fn size(&self, names: &[&str], most: u64) -> u64 {
        self.required(names, 1, |v| v.whole(1..=most))
    }

    /// A size from 0 to `most`; when it is absent, what the family assumes, else `default`.
    pub fn size_or(&self, names: &[&str], default: u64, most: u64) -> u64 {
        if let Some(Value::Whole(n)) = self.assumed(names) {
            return n;
        }
        self.get(names).map_or(default, |v| self.read(v.whole(0..=most), default))
    }

    /// A size that may be one number for all layers or a list with one for each.
    pub fn size_at(&self, names: &[&str], layer: u32, most: u64) -> u64 {
        self.required(names, 1, |v| at_layer(v, layer)?.whole(1..=most))
    }

    /// As [`Keys::size_at`], but `default` when the key or its entry is absent or null. 0 is a value.
    pub fn size_at_or(&self, names: &[&str], layer: u32, default: u64, most: u64) -> u64 {
        let read = |v: &Json| {
            let v = at_layer(v, layer)?;
            if v.is_null() { Ok(default) } else { v.whole(0..=most) }
        };
        self.get(names).map_or(default, |v| self.read(read(v), default))
    }

    /// A number; when it is absent, what the family assumes, else `default`.
    pub fn real_or(&self, names: &[&str], default: f32) -> f32 {
        match self.assumed(names) {
            Some(Value::Real(x)) => return x,
            Some(Value::Whole(n)) => return n as f32,
            Some(Value::Flag(_) | Value::Word(_)) | None => {}
        }
        self.get(names).map_or(default, |v| self.read(v.real().map(|x| x as f32), default))
    }

    /// A number that may be a list with one for each layer; `default` when the key or its entry is absent or null.
    pub fn real_at_or(&self, names: &[&str], layer: u32, default: f32) -> f32 {
        let read = |v: &Json| {
            let v = at_layer(v, layer)?;
            if v.is_null() { Ok(default) } else { v.real().map(|x| x as f32) }
        };
        self.get(names).map_or(default, |v| self.read(read(v), default))
    }

    /// A switch; when it is absent, what the family assumes, else `default`.
    pub fn flag_or(&self, name: &str, default: bool) -> bool {
        self.flag_of(&[name], default)
    }

    /// A switch under the first of `names` that is present; else as [`Keys::flag_or`].
    pub fn flag_of(&self, names: &[&str], default: bool) -> bool {
        if let Some(Value::Flag(on)) = self.assumed(names) {
            return on;
        }
        self.get(names).map_or(default, |v| self.read(v.flag(), default))
    }

    /// A word; when it is absent, what the family assumes, else `default`.
    pub fn word_or(&self, name: &str, default: &str) -> String {
        if let Some(Value::Word(word)) = self.assumed(&[name]) {
            return word.to_string();
        }
        self.text.get(name).map_or(default.to_string(), |v| self.read(v.string(), default.to_string()))
    }

    /// A word that has to be one of `allowed`, the first when it is absent or null.
    pub fn one_of<'a>(&self, name: &str, allowed: &[&'a str]) -> &'a str {
        let word = self.word_or(name, allowed[0]);
        match allowed.iter().find(|a| **a == word) {
            Some(a) => a,
            None => {
                if let Some(v) = self.text.get(name) {
                    let list: Vec<String> = allowed.iter().map(|a| format!("{a:?}")).collect();
                    self.problem(v.out_of_range(&format!("{} for `{}`", list.join(" or "), self.model_type)));
                }
                allowed[0]
            }
        }
    }

    /// The hidden size.
    pub fn hidden(&self) -> u64 {
        self.size(&["hidden_size"], MAX_WIDTH)
    }

    /// The number of the decoder's layers; the encoder's where a model has one before its decoder.
    pub fn n_layers(&self) -> u32 {
        let keys = ["num_hidden_layers", "num_layers", "n_layers", "encoder_layers"];
        // Hybrid models may give the kind of every layer and no number.
        let kinds = self.text.get("layers_block_type").filter(|v| v.is_list() && self.get(&keys).is_none());
        match kinds.and_then(|v| v.list().ok()).map(|l| l.len() as u64) {
            Some(n) if n <= MAX_LAYERS => n as u32,
            _ => self.size(&keys, MAX_LAYERS) as u32,
        }
    }

    /// The gated activation that `hidden_act` (or another key) names; SwiGLU when the key is absent.
    pub fn gated_activation(&self, key: &str) -> Activation {
        let name = self.word_or(key, "silu");
        match name.as_str() {
            "silu" | "swish" => Activation::SwiGlu,
            "gelu" | "gelu_python" => Activation::GeGluErf,
            "relu" => Activation::ReGlu,
            tanh if is_gelu_tanh(tanh) => Activation::GeGluTanh,
            other => self.curve(other, key).map_or(Activation::SwiGlu, Activation::Gated),
        }
    }

    /// The ungated activation that a key names; `default` when the key is absent.
    pub fn ungated_activation(&self, key: &str, default: &str) -> Activation {
        let name = self.word_or(key, default);
        match name.as_str() {
            "relu2" => Activation::Relu2,
            "silu" | "swish" => Activation::Silu,
            "gelu" | "gelu_python" => Activation::Gelu,
            tanh if is_gelu_tanh(tanh) => Activation::GeluTanh,
            other => self.curve(other, key).map_or(Activation::Relu2, Activation::Ungated),
        }
    }

    /// The function of this name, or a refusal.
    fn curve(&self, name: &str, key: &str) -> Option<Curve> {
        let curve = Curve::by_name(name);
        if curve.is_none() {
            let known = Curve::ALL.map(Curve::name).join(", ");
            let detail = format!("`{key}` is {name:?}; moec knows silu, gelu, gelu_pytorch_tanh, {known}");
            self.refuse(Missing::Activation, detail, Some(key));
        }
        curve
    }
}

/// Whether a name is one of those that transformers has for gelu by tanh.
fn is_gelu_tanh(name: &str) -> bool {
    ["gelu_pytorch_tanh", "gelu_new", "gelu_accurate", "gelu_fast", "gelu_python_tanh"].contains(&name)
}

/// `v` itself, or its entry for `layer` when it is a list.
fn at_layer(v: &Json, layer: u32) -> Result<Json, Diagnostic> {
    if !v.is_list() {
        return Ok(v.clone());
    }
    let list = v.list()?;
    list.get(layer as usize)
        .cloned()
        .ok_or_else(|| v.out_of_range(&format!("a list with an entry for layer {layer}; it has {}", list.len())))
}
