//! DeepSeek-V4: scores sqrt(softplus), a bias for the choice only, experts clamped before their activation. Its first
//! layers look experts up by token id.

use super::Family;
use super::in_memory::or_in_memory;
use super::v3_relatives::clamped_before;
use crate::json::Json;
use crate::keys::{Keys, MAX_EXPERTS, MAX_LAYERS, MAX_WIDTH};
use crate::layers;
use crate::layout::{Names, W1_W3_W2};
use crate::spec::{MoeSpec, Router};
use moec_ir::expr::Real;
use moec_ir::graph::{RenormRule, Score};

pub(super) const FAMILY: Family = Family {
    model_types: &["deepseek_v4"],
    prefixes: &["model.", ""],
    moe_layers: |c| layers::from_types(c, "mlp_layer_types", c.n_layers()).unwrap_or_else(|| layers::all(c)),
    extra_layers: &["num_nextn_predict_layers"],
    spec,
};

fn spec(c: &Keys, layer: u32) -> MoeSpec {
    let names = Names::layer(c, layer);
    let kinds = c.text.get("mlp_layer_types").and_then(|v| v.list().ok());
    let is_hash = match &kinds {
        Some(kinds) => kinds.get(layer as usize).map(Json::string) == Some(Ok("hash_moe".to_string())),
        None => u64::from(layer) < c.size_or(&["num_hash_layers"], 3, MAX_LAYERS),
    };
    let n_experts = c.size(&["n_routed_experts", "num_local_experts"], MAX_EXPERTS);
    let ffn = c.size(&["moe_intermediate_size"], MAX_WIDTH);
    let score = match c.one_of("scoring_func", &["sqrtsoftplus", "sigmoid", "softmax"]) {
        "sigmoid" => Score::Sigmoid,
        "softmax" => Score::Softmax,
        _ => Score::SqrtSoftplus,
    };
    let mut router = Router::new(names.tensor(&["ffn.gate.weight", "mlp.gate.weight"]), score);
    router.selection_bias = Some(names.vector(&["ffn.gate.bias", "mlp.gate.e_score_correction_bias"], n_experts));
    if is_hash {
        router.selection_bias = None;
        let table = names.tensor(&["ffn.gate.tid2eid", "mlp.gate.tid2eid"]);
        router.table = Some((c.size(&["vocab_size"], MAX_WIDTH), table));
    }
    router.renorm = Some(RenormRule::Sum { eps: Real(1e-20) });
    router.scale = c.real_or(&["routed_scaling_factor"], 1.0);
    let activation = clamped_before(c);
    let experts = names.experts("ffn.experts", W1_W3_W2, n_experts, ffn, activation.clone());
    let top_k = c.size(&["num_experts_per_tok"], MAX_EXPERTS);
    let mut spec = MoeSpec::new(c.hidden(), n_experts, top_k, router, experts);
    // One shared expert, whatever their number says, as in the published code.
    let mut shared = names.mlp("ffn.shared_experts", W1_W3_W2, ffn, activation);
    shared.biases = c.flag_or("mlp_bias", false).then(|| names.mlp_biases("ffn.shared_experts", W1_W3_W2));
    spec.shared = Some(shared);
    or_in_memory(c, layer, spec)
}
