//! Values of kernels: a register with its element type, and the operators on it.
//!
//! A value remembers the function that it is built in, so that expressions read as arithmetic. Integers are unsigned
//! except where a method says otherwise.

use super::{Builder, Intrinsic};
use inkwell::IntPredicate as P;
use inkwell::values::{BasicValue, FloatValue, IntValue, PointerValue};

/// A 32-bit integer.
#[derive(Clone, Copy)]
pub struct I32<'c> {
    pub(super) builder: &'c Builder<'c>,
    pub(super) v: IntValue<'c>,
}

/// A 64-bit integer.
#[derive(Clone, Copy)]
pub struct I64<'c> {
    pub(super) builder: &'c Builder<'c>,
    pub(super) v: IntValue<'c>,
}

/// A truth value.
#[derive(Clone, Copy)]
pub struct Bool<'c> {
    pub(super) builder: &'c Builder<'c>,
    pub(super) v: IntValue<'c>,
}

/// A binary32.
#[derive(Clone, Copy)]
pub struct F32<'c> {
    pub(super) builder: &'c Builder<'c>,
    pub(super) v: FloatValue<'c>,
}

/// An address in global memory.
#[derive(Clone, Copy)]
pub struct Global<'c> {
    pub(super) builder: &'c Builder<'c>,
    pub(super) v: PointerValue<'c>,
}

/// An address in the block's shared memory.
#[derive(Clone, Copy)]
pub struct Shared<'c> {
    pub(super) builder: &'c Builder<'c>,
    pub(super) v: PointerValue<'c>,
}

/// What may stand where an [`I32`] is wanted: one, or a constant.
pub trait ToI32<'c> {
    fn to(self, builder: &'c Builder<'c>) -> I32<'c>;
}
impl<'c> ToI32<'c> for I32<'c> {
    fn to(self, _: &'c Builder<'c>) -> I32<'c> {
        self
    }
}
impl<'c> ToI32<'c> for u32 {
    fn to(self, builder: &'c Builder<'c>) -> I32<'c> {
        builder.i32(self)
    }
}

/// What may stand where an [`I64`] is wanted.
pub trait ToI64<'c> {
    fn to(self, builder: &'c Builder<'c>) -> I64<'c>;
}
impl<'c> ToI64<'c> for I64<'c> {
    fn to(self, _: &'c Builder<'c>) -> I64<'c> {
        self
    }
}
impl<'c> ToI64<'c> for u64 {
    fn to(self, builder: &'c Builder<'c>) -> I64<'c> {
        builder.i64(self)
    }
}

/// What may stand where an [`F32`] is wanted.
pub trait ToF32<'c> {
    fn to(self, builder: &'c Builder<'c>) -> F32<'c>;
}
impl<'c> ToF32<'c> for F32<'c> {
    fn to(self, _: &'c Builder<'c>) -> F32<'c> {
        self
    }
}
impl<'c> ToF32<'c> for f32 {
    fn to(self, builder: &'c Builder<'c>) -> F32<'c> {
        builder.f32(self)
    }
}

/// One operator of one type: trait, its method, operand trait, builder method.
macro_rules! operator {
    ($ty:ident, $to:ident, $($op:ident $method:ident $build:ident;)*) => {$(
        impl<'c, R: $to<'c>> std::ops::$op<R> for $ty<'c> {
            type Output = $ty<'c>;
            fn $method(self, rhs: R) -> $ty<'c> {
                let builder = self.builder;
                let r = rhs.to(builder).v;
                $ty { builder, v: builder.take(builder.llvm.$build(self.v, r, ""), self.v) }
            }
        }
    )*};
}
operator!(I32, ToI32,
    Add add build_int_add;
    Sub sub build_int_sub;
    Mul mul build_int_mul;
    Div div build_int_unsigned_div;
    Rem rem build_int_unsigned_rem;
    BitAnd bitand build_and;
    BitOr bitor build_or;
    BitXor bitxor build_xor;
    Shl shl build_left_shift;
);
operator!(I64, ToI64,
    Add add build_int_add;
    Sub sub build_int_sub;
    Mul mul build_int_mul;
);
operator!(F32, ToF32,
    Add add build_float_add;
    Sub sub build_float_sub;
    Mul mul build_float_mul;
    Div div build_float_div;
);

impl<'c, R: ToI32<'c>> std::ops::Shr<R> for I32<'c> {
    type Output = I32<'c>;
    fn shr(self, rhs: R) -> I32<'c> {
        let builder = self.builder;
        let r = rhs.to(builder).v;
        I32 { builder, v: builder.take(builder.llvm.build_right_shift(self.v, r, false, ""), self.v) }
    }
}

impl<'c> std::ops::Neg for F32<'c> {
    type Output = F32<'c>;
    fn neg(self) -> F32<'c> {
        F32 { v: self.builder.take(self.builder.llvm.build_float_neg(self.v, ""), self.v), ..self }
    }
}

impl<'c> I32<'c> {
    fn compare(self, predicate: P, rhs: impl ToI32<'c>) -> Bool<'c> {
        let builder = self.builder;
        let r = rhs.to(builder).v;
        let v = builder
            .take(builder.llvm.build_int_compare(predicate, self.v, r, ""), builder.context.bool_type().const_zero());
        Bool { builder, v }
    }
    pub fn eq(self, rhs: impl ToI32<'c>) -> Bool<'c> {
        self.compare(P::EQ, rhs)
    }
    pub fn ne(self, rhs: impl ToI32<'c>) -> Bool<'c> {
        self.compare(P::NE, rhs)
    }
    pub fn lt(self, rhs: impl ToI32<'c>) -> Bool<'c> {
        self.compare(P::ULT, rhs)
    }
    pub fn ge(self, rhs: impl ToI32<'c>) -> Bool<'c> {
        self.compare(P::UGE, rhs)
    }
    pub fn gt(self, rhs: impl ToI32<'c>) -> Bool<'c> {
        self.compare(P::UGT, rhs)
    }
    /// Whether the number, read as signed, is below 0.
    pub fn is_negative(self) -> Bool<'c> {
        self.compare(P::SLT, 0)
    }
    pub fn signed_lt(self, rhs: impl ToI32<'c>) -> Bool<'c> {
        self.compare(P::SLT, rhs)
    }
    /// Shifts right and keeps the sign.
    pub fn signed_shr(self, bits: u32) -> I32<'c> {
        let builder = self.builder;
        let r = builder.i32(bits).v;
        I32 { builder, v: builder.take(builder.llvm.build_right_shift(self.v, r, true, ""), self.v) }
    }
    /// `ceil(self / n)`
    pub fn div_ceil(self, n: u32) -> I32<'c> {
        (self + (n - 1)) / n
    }
    pub fn min(self, rhs: impl ToI32<'c>) -> I32<'c> {
        let rhs = rhs.to(self.builder);
        self.builder.select(self.lt(rhs), self, rhs)
    }
    pub fn signed_min(self, rhs: impl ToI32<'c>) -> I32<'c> {
        let rhs = rhs.to(self.builder);
        self.builder.select(self.signed_lt(rhs), self, rhs)
    }
    pub fn signed_max(self, rhs: impl ToI32<'c>) -> I32<'c> {
        let rhs = rhs.to(self.builder);
        self.builder.select(self.signed_lt(rhs), rhs, self)
    }
    /// Zero-extends.
    pub fn wide(self) -> I64<'c> {
        let builder = self.builder;
        let ty = builder.context.i64_type();
        I64 { builder, v: builder.take(builder.llvm.build_int_z_extend(self.v, ty, ""), ty.const_zero()) }
    }
    /// The same bits as a float.
    pub fn as_f32(self) -> F32<'c> {
        let builder = self.builder;
        let ty = builder.context.f32_type();
        let v = builder.llvm.build_bit_cast(self.v, ty, "").map(|v| v.into_float_value());
        F32 { builder, v: builder.take(v, ty.const_zero()) }
    }
    /// The number, read as signed, as a float.
    pub fn signed_to_f32(self) -> F32<'c> {
        let builder = self.builder;
        let ty = builder.context.f32_type();
        F32 { builder, v: builder.take(builder.llvm.build_signed_int_to_float(self.v, ty, ""), ty.const_zero()) }
    }
    pub fn popcount(self) -> I32<'c> {
        self.builder.call_i32(Intrinsic::Popcount, &[self.v.into()])
    }
}

impl<'c> I64<'c> {
    /// The upper half.
    pub fn high(self) -> I32<'c> {
        let builder = self.builder;
        let shifted = builder.llvm.build_right_shift(self.v, builder.i64(32).v, false, "");
        I64 { builder, v: builder.take(shifted, self.v) }.low()
    }
    /// The lower half.
    pub fn low(self) -> I32<'c> {
        let builder = self.builder;
        let ty = builder.context.i32_type();
        I32 { builder, v: builder.take(builder.llvm.build_int_truncate(self.v, ty, ""), ty.const_zero()) }
    }
}

impl<'c> Bool<'c> {
    pub fn and(self, rhs: Bool<'c>) -> Bool<'c> {
        Bool { v: self.builder.take(self.builder.llvm.build_and(self.v, rhs.v, ""), self.v), ..self }
    }
    pub fn or(self, rhs: Bool<'c>) -> Bool<'c> {
        Bool { v: self.builder.take(self.builder.llvm.build_or(self.v, rhs.v, ""), self.v), ..self }
    }
    pub fn not(self) -> Bool<'c> {
        Bool { v: self.builder.take(self.builder.llvm.build_not(self.v, ""), self.v), ..self }
    }
    /// 1 or 0.
    pub fn as_i32(self) -> I32<'c> {
        self.builder.select(self, self.builder.i32(1), self.builder.i32(0))
    }
}

impl<'c> F32<'c> {
    fn compare(self, predicate: inkwell::FloatPredicate, rhs: impl ToF32<'c>) -> Bool<'c> {
        let builder = self.builder;
        let r = rhs.to(builder).v;
        let v = builder.llvm.build_float_compare(predicate, self.v, r, "");
        Bool { builder, v: builder.take(v, builder.context.bool_type().const_zero()) }
    }
    /// False when either is NaN.
    pub fn lt(self, rhs: impl ToF32<'c>) -> Bool<'c> {
        self.compare(inkwell::FloatPredicate::OLT, rhs)
    }
    /// False when either is NaN.
    pub fn gt(self, rhs: impl ToF32<'c>) -> Bool<'c> {
        self.compare(inkwell::FloatPredicate::OGT, rhs)
    }
    pub fn is_nan(self) -> Bool<'c> {
        self.compare(inkwell::FloatPredicate::UNO, self)
    }
    /// The same bits as an integer.
    pub fn bits(self) -> I32<'c> {
        let builder = self.builder;
        let ty = builder.context.i32_type();
        let v = builder.llvm.build_bit_cast(self.v, ty, "").map(|v| v.into_int_value());
        I32 { builder, v: builder.take(v, ty.const_zero()) }
    }
    /// `self * a + b`, rounded once.
    pub fn fma(self, a: impl ToF32<'c>, b: impl ToF32<'c>) -> F32<'c> {
        let (a, b) = (a.to(self.builder), b.to(self.builder));
        self.builder.call_f32(Intrinsic::Fma, &[self.v.into(), a.v.into(), b.v.into()])
    }
    pub fn abs(self) -> F32<'c> {
        self.builder.call_f32(Intrinsic::Abs, &[self.v.into()])
    }
    /// Correctly rounded.
    pub fn sqrt(self) -> F32<'c> {
        self.builder.call_f32(Intrinsic::Sqrt, &[self.v.into()])
    }
    /// NaN when either is NaN.
    pub fn minimum(self, rhs: impl ToF32<'c>) -> F32<'c> {
        let r = rhs.to(self.builder);
        self.builder.call_f32(Intrinsic::Minimum, &[self.v.into(), r.v.into()])
    }
    /// NaN when either is NaN.
    pub fn maximum(self, rhs: impl ToF32<'c>) -> F32<'c> {
        let r = rhs.to(self.builder);
        self.builder.call_f32(Intrinsic::Maximum, &[self.v.into(), r.v.into()])
    }
    pub fn copysign(self, sign: F32<'c>) -> F32<'c> {
        self.builder.call_f32(Intrinsic::CopySign, &[self.v.into(), sign.v.into()])
    }
    /// To the nearest integer, ties to even.
    pub fn rint(self) -> F32<'c> {
        self.builder.call_f32(Intrinsic::Rint, &[self.v.into()])
    }
    /// To the nearest integer, ties to even, as i32: saturates; 0 for NaN.
    pub fn round_to_i32(self) -> I32<'c> {
        self.builder.call_i32(Intrinsic::RoundToInt, &[self.v.into()])
    }
    /// `2^self` by the special function unit, to about 2 ulp.
    pub fn ex2_approx(self) -> F32<'c> {
        self.builder.call_f32(Intrinsic::Ex2, &[self.v.into()])
    }
}

/// A value that a [`super::Var`] can hold and that [`Builder::select`] can choose.
pub trait Value<'c>: Copy {
    fn raw(self) -> inkwell::values::BasicValueEnum<'c>;
    fn from_raw(builder: &'c Builder<'c>, raw: inkwell::values::BasicValueEnum<'c>) -> Self;
}

macro_rules! value {
    ($ty:ident $into:ident) => {
        impl<'c> Value<'c> for $ty<'c> {
            fn raw(self) -> inkwell::values::BasicValueEnum<'c> {
                self.v.as_basic_value_enum()
            }
            fn from_raw(builder: &'c Builder<'c>, raw: inkwell::values::BasicValueEnum<'c>) -> Self {
                $ty { builder, v: raw.$into() }
            }
        }
    };
}
value!(I32 into_int_value);
value!(I64 into_int_value);
value!(Bool into_int_value);
value!(F32 into_float_value);
value!(Global into_pointer_value);
value!(Shared into_pointer_value);
