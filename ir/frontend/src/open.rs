//! What the user calls a model: a directory, a config, an ONNX or `.pt2` file, or a layer graph.

use crate::config::{Diagnostics, ModelConfig};
use crate::json::{GRAPH, Json, MAX_TEXT};
use crate::layer_graph;
use crate::onnx::OnnxModel;
use crate::pt2::Pt2Model;
use moec_ir::Origin;
use moec_ir::diag::Diagnostic;
use moec_ir::graph::Graph;
use std::path::Path;

/// What was found at a path.
#[derive(Clone, Debug)]
pub enum Opened {
    /// A published model: choose a layer of it.
    Model(Box<ModelConfig>),
    /// One layer, as a graph.
    Graph(Graph),
    /// An ONNX file with MoE nodes: choose one of them.
    Onnx(Box<OnnxModel>),
    /// A program of PyTorch with nodes of moec's operator: choose one of them.
    Pt2(Box<Pt2Model>),
}

/// Opens a model directory, a `config.json`, an ONNX or `.pt2` file, or a layer graph (`"moec_graph": 1`).
///
/// # Errors
/// Those of [`ModelConfig::open`], [`OnnxModel::open`], [`Pt2Model::open`] and [`layer_graph::from_json`].
pub fn open(path: impl AsRef<Path>) -> Result<Opened, Diagnostics> {
    let path = path.as_ref();
    if moec_weights::onnx::is_onnx(path) {
        return Ok(Opened::Onnx(Box::new(OnnxModel::open(path)?)));
    }
    if moec_weights::pt2::is_pt2(path) {
        return Ok(Opened::Pt2(Box::new(Pt2Model::open(path)?)));
    }
    if !path.is_dir() {
        let (file, text) = read(path)?;
        if is_graph(&file, &text) {
            return Ok(Opened::Graph(layer_graph::from_json(&file, text)?));
        }
    }
    Ok(Opened::Model(Box::new(ModelConfig::open(path)?)))
}

/// As [`open`], for the text of a config or of a layer graph; `name` stands for the file in messages.
///
/// # Errors
/// Those of [`ModelConfig::from_text`] and [`layer_graph::from_json`].
pub fn open_text(name: &str, text: String) -> Result<Opened, Diagnostics> {
    if is_graph(name, &text) {
        return Ok(Opened::Graph(layer_graph::from_json(name, text)?));
    }
    Ok(Opened::Model(Box::new(ModelConfig::from_text(name, text)?)))
}

fn is_graph(file: &str, text: &str) -> bool {
    let top = Json::parse(file, text.to_string(), GRAPH).and_then(|top| top.object());
    top.is_ok_and(|top| top.get_or_null("moec_graph").is_some())
}

/// The name in messages and the text of `path`, or of the `config.json` in it.
pub(crate) fn read(path: &Path) -> Result<(String, String), Diagnostics> {
    let not_a_model =
        |reason: String| {
            vec![Diagnostic::input("not-a-model", reason).help(
                "give a model directory with a config.json, a config.json, an ONNX or .pt2 file, or a layer graph",
            )]
        };
    let dir = path.is_dir();
    let mut file = if dir { path.join("config.json") } else { path.to_path_buf() };
    if dir && !file.exists() && path.join("params.json").exists() {
        // Mistral's own form.
        file = path.join("params.json");
    }
    if dir && !file.exists() {
        return Err(not_a_model(format!("{} has no config.json", path.display())));
    }
    // A file of weights that is given by mistake is not read whole.
    let length = std::fs::metadata(&file).map_or(0, |m| m.len());
    if length > MAX_TEXT {
        return Err(not_a_model(format!("{} is {length} bytes long, which no config is", file.display())));
    }
    let bytes = std::fs::read(&file).map_err(|e| not_a_model(format!("cannot read {}: {e}", file.display())))?;
    let shown = file.display().to_string();
    match String::from_utf8(bytes) {
        Ok(text) => Ok((shown, text)),
        Err(e) => {
            let at = e.utf8_error().valid_up_to();
            let message = format!("{shown} is not UTF-8 text from byte {at} on");
            let origin = Origin { file: shown, start: at, end: at + 1 };
            Err(vec![Diagnostic::input("config-not-json", message).at(Some(origin))])
        }
    }
}
