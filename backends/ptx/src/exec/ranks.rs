//! Several devices (ranks) whose kernels run together, with windows of memory that all see.

use super::call::{Launch, Options, Report, Target};
use super::error::ExecError;
use super::memory::global::{DeviceMemory, Traffic};
use super::prepare::{Placed, Ready, place, plan};
use super::program::Program;
use super::streams::run_streams;

/// Devices of one target with one address space, as CUDA's peers have it.
///
/// Memory belongs to a rank. [`alloc`](Ranks::alloc) gives memory that only the rank's kernels see, [`window`](Ranks::window) memory
/// that all see at the same address. [`launch`](Ranks::launch) runs a stream of kernels on every rank; kernels of one rank run one after
/// the other, those of different ranks together, under the schedule of the options. Beside what a single device checks, it finds accesses
/// of two ranks that no chain of releases and acquires of scope `.sys` orders, private memory of other ranks, and ranks that wait for
/// each other for ever.
pub struct Ranks {
    target: Target,
    n_ranks: u32,
    memory: DeviceMemory,
}

/// A kernel in the stream of a rank.
#[derive(Clone)]
pub struct Step<'p> {
    /// The kernel.
    pub program: &'p Program,
    /// How it is launched.
    pub launch: Launch,
}

/// What the launches of a run found and counted.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RanksReport {
    /// A report for each launch of each rank, without traffic.
    pub launches: Vec<Vec<Report>>,
    /// What was moved to and from each allocation, of all launches; empty without counters.
    pub traffic: Vec<Traffic>,
}

impl RanksReport {
    /// The reports of all launches.
    pub fn all(&self) -> impl Iterator<Item = &Report> {
        self.launches.iter().flatten()
    }
}

impl Ranks {
    /// `n_ranks` devices with room for 8 GiB together; allocations take host memory.
    #[must_use]
    pub fn new(target: Target, n_ranks: u32) -> Ranks {
        Ranks { target, n_ranks: n_ranks.max(1), memory: DeviceMemory::new(8 << 30) }
    }

    /// How many they are.
    #[must_use]
    pub fn n_ranks(&self) -> u32 {
        self.n_ranks
    }

    /// The target of all.
    #[must_use]
    pub fn target(&self) -> Target {
        self.target
    }

    /// The memory of all, to make multicast groups of windows.
    pub fn memory_mut(&mut self) -> &mut DeviceMemory {
        &mut self.memory
    }

    /// Allocates bytes that nobody has written and only kernels of `rank` see; the address is a multiple of 256.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn alloc(&mut self, rank: u32, bytes: u64) -> Result<u64, ExecError> {
        self.memory.alloc_on(rank, false, bytes, 256)
    }

    /// Allocates bytes on `rank` that nobody has written and kernels of all ranks see.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn window(&mut self, rank: u32, bytes: u64) -> Result<u64, ExecError> {
        self.memory.alloc_on(rank, true, bytes, 256)
    }

    /// Copies bytes to the memory of a rank.
    ///
    /// # Errors
    /// `Address` when the range is not inside one allocation.
    pub fn upload(&self, address: u64, data: &[u8]) -> Result<(), ExecError> {
        self.memory.upload(address, data)
    }

    /// Copies bytes from the memory of a rank; bytes that nobody wrote are 0.
    ///
    /// # Errors
    /// `Address` when the range is not inside one allocation.
    pub fn download(&self, address: u64, bytes: usize) -> Result<Vec<u8>, ExecError> {
        self.memory.download(address, bytes)
    }

    /// Runs the streams of all ranks to their end; one for each rank, which may be empty.
    ///
    /// # Errors
    /// `Launch` when a launch does not fit or streams are missing; a deadlock, the instruction limit (of all ranks together) or a fault,
    /// with the rank and where the others stand.
    pub fn launch(&mut self, streams: &[Vec<Step<'_>>], options: &Options) -> Result<RanksReport, ExecError> {
        if streams.len() != self.n_ranks as usize {
            let kernel = streams.iter().flatten().next().map_or_else(String::new, |s| s.program.entry.clone());
            let message = format!("{} streams for {} ranks", streams.len(), self.n_ranks);
            return Err(ExecError::Launch { kernel, message });
        }
        let mut placed: Vec<Vec<Placed>> = Vec::new();
        let result = self.place(streams, &mut placed);
        let own: Vec<u64> = placed.iter().flatten().flat_map(|p| p.globals.iter().copied()).collect();
        let result = result.and_then(|plans| {
            let ready = streams.iter().zip(plans).zip(placed).enumerate().map(|(rank, ((steps, plans), placed))| {
                let of = steps.iter().zip(plans).zip(placed);
                of.map(|((s, plan), placed)| Ready {
                    program: s.program,
                    launch: &s.launch,
                    plan,
                    placed,
                    rank: rank as u32,
                })
                .collect()
            });
            let ready = ready.collect();
            let launches = run_streams(&mut self.memory, ready, options)?;
            let traffic = if options.counters { self.memory.traffic() } else { Vec::new() };
            Ok(RanksReport { launches, traffic })
        });
        for address in own {
            self.memory.free(address)?;
        }
        result
    }

    fn place(
        &mut self,
        streams: &[Vec<Step<'_>>],
        placed: &mut Vec<Vec<Placed>>,
    ) -> Result<Vec<Vec<super::prepare::Plan>>, ExecError> {
        let mut plans = Vec::new();
        for (rank, steps) in streams.iter().enumerate() {
            plans.push(Vec::new());
            placed.push(Vec::new());
            for s in steps {
                let of_rank = |e: ExecError| e.of_rank(rank, "");
                let (Some(plans), Some(placed)) = (plans.last_mut(), placed.last_mut()) else { continue };
                plans.push(plan(self.target, s.program, &s.launch).map_err(of_rank)?);
                let mut own = Placed::default();
                let result = place(&mut self.memory, s.program, None, &mut own);
                placed.push(own);
                result.map_err(of_rank)?;
            }
        }
        Ok(plans)
    }
}
