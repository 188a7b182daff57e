//! Launch sizes as expressions of the token count.

use serde::{Deserialize, Serialize};

/// A number of blocks or work items as a function of the token count `T`:
/// `mul * (ceil(per_token * T / div) + min(add, per_token * T))`, at least `min`.
///
/// The second term is the number of partly filled tiles of a grouped GEMM: no more than experts, and no more than rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extent {
    /// Factor on everything: tiles along the columns.
    pub mul: u64,
    /// Rows per token.
    pub per_token: u64,
    /// Rows per tile; not 0.
    pub div: u64,
    /// Most partly filled tiles.
    pub add: u64,
    /// Lower bound of the result.
    pub min: u64,
}

impl Extent {
    /// A number that does not depend on `T`.
    pub fn fixed(n: u64) -> Extent {
        Extent { mul: 0, per_token: 0, div: 1, add: 0, min: n }
    }

    /// `mul` for every tile of `div` rows, at `per_token` rows a token.
    pub fn tiles(per_token: u64, div: u64, mul: u64) -> Extent {
        Extent { mul, per_token, div, add: 0, min: 0 }
    }

    /// As [`Extent::tiles`], where rows fall into at most `groups` groups, each padded to whole tiles.
    pub fn grouped_tiles(per_token: u64, div: u64, groups: u64, mul: u64) -> Extent {
        Extent { mul, per_token, div, add: groups, min: 0 }
    }

    /// The number for a given token count.
    pub fn at(self, n_tokens: u64) -> u64 {
        let rows = self.per_token * n_tokens;
        (self.mul * (rows.div_ceil(self.div) + self.add.min(rows))).max(self.min)
    }
}

/// How a GPU kernel is launched.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GpuLaunch {
    /// Blocks along x, y, z.
    pub grid: [Extent; 3],
    /// Threads of a block (x; y and z are 1).
    pub block_threads: u32,
    /// Blocks of a cluster along x; 1 for none.
    pub cluster: u32,
    /// Dynamic shared memory of a block, in bytes.
    pub dynamic_smem_bytes: u32,
}

/// How a CPU kernel is launched.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuLaunch {
    /// Work items, each independent of the others.
    pub items: Extent,
    /// Scratch memory of one call, in bytes.
    pub scratch_bytes: u64,
}
