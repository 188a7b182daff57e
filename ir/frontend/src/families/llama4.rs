//! Llama 4: one expert per token, whose input is multiplied by the sigmoid of its logit.

use super::Family;
use crate::keys::{Keys, MAX_EXPERTS, MAX_LAYERS, MAX_WIDTH, Missing};
use crate::layers;
use crate::layout::{GATE_UP_DOWN, Names};
use crate::spec::{MoeSpec, Precision, Router};
use moec_ir::graph::Score;

pub(super) const FAMILY: Family = Family {
    model_types: &["llama4", "llama4_text"],
    prefixes: &[],
    moe_layers: |c| {
        let n = c.n_layers();
        if c.text.get("moe_layers").is_some() {
            return layers::numbers(c, "moe_layers").into_iter().filter(|&l| l < n).collect();
        }
        let step = c.size_or(&["interleave_moe_layer_step"], 1, MAX_LAYERS).max(1) as u32;
        (0..n).filter(|i| (i + 1).is_multiple_of(step)).collect()
    },
    extra_layers: &[],
    spec,
};

fn spec(c: &Keys, layer: u32) -> MoeSpec {
    let names = Names::layer(c, layer);
    let n_experts = c.size(&["num_local_experts"], MAX_EXPERTS);
    let top_k = c.size(&["num_experts_per_tok"], MAX_EXPERTS);
    let ffn = c.size(&["intermediate_size"], MAX_WIDTH);
    if top_k > 1 {
        c.refuse(Missing::ScaledInputs, format!("{top_k} experts per token"), Some("num_experts_per_tok"));
    }
    let mut router = Router::new(names.tensor(&["feed_forward.router.weight"]), Score::Sigmoid);
    router.logits = Precision::Layer;
    router.choose_first = true;
    router.weights_round = Precision::Layer;
    router.scales_input = true;
    let activation = c.gated_activation("hidden_act");
    let (gate_up, down) = (["feed_forward.experts.gate_up_proj"], ["feed_forward.experts.down_proj"]);
    let experts = names.transposed_experts(&gate_up, &down, ffn, activation.clone());
    let mut spec = MoeSpec::new(c.hidden(), n_experts, top_k, router, experts);
    spec.shared = Some(names.mlp("feed_forward.shared_expert", GATE_UP_DOWN, ffn, activation));
    spec
}
