//! What implementers of these models get wrong, one test for each: `docs/semantic-traps.md` lists them all.
//!
//! A layer gets weights that are zero but for a few, so that its outcome can be worked out by hand: one token, whose hidden
//! state is 1 in the first column, so that the first column of the router's matrix holds the logits.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use moec_frontend::{LayerOptions, ModelConfig};
use moec_ir::graph::{Graph, evaluate};
use moec_ir::weights::{WeightSource, WeightStep};
use moec_ir::{DType, Tensor};

const LOGITS: [f32; 8] = [2.0, 1.9, 1.8, 0.5, 0.0, -1.0, -2.0, -3.0];

/// Eight experts of width 4, three of them for each token, on a hidden size of 8.
const MODELS: [(&str, &str); 26] = [
    ("aria_text", r#""moe_num_experts": 8, "moe_topk": 3, "intermediate_size": 4, "moe_num_shared_experts": 1"#),
    ("hy_v3", r#""n_routed_experts": 8, "moe_intermediate_size": 4, "n_shared_experts": 1"#),
    ("mixtral", r#""num_local_experts": 8, "intermediate_size": 4"#),
    ("qwen2_moe", r#""num_experts": 8, "moe_intermediate_size": 4, "shared_expert_intermediate_size": 4"#),
    ("qwen3_moe", r#""num_experts": 8, "moe_intermediate_size": 4"#),
    ("qwen3_5_moe_text", r#""num_experts": 8, "moe_intermediate_size": 4, "shared_expert_intermediate_size": 4"#),
    ("olmoe", r#""num_experts": 8, "intermediate_size": 4"#),
    ("jamba", r#""num_experts": 8, "intermediate_size": 4, "expert_layer_period": 1, "expert_layer_offset": 0"#),
    ("minimax", r#""num_local_experts": 8, "intermediate_size": 4"#),
    ("hunyuan_v1_moe", r#""num_experts": 8, "intermediate_size": 4, "moe_topk": 3"#),
    ("gpt_oss", r#""num_local_experts": 8, "intermediate_size": 4"#),
    ("deepseek_v2", r#""n_routed_experts": 8, "moe_intermediate_size": 4, "n_shared_experts": 1"#),
    ("deepseek_v3", r#""n_routed_experts": 8, "moe_intermediate_size": 4, "n_shared_experts": 1"#),
    ("kimi_k2", r#""n_routed_experts": 8, "moe_intermediate_size": 4, "n_shared_experts": 1"#),
    ("glm4_moe", r#""n_routed_experts": 8, "moe_intermediate_size": 4, "n_shared_experts": 1"#),
    ("mistral4", r#""n_routed_experts": 8, "moe_intermediate_size": 4, "n_shared_experts": 1"#),
    ("mimo_v2_flash", r#""n_routed_experts": 8, "moe_intermediate_size": 4, "moe_layer_freq": [1, 1, 1, 1]"#),
    ("minimax_m2", r#""num_local_experts": 8, "intermediate_size": 4"#),
    (
        "ernie4_5_moe",
        r#""moe_num_experts": 8, "moe_k": 3, "moe_intermediate_size": 4, "moe_num_shared_experts": 0,
           "moe_layer_start_index": 0"#,
    ),
    ("lfm2_moe", r#""num_experts": 8, "moe_intermediate_size": 4, "num_dense_layers": 0"#),
    (
        "longcat_flash",
        r#""num_layers": 4, "n_routed_experts": 8, "expert_ffn_hidden_size": 4, "moe_topk": 3, "zero_expert_num": 2"#,
    ),
    (
        "nemotron_h",
        r#""n_routed_experts": 8, "moe_intermediate_size": 4, "moe_shared_expert_intermediate_size": 4,
           "layers_block_type": ["moe", "moe", "moe", "moe"], "mlp_hidden_act": "relu2""#,
    ),
    (
        "step3p5",
        r#""moe_num_experts": 8, "moe_top_k": 3, "moe_intermediate_size": 4, "share_expert_dim": 4,
           "moe_layers_enum": "0,1,2,3""#,
    ),
    (
        "deepseek_v4",
        r#""n_routed_experts": 8, "moe_intermediate_size": 4, "n_shared_experts": 1, "vocab_size": 5,
           "mlp_layer_types": ["moe", "moe", "moe", "hash_moe"]"#,
    ),
    ("phimoe", r#""num_local_experts": 8, "intermediate_size": 4, "router_jitter_noise": 0.01"#),
    ("llama4_text", r#""num_local_experts": 8, "intermediate_size": 4, "intermediate_size_mlp": 6"#),
];

fn config(family: &str, more: &str) -> ModelConfig {
    let keys = MODELS.iter().find(|(f, _)| *f == family).map_or("", |(_, keys)| *keys);
    let k = match family {
        "llama4_text" => 1,
        "phimoe" => 2,
        _ => 3,
    };
    // Of two values of a key the later one counts.
    let more = if more.is_empty() { String::new() } else { format!(", {more}") };
    let text = format!(
        r#"{{ "model_type": "{family}", "hidden_size": 8, "num_hidden_layers": 4, "num_experts_per_tok": {k},
             "first_k_dense_replace": 0, "n_group": 1, "topk_group": 1, "routed_scaling_factor": 1.0, {keys} {more} }}"#
    );
    ModelConfig::from_text(family, text).unwrap_or_else(|d| panic!("{family}: {d:?}"))
}

/// A layer with weights that are all zero.
struct Layer {
    graph: Graph,
    params: Vec<Tensor>,
}

/// What a layer gives for the token.
struct Outcome {
    /// The first column.
    output: f32,
    ids: Vec<i64>,
    weights: Vec<f32>,
}

impl Layer {
    fn new(family: &str, more: &str) -> Layer {
        Layer::of(&config(family, more), 0)
    }

    fn of(config: &ModelConfig, number: u32) -> Layer {
        let options = LayerOptions { dtype: Some(DType::F32), ..LayerOptions::default() };
        let graph = config.layer(Some(number), &options).unwrap_or_else(|d| panic!("{d:?}")).graph;
        let shape = |p: &moec_ir::graph::Param| p.ty.shape.iter().map(|d| d.at(0) as usize).collect::<Vec<_>>();
        let zeros = graph.params.iter().map(|p| {
            let n = shape(p).iter().product();
            match p.ty.dtype.is_float() {
                true => Tensor::float(p.ty.dtype, &shape(p), vec![0.0; n]),
                false => Tensor::int(p.ty.dtype, &shape(p), vec![0; n]),
            }
        });
        Layer { params: zeros.collect(), graph }
    }

    fn index(&self, name: &str) -> usize {
        self.graph.params.iter().position(|p| p.name == name).unwrap_or_else(|| panic!("no `{name}`"))
    }

    fn has(&self, name: &str) -> bool {
        self.graph.params.iter().any(|p| p.name == name)
    }

    /// Sets every element of a parameter, by its place.
    fn set(mut self, name: &str, value: impl Fn(usize) -> f32) -> Layer {
        let i = self.index(name);
        let p = &self.params[i];
        let values = (0..p.elements()).map(value).collect();
        self.params[i] = Tensor::float(p.dtype, &p.shape.clone(), values);
        self
    }

    /// Sets the first element of each row.
    fn first(self, name: &str, value: impl Fn(usize) -> f32) -> Layer {
        let cols = self.params[self.index(name)].cols();
        self.set(name, |i| if i.is_multiple_of(cols) { value(i / cols) } else { 0.0 })
    }

    fn logits(self, logits: &[f32]) -> Layer {
        let logits = logits.to_vec();
        self.first("router.weight", move |e| logits.get(e).copied().unwrap_or(-9.0))
    }

    /// Every routed expert has the branches `g` and `u` and returns what its activation gives.
    fn experts(self, g: f32, u: f32) -> Layer {
        let gated = self.has("experts.gate");
        let with_up = self.first("experts.up", move |_| u).first("experts.down", |_| 1.0);
        if gated { with_up.first("experts.gate", move |_| g) } else { with_up }
    }

    fn shared(self, g: f32, u: f32) -> Layer {
        let gated = self.has("shared.gate");
        let with_up = self.first("shared.up", move |_| u).first("shared.down", |_| 1.0);
        if gated { with_up.first("shared.gate", move |_| g) } else { with_up }
    }

    fn run(&self) -> Outcome {
        let hidden = self.graph.inputs[0].ty.shape[1].at(0) as usize;
        let mut x = vec![0.0; hidden];
        x[0] = 1.0;
        let mut inputs = vec![Tensor::float(DType::F32, &[1, hidden], x)];
        if self.graph.inputs.len() > 1 {
            inputs.push(Tensor::int(DType::I64, &[1], vec![4]));
        }
        let out = evaluate(&self.graph, &inputs, &self.params).unwrap();
        Outcome { output: out[0].floats()[0], ids: out[1].ints().to_vec(), weights: out[2].floats().to_vec() }
    }
}

fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

fn silu(x: f32) -> f32 {
    x * sigmoid(x)
}

fn softmax(of: &[f32]) -> Vec<f32> {
    let sum: f32 = of.iter().map(|l| l.exp()).sum();
    of.iter().map(|l| l.exp() / sum).collect()
}

fn close(a: f32, b: f32) -> bool {
    (a - b).abs() <= 2e-6 * b.abs().max(1.0)
}

fn sorted(ids: &[i64]) -> Vec<i64> {
    let mut ids = ids.to_vec();
    ids.sort_unstable();
    ids
}

#[test]
fn a_selection_bias_chooses_and_does_not_weigh() {
    let soft = softmax(&LOGITS);
    for family in [
        "deepseek_v3",
        "kimi_k2",
        "glm4_moe",
        "minimax_m2",
        "mimo_v2_flash",
        "nemotron_h",
        "lfm2_moe",
        "step3p5",
        "ernie4_5_moe",
        "longcat_flash",
        "deepseek_v4",
    ] {
        let more = if family == "step3p5" { r#""use_moe_router_bias": true"# } else { "" };
        let layer =
            Layer::new(family, more).logits(&LOGITS).set("router.selection_bias", |e| if e == 5 { 9.0 } else { 0.0 });
        let got = layer.run();
        assert_eq!(sorted(&got.ids), [0, 1, 5], "{family}");
        let score = |e: usize| match family {
            // The zero experts' logits are far below, but take part.
            "longcat_flash" => soft[e],
            "ernie4_5_moe" => soft[e],
            "deepseek_v4" => LOGITS[e].exp().ln_1p().sqrt(),
            _ => sigmoid(LOGITS[e]),
        };
        let weight = |e: i64| got.weights[got.ids.iter().position(|&i| i == e).unwrap()];
        assert!(close(weight(5) / weight(0), score(5) / score(0)), "{family}: {:?}", got.weights);
    }
}

#[test]
fn the_bias_of_gpt_oss_is_part_of_logit_and_weight() {
    let layer = Layer::new("gpt_oss", "").logits(&LOGITS).set("router.bias", |e| if e == 5 { 4.0 } else { 0.0 });
    let got = layer.run();
    assert_eq!(got.ids, [5, 0, 1]);
    let want = softmax(&[3.0, 2.0, 1.9]);
    assert!(got.weights.iter().zip(&want).all(|(a, b)| close(*a, *b)), "{:?}", got.weights);
}

#[test]
fn weights_are_divided_by_their_sum_where_the_model_does_so() {
    let soft: f32 = softmax(&LOGITS)[..3].iter().sum();
    // With the keys that published configs have: none that says so.
    for family in ["mixtral", "qwen3_5_moe_text", "minimax", "hunyuan_v1_moe", "minimax_m2", "ernie4_5_moe", "step3p5"]
    {
        let sum: f32 = Layer::new(family, "").logits(&LOGITS).run().weights.iter().sum();
        assert!(close(sum, 1.0), "{family}: {sum}");
    }
    for family in ["qwen2_moe", "olmoe", "deepseek_v2", "jamba"] {
        let sum: f32 = Layer::new(family, "").logits(&LOGITS).run().weights.iter().sum();
        assert!(close(sum, soft), "{family}: {sum}");
    }
    let zeros: f32 = Layer::new("longcat_flash", "").logits(&LOGITS).run().weights.iter().sum();
    assert!(zeros < soft && zeros > soft - 1e-3, "two more classes take part in the softmax: {zeros}");
    for family in ["qwen2_moe", "olmoe", "qwen3_moe"] {
        let sum = |flag| {
            let layer = Layer::new(family, &format!(r#""norm_topk_prob": {flag}"#)).logits(&LOGITS);
            layer.run().weights.iter().sum::<f32>()
        };
        assert!(close(sum(true), 1.0) && close(sum(false), soft), "{family}");
    }
}

#[test]
fn a_softmax_before_the_choice_differs_from_one_after_it() {
    let (all, chosen) = (softmax(&LOGITS), softmax(&LOGITS[..3]));
    let before = Layer::new("olmoe", "").logits(&LOGITS).run().weights;
    let after = Layer::new("gpt_oss", "").logits(&LOGITS).run().weights;
    for j in 0..3 {
        assert!(close(before[j], all[j]) && close(after[j], chosen[j]), "{before:?} {after:?}");
    }
}

#[test]
fn llama4_scales_the_input_of_its_expert() {
    let got = Layer::new("llama4_text", "").logits(&LOGITS).experts(1.5, -0.7).run();
    let w = sigmoid(LOGITS[0]);
    assert!(close(got.weights[0], w) && close(got.output, silu(w * 1.5) * (w * -0.7)), "{}", got.output);
}

#[test]
fn three_clamps_stand_in_three_places() {
    let limit = 7.0;
    let run = |family: &str, more: &str, g: f32, u: f32| {
        let got = Layer::new(family, more).logits(&LOGITS).experts(g, u).run();
        got.output / got.weights.iter().sum::<f32>()
    };
    for (g, u) in [(12.0f32, -12.0f32), (-12.0, 12.0), (8.0, 3.0), (1.0, -2.0)] {
        let (low, cut) = (g.min(limit), u.clamp(-limit, limit));
        let oai = (cut + 1.0) * low * sigmoid(1.702 * low);
        assert!(close(run("gpt_oss", r#""swiglu_limit": 7.0"#, g, u), oai), "gpt_oss {g} {u}");
        let before = silu(low) * cut;
        assert!(close(run("deepseek_v4", r#""swiglu_limit": 7.0"#, g, u), before), "deepseek_v4 {g} {u}");
        let after = silu(g).min(limit) * cut;
        let got = run("step3p5", r#""swiglu_limits": [7.0, 0.0, null, 0.0]"#, g, u);
        assert!(close(got, after), "step3p5 {g} {u}: {got}, {after}");
    }
    // 0 and null: no clamp.
    let layer = Layer::of(&config("step3p5", r#""swiglu_limits": [7.0, 0.0, null, 0.0]"#), 1);
    let got = layer.logits(&LOGITS).experts(12.0, 12.0).run();
    assert!(close(got.output / got.weights.iter().sum::<f32>(), silu(12.0) * 12.0), "{}", got.output);
}

#[test]
fn gate_and_up_lie_as_the_family_publishes_them() {
    let layer = |family: &str, more: &str| Layer::new(family, more).graph;
    let source = |g: &Graph, name: &str| g.params.iter().find(|p| p.name == name).unwrap().source.clone();
    fn steps(s: &WeightSource, tensor: &str) -> Vec<WeightStep> {
        match s {
            WeightSource::Tensor { names, steps } | WeightSource::PerExpert { names, steps, .. } => {
                if names.iter().any(|n| n.contains(tensor)) { steps.clone() } else { Vec::new() }
            }
            WeightSource::FirstOf(list) | WeightSource::LargestInputScale(list) => {
                list.iter().map(|s| steps(s, tensor)).find(|s| !s.is_empty()).unwrap_or_default()
            }
        }
    }
    let oss = layer("gpt_oss", "");
    for (name, start) in [("experts.gate", 0), ("experts.up", 1)] {
        let alternating = WeightStep::Slice { axis: 2, start, step: 2, len: 4, of: Some(8) };
        assert_eq!(steps(&source(&oss, name), "gate_up_proj"), [alternating, WeightStep::Transpose], "{name}");
    }
    for (name, start) in [("experts.gate_bias", 0), ("experts.up_bias", 1)] {
        let alternating = WeightStep::Slice { axis: 1, start, step: 2, len: 4, of: Some(8) };
        assert_eq!(steps(&source(&oss, name), "gate_up_proj_bias"), [alternating], "{name}");
    }
    // Halves, and the first matrix is the gate, the third the branch beside it.
    let llama = layer("llama4_text", "");
    let half = |start| WeightStep::Slice { axis: 2, start, step: 1, len: 4, of: Some(8) };
    assert_eq!(steps(&source(&llama, "experts.gate"), "gate_up_proj"), [half(0), WeightStep::Transpose]);
    assert_eq!(steps(&source(&llama, "experts.up"), "gate_up_proj"), [half(4), WeightStep::Transpose]);
    let mixtral = layer("mixtral", "");
    for (name, tensor) in [("experts.gate", ".w1."), ("experts.up", ".w3."), ("experts.down", ".w2.")] {
        assert!(format!("{:?}", source(&mixtral, name)).contains(tensor), "{name}");
    }
}

#[test]
fn intermediate_size_is_the_experts_width_in_some_families_only() {
    let ffn = |family: &str, more: &str| Layer::new(family, more).params_shape("experts.up")[1];
    assert_eq!((ffn("mixtral", ""), ffn("llama4_text", ""), ffn("minimax_m2", "")), (4, 4, 4));
    for family in ["qwen3_moe", "deepseek_v3", "glm4_moe"] {
        assert_eq!(ffn(family, r#""intermediate_size": 99"#), 4, "{family}");
    }
}

impl Layer {
    fn params_shape(&self, name: &str) -> Vec<usize> {
        self.params[self.index(name)].shape.clone()
    }
}

#[test]
fn groups_are_scored_by_their_largest_or_by_their_two_largest() {
    // Two groups of four: one has the largest score, the other the larger sum of two.
    let logits = [4.5, -5.0, -5.0, -5.0, 4.0, 4.0, 3.9, -5.0];
    let groups = r#""n_group": 2, "topk_group": 1, "topk_method": "group_limited_greedy""#;
    let chosen = |family: &str, more: &str| sorted(&Layer::new(family, more).logits(&logits).run().ids);
    assert_eq!(chosen("deepseek_v2", groups)[0], 0);
    let groups = r#""n_group": 2, "topk_group": 1"#;
    assert_eq!(chosen("deepseek_v3", groups), [4, 5, 6]);
    assert_eq!(chosen("mistral4", groups), [4, 5, 6]);
}

#[test]
fn groups_that_are_left_out_cannot_win_with_a_zero() {
    // Every biased score is negative: a zero in place of a masked one would be the largest.
    let groups = r#""n_group": 2, "topk_group": 1"#;
    let layer = Layer::new("deepseek_v3", groups).logits(&LOGITS).set("router.selection_bias", |_| -5.0);
    assert_eq!(sorted(&layer.run().ids), [0, 1, 2]);
}

#[test]
fn deepseek_v2_normalises_or_scales_and_v3_does_both() {
    let more = r#""norm_topk_prob": true, "routed_scaling_factor": 16.0, "topk_method": "greedy""#;
    let sum = |family: &str, more: &str| Layer::new(family, more).logits(&LOGITS).run().weights.iter().sum::<f32>();
    let soft: f32 = softmax(&LOGITS)[..3].iter().sum();
    assert!(close(sum("deepseek_v2", more), 1.0));
    assert!(close(sum("deepseek_v2", &more.replace("true", "false")), 16.0 * soft));
    let more = r#""norm_topk_prob": true, "routed_scaling_factor": 2.5"#;
    assert!(close(sum("deepseek_v3", more), 2.5));
    let score: f32 = LOGITS[..3].iter().map(|l| sigmoid(*l)).sum();
    assert!(close(sum("deepseek_v3", &more.replace("true", "false")), 2.5 * score));
}

#[test]
fn the_routed_factor_leaves_the_shared_expert_alone() {
    for family in ["deepseek_v3", "glm4_moe", "nemotron_h"] {
        let out = |scale: f32| {
            let more = format!(r#""routed_scaling_factor": {scale}, "norm_topk_prob": true"#);
            Layer::new(family, &more).logits(&LOGITS).experts(1.0, 2.0).shared(0.5, 3.0).run().output
        };
        let (routed, shared) = match family {
            "nemotron_h" => (4.0, 9.0),
            _ => (silu(1.0) * 2.0, silu(0.5) * 3.0),
        };
        assert!(close(out(1.0), routed + shared) && close(out(2.5), 2.5 * routed + shared), "{family}: {}", out(2.5));
    }
}

#[test]
fn only_qwen_gates_its_shared_expert() {
    for family in ["qwen2_moe", "qwen3_5_moe_text"] {
        let layer = Layer::new(family, "").logits(&LOGITS).shared(0.5, 3.0).first("shared_gate.weight", |_| 0.3);
        assert!(close(layer.run().output, sigmoid(0.3) * silu(0.5) * 3.0), "{family}");
    }
    for family in ["deepseek_v3", "glm4_moe", "mistral4"] {
        let layer = Layer::new(family, "").logits(&LOGITS).shared(0.5, 3.0);
        assert!(!layer.has("shared_gate.weight") && close(layer.run().output, silu(0.5) * 3.0), "{family}");
    }
}

#[test]
fn several_shared_experts_are_one_wide_one() {
    let layer = Layer::new("deepseek_v3", r#""n_shared_experts": 3"#);
    assert_eq!((layer.params_shape("shared.up"), layer.params_shape("shared.down")), (vec![12, 8], vec![8, 12]));
}

#[test]
fn sparsemixer_makes_two_choices_with_a_softmax_each() {
    // 2.97 is within 2 % of 3.0; after the first choice nothing is near 2.97.
    let logits = [3.0, 2.97, 1.0, 0.5, 0.0, -1.0, -2.0, -3.0];
    let got = Layer::new("phimoe", "").logits(&logits).run();
    assert_eq!(got.ids, [0, 1]);
    assert!(close(got.weights[0], 1.0 / (1.0 + (-0.03f32).exp())) && close(got.weights[1], 1.0), "{:?}", got.weights);
    // The noise of the config is the limit, at inference too.
    let wide = Layer::new("phimoe", r#""router_jitter_noise": 0.4"#).logits(&logits).run();
    let first = 1.0 / (1.0 + (-0.03f32).exp() + (-2.0f32).exp());
    assert!(close(wide.weights[0], first), "{:?}", wide.weights);
}

#[test]
fn zero_experts_return_their_input_with_the_factor() {
    // Classes 8 and 9 have no weights. The model counts its layers under another name.
    let mut logits = LOGITS.to_vec();
    logits.extend([3.0, -9.0]);
    let more = r#""routed_scaling_factor": 6.0"#;
    let layer = Layer::new("longcat_flash", more).logits(&logits).experts(1.0, 2.0);
    assert_eq!((layer.params_shape("router.weight"), layer.params_shape("experts.up")), (vec![10, 8], vec![8, 4, 8]));
    let (got, p) = (layer.run(), softmax(&logits));
    assert_eq!(got.ids, [8, 0, 1]);
    let want = 6.0 * (p[8] + (p[0] + p[1]) * silu(1.0) * 2.0);
    assert!(close(got.output, want), "{} {want}", got.output);
    assert_eq!(config("longcat_flash", r#""num_hidden_layers": null"#).moe_layers(), [0, 1, 2, 3]);
}

#[test]
fn nemotron_squares_a_relu_and_has_no_gate() {
    for (u, want) in [(3.0, 9.0), (-3.0, 0.0)] {
        let layer = Layer::new("nemotron_h", r#""norm_topk_prob": true"#).logits(&LOGITS).experts(0.0, u);
        assert!(!layer.has("experts.gate") && close(layer.run().output, want));
    }
}

#[test]
fn nemotron_routes_on_the_full_width_and_works_in_a_latent_one() {
    let layer = Layer::new("nemotron_h", r#""moe_latent_size": 6, "n_shared_experts": 1"#);
    let shape = |name: &str| layer.params_shape(name);
    assert_eq!((shape("router.weight"), shape("experts.up")), (vec![8, 8], vec![8, 4, 6]));
    assert_eq!((shape("latent.down"), shape("latent.up"), shape("shared.up")), (vec![6, 8], vec![8, 6], vec![4, 8]));
}

#[test]
fn deepseek_v4_looks_experts_up_in_its_hash_layers() {
    let layer = Layer::of(&config("deepseek_v4", ""), 3).logits(&LOGITS);
    let table = layer.index("router.table");
    let mut layer = layer;
    // The token's id is 4.
    let ids = (0..5 * 3).map(|i| if i >= 12 { [7, 2, 4][i - 12] } else { 0 }).collect();
    layer.params[table] = Tensor::int(DType::I32, &[5, 3], ids);
    let got = layer.run();
    assert_eq!(got.ids, [7, 2, 4]);
    let score = |e: usize| LOGITS[e].exp().ln_1p().sqrt();
    assert!(close(got.weights[0] / got.weights[1], score(7) / score(2)), "{:?}", got.weights);
}

/// Kimi K3, small.
fn kimi_k3(more: &str) -> Layer {
    let text = format!(
        r#"{{ "model_type": "kimi_k3", "text_config": {{ "model_type": "kimi_linear", "hidden_size": 8, "num_experts": 8,
            "num_experts_per_token": 3, "moe_intermediate_size": 4, "routed_expert_hidden_size": 4, "num_shared_experts": 2,
            "num_hidden_layers": 4, "first_k_dense_replace": 1, "moe_layer_freq": 1, "hidden_act": "situ",
            "activation_situ_beta": 4.0, "activation_situ_linear_beta": 25.0, "latent_moe_use_norm": true,
            "moe_router_activation_func": "sigmoid", "moe_renormalize": true, "num_expert_group": 1, "topk_group": 1,
            "routed_scaling_factor": 1.0, "rms_norm_eps": 1e-5 {more} }} }}"#
    );
    Layer::of(&ModelConfig::from_text("kimi_k3", text).unwrap(), 1)
        .logits(&LOGITS)
        .first("latent.down", |row| if row == 0 { 1.0 } else { 0.0 })
        .first("latent.up", |row| if row == 0 { 1.0 } else { 0.0 })
        .experts(3.0, -9.0)
}

#[test]
fn situ_saturates_both_branches() {
    let got = kimi_k3(r#", "latent_moe_use_norm": false"#).run();
    let (g, u) = (4.0 * (3.0f32 / 4.0).tanh() * sigmoid(3.0), 25.0 * (-9.0f32 / 25.0).tanh());
    assert!(close(got.output, g * u), "{} {}", got.output, g * u);
}

#[test]
fn the_norm_of_kimi_k3_stands_after_the_weighted_sum() {
    // Weights that do not add up to 1: a norm of each expert's output would leave their sum.
    let layer = kimi_k3(r#", "moe_renormalize": false"#).set("latent.norm.weight", |_| 1.0);
    // The same value in all columns: its norm is 1, whatever its size.
    assert!(close(layer.run().output, -1.0), "{}", layer.run().output);
    assert_eq!(layer.params_shape("shared.up"), [8, 8]);
}

#[test]
fn routers_that_are_published_in_f32_are_not_rounded() {
    let router = |family: &str| {
        let graph = config(family, r#""dtype": "bfloat16""#).layer(None, &LayerOptions::default()).unwrap().graph;
        let ty = |name: &str| graph.nodes.iter().find(|n| n.name == name).map(|n| n.ty.dtype);
        (ty("router.weight").unwrap(), ty("router.logits").unwrap())
    };
    for family in ["minimax_m2", "ernie4_5_moe", "hunyuan_v1_moe", "longcat_flash"] {
        assert_eq!(router(family), (DType::F32, DType::F32), "{family}");
    }
    for family in ["deepseek_v3", "kimi_k2", "glm4_moe", "mimo_v2_flash"] {
        assert_eq!(router(family), (DType::BF16, DType::F32), "{family}");
    }
    // These models round the logits, and choose other experts on near ties.
    for family in ["mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "jamba", "gpt_oss"] {
        assert_eq!(router(family), (DType::BF16, DType::BF16), "{family}");
    }
    // A bias that chooses differs by a few units of bf16: it stays f32.
    let graph = config("deepseek_v3", "").layer(None, &LayerOptions::default()).unwrap().graph;
    assert_eq!(graph.params.iter().find(|p| p.name == "router.selection_bias").unwrap().ty.dtype, DType::F32);
}

#[test]
fn sums_of_scores_that_vanish_are_kept_from_nought() {
    // Every sigmoid underflows: without the 1e-20 the weights were 0 / 0.
    for family in ["deepseek_v3", "kimi_k2", "glm4_moe", "lfm2_moe"] {
        let more = r#""norm_topk_prob": true"#;
        let got = Layer::new(family, more).logits(&[-200.0; 8]).run();
        assert!(got.weights.iter().all(|w| *w == 0.0), "{family}: {:?}", got.weights);
    }
    // ERNIE's least sum is part of the result.
    let soft = softmax(&LOGITS);
    let got = Layer::new("ernie4_5_moe", r#""moe_norm_min": 5.0"#).logits(&LOGITS).run();
    assert!(close(got.weights[0], soft[0] / 5.0), "{:?}", got.weights);
    let got = Layer::new("lfm2_moe", r#""norm_topk_prob": true"#).logits(&[-13.0; 8]).run();
    let s = sigmoid(-13.0);
    assert!(close(got.weights[0], s / (3.0 * s + 1e-6)) && got.weights[0] < 0.3, "{:?}", got.weights);
}

#[test]
fn lists_stand_where_one_expects_numbers() {
    let layer = Layer::new("hunyuan_v1_moe", r#""moe_topk": [2, 3, 4, 5], "moe_intermediate_size": [4, 4, 4, 6]"#);
    assert_eq!(layer.logits(&LOGITS).run().ids.len(), 2);
    let last =
        Layer::of(&config("hunyuan_v1_moe", r#""moe_topk": [2, 3, 4, 5], "moe_intermediate_size": [4, 4, 4, 6]"#), 3);
    assert_eq!((last.params_shape("experts.up")[1], last.logits(&LOGITS).run().ids.len()), (6, 5));
    let freq = r#""moe_layer_freq": [0, 1, 0, 1]"#;
    assert_eq!(config("mimo_v2_flash", freq).moe_layers(), [1, 3]);
    assert_eq!(config("deepseek_v3", freq).moe_layers(), [1, 3]);
}

#[test]
fn nought_and_null_mean_absent() {
    assert!(!Layer::new("qwen3_moe", r#""shared_expert_intermediate_size": 0"#).has("shared.up"));
    assert!(!Layer::new("deepseek_v3", r#""n_shared_experts": null"#).has("shared.up"));
    assert!(!Layer::new("minimax", r#""shared_intermediate_size": 0"#).has("shared.up"));
    let dense = r#"{ "model_type": "granitemoehybrid", "hidden_size": 8, "num_hidden_layers": 4, "num_local_experts": 0,
        "num_experts_per_tok": 0, "intermediate_size": 4, "shared_intermediate_size": 4 }"#;
    let dense = ModelConfig::from_text("dense", dense.to_string()).unwrap();
    let why = dense.layer(None, &LayerOptions::default()).unwrap_err();
    assert_eq!(why[0].code, "no-moe-layers", "{why:?}");
    let more = r#""routed_scaling_factor": null, "norm_topk_prob": true"#;
    let sum: f32 = Layer::new("mimo_v2_flash", more).logits(&LOGITS).run().weights.iter().sum();
    assert!(close(sum, 1.0), "{sum}");
}

#[test]
fn every_key_that_says_which_layers_have_experts() {
    let ernie =
        r#""num_hidden_layers": 8, "moe_layer_start_index": 2, "moe_layer_end_index": END, "moe_layer_interval": 2"#;
    let types = r#""mlp_layer_types": ["dense", "dense", "sparse", "dense"]"#;
    for (family, more, want) in [
        ("deepseek_v3", r#""first_k_dense_replace": 2"#, vec![2, 3]),
        ("deepseek_v3", r#""first_k_dense_replace": 1, "moe_layer_freq": 2"#, vec![2]),
        // Where both are there the list decides.
        ("deepseek_v3", &format!(r#""first_k_dense_replace": 1, {types}"#), vec![2]),
        ("glm4_moe", types, vec![2]),
        ("mimo_v2_flash", types, vec![2]),
        ("qwen3_moe", r#""decoder_sparse_step": 2, "mlp_only_layers": [3]"#, vec![1]),
        ("llama4_text", r#""interleave_moe_layer_step": 2"#, vec![1, 3]),
        ("llama4_text", r#""interleave_moe_layer_step": 2, "moe_layers": [0, 3]"#, vec![0, 3]),
        ("jamba", r#""expert_layer_period": 2, "expert_layer_offset": 1"#, vec![1, 3]),
        ("ernie4_5_moe", &ernie.replace("END", "-1"), vec![3, 5, 7]),
        ("ernie4_5_moe", &ernie.replace("END", "5"), vec![3, 5]),
        ("step3p5", r#""moe_layers_enum": "1,3""#, vec![1, 3]),
        ("nemotron_h", r#""layers_block_type": null, "hybrid_override_pattern": "ME*E""#, vec![1, 3]),
        ("mixtral", "", vec![0, 1, 2, 3]),
    ] {
        assert_eq!(config(family, more).moe_layers(), want, "{family}: {more}");
    }
}

#[test]
fn decoders_of_multimodal_models_are_found_within() {
    let text = r#"{ "model_type": "kimi_k25", "hidden_size": 99, "text_config": { "model_type": "kimi_k2", "hidden_size": 8,
        "num_hidden_layers": 4, "n_routed_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 4,
        "n_shared_experts": 1, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1, "torch_dtype": "float16" } }"#;
    let model = ModelConfig::from_text("nested", text.to_string()).unwrap();
    let layer = Layer::of(&model, 1);
    assert_eq!((layer.params_shape("experts.up"), model.dtype()), (vec![8, 4, 8], DType::F16));
    assert!(format!("{:?}", layer.graph.params[0].source).contains("language_model.model.layers.1."));
}

#[test]
fn the_document_names_tests_that_exist() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let text = std::fs::read_to_string(root.join("docs/semantic-traps.md")).unwrap();
    let rows: Vec<&str> = text.lines().filter(|l| l.starts_with("| ") && !l.starts_with("| trap")).collect();
    assert!(rows.len() > 50, "the tables have lost rows");
    let mut here = Vec::new();
    for row in rows {
        let tests = row.trim_matches('|').rsplit(" | ").next().unwrap();
        let named: Vec<&str> = tests.split('`').skip(1).step_by(2).collect();
        assert!(!named.is_empty() || tests.contains("recorded"), "{row}");
        for name in named {
            let (file, function) = name.split_once("::").unwrap_or(("ir/frontend/tests/semantic_traps.rs", name));
            let source = std::fs::read_to_string(root.join(file)).unwrap_or_else(|e| panic!("{file}: {e}"));
            let defined = ["fn ", "def "].iter().any(|word| source.contains(&format!("{word}{function}(")));
            assert!(defined, "{file} has no `{function}`");
            here.extend(name.split_once("::").is_none().then_some(function));
        }
    }
    // And all tests of this file are named there.
    let own = include_str!("semantic_traps.rs");
    for (_, rest) in own.match_indices("#[test]\nfn ").map(|(i, m)| (i, &own[i + m.len()..])) {
        let function = rest.split('(').next().unwrap();
        assert!(
            here.contains(&function) || function.starts_with("the_document"),
            "the document does not name `{function}`"
        );
    }
}

#[test]
fn biases_of_shared_experts_are_added() {
    for (family, flag, keys) in [
        ("aria_text", "mlp_bias", ""),
        ("ernie4_5_moe", "use_bias", r#", "moe_num_shared_experts": 1"#),
        ("deepseek_v2", "mlp_bias", ""),
        ("deepseek_v4", "mlp_bias", ""),
        ("hy_v3", "mlp_bias", ""),
        ("nemotron_h", "mlp_bias", r#", "n_shared_experts": 1"#),
    ] {
        let layer = |on: bool| Layer::new(family, &format!(r#""{flag}": {on} {keys}"#));
        assert!(!layer(false).has("shared.down_bias"), "{family}");
        assert_eq!(layer(true).set("shared.down_bias", |_| 3.0).run().output, 3.0, "{family}");
    }
    // Nemotron's latent space has them, too; its experts do not.
    let nemotron = Layer::new("nemotron_h", r#""moe_latent_size": 2, "mlp_bias": true"#);
    assert!(!nemotron.has("experts.down_bias"));
    assert_eq!(nemotron.set("latent.up_bias", |_| 5.0).run().output, 5.0);
}
