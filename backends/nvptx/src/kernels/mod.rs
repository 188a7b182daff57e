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
use moec_ir::shape::Dim;
use moec_ir::tile::{Body, BufferId, GpuLaunch, Program, Role, RowOpKind};
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
        View { base: self.builder.param(n), dtype: buffer.dtype, cols: buffer.cols, pitch: buffer.pitch }
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
}

impl<'c> View<'c> {
    /// The address of column 0 of a row.
    pub fn row(&self, row: I32<'c>) -> Global<'c> {
        self.base.plus(row.wide() * (self.pitch * self.dtype.bytes() as u64))
    }

    /// The address of an element.
    pub fn at(&self, row: I32<'c>, col: I32<'c>) -> Global<'c> {
        self.row(row).plus(col.wide() * self.dtype.bytes() as u64)
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
/// `element-type-not-on-gpu` for 64-bit elements, but for token ids that a table is read by, and expert ids that are made narrow.
pub fn check_types(program: &Program, body: &Body) -> Result<(), Diagnostic> {
    let ids = |id| match body {
        Body::Rows(rows) => rows.ops.iter().any(|op| match op.kind {
            RowOpKind::Lookup { index, .. } => index == id,
            RowOpKind::Load(from) => from == id,
            _ => false,
        }),
        Body::Contract(_) | Body::Plan(_) | Body::Map(_) | Body::Quantise(_) | Body::Combine(_) => false,
    };
    for (id, _) in body.operands() {
        let buffer = program.buffer(id);
        if buffer.dtype == DType::I64 && ids(id) {
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
