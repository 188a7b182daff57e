//! Shared-memory swizzles of TMA, wgmma and tcgen05: XOR patterns on absolute shared-memory addresses.

/// A swizzle pattern.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Swizzle {
    /// Addresses stay.
    None,
    /// Bit 4 ^= bit 7.
    B32,
    /// Bits 4, 5 ^= bits 7, 8.
    B64,
    /// Bits 4 to 6 ^= bits 7 to 9.
    B128,
    /// 128 bytes in atoms of 32: bits 5, 6 ^= bits 7, 8.
    B128Atom32,
    /// As `B128Atom32`, and the 8-byte halves of each 16 bytes swap on odd 128-byte lines (TMA only).
    B128Atom32Flip8,
    /// 128 bytes in atoms of 64: bit 6 ^= bit 7 (TMA only).
    B128Atom64,
}

impl Swizzle {
    /// Bytes of one row of the pattern; 16 without swizzle.
    #[must_use]
    pub fn span(self) -> u32 {
        match self {
            Self::None => 16,
            Self::B32 => 32,
            Self::B64 => 64,
            Self::B128 | Self::B128Atom32 | Self::B128Atom32Flip8 | Self::B128Atom64 => 128,
        }
    }

    /// Applies the pattern to a byte address; `base` is the number of the 128-byte line that counts as line 0 (0 for patterns
    /// that start on their natural boundary).
    #[must_use]
    #[inline]
    pub fn apply(self, address: u32, base: u32) -> u32 {
        let line = (address >> 7).wrapping_sub(base);
        match self {
            Self::None => address,
            Self::B32 => address ^ (line & 1) << 4,
            Self::B64 => address ^ (line & 3) << 4,
            Self::B128 => address ^ (line & 7) << 4,
            Self::B128Atom32 => address ^ (line & 3) << 5,
            Self::B128Atom32Flip8 => address ^ (line & 3) << 5 ^ (line & 1) << 3,
            Self::B128Atom64 => address ^ (line & 1) << 6,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pattern_is_its_own_inverse_and_stays_in_its_row() {
        for s in [
            Swizzle::None,
            Swizzle::B32,
            Swizzle::B64,
            Swizzle::B128,
            Swizzle::B128Atom32,
            Swizzle::B128Atom32Flip8,
            Swizzle::B128Atom64,
        ] {
            for address in 0..4096 {
                let there = s.apply(address, 0);
                assert_eq!(s.apply(there, 0), address);
                assert_eq!(there & !127, address & !127);
                if s != Swizzle::None {
                    assert_eq!(there & !(s.span() - 1), address & !(s.span() - 1));
                }
            }
        }
    }

    #[test]
    fn chunks_move_by_the_number_of_their_line() {
        // Line 5, chunk 2: 128B swizzle puts it at chunk 2 ^ 5 = 7.
        assert_eq!(Swizzle::B128.apply(5 * 128 + 2 * 16 + 3, 0), 5 * 128 + 7 * 16 + 3);
        assert_eq!(Swizzle::B64.apply(5 * 128 + 2 * 16, 0), 5 * 128 + 3 * 16);
        assert_eq!(Swizzle::B32.apply(5 * 128 + 2 * 16, 0), 5 * 128 + 3 * 16);
        assert_eq!(Swizzle::B128Atom32.apply(5 * 128 + 2 * 16, 0), 5 * 128);
        // With line 1 as line 0.
        assert_eq!(Swizzle::B128.apply(5 * 128, 1), 5 * 128 + 4 * 16);
    }
}
