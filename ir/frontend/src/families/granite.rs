//! Granite MoE 3 and 4, JetMoE and Aria: top-k on the logits, softmax over the chosen ones, stacked experts.

use super::{Family, TOP_K};
use crate::keys::{Keys, MAX_EXPERTS, MAX_WIDTH};
use crate::layers;
use crate::layout::{GATE_UP_DOWN, Names, Part};
use crate::spec::{After, MoeSpec, Precision, Router, Shared};
use moec_ir::Activation;
use moec_ir::graph::Score;
use moec_ir::weights::WeightSource;

pub(super) const GRANITE: Family = Family {
    model_types: &["granitemoe", "granitemoeshared", "granitemoe_swa", "granitemoehybrid"],
    prefixes: &[],
    // No experts at all means that only the shared MLP is there.
    moe_layers: |c| if c.size_or(&["num_local_experts"], 1, MAX_EXPERTS) == 0 { Vec::new() } else { layers::all(c) },
    extra_layers: &[],
    spec: |c, layer| {
        let names = Names::layer(c, layer);
        let mut spec = granite(c, &names, "block_sparse_moe", c.gated_activation("hidden_act"));
        let width = c.size_or(&["shared_intermediate_size"], 0, MAX_WIDTH);
        if width > 0 && c.model_type != "granitemoe" {
            let fused = ["shared_mlp.input_linear.weight"];
            spec.shared = Some(Shared::new(
                width,
                c.gated_activation("hidden_act"),
                names.dense_half(&fused, Part::Gate, width),
                names.dense_half(&fused, Part::Up, width),
                names.tensor(&["shared_mlp.output_linear.weight"]),
            ));
        }
        spec
    },
};

/// JetMoE: a bias on the layer's output.
pub(super) const JETMOE: Family = Family {
    model_types: &["jetmoe"],
    prefixes: &[],
    moe_layers: layers::all,
    extra_layers: &[],
    spec: |c, layer| {
        let names = Names::layer(c, layer);
        let mut spec = granite(c, &names, "mlp", c.gated_activation("activation_function"));
        spec.after = After::Bias(names.tensor(&["mlp.bias"]));
        spec
    },
};

/// Aria: softmax in the model's type, stacked experts stored transposed, always SiLU.
pub(super) const ARIA: Family = Family {
    model_types: &["aria", "aria_text"],
    prefixes: &[],
    moe_layers: layers::all,
    extra_layers: &[],
    spec: |c, layer| {
        let names = Names::layer(c, layer);
        let n_experts = c.size(&["moe_num_experts"], MAX_EXPERTS);
        let ffn = c.size(&["intermediate_size"], MAX_WIDTH);
        let mut router = Router::new(names.tensor(&["mlp.router.weight"]), Score::Softmax);
        router.logits = Precision::Layer;
        router.choose_first = true;
        router.score_round = Precision::Layer;
        router.weights_round = Precision::Layer;
        let (gate_up, down) = (
            ["mlp.experts.fc1.weight", "mlp.experts.gate_up_proj"],
            ["mlp.experts.fc2.weight", "mlp.experts.down_proj"],
        );
        let experts = names.transposed_experts(&gate_up, &down, ffn, Activation::SwiGlu);
        let mut spec = MoeSpec::new(c.hidden(), n_experts, c.size(&["moe_topk"], MAX_EXPERTS), router, experts);
        let width = ffn * c.size_or(&["moe_num_shared_experts"], 2, 1024);
        let mut shared = names.mlp("mlp.shared_experts", GATE_UP_DOWN, width, c.gated_activation("hidden_act"));
        shared.biases = c.flag_or("mlp_bias", false).then(|| names.mlp_biases("mlp.shared_experts", GATE_UP_DOWN));
        spec.shared = (width > 0).then_some(shared);
        spec
    },
};

fn granite(c: &Keys, names: &Names, stem: &str, activation: Activation) -> MoeSpec {
    let n_experts = c.size(&["num_local_experts"], MAX_EXPERTS);
    let ffn = c.size(&["intermediate_size"], MAX_WIDTH);
    let router_names = [format!("{stem}.router.layer.weight"), format!("{stem}.router.weight")];
    let mut router = Router::new(names.tensor(&router_names.each_ref().map(String::as_str)), Score::Softmax);
    router.logits = Precision::Layer;
    router.choose_first = true;
    router.weights_round = Precision::Layer;
    let stacked = |part: &str| [format!("{stem}.{part}.weight"), format!("{stem}.experts.{}", parallel(part))];
    let (gate_up, down) = (stacked("input_linear"), stacked("output_linear"));
    let (gate_up, down) = (gate_up.each_ref().map(String::as_str), down.each_ref().map(String::as_str));
    let experts = names.stacked_experts(&gate_up, &down, ffn, activation);
    MoeSpec::new(c.hidden(), n_experts, c.size(TOP_K, MAX_EXPERTS), router, experts)
}

/// The name of the same tensor in `granitemoe_swa`.
fn parallel(part: &str) -> &'static str {
    if part == "input_linear" { "gate_up_proj" } else { "down_proj" }
}

/// The first of two sources that exists.
pub(super) fn either(a: WeightSource, b: WeightSource) -> WeightSource {
    WeightSource::FirstOf(vec![a, b])
}
