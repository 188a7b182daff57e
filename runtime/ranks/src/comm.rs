//! What ranks need of each other.

use moec_ir::Placement;
use moec_ir::diag::Diagnostic;
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

/// A fault, with the experts that are not there because of it.
pub(crate) fn not_answering(fault: Fault, own: u32, (map, members): (&Placement, u32), when: &str) -> Diagnostic {
    let holds = |rank: u32| match map.experts_of(rank / members.max(1)) {
        [] => "no experts".to_string(),
        list => format!("experts {}", list.iter().map(u32::to_string).collect::<Vec<_>>().join(", ")),
    };
    let help = "start it again, or give the other ranks a map in which others hold its experts; the tokens of this step were \
                not lost: run it again";
    match fault {
        Fault::Silent { ranks, waited } => {
            let who =
                ranks.iter().map(|&r| format!("rank {r}, which holds {},", holds(r))).collect::<Vec<_>>().join(" and ");
            let what = format!("{who} has not answered rank {own} within {:.1} s, {when}", waited.as_secs_f64());
            Diagnostic::machine("rank-not-answering", what).help(help)
        }
        Fault::Ended { rank, why } => {
            let what = format!("rank {rank}, which holds {}, has ended {when}: {why}", holds(rank));
            Diagnostic::machine("rank-not-answering", what).help(help)
        }
        Fault::Misused(what) => Diagnostic::internal("internal-error", what),
    }
}
