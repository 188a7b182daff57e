//! Shared-memory matrix descriptors of wgmma (sm_90) and tcgen05 (sm_100), and the addresses they describe.
//!
//! Layout formulas, in bytes, for 16-byte units (T elements each) with W the swizzle span:
//!
//! | major, swizzle | address of a unit before the XOR |
//! |---|---|
//! | K, W = 32, 64, 128 | (mn / 8)·SBO + (mn % 8)·W + unit·16, unit along K |
//! | K, none | (mn / 8)·SBO + (mn % 8)·16 + unit·LBO |
//! | MN, W | (unit / (W/16))·LBO + (unit % (W/16))·16 + (k % 8)·W + (k / 8)·SBO, unit along MN |
//! | MN, none | unit·SBO + (k % 8)·16 + (k / 8)·LBO |
//! | MN, 128B with 32B atoms | as W = 128, with k in groups of 4: (k % 4)·128 + (k / 4)·SBO |
//!
//! Source: PTX ISA 9.1, 9.7.15.5.1 and 9.7.16.3 to 4 (canonical layouts).

use super::swizzle::Swizzle;
use super::{TensorError, invalid, unsupported};

/// Which axis runs along contiguous memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Major {
    /// K is contiguous.
    K,
    /// M (or N) is contiguous: the "transposed" operands.
    Mn,
}

/// A decoded descriptor; addresses and offsets in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SmemDesc {
    /// First byte, within the 18-bit window of the CTA's shared memory.
    pub start: u32,
    /// Leading-dimension byte offset.
    pub leading: u32,
    /// Stride-dimension byte offset.
    pub stride: u32,
    /// Number of the 128-byte line that counts as line 0 of the swizzle pattern.
    pub base_offset: u32,
    /// Swizzle pattern.
    pub swizzle: Swizzle,
}

/// Bytes of shared memory that a descriptor can address.
pub const WINDOW: u32 = 1 << 18;

fn field(bits: u64, at: u32) -> u32 {
    ((bits >> at & 0x3fff) << 4) as u32
}

impl SmemDesc {
    /// Decodes an sm_90 (wgmma) descriptor.
    ///
    /// # Errors
    /// `Invalid` when bits that must be zero are set.
    pub fn decode_sm90(bits: u64) -> Result<Self, TensorError> {
        // Bits 14-15, 30-31, 46-48 and 52-61 are unused; bits 46-61 carry a version and modes on sm_100.
        if bits & 0x3ff1_c000_0000_0000 != 0 {
            return invalid(format!(
                "matrix descriptor {bits:#018x} has bits set that sm_90 does not use (an sm_100 descriptor?)"
            ));
        }
        let swizzle = match bits >> 62 {
            0 => Swizzle::None,
            1 => Swizzle::B128,
            2 => Swizzle::B64,
            _ => Swizzle::B32,
        };
        Ok(Self::parts(bits, swizzle))
    }

    /// Decodes an sm_100 (tcgen05) descriptor.
    ///
    /// # Errors
    /// `Invalid` for a wrong version field, set reserved bits or an unknown swizzle; `Unsupported` for the absolute-address mode.
    pub fn decode_sm100(bits: u64) -> Result<Self, TensorError> {
        if bits >> 46 & 7 != 1 {
            return invalid(format!(
                "matrix descriptor {bits:#018x} has {} in bits 46-48, sm_100 wants 1 (an sm_90 descriptor?)",
                bits >> 46 & 7
            ));
        }
        if bits >> 53 & 0xff != 0 {
            return invalid(format!("matrix descriptor {bits:#018x} has reserved bits 53-60 set"));
        }
        if bits >> 52 & 1 != 0 {
            return unsupported("a matrix descriptor with an absolute leading-dimension address (bit 52)");
        }
        let swizzle = match bits >> 61 {
            0 => Swizzle::None,
            1 => Swizzle::B128Atom32,
            2 => Swizzle::B128,
            4 => Swizzle::B64,
            6 => Swizzle::B32,
            other => return invalid(format!("matrix descriptor {bits:#018x} has swizzle mode {other}")),
        };
        Ok(Self::parts(bits, swizzle))
    }

    fn parts(bits: u64, swizzle: Swizzle) -> Self {
        Self {
            start: field(bits, 0),
            leading: field(bits, 16),
            stride: field(bits, 32),
            base_offset: (bits >> 49 & 7) as u32,
            swizzle,
        }
    }

    /// The address of a 16-byte unit: for K-major the `unit`-th along K of row (or column) `line`; for MN-major the `unit`-th
    /// along M (or N) of k-row `line`.
    #[must_use]
    #[inline]
    pub fn unit_address(&self, major: Major, line: u32, unit: u32) -> u32 {
        let span = self.swizzle.span();
        let offset = match (major, self.swizzle) {
            (Major::K, Swizzle::None) => line / 8 * self.stride + line % 8 * 16 + unit * self.leading,
            (Major::K, _) => line / 8 * self.stride + line % 8 * span + unit * 16,
            (Major::Mn, Swizzle::None) => unit * self.stride + line % 8 * 16 + line / 8 * self.leading,
            (Major::Mn, Swizzle::B128Atom32) => {
                unit / 8 * self.leading + unit % 8 * 16 + line % 4 * 128 + line / 4 * self.stride
            }
            (Major::Mn, _) => {
                let units = span / 16;
                unit / units * self.leading + unit % units * 16 + line % 8 * span + line / 8 * self.stride
            }
        };
        self.swizzle.apply(self.start.wrapping_add(offset) & (WINDOW - 1), self.base_offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Evaluates a canonical CuTe layout `((a, b, m), (8, k)) : strides` by plain mixed-radix arithmetic.
    fn cute(index: u32, shape: &[u32], stride: &[u32]) -> u32 {
        let mut rest = index;
        let mut sum = 0;
        for (i, (s, d)) in shape.iter().zip(stride).enumerate() {
            let digit = if i + 1 == shape.len() { rest } else { rest % s };
            rest /= s;
            sum += digit * d;
        }
        sum
    }

    #[test]
    fn canonical_layouts_of_the_manual_give_the_same_addresses() {
        // In 16-bit elements, T = 8; the manual's strides are in elements.
        let t = 8;
        for (swizzle, width) in [(Swizzle::None, 1), (Swizzle::B32, 2), (Swizzle::B64, 4), (Swizzle::B128, 8)] {
            let (leading, stride) = (4096u32, 16384u32);
            let desc = SmemDesc { start: 0, leading, stride, base_offset: 0, swizzle };
            for mn in 0..64u32 {
                for k in (0..16u32).step_by(8) {
                    // K-major: ((8, m), (T, 2k)) : ((wT, SBO), (1, LBO or T))
                    let along = if width == 1 { leading / 2 } else { t };
                    let element = cute(mn, &[8, 1], &[width * t, stride / 2]) + cute(k, &[t, 2], &[1, along]);
                    let want = swizzle.apply(2 * element, 0);
                    assert_eq!(desc.unit_address(Major::K, mn, k / t), want, "{swizzle:?} {mn} {k}");
                }
            }
            for mn in (0..128u32).step_by(8) {
                for k in 0..16u32 {
                    // MN-major: ((T, w, m), (8, k)) : ((1, T, LBO), (wT, SBO)); without swizzle the roles of LBO and SBO swap.
                    let element = if width == 1 {
                        cute(mn, &[t, 1], &[1, stride / 2]) + cute(k, &[8, 1], &[t, leading / 2])
                    } else {
                        cute(mn, &[t, width, 1], &[1, t, leading / 2]) + cute(k, &[8, 1], &[width * t, stride / 2])
                    };
                    let want = swizzle.apply(2 * element, 0);
                    assert_eq!(desc.unit_address(Major::Mn, k, mn / t), want, "{swizzle:?} {mn} {k}");
                }
            }
        }
    }

    #[test]
    fn the_two_encodings_are_told_apart() {
        let sm100 = 0x4000_4040_0000_0000u64 | 0x400;
        let desc = SmemDesc::decode_sm100(sm100).unwrap();
        assert_eq!(desc, SmemDesc { start: 0x4000, leading: 0, stride: 1024, base_offset: 0, swizzle: Swizzle::B128 });
        assert!(SmemDesc::decode_sm90(sm100).is_err());
        let sm90 = 1u64 << 62 | 64 << 32 | 1 << 16 | 0x400;
        let desc = SmemDesc::decode_sm90(sm90).unwrap();
        assert_eq!(desc, SmemDesc { start: 0x4000, leading: 16, stride: 1024, base_offset: 0, swizzle: Swizzle::B128 });
        assert!(SmemDesc::decode_sm100(sm90).is_err());
    }

    #[test]
    fn a_k_step_inside_the_atom_keeps_the_pattern() {
        // Advancing the start address by 32 bytes reads the third and fourth unit of the same rows.
        let desc = SmemDesc { start: 0x8000, leading: 16, stride: 1024, base_offset: 0, swizzle: Swizzle::B128 };
        let stepped = SmemDesc { start: 0x8020, ..desc };
        for row in 0..64 {
            for unit in 0..2 {
                assert_eq!(stepped.unit_address(Major::K, row, unit), desc.unit_address(Major::K, row, unit + 2));
            }
        }
    }
}
