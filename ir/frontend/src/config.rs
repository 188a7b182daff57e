//! A published model's `config.json`.

use crate::assemble::{assemble, assemble_experts, experts_alone};
use crate::computes::computes;
use crate::facts::LayerFacts;
use crate::families::single_experts::or_single_experts;
use crate::families::{FAMILIES, Family, family};
use crate::json::{CONFIG, Json, Object, nearest};
use crate::keys::Keys;
use crate::layers;
use crate::published_rows::PublishedRows;
use crate::spec::MoeSpec;
use crate::{quantisation, stored};
use moec_ir::DType;
use moec_ir::diag::Diagnostic;
use moec_ir::graph::{Graph, Shard, shard};
use moec_weights::Published;
use std::collections::BTreeMap;
use std::path::Path;

/// What is wrong with a config, in file order. Never empty.
pub type Diagnostics = Vec<Diagnostic>;

/// A model's config, with its family recognised.
#[derive(Clone, Debug)]
pub struct ModelConfig {
    text: Object,
    family: &'static Family,
    model_type: String,
    dtype: DType,
    quantization: Option<Published>,
    published_rows: PublishedRows,
    prefixes: Vec<String>,
}

/// Choices of the user about a layer.
#[derive(Clone, Debug, Default)]
pub struct LayerOptions {
    /// Compile in this float type instead of the config's.
    pub dtype: Option<DType>,
    /// One rank's part of the layer instead of all of it.
    pub shard: Option<Shard>,
    /// How much of the layer.
    pub part: Part,
    /// The experts of each token come in as `topk_ids` in this integer type, instead of being chosen by the router (replayed
    /// routing); their weights are still the router's own scores of them. Only with [`Part::Layer`].
    pub ids_in: Option<DType>,
}

/// How much of an MoE layer is compiled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Part {
    /// All of it: the router, the routed experts, shared experts and what follows.
    #[default]
    Layer,
    /// The routed experts alone, for a host that routes by itself: `input`, `topk_ids` and `topk_weights` come in, their
    /// weighted sum comes out.
    Experts {
        /// Type of the ids, [`DType::I32`] or [`DType::I64`]. Ids that no expert has are skipped.
        ids: DType,
        /// Float type of the weights.
        weights: DType,
    },
}

/// One MoE layer of a model.
#[derive(Clone, Debug)]
pub struct Layer {
    /// What it computes, in the unfused form.
    pub graph: Graph,
    /// The config's `model_type`.
    pub model_type: String,
    /// Its number, as in the weight names.
    pub layer: u32,
    /// Weight format of the checkpoint, when it is quantised. The layer computes in float, with weights dequantised when they are
    /// loaded; see [`Layer::loadable`].
    pub quantization: Option<String>,
    /// What the config says about its weights, for whoever reads them.
    pub published: Option<Published>,
    /// What it computes, fact by fact, in words that [`ModelConfig::computes`] gives for another config of the same layer.
    pub computes: BTreeMap<String, String>,
    /// Why the weights cannot be read, if they cannot.
    unread: Option<Diagnostic>,
    /// The layer in numbers.
    pub description: LayerFacts,
}

impl Layer {
    /// Whether the checkpoint's weights can be read as the graph's parameters.
    ///
    /// # Errors
    /// `quantised-checkpoint` when they are stored in a format that is not read (bitsandbytes, AQLM, …),
    /// `quantisation-key-unknown` when the config has a key that may change what they mean.
    pub fn loadable(&self) -> Result<(), Diagnostic> {
        match &self.unread {
            None => Ok(()),
            Some(d) => Err(d.clone()),
        }
    }
}

/// Why a layer's weights cannot be read, as far as the config tells.
fn unread(published: &Published, graph: &Graph) -> Option<Diagnostic> {
    let layer = "the layer compiles as a float layer, but this checkpoint cannot be loaded into it";
    if let Some(refusal) = &published.refusal {
        return Some(refusal.clone().note(layer));
    }
    let what = stored::unread(published, graph)?;
    let message = format!("the weights of {} are stored as {what}, a format that moec does not read", graph.name);
    let d = Diagnostic::input("quantised-checkpoint", message).note(layer);
    Some(d.help("use a float checkpoint, or one in a format that docs/checkpoints.md lists"))
}

/// Where nested decoder configs stand.
const NESTED: [&str; 4] = ["text_config", "language_config", "llm_config", "thinker_config"];

impl ModelConfig {
    /// Reads `path`: a model directory with a `config.json`, or such a file.
    ///
    /// # Errors
    /// `not-a-model`, `config-not-json`, `missing-config-key`, `config-key-type`, `config-value-range`,
    /// `unknown-model-type`.
    pub fn open(path: impl AsRef<Path>) -> Result<ModelConfig, Diagnostics> {
        let path = path.as_ref();
        let (shown, text) = crate::open::read(path)?;
        let mut config = ModelConfig::from_text(&shown, text)?;
        let folder = if path.is_dir() { Some(path) } else { path.parent() };
        // Configs of several models in one folder: `name.json` has `name.hf_quant_config.json` beside it.
        let own = path.file_stem().filter(|stem| *stem != "config" && !path.is_dir());
        let name = own.map_or("hf_quant_config.json".to_string(), |stem| {
            format!("{}.hf_quant_config.json", stem.to_string_lossy())
        });
        if let (None, Some(folder)) = (&config.quantization, folder)
            && let Some((scheme, rows)) = beside(&folder.join(name), config.dtype)
        {
            config.quantization = Some(scheme);
            config.published_rows = rows;
        }
        // AutoGPTQ and AutoRound write files of their own, which count for weights that come from elsewhere, too.
        if let (None, None, Some(folder)) = (&config.quantization, own, folder) {
            config.quantization = Published::beside(folder, config.dtype).map_err(|d| vec![d])?;
        }
        Ok(config)
    }

    /// Reads the text of a `config.json`; `file` is its name in messages.
    ///
    /// # Errors
    /// As [`ModelConfig::open`].
    pub fn from_text(file: &str, text: String) -> Result<ModelConfig, Diagnostics> {
        let root = Json::parse(file, text, CONFIG).and_then(|top| top.object()).map_err(|d| vec![d])?;
        if let Some(graph) = root.get("moec_graph") {
            return Err(vec![
                Diagnostic::input("not-a-model", format!("{file} is a layer graph, not a model's config"))
                    .at(Some(graph.origin()))
                    .help("the command line accepts it wherever it takes a model, without a layer number"),
            ]);
        }
        let (text, family, model_type, nested) = find_family(&root).map_err(|d| vec![d])?;
        let dtype = element_type(&root, &text).map_err(|d| vec![d])?;
        let quantization = quantisation::of(&root, dtype).map_err(|d| vec![d])?;
        let published_rows = PublishedRows::of(&root, &text).map_err(|d| vec![d])?;
        let prefixes: &[&str] = match (family.prefixes, nested) {
            ([], false) => &["model."],
            ([], true) => &["language_model.model.", "model.language_model.", "model."],
            (own, _) => own,
        };
        let prefixes = prefixes.iter().map(|p| (*p).to_string()).collect();
        Ok(ModelConfig { text, family, model_type, dtype, quantization, published_rows, prefixes })
    }

    /// The `model_type` that selected the family.
    pub fn model_type(&self) -> &str {
        &self.model_type
    }

    /// The element type that the config names; bf16 when it names none.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The checkpoint's weight format, when it is quantised.
    pub fn quantization(&self) -> Option<&str> {
        self.quantization.as_ref().map(|q| q.words.as_str())
    }

    /// How the checkpoint says that activations are rounded before its quantised matrices.
    pub fn published_rows(&self) -> &PublishedRows {
        &self.published_rows
    }

    /// The numbers of the MoE layers, ascending; empty when the config does not say (then [`ModelConfig::layer`] tells why).
    pub fn moe_layers(&self) -> Vec<u32> {
        let keys = self.keys(self.dtype);
        let layers = (self.family.moe_layers)(&keys);
        keys.finish(layers).unwrap_or_default()
    }

    /// Layer `number`, or the first MoE layer.
    ///
    /// # Errors
    /// * `layer-is-dense`, `layer-out-of-range`, `no-moe-layers` — there is no such MoE layer.
    /// * `missing-config-key`, `config-key-type`, `config-value-range`, `top-k-exceeds-experts`,
    ///   `groups-do-not-divide-experts`, `groups-kept-exceed-groups` — the config contradicts itself.
    /// * `unsupported-layer` — the graph IR has no operation for it.
    /// * Those of [`moec_ir::graph::shard`], when a shard is asked for.
    pub fn layer(&self, number: Option<u32>, options: &LayerOptions) -> Result<Layer, Diagnostics> {
        let dtype = options.dtype.unwrap_or(self.dtype);
        let (layer, spec) = self.spec(number, dtype)?;
        let published = self.quantization.as_ref();
        build(&self.model_type, layer, spec, dtype, published, options)
            .map_err(|d| vec![if d.origin.is_some() { d } else { d.at(Some(self.text.node().origin())) }])
    }

    /// What layer `number` computes in float type `dtype`, fact by fact: what two configs say in the same words, layers of the same
    /// weights compute alike.
    ///
    /// # Errors
    /// As [`ModelConfig::layer`].
    pub fn computes(&self, number: Option<u32>, dtype: DType) -> Result<BTreeMap<String, String>, Diagnostics> {
        let (_, spec) = self.spec(number, dtype)?;
        Ok(computes(&spec, dtype, Part::Layer))
    }

    fn spec(&self, number: Option<u32>, dtype: DType) -> Result<(u32, MoeSpec), Diagnostics> {
        let keys = self.keys(dtype);
        let moe_layers = (self.family.moe_layers)(&keys);
        let n_layers = keys.n_layers();
        let extra = keys.size_or(self.family.extra_layers, 0, 64) as u32;
        let (moe_layers, n_layers, extra) = keys.finish((moe_layers, n_layers, extra))?;
        let layer = self.choose_layer(number, &moe_layers, n_layers, extra).map_err(|d| vec![d])?;
        let spec = (self.family.spec)(&keys, layer);
        let spec = keys.finish(spec)?;
        check(&keys, &spec);
        Ok((layer, or_single_experts(keys.finish(spec)?)))
    }

    fn keys(&self, dtype: DType) -> Keys {
        Keys::new(self.text.clone(), self.model_type.clone(), dtype, self.prefixes.clone())
    }

    fn choose_layer(&self, number: Option<u32>, moe: &[u32], n_layers: u32, extra: u32) -> Result<u32, Diagnostic> {
        let file = self.text.node().file();
        let Some(&first) = moe.first() else {
            return Err(Diagnostic::input(
                "no-moe-layers",
                format!("{file}: none of the {n_layers} layers of this `{}` model is an MoE layer", self.model_type),
            )
            .note("the keys that say which layers have experts leave none"));
        };
        let Some(number) = number else { return Ok(first) };
        // Layers that predict further tokens follow the decoder's own and are MoE blocks of the same shape.
        if moe.binary_search(&number).is_ok() || (number >= n_layers && number - n_layers < extra) {
            return Ok(number);
        }
        let listed = format!("its MoE layers are {}", layers::ranges(moe));
        if number >= n_layers {
            return Err(Diagnostic::input(
                "layer-out-of-range",
                format!("{file}: there is no layer {number}; the model has layers 0-{}, and {listed}", n_layers - 1),
            ));
        }
        Err(Diagnostic::input("layer-is-dense", format!("{file}: layer {number} is not an MoE layer; {listed}"))
            .help(format!("choose one of these, for example {first}")))
    }
}

/// The layer that a specification describes, as `options` ask for it.
///
/// # Errors
/// Those of [`moec_ir::graph::infer_type`], for a specification that contradicts itself, and of [`moec_ir::graph::shard`].
pub(crate) fn build(
    model_type: &str,
    layer: u32,
    spec: MoeSpec,
    dtype: DType,
    published: Option<&Published>,
    options: &LayerOptions,
) -> Result<Layer, Diagnostic> {
    let name = format!("{model_type} layer {layer}");
    let (name, spec) = match options.part {
        Part::Layer => (name, spec),
        Part::Experts { .. } => (format!("{name} experts"), experts_alone(spec)),
    };
    let mut graph = match options.part {
        Part::Layer => assemble(&name, &spec, dtype, options.ids_in),
        Part::Experts { ids, weights } => assemble_experts(&name, &spec, dtype, ids, weights),
    }?;
    if let Some(scheme) = published {
        stored::mark(scheme, &mut graph);
    }
    let graph = match options.shard {
        Some(part) => shard(&graph, part)?,
        None => graph,
    };
    let quantization = published.map(|q| q.words.clone());
    let mut description = LayerFacts::new(&spec, &graph, model_type, layer, dtype, quantization.clone());
    description.shard = options.shard;
    Ok(Layer {
        model_type: model_type.to_string(),
        layer,
        quantization,
        unread: published.and_then(|q| unread(q, &graph)),
        published: published.cloned(),
        computes: computes(&spec, dtype, options.part),
        graph,
        description,
    })
}

/// Every `model_type` that is understood, sorted.
pub fn known_model_types() -> Vec<&'static str> {
    let mut all: Vec<&str> = FAMILIES.iter().flat_map(|f| f.model_types.iter().copied()).collect();
    all.sort_unstable();
    all
}

type Found = (Object, &'static Family, String, bool);

/// The object with the decoder's keys, its family and model type, and whether it is nested in a wrapper.
fn find_family(root: &Object) -> Result<Found, Diagnostic> {
    // From the outside in; the innermost config of a known family wins, because wrappers repeat their own name.
    let mut found: Option<Found> = None;
    let mut unknown: Option<Json> = None;
    let (mut object, mut depth) = (root.clone(), 0);
    loop {
        if let Some(node) = object.get("model_type") {
            let word = node.string()?;
            match family(&word) {
                Some(f) => found = Some((object.clone(), f, word, depth > 0)),
                None => unknown = Some(node.clone()),
            }
        }
        let inner = NESTED.iter().find_map(|k| object.get(k)).filter(|v| v.is_object());
        let Some(inner) = inner.filter(|_| depth < 4) else { break };
        object = inner.object()?;
        depth += 1;
        // A wrapper of a known type around a decoder that does not say its own.
        if let Some((text, f, word, _)) = &found
            && object.get("model_type").is_none_or(|v| v.string().is_ok_and(|w| family(&w).is_none()))
            && NESTED.iter().any(|k| text.get(k).is_some())
        {
            found = Some((object.clone(), f, word.clone(), true));
        }
    }
    if let Some(found) = found {
        return Ok(found);
    }
    let file = root.node().file();
    let Some(node) = unknown else {
        if let Some((f, word)) = by_architecture(root) {
            return Ok((root.clone(), f, word, false));
        }
        if let Some(word) = crate::families::native::model_type_of(root)
            && let Some(f) = family(word)
        {
            return Ok((root.clone(), f, word.to_string(), false));
        }
        if let Some(q) = root.get("quantization").filter(|q| q.is_object()) {
            return Err(Diagnostic::input(
                "not-a-model",
                format!("{file} says how weights are quantised, not what the model is"),
            )
            .at(Some(q.origin()))
            .help("give the model's directory, or the config.json beside this file"));
        }
        return Err(root
            .missing(&["model_type"])
            .help("moec needs a Hugging Face config.json; `model_type` names the family"));
    };
    let word = node.string()?;
    let known = known_model_types();
    let mut d =
        Diagnostic::input("unknown-model-type", format!("{file}: moec does not know the model type {}", node.shown()))
            .at(Some(node.origin()))
            .note(format!("known model types: {}", known.join(", ")));
    if let Some(near) = nearest(&word, known.iter().copied(), (word.len() / 2).min(8)) {
        d = d.help(format!("the nearest known one is {near:?}"));
    }
    Err(d)
}

/// The family of a config without `model_type`, from the name of its class: `LongcatFlashForCausalLM`.
fn by_architecture(root: &Object) -> Option<(&'static Family, String)> {
    let class = root.get("architectures")?.list().ok()?.first()?.string().ok()?;
    let stem = class.split("For").next().unwrap_or_default().trim_end_matches("CausalLM").to_lowercase();
    let plain = |t: &str| t.replace('_', "");
    let known = known_model_types();
    let word = known.iter().find(|t| plain(t) == stem)?;
    Some((family(word)?, (*word).to_string()))
}

fn element_type(root: &Object, text: &Object) -> Result<DType, Diagnostic> {
    let keys = ["dtype", "torch_dtype"];
    let node = keys.iter().find_map(|k| text.get(k)).or_else(|| keys.iter().find_map(|k| root.get(k)));
    // Published MoE checkpoints that do not name their type are bfloat16.
    let Some(node) = node else { return Ok(DType::BF16) };
    let word = node.string()?;
    match word.trim_start_matches("torch.") {
        "bfloat16" | "auto" => Ok(DType::BF16),
        "float16" | "half" => Ok(DType::F16),
        "float32" | "float" => Ok(DType::F32),
        // DeepSeek's own configs name the type of the weights.
        "bf16" | "fp8" => Ok(DType::BF16),
        _ => Err(node.out_of_range("\"bfloat16\", \"float16\" or \"float32\"")),
    }
}

/// What ModelOpt's own file beside the config says, if there is one that can be read.
fn beside(path: &Path, dtype: DType) -> Option<(Published, PublishedRows)> {
    let text = std::fs::read_to_string(path).ok()?;
    let top = Json::parse(&path.display().to_string(), text, CONFIG).ok()?.object().ok()?;
    let scheme = quantisation::of_modelopt(&top, dtype).ok().flatten()?;
    Some((scheme, PublishedRows::of_modelopt(&top).unwrap_or_default()))
}

/// Contradictions between values that are each in range.
fn check(keys: &Keys, spec: &MoeSpec) {
    let at = |names: &[&str]| keys.get(names).map(Json::origin);
    let file = keys.text.node().file();
    if spec.top_k > spec.n_scored() {
        keys.problem(
            Diagnostic::input(
                "top-k-exceeds-experts",
                format!("{file} chooses {} experts per token, but there are {}", spec.top_k, spec.n_scored()),
            )
            .at(at(crate::families::TOP_K)),
        );
    }
    if let Some(g) = &spec.router.groups {
        if !spec.n_experts.is_multiple_of(g.n.max(1)) {
            keys.problem(
                Diagnostic::input(
                    "groups-do-not-divide-experts",
                    format!("{file} splits {} experts into {} groups", spec.n_experts, g.n),
                )
                .note("every group must have the same number of experts")
                .at(at(&["n_group"])),
            );
        }
        if g.keep == 0 || g.keep > g.n {
            keys.problem(
                Diagnostic::input(
                    "groups-kept-exceed-groups",
                    format!("{file} keeps {} of {} groups of experts", g.keep, g.n),
                )
                .note("the number of groups kept must be at least 1 and at most the number of groups")
                .at(at(&["topk_group"])),
            );
        }
    }
}
