//! Expert order on the CPU: a stable counting sort in one work item.

use crate::emit::Emit;
use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::{InstBuilder, Value};
use moec_ir::tile::{CpuLaunch, Extent, Plan};

/// How the kernel is launched: one item, with a counter for each expert in scratch memory.
pub(crate) fn launch(plan: &Plan) -> CpuLaunch {
    CpuLaunch { items: Extent::fixed(1), scratch_bytes: plan.n_experts * 4 }
}

/// Emits the kernel.
pub(crate) fn emit(e: &mut Emit, plan: &Plan) {
    let (begin, end) = (e.begin, e.end);
    e.each(begin, end, |e, _| {
        let zero = e.int(0);
        e.each_of(plan.n_experts, |e, expert| {
            let counter = e.at(e.scratch, expert, 4);
            e.store_i32(zero, counter, 0);
        });
        each_slot(e, plan, |e, slot| {
            let dispatched = is_dispatched(e, plan, slot.expert);
            e.when(dispatched, |e| {
                let counter = e.at(e.scratch, slot.expert, 4);
                let n = e.load_i32(counter, 0);
                let n = e.plus(n, 1);
                e.store_i32(n, counter, 0);
            });
        });

        // Counters become the next free row of each expert.
        let offsets = e.pointer(plan.offsets);
        let n_experts = e.int(plan.n_experts);
        let total = e.repeat(zero, n_experts, 1, &[zero], |e, expert, before| {
            let counter = e.at(e.scratch, expert, 4);
            let n = e.load_i32(counter, 0);
            e.store_i32(before[0], counter, 0);
            let offset = e.at(offsets, expert, 4);
            e.store_i32(before[0], offset, 0);
            vec![e.b.ins().iadd(before[0], n)]
        })[0];
        let last = e.at(offsets, n_experts, 4);
        e.store_i32(total, last, 0);

        each_slot(e, plan, |e, slot| {
            let dispatched = is_dispatched(e, plan, slot.expert);
            let row = e.choose(
                dispatched,
                |e| {
                    let counter = e.at(e.scratch, slot.expert, 4);
                    let row = e.load_i32(counter, 0);
                    let next = e.plus(row, 1);
                    e.store_i32(next, counter, 0);
                    let entry = e.row_pointer(plan.row_to_token, row);
                    e.store_i32(slot.token, entry, 0);
                    vec![row]
                },
                |e| vec![e.int(u64::MAX)],
            )[0];
            let map_row = e.row_pointer(plan.slot_to_row, slot.token);
            let entry = e.at(map_row, slot.choice, 4);
            e.store_i32(row, entry, 0);
        });

        let rows = e.dim(e.buffer(plan.row_to_token).rows);
        e.each(total, rows, |e, row| {
            let none = e.int(u64::MAX);
            let entry = e.row_pointer(plan.row_to_token, row);
            e.store_i32(none, entry, 0);
        });
    });
}

struct Slot {
    token: Value,
    choice: Value,
    expert: Value,
}

fn each_slot(e: &mut Emit, plan: &Plan, body: impl FnOnce(&mut Emit, Slot)) {
    let (zero, ids) = (e.int(0), e.buffer(plan.ids));
    let (n_tokens, top_k) = (e.dim(ids.rows), ids.cols);
    e.each(zero, n_tokens, |e, token| {
        let ids = e.row_pointer(plan.ids, token);
        e.each_of(top_k, |e, choice| {
            let at = e.at(ids, choice, 4);
            let expert = e.load_i32(at, 0);
            body(e, Slot { token, choice, expert });
        });
    });
}

/// Whether an id is within `0..E`.
fn is_dispatched(e: &mut Emit, plan: &Plan, expert: Value) -> Value {
    e.b.ins().icmp_imm_u(IntCC::UnsignedLessThan, expert, plan.n_experts as i64)
}
