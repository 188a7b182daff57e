//! What maps and combines share: blocks of rows and columns, and arguments addressed from them.

use crate::emit::{Emit, Lanes, plain};
use cranelift_codegen::ir::condcodes::{FloatCC, IntCC};
use cranelift_codegen::ir::{InstBuilder, Value};
use moec_ir::shape::Dim;
use moec_ir::tile::{Buffer, BufferId, ColAccess, Extent, MapArg, RowAccess, Schedule};

/// Least columns of a work item: below, finding the item costs as much as doing it.
const LEAST_COLUMNS: u64 = 64;

/// How the elements of a result are cut into work items.
#[derive(Clone, Copy, Debug)]
pub(super) struct Blocks {
    rows: u64,
    cols: u64,
    per_row: u64,
}

impl Blocks {
    /// `tile_m` rows (at least 1) by `tile_n` columns (rounded up to a multiple of 8, at least 64).
    pub fn new(out: &Buffer, schedule: Schedule) -> Blocks {
        let cols = u64::from(schedule.tile_n).next_multiple_of(8).max(LEAST_COLUMNS);
        Blocks { rows: u64::from(schedule.tile_m).max(1), cols, per_row: out.cols.div_ceil(cols) }
    }

    /// The number of items.
    pub fn items(self, out: &Buffer) -> Extent {
        row_items(out.rows, self.rows, self.per_row)
    }

    /// For every row of every item of the call: `body(row, first column, one past the last column)`.
    pub fn each_row(
        self,
        e: &mut Emit,
        out: &Buffer,
        until: Option<BufferId>,
        body: impl FnOnce(&mut Emit, Value, Value, Value),
    ) {
        let (begin, end) = (e.begin, e.end);
        e.each(begin, end, |e, item| {
            let per_row = e.int(self.per_row);
            let block = e.b.ins().udiv(item, per_row);
            let col_block = e.b.ins().urem(item, per_row);
            let c0 = e.times(col_block, self.cols);
            let c1 = e.plus(c0, self.cols as i64);
            let cols = e.int(out.cols);
            let c1 = e.smaller(c1, cols);
            each_row_of(e, block, self.rows, (out.rows, until), |e, row| body(e, row, c0, c1));
        });
    }
}

/// `count` items for each block of `rows_per_item` rows.
pub(super) fn row_items(rows: Dim, rows_per_item: u64, count: u64) -> Extent {
    match rows {
        Dim::Fixed(n) => Extent::fixed(n.div_ceil(rows_per_item) * count),
        Dim::PerToken(k) => Extent::tiles(k, rows_per_item, count),
    }
}

/// For each row of block `block`, up to the end of `rows`, or of those rows that hold a slot.
pub(super) fn each_row_of(
    e: &mut Emit,
    block: Value,
    rows_per_item: u64,
    (rows, until): (Dim, Option<BufferId>),
    body: impl FnOnce(&mut Emit, Value),
) {
    let r0 = e.times(block, rows_per_item);
    let r1 = e.plus(r0, rows_per_item as i64);
    let rows = e.dim(rows);
    let mut r1 = e.smaller(r1, rows);
    if let Some(offsets) = until {
        let last = e.int(e.buffer(offsets).cols.saturating_sub(1));
        let end = e.map_entry(offsets, last);
        r1 = e.smaller(r1, end);
    }
    e.each(r0, r1, body);
}

/// An argument, made ready for one row of the result.
pub(super) enum ArgRow {
    /// The same value in every column.
    Repeated(Value),
    /// Elements from `start`, which belongs to column 0.
    Along {
        start: Value,
        dtype: moec_ir::DType,
        /// Whether there is a row; without one the argument is 0.
        exists: Option<Value>,
    },
    /// The largest magnitude of each block of elements.
    Blocks { start: Value, dtype: moec_ir::DType, exists: Option<Value>, block: u64, cols: u64 },
}

impl ArgRow {
    /// Prepares `arg` for row `row`.
    pub fn new(e: &mut Emit, arg: &MapArg, row: Value) -> ArgRow {
        let (dtype, cols) = (e.buffer(arg.buffer).dtype, e.buffer(arg.buffer).cols);
        let (source, exists) = match arg.row {
            RowAccess::Same => (row, None),
            RowAccess::First => (e.int(0), None),
            RowAccess::Through(map) => {
                let source = e.map_entry(map, row);
                let exists = e.b.ins().icmp_imm_s(IntCC::SignedGreaterThanOrEqual, source, 0);
                (source, Some(exists))
            }
        };
        let start = e.row_pointer(arg.buffer, source);
        match arg.col {
            ColAccess::From(offset) => {
                let start = e.plus(start, (offset * dtype.bytes() as u64) as i64);
                ArgRow::Along { start, dtype, exists }
            }
            ColAccess::AbsMax(block) => ArgRow::Blocks { start, dtype, exists, block, cols },
            ColAccess::First => {
                let read = |e: &mut Emit| vec![e.load(Lanes::One, dtype, start, 0)];
                let value = match exists {
                    None => read(e),
                    Some(exists) => e.choose(exists, read, |e| vec![e.float(Lanes::One, 0.0)]),
                };
                ArgRow::Repeated(value[0])
            }
        }
    }

    /// Columns `col .. col + 8`.
    pub fn eight(&self, e: &mut Emit, col: Value) -> [Value; 2] {
        match *self {
            ArgRow::Repeated(v) => [e.splat(Lanes::Four, v); 2],
            ArgRow::Along { start, dtype, exists } => {
                let read = |e: &mut Emit| {
                    let at = e.at(start, col, dtype.bytes() as u64);
                    e.load_eight(dtype, plain(), at, 0).to_vec()
                };
                let v = match exists {
                    None => read(e),
                    Some(exists) => e.choose(exists, read, |e| vec![e.float(Lanes::Four, 0.0); 2]),
                };
                [v[0], v[1]]
            }
            // Eight columns start at a multiple of eight.
            ArgRow::Blocks { block, .. } if block.is_multiple_of(8) => {
                let most = self.one(e, col);
                [e.splat(Lanes::Four, most); 2]
            }
            ArgRow::Blocks { .. } => [0, 4].map(|first| {
                let mut four = e.float(Lanes::Four, 0.0);
                for lane in 0..4u8 {
                    let col = e.plus(col, first + i64::from(lane));
                    let most = self.one(e, col);
                    four = e.b.ins().insertlane(four, most, lane);
                }
                four
            }),
        }
    }

    /// Column `col`.
    pub fn one(&self, e: &mut Emit, col: Value) -> Value {
        match *self {
            ArgRow::Repeated(v) => v,
            ArgRow::Along { start, dtype, exists } => {
                let read = |e: &mut Emit| {
                    let at = e.at(start, col, dtype.bytes() as u64);
                    vec![e.load(Lanes::One, dtype, at, 0)]
                };
                match exists {
                    None => read(e)[0],
                    Some(exists) => e.choose(exists, read, |e| vec![e.float(Lanes::One, 0.0)])[0],
                }
            }
            ArgRow::Blocks { start, dtype, exists, block, cols } => {
                let read = |e: &mut Emit| {
                    let width = e.int(block);
                    let number = e.b.ins().udiv(col, width);
                    let first = e.times(number, block);
                    let (end, cols) = (e.plus(first, block as i64), e.int(cols));
                    let end = e.smaller(end, cols);
                    let zero = e.float(Lanes::One, 0.0);
                    e.repeat(first, end, 1, &[zero], |e, c, most| {
                        let at = e.at(start, c, dtype.bytes() as u64);
                        let x = e.load(Lanes::One, dtype, at, 0);
                        let x = e.b.ins().fabs(x);
                        vec![e.extreme(FloatCC::GreaterThan, most[0], x)]
                    })
                };
                match exists {
                    None => read(e)[0],
                    Some(exists) => e.choose(exists, read, |e| vec![e.float(Lanes::One, 0.0)])[0],
                }
            }
        }
    }
}

/// Columns `c0 .. c1`: `eight` for every eight of them, then `one` for each that is left.
pub(super) fn each_column(
    e: &mut Emit,
    c0: Value,
    c1: Value,
    eight: impl FnOnce(&mut Emit, Value),
    one: impl FnOnce(&mut Emit, Value),
) {
    let count = e.b.ins().isub(c1, c0);
    let whole = e.b.ins().band_imm_s(count, -8);
    let middle = e.b.ins().iadd(c0, whole);
    e.repeat(c0, middle, 8, &[], |e, c, _| {
        eight(e, c);
        Vec::new()
    });
    e.each(middle, c1, one);
}
