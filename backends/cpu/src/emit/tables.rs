//! Codes become 16-bit floats by tables that stay in vector registers: sixteen entries, looked up sixteen at a time.
//!
//! Within a block, all codes have one factor, so a code means one value. A code of four bits has sixteen of them. One of
//! e4m3 has 256, but those of one fraction differ by powers of two, which rounding does not see while nothing leaves the
//! normal range: sixteen entries (eight fractions of normal codes, eight subnormal codes), and the exponent is added to
//! the bits of what was looked up.

use super::{Emit, Lanes, lanes::lane_order, plain};
use cranelift_codegen::ir::condcodes::{FloatCC, IntCC};
use cranelift_codegen::ir::{InstBuilder, Type, Value, types};
use moec_ir::DType;
use moec_ir::quant::Code;

/// Low and high bytes of sixteen 16-bit floats.
#[derive(Clone, Copy)]
pub(super) struct Table {
    low: Value,
    high: Value,
}

/// The exponent of e4m3 whose values the table of normal codes is made for.
const MIDDLE: u32 = 8;
/// Biased exponents of factors with which no product of an e4m3 code leaves the normal range of bf16.
const SAFE: (i64, i64) = (32, 222);

impl Emit<'_> {
    /// The values of all sixteen codes times `factor`, rounded to a 16-bit type; `is_exact` where rounding to bf16 changes
    /// nothing.
    pub(super) fn table_of_four_bits(&mut self, code: Code, factor: Value, round: DType, is_exact: bool) -> Table {
        let values: Vec<f32> = (0..16).map(|c| code.decode(&[c], 0)).collect();
        if code == Code::Int4 {
            let [a, b] = [0, 8].map(|i| self.rounded_products(&values[i..i + 8], factor, round, is_exact));
            return self.split_table(a, b);
        }
        // Of e2m1, the upper eight are the negatives of the lower.
        let a = self.rounded_products(&values[..8], factor, round, is_exact);
        let sign = self.shorts(0x8000);
        let b = self.b.ins().bxor(a, sign);
        self.split_table(a, b)
    }

    /// The entries for e4m3 codes times `factor` as bf16, and whether they can be used: else an exponent leaves the range.
    pub(super) fn table_of_e4m3(&mut self, factor: Value, is_exact: bool) -> (Table, Value) {
        let normal: Vec<f32> = (0..8).map(|m| Code::E4M3.decode(&[m | (MIDDLE as u8) << 3], 0)).collect();
        let subnormal: Vec<f32> = (0..8).map(|m| Code::E4M3.decode(&[m], 0)).collect();
        let a = self.rounded_products(&normal, factor, DType::BF16, is_exact);
        let middle = self.shorts((MIDDLE << 7) as u16);
        let a = self.b.ins().isub(a, middle);
        let b = self.rounded_products(&subnormal, factor, DType::BF16, is_exact);
        let bits = self.bits_of(factor);
        let exponent = self.down(bits, 23);
        let exponent = self.and(exponent, 0xff);
        let exponent = self.b.ins().iadd_imm_s(exponent, -SAFE.0);
        let most = self.bits(Lanes::One, (SAFE.1 - SAFE.0) as u32);
        let is_safe = self.b.ins().icmp(IntCC::UnsignedLessThanOrEqual, exponent, most);
        (self.split_table(a, b), is_safe)
    }

    /// Eight products with `factor` as the bits of a 16-bit float type, in lanes of 16 bits.
    fn rounded_products(&mut self, values: &[f32], factor: Value, round: DType, is_exact: bool) -> Value {
        // Whatever NaN the factor is, the products' fractions leave room to be rounded up.
        let nan = self.compare(FloatCC::Unordered, factor, factor);
        let quiet = self.float(Lanes::One, f32::NAN);
        let factor = self.pick(nan, quiet, factor);
        let four = self.splat(Lanes::Four, factor);
        let halves = [0, 4].map(|i| {
            let data: Vec<u8> = values[i..i + 4].iter().flat_map(|v| v.to_le_bytes()).collect();
            let constant = self.b.func.dfg.constants.insert(data.into());
            let v = self.b.ins().vconst(types::F32X4, constant);
            let v = self.b.ins().fmul(v, four);
            if round == DType::F16 {
                return self.narrow_f16(v);
            }
            let mut bits = self.bits_of(v);
            if !is_exact {
                let odd = self.down(bits, 16);
                let odd = self.and(odd, 1);
                bits = self.add_bits(bits, 0x7fff);
                bits = self.b.ins().iadd(bits, odd);
            }
            self.down(bits, 16)
        });
        self.b.ins().unarrow(halves[0], halves[1])
    }

    /// A table of the sixteen 16-bit values in two vectors.
    fn split_table(&mut self, a: Value, b: Value) -> Table {
        let byte = self.shorts(0xff);
        let [low_a, low_b] = [a, b].map(|v| self.b.ins().band(v, byte));
        let [high_a, high_b] = [a, b].map(|v| self.down(v, 8));
        Table { low: self.b.ins().unarrow(low_a, low_b), high: self.b.ins().unarrow(high_a, high_b) }
    }

    /// Looks up 16 codes of four bits at `from` (8 bytes), or 32 (16 bytes), and stores their values.
    pub(super) fn look_up_four_bits(&mut self, table: Table, n: u64, from: Value, to: Value) {
        let bytes = if n == 32 {
            self.b.ins().load(types::I8X16, plain(), from, 0)
        } else {
            let word = self.b.ins().load(types::I64, plain(), from, 0);
            let pair = self.b.ins().scalar_to_vector(types::I64X2, word);
            self.cast(pair, types::I8X16)
        };
        let nibble = self.bytes(15);
        let low = self.b.ins().band(bytes, nibble);
        let shorts = self.cast(bytes, types::I16X8);
        let high = self.down(shorts, 4);
        let high = self.cast(high, types::I8X16);
        let high = self.b.ins().band(high, nibble);
        for (i, upper) in [false, true].into_iter().take(n as usize / 16).enumerate() {
            let index = self.interleave(low, high, 1, upper);
            let [low, high] = [table.low, table.high].map(|t| self.entries(t, index));
            for (j, upper) in [false, true].into_iter().enumerate() {
                let values = self.interleave(low, high, 1, upper);
                self.b.ins().store(plain(), values, to, (i * 32 + j * 16) as i32);
            }
        }
    }

    /// Looks up 16 codes of e4m3 at `from`, and stores their values as bf16.
    pub(super) fn look_up_e4m3(&mut self, table: Table, from: Value, to: Value) {
        let codes = self.b.ins().load(types::I8X16, plain(), from, 0);
        let zero = self.bytes(0);
        let sign = self.bytes(0x80);
        let ones = self.bytes(0xff);
        // NaN is the largest magnitude: its value is made all ones, and nothing is added.
        let magnitude = self.b.ins().bor(codes, sign);
        let nan = self.b.ins().icmp(IntCC::Equal, magnitude, ones);
        let mask = self.bytes(7);
        let fraction = self.b.ins().band(codes, mask);
        let mask = self.bytes(0x78);
        let exponent = self.b.ins().band(codes, mask);
        let subnormal = self.b.ins().icmp(IntCC::Equal, exponent, zero);
        let exponent = self.b.ins().band_not(exponent, nan);
        let eight = self.bytes(8);
        let second = self.b.ins().band(subnormal, eight);
        let index = self.b.ins().bor(fraction, second);
        let sign = self.b.ins().band(codes, sign);
        let low = self.entries(table.low, index);
        let low = self.b.ins().bor(low, nan);
        let high = self.entries(table.high, index);
        let high = self.b.ins().bxor(high, sign);
        let high = self.b.ins().bor(high, nan);
        for (i, upper) in [false, true].into_iter().enumerate() {
            let values = self.interleave(low, high, 1, upper);
            let values = self.cast(values, types::I16X8);
            // Bits 3 to 6 of the upper byte of 16; they belong in bits 7 to 10.
            let exponents = self.interleave(zero, exponent, 1, upper);
            let exponents = self.cast(exponents, types::I16X8);
            let exponents = self.down(exponents, 4);
            let values = self.b.ins().iadd(values, exponents);
            self.b.ins().store(plain(), values, to, i as i32 * 16);
        }
    }

    /// The bytes of `table` at indices below sixteen.
    fn entries(&mut self, table: Value, index: Value) -> Value {
        // As `swizzle`, which on x86 has to care for other indices.
        if self.x86 { self.b.ins().x86_pshufb(table, index) } else { self.b.ins().swizzle(table, index) }
    }

    fn cast(&mut self, v: Value, ty: Type) -> Value {
        self.b.ins().bitcast(ty, lane_order(), v)
    }

    fn bytes(&mut self, x: u8) -> Value {
        let constant = self.b.func.dfg.constants.insert(vec![x; 16].into());
        self.b.ins().vconst(types::I8X16, constant)
    }

    fn shorts(&mut self, x: u16) -> Value {
        let data: Vec<u8> = x.to_le_bytes().into_iter().cycle().take(16).collect();
        let constant = self.b.func.dfg.constants.insert(data.into());
        self.b.ins().vconst(types::I16X8, constant)
    }
}
