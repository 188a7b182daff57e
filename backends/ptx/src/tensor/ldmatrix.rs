//! `ldmatrix`, `stmatrix` and `movmatrix`: which byte of which row goes to which lane.
//!
//! A matrix row is 16 bytes of shared memory (8 for a row of `stmatrix.m16n8`… see [`MatrixShape`]), its address given by one lane.
//! Sources: PTX ISA 9.1, 9.7.14.5.15 to 17; for the byte order of the transposed 8-bit shapes, which the manual shows only as a
//! picture, the layouts of CUTLASS (`cute/atom/copy_traits_sm100.hpp`, `SM100_U8x8_LDSM_T`, `SM100_U8x8_STSM_T`).

use super::mma::Lanes;
use super::{TensorError, invalid};

/// Shape and element form of a matrix move.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MatrixShape {
    /// `.m8n8.b16`: 8 rows of 16 bytes.
    M8n8,
    /// `.m16n16.b8` (loads, always transposed): 16 rows of 16 bytes.
    M16n16,
    /// `.m8n16` with decompression (loads): 8 rows of 16 bytes.
    M8n16,
    /// `.m16n8.b8` (stores, always transposed): 8 rows of 16 bytes.
    M16n8,
}

/// Expansion of 4- or 6-bit elements to bytes while loading.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expand {
    /// 16 bytes are taken as they are.
    None,
    /// `.b8x16.b4x16_p64`: 8 bytes of 4-bit elements, 8 bytes of padding.
    B4,
    /// `.b8x16.b6x16_p32`: 12 bytes of 6-bit elements, 4 bytes of padding.
    B6,
}

/// One `ldmatrix` or `stmatrix` form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MatrixMove {
    /// Shape of one matrix.
    pub shape: MatrixShape,
    /// Number of matrices: 1, 2 or 4.
    pub num: usize,
    /// `.trans`.
    pub trans: bool,
    /// Expansion (loads only).
    pub expand: Expand,
}

impl MatrixMove {
    /// Rows of one matrix, which is also how many lanes give addresses for it.
    #[must_use]
    pub fn rows(&self) -> usize {
        match self.shape {
            MatrixShape::M8n8 | MatrixShape::M8n16 | MatrixShape::M16n8 => 8,
            MatrixShape::M16n16 => 16,
        }
    }

    /// Lanes (from 0) whose addresses are used.
    #[must_use]
    pub fn address_lanes(&self) -> usize {
        self.rows() * self.num
    }

    /// Registers in each lane.
    #[must_use]
    pub fn registers(&self) -> usize {
        match self.shape {
            MatrixShape::M16n16 => 2 * self.num,
            MatrixShape::M8n8 | MatrixShape::M8n16 | MatrixShape::M16n8 => self.num,
        }
    }

    /// Checks the combination of qualifiers.
    ///
    /// # Errors
    /// `Invalid` for forms that PTX does not have.
    pub fn check(&self, store: bool) -> Result<(), TensorError> {
        let ok = matches!(self.num, 1 | 2 | 4)
            && match self.shape {
                MatrixShape::M8n8 => self.expand == Expand::None,
                MatrixShape::M16n16 => !store && self.trans && self.num <= 2,
                MatrixShape::M8n16 => !store && !self.trans && self.expand != Expand::None,
                MatrixShape::M16n8 => store && self.trans && self.expand == Expand::None,
            };
        if ok { Ok(()) } else { invalid(format!("matrix move {self:?} does not exist")) }
    }

    /// Where byte `byte` (0 to 3) of register `reg` of `lane` lies: (address lane, byte within its row).
    #[must_use]
    #[inline]
    pub fn source(&self, lane: usize, reg: usize, byte: usize) -> (usize, usize) {
        let (g, t) = (lane / 4, lane % 4);
        match (self.shape, self.trans) {
            (MatrixShape::M8n8, false) | (MatrixShape::M8n16, _) => (8 * reg + g, 4 * t + byte),
            // 16-bit elements (row 2t, col g) and (row 2t + 1, col g).
            (MatrixShape::M8n8, true) => (8 * reg + 2 * t + byte / 2, 2 * g + byte % 2),
            // Bytes 0, 1: rows 4t + 2·(reg & 1) + 0, 1 at column g; bytes 2, 3: the same rows at column g + 8.
            (MatrixShape::M16n16, _) => (16 * (reg / 2) + 4 * t + 2 * (reg % 2) + byte % 2, g + 8 * (byte / 2)),
            (MatrixShape::M16n8, _) => (8 * reg + 2 * t + byte % 2, g + 8 * (byte / 2)),
        }
    }

    /// Distributes loaded rows to registers; `rows[i]` are the 16 bytes at lane i's address.
    pub fn load(&self, rows: &[[u8; 16]], out: &mut [Lanes]) {
        if self.shape == MatrixShape::M8n8 {
            for (rows, lanes) in rows.as_chunks::<8>().0.iter().zip(out) {
                if self.trans { load_transposed(rows, lanes) } else { load_rows(rows, lanes) }
            }
            return;
        }
        let mut expanded = [[0u8; 16]; 32];
        for (to, from) in expanded.iter_mut().zip(rows) {
            *to = expand(from, self.expand);
        }
        for (reg, lanes) in out.iter_mut().enumerate() {
            for (lane, word) in lanes.iter_mut().enumerate() {
                *word = u64::from(u32::from_le_bytes(std::array::from_fn(|byte| {
                    let (row, at) = self.source(lane, reg, byte);
                    expanded[row][at]
                })));
            }
        }
    }

    /// Collects registers into the rows to store at each address lane.
    #[must_use]
    pub fn store(&self, regs: &[Lanes]) -> [[u8; 16]; 32] {
        let mut rows = [[0u8; 16]; 32];
        for (reg, lanes) in regs.iter().enumerate() {
            for (lane, word) in lanes.iter().enumerate() {
                for (byte, value) in (*word as u32).to_le_bytes().into_iter().enumerate() {
                    let (row, at) = self.source(lane, reg, byte);
                    rows[row][at] = value;
                }
            }
        }
        rows
    }
}

/// An 8 × 8 matrix of 16-bit elements: a lane gets the four bytes of its place in the row of its group.
fn load_rows(rows: &[[u8; 16]; 8], out: &mut Lanes) {
    for (row, lanes) in rows.iter().zip(out.as_chunks_mut::<4>().0) {
        for (word, bytes) in lanes.iter_mut().zip(row.as_chunks::<4>().0) {
            *word = u64::from(u32::from_le_bytes(*bytes));
        }
    }
}

/// As [`load_rows`], of the transposed matrix: a lane gets elements of two rows in the column of its group.
fn load_transposed(rows: &[[u8; 16]; 8], out: &mut Lanes) {
    for (t, [upper, lower]) in rows.as_chunks::<2>().0.iter().enumerate() {
        let columns = upper.as_chunks::<2>().0.iter().zip(lower.as_chunks::<2>().0);
        for (lanes, ([a, b], [c, d])) in out.as_chunks_mut::<4>().0.iter_mut().zip(columns) {
            lanes[t] = u64::from(u32::from_le_bytes([*a, *b, *c, *d]));
        }
    }
}

/// Expands a 16-byte row to sixteen bytes, each holding one element in its low bits.
#[must_use]
pub fn expand(row: &[u8; 16], how: Expand) -> [u8; 16] {
    let packed = u128::from_le_bytes(*row);
    match how {
        Expand::None => *row,
        Expand::B4 => std::array::from_fn(|i| (packed >> (4 * i)) as u8 & 0x0f),
        Expand::B6 => std::array::from_fn(|i| (packed >> (6 * i)) as u8 & 0x3f),
    }
}

/// `movmatrix.m8n8.trans.b16`: transposes an 8×8 matrix of 16-bit elements held as an mma fragment.
#[must_use]
pub fn transpose(from: &Lanes) -> Lanes {
    std::array::from_fn(|lane| {
        let element = |row: usize, col: usize| from[4 * row + col / 2] >> (16 * (col % 2)) & 0xffff;
        let (g, t) = (lane / 4, lane % 4);
        element(2 * t, g) | element(2 * t + 1, g) << 16
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows() -> Vec<[u8; 16]> {
        (0..32).map(|r| std::array::from_fn(|c| (r * 16 + c * 3) as u8)).collect()
    }

    #[test]
    fn loads_and_stores_invert_each_other() {
        for shape in [MatrixShape::M8n8, MatrixShape::M16n8] {
            for num in [1, 2, 4] {
                for trans in [false, true] {
                    let form = MatrixMove { shape, num, trans, expand: Expand::None };
                    if form.check(true).is_err() {
                        continue;
                    }
                    let rows = rows();
                    let mut regs = vec![[0; 32]; form.registers()];
                    form.load(&rows, &mut regs);
                    let back = form.store(&regs);
                    assert_eq!(back[..form.address_lanes()], rows[..form.address_lanes()]);
                }
            }
        }
    }

    #[test]
    fn m8n8_places_pairs_by_row_or_by_column() {
        let rows = rows();
        let element =
            |m: usize, r: usize, c: usize| u16::from_le_bytes([rows[8 * m + r][2 * c], rows[8 * m + r][2 * c + 1]]);
        for trans in [false, true] {
            let form = MatrixMove { shape: MatrixShape::M8n8, num: 4, trans, expand: Expand::None };
            let mut regs = vec![[0; 32]; 4];
            form.load(&rows, &mut regs);
            for (m, lanes) in regs.iter().enumerate() {
                for (lane, word) in lanes.iter().enumerate() {
                    let (g, t) = (lane >> 2, lane & 3);
                    let want = if trans {
                        [element(m, 2 * t, g), element(m, 2 * t + 1, g)]
                    } else {
                        [element(m, g, 2 * t), element(m, g, 2 * t + 1)]
                    };
                    assert_eq!([*word as u16, (*word >> 16) as u16], want);
                }
            }
        }
    }

    #[test]
    fn every_byte_of_a_16x16_matrix_reaches_one_lane() {
        let form = MatrixMove { shape: MatrixShape::M16n16, num: 2, trans: true, expand: Expand::None };
        let mut seen = [[false; 16]; 32];
        for lane in 0..32 {
            for reg in 0..4 {
                for byte in 0..4 {
                    let (row, at) = form.source(lane, reg, byte);
                    assert!(!std::mem::replace(&mut seen[row][at], true));
                    // Lane group g holds columns g and g + 8 of rows 4t to 4t + 3.
                    assert_eq!(at % 8, lane / 4);
                    assert_eq!(row % 16 / 4, lane % 4);
                }
            }
        }
        assert!(seen.iter().flatten().all(|s| *s));
    }

    #[test]
    fn four_and_six_bit_rows_expand_to_bytes() {
        let mut row = [0xffu8; 16];
        row[..8].copy_from_slice(&[0x10, 0x32, 0x54, 0x76, 0x98, 0xba, 0xdc, 0xfe]);
        assert_eq!(expand(&row, Expand::B4), std::array::from_fn(|i| i as u8));
        let packed: u128 = (0..16).map(|i| (i as u128 + 17) << (6 * i)).sum();
        assert_eq!(expand(&packed.to_le_bytes(), Expand::B6), std::array::from_fn(|i| i as u8 + 17));
        let form = MatrixMove { shape: MatrixShape::M8n16, num: 1, trans: false, expand: Expand::B4 };
        let mut regs = vec![[0; 32]; 1];
        form.load(&[row; 8], &mut regs);
        assert_eq!(regs[0][1], 0x0706_0504);
    }

    #[test]
    fn movmatrix_transposes() {
        let from: Lanes = std::array::from_fn(|l| (2 * l) as u64 | ((2 * l + 1) as u64) << 16);
        let to = transpose(&from);
        for row in 0..8usize {
            for col in 0..8usize {
                let got = to[4 * row + col / 2] >> (16 * (col % 2)) & 0xffff;
                assert_eq!(got as usize, col * 8 + row);
            }
        }
        assert_eq!(transpose(&to), from);
    }
}
