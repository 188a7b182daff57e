//! Contractions: dense and grouped GEMMs with gathered rows and an epilogue.

use super::{Buffer, BufferId, Combine, Places, Program, RowQuant};
use crate::DType;
use crate::act_quant::ActQuant;
use crate::expr::Expr;
use crate::quant::QuantFormat;
use serde::{Deserialize, Serialize};

/// One or more matrix products that are launched together; their tiles share one grid.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Contract {
    /// The products. They do not depend on each other but for [`Contract::chains`]. Of those that nothing is chained to, at most one
    /// is [`Groups::ByExpert`].
    pub segments: Vec<Segment>,
    /// Segments whose rows are results of others of the same launch.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub chains: Vec<Chain>,
    /// Where there are chains: i32 `[1, 1]`, from which CTAs draw the numbers of their tiles. [`super::Role::Counter`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub numbers: Option<BufferId>,
    /// Made of all results of a run of columns, by whoever stores the last of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub combine: Option<ContractCombine>,
}

/// A segment that reads what another of the launch makes: its tiles wait for the rows of their expert. One launch less.
///
/// Tiles of a launch have numbers, segment by segment, and CTAs draw them from the lowest on ([`Contract::numbers`]). So a tile waits
/// for tiles that CTAs have which run and wait for nothing, however few of the launch's CTAs run at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Chain {
    /// The segment that makes the rows, by number.
    pub made_by: u32,
    /// The segment that reads them, a later one with the same groups.
    pub read_by: u32,
    /// i32 `[2, E]`, 1 for a dense segment: parts of an expert's rows that are stored, and parts of its results for which they were
    /// read. [`super::Role::Counter`].
    pub counter: BufferId,
}

/// The weighted sum over slots at the end of a contraction: one launch less.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ContractCombine {
    /// What is made. It reads the results of all segments that no other one reads, column by column.
    pub combine: Combine,
    /// Counts stored rows for each [`STRIP`] columns, i32 `[1, ceil(H / STRIP)]`: [`super::Role::Counter`].
    pub counter: BufferId,
}

/// Columns whose rows are counted together: the fewest that a warp stores.
pub const STRIP: u64 = 16;

/// `out[r, n] = epilogue(acc_0, acc_1, …)` with
/// `acc_p = Σ_k a[row(r), k] · panels[p][e(r), n, k] + biases[p][e(r), n]`, for every row `r` of the domain.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Segment {
    /// Activations: float `[rows, K]`, batch 1; or codes of them.
    pub a: BufferId,
    /// How codes of activations become floats; `None` when `a` are floats. Where they are codes, every panel is, too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub a_quant: Option<RowQuant>,
    /// What rows of floats are rounded to as they are read: a format that is not stored. Every panel is then codes that it is
    /// multiplied with, whose values are not rounded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub a_round: Option<ActQuant>,
    /// Which row of `a` belongs to row `r`.
    pub a_rows: RowMap,
    /// The rows of the domain and the expert of each.
    pub groups: Groups,
    /// Weights, one or two of them (gate and up) with equal shapes: `[E, N, K]`, or `[1, N, K]` for a dense segment.
    pub panels: Vec<Panel>,
    /// For each panel, its bias `[E, N]` (batch 1, rows E; rows 1 for a dense segment), added in f32 before the epilogue.
    pub biases: Vec<Option<BufferId>>,
    /// Argument `p` is accumulator `p`.
    pub epilogue: Expr,
    /// The result: `[rows, N]`, batch 1; rows outside the domain are not written. Or codes of it.
    pub out: BufferId,
    /// The codes that the result is rounded to; not in a format whose global scale is the row's own, for that needs the
    /// whole row.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub out_quant: Option<RowQuant>,
    /// Where rows of the result lie, if not one behind the other: floats.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub out_places: Option<Places>,
}

/// The weights of a segment: floats as they are, or codes and scales from which a kernel makes the floats as it reads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Panel {
    /// Floats `[E, N, K]`; or codes, u8 `[E, N, bytes]` with the bytes of K codes in a row, rows a multiple of 16 bytes apart.
    pub weights: BufferId,
    /// How codes become floats; `None` when `weights` are floats.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quant: Option<PanelQuant>,
}

/// What the codes of a panel mean: `value[e, n, k] = round(code[e, n, k] · (scale · global[e]))`, both products in f32, each
/// rounded once. `scale` is the one of the block that `(n, k)` lies in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PanelQuant {
    /// Codes, scales and blocks.
    pub format: QuantFormat,
    /// `[E, ceil(N / block_rows), ceil(K / block_cols)]` of [`crate::quant::ScaleCode::dtype`].
    pub scales: BufferId,
    /// f32 `[1, 1, E]`; 1 where there is none.
    pub global: Option<BufferId>,
    /// The type of the values: bf16, f16 or f32.
    pub round: DType,
}

impl Panel {
    /// Floats as they are.
    pub fn dense(weights: BufferId) -> Panel {
        Panel { weights, quant: None }
    }

    /// The element type of the values: what a product multiplies.
    pub fn dtype(&self, program: &Program) -> DType {
        self.quant.as_ref().map_or(program.buffer(self.weights).dtype, |q| q.round)
    }
}

/// Which row of the activations belongs to a row of the domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RowMap {
    /// The same row.
    Same,
    /// Row `map[r]` of an i32 `[rows, 1]` buffer (gathered rows); never negative within the domain.
    Gather(BufferId),
}

/// The rows of the domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Groups {
    /// All rows of `out`, with one matrix.
    Dense,
    /// Rows `offsets[e] .. offsets[e+1]` of `out` with matrix `e`.
    ByExpert {
        /// i32 `[1, E+1]`, as made by [`super::Plan`].
        offsets: BufferId,
    },
}

impl Contract {
    /// Of products alone.
    pub fn of(segments: Vec<Segment>) -> Contract {
        Contract { segments, chains: Vec::new(), numbers: None, combine: None }
    }

    /// Whether some tiles wait for others of the launch.
    pub fn is_chained(&self) -> bool {
        !self.chains.is_empty()
    }

    /// The chain by which a segment gets its rows, where another one makes them.
    pub fn chain_to(&self, segment: usize) -> Option<&Chain> {
        self.chains.iter().find(|c| c.read_by as usize == segment)
    }

    /// The chain by which a segment's results are read, where another one reads them.
    pub fn chain_from(&self, segment: usize) -> Option<&Chain> {
        self.chains.iter().find(|c| c.made_by as usize == segment)
    }

    /// The segments whose results no other one reads.
    pub fn last_segments(&self) -> impl Iterator<Item = (usize, &Segment)> {
        self.segments.iter().enumerate().filter(|(i, _)| self.chain_from(*i).is_none())
    }

    pub(super) fn operands(&self, add: &mut impl FnMut(BufferId, bool)) {
        self.segments.iter().for_each(|s| s.operands(add));
        self.chains.iter().map(|chain| chain.counter).chain(self.numbers).for_each(|counter| add(counter, true));
        if let Some(then) = &self.combine {
            then.combine.operands(add);
            add(then.counter, true);
        }
    }

    /// Whether copies by TMA can bring every operand to tensor cores: activations and the values of weights are 16-bit
    /// floats of one type, rows begin at multiples of 16 bytes, and blocks of scales are cut at multiples of 16 elements
    /// along K. The panels of a segment are all floats or all codes.
    pub fn is_tma_addressable(&self, program: &Program) -> bool {
        let aligned = |b: &Buffer| {
            let bytes = b.pitch * b.dtype.bytes() as u64;
            bytes.is_multiple_of(16) && bytes < 1 << 32
        };
        self.segments.iter().all(|s| {
            let a = program.buffer(s.a);
            let fits = |p: &Panel| {
                let blocks = p.quant.as_ref().map_or(0, |q| q.format.block_cols);
                p.dtype(program) == a.dtype
                    && aligned(program.buffer(p.weights))
                    && (blocks == 16 || blocks.is_multiple_of(32))
            };
            s.a_quant.is_none()
                && s.a_round.is_none()
                && matches!(a.dtype, DType::BF16 | DType::F16)
                && aligned(a)
                && s.panels.iter().all(fits)
                && s.panels.iter().all(|p| p.quant.is_some() == s.panels[0].quant.is_some())
        })
    }
}

impl Segment {
    /// K: elements of a row of activations.
    pub fn k(&self, program: &Program) -> u64 {
        self.a_quant.as_ref().map_or(program.buffer(self.a).cols, |q| q.cols)
    }

    /// N: elements of a row of the result.
    pub fn n(&self, program: &Program) -> u64 {
        self.out_quant.as_ref().map_or(program.buffer(self.out).cols, |q| q.cols)
    }

    /// Whether codes of weights become floats on the way to the products: its rows are floats, and a panel is codes.
    pub fn codes_become_floats(&self) -> bool {
        self.a_quant.is_none() && self.panels.iter().any(|p| p.quant.is_some())
    }

    fn operands(&self, add: &mut impl FnMut(BufferId, bool)) {
        add(self.a, false);
        if let Some(q) = &self.a_quant {
            q.operands(false, add);
        }
        if let RowMap::Gather(map) = self.a_rows {
            add(map, false);
        }
        if let Groups::ByExpert { offsets } = self.groups {
            add(offsets, false);
        }
        for panel in &self.panels {
            add(panel.weights, false);
            if let Some(q) = &panel.quant {
                add(q.scales, false);
                q.global.iter().for_each(|&b| add(b, false));
            }
        }
        self.biases.iter().flatten().for_each(|&b| add(b, false));
        add(self.out, true);
        if let Some(q) = &self.out_quant {
            q.operands(true, add);
        }
        if let Some(places) = &self.out_places {
            add(places.of_rows, false);
        }
    }
}
