//! What a launch is asked with, and its report.

use std::fmt;

use super::counters::Counters;
use super::findings::{Checks, Finding};
use super::memory::global::Traffic;

/// A GPU architecture such as `sm_90a`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Target {
    /// 80, 90, 100, 103, 120 …
    pub sm: u32,
    /// `a`: features of exactly this architecture; `f`: of its family.
    pub suffix: Option<char>,
}

impl Target {
    /// Reads `sm_90a`.
    pub fn parse(name: &str) -> Option<Target> {
        let rest = name.strip_prefix("sm_")?;
        let digits = rest.trim_end_matches(['a', 'f']);
        let suffix = match &rest[digits.len()..] {
            "" => None,
            "a" => Some('a'),
            "f" => Some('f'),
            _ => return None,
        };
        let sm = digits.parse().ok().filter(|sm| (10..=130).contains(sm))?;
        Some(Target { sm, suffix })
    }

    /// Streaming multiprocessors of the largest part: A100, H100 SXM, B200, RTX PRO 6000.
    pub fn sm_count(self) -> u32 {
        match self.sm {
            90 => 132,
            100..=119 => 148,
            120.. => 188,
            _ => 108,
        }
    }

    /// Bytes of shared memory that a CTA may use (CUDA C++ Programming Guide, table of technical specifications).
    pub fn max_shared_bytes(self) -> u32 {
        match self.sm {
            80 | 87 => 163 << 10,
            90..=119 => 227 << 10,
            86 | 89 | 120.. => 99 << 10,
            70..=72 => 96 << 10,
            75 => 64 << 10,
            _ => 48 << 10,
        }
    }

    /// Whether code for `code` runs on this device.
    pub fn runs(self, code: Target) -> bool {
        match code.suffix {
            None => code.sm <= self.sm,
            Some('f') => code.sm / 10 == self.sm / 10 && code.sm <= self.sm,
            Some(_) => code.sm == self.sm,
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sm_{}", self.sm)?;
        self.suffix.iter().try_for_each(|s| write!(f, "{s}"))
    }
}

/// A kernel argument.
#[derive(Clone, Debug, PartialEq)]
pub enum Param {
    /// A byte.
    U8(u8),
    /// 16 bits.
    U16(u16),
    /// 32 bits.
    U32(u32),
    /// 32 bits, signed.
    I32(i32),
    /// 64 bits: an integer or a device address.
    U64(u64),
    /// 64 bits, signed.
    I64(i64),
    /// binary32
    F32(f32),
    /// binary64
    F64(f64),
    /// A struct, a tensor map: raw bytes.
    Bytes(Vec<u8>),
}

impl Param {
    pub(super) fn bytes(&self) -> Vec<u8> {
        match self {
            Param::U8(v) => vec![*v],
            Param::U16(v) => v.to_le_bytes().to_vec(),
            Param::U32(v) => v.to_le_bytes().to_vec(),
            Param::I32(v) => v.to_le_bytes().to_vec(),
            Param::U64(v) => v.to_le_bytes().to_vec(),
            Param::I64(v) => v.to_le_bytes().to_vec(),
            Param::F32(v) => v.to_le_bytes().to_vec(),
            Param::F64(v) => v.to_le_bytes().to_vec(),
            Param::Bytes(v) => v.clone(),
        }
    }
}

/// How a kernel is launched. Grids count CTAs.
#[derive(Clone, Debug, PartialEq)]
pub struct Launch {
    /// CTAs in x, y, z.
    pub grid: [u32; 3],
    /// Threads in x, y, z.
    pub block: [u32; 3],
    /// CTAs of a cluster in x, y, z; all 1 takes what the kernel requires.
    pub cluster: [u32; 3],
    /// Bytes of dynamic shared memory.
    pub dynamic_smem_bytes: u32,
    /// Arguments in order, each of the size that the kernel declares.
    pub params: Vec<Param>,
}

impl Default for Launch {
    fn default() -> Launch {
        Launch { grid: [1; 3], block: [1; 3], cluster: [1; 3], dynamic_smem_bytes: 0, params: Vec::new() }
    }
}

/// The order in which warps run and asynchronous operations complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Schedule {
    /// Warps in turn; operations complete late, in the order of issue.
    RoundRobin,
    /// Random turns and completions; the same seed gives the same order within a cluster.
    Random(u64),
}

/// How a launch runs.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// What is checked.
    pub checks: Checks,
    /// Order of execution.
    pub schedule: Schedule,
    /// Warp instructions, of all warps together, after which the launch is stopped.
    pub instruction_limit: u64,
    /// Whether memory traffic and bank conflicts are counted.
    pub counters: bool,
    /// Host threads; 0 takes all cores.
    pub threads: usize,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            checks: Checks::ALL,
            schedule: Schedule::RoundRobin,
            instruction_limit: 4_000_000_000,
            counters: true,
            threads: 0,
        }
    }
}

impl Options {
    /// Without checks and counters: the fastest run.
    pub fn fast() -> Options {
        Options { checks: Checks::NONE, counters: false, ..Options::default() }
    }
}

/// What a launch found and counted.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    /// What the checks found, in code order.
    pub findings: Vec<Finding>,
    /// What PTX forbids or leaves open and machines put up with, in code order. A kernel with notes only is right where
    /// it ran.
    pub notes: Vec<Finding>,
    /// What the kernel printed.
    pub printed: String,
    /// What was executed and moved.
    pub counters: Counters,
    /// What was moved to and from each allocation; empty without counters.
    pub traffic: Vec<Traffic>,
    /// Executed lane instructions.
    pub instructions: u64,
    /// Executions and lanes of each instruction of [`Program::source`].
    pub profile: Vec<(u64, u64)>,
}
