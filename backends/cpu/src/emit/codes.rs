//! Weights that are stored as codes and scales: floats are made of them as they are read.
//!
//! `value = round(code · (scale · global))`, every product in f32 and rounded once: the bits that the loader would have
//! written, had it made the floats.

use super::{Emit, Lanes, lanes::lane_order, plain};
use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::{InstBuilder, Value, types};
use moec_ir::DType;
use moec_ir::quant::{Code, QuantFormat, ScaleCode};

/// Most turns of a loop over the columns of a block that are written one after the other.
const MOST_UNROLLED: u64 = 2;

/// A row of `k` codes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CodedRow {
    /// Codes, scales, and columns of a block.
    pub format: QuantFormat,
    /// Columns.
    pub k: u64,
    /// The type of the values.
    pub round: DType,
}

/// Where the parts of a row are.
#[derive(Clone, Copy)]
pub(crate) struct RowPointers {
    /// The row's codes.
    pub codes: Value,
    /// The scales of its blocks, one after the other.
    pub scales: Value,
    /// A factor on them, f32.
    pub global: Option<Value>,
    /// Where the values go, in their own type.
    pub to: Value,
}

impl Emit<'_> {
    /// Writes the values of a row.
    pub fn decode_row(&mut self, row: CodedRow, at: RowPointers) {
        let block = match row.format.block_cols {
            0 => row.k,
            cols => cols.min(row.k),
        };
        if block == 0 {
            return;
        }
        let whole = row.k / block;
        self.each_of(whole, |e, b| {
            let first = e.times(b, block);
            e.decode_block(row, at, b, first, block);
        });
        let rest = row.k % block;
        if rest > 0 {
            let (b, first) = (self.int(whole), self.int(whole * block));
            self.decode_block(row, at, b, first, rest);
        }
    }

    /// The values of block number `block`, `n` columns from `first`.
    fn decode_block(&mut self, row: CodedRow, at: RowPointers, block: Value, first: Value, n: u64) {
        let QuantFormat { code, scale, block_cols, .. } = row.format;
        let from = self.at(at.scales, block, scale.bytes());
        let mut scale = self.load_scale(scale, from);
        if let Some(global) = at.global {
            scale = self.b.ins().fmul(scale, global);
        }
        let bytes = row.round.bytes() as u64;
        // Bytes of two codes are read from a byte's start.
        let cut_between_bytes = code.bits() == 8 || block_cols.is_multiple_of(2) || block_cols >= row.k;
        let n_fast = if cut_between_bytes { n } else { 0 };
        let done = match (code, row.round) {
            (Code::E2M1 | Code::Int4, DType::BF16 | DType::F16) if n_fast >= 16 => {
                let is_exact = row.format.is_exact(row.round);
                let table = self.table_of_four_bits(code, scale, row.round, is_exact);
                let mut from = 0;
                for step in [32, 16] {
                    let to = n_fast / step * step;
                    self.stretch((from, to), step, |e, i| {
                        let (codes, values) = e.places(at, first, i, code, bytes);
                        e.look_up_four_bits(table, step, codes, values);
                    });
                    from = to;
                }
                self.int(from)
            }
            (Code::E4M3, DType::BF16) if n_fast >= 16 => {
                let (table, is_safe) = self.table_of_e4m3(scale, row.format.is_exact(row.round));
                let end = n_fast / 16 * 16;
                self.when(is_safe, |e| {
                    e.stretch((0, end), 16, |e, i| {
                        let (codes, values) = e.places(at, first, i, code, bytes);
                        e.look_up_e4m3(table, codes, values);
                    });
                });
                let (none, all) = (self.int(0), self.int(end));
                self.b.ins().select(is_safe, all, none)
            }
            _ => {
                let four = self.splat(Lanes::Four, scale);
                let step = if code.bits() == 8 { 8 } else { 16 };
                let end = n_fast / step * step;
                self.stretch((0, end), step, |e, i| {
                    let (codes, to) = e.places(at, first, i, code, bytes);
                    for (eight, bits) in e.load_codes(code, codes).into_iter().enumerate() {
                        let values = bits.map(|bits| {
                            let v = e.decode(code, bits);
                            e.b.ins().fmul(v, four)
                        });
                        e.store_eight(row.round, values, to, (eight as u64 * 8 * bytes) as i32);
                    }
                });
                self.int(end)
            }
        };
        let to = self.int(n);
        self.each(done, to, |e, i| {
            let col = e.b.ins().iadd(first, i);
            let bits = e.load_one_code(code, at.codes, col);
            let v = e.decode(code, bits);
            let v = e.b.ins().fmul(v, scale);
            let to = e.at(at.to, col, bytes);
            e.store(row.round, v, to, 0);
        });
    }

    /// `for i in (from..to).step_by(step)`, without a loop when there are few turns.
    fn stretch(&mut self, (from, to): (u64, u64), step: u64, mut body: impl FnMut(&mut Self, Value)) {
        if (to - from) / step <= MOST_UNROLLED {
            for i in (from..to).step_by(step as usize) {
                let i = self.int(i);
                body(self, i);
            }
            return;
        }
        let (from, to) = (self.int(from), self.int(to));
        self.repeat(from, to, step as i64, &[], |e, i, _| {
            body(e, i);
            Vec::new()
        });
    }

    /// Where the code in column `first + i` is, which begins a byte, and where its value of `bytes` bytes goes.
    fn places(&mut self, at: RowPointers, first: Value, i: Value, code: Code, bytes: u64) -> (Value, Value) {
        let col = self.b.ins().iadd(first, i);
        let byte = if code.bits() == 8 { col } else { self.down(col, 1) };
        (self.b.ins().iadd(at.codes, byte), self.at(at.to, col, bytes))
    }

    /// The bits of the eight codes (of a byte each), or sixteen (of half a byte), that begin at `pointer`: eights in order,
    /// each as two vectors.
    fn load_codes(&mut self, code: Code, pointer: Value) -> Vec<[Value; 2]> {
        let words = self.b.ins().uload8x8(plain(), pointer, 0);
        let zero = self.bits(Lanes::Four, 0);
        let zero = self.b.ins().bitcast(types::I16X8, lane_order(), zero);
        let eights = if code.bits() == 8 {
            vec![words]
        } else {
            let low_bits = self.bits(Lanes::Four, 0x000f_000f);
            let low_bits = self.b.ins().bitcast(types::I16X8, lane_order(), low_bits);
            let low = self.b.ins().band(words, low_bits);
            let high = self.b.ins().ushr_imm_u(words, 4);
            [false, true].map(|upper| self.interleave(low, high, 2, upper)).to_vec()
        };
        let widened = |e: &mut Self, eight: Value| {
            [false, true].map(|upper| {
                let v = e.interleave(eight, zero, 2, upper);
                e.b.ins().bitcast(types::I32X4, lane_order(), v)
            })
        };
        eights.into_iter().map(|eight| widened(self, eight)).collect()
    }

    /// The bits of code number `col`, i32.
    fn load_one_code(&mut self, code: Code, codes: Value, col: Value) -> Value {
        if code.bits() == 8 {
            let at = self.b.ins().iadd(codes, col);
            return self.b.ins().uload8(types::I32, plain(), at, 0);
        }
        let byte = self.down(col, 1);
        let at = self.b.ins().iadd(codes, byte);
        let pair = self.b.ins().uload8(types::I32, plain(), at, 0);
        let odd = self.b.ins().band_imm_u(col, 1);
        let shift = self.up(odd, 2);
        let nibble = self.b.ins().ushr(pair, shift);
        self.and(nibble, 15)
    }

    /// The values of codes whose bits stand in the low end of 32.
    fn decode(&mut self, code: Code, bits: Value) -> Value {
        match code {
            Code::E4M3 => self.decode_e4m3(bits),
            Code::E5M2 => {
                let half = self.up(bits, 8);
                self.widen_f16(half)
            }
            // Exponent and fraction as those of an f32 that is 2¹²⁶ times too small, subnormal or not.
            Code::E2M1 => self.decode_small(bits, 7, 22, 253 << 23),
            Code::Int4 => {
                // 2²³ + u is an f32 whose last bits are u.
                let lanes = self.lanes(bits);
                let exponent = self.bits(lanes, 0x4b00_0000);
                let bits = self.b.ins().bor(bits, exponent);
                let value = self.of_bits(bits);
                let offset = self.float(lanes, 8_388_616.0);
                self.b.ins().fsub(value, offset)
            }
        }
    }

    fn decode_e4m3(&mut self, bits: Value) -> Value {
        let lanes = self.lanes(bits);
        let value = self.decode_small(bits, 0x7f, 20, 247 << 23);
        let magnitude = self.and(bits, 0x7f);
        let top = self.bits(lanes, 0x7f);
        let is_nan = self.compare_bits(IntCC::Equal, magnitude, top);
        let nan = self.float(lanes, f32::NAN);
        let (value, nan) = (self.bits_of(value), self.bits_of(nan));
        let picked = self.pick(is_nan, nan, value);
        self.of_bits(picked)
    }

    /// A code of sign, exponent and fraction: its magnitude `mask`, moved up by `by`, is an f32 that is `factor` (as bits)
    /// times too small.
    fn decode_small(&mut self, bits: Value, mask: u32, by: i64, factor: u32) -> Value {
        let lanes = self.lanes(bits);
        let magnitude = self.and(bits, mask);
        let magnitude = self.up(magnitude, by);
        let sign = self.and(bits, mask + 1);
        let sign = self.up(sign, i64::from((mask + 1).leading_zeros()));
        let small = self.b.ins().bor(magnitude, sign);
        let small = self.of_bits(small);
        let factor = self.float(lanes, f32::from_bits(factor));
        self.b.ins().fmul(small, factor)
    }

    /// The scale at `pointer`.
    fn load_scale(&mut self, code: ScaleCode, pointer: Value) -> Value {
        match code {
            ScaleCode::F32 => self.load(Lanes::One, DType::F32, pointer, 0),
            ScaleCode::BF16 => self.load(Lanes::One, DType::BF16, pointer, 0),
            ScaleCode::F16 => self.load(Lanes::One, DType::F16, pointer, 0),
            ScaleCode::E4M3 => {
                let bits = self.b.ins().uload8(types::I32, plain(), pointer, 0);
                self.decode_e4m3(bits)
            }
            ScaleCode::E8M0 => {
                let byte = self.b.ins().uload8(types::I32, plain(), pointer, 0);
                let normal = self.up(byte, 23);
                // 2⁻¹²⁷ is subnormal.
                let least = self.bits(Lanes::One, 1 << 22);
                let is_least = self.b.ins().icmp_imm_u(IntCC::Equal, byte, 0);
                let bits = self.pick(is_least, least, normal);
                let nan = self.bits(Lanes::One, 0x7fc0_0000);
                let is_nan = self.b.ins().icmp_imm_u(IntCC::Equal, byte, 255);
                let bits = self.pick(is_nan, nan, bits);
                self.of_bits(bits)
            }
        }
    }
}
