//! The kernels that exchange rows between ranks, as whoever launches them sees them.
//!
//! A step on a rank is: the layer's head, `dispatch`, `receive`, the experts, `answer`, `collect`, the layer's tail. Experts read rows,
//! and the tail reads results, where they lie in the rank's window ([`crate::window`]), at the parity of the step.

use crate::DType;

/// What the kernels of a layer depend on. Ranks and numbers of tokens are read when they run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exchange {
    /// Slots of a token.
    pub top_k: u32,
    /// Bytes of a row on its way to its experts.
    pub row_bytes: u64,
    /// Bytes of a result row.
    pub result_bytes: u64,
    /// Element type of expert ids: i32 or i64.
    pub ids: DType,
    /// Element type of the slots' weights, where there are any.
    pub weights: Option<DType>,
}

/// How many blocks a kernel takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blocks {
    /// One for each token of this rank, at least one.
    Tokens,
    /// One for each rank.
    Ranks,
    /// One for each token that all ranks can have together.
    AllTokens,
}

/// A kernel of an exchange.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExchangeKernel {
    /// Name of the `.entry`.
    pub entry: &'static str,
    /// PTX text of a module with this one entry.
    pub ptx: String,
    /// Its parameters, in order: pointers to global memory.
    pub params: &'static [ExchangeParam],
    /// Blocks along x.
    pub blocks: Blocks,
    /// Threads of a block.
    pub threads: u32,
    /// Dynamic shared memory of a block, in bytes.
    pub smem_bytes: u32,
}

/// What a parameter points to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExchangeParam {
    /// [`crate::window::RankTerms`].
    Terms,
    /// The address of each rank's window, u64 `[R]`.
    Peers,
    /// The placement map ([`crate::Placement::to_words`]).
    Map,
    /// This rank's tokens' rows as they travel, `[T, row]`.
    Rows,
    /// Their experts `[T, K]`.
    Ids,
    /// Where each slot went: a rank or -1, i32 `[T, K]`.
    SentTo,
    /// The weights of their slots `[T, K]`.
    Weights,
    /// The same, -0 for slots that nobody has.
    SlotWeights,
    /// Local experts of what came, negative for none: i32 `[R * max tokens, K]`.
    LocalIds,
    /// Result rows of what came, `[R * max tokens * K, result]`.
    SlotRows,
    /// A counter for each rank and one more, i32, all 0 before and after.
    Counters,
    /// A line for each rank ([`crate::window::WaitReport`]).
    Report,
    /// The number of this rank's tokens, u32.
    Count,
}
