//! Routers that are not scores and a top-k: sparsemixer, hash routing, zero-compute experts.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use moec_ir::expr::{Binary, Expr, ExprBuilder, Unary};
use moec_ir::graph::{self, Graph, GraphBuilder, Op, Reduce, Score, ValueId};
use moec_ir::target::Target;
use moec_ir::tensor::Tensor;
use moec_ir::weights::WeightSource;
use moec_ir::{DType, Dim, TensorType, tile};
use moec_passes::verify::layers::Random;
use moec_passes::{CompileOptions, compile};

const E: u64 = 6;
const H: u64 = 8;

fn source() -> WeightSource {
    WeightSource::tensor("unused")
}

/// Experts of one matrix each, and the sum of their results.
fn experts(b: &mut GraphBuilder, x: ValueId, ids: ValueId, weights: ValueId) -> ValueId {
    let n_experts = E as u32;
    let w = b.param("experts.down", TensorType::fixed(DType::F32, &[E, H, H]), source());
    let rows = b.node("rows", Op::Permute { n_experts }, &[x, ids]).unwrap();
    let y = b.node("y", Op::GroupedLinear, &[rows, ids, w]).unwrap();
    let slots = b.node("slots", Op::Unpermute { n_experts }, &[y, ids]).unwrap();
    b.node("routed", Op::WeightedSum, &[slots, weights]).unwrap()
}

fn input(b: &mut GraphBuilder) -> ValueId {
    b.input("input", TensorType::new(DType::F32, [Dim::TOKENS, Dim::Fixed(H)]))
}

fn logits(b: &mut GraphBuilder, x: ValueId, n: u64) -> ValueId {
    let router = b.param("router.weight", TensorType::fixed(DType::F32, &[n, H]), source());
    b.node("logits", Op::Linear, &[x, router]).unwrap()
}

/// `select((a1 - a0) / max(|a2|, a1) - 2·eps, -inf, a0)`: drops what lies too far below the maximum a1.
fn sparse_mask(eps: f32) -> Expr {
    let mut b = ExprBuilder::new();
    let (masked, max, logit) = (b.arg(0), b.arg(1), b.arg(2));
    let abs = b.unary(Unary::Abs, logit);
    let scale = b.binary(Binary::Max, abs, max);
    let below = b.binary(Binary::Sub, max, logit);
    let relative = b.binary(Binary::Div, below, scale);
    let limit = b.constant(2.0 * eps);
    let beyond = b.binary(Binary::Sub, relative, limit);
    let none = b.constant(f32::NEG_INFINITY);
    let kept = b.select(beyond, none, masked);
    b.finish(kept)
}

fn sparsemixer() -> Graph {
    let mut b = GraphBuilder::new("sparsemixer");
    let x = input(&mut b);
    let l = logits(&mut b, x, E);
    let pick = |b: &mut GraphBuilder, from: ValueId| {
        let max = b.node("max", Op::Reduce(Reduce::Max), &[from]).unwrap();
        let id = b.node("id", Op::TopK { k: 1 }, &[from]).unwrap();
        let kept = b.node("kept", Op::Map(sparse_mask(0.1)), &[from, max, l]).unwrap();
        let scores = b.node("scores", Op::Score(Score::Softmax), &[kept]).unwrap();
        (id, b.node("weight", Op::GatherScores, &[scores, id]).unwrap())
    };
    let (i1, w1) = pick(&mut b, l);
    let rest = b.node("rest", Op::MaskChosen, &[l, i1]).unwrap();
    let (i2, w2) = pick(&mut b, rest);
    let ids = b.node("ids", Op::JoinColumns, &[i1, i2]).unwrap();
    let weights = b.node("weights", Op::JoinColumns, &[w1, w2]).unwrap();
    let out = experts(&mut b, x, ids, weights);
    b.output("output", out);
    b.output("topk_ids", ids);
    b.output("topk_weights", weights);
    b.finish()
}

fn hashed() -> Graph {
    let mut b = GraphBuilder::new("hashed");
    let x = input(&mut b);
    let tokens = b.input("input_ids", TensorType::new(DType::I64, [Dim::TOKENS]));
    let table = b.param("table", TensorType::fixed(DType::I32, &[5, 2]), source());
    let l = logits(&mut b, x, E);
    let scores = b.node("scores", Op::Score(Score::SqrtSoftplus), &[l]).unwrap();
    let ids = b.node("ids", Op::Lookup, &[table, tokens]).unwrap();
    let weights = b.node("weights", Op::GatherScores, &[scores, ids]).unwrap();
    let out = experts(&mut b, x, ids, weights);
    b.output("output", out);
    b.output("topk_ids", ids);
    b.output("topk_weights", weights);
    b.finish()
}

/// Router over E + 3 experts, of which the last three return their input.
fn zero_experts() -> Graph {
    let mut b = GraphBuilder::new("zero experts");
    let x = input(&mut b);
    let l = logits(&mut b, x, E + 3);
    let scores = b.node("scores", Op::Score(Score::Softmax), &[l]).unwrap();
    let ids = b.node("ids", Op::TopK { k: 3 }, &[scores]).unwrap();
    let weights = b.node("weights", Op::GatherScores, &[scores, ids]).unwrap();
    let routed = experts(&mut b, x, ids, weights);
    let identity = b.node("identity_weight", Op::SumOutside { n_experts: E as u32 }, &[weights, ids]).unwrap();
    let kept = b.node("identity", Op::Mul, &[x, identity]).unwrap();
    let out = b.node("output", Op::Add, &[routed, kept]).unwrap();
    b.output("output", out);
    b.output("topk_ids", ids);
    b.output("topk_weights", weights);
    b.finish()
}

fn tensors(g: &Graph, n_tokens: u64) -> (Vec<Tensor>, Vec<Tensor>) {
    let mut r = Random::new(11);
    let mut make = |ty: &TensorType, limit: i64| {
        if ty.dtype.is_float() {
            return r.tensor(ty, n_tokens);
        }
        let shape: Vec<usize> = ty.shape.iter().map(|d| d.at(n_tokens) as usize).collect();
        let n: usize = shape.iter().product();
        Tensor::int(ty.dtype, &shape, (0..n as i64).map(|i| i * 7 % limit).collect())
    };
    let inputs = g.inputs.iter().map(|i| make(&i.ty, 5)).collect();
    let params = g.params.iter().map(|p| make(&p.ty, E as i64)).collect();
    (inputs, params)
}

#[test]
fn special_routers_run_at_every_level() {
    for g in [sparsemixer(), hashed(), zero_experts()] {
        for n_tokens in [0u64, 1, 9] {
            let (inputs, params) = tensors(&g, n_tokens);
            let want = graph::evaluate(&g, &inputs, &params).unwrap();
            for opt_level in [0, 2] {
                let options = CompileOptions { opt_level, ..CompileOptions::default() };
                for v in compile(&g, Target::by_name("sm_90a").unwrap(), &options).unwrap() {
                    let parsed = tile::parse(&v.program.to_string()).unwrap();
                    assert_eq!(parsed, v.program);
                    let got = tile::evaluate(&parsed, &inputs, &params, n_tokens as usize).unwrap();
                    for (g, w) in got.iter().zip(&want) {
                        assert_eq!(g.ints(), w.ints(), "{}", v.program);
                        assert!(g.worst_error(w) < 1e-6, "{}", v.program);
                    }
                }
            }
        }
    }
}

#[test]
fn sparsemixer_gives_weights_that_are_not_normalised_together() {
    let g = sparsemixer();
    let (inputs, params) = tensors(&g, 9);
    let out = graph::evaluate(&g, &inputs, &params).unwrap();
    let ids = out[1].ints();
    assert!(ids.chunks(2).all(|pair| pair[0] != pair[1]));
    let sums: Vec<f32> = out[2].floats().chunks(2).map(|w| w[0] + w[1]).collect();
    assert!(sums.iter().any(|&s| s > 1.5), "{sums:?}");
}

#[test]
fn zero_compute_experts_return_their_input() {
    let g = zero_experts();
    let (inputs, mut params) = tensors(&g, 9);
    // With experts that give nothing, what is left is the identity's share.
    params[1] = Tensor::float(DType::F32, &params[1].shape.clone(), vec![0.0; params[1].elements()]);
    let out = graph::evaluate(&g, &inputs, &params).unwrap();
    let (ids, w) = (out[1].ints(), out[2].floats());
    for t in 0..9 {
        let share: f32 = (0..3).filter(|j| ids[3 * t + j] >= E as i64).map(|j| w[3 * t + j]).sum();
        for c in 0..H as usize {
            let want = inputs[0].floats()[t * H as usize + c] * share;
            assert!((out[0].floats()[t * H as usize + c] - want).abs() < 1e-6);
        }
    }
}
