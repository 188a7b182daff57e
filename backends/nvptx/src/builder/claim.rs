//! Cluster launch control: a running block takes the place of a cluster of its grid that has not started, which then never
//! starts.

use super::value::{Bool, I32, Shared, Value};
use super::{Builder, Intrinsic};
use inkwell::values::{BasicMetadataValueEnum, BasicValueEnum};

/// Bytes of a response, at a multiple of as many.
pub const CLAIM_BYTES: u32 = 16;

impl<'c> Builder<'c> {
    /// Starts a claim: [`CLAIM_BYTES`] at `response` say what came of it when `barrier` has counted them. After a claim that
    /// was refused there must be none. With `for_all`, every block of the cluster gets them, at its own `response`.
    pub fn claim_cluster(&'c self, response: Shared<'c>, barrier: Shared<'c>, for_all: bool) {
        let intrinsic = if for_all { Intrinsic::ClaimClusterForAll } else { Intrinsic::ClaimCluster };
        self.call(intrinsic, &[response.v.into(), barrier.v.into()]);
    }

    /// What a response says: whether there was such a cluster, and if so the number of its first block along x.
    pub fn claimed(&'c self, response: Shared<'c>) -> (Bool<'c>, I32<'c>) {
        let ty = self.context.i128_type();
        let words = self.vector(&self.load_words(response).map(|w| w.raw()));
        let response: BasicMetadataValueEnum =
            self.take(self.llvm.build_bit_cast(words, ty, ""), ty.const_zero()).into();
        let is_claimed = match self.call(Intrinsic::IsClaimed, &[response]).map(|c| c.try_as_basic_value().basic()) {
            Some(Some(is @ BasicValueEnum::IntValue(_))) => Bool::from_raw(self, is),
            _ => {
                self.fail("a query of a claim gave no truth value");
                self.bool(false)
            }
        };
        (is_claimed, self.call_i32(Intrinsic::ClaimedBlockX, &[response]))
    }
}
