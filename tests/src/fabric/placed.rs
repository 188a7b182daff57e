//! Layers of published models over ranks, and the time of a step of theirs.

use crate::time_model::{nvfp4, with};
use moec_frontend::{LayerOptions, ModelConfig, PublishedRows};
use moec_ir::graph::{Graph, Placed, Rounding, place, quantise_activations};
use moec_ir::target::Target;
use moec_ir::tile::{Body, Program};
use moec_ir::{ActQuant, Numerics};
use moec_passes::plan::model::{Exchange, Fabric, Model};
use moec_passes::{CompileOptions, Variant};
use serde_json::{Value, json};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

/// A model.
pub(super) struct Case {
    pub(super) name: &'static str,
    /// Its MoE layers.
    pub(super) layers: u64,
    /// Experts of a layer.
    n_experts: u64,
    /// What one of them computes, its rows rounded as published.
    graph: Graph,
    programs: RefCell<BTreeMap<(u64, &'static str), Rc<Pieces>>>,
}

/// The programs of a placed layer.
struct Pieces {
    placed: Placed,
    head: Vec<Variant>,
    experts: Vec<Variant>,
    tail: Vec<Variant>,
}

/// A step of a placed layer, in seconds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Step {
    /// The router.
    pub(super) head: f64,
    /// Rows on their way to experts.
    pub(super) dispatch: f64,
    /// The products of the rank with most slots.
    pub(super) experts: f64,
    /// Result rows on their way back.
    pub(super) combine: f64,
    /// The sum in slot order, and shared experts.
    pub(super) tail: f64,
    /// The tail without shared experts.
    pub(super) sum: f64,
    /// Bytes that cross the fabric to and from the busiest rank.
    pub(super) bytes: f64,
}

impl Step {
    /// One after the other, as it is launched today.
    pub(super) fn in_turn(&self) -> f64 {
        self.head + self.dispatch + self.experts + self.combine + self.tail
    }

    /// With products that start as rows arrive, and rows that go back as they are made: the longest of the three.
    pub(super) fn overlapped(&self) -> f64 {
        self.head + self.experts.max(self.dispatch).max(self.combine) + self.tail
    }

    /// What others publish as one kernel: from rows to sums, without router and shared experts.
    pub(super) fn routed(&self) -> f64 {
        self.dispatch + self.experts + self.combine + self.sum
    }

    /// The part of a step in which nothing but rows on their way is waited for.
    pub(super) fn exposed(&self) -> f64 {
        (self.dispatch + self.combine) / self.in_turn()
    }
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
        let n_experts =
            u64::from(place(&graph, 1, Rounding::AfterDispatch).expect("a layer that can be placed").n_experts);
        Case { name, layers, n_experts, graph, programs: RefCell::default() }
    }

    fn pieces(&self, n_local: u64, target: &'static Target) -> Rc<Pieces> {
        let mut programs = self.programs.borrow_mut();
        let new = || {
            let placed = place(&self.graph, n_local as u32, Rounding::AfterDispatch)
                .unwrap_or_else(|d| panic!("{}: {d:?}", self.name));
            let options = CompileOptions { numerics: Numerics::Bitwise, ..CompileOptions::default() };
            let compile = |graph: &Graph| {
                moec_passes::compile(graph, target, &options).unwrap_or_else(|d| panic!("{}: {d:?}", self.name))
            };
            let head = placed.head.as_ref().map(compile).unwrap_or_default();
            let (experts, tail) = (compile(&placed.experts), compile(&placed.tail));
            Rc::new(Pieces { placed, head, experts, tail })
        };
        programs.entry((n_local, target.name)).or_insert_with(new).clone()
    }

    /// A step of `n_tokens` tokens of each of `n_ranks` ranks. Experts are spread evenly; where their number is no multiple of
    /// that of the ranks, copies of some fill the places that are left.
    pub(super) fn step(&self, fabric: &Fabric, n_ranks: u64, n_tokens: u64) -> Step {
        let target = Target::by_name(&fabric.chip.target).expect("a target");
        let n_local = self.n_experts.div_ceil(n_ranks);
        let p = self.pieces(n_local, target);
        let (row, slot) = p.placed.widths();
        let slot_type = p.placed.experts.ty(p.placed.experts.outputs[0].1).dtype;
        let exchange = Exchange {
            n_ranks,
            n_local,
            n_tokens,
            top_k: p.placed.top_k,
            row_bytes: moec_ranks::row_bytes(p.placed.wire, row as usize) as f64,
            slot_bytes: (slot as usize * slot_type.bytes()) as f64,
        };
        let slots = exchange.most_slots().round() as u64;
        let model = Model::new(fabric.chip, target);
        let of = |variants: &[Variant], n: u64| {
            let program: Option<&Program> = variants.iter().find(|v| v.tokens.1 >= n).map(|v| &v.program);
            program.map_or(0.0, |program| model.seconds(program, n))
        };
        let sum = p.tail.iter().find(|v| v.tokens.1 >= n_tokens).map_or(0.0, |v| {
            let launches = Model::new(fabric.chip, target).without_shared().launches(&v.program, n_tokens);
            let routed = launches.iter().filter(|(k, _)| !matches!(k.body, Body::Contract(_)));
            routed.map(|(_, l)| l.seconds() + fabric.chip.launch_s).sum()
        });
        Step {
            head: of(&p.head, n_tokens),
            dispatch: exchange.dispatch_s(fabric),
            experts: of(&p.experts, slots),
            combine: exchange.combine_s(fabric),
            tail: of(&p.tail, n_tokens),
            sum,
            bytes: exchange.dispatch_bytes() + exchange.combine_bytes(),
        }
    }
}
