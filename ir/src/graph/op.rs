//! The operations of the graph IR.

use crate::act_quant::ActQuant;
use crate::activation::Activation;
use crate::expr::{Expr, Real};
use serde::{Deserialize, Serialize};

/// What a node computes.
///
/// Shapes use the notation of the crate root. `ids: i32[T, K]` are expert ids; an id outside `0..E` means that the slot
/// is not dispatched: it has no row in expert order, and counts as zero in a weighted sum.
/// Every op computes in f32 and rounds once to the node's type.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Op {
    /// The caller's n-th input.
    Input(u32),
    /// The layer's n-th parameter.
    Param(u32),

    // ---- dense
    /// `x[.., K], w[N, K] (, bias[N]) -> [.., N]`: x·wᵀ (+ bias).
    Linear,
    /// `a, b -> a + b`, with the broadcasting of `numpy` (trailing axes, lengths equal or 1).
    Add,
    /// `a, b -> a * b`, broadcasting as `Add`.
    Mul,
    /// `x -> c * x`
    Scale(Real),
    /// `x -> x` in another float type.
    Cast,
    /// `a0, a1, … -> expr(a0, a1, …)` on each element, broadcasting as `Add`: what no other operation says.
    Map(Expr),
    /// `(gate, up) -> same shape`, or `(up)` for an ungated activation.
    Activate(Activation),
    /// Softmax, sigmoid, … along the last axis.
    Score(Score),
    /// `x[.., N], g[N] -> x / sqrt(mean(x²) + eps) * g` along the last axis; without `g` when there is one operand.
    RmsNorm {
        /// Added to the mean of squares.
        eps: Real,
    },

    /// `x[.., K] (, global[1]) -> same shape`: each row as it is after quantisation, `code · scale` (`· global`). A result
    /// narrower than f32 rounds that once more, which changes nothing where the scales are powers of two.
    Quantise(ActQuant),

    // ---- choice
    /// `scores[T, E] -> [T, E]`: keeps the scores of the best `keep` of `n_groups` equal groups of experts, and fills the others.
    /// Groups are ordered by (score descending, index ascending).
    GroupLimit {
        /// Number of groups; divides E.
        n_groups: u32,
        /// Groups kept.
        keep: u32,
        /// Score of a group.
        score: GroupScore,
        /// What stands in the other groups.
        fill: RowMask,
    },
    /// `scores[T, E] -> ids i32[T, k]`, by (score descending, index ascending).
    TopK {
        /// Experts per token.
        k: u32,
    },
    /// `scores[T, E], ids[T, K] -> [T, K]`; 0 where there is no such expert.
    GatherScores,
    /// `w[T, K] -> [T, K]`: normalises each row.
    Renormalise(RenormRule),

    /// `x[T, N] -> [T, 1]`: one number for each row.
    Reduce(Reduce),
    /// `scores[T, E], ids[T, K] -> [T, E]`: -inf where a score has been chosen.
    MaskChosen,
    /// `a[T, M], b[T, N] -> [T, M+N]`, of floats or of expert ids.
    JoinColumns,
    /// `table i32[V, K], index i64[T] -> ids i32[T, K]`: row `index[t]` of a table (hash routing). An index outside the
    /// table gives -1: nothing is dispatched.
    Lookup,
    /// `w[T, K], ids[T, K] -> [T, 1]`: the sum of the weights of slots whose id is outside `0..n_experts` (zero-compute
    /// experts), in slot order.
    SumOutside {
        /// Number of experts that have weights.
        n_experts: u32,
    },

    /// `ids i32|i64[T, K] -> ids i32[T, K]`: the ids `first..first+count` counted from `first`, and -1 for all others: the
    /// experts of one shard.
    LocalIds {
        /// First id that is kept.
        first: u32,
        /// How many are kept.
        count: u32,
    },

    // ---- dispatch
    /// `x[T, H], ids[T, K] -> [T*K, H]`: the token row of every slot, in expert order.
    Permute {
        /// Number of experts E.
        n_experts: u32,
    },
    /// `y[T*K, H], ids[T, K] -> [T*K, H]`: rows from expert order back to slot order.
    Unpermute {
        /// Number of experts E.
        n_experts: u32,
    },
    /// `ids[T, K] -> i32[T, K]`: the row in expert order of each slot, and -1 for those that no expert has: for whoever takes rows in
    /// expert order out of the graph.
    SlotToRow {
        /// Number of experts E.
        n_experts: u32,
    },
    /// `rows[T*K, N], ids[T, K], places i64[T, K] -> [T*K, N]`: the same rows in expert order, of which the one of each slot is stored at an
    /// address of its own, in memory of whoever it is for. Slots that no expert has are stored nowhere.
    StoreAt {
        /// Number of experts E.
        n_experts: u32,
        /// Addresses are multiples of so many elements.
        unit: u32,
    },
    /// `rows[T*K, K'], ids[T, K], w[E, N, K'] (, bias[E, N]) -> [T*K, N]`: each row, in expert order, times its expert's matrix.
    GroupedLinear,
    /// `slots[T*K, H], w[T, K] -> [T, H]`: `out[t] = Σ_j w[t, j] · slots[t*K + j]`, in slot order, in f32.
    WeightedSum,

    // ---- weights
    /// `a, b -> a over b`: joins two parameters along `axis`, all other axes being equal. Gate over up: axis N of
    /// `[E, N, K]` and of the bias `[E, N]`.
    Concat {
        /// The axis, from the outermost.
        axis: u32,
    },
    /// `x[.., 2N] -> [.., N]`: the first (0) or second (1) half of the columns.
    Half(u32),

    // ---- fused forms, made by rewrites only
    /// As `Permute` then `GroupedLinear`, reading rows of `x[T, H]` where they are:
    /// `x[T, K'], ids[T, K], w[E, N, K'] (, bias[E, N]) -> [T*K, N]`.
    GatherGroupedLinear,
    /// A grouped linear over gate-over-up weights with the activation in its epilogue; the accumulators are rounded to
    /// `round` first, as the unfused form does: `rows, ids, w[E, 2N, K'] (, bias[E, 2N]) -> [T*K, N]` (ungated: `w[E, N, K']`).
    GroupedLinearAct {
        /// The epilogue.
        act: Activation,
        /// The type that the unfused linear's result had.
        round: crate::DType,
        /// Rows are gathered from `x[T, K']` as in `GatherGroupedLinear`.
        gather: bool,
    },
    /// As `GroupedLinearAct` for a dense matrix: `x[.., K'], w[2N, K'] (, bias[2N]) -> [.., N]`.
    LinearAct {
        /// The epilogue.
        act: Activation,
        /// The type that the unfused linear's result had.
        round: crate::DType,
    },
    /// Unpermute, weighted sum, scale and add in one: `y[T*K, H], ids[T, K], w[T, K] (, base[T, H] (, gate[T, 1])) -> [T, H]`:
    /// `scale · Σ_j w[t, j] · y[row of (t, j)] (+ base (· gate))`. With a gate, `base · gate` is rounded to `round` first.
    Combine {
        /// Number of experts E.
        n_experts: u32,
        /// Factor on the sum.
        scale: Real,
        /// The type that the unfused sum had before `base` was added; f32 keeps it whole.
        round: crate::DType,
        /// The type of the unfused `base · gate`.
        gate_round: crate::DType,
    },
}

/// How a row becomes one number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reduce {
    /// The largest; NaN when any is NaN.
    Max,
    /// The sum.
    Sum,
}

/// A score along the last axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Score {
    /// `e^(x - max) / Σ e^(x - max)`
    Softmax,
    /// `1 / (1 + e^-x)`
    Sigmoid,
    /// `sqrt(ln(1 + e^x))` (DeepSeek-V4).
    SqrtSoftplus,
}

/// How the scores of a group of experts become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GroupScore {
    /// The largest (DeepSeek-V2).
    Max,
    /// The sum of the two largest (DeepSeek-V3); the only one in a group of one.
    Top2Sum,
}

/// What replaces the scores of experts that may not be chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RowMask {
    /// -inf: never chosen.
    NegInf,
    /// 0: harmless for positive scores only; DeepSeek-V2 and Mistral-4 do it.
    Zero,
}

/// How routing weights are normalised.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RenormRule {
    /// `w / (Σ w + eps)`
    Sum {
        /// Added to the sum; 0 for none.
        eps: Real,
    },
    /// `w / max(Σ w, min)` (ERNIE).
    SumAtLeast {
        /// Lower bound of the sum.
        min: Real,
    },
    /// `w / (Σ |w|^p)^(1/p)` (DBRX).
    PNorm {
        /// The exponent.
        p: Real,
    },
}

impl Op {
    /// Whether this is a parameter of the checkpoint.
    pub fn is_param(&self) -> bool {
        matches!(self, Op::Param(_))
    }

    /// The name in text forms and messages.
    pub fn name(&self) -> &'static str {
        match self {
            Op::Input(_) => "input",
            Op::Param(_) => "param",
            Op::Linear => "linear",
            Op::Add => "add",
            Op::Mul => "mul",
            Op::Scale(_) => "scale",
            Op::Cast => "cast",
            Op::Map(_) => "map",
            Op::Activate(_) => "activate",
            Op::Score(_) => "score",
            Op::RmsNorm { .. } => "rms_norm",
            Op::Quantise(_) => "quantise",
            Op::GroupLimit { .. } => "group_limit",
            Op::TopK { .. } => "top_k",
            Op::GatherScores => "gather_scores",
            Op::Renormalise(_) => "renormalise",
            Op::Reduce(_) => "reduce",
            Op::MaskChosen => "mask_chosen",
            Op::JoinColumns => "join_columns",
            Op::Lookup => "lookup",
            Op::SumOutside { .. } => "sum_outside",
            Op::LocalIds { .. } => "local_ids",
            Op::Permute { .. } => "permute",
            Op::Unpermute { .. } => "unpermute",
            Op::SlotToRow { .. } => "slot_to_row",
            Op::StoreAt { .. } => "store_at",
            Op::GroupedLinear => "grouped_linear",
            Op::WeightedSum => "weighted_sum",
            Op::Concat { .. } => "concat",
            Op::Half(_) => "half",
            Op::GatherGroupedLinear => "gather_grouped_linear",
            Op::GroupedLinearAct { .. } => "grouped_linear_act",
            Op::LinearAct { .. } => "linear_act",
            Op::Combine { .. } => "combine",
        }
    }
}
