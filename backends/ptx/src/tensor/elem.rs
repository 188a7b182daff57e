//! Element types of matrix operands, and decoding of packed elements to f32.
//!
//! Every element type except f64 is exact in f32, the 8-bit integers included; products of two of them are exact in f32 as well
//! (at most 22 significant bits), so one f32 kernel serves all types.

use crate::numeric::half;

/// Element type of a multiplicand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Elem {
    /// IEEE half.
    F16,
    /// bfloat16.
    Bf16,
    /// TensorFloat-32: an f32 whose low 13 bits are ignored.
    Tf32,
    /// IEEE double.
    F64,
    /// Signed byte.
    S8,
    /// Unsigned byte.
    U8,
    /// Signed 4-bit integer.
    S4,
    /// Unsigned 4-bit integer.
    U4,
    /// Single bit.
    B1,
    /// 8-bit float, 4 exponent bits.
    E4m3,
    /// 8-bit float, 5 exponent bits.
    E5m2,
    /// 6-bit float, 2 exponent bits.
    E2m3,
    /// 6-bit float, 3 exponent bits.
    E3m2,
    /// 4-bit float.
    E2m1,
}

impl Elem {
    /// The element type that a PTX type suffix (without dot) names.
    #[must_use]
    pub fn from_ptx(name: &str) -> Option<Self> {
        Some(match name {
            "f16" => Self::F16,
            "bf16" => Self::Bf16,
            "tf32" => Self::Tf32,
            "f64" => Self::F64,
            "s8" => Self::S8,
            "u8" => Self::U8,
            "s4" => Self::S4,
            "u4" => Self::U4,
            "b1" => Self::B1,
            "e4m3" => Self::E4m3,
            "e5m2" => Self::E5m2,
            "e2m3" => Self::E2m3,
            "e3m2" => Self::E3m2,
            "e2m1" => Self::E2m1,
            _ => return None,
        })
    }

    /// Width of the value in bits, without any container.
    #[must_use]
    pub fn bits(self) -> u32 {
        match self {
            Self::F64 => 64,
            Self::Tf32 => 32,
            Self::F16 | Self::Bf16 => 16,
            Self::S8 | Self::U8 | Self::E4m3 | Self::E5m2 => 8,
            Self::E2m3 | Self::E3m2 => 6,
            Self::S4 | Self::U4 | Self::E2m1 => 4,
            Self::B1 => 1,
        }
    }

    /// Whether the type is an integer type (including single bits).
    #[must_use]
    pub fn is_integer(self) -> bool {
        matches!(self, Self::S8 | Self::U8 | Self::S4 | Self::U4 | Self::B1)
    }

    /// The values of all patterns of a type of at most 8 bits, indexed by the pattern (higher index bits ignored).
    #[must_use]
    pub fn byte_table(self) -> Option<&'static [f32; 256]> {
        Some(match self {
            Self::E4m3 => half::e4m3_table(),
            Self::E5m2 => half::e5m2_table(),
            Self::E2m3 => half::e2m3_table(),
            Self::E3m2 => half::e3m2_table(),
            Self::E2m1 => half::e2m1_table(),
            Self::S8 => &S8_VALUES,
            Self::U8 => &U8_VALUES,
            Self::S4 => &S4_VALUES,
            Self::U4 => &U4_VALUES,
            _ => return None,
        })
    }
}

static S8_VALUES: [f32; 256] = integers(8, true);
static U8_VALUES: [f32; 256] = integers(8, false);
static S4_VALUES: [f32; 256] = integers(4, true);
static U4_VALUES: [f32; 256] = integers(4, false);

const fn integers(bits: u32, signed: bool) -> [f32; 256] {
    let mut table = [0f32; 256];
    let mut i = 0;
    while i < 256 {
        let value = (i as i32) & ((1 << bits) - 1);
        let negative = signed && value >> (bits - 1) != 0;
        table[i] = if negative { value - (1 << bits) } else { value } as f32;
        i += 1;
    }
    table
}

/// How elements lie in a 32-bit word or a 16-byte unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packing {
    /// Next to each other, lowest first.
    Dense,
    /// One per byte: 6-bit values in bits 0 to 5, e2m1 in bits 2 to 5 (registers and tensor memory of the f8f6f4 kinds).
    ByteContainer,
    /// Sixteen in the low part of a 16-byte unit, the rest padding (shared memory of the f8f6f4 kinds).
    Padded16,
}

/// How many elements one 32-bit word holds.
#[must_use]
pub fn per_word(elem: Elem, packing: Packing) -> usize {
    match packing {
        Packing::Dense => (32 / elem.bits()) as usize,
        Packing::ByteContainer | Packing::Padded16 => 4,
    }
}

/// How many elements one 16-byte unit of shared memory holds.
#[must_use]
pub fn per_unit(elem: Elem, packing: Packing) -> usize {
    match packing {
        Packing::Dense => (128 / elem.bits()) as usize,
        Packing::ByteContainer | Packing::Padded16 => 16,
    }
}

/// Decodes the elements of a 32-bit word into `out` (as many as [`per_word`] says; `out` may be shorter).
///
/// f64 has no 32-bit form and gives zeros.
#[inline]
pub fn decode_word(word: u32, elem: Elem, packing: Packing, out: &mut [f32]) {
    match elem {
        Elem::F16 => {
            for (i, value) in out.iter_mut().enumerate().take(2) {
                *value = half::f16_to_f32((word >> (16 * i)) as u16);
            }
        }
        Elem::Bf16 => {
            for (i, value) in out.iter_mut().enumerate().take(2) {
                *value = half::bf16_to_f32((word >> (16 * i)) as u16);
            }
        }
        Elem::Tf32 => out[0] = half::tf32_operand(word),
        Elem::B1 => {
            for (i, value) in out.iter_mut().enumerate().take(32) {
                *value = (word >> i & 1) as f32;
            }
        }
        Elem::F64 => out.fill(0.0),
        _ => {
            let Some(table) = elem.byte_table() else { return };
            let (step, shift) = match packing {
                Packing::Dense => (elem.bits(), 0),
                Packing::ByteContainer | Packing::Padded16 => (8, if elem == Elem::E2m1 { 2 } else { 0 }),
            };
            for (i, value) in out.iter_mut().enumerate().take((32 / step) as usize) {
                *value = table[usize::from((word >> (step * i as u32) >> shift) as u8)];
            }
        }
    }
}

/// Decodes a 16-byte unit of shared memory into `out` (as many as [`per_unit`] says).
#[inline]
pub fn decode_unit(unit: &[u8; 16], elem: Elem, packing: Packing, out: &mut [f32]) {
    match (elem, packing) {
        (Elem::E2m1, Packing::Padded16) => {
            let table = half::e2m1_table();
            for (i, value) in out.iter_mut().enumerate().take(16) {
                *value = table[usize::from(unit[i / 2] >> (4 * (i % 2)))];
            }
        }
        (Elem::E2m3 | Elem::E3m2, Packing::Padded16) => {
            let table = if elem == Elem::E2m3 { half::e2m3_table() } else { half::e3m2_table() };
            let mut packed = [0u8; 16];
            packed[..12].copy_from_slice(&unit[..12]);
            let packed = u128::from_le_bytes(packed);
            for (i, value) in out.iter_mut().enumerate().take(16) {
                *value = table[usize::from((packed >> (6 * i)) as u8 & 0x3f)];
            }
        }
        (Elem::E4m3 | Elem::E5m2 | Elem::S8 | Elem::U8, _) => {
            let Some(table) = elem.byte_table() else { return };
            for (value, byte) in out.iter_mut().zip(unit) {
                *value = table[usize::from(*byte)];
            }
        }
        (Elem::Bf16, _) => {
            for (value, pair) in out.iter_mut().zip(unit.chunks_exact(2)) {
                *value = half::bf16_to_f32(u16::from_le_bytes([pair[0], pair[1]]));
            }
        }
        _ => {
            let n = per_word(elem, packing);
            for (values, bytes) in out.chunks_mut(n).zip(unit.chunks_exact(4)) {
                decode_word(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]), elem, packing, values);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn padded_fp4_and_fp6_units_decode_in_order() {
        let mut unit = [0u8; 16];
        for (i, byte) in unit.iter_mut().take(8).enumerate() {
            *byte = (2 * i) as u8 | ((2 * i + 1) as u8) << 4;
        }
        let mut out = [0f32; 16];
        decode_unit(&unit, Elem::E2m1, Packing::Padded16, &mut out);
        assert_eq!(out[..8], [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]);
        assert_eq!(out[15], -6.0);
        let mut packed = 0u128;
        for i in 0..16u128 {
            packed |= (i + 8) << (6 * i);
        }
        unit.copy_from_slice(&packed.to_le_bytes());
        unit[12..].fill(0xff);
        decode_unit(&unit, Elem::E2m3, Packing::Padded16, &mut out);
        assert_eq!(out[0], 1.0);
        assert_eq!(out[15], 3.75);
    }

    #[test]
    fn containers_hold_e2m1_two_bits_up() {
        let mut out = [0f32; 4];
        decode_word(0x1c | 0x08 << 8, Elem::E2m1, Packing::ByteContainer, &mut out);
        assert_eq!(out, [6.0, 1.0, 0.0, 0.0]);
        decode_word(0x0000_3f1f, Elem::E2m3, Packing::ByteContainer, &mut out);
        assert_eq!(out, [7.5, -7.5, 0.0, 0.0]);
    }

    #[test]
    fn integers_keep_their_sign() {
        let mut out = [0f32; 8];
        decode_word(0x80ff_7f01, Elem::S8, Packing::Dense, &mut out[..4]);
        assert_eq!(out[..4], [1.0, 127.0, -1.0, -128.0]);
        decode_word(0xf870_0001, Elem::S4, Packing::Dense, &mut out);
        assert_eq!(out, [1.0, 0.0, 0.0, 0.0, 0.0, 7.0, -8.0, -1.0]);
    }
}
