//! `mma.sync`.

use super::{compile_error, fault, whole_warp};
use crate::ast::{Instruction, Operand};
use crate::exec::error::CompileError;
use crate::exec::lower::{Lower, Ty};
use crate::exec::program::{Custom, Flow, Slot, Src};
use crate::tensor::elem::Elem;
use crate::tensor::mma::{Acc, BitOp, BlockScale, Lanes, Mma, ScaleOperand, ScaleType};

struct Scale {
    data: Src,
    byte: Src,
    thread: Src,
}

fn accumulator(name: &str) -> Option<Acc> {
    Some(match name {
        "f16" => Acc::F16,
        "f32" => Acc::F32,
        "s32" => Acc::S32,
        "f64" => Acc::F64,
        _ => return None,
    })
}

/// `m16n8k32` as numbers.
pub(super) fn shape(word: &str) -> Option<(usize, usize, usize)> {
    let (m, rest) = word.strip_prefix('m')?.split_once('n')?;
    let (n, k) = rest.split_once('k')?;
    Some((m.parse().ok()?, n.parse().ok()?, k.parse().ok()?))
}

fn parse(l: &Lower<'_>, i: &Instruction) -> Result<Mma, CompileError> {
    if i.modifiers.iter().any(|m| m.starts_with("sp")) {
        return Err(l.unsupported("sparse mma (`mma.sp`)"));
    }
    let Some((m, n, k)) = i.modifiers.iter().find_map(|w| shape(w)) else {
        return Err(l.invalid("mma without a shape"));
    };
    let layouts: Vec<&str> = i.modifiers.iter().map(String::as_str).filter(|w| matches!(*w, "row" | "col")).collect();
    let types: Vec<&str> = i
        .modifiers
        .iter()
        .map(String::as_str)
        .filter(|w| accumulator(w).is_some() || Elem::from_ptx(w).is_some() || matches!(*w, "ue8m0" | "ue4m3"))
        .collect();
    let kind = i.modifiers.iter().find_map(|w| w.strip_prefix("kind::"));
    let ([d, a, b, c], stype) = match types.as_slice() {
        [d, a, b, c] => ([*d, *a, *b, *c], None),
        [d, a, b, c, s] => ([*d, *a, *b, *c], Some(*s)),
        _ => return Err(l.invalid(format!("`{}`: four or five types expected", i.full_name()))),
    };
    let scale = if i.has("block_scale") {
        let written = i.modifiers.iter().find_map(|w| w.strip_prefix("scale_vec::")?.strip_suffix('X')?.parse().ok());
        let vec = match (written, kind) {
            (Some(vec), _) => vec,
            (None, Some("mxf8f6f4")) => 1,
            (None, Some("mxf4")) => 2,
            (None, _) => return Err(l.invalid("`.scale_vec` is missing")),
        };
        let kind = match stype {
            Some("ue8m0") => ScaleType::Ue8m0,
            Some("ue4m3") => ScaleType::Ue4m3,
            _ => return Err(l.invalid("a block-scaled mma needs a scale type")),
        };
        Some(BlockScale { kind, vec })
    } else {
        None
    };
    let (Some(d), Some(a), Some(b), Some(c)) = (accumulator(d), Elem::from_ptx(a), Elem::from_ptx(b), accumulator(c))
    else {
        return Err(l.invalid(format!("`{}`: types {types:?}", i.full_name())));
    };
    let bit_op = if i.has("xor") {
        Some(BitOp::Xor)
    } else if i.has("and") {
        Some(BitOp::And)
    } else {
        None
    };
    let op = Mma {
        m,
        n,
        k,
        a,
        b,
        c,
        d,
        satfinite: i.has("satfinite"),
        bit_op,
        containers: matches!(kind, Some("f8f6f4" | "mxf8f6f4")),
        scale,
        a_col: layouts.first() == Some(&"col"),
        b_row: layouts.get(1) == Some(&"row"),
    };
    op.check().map_err(|e| compile_error(l, e))?;
    if !op.is_volta() && (op.a_col || op.b_row) {
        return Err(l.invalid("A must be row-major and B column-major"));
    }
    Ok(op)
}

/// Sources of a brace list, 32 bits each.
pub(super) fn sources(l: &mut Lower<'_>, o: &Operand, bits: u32) -> Result<Vec<Src>, CompileError> {
    let list = l.elements(o).to_vec();
    list.iter().map(|e| l.src(e, Ty::B(bits))).collect()
}

/// Destinations of a brace list.
pub(super) fn destinations(l: &mut Lower<'_>, o: &Operand, bits: u32) -> Result<Vec<Slot>, CompileError> {
    let list = l.elements(o).to_vec();
    list.iter().map(|e| l.dst(e, bits)).collect()
}

pub(super) fn lower(l: &mut Lower<'_>, i: &Instruction) -> Result<Custom, CompileError> {
    let op = parse(l, i)?;
    let wide = op.a == Elem::F64;
    let bits = if wide { 64 } else { 32 };
    let wanted = if op.scale.is_some() { 8 } else { 4 };
    if i.operands.len() != wanted {
        return Err(l.invalid(format!("`{}` has {} operands, {wanted} expected", i.full_name(), i.operands.len())));
    }
    let d = destinations(l, &i.operands[0], bits)?;
    let a = sources(l, &i.operands[1], bits)?;
    let b = sources(l, &i.operands[2], bits)?;
    let c = sources(l, &i.operands[3], bits)?;
    let scales = if op.scale.is_some() {
        let one = |l: &mut Lower<'_>, at: usize| -> Result<Scale, CompileError> {
            let data = sources(l, &i.operands[at], 32)?;
            let select = sources(l, &i.operands[at + 1], 16)?;
            match (data.as_slice(), select.as_slice()) {
                ([data], [byte, thread]) => Ok(Scale { data: *data, byte: *byte, thread: *thread }),
                _ => Err(l.invalid("scale operands are `{data}, {byte-id, thread-id}`")),
            }
        };
        Some((one(l, 4)?, one(l, 6)?))
    } else {
        None
    };
    if (a.len(), b.len(), c.len(), d.len()) != op.register_counts() {
        return Err(l.invalid(format!(
            "`{}` takes {:?} registers, has {:?}",
            i.full_name(),
            op.register_counts(),
            (a.len(), b.len(), c.len(), d.len())
        )));
    }
    let name = counter_name(&op);
    let flops = op.flops();
    Ok(Box::new(move |cx, mask| {
        if let Some(flow) = whole_warp(cx, mask) {
            return Ok(flow);
        }
        let mut poison = [0u32; 3];
        let mut poisoned = |list: &[Src], which: usize| list.iter().for_each(|s| poison[which] |= cx.poison(*s));
        poisoned(&a, 0);
        poisoned(&b, 1);
        poisoned(&c, 2);
        let registers = |list: &[Src]| list.iter().map(|s| cx.lanes(*s)).collect::<Vec<&Lanes>>();
        let (av, bv, cv) = (registers(&a), registers(&b), registers(&c));
        let mut dv = vec![[0u64; 32]; d.len()];
        let result = if wide {
            let own = |list: &[&Lanes]| list.iter().map(|l| **l).collect::<Vec<Lanes>>();
            op.execute_f64(&own(&av), &own(&bv), &own(&cv), &mut dv)
        } else {
            match &scales {
                None => op.execute(&av, &bv, &cv, &mut dv, None),
                Some((sa, sb)) => {
                    let operand = |s: &Scale| ScaleOperand {
                        data: cx.lanes(s.data),
                        byte_id: cx.uniform(s.byte, mask) as u32 & 0xffff,
                        thread_id: cx.uniform(s.thread, mask) as u32 & 0xffff,
                    };
                    op.execute(&av, &bv, &cv, &mut dv, Some((operand(sa), operand(sb))))
                }
            }
        };
        result.map_err(|e| fault(&cx.m, &e))?;
        let spread = spread_poison(&op, poison);
        for (slot, value) in d.iter().zip(&dv) {
            cx.write(*slot, mask, value, spread);
        }
        cx.m.worker.counters.tensor_op(&name, flops);
        Ok(Flow::Next)
    }))
}

/// Lanes whose results depend on unwritten registers: of A in their row group, of B in their columns, of C in themselves.
fn spread_poison(op: &Mma, [a, b, c]: [u32; 3]) -> u32 {
    if a | b == 0 {
        return c;
    }
    if op.is_volta() {
        return u32::MAX;
    }
    let quad = |mask: u32, q: usize| mask >> (4 * q) & 0xf != 0;
    let mut out = c;
    for lane in 0..32 {
        let (g, t) = (lane / 4, lane % 4);
        if quad(a, g) || quad(b, 2 * t) || quad(b, 2 * t + 1) {
            out |= 1 << lane;
        }
    }
    out
}

fn counter_name(op: &Mma) -> String {
    let scaled = if op.scale.is_some() { ".block_scale" } else { "" };
    format!("mma.m{}n{}k{}.{:?}.{:?}{scaled}", op.m, op.n, op.k, op.a, op.b).to_lowercase()
}
