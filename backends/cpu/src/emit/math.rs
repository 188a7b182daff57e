//! Functions of one f32: inline where they are short, else through [`moec_ir::abi::CpuMath`].

use super::{Emit, Lanes};
use cranelift_codegen::ir::condcodes::FloatCC;
use cranelift_codegen::ir::{InstBuilder, Value};

/// An entry of [`moec_ir::abi::CpuMath`]; the value is its byte offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub(crate) enum MathFn {
    Softplus = 8,
    Tanh = 16,
    Erf = 24,
}

/// Byte offset of `pow` in [`moec_ir::abi::CpuMath`].
const POW: i32 = 32;

/// 1.5·2²³: adding it rounds a float below 2²² to an integer, which then stands in the low bits.
const TO_INTEGER: f32 = 12_582_912.0;
/// ln 2 in two parts; the first has 9 bits, so that its product with an exponent is exact.
const LN2_HIGH: f32 = 0.693_359_4;
const LN2_LOW: f32 = -2.121_944_4e-4;
/// Taylor coefficients 1/n! from n = 7 down to 2: on |r| ≤ ln 2 / 2 the truncation is below 2⁻²⁶ of the value.
const EXP_POLYNOMIAL: [f32; 6] = [1.0 / 5040.0, 1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5];
/// Beyond these e^x is infinite or rounds to 0.
const EXP_MOST: f32 = 89.0;
const EXP_LEAST: f32 = -104.0;

impl Emit<'_> {
    /// `e^x`, within about one unit in the last place; subnormal results, 0, infinity and NaN as they should be.
    ///
    /// `x = n·ln 2 + r`, a polynomial in `r`, and the factor 2ⁿ in two steps so that it may leave the normal range.
    pub fn exp(&mut self, x: Value) -> Value {
        let lanes = self.lanes(x);
        let [most, least] = [EXP_MOST, EXP_LEAST].map(|c| self.float(lanes, c));
        // Comparisons with NaN are false, so NaN passes through both.
        let high = self.compare(FloatCC::GreaterThan, x, most);
        let x = self.pick(high, most, x);
        let low = self.compare(FloatCC::LessThan, x, least);
        let x = self.pick(low, least, x);

        let magic = self.float(lanes, TO_INTEGER);
        let log2e = self.float(lanes, std::f32::consts::LOG2_E);
        let shifted = self.fma(x, log2e, magic);
        let n = self.b.ins().fsub(shifted, magic);
        let minus_high = self.float(lanes, -LN2_HIGH);
        let r = self.fma(n, minus_high, x);
        let minus_low = self.float(lanes, -LN2_LOW);
        let r = self.fma(n, minus_low, r);

        let mut p = self.float(lanes, EXP_POLYNOMIAL[0]);
        for c in &EXP_POLYNOMIAL[1..] {
            let c = self.float(lanes, *c);
            p = self.fma(p, r, c);
        }
        let square = self.b.ins().fmul(r, r);
        let p = self.fma(p, square, r);
        let one = self.float(lanes, 1.0);
        let p = self.b.ins().fadd(p, one);

        let bits = self.bits_of(shifted);
        let n = self.add_bits(bits, 0u32.wrapping_sub(TO_INTEGER.to_bits()));
        let half = self.b.ins().sshr_imm_u(n, 1);
        let rest = self.b.ins().isub(n, half);
        let [a, b] = [half, rest].map(|n| {
            let biased = self.add_bits(n, 127);
            let bits = self.up(biased, 23);
            self.of_bits(bits)
        });
        let p = self.b.ins().fmul(p, a);
        self.b.ins().fmul(p, b)
    }

    /// `1 / (1 + e^-x)`
    pub fn sigmoid(&mut self, x: Value) -> Value {
        let minus = self.b.ins().fneg(x);
        let e = self.exp(minus);
        let one = self.float(self.lanes(x), 1.0);
        let below = self.b.ins().fadd(one, e);
        self.b.ins().fdiv(one, below)
    }

    /// A function from the table, for each lane.
    pub fn table(&mut self, f: MathFn, x: Value) -> Value {
        match self.lanes(x) {
            Lanes::One => self.call_math(f as i32, &[x]),
            Lanes::Four => {
                let mut result = x;
                for lane in 0..4u8 {
                    let x = self.b.ins().extractlane(x, lane);
                    let y = self.call_math(f as i32, &[x]);
                    result = self.b.ins().insertlane(result, y, lane);
                }
                result
            }
        }
    }

    /// `x^y` of scalars.
    pub fn pow(&mut self, x: Value, y: Value) -> Value {
        self.call_math(POW, &[x, y])
    }
}
