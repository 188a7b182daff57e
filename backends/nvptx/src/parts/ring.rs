//! Rings: slots that one role fills and another empties, with a pair of barriers for each slot.

use crate::builder::{BARRIER_BYTES, Builder, I32, Shared, Var};

/// Barriers one behind the other in shared memory.
#[derive(Clone, Copy)]
pub struct Barriers<'c> {
    first: Shared<'c>,
    n: u32,
}

impl<'c> Barriers<'c> {
    /// `n` barriers at `first`.
    pub fn new(first: Shared<'c>, n: u32) -> Barriers<'c> {
        Barriers { first, n }
    }

    /// Makes them, with so many arrivals each. One thread calls.
    pub fn init(self, c: &'c Builder<'c>, arrivals: u32) {
        (0..self.n).for_each(|i| c.init_barrier(self.first.at(i * BARRIER_BYTES), arrivals));
    }

    /// The barrier of a slot.
    pub fn at(self, slot: I32<'c>) -> Shared<'c> {
        if self.n == 1 { self.first } else { self.first.plus(slot * BARRIER_BYTES) }
    }
}

/// Where one role stands in a ring: the slot, and the parity of its phase.
///
/// Who empties slots waits for the full barrier with `parity`; who fills them waits for the empty barrier with
/// `parity_before`, which lets the first round pass.
#[derive(Clone, Copy)]
pub struct Ring<'c> {
    c: &'c Builder<'c>,
    slot: Var<'c, I32<'c>>,
    parity: Var<'c, I32<'c>>,
    size: u32,
}

impl<'c> Ring<'c> {
    /// The start of a ring of `size` slots.
    pub fn new(c: &'c Builder<'c>, size: u32) -> Ring<'c> {
        Ring { c, slot: c.var(c.i32(0)), parity: c.var(c.i32(0)), size }
    }

    pub fn slot(self) -> I32<'c> {
        self.slot.get()
    }

    pub fn parity(self) -> I32<'c> {
        self.parity.get()
    }

    pub fn parity_before(self) -> I32<'c> {
        self.parity.get() ^ 1
    }

    /// On to the next slot.
    pub fn advance(self) {
        let next = self.slot.get() + 1;
        let is_end = next.eq(self.size);
        self.slot.set(self.c.select(is_end, self.c.i32(0), next));
        self.parity.set(self.parity.get() ^ is_end.as_i32());
    }

    /// Waits until every slot that was filled is empty. For who fills slots.
    pub fn drain(self, empty: Barriers<'c>) {
        let c = self.c;
        let (slot, parity) = (c.var(self.slot()), c.var(self.parity()));
        let round = Ring { slot, parity, ..self };
        c.range(0, self.size, 1, |_| {
            c.wait_for(empty.at(round.slot()), round.parity_before());
            round.advance();
        });
    }

    /// On by `n` slots, which others fill and empty. A parity tells a phase from the one before only: before the next wait
    /// all slots but the last must be known to be filled.
    pub fn skip(self, n: I32<'c>) {
        let to = self.slot.get() + n;
        self.slot.set(to % self.size);
        self.parity.set(self.parity.get() ^ ((to / self.size) & 1));
    }
}
