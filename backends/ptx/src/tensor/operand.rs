//! Fetching whole operand matrices from shared memory into f32 arrays.

use super::elem::{Elem, Packing, decode_unit, per_unit};
use super::smem_desc::{Major, SmemDesc};

/// What of an operand a descriptor describes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OperandShape {
    /// Rows of A or columns of B.
    pub lines: usize,
    /// Length of the K axis in elements.
    pub k: usize,
    /// Element type.
    pub elem: Elem,
    /// How the elements lie in 16-byte units.
    pub packing: Packing,
    /// Contiguous axis.
    pub major: Major,
}

/// Where a fetched matrix goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// `out[line · k_total + k]`: rows of A.
    LineByK,
    /// `out[k · n_total + line]`: columns of B, `n_total` lines apart.
    KByLine {
        /// Lines of the whole matrix.
        n_total: usize,
        /// First line within it.
        first: usize,
    },
}

/// Sixteen bytes of shared memory, and a bit for each of them that nobody wrote.
pub type Unit = ([u8; 16], u16);

/// Reads a matrix through its descriptor. `read` gets a byte address (a multiple of 16). `unwritten` (one flag a line) is set for
/// lines of which some byte was never written.
pub fn fetch(
    desc: &SmemDesc,
    shape: &OperandShape,
    order: Order,
    out: &mut [f32],
    unwritten: &mut [bool],
    mut read: impl FnMut(u32) -> Unit,
) {
    let t = per_unit(shape.elem, shape.packing);
    let mut values = [0f32; 128];
    let (n_lines, n_units) = match shape.major {
        Major::K => (shape.lines, shape.k / t),
        Major::Mn => (shape.k, shape.lines / t),
    };
    for line in 0..n_lines {
        for unit in 0..n_units {
            let (bytes, holes) = read(desc.unit_address(shape.major, line as u32, unit as u32));
            if holes != 0 {
                match shape.major {
                    Major::K => unwritten[line] = true,
                    Major::Mn => {
                        let width = 16 / t;
                        for i in 0..t {
                            let mask = ((1u32 << width) - 1) << (i * width);
                            unwritten[unit * t + i] |= u32::from(holes) & mask != 0;
                        }
                    }
                }
            }
            decode_unit(&bytes, shape.elem, shape.packing, &mut values[..t]);
            let values = &values[..t];
            match (shape.major, order) {
                (Major::K, Order::LineByK) => out[line * shape.k + unit * t..][..t].copy_from_slice(values),
                (Major::K, Order::KByLine { n_total, first }) => {
                    for (i, value) in values.iter().enumerate() {
                        out[(unit * t + i) * n_total + first + line] = *value;
                    }
                }
                (Major::Mn, Order::LineByK) => {
                    for (i, value) in values.iter().enumerate() {
                        out[(unit * t + i) * shape.k + line] = *value;
                    }
                }
                (Major::Mn, Order::KByLine { n_total, first }) => {
                    out[line * n_total + first + unit * t..][..t].copy_from_slice(values);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::numeric::half;
    use crate::tensor::swizzle::Swizzle;

    /// Writes element (line, k) where a straightforward reading of the layout puts it, then fetches it back.
    #[test]
    fn both_majors_and_orders_return_the_matrix_that_was_stored() {
        let (lines, k) = (32usize, 16usize);
        let value = |line: usize, p: usize| (line * 16 + p) as f32;
        for (major, leading, stride) in [(Major::K, 16u32, 1024u32), (Major::Mn, 2048, 1024)] {
            let desc = SmemDesc { start: 2048, leading, stride, base_offset: 0, swizzle: Swizzle::B128 };
            let mut smem = vec![0u8; 65536];
            for line in 0..lines {
                for p in 0..k {
                    let at = match major {
                        Major::K => (line / 8 * 1024 + line % 8 * 128 + p * 2) as u32,
                        Major::Mn => (line * 2 + p % 8 * 128 + p / 8 * 1024) as u32,
                    };
                    let address = Swizzle::B128.apply(2048 + at, 0) as usize;
                    smem[address..address + 2].copy_from_slice(&half::f32_to_bf16(value(line, p)).to_le_bytes());
                }
            }
            let shape = OperandShape { lines, k, elem: Elem::Bf16, packing: Packing::Dense, major };
            // Of the unit of line 9 and its K (or line 8 to 15 and k = 0), one byte counts as unwritten.
            let hole = desc.unit_address(major, if major == Major::K { 9 } else { 0 }, 1);
            let read =
                |a: u32| -> Unit { (smem[a as usize..][..16].try_into().unwrap(), if a == hole { 4 } else { 0 }) };
            let mut bad = vec![false; lines];
            let mut rows = vec![0f32; lines * k];
            fetch(&desc, &shape, Order::LineByK, &mut rows, &mut bad, read);
            assert_eq!(bad.iter().position(|b| *b), Some(9));
            assert_eq!(bad.iter().filter(|b| **b).count(), 1);
            let mut columns = vec![0f32; (lines + 8) * k];
            fetch(&desc, &shape, Order::KByLine { n_total: lines + 8, first: 8 }, &mut columns, &mut bad, read);
            for line in 0..lines {
                for p in 0..k {
                    let want = half::bf16_to_f32(half::f32_to_bf16(value(line, p)));
                    assert_eq!(rows[line * k + p], want);
                    assert_eq!(columns[p * (lines + 8) + 8 + line], want);
                }
            }
        }
    }
}
