//! Mbarrier objects.

use super::race::Clock;

/// Largest pending count and transaction count.
pub const MAX_COUNT: u32 = (1 << 20) - 1;

/// An mbarrier in shared memory.
#[derive(Clone, Debug)]
pub struct Mbarrier {
    /// Arrivals that a phase needs.
    pub expected: u32,
    /// Arrivals that the current phase still needs.
    pub pending: u32,
    /// Bytes that the current phase still needs; negative if data came before it was announced.
    pub tx: i64,
    /// Completed phases.
    pub phase: u64,
    /// What arrivals have made known, also of the current phase.
    pub clock: Clock,
    /// What the completed phases have made known.
    pub completed: Clock,
    /// Instruction that initialised it.
    pub init_pc: u32,
}

/// Why an operation on an mbarrier is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Misuse(pub String);

impl Mbarrier {
    /// A fresh mbarrier for `count` arrivals, knowing what its initialiser knows.
    pub fn new(count: u32, clock: &Clock, init_pc: u32) -> Mbarrier {
        Mbarrier {
            expected: count,
            pending: count,
            tx: 0,
            phase: 0,
            clock: clock.clone(),
            completed: clock.clone(),
            init_pc,
        }
    }

    /// `expect_tx`: the current phase needs `bytes` more.
    pub fn expect_tx(&mut self, bytes: u32) -> Result<(), Misuse> {
        self.tx += i64::from(bytes);
        if self.tx > i64::from(MAX_COUNT) {
            return Err(Misuse(format!("transaction count {} is above {MAX_COUNT}", self.tx)));
        }
        Ok(())
    }

    /// `complete_tx`: `bytes` have come. True when this completes the phase.
    pub fn complete_tx(&mut self, bytes: u32) -> Result<bool, Misuse> {
        self.tx -= i64::from(bytes);
        let below = self.tx < -i64::from(MAX_COUNT);
        let flipped = self.turn();
        if below {
            return Err(Misuse(format!("transaction count is below -{MAX_COUNT}")));
        }
        Ok(flipped)
    }

    /// `count` arrivals. True when this completes the phase.
    pub fn arrive(&mut self, count: u32) -> Result<bool, Misuse> {
        if count > self.pending {
            let message =
                format!("{count} arrivals at an mbarrier whose phase needs {} more of {}", self.pending, self.expected);
            self.pending = 0;
            self.turn();
            return Err(Misuse(message));
        }
        self.pending -= count;
        Ok(self.turn())
    }

    /// `arrive_drop`: arrivals that will not come in later phases either.
    pub fn drop_arrivals(&mut self, count: u32) -> Result<bool, Misuse> {
        if count > self.expected {
            return Err(Misuse(format!("{count} arrivals dropped from an mbarrier that expects {}", self.expected)));
        }
        self.expected -= count;
        self.arrive(count)
    }

    fn turn(&mut self) -> bool {
        if self.pending == 0 && self.tx == 0 {
            self.phase += 1;
            self.pending = self.expected;
            self.completed.join(&self.clock);
            return true;
        }
        false
    }

    /// Whether the phase of this parity is complete: the current phase has the other parity.
    pub fn parity_complete(&self, parity: u32) -> bool {
        self.phase % 2 != u64::from(parity & 1)
    }

    /// The opaque state that `mbarrier.arrive` returns: the phase and, for `pending_count`, the pending arrivals.
    pub fn state(&self) -> u64 {
        (self.phase & 0xffff_ffff) << 32 | u64::from(self.pending)
    }

    /// Whether the phase of a state is complete.
    pub fn state_complete(&self, state: u64) -> bool {
        self.phase & 0xffff_ffff != state >> 32
    }
}

/// `mbarrier.pending_count`: the pending arrivals in a state.
pub fn pending_count(state: u64) -> u32 {
    state as u32 & MAX_COUNT
}
