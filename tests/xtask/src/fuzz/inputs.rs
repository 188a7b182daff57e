//! What is mutated, and what is done with it.

use super::below_root;
use super::mutate::{Random, bytes, document};
use anyhow::{Context, Result};
use moec_frontend::{LayerOptions, ModelConfig, layer_graph};
use moec_ir::Dim;
use moec_ir::graph::{Param, verify};
use moec_ir::tile::{Buffer, Role};
use moec_weights::{Checkpoint, pack_weight};
use serde_json::Value;
use std::cell::Cell;
use std::path::{Path, PathBuf};

/// What an input is given to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A model's `config.json`.
    Config,
    /// A layer graph.
    Graph,
    /// A safetensors file, headers only.
    Header,
    /// A safetensors file from which the weights of a layer are read; the number of its model.
    Weights(usize),
}

impl Kind {
    /// In words, for reports.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Config => "configs",
            Kind::Graph => "layer graphs",
            Kind::Header => "headers",
            Kind::Weights(_) => "weights",
        }
    }
}

/// Every document that inputs are made of.
pub struct Corpus {
    configs: Vec<(Vec<u8>, Value)>,
    graphs: Vec<(Vec<u8>, Value)>,
    weights: Vec<Model>,
    /// Keys and words of all configs.
    words: Vec<String>,
    folder: PathBuf,
    accepted: Cell<bool>,
}

/// A stored checkpoint and the parameters of its first layer.
struct Model {
    header: Value,
    data: Vec<u8>,
    config: Vec<u8>,
    params: Vec<Param>,
}

impl Drop for Corpus {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

impl Corpus {
    /// Reads the configs, graphs and checkpoints that the tests use.
    ///
    /// # Errors
    /// When one cannot be read.
    pub fn open() -> Result<Corpus> {
        let mut configs = documents(&below_root("ir/frontend/tests/configs"))?;
        for dir in folders(&below_root("ir/frontend/tests/golden"))? {
            configs.extend(document_at(&dir.join("config.json"))?);
        }
        let graphs = documents(&below_root("examples/layers"))?;
        let mut weights = Vec::new();
        for dir in folders(&below_root("tests/conformance"))? {
            let file = dir.join("model.safetensors");
            let small = std::fs::metadata(&file).is_ok_and(|m| m.len() < 120_000);
            if small {
                weights.push(model(&dir)?);
            }
        }
        let mut words = Vec::new();
        configs.iter().for_each(|(_, v)| collect(v, &mut words));
        words.sort();
        words.dedup();
        let folder = std::env::temp_dir().join(format!("moec-fuzz-{}", std::process::id()));
        std::fs::create_dir_all(&folder).context("cannot make a folder for files")?;
        Ok(Corpus { configs, graphs, weights, words, folder, accepted: Cell::new(false) })
    }

    /// Whether the last input was taken as good.
    pub fn was_accepted(&self) -> bool {
        self.accepted.get()
    }

    /// The `n`-th input.
    pub fn input(&self, seed: u64, n: u64) -> (Kind, Vec<u8>) {
        let r = &mut Random::new(seed, n);
        match r.below(100) {
            0..60 => (Kind::Config, self.text(r, &self.configs)),
            60..70 => (Kind::Graph, self.text(r, &self.graphs)),
            70..97 => {
                let i = r.below(self.weights.len());
                (Kind::Header, self.file(r, i))
            }
            _ => {
                let i = r.below(self.weights.len());
                (Kind::Weights(i), self.file(r, i))
            }
        }
    }

    fn text(&self, r: &mut Random, documents: &[(Vec<u8>, Value)]) -> Vec<u8> {
        let (text, value) = r.pick(documents);
        let mut out = text.clone();
        if r.below(10) < 7 {
            let mut value = value.clone();
            let other = r.below(documents.len());
            document(r, &mut value, &documents[other].1, &self.words);
            out = value.to_string().into_bytes();
        }
        if r.below(10) < 3 {
            bytes(r, &mut out);
        }
        out
    }

    fn file(&self, r: &mut Random, i: usize) -> Vec<u8> {
        let model = &self.weights[i];
        let mut header = model.header.clone();
        if r.below(10) < 6 {
            // Names, types, shapes and offsets of the tensors.
            document(r, &mut header, &model.header, &self.words);
        }
        let mut header = header.to_string().into_bytes();
        if r.below(10) < 3 {
            bytes(r, &mut header);
        }
        let length = match r.below(12) {
            0 => r.next(),
            1 => header.len() as u64 + 1,
            _ => header.len() as u64,
        };
        let mut out = length.to_le_bytes().to_vec();
        out.extend_from_slice(&header);
        out.extend_from_slice(&model.data);
        if r.below(8) == 0 {
            out.truncate(r.below(out.len()));
        }
        out
    }

    /// Gives `input` to what `kind` says.
    ///
    /// # Errors
    /// What is wrong with the answer.
    pub fn execute(&self, kind: Kind, input: &[u8]) -> Result<(), String> {
        self.accepted.set(false);
        let text = || String::from_utf8_lossy(input).into_owned();
        match kind {
            Kind::Config => {
                let Ok(config) = ModelConfig::from_text("config.json", text()) else { return Ok(()) };
                let layers = config.moe_layers();
                for number in [None, layers.last().copied(), Some(1)] {
                    if let Ok(layer) = config.layer(number, &LayerOptions::default()) {
                        self.sound(&layer.graph)?;
                        let _ = layer.description.paragraph();
                    }
                }
            }
            Kind::Graph => {
                if let Ok(graph) = layer_graph::from_json("layer.json", text()) {
                    self.sound(&graph)?;
                }
            }
            Kind::Header => {
                self.accepted.set(moec_weights::safetensors::check(Path::new("model.safetensors"), input).is_ok());
            }
            Kind::Weights(i) => self.weights(&self.weights[i], input)?,
        }
        Ok(())
    }

    /// A layer that is accepted has nothing that the verifier finds.
    fn sound(&self, graph: &moec_ir::graph::Graph) -> Result<(), String> {
        self.accepted.set(true);
        match verify(graph).first() {
            None => Ok(()),
            Some(d) => Err(format!("an accepted layer does not verify: {d}")),
        }
    }

    fn weights(&self, model: &Model, input: &[u8]) -> Result<(), String> {
        let file = |name: &str| self.folder.join(name);
        let written = std::fs::write(file("model.safetensors"), input)
            .and_then(|()| std::fs::write(file("config.json"), &model.config));
        written.map_err(|e| format!("cannot write a file: {e}"))?;
        let Ok(checkpoint) = Checkpoint::open(file("model.safetensors")) else { return Ok(()) };
        for param in &model.params {
            let buffer = buffer(param);
            let mut out = vec![0; buffer.bytes(0) as usize];
            self.accepted.set(pack_weight(&checkpoint, param, &buffer, &mut out).is_ok());
        }
        Ok(())
    }
}

/// A dense buffer for all elements of a parameter.
fn buffer(param: &Param) -> Buffer {
    let shape: Vec<u64> = param.ty.shape.iter().filter_map(|d| d.fixed()).collect();
    let (batch, rows, cols) = match shape[..] {
        [b, r, c] => (b, r, c),
        [r, c] => (1, r, c),
        _ => (1, 1, shape.iter().product()),
    };
    Buffer {
        name: param.name.clone(),
        dtype: param.ty.dtype,
        batch,
        rows: Dim::Fixed(rows),
        cols,
        pitch: cols,
        role: Role::Weight(0),
    }
}

fn model(dir: &Path) -> Result<Model> {
    let shown = dir.display();
    let file = std::fs::read(dir.join("model.safetensors")).with_context(|| format!("cannot read {shown}"))?;
    let length = file.first_chunk::<8>().map_or(0, |b| u64::from_le_bytes(*b)) as usize;
    let header = file.get(8..8 + length).with_context(|| format!("{shown} is not a checkpoint"))?;
    let header = serde_json::from_slice(header).with_context(|| format!("the header of {shown}"))?;
    let config = ModelConfig::open(dir).and_then(|c| c.layer(None, &LayerOptions::default()));
    let layer = config.map_err(|d| anyhow::anyhow!("{shown}: {d:?}"))?;
    Ok(Model {
        header,
        data: file[8 + length..].to_vec(),
        config: std::fs::read(dir.join("config.json")).with_context(|| format!("cannot read {shown}"))?,
        params: layer.graph.params,
    })
}

fn folders(root: &Path) -> Result<Vec<PathBuf>> {
    let mut out = Vec::new();
    for entry in std::fs::read_dir(root).with_context(|| format!("cannot list {}", root.display()))? {
        let path = entry?.path();
        if path.join("config.json").exists() {
            out.push(path);
        }
    }
    out.sort();
    Ok(out)
}

fn documents(root: &Path) -> Result<Vec<(Vec<u8>, Value)>> {
    let listed = std::fs::read_dir(root).with_context(|| format!("cannot list {}", root.display()))?;
    let mut files = listed.map(|e| Ok(e?.path())).collect::<Result<Vec<PathBuf>>>()?;
    files.sort();
    let mut out = Vec::new();
    for file in files.iter().filter(|f| f.extension().is_some_and(|e| e == "json")) {
        out.extend(document_at(file)?);
    }
    Ok(out)
}

fn document_at(file: &Path) -> Result<Option<(Vec<u8>, Value)>> {
    let text = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    // Some configs have numbers that JSON does not have; they are mutated by bytes only, from another document.
    Ok(serde_json::from_slice(&text).ok().map(|value| (text, value)))
}

/// The keys and short words of a document.
fn collect(value: &Value, out: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                out.push(key.clone());
                collect(value, out);
            }
        }
        Value::Array(list) => list.iter().take(4).for_each(|v| collect(v, out)),
        Value::String(word) if word.len() < 40 => out.push(word.clone()),
        _ => {}
    }
}
