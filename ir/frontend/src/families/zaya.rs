//! ZAYA: the router is a network that reads the state of the previous layer's router; one class means no expert.

use super::Family;
use crate::keys::{Keys, MAX_EXPERTS, MAX_WIDTH, Missing};
use crate::layers;
use crate::layout::Names;
use crate::spec::{MoeSpec, Norm, Precision, Router, RouterNetwork};
use moec_ir::graph::Score;

pub(super) const FAMILY: Family =
    Family { model_types: &["zaya"], prefixes: &[], moe_layers: layers::all, extra_layers: &[], spec };

fn spec(c: &Keys, layer: u32) -> MoeSpec {
    let names = Names::layer(c, layer);
    let n_experts = c.size(&["num_experts"], MAX_EXPERTS);
    let ffn = c.size(&["moe_intermediate_size"], MAX_WIDTH);
    let top_k = c.size_or(&["num_experts_per_tok"], 1, MAX_EXPERTS);
    if top_k != 1 {
        c.refuse(Missing::RouterVariant, format!("{top_k} experts per token"), Some("num_experts_per_tok"));
    }
    let one = |name: &str| names.tensor(&[&format!("mlp.gate.{name}")]);
    let linear = |name: &str| (one(&format!("{name}.weight")), one(&format!("{name}.bias")));
    let mut router = Router::new(one("router_mlp.out_proj.weight"), Score::Softmax);
    router.network = Some(RouterNetwork {
        width: c.size_or(&["router_hidden_size"], 256, MAX_WIDTH),
        down: linear("down_proj"),
        state_scale: (layer > 0).then(|| one("router_states_scale")),
        norm: Norm::new(c.real_or(&["rms_norm_eps"], 1e-5), one("router_mlp.norm.weight")),
        layers: [linear("router_mlp.fc1"), linear("router_mlp.fc2")],
    });
    router.logits = Precision::Layer;
    router.score_round = Precision::Layer;
    router.selection_bias = Some(names.vector(&["mlp.gate.balancing_biases"], n_experts + 1));
    router.weights_round = Precision::Layer;
    let activation = c.gated_activation("hidden_act");
    let experts = names.stacked_experts(&["mlp.experts.gate_up_proj"], &["mlp.experts.down_proj"], ffn, activation);
    let mut spec = MoeSpec::new(c.hidden(), n_experts, top_k, router, experts);
    spec.skip_class = true;
    spec
}
