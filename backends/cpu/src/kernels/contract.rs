//! Contractions on the CPU.
//!
//! A work item is a block of output columns of one segment, for one part of its rows (or experts). It walks through the
//! experts that have rows; for each, all rows of the expert are multiplied while the block's weights are in cache, so
//! that each needed weight is read from memory once. Items do not depend on how rows fall on experts: any routing
//! keeps all cores busy.

use crate::emit::{DotBlock, Emit, Lanes};
use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::{InstBuilder, Value};
use moec_ir::tile::{Contract, CpuLaunch, Extent, Groups, Program, RowMap, Schedule, Segment};

/// Tokens for which the rows of a segment stay in one part.
const TOKENS_PER_PART: u64 = 64;
/// Columns of one register block for one row, over all panels; a column block is a multiple of it.
const STREAMS: u64 = 8;
/// Bounds of the columns of a work item, per panel.
const COLUMNS: (u64, u64) = (8, 64);

/// Columns of a work item: `tile_n` rounded up to a multiple of eight, within 8 … 64.
fn columns(schedule: Schedule) -> u64 {
    u64::from(schedule.tile_n).next_multiple_of(STREAMS).clamp(COLUMNS.0, COLUMNS.1)
}

/// How the kernel is launched: one item for each column block of each segment and each part of the rows.
pub(crate) fn launch(program: &Program, contract: &Contract, schedule: Schedule) -> CpuLaunch {
    let blocks: u64 = contract.segments.iter().map(|s| program.buffer(s.out).cols.div_ceil(columns(schedule))).sum();
    let items = Extent { min: blocks, ..Extent::tiles(1, TOKENS_PER_PART, blocks) };
    CpuLaunch { items, scratch_bytes: 0 }
}

/// One work item: columns `first .. first + count` of a segment, part `part` of `parts`.
struct Item {
    first: Value,
    count: Value,
    part: Value,
    parts: Value,
}

/// Emits the kernel.
pub(crate) fn emit(e: &mut Emit, contract: &Contract, schedule: Schedule) {
    let width = columns(schedule);
    let parts = parts(e);
    let (begin, end) = (e.begin, e.end);
    e.each(begin, end, |e, item| {
        let part = e.b.ins().urem(item, parts);
        let block = e.b.ins().udiv(item, parts);
        let mut first_block = 0;
        for segment in &contract.segments {
            let n = e.buffer(segment.out).cols;
            let blocks = n.div_ceil(width);
            // Unsigned: blocks of earlier segments wrap around to large numbers.
            let here = e.plus(block, -(first_block as i64));
            let mine = e.b.ins().icmp_imm_u(IntCC::UnsignedLessThan, here, blocks as i64);
            e.when(mine, |e| {
                let first = e.times(here, width);
                let n = e.int(n);
                let left = e.b.ins().isub(n, first);
                let full = e.int(width);
                let count = e.smaller(left, full);
                emit_segment(e, segment, &Item { first, count, part, parts }, schedule);
            });
            first_block += blocks;
        }
    });
}

/// `max(1, ceil(T / TOKENS_PER_PART))`
fn parts(e: &mut Emit) -> Value {
    let t = e.plus(e.n_tokens, TOKENS_PER_PART as i64 - 1);
    let parts = e.b.ins().udiv_imm_u(t, TOKENS_PER_PART as i64);
    let one = e.int(1);
    e.b.ins().umax(parts, one)
}

fn emit_segment(e: &mut Emit, s: &Segment, item: &Item, schedule: Schedule) {
    match s.groups {
        Groups::Dense => {
            let rows = e.dim(e.buffer(s.out).rows);
            let [begin, end] = [0, 1].map(|next| {
                let part = e.plus(item.part, next);
                let at = e.b.ins().imul(rows, part);
                e.b.ins().udiv(at, item.parts)
            });
            let expert = e.int(0);
            emit_rows(e, s, item, expert, begin, end, schedule);
        }
        Groups::ByExpert { offsets } => {
            let n_experts = e.buffer(s.panels[0]).batch;
            let n_experts = e.int(n_experts);
            // Part p takes the experts p, p + parts, …
            let turns = e.b.ins().isub(n_experts, item.part);
            let turns = e.b.ins().iadd(turns, item.parts);
            let turns = e.plus(turns, -1);
            let turns = e.b.ins().sdiv(turns, item.parts);
            let zero = e.int(0);
            e.each(zero, turns, |e, turn| {
                let expert = e.b.ins().imul(turn, item.parts);
                let expert = e.b.ins().iadd(expert, item.part);
                let base = e.pointer(offsets);
                let at = e.at(base, expert, 4);
                let [begin, end] = [0, 4].map(|next| e.load_i32(at, next));
                let some = e.b.ins().icmp(IntCC::SignedLessThan, begin, end);
                e.when(some, |e| emit_rows(e, s, item, expert, begin, end, schedule));
            });
        }
    }
}

/// Rows `begin .. end`, all of `expert`: blocks of four, then of two and one.
fn emit_rows(e: &mut Emit, s: &Segment, item: &Item, expert: Value, begin: Value, end: Value, schedule: Schedule) {
    let panel = e.buffer(s.panels[0]);
    let matrix_bytes = panel.rows.fixed().unwrap_or(0) * panel.pitch * panel.dtype.bytes() as u64;
    let panels: Vec<Value> = s
        .panels
        .iter()
        .map(|&p| {
            let base = e.pointer(p);
            let matrix = e.at(base, expert, matrix_bytes);
            e.at(matrix, item.first, panel.pitch * panel.dtype.bytes() as u64)
        })
        .collect();
    let biases: Vec<Option<Value>> = (0..s.panels.len())
        .map(|p| {
            let bias = s.biases.get(p).copied().flatten()?;
            let row = e.row_pointer(bias, expert);
            Some(e.at(row, item.first, e.buffer(bias).dtype.bytes() as u64))
        })
        .collect();
    let tile = Tile { segment: s, item, panels: &panels, biases: &biases, schedule };

    let mut from = begin;
    for rows in [4u64, 2, 1] {
        // Whole blocks of `rows` from the rows that are left; at most one for 2 and 1.
        let left = e.b.ins().isub(end, from);
        let whole = e.b.ins().band_imm_s(left, -(rows as i64));
        let to = e.b.ins().iadd(from, whole);
        e.repeat(from, to, rows as i64, &[], |e, row, _| {
            tile.emit(e, row, rows as usize);
            Vec::new()
        });
        from = to;
    }
}

/// What the register blocks of one expert share.
struct Tile<'t> {
    segment: &'t Segment,
    item: &'t Item,
    /// Where the item's first column starts in each panel.
    panels: &'t [Value],
    /// Where the bias of the item's first column is.
    biases: &'t [Option<Value>],
    schedule: Schedule,
}

impl Tile<'_> {
    /// All columns of the item for `rows` rows from `row`.
    fn emit(&self, e: &mut Emit, row: Value, rows: usize) {
        let s = self.segment;
        let a: Vec<Value> = (0..rows as i64)
            .map(|r| {
                let row = e.plus(row, r);
                let source = match s.a_rows {
                    RowMap::Same => row,
                    RowMap::Gather(map) => {
                        let at = e.row_pointer(map, row);
                        e.load_i32(at, 0)
                    }
                };
                e.row_pointer(s.a, source)
            })
            .collect();
        let out: Vec<Value> = (0..rows as i64)
            .map(|r| {
                let row = e.plus(row, r);
                let start = e.row_pointer(s.out, row);
                e.at(start, self.item.first, e.buffer(s.out).dtype.bytes() as u64)
            })
            .collect();
        let streams = if rows == 1 { self.schedule.stages as usize } else { STREAMS as usize / rows / (self.schedule.warps as usize & 15) };
        let cols = (streams / s.panels.len()).max(1);
        let zero = e.int(0);
        let whole = e.b.ins().band_imm_s(self.item.count, -(cols as i64));
        e.repeat(zero, whole, cols as i64, &[], |e, col, _| {
            self.block(e, &a, &out, col, cols);
            Vec::new()
        });
        if cols > 1 {
            e.each(whole, self.item.count, |e, col| self.block(e, &a, &out, col, 1));
        }
    }

    /// One register block: products, bias, epilogue, store.
    fn block(&self, e: &mut Emit, a: &[Value], out: &[Value], col: Value, cols: usize) {
        let s = self.segment;
        let panel = e.buffer(s.panels[0]);
        let w_pitch = panel.pitch * panel.dtype.bytes() as u64;
        let block = DotBlock {
            rows: a.len(),
            cols,
            panels: s.panels.len(),
            k: panel.cols,
            a: e.buffer(s.a).dtype,
            w: panel.dtype,
            w_pitch,
            accs: self.schedule.warps as usize & 15,
        };
        let w: Vec<Value> = self.panels.iter().map(|&p| e.at(p, col, w_pitch)).collect();
        let after = e.plus(col, 2 * cols as i64);
        let inside = e.b.ins().icmp(IntCC::SignedLessThanOrEqual, after, self.item.count);
        let step = e.int(cols as u64 * w_pitch);
        let zero = e.int(0);
        let step = e.b.ins().select(inside, step, zero);
        let next: Vec<Value> = w.iter().map(|&p| e.b.ins().iadd(p, step)).collect();
        let touch = self.schedule.warps >= 16;
        let mut sums = e.dot_block(block, a, &w, if touch { &next } else { &[] });
        for (p, bias) in self.biases.iter().enumerate() {
            if let Some(bias) = *bias {
                let dtype = s.biases[p].map_or(moec_ir::DType::F32, |b| e.buffer(b).dtype);
                let at = e.at(bias, col, dtype.bytes() as u64);
                let each: Vec<Value> =
                    (0..cols).map(|c| e.load(Lanes::One, dtype, at, (c * dtype.bytes()) as i32)).collect();
                for (group, sum) in sums[p].iter_mut().enumerate() {
                    let mut vector = e.float(Lanes::Four, 0.0);
                    for lane in 0..4 {
                        let product = (group * 4 + lane).min(a.len() * cols - 1);
                        vector = e.b.ins().insertlane(vector, each[product % cols], lane as u8);
                    }
                    *sum = e.b.ins().fadd(*sum, vector);
                }
            }
        }
        let dtype = e.buffer(s.out).dtype;
        let groups = sums[0].len();
        for group in 0..groups {
            let args: Vec<Value> = sums.iter().map(|panel| panel[group]).collect();
            let value = e.expr(&s.epilogue, &args, args[0]);
            let n = (a.len() * cols - group * 4).min(4);
            if n == 4 && cols % 4 == 0 {
                let (r, c) = (group * 4 / cols, group * 4 % cols);
                let at = e.at(out[r], col, dtype.bytes() as u64);
                e.store(dtype, value, at, (c * dtype.bytes()) as i32);
                continue;
            }
            let stored = e.stored(dtype, value);
            for lane in 0..n {
                let product = group * 4 + lane;
                let (r, c) = (product / cols, product % cols);
                let at = e.at(out[r], col, dtype.bytes() as u64);
                e.store_lane(dtype, stored, lane as u8, at, (c * dtype.bytes()) as i32);
            }
        }
    }
}
