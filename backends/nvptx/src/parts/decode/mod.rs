//! Codes of quantised weights become floats, in registers.
//!
//! The value of an element is `round(code · (scale · global))`: two products in f32, each rounded once, then one rounding
//! to the type of the parameter. Where code times scale is exact in f32 whatever they are, the last rounding is the only
//! one, and a product of 16-bit floats makes the same bits: [`Decoder::packed`].

mod panel;

pub use panel::CodedPanel;

use crate::builder::{Builder, F32, I32, MmaType};
use moec_ir::DType;
use moec_ir::act_quant::ActQuant;
use moec_ir::quant::{Code, ScaleCode};
use moec_ir::target::Features;
use moec_ir::tile::PanelQuant;

/// How the codes of one panel are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decoder {
    code: Code,
    scale: ScaleCode,
    has_global: bool,
    round: DType,
    /// Which conversions the target has.
    features: Features,
}

impl Decoder {
    pub fn new(q: &PanelQuant, features: Features) -> Decoder {
        let (code, scale) = (q.format.code, q.format.scale);
        Decoder { code, scale, has_global: q.global.is_some(), round: q.round, features }
    }

    /// For rows of activations whose values become `round`.
    pub fn of_rows(q: ActQuant, round: DType, features: Features) -> Decoder {
        let format = q.stored();
        let has_global = q.has_global() || q.has_row();
        Decoder { code: format.code, scale: format.scale, has_global, round, features }
    }

    /// The pairs of values of a word of codes, all of which have the factor `scale`: two values for each byte of 4-bit
    /// codes, one for each byte of 8-bit ones, in the order of the codes.
    pub fn pairs<'c>(&self, c: &'c Builder<'c>, word: I32<'c>, scale: F32<'c>) -> Vec<I32<'c>> {
        let ty = self.half(c);
        if self.packed() {
            let scale = c.pack_pair(ty, scale, scale);
            // Adding -0 changes nothing, not even the sign of a zero.
            let nothing = c.i32(0x8000_8000);
            return self.narrow(c, ty, word).into_iter().map(|x| c.fma_pairs(ty, x, scale, nothing)).collect();
        }
        let values = self.values(c, word);
        let scaled = values.chunks_exact(2).map(|v| c.scale_pair([v[0], v[1]], scale));
        scaled.map(|[low, high]| c.pack_pair(ty, low, high)).collect()
    }

    /// The 16-bit type of the values; a kernel that makes pairs of others cannot be built.
    fn half<'c>(&self, c: &'c Builder<'c>) -> MmaType {
        MmaType::of(self.round).unwrap_or_else(|| {
            c.fail("codes whose values have more than 16 bits cannot be made pairs");
            MmaType::Bf16
        })
    }

    /// As [`Decoder::pairs`], with a factor for each element.
    pub fn mixed_pairs<'c>(&self, c: &'c Builder<'c>, word: I32<'c>, scales: &[F32<'c>]) -> Vec<I32<'c>> {
        let ty = self.half(c);
        let values: Vec<F32> = self.values(c, word).into_iter().zip(scales).map(|(v, &s)| v * s).collect();
        values.chunks(2).map(|v| c.pack_pair(ty, v[0], v[1])).collect()
    }

    /// The codes of a word as f32, exactly, in order.
    pub fn values<'c>(&self, c: &'c Builder<'c>, word: I32<'c>) -> Vec<F32<'c>> {
        match self.code {
            Code::E4M3 => [0, 1].iter().flat_map(|&half| e4m3_pair(c, word, half, self.features.e4m3)).collect(),
            Code::E5M2 => e5m2_pairs(c, word).iter().flat_map(|&p| c.widen_pair(MmaType::F16, p)).collect(),
            Code::E2M1 if self.features.e2m1 => {
                (0..4).flat_map(|byte| c.widen_pair(MmaType::F16, c.e2m1_pair(word >> (8 * byte)))).collect()
            }
            Code::E2M1 => {
                self.narrow(c, MmaType::Bf16, word).iter().flat_map(|&p| c.widen_pair(MmaType::Bf16, p)).collect()
            }
            Code::Int16 => {
                c.fail("no codes of 16 bits are read");
                Vec::new()
            }
            Code::Int4 => nibble_pairs(c, word)
                .iter()
                // 128 + u as bf16, in each half.
                .flat_map(|&u| c.widen_pair(MmaType::Bf16, u | 0x4300_4300))
                .map(|x| x - 136.0)
                .collect(),
        }
    }

    /// The element of a byte at an address: `odd` tells which of two 4-bit codes it is.
    pub fn value<'c>(&self, c: &'c Builder<'c>, byte: I32<'c>, odd: I32<'c>, scale: F32<'c>) -> F32<'c> {
        let word = if self.code.bits() == 4 { byte >> (odd << 2) } else { byte };
        c.round(self.round, self.values(c, word)[0] * scale)
    }

    /// The factor of a block from its scale's own bits: `scale · global`.
    pub fn scale<'c>(&self, c: &'c Builder<'c>, bits: I32<'c>, global: Option<F32<'c>>) -> F32<'c> {
        let scale = scale_value(c, self.scale, bits, self.features.e4m3);
        global.map_or(scale, |g| scale * g)
    }

    /// Whether 16-bit products make the same bits as f32 ones: when every scale is a value of the type and no product
    /// has more than 24 significant bits, so that the only rounding is the one to the type.
    fn packed(&self) -> bool {
        let fits = match (self.round, self.scale) {
            (DType::BF16, ScaleCode::BF16 | ScaleCode::E8M0 | ScaleCode::E4M3) => true,
            (DType::F16, ScaleCode::F16 | ScaleCode::E4M3) => true,
            (
                DType::BF16 | DType::F16 | DType::F32 | DType::F64 | DType::I32 | DType::I64 | DType::U8,
                ScaleCode::F32 | ScaleCode::BF16 | ScaleCode::F16 | ScaleCode::E8M0 | ScaleCode::E4M3,
            ) => false,
        };
        // Where the target converts e2m1 to f16, two conversions on to bf16 and f32 products in pairs take fewer
        // instructions than tables.
        let tables = self.code == Code::E2M1 && self.round == DType::BF16;
        fits && !self.has_global && self.code.bits() == 4 && !(tables && self.features.e2m1)
    }

    /// The codes of a word of 4-bit codes as pairs of 16-bit floats, exactly, in order.
    fn narrow<'c>(&self, c: &'c Builder<'c>, ty: MmaType, word: I32<'c>) -> Vec<I32<'c>> {
        match (self.code, ty) {
            (Code::Int4, _) => {
                // u + 128 (bf16) or u + 1024 (f16), of which the units are the lowest bits; then less by that and 8.
                let (base, one, less) = match ty {
                    MmaType::Bf16 => (0x4300_4300, 0x3f80_3f80, 0xc308_c308),
                    MmaType::F16 => (0x6400_6400, 0x3c00_3c00, 0xe408_e408),
                };
                let exact = |u: I32<'c>| c.fma_pairs(ty, u | base, c.i32(one), c.i32(less));
                nibble_pairs(c, word).into_iter().map(exact).collect()
            }
            (Code::E2M1, MmaType::F16) if self.features.e2m1 => {
                (0..4).map(|byte| c.e2m1_pair(word >> (8 * byte))).collect()
            }
            (Code::E4M3 | Code::E5M2 | Code::E2M1 | Code::Int16, _) => {
                [word, word >> 16].into_iter().flat_map(|w| e2m1_pairs(c, ty, w)).collect()
            }
        }
    }
}

/// What [`widen_codes`] gives stands for so many times itself.
pub fn widened_unit(code: Code) -> f32 {
    match code {
        Code::E4M3 | Code::E5M2 | Code::Int16 => 1.0,
        Code::E2M1 => 64.0,
        Code::Int4 => 512.0,
    }
}

/// The eight 4-bit codes of a word as FP8 e4m3 codes, in order, of values that are too small by a power of two
/// ([`widened_unit`]): bits of e2m1 are the lowest of e4m3's exponent and the highest of its mantissa, magnitudes of INT4 are
/// e4m3's least numbers.
pub fn widen_codes<'c>(c: &'c Builder<'c>, code: Code, word: I32<'c>) -> [I32<'c>; 2] {
    // Codes 0, 2, 4, 6, and those between.
    let (even, odd) = match code {
        Code::E4M3 | Code::E5M2 | Code::Int16 => {
            c.fail("codes of 8 or 16 bits do not become FP8");
            (word, word)
        }
        Code::E2M1 => {
            let placed = |sign: I32<'c>, rest: I32<'c>| (rest & 0x1c1c_1c1c) | (sign & 0x8080_8080);
            (placed(word << 4, word << 2), placed(word, word >> 2))
        }
        Code::Int4 => {
            // Of u below 8, 0x80 and 8 - u, which is not(u) + 1; else u - 8.
            let placed = |digits: I32<'c>, sign: I32<'c>| {
                let is_negative = (sign & 0x0101_0101) ^ 0x0101_0101;
                is_negative * 0x81 + ((digits & 0x0707_0707) ^ (is_negative * 7))
            };
            (placed(word, word >> 3), placed(word >> 4, word >> 7))
        }
    };
    [0x5140, 0x7362].map(|selector| c.permute_bytes(even, odd, c.i32(selector)))
}

/// The value of a scale from its own bits; whether the machine converts e4m3.
pub fn scale_value<'c>(c: &'c Builder<'c>, code: ScaleCode, bits: I32<'c>, has_e4m3: bool) -> F32<'c> {
    match code {
        ScaleCode::F32 => bits.as_f32(),
        ScaleCode::BF16 => (bits << 16).as_f32(),
        ScaleCode::F16 => c.widen_pair(MmaType::F16, bits)[0],
        ScaleCode::E8M0 => {
            // 2^-127 is subnormal; 255 is NaN.
            let power = c.select(bits.eq(0), c.i32(1 << 22), bits << 23);
            c.select(bits.eq(255), c.i32(0x7fc0_0000), power).as_f32()
        }
        ScaleCode::E4M3 => e4m3_pair(c, bits, 0, has_e4m3)[0],
    }
}

/// The value of byte `i` of a word of e8m0 scales, as [`scale_value`] in fewer instructions.
pub fn e8m0_byte<'c>(c: &'c Builder<'c>, word: I32<'c>, i: u32) -> F32<'c> {
    let exponent = if i == 3 { word >> 1 } else { word << (23 - 8 * i) } & 0x7f80_0000;
    // 2^-127 is subnormal; infinity stands where NaN is meant, and times 0 it is.
    let power = exponent.signed_max(1 << 22).as_f32();
    power.fma(c.f32(0.0), power)
}

/// Two FP8 e4m3 codes, in the low or the high half of a word.
fn e4m3_pair<'c>(c: &'c Builder<'c>, word: I32<'c>, half: u32, is_converted: bool) -> [F32<'c>; 2] {
    if is_converted {
        return c.widen_pair(MmaType::F16, c.e4m3_pair(word >> (16 * half)));
    }
    // As f16 with the exponent as it stands, 2^8 too small; the largest magnitude is the code of NaN.
    let bytes = c.permute_bytes(word, c.i32(0), c.i32(if half == 0 { 0x1404 } else { 0x3424 }));
    let pair = (bytes & 0x8000_8000) | ((bytes & 0x7f00_7f00) >> 1);
    c.widen_pair(MmaType::F16, pair).map(|x| {
        let x = x * 256.0;
        c.select(x.abs().gt(448.0), c.f32(f32::NAN), x)
    })
}

/// The number of the block that row or column `at` lies in; blocks of 0 are the whole axis.
pub fn block_of<'c>(c: &'c Builder<'c>, at: I32<'c>, block: u64) -> I32<'c> {
    match u32::try_from(block) {
        Ok(0) | Err(_) => c.i32(0),
        Ok(block) => at / block,
    }
}

/// FP8 e5m2 is the upper byte of f16.
fn e5m2_pairs<'c>(c: &'c Builder<'c>, word: I32<'c>) -> [I32<'c>; 2] {
    [0x1404, 0x3424].map(|selector| c.permute_bytes(word, c.i32(0), c.i32(selector)))
}

/// The eight nibbles of a word, two to a word: in bits 0..4 and 16..20.
fn nibble_pairs<'c>(c: &'c Builder<'c>, word: I32<'c>) -> Vec<I32<'c>> {
    let high = word >> 4;
    // Byte i of the word gives nibble 2i, of `high` nibble 2i + 1.
    [0x0400, 0x1501, 0x2602, 0x3703]
        .iter()
        .map(|&selector| c.permute_bytes(word, high, c.i32(selector)) & 0x000f_000f)
        .collect()
}

/// The four FP4 e2m1 codes in bits 0..16 as two pairs, by tables of bytes.
fn e2m1_pairs<'c>(c: &'c Builder<'c>, ty: MmaType, word: I32<'c>) -> [I32<'c>; 2] {
    // Upper bytes of 0, 0.5, 1, 1.5, 2, 3, 4, 6; of f16 the lower ones are zero.
    let (upper, lower) = match ty {
        MmaType::Bf16 => ([0x3f3f_3f00, 0x4040_4040], Some([0xc080_0000, 0xc080_4000])),
        MmaType::F16 => ([0x3e3c_3800, 0x4644_4240], None),
    };
    let magnitude = word & 0x7777;
    let look_up = |table: [u32; 2]| c.permute_bytes(c.i32(table[0]), c.i32(table[1]), magnitude);
    // A digit with its highest bit set copies the sign of the byte that it names: 0xff instead of 0x80.
    let signs = c.permute_bytes(c.i32(0x8080_8080), c.i32(0x8080_8080), word);
    let upper = look_up(upper) | ((signs << 1) & 0x8080_8080);
    match lower {
        None => [0x1404, 0x3424].map(|selector| c.permute_bytes(upper, c.i32(0), c.i32(selector))),
        Some(table) => {
            let lower = look_up(table);
            [0x5140, 0x7362].map(|selector| c.permute_bytes(lower, upper, c.i32(selector)))
        }
    }
}
