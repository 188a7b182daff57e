//! Data movement shapes: `tcgen05.ld`/`st` between tensor memory and registers, `tcgen05.cp` from shared memory.
//!
//! Source: PTX ISA 9.1, 9.7.16.2.3 and 9.7.16.8 to 9; the register maps, which the manual shows as pictures, follow the copy traits
//! of CUTLASS (`cute/atom/copy_traits_sm100.hpp`).

use super::ldmatrix::{self, Expand};
use super::smem_desc::{Major, SmemDesc};
use super::{TensorError, invalid, unsupported};

/// Shape of `tcgen05.ld` and `tcgen05.st`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AccessShape {
    /// One lane a thread.
    S32x32b,
    /// 16 lanes, 64 bits.
    S16x64b,
    /// 16 lanes, 128 bits.
    S16x128b,
    /// 16 lanes, 256 bits: the mma accumulator fragment.
    S16x256b,
    /// Two accesses of 16 lanes, 32 bits, `split` columns apart.
    S16x32bx2 {
        /// Columns between the two halves.
        split: usize,
    },
}

/// One `tcgen05.ld` or `tcgen05.st` form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Access {
    /// Shape.
    pub shape: AccessShape,
    /// `.xN`.
    pub num: usize,
    /// `.pack::16b` or `.unpack::16b`.
    pub pack: bool,
}

impl Access {
    /// Registers of each thread.
    #[must_use]
    pub fn registers(&self) -> usize {
        match self.shape {
            AccessShape::S32x32b | AccessShape::S16x64b | AccessShape::S16x32bx2 { .. } => self.num,
            AccessShape::S16x128b => 2 * self.num,
            AccessShape::S16x256b => 4 * self.num,
        }
    }

    /// Lanes of tensor memory that the access covers.
    #[must_use]
    pub fn lanes(&self) -> usize {
        if self.shape == AccessShape::S32x32b { 32 } else { 16 }
    }

    /// Checks `.xN` against the shape.
    ///
    /// # Errors
    /// `Invalid` when the form does not exist.
    pub fn check(&self) -> Result<(), TensorError> {
        if self.num.is_power_of_two() && self.registers() <= 128 {
            Ok(())
        } else {
            invalid(format!("tcgen05.ld/st {:?} has no .x{}", self.shape, self.num))
        }
    }

    /// The cell of register `reg` of thread `thread`: (lane, column) relative to the address. With packing, the 16-bit halves are
    /// at this column and the next.
    #[must_use]
    #[inline]
    pub fn cell(&self, thread: usize, reg: usize) -> (usize, usize) {
        let (quad, in_quad) = (thread / 4, thread % 4);
        let (lane, column, base) = match self.shape {
            AccessShape::S32x32b => (thread, reg, 0),
            AccessShape::S16x64b => (quad + 8 * (thread % 2), 2 * reg + thread / 2 % 2, 0),
            AccessShape::S16x128b => (quad + 8 * (reg % 2), 4 * (reg / 2) + in_quad, 0),
            AccessShape::S16x256b => (quad + 8 * (reg % 4 / 2), 8 * (reg / 4) + 2 * in_quad + reg % 2, 0),
            AccessShape::S16x32bx2 { split } => (thread % 16, reg, if thread < 16 { 0 } else { split }),
        };
        (lane, base + if self.pack { 2 * column } else { column })
    }
}

/// Shape of `tcgen05.cp`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CopyShape {
    /// 128 rows of 32 bytes.
    S128x256b,
    /// 128 rows of 16 bytes.
    S128x128b,
    /// 64 rows of 16 bytes, each to the lanes r and r + 64.
    S64x128bPairs02And13,
    /// 64 rows of 16 bytes, 0-31 to lanes 0-31 and 32-63, 32-63 to lanes 64-95 and 96-127.
    S64x128bPairs01And23,
    /// 32 rows of 16 bytes, each to all four groups of 32 lanes.
    S32x128bAll,
}

/// One row part that `tcgen05.cp` moves: 16 bytes of shared memory to cells of some lanes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopyStep {
    /// Shared-memory address of the 16 bytes.
    pub address: u32,
    /// First destination lane of each replica, relative to the tensor memory address.
    pub lanes: [Option<usize>; 4],
    /// First destination column, relative to the tensor memory address.
    pub column: usize,
}

/// The steps of a copy, in row order. Each step writes 4 columns (without expansion: 16 bytes; with it, 16 elements of one byte).
///
/// # Errors
/// `Unsupported` for descriptors with 32-byte swizzle atoms.
pub fn copy_steps(shape: CopyShape, desc: &SmemDesc) -> Result<Vec<CopyStep>, TensorError> {
    if desc.swizzle == super::swizzle::Swizzle::B128Atom32 {
        return unsupported("tcgen05.cp from a layout with 32-byte swizzle atoms");
    }
    let (rows, units) = match shape {
        CopyShape::S128x256b => (128, 2),
        CopyShape::S128x128b => (128, 1),
        CopyShape::S64x128bPairs02And13 | CopyShape::S64x128bPairs01And23 => (64, 1),
        CopyShape::S32x128bAll => (32, 1),
    };
    let mut steps = Vec::with_capacity(rows * units);
    for row in 0..rows {
        let lanes = match shape {
            CopyShape::S128x256b | CopyShape::S128x128b => [Some(row), None, None, None],
            CopyShape::S64x128bPairs02And13 => [Some(row), Some(row + 64), None, None],
            CopyShape::S64x128bPairs01And23 => {
                let first = row % 32 + 64 * (row / 32);
                [Some(first), Some(first + 32), None, None]
            }
            CopyShape::S32x128bAll => [Some(row), Some(row + 32), Some(row + 64), Some(row + 96)],
        };
        for unit in 0..units {
            steps.push(CopyStep {
                address: desc.unit_address(Major::K, row as u32, unit as u32),
                lanes,
                column: 4 * unit,
            });
        }
    }
    Ok(steps)
}

/// The four cells that 16 bytes of shared memory become; 4-bit values land in bits 2 to 5 of their byte, 6-bit in bits 0 to 5, as
/// the f8f6f4 kinds read them.
#[must_use]
pub fn copy_cells(bytes: &[u8; 16], expand: Expand) -> [u32; 4] {
    let mut elements = ldmatrix::expand(bytes, expand);
    if expand == Expand::B4 {
        for byte in &mut elements {
            *byte <<= 2;
        }
    }
    std::array::from_fn(|i| {
        u32::from_le_bytes([elements[4 * i], elements[4 * i + 1], elements[4 * i + 2], elements[4 * i + 3]])
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::swizzle::Swizzle;

    #[test]
    fn every_shape_covers_its_rectangle_once() {
        for (shape, columns_per_num) in [
            (AccessShape::S32x32b, 1),
            (AccessShape::S16x64b, 2),
            (AccessShape::S16x128b, 4),
            (AccessShape::S16x256b, 8),
        ] {
            for num in [1, 2, 4, 8, 16, 32] {
                let access = Access { shape, num, pack: false };
                access.check().unwrap();
                let width = columns_per_num * num;
                let mut seen = vec![false; access.lanes() * width];
                for thread in 0..32 {
                    for reg in 0..access.registers() {
                        let (lane, column) = access.cell(thread, reg);
                        assert!(column < width);
                        assert!(!std::mem::replace(&mut seen[lane * width + column], true), "{shape:?} x{num}");
                    }
                }
                assert!(seen.iter().all(|s| *s), "{shape:?} x{num}");
            }
        }
        assert!(Access { shape: AccessShape::S16x256b, num: 64, pack: false }.check().is_err());
    }

    #[test]
    fn the_256_bit_shape_is_the_mma_accumulator_fragment() {
        let access = Access { shape: AccessShape::S16x256b, num: 2, pack: false };
        for lane in 0..32 {
            for reg in 0..8 {
                // m16n8 C fragment of the n-block reg / 4.
                let want = ((lane >> 2) + 8 * ((reg % 4) >> 1), 8 * (reg / 4) + (lane % 4) * 2 + (reg & 1));
                assert_eq!(access.cell(lane, reg), want);
            }
        }
    }

    #[test]
    fn halves_of_the_split_shape_lie_apart() {
        let access = Access { shape: AccessShape::S16x32bx2 { split: 64 }, num: 64, pack: false };
        assert_eq!(access.cell(3, 5), (3, 5));
        assert_eq!(access.cell(19, 5), (3, 69));
        let packed = Access { shape: AccessShape::S32x32b, num: 4, pack: true };
        assert_eq!(packed.cell(7, 3), (7, 6));
    }

    #[test]
    fn scale_atoms_copy_to_all_lane_groups() {
        let desc = SmemDesc { start: 512, leading: 0, stride: 128, base_offset: 0, swizzle: Swizzle::None };
        let steps = copy_steps(CopyShape::S32x128bAll, &desc).unwrap();
        assert_eq!(steps.len(), 32);
        for (row, step) in steps.iter().enumerate() {
            assert_eq!(step.address as usize, 512 + 16 * row);
            assert_eq!(step.lanes, [Some(row), Some(row + 32), Some(row + 64), Some(row + 96)]);
        }
        let steps = copy_steps(CopyShape::S64x128bPairs01And23, &desc).unwrap();
        assert_eq!(steps[40].lanes, [Some(72), Some(104), None, None]);
    }

    #[test]
    fn compressed_elements_expand_to_bytes() {
        let mut bytes = [0u8; 16];
        bytes[0] = 0x71;
        assert_eq!(copy_cells(&bytes, Expand::B4)[0], 0x1c04);
        assert_eq!(copy_cells(&bytes, Expand::None)[0], 0x71);
    }
}
