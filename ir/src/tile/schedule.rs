//! How the work of a kernel is cut into tiles.

use serde::{Deserialize, Serialize};

/// Tile sizes and pipeline depth. A backend may round a value to what its instructions take, never ignore it silently.
///
/// For contractions a tile is `tile_m` rows by `tile_n` output columns (of each panel), in steps of `tile_k`.
/// For row programs `tile_m` rows share a block. For maps and combines `tile_m` rows by `tile_n` columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Schedule {
    /// Rows of a tile.
    pub tile_m: u32,
    /// Columns of a tile.
    pub tile_n: u32,
    /// Contracted elements per step.
    pub tile_k: u32,
    /// Steps in flight between global and shared memory.
    pub stages: u32,
    /// Warps of a block.
    pub warps: u32,
}
