//! How the work of a kernel is cut into tiles.

use serde::{Deserialize, Serialize};

/// Tile sizes and pipeline depth. What a program for a GPU holds is what is built: [`crate::engine::fit`] makes it so, and
/// code generation refuses any other.
///
/// For contractions a tile is `tile_m` rows by `tile_n` output columns (of each panel), in steps of `tile_k`.
/// For row programs `tile_m` rows share a block. For maps and combines `tile_m` rows by `tile_n` columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Schedule {
    /// Rows of a tile.
    pub tile_m: u32,
    /// Rows of low tiles, which hold the last rows of an expert where those are no more; 0 where all tiles are of one height.
    #[serde(default)]
    pub rest_m: u32,
    /// Columns of a tile.
    pub tile_n: u32,
    /// Contracted elements per step.
    pub tile_k: u32,
    /// Steps in flight between global and shared memory.
    pub stages: u32,
    /// Warps of a block.
    pub warps: u32,
    /// Blocks that make a tile.
    #[serde(default)]
    pub team: Team,
    /// Parts of the contracted elements whose sums are added one after another, each a sum of its own; 1 for one sum. The
    /// bits of a result depend on it, so that variants of a layer for different token counts have the same.
    #[serde(default = "one")]
    pub k_parts: u32,
    /// Whether a block that is done takes the work of one that has not started (cluster launch control), rather than
    /// every n-th tile.
    #[serde(default)]
    pub dynamic: bool,
    /// Blocks of a cluster that put slots in expert order together; 1 for one block, and for kernels that put none.
    #[serde(default = "one")]
    pub order_ctas: u32,
    /// Blocks that share the columns of a row program's products through global memory; 1 for one block, or a cluster.
    #[serde(default = "one")]
    pub logit_ctas: u32,
}

/// Blocks that make a tile of a contraction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Team {
    /// One.
    #[default]
    One,
    /// Two of a cluster, each with half of the columns and half of the rows, multiply together (`cta_group::2`).
    Pair,
    /// Two pairs of a cluster, of neighbouring rows, which have the same columns and bring their weights for both.
    TwoPairs,
    /// Two of a cluster, of neighbouring rows and the same columns, each of which brings half of their weights for both.
    Neighbours,
    /// A block of a cluster for each of `k_parts`.
    SplitK,
}

impl Schedule {
    /// One block for a tile, one sum, static order.
    pub const fn new(tile_m: u32, tile_n: u32, tile_k: u32, stages: u32, warps: u32) -> Schedule {
        let (team, k_parts, dynamic) = (Team::One, 1, false);
        Schedule {
            tile_m,
            rest_m: 0,
            tile_n,
            tile_k,
            stages,
            warps,
            team,
            k_parts,
            dynamic,
            order_ctas: 1,
            logit_ctas: 1,
        }
    }

    /// The heights of tiles, lowest first: a tile has the first that holds its rows.
    pub fn heights(&self) -> impl Iterator<Item = u32> {
        Some(self.rest_m).filter(|m| *m > 0).into_iter().chain([self.tile_m])
    }

    /// The same for tiles of one of the heights.
    #[must_use]
    pub fn of_height(&self, tile_m: u32) -> Schedule {
        Schedule { tile_m, rest_m: 0, ..*self }
    }

    /// Blocks of a cluster that make a tile.
    pub fn blocks(&self) -> u32 {
        match self.team {
            Team::One => 1,
            Team::Pair | Team::Neighbours => 2,
            Team::TwoPairs => 4,
            Team::SplitK => self.k_parts,
        }
    }
}

fn one() -> u32 {
    1
}
