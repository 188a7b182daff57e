//! The tile IR: how a layer runs.
//!
//! A [`Program`] is a short list of [`Kernel`]s over [`Buffer`]s, launched one after another on one stream. A kernel is
//! one of six bodies: a contraction (router, dense and grouped GEMMs), a row program (scores, top-k, weights), the
//! dispatch plan, an elementwise map, the rounding of rows to codes, and the combine. What is computed on each element is an [`Expr`](crate::Expr).
//!
//! # Rules that every backend follows
//!
//! * Elements are read in their buffer's type and widened to f32 (i32 stays i32); everything is computed in f32; a store
//!   rounds to the type of the buffer, to nearest even.
//! * The token count `T` is read from device memory when the program runs. Every kernel is right for any `T`, 0 included,
//!   up to the largest for which the workspace was made.
//! * Element `(b, r, c)` of a buffer is at element offset `(b * rows + r) * pitch + c`. Columns from `cols` to `pitch`
//!   are padding: weights hold zeros there, other buffers anything. Where a kernel says of its result that rows have [`Places`], element
//!   `(r, c)` is `c` elements behind the address of row `r`.
//! * A kernel writes only its outputs, never reads what it writes, and sees everything that earlier kernels wrote. A plan or a
//!   combine at the end of a kernel counts as another kernel.

mod coded_rows;
mod contract;
mod eval;
mod launch;
mod parse;
mod print;
mod rows;
mod schedule;
mod summary;
mod verify;

pub use coded_rows::{Pairing, Quantise, RowQuant, ScaledProduct};
pub use contract::{Chain, Contract, ContractCombine, Groups, Panel, PanelQuant, RowMap, STRIP, Segment};
pub use eval::{evaluate, evaluate_given};
pub use launch::{CpuLaunch, Extent, GpuLaunch, MapElem, TensorMap};
pub use parse::parse;
pub use rows::{RowId, RowLogits, RowOp, RowOpKind, RowPlan, RowProgram, RowStore};
pub use schedule::{Schedule, Team};
pub use verify::verify;

use crate::DType;
use crate::expr::Expr;
use crate::shape::Dim;
use serde::{Deserialize, Serialize};

/// Index into [`Program::buffers`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BufferId(pub u32);

impl BufferId {
    /// Index into [`Program::buffers`].
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// What a buffer is for, and who makes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Given by the caller at every run: index into the graph's inputs.
    Input(u32),
    /// Given by the caller, written by the program: index into the graph's outputs.
    Output(u32),
    /// Packed once when the layer is loaded: index into the graph's parameters.
    Weight(u32),
    /// Packed likewise: the scales of the parameter's codes, which are in a buffer of role `Weight`.
    WeightScale(u32),
    /// Packed likewise: the parameter's scales of whole matrices.
    WeightGlobal(u32),
    /// Intermediate; part of the workspace.
    Workspace,
    /// One i32 or several that are 0 whenever no kernel runs: set to 0 when the layer is loaded, and again by the kernel that
    /// counts. It survives from run to run, so that it shares memory with nothing.
    Counter,
}

/// A piece of device memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Buffer {
    /// Unique name within the program.
    pub name: String,
    /// Element type.
    pub dtype: DType,
    /// Number of matrices one behind the other: E for expert weights, else 1.
    pub batch: u64,
    /// Rows of a matrix.
    pub rows: Dim,
    /// Columns of a matrix, in elements.
    pub cols: u64,
    /// Distance of two rows, in elements; at least `cols`.
    pub pitch: u64,
    /// What it is for.
    pub role: Role,
}

impl Role {
    /// The parameter that the buffer is packed from, for buffers of weights.
    pub fn param(&self) -> Option<u32> {
        match *self {
            Role::Weight(i) | Role::WeightScale(i) | Role::WeightGlobal(i) => Some(i),
            Role::Input(_) | Role::Output(_) | Role::Workspace | Role::Counter => None,
        }
    }
}

impl Buffer {
    /// Size in bytes for a given token count.
    pub fn bytes(&self, n_tokens: u64) -> u64 {
        self.batch * self.rows.at(n_tokens) * self.pitch * self.dtype.bytes() as u64
    }
}

/// How a layer runs on one kind of machine for a range of token counts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Program {
    /// Name, for people and symbol names.
    pub name: String,
    /// Every buffer that a kernel names.
    pub buffers: Vec<Buffer>,
    /// Kernels in launch order.
    pub kernels: Vec<Kernel>,
}

impl Program {
    /// The buffer called by `id`.
    pub fn buffer(&self, id: BufferId) -> &Buffer {
        &self.buffers[id.index()]
    }
}

/// One launch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Kernel {
    /// Unique name within the program; a valid symbol name (`gemm1`, `route`).
    pub name: String,
    /// What it computes.
    pub body: Body,
    /// How its work is cut up.
    pub schedule: Schedule,
}

/// What a kernel computes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Body {
    /// Matrix products with an epilogue.
    Contract(Contract),
    /// A small program on each token's row.
    Rows(RowProgram),
    /// Expert order from the chosen experts.
    Plan(Plan),
    /// An elementwise expression.
    Map(Map),
    /// Rows of codes from rows of floats.
    Quantise(Quantise),
    /// The weighted sum over a token's slots.
    Combine(Combine),
}

/// Where rows lie that a kernel stores into memory of others: each at an address of its own. What such a buffer *holds* is counted as
/// ever; no kernel reads it, and it has no memory in the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Places {
    /// i64 `[rows, 1]`: the address of each row.
    pub of_rows: BufferId,
    /// Addresses are multiples of so many elements, so that stores may be so wide.
    pub unit: u64,
}

/// Addresses of slots, in expert order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SlotPlaces {
    /// i64 `[T, K]`: where the row of each slot goes.
    pub of_slots: BufferId,
    /// Out: i64 `[T*K, 1]`; the same for each row in expert order, anything for rows from `offsets[E]` on.
    pub of_rows: BufferId,
}

/// Makes expert order from the chosen experts, by a stable counting sort.
///
/// A slot whose id is outside `0..n_experts` is not dispatched.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// Chosen experts: i32 `[T, K]`.
    pub ids: BufferId,
    /// E.
    pub n_experts: u64,
    /// Out: i32 `[1, E+1]`; expert `e` has rows `offsets[e] .. offsets[e+1]`.
    pub offsets: BufferId,
    /// Out: i32 `[T, K]`; the row of each slot, or -1 when it is not dispatched.
    pub slot_to_row: BufferId,
    /// Out: i32 `[T*K, 1]`; the token of each row, or -1 for rows from `offsets[E]` on.
    pub row_to_token: BufferId,
    /// Where rows go, if they are stored into memory of others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub places: Option<SlotPlaces>,
}

impl Plan {
    fn operands(&self, add: &mut impl FnMut(BufferId, bool)) {
        add(self.ids, false);
        [self.offsets, self.slot_to_row, self.row_to_token].into_iter().for_each(|b| add(b, true));
        if let Some(SlotPlaces { of_slots, of_rows }) = self.places {
            add(of_slots, false);
            add(of_rows, true);
        }
    }
}

/// `out[r, c] = expr(args[0][r, c], args[1][r, c], …)` for all columns of `out` and its rows, or those that hold a slot.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Map {
    /// Arguments of the expression.
    pub args: Vec<MapArg>,
    /// The expression.
    pub expr: Expr,
    /// The result; batch 1.
    pub out: BufferId,
    /// Rows in expert order end where the last expert's do: those from the last entry of these offsets on hold no slot, and
    /// are left as they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<BufferId>,
    /// Where rows of the result lie, if not one behind the other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub out_places: Option<Places>,
}

/// One argument of an elementwise expression, and how it is addressed from `(r, c)` of the result.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MapArg {
    /// A float buffer of batch 1.
    pub buffer: BufferId,
    /// Which row is read.
    pub row: RowAccess,
    /// Which column is read.
    pub col: ColAccess,
}

/// Which row of an argument is read for row `r` of the result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RowAccess {
    /// Row `r`.
    Same,
    /// Row 0, for every `r`.
    First,
    /// Row `map[r]`, counting the elements of the i32 buffer row by row (its pitch equals its columns); the argument is 0
    /// where the map is negative.
    Through(BufferId),
}

/// Which column of an argument is read for column `c` of the result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ColAccess {
    /// Column `c + offset`.
    From(u64),
    /// Column 0, for every `c`.
    First,
    /// The largest magnitude among the columns of the aligned group of this many columns that `c` lies in (the last group
    /// may be shorter), NaN when one is NaN: what a block's scale is made of.
    AbsMax(u64),
}

/// `out[t, c] = expr(s, args…)` with `s = Σ_j weights[t, j] · y[row(t, j), c]`, added in slot order in f32.
///
/// A fused multiply-add is allowed for each term. Slots without a row (-1) add nothing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Combine {
    /// Expert results: `[T*K, H]`.
    pub y: BufferId,
    /// i32 `[T, K]`: the row of `y` of each slot; `None` when `y` is in slot order (row `t*K + j`).
    pub slot_to_row: Option<BufferId>,
    /// Routing weights: `[T, K]`, float.
    pub weights: BufferId,
    /// Arguments 1, 2, … of the expression; argument 0 is the sum.
    pub args: Vec<MapArg>,
    /// The expression.
    pub expr: Expr,
    /// `[T, H]`.
    pub out: BufferId,
}

impl Combine {
    fn operands(&self, add: &mut impl FnMut(BufferId, bool)) {
        add(self.y, false);
        self.slot_to_row.into_iter().for_each(|map| add(map, false));
        add(self.weights, false);
        arg_operands(&self.args, add);
        add(self.out, true);
    }
}

fn arg_operands(list: &[MapArg], add: &mut impl FnMut(BufferId, bool)) {
    for a in list {
        add(a.buffer, false);
        if let RowAccess::Through(map) = a.row {
            add(map, false);
        }
    }
}

impl Body {
    /// The weights that a CPU kernel reads at the strides that it is given: panels of products, and their scales.
    pub fn strided(&self) -> Vec<BufferId> {
        let Body::Contract(c) = self else { return Vec::new() };
        let panels = c.segments.iter().flat_map(|s| &s.panels);
        panels.flat_map(|p| [Some(p.weights), p.quant.as_ref().map(|q| q.scales)]).flatten().collect()
    }

    /// The buffers of the kernel in the order of its parameters, each once; outputs are marked `true`.
    ///
    /// This order is the calling convention: [`crate::abi`].
    pub fn operands(&self) -> Vec<(BufferId, bool)> {
        let mut list: Vec<(BufferId, bool)> = Vec::new();
        let mut add = |id: BufferId, written: bool| {
            if !list.iter().any(|&(b, _)| b == id) {
                list.push((id, written));
            }
        };
        match self {
            Body::Contract(c) => c.operands(&mut add),
            Body::Rows(p) => p.operands(&mut add),
            Body::Plan(p) => p.operands(&mut add),
            Body::Quantise(q) => q.operands(&mut add),
            Body::Map(m) => {
                arg_operands(&m.args, &mut add);
                m.until.into_iter().chain(m.out_places.map(|p| p.of_rows)).for_each(|b| add(b, false));
                add(m.out, true);
            }
            Body::Combine(c) => c.operands(&mut add),
        }
        list
    }
}
