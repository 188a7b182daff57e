//! Which bits of a register nobody wrote.
//!
//! A register knows for each lane whether all its bits were written; that is all that kernels without such bits pay for.
//! Where a lane has unwritten bits, this module follows them bit by bit: a byte of a word, the padding of a struct that is
//! copied by words, one half of a pair, an operand that a permutation does not select.

use super::context::Cx;
use super::program::{Lanes, Slot, Src, WARP};
use super::warp::Warp;

/// The unwritten bits of a register, for lanes that have some.
#[derive(Clone, Debug)]
pub struct Holes {
    /// One mask for each lane.
    pub bits: Lanes,
    /// Lanes that hold a copy of memory beside which something was written: padding, as far as anyone can tell.
    pub padding: u32,
}

/// How unwritten bits of the operands reach the result of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Spread {
    /// One unwritten bit makes the whole result unwritten.
    Whole,
    /// A bit of the result depends on at most one bit of each operand. Operands in `control` (a bit for each) say which
    /// (a shift, a selector), by their bits in `used`.
    Bitwise { control: u8, used: u32 },
    /// Sums and products: bits below the lowest unwritten one are known.
    Upwards,
    /// As `Upwards`, and a value less itself is 0.
    Difference,
    /// Parts of so many bits do not touch each other.
    Parts(u32),
    /// The second operand makes the lower 16 bits, the first the upper ones.
    Pair,
}

impl Spread {
    /// Every operand contributes bit by bit.
    pub(crate) const BITS: Spread = Spread::Bitwise { control: 0, used: 0 };

    /// As [`Spread::BITS`], but operand `n` selects.
    pub(crate) const fn selected_by(n: u8, used: u32) -> Spread {
        Spread::Bitwise { control: 1 << n, used }
    }
}

/// Says how operands become a result, lane by lane.
pub(crate) type Evaluate<'f> = dyn Fn(&[Lanes; 3], &mut Lanes) + 'f;

fn width_mask(bits: u32) -> u64 {
    if bits >= 64 { u64::MAX } else { (1 << bits) - 1 }
}

/// All bits from the lowest set one on.
fn from_lowest(bits: u64) -> u64 {
    bits | bits.wrapping_neg()
}

impl Warp {
    /// The unwritten bits of a register of `width` bits, for each lane.
    pub(crate) fn unwritten_bits(&self, s: Slot, width: u32) -> Lanes {
        let poison = self.poison[s.0 as usize];
        let holes = self.holes[s.0 as usize].as_deref();
        std::array::from_fn(|l| {
            if poison >> l & 1 == 0 { 0 } else { holes.map_or(u64::MAX, |h| h.bits[l]) & width_mask(width) }
        })
    }

    /// Lanes whose unwritten bits look like the padding of a struct.
    pub(crate) fn padding_of(&self, s: Src) -> u32 {
        s.slot()
            .and_then(|s| Some(self.poison[s.0 as usize] & self.holes[s.0 as usize].as_deref()?.padding))
            .unwrap_or(0)
    }

    /// As [`write`](Warp::write), with the unwritten bits of each lane.
    #[cold]
    pub(crate) fn write_bits(&mut self, d: Slot, mask: u32, value: &Lanes, bits: &Lanes, padding: u32) {
        let mut poison = 0;
        for (l, b) in bits.iter().enumerate() {
            poison |= u32::from(*b != 0) << l;
        }
        self.write(d, mask, value, poison & mask);
        if poison & mask == 0 {
            return;
        }
        let holes =
            self.holes[d.0 as usize].get_or_insert_with(|| Box::new(Holes { bits: [u64::MAX; WARP], padding: 0 }));
        for l in (0..WARP).filter(|l| (poison & mask) >> l & 1 == 1) {
            holes.bits[l] = bits[l];
        }
        holes.padding = holes.padding & !mask | padding & mask;
    }
}

impl Cx<'_> {
    /// The unwritten bits of a source, for each lane.
    pub(crate) fn unwritten(&self, s: Src) -> Lanes {
        match s.slot() {
            Some(slot) if self.warp.poison[slot.0 as usize] != 0 => {
                self.warp.unwritten_bits(slot, u32::from(self.m.launch.program.slot_bits[slot.0 as usize]))
            }
            _ => [0; WARP],
        }
    }

    /// Writes a result some of whose operands have unwritten bits.
    #[cold]
    pub(crate) fn write_spread(
        &mut self,
        spread: Spread,
        sources: &[Src],
        evaluate: &Evaluate<'_>,
        d: Slot,
        mask: u32,
        out: &Lanes,
    ) {
        let holes: Vec<Lanes> = sources.iter().map(|s| self.unwritten(*s)).collect();
        let width = u32::from(self.m.launch.program.slot_bits[d.0 as usize]);
        let full = width_mask(width);
        let mut any = [0u64; WARP];
        for h in &holes {
            (0..WARP).for_each(|l| any[l] |= h[l]);
        }
        let whole = any.map(|b| if b == 0 { 0 } else { full });
        let (mut bits, mut padding) = (whole, 0);
        match spread {
            Spread::Whole => {}
            Spread::Upwards => bits = any.map(|b| from_lowest(b) & full),
            Spread::Difference if sources.len() == 2 && sources[0] == sources[1] => bits = [0; WARP],
            Spread::Difference => bits = any.map(|b| from_lowest(b) & full),
            Spread::Parts(part) => {
                bits = any.map(|b| {
                    (0..width.div_ceil(part))
                        .map(|n| width_mask(part) << (n * part))
                        .filter(|m| b & m != 0)
                        .sum::<u64>()
                        & full
                });
            }
            Spread::Pair => {
                bits = std::array::from_fn(|l| {
                    (if holes[1][l] != 0 { 0xffff } else { 0 }) | if holes[0][l] != 0 { 0xffff_0000 } else { 0 }
                });
            }
            Spread::Bitwise { control, used } => {
                let selects = |n: usize| control >> n & 1 == 1;
                let mut unknown = 0u32;
                for (_, h) in holes.iter().enumerate().filter(|(n, _)| selects(*n)) {
                    (0..WARP).for_each(|l| unknown |= u32::from(h[l] & u64::from(used) != 0) << l);
                }
                let data: Vec<usize> = (0..sources.len()).filter(|n| !selects(*n)).collect();
                bits = self.depends(sources, &holes, &data, evaluate);
                padding = data
                    .iter()
                    .filter(|n| holes[**n].iter().any(|b| *b != 0))
                    .fold(u32::MAX, |p, n| p & self.warp.padding_of(sources[*n]));
                for (l, b) in bits.iter_mut().enumerate() {
                    *b = if unknown >> l & 1 == 1 { full } else { *b & full };
                }
            }
        }
        self.warp.write_bits(d, mask, out, &bits, padding);
    }

    /// Writes a result of closures that look at whole parts of their operands.
    pub(crate) fn write_from(&mut self, spread: Spread, sources: &[Src], d: Slot, mask: u32, out: &Lanes) {
        if sources.iter().fold(0, |p, s| p | self.poison(*s)) & mask == 0 {
            self.warp.write(d, mask, out, 0);
        } else {
            self.write_spread(spread, sources, &|_, _| {}, d, mask, out);
        }
    }

    /// The bits of a result that change when unwritten bits of the operands `data` do. Since a bit of the result depends
    /// on at most one bit of each operand, all of them 0 and all of them 1 are enough. A register that stands twice
    /// changes in both places.
    fn depends(&self, sources: &[Src], holes: &[Lanes], data: &[usize], evaluate: &Evaluate<'_>) -> Lanes {
        let mut registers: Vec<Src> = Vec::new();
        for n in data {
            if holes[*n].iter().any(|b| *b != 0) && !registers.contains(&sources[*n]) {
                registers.push(sources[*n]);
            }
        }
        let mut first = [0u64; WARP];
        let mut changed = [0u64; WARP];
        for combination in 0..1u32 << registers.len() {
            let mut v = [[0u64; WARP]; 3];
            for (n, s) in sources.iter().enumerate() {
                v[n] = *self.lanes(*s);
                if let Some(r) = registers.iter().position(|r| r == s) {
                    for l in 0..WARP {
                        v[n][l] =
                            if combination >> r & 1 == 1 { v[n][l] | holes[n][l] } else { v[n][l] & !holes[n][l] };
                    }
                }
            }
            let mut out = [0u64; WARP];
            evaluate(&v, &mut out);
            if combination == 0 {
                first = out;
            }
            (0..WARP).for_each(|l| changed[l] |= out[l] ^ first[l]);
        }
        changed
    }

    /// Lanes of `poison` in which a comparison of integers comes out the same whatever the unwritten bits are.
    #[cold]
    pub(crate) fn decided(&self, kind: Comparison, a: Src, b: Src, f: super::program::Compare) -> u32 {
        let (ua, ub) = (self.unwritten(a), self.unwritten(b));
        let (va, vb) = (self.lanes(a), self.lanes(b));
        match kind {
            Comparison::Float => 0,
            Comparison::Equality => {
                (0..WARP).fold(0, |m, l| m | u32::from((va[l] ^ vb[l]) & !(ua[l] | ub[l]) != 0) << l)
            }
            Comparison::Order { bits } => {
                // The least and the greatest values, unsigned and signed.
                let sign = 1u64 << (bits - 1);
                let extreme = |v: &Lanes, u: &Lanes, n: u32| -> Lanes {
                    std::array::from_fn(|l| match n {
                        0 => v[l] & !u[l],
                        1 => v[l] | u[l],
                        2 => v[l] & !u[l] | u[l] & sign,
                        _ => v[l] & !u[l] | u[l] & !sign,
                    })
                };
                let (mut all, mut none) = (u32::MAX, u32::MAX);
                for x in 0..4 {
                    for y in 0..4 {
                        let holds = f(&extreme(va, &ua, x), &extreme(vb, &ub, y));
                        all &= holds;
                        none &= !holds;
                    }
                }
                all | none
            }
        }
    }
}

/// What a comparison makes of unwritten bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Comparison {
    /// Any unwritten bit leaves it open.
    Float,
    /// Two known bits that differ decide.
    Equality,
    /// The range of values decides.
    Order { bits: u32 },
}
