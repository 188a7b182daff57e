//! Branches, calls, returns.

use super::{Lower, Symbol, Ty};
use crate::ast::{Function, Instruction, Operand, Space};
use crate::exec::access::{LoadOp, StoreOp};
use crate::exec::error::CompileError;
use crate::exec::global_race::Order;
use crate::exec::program::{AddressSrc, CallOp, CallTarget, MemorySpace, Op, PredSrc, Slot, Src};

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
                self.store_returns()?;
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
        // Arguments that are registers or numbers travel in the caller's frame like `.param` variables.
        let formal: Vec<(u32, Ty)> = match &target {
            CallTarget::Direct(n) => self.formal_types(*n),
            CallTarget::Indirect(_) => Vec::new(),
        };
        let mut places = Vec::new();
        for (n, o) in args.iter().enumerate() {
            places.push(self.argument(o, formal.get(n).map(|(_, ty)| *ty))?);
        }
        let mut results = Vec::new();
        let mut loads = Vec::new();
        for o in returns {
            if let Operand::Name(name) = o
                && let Some(bits) = self.register_bits(o)
            {
                let place = self.frame_place(bits / 8)?;
                results.push(place);
                loads.push((name.clone(), bits, place));
            } else {
                results.extend(self.call_frames(std::slice::from_ref(o))?);
            }
        }
        self.emit(Op::Call(Box::new(CallOp { target, args: places, returns: results })));
        for (name, bits, place) in loads {
            let d = self.dst(&Operand::Name(name), bits)?;
            self.emit_frame_load(d, bits, place);
        }
        Ok(())
    }

    /// Types of the parameters of a function.
    fn formal_types(&self, number: u32) -> Vec<(u32, Ty)> {
        let params = self.bodies[number as usize].params.as_deref().unwrap_or_default();
        params
            .iter()
            .flat_map(|v| v.names.iter().map(move |_| &v.ty))
            .map(|ty| Ty::parse(ty).map_or((32, Ty::B(32)), |t| (t.bits(), t)))
            .collect()
    }

    /// Where an argument lies in the caller's frame.
    fn argument(&mut self, o: &Operand, formal: Option<Ty>) -> Result<(u32, u32), CompileError> {
        if let Operand::Name(n) = o
            && let Some(Symbol::Frame(at, bytes)) = self.symbol(n)
        {
            return Ok((at, bytes));
        }
        let bits = self.register_bits(o).or(formal.map(Ty::bits)).unwrap_or(32);
        let ty = formal.filter(|t| t.bits() == bits).unwrap_or(Ty::B(bits));
        if !matches!(bits, 8 | 16 | 32 | 64) {
            return Err(self.unsupported(format!("call argument `{o}` of {bits} bits")));
        }
        let value = self.src(o, ty)?;
        let place = self.frame_place(bits / 8)?;
        self.emit_frame_store(value, bits, place);
        Ok(place)
    }

    /// Room in the current function's frame.
    fn frame_place(&mut self, bytes: u32) -> Result<(u32, u32), CompileError> {
        let bytes = bytes.max(1);
        let at = self.frame_bytes.div_ceil(bytes) * bytes;
        if at + bytes > 512 << 10 {
            return Err(self.unsupported("more than 512 KiB of local memory"));
        }
        self.frame_bytes = at + bytes;
        Ok((at, bytes))
    }

    fn emit_frame_store(&mut self, value: Src, bits: u32, (at, _): (u32, u32)) {
        let base = self.bits(0);
        self.emit(Op::Store(Box::new(StoreOp {
            space: MemorySpace::Frame,
            address: AddressSrc { base, offset: i64::from(at), narrow: false },
            elements: vec![value].into(),
            bytes: bits / 8,
            order: Order::default(),
        })));
    }

    fn emit_frame_load(&mut self, d: Slot, bits: u32, (at, _): (u32, u32)) {
        let base = self.bits(0);
        self.emit(Op::Load(Box::new(LoadOp {
            space: MemorySpace::Frame,
            address: AddressSrc { base, offset: i64::from(at), narrow: false },
            elements: vec![d].into(),
            bytes: bits / 8,
            signed: false,
            register_bits: bits,
            order: Order::default(),
        })));
    }

    /// Parameters and return values of a function that are registers: declares them, and loads the parameters.
    pub(super) fn register_params(&mut self, f: &'m Function) -> Result<(), CompileError> {
        self.register_returns.clear();
        for (list, returns) in [(&f.returns, true), (&f.params, false)] {
            for v in list.as_deref().unwrap_or_default().iter().filter(|v| v.space == Space::Reg) {
                for d in &v.names {
                    let Some(Symbol::Frame(at, bytes)) = self.scope().symbols.remove(&d.name) else { continue };
                    let bits = bytes * 8;
                    if v.ty == "pred" || !matches!(bits, 8 | 16 | 32 | 64) {
                        return Err(self.unsupported(format!("a parameter `{}` of type `.{}`", d.name, v.ty)));
                    }
                    self.scope().declared.insert(d.name.clone(), v.ty.clone());
                    if returns {
                        self.register_returns.push((d.name.clone(), at, bytes));
                    } else {
                        let slot = self.dst(&Operand::Name(d.name.clone()), bits)?;
                        self.emit_frame_load(slot, bits, (at, bytes));
                    }
                }
            }
        }
        Ok(())
    }

    /// Stores the return values that are registers, before a `ret`.
    pub(super) fn store_returns(&mut self) -> Result<(), CompileError> {
        for (name, at, bytes) in self.register_returns.clone() {
            let value = self.src(&Operand::Name(name), Ty::B(bytes * 8))?;
            self.emit_frame_store(value, bytes * 8, (at, bytes));
        }
        Ok(())
    }

    pub(super) fn call_frames(&mut self, list: &[Operand]) -> Result<Vec<(u32, u32)>, CompileError> {
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
