//! Transposes small tiles of elements of two or four bytes, of which the bits alone count.

/// Rows of a tile: four cache lines of two-byte elements on the side that is read.
pub(crate) const TILE_ROWS: usize = 128;
/// Bytes of a row of a tile on the side that is written. Whole cache lines, so that none is written twice, and several of
/// them, so that a page is looked up once for all: the rows of a matrix often lie a page or more apart.
pub(crate) const TILE_LINE: usize = 512;

/// Elements that wait to be written as rows: `TILE_ROWS` rows of `TILE_LINE` bytes, stored column by column.
///
/// Column `c` is `TILE_ROWS` elements, the ones of its rows in order.
pub(crate) struct Tile([u8; TILE_ROWS * TILE_LINE]);

impl Tile {
    pub(crate) fn new() -> Tile {
        Tile([0; TILE_ROWS * TILE_LINE])
    }

    /// Column `c` of elements of `width` bytes, to be filled; `c < TILE_LINE / width`.
    pub(crate) fn column(&mut self, c: usize, width: usize) -> &mut [u8] {
        &mut self.0[c * TILE_ROWS * width..(c + 1) * TILE_ROWS * width]
    }

    /// Writes the first `rows` rows, and of each the first `bytes` bytes, to `out`: row `r` at `start + r * pitch`.
    /// Elements have `width` bytes, 2 or 4.
    pub(crate) fn write_rows(
        &self,
        width: usize,
        (rows, bytes): (usize, usize),
        out: &mut [u8],
        start: usize,
        pitch: usize,
    ) {
        let mut lines = [[0; TILE_LINE]; 4];
        for first in (0..rows).step_by(4) {
            if width == 2 {
                self.four_rows_of_2(first, &mut lines)
            } else {
                self.four_rows_of_4(first, &mut lines)
            }
            for (line, row) in lines.iter().zip(first..rows) {
                let at = start + row * pitch;
                out[at..at + bytes].copy_from_slice(&line[..bytes]);
            }
        }
    }

    /// Rows `first..first + 4` of two-byte elements, made of blocks of four by four in words of 64 bits.
    fn four_rows_of_2(&self, first: usize, lines: &mut [[u8; TILE_LINE]; 4]) {
        const COLUMN: usize = TILE_ROWS * 2;
        const EVEN: u64 = 0x0000_FFFF_0000_FFFF;
        const LOW: u64 = 0x0000_0000_FFFF_FFFF;
        for (block, columns) in self.0.chunks_exact(4 * COLUMN).enumerate() {
            let [a, b, c, d] = [0, 1, 2, 3].map(|i| word(columns, i * COLUMN + first * 2));
            let (ab_even, ab_odd) = ((a & EVEN) | (b & EVEN) << 16, (a >> 16 & EVEN) | (b & !EVEN));
            let (cd_even, cd_odd) = ((c & EVEN) | (d & EVEN) << 16, (c >> 16 & EVEN) | (d & !EVEN));
            let rows = [
                (ab_even & LOW) | cd_even << 32,
                (ab_odd & LOW) | cd_odd << 32,
                ab_even >> 32 | (cd_even & !LOW),
                ab_odd >> 32 | (cd_odd & !LOW),
            ];
            for (line, row) in lines.iter_mut().zip(rows) {
                line[block * 8..block * 8 + 8].copy_from_slice(&row.to_le_bytes());
            }
        }
    }

    fn four_rows_of_4(&self, first: usize, lines: &mut [[u8; TILE_LINE]; 4]) {
        const COLUMN: usize = TILE_ROWS * 4;
        for (c, column) in self.0.chunks_exact(COLUMN).enumerate() {
            for (line, element) in lines.iter_mut().zip(column[first * 4..].chunks_exact(4)) {
                line[c * 4..c * 4 + 4].copy_from_slice(element);
            }
        }
    }
}

fn word(bytes: &[u8], at: usize) -> u64 {
    bytes[at..].first_chunk().copied().map_or(0, u64::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_element_goes_to_its_row_and_column() {
        for width in [2, 4] {
            let columns = TILE_LINE / width;
            let element = |r: usize, c: usize| (r * 1000 + c + 1) as u32;
            let mut tile = Tile::new();
            for c in 0..columns {
                for (r, out) in tile.column(c, width).chunks_exact_mut(width).enumerate() {
                    out.copy_from_slice(&element(r, c).to_le_bytes()[..width]);
                }
            }
            for (rows, cols) in [(TILE_ROWS, columns), (1, 1), (5, 3), (63, columns - 1), (0, 4), (7, 0)] {
                let (start, pitch) = (3, cols * width + 5);
                let mut out = vec![0xAB; start + TILE_ROWS * pitch];
                let mut want = out.clone();
                tile.write_rows(width, (rows, cols * width), &mut out, start, pitch);
                for (r, c) in (0..rows).flat_map(|r| (0..cols).map(move |c| (r, c))) {
                    let at = start + r * pitch + c * width;
                    want[at..at + width].copy_from_slice(&element(r, c).to_le_bytes()[..width]);
                }
                assert_eq!(out, want, "{rows} rows of {cols} elements of {width} bytes");
            }
        }
    }
}
