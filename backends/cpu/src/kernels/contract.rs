//! Contractions on the CPU.
//!
//! A work item is a block of output columns of one segment, for one part of its rows (or experts). A call walks through
//! the experts that have rows; for each, all rows of the expert are multiplied while a block of weights is in cache, so
//! that each needed weight is read from memory once. Items do not depend on how rows fall on experts: any routing
//! keeps all cores busy.
//!
//! The products themselves are the work of [`moec_ir::abi::CpuKernels`]: this code finds the rows of an expert, has them
//! arranged in scratch memory, asks for their products with a block of columns of every panel, and then runs the epilogue
//! along each row.

use super::elementwise::each_column;
use crate::emit::{Emit, KernelFn, Lanes, plain};
use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::{InstBuilder, Value};
use moec_ir::DType;
use moec_ir::abi::{Encoding, PRODUCTS_SCRATCH_BYTES, Products, arranged_len};
use moec_ir::tile::{BufferId, Contract, CpuLaunch, Extent, Groups, Panel, Program, RowMap, Schedule, Segment};
use std::mem::offset_of;

/// Tokens for which the rows of a segment stay in one part.
const TOKENS_PER_PART: u64 = 64;
/// Bounds of the columns of a work item, per panel.
const COLUMNS: (u64, u64) = (8, 64);
/// Most columns of a job: what a job prepares for all of them is then little beside them.
const JOB_COLUMNS: u64 = 128;
/// Bytes of arranged rows, which should stay in a core's second cache beside a panel of weights.
const ARRANGED: u64 = 400 << 10;
/// Bounds of the rows that are arranged at once, a multiple of those of a tile.
const ROWS: (u64, u64) = (6, 60);

/// Columns of a work item: `tile_n` rounded up to a multiple of eight, within 8 … 64.
fn columns(schedule: Schedule) -> u64 {
    u64::from(schedule.tile_n).next_multiple_of(8).clamp(COLUMNS.0, COLUMNS.1)
}

/// Bytes of one panel's products of one row in scratch memory.
const PRODUCTS: u64 = JOB_COLUMNS * 4;

/// Where things are in the scratch memory of a segment, in bytes: the job at its start, then the products of each panel and
/// row, the arranged rows, and what the kernels need.
#[derive(Clone, Copy)]
struct Layout {
    /// Most rows at once.
    rows: u64,
    products: u64,
    arranged: u64,
    /// Bytes of an arranged row.
    row: u64,
    kernels: u64,
    end: u64,
}

fn layout(program: &Program, s: &Segment) -> Layout {
    let row = (arranged_len(s.k(program)) * 4).max(64);
    let rows = (ARRANGED / row).clamp(ROWS.0, ROWS.1) / ROWS.0 * ROWS.0;
    let products = (size_of::<Products>() as u64).next_multiple_of(64);
    let arranged = products + s.panels.len() as u64 * rows * PRODUCTS;
    let kernels = arranged + rows * row;
    Layout { rows, products, arranged, row, kernels, end: kernels + PRODUCTS_SCRATCH_BYTES }
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
            let this = e.int(0);
            let there_is = e.b.ins().icmp_imm_s(IntCC::NotEqual, this, 0);
            emit_rows(e, s, item, Experts { this, next: this, there_is }, begin, end);
        }
        Groups::ByExpert { offsets } => {
            let n_experts = e.buffer(s.panels[0].weights).batch;
            let n_experts = e.int(n_experts);
            // Part p takes the experts p, p + parts, …
            let turns = e.b.ins().isub(n_experts, item.part);
            let turns = e.b.ins().iadd(turns, item.parts);
            let turns = e.plus(turns, -1);
            let turns = e.b.ins().sdiv(turns, item.parts);
            let base = e.pointer(offsets);
            let expert_of = |e: &mut Emit, turn: Value| {
                let expert = e.b.ins().imul(turn, item.parts);
                e.b.ins().iadd(expert, item.part)
            };
            let rows_of = |e: &mut Emit, expert: Value| {
                let at = e.at(base, expert, 4);
                [0, 4].map(|next| e.load_i32(at, next))
            };
            let with_rows_from = |e: &mut Emit, turn: Value| {
                e.first(turn, turns, |e, turn| {
                    let expert = expert_of(e, turn);
                    let [begin, end] = rows_of(e, expert);
                    e.b.ins().icmp(IntCC::SignedLessThan, begin, end)
                })
            };
            let zero = e.int(0);
            let first = with_rows_from(e, zero);
            e.walk(first, turns, |e, turn| {
                let after = e.plus(turn, 1);
                let next = with_rows_from(e, after);
                let (expert, next_expert) = (expert_of(e, turn), expert_of(e, next));
                let there_is = e.b.ins().icmp(IntCC::SignedLessThan, next, turns);
                let [begin, end] = rows_of(e, expert);
                let experts = Experts { this: expert, next: next_expert, there_is };
                emit_rows(e, s, item, experts, begin, end);
                next
            });
        }
    }
}

/// The expert whose rows are multiplied, and the one after it, if there is one.
#[derive(Clone, Copy)]
struct Experts {
    this: Value,
    next: Value,
    /// Whether the next one exists.
    there_is: Value,
}

/// Rows `begin .. end`, all of `expert`, in pieces of about equal size that scratch memory holds: each is arranged once and
/// multiplied with blocks of columns.
fn emit_rows(e: &mut Emit, s: &Segment, item: &Item, experts: Experts, begin: Value, end: Value) {
    let layout = layout(e.program(), s);
    let n = e.b.ins().isub(end, begin);
    let pieces = e.plus(n, layout.rows as i64 - 1);
    let pieces = e.b.ins().udiv_imm_u(pieces, layout.rows as i64);
    // There may be no row, of a dense segment.
    let one = e.int(1);
    let pieces = e.b.ins().umax(pieces, one);
    let rows = e.b.ins().iadd(n, pieces);
    let rows = e.plus(rows, -1);
    let rows = e.b.ins().udiv(rows, pieces);
    let zero = e.int(0);
    e.each(zero, pieces, |e, piece| {
        let skipped = e.b.ins().imul(piece, rows);
        let first = e.b.ins().iadd(begin, skipped);
        let left = e.b.ins().isub(end, first);
        let count = e.smaller(left, rows);
        let some = e.b.ins().icmp_imm_s(IntCC::SignedGreaterThan, count, 0);
        e.when(some, |e| {
            arrange(e, s, first, count);
            let last = e.b.ins().iadd(item.first, item.count);
            e.repeat(item.first, last, JOB_COLUMNS as i64, &[], |e, col, _| {
                let left = e.b.ins().isub(last, col);
                let most = e.int(JOB_COLUMNS);
                let columns = Columns { first: col, count: e.smaller(left, most) };
                let next = next_columns(e, item, experts, columns);
                emit_block(e, s, columns, experts.this, Rows { first, count }, next);
                Vec::new()
            });
        });
    });
}

/// Rows of one expert that are in scratch memory.
#[derive(Clone, Copy)]
struct Rows {
    first: Value,
    count: Value,
}

/// A block of at most [`JOB_COLUMNS`] columns.
#[derive(Clone, Copy)]
struct Columns {
    first: Value,
    count: Value,
}

/// The columns that follow a block of columns of an expert: those behind it, then the first ones of the next expert.
fn next_columns(e: &mut Emit, item: &Item, experts: Experts, columns: Columns) -> Next {
    let behind = e.b.ins().iadd(columns.first, columns.count);
    let end = e.b.ins().iadd(item.first, item.count);
    let more = e.b.ins().icmp(IntCC::SignedLessThan, behind, end);
    let expert = e.b.ins().select(more, experts.this, experts.next);
    let first = e.b.ins().select(more, behind, item.first);
    Next { expert, first, there_is: e.b.ins().bor(more, experts.there_is) }
}

/// Columns that will be multiplied next, if `there_is` anything.
#[derive(Clone, Copy)]
struct Next {
    expert: Value,
    first: Value,
    there_is: Value,
}

/// Arranges the activations of `count` rows from `first` on.
fn arrange(e: &mut Emit, s: &Segment, first: Value, count: Value) {
    let layout = layout(e.program(), s);
    let a = e.buffer(s.a);
    let encoding = Encoding::floats(a.dtype).expect("activations should be floats");
    let encoding = with_rows(e, s, encoding).bits();
    let zero = e.int(0);
    e.each(zero, count, |e, r| {
        let row = e.b.ins().iadd(first, r);
        let source = match s.a_rows {
            RowMap::Same => row,
            RowMap::Gather(map) => {
                let at = e.row_pointer(map, row);
                e.load_i32(at, 0)
            }
        };
        let from = e.row_pointer(s.a, source);
        let to = e.at(e.scratch, r, layout.row);
        let to = e.plus(to, layout.arranged as i64);
        let (encoding, k) = (e.int(encoding), e.int(a.cols));
        e.call_kernel(KernelFn::Arrange, &[from, encoding, k, to]);
    });
}

/// An encoding that says of a segment's rows and weights whether all of them are bf16, and of rows whether they become
/// integers.
fn with_rows(e: &Emit, s: &Segment, encoding: Encoding) -> Encoding {
    if s.a_round.is_some() {
        return encoding.with_int16_rows();
    }
    let value = |panel: &Panel| panel.quant.as_ref().map_or(e.buffer(panel.weights).dtype, |q| q.round);
    let all = e.buffer(s.a).dtype == DType::BF16 && s.panels.iter().all(|panel| value(panel) == DType::BF16);
    if all { encoding.with_bf16_rows() } else { encoding }
}

/// Products of the rows in scratch memory with a block of columns of every panel, then the epilogue of each row.
fn emit_block(e: &mut Emit, s: &Segment, columns: Columns, expert: Value, rows: Rows, next: Next) {
    for p in 0..s.panels.len() {
        let following = match s.panels.get(p + 1) {
            Some(panel) => {
                let there_is = e.b.ins().icmp(IntCC::Equal, expert, expert);
                (panel, Next { expert, first: columns.first, there_is })
            }
            None => (&s.panels[0], next),
        };
        products(e, s, p, columns, expert, rows.count, following);
    }
    let biases: Vec<Option<Bias>> = (0..s.panels.len())
        .map(|p| {
            let bias = s.biases.get(p).copied().flatten()?;
            let dtype = e.buffer(bias).dtype;
            let row = e.row_pointer(bias, expert);
            Some(Bias { start: e.at(row, columns.first, dtype.bytes() as u64), dtype })
        })
        .collect();
    let zero = e.int(0);
    e.each(zero, rows.count, |e, r| {
        let row = e.b.ins().iadd(rows.first, r);
        epilogue(e, s, columns, &biases, row, r);
    });
}

/// Byte offset of the products of panel `p`, row 0, in scratch memory.
fn products_at(layout: Layout, p: usize) -> u64 {
    layout.products + p as u64 * layout.rows * PRODUCTS
}

/// Where column `column` of an expert's matrix begins.
fn column_of(e: &mut Emit, matrices: BufferId, expert: Value, column: Value) -> Value {
    let (matrix, pitch) = e.strides(matrices);
    let base = e.pointer(matrices);
    let matrix = e.b.ins().imul(expert, matrix);
    let column = e.b.ins().imul(column, pitch);
    let matrix = e.b.ins().iadd(base, matrix);
    e.b.ins().iadd(matrix, column)
}

/// Writes a job for the products of `n_rows` rows with panel number `p`, and has it done; what follows it is told.
fn products(
    e: &mut Emit,
    s: &Segment,
    p: usize,
    columns: Columns,
    expert: Value,
    n_rows: Value,
    (next_panel, next): (&Panel, Next),
) {
    let layout = layout(e.program(), s);
    let panel = &s.panels[p];
    let weights = e.buffer(panel.weights);
    let (_, pitch) = e.strides(panel.weights);
    let first = column_of(e, panel.weights, expert, columns.first);
    let null = e.int(0);
    let following = |e: &mut Emit, matrices: BufferId| {
        let at = column_of(e, matrices, next.expert, next.first);
        e.b.ins().select(next.there_is, at, null)
    };
    let scratch = |e: &mut Emit, bytes: u64| e.plus(e.scratch, bytes as i64);
    let encoding = match &panel.quant {
        None => Encoding::floats(weights.dtype),
        Some(q) => Encoding::codes(&q.format, q.round),
    };
    let encoding = encoding.expect("weights should be floats or codes of floats");
    let encoding = with_rows(e, s, encoding).bits();
    let k = e.program().buffer(s.a).cols;
    let mut fields = vec![
        (offset_of!(Products, rows), scratch(e, layout.arranged)),
        (offset_of!(Products, n_rows), n_rows),
        (offset_of!(Products, k), e.int(k)),
        (offset_of!(Products, weights), first),
        (offset_of!(Products, pitch), pitch),
        (offset_of!(Products, n_columns), columns.count),
        (offset_of!(Products, out), scratch(e, products_at(layout, p))),
        (offset_of!(Products, out_pitch), e.int(JOB_COLUMNS)),
        (offset_of!(Products, scratch), scratch(e, layout.kernels)),
        (offset_of!(Products, encoding), e.int(encoding)),
        (offset_of!(Products, next), following(e, next_panel.weights)),
    ];
    if let Some(q) = &panel.quant {
        let (grid, grid_pitch) = e.strides(q.scales);
        let base = e.pointer(q.scales);
        let grid = e.b.ins().imul(expert, grid);
        let scales = e.b.ins().iadd(base, grid);
        let global = match q.global {
            None => e.int(0),
            Some(b) => {
                let base = e.pointer(b);
                e.at(base, expert, 4)
            }
        };
        let next_scales = match &next_panel.quant {
            Some(next) if next.format.block_rows == 1 => following(e, next.scales),
            _ => null,
        };
        fields.extend([
            (offset_of!(Products, scales), scales),
            (offset_of!(Products, scales_pitch), grid_pitch),
            (offset_of!(Products, global), global),
            (offset_of!(Products, first_column), columns.first),
            (offset_of!(Products, block_rows), e.int(q.format.block_rows)),
            (offset_of!(Products, block_cols), e.int(q.format.block_cols)),
            (offset_of!(Products, next_scales), next_scales),
        ]);
    }
    for (offset, value) in fields {
        e.b.ins().store(plain(), value, e.scratch, offset as i32);
    }
    e.call_kernel(KernelFn::Products, &[e.scratch]);
}

/// The bias of a panel, from the block's first column on.
#[derive(Clone, Copy)]
struct Bias {
    start: Value,
    dtype: DType,
}

/// Bias, epilogue and store of row `row`, whose products are those of row `r` in scratch memory.
fn epilogue(e: &mut Emit, s: &Segment, columns: Columns, biases: &[Option<Bias>], row: Value, r: Value) {
    let layout = layout(e.program(), s);
    let dtype = e.buffer(s.out).dtype;
    let to = e.row_pointer(s.out, row);
    let to = e.at(to, columns.first, dtype.bytes() as u64);
    let products = e.at(e.scratch, r, PRODUCTS);
    let zero = e.int(0);
    each_column(
        e,
        zero,
        columns.count,
        |e, col| {
            let mut halves = [Vec::new(), Vec::new()];
            for (p, bias) in biases.iter().enumerate() {
                let at = e.at(products, col, 4);
                let mut v = e.load_eight(DType::F32, plain(), at, products_at(layout, p) as i32);
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
            for (p, bias) in biases.iter().enumerate() {
                let at = e.at(products, col, 4);
                let mut v = e.load(Lanes::One, DType::F32, at, products_at(layout, p) as i32);
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
