//! Branches, calls, returns.

use super::{Lower, Symbol, Ty};
use crate::ast::{Instruction, Operand};
use crate::exec::error::CompileError;
use crate::exec::program::{CallOp, CallTarget, Op, PredSrc};

impl<'m> Lower<'m> {
    pub(super) fn control(&mut self, i: &'m Instruction) -> Result<(), CompileError> {
        match i.opcode.as_str() {
            "bra" => {
                let [Operand::Name(name)] = i.operands.as_slice() else {
                    return Err(self.invalid("a label expected"));
                };
                let label = self.label(name)?;
                self.fixups.push((self.code.len(), 0, label));
                let p = self.guard;
                self.emit_guarded(Op::Bra { target: 0, p }, PredSrc::TRUE);
                Ok(())
            }
            "brx" => self.brx(i),
            "call" => self.call(i),
            "ret" => {
                self.emit(Op::Ret);
                Ok(())
            }
            "exit" => {
                self.emit(Op::Exit);
                Ok(())
            }
            // There is no debugger to stop for.
            "brkpt" => {
                self.emit(Op::Nop);
                Ok(())
            }
            "trap" => {
                self.emit_custom(Box::new(|cx, mask| {
                    let thread = cx.m.launch.tid(cx.m.warp_index as u32 * 32 + mask.trailing_zeros());
                    Err(cx.m.fault(format!(
                        "the kernel stopped itself (block {:?}, thread {thread:?})",
                        cx.m.cluster.ctas[cx.m.cta].ctaid
                    )))
                }));
                Ok(())
            }
            _ => Err(self.unsupported(i.full_name())),
        }
    }

    fn brx(&mut self, i: &'m Instruction) -> Result<(), CompileError> {
        let [index, Operand::Name(table)] = i.operands.as_slice() else {
            return Err(self.invalid("`brx.idx` takes an index and a table"));
        };
        let index = self.src(index, Ty::U(32))?;
        let Some(names) = self.scopes.iter().rev().find_map(|s| s.targets.get(table)).cloned() else {
            return Err(self.invalid(format!("there is no `.branchtargets` at `{table}`")));
        };
        let at = self.code.len();
        for (n, name) in names.iter().enumerate() {
            let label = self.label(name)?;
            self.fixups.push((at, n, label));
        }
        self.emit(Op::Brx { index, targets: vec![0; names.len()].into() });
        Ok(())
    }

    /// `call (ret), f, (args)`, `call f, (args)`, `call f`, with a table or prototype after them.
    fn call(&mut self, i: &'m Instruction) -> Result<(), CompileError> {
        let (returns, rest): (&[Operand], &[Operand]) = match i.operands.as_slice() {
            [Operand::List(list), rest @ ..] => (list, rest),
            rest => (&[], rest),
        };
        let Some((Operand::Name(name), rest)) = rest.split_first() else {
            return Err(self.invalid("a function expected"));
        };
        let args: &[Operand] = match rest.first() {
            Some(Operand::List(list)) => list,
            _ => &[],
        };
        if let Some(done) = self.builtin_call(name, args, returns)? {
            return Ok(done);
        }
        let target = match self.symbol(name) {
            Some(Symbol::Function(n)) => CallTarget::Direct(n),
            _ => CallTarget::Indirect(self.src64(&Operand::Name(name.clone()))?),
        };
        self.note_call(&target);
        let args = self.call_frames(args)?;
        let returns = self.call_frames(returns)?;
        self.emit(Op::Call(Box::new(CallOp { target, args, returns })));
        Ok(())
    }

    /// Functions of the device runtime that compilers call without a definition.
    fn builtin_call(&mut self, name: &str, args: &[Operand], returns: &[Operand]) -> Result<Option<()>, CompileError> {
        let defined = self.module.functions().any(|f| f.name == name && f.body.is_some());
        if defined {
            return Ok(None);
        }
        match name {
            "__assertfail" => {
                self.emit_custom(Box::new(|cx, mask| {
                    let thread = cx.m.launch.tid(cx.m.warp_index as u32 * 32 + mask.trailing_zeros());
                    Err(cx.m.fault(format!(
                        "a device assertion failed (block {:?}, thread {thread:?})",
                        cx.m.cluster.ctas[cx.m.cta].ctaid
                    )))
                }));
                Ok(Some(()))
            }
            // What a kernel prints is not shown; the call gives the number of arguments, 0.
            "vprintf" => {
                let _ = args;
                for (at, _) in self.call_frames(returns)? {
                    self.emit_custom(Box::new(move |cx, mask| {
                        for l in (0..32).filter(|l| mask >> l & 1 == 1) {
                            let start = (cx.warp.local_stride as usize) * l + cx.warp.frame[l] as usize + at as usize;
                            let end = start + 4;
                            if let (Some(data), Some(holes)) =
                                (cx.warp.local.get_mut(start..end), cx.warp.local_holes.get_mut(start..end))
                            {
                                data.fill(0);
                                holes.fill(0);
                            }
                        }
                        Ok(crate::exec::program::Flow::Next)
                    }));
                }
                Ok(Some(()))
            }
            _ => Ok(None),
        }
    }

    fn call_frames(&mut self, list: &[Operand]) -> Result<Vec<(u32, u32)>, CompileError> {
        let mut frames = Vec::new();
        for o in list {
            match o {
                Operand::Name(n) => match self.symbol(n) {
                    Some(Symbol::Frame(at, bytes)) => frames.push((at, bytes)),
                    _ => return Err(self.unsupported(format!("call argument `{n}` that is not a `.param` variable"))),
                },
                o => return Err(self.unsupported(format!("call argument `{o}`"))),
            }
        }
        Ok(frames)
    }
}
