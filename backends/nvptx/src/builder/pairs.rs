//! Two 16-bit floats in one register: how codes of quantised weights become floats.

use super::MmaType;
use super::value::{F32, I32, Value};
use super::{Builder, Intrinsic};
use inkwell::values::{BasicMetadataValueEnum, BasicValueEnum};

impl<'c> Builder<'c> {
    /// The bytes of `low` (numbers 0 to 3) and `high` (4 to 7) that the four digits of `selector` name, lowest first.
    pub fn permute_bytes(&'c self, low: I32<'c>, high: I32<'c>, selector: I32<'c>) -> I32<'c> {
        self.call_i32(Intrinsic::Permute, &[low.v.into(), high.v.into(), selector.v.into()])
    }

    /// The two f16 of FP8 e4m3 codes in bits 0..16 of `codes`, exactly. sm_89 and later.
    pub fn e4m3_pair(&'c self, codes: I32<'c>) -> I32<'c> {
        let ty = self.context.i16_type();
        let codes = self.take(self.llvm.build_int_truncate(codes.v, ty, ""), ty.const_zero());
        self.pair_call(Intrinsic::E4M3Pair, &[codes.into()])
    }

    /// The two f16 of FP4 e2m1 codes in bits 0..8 of `codes`, exactly. sm_100 and later.
    pub fn e2m1_pair(&'c self, codes: I32<'c>) -> I32<'c> {
        let ty = self.context.i16_type();
        let codes = self.take(self.llvm.build_int_truncate(codes.v, ty, ""), ty.const_zero());
        self.pair_call(Intrinsic::E2M1Pair, &[codes.into()])
    }

    /// The FP8 e4m3 codes of two numbers, rounded to nearest even, at most 448 in magnitude: `low` in bits 0..8, `high`
    /// in 8..16. sm_89 and later.
    pub fn to_e4m3(&'c self, low: F32<'c>, high: F32<'c>) -> I32<'c> {
        self.narrow_call(Intrinsic::ToE4M3, low, high)
    }

    /// The FP4 e2m1 codes of two numbers, rounded to nearest even, at most 6 in magnitude: `low` in bits 0..4, `high` in
    /// 4..8. sm_100 and later.
    pub fn to_e2m1(&'c self, low: F32<'c>, high: F32<'c>) -> I32<'c> {
        self.narrow_call(Intrinsic::ToE2M1, low, high) & 0xff
    }

    fn narrow_call(&'c self, intrinsic: Intrinsic, low: F32<'c>, high: F32<'c>) -> I32<'c> {
        let codes = self.call(intrinsic, &[high.v.into(), low.v.into()]);
        let Some(BasicValueEnum::IntValue(codes)) = codes.and_then(|c| c.try_as_basic_value().basic()) else {
            self.fail(&format!("{intrinsic:?} gave no codes"));
            return self.i32(0);
        };
        let wide = self.llvm.build_int_z_extend(codes, self.context.i32_type(), "");
        I32 { builder: self, v: self.take(wide, self.i32(0).v) }
    }

    /// `a · b + c` in each half, rounded once.
    pub fn fma_pairs(&'c self, ty: MmaType, a: I32<'c>, b: I32<'c>, c: I32<'c>) -> I32<'c> {
        let args = [a, b, c].map(|x| BasicMetadataValueEnum::from(self.as_pair(ty, x)));
        let intrinsic = if ty == MmaType::Bf16 { Intrinsic::FmaBf16 } else { Intrinsic::FmaF16 };
        self.pair_call(intrinsic, &args)
    }

    /// `low` in bits 0..16 and `high` in 16..32, each rounded.
    pub fn pack_pair(&'c self, ty: MmaType, low: F32<'c>, high: F32<'c>) -> I32<'c> {
        let intrinsic = if ty == MmaType::Bf16 { Intrinsic::PackBf16 } else { Intrinsic::PackF16 };
        self.pair_call(intrinsic, &[high.v.into(), low.v.into()])
    }

    /// Two f32 products with one factor, in one instruction from sm_100 on.
    pub fn scale_pair(&'c self, values: [F32<'c>; 2], factor: F32<'c>) -> [F32<'c>; 2] {
        let both = |a: F32<'c>, b: F32<'c>| self.vector(&[a.raw(), b.raw()]).into_vector_value();
        let product = self.llvm.build_float_mul(both(values[0], values[1]), both(factor, factor), "");
        let zero = self.context.f32_type().vec_type(2).const_zero();
        let product = self.take(product, zero);
        [0, 1].map(|i| {
            let one = self.llvm.build_extract_element(product, self.i32(i).v, "");
            F32 { builder: self, v: self.take(one.map(BasicValueEnum::into_float_value), self.f32(0.0).v) }
        })
    }

    /// The halves of a pair as f32.
    pub fn widen_pair(&'c self, ty: MmaType, pair: I32<'c>) -> [F32<'c>; 2] {
        match ty {
            MmaType::Bf16 => [(pair << 16).as_f32(), (pair & 0xffff_0000).as_f32()],
            MmaType::F16 => {
                let halves = self.as_pair(ty, pair);
                [0, 1].map(|i| {
                    let index = self.i32(i).v;
                    let zero: BasicValueEnum = self.context.f16_type().const_zero().into();
                    let half = self.llvm.build_extract_element(halves.into_vector_value(), index, "");
                    let half = self.take(half, zero);
                    let wide = self.llvm.build_float_ext(half.into_float_value(), self.context.f32_type(), "");
                    F32 { builder: self, v: self.take(wide, self.context.f32_type().const_zero()) }
                })
            }
        }
    }

    fn as_pair(&'c self, ty: MmaType, word: I32<'c>) -> BasicValueEnum<'c> {
        let ty = match ty {
            MmaType::Bf16 => self.context.bf16_type().vec_type(2),
            MmaType::F16 => self.context.f16_type().vec_type(2),
        };
        self.take(self.llvm.build_bit_cast(word.v, ty, ""), ty.const_zero())
    }

    /// A call that gives a pair, as a word.
    fn pair_call(&'c self, intrinsic: Intrinsic, args: &[BasicMetadataValueEnum<'c>]) -> I32<'c> {
        let Some(pair) = self.call(intrinsic, args).and_then(|c| c.try_as_basic_value().basic()) else {
            self.fail(&format!("{intrinsic:?} gave nothing"));
            return self.i32(0);
        };
        let word = self.llvm.build_bit_cast(pair, self.context.i32_type(), "");
        I32::from_raw(self, self.take(word, self.i32(0).raw()))
    }
}
