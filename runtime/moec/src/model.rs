//! What a user calls a model: a directory, a config, an ONNX or `.pt2` file, or a layer graph.

use moec_bundle::manifest::LayerInfo;
use moec_frontend::{LayerFacts, LayerOptions, ModelConfig, Opened, Part, PublishedRows};
use moec_ir::diag::Diagnostic;
use moec_ir::graph::{Graph, Param, ShardKind, quantise_activations, shard};
use moec_ir::{ActQuant, DType};
use moec_weights::{Checkpoint, Plan, PlannedWeight, Published, gguf, holds_codes};
use std::path::{Path, PathBuf};

/// A model whose config has been read.
#[derive(Clone, Debug)]
pub struct Model {
    opened: Opened,
    checkpoint: Option<PathBuf>,
}

/// What becomes of the activations before expert matrices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Activations {
    /// They stay in the layer's type.
    #[default]
    Floats,
    /// They are rounded as the checkpoint's config says.
    AsPublished,
    /// They are rounded to this format.
    Rounded(ActQuant),
}

/// One layer of a model, ready to be compiled.
#[derive(Clone, Debug)]
pub struct ModelLayer {
    /// What it computes, in the unfused form.
    pub graph: Graph,
    /// What bundles and tables say about it.
    pub info: LayerInfo,
    /// The layer in numbers; `None` for a layer graph.
    pub facts: Option<LayerFacts>,
    /// The directory or file with its weights, when there is one.
    pub checkpoint: Option<PathBuf>,
    /// What the config says about the format of its weights.
    pub published: Option<Published>,
    /// How the checkpoint says that activations are rounded.
    pub published_rows: PublishedRows,
    /// Why the weights of the checkpoint cannot be loaded, if they cannot.
    pub not_loadable: Option<Diagnostic>,
}

impl ModelLayer {
    /// The layer with the rows before its expert matrices rounded as `activations` says. See
    /// [`moec_ir::graph::quantise_activations`].
    ///
    /// # Errors
    /// `activation-format-needs-scale`, also for a checkpoint that is published in a format that moec does not round to.
    pub fn with_activations(self, activations: Activations) -> Result<ModelLayer, Diagnostic> {
        let q = match (activations, &self.published_rows) {
            (Activations::Floats, _) | (Activations::AsPublished, PublishedRows::Floats) => return Ok(self),
            (Activations::Rounded(q), _) | (Activations::AsPublished, &PublishedRows::Rounded(q)) => q,
            (Activations::AsPublished, PublishedRows::Other(what)) => {
                let why =
                    format!("the checkpoint's activations are published as {what}, which is not made from a row alone");
                return Err(Diagnostic::input("activation-format-needs-scale", why)
                    .help("name a format whose scales follow from the rows (`nvfp4`, `fp8-token`, …), or leave them as they are"));
            }
        };
        Ok(ModelLayer { graph: quantise_activations(&self.graph, q)?, ..self })
    }
}

impl ModelLayer {
    /// Where every weight comes from, a row for each parameter; no data but global scales is read.
    ///
    /// # Errors
    /// `weights-missing` when there is no checkpoint beside the config; those of [`Plan::new`], all of them.
    pub fn planned_weights(&self) -> Result<Vec<PlannedWeight>, Vec<Diagnostic>> {
        let Some(dir) = &self.checkpoint else {
            let d = Diagnostic::input(
                "weights-missing",
                format!("there are no weights beside the config of {}", self.info.name),
            );
            return Err(vec![d.help("give a model directory that holds them")]);
        };
        let checkpoint = Checkpoint::open(dir).map_err(|d| vec![d])?;
        Ok(Plan::new(&checkpoint, self.published.as_ref(), &self.graph.params)?.rows())
    }
}

impl Model {
    /// The same model with the weights of another place: a directory or file, as for [`Checkpoint::open`].
    pub fn with_weights(self, path: impl Into<PathBuf>) -> Model {
        Model { checkpoint: Some(path.into()), ..self }
    }

    /// Reads `path`: a model directory, a `config.json`, a GGUF, ONNX or `.pt2` file, or a layer graph (`"moec_graph": 1`).
    ///
    /// # Errors
    /// Those of the front end, all that were found, and those of [`gguf::config`].
    pub fn open(path: impl AsRef<Path>) -> Result<Model, Vec<Diagnostic>> {
        let path = path.as_ref();
        if let Some(model) = Model::open_gguf(path)? {
            return Ok(model);
        }
        let opened = moec_frontend::open(path)?;
        if let Opened::Onnx(_) | Opened::Pt2(_) = &opened {
            // The weights are the file's own.
            return Ok(Model { opened, checkpoint: Some(path.to_path_buf()) });
        }
        let folder = if path.is_dir() { Some(path) } else { path.parent() };
        let checkpoint = folder.filter(|f| has_weights(f)).map(Path::to_path_buf);
        Ok(Model { opened, checkpoint })
    }

    /// As [`Model::open`], for the text of a config or of a layer graph; `name` stands for the file in messages.
    ///
    /// # Errors
    /// Those of the front end, all that were found.
    pub fn from_text(name: &str, text: String) -> Result<Model, Vec<Diagnostic>> {
        Ok(Model { opened: moec_frontend::open_text(name, text)?, checkpoint: None })
    }

    /// The model of a GGUF file, or of a folder with such files and no config; `None` for everything else.
    fn open_gguf(path: &Path) -> Result<Option<Model>, Vec<Diagnostic>> {
        let has_config = ["config.json", "params.json"].iter().any(|f| path.join(f).exists());
        let config = if has_config { None } else { gguf::config(path).map_err(|d| vec![d])? };
        let Some(config) = config else { return Ok(None) };
        // Not the name of the file alone: what is reported about the config is not in it as text.
        let name = format!("the metadata of {}", config.file.display());
        let model = ModelConfig::from_text(&name, config.json.to_string())?;
        Ok(Some(Model { opened: Opened::Model(Box::new(model)), checkpoint: Some(path.to_path_buf()) }))
    }

    /// Layer `number` by the model's own count, or its first MoE layer. A layer graph is one layer: it has no number.
    ///
    /// # Errors
    /// `layer-is-dense`, `layer-out-of-range`, and what contradicts itself in the config.
    pub fn layer(&self, number: Option<u32>) -> Result<ModelLayer, Vec<Diagnostic>> {
        self.layer_as(number, None)
    }

    /// As [`Model::layer`], computing in float type `dtype` instead of the config's. A layer graph keeps its own types.
    ///
    /// # Errors
    /// As [`Model::layer`].
    pub fn layer_as(&self, number: Option<u32>, dtype: Option<DType>) -> Result<ModelLayer, Vec<Diagnostic>> {
        self.layer_with(number, &LayerOptions { dtype, ..LayerOptions::default() })
    }

    /// As [`Model::layer`], with the choices in `options`: the float type, and one rank's part of a layer that is spread
    /// over several devices.
    ///
    /// # Errors
    /// As [`Model::layer`], and those of [`moec_ir::graph::shard`].
    pub fn layer_with(&self, number: Option<u32>, options: &LayerOptions) -> Result<ModelLayer, Vec<Diagnostic>> {
        let (mut layer, published_rows) = match &self.opened {
            Opened::Model(config) => (config.layer(number, options)?, config.published_rows().clone()),
            Opened::Onnx(model) => (model.layer(number, options)?, PublishedRows::Floats),
            Opened::Pt2(model) => (model.layer(number, options)?, PublishedRows::Floats),
            Opened::Graph(graph) => return self.graph_layer(graph, number, options),
        };
        if let Some(dir) = &self.checkpoint {
            keep_what_is_stored(&mut layer.graph, dir, layer.published.as_ref());
        }
        let f = &layer.description;
        let mut facts = vec![("hidden", f.hidden), ("experts", f.n_experts), ("top_k", f.top_k), ("ffn", f.ffn)];
        facts.extend(shard_facts(options));
        let info = LayerInfo {
            name: layer.graph.name.clone(),
            model_type: Some(layer.model_type.clone()),
            layer: Some(layer.layer),
            facts: facts.into_iter().map(|(k, v)| (k.to_string(), v)).collect(),
            published_weights: layer.published.as_ref().map(|p| p.source.to_value()),
            computes: layer.computes.clone(),
        };
        Ok(ModelLayer {
            published: layer.published.clone(),
            not_loadable: layer.loadable().err(),
            published_rows,
            info,
            facts: Some(layer.description),
            graph: layer.graph,
            checkpoint: self.checkpoint.clone(),
        })
    }

    fn graph_layer(
        &self,
        graph: &Graph,
        number: Option<u32>,
        options: &LayerOptions,
    ) -> Result<ModelLayer, Vec<Diagnostic>> {
        if let Some(n) = number {
            let what = format!("`{}` is a layer graph; it has no layer {n}", graph.name);
            return Err(vec![Diagnostic::input("layer-out-of-range", what).help("leave out the layer number")]);
        }
        if options.part != Part::Layer || options.ids_in.is_some() {
            let what = format!("`{}` is a layer graph: it says by itself what is computed", graph.name);
            let d = Diagnostic::input("unsupported-layer", what);
            return Err(vec![d.help(
                "write the experts alone, or a layer whose ids come in, as a graph of its own, or give the model's config",
            )]);
        }
        let graph = match options.shard {
            Some(part) => shard(graph, part).map_err(|d| vec![d])?,
            None => graph.clone(),
        };
        let facts = shard_facts(options).into_iter().map(|(k, v)| (k.to_string(), v)).collect();
        Ok(ModelLayer {
            info: LayerInfo { name: graph.name.clone(), facts, ..LayerInfo::default() },
            graph,
            facts: None,
            checkpoint: self.checkpoint.clone(),
            published: None,
            not_loadable: None,
            published_rows: PublishedRows::Floats,
        })
    }
}

fn shard_facts(options: &LayerOptions) -> Vec<(&'static str, u64)> {
    let Some(s) = options.shard else { return Vec::new() };
    let kind = match s.kind {
        ShardKind::Tensor => "tensor_parallel",
        ShardKind::Expert => "expert_parallel",
    };
    vec![(kind, u64::from(s.count)), ("rank", u64::from(s.rank))]
}

/// Takes back the marks of matrices that the checkpoint holds otherwise than its config says: they are made floats when the
/// layer is loaded. Gate and up are multiplied together and lie alike. A checkpoint that cannot be opened is told when it is
/// loaded.
fn keep_what_is_stored(graph: &mut Graph, dir: &Path, published: Option<&Published>) {
    let Ok(checkpoint) = Checkpoint::open(dir) else { return };
    let group = |name: &str| name.replace(".gate", ".up");
    let marked: Vec<Param> = graph.params.iter().filter(|p| p.stored.is_some()).cloned().collect();
    let holds = holds_codes(&checkpoint, published, &marked);
    let other: Vec<String> = marked.iter().zip(holds).filter(|(_, h)| !h).map(|(p, _)| group(&p.name)).collect();
    graph.params.iter_mut().filter(|p| other.contains(&group(&p.name))).for_each(|p| p.stored = None);
}

fn has_weights(folder: &Path) -> bool {
    let Ok(entries) = std::fs::read_dir(if folder.as_os_str().is_empty() { Path::new(".") } else { folder }) else {
        return false;
    };
    entries.filter_map(Result::ok).any(|e| {
        let name = e.file_name().to_string_lossy().into_owned();
        [".safetensors", ".safetensors.index.json", ".gguf"].iter().any(|end| name.ends_with(end))
    })
}
