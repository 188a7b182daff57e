//! From a layer's specification to its graph, in the unfused form.

use crate::spec::{After, MoeSpec, Norm, NormForm, Precision, Router, Shared};
use moec_ir::diag::Diagnostic;
use moec_ir::expr::{Binary, Expr, ExprBuilder, Real, Unary};
use moec_ir::graph::{Graph, GraphBuilder, Op, RenormRule, Score, ValueId};
use moec_ir::weights::WeightSource;
use moec_ir::{DType, Dim, TensorType};

/// The graph of `spec`, called `name`, for a layer of element type `dtype`.
///
/// Input `input` `[T, H]` (and `router_logits` `[T, E]` where the router's product is not part of the layer); outputs
/// `output` `[T, H]` in `dtype`, `topk_ids` i32 `[T, K]`, `topk_weights` f32 `[T, K]`: the weights that the experts are
/// given, without a factor on their sum. The sum of experts stays f32 until the last step of the layer has been applied.
///
/// With `ids_in`, the chosen experts are an input `topk_ids` `[T, K]` of that integer type instead of an output; the weights
/// are the router's scores of these experts, normalised and scaled as ever.
///
/// # Errors
/// Those of [`moec_ir::graph::infer_type`], for a specification that contradicts itself; `unsupported-layer` for ids that
/// come into a layer whose router does not choose by one top-k.
pub fn assemble(name: &str, spec: &MoeSpec, dtype: DType, ids_in: Option<DType>) -> Result<Graph, Diagnostic> {
    let mut a = Assembler { b: GraphBuilder::new(name), spec, dtype, ids_in };
    let x = a.b.input("input", TensorType::new(dtype, [Dim::TOKENS, Dim::Fixed(spec.hidden)]));
    let routing = a.route(x)?;
    let (ids, weights) = (routing.dispatched, routing.weights);
    let routed_input = match &spec.experts_norm {
        Some(norm) => a.norm("experts.norm", norm, spec.hidden, x, dtype)?,
        None => x,
    };
    let routed = a.experts(routed_input, ids, weights)?;
    let output = a.finish_sum(x, routed, &routing)?;
    a.b.output("output", output);
    if ids_in.is_none() {
        a.b.output("topk_ids", routing.ids);
    }
    a.b.output("topk_weights", weights);
    if let Some(state) = routing.state {
        a.b.output("next_router_states", state);
    }
    Ok(a.b.finish())
}

/// The specification of a layer's routed experts alone, in the space that they work in.
pub(crate) fn experts_alone(spec: MoeSpec) -> MoeSpec {
    MoeSpec {
        hidden: spec.latent.as_ref().map_or(spec.hidden, |l| l.width),
        zero_experts: 0,
        latent: None,
        routed_scale: 1.0,
        shared: None,
        sum_scale: 1.0,
        after: After::Nothing,
        experts_norm: None,
        routed_norm: None,
        skip_class: false,
        sinks: Vec::new(),
        ..spec
    }
}

/// The graph of the routed experts of [`experts_alone`]: the host routes.
///
/// Inputs `input` `[T, H]` in `dtype`, `topk_ids` `[T, K]` in `ids` and `topk_weights` `[T, K]` in `weights`; output `output`
/// `[T, H]` in `dtype`: the weighted sum of the chosen experts. Slots whose id is outside `0..E` are skipped.
///
/// # Errors
/// As [`assemble`]; `element-type-mismatch` for ids that are no integers, or weights that are no floats.
pub(crate) fn assemble_experts(
    name: &str,
    spec: &MoeSpec,
    dtype: DType,
    ids: DType,
    weights: DType,
) -> Result<Graph, Diagnostic> {
    let mut a = Assembler { b: GraphBuilder::new(name), spec, dtype, ids_in: None };
    let x = a.b.input("input", TensorType::new(dtype, [Dim::TOKENS, Dim::Fixed(spec.hidden)]));
    let slots = [Dim::TOKENS, Dim::Fixed(spec.top_k)];
    let mut chosen = a.b.input("topk_ids", TensorType::new(ids, slots));
    let shares = a.b.input("topk_weights", TensorType::new(weights, slots));
    if ids != DType::I32 {
        let count = u32::try_from(spec.n_experts).unwrap_or(u32::MAX);
        chosen = a.b.node("experts.ids", Op::LocalIds { first: 0, count }, &[chosen])?;
    }
    let shares = a.cast("experts.weights", shares, DType::F32)?;
    let output = a.experts(x, chosen, shares)?;
    a.b.output("output", output);
    Ok(a.b.finish())
}

/// Builds one graph.
pub(crate) struct Assembler<'a> {
    pub(crate) b: GraphBuilder,
    pub(crate) spec: &'a MoeSpec,
    pub(crate) dtype: DType,
    /// The type of ids that come in.
    pub(crate) ids_in: Option<DType>,
}

/// What the router decides.
pub(crate) struct Routing {
    /// Expert ids i32 `[T, K]` as they are dispatched; one outside `0..E` has no row.
    pub dispatched: ValueId,
    /// The ids as the model reports them; differ from `dispatched` where a token skips its expert.
    pub ids: ValueId,
    /// f32 `[T, K]`
    pub weights: ValueId,
    /// The weight of each sink, `[T, 1]`.
    pub sinks: Vec<ValueId>,
    /// The state that the next layer's router reads, `[T, R]`.
    pub state: Option<ValueId>,
}

/// What is applied to the sum of experts, in order.
enum Step<'a> {
    ZeroExperts,
    Scale(f32),
    RoutedNorm(&'a Norm),
    Shared(&'a Shared),
    Sinks,
    Mean(f32),
    Bias(&'a WeightSource),
    Norm(&'a Norm),
}

impl Assembler<'_> {
    pub(crate) fn round(&self, p: Precision) -> DType {
        match p {
            Precision::Layer => self.dtype,
            Precision::F32 => DType::F32,
        }
    }

    pub(crate) fn param(&mut self, name: &str, dtype: DType, shape: &[u64], source: &WeightSource) -> ValueId {
        self.b.param(name, TensorType::fixed(dtype, shape), source.clone())
    }

    pub(crate) fn op(&mut self, name: &str, op: Op, inputs: &[ValueId], dtype: DType) -> Result<ValueId, Diagnostic> {
        self.b.node_as(name, op, inputs, Some(dtype))
    }

    /// `v` in `dtype`, without a node when it has that type already.
    pub(crate) fn cast(&mut self, name: &str, v: ValueId, dtype: DType) -> Result<ValueId, Diagnostic> {
        if self.b.ty(v).dtype == dtype { Ok(v) } else { self.op(name, Op::Cast, &[v], dtype) }
    }

    pub(crate) fn norm(
        &mut self,
        name: &str,
        norm: &Norm,
        width: u64,
        x: ValueId,
        dtype: DType,
    ) -> Result<ValueId, Diagnostic> {
        let rms = Op::RmsNorm { eps: Real(norm.eps) };
        let weight = format!("{name}.weight");
        match norm.form {
            NormForm::Scaled => {
                let w = self.param(&weight, self.dtype, &[width], &norm.weight);
                self.op(name, rms, &[x, w], dtype)
            }
            NormForm::Centered => {
                let plain = self.op(&format!("{name}.plain"), rms, &[x], DType::F32)?;
                let w = self.param(&weight, self.dtype, &[width], &norm.weight);
                let scaled = self.op(&format!("{name}.scaled"), Op::Mul, &[plain, w], DType::F32)?;
                self.op(name, Op::Add, &[plain, scaled], dtype)
            }
            NormForm::ScaledInput => {
                let w = self.param(&weight, self.dtype, &[width], &norm.weight);
                let scaled = self.op(&format!("{name}.scaled"), Op::Mul, &[x, w], DType::F32)?;
                let sum = self.op(&format!("{name}.input"), Op::Add, &[x, scaled], self.dtype)?;
                self.op(name, rms, &[sum], dtype)
            }
        }
    }

    fn route(&mut self, x: ValueId) -> Result<Routing, Diagnostic> {
        let spec = self.spec;
        let r = &spec.router;
        let (mut routed_input, mut state) = (x, None);
        if let Some(network) = &r.network {
            let (s, out) = self.router_network(network, x)?;
            (routed_input, state) = (out, Some(s));
        }
        let logits = self.logits(r, routed_input)?;
        if let Some(why) = self.ids_in.and_then(|_| not_replayed(spec)) {
            return Err(Diagnostic::input("unsupported-layer", format!("{why} cannot take its experts as an input"))
                .help("compile the experts alone (`--part experts`), and route outside"));
        }
        if let Some(jitter) = r.sparse_mixer {
            return self.sparse_mixer(logits, jitter);
        }
        let score_type = self.round(r.score_round);
        let k = u32::try_from(spec.top_k).unwrap_or(u32::MAX);
        // Scores over all experts, or the raw logits when only the chosen ones are scored.
        let scores = if r.choose_first {
            logits
        } else {
            let mut l = self.cast("router.logits_f32", logits, DType::F32)?;
            if let Some(cap) = r.soft_cap {
                l = self.op("router.capped_logits", Op::Map(soft_cap(cap)), &[l], DType::F32)?;
            }
            self.op("router.scores", Op::Score(r.score), &[l], score_type)?
        };
        // Experts that come in are not chosen again, unless the choice bears on the weights.
        let chooses = self.ids_in.is_none() || r.groups.as_ref().is_some_and(|g| g.gather_filled);
        let mut choice = scores;
        if let Some(bias) = r.selection_bias.as_ref().filter(|_| chooses) {
            let bias = self.param("router.selection_bias", DType::F32, &[spec.n_scored()], bias);
            choice = self.op("router.biased", Op::Add, &[scores, bias], DType::F32)?;
        }
        let mut gathered_from = scores;
        if let Some(g) = r.groups.as_ref().filter(|_| chooses) {
            let op = Op::GroupLimit {
                n_groups: u32::try_from(g.n).unwrap_or(u32::MAX),
                keep: u32::try_from(g.keep).unwrap_or(u32::MAX),
                score: g.score,
                fill: g.fill,
            };
            choice = self.b.node("router.limited", op, &[choice])?;
            if g.gather_filled {
                gathered_from = choice;
            }
        }
        let ids = match &r.table {
            _ if self.ids_in.is_some() => self.given_ids()?,
            Some((n_tokens, source)) => {
                let table = self.param("router.table", DType::I32, &[*n_tokens, spec.top_k], source);
                let tokens = self.b.input("input_ids", TensorType::new(DType::I64, [Dim::TOKENS]));
                self.b.node("topk_ids", Op::Lookup, &[table, tokens])?
            }
            None => self.b.node("topk_ids", Op::TopK { k }, &[choice])?,
        };
        let given = match self.ids_in {
            Some(_) => Some(self.given_slots(logits, ids)?),
            None => None,
        };
        if !spec.sinks.is_empty() {
            return self.sink_weights(x, logits, ids, given);
        }
        let mut w = self.b.node("router.chosen", Op::GatherScores, &[gathered_from, ids])?;
        // A score of nothing counts 0, a logit of nothing -inf.
        let nothing = if r.choose_first { f32::NEG_INFINITY } else { 0.0 };
        w = self.where_given("router.chosen_given", w, given, nothing)?;
        if r.choose_first {
            // Without rounding between, the score reads the logits in their own type.
            if r.score_round == Precision::F32 {
                w = self.cast("router.chosen_f32", w, DType::F32)?;
            }
            w = self.op("router.chosen_scores", Op::Score(r.score), &[w], score_type)?;
        }
        if let Some(rule) = r.renorm {
            // A token without any expert of its own must not divide by 0; sums of scores are far above this.
            let rule = match rule {
                RenormRule::Sum { eps: Real(0.0) } if self.ids_in.is_some() => RenormRule::Sum { eps: Real(1e-20) },
                rule => rule,
            };
            w = self.b.node("router.normalised", Op::Renormalise(rule), &[w])?;
        }
        if r.scale != 1.0 {
            w = self.op("router.scaled", Op::Scale(Real(r.scale)), &[w], DType::F32)?;
        }
        if let Some(source) = &r.expert_scale {
            w = self.expert_scale(source, logits, ids, w)?;
        }
        if r.choose_first {
            // A softmax over nothing is NaN.
            w = self.where_given("router.given_weights", w, given, 0.0)?;
        }
        w = self.cast("router.rounded", w, self.round(r.weights_round))?;
        if spec.skip_class {
            return self.skip(choice, ids, w, state);
        }
        let weights = self.cast("topk_weights", w, DType::F32)?;
        Ok(Routing { dispatched: ids, ids, weights, sinks: Vec::new(), state })
    }

    /// The experts of each token, from outside.
    fn given_ids(&mut self) -> Result<ValueId, Diagnostic> {
        let dtype = self.ids_in.unwrap_or(DType::I32);
        let ids = self.b.input("topk_ids", TensorType::new(dtype, [Dim::TOKENS, Dim::Fixed(self.spec.top_k)]));
        // Numbers that no expert has become -1: neither are they dispatched, nor is a score read for them.
        let count = u32::try_from(self.spec.n_scored()).unwrap_or(u32::MAX);
        self.b.node("router.ids", Op::LocalIds { first: 0, count }, &[ids])
    }

    /// 1 for each slot of a token whose id an expert has, 0 for others.
    fn given_slots(&mut self, logits: ValueId, ids: ValueId) -> Result<ValueId, Diagnostic> {
        let ones = self.op("router.ones", Op::Map(one()), &[logits], DType::F32)?;
        self.b.node("router.given", Op::GatherScores, &[ones, ids])
    }

    /// `v`, or `nothing` in the slots that [`Assembler::given_slots`] gave 0.
    pub(crate) fn where_given(
        &mut self,
        name: &str,
        v: ValueId,
        given: Option<ValueId>,
        nothing: f32,
    ) -> Result<ValueId, Diagnostic> {
        let Some(given) = given else { return Ok(v) };
        let dtype = self.b.ty(v).dtype;
        self.op(name, Op::Map(first_where_second(nothing)), &[v, given], dtype)
    }

    fn logits(&mut self, r: &Router, x: ValueId) -> Result<ValueId, Diagnostic> {
        let spec = self.spec;
        if r.logits_given {
            let ty = TensorType::new(self.dtype, [Dim::TOKENS, Dim::Fixed(spec.n_scored())]);
            return Ok(self.b.input("router_logits", ty));
        }
        let mut x = x;
        if let Some(n) = &r.input_norm {
            x = self.op("router.input_norm", Op::RmsNorm { eps: Real(n.eps) }, &[x], self.dtype)?;
            let scale = self.param("router.input_scale", self.dtype, &[spec.hidden], &n.scale);
            x = self.op("router.input_scaled", Op::Mul, &[x, scale], self.dtype)?;
            x = self.op("router.input", Op::Scale(Real(n.factor)), &[x], self.dtype)?;
        }
        let weight_type = r.weight_dtype.unwrap_or(self.dtype);
        let width = r.network.as_ref().map_or(spec.hidden, |n| n.width);
        let w = self.param("router.weight", weight_type, &[spec.n_scored(), width], &r.weight);
        let mut operands = vec![x, w];
        if let Some(bias) = &r.bias {
            operands.push(self.param("router.bias", self.dtype, &[spec.n_experts], bias));
        }
        let logits = self.op("router.logits", Op::Linear, &operands, self.round(r.logits))?;
        if r.logit_scale == 1.0 {
            return Ok(logits);
        }
        self.op("router.scaled_logits", Op::Scale(Real(r.logit_scale)), &[logits], self.round(r.logits))
    }

    /// Multiplies each weight by its expert's factor. The factors are spread over tokens by adding them to zeros.
    fn expert_scale(
        &mut self,
        source: &WeightSource,
        logits: ValueId,
        ids: ValueId,
        w: ValueId,
    ) -> Result<ValueId, Diagnostic> {
        // Softmax of anything is at most 1, so that its product with 0 is 0 unless the token's logits are NaN already.
        let l = self.cast("router.logits_f32", logits, DType::F32)?;
        let probabilities = self.op("router.expert_scale.rows", Op::Score(Score::Softmax), &[l], DType::F32)?;
        let zeros = self.op("router.expert_scale.zeros", Op::Scale(Real(0.0)), &[probabilities], DType::F32)?;
        let factors = self.param("router.expert_scale", self.dtype, &[self.spec.n_experts], source);
        let spread = self.op("router.expert_scale.spread", Op::Add, &[zeros, factors], DType::F32)?;
        let chosen = self.b.node("router.expert_scale.chosen", Op::GatherScores, &[spread, ids])?;
        self.op("router.expert_scaled", Op::Mul, &[w, chosen], DType::F32)
    }

    /// The weighted sum of the chosen experts, or their only output when the weight scales the input.
    fn experts(&mut self, x: ValueId, ids: ValueId, w: ValueId) -> Result<ValueId, Diagnostic> {
        let spec = self.spec;
        let e = &spec.experts;
        let d = self.dtype;
        let n_experts = u32::try_from(spec.n_experts).unwrap_or(u32::MAX);
        let (mut x, mut width) = (x, spec.hidden);
        if let Some(latent) = &spec.latent {
            let mut operands = vec![x, self.param("latent.down", d, &[latent.width, width], &latent.down)];
            if let Some((bias, _)) = &latent.biases {
                operands.push(self.param("latent.down_bias", d, &[latent.width], bias));
            }
            x = self.op("latent", Op::Linear, &operands, d)?;
            width = latent.width;
            if let Some(norm) = &latent.in_norm {
                x = self.norm("latent.in_norm", norm, width, x, d)?;
            }
        }
        if spec.router.scales_input {
            x = self.op("experts.scaled_input", Op::Mul, &[x, w], d)?;
        }
        let rows = self.b.node("experts.rows", Op::Permute { n_experts }, &[x, ids])?;
        let (wide, narrow) = ([spec.n_experts, e.ffn, width], [spec.n_experts, width, e.ffn]);
        let bias_shape = [spec.n_experts, e.ffn];
        let mut branches = Vec::new();
        if e.activation.is_gated() {
            let gate = self.param("experts.gate", d, &wide, &e.gate);
            let mut operands = vec![rows, ids, gate];
            if let Some(biases) = &e.biases {
                operands.push(self.param("experts.gate_bias", d, &bias_shape, &biases.gate));
            }
            branches.push(self.op("experts.gate_rows", Op::GroupedLinear, &operands, d)?);
        }
        let up = self.param("experts.up", d, &wide, &e.up);
        let mut operands = vec![rows, ids, up];
        if let Some(biases) = &e.biases {
            operands.push(self.param("experts.up_bias", d, &bias_shape, &biases.up));
        }
        branches.push(self.op("experts.up_rows", Op::GroupedLinear, &operands, d)?);
        let act = self.op("experts.act", Op::Activate(e.activation.clone()), &branches, d)?;
        let down = self.param("experts.down", d, &narrow, &e.down);
        let mut operands = vec![act, ids, down];
        if let Some(biases) = &e.biases {
            operands.push(self.param("experts.down_bias", d, &[spec.n_experts, width], &biases.down));
        }
        let mut y = self.op("experts.down_rows", Op::GroupedLinear, &operands, d)?;
        if let Some(norm) = &e.out_norm {
            y = self.norm("experts.out_norm", norm, width, y, d)?;
        }
        let slots = self.b.node("experts.slots", Op::Unpermute { n_experts }, &[y, ids])?;
        let follows = !steps(spec).is_empty();
        // A latent sum feeds a matrix product, whose operand the model rounds.
        let sum_type = if follows && spec.latent.is_none() { DType::F32 } else { d };
        let mut sum =
            if spec.router.scales_input { slots } else { self.op("routed", Op::WeightedSum, &[slots, w], sum_type)? };
        if let Some(latent) = &spec.latent {
            if let Some(norm) = &latent.norm {
                sum = self.norm("latent.norm", norm, width, sum, d)?;
            }
            let mut operands = vec![sum, self.param("latent.up", d, &[spec.hidden, width], &latent.up)];
            if let Some((_, bias)) = &latent.biases {
                operands.push(self.param("latent.up_bias", d, &[spec.hidden], bias));
            }
            sum = self.op("routed.full", Op::Linear, &operands, if follows { DType::F32 } else { d })?;
        }
        Ok(sum)
    }

    /// What is applied to the sum of experts; f32 until the last step.
    fn finish_sum(&mut self, x: ValueId, routed: ValueId, routing: &Routing) -> Result<ValueId, Diagnostic> {
        let (ids, weights) = (routing.dispatched, routing.weights);
        let (spec, d) = (self.spec, self.dtype);
        let mut sum = routed;
        let steps = steps(spec);
        let n_steps = steps.len();
        for (i, step) in steps.into_iter().enumerate() {
            let ty = if i + 1 == n_steps { d } else { DType::F32 };
            sum = match step {
                Step::ZeroExperts => {
                    let n_experts = u32::try_from(spec.n_experts).unwrap_or(u32::MAX);
                    let share = self.op("zero.weight", Op::SumOutside { n_experts }, &[weights, ids], DType::F32)?;
                    let kept = self.op("zero", Op::Mul, &[x, share], DType::F32)?;
                    self.op("routed.with_zero", Op::Add, &[sum, kept], ty)?
                }
                Step::Scale(c) => self.op("routed.scaled", Op::Scale(Real(c)), &[sum], ty)?,
                Step::RoutedNorm(norm) => self.norm("routed.norm", norm, spec.hidden, sum, ty)?,
                Step::Shared(shared) => {
                    let s = self.shared(shared, x)?;
                    self.op("sum", Op::Add, &[sum, s], ty)?
                }
                Step::Sinks => {
                    let s = self.sink_experts(x, &routing.sinks)?;
                    self.op("sum", Op::Add, &[sum, s], ty)?
                }
                Step::Mean(c) => self.op("sum.scaled", Op::Scale(Real(c)), &[sum], ty)?,
                Step::Bias(source) => {
                    let bias = self.param("output.bias", d, &[spec.hidden], source);
                    self.op("sum.biased", Op::Add, &[sum, bias], ty)?
                }
                Step::Norm(norm) => self.norm("output.norm", norm, spec.hidden, sum, ty)?,
            };
        }
        Ok(sum)
    }

    fn shared(&mut self, s: &Shared, x: ValueId) -> Result<ValueId, Diagnostic> {
        let (h, d) = (self.spec.hidden, self.dtype);
        let x0 = x;
        let x = match &s.in_norm {
            Some(norm) => self.norm("shared.in_norm", norm, h, x, d)?,
            None => x,
        };
        let mut branches = Vec::new();
        if s.activation.is_gated() {
            let mut operands = vec![x, self.param("shared.gate", d, &[s.ffn, h], &s.gate)];
            if let Some(biases) = &s.biases {
                operands.push(self.param("shared.gate_bias", d, &[s.ffn], &biases.gate));
            }
            branches.push(self.op("shared.gate_rows", Op::Linear, &operands, d)?);
        }
        let mut operands = vec![x, self.param("shared.up", d, &[s.ffn, h], &s.up)];
        if let Some(biases) = &s.biases {
            operands.push(self.param("shared.up_bias", d, &[s.ffn], &biases.up));
        }
        branches.push(self.op("shared.up_rows", Op::Linear, &operands, d)?);
        let act = self.op("shared.act", Op::Activate(s.activation.clone()), &branches, d)?;
        let mut operands = vec![act, self.param("shared.down", d, &[h, s.ffn], &s.down)];
        if let Some(biases) = &s.biases {
            operands.push(self.param("shared.down_bias", d, &[h], &biases.down));
        }
        let mut y = self.op("shared", Op::Linear, &operands, d)?;
        if let Some(gate) = &s.out_gate {
            let w = self.param("shared_gate.weight", d, &[1, h], gate);
            let logit = self.op("shared_gate.logit", Op::Linear, &[x0, w], d)?;
            let open = self.op("shared_gate", Op::Score(Score::Sigmoid), &[logit], d)?;
            y = self.op("shared.gated", Op::Mul, &[y, open], d)?;
        }
        if let Some(norm) = &s.out_norm {
            y = self.norm("shared.out_norm", norm, h, y, d)?;
        }
        Ok(y)
    }
}

/// Which router cannot weigh experts that somebody else chose.
fn not_replayed(spec: &MoeSpec) -> Option<&'static str> {
    match &spec.router {
        // The second weight depends on which expert was the first.
        r if r.sparse_mixer.is_some() => Some("a router of two dependent choices"),
        _ if spec.skip_class => Some("a router with a class for no expert"),
        _ => None,
    }
}

fn steps(spec: &MoeSpec) -> Vec<Step<'_>> {
    let mut steps = Vec::new();
    if spec.zero_experts > 0 {
        steps.push(Step::ZeroExperts);
    }
    if spec.routed_scale != 1.0 {
        steps.push(Step::Scale(spec.routed_scale));
    }
    if let Some(norm) = &spec.routed_norm {
        steps.push(Step::RoutedNorm(norm));
    }
    if let Some(shared) = &spec.shared {
        steps.push(Step::Shared(shared));
    }
    if !spec.sinks.is_empty() {
        steps.push(Step::Sinks);
    }
    if spec.sum_scale != 1.0 {
        steps.push(Step::Mean(spec.sum_scale));
    }
    match &spec.after {
        After::Nothing => {}
        After::Bias(bias) => steps.push(Step::Bias(bias)),
        After::Norm(norm) => steps.push(Step::Norm(norm)),
    }
    steps
}

/// 1, whatever `a0` is.
fn one() -> Expr {
    let mut b = ExprBuilder::new();
    let (x, one) = (b.arg(0), b.constant(1.0));
    let result = b.select(x, one, one);
    b.finish(result)
}

/// `a0` where `a1` is positive, `otherwise` elsewhere.
fn first_where_second(otherwise: f32) -> Expr {
    let mut b = ExprBuilder::new();
    let (x, mark, other) = (b.arg(0), b.arg(1), b.constant(otherwise));
    let result = b.select(mark, x, other);
    b.finish(result)
}

/// `cap · tanh(a0 / cap)`
fn soft_cap(cap: f32) -> Expr {
    let mut b = ExprBuilder::new();
    let (x, c) = (b.arg(0), b.constant(cap));
    let ratio = b.binary(Binary::Div, x, c);
    let bounded = b.unary(Unary::Tanh, ratio);
    let result = b.binary(Binary::Mul, c, bounded);
    b.finish(result)
}
