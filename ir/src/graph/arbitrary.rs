//! Random layers for property tests, behind the feature `arbitrary`.
//!
//! [`moe_graph`] draws valid MoE layers in the unfused form: every kind of router, group limits, biases, activations,
//! shared experts, latent experts, norms and scales, in odd sizes. [`tensors`] fills a graph's inputs and parameters.

use super::{Graph, GraphBuilder, GroupScore, Op, RenormRule, RowMask, Score, ValueId};
use crate::DType;
use crate::act_quant::{ActQuant, ActScale};
use crate::activation::{Activation, Curve};
use crate::diag::Diagnostic;
use crate::expr::Real;
use crate::quant::Code;
use crate::shape::{Dim, TensorType};
use crate::tensor::Tensor;
use crate::weights::{WeightSource, WeightStep};
use proptest::prelude::*;

/// Everything that distinguishes one random layer from another.
#[derive(Clone, Debug)]
pub struct LayerPlan {
    /// Element type of the layer.
    pub dtype: DType,
    /// Hidden size H.
    pub hidden: u64,
    /// Number of experts E.
    pub n_experts: u64,
    /// Experts per token K.
    pub top_k: u32,
    /// Expert width F.
    pub ffn: u64,
    /// The router.
    pub router: RouterPlan,
    /// The experts' activation.
    pub activation: Activation,
    /// The format that the experts' input is quantised to.
    pub quantised_input: Option<ActQuant>,
    /// Whether the experts have biases.
    pub expert_biases: bool,
    /// Width of the space that the experts work in, when it is not H, and whether a norm follows their sum.
    pub latent: Option<(u64, bool)>,
    /// The shared expert: width, activation, and whether its output is gated.
    pub shared: Option<(u64, Activation, bool)>,
    /// Factor on the routed sum.
    pub routed_scale: f32,
    /// Factor on routed plus shared.
    pub sum_scale: f32,
    /// What comes last: nothing, a bias, or a norm.
    pub last: Last,
}

/// The routers of [`LayerPlan`].
#[derive(Clone, Debug)]
pub struct RouterPlan {
    /// Whether the logits have a bias.
    pub bias: bool,
    /// Whether logits are rounded to the layer's type.
    pub round_logits: bool,
    /// The score.
    pub score: Score,
    /// Whether only the chosen logits are scored.
    pub choose_first: bool,
    /// Whether a bias takes part in the choice only.
    pub selection_bias: bool,
    /// Group limit: groups, kept groups, group score, filling.
    pub groups: Option<(u32, u32, GroupScore, RowMask)>,
    /// Normalisation.
    pub renorm: Option<RenormRule>,
    /// Factor on the weights.
    pub scale: f32,
    /// Whether weights are rounded to the layer's type.
    pub round_weights: bool,
}

/// What comes last in a random layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Last {
    /// Nothing.
    Nothing,
    /// A bias over the hidden columns.
    Bias,
    /// An RMS norm.
    Norm,
}

/// Random valid layers.
pub fn moe_graph() -> impl Strategy<Value = Graph> {
    layer_plan().prop_map(|plan| build(&plan).expect("a random layer should be valid"))
}

/// Random plans of valid layers.
pub fn layer_plan() -> impl Strategy<Value = LayerPlan> {
    let sizes = (1u64..=9, 1u64..=23, 1u64..=13).prop_flat_map(|(experts, hidden, ffn)| {
        (Just(experts), 1u32..=(experts as u32).min(4), Just(hidden), Just(ffn), router(experts))
    });
    let dtype = prop_oneof![Just(DType::F32), Just(DType::BF16), Just(DType::F16)];
    let latent = prop::option::weighted(0.2, (1u64..=9, any::<bool>()));
    let experts = (activation(), any::<bool>(), latent, prop::option::weighted(0.2, quantised()));
    let shared = prop::option::of((1u64..=11, activation(), any::<bool>()));
    let factor = || prop_oneof![3 => Just(1.0f32), 1 => 0.25f32..4.0];
    let last = prop_oneof![4 => Just(Last::Nothing), 1 => Just(Last::Bias), 1 => Just(Last::Norm)];
    (dtype, sizes, experts, shared, factor(), factor(), last).prop_map(
        |(
            dtype,
            (n_experts, top_k, hidden, ffn, router),
            (activation, expert_biases, latent, quantised_input),
            shared,
            a,
            b,
            last,
        )| {
            LayerPlan {
                dtype,
                hidden,
                n_experts,
                top_k,
                ffn,
                router,
                activation,
                quantised_input,
                expert_biases,
                latent,
                shared,
                routed_scale: a,
                sum_scale: b,
                last,
            }
        },
    )
}

/// Random formats of quantised rows, without a global scale.
fn quantised() -> impl Strategy<Value = ActQuant> {
    let code = prop_oneof![Just(Code::E4M3), Just(Code::E2M1)];
    let scale = prop_oneof![Just(ActScale::F32), Just(ActScale::Pow2)];
    (code, scale, 0u32..9).prop_map(|(code, scale, block)| ActQuant { code, scale, block })
}

/// Random activations, gated and ungated.
pub fn activation() -> impl Strategy<Value = Activation> {
    let limit = || (0.5f32..8.0).prop_map(Real);
    prop_oneof![
        4 => Just(Activation::SwiGlu),
        1 => limit().prop_map(|limit| Activation::SwiGluClampBefore { limit }),
        1 => limit().prop_map(|limit| Activation::SwiGluClampAfter { limit }),
        1 => limit().prop_map(|limit| Activation::SwiGluOai { alpha: Real(1.702), limit }),
        1 => Just(Activation::GeGluTanh),
        1 => Just(Activation::GeGluErf),
        1 => Just(Activation::ReGlu),
        1 => (limit(), limit()).prop_map(|(beta, linear_beta)| Activation::SiTu { beta, linear_beta }),
        1 => Just(Activation::Relu2),
        1 => Just(Activation::Silu),
        1 => Just(Activation::GeluTanh),
        1 => Just(Activation::Gelu),
        1 => prop::sample::select(&Curve::ALL[..]).prop_map(Activation::Gated),
        1 => prop::sample::select(&Curve::ALL[..]).prop_map(Activation::Ungated),
    ]
}

fn router(n_experts: u64) -> impl Strategy<Value = RouterPlan> {
    let score = prop_oneof![Just(Score::Softmax), Just(Score::Sigmoid), Just(Score::SqrtSoftplus)];
    let divisors: Vec<u32> = (1..=n_experts as u32).filter(|&d| n_experts.is_multiple_of(u64::from(d))).collect();
    let groups = prop::sample::select(divisors).prop_flat_map(|n| {
        let score = prop_oneof![Just(GroupScore::Max), Just(GroupScore::Top2Sum)];
        let fill = prop_oneof![3 => Just(RowMask::NegInf), 1 => Just(RowMask::Zero)];
        (Just(n), 1..=n, score, fill)
    });
    let renorm = prop_oneof![
        Just(RenormRule::Sum { eps: Real(0.0) }),
        Just(RenormRule::Sum { eps: Real(1e-20) }),
        Just(RenormRule::SumAtLeast { min: Real(1e-12) }),
        Just(RenormRule::PNorm { p: Real(1.0) }),
        Just(RenormRule::PNorm { p: Real(2.0) }),
    ];
    let flags = (any::<bool>(), any::<bool>(), prop::bool::weighted(0.25), any::<bool>(), any::<bool>());
    let scale = prop_oneof![1 => Just(1.0f32), 1 => 0.25f32..4.0];
    (score, flags, prop::option::of(groups), prop::option::of(renorm), scale).prop_map(
        |(score, (bias, round_logits, choose_first, selection_bias, round_weights), groups, renorm, scale)| {
            // A choice among logits has no positive scores, so that a filling of 0 would choose filled experts.
            let groups = groups.filter(|_| !choose_first);
            RouterPlan { bias, round_logits, score, choose_first, selection_bias, groups, renorm, scale, round_weights }
        },
    )
}

/// The graph of a plan, in the unfused form that front ends make.
///
/// # Errors
/// Those of [`super::infer_type`], for a plan that contradicts itself.
pub fn build(plan: &LayerPlan) -> Result<Graph, Diagnostic> {
    let mut l = Layer { b: GraphBuilder::new("random layer"), n_params: 0 };
    let (d, h, f, e) = (plan.dtype, plan.hidden, plan.ffn, plan.n_experts);
    let n_experts = e as u32;
    let x = l.b.input("input", TensorType::new(d, [Dim::TOKENS, Dim::Fixed(h)]));
    let (ids, weights) = l.route(plan, x)?;

    let (mut inner, mut width) = (x, h);
    if let Some((latent, _)) = plan.latent {
        let w = l.param("latent.down", d, &[latent, h]);
        inner = l.op("latent", Op::Linear, &[x, w], d)?;
        width = latent;
    }
    if let Some(q) = plan.quantised_input {
        inner = l.op("experts.quantised", Op::Quantise(q), &[inner], DType::F32)?;
    }
    let rows = l.op("experts.rows", Op::Permute { n_experts }, &[inner, ids], l.b.ty(inner).dtype)?;
    let mut branches = Vec::new();
    for name in if plan.activation.is_gated() { &["gate", "up"][..] } else { &["up"] } {
        let w = l.param(&format!("experts.{name}"), d, &[e, f, width]);
        let mut operands = vec![rows, ids, w];
        if plan.expert_biases {
            operands.push(l.param(&format!("experts.{name}_bias"), d, &[e, f]));
        }
        branches.push(l.op(&format!("experts.{name}_rows"), Op::GroupedLinear, &operands, d)?);
    }
    let act = l.op("experts.act", Op::Activate(plan.activation.clone()), &branches, d)?;
    let w = l.param("experts.down", d, &[e, width, f]);
    let mut operands = vec![act, ids, w];
    if plan.expert_biases {
        operands.push(l.param("experts.down_bias", d, &[e, width]));
    }
    let y = l.op("experts.down_rows", Op::GroupedLinear, &operands, d)?;
    let slots = l.op("experts.slots", Op::Unpermute { n_experts }, &[y, ids], d)?;

    let follows =
        plan.routed_scale != 1.0 || plan.sum_scale != 1.0 || plan.shared.is_some() || plan.last != Last::Nothing;
    let sum_type = if follows && plan.latent.is_none() { DType::F32 } else { d };
    let mut sum = l.op("routed", Op::WeightedSum, &[slots, weights], sum_type)?;
    if let Some((latent, norm)) = plan.latent {
        if norm {
            let w = l.param("latent.norm.weight", d, &[latent]);
            sum = l.op("latent.norm", Op::RmsNorm { eps: Real(1e-5) }, &[sum, w], d)?;
        }
        let w = l.param("latent.up", d, &[h, latent]);
        sum = l.op("routed.full", Op::Linear, &[sum, w], if follows { DType::F32 } else { d })?;
    }
    let output = l.finish(plan, x, sum)?;
    l.b.output("output", output);
    l.b.output("topk_ids", ids);
    l.b.output("topk_weights", weights);
    Ok(l.b.finish())
}

struct Layer {
    b: GraphBuilder,
    n_params: u64,
}

impl Layer {
    fn op(&mut self, name: &str, op: Op, inputs: &[ValueId], dtype: DType) -> Result<ValueId, Diagnostic> {
        self.b.node_as(name, op, inputs, Some(dtype))
    }

    /// A parameter whose source is of one of the forms that published layouts need.
    fn param(&mut self, name: &str, dtype: DType, shape: &[u64]) -> ValueId {
        self.n_params += 1;
        let whole = WeightSource::tensor(format!("layer.{name}.weight"));
        let steps = vec![
            WeightStep::Slice { axis: 0, start: 1, step: 2, len: shape[0], of: (shape[0] > 2).then_some(2 * shape[0]) },
            WeightStep::Reshape { shape: shape.to_vec() },
            WeightStep::Transpose,
        ];
        let source = match self.n_params % 4 {
            0 => WeightSource::Tensor { names: vec![format!("a.{name}"), format!("b \"{name}\"\n")], steps },
            1 if shape.len() == 3 => WeightSource::per_expert(format!("layer.{{e}}.{name}"), shape[0]),
            2 => WeightSource::FirstOf(vec![WeightSource::per_expert(format!("layer.{{e}}.{name}"), shape[0]), whole]),
            3 if shape == [1] => {
                WeightSource::LargestInputScale(vec![whole, WeightSource::per_expert("{e}.weight", 3)])
            }
            _ => whole,
        };
        self.b.param(name, TensorType::fixed(dtype, shape), source)
    }

    fn cast(&mut self, name: &str, v: ValueId, dtype: DType) -> Result<ValueId, Diagnostic> {
        if self.b.ty(v).dtype == dtype { Ok(v) } else { self.op(name, Op::Cast, &[v], dtype) }
    }

    fn route(&mut self, plan: &LayerPlan, x: ValueId) -> Result<(ValueId, ValueId), Diagnostic> {
        let (d, r, e) = (plan.dtype, &plan.router, plan.n_experts);
        let w = self.param("router.weight", d, &[e, plan.hidden]);
        let mut operands = vec![x, w];
        if r.bias {
            operands.push(self.param("router.bias", d, &[e]));
        }
        let logits = self.op("router.logits", Op::Linear, &operands, if r.round_logits { d } else { DType::F32 })?;
        let mut scores = logits;
        if !r.choose_first {
            let wide = self.cast("router.logits_f32", logits, DType::F32)?;
            scores = self.op("router.scores", Op::Score(r.score), &[wide], DType::F32)?;
        }
        let mut choice = scores;
        if r.selection_bias {
            let bias = self.param("router.selection_bias", DType::F32, &[e]);
            choice = self.op("router.biased", Op::Add, &[scores, bias], DType::F32)?;
        }
        let mut gathered = scores;
        if let Some((n_groups, keep, score, fill)) = r.groups {
            choice = self.b.node("router.limited", Op::GroupLimit { n_groups, keep, score, fill }, &[choice])?;
            if fill == RowMask::Zero && !r.selection_bias {
                gathered = choice;
            }
        }
        let ids = self.b.node("topk_ids", Op::TopK { k: plan.top_k }, &[choice])?;
        let mut w = self.b.node("router.chosen", Op::GatherScores, &[gathered, ids])?;
        if r.choose_first {
            w = self.cast("router.chosen_f32", w, DType::F32)?;
            w = self.op("router.chosen_scores", Op::Score(r.score), &[w], DType::F32)?;
        }
        if let Some(rule) = r.renorm {
            w = self.b.node("router.normalised", Op::Renormalise(rule), &[w])?;
        }
        if r.scale != 1.0 {
            w = self.op("router.scaled", Op::Scale(Real(r.scale)), &[w], DType::F32)?;
        }
        if r.round_weights {
            w = self.cast("router.rounded", w, d)?;
        }
        let w = self.cast("topk_weights", w, DType::F32)?;
        Ok((ids, w))
    }

    fn finish(&mut self, plan: &LayerPlan, x: ValueId, routed: ValueId) -> Result<ValueId, Diagnostic> {
        let (d, h) = (plan.dtype, plan.hidden);
        let mut left =
            [plan.routed_scale != 1.0, plan.shared.is_some(), plan.sum_scale != 1.0, plan.last != Last::Nothing]
                .into_iter()
                .filter(|&b| b)
                .count();
        let mut next = || {
            left -= 1;
            if left == 0 { d } else { DType::F32 }
        };
        let mut sum = routed;
        if plan.routed_scale != 1.0 {
            sum = self.op("routed.scaled", Op::Scale(Real(plan.routed_scale)), &[sum], next())?;
        }
        if let Some((width, activation, gated)) = &plan.shared {
            let ty = next();
            let mut branches = Vec::new();
            for name in if activation.is_gated() { &["gate", "up"][..] } else { &["up"] } {
                let w = self.param(&format!("shared.{name}"), d, &[*width, h]);
                branches.push(self.op(&format!("shared.{name}_rows"), Op::Linear, &[x, w], d)?);
            }
            let act = self.op("shared.act", Op::Activate(activation.clone()), &branches, d)?;
            let w = self.param("shared.down", d, &[h, *width]);
            let mut y = self.op("shared", Op::Linear, &[act, w], d)?;
            if *gated {
                let w = self.param("shared_gate.weight", d, &[1, h]);
                let logit = self.op("shared_gate.logit", Op::Linear, &[x, w], d)?;
                let open = self.op("shared_gate", Op::Score(Score::Sigmoid), &[logit], d)?;
                y = self.op("shared.gated", Op::Mul, &[y, open], d)?;
            }
            sum = self.op("sum", Op::Add, &[sum, y], ty)?;
        }
        if plan.sum_scale != 1.0 {
            sum = self.op("sum.scaled", Op::Scale(Real(plan.sum_scale)), &[sum], next())?;
        }
        match plan.last {
            Last::Nothing => {}
            Last::Bias => {
                let bias = self.param("output.bias", d, &[h]);
                sum = self.op("sum.biased", Op::Add, &[sum, bias], next())?;
            }
            Last::Norm => {
                let w = self.param("output.norm.weight", d, &[h]);
                sum = self.op("output.norm", Op::RmsNorm { eps: Real(1e-5) }, &[sum, w], next())?;
            }
        }
        Ok(sum)
    }
}

/// Random inputs and parameters of `graph` for `n_tokens` tokens, in the order of [`super::evaluate`].
///
/// Matrices have a standard deviation that keeps activations near 1; the same seed gives the same values.
pub fn tensors(graph: &Graph, n_tokens: usize, seed: u64) -> (Vec<Tensor>, Vec<Tensor>) {
    let mut state = seed;
    let mut fill = |ty: &TensorType| {
        let shape: Vec<usize> = ty.shape.iter().map(|d| d.at(n_tokens as u64) as usize).collect();
        let n = shape.iter().product();
        let fixed = ty.shape.iter().all(|d| d.fixed().is_some());
        let deviation = match (fixed, shape.len()) {
            (true, 0 | 1) => 0.25,
            (true, _) => 1.5 / (shape[shape.len() - 1].max(1) as f32).sqrt(),
            (false, _) => 1.0,
        };
        Tensor::float(ty.dtype, &shape, (0..n).map(|_| normal(&mut state) * deviation).collect())
    };
    let inputs = graph.inputs.iter().map(|i| fill(&i.ty)).collect();
    let params = graph.params.iter().map(|p| fill(&p.ty)).collect();
    (inputs, params)
}

/// Nearly normal: the sum of four uniform values, of variance 1.
fn normal(state: &mut u64) -> f32 {
    let mut uniform = || {
        // SplitMix64, Steele et al. 2014.
        *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = *state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    };
    (uniform() + uniform() + uniform() + uniform()) * 3f32.sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::{evaluate, parse, print, verify};

    fn without_origins(mut graph: Graph) -> Graph {
        graph.nodes.iter_mut().for_each(|n| n.origin = None);
        graph
    }

    proptest! {
        #[test]
        fn random_layers_are_valid(graph in moe_graph()) {
            prop_assert_eq!(verify(&graph), vec![]);
        }

        #[test]
        fn parsing_what_was_printed_gives_the_same_graph(graph in moe_graph()) {
            let text = print(&graph);
            let back = parse("random.mir", &text).map_err(|d| TestCaseError::fail(d.message))?;
            prop_assert_eq!(without_origins(back), graph);
        }

        #[test]
        fn random_layers_run(graph in moe_graph(), n_tokens in 0usize..5, seed: u64) {
            let (inputs, params) = tensors(&graph, n_tokens, seed);
            let out = evaluate(&graph, &inputs, &params).map_err(|d| TestCaseError::fail(d.message))?;
            prop_assert_eq!(&out[0].shape, &inputs[0].shape);
            prop_assert!(out[0].floats().iter().all(|x| !x.is_nan()));
        }

        #[test]
        fn any_text_is_refused_without_a_panic(text in "graph \"g\"\n(%0 = [a-z_]{3,8} [a-z=0-9(]{0,9}[ -~]{0,20}\n){0,3}") {
            let _ = parse("any.mir", &text).map(|g| verify(&g));
        }

        #[test]
        fn damaged_text_is_refused_without_a_panic(graph in moe_graph(), at: prop::sample::Index, byte in 32u8..127) {
            let mut text = print(&graph).into_bytes();
            let i = at.index(text.len());
            text[i] = byte;
            if let Ok(text) = String::from_utf8(text) {
                let _ = parse("damaged.mir", &text).map(|g| verify(&g));
            }
        }
    }
}
