//! Row programs on the CPU: a work item is a few rows; every step of the program leaves its row in scratch memory.

use super::elementwise::{each_column, each_row_of, row_items};
use super::{choice, special};
use crate::emit::{Dot, Emit, Lanes, plain};
use cranelift_codegen::ir::condcodes::{FloatCC, IntCC};
use cranelift_codegen::ir::{InstBuilder, Value, types};
use moec_ir::DType;
use moec_ir::Expr;
use moec_ir::graph::RenormRule;
use moec_ir::tile::{BufferId, CpuLaunch, Program, RowId, RowOp, RowOpKind, RowProgram, RowStore, Schedule};

/// Where the rows are in scratch memory. Each is padded to whole vectors, whose last lanes may hold anything.
pub(super) struct Layout<'p> {
    ops: &'p [RowOp],
    starts: Vec<u64>,
    /// Memory for one step's own use: sort keys.
    pub keys: u64,
    bytes: u64,
}

impl<'p> Layout<'p> {
    fn new(program: &'p RowProgram) -> Layout<'p> {
        let mut bytes = 0;
        let mut starts = Vec::with_capacity(program.ops.len());
        for op in &program.ops {
            starts.push(bytes);
            bytes += (op.width * 4).next_multiple_of(64);
        }
        let keys = bytes;
        let n_keys = program.ops.iter().map(|op| match &op.kind {
            RowOpKind::TopK(x) => program.ops[x.0 as usize].width,
            RowOpKind::GroupLimit { n_groups, .. } => u64::from(*n_groups),
            RowOpKind::Load(_)
            | RowOpKind::LoadFirst(_)
            | RowOpKind::Linear { .. }
            | RowOpKind::Map { .. }
            | RowOpKind::Softmax(_)
            | RowOpKind::RmsNorm { .. }
            | RowOpKind::Gather { .. }
            | RowOpKind::Reduce { .. }
            | RowOpKind::MaskChosen { .. }
            | RowOpKind::Join { .. }
            | RowOpKind::Lookup { .. }
            | RowOpKind::SumOutside { .. }
            | RowOpKind::LocalIds { .. }
            | RowOpKind::Renormalise { .. } => 0,
        });
        bytes += n_keys.max().unwrap_or(0) * 8;
        Layout { ops: &program.ops, starts, keys, bytes }
    }

    /// The row of an earlier step.
    pub fn row(&self, id: RowId) -> Row {
        let i = id.0 as usize;
        Row { start: self.starts[i] as i32, width: self.ops[i].width }
    }
}

/// A row in scratch memory: 4 bytes an element.
#[derive(Clone, Copy)]
pub(super) struct Row {
    start: i32,
    pub width: u64,
}

impl Row {
    /// Value `i` (or the four from it) as floats.
    pub fn load(self, e: &mut Emit, lanes: Lanes, i: Value) -> Value {
        let at = e.at(e.scratch, i, 4);
        e.load(lanes, DType::F32, at, self.start)
    }

    /// Sets value `i`, or the four from it.
    pub fn store(self, e: &mut Emit, value: Value, i: Value) {
        let at = e.at(e.scratch, i, 4);
        e.store(DType::F32, value, at, self.start);
    }

    /// Value `i` as a sign-extended integer.
    pub fn load_int(self, e: &mut Emit, i: Value) -> Value {
        let at = e.at(e.scratch, i, 4);
        e.load_i32(at, self.start)
    }

    /// Sets value `i` to the low half of an i64.
    pub fn store_int(self, e: &mut Emit, value: Value, i: Value) {
        let at = e.at(e.scratch, i, 4);
        e.store_i32(value, at, self.start);
    }

    /// `to[i..i+4] = f(i)` for the whole row; the padding is computed too.
    fn fill(self, e: &mut Emit, f: impl FnOnce(&mut Emit, Value) -> Value) {
        let (zero, n) = (e.int(0), e.int(self.width));
        e.repeat(zero, n, 4, &[], |e, i, _| {
            let v = f(e, i);
            self.store(e, v, i);
            Vec::new()
        });
    }

    /// Folds the row's values with `f`, first to last.
    pub fn fold(self, e: &mut Emit, first: Value, f: impl FnOnce(&mut Emit, Value, Value) -> Value) -> Value {
        let (zero, n) = (e.int(0), e.int(self.width));
        e.repeat(zero, n, 1, &[first], |e, i, state| {
            let x = self.load(e, Lanes::One, i);
            vec![f(e, state[0], x)]
        })[0]
    }
}

/// How the kernel is launched: `tile_m` rows (at least 1) to an item.
pub(crate) fn launch(_: &Program, p: &RowProgram, schedule: Schedule) -> CpuLaunch {
    let items = row_items(p.rows, u64::from(schedule.tile_m).max(1), 1);
    CpuLaunch { items, scratch_bytes: Layout::new(p).bytes }
}

/// Emits the kernel.
pub(crate) fn emit(e: &mut Emit, _: &Program, p: &RowProgram, schedule: Schedule) {
    let layout = Layout::new(p);
    let (begin, end) = (e.begin, e.end);
    e.each(begin, end, |e, item| {
        each_row_of(e, item, u64::from(schedule.tile_m).max(1), (p.rows, p.until), |e, row| {
            for (i, op) in p.ops.iter().enumerate() {
                let to = layout.row(RowId(i as u32));
                step(e, &layout, op, to, row);
                if op.dtype.is_float() && op.dtype != DType::F32 {
                    to.fill(e, |e, i| {
                        let v = to.load(e, Lanes::Four, i);
                        e.round(op.dtype, v)
                    });
                }
            }
            for s in &p.stores {
                store(e, layout.row(s.value), *s, row);
            }
        });
    });
}

fn step(e: &mut Emit, layout: &Layout, op: &RowOp, to: Row, row: Value) {
    match &op.kind {
        RowOpKind::Load(buffer) => load(e, *buffer, to, row),
        RowOpKind::LoadFirst(buffer) => {
            let first = e.int(0);
            load(e, *buffer, to, first);
        }
        RowOpKind::Linear { x, w, bias } => linear(e, *x, *w, *bias, to, row),
        RowOpKind::Map { expr, args } => map(e, layout, expr, args, to),
        RowOpKind::Softmax(x) => softmax(e, layout.row(*x), to),
        RowOpKind::RmsNorm { x, eps } => {
            let x = layout.row(*x);
            let zero = e.b.ins().f64const(0.0);
            let squares = x.fold(e, zero, |e, sum, x| {
                let x = e.b.ins().fpromote(types::F64, x);
                let square = e.b.ins().fmul(x, x);
                e.b.ins().fadd(sum, square)
            });
            let n = e.b.ins().f64const(x.width as f64);
            let mean = e.b.ins().fdiv(squares, n);
            let eps = e.b.ins().f64const(f64::from(eps.0));
            let sum = e.b.ins().fadd(mean, eps);
            let by = e.b.ins().sqrt(sum);
            divide(e, x, by, to);
        }
        RowOpKind::GroupLimit { x, n_groups, keep, score, fill } => {
            choice::group_limit(
                e,
                layout,
                layout.row(*x),
                choice::Groups { n: *n_groups, keep: *keep },
                *score,
                *fill,
                to,
            );
        }
        RowOpKind::TopK(x) => choice::top_k(e, layout, layout.row(*x), to),
        RowOpKind::Gather { x, ids } => {
            let (x, ids) = (layout.row(*x), layout.row(*ids));
            e.each_of(to.width, |e, i| {
                let id = ids.load_int(e, i);
                let inside = e.b.ins().icmp_imm_u(IntCC::UnsignedLessThan, id, x.width as i64);
                let v = e.choose(inside, |e| vec![x.load(e, Lanes::One, id)], |e| vec![e.float(Lanes::One, 0.0)])[0];
                to.store(e, v, i);
            });
        }
        RowOpKind::Reduce { x, kind } => special::reduce(e, layout.row(*x), *kind, to),
        RowOpKind::MaskChosen { x, ids } => special::mask_chosen(e, layout.row(*x), layout.row(*ids), to),
        RowOpKind::Join { a, b } => special::join(e, layout.row(*a), layout.row(*b), to),
        RowOpKind::Lookup { table, index } => special::lookup(e, *table, *index, row, to),
        RowOpKind::SumOutside { x, ids, n_experts } => {
            special::sum_outside(e, layout.row(*x), layout.row(*ids), *n_experts, to);
        }
        RowOpKind::LocalIds { ids, first, count } => special::local_ids(e, layout.row(*ids), *first, *count, to),
        RowOpKind::Renormalise { x, rule } => renormalise(e, layout.row(*x), *rule, to),
    }
}

fn load(e: &mut Emit, buffer: BufferId, to: Row, row: Value) {
    let from = e.row_pointer(buffer, row);
    let dtype = e.buffer(buffer).dtype;
    let (zero, n) = (e.int(0), e.int(to.width));
    match dtype {
        DType::I32 | DType::I64 | DType::U8 => e.each(zero, n, |e, i| {
            let at = e.at(from, i, dtype.bytes() as u64);
            let id = if dtype == DType::I32 {
                e.load_i32(at, 0)
            } else {
                let id = e.b.ins().load(types::I64, plain(), at, 0);
                // What does not fit in 32 bits is no expert; it must not become one by losing its upper half.
                let [least, most] = [i32::MIN, i32::MAX].map(|x| e.b.ins().iconst(types::I64, i64::from(x)));
                let id = e.b.ins().smax(id, least);
                e.b.ins().smin(id, most)
            };
            to.store_int(e, id, i);
        }),
        DType::F64 | DType::F32 | DType::F16 | DType::BF16 => each_column(
            e,
            zero,
            n,
            |e, i| {
                let at = e.at(from, i, dtype.bytes() as u64);
                let v = e.load_eight(dtype, plain(), at, 0);
                let at = e.at(e.scratch, i, 4);
                e.store_eight(DType::F32, v, at, to.start);
            },
            |e, i| {
                let at = e.at(from, i, dtype.bytes() as u64);
                let v = e.load(Lanes::One, dtype, at, 0);
                to.store(e, v, i);
            },
        ),
    }
}

fn store(e: &mut Emit, from: Row, s: RowStore, row: Value) {
    let at_row = e.row_pointer(s.buffer, row);
    let dtype = e.buffer(s.buffer).dtype;
    let (zero, n) = (e.int(0), e.int(from.width));
    match dtype {
        DType::I32 | DType::I64 | DType::U8 => e.each(zero, n, |e, i| {
            let id = from.load_int(e, i);
            let at = e.at(at_row, i, dtype.bytes() as u64);
            if dtype == DType::I32 {
                e.store_i32(id, at, 0);
            } else {
                e.b.ins().store(plain(), id, at, 0);
            }
        }),
        DType::F64 | DType::F32 | DType::F16 | DType::BF16 => each_column(
            e,
            zero,
            n,
            |e, i| {
                let at = e.at(e.scratch, i, 4);
                let v = e.load_eight(DType::F32, plain(), at, from.start);
                let at = e.at(at_row, i, dtype.bytes() as u64);
                e.store_eight(dtype, v, at, 0);
            },
            |e, i| {
                let v = from.load(e, Lanes::One, i);
                let at = e.at(at_row, i, dtype.bytes() as u64);
                e.store(dtype, v, at, 0);
            },
        ),
    }
}

fn linear(e: &mut Emit, x: BufferId, w: BufferId, bias: Option<BufferId>, to: Row, row: Value) {
    let a = e.row_pointer(x, row);
    let weights = e.buffer(w);
    let w_pitch = weights.pitch * weights.dtype.bytes() as u64;
    let base = e.pointer(w);
    let dot = Dot { k: weights.cols, a: e.buffer(x).dtype, w: weights.dtype };
    e.each_of(to.width, |e, col| {
        let start = e.at(base, col, w_pitch);
        let v = e.dot(dot, a, start);
        to.store(e, v, col);
    });
    if let Some(bias) = bias {
        let (from, dtype) = (e.pointer(bias), e.buffer(bias).dtype);
        e.each_of(to.width, |e, i| {
            let at = e.at(from, i, dtype.bytes() as u64);
            let b = e.load(Lanes::One, dtype, at, 0);
            let v = to.load(e, Lanes::One, i);
            let v = e.b.ins().fadd(v, b);
            to.store(e, v, i);
        });
    }
}

fn map(e: &mut Emit, layout: &Layout, expr: &Expr, args: &[RowId], to: Row) {
    let rows: Vec<Row> = args.iter().map(|&a| layout.row(a)).collect();
    to.fill(e, |e, i| {
        let values: Vec<Value> = rows
            .iter()
            .map(|r| {
                if r.width == 1 {
                    let zero = e.int(0);
                    let v = r.load(e, Lanes::One, zero);
                    e.splat(Lanes::Four, v)
                } else {
                    r.load(e, Lanes::Four, i)
                }
            })
            .collect();
        let like = e.float(Lanes::Four, 0.0);
        e.expr(expr, &values, like)
    });
}

fn softmax(e: &mut Emit, x: Row, to: Row) {
    let least = e.float(Lanes::One, f32::NEG_INFINITY);
    let max = x.fold(e, least, |e, max, x| e.extreme(FloatCC::GreaterThan, max, x));
    let max = e.splat(Lanes::Four, max);
    to.fill(e, |e, i| {
        let v = x.load(e, Lanes::Four, i);
        let v = e.b.ins().fsub(v, max);
        e.exp(v)
    });
    let sum = total(e, to);
    divide(e, to, sum, to);
}

/// The sum of a row, in f64.
pub(super) fn total(e: &mut Emit, x: Row) -> Value {
    let zero = e.b.ins().f64const(0.0);
    x.fold(e, zero, |e, sum, x| {
        let x = e.b.ins().fpromote(types::F64, x);
        e.b.ins().fadd(sum, x)
    })
}

/// `to[i] = x[i] / by` with `by` in f64, rounded once.
fn divide(e: &mut Emit, x: Row, by: Value, to: Row) {
    e.each_of(to.width, |e, i| {
        let v = x.load(e, Lanes::One, i);
        let v = e.b.ins().fpromote(types::F64, v);
        let v = e.b.ins().fdiv(v, by);
        let v = e.b.ins().fdemote(types::F32, v);
        to.store(e, v, i);
    });
}

fn renormalise(e: &mut Emit, x: Row, rule: RenormRule, to: Row) {
    let by = match rule {
        RenormRule::Sum { eps } => {
            let sum = total(e, x);
            let eps = e.b.ins().f64const(f64::from(eps.0));
            e.b.ins().fadd(sum, eps)
        }
        RenormRule::SumAtLeast { min } => {
            let sum = total(e, x);
            let min = e.b.ins().f64const(f64::from(min.0));
            // False for NaN, which stays.
            let below = e.b.ins().fcmp(FloatCC::LessThan, sum, min);
            e.b.ins().select(below, min, sum)
        }
        RenormRule::PNorm { p } => norm(e, x, p.0),
    };
    divide(e, x, by, to);
}

/// `(Σ |x|^p)^(1/p)` in f64; powers other than 1 and 2 come rounded to f32 from the table.
fn norm(e: &mut Emit, x: Row, p: f32) -> Value {
    let zero = e.b.ins().f64const(0.0);
    let sum = x.fold(e, zero, |e, sum, x| {
        let power = if p == 1.0 || p == 2.0 {
            let x = e.b.ins().fabs(x);
            let x = e.b.ins().fpromote(types::F64, x);
            if p == 1.0 { x } else { e.b.ins().fmul(x, x) }
        } else {
            let x = e.b.ins().fabs(x);
            let p = e.float(Lanes::One, p);
            let power = e.pow(x, p);
            e.b.ins().fpromote(types::F64, power)
        };
        e.b.ins().fadd(sum, power)
    });
    if p == 1.0 {
        sum
    } else if p == 2.0 {
        e.b.ins().sqrt(sum)
    } else {
        let sum = e.b.ins().fdemote(types::F32, sum);
        let inverse = e.float(Lanes::One, 1.0 / p);
        let root = e.pow(sum, inverse);
        e.b.ins().fpromote(types::F64, root)
    }
}
