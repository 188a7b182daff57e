//! Deterministic performance signals: what a launch executed and moved.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

/// Instruction classes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Class {
    /// Integer and logic.
    Integer,
    /// Floating-point arithmetic.
    Float,
    /// Approximate functions and divisions.
    Special,
    /// Conversions.
    Convert,
    /// Moves, selects, predicates.
    Move,
    /// Branches, calls, exits.
    Control,
    /// Global (and generic) loads and stores.
    GlobalMemory,
    /// Shared-memory loads and stores, matrix moves.
    SharedMemory,
    /// Local, constant and parameter accesses.
    OtherMemory,
    /// Atomics and reductions.
    Atomic,
    /// Shuffles, votes, warp reductions.
    Warp,
    /// Barriers, mbarriers, fences.
    Synchronisation,
    /// cp.async, bulk and tensor copies.
    Copy,
    /// mma, wgmma, tcgen05.
    Tensor,
}

impl Class {
    /// The name in counters and figures.
    pub fn name(self) -> &'static str {
        match self {
            Class::Integer => "integer",
            Class::Float => "float",
            Class::Special => "special",
            Class::Convert => "convert",
            Class::Move => "move",
            Class::Control => "control",
            Class::GlobalMemory => "global-memory",
            Class::SharedMemory => "shared-memory",
            Class::OtherMemory => "other-memory",
            Class::Atomic => "atomic",
            Class::Warp => "warp",
            Class::Synchronisation => "synchronisation",
            Class::Copy => "copy",
            Class::Tensor => "tensor",
        }
    }
}

/// Tensor-core work of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TensorCount {
    /// Instructions.
    pub operations: u64,
    /// Multiplications and additions, two for each product.
    pub flops: u64,
}

/// Shared-memory accesses of one PTX line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BankCount {
    /// Warp accesses.
    pub accesses: u64,
    /// Passes that the accesses need when nothing conflicts.
    pub ideal_passes: u64,
    /// Passes that they take over 32 banks of 4 bytes.
    pub passes: u64,
}

/// What a launch executed and moved.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// Instructions issued by warps.
    pub warp_instructions: u64,
    /// Instructions times executing lanes.
    pub lane_instructions: u64,
    /// Warp instructions of each class.
    pub by_class: BTreeMap<Class, u64>,
    /// Tensor-core work by instruction and types.
    pub tensor: BTreeMap<String, TensorCount>,
    /// Bytes that loads asked of global memory.
    pub global_load_bytes: u64,
    /// Bytes that stores, atomics and reductions sent to global memory.
    pub global_store_bytes: u64,
    /// 32-byte sectors that loads moved.
    pub global_load_sectors: u64,
    /// 32-byte sectors that stores moved.
    pub global_store_sectors: u64,
    /// Of the bytes that loads asked, those of other devices' memory.
    #[serde(default)]
    pub far_load_bytes: u64,
    /// Of the bytes that stores, atomics and reductions sent, those to other devices' memory.
    #[serde(default)]
    pub far_store_bytes: u64,
    /// Bytes of the distinct sectors that loads touched: what DRAM gives if the L2 is empty at first and large enough.
    pub dram_read_bytes: u64,
    /// Bytes of the distinct sectors that stores touched: what DRAM takes if the L2 is large enough.
    pub dram_write_bytes: u64,
    /// Bytes of the distinct sectors that either touched.
    pub l2_footprint_bytes: u64,
    /// Bytes of bulk and tensor copies into shared memory.
    pub copy_in_bytes: u64,
    /// Bytes of bulk and tensor copies out of shared memory.
    pub copy_out_bytes: u64,
    /// Shared-memory accesses by PTX line.
    pub banks: BTreeMap<u32, BankCount>,
    /// Arrivals at CTA and cluster barriers.
    pub barrier_arrivals: u64,
    /// Attempts that found a barrier, mbarrier or group not ready.
    pub blocked_attempts: u64,
    /// Asynchronous operations.
    pub async_operations: u64,
    /// CTAs that ran.
    pub blocks: u64,
}

impl Counters {
    /// Adds what another host thread counted.
    pub fn add(&mut self, o: &Counters) {
        self.warp_instructions += o.warp_instructions;
        self.lane_instructions += o.lane_instructions;
        for (class, n) in &o.by_class {
            *self.by_class.entry(*class).or_default() += n;
        }
        for (name, t) in &o.tensor {
            let mine = self.tensor.entry(name.clone()).or_default();
            mine.operations += t.operations;
            mine.flops += t.flops;
        }
        self.global_load_bytes += o.global_load_bytes;
        self.global_store_bytes += o.global_store_bytes;
        self.far_load_bytes += o.far_load_bytes;
        self.far_store_bytes += o.far_store_bytes;
        self.global_load_sectors += o.global_load_sectors;
        self.global_store_sectors += o.global_store_sectors;
        self.dram_read_bytes += o.dram_read_bytes;
        self.dram_write_bytes += o.dram_write_bytes;
        self.l2_footprint_bytes += o.l2_footprint_bytes;
        self.copy_in_bytes += o.copy_in_bytes;
        self.copy_out_bytes += o.copy_out_bytes;
        for (line, b) in &o.banks {
            let mine = self.banks.entry(*line).or_default();
            mine.accesses += b.accesses;
            mine.ideal_passes += b.ideal_passes;
            mine.passes += b.passes;
        }
        self.barrier_arrivals += o.barrier_arrivals;
        self.blocked_attempts += o.blocked_attempts;
        self.async_operations += o.async_operations;
        self.blocks += o.blocks;
    }

    /// Counts one tensor-core instruction.
    pub fn tensor_op(&mut self, name: &str, flops: u64) {
        match self.tensor.get_mut(name) {
            Some(t) => {
                t.operations += 1;
                t.flops += flops;
            }
            None => {
                self.tensor.insert(name.to_owned(), TensorCount { operations: 1, flops });
            }
        }
    }
}

/// A table for people.
impl fmt::Display for Counters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut row = |name: &str, value: u64| writeln!(f, "{name:<34}{value:>16}");
        row("blocks", self.blocks)?;
        row("warp instructions", self.warp_instructions)?;
        row("lane instructions", self.lane_instructions)?;
        for (class, n) in &self.by_class {
            row(&format!("  {class:?}"), *n)?;
        }
        for (name, t) in &self.tensor {
            row(&format!("tensor {name}"), t.operations)?;
            row("  flops", t.flops)?;
        }
        row("global bytes loaded", self.global_load_bytes)?;
        row("global bytes stored", self.global_store_bytes)?;
        row("sectors loaded", self.global_load_sectors)?;
        row("sectors stored", self.global_store_sectors)?;
        row("DRAM bytes read (sectors once)", self.dram_read_bytes)?;
        row("DRAM bytes written (sectors once)", self.dram_write_bytes)?;
        row("L2 footprint bytes", self.l2_footprint_bytes)?;
        row("bulk and tensor copy bytes in", self.copy_in_bytes)?;
        row("bulk and tensor copy bytes out", self.copy_out_bytes)?;
        for (line, b) in self.banks.iter().filter(|(_, b)| b.passes > b.ideal_passes) {
            row(&format!("bank passes at line {line} (ideal {})", b.ideal_passes), b.passes)?;
        }
        row("barrier arrivals", self.barrier_arrivals)?;
        row("blocked attempts", self.blocked_attempts)?;
        row("asynchronous operations", self.async_operations)
    }
}
