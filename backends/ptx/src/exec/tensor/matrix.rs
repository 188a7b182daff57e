//! `ldmatrix`, `stmatrix`, `movmatrix`.

use super::mma::{destinations, sources};
use super::{compile_error, whole_warp};
use crate::ast::Instruction;
use crate::exec::context::{Cx, split_shared};
use crate::exec::error::CompileError;
use crate::exec::lower::{Lower, Ty};
use crate::exec::program::{AddressSrc, Custom, Flow};
use crate::exec::race::AccessKind;
use crate::tensor::ldmatrix::{Expand, MatrixMove, MatrixShape, transpose};

fn parse(l: &Lower<'_>, i: &Instruction) -> Result<MatrixMove, CompileError> {
    let mut shape = None;
    let mut num = None;
    let mut expand = Expand::None;
    for word in &i.modifiers {
        match word.as_str() {
            "m8n8" => shape = Some(MatrixShape::M8n8),
            "m16n16" => shape = Some(MatrixShape::M16n16),
            "m8n16" => shape = Some(MatrixShape::M8n16),
            "m16n8" => shape = Some(MatrixShape::M16n8),
            "x1" => num = Some(1),
            "x2" => num = Some(2),
            "x4" => num = Some(4),
            "b4x16_p64" => expand = Expand::B4,
            "b6x16_p32" => expand = Expand::B6,
            "sync" | "aligned" | "trans" | "shared" | "shared::cta" | "b16" | "b8" | "b8x16" => {}
            other => return Err(l.unsupported(format!("`.{other}` on {}", i.opcode))),
        }
    }
    let (Some(shape), Some(num)) = (shape, num) else {
        return Err(l.invalid("shape or number of matrices is missing"));
    };
    let form = MatrixMove { shape, num, trans: i.has("trans"), expand };
    form.check(i.opcode == "stmatrix").map_err(|e| compile_error(l, e))?;
    Ok(form)
}

pub(super) fn lower(l: &mut Lower<'_>, i: &Instruction) -> Result<Custom, CompileError> {
    if i.operands.len() != 2 {
        return Err(l.invalid(format!("`{}` has {} operands, 2 expected", i.full_name(), i.operands.len())));
    }
    if i.opcode == "movmatrix" {
        let d = l.dst(&i.operands[0], 32)?;
        let a = l.src(&i.operands[1], Ty::B(32))?;
        return Ok(Box::new(move |cx, mask| {
            if let Some(flow) = whole_warp(cx, mask) {
                return Ok(flow);
            }
            let value = transpose(cx.lanes(a));
            let poison = if cx.poison(a) == 0 { 0 } else { u32::MAX };
            cx.write(d, mask, &value, poison);
            Ok(Flow::Next)
        }));
    }
    let form = parse(l, i)?;
    let line = i.pos.line;
    if i.opcode == "ldmatrix" {
        let d = destinations(l, &i.operands[0], 32)?;
        let at = l.address(&i.operands[1])?;
        if d.len() != form.registers() {
            return Err(l.invalid(format!("{} registers expected, {} given", form.registers(), d.len())));
        }
        return Ok(Box::new(move |cx, mask| {
            if let Some(flow) = whole_warp(cx, mask) {
                return Ok(flow);
            }
            cx.require(at.base, mask & address_mask(&form), "a matrix row address");
            let mut rows = [[0u8; 16]; 32];
            let mut written = [[1u8; 16]; 32];
            let mut all_written = true;
            let mut addresses = [None; 32];
            for lane in 0..form.address_lanes() {
                let Some((rank, offset)) = row(cx, at, lane) else { continue };
                addresses[lane] = Some(offset);
                cx.track_shared(rank, offset, 16, AccessKind::Read, lane as u32);
                let shared = &cx.m.cluster.ctas[rank].shared;
                rows[lane].copy_from_slice(shared.bytes(offset as usize, 16));
                let holes = shared.holes(offset as usize, 16);
                if holes.first_chunk::<16>().is_none_or(|h| u128::from_le_bytes(*h) != 0) {
                    all_written = false;
                    for (flag, w) in written[lane].iter_mut().zip(holes) {
                        *flag = u8::from(*w == 0);
                    }
                }
            }
            count_banks(cx, line, &addresses);
            let mut values = [[0u64; 32]; 4];
            form.load(&rows, &mut values[..d.len()]);
            for (reg, (slot, value)) in d.iter().zip(&values).enumerate() {
                if all_written {
                    cx.write(*slot, mask, value, 0);
                    continue;
                }
                let bits = std::array::from_fn(|lane| {
                    (0..4).fold(0u64, |bits, byte| {
                        let (r, b) = form.source(lane, reg, byte);
                        bits | if written[r][b] == 1 { 0 } else { 0xff << (8 * byte) }
                    })
                });
                cx.warp.write_bits(*slot, mask, value, &bits, 0);
            }
            Ok(Flow::Next)
        }));
    }
    let at = l.address(&i.operands[0])?;
    let s = sources(l, &i.operands[1], 32)?;
    if s.len() != form.registers() {
        return Err(l.invalid(format!("{} registers expected, {} given", form.registers(), s.len())));
    }
    Ok(Box::new(move |cx, mask| {
        if let Some(flow) = whole_warp(cx, mask) {
            return Ok(flow);
        }
        cx.require(at.base, mask & address_mask(&form), "a matrix row address");
        let regs: Vec<_> = s.iter().map(|s| *cx.lanes(*s)).collect();
        let rows = form.store(&regs);
        let unwritten: Vec<u32> = s.iter().map(|s| cx.poison(*s)).collect();
        let mut flags = [[true; 16]; 32];
        if unwritten.iter().any(|p| *p != 0) {
            for (reg, poison) in unwritten.iter().enumerate() {
                let holes = cx.unwritten(s[reg]);
                for lane in (0..32).filter(|lane| poison >> lane & 1 == 1) {
                    for byte in (0..4).filter(|byte| holes[lane] >> (8 * byte) & 0xff != 0) {
                        let (r, b) = form.source(lane, reg, byte);
                        flags[r][b] = false;
                    }
                }
            }
        }
        let mut addresses = [None; 32];
        for lane in 0..form.address_lanes() {
            let Some((rank, offset)) = row(cx, at, lane) else { continue };
            addresses[lane] = Some(offset);
            // As with plain stores: several warps may store the same row to the same place.
            let shared = &cx.m.cluster.ctas[rank].shared;
            let at_row = offset as usize;
            let there = shared.bytes(at_row, 16) == rows[lane]
                && shared.holes(at_row, 16).iter().zip(&flags[lane]).all(|(h, written)| (*h == 0) == *written);
            if !there || flags[lane].contains(&false) {
                cx.track_shared(rank, offset, 16, AccessKind::Write, lane as u32);
            }
            let shared = &mut cx.m.cluster.ctas[rank].shared;
            shared.write(offset as usize, &rows[lane]);
            for (byte, flag) in flags[lane].iter().enumerate() {
                if !flag {
                    shared.set_initialized(offset as usize + byte, 1, false);
                }
            }
        }
        count_banks(cx, line, &addresses);
        Ok(Flow::Next)
    }))
}

fn address_mask(form: &MatrixMove) -> u32 {
    if form.address_lanes() >= 32 { u32::MAX } else { (1 << form.address_lanes()) - 1 }
}

/// Rank and offset of the 16-byte row at a lane's address, or a finding.
fn row(cx: &mut Cx<'_>, at: AddressSrc, lane: usize) -> Option<(usize, u64)> {
    let address = cx.address(at, lane);
    let address = cx.shared_address(address);
    let (rank, offset) = split_shared(address);
    // The warp's own CTA is there.
    if rank == cx.m.cta
        && address >> 32 == 0
        && offset.is_multiple_of(16)
        && cx.m.cluster.ctas[rank].shared.holds(offset, 16)
    {
        return Some((rank, offset));
    }
    cx.m.shared_range(address, 16, 16, true, Some(lane as u32))
}

/// Bank passes: each group of 8 rows of 16 bytes is one wavefront of 128 bytes when no two rows share a bank.
fn count_banks(cx: &mut Cx<'_>, line: u32, addresses: &[Option<u64>; 32]) {
    if !cx.m.launch.options.counters {
        return;
    }
    let mut ideal = 0;
    let mut passes = 0;
    for rows in addresses.chunks(8) {
        // Rows at different places of the same banks.
        let mut places = [[0u64; 8]; 8];
        let mut counts = [0usize; 8];
        for offset in rows.iter().flatten() {
            let bank = (offset / 16 % 8) as usize;
            let n = counts[bank];
            if !places[bank][..n].contains(&(offset / 128)) {
                places[bank][n] = offset / 128;
                counts[bank] += 1;
            }
        }
        let worst = counts.into_iter().max().unwrap_or(0) as u64;
        if worst > 0 {
            ideal += 1;
            passes += worst;
        }
    }
    let count = cx.m.worker.counters.banks.entry(line).or_default();
    count.accesses += 1;
    count.ideal_passes += ideal;
    count.passes += passes;
}
