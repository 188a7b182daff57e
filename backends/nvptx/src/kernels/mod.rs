//! What all kernels share: their parameters, views of buffers, the elements of a launch.

mod combine;
mod elementwise;
pub mod exchange;
mod geometry;
mod map;
pub mod plan;
pub mod quantise;
pub mod rows;

pub use combine::{SlotSum, combine};
pub use geometry::Grid;
pub use map::map;

use crate::builder::{Builder, Global, I32, I64, Param};
use crate::parts::Tile;
use moec_ir::shape::Dim;
use moec_ir::tile::{Body, BufferId, GpuLaunch, Places, Program, Role, RowOpKind, Segment};
use moec_ir::{DType, Diagnostic};

/// A kernel before code is built for it: how it is launched, and what builds its body.
pub struct Design<'p> {
    pub launch: GpuLaunch,
    pub registers: Registers,
    pub body: BodyOf<'p>,
}

/// How many registers the assembler may give a thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Registers {
    /// As it thinks best for occupancy.
    Default,
    /// As many as the thread wants: the assembler would rather spill a few than have fewer blocks on a multiprocessor.
    Plenty,
}

/// Builds the body of a kernel.
pub type BodyOf<'p> = Box<dyn for<'c> FnOnce(&Kernel<'c, 'p>) + 'p>;

/// The kernel being built, with its parameters by buffer.
pub struct Kernel<'c, 'p> {
    pub builder: &'c Builder<'c>,
    program: &'p Program,
    operands: Vec<(BufferId, bool)>,
}

/// The parameters of a kernel, in the order of the calling convention: its buffers, then the token count.
///
/// A kernel that starts while its predecessor runs (`programmatic`) takes nothing for unchanging but the weights.
pub fn params(program: &Program, body: &Body, programmatic: bool) -> Vec<Param> {
    let unchanging = |id: BufferId| match program.buffer(id).role {
        Role::Weight(_) | Role::WeightScale(_) | Role::WeightGlobal(_) => true,
        Role::Input(_) | Role::Output(_) | Role::Workspace | Role::Counter => !programmatic,
    };
    let buffers = body.operands().into_iter().map(|(id, written)| Param { read_only: !written && unchanging(id) });
    buffers.chain([Param { read_only: !programmatic }]).collect()
}

impl<'c, 'p> Kernel<'c, 'p> {
    pub fn new(code: &'c Builder<'c>, program: &'p Program, body: &Body) -> Kernel<'c, 'p> {
        Kernel { builder: code, program, operands: body.operands() }
    }

    /// The token count, read from device memory.
    pub fn n_tokens(&self) -> I32<'c> {
        self.builder.load_i32(self.builder.param(self.operands.len()))
    }

    /// A buffer as the kernel sees it.
    pub fn view(&self, id: BufferId) -> View<'c> {
        let n = self.operands.iter().position(|&(b, _)| b == id).unwrap_or(self.operands.len() + 1);
        let buffer = self.program.buffer(id);
        let base = self.builder.param(n);
        View { base, dtype: buffer.dtype, cols: buffer.cols, pitch: buffer.pitch, places: None }
    }

    /// A result, whose rows may have places. Those behind row `last` are taken to lie where it does: their places are not known, and
    /// nothing is stored there.
    pub fn result(&self, id: BufferId, places: Option<Places>, last: I32<'c>) -> View<'c> {
        let places = places.map(|p| RowPlaces { table: self.view(p.of_rows).base, last, unit: p.unit });
        View { places, ..self.view(id) }
    }

    /// What a product stores of a tile's rows.
    pub fn result_of(&self, segment: &Segment, tile: &Tile<'c>) -> View<'c> {
        self.result(segment.out, segment.out_places, tile.row + tile.rows - 1)
    }

    /// The rows of an axis, or those of them that hold a slot.
    pub fn rows_until(&self, dim: Dim, offsets: Option<BufferId>) -> I32<'c> {
        let rows = self.length(dim, self.n_tokens());
        let Some(id) = offsets else { return rows };
        let offsets = self.view(id);
        let last = self.builder.i32(offsets.cols as u32 - 1);
        rows.min(self.builder.load_i32(offsets.nth(last)))
    }

    /// An axis at the token count of this run.
    pub fn length(&self, dim: Dim, n_tokens: I32<'c>) -> I32<'c> {
        match dim {
            Dim::Fixed(n) => self.builder.i32(n as u32),
            Dim::PerToken(1) => n_tokens,
            Dim::PerToken(k) => n_tokens * k as u32,
        }
    }
}

/// A buffer in a kernel. Rows of all matrices of a batch are counted through.
#[derive(Clone, Copy)]
pub struct View<'c> {
    pub base: Global<'c>,
    pub dtype: DType,
    pub cols: u64,
    /// Elements from one row to the next.
    pub pitch: u64,
    /// Where rows lie that are stored into memory of others.
    places: Option<RowPlaces<'c>>,
}

/// Addresses of rows.
#[derive(Clone, Copy)]
struct RowPlaces<'c> {
    /// i64, one for each row.
    table: Global<'c>,
    /// The last row that has one.
    last: I32<'c>,
    /// They are multiples of so many elements.
    unit: u64,
}

impl<'c> View<'c> {
    /// The address of column 0 of a row.
    pub fn row(&self, row: I32<'c>) -> Global<'c> {
        if let Some(places) = &self.places {
            return places.table.plus(row.min(places.last).wide() * 8).address();
        }
        self.base.plus(row.wide() * (self.pitch * self.dtype.bytes() as u64))
    }

    /// The address of an element.
    pub fn at(&self, row: I32<'c>, col: I32<'c>) -> Global<'c> {
        self.row(row).plus(col.wide() * self.dtype.bytes() as u64)
    }

    /// The addresses of a column in `n` rows from `row` on.
    pub fn column(&self, row: I32<'c>, col: I32<'c>, n: u32) -> Vec<Global<'c>> {
        if self.places.is_some() {
            return (0..n).map(|i| self.at(row + i, col)).collect();
        }
        let (first, row_bytes) = (self.at(row, col), self.pitch * self.dtype.bytes() as u64);
        (0..n).map(|i| first.plus(u64::from(i) * row_bytes)).collect()
    }

    /// What rows begin at multiples of, in elements, up to their distance.
    pub fn unit(&self) -> u64 {
        self.places.as_ref().map_or(self.pitch, |p| p.unit)
    }

    /// The address of the n-th element, counting row by row without padding.
    pub fn nth(&self, n: I32<'c>) -> Global<'c> {
        if self.pitch == self.cols {
            return self.base.plus(n.wide() * self.dtype.bytes() as u64);
        }
        self.at(n / self.cols as u32, n % self.cols as u32)
    }

    /// A byte offset from elements of this buffer.
    pub fn bytes(&self, elements: I32<'c>) -> I64<'c> {
        elements.wide() * self.dtype.bytes() as u64
    }
}

/// Refuses element types that no kernel computes with.
///
/// # Errors
/// `element-type-not-on-gpu` for 64-bit elements, but for token ids that a table is read by, expert ids that are made narrow, and addresses.
pub fn check_types(program: &Program, body: &Body) -> Result<(), Diagnostic> {
    let ids = |id| match body {
        Body::Rows(rows) => rows.ops.iter().any(|op| match op.kind {
            RowOpKind::Lookup { index, .. } => index == id,
            RowOpKind::Load(from) => from == id,
            _ => false,
        }),
        Body::Contract(_) | Body::Plan(_) | Body::Map(_) | Body::Quantise(_) | Body::Combine(_) => false,
    };
    let addresses = |id| match body {
        Body::Plan(p) => p.places.is_some_and(|p| p.of_slots == id || p.of_rows == id),
        Body::Rows(r) => {
            r.plan.as_ref().and_then(|p| p.plan.places).is_some_and(|p| p.of_slots == id || p.of_rows == id)
        }
        Body::Contract(c) => c.segments.iter().any(|s| s.out_places.is_some_and(|p| p.of_rows == id)),
        Body::Map(m) => m.out_places.is_some_and(|p| p.of_rows == id),
        Body::Quantise(_) | Body::Combine(_) => false,
    };
    for (id, _) in body.operands() {
        let buffer = program.buffer(id);
        if buffer.dtype == DType::I64 && (ids(id) || addresses(id)) {
            continue;
        }
        if matches!(buffer.dtype, DType::F64 | DType::I64) {
            return Err(Diagnostic::input(
                "element-type-not-on-gpu",
                format!(
                    "buffer `{}` has elements of type {}; GPU kernels take f32, f16, bf16 and i32",
                    buffer.name, buffer.dtype
                ),
            )
            .help("give the layer's inputs and parameters in one of these types"));
        }
    }
    // Values between the operations of a kernel, which are no buffers.
    if matches!(body, Body::Rows(p) if p.ops.iter().any(|op| op.dtype == DType::F64)) {
        return Err(Diagnostic::input(
            "element-type-not-on-gpu",
            "a kernel makes values of type f64; GPU kernels take f32, f16, bf16 and i32",
        )
        .help("give the layer's nodes in one of these types"));
    }
    Ok(())
}
