//! Contractions on the CPU.
//!
//! A work item is a block of output columns of one segment, for one part of its rows (or experts). A call walks through
//! the experts that have rows; for each, all rows of the expert are multiplied while a block of weights is in cache, so
//! that each needed weight is read from memory once. Items do not depend on how rows fall on experts: any routing
//! keeps all cores busy.
//!
//! For up to three rows at a time, the activations are widened to f32 in scratch memory, the products of every column and
//! panel are left there too, and the epilogue then runs along each row.
//!
//! Weights that are codes are made the floats that they stand for in scratch memory, a block of columns at a time, which
//! all rows of the expert are then multiplied with: memory is read for the codes only, and the products are those of
//! floats, in the same order.

use super::elementwise::each_column;
use crate::emit::{CodedRow, DotBlock, Emit, Lanes, RowPointers, plain};
use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::{InstBuilder, Value};
use moec_ir::DType;
use moec_ir::tile::{Contract, CpuLaunch, Extent, Groups, Panel, Program, RowMap, Schedule, Segment};

/// Tokens for which the rows of a segment stay in one part.
const TOKENS_PER_PART: u64 = 64;
/// Most rows that are multiplied together: three times four accumulators leave registers for the weights.
const ROWS: u64 = 3;
/// Bounds of the columns of a work item, per panel.
const COLUMNS: (u64, u64) = (8, 64);

/// Columns of a work item: `tile_n` rounded up to a multiple of eight, within 8 … 64.
fn columns(schedule: Schedule) -> u64 {
    u64::from(schedule.tile_n).next_multiple_of(8).clamp(COLUMNS.0, COLUMNS.1)
}

/// Bytes of one panel's products of one row in scratch memory.
const PRODUCTS: u64 = COLUMNS.1 * 4;

/// Bytes of an activation row in scratch memory; 0 when f32 activations are read where they are.
fn activation_bytes(program: &Program, s: &Segment) -> u64 {
    let a = program.buffer(s.a);
    if a.dtype == DType::F32 { 0 } else { (a.cols * 4).next_multiple_of(64) }
}

/// Bytes of a block of columns whose codes became floats: they should stay in a core's second cache.
const DECODED: u64 = 192 << 10;

/// Where things are in the scratch memory of a segment: the products of each row and panel, the widened activations, the
/// floats made of codes.
#[derive(Clone, Copy)]
struct Layout {
    activations: u64,
    decoded: u64,
    /// Bytes of a column of one panel made of codes.
    column: u64,
    /// Most columns of a block.
    columns: u64,
    end: u64,
}

fn layout(program: &Program, s: &Segment) -> Layout {
    let activations = ROWS * s.panels.len() as u64 * PRODUCTS;
    let decoded = activations + ROWS * activation_bytes(program, s);
    let coded: Vec<u64> = s.panels.iter().filter_map(|p| Some(p.quant.as_ref()?.round.bytes() as u64)).collect();
    let column = coded.iter().max().map_or(0, |bytes| (bytes * s.k(program)).next_multiple_of(64));
    let fitting = |all: u64| (DECODED / all).clamp(COLUMNS.0, COLUMNS.1) / 8 * 8;
    let columns = match column * coded.len() as u64 {
        0 => COLUMNS.1,
        all => fitting(all),
    };
    Layout { activations, decoded, column, columns, end: decoded + column * coded.len() as u64 * columns }
}

/// How the kernel is launched: one item for each column block of each segment and each part of the rows.
pub(crate) fn launch(program: &Program, contract: &Contract, schedule: Schedule) -> CpuLaunch {
    let blocks: u64 = contract.segments.iter().map(|s| program.buffer(s.out).cols.div_ceil(columns(schedule))).sum();
    let items = Extent { min: blocks, ..Extent::tiles(1, TOKENS_PER_PART, blocks) };
    let scratch = contract.segments.iter().map(|s| layout(program, s).end);
    CpuLaunch { items, scratch_bytes: scratch.max().unwrap_or(0) }
}

/// What a call does of one segment: columns `first .. first + count`, part `part` of `parts` of the rows or experts.
struct Item {
    first: Value,
    count: Value,
    part: Value,
    parts: Value,
}

/// Emits the kernel. Item `i` is part `i / blocks` of column block `i % blocks`, counting through the segments, so that the
/// items of one call are neighbouring columns: they are done together, in long runs through memory.
pub(crate) fn emit(e: &mut Emit, program: &Program, contract: &Contract, schedule: Schedule) {
    let width = columns(schedule);
    let blocks = |s: &Segment| program.buffer(s.out).cols.div_ceil(width);
    let all: u64 = contract.segments.iter().map(blocks).sum();
    let parts = parts(e);
    let (begin, end) = (e.begin, e.end);
    let first_part = e.b.ins().udiv_imm_u(begin, all as i64);
    let last_part = e.plus(end, all as i64 - 1);
    let last_part = e.b.ins().udiv_imm_u(last_part, all as i64);
    e.each(first_part, last_part, |e, part| {
        let before = e.times(part, all);
        let mut first_block = 0;
        for segment in &contract.segments {
            let n_blocks = blocks(segment);
            let start = e.plus(before, first_block as i64);
            let [from, to] = [begin, end].map(|i| {
                let i = e.b.ins().isub(i, start);
                let (zero, most) = (e.int(0), e.int(n_blocks));
                let i = e.b.ins().smax(i, zero);
                e.smaller(i, most)
            });
            let some = e.b.ins().icmp(IntCC::SignedLessThan, from, to);
            e.when(some, |e| {
                let n = e.int(program.buffer(segment.out).cols);
                let [first, last] = [from, to].map(|block| {
                    let col = e.times(block, width);
                    e.smaller(col, n)
                });
                let count = e.b.ins().isub(last, first);
                emit_segment(e, segment, &Item { first, count, part, parts });
            });
            first_block += n_blocks;
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

fn emit_segment(e: &mut Emit, s: &Segment, item: &Item) {
    match s.groups {
        Groups::Dense => {
            let rows = e.dim(e.buffer(s.out).rows);
            let [begin, end] = [0, 1].map(|next| {
                let part = e.plus(item.part, next);
                let at = e.b.ins().imul(rows, part);
                e.b.ins().udiv(at, item.parts)
            });
            let expert = e.int(0);
            emit_rows(e, s, item, expert, begin, end);
        }
        Groups::ByExpert { offsets } => {
            let n_experts = e.buffer(s.panels[0].weights).batch;
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
                e.when(some, |e| emit_rows(e, s, item, expert, begin, end));
            });
        }
    }
}

/// Rows `begin .. end`, all of `expert`, by a few columns at a time: their weights stay in cache over the rows.
fn emit_rows(e: &mut Emit, s: &Segment, item: &Item, expert: Value, begin: Value, end: Value) {
    let last = e.b.ins().iadd(item.first, item.count);
    let width = layout(e.program(), s).columns;
    e.repeat(item.first, last, width as i64, &[], |e, first, _| {
        let left = e.b.ins().isub(last, first);
        let most = e.int(width);
        let count = e.smaller(left, most);
        emit_block(e, s, Columns { first, count }, expert, begin, end);
        Vec::new()
    });
}

/// A block of at most 64 columns.
#[derive(Clone, Copy)]
struct Columns {
    first: Value,
    count: Value,
}

/// Rows `begin .. end` by a block of columns: blocks of three rows, then one of the rest.
fn emit_block(e: &mut Emit, s: &Segment, columns: Columns, expert: Value, begin: Value, end: Value) {
    let layout = layout(e.program(), s);
    let mut panels = Vec::with_capacity(s.panels.len());
    let mut decoded = layout.decoded;
    for panel in &s.panels {
        let start = panel_start(e, panel, expert, columns.first);
        panels.push(match &panel.quant {
            None => start,
            Some(_) => {
                let floats = decode(e, s, panel, start.at, Decoded { expert, columns, offset: decoded });
                decoded += layout.column * layout.columns;
                floats
            }
        });
    }
    let biases: Vec<Option<Bias>> = (0..s.panels.len())
        .map(|p| {
            let bias = s.biases.get(p).copied().flatten()?;
            let dtype = e.buffer(bias).dtype;
            let row = e.row_pointer(bias, expert);
            Some(Bias { start: e.at(row, columns.first, dtype.bytes() as u64), dtype })
        })
        .collect();
    let tile = Tile { segment: s, columns, panels: &panels, biases: &biases };

    let mut from = begin;
    for rows in (1..=ROWS).rev() {
        let left = e.b.ins().isub(end, from);
        let blocks = e.b.ins().udiv_imm_u(left, rows as i64);
        let whole = e.times(blocks, rows);
        let to = e.b.ins().iadd(from, whole);
        e.repeat(from, to, rows as i64, &[], |e, row, _| {
            tile.emit(e, row, rows as usize);
            Vec::new()
        });
        from = to;
    }
}

/// Where the columns of a block are in a panel: the first one, and how many bytes on each further one.
#[derive(Clone, Copy)]
struct PanelStart {
    at: Value,
    pitch: u64,
    dtype: DType,
}

fn panel_start(e: &mut Emit, p: &Panel, expert: Value, first: Value) -> PanelStart {
    let buffer = e.buffer(p.weights);
    let pitch = buffer.pitch * buffer.dtype.bytes() as u64;
    let base = e.pointer(p.weights);
    let matrix = e.at(base, expert, buffer.rows.fixed().unwrap_or(0) * pitch);
    PanelStart { at: e.at(matrix, first, pitch), pitch, dtype: buffer.dtype }
}

/// What codes are made floats, and where in scratch memory.
#[derive(Clone, Copy)]
struct Decoded {
    expert: Value,
    columns: Columns,
    offset: u64,
}

/// Makes the codes of a block of columns, which begin at `codes`, the floats that they stand for.
fn decode(e: &mut Emit, s: &Segment, p: &Panel, codes: Value, to: Decoded) -> PanelStart {
    let q = p.quant.as_ref().expect("a panel that is decoded should be codes");
    let Decoded { expert, columns, offset } = to;
    let (program, codes_pitch) = (e.program(), e.buffer(p.weights).pitch);
    let row = CodedRow { format: q.format, k: s.k(program), round: q.round };
    let pitch = layout(program, s).column;
    let grid = e.buffer(q.scales);
    let grid_pitch = grid.pitch * grid.dtype.bytes() as u64;
    let base = e.pointer(q.scales);
    let scales = e.at(base, expert, grid.rows.fixed().unwrap_or(0) * grid_pitch);
    let global = q.global.map(|b| {
        let base = e.pointer(b);
        let at = e.at(base, expert, 4);
        e.load(Lanes::One, DType::F32, at, 0)
    });
    let to = e.plus(e.scratch, offset as i64);
    let zero = e.int(0);
    e.each(zero, columns.count, |e, col| {
        let scales = match q.format.block_rows {
            0 => scales,
            rows => {
                let n = e.b.ins().iadd(columns.first, col);
                let grid_row = if rows == 1 { n } else { e.b.ins().udiv_imm_u(n, rows as i64) };
                e.at(scales, grid_row, grid_pitch)
            }
        };
        let codes = e.at(codes, col, codes_pitch);
        let to = e.at(to, col, pitch);
        e.decode_row(row, RowPointers { codes, scales, global, to });
    });
    PanelStart { at: e.written_scratch(offset), pitch, dtype: q.round }
}

/// The bias of a panel, from the block's first column on.
#[derive(Clone, Copy)]
struct Bias {
    start: Value,
    dtype: DType,
}

/// What the row blocks of one expert share.
struct Tile<'t> {
    segment: &'t Segment,
    columns: Columns,
    panels: &'t [PanelStart],
    biases: &'t [Option<Bias>],
}

impl Tile<'_> {
    /// All columns of the block for `rows` rows from `row`.
    fn emit(&self, e: &mut Emit, row: Value, rows: usize) {
        let s = self.segment;
        let a = e.buffer(s.a);
        let activations: Vec<Value> = (0..rows as u64).map(|r| self.activations(e, row, r)).collect();
        let zero = e.int(0);
        for (p, panel) in self.panels.iter().enumerate() {
            let block = DotBlock { k: a.cols, a: DType::F32, w: panel.dtype };
            e.each(zero, self.columns.count, |e, col| {
                let w = e.at(panel.at, col, panel.pitch);
                let sums = e.dot_block(block, &activations, w);
                let to = e.at(e.scratch, col, 4);
                for r in 0..rows {
                    e.store_lane(DType::F32, sums, r as u8, to, self.products(r, p));
                }
            });
        }
        for r in 0..rows {
            let row = e.plus(row, r as i64);
            self.epilogue(e, row, r);
        }
    }

    /// Byte offset of the products of row `r` with panel `p` in scratch memory.
    fn products(&self, r: usize, p: usize) -> i32 {
        ((r * self.segment.panels.len() + p) as u64 * PRODUCTS) as i32
    }

    /// Where the activations of row `row + r` are as f32: in place, or widened in scratch memory.
    fn activations(&self, e: &mut Emit, row: Value, r: u64) -> Value {
        let s = self.segment;
        let row = e.plus(row, r as i64);
        let source = match s.a_rows {
            RowMap::Same => row,
            RowMap::Gather(map) => {
                let at = e.row_pointer(map, row);
                e.load_i32(at, 0)
            }
        };
        let from = e.row_pointer(s.a, source);
        let a = e.buffer(s.a);
        if a.dtype == DType::F32 {
            return from;
        }
        let row_bytes = (a.cols * 4).next_multiple_of(64);
        let offset = layout(e.program(), s).activations + r * row_bytes;
        let to = e.plus(e.scratch, offset as i64);
        let (zero, k) = (e.int(0), e.int(a.cols));
        let bytes = a.dtype.bytes() as u64;
        each_column(
            e,
            zero,
            k,
            |e, i| {
                let at = e.at(from, i, bytes);
                let v = e.load_eight(a.dtype, plain(), at, 0);
                let at = e.at(to, i, 4);
                e.store_eight(DType::F32, v, at, 0);
            },
            |e, i| {
                let at = e.at(from, i, bytes);
                let v = e.load(Lanes::One, a.dtype, at, 0);
                let at = e.at(to, i, 4);
                e.store(DType::F32, v, at, 0);
            },
        );
        e.written_scratch(offset)
    }

    /// Bias, epilogue and store of row `row`, whose products are those of row `r` of the block.
    fn epilogue(&self, e: &mut Emit, row: Value, r: usize) {
        let s = self.segment;
        let dtype = e.buffer(s.out).dtype;
        let to = e.row_pointer(s.out, row);
        let to = e.at(to, self.columns.first, dtype.bytes() as u64);
        let zero = e.int(0);
        each_column(
            e,
            zero,
            self.columns.count,
            |e, col| {
                let mut halves = [Vec::new(), Vec::new()];
                for (p, bias) in self.biases.iter().enumerate() {
                    let at = e.at(e.scratch, col, 4);
                    let mut v = e.load_eight(DType::F32, plain(), at, self.products(r, p));
                    if let Some(bias) = bias {
                        let at = e.at(bias.start, col, bias.dtype.bytes() as u64);
                        let b = e.load_eight(bias.dtype, plain(), at, 0);
                        v = [0, 1].map(|i| e.b.ins().fadd(v[i], b[i]));
                    }
                    halves[0].push(v[0]);
                    halves[1].push(v[1]);
                }
                let results = halves.map(|args| e.expr(&s.epilogue, &args, args[0]));
                let at = e.at(to, col, dtype.bytes() as u64);
                e.store_eight(dtype, results, at, 0);
            },
            |e, col| {
                let mut args = Vec::new();
                for (p, bias) in self.biases.iter().enumerate() {
                    let at = e.at(e.scratch, col, 4);
                    let mut v = e.load(Lanes::One, DType::F32, at, self.products(r, p));
                    if let Some(bias) = bias {
                        let at = e.at(bias.start, col, bias.dtype.bytes() as u64);
                        let b = e.load(Lanes::One, bias.dtype, at, 0);
                        v = e.b.ins().fadd(v, b);
                    }
                    args.push(v);
                }
                let result = e.expr(&s.epilogue, &args, args[0]);
                let at = e.at(to, col, dtype.bytes() as u64);
                e.store(dtype, result, at, 0);
            },
        );
    }
}
