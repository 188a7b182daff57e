//! Switch Transformers and NLLB-MoE: an encoder and a decoder with experts in some of their layers. The decoder's layers
//! are numbered after the encoder's. Experts have two matrices; NLLB's have biases.
//!
//! Both models limit the tokens that an expert takes of a sequence, which makes a token depend on others. A config has to say
//! that there is no limit.

use super::Family;
use crate::keys::{Keys, MAX_EXPERTS, MAX_LAYERS, MAX_WIDTH, Missing};
use crate::layout::Names;
use crate::spec::{ExpertBiases, Experts, MoeSpec, Precision, Router};
use moec_ir::expr::Real;
use moec_ir::graph::{RenormRule, Score};

/// Switch Transformers: the best expert, weighted by its probability.
pub(super) const SWITCH: Family = Family {
    model_types: &["switch_transformers"],
    prefixes: &[],
    moe_layers: |c| {
        let n_layers = [c.n_layers(), c.size_or(&["num_decoder_layers"], u64::from(c.n_layers()), MAX_LAYERS) as u32];
        let sparse =
            ["encoder", "decoder"].map(|side| c.size_or(&[&format!("num_sparse_{side}_layers")], 3, MAX_LAYERS));
        // A step that spreads them over all layers; the model's code counts from the second layer of a step.
        let step = |side: usize| match sparse[side] as u32 {
            0 => n_layers[side],
            sparse => n_layers[side] / sparse,
        };
        sparse_layers(n_layers, |side, i| match step(side) {
            0 => false,
            1 => true,
            step => i % step == 1,
        })
    },
    extra_layers: &[],
    spec: switch,
};

/// NLLB-MoE: the best two experts, renormalised.
///
/// Its published code and transformers 4 give each token to the experts that its router chose; transformers 5 gives all
/// tokens to the experts 0 and 1.
pub(super) const NLLB: Family = Family {
    model_types: &["nllb-moe"],
    prefixes: &[],
    moe_layers: |c| {
        let n_layers = [c.n_layers(), c.size_or(&["decoder_layers"], 12, MAX_LAYERS) as u32];
        let steps = ["encoder_sparse_step", "decoder_sparse_step"].map(|key| c.size_or(&[key], 4, MAX_LAYERS) as u32);
        sparse_layers(n_layers, |side, i| steps[side] > 0 && (i + 1).is_multiple_of(steps[side]))
    },
    extra_layers: &[],
    spec: nllb,
};

/// The layers with experts of `n_layers` of the encoder (0) and of the decoder (1).
fn sparse_layers(n_layers: [u32; 2], is_sparse: impl Fn(usize, u32) -> bool) -> Vec<u32> {
    let encoder = (0..n_layers[0]).filter(|&i| is_sparse(0, i));
    let decoder = (0..n_layers[1]).filter(|&i| is_sparse(1, i)).map(|i| n_layers[0] + i);
    encoder.chain(decoder).collect()
}

/// The part of the model that has a layer, and the layer's number there.
fn side(c: &Keys, layer: u32) -> (&'static str, u32) {
    let n_encoder = c.n_layers();
    if layer < n_encoder { ("encoder", layer) } else { ("decoder", layer - n_encoder) }
}

fn switch(c: &Keys, layer: u32) -> MoeSpec {
    let (side, number) = side(c, layer);
    // Between self-attention and experts a decoder's layer has attention to the encoder.
    let mlp = if side == "encoder" { 1 } else { 2 };
    let names = Names::exact(&[&format!("{side}.block.{number}.layer.{mlp}.mlp.")]);
    let n_experts = c.size(&["num_experts"], MAX_EXPERTS);
    let limit = c.size_or(&["expert_capacity"], 64, u64::from(u32::MAX));
    let limited = !c.text.get_or_null("expert_capacity").is_some_and(|v| v.is_null()) && limit < NO_LIMIT;
    if limited {
        refuse_limit(c, "expert_capacity", &format!("an expert takes {limit} tokens of a sequence"), "null");
    }
    let experts = Experts {
        ffn: c.size(&["d_ff"], MAX_WIDTH),
        activation: c.ungated_activation("dense_act_fn", "relu"),
        gate: names.per_expert(&[], n_experts),
        up: names.per_expert(&["experts.expert_{e}.wi.weight"], n_experts),
        down: names.per_expert(&["experts.expert_{e}.wo.weight"], n_experts),
        biases: None,
        out_norm: None,
    };
    MoeSpec::new(c.size(&["d_model", "hidden_size"], MAX_WIDTH), n_experts, 1, router(c, &names), experts)
}

fn nllb(c: &Keys, layer: u32) -> MoeSpec {
    let (side, number) = side(c, layer);
    let names = Names::exact(&[&format!("model.{side}.layers.{number}.ffn."), &format!("{side}.layers.{number}.ffn.")]);
    let n_experts = c.size(&["num_experts"], MAX_EXPERTS);
    let share = c.real_or(&["moe_eval_capacity_token_fraction"], 1.0);
    if share < 1.0 {
        refuse_limit(c, "moe_eval_capacity_token_fraction", "an expert takes a part of a batch's tokens", "1.0");
    }
    c.one_of("second_expert_policy", &["all"]);
    let each = |name: &str| names.per_expert(&[&format!("experts.expert_{{e}}.{name}")], n_experts);
    let experts = Experts {
        ffn: c.size(&[&format!("{side}_ffn_dim")], MAX_WIDTH),
        activation: c.ungated_activation("activation_function", "relu"),
        gate: names.per_expert(&[], n_experts),
        up: each("fc1.weight"),
        down: each("fc2.weight"),
        biases: Some(ExpertBiases {
            gate: names.per_expert(&[], n_experts),
            up: each("fc1.bias"),
            down: each("fc2.bias"),
        }),
        out_norm: None,
    };
    let mut router = router(c, &names);
    router.renorm = Some(RenormRule::Sum { eps: Real(0.0) });
    let mut spec = MoeSpec::new(c.size(&["d_model", "hidden_size"], MAX_WIDTH), n_experts, 2, router, experts);
    // Dropout of whole expert outputs in training stays as its mean.
    spec.routed_scale = 1.0 - c.real_or(&["moe_token_dropout"], 0.2);
    spec
}

/// Softmax in f32, of which the weights are rounded to the layer's type.
fn router(c: &Keys, names: &Names) -> Router {
    c.one_of("router_dtype", &["float32"]);
    let mut router = Router::new(names.tensor(&["router.classifier.weight"]), Score::Softmax);
    router.bias = c.flag_or("router_bias", false).then(|| names.tensor(&["router.classifier.bias"]));
    router.score_round = Precision::Layer;
    router.weights_round = Precision::Layer;
    router
}

/// More tokens than a sequence has.
const NO_LIMIT: u64 = 1 << 20;

fn refuse_limit(c: &Keys, key: &str, what: &str, none: &str) {
    let detail = format!(
        "{what}, and leaves the others out; where no token is left out, set `{key}` to {none}: all tokens go to their experts"
    );
    c.refuse(Missing::MixedTokens, detail, Some(key));
}
