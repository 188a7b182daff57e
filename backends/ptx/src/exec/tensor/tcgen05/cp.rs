//! `tcgen05.cp`: shared memory to tensor memory, through the tensor pipe.

use super::super::compile_error;
use super::super::fault;
use super::super::state::{Rect, report_fault, track_async};
use super::{check_group, cta_group, group_ctas, pipe, tmem_address, tmem_value};
use crate::ast::Instruction;
use crate::exec::context::AsyncCx;
use crate::exec::error::CompileError;
use crate::exec::lower::{Lower, Ty};
use crate::exec::program::{Custom, Flow};
use crate::exec::queue::Step;
use crate::exec::race::AccessKind;
use crate::tensor::ldmatrix::Expand;
use crate::tensor::smem_desc::SmemDesc;
use crate::tensor::tmem::{LANES, split_address};
use crate::tensor::tmem_access::{CopyShape, CopyStep, copy_cells, copy_steps};

pub(super) fn lower(l: &mut Lower<'_>, i: &Instruction) -> Result<Custom, CompileError> {
    let group = cta_group(l, i)?;
    let shape = if i.has("128x256b") {
        CopyShape::S128x256b
    } else if i.has("128x128b") {
        CopyShape::S128x128b
    } else if i.has("64x128b") && i.has("warpx2::02_13") {
        CopyShape::S64x128bPairs02And13
    } else if i.has("64x128b") && i.has("warpx2::01_23") {
        CopyShape::S64x128bPairs01And23
    } else if i.has("32x128b") && i.has("warpx4") {
        CopyShape::S32x128bAll
    } else {
        // 4x256b refreshes single lanes of each quarter; no source that could be checked says which.
        return Err(l.unsupported(format!("instruction `{}`", i.full_name())));
    };
    let expand = match (i.has("b4x16_p64"), i.has("b6x16_p32")) {
        (false, false) => Expand::None,
        (true, _) => Expand::B4,
        (_, true) => Expand::B6,
    };
    let [taddr, desc] = i.operands.as_slice() else { return Err(l.invalid("tcgen05.cp takes [taddr], descriptor")) };
    let taddr = tmem_address(l, taddr)?;
    let desc = l.src(desc, Ty::B(64))?;
    copy_steps(shape, &SmemDesc::decode_sm100(1 << 46).map_err(|e| compile_error(l, e))?)
        .map_err(|e| compile_error(l, e))?;
    if group == 2 {
        l.uses_cluster();
    }
    Ok(Box::new(move |cx, mask| {
        for lane in (0..32).filter(|lane| mask >> lane & 1 == 1) {
            check_group(&mut cx.m, group, lane as u32);
            cx.require(taddr.base, 1 << lane, "the tensor memory address");
            cx.require(desc, 1 << lane, "the matrix descriptor");
            let address = tmem_value(cx, taddr, lane);
            let sdesc = SmemDesc::decode_sm100(cx.lanes(desc)[lane]).map_err(|e| fault(&cx.m, &e))?;
            let steps = copy_steps(shape, &sdesc).map_err(|e| fault(&cx.m, &e))?;
            let ctas = group_ctas(&cx.m, group);
            let (stream, actor) = pipe(&cx.m, group);
            cx.enqueue(
                "tcgen05.cp",
                stream,
                actor,
                lane as u32,
                Box::new(move |cx| {
                    for rank in ctas {
                        copy(cx, rank, address, &steps, expand);
                    }
                    Ok(Step::Done)
                }),
            );
        }
        Ok(Flow::Next)
    }))
}

/// Copies within one CTA: each CTA of a pair reads its own shared memory at the same offsets.
fn copy(cx: &mut AsyncCx<'_>, rank: usize, address: u32, steps: &[CopyStep], expand: Expand) {
    let (lane0, column0) = split_address(address);
    let width = steps.iter().map(|s| s.column + 4).max().unwrap_or(0);
    let mut covered = [false; LANES];
    let issuer = Some(cx.lane);
    for step in steps {
        let mut bytes = [0u8; 16];
        cx.read_shared((rank as u64) << 24 | u64::from(step.address), &mut bytes, None);
        let cells = copy_cells(&bytes, expand);
        for lane in step.lanes.iter().flatten().map(|l| lane0 + l) {
            let tmem = cx.m.cluster.ctas[rank].tensor.tmem();
            if let Err(f) = tmem.check(lane, column0 + step.column, 4) {
                if !report_fault(&mut cx.m, issuer, &f) {
                    return;
                }
                continue;
            }
            tmem.row_mut(lane, column0 + step.column, 4).copy_from_slice(&cells);
            covered[lane] = true;
        }
    }
    for group in 0..LANES / 16 {
        if covered[16 * group..16 * group + 16].iter().any(|c| *c) {
            let rect = Rect { lane: 16 * group, lanes: 16, column: column0, columns: width };
            track_async(cx, rank, rect, AccessKind::Write);
        }
    }
}
