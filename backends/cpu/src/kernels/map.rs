//! Elementwise expressions on the CPU: a work item is a block of rows and columns of the result.

use super::elementwise::{ArgRow, Blocks, each_column};
use crate::emit::{Emit, Lanes};
use cranelift_codegen::ir::Value;
use moec_ir::tile::{CpuLaunch, Map, Program, Schedule};

/// How the kernel is launched.
pub(crate) fn launch(program: &Program, map: &Map, schedule: Schedule) -> CpuLaunch {
    let out = program.buffer(map.out);
    CpuLaunch { items: Blocks::new(out, schedule).items(out), scratch_bytes: 0 }
}

/// Emits the kernel.
pub(crate) fn emit(e: &mut Emit, map: &Map, schedule: Schedule) {
    let out = e.buffer(map.out);
    let (dtype, bytes) = (out.dtype, out.dtype.bytes() as u64);
    Blocks::new(out, schedule).each_row(e, out, map.until, |e, row, c0, c1| {
        let args: Vec<ArgRow> = map.args.iter().map(|a| ArgRow::new(e, a, row)).collect();
        let to = e.row_pointer(map.out, row);
        each_column(
            e,
            c0,
            c1,
            |e, c| {
                let values: Vec<[Value; 2]> = args.iter().map(|a| a.eight(e, c)).collect();
                let results = [0, 1].map(|half| {
                    let values: Vec<Value> = values.iter().map(|v| v[half]).collect();
                    let like = e.float(Lanes::Four, 0.0);
                    e.expr(&map.expr, &values, like)
                });
                let at = e.at(to, c, bytes);
                e.store_eight(dtype, results, at, 0);
            },
            |e, c| {
                let values: Vec<Value> = args.iter().map(|a| a.one(e, c)).collect();
                let like = e.float(Lanes::One, 0.0);
                let result = e.expr(&map.expr, &values, like);
                let at = e.at(to, c, bytes);
                e.store(dtype, result, at, 0);
            },
        );
    });
}
