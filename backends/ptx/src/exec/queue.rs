//! Asynchronous operations between issue and completion.

use std::collections::VecDeque;

use super::context::AsyncCx;
use super::error::ExecError;
use super::race::Clock;

/// What happens when the scheduler lets an operation go on.
pub enum Step {
    /// The operation is complete.
    Done,
    /// It is not: this runs at a later time (a bulk store first reads its source, later writes).
    Then(Run),
}

/// The effect of an asynchronous operation.
pub type Run = Box<dyn FnOnce(&mut AsyncCx<'_>) -> Result<Step, ExecError> + Send>;

/// Which operations keep their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Completes at any time.
    Free,
    /// Operations of one key complete in the order of issue (wgmma of a warp, tcgen05 of a CTA).
    Ordered(u64),
}

/// An operation in flight.
pub struct AsyncOp {
    /// Mnemonic, for reports.
    pub what: &'static str,
    /// Order.
    pub stream: Stream,
    /// Effect.
    pub run: Run,
}

pub(crate) struct Pending {
    pub op: AsyncOp,
    pub cta: usize,
    pub warp: usize,
    pub pc: u32,
    pub lane: u32,
    /// Actor under which the operation accesses memory.
    pub actor: u32,
    pub clock: Clock,
    /// Scheduler turns before which it is not completed in a round-robin schedule.
    pub issued: u64,
}

/// The operations of a cluster in flight.
#[derive(Default)]
pub(crate) struct AsyncQueue {
    pub list: VecDeque<Pending>,
}

impl AsyncQueue {
    /// Indices of operations that may go on: free ones, and the first of each ordered stream.
    pub fn ready(&self) -> Vec<usize> {
        let mut seen = Vec::new();
        let mut ready = Vec::new();
        for (i, p) in self.list.iter().enumerate() {
            match p.op.stream {
                Stream::Free => ready.push(i),
                Stream::Ordered(key) => {
                    if !seen.contains(&key) {
                        seen.push(key);
                        ready.push(i);
                    }
                }
            }
        }
        ready
    }
}
