//! `alloca`, `stacksave`, `stackrestore`: local memory that a thread takes while it runs.

use super::{Lower, Ty, operands};
use crate::ast::Instruction;
use crate::exec::access::lanes_of;
use crate::exec::error::CompileError;
use crate::exec::interpret::grow_local;
use crate::exec::program::Flow;

impl Lower<'_> {
    pub(super) fn stack(&mut self, i: &Instruction) -> Result<(), CompileError> {
        let ty = self.last_type(i)?;
        if !matches!(ty, Ty::U(32 | 64)) {
            return Err(self.unsupported(i.full_name()));
        }
        self.uses_stack = true;
        match i.opcode.as_str() {
            "alloca" => {
                let (d, size, align) = match i.operands.as_slice() {
                    [d, size] => (d, size, 8),
                    [d, size, align] => match self.immediate(align) {
                        Some(n @ 1..=65536) if n & (n - 1) == 0 => (d, size, n as u64),
                        _ => return Err(self.invalid("the alignment is a power of two")),
                    },
                    _ => return Err(self.invalid("`alloca` takes a destination, a size and an alignment")),
                };
                let d = self.dst(d, ty.bits())?;
                let size = self.src(size, ty)?;
                self.emit_custom(Box::new(move |cx, mask| {
                    cx.require(size, mask, "the size");
                    let mut out = [0u64; 32];
                    for l in lanes_of(mask) {
                        let at = u64::from(cx.warp.stack[l]).div_ceil(align) * align;
                        let end = at.saturating_add(cx.lanes(size)[l]);
                        grow_local(cx, u32::try_from(end).unwrap_or(u32::MAX))?;
                        let start = l * cx.warp.local_stride as usize;
                        cx.warp.local_holes[start + at as usize..start + end as usize].fill(0xff);
                        cx.warp.stack[l] = end as u32;
                        out[l] = at;
                    }
                    cx.write(d, mask, &out, 0);
                    Ok(Flow::Next)
                }));
            }
            "stacksave" => {
                let [d] = operands(self, i)?;
                let d = self.dst(d, ty.bits())?;
                self.emit_custom(Box::new(move |cx, mask| {
                    let out = cx.warp.stack.map(u64::from);
                    cx.write(d, mask, &out, 0);
                    Ok(Flow::Next)
                }));
            }
            _ => {
                let [a] = operands(self, i)?;
                let a = self.src(a, ty)?;
                self.emit_custom(Box::new(move |cx, mask| {
                    cx.require(a, mask, "the stack pointer");
                    for l in lanes_of(mask) {
                        let to = cx.lanes(a)[l];
                        if to > u64::from(cx.warp.stack[l]) || to < u64::from(crate::exec::warp::STACK_BASE) {
                            return Err(cx.m.fault(format!("{to:#x} is not a value of `stacksave`")));
                        }
                        cx.warp.stack[l] = to as u32;
                    }
                    Ok(Flow::Next)
                }));
            }
        }
        Ok(())
    }
}
