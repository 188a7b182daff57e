//! Nemotron-3: DeepSeek-V3's router, ungated experts with a squared ReLU, in the larger models in a latent space.

use super::Family;
use super::deepseek_v3::{PARTS, Parts, v3_with};
use crate::json::Json;
use crate::keys::{Keys, MAX_WIDTH, Missing};
use crate::layers;
use crate::layout::{GATE_UP_DOWN, Names};
use crate::spec::{Latent, MoeSpec, Shared};

pub(super) const FAMILY: Family = Family {
    model_types: &["nemotron_h", "nemotron_h_moe"],
    prefixes: &["backbone.", "model."],
    moe_layers,
    extra_layers: &[],
    spec,
};

/// A layer is Mamba, attention or experts; a string or a list says which.
fn moe_layers(c: &Keys) -> Vec<u32> {
    if let Some(pattern) = c.text.get("hybrid_override_pattern").filter(|v| v.is_string()) {
        let word = pattern.string().unwrap_or_default();
        if word.chars().count() != c.n_layers() as usize {
            c.problem(pattern.out_of_range(&format!("one letter for each of the {} layers", c.n_layers())));
            return Vec::new();
        }
        return (0u32..).zip(word.chars()).filter(|(_, kind)| *kind == 'E').map(|(i, _)| i).collect();
    }
    layers::from_types(c, "layers_block_type", c.n_layers()).unwrap_or_else(|| {
        c.problem(c.text.missing(&["hybrid_override_pattern", "layers_block_type"]));
        Vec::new()
    })
}

fn spec(c: &Keys, layer: u32) -> MoeSpec {
    let names = Names::layer(c, layer);
    if let Some(blocks) = c.text.get("block_configs").map(Json::path) {
        c.refuse(Missing::Structure, format!("`{blocks}` gives every layer sizes of its own"), Some("block_configs"));
    }
    let activation = c.ungated_activation("mlp_hidden_act", "relu2");
    // In the shared expert and around the latent space; the routed experts have none.
    let has_biases = c.flag_or("mlp_bias", false);
    let parts = Parts {
        gate: "mixer.gate.weight",
        bias: "mixer.gate.e_score_correction_bias",
        experts: ("mixer.experts", GATE_UP_DOWN),
        shared: "mixer.shared_experts",
        ..PARTS
    };
    let mut spec = v3_with(c, layer, &parts, activation.clone());
    let count = c.size_or(super::SHARED, 0, 1024);
    let width = c.size_or(&["moe_shared_expert_intermediate_size"], spec.experts.ffn, MAX_WIDTH) * count.min(1);
    let matrix = |m: &str| names.tensor(&[&format!("mixer.shared_experts.{m}.weight")]);
    let mut shared = Shared::new(width, activation, matrix("gate_proj"), matrix("up_proj"), matrix("down_proj"));
    shared.biases = has_biases.then(|| names.mlp_biases("mixer.shared_experts", GATE_UP_DOWN));
    spec.shared = (width > 0).then_some(shared);
    let latent = c.size_or(&["moe_latent_size"], 0, MAX_WIDTH);
    if latent > 0 {
        spec.latent = Some(Latent {
            width: latent,
            down: names.tensor(&["mixer.fc1_latent_proj.weight"]),
            up: names.tensor(&["mixer.fc2_latent_proj.weight"]),
            biases: has_biases.then(|| {
                (names.tensor(&["mixer.fc1_latent_proj.bias"]), names.tensor(&["mixer.fc2_latent_proj.bias"]))
            }),
            in_norm: None,
            norm: None,
        });
    }
    spec
}
