//! Launch sizes as expressions of the token count.

use crate::abi::Strides;
use crate::shape::Dim;
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

    /// As [`Extent::at`], where neither it nor a step on the way overflows; then it does not for fewer tokens either.
    pub fn checked_at(self, n_tokens: u64) -> Option<u64> {
        let rows = self.per_token.checked_mul(n_tokens)?;
        let tiles = rows.checked_add(self.div)?.checked_div(self.div)?.checked_add(self.add)?;
        self.mul.checked_mul(tiles)?;
        Some(self.at(n_tokens))
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
    /// Blocks along x, y, z. Of a persistent kernel, the most along x that have something to do.
    pub grid: [Extent; 3],
    /// Threads of a block (x; y and z are 1).
    pub block_threads: u32,
    /// Blocks of a cluster along x; 1 for none.
    pub cluster: u32,
    /// Dynamic shared memory of a block, in bytes.
    pub dynamic_smem_bytes: u32,
    /// Whether blocks take work until none is left, so that any number of them will do: the launcher gives no more along
    /// x than run at once.
    #[serde(default)]
    pub persistent: bool,
    /// Whether it may start while the kernel before it still runs (programmatic dependent launch): it waits by itself
    /// before it reads or writes what another kernel does.
    #[serde(default)]
    pub programmatic: bool,
    /// Tensor maps, in the order of the parameters behind the token count.
    #[serde(default)]
    pub tensor_maps: Vec<TensorMap>,
}

impl GpuLaunch {
    /// Most blocks that a GPU takes along x, y, z.
    pub const MOST_BLOCKS: [u64; 3] = [(1 << 31) - 1, 65535, 65535];

    /// Whether a GPU takes its grid for every token count up to `n_tokens`.
    pub fn grid_fits(&self, n_tokens: u64) -> bool {
        let mut axes = self.grid.iter().zip(Self::MOST_BLOCKS);
        axes.all(|(extent, most)| extent.checked_at(n_tokens).is_some_and(|n| n <= most))
    }

    /// Blocks along x, y, z for a token count, on a machine that runs `at_once` blocks at a time; whole clusters.
    pub fn blocks(&self, n_tokens: u64, at_once: u64) -> [u64; 3] {
        let mut grid = self.grid.map(|e| e.at(n_tokens));
        let cluster = u64::from(self.cluster.max(1));
        if self.persistent {
            grid[0] = grid[0].min((at_once / cluster).max(1) * cluster);
        }
        grid[0] = grid[0].next_multiple_of(cluster);
        grid
    }
}

/// A view of an operand from which a kernel copies boxes by TMA. Dimensions are given innermost first.
///
/// The launcher encodes it with the operand's address. What lies outside of `dims` is read as 0.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TensorMap {
    /// The operand: index into [`Body::operands`](super::Body::operands).
    pub operand: u32,
    /// Element type.
    pub elem: MapElem,
    /// Elements along each dimension, one to five.
    pub dims: Vec<Dim>,
    /// Bytes from one element to the next along dimension 1, 2, …: multiples of 16.
    pub strides: Vec<u64>,
    /// Elements that a copy takes along each dimension, at most 256; innermost a multiple of 16 bytes.
    pub box_dims: Vec<u32>,
    /// Width of the pattern in which 16-byte pieces are exchanged in shared memory, in bytes: 0 (none), 32, 64 or 128.
    pub swizzle_bytes: u32,
}

/// Element type of a [`TensorMap`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MapElem {
    /// Bytes: codes of quantised weights.
    U8,
    /// binary16
    F16,
    /// bfloat16
    Bf16,
    /// binary32
    F32,
    /// 4-bit codes, two to a byte; in shared memory the eight bytes of sixteen take the first half of sixteen. Dimension 0
    /// is a multiple of 128.
    U4Padded,
}

impl MapElem {
    /// Size of an element in shared memory.
    pub fn bytes(self) -> u64 {
        match self {
            MapElem::U8 | MapElem::U4Padded => 1,
            MapElem::F16 | MapElem::Bf16 => 2,
            MapElem::F32 => 4,
        }
    }
}

impl MapElem {
    /// The driver's `CUtensorMapDataType`.
    pub fn driver_type(self) -> u32 {
        match self {
            MapElem::U8 => 0,
            MapElem::F16 => 6,
            MapElem::F32 => 7,
            MapElem::Bf16 => 9,
            MapElem::U4Padded => 14,
        }
    }
}

impl TensorMap {
    /// The driver's `CUtensorMapSwizzle`.
    pub fn driver_swizzle(&self) -> u32 {
        match self.swizzle_bytes {
            32 => 1,
            64 => 2,
            128 => 3,
            _ => 0,
        }
    }

    /// Most dimensions of a map.
    pub const MAX_RANK: usize = 5;

    /// Shows matrices in rows where they lie, in place of where the buffer has them; maps of other ranks stay as they are.
    pub fn lay(&mut self, strides: Strides) {
        if let [row, matrix] = &mut self.strides[..] {
            (*row, *matrix) = (strides.row, strides.matrix);
        }
    }

    /// Whether the driver takes such distances, and an address: multiples of 16 bytes, or of 32 for 4-bit codes that are
    /// spread, less than 2^40 apart, and matrices a multiple of rows.
    ///
    /// Source: CUDA driver API, `cuTensorMapEncodeTiled`, `globalStrides`.
    pub fn takes(&self, address: u64, strides: Strides) -> bool {
        let align = if self.elem == MapElem::U4Padded { 32 } else { 16 };
        let fits = |stride: u64| stride.is_multiple_of(align) && stride < 1 << 40;
        let nested = strides.row > 0 && strides.matrix >= strides.row && strides.matrix.is_multiple_of(strides.row);
        address.is_multiple_of(align) && fits(strides.row) && fits(strides.matrix) && nested
    }

    /// Bytes of a copied box in shared memory.
    pub fn box_bytes(&self) -> u64 {
        self.elem.bytes() * self.box_dims.iter().map(|&n| u64::from(n)).product::<u64>()
    }

    /// Elements along each dimension at a token count; at least 1, because a map cannot be empty.
    pub fn dims_at(&self, n_tokens: u64) -> impl Iterator<Item = u64> {
        self.dims.iter().map(move |d| match d {
            Dim::Fixed(n) => (*n).max(1),
            Dim::PerToken(k) => k.saturating_mul(n_tokens).max(1),
        })
    }

    /// Bytes from the start of the operand to the end of the last element; `None` when that overflows.
    pub fn span(&self, n_tokens: u64) -> Option<u64> {
        let mut dims = self.dims_at(n_tokens);
        let row = match self.elem {
            MapElem::U4Padded => dims.next()?.div_ceil(2),
            MapElem::U8 | MapElem::F16 | MapElem::Bf16 | MapElem::F32 => dims.next()?.checked_mul(self.elem.bytes())?,
        };
        dims.zip(&self.strides).try_fold(row, |sum, (n, stride)| (n - 1).checked_mul(*stride)?.checked_add(sum))
    }
}

/// How a CPU kernel is launched.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuLaunch {
    /// Work items, each independent of the others.
    pub items: Extent,
    /// Scratch memory of one call, in bytes.
    pub scratch_bytes: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extents_that_overflow_or_divide_by_zero_have_no_number() {
        let e = Extent { mul: 2, per_token: 8, div: 16, add: 4, min: 1 };
        assert_eq!(e.checked_at(100), Some(e.at(100)));
        assert_eq!(Extent { div: 0, ..e }.checked_at(1), None);
        assert_eq!(Extent { per_token: u64::MAX, ..e }.checked_at(2), None);
        assert_eq!(Extent { mul: u64::MAX, ..e }.checked_at(2), None);
        assert_eq!(Extent { add: u64::MAX, ..e }.checked_at(2), None);
        assert_eq!(Extent { div: u64::MAX, ..e }.checked_at(2), None);
    }

    #[test]
    fn maps_take_rows_and_matrices_that_the_driver_takes() {
        let map = |elem| TensorMap {
            operand: 0,
            elem,
            dims: vec![Dim::Fixed(64), Dim::Fixed(32), Dim::Fixed(8)],
            strides: vec![128, 4096],
            box_dims: vec![64, 32, 1],
            swizzle_bytes: 128,
        };
        let takes = |address, matrix, row| map(MapElem::Bf16).takes(address, Strides { matrix, row });
        // Half of a stack, every second row of it.
        assert!(takes(4096, 8192, 128) && takes(128, 8192, 256));
        assert!(!takes(8, 8192, 128) && !takes(0, 8192, 24) && !takes(0, 8200, 128), "multiples of 16");
        assert!(!takes(0, 8192, 0) && !takes(0, 0, 128) && !takes(0, 8192 + 16, 128) && !takes(0, 1 << 40, 128));
        assert!(!map(MapElem::U4Padded).takes(16, Strides { matrix: 8192, row: 128 }), "multiples of 32");
        let mut laid = map(MapElem::Bf16);
        laid.lay(Strides { matrix: 8192, row: 256 });
        assert_eq!(laid.strides, [256, 8192]);
    }
}
