//! gpt-oss: a router with a real bias, softmax over the chosen logits, everything rounded; experts with biases,
//! interleaved gate and up columns, and a clamped activation.

use super::Family;
use crate::keys::{Keys, MAX_EXPERTS, MAX_WIDTH};
use crate::layers;
use crate::layout::Names;
use crate::spec::{ExpertBiases, Experts, MoeSpec, Precision, Router};
use moec_ir::Activation;
use moec_ir::expr::Real;
use moec_ir::graph::Score;
use moec_ir::weights::WeightStep;

pub(super) const FAMILY: Family =
    Family { model_types: &["gpt_oss"], prefixes: &[], moe_layers: layers::all, extra_layers: &[], spec };

/// OpenAI's privacy filter: f32 logits, gate before up in halves, weights divided by K before the experts and the sum
/// multiplied by it again.
pub(super) const PRIVACY_FILTER: Family = Family {
    model_types: &["openai_privacy_filter"],
    prefixes: &[],
    moe_layers: layers::all,
    extra_layers: &[],
    spec: |c, layer| {
        let names = Names::layer(c, layer);
        let mut spec = spec(c, layer);
        let router = &mut spec.router;
        router.logits = Precision::F32;
        router.score_round = Precision::F32;
        router.weights_round = Precision::F32;
        router.scale = 1.0 / spec.top_k as f32;
        spec.routed_scale = spec.top_k as f32;
        let (ffn, activation) = (spec.experts.ffn, spec.experts.activation.clone());
        let (gate_up, down) = (["mlp.experts.gate_up_proj"], ["mlp.experts.down_proj"]);
        let bias = |start| {
            let half = WeightStep::Slice { axis: 1, start, step: 1, len: ffn, of: Some(2 * ffn) };
            names.steps(&["mlp.experts.gate_up_proj_bias"], vec![half])
        };
        spec.experts = Experts {
            biases: spec.experts.biases.map(|b| ExpertBiases { gate: bias(0), up: bias(ffn), ..b }),
            ..names.transposed_experts(&gate_up, &down, ffn, activation)
        };
        spec
    },
};

fn spec(c: &Keys, layer: u32) -> MoeSpec {
    let names = Names::layer(c, layer);
    let n_experts = c.size(&["num_local_experts", "num_experts"], MAX_EXPERTS);
    let ffn = c.size(&["intermediate_size"], MAX_WIDTH);
    let mut router = Router::new(names.tensor(&["mlp.router.weight"]), Score::Softmax);
    router.bias = Some(names.tensor(&["mlp.router.bias"]));
    router.logits = Precision::Layer;
    router.choose_first = true;
    router.score_round = Precision::Layer;
    router.weights_round = Precision::Layer;

    // Stored [E, H, 2F] with gate in the even columns and up in the odd ones.
    let every_other = |axis, start| WeightStep::Slice { axis, start, step: 2, len: ffn, of: Some(2 * ffn) };
    let matrix = |start| names.steps(&["mlp.experts.gate_up_proj"], vec![every_other(2, start), WeightStep::Transpose]);
    let bias = |start| names.steps(&["mlp.experts.gate_up_proj_bias"], vec![every_other(1, start)]);
    let experts = Experts {
        ffn,
        activation: Activation::SwiGluOai {
            alpha: Real(c.real_or(&["swiglu_alpha"], 1.702)),
            limit: Real(c.real_or(&["swiglu_limit"], 7.0)),
        },
        gate: matrix(0),
        up: matrix(1),
        down: names.transposed(&["mlp.experts.down_proj"]),
        biases: Some(ExpertBiases { gate: bias(0), up: bias(1), down: names.tensor(&["mlp.experts.down_proj_bias"]) }),
        out_norm: None,
    };
    let top_k = c.size(&["num_experts_per_tok", "experts_per_token"], MAX_EXPERTS);
    MoeSpec::new(c.hidden(), n_experts, top_k, router, experts)
}
