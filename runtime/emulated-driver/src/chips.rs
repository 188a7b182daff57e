//! The GPUs that can be chosen.

use moec_ptx::exec::Target;
use std::ffi::c_int;

/// Figures of a GPU. Sizes are those of the makers' data sheets.
#[derive(Clone, Copy, Debug)]
pub struct Chip {
    /// What the environment calls it.
    pub name: &'static str,
    /// What the driver calls it.
    pub title: &'static str,
    /// Compute capability, as 10 · major + minor.
    pub sm: u32,
    /// Multiprocessors.
    pub multiprocessors: c_int,
    /// Bytes of device memory.
    pub memory_bytes: u64,
    /// Bytes of the second-level cache.
    pub l2_bytes: c_int,
    /// Bits of the memory bus, and the memory clock in kHz.
    pub bus: (c_int, c_int),
}

const GIB: u64 = 1 << 30;
const MIB: c_int = 1 << 20;

const fn chip(
    name: &'static str,
    title: &'static str,
    sm: u32,
    multiprocessors: c_int,
    gib: u64,
    l2_mib: c_int,
    bus: (c_int, c_int),
) -> Chip {
    Chip { name, title, sm, multiprocessors, memory_bytes: gib * GIB, l2_bytes: l2_mib * MIB, bus }
}

/// All of them; the first with a compute capability stands for it.
pub const CHIPS: [Chip; 12] = [
    chip("a100", "NVIDIA A100-SXM4-80GB", 80, 108, 80, 40, (5120, 1_593_000)),
    chip("a40", "NVIDIA A40", 86, 84, 48, 6, (384, 7_251_000)),
    chip("l40s", "NVIDIA L40S", 89, 142, 48, 96, (384, 9_001_000)),
    chip("h100", "NVIDIA H100 80GB HBM3", 90, 132, 80, 50, (5120, 2_619_000)),
    chip("h200", "NVIDIA H200", 90, 132, 141, 50, (6144, 3_201_000)),
    chip("gh200", "NVIDIA GH200 480GB", 90, 132, 96, 50, (6144, 2_619_000)),
    chip("b200", "NVIDIA B200", 100, 148, 180, 126, (8192, 3_996_000)),
    chip("gb200", "NVIDIA GB200", 100, 152, 186, 126, (8192, 3_996_000)),
    chip("b300", "NVIDIA B300 SXM6 AC", 103, 148, 270, 126, (8192, 3_996_000)),
    chip("gb300", "NVIDIA GB300", 103, 152, 278, 126, (8192, 3_996_000)),
    chip("rtx5090", "NVIDIA GeForce RTX 5090", 120, 170, 32, 96, (512, 14_001_000)),
    chip("rtxpro6000", "NVIDIA RTX PRO 6000 Blackwell Server Edition", 120, 188, 96, 128, (512, 14_001_000)),
];

impl Chip {
    /// The chip called `b200`, or the first of `sm_100`, `sm_100a`, `sm_100f`.
    pub fn by_name(name: &str) -> Option<Chip> {
        let name = name.trim().to_ascii_lowercase();
        let by_target = || {
            let sm = Target::parse(&name)?.sm;
            CHIPS.iter().find(|c| c.sm == sm)
        };
        CHIPS.iter().find(|c| c.name == name).or_else(by_target).copied()
    }

    /// What its code is compiled for: every chip has the features of exactly its architecture.
    pub fn target(&self) -> Target {
        Target { sm: self.sm, suffix: Some('a') }
    }

    /// Compute capability.
    pub fn capability(&self) -> (c_int, c_int) {
        ((self.sm / 10) as c_int, (self.sm % 10) as c_int)
    }

    /// Bytes of shared memory that the blocks of a multiprocessor share.
    pub fn shared_per_multiprocessor(&self) -> u32 {
        self.target().max_shared_bytes() + 1024
    }

    /// Threads that a multiprocessor holds (CUDA C++ Programming Guide, table of technical specifications).
    pub fn threads_per_multiprocessor(&self) -> u32 {
        match self.sm {
            86 | 89 | 120 | 121 => 1536,
            _ => 2048,
        }
    }

    /// Blocks that a multiprocessor holds.
    pub fn blocks_per_multiprocessor(&self) -> u32 {
        match self.sm {
            86 => 16,
            89 | 120 | 121 => 24,
            _ => 32,
        }
    }
}
