//! Extended-precision integer arithmetic over the condition code's carry bit.

use super::{Lower, Ty};
use crate::ast::Instruction;
use crate::exec::error::CompileError;
use crate::exec::program::Flow;
use crate::exec::unwritten::Spread;

impl Lower<'_> {
    /// `add.cc`, `addc`, `sub.cc`, `subc`, `mad.cc`, `madc`.
    pub(super) fn carry(&mut self, i: &Instruction) -> Result<(), CompileError> {
        let last = i.modifiers.last().map_or("", String::as_str);
        let Some(ty) = Ty::parse(last).filter(|t| matches!(t, Ty::U(32 | 64) | Ty::S(32 | 64))) else {
            return Err(self.unsupported(i.full_name()));
        };
        let bits = ty.bits();
        let full = if bits == 64 { u64::MAX } else { 0xffff_ffff };
        let (sets, takes) = (i.has("cc"), i.opcode.ends_with('c'));
        let (product, subtract, signed, high) =
            (i.opcode.starts_with("mad"), i.opcode.starts_with("sub"), matches!(ty, Ty::S(_)), i.has("hi"));
        let expected = if product { 4 } else { 3 };
        if i.operands.len() != expected {
            return Err(self.invalid(format!("{expected} operands expected")));
        }
        let d = self.dst(&i.operands[0], bits)?;
        let a = self.src(&i.operands[1], ty)?;
        let b = self.src(&i.operands[2], ty)?;
        let c = if product { Some(self.src(&i.operands[3], ty)?) } else { None };
        self.emit_custom(Box::new(move |cx, mask| {
            let mut out = [0u64; 32];
            let mut carry = 0u32;
            for (l, o) in out.iter_mut().enumerate() {
                let (mut x, mut y) = (cx.lanes(a)[l], cx.lanes(b)[l]);
                if let Some(c) = c {
                    x = if signed && high {
                        let ext = |v: u64| if bits == 32 { i128::from(v as i32) } else { i128::from(v as i64) };
                        ((ext(x) * ext(y)) >> bits) as u64 & full
                    } else {
                        let p = u128::from(x) * u128::from(y);
                        (if high { p >> bits } else { p }) as u64 & full
                    };
                    y = cx.lanes(c)[l];
                }
                let take = u128::from(takes && cx.warp.carry >> l & 1 == 1);
                // There is one adder: a difference is a + !b + carry, so that its flag is 1 when nothing was borrowed.
                // Code that mixes the two (128-bit division, for one) tells the difference.
                let (y, take) = match (subtract, takes) {
                    (true, true) => (!y & full, take),
                    (true, false) => (!y & full, 1),
                    (false, _) => (y, take),
                };
                let sum = u128::from(x) + u128::from(y) + take;
                *o = sum as u64 & full;
                carry |= u32::from(sum > u128::from(full)) << l;
            }
            let mut poison = cx.poison(a) | cx.poison(b) | c.map_or(0, |c| cx.poison(c));
            if takes {
                poison |= cx.warp.carry_poison;
            }
            if poison & mask == 0 {
                cx.write(d, mask, &out, 0);
            } else if takes && cx.warp.carry_poison & mask != 0 || product {
                cx.write(d, mask, &out, poison);
            } else {
                let same = if a == b && subtract { Spread::Difference } else { Spread::Upwards };
                cx.write_from(same, &[a, b], d, mask, &out);
            }
            if sets {
                cx.warp.carry = cx.warp.carry & !mask | carry & mask;
                cx.warp.carry_poison = cx.warp.carry_poison & !mask | poison & mask;
            }
            Ok(Flow::Next)
        }));
        Ok(())
    }
}
