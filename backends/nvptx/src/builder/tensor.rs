//! Tensor-core instructions of sm_80: fragments through `ldmatrix`, products through `mma.sync`.

use super::value::{F32, I32, Shared, Value};
use super::{Builder, Intrinsic, MmaType};
use inkwell::values::{BasicMetadataValueEnum, BasicValueEnum};

impl<'c> Builder<'c> {
    /// Reads `N` (2 or 4) 8x8 matrices of 16-bit elements; lane `8*i + j` gives the address of row `j` of matrix `i`.
    /// Register `i` of lane `l` holds the elements (row `l/4`, columns `2*(l%4)` and the next) of matrix `i`.
    pub fn load_matrices<const N: usize>(&'c self, row: Shared<'c>) -> [I32<'c>; N] {
        let intrinsic = if N == 2 { Intrinsic::LdMatrix2 } else { Intrinsic::LdMatrix4 };
        self.unpack(intrinsic, &[row.v.into()], self.i32(0))
    }

    /// `c + a · b` for a 16x16 `a`, a 16x8 `b` and a 16x8 `c`, accumulated in f32.
    pub fn mma(&'c self, ty: MmaType, a: [I32<'c>; 4], b: [I32<'c>; 2], c: [F32<'c>; 4]) -> [F32<'c>; 4] {
        let inputs = a.into_iter().chain(b).map(|word| match ty {
            MmaType::Bf16 => BasicMetadataValueEnum::from(word.v),
            MmaType::F16 => self.as_half_pair(word).into(),
        });
        let args: Vec<BasicMetadataValueEnum> = inputs.chain(c.iter().map(|x| x.v.into())).collect();
        let intrinsic = if ty == MmaType::Bf16 { Intrinsic::MmaBf16 } else { Intrinsic::MmaF16 };
        self.unpack(intrinsic, &args, self.f32(0.0))
    }

    fn as_half_pair(&'c self, word: I32<'c>) -> BasicValueEnum<'c> {
        let ty = self.context.f16_type().vec_type(2);
        self.take(self.llvm.build_bit_cast(word.v, ty, ""), ty.const_zero())
    }

    /// The fields of the struct that an intrinsic returns.
    pub(super) fn unpack<T: Value<'c>, const N: usize>(
        &'c self,
        intrinsic: Intrinsic,
        args: &[BasicMetadataValueEnum<'c>],
        zero: T,
    ) -> [T; N] {
        match self.call(intrinsic, args).and_then(|c| c.try_as_basic_value().basic()) {
            Some(BasicValueEnum::StructValue(all)) => std::array::from_fn(|i| {
                T::from_raw(self, self.take(self.llvm.build_extract_value(all, i as u32, ""), zero.raw()))
            }),
            _ => {
                self.fail(&format!("{intrinsic:?} gave no struct"));
                [zero; N]
            }
        }
    }
}
