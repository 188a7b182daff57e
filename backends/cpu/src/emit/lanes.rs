//! Arithmetic on one f32 or on four at once, written once for both.

use super::Emit;
use cranelift_codegen::ir::condcodes::{FloatCC, IntCC};
use cranelift_codegen::ir::{Endianness, InstBuilder, MemFlagsData, Type, Value, types};

/// How many values an operation works on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lanes {
    One,
    Four,
}

impl Lanes {
    /// The type of a float value.
    pub fn float(self) -> Type {
        match self {
            Lanes::One => types::F32,
            Lanes::Four => types::F32X4,
        }
    }

    /// The type of the bits of a float value.
    pub fn int(self) -> Type {
        match self {
            Lanes::One => types::I32,
            Lanes::Four => types::I32X4,
        }
    }
}

/// The order of lanes that bit casts between vector types assume.
pub(crate) fn lane_order() -> MemFlagsData {
    MemFlagsData::new().with_endianness(Endianness::Little)
}

impl Emit<'_> {
    /// Whether a float or integer value has one lane or four.
    pub fn lanes(&self, v: Value) -> Lanes {
        if self.b.func.dfg.value_type(v).is_vector() { Lanes::Four } else { Lanes::One }
    }

    /// A float constant in all lanes.
    pub fn float(&mut self, lanes: Lanes, x: f32) -> Value {
        match lanes {
            Lanes::One => self.b.ins().f32const(x),
            Lanes::Four => self.vector(types::F32X4, x.to_bits()),
        }
    }

    /// A 32-bit pattern in all lanes.
    pub fn bits(&mut self, lanes: Lanes, x: u32) -> Value {
        match lanes {
            Lanes::One => self.b.ins().iconst(types::I32, i64::from(x)),
            Lanes::Four => self.vector(types::I32X4, x),
        }
    }

    fn vector(&mut self, ty: Type, lane: u32) -> Value {
        let word = lane.to_le_bytes();
        let data: Vec<u8> = word.iter().copied().cycle().take(16).collect();
        let constant = self.b.func.dfg.constants.insert(data.into());
        self.b.ins().vconst(ty, constant)
    }

    /// A scalar in every lane.
    pub fn splat(&mut self, lanes: Lanes, x: Value) -> Value {
        match lanes {
            Lanes::One => x,
            Lanes::Four => self.b.ins().splat(types::F32X4, x),
        }
    }

    /// The bits of a float value.
    pub fn bits_of(&mut self, v: Value) -> Value {
        let ty = self.lanes(v).int();
        self.b.ins().bitcast(ty, lane_order(), v)
    }

    /// The float value with these bits.
    pub fn of_bits(&mut self, v: Value) -> Value {
        let ty = self.lanes(v).float();
        self.b.ins().bitcast(ty, lane_order(), v)
    }

    /// `v & mask` on bits.
    pub fn and(&mut self, v: Value, mask: u32) -> Value {
        let mask = self.bits(self.lanes(v), mask);
        self.b.ins().band(v, mask)
    }

    /// `v + x` on bits.
    pub fn add_bits(&mut self, v: Value, x: u32) -> Value {
        let x = self.bits(self.lanes(v), x);
        self.b.ins().iadd(v, x)
    }

    /// Shifts bits up.
    pub fn up(&mut self, v: Value, by: i64) -> Value {
        self.b.ins().ishl_imm_u(v, by)
    }

    /// Shifts bits down, zeros coming in.
    pub fn down(&mut self, v: Value, by: i64) -> Value {
        self.b.ins().ushr_imm_u(v, by)
    }

    /// A condition on floats, for [`Emit::pick`].
    pub fn compare(&mut self, cc: FloatCC, x: Value, y: Value) -> Value {
        self.b.ins().fcmp(cc, x, y)
    }

    /// A condition on bits, for [`Emit::pick`].
    pub fn compare_bits(&mut self, cc: IntCC, x: Value, y: Value) -> Value {
        self.b.ins().icmp(cc, x, y)
    }

    /// In each lane `x` where the condition holds, else `y`; floats or bits.
    pub fn pick(&mut self, condition: Value, x: Value, y: Value) -> Value {
        match self.lanes(x) {
            Lanes::One => self.b.ins().select(condition, x, y),
            Lanes::Four => {
                let ty = self.b.func.dfg.value_type(x);
                let mask = if ty == types::I32X4 { condition } else { self.of_bits(condition) };
                self.b.ins().bitselect(mask, x, y)
            }
        }
    }

    /// `x * y + z`, rounded once where the machine can.
    pub fn fma(&mut self, x: Value, y: Value, z: Value) -> Value {
        if self.fma {
            self.b.ins().fma(x, y, z)
        } else {
            let product = self.b.ins().fmul(x, y);
            self.b.ins().fadd(product, z)
        }
    }

    /// The sum of a vector's lanes: `(0 + 2) + (1 + 3)`.
    pub fn sum(&mut self, v: Value) -> Value {
        let [a, b, c, d] = [0, 1, 2, 3].map(|lane| self.b.ins().extractlane(v, lane));
        let even = self.b.ins().fadd(a, c);
        let odd = self.b.ins().fadd(b, d);
        self.b.ins().fadd(even, odd)
    }

    /// Takes turns between units of `unit` bytes of `a` and `b`, from their lower or upper halves. Any two vectors; the
    /// result has the type of `a`.
    pub fn interleave(&mut self, a: Value, b: Value, unit: usize, upper: bool) -> Value {
        let ty = self.b.func.dfg.value_type(a);
        let [a, b] = [a, b].map(|v| {
            if self.b.func.dfg.value_type(v) == types::I8X16 {
                v
            } else {
                self.b.ins().bitcast(types::I8X16, lane_order(), v)
            }
        });
        let start = if upper { 8 } else { 0 };
        let mut mask = Vec::with_capacity(16);
        for from in (start..start + 8).step_by(unit) {
            mask.extend((from..from + unit).map(|i| i as u8));
            mask.extend((from..from + unit).map(|i| 16 + i as u8));
        }
        let mask = self.b.func.dfg.immediates.push(mask.into());
        let v = self.b.ins().shuffle(a, b, mask);
        if ty == types::I8X16 { v } else { self.b.ins().bitcast(ty, lane_order(), v) }
    }
}
