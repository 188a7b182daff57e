//! Elements in memory: widened to f32 when read, rounded to nearest even when written.

use super::{Emit, Lanes, lanes::lane_order, plain};
use cranelift_codegen::ir::condcodes::{FloatCC, IntCC};
use cranelift_codegen::ir::{InstBuilder, MemFlagsData, Value, types};
use moec_ir::DType;

/// 2¹¹²: the distance of the exponent biases of f32 and f16, as a factor.
const F16_SCALE: f32 = f32::from_bits((127 + 112) << 23);
/// 65520, the least f32 that rounds to f16 infinity.
const F16_OVERFLOW: u32 = 0x477f_f000;
/// 2⁻¹⁴, the least normal f16.
const F16_NORMAL: u32 = 0x3880_0000;
const INFINITY: u32 = 0x7f80_0000;

impl Emit<'_> {
    /// The element at `pointer + offset` (bytes), or four of them.
    pub fn load(&mut self, lanes: Lanes, dtype: DType, pointer: Value, offset: i32) -> Value {
        let wide = match (dtype, lanes) {
            (DType::BF16 | DType::F16, Lanes::One) => self.b.ins().uload16(types::I32, plain(), pointer, offset),
            (DType::BF16 | DType::F16, Lanes::Four) => self.b.ins().uload16x4(plain(), pointer, offset),
            (DType::F64 | DType::F32 | DType::I32 | DType::I64 | DType::U8, _) => {
                return self.b.ins().load(lanes.float(), plain(), pointer, offset);
            }
        };
        if dtype == DType::F16 {
            self.widen_f16(wide)
        } else {
            let bits = self.up(wide, 16);
            self.of_bits(bits)
        }
    }

    /// Eight consecutive elements from memory that is not written while the kernel runs, as two vectors in order.
    ///
    /// `flags` say whether the load may be moved to where it is used.
    pub fn load_eight(&mut self, dtype: DType, flags: MemFlagsData, pointer: Value, offset: i32) -> [Value; 2] {
        match dtype {
            DType::BF16 | DType::F16 => {
                let raw = self.b.ins().load(types::I8X16, flags, pointer, offset);
                let zero = self.bits(Lanes::Four, 0);
                let zero = self.b.ins().bitcast(types::I8X16, lane_order(), zero);
                [false, true].map(|upper| {
                    if dtype == DType::BF16 {
                        // A zero half below each element: the element widened, in one instruction.
                        let bytes = self.interleave(zero, raw, 2, upper);
                        self.b.ins().bitcast(types::F32X4, lane_order(), bytes)
                    } else {
                        let bytes = self.interleave(raw, zero, 2, upper);
                        let wide = self.b.ins().bitcast(types::I32X4, lane_order(), bytes);
                        self.widen_f16(wide)
                    }
                })
            }
            DType::F64 | DType::F32 | DType::I32 | DType::I64 | DType::U8 => {
                [0, 16].map(|at| self.b.ins().load(types::F32X4, flags, pointer, offset + at))
            }
        }
    }

    /// Rounds a value to `dtype` and stores it at `pointer + offset` (bytes).
    pub fn store(&mut self, dtype: DType, value: Value, pointer: Value, offset: i32) {
        let lanes = self.lanes(value);
        let Some(bits) = self.narrow(dtype, value) else {
            self.b.ins().store(plain(), value, pointer, offset);
            return;
        };
        match lanes {
            Lanes::One => {
                self.b.ins().istore16(plain(), bits, pointer, offset);
            }
            Lanes::Four => {
                let packed = self.b.ins().unarrow(bits, bits);
                let packed = self.b.ins().bitcast(types::I64X2, lane_order(), packed);
                let packed = self.b.ins().extractlane(packed, 0);
                self.b.ins().store(plain(), packed, pointer, offset);
            }
        }
    }

    /// Rounds eight values to `dtype` and stores them.
    pub fn store_eight(&mut self, dtype: DType, values: [Value; 2], pointer: Value, offset: i32) {
        let narrow = values.map(|v| self.narrow(dtype, v));
        match narrow {
            [Some(a), Some(b)] => {
                let packed = self.b.ins().unarrow(a, b);
                self.b.ins().store(plain(), packed, pointer, offset);
            }
            [None, _] | [_, None] => {
                self.b.ins().store(plain(), values[0], pointer, offset);
                self.b.ins().store(plain(), values[1], pointer, offset + 16);
            }
        }
    }

    /// Rounds to a float type and widens back.
    pub fn round(&mut self, dtype: DType, value: Value) -> Value {
        match dtype {
            DType::BF16 => {
                let bits = self.round_bf16(value);
                self.of_bits(bits)
            }
            DType::F16 => {
                let half = self.narrow_f16(value);
                self.widen_f16(half)
            }
            DType::F64 | DType::F32 => value,
            DType::I32 | DType::I64 | DType::U8 => self.b.ins().trunc(value),
        }
    }

    /// The 16 bits of a rounded value in the low half of 32; `None` for types as wide as f32.
    fn narrow(&mut self, dtype: DType, value: Value) -> Option<Value> {
        match dtype {
            DType::BF16 => {
                let bits = self.round_bf16(value);
                Some(self.down(bits, 16))
            }
            DType::F16 => Some(self.narrow_f16(value)),
            DType::F64 | DType::F32 | DType::I32 | DType::I64 | DType::U8 => None,
        }
    }

    /// The f32 bits of a value rounded to bf16: to nearest even; a NaN stays one and becomes quiet.
    fn round_bf16(&mut self, value: Value) -> Value {
        let bits = self.bits_of(value);
        let odd = self.down(bits, 16);
        let odd = self.and(odd, 1);
        let up = self.add_bits(bits, 0x7fff);
        let up = self.b.ins().iadd(up, odd);
        let quiet = self.bits(self.lanes(value), 0x0040_0000);
        let quiet = self.b.ins().bor(bits, quiet);
        let nan = self.compare(FloatCC::Unordered, value, value);
        let bits = self.pick(nan, quiet, up);
        self.and(bits, 0xffff_0000)
    }

    /// The f32 value of f16 bits in the low half of 32.
    pub(super) fn widen_f16(&mut self, half: Value) -> Value {
        let lanes = self.lanes(half);
        let magnitude = self.and(half, 0x7fff);
        let magnitude = self.up(magnitude, 13);
        // As f32 bits this is the value times 2⁻¹¹², subnormal or not, so one multiplication puts both right.
        let tiny = self.of_bits(magnitude);
        let scale = self.float(lanes, F16_SCALE);
        let finite = self.b.ins().fmul(tiny, scale);
        let finite = self.bits_of(finite);
        let top = self.bits(lanes, 0x1f << 23);
        let special = self.compare_bits(IntCC::SignedGreaterThanOrEqual, magnitude, top);
        let infinity = self.bits(lanes, INFINITY);
        let infinite = self.b.ins().bor(finite, infinity);
        let value = self.pick(special, infinite, finite);
        let sign = self.and(half, 0x8000);
        let sign = self.up(sign, 16);
        let value = self.b.ins().bor(value, sign);
        self.of_bits(value)
    }

    /// f16 bits of a value, in the low half of 32: to nearest even, subnormals kept, overflow to infinity.
    pub(super) fn narrow_f16(&mut self, value: Value) -> Value {
        let lanes = self.lanes(value);
        let bits = self.bits_of(value);
        let magnitude = self.and(bits, 0x7fff_ffff);

        let shifted = self.down(magnitude, 13);
        let odd = self.and(shifted, 1);
        let rounded = self.add_bits(magnitude, 0xfff);
        let rounded = self.b.ins().iadd(rounded, odd);
        let normal = self.down(rounded, 13);
        let normal = self.add_bits(normal, 0u32.wrapping_sub(112 << 10));

        // Adding ½ leaves one unit in the last place per 2⁻²⁴, which is the spacing of f16 subnormals.
        let half = self.float(lanes, 0.5);
        let small = self.of_bits(magnitude);
        let small = self.b.ins().fadd(small, half);
        let small = self.bits_of(small);
        let small = self.add_bits(small, 0u32.wrapping_sub(0.5f32.to_bits()));

        let least = self.bits(lanes, F16_NORMAL);
        let is_small = self.compare_bits(IntCC::SignedLessThan, magnitude, least);
        let result = self.pick(is_small, small, normal);
        let most = self.bits(lanes, F16_OVERFLOW);
        let overflows = self.compare_bits(IntCC::SignedGreaterThanOrEqual, magnitude, most);
        let infinity = self.bits(lanes, 0x7c00);
        let result = self.pick(overflows, infinity, result);
        let top = self.bits(lanes, INFINITY);
        let is_nan = self.compare_bits(IntCC::SignedGreaterThan, magnitude, top);
        let payload = self.and(shifted, 0x3ff);
        let quiet = self.bits(lanes, 0x7e00);
        let nan = self.b.ins().bor(payload, quiet);
        let result = self.pick(is_nan, nan, result);
        let sign = self.down(bits, 16);
        let sign = self.and(sign, 0x8000);
        self.b.ins().bor(result, sign)
    }
}
