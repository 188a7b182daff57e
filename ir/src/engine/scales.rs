//! What a stage in shared memory holds of the scales of its codes.

use crate::tile::{PanelQuant, RowQuant};

/// The scales of a tile's rows in a step along k.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScaleWindow {
    /// Rows that have scales of their own: those of the tile, or 1.
    pub rows: u32,
    /// Bytes of a row: the aligned 4, 8 or 16 that the scales of a step lie in.
    pub width: u32,
}

impl ScaleWindow {
    /// Of a panel of `n` rows, in tiles of `tile_n` rows and steps of `tile_k` elements.
    pub fn of_weights(n: u64, q: &PanelQuant, (tile_n, tile_k): (u32, u32)) -> ScaleWindow {
        let f = q.format;
        let one_row = f.block_rows == 0 || f.block_rows.is_multiple_of(tile_n.into()) || n == 1;
        let rows = if one_row { 1 } else { tile_n };
        ScaleWindow { rows, width: width(f.block_cols as u32, f.scale.bytes() as u32, tile_k) }
    }

    /// Of `tile_m` rows of activations, in steps of `tile_k` elements.
    pub fn of_rows(q: &RowQuant, (tile_m, tile_k): (u32, u32)) -> ScaleWindow {
        ScaleWindow { rows: tile_m, width: width(q.q.block, q.format().scale.bytes() as u32, tile_k) }
    }

    /// Bytes in a stage, a multiple of 16.
    pub fn bytes(self) -> u32 {
        (self.rows * self.width).next_multiple_of(16)
    }
}

/// Bytes that hold the scales of a step, each of `block` elements (0: of all) and `bytes` bytes.
fn width(block: u32, bytes: u32, tile_k: u32) -> u32 {
    (tile_k.checked_div(block).unwrap_or(1).max(1) * bytes).max(4)
}
