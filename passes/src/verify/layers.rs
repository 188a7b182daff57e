//! Small MoE layers and random tensors for them.
#![allow(clippy::unwrap_used, reason = "these layers are well formed")]

use moec_ir::expr::Real;
use moec_ir::graph::{Graph, GraphBuilder, GroupScore, Op, RenormRule, RowMask, Score};
use moec_ir::tensor::Tensor;
use moec_ir::weights::WeightSource;
use moec_ir::{Activation, DType, Dim, TensorType};

/// Sizes and features of a layer.
#[derive(Clone, Debug)]
pub struct Layer {
    /// E.
    pub experts: u64,
    /// K.
    pub top_k: u32,
    /// H.
    pub hidden: u64,
    /// Columns of the act.
    pub ffn: u64,
    /// Type of inputs, weights and values.
    pub dtype: DType,
    /// What the experts compute between their products.
    pub act: Activation,
    /// Whether experts have biases.
    pub bias: bool,
    /// Sigmoid scores and a bias of the selection; groups, and how many of them are kept.
    pub selection: Option<(u32, u32)>,
    /// Columns of the shared expert's act.
    pub shared: Option<u64>,
    /// Whether it has a gate.
    pub shared_gate: bool,
    /// The routed scaling factor.
    pub scale: f32,
}

/// A layer without features.
pub fn plain(dtype: DType) -> Layer {
    Layer {
        experts: 6,
        top_k: 2,
        hidden: 24,
        ffn: 20,
        dtype,
        act: Activation::SwiGlu,
        bias: false,
        selection: None,
        shared: None,
        shared_gate: false,
        scale: 1.0,
    }
}

/// As DeepSeek-V3: sigmoid scores, selection bias, groups, scaling, shared expert.
pub fn deepseek(dtype: DType) -> Layer {
    Layer { experts: 8, top_k: 3, selection: Some((4, 2)), shared: Some(28), scale: 2.5, ..plain(dtype) }
}

impl Layer {
    /// The layer, unfused.
    pub fn graph(&self) -> Graph {
        let mut b = GraphBuilder::new("layer");
        let (e, h, f, k) = (self.experts, self.hidden, self.ffn, u64::from(self.top_k));
        let d = self.dtype;
        let w = |shape: &[u64]| TensorType::fixed(d, shape);
        let src = || WeightSource::tensor("unused");
        let x = b.input("input", TensorType::new(d, [Dim::TOKENS, Dim::Fixed(h)]));
        let router = b.param("router.weight", w(&[e, h]), src());
        let (ids, weights) = if let Some((n_groups, keep)) = self.selection {
            let bias = b.param("router.selection_bias", TensorType::fixed(DType::F32, &[e]), src());
            let logits = b.node_as("logits", Op::Linear, &[x, router], Some(DType::F32)).unwrap();
            let scores = b.node("scores", Op::Score(Score::Sigmoid), &[logits]).unwrap();
            let biased = b.node("biased", Op::Add, &[scores, bias]).unwrap();
            let limit = Op::GroupLimit { n_groups, keep, score: GroupScore::Top2Sum, fill: RowMask::NegInf };
            let limited = b.node("limited", limit, &[biased]).unwrap();
            let ids = b.node("ids", Op::TopK { k: self.top_k }, &[limited]).unwrap();
            let chosen = b.node("chosen", Op::GatherScores, &[scores, ids]).unwrap();
            let normed = b.node("normed", Op::Renormalise(RenormRule::Sum { eps: Real(1e-20) }), &[chosen]).unwrap();
            (ids, b.node("weights", Op::Scale(Real(self.scale)), &[normed]).unwrap())
        } else {
            let logits = b.node("logits", Op::Linear, &[x, router]).unwrap();
            let logits = b.node_as("logits32", Op::Cast, &[logits], Some(DType::F32)).unwrap();
            let scores = b.node("scores", Op::Score(Score::Softmax), &[logits]).unwrap();
            let ids = b.node("ids", Op::TopK { k: self.top_k }, &[scores]).unwrap();
            let chosen = b.node("chosen", Op::GatherScores, &[scores, ids]).unwrap();
            (ids, b.node("weights", Op::Renormalise(RenormRule::Sum { eps: Real(0.0) }), &[chosen]).unwrap())
        };
        let n_experts = e as u32;
        let rows = b.node("permuted", Op::Permute { n_experts }, &[x, ids]).unwrap();
        let linear = |b: &mut GraphBuilder, name: &str, rows, n: u64, cols: u64| {
            let w = b.param(&format!("experts.{name}"), TensorType::fixed(d, &[e, n, cols]), src());
            let mut operands = vec![rows, ids, w];
            if self.bias {
                operands.push(b.param(&format!("experts.{name}.bias"), TensorType::fixed(d, &[e, n]), src()));
            }
            b.node(name, Op::GroupedLinear, &operands).unwrap()
        };
        let hidden = if self.act.is_gated() {
            let gate = linear(&mut b, "gate", rows, f, h);
            let up = linear(&mut b, "up", rows, f, h);
            b.node("act", Op::Activate(self.act.clone()), &[gate, up]).unwrap()
        } else {
            let up = linear(&mut b, "up", rows, f, h);
            b.node("act", Op::Activate(self.act.clone()), &[up]).unwrap()
        };
        let down = linear(&mut b, "down", hidden, h, f);
        let slots = b.node("unpermuted", Op::Unpermute { n_experts }, &[down, ids]).unwrap();
        let mut out = if let Some(s) = self.shared {
            let sum = b.node_as("routed", Op::WeightedSum, &[slots, weights], Some(DType::F32)).unwrap();
            let wu = b.param("shared.up", w(&[s, h]), src());
            let wd = b.param("shared.down", w(&[h, s]), src());
            let mut operands = vec![b.node("shared_up_proj", Op::Linear, &[x, wu]).unwrap()];
            if self.act.is_gated() {
                let wg = b.param("shared.gate", w(&[s, h]), src());
                operands.insert(0, b.node("shared_gate_proj", Op::Linear, &[x, wg]).unwrap());
            }
            let a = b.node("shared_act", Op::Activate(self.act.clone()), &operands).unwrap();
            let mut y = b.node("shared", Op::Linear, &[a, wd]).unwrap();
            if self.shared_gate {
                let wsg = b.param("shared_gate.weight", w(&[1, h]), src());
                let logit = b.node("shared_gate_logit", Op::Linear, &[x, wsg]).unwrap();
                let gate = b.node("shared_gate", Op::Score(Score::Sigmoid), &[logit]).unwrap();
                y = b.node("gated_shared", Op::Mul, &[y, gate]).unwrap();
            }
            b.node_as("output", Op::Add, &[sum, y], Some(d)).unwrap()
        } else {
            b.node("output", Op::WeightedSum, &[slots, weights]).unwrap()
        };
        if self.shared.is_none() && self.scale != 1.0 && self.selection.is_none() {
            out = b.node("scaled", Op::Scale(Real(self.scale)), &[out]).unwrap();
        }
        b.output("output", out);
        b.output("topk_ids", ids);
        b.output("topk_weights", weights);
        let _ = k;
        b.finish()
    }
}

/// Deterministic values.
pub struct Random(u64);

impl Random {
    /// From a seed.
    pub fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    /// A number in [-1, 1).
    pub fn number(&mut self) -> f32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    /// A tensor of such numbers; of integers from -2 to 9, among which are ids that no expert has.
    pub fn tensor(&mut self, ty: &TensorType, n_tokens: u64) -> Tensor {
        let shape: Vec<usize> = ty.shape.iter().map(|d| d.at(n_tokens) as usize).collect();
        let numbers = (0..shape.iter().product()).map(|_| self.number());
        if ty.dtype.is_float() {
            Tensor::float(ty.dtype, &shape, numbers.collect())
        } else {
            Tensor::int(ty.dtype, &shape, numbers.map(|x| (x * 6.0) as i64 + 4).collect())
        }
    }
}

/// Random inputs and parameters of a graph.
pub fn tensors(graph: &Graph, n_tokens: u64, seed: u64) -> (Vec<Tensor>, Vec<Tensor>) {
    let mut r = Random::new(seed);
    let inputs = graph.inputs.iter().map(|i| r.tensor(&i.ty, n_tokens)).collect();
    let params = graph.params.iter().map(|p| r.tensor(&p.ty, n_tokens)).collect();
    (inputs, params)
}
