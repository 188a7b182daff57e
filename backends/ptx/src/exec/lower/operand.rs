//! Names and operands to slots and constants.

use super::{Lower, Register, Symbol, Ty, types};
use crate::ast::{Literal, Number, Operand};
use crate::exec::error::CompileError;
use crate::exec::memory::FUNCTION_WINDOW;
use crate::exec::program::{AddressSrc, Constant, MemorySpace, Op, PredSlot, PredSrc, Preset, Slot, Src};
use crate::exec::unwritten::Spread;

/// Bits of a literal read as a type.
pub(crate) fn literal_bits(l: &Literal, ty: Ty) -> Option<u64> {
    Some(match (l.value, ty) {
        (Number::Int(v), Ty::F32) => u64::from((v as f32).to_bits()),
        (Number::Int(v), Ty::F64) => (v as f64).to_bits(),
        (Number::Int(v), Ty::F32x2 | Ty::U(64 | 128) | Ty::S(64) | Ty::B(64 | 128)) => v as u64,
        (Number::Int(v), _) => v as u64 & ((1u64 << ty.bits()) - 1),
        (Number::F32(b), Ty::F64) => f64::from(f32::from_bits(b)).to_bits(),
        (Number::F32(b), Ty::F32 | Ty::B(32) | Ty::U(32) | Ty::S(32)) => u64::from(b),
        (Number::F64(b), Ty::F32) => u64::from((f64::from_bits(b) as f32).to_bits()),
        (Number::F64(b), Ty::F64 | Ty::B(64)) => b,
        (Number::F32(_) | Number::F64(_), _) => return None,
    })
}

impl Lower<'_> {
    fn register(&mut self, name: &str) -> Option<Register> {
        for at in (1..self.scopes.len()).rev() {
            if let Some(r) = self.scopes[at].registers.get(name) {
                return Some(*r);
            }
            let ty = if let Some(ty) = self.scopes[at].declared.get(name) {
                ty.clone()
            } else {
                let stem = name.trim_end_matches(|c: char| c.is_ascii_digit());
                let number = &name[stem.len()..];
                let Some(range) = self.scopes[at].ranges.get(stem) else { continue };
                let inside =
                    number.parse::<u64>().is_ok_and(|n| n < range.count) && (number == "0" || !number.starts_with('0'));
                if !inside {
                    continue;
                }
                range.ty.clone()
            };
            let bits = types::type_bits(&ty)?;
            let r = if ty == "pred" {
                Register::Pred(self.scratch_pred())
            } else {
                let slot = if bits == 128 { self.scratch_pair() } else { self.scratch() };
                self.slot_bits[slot.0 as usize] = bits.min(64) as u8;
                Register::Value(slot, bits)
            };
            self.scopes[at].registers.insert(name.to_owned(), r);
            return Some(r);
        }
        None
    }

    pub(crate) fn symbol(&mut self, name: &str) -> Option<Symbol> {
        if let Some(s) = self.scopes.iter().rev().find_map(|s| s.symbols.get(name)) {
            return Some(*s);
        }
        self.function_number(name).map(Symbol::Function)
    }

    /// Width of the register that an operand names.
    pub fn register_bits(&mut self, o: &Operand) -> Option<u32> {
        match o {
            Operand::Name(n) => match self.register(n)? {
                Register::Value(_, bits) => Some(bits),
                Register::Pred(_) => Some(1),
            },
            _ => None,
        }
    }

    pub(crate) fn pred_named(&mut self, name: &str) -> Result<PredSlot, CompileError> {
        match self.register(name) {
            Some(Register::Pred(p)) => Ok(p),
            Some(Register::Value(..)) => Err(self.invalid(format!("`{name}` is not a predicate"))),
            None => Err(self.invalid(format!("`{name}` is not declared"))),
        }
    }

    /// A predicate operand: `p`, `!p`, 0 or 1.
    pub fn pred_src(&mut self, o: &Operand) -> Result<PredSrc, CompileError> {
        match o {
            Operand::Name(n) => Ok(PredSrc { slot: self.pred_named(n)?, negated: false }),
            Operand::Not(n) => Ok(PredSrc { slot: self.pred_named(n)?, negated: true }),
            Operand::Literal(Literal { value: Number::Int(v), .. }) => {
                Ok(if *v == 0 { PredSrc::FALSE } else { PredSrc::TRUE })
            }
            _ => Err(self.invalid(format!("`{o}` is not a predicate"))),
        }
    }

    /// A predicate destination; `None` for `_`.
    pub fn pred_dst(&mut self, o: &Operand) -> Result<Option<PredSlot>, CompileError> {
        match o {
            Operand::Sink => Ok(None),
            Operand::Name(n) => self.pred_named(n).map(Some),
            _ => Err(self.invalid(format!("`{o}` is not a predicate"))),
        }
    }

    /// A destination register of `bits` bits (128: two slots); `_` gives a slot that nobody reads.
    pub fn dst(&mut self, o: &Operand, bits: u32) -> Result<Slot, CompileError> {
        let (slot, have) = self.dst_any(o, bits)?;
        if have != bits {
            return Err(self.invalid(format!("`{o}` has {have} bits, {bits} expected")));
        }
        Ok(slot)
    }

    /// A destination register of any width, with its width; `bits` is the width of `_`.
    pub fn dst_any(&mut self, o: &Operand, bits: u32) -> Result<(Slot, u32), CompileError> {
        match o {
            Operand::Sink => Ok((if bits == 128 { self.scratch_pair() } else { self.scratch() }, bits)),
            Operand::Name(n) => match self.register(n) {
                Some(Register::Value(slot, have)) => Ok((slot, have)),
                Some(Register::Pred(_)) => Err(self.invalid(format!("`{n}` is a predicate"))),
                None => Err(self.invalid(format!("`{n}` is not declared"))),
            },
            _ => Err(self.invalid(format!("`{o}` is not a register"))),
        }
    }

    /// A source operand of a type: a register of its width, a number, a special register, or the address of a variable.
    pub fn src(&mut self, o: &Operand, ty: Ty) -> Result<Src, CompileError> {
        let (src, have) = self.src_any(o, ty)?;
        if have != ty.bits() {
            return Err(self.invalid(format!("`{o}` has {have} bits, {} expected", ty.bits())));
        }
        Ok(src)
    }

    /// As [`src`](Lower::src) for `.b32`, the most frequent case of instruction descriptors and the like.
    pub fn src32(&mut self, o: &Operand) -> Result<Src, CompileError> {
        self.src(o, Ty::B(32))
    }

    /// As [`src`](Lower::src) for `.b64`.
    pub fn src64(&mut self, o: &Operand) -> Result<Src, CompileError> {
        self.src(o, Ty::B(64))
    }

    /// A source operand with the width of its register; numbers and addresses take the width of `ty`.
    pub fn src_any(&mut self, o: &Operand, ty: Ty) -> Result<(Src, u32), CompileError> {
        if ty.bits() == 128 && self.register_bits(o) != Some(128) {
            return Err(self.invalid(format!("`{o}` is not a 128-bit register")));
        }
        match o {
            Operand::Literal(l) => {
                let Some(bits) = literal_bits(l, ty) else {
                    return Err(self.invalid(format!("`{o}` is not a value of this type")));
                };
                Ok((self.bits(bits), ty.bits()))
            }
            Operand::Name(n) => {
                match self.register(n) {
                    Some(Register::Value(slot, bits)) => return Ok((slot.into(), bits)),
                    Some(Register::Pred(_)) => return Err(self.invalid(format!("`{n}` is a predicate"))),
                    None => {}
                }
                if let Some(special) = self.special(n, ty)? {
                    return Ok((special, ty.bits()));
                }
                self.symbol_address(n, 0).map(|s| (s, ty.bits()))
            }
            Operand::Sum(n, offset) => self.symbol_address(n, offset.value).map(|s| (s, ty.bits())),
            Operand::Operator(op, n) if op == "generic" => {
                let (_, base) = self.symbol_space(n)?;
                let address = self.symbol_address(n, 0)?;
                Ok((self.add_constant(address, base), ty.bits()))
            }
            Operand::Neg(n) => {
                let (a, bits) = self.src_any(&Operand::Name(n.clone()), ty)?;
                let d = self.scratch();
                let zero = self.bits(0);
                let f = if bits == 64 {
                    |a: &_, b: &_, d: &mut _| sub_lanes(a, b, d, u64::MAX)
                } else {
                    |a: &_, b: &_, d: &mut _| sub_lanes(a, b, d, 0xffff_ffff)
                };
                self.emit(Op::Map2 { f, d, a: zero, b: a, spread: Spread::Upwards });
                Ok((d.into(), bits))
            }
            _ => Err(self.invalid(format!("`{o}` cannot be read as a value"))),
        }
    }

    /// `a + c` into a scratch register, unless `c` is 0.
    fn add_constant(&mut self, a: Src, c: u64) -> Src {
        if c == 0 {
            return a;
        }
        let d = self.scratch();
        let b = self.bits(c);
        self.emit(Op::Map2 {
            f: |a, b, d| (0..32).for_each(|i| d[i] = a[i].wrapping_add(b[i])),
            d,
            a,
            b,
            spread: Spread::Upwards,
        });
        d.into()
    }

    /// The space of a variable and the generic address at which the space starts.
    pub(crate) fn symbol_space(&mut self, name: &str) -> Result<(MemorySpace, u64), CompileError> {
        let space = match self.symbol(name) {
            Some(Symbol::SharedVariable(_) | Symbol::DynamicShared) => MemorySpace::Shared,
            Some(Symbol::Local(_) | Symbol::Frame(..)) => MemorySpace::Local,
            Some(Symbol::Param(_)) => MemorySpace::Param,
            Some(Symbol::Const(_)) => MemorySpace::Const,
            Some(Symbol::Global(_) | Symbol::Function(_)) => MemorySpace::Global,
            None => return Err(self.invalid(format!("`{name}` is not declared"))),
        };
        Ok((space, crate::exec::memory::window_base(space)))
    }

    /// The address of a variable in its own space, plus `offset`.
    pub(crate) fn symbol_address(&mut self, name: &str, offset: i64) -> Result<Src, CompileError> {
        let Some(symbol) = self.symbol(name) else {
            let elsewhere = |v: &&crate::ast::Variable| v.names.iter().any(|d| d.name == name);
            return Err(if self.module.variables().any(|v| elsewhere(&v)) {
                self.unsupported(format!(
                    "`{name}` of another module; link the modules first (nvlink, `cuLinkAddData`)"
                ))
            } else {
                self.invalid(format!("`{name}` is not declared"))
            });
        };
        Ok(match symbol {
            Symbol::SharedVariable(number) => match self.place_shared(number) {
                Some(at) => self.preset(Preset::SharedAddress(at.wrapping_add_signed(offset as i32))),
                None => return Err(self.invalid(format!("static shared memory is above 256 KiB with `{name}`"))),
            },
            Symbol::DynamicShared => self.preset(Preset::DynamicShared(offset)),
            Symbol::Param(at) => self.bits(u64::from(at).wrapping_add_signed(offset)),
            Symbol::Const(at) => self.bits(u64::from(at).wrapping_add_signed(offset)),
            Symbol::Global(index) => self.constant(Constant::Global(index, offset)),
            Symbol::Function(number) => {
                self.address_taken.push(number);
                self.bits(FUNCTION_WINDOW + u64::from(number) * 16)
            }
            Symbol::Local(at) | Symbol::Frame(at, _) => {
                let d = self.scratch();
                let at = u64::from(at).wrapping_add_signed(offset);
                self.emit_custom(Box::new(move |cx, mask| {
                    let value = cx.warp.frame.map(|f| u64::from(f).wrapping_add(at));
                    cx.write(d, mask, &value, 0);
                    Ok(crate::exec::program::Flow::Next)
                }));
                d.into()
            }
        })
    }

    /// A bracketed operand in a given space. The base may be 32 or 64 bits wide.
    pub fn address(&mut self, o: &Operand) -> Result<AddressSrc, CompileError> {
        let a = match o {
            Operand::Address(a) | Operand::Tensor { map: a, .. } => a,
            _ => return Err(self.invalid(format!("`{o}` is not an address"))),
        };
        let offset = a.offset.as_ref().map_or(0, |o| o.value);
        let (base, bits) = self.src_any(&a.base, Ty::B(64))?;
        Ok(AddressSrc { base, offset, narrow: bits == 32 })
    }

    /// The space that the variable in a bracketed operand lives in, if a variable is named.
    pub(crate) fn address_symbol(&mut self, o: &Operand) -> Option<Symbol> {
        let Operand::Address(a) = o else { return None };
        let Operand::Name(n) = a.base.as_ref() else { return None };
        if self.register(n).is_some() { None } else { self.symbol(n) }
    }

    /// The elements of `{a, b}`, or the operand itself as the only one.
    pub fn elements<'o>(&self, o: &'o Operand) -> &'o [Operand] {
        match o {
            Operand::Vector(list) => list,
            _ => std::slice::from_ref(o),
        }
    }

    /// A whole number written in the text.
    pub fn immediate(&self, o: &Operand) -> Option<i128> {
        match o {
            Operand::Literal(Literal { value: Number::Int(v), .. }) => Some(*v),
            _ => None,
        }
    }

    /// The value of a special register; `None` when the name is none.
    fn special(&mut self, name: &str, ty: Ty) -> Result<Option<Src>, CompileError> {
        if name == "WARP_SZ" {
            return Ok(Some(self.bits(32)));
        }
        if !name.starts_with('%') {
            return Ok(None);
        }
        let (stem, axis) = match name.rsplit_once('.') {
            Some((stem, "x")) => (stem, 0),
            Some((stem, "y")) => (stem, 1),
            Some((stem, "z")) => (stem, 2),
            Some((stem, "w")) => (stem, 3),
            _ => (name, 0),
        };
        if axis == 3 {
            return Ok(Some(self.bits(0)));
        }
        Ok(Some(match stem {
            "%tid" => self.preset(Preset::Tid(axis)),
            "%ctaid" => self.preset(Preset::Ctaid(axis)),
            "%ntid" => self.constant(Constant::BlockDim(axis)),
            "%nctaid" => self.constant(Constant::GridDim(axis)),
            "%laneid" => self.preset(Preset::LaneId),
            "%warpid" => self.preset(Preset::WarpId),
            "%nwarpid" => self.constant(Constant::WarpCount),
            "%smid" => self.preset(Preset::SmId),
            "%nsmid" => {
                let n = self.target.sm_count();
                self.bits(u64::from(n))
            }
            "%gridid" => self.bits(1),
            "%cluster_ctaid" => self.preset(Preset::ClusterCtaid(axis)),
            "%cluster_nctaid" => self.constant(Constant::ClusterDim(axis)),
            "%cluster_ctarank" => self.preset(Preset::ClusterCtarank),
            "%cluster_nctarank" => self.constant(Constant::ClusterSize),
            "%clusterid" => self.preset(Preset::Clusterid(axis)),
            "%nclusterid" => self.constant(Constant::GridClusters(axis)),
            "%is_explicit_cluster" => self.bits(1),
            "%lanemask_eq" => self.preset(Preset::LaneMask(0)),
            "%lanemask_le" => self.preset(Preset::LaneMask(1)),
            "%lanemask_lt" => self.preset(Preset::LaneMask(2)),
            "%lanemask_ge" => self.preset(Preset::LaneMask(3)),
            "%lanemask_gt" => self.preset(Preset::LaneMask(4)),
            "%dynamic_smem_size" => self.constant(Constant::DynamicSharedBytes),
            "%total_smem_size" | "%aggr_smem_size" => self.constant(Constant::TotalSharedBytes),
            "%reserved_smem_offset_begin" | "%reserved_smem_offset_0" | "%reserved_smem_offset_1" => self.bits(0),
            // What only profilers, OpenCL drivers and graphs set.
            "%current_graph_exec" => self.bits(0),
            _ if numbered(stem, "%envreg", 32) || numbered(stem, "%pm", 8) => self.bits(0),
            _ if stem.strip_suffix("_64").is_some_and(|s| numbered(s, "%pm", 8)) => self.bits(0),
            "%reserved_smem_offset_end" | "%reserved_smem_offset_cap" => {
                self.bits(u64::from(crate::exec::memory::SHARED_RESERVED))
            }
            "%clock" | "%clock64" | "%clock_hi" | "%globaltimer" | "%globaltimer_lo" | "%globaltimer_hi" => {
                let d = self.scratch();
                let (high, narrow) = (stem.ends_with("_hi"), ty.bits() <= 32);
                self.emit_custom(Box::new(move |cx, mask| {
                    // A clock that every executed instruction of the warp moves on: loops with a timeout end.
                    let now = cx.warp.executed.wrapping_mul(4);
                    let now = if high {
                        now >> 32
                    } else if narrow {
                        now & 0xffff_ffff
                    } else {
                        now
                    };
                    cx.write(d, mask, &[now; 32], 0);
                    Ok(crate::exec::program::Flow::Next)
                }));
                d.into()
            }
            _ => return Ok(None),
        }))
    }
}

/// Whether a name is `stem` and a number below `count`.
fn numbered(name: &str, stem: &str, count: u32) -> bool {
    name.strip_prefix(stem).and_then(|n| n.parse::<u32>().ok()).is_some_and(|n| n < count)
}

fn sub_lanes(a: &[u64; 32], b: &[u64; 32], d: &mut [u64; 32], mask: u64) {
    for i in 0..32 {
        d[i] = a[i].wrapping_sub(b[i]) & mask;
    }
}
