//! Ranks that are threads of one process.

use crate::comm::{Comm, Fault};
use moec_ir::diag::Diagnostic;
use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A rank's end of an exchange in memory.
#[derive(Debug)]
pub struct ThreadComm {
    rank: u32,
    n_ranks: u32,
    timeout: Duration,
    hub: Arc<Hub>,
}

#[derive(Debug)]
struct Hub {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    /// What was sent and not taken yet, by `to * n_ranks + from`, oldest first.
    mail: Vec<VecDeque<Vec<u8>>>,
    /// What ranks said when they ended.
    ended: Vec<Option<String>>,
}

impl Hub {
    fn lock(&self) -> MutexGuard<'_, State> {
        // A rank that panicked while it held the lock left whole messages: pushes and pops are all that is done under it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The ends of an exchange between `n_ranks` ranks, by rank. A wait of more than `timeout` is a [`Fault`].
pub fn connect(n_ranks: u32, timeout: Duration) -> Vec<ThreadComm> {
    let n = n_ranks as usize;
    let state = State { mail: vec![VecDeque::new(); n * n], ended: vec![None; n] };
    let hub = Arc::new(Hub { state: Mutex::new(state), changed: Condvar::new() });
    (0..n_ranks).map(|rank| ThreadComm { rank, n_ranks, timeout, hub: hub.clone() }).collect()
}

impl Comm for ThreadComm {
    fn rank(&self) -> u32 {
        self.rank
    }

    fn n_ranks(&self) -> u32 {
        self.n_ranks
    }

    fn exchange(&mut self, parts: Vec<Vec<u8>>) -> Result<Vec<Vec<u8>>, Fault> {
        let n = self.n_ranks as usize;
        if parts.len() != n {
            return Err(Fault::Misused(format!("{} parts were given for {n} ranks", parts.len())));
        }
        let start = Instant::now();
        let own = self.rank as usize;
        let mut state = self.hub.lock();
        for (to, part) in parts.into_iter().enumerate() {
            state.mail[to * n + own].push_back(part);
        }
        self.hub.changed.notify_all();
        loop {
            let missing: Vec<u32> =
                (0..n).filter(|from| state.mail[own * n + from].is_empty()).map(|r| r as u32).collect();
            if missing.is_empty() {
                return Ok((0..n).map(|from| state.mail[own * n + from].pop_front().unwrap_or_default()).collect());
            }
            // What an ended rank sent before counts; only what it did not send is missing.
            if let Some((rank, why)) = missing.iter().find_map(|&r| Some((r, state.ended[r as usize].clone()?))) {
                return Err(Fault::Ended { rank, why });
            }
            let Some(left) = self.timeout.checked_sub(start.elapsed()) else {
                return Err(Fault::Silent { ranks: missing, waited: start.elapsed() });
            };
            let waited = self.hub.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn end(&mut self, why: &str) {
        self.hub.lock().ended[self.rank as usize].get_or_insert_with(|| why.to_string());
        self.hub.changed.notify_all();
    }
}

impl Drop for ThreadComm {
    fn drop(&mut self) {
        let why = if std::thread::panicking() { "it panicked" } else { "it has left" };
        self.end(why);
    }
}

/// Runs `rank` on a thread for each end, and returns what they return, by rank.
///
/// # Errors
/// That of the rank that failed first by itself; of a rank that only waited for it when there is no other.
pub fn run<C: Comm, T: Send>(
    ends: Vec<C>,
    rank: impl Fn(C) -> Result<T, Diagnostic> + Sync,
) -> Result<Vec<T>, Diagnostic> {
    let results: Vec<Result<T, Diagnostic>> = std::thread::scope(|scope| {
        let rank = &rank;
        let threads: Vec<_> = ends.into_iter().map(|end| scope.spawn(move || rank(end))).collect();
        let joined =
            threads.into_iter().enumerate().map(|(n, t)| t.join().unwrap_or_else(|why| Err(panicked(n, &*why))));
        joined.collect()
    });
    let (mut done, mut waited) = (Vec::new(), None);
    for result in results {
        match result {
            Ok(value) => done.push(value),
            Err(d) if d.code != "rank-not-answering" => return Err(d),
            Err(d) => waited = waited.or(Some(d)),
        }
    }
    waited.map_or(Ok(done), Err)
}

/// What a rank's panic said.
fn panicked(rank: usize, why: &(dyn std::any::Any + Send)) -> Diagnostic {
    let text = why.downcast_ref::<String>().map(String::as_str).or_else(|| why.downcast_ref::<&str>().copied());
    let text = text.unwrap_or("without a message");
    Diagnostic::internal("internal-error", format!("rank {rank} panicked: {text}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_rank_gets_its_part_of_each_other() {
        let ends = connect(3, Duration::from_secs(10));
        let all = run(ends, |mut c| {
            let mut got = Vec::new();
            for round in 0..50u8 {
                let parts = (0..3).map(|to| vec![round, c.rank() as u8, to]).collect();
                got.push(c.exchange(parts).map_err(|f| Diagnostic::internal("internal-error", format!("{f:?}")))?);
            }
            Ok((c.rank() as u8, got))
        });
        for (rank, got) in all.unwrap() {
            for (round, parts) in (0..50u8).zip(got) {
                assert_eq!(parts, (0..3).map(|from| vec![round, from, rank]).collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn a_rank_that_panics_is_named_with_what_it_said() {
        let ends = connect(2, Duration::from_secs(10));
        let all: Result<Vec<()>, Diagnostic> = run(ends, |mut c| {
            assert!(c.rank() != 1, "no rows for {}", "me");
            c.barrier().map_err(|f| Diagnostic::input("rank-not-answering", format!("{f:?}")))
        });
        let found = all.unwrap_err();
        assert_eq!(
            (found.code.as_str(), found.message.as_str()),
            ("internal-error", "rank 1 panicked: no rows for me")
        );
    }

    #[test]
    fn a_rank_that_says_nothing_is_named() {
        let mut ends = connect(3, Duration::from_millis(20));
        let silent = ends.remove(1);
        let faults: Vec<Fault> = ends.iter_mut().map(|e| e.barrier().unwrap_err()).collect();
        assert!(faults.iter().all(|f| matches!(f, Fault::Silent { ranks, .. } if ranks.contains(&1))), "{faults:?}");
        drop(silent);
        assert!(matches!(ends[0].barrier(), Err(Fault::Ended { rank: 1, .. })));
    }

    #[test]
    fn what_an_ended_rank_sent_still_arrives() {
        let mut ends = connect(2, Duration::from_secs(10));
        let mut other = ends.remove(1);
        let sender = std::thread::spawn(move || other.exchange(vec![vec![7], vec![8]]).is_ok());
        assert_eq!(ends[0].exchange(vec![vec![1], vec![2]]).unwrap(), [vec![1], vec![7]]);
        assert!(sender.join().unwrap());
        assert!(matches!(ends[0].barrier(), Err(Fault::Ended { rank: 1, why }) if why == "it has left"));
        assert!(matches!(ends[0].exchange(Vec::new()), Err(Fault::Misused(_))));
    }
}
