//! Routers that are more than a score and a top-k: sparsemixer, shared experts as sinks, a network with a state, a class
//! that means no expert.

use crate::assemble::{Assembler, Routing};
use crate::spec::RouterNetwork;
use moec_ir::diag::Diagnostic;
use moec_ir::expr::{Binary, Expr, ExprBuilder, Real, Unary};
use moec_ir::graph::{Op, Reduce, Score, ValueId};
use moec_ir::{Activation, DType, Dim, TensorType};

impl Assembler<'_> {
    /// Phi-3.5's choice of two experts, at inference (`sparsemixer` of its published code).
    ///
    /// The best expert gets its softmax among the scores within `2·jitter` of the best, relative to the larger of the two
    /// magnitudes; so does the best of the others. The weights are not normalised together. Every step is rounded to the
    /// layer's type, the limit too.
    pub(crate) fn sparse_mixer(&mut self, logits: ValueId, jitter: f32) -> Result<Routing, Diagnostic> {
        let limit = self.dtype.round(2.0 * jitter);
        let (first, w1) = self.sparse_pick("router.first", logits, logits, limit)?;
        let rest = self.b.node("router.rest", Op::MaskChosen, &[logits, first])?;
        let (second, w2) = self.sparse_pick("router.second", rest, logits, limit)?;
        let ids = self.b.node("topk_ids", Op::JoinColumns, &[first, second])?;
        let w = self.b.node("router.weights", Op::JoinColumns, &[w1, w2])?;
        let weights = self.cast("topk_weights", w, DType::F32)?;
        Ok(Routing { dispatched: ids, ids, weights, sinks: Vec::new(), state: None })
    }

    /// The best of `from`, and its weight among the scores that are near enough to it.
    fn sparse_pick(
        &mut self,
        name: &str,
        from: ValueId,
        logits: ValueId,
        limit: f32,
    ) -> Result<(ValueId, ValueId), Diagnostic> {
        let d = self.dtype;
        let id = self.b.node(&format!("{name}.id"), Op::TopK { k: 1 }, &[from])?;
        let max = self.op(&format!("{name}.max"), Op::Reduce(Reduce::Max), &[from], d)?;
        let kept = self.op(&format!("{name}.kept"), Op::Map(keep_near(d, limit)), &[from, max, logits], d)?;
        let scores = self.op(&format!("{name}.scores"), Op::Score(Score::Softmax), &[kept], d)?;
        let w = self.b.node(&format!("{name}.weight"), Op::GatherScores, &[scores, id])?;
        Ok((id, w))
    }

    /// Weights of chosen experts and of sinks: `sigmoid(l) / Σ sigmoid(l)` over both, computed from logarithms so that no
    /// sum is 0, times the router's factors.
    pub(crate) fn sink_weights(
        &mut self,
        x: ValueId,
        logits: ValueId,
        ids: ValueId,
        given: Option<ValueId>,
    ) -> Result<Routing, Diagnostic> {
        let spec = self.spec;
        let f32_ = DType::F32;
        let chosen = self.b.node("router.chosen", Op::GatherScores, &[logits, ids])?;
        let chosen = self.where_given("router.chosen_given", chosen, given, f32::NEG_INFINITY)?;
        let mut all = chosen;
        let mut sinks = Vec::new();
        for (i, sink) in spec.sinks.iter().enumerate() {
            let row = self.param(&format!("sinks.{i}.router"), self.dtype, &[1, spec.hidden], &sink.router);
            let logit = self.op(&format!("sinks.{i}.logit"), Op::Linear, &[x, row], f32_)?;
            all = self.op(&format!("router.with_sink_{i}"), Op::JoinColumns, &[all, logit], f32_)?;
            sinks.push(logit);
        }
        let logs = self.op("router.logs", Op::Map(log_sigmoid()), &[all], f32_)?;
        let max = self.op("router.logs_max", Op::Reduce(Reduce::Max), &[logs], f32_)?;
        let shares = self.op("router.shares", Op::Map(exp_minus()), &[logs, max], f32_)?;
        let sum = self.op("router.shares_sum", Op::Reduce(Reduce::Sum), &[shares], f32_)?;
        let factor = spec.router.global_scale.as_ref();
        let factor = factor.map(|source| self.param("router.global_scale", self.dtype, &[1], source));
        let weights = self.sink_weight("router.weights", chosen, (max, sum, factor))?;
        let sinks = sinks
            .into_iter()
            .enumerate()
            .map(|(i, logit)| self.sink_weight(&format!("sinks.{i}.weight"), logit, (max, sum, factor)))
            .collect::<Result<_, _>>()?;
        let weights = self.cast("topk_weights", weights, f32_)?;
        Ok(Routing { dispatched: ids, ids, weights, sinks, state: None })
    }

    /// The weights of some logits, given the largest logarithm and the sum of all shares.
    fn sink_weight(
        &mut self,
        name: &str,
        logits: ValueId,
        (max, sum, factor): (ValueId, ValueId, Option<ValueId>),
    ) -> Result<ValueId, Diagnostic> {
        let r = &self.spec.router;
        let logs = self.op(&format!("{name}.logs"), Op::Map(log_sigmoid()), &[logits], DType::F32)?;
        let shares = self.op(&format!("{name}.shares"), Op::Map(exp_minus()), &[logs, max], DType::F32)?;
        let mut w = self.op(&format!("{name}.normalised"), Op::Map(quotient()), &[shares, sum], DType::F32)?;
        if r.scale != 1.0 {
            w = self.op(&format!("{name}.scaled"), Op::Scale(Real(r.scale)), &[w], DType::F32)?;
        }
        if let Some(factor) = factor {
            w = self.op(&format!("{name}.factored"), Op::Mul, &[w, factor], DType::F32)?;
        }
        self.cast(name, w, self.round(r.weights_round))
    }

    /// The sum of the sinks' outputs, each weighted before its second matrix.
    pub(crate) fn sink_experts(&mut self, x: ValueId, weights: &[ValueId]) -> Result<ValueId, Diagnostic> {
        let (spec, d) = (self.spec, self.dtype);
        let (h, e) = (spec.hidden, &spec.experts);
        let mut sum: Option<ValueId> = None;
        for (i, (sink, &w)) in spec.sinks.iter().zip(weights).enumerate() {
            let name = |part: &str| format!("sinks.{i}.{part}");
            let gate = self.param(&name("gate"), d, &[e.ffn, h], &sink.gate);
            let up = self.param(&name("up"), d, &[e.ffn, h], &sink.up);
            let down = self.param(&name("down"), d, &[h, e.ffn], &sink.down);
            let gate = self.op(&name("gate_rows"), Op::Linear, &[x, gate], d)?;
            let up = self.op(&name("up_rows"), Op::Linear, &[x, up], d)?;
            let act = self.op(&name("act"), Op::Activate(e.activation.clone()), &[gate, up], d)?;
            let weighted = self.op(&name("weighted"), Op::Mul, &[act, w], d)?;
            let y = self.op(&name("down_rows"), Op::Linear, &[weighted, down], d)?;
            let last = i + 1 == spec.sinks.len();
            sum = Some(match sum {
                None => y,
                Some(s) => self.op(&name("sum"), Op::Add, &[s, y], if last { d } else { DType::F32 })?,
            });
        }
        sum.ok_or_else(|| Diagnostic::internal("internal-error", "a layer with sinks should have one"))
    }

    /// The state of the router's network, and what its matrix reads.
    pub(crate) fn router_network(&mut self, n: &RouterNetwork, x: ValueId) -> Result<(ValueId, ValueId), Diagnostic> {
        let (d, r) = (self.dtype, n.width);
        let down = self.param("router.down", d, &[r, self.spec.hidden], &n.down.0);
        let bias = self.param("router.down_bias", d, &[r], &n.down.1);
        let mut state = self.op("router.state", Op::Linear, &[x, down, bias], d)?;
        if let Some(source) = &n.state_scale {
            let scale = self.param("router.state_scale", d, &[r], source);
            let previous = self.b.input("router_states", TensorType::new(d, [Dim::TOKENS, Dim::Fixed(r)]));
            let scaled = self.op("router.previous", Op::Mul, &[previous, scale], d)?;
            state = self.op("router.joined_state", Op::Add, &[state, scaled], d)?;
        }
        let mut h = self.norm("router.norm", &n.norm, r, state, d)?;
        for (i, (w, b)) in n.layers.iter().enumerate() {
            let w = self.param(&format!("router.fc{}", i + 1), d, &[r, r], w);
            let b = self.param(&format!("router.fc{}_bias", i + 1), d, &[r], b);
            h = self.op(&format!("router.fc{}_rows", i + 1), Op::Linear, &[h, w, b], d)?;
            h = self.op(&format!("router.fc{}_act", i + 1), Op::Activate(Activation::Gelu), &[h], d)?;
        }
        Ok((state, h))
    }

    /// One expert per token, or none: class E is not dispatched, its weight is 0, and it is reported as expert 0, as the
    /// published code does.
    pub(crate) fn skip(
        &mut self,
        choice: ValueId,
        ids: ValueId,
        w: ValueId,
        state: Option<ValueId>,
    ) -> Result<Routing, Diagnostic> {
        let n_experts = u32::try_from(self.spec.n_experts).unwrap_or(u32::MAX);
        let w = self.cast("router.weights_f32", w, DType::F32)?;
        let skipped = self.op("router.skipped", Op::SumOutside { n_experts }, &[w, ids], DType::F32)?;
        let weights = self.op("topk_weights", Op::Map(zero_where_positive()), &[w, skipped], DType::F32)?;
        // All scores of a token that skips are made equal, so that the lowest index is the best.
        let reported = self.op("router.reported", Op::Map(zero_where_positive()), &[choice, skipped], DType::F32)?;
        let reported = self.b.node("reported_ids", Op::TopK { k: 1 }, &[reported])?;
        Ok(Routing { dispatched: ids, ids: reported, weights, sinks: Vec::new(), state })
    }
}

/// `a0`, or -inf where `(a1 - a2) / max(|a2|, a1)` is above `limit`; rounded to `d` at each step.
fn keep_near(d: DType, limit: f32) -> Expr {
    let mut b = ExprBuilder::new();
    let (kept, max, logit) = (b.arg(0), b.arg(1), b.arg(2));
    let magnitude = b.unary(Unary::Abs, logit);
    let scale = b.binary(Binary::Max, magnitude, max);
    let below = b.binary(Binary::Sub, max, logit);
    let below = b.round(d, below);
    let relative = b.binary(Binary::Div, below, scale);
    let relative = b.round(d, relative);
    let limit = b.constant(limit);
    let beyond = b.binary(Binary::Sub, relative, limit);
    let none = b.constant(f32::NEG_INFINITY);
    let result = b.select(beyond, none, kept);
    b.finish(result)
}

/// `ln(sigmoid(a0))`, as `-softplus(-a0)`.
fn log_sigmoid() -> Expr {
    let mut b = ExprBuilder::new();
    let x = b.arg(0);
    let negated = b.unary(Unary::Neg, x);
    let soft = b.unary(Unary::Softplus, negated);
    let result = b.unary(Unary::Neg, soft);
    b.finish(result)
}

/// `e^(a0 - a1)`
fn exp_minus() -> Expr {
    let mut b = ExprBuilder::new();
    let (x, y) = (b.arg(0), b.arg(1));
    let difference = b.binary(Binary::Sub, x, y);
    let result = b.unary(Unary::Exp, difference);
    b.finish(result)
}

/// `a0 / a1`
fn quotient() -> Expr {
    let mut b = ExprBuilder::new();
    let (x, y) = (b.arg(0), b.arg(1));
    let result = b.binary(Binary::Div, x, y);
    b.finish(result)
}

/// `a0`, or 0 where `a1` is positive.
fn zero_where_positive() -> Expr {
    let mut b = ExprBuilder::new();
    let (x, mark, zero) = (b.arg(0), b.arg(1), b.constant(0.0));
    let result = b.select(mark, zero, x);
    b.finish(result)
}
