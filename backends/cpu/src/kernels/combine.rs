//! The weighted sum over a token's slots on the CPU.
//!
//! For each token the slots that have a row are listed in scratch memory, each with the address of its row and its
//! weight; the columns then run over that list.

use super::elementwise::{ArgRow, Blocks, each_column};
use crate::emit::{Emit, Lanes, plain};
use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::{InstBuilder, Value, types};
use moec_ir::tile::{Combine, CpuLaunch, Program, Schedule};

/// Bytes of a list entry: address (8), weight (4), nothing (4).
const ENTRY: u64 = 16;
const WEIGHT: i32 = 8;

/// How the kernel is launched.
pub(crate) fn launch(program: &Program, combine: &Combine, schedule: Schedule) -> CpuLaunch {
    let out = program.buffer(combine.out);
    let top_k = program.buffer(combine.weights).cols;
    CpuLaunch { items: Blocks::new(out, schedule).items(out), scratch_bytes: top_k * ENTRY }
}

/// Emits the kernel.
pub(crate) fn emit(e: &mut Emit, c: &Combine, schedule: Schedule) {
    let out = e.buffer(c.out);
    let (dtype, bytes) = (out.dtype, out.dtype.bytes() as u64);
    let y_dtype = e.buffer(c.y).dtype;
    let y_bytes = y_dtype.bytes() as u64;
    Blocks::new(out, schedule).each_row(e, out, None, |e, token, c0, c1| {
        let n_slots = list_slots(e, c, token);
        let args: Vec<ArgRow> = c.args.iter().map(|a| ArgRow::new(e, a, token)).collect();
        let to = e.row_pointer(c.out, token);
        each_column(
            e,
            c0,
            c1,
            |e, col| {
                let zero = e.float(Lanes::Four, 0.0);
                let sums = each_slot(e, n_slots, &[zero; 2], |e, row, weight, sums| {
                    let weight = e.splat(Lanes::Four, weight);
                    let at = e.at(row, col, y_bytes);
                    let y = e.load_eight(y_dtype, plain(), at, 0);
                    [0, 1].map(|i| e.fma(weight, y[i], sums[i])).to_vec()
                });
                let values: Vec<[Value; 2]> = args.iter().map(|a| a.eight(e, col)).collect();
                let results = [0, 1].map(|half| {
                    let mut all = vec![sums[half]];
                    all.extend(values.iter().map(|v| v[half]));
                    e.expr(&c.expr, &all, sums[half])
                });
                let at = e.at(to, col, bytes);
                e.store_eight(dtype, results, at, 0);
            },
            |e, col| {
                let zero = e.float(Lanes::One, 0.0);
                let sums = each_slot(e, n_slots, &[zero], |e, row, weight, sums| {
                    let at = e.at(row, col, y_bytes);
                    let y = e.load(Lanes::One, y_dtype, at, 0);
                    vec![e.fma(weight, y, sums[0])]
                });
                let mut all = sums;
                all.extend(args.iter().map(|a| a.one(e, col)));
                let result = e.expr(&c.expr, &all, all[0]);
                let at = e.at(to, col, bytes);
                e.store(dtype, result, at, 0);
            },
        );
    });
}

/// Writes the list of a token's slots that have a row; returns how many there are.
fn list_slots(e: &mut Emit, c: &Combine, token: Value) -> Value {
    let weights = e.buffer(c.weights);
    let (top_k, dtype) = (weights.cols, weights.dtype);
    let weight_row = e.row_pointer(c.weights, token);
    let map_row = c.slot_to_row.map(|map| e.row_pointer(map, token));
    let first_slot = e.times(token, top_k);
    let (zero, n) = (e.int(0), e.int(top_k));
    let listed = e.repeat(zero, n, 1, &[zero], |e, j, listed| {
        let row = match map_row {
            Some(map_row) => {
                let at = e.at(map_row, j, 4);
                e.load_i32(at, 0)
            }
            None => e.b.ins().iadd(first_slot, j),
        };
        let start = e.row_pointer(c.y, row);
        let at = e.at(weight_row, j, dtype.bytes() as u64);
        let weight = e.load(Lanes::One, dtype, at, 0);
        // Entries without a row are written too, and overwritten by the next one that has a row.
        let entry = e.at(e.scratch, listed[0], ENTRY);
        e.b.ins().store(plain(), start, entry, 0);
        e.b.ins().store(plain(), weight, entry, WEIGHT);
        let exists = e.b.ins().icmp_imm_s(IntCC::SignedGreaterThanOrEqual, row, 0);
        let one = e.b.ins().uextend(types::I64, exists);
        vec![e.b.ins().iadd(listed[0], one)]
    });
    listed[0]
}

/// Runs over the list: `body(row address, weight, sums)` gives the next sums.
fn each_slot(
    e: &mut Emit,
    n_slots: Value,
    sums: &[Value],
    body: impl FnOnce(&mut Emit, Value, Value, &[Value]) -> Vec<Value>,
) -> Vec<Value> {
    let zero = e.int(0);
    e.repeat(zero, n_slots, 1, sums, |e, i, sums| {
        let entry = e.at(e.scratch, i, ENTRY);
        let row = e.b.ins().load(types::I64, plain(), entry, 0);
        let weight = e.b.ins().load(types::F32, plain(), entry, WEIGHT);
        body(e, row, weight, sums)
    })
}
