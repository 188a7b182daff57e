//! Windows of GPUs of one NVLink domain, by NCCL: memory that each rank has the addresses of on all ranks, for kernels that exchange rows
//! ([`moec_ir::window`]).
//!
//! Of NCCL moec takes addresses and nothing else. Every rank joins with the id that one of them made, then registers windows, all in the
//! same order; after that kernels run and no call is made.

mod library;

pub use library::Nccl;

use library::{Handle, IN_PROGRESS, unavailable};
use moec_ir::diag::Diagnostic;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Bytes of the id of a communicator.
pub const ID_BYTES: usize = 128;

/// What windows are multiples of, and where they begin.
const PAGE: u64 = 4096;

/// How often a state is asked for.
const TURN: Duration = Duration::from_millis(1);

/// One rank among GPUs of one NVLink domain.
#[derive(Debug)]
pub struct NcclRank {
    comm: Arc<Comm>,
    rank: u32,
    n_ranks: u32,
    deadline: Duration,
}

/// A communicator; it ends with the last that holds it.
#[derive(Debug)]
struct Comm {
    nccl: Arc<Nccl>,
    handle: Handle,
}

// SAFETY: NCCL takes calls for a communicator from any thread, one at a time; all calls that change one have `&mut` of the rank, or are
// made by the last holder.
unsafe impl Send for Comm {}
// SAFETY: as above; what is called through a shared `Comm` reads.
unsafe impl Sync for Comm {}

impl Drop for Comm {
    fn drop(&mut self) {
        self.nccl.destroy(self.handle);
    }
}

/// Memory of a rank that kernels of all ranks write to.
#[derive(Debug)]
pub struct NcclWindow {
    comm: Arc<Comm>,
    memory: Handle,
    /// Null until all ranks have registered. NCCL writes it, so it stays where it is.
    window: Box<Handle>,
    bytes: u64,
    peers: Vec<u64>,
    multicast: Option<u64>,
}

// SAFETY: the handles are NCCL's, whose calls may come from any thread; they are used again only when the window is dropped.
unsafe impl Send for NcclWindow {}
// SAFETY: as above.
unsafe impl Sync for NcclWindow {}

impl NcclRank {
    /// Joins `n_ranks` ranks, all of which call this with the same id ([`Nccl::unique_id`]), each with the device current that is its own.
    ///
    /// # Errors
    /// `rank-not-answering` when not all have come after `deadline`; `nccl-unavailable` when they are not one NVLink domain;
    /// `nccl-failed`.
    pub fn join(
        nccl: Arc<Nccl>,
        (rank, n_ranks): (u32, u32),
        id: [u8; ID_BYTES],
        deadline: Duration,
    ) -> Result<NcclRank, Diagnostic> {
        let handle = nccl.start(n_ranks, rank, id)?;
        if let Err(d) = wait(&nccl, handle, deadline, || {
            format!("rank {rank} waited {deadline:?} for the other {} ranks of NCCL's communicator", n_ranks - 1)
        }) {
            nccl.abort(handle);
            return Err(d);
        }
        let comm = Arc::new(Comm { nccl, handle });
        let near = comm.nccl.team(handle).n_ranks;
        if u32::try_from(near) != Ok(n_ranks) {
            let what = format!("{n_ranks} ranks are not one NVLink domain: {near} of them reach each other's memory");
            return Err(
                unavailable(what).help("make the mesh of GPUs of one NVLink domain, or exchange rows by the host")
            );
        }
        Ok(NcclRank { comm, rank, n_ranks, deadline })
    }

    /// Makes a window of at least `bytes` on this rank. All ranks call this, for the same windows in the same order. `zero` fills
    /// the memory at an address with zeros and returns when that is done: NCCL does not, and nobody has the address before all ranks
    /// have come that far.
    ///
    /// # Errors
    /// `rank-not-answering` when not all ranks register in time; `nccl-unavailable` where memory of some rank cannot be reached;
    /// `nccl-failed`, and those of `zero`.
    pub fn register(
        &mut self,
        bytes: u64,
        zero: impl FnOnce(u64, u64) -> Result<(), Diagnostic>,
    ) -> Result<NcclWindow, Diagnostic> {
        let (nccl, comm, rank) = (self.comm.nccl.clone(), self.comm.handle, self.rank);
        let bytes = bytes.max(1).next_multiple_of(PAGE);
        let memory = nccl.alloc(bytes as usize)?;
        let mut made = NcclWindow {
            comm: self.comm.clone(),
            memory,
            window: Box::new(std::ptr::null_mut()),
            bytes,
            peers: Vec::new(),
            multicast: None,
        };
        if !(memory.addr() as u64).is_multiple_of(PAGE) {
            return Err(unavailable(format!("NCCL gave memory at {memory:?}, which is no multiple of {PAGE}")));
        }
        zero(memory.addr() as u64, bytes)?;
        let code = nccl.register(comm, memory, bytes as usize, &mut made.window);
        if code == IN_PROGRESS {
            let late = || format!("rank {rank} waited {:?} for the other ranks to register a window", self.deadline);
            if let Err(d) = wait(&nccl, comm, self.deadline, late) {
                // NCCL still has the addresses of the memory and of the handle: both are leaked.
                std::mem::forget(made);
                return Err(d);
            }
        } else {
            nccl.done("ncclCommWindowRegister", code)?;
        }
        // Success may mean no: a null window, and null addresses.
        if made.window.is_null() {
            return Err(unavailable(format!("NCCL made no window of {bytes} bytes: its ranks share no memory")));
        }
        for peer in 0..self.n_ranks {
            let at = nccl.peer(*made.window, peer)?;
            if at.is_null() {
                return Err(unavailable(format!("rank {rank} does not reach the memory of rank {peer}")));
            }
            made.peers.push(at.addr() as u64);
        }
        made.multicast = Some(nccl.multicast(*made.window)?.addr() as u64).filter(|at| *at != 0);
        Ok(made)
    }
}

impl NcclWindow {
    /// The addresses of all ranks' windows on this rank.
    pub fn peers(&self) -> &[u64] {
        &self.peers
    }

    /// The address at which a store reaches the same place of all windows, where NVLink SHARP is there.
    pub fn multicast(&self) -> Option<u64> {
        self.multicast
    }

    /// Bytes of each.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// What kernels that exchange take for their windows ([`moec_ir::exchange::ExchangeParam::Peers`]).
    pub fn table(&self) -> Vec<u64> {
        self.peers.iter().copied().chain([self.multicast.unwrap_or(0)]).collect()
    }
}

impl Drop for NcclWindow {
    /// The other ranks must be done with it: this waits for nobody.
    fn drop(&mut self) {
        let nccl = &self.comm.nccl;
        if !self.window.is_null() {
            nccl.deregister(self.comm.handle, *self.window);
        }
        nccl.free(self.memory);
    }
}

/// Waits until what was begun is done.
fn wait(nccl: &Nccl, comm: Handle, deadline: Duration, late: impl FnOnce() -> String) -> Result<(), Diagnostic> {
    let start = Instant::now();
    while !nccl.is_ready(comm)? {
        if start.elapsed() > deadline {
            return Err(Diagnostic::input("rank-not-answering", late())
                .help("start all ranks, each with a GPU of its own, and look why one ended"));
        }
        std::thread::sleep(TURN);
    }
    Ok(())
}
