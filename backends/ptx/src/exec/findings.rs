//! What the sanitizer reports.

mod show;

use std::fmt;

use super::program::Place;
use serde::{Deserialize, Serialize};
pub use show::{grouped, json_lines, pictures};

/// Which checks run. All are on by default.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checks {
    /// Accesses outside allocations, shared memory, frames, tensor memory.
    pub bounds: bool,
    /// Addresses that are not a multiple of the access.
    pub alignment: bool,
    /// Use of memory and registers that nobody wrote.
    pub uninitialized: bool,
    /// Unordered accesses to shared memory.
    pub races: bool,
    /// Generic-proxy writes read by the async proxy without the proxy fence.
    pub proxies: bool,
    /// Misuse of mbarriers.
    pub mbarriers: bool,
    /// Barriers and warp-wide instructions in diverged code.
    pub divergence: bool,
    /// Asynchronous results touched before their wait, tensor memory left allocated, operations nobody waited for.
    pub asynchronous: bool,
    /// Exit of a CTA whose shared memory a peer still uses.
    pub cluster_exit: bool,
}

impl Checks {
    /// Every check.
    pub const ALL: Checks = Checks {
        bounds: true,
        alignment: true,
        uninitialized: true,
        races: true,
        proxies: true,
        mbarriers: true,
        divergence: true,
        asynchronous: true,
        cluster_exit: true,
    };
    /// No check: the fastest run.
    pub const NONE: Checks = Checks {
        bounds: false,
        alignment: false,
        uninitialized: false,
        races: false,
        proxies: false,
        mbarriers: false,
        divergence: false,
        asynchronous: false,
        cluster_exit: false,
    };

    /// Reads `all`, `none`, or a list such as `bounds,race`.
    ///
    /// # Errors
    /// A sentence that names the word and all checks.
    pub fn parse(text: &str) -> Result<Checks, String> {
        match text {
            "all" => return Ok(Checks::ALL),
            "none" => return Ok(Checks::NONE),
            _ => {}
        }
        let mut checks = Checks::NONE;
        for word in text.split(',') {
            let known = Check::LIST.into_iter().find(|c| c.to_string() == word).ok_or_else(|| {
                let all: Vec<String> = Check::LIST.iter().map(ToString::to_string).collect();
                format!("`{word}` is no check; give all, none, or a list of {}", all.join(", "))
            })?;
            *checks.flag(known) = true;
        }
        Ok(checks)
    }

    fn flag(&mut self, check: Check) -> &mut bool {
        match check {
            Check::Bounds => &mut self.bounds,
            Check::Alignment => &mut self.alignment,
            Check::Uninitialized => &mut self.uninitialized,
            Check::Race => &mut self.races,
            Check::Proxy => &mut self.proxies,
            Check::Mbarrier => &mut self.mbarriers,
            Check::Divergence => &mut self.divergence,
            Check::Asynchronous | Check::TensorMemory => &mut self.asynchronous,
            Check::ClusterExit => &mut self.cluster_exit,
        }
    }

    /// Whether findings of this kind are recorded.
    pub fn has(&self, check: Check) -> bool {
        match check {
            Check::Bounds => self.bounds,
            Check::Alignment => self.alignment,
            Check::Uninitialized => self.uninitialized,
            Check::Race => self.races,
            Check::Proxy => self.proxies,
            Check::Mbarrier => self.mbarriers,
            Check::Divergence => self.divergence,
            Check::Asynchronous | Check::TensorMemory => self.asynchronous,
            Check::ClusterExit => self.cluster_exit,
        }
    }
}

impl Default for Checks {
    fn default() -> Checks {
        Checks::ALL
    }
}

/// The kind of a finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Check {
    /// Access outside what is allocated.
    Bounds,
    /// Address not a multiple of the access.
    Alignment,
    /// Use of a value that nobody wrote.
    Uninitialized,
    /// Unordered accesses.
    Race,
    /// Missing proxy fence.
    Proxy,
    /// Mbarrier misuse.
    Mbarrier,
    /// Barrier or warp-wide instruction in diverged code.
    Divergence,
    /// Asynchronous operation not waited for.
    Asynchronous,
    /// Misuse or leak of tensor memory.
    TensorMemory,
    /// CTA left while a peer uses its shared memory.
    ClusterExit,
}

impl Check {
    /// All of them.
    pub const LIST: [Check; 10] = [
        Check::Bounds,
        Check::Alignment,
        Check::Uninitialized,
        Check::Race,
        Check::Proxy,
        Check::Mbarrier,
        Check::Divergence,
        Check::Asynchronous,
        Check::TensorMemory,
        Check::ClusterExit,
    ];
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Check::Bounds => "bounds",
            Check::Alignment => "alignment",
            Check::Uninitialized => "uninitialized",
            Check::Race => "race",
            Check::Proxy => "proxy",
            Check::Mbarrier => "mbarrier",
            Check::Divergence => "divergence",
            Check::Asynchronous => "asynchronous",
            Check::TensorMemory => "tensor-memory",
            Check::ClusterExit => "cluster-exit",
        })
    }
}

/// Something that a kernel does wrong. Repetitions at one instruction are counted, not listed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// Which check.
    pub check: Check,
    /// Kernel.
    pub kernel: String,
    /// PTX line.
    pub line: u32,
    /// The line of the source, where the PTX has `.loc` and `.file`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub place: Option<Place>,
    /// The instruction.
    pub instruction: String,
    /// The device, where several run together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rank: Option<u32>,
    /// `%ctaid` of the first occurrence.
    pub block: [u32; 3],
    /// `%tid` of the first occurrence, if one thread is meant.
    pub thread: Option<[u32; 3]>,
    /// What is wrong, with addresses and sizes.
    pub message: String,
    /// The other access, for races.
    pub other: Option<String>,
    /// The line of the source of the other access.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub other_place: Option<Place>,
    /// Occurrences.
    pub count: u64,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [x, y, z] = self.block;
        let kernel = crate::names::readable(&self.kernel);
        write!(f, "{}: {} (`{kernel}`", self.check, self.message)?;
        if let Some(place) = &self.place {
            write!(f, " {place},")?;
        }
        write!(f, " line {}: {}; ", self.line, self.instruction)?;
        if let Some(rank) = self.rank {
            write!(f, "rank {rank}, ")?;
        }
        write!(f, "block {x},{y},{z}")?;
        if let Some([x, y, z]) = self.thread {
            write!(f, "; thread {x},{y},{z}")?;
        }
        if let Some(other) = &self.other {
            write!(f, "; other access: {other}")?;
        }
        if self.count > 1 {
            write!(f, "; {} times", self.count)?;
        }
        f.write_str(")")
    }
}
