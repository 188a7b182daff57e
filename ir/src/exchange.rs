//! The kernels that exchange rows between ranks, as whoever launches them sees them.
//!
//! A step on a rank is: the layer's head, `dispatch`, `receive`, the experts, `answer`, `collect`, the layer's tail. Experts read rows,
//! and the tail reads results, where they lie in the rank's window ([`crate::window`]), at the parity of the step. The last product of the
//! experts stores results into the windows of the tokens' ranks ([`slot_places`]); `answer` says that they are there. Rows of codes become
//! floats before the experts (`decode`). Where experts are cut over a group of ranks, `share` is between their two products.

use crate::DType;
use crate::act_quant::ActQuant;
use crate::window::Window;
use serde::{Deserialize, Serialize};

/// Threads of a block of these kernels.
pub const THREADS: u32 = 128;

/// What the kernels of a layer depend on. Ranks and numbers of tokens are read when they run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Exchange {
    /// Slots of a token.
    pub top_k: u32,
    /// Bytes of a row on its way to its experts.
    pub row_bytes: u64,
    /// What these are where they are codes and scales, and not the row as it is.
    pub codes: Option<RowCodes>,
    /// Bytes of a result row.
    pub result_bytes: u64,
    /// Element type of expert ids: i32 or i64.
    pub ids: DType,
    /// Element type of the slots' weights, where there are any.
    pub weights: Option<DType>,
    /// What this rank has of its experts, where a group of ranks shares their matrices column by column.
    pub cut: Option<Cut>,
}

/// A member of a group of ranks. Rank `g * members + member` is in group `g`, which has the experts that the placement map gives to `g`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cut {
    /// Ranks of a group.
    pub members: u32,
    /// Which of them the kernels are for.
    pub member: u32,
    /// Bytes of a row of activations.
    pub act_bytes: u64,
    /// Those of them that this member computes.
    pub act: Piece,
    /// The bytes of a result row that it computes.
    pub result: Piece,
}

/// Bytes of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Piece {
    /// The first.
    pub first: u64,
    /// How many.
    pub bytes: u64,
}

impl Exchange {
    /// Bytes from one row to the next in windows. Rows of floats are as dense as experts read them; codes begin where vectors can.
    pub fn row_pitch(&self) -> u64 {
        if self.codes.is_some() { self.row_bytes.next_multiple_of(16) } else { self.row_bytes }
    }

    /// Ranks that have a part of the same experts.
    pub fn n_members(&self) -> u32 {
        self.cut.map_or(1, |c| c.members)
    }

    /// What of a result row this rank computes.
    pub fn own_result(&self) -> Piece {
        self.cut.map_or(Piece { first: 0, bytes: self.result_bytes }, |c| c.result)
    }

    /// The kernels of a step in the order in which they run, without their text: what they are given, and how they are launched.
    pub fn kernels(&self) -> Vec<ExchangeKernel> {
        use ExchangeParam as P;
        let kernel = |name: &str, stage, blocks, smem_bytes, params: &[&[P]]| ExchangeKernel {
            entry: format!("moec_{name}"),
            ptx: String::new(),
            params: params.concat(),
            stage,
            blocks,
            threads: THREADS,
            smem_bytes,
        };
        // One number, which the last block of several is told by.
        let number = 4;
        let coded: &[P] = if self.codes.is_some() { &[P::Coded] } else { &[] };
        // Of each slot owner, local expert, and whether it is the first of its owner; a number.
        let of_slots = 12 * self.top_k + number;
        let dispatch = [P::Terms, P::Peers, P::Map, P::Rows, P::Ids, P::SentTo, P::Counters, P::Count];
        let receive = [P::Terms, P::Peers, P::Map, P::LocalIds, P::Report];
        let mut all = vec![
            kernel("dispatch", Stage::Before, Blocks::Tokens, of_slots, &[&dispatch, coded]),
            kernel("receive", Stage::Before, Blocks::Ranks, 0, &[&receive]),
        ];
        if self.codes.is_some() {
            let params = [P::Terms, P::Peers, P::LocalIds, P::Decoded];
            all.push(kernel("decode", Stage::Before, Blocks::AllTokens, 0, &[&params]));
        }
        if self.cut.is_some() {
            let params = [P::Terms, P::Peers, P::SlotToRow, P::Columns, P::Counters, P::Report];
            all.push(kernel("share", Stage::Between, Blocks::AllTokens, number, &[&params]));
        }
        let answer = [P::Terms, P::Peers, P::LocalIds];
        let weights: &[P] = if self.weights.is_some() { &[P::Weights, P::SlotWeights] } else { &[] };
        let collect = [P::Terms, P::Peers, P::SentTo, P::Counters, P::Report, P::Count];
        all.push(kernel("answer", Stage::Behind, Blocks::Ranks, 0, &[&answer]));
        all.push(kernel("collect", Stage::Behind, Blocks::Ranks, number, &[&collect, weights]));
        all
    }

    /// What the places of results are multiples of, in elements of so many bytes: no more than vectors of stores need.
    pub fn result_unit(&self, element_bytes: u64) -> u32 {
        let [row, first] = [self.result_bytes, self.own_result().first].map(|bytes| bytes / element_bytes.max(1));
        [8, 4, 2].into_iter().find(|n| [row, first].iter().all(|x| x.is_multiple_of((*n).into()))).unwrap_or(1)
    }

    /// The window of each of `n_ranks` ranks of up to `max_tokens` tokens.
    pub fn window(&self, n_ranks: u32, max_tokens: u32) -> Window {
        Window {
            n_ranks,
            max_tokens,
            top_k: self.top_k,
            row_bytes: self.row_pitch(),
            result_bytes: self.result_bytes,
            n_members: self.n_members(),
            act_bytes: self.cut.map_or(0, |c| c.act_bytes),
        }
    }
}

/// Where the experts of a rank store results in steps of each parity: for each slot that may come, the address of this rank's part of its
/// row in the window of the token's rank, i64 `[R * max tokens, K]`. `windows` are the addresses of all ranks' windows.
pub fn slot_places(exchange: &Exchange, window: &Window, windows: &[u64]) -> [Vec<u64>; 2] {
    let first = exchange.own_result().first;
    window.parts().results.map(|results| {
        let slots = 0..u64::from(window.max_tokens) * u64::from(window.top_k);
        let of_rank = |&at: &u64| slots.clone().map(move |slot| at + results + slot * window.result_bytes + first);
        windows.iter().flat_map(of_rank).collect()
    })
}

/// Rows that travel as codes: codes, as whole words of 4 bytes; the row's global scale, where the format has one; scales.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RowCodes {
    /// The format. One with a given global scale does not travel.
    pub quant: ActQuant,
    /// Elements of a row.
    pub cols: u32,
    /// Element type of rows before they are rounded.
    pub sent: DType,
    /// Element type that experts read.
    pub read: DType,
}

impl RowCodes {
    /// Elements of a word of codes.
    pub fn word_elems(self) -> u32 {
        32 / self.quant.code.bits() as u32
    }

    /// Whether blocks are whole words of codes, as kernels make them.
    pub fn has_whole_words(self) -> bool {
        self.quant.block.is_multiple_of(self.word_elems())
    }

    /// The first byte of the row's global scale, and of what follows the codes where it has none.
    pub fn global_at(self) -> u64 {
        self.quant.stored().code.bytes(self.cols.into()).next_multiple_of(4)
    }

    /// The first byte of the scales.
    pub fn scales_at(self) -> u64 {
        self.global_at() + if self.quant.has_row() { 4 } else { 0 }
    }

    /// Bytes of a row.
    pub fn bytes(self) -> u64 {
        let format = self.quant.stored();
        self.scales_at() + format.scale_grid(1, self.cols.into()).1 * format.scale.bytes()
    }
}

/// How many blocks a kernel takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Blocks {
    /// One for each token of this rank, at least one.
    Tokens,
    /// One for each rank.
    Ranks,
    /// One for each token that all ranks can have together.
    AllTokens,
}

/// When a kernel runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Before the experts.
    Before,
    /// Between the first products of experts that are cut, and the second.
    Between,
    /// Behind the experts.
    Behind,
}

/// A kernel of an exchange.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExchangeKernel {
    /// Name of the `.entry`.
    pub entry: String,
    /// PTX text of a module with this one entry; on disk, a file of its own.
    #[serde(skip)]
    pub ptx: String,
    /// Its parameters, in order: pointers to global memory.
    pub params: Vec<ExchangeParam>,
    /// When it runs; those of a stage, one after the other.
    pub stage: Stage,
    /// Blocks along x.
    pub blocks: Blocks,
    /// Threads of a block.
    pub threads: u32,
    /// Dynamic shared memory of a block, in bytes.
    pub smem_bytes: u32,
}

/// What a parameter points to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExchangeParam {
    /// [`crate::window::RankTerms`].
    Terms,
    /// The address of each rank's window, and one at which a store reaches the same place of all of them, 0 where there is none: u64
    /// `[R + 1]`.
    Peers,
    /// The placement map ([`crate::Placement::to_words`]).
    Map,
    /// This rank's tokens' rows, `[T, row]`: as they travel, or before they are rounded to codes.
    Rows,
    /// The same rows as codes, each [`Exchange::row_pitch`] bytes behind the one before.
    Coded,
    /// Their experts `[T, K]`.
    Ids,
    /// Where each slot went: a rank, or a group where experts are cut, or -1, i32 `[T, K]`.
    SentTo,
    /// The weights of their slots `[T, K]`.
    Weights,
    /// The same, -0 for slots that nobody has.
    SlotWeights,
    /// Local experts of what came, negative for none: i32 `[R * max tokens, K]`.
    LocalIds,
    /// The floats of rows of codes that came, `[R * max tokens, row]`.
    Decoded,
    /// This rank's columns of the activations of what came, in expert order, `[R * max tokens * K, columns]`.
    Columns,
    /// Which row of the columns a slot of what came has; negative for none: i32 `[R * max tokens, K]`.
    SlotToRow,
    /// A counter for each rank and one more, i32, all 0 before and after.
    Counters,
    /// A line for each rank ([`crate::window::WaitReport`]).
    Report,
    /// The number of this rank's tokens, u32.
    Count,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::Wire;

    #[test]
    fn rows_of_codes_are_as_large_as_the_wire_says() {
        let of = |quant, cols| RowCodes { quant, cols, sent: DType::BF16, read: DType::F32 };
        for (name, quant) in ActQuant::NAMES.into_iter().filter(|(_, q)| !q.has_global()) {
            assert_eq!(of(quant, 7168).bytes(), Wire::Codes(quant).row_bytes(7168), "{name}");
        }
        let odd = of(ActQuant::NVFP4_ROW, 35);
        assert!(odd.has_whole_words() && !of(ActQuant { block: 10, ..ActQuant::MXFP4 }, 64).has_whole_words());
        assert_eq!((odd.global_at(), odd.scales_at(), odd.bytes()), (20, 24, 27));
        assert_eq!((of(ActQuant::FP8_TOKEN, 30).scales_at(), of(ActQuant::MXFP8, 64).bytes()), (32, 66));
    }
}
