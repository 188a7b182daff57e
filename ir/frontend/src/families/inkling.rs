//! Inkling: sigmoid scores, shared experts that take part in the normalisation of the weights, a learned factor on all.

use super::Family;
use super::granite::either;
use crate::keys::{Keys, MAX_EXPERTS, MAX_LAYERS, MAX_WIDTH, Missing};
use crate::layers;
use crate::layout::{Names, Part};
use crate::spec::{MoeSpec, Precision, Router, Sink};
use moec_ir::graph::Score;
use moec_ir::weights::{WeightSource, WeightStep};

pub(super) const FAMILY: Family = Family {
    model_types: &["inkling_text", "inkling", "inkling_mm_model"],
    prefixes: &["model.llm.", "model.language_model.", "model."],
    moe_layers: |c| match layers::from_types(c, "mlp_layer_types", c.n_layers()) {
        Some(layers) => layers,
        None => (c.size_or(&["dense_mlp_idx"], 0, MAX_LAYERS) as u32..c.n_layers()).collect(),
    },
    extra_layers: &[],
    spec,
};

fn spec(c: &Keys, layer: u32) -> MoeSpec {
    let names = Names::layer(c, layer);
    let hidden = c.hidden();
    let n_experts = c.size(&["n_routed_experts", "num_local_experts"], MAX_EXPERTS);
    // Where the dense width has a key of its own, `intermediate_size` is that of the experts.
    let key =
        if c.text.get("dense_intermediate_size").is_some() { "intermediate_size" } else { "moe_intermediate_size" };
    let ffn = c.size(&[key], MAX_WIDTH);
    // Each is a node of its own; two are published.
    let n_shared = c.size_or(&["n_shared_experts"], 2, 8);
    // `shared_expert_sink` is in configs, but the model's code does not read it.
    if n_shared == 0 {
        let detail = "without shared experts among the router's classes";
        c.refuse(Missing::RouterVariant, detail, Some("n_shared_experts"));
    }
    let rows = |start, len, of| WeightStep::Slice { axis: 0, start, step: 1, len, of: Some(of) };
    let gate = |start, len| names.steps(&["mlp.gate.weight"], vec![rows(start, len, n_experts + n_shared)]);
    let mut router = Router::new(gate(0, n_experts), Score::Sigmoid);
    let bias = ["mlp.gate.e_score_correction_bias", "mlp.gate.bias"];
    router.selection_bias = Some(names.vector(&bias, n_experts));
    router.scale = c.real_or(&["route_scale"], 8.0);
    router.global_scale = Some(names.tensor(&["mlp.gate.global_scale"]));
    router.weights_round = Precision::Layer;

    // Published with gate and up in alternating rows; transformers writes gate over up.
    let activation = c.gated_activation("hidden_act");
    let mut experts = names.stacked_experts(&["mlp.experts.gate_up_proj"], &["mlp.experts.down_proj"], ffn, activation);
    let alternating = |part: Part| names.steps(&["mlp.experts.w13_weight"], vec![every_other(1, part, ffn)]);
    experts.gate = either(alternating(Part::Gate), experts.gate);
    experts.up = either(alternating(Part::Up), experts.up);
    experts.down = either(names.tensor(&["mlp.experts.w2_weight"]), experts.down);

    let mut spec = MoeSpec::new(hidden, n_experts, c.size(&["num_experts_per_tok"], MAX_EXPERTS), router, experts);
    spec.sinks = (0..n_shared)
        .map(|i| {
            // Each tensor holds all shared experts.
            let one = |name: &str, part: Option<Part>, shape: [u64; 2]| -> WeightSource {
                let mut steps = vec![rows(i, 1, n_shared)];
                steps.extend(part.map(|p| every_other(1, p, ffn)));
                steps.push(WeightStep::Reshape { shape: shape.to_vec() });
                names.steps(&[&format!("mlp.shared_experts.{name}")], steps)
            };
            let (wide, narrow) = ([ffn, hidden], [hidden, ffn]);
            Sink {
                router: gate(n_experts + i, 1),
                gate: either(one("shared_w13_weight", Some(Part::Gate), wide), one("gate_proj", None, wide)),
                up: either(one("shared_w13_weight", Some(Part::Up), wide), one("up_proj", None, wide)),
                down: either(one("shared_w2_weight", None, narrow), one("down_proj", None, narrow)),
            }
        })
        .collect();
    spec
}

fn every_other(axis: u32, part: Part, len: u64) -> WeightStep {
    WeightStep::Slice { axis, start: u64::from(part == Part::Up), step: 2, len, of: Some(2 * len) }
}
