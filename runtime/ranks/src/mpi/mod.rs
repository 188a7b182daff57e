//! Ranks that are processes, started by `mpirun`.

mod library;

use crate::comm::{Comm, Fault};
use library::{Mpi, Request};
use moec_ir::diag::Diagnostic;
use std::ffi::c_int;
use std::path::Path;
use std::time::{Duration, Instant};

/// A rank's end of an exchange through MPI: messages between two ranks each, so that the one that is missing has a name.
pub struct MpiComm {
    mpi: Mpi,
    timeout: Duration,
    round: u64,
    /// Whether an exchange failed or this rank has ended.
    over: bool,
}

// SAFETY: MPI was started for one thread at a time, whichever it is, and `&mut self` keeps others out.
unsafe impl Send for MpiComm {}

/// The tag of what a rank says when it ends; exchanges have the tags behind it, by turns.
const FAREWELL: c_int = 1;

/// Every MPI has tags up to 32767.
const TAGS: u64 = 32_000;

/// How long a rank that ends waits until the others have heard of it.
const PARTING: Duration = Duration::from_secs(2);

impl MpiComm {
    /// Starts MPI for `n_ranks` ranks, out of the library at `path` or the one that the loader finds. A wait of more than
    /// `timeout` is a [`Fault`].
    ///
    /// # Errors
    /// `mpi-unavailable`, also when another number of processes was started.
    pub fn start(path: Option<&Path>, n_ranks: u32, timeout: Duration) -> Result<MpiComm, Diagnostic> {
        let mpi = Mpi::start(path)?;
        if mpi.n_ranks != n_ranks {
            let found = mpi.n_ranks;
            mpi.finish();
            let word = if found == 1 { "process was" } else { "processes were" };
            let what = format!("{found} {word} started, and the mesh has {n_ranks} ranks");
            return Err(Diagnostic::machine("mpi-unavailable", what).help(format!(
                "start `mpirun -n {n_ranks} moec …`, with the mpirun of the MPI whose library is opened"
            )));
        }
        Ok(MpiComm { mpi, timeout, round: 0, over: false })
    }

    fn others(&self) -> impl Iterator<Item = u32> + use<> {
        let own = self.mpi.rank;
        (0..self.mpi.n_ranks).filter(move |&r| r != own)
    }

    /// What rank `from` said when it ended.
    fn farewell(&self, from: u32) -> Option<String> {
        let mut request = self.mpi.receive(from, FAREWELL)?;
        let start = Instant::now();
        while !self.mpi.is_done(&mut request) {
            if start.elapsed() > PARTING {
                return Some("it did not say why".into());
            }
            std::thread::yield_now();
        }
        Some(String::from_utf8_lossy(&request.into_bytes()).into_owned())
    }

    fn try_exchange(&mut self, mut parts: Vec<Vec<u8>>, tag: c_int) -> Result<Vec<Vec<u8>>, Fault> {
        let n = self.mpi.n_ranks as usize;
        let refused = |rank: u32| Fault::Ended { rank, why: "MPI refuses to send to it".into() };
        let start = Instant::now();
        let mut got: Vec<Option<Vec<u8>>> = vec![None; n];
        got[self.mpi.rank as usize] = Some(std::mem::take(&mut parts[self.mpi.rank as usize]));
        let mut sent = Vec::new();
        for to in self.others() {
            let part = std::mem::take(&mut parts[to as usize]);
            sent.push((to, self.mpi.send(part, to, tag).ok_or_else(|| refused(to))?));
        }
        let mut coming: Vec<Option<Request>> = (0..n).map(|_| None).collect();
        loop {
            for from in self.others() {
                let (got, coming) = (&mut got[from as usize], &mut coming[from as usize]);
                if got.is_some() {
                    continue;
                }
                if coming.is_none() {
                    *coming = self.mpi.receive(from, tag);
                }
                if coming.as_mut().is_some_and(|r| self.mpi.is_done(r)) {
                    *got = coming.take().map(Request::into_bytes);
                }
            }
            sent.retain_mut(|(_, request)| !self.finished(request));
            let missing: Vec<u32> = self.others().filter(|&r| got[r as usize].is_none()).collect();
            if missing.is_empty() && sent.is_empty() {
                return Ok(got.into_iter().flatten().collect());
            }
            let untaken = sent.iter().map(|(to, _)| *to);
            let silent: Vec<u32> = if missing.is_empty() { untaken.collect() } else { missing };
            let ended = silent.iter().filter(|&&r| coming[r as usize].is_none());
            if let Some((rank, why)) = ended.filter_map(|&r| Some((r, self.farewell(r)?))).next() {
                return Err(Fault::Ended { rank, why });
            }
            if start.elapsed() > self.timeout {
                return Err(Fault::Silent { ranks: silent, waited: start.elapsed() });
            }
            // Ranks may be more than cores.
            std::thread::yield_now();
        }
    }

    /// Whether bytes have been sent, which are let go of then.
    fn finished(&self, request: &mut Request) -> bool {
        let done = self.mpi.is_done(request);
        if done {
            request.release();
        }
        done
    }
}

impl Comm for MpiComm {
    fn rank(&self) -> u32 {
        self.mpi.rank
    }

    fn n_ranks(&self) -> u32 {
        self.mpi.n_ranks
    }

    fn exchange(&mut self, parts: Vec<Vec<u8>>) -> Result<Vec<Vec<u8>>, Fault> {
        if parts.len() != self.mpi.n_ranks as usize {
            return Err(Fault::Misused(format!("{} parts were given for {} ranks", parts.len(), self.mpi.n_ranks)));
        }
        if self.over {
            return Err(Fault::Ended { rank: self.mpi.rank, why: "an exchange before failed".into() });
        }
        let tag = (self.round % TAGS) as c_int + FAREWELL + 1;
        self.round += 1;
        let result = self.try_exchange(parts, tag);
        self.over |= result.is_err();
        result
    }

    fn end(&mut self, why: &str) {
        self.over = true;
        let mut sent: Vec<Request> =
            self.others().filter_map(|to| self.mpi.send(why.as_bytes().to_vec(), to, FAREWELL)).collect();
        let start = Instant::now();
        while !sent.is_empty() && start.elapsed() < PARTING {
            sent.retain_mut(|request| !self.finished(request));
            std::thread::yield_now();
        }
    }
}

impl Drop for MpiComm {
    fn drop(&mut self) {
        // Where ranks are no longer at the same place, some would wait for others without end.
        if !self.over && !std::thread::panicking() {
            self.mpi.finish();
        }
    }
}

impl std::fmt::Debug for MpiComm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MpiComm").field("rank", &self.mpi.rank).field("n_ranks", &self.mpi.n_ranks).finish()
    }
}
