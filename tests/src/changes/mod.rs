//! Valid quantised checkpoints with one thing changed: what loads all the same has to have the values of the untouched one.
//!
//! [`systematic`] makes every change of a fixed list to a few checkpoints, for each test run; [`random`] makes changes without
//! end to all of them, for `cargo xtask fuzz --checkpoints`.

pub mod random;
pub mod systematic;

use moec_frontend::{LayerOptions, ModelConfig};
use moec_ir::DType;
use moec_ir::graph::Param;
use moec_ir::shape::Dim;
use moec_ir::tile::{Buffer, Role};
use moec_weights::{Checkpoint, Plan};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A stored tensor: type, shape, bytes.
#[derive(Clone, Debug, PartialEq)]
pub struct Stored {
    /// As a header names it, e.g. `F8_E4M3`.
    pub dtype: String,
    /// Outermost first.
    pub shape: Vec<u64>,
    /// Row-major.
    pub bytes: Vec<u8>,
}

/// Tensors by name.
pub type Tensors = BTreeMap<String, Stored>;

/// Every parameter's values, packed row after row; or the code of the first error.
pub type Loaded = Result<Vec<Vec<u8>>, String>;

/// The files in which a quantiser says what it did.
pub const CONFIGS: &[&str] =
    &["config.json", "hf_quant_config.json", "quantization_config.json", "quantize_config.json"];

/// A checkpoint of one file, and its copy that is changed.
pub struct Case {
    /// For reports.
    pub name: String,
    /// The untouched tensors.
    pub tensors: Tensors,
    /// The untouched configs, by file.
    pub configs: BTreeMap<String, Value>,
    /// Of the first layer with experts, as the untouched config asks for them.
    pub params: Vec<Param>,
    /// What the untouched checkpoint gives.
    pub control: Vec<Vec<u8>>,
    copy: PathBuf,
    layer: Option<u32>,
}

impl Case {
    /// Opens the checkpoint in a folder and copies it to a folder below `scratch`; what was refused, when it is refused as it is.
    pub fn open(folder: &Path, name: &str, scratch: &Path) -> Result<Case, String> {
        let read = |file: &str| {
            Some((file.to_string(), serde_json::from_slice(&std::fs::read(folder.join(file)).ok()?).unwrap()))
        };
        let configs: BTreeMap<String, Value> = CONFIGS.iter().filter_map(|f| read(f)).collect();
        let layer = recorded_layer(folder);
        let config = ModelConfig::open(folder).map_err(|d| d[0].code.clone())?;
        let options = LayerOptions { dtype: Some(DType::F32), ..LayerOptions::default() };
        let params = config.layer(layer, &options).map_err(|d| d[0].code.clone())?.graph.params;
        let params = params.into_iter().map(|p| Param { stored: None, ..p }).collect();
        let copy = scratch.join(name.replace('/', "-"));
        std::fs::create_dir_all(&copy).unwrap();
        let tensors = read_tensors(&folder.join("model.safetensors"));
        let mut case = Case { name: name.to_string(), tensors, configs, params, control: Vec::new(), copy, layer };
        case.restore();
        case.control = case.load()?;
        Ok(case)
    }

    /// Writes the untouched checkpoint.
    pub fn restore(&self) {
        self.write_tensors(&self.tensors);
        for file in CONFIGS {
            match self.configs.get(*file) {
                Some(config) => self.write_config(file, config),
                None => drop(std::fs::remove_file(self.copy.join(file))),
            }
        }
    }

    /// Replaces the tensors of the copy.
    pub fn write_tensors(&self, tensors: &Tensors) {
        write_tensors(&self.copy.join("model.safetensors"), tensors);
    }

    /// Replaces a config of the copy.
    pub fn write_config(&self, file: &str, config: &Value) {
        std::fs::write(self.copy.join(file), config.to_string()).unwrap();
    }

    /// What the copy gives: through the front end as a user's model goes, then packed as the untouched parameters ask.
    pub fn load(&self) -> Loaded {
        let first = |d: Vec<moec_ir::Diagnostic>| d[0].code.clone();
        let options = LayerOptions { dtype: Some(DType::F32), ..LayerOptions::default() };
        let layer = ModelConfig::open(&self.copy).map_err(first)?.layer(self.layer, &options).map_err(first)?;
        layer.loadable().map_err(|d| d.code)?;
        let checkpoint = Checkpoint::open(self.copy.join("model.safetensors")).map_err(|d| d.code)?;
        let plan = Plan::new(&checkpoint, None, &self.params).map_err(first)?;
        plan.check_scales().map_err(|d| d.code)?;
        let one = |p: &Param| {
            let shape: Vec<u64> = p.ty.shape.iter().map(|d| d.fixed().unwrap()).collect();
            let cols = *shape.last().unwrap();
            let rows = Dim::Fixed(shape.iter().product::<u64>() / cols);
            let (name, dtype, role) = (p.name.clone(), p.ty.dtype, Role::Weight(0));
            let buffer = Buffer { name, dtype, batch: 1, rows, cols, pitch: cols, role };
            let mut out = vec![0; buffer.bytes(0) as usize];
            plan.pack(&p.name, &buffer, &mut out).map(|()| out).map_err(|d| d.code)
        };
        self.params.iter().map(one).collect()
    }

    /// What stands before the parameters' own names in the layer that is loaded, e.g. `model.layers.0.`.
    pub fn layer_prefix(&self) -> String {
        let name = self.params.iter().find_map(|p| first_name(&p.source)).unwrap();
        let ends = [".mlp.", ".ffn.", ".feed_forward.", ".block_sparse_moe."];
        ends.iter().find_map(|m| Some(format!("{}.", name.split_once(m)?.0))).unwrap()
    }
}

/// The number of a layer whose weights the case holds; the first where it does not say.
fn recorded_layer(case: &Path) -> Option<u32> {
    let names = std::fs::read_dir(case).unwrap().map(|e| e.unwrap().file_name().to_string_lossy().into_owned());
    let number = |n: String| n.strip_prefix("golden.layer")?.strip_suffix(".safetensors")?.parse().ok();
    names.filter_map(number).min()
}

fn first_name(source: &moec_ir::weights::WeightSource) -> Option<String> {
    use moec_ir::weights::WeightSource as W;
    match source {
        W::Tensor { names, .. } | W::PerExpert { names, .. } => names.first().cloned(),
        W::FirstOf(list) | W::LargestInputScale(list) => list.iter().find_map(first_name),
    }
}

fn read_tensors(path: &Path) -> Tensors {
    let bytes = std::fs::read(path).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: Map<String, Value> = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    let data = &bytes[8 + length..];
    let tensor = |v: &Value| {
        let at = |i: usize| v["data_offsets"][i].as_u64().unwrap() as usize;
        let shape = v["shape"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).collect();
        Stored { dtype: v["dtype"].as_str().unwrap().to_string(), shape, bytes: data[at(0)..at(1)].to_vec() }
    };
    header.iter().filter(|(n, _)| *n != "__metadata__").map(|(n, v)| (n.clone(), tensor(v))).collect()
}

fn write_tensors(path: &Path, tensors: &Tensors) {
    let (mut header, mut data) = (Map::new(), Vec::new());
    for (name, t) in tensors {
        let end = data.len() + t.bytes.len();
        header.insert(name.clone(), json!({ "dtype": t.dtype, "shape": t.shape, "data_offsets": [data.len(), end] }));
        data.extend_from_slice(&t.bytes);
    }
    let header = serde_json::to_vec(&header).unwrap();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(&header);
    file.extend_from_slice(&data);
    std::fs::write(path, file).unwrap();
}
