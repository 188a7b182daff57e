//! One MoE layer in the words of its config: what a family's function fills in.
//!
//! Everything that distinguishes published routers and experts is a field here; [`crate::assemble`] turns it into a graph.

use moec_ir::graph::{GroupScore, RenormRule, RowMask, Score};
use moec_ir::weights::WeightSource;
use moec_ir::{Activation, DType};

/// One MoE layer.
#[derive(Clone, Debug)]
pub struct MoeSpec {
    /// Hidden size H.
    pub hidden: u64,
    /// Number of routed experts E.
    pub n_experts: u64,
    /// Experts without weights that return their input, numbered after the others (LongCat). The router scores them too.
    pub zero_experts: u64,
    /// Experts per token K.
    pub top_k: u64,
    /// The router.
    pub router: Router,
    /// The routed experts.
    pub experts: Experts,
    /// The projection around the experts, when they work in a narrower space.
    pub latent: Option<Latent>,
    /// Factor on the sum of experts. A factor on the routing weights is [`Router::scale`].
    pub routed_scale: f32,
    /// The expert that every token goes through.
    pub shared: Option<Shared>,
    /// Factor on routed plus shared (0.5: their mean).
    pub sum_scale: f32,
    /// What follows the sum of experts, still inside the layer.
    pub after: After,
    /// A norm of the layer's input before the routed experts (not the router) see it (Gemma 4).
    pub experts_norm: Option<Norm>,
    /// A norm of the routed sum before the shared expert is added (Gemma 4).
    pub routed_norm: Option<Norm>,
    /// The router scores one more class, numbered after the experts, that means no expert at all (ZAYA).
    pub skip_class: bool,
    /// Dense experts that the router weights together with the chosen ones (Inkling).
    pub sinks: Vec<Sink>,
}

/// A dense expert whose weight comes from the router: it takes part in the normalisation of every token's weights.
/// The weight multiplies what the activation gives.
#[derive(Clone, Debug)]
pub struct Sink {
    /// `[1, H]`, its row of the router.
    pub router: WeightSource,
    /// `[F, H]`
    pub gate: WeightSource,
    /// `[F, H]`
    pub up: WeightSource,
    /// `[H, F]`
    pub down: WeightSource,
}

/// An RMS norm: `x / sqrt(mean(x²) + eps)`, with a weight per column.
#[derive(Clone, Debug)]
pub struct Norm {
    /// Added to the mean of squares.
    pub eps: f32,
    /// One value per column.
    pub weight: WeightSource,
    /// Where the weight comes in.
    pub form: NormForm,
}

/// Where the weight of a norm comes in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormForm {
    /// The normed value times `weight`.
    Scaled,
    /// The normed value times `1 + weight`.
    Centered,
    /// `x · (1 + weight)`, rounded to the layer's type, is normed (Muse-Spark).
    ScaledInput,
}

impl Norm {
    /// A norm whose result is multiplied by its weight.
    pub fn new(eps: f32, weight: WeightSource) -> Norm {
        Norm { eps, weight, form: NormForm::Scaled }
    }
}

/// Where a rounding point of the model is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// The value is rounded to the layer's element type.
    Layer,
    /// The value stays f32.
    F32,
}

/// From hidden states to expert ids and weights.
#[derive(Clone, Debug)]
pub struct Router {
    /// `[E, H]`
    pub weight: WeightSource,
    /// Element type of `weight` in published checkpoints; `None`: the layer's.
    pub weight_dtype: Option<DType>,
    /// `[E]`, part of the logit.
    pub bias: Option<WeightSource>,
    /// The logits are an input of the layer, `router_logits`; `weight` is not used.
    pub logits_given: bool,
    /// Rounding of the logits.
    pub logits: Precision,
    /// Factor on the logits.
    pub logit_scale: f32,
    /// `c · tanh(logit / c)` before the score.
    pub soft_cap: Option<f32>,
    /// The score.
    pub score: Score,
    /// Rounding of the scores.
    pub score_round: Precision,
    /// The score is taken over the chosen logits only (gpt-oss, Granite).
    pub choose_first: bool,
    /// `[E]` f32, added to the scores for the choice only.
    pub selection_bias: Option<WeightSource>,
    /// Group-limited choice.
    pub groups: Option<Groups>,
    /// Experts are looked up by token id instead of chosen (DeepSeek-V4): number of token ids V, and the table `[V, K]`.
    pub table: Option<(u64, WeightSource)>,
    /// Normalisation of the chosen scores.
    pub renorm: Option<RenormRule>,
    /// Factor on the weights, in f32.
    pub scale: f32,
    /// Rounding of the weights that the experts get.
    pub weights_round: Precision,
    /// `[E]`: a learned factor per expert on the weights (Gemma 4).
    pub expert_scale: Option<WeightSource>,
    /// A norm on the router's own input (Gemma 4): RMS norm without weight, times `scale[H]`, times a constant.
    pub input_norm: Option<InputNorm>,
    /// The weight multiplies the expert's input instead of its output (Llama 4; one expert per token).
    pub scales_input: bool,
    /// Two dependent choices, each with a softmax over the scores near the best (Phi-3.5): the jitter.
    pub sparse_mixer: Option<f32>,
    /// What stands between the layer's input and `weight`.
    pub network: Option<RouterNetwork>,
    /// `[1]`: a learned factor on all weights (Inkling).
    pub global_scale: Option<WeightSource>,
}

/// A network before the router's matrix (ZAYA): `s = down·x (+ previous state · scale)`, a norm, two GELU layers.
/// `s` is the layer's state, which the next layer's router reads.
#[derive(Clone, Debug)]
pub struct RouterNetwork {
    /// Width R of the network.
    pub width: u64,
    /// `[R, H]` and `[R]`
    pub down: (WeightSource, WeightSource),
    /// `[R]`: the factor on the previous layer's state, the layer's input `router_states`; the first layer has none.
    pub state_scale: Option<WeightSource>,
    /// A norm of the state.
    pub norm: Norm,
    /// Matrices `[R, R]` and biases `[R]`.
    pub layers: [(WeightSource, WeightSource); 2],
}

/// Group-limited choice of experts.
#[derive(Clone, Copy, Debug)]
pub struct Groups {
    /// Number of groups; divides E.
    pub n: u64,
    /// Groups kept.
    pub keep: u64,
    /// Score of a group.
    pub score: GroupScore,
    /// What stands for the scores of other groups.
    pub fill: RowMask,
    /// The weights are gathered from the filled scores, not from the unfilled ones (DeepSeek-V2).
    pub gather_filled: bool,
}

/// The norm before a router.
#[derive(Clone, Debug)]
pub struct InputNorm {
    /// Added to the mean of squares.
    pub eps: f32,
    /// `[H]`
    pub scale: WeightSource,
    /// A constant factor.
    pub factor: f32,
}

/// The routed experts: two or three matrices each.
#[derive(Clone, Debug)]
pub struct Experts {
    /// Expert width F.
    pub ffn: u64,
    /// What stands between the matrices; tells whether there is a gate.
    pub activation: Activation,
    /// `[E, F, H]`; unused by ungated activations.
    pub gate: WeightSource,
    /// `[E, F, H]`
    pub up: WeightSource,
    /// `[E, H, F]`
    pub down: WeightSource,
    /// Biases, when the experts have them.
    pub biases: Option<ExpertBiases>,
    /// A norm of each expert's output before its weight (Muse-Spark).
    pub out_norm: Option<Norm>,
}

/// Biases of the routed experts.
#[derive(Clone, Debug)]
pub struct ExpertBiases {
    /// `[E, F]`
    pub gate: WeightSource,
    /// `[E, F]`
    pub up: WeightSource,
    /// `[E, H]`
    pub down: WeightSource,
}

/// Experts in a narrower space than the hidden states.
#[derive(Clone, Debug)]
pub struct Latent {
    /// Width of the experts' input and output.
    pub width: u64,
    /// `[width, H]`
    pub down: WeightSource,
    /// `[H, width]`
    pub up: WeightSource,
    /// Biases of both: `[width]` and `[H]`.
    pub biases: Option<(WeightSource, WeightSource)>,
    /// A norm of the experts' input.
    pub in_norm: Option<Norm>,
    /// RMS norm of the summed experts before `up`; weight `[width]`.
    pub norm: Option<Norm>,
}

/// A dense expert beside the routed ones.
#[derive(Clone, Debug)]
pub struct Shared {
    /// Its width.
    pub ffn: u64,
    /// Its activation.
    pub activation: Activation,
    /// `[S, H]`; unused by ungated activations.
    pub gate: WeightSource,
    /// `[S, H]`
    pub up: WeightSource,
    /// `[H, S]`
    pub down: WeightSource,
    /// `[1, H]`: the output is multiplied by the sigmoid of this row times the input (Qwen2).
    pub out_gate: Option<WeightSource>,
    /// Biases of its matrices.
    pub biases: Option<ExpertBiases>,
    /// A norm of its input (Gemma 4).
    pub in_norm: Option<Norm>,
    /// A norm of its output (Gemma 4).
    pub out_norm: Option<Norm>,
}

/// What follows routed plus shared experts inside the layer.
#[derive(Clone, Debug)]
pub enum After {
    /// Nothing.
    Nothing,
    /// `[H]` is added (JetMoE).
    Bias(WeightSource),
    /// An RMS norm with weight `[H]` (A.X-K1).
    Norm(Norm),
}

impl Router {
    /// A router with nothing but a weight and a score over all experts, in f32; fields are then set as the family needs.
    pub fn new(weight: WeightSource, score: Score) -> Router {
        Router {
            weight,
            weight_dtype: None,
            bias: None,
            logits_given: false,
            logits: Precision::F32,
            logit_scale: 1.0,
            soft_cap: None,
            score,
            score_round: Precision::F32,
            choose_first: false,
            selection_bias: None,
            groups: None,
            table: None,
            renorm: None,
            scale: 1.0,
            weights_round: Precision::F32,
            expert_scale: None,
            input_norm: None,
            scales_input: false,
            sparse_mixer: None,
            network: None,
            global_scale: None,
        }
    }

    /// A router whose logits are an input of the layer.
    pub fn of_given_logits(score: Score) -> Router {
        let none = WeightSource::Tensor { names: Vec::new(), steps: Vec::new() };
        Router { logits_given: true, ..Router::new(none, score) }
    }
}

impl MoeSpec {
    /// How many experts the router scores.
    pub fn n_scored(&self) -> u64 {
        self.n_experts + self.zero_experts + u64::from(self.skip_class)
    }

    /// A layer of a router and experts; fields are then set as the family needs.
    pub fn new(hidden: u64, n_experts: u64, top_k: u64, router: Router, experts: Experts) -> MoeSpec {
        MoeSpec {
            hidden,
            n_experts,
            zero_experts: 0,
            top_k,
            router,
            experts,
            latent: None,
            routed_scale: 1.0,
            shared: None,
            sum_scale: 1.0,
            after: After::Nothing,
            experts_norm: None,
            routed_norm: None,
            skip_class: false,
            sinks: Vec::new(),
        }
    }
}

impl Shared {
    /// A gated dense expert from its three matrices.
    pub fn new(ffn: u64, activation: Activation, gate: WeightSource, up: WeightSource, down: WeightSource) -> Shared {
        Shared { ffn, activation, gate, up, down, out_gate: None, biases: None, in_norm: None, out_norm: None }
    }
}
