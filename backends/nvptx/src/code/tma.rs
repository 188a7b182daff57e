//! Copies of boxes from tensors in global memory to shared memory, by the tensor memory accelerator.
//!
//! One thread starts a copy; its bytes count towards a barrier in shared memory. Coordinates are given innermost first.

use super::value::{I32, Shared};
use super::{Code, Intrinsic};
use inkwell::values::{BasicMetadataValueEnum, BasicValueEnum};

/// The n-th tensor map of the launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapId(pub u32);

impl<'c> Code<'c> {
    fn map(&'c self, map: MapId) -> BasicMetadataValueEnum<'c> {
        match self.function.get_nth_param(self.n_pointers as u32 + map.0) {
            Some(BasicValueEnum::PointerValue(p)) => p.into(),
            _ => {
                self.fail("a kernel asked for a tensor map that it does not have");
                self.context.ptr_type(inkwell::AddressSpace::default()).const_null().into()
            }
        }
    }

    /// Brings a map close before its first use.
    pub fn prefetch_map(&'c self, map: MapId) {
        self.call(Intrinsic::PrefetchMap, &[self.map(map)]);
    }

    /// Starts copying the box that begins at `at`, of two or three coordinates, to `to`.
    pub fn copy_box(&'c self, to: Shared<'c>, barrier: Shared<'c>, map: MapId, at: &[I32<'c>]) {
        let intrinsic = match at.len() {
            2 => Intrinsic::TmaLoad2,
            3 => Intrinsic::TmaLoad3,
            n => return self.fail(&format!("no box has {n} coordinates here")),
        };
        self.copy(intrinsic, to, barrier, map, at);
    }

    /// Starts copying the columns that begin at `col` of four rows to four successive rows at `to`. A row that the tensor
    /// does not have, -1 for one, becomes zeros.
    pub fn copy_rows(&'c self, to: Shared<'c>, barrier: Shared<'c>, map: MapId, col: I32<'c>, rows: [I32<'c>; 4]) {
        let [r0, r1, r2, r3] = rows;
        self.copy(Intrinsic::TmaGather4, to, barrier, map, &[col, r0, r1, r2, r3]);
    }

    fn copy(&'c self, intrinsic: Intrinsic, to: Shared<'c>, barrier: Shared<'c>, map: MapId, at: &[I32<'c>]) {
        let mut args: Vec<BasicMetadataValueEnum> = vec![to.v.into(), barrier.v.into(), self.map(map)];
        args.extend(at.iter().map(|x| BasicMetadataValueEnum::from(x.v)));
        // No cache hint.
        args.extend([self.i64(0).v, self.bool(false).v].map(BasicMetadataValueEnum::from));
        self.call(intrinsic, &args);
    }
}
