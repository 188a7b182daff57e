//! What ranks need of each other.

use std::time::Duration;

/// One rank's end of an exchange between all ranks.
///
/// All ranks make the same calls in the same order. An implementation over a GPU's peer memory would put a part straight
/// into the receiver's window and raise a flag behind it; the order of calls and what a [`Fault`] says stay the same.
pub trait Comm: Send {
    /// This rank, from 0.
    fn rank(&self) -> u32;

    /// How many there are.
    fn n_ranks(&self) -> u32;

    /// Gives `parts[r]` to rank `r`, and returns what each rank gave to this one, by rank. Waits for all of them.
    ///
    /// # Errors
    /// A [`Fault`] when a rank does not answer in time, or has ended.
    fn exchange(&mut self, parts: Vec<Vec<u8>>) -> Result<Vec<Vec<u8>>, Fault>;

    /// Waits until every rank is here.
    ///
    /// # Errors
    /// As [`Comm::exchange`].
    fn barrier(&mut self) -> Result<(), Fault> {
        let parts = vec![Vec::new(); self.n_ranks() as usize];
        self.exchange(parts).map(|_| ())
    }

    /// Tells the others that this rank goes no further, and why, so that they do not wait for it.
    fn end(&mut self, why: &str);
}

/// Why an exchange did not come about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// These ranks sent nothing for so long.
    Silent {
        /// By number.
        ranks: Vec<u32>,
        /// How long this rank waited.
        waited: Duration,
    },
    /// A rank has ended.
    Ended {
        /// Which.
        rank: u32,
        /// What it said last.
        why: String,
    },
    /// The call is not one that can be answered.
    Misused(String),
}
