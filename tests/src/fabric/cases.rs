//! Layers of published models over ranks, and the time of a step of theirs.

use crate::time_model::{nvfp4, with};
use moec_frontend::{LayerOptions, ModelConfig, PublishedRows};
use moec_ir::graph::{Graph, quantise_activations};
use moec_ir::target::Target;
use moec_ir::{ActQuant, Mesh};
use moec_passes::plan::model::Fabric;
use moec_passes::plan::{PlacedPrograms, Step};
use serde_json::{Value, json};
use std::cell::RefCell;
use std::collections::BTreeMap;

/// A model.
pub(super) struct Case {
    pub(super) name: &'static str,
    /// Its MoE layers.
    pub(super) layers: u64,
    /// What one of them computes, its rows rounded as published.
    graph: Graph,
    programs: RefCell<BTreeMap<(u64, &'static str), PlacedPrograms>>,
}

/// The models of the page: the six, then another format of one of them, for times that are published in it.
pub(super) fn cases() -> Vec<Case> {
    let example = |folder: &str| {
        let models = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/models").join(folder);
        let text = ["config.json", "params.json"].iter().find_map(|f| std::fs::read_to_string(models.join(f)).ok());
        serde_json::from_str::<Value>(&text.expect("a model")).expect("JSON")
    };
    let own = |text: &str| serde_json::from_str::<Value>(text).expect("JSON");
    let weights = json!({ "num_bits": 4, "type": "int", "strategy": "group", "group_size": 32, "symmetric": true });
    let int4 = json!({ "quant_method": "compressed-tensors", "format": "pack-quantized", "ignore": [],
        "config_groups": { "group_0": { "targets": ["Linear"], "weights": weights } } });
    let thinking = with(example("kimi-k2"), &json!({ "quantization_config": int4 }));
    let in_nvfp4 = with(example("deepseek-r1"), &json!({ "quantization_config": nvfp4() }));
    vec![
        Case::new("DeepSeek-V3, FP8", 58, example("deepseek-r1"), None),
        Case::new("DeepSeek-V3, NVFP4", 58, in_nvfp4, Some("nvfp4")),
        Case::new("Kimi K2 Thinking, INT4 weights", 60, thinking, None),
        Case::new("Mistral Large 3, NVFP4", 58, example("mistral-large-3-nvfp4"), None),
        Case::new("gpt-oss-120b, MXFP4 weights", 36, example("gpt-oss-120b"), None),
        Case::new("DeepSeek-V4-Flash, FP4 × FP8", 43, own(include_str!("deepseek-v4-flash.json")), None),
        Case::new("DeepSeek-V4-Pro, FP4 × FP8", 61, own(include_str!("deepseek-v4-pro.json")), None),
    ]
}

impl Case {
    fn new(name: &'static str, layers: u64, config: Value, rows: Option<&str>) -> Case {
        let config = ModelConfig::from_text(name, config.to_string()).unwrap_or_else(|d| panic!("{name}: {d:?}"));
        let graph = config.layer(None, &LayerOptions::default()).unwrap_or_else(|d| panic!("{name}: {d:?}")).graph;
        let format = match (rows, config.published_rows()) {
            (Some(rows), _) => ActQuant::from_name(rows),
            (None, PublishedRows::Rounded(q)) => Some(*q),
            (None, _) => None,
        };
        let graph = format.map_or(Ok(graph.clone()), |q| quantise_activations(&graph, q)).expect("a format for rows");
        Case { name, layers, graph, programs: RefCell::default() }
    }

    /// A step of `n_tokens` tokens of each of `n_ranks` ranks.
    pub(super) fn step(&self, fabric: &Fabric, n_ranks: u64, n_tokens: u64) -> Step {
        let target = Target::by_name(&fabric.chip.target).expect("a target");
        let mut programs = self.programs.borrow_mut();
        let mesh = Mesh { ep: n_ranks as u32, tp: 1 };
        let new = || PlacedPrograms::new(&self.graph, mesh, target).unwrap_or_else(|d| panic!("{}: {d:?}", self.name));
        programs.entry((n_ranks, target.name)).or_insert_with(new).step(fabric, n_ranks, n_tokens)
    }
}
