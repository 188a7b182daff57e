//! Copies of boxes from tensors in global memory to shared memory, by the tensor memory accelerator.
//!
//! One thread starts a copy; its bytes count towards a barrier in shared memory. Coordinates are given innermost first.

use super::value::{I32, Shared};
use super::{Builder, CLUSTER, CtaGroup, Intrinsic, SHARED};
use inkwell::AddressSpace;
use inkwell::values::{BasicMetadataValueEnum, BasicValueEnum, PointerValue};

/// The n-th tensor map of the launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapId(pub u32);

impl<'c> Builder<'c> {
    fn map(&'c self, map: MapId) -> BasicMetadataValueEnum<'c> {
        match self.function.get_nth_param(self.n_pointers as u32 + map.0) {
            Some(BasicValueEnum::PointerValue(p)) => p.into(),
            _ => {
                self.fail("a kernel asked for a tensor map that it does not have");
                self.context.ptr_type(AddressSpace::default()).const_null().into()
            }
        }
    }

    /// Brings a map close before its first use.
    pub fn prefetch_map(&'c self, map: MapId) {
        self.call(Intrinsic::PrefetchMap, &[self.map(map)]);
    }

    /// Starts copying the box that begins at `at`, of two or three coordinates, to `to`. Of a pair, the bytes count towards the
    /// barrier of its first block.
    pub fn copy_box(&'c self, ctas: CtaGroup, to: Shared<'c>, barrier: Shared<'c>, map: MapId, at: &[I32<'c>]) {
        let intrinsic = match (at.len(), ctas) {
            (2, CtaGroup::One) => Intrinsic::TmaLoad2,
            (3, CtaGroup::One) => Intrinsic::TmaLoad3,
            (2, CtaGroup::Pair | CtaGroup::TwoPairs) => Intrinsic::TmaPairLoad2,
            (3, CtaGroup::Pair | CtaGroup::TwoPairs) => Intrinsic::TmaPairLoad3,
            (n, _) => return self.fail(&format!("no box has {n} coordinates here")),
        };
        self.copy(ctas, intrinsic, (to, barrier), map, at, None);
    }

    /// As [`Builder::copy_box`] of one CTA, in the form that PTX 8.0 has: to the cluster's shared memory, of which a CTA's own is
    /// part at the same address.
    pub fn copy_box_in_cluster(&'c self, to: Shared<'c>, barrier: Shared<'c>, map: MapId, at: &[I32<'c>]) {
        let intrinsic = match at.len() {
            2 => Intrinsic::TmaPairLoad2,
            3 => Intrinsic::TmaPairLoad3,
            n => return self.fail(&format!("no box has {n} coordinates here")),
        };
        self.copy_to_cluster(intrinsic, (to, barrier), map, at, None);
    }

    /// As [`Builder::copy_box_in_cluster`], of three coordinates, to this place of the CTAs of the cluster that `ctas` has a bit
    /// for; bytes count at the barrier at this place of each.
    pub fn copy_box_for_all(
        &'c self,
        (to, barrier): (Shared<'c>, Shared<'c>),
        map: MapId,
        at: &[I32<'c>; 3],
        ctas: u32,
    ) {
        self.copy_to_cluster(Intrinsic::TmaPairLoad3, (to, barrier), map, at, Some(ctas));
    }

    fn copy_to_cluster(
        &'c self,
        intrinsic: Intrinsic,
        (to, barrier): (Shared<'c>, Shared<'c>),
        map: MapId,
        at: &[I32<'c>],
        ctas: Option<u32>,
    ) {
        let no = BasicMetadataValueEnum::from(self.bool(false).v);
        let mut args = vec![self.in_space(to.v, CLUSTER).into(), barrier.v.into(), self.map(map)];
        args.extend(at.iter().map(|x| BasicMetadataValueEnum::from(x.v)));
        let mask = self.block_mask(self.i32(ctas.unwrap_or(0))).into();
        let multicast = self.bool(ctas.is_some()).v.into();
        args.extend([mask, self.i64(0).v.into(), multicast, no, self.i32(0).v.into()]);
        self.call(intrinsic, &args);
    }

    /// As [`Builder::copy_box`], of three coordinates, to the blocks of both pairs that have these rows of A.
    pub fn copy_shared_box(&'c self, to: Shared<'c>, barrier: Shared<'c>, map: MapId, at: &[I32<'c>; 3]) {
        let blocks = self.i32(0b101) << (self.cluster_rank() & 1);
        self.copy(CtaGroup::TwoPairs, Intrinsic::TmaPairLoad3, (to, barrier), map, at, Some(blocks));
    }

    /// As [`Builder::copy_box`], the columns that begin at `col` of four rows to four successive rows at `to`. A row that the
    /// tensor does not have, -1 for one, becomes zeros.
    pub fn copy_rows(
        &'c self,
        ctas: CtaGroup,
        to: Shared<'c>,
        barrier: Shared<'c>,
        map: MapId,
        col: I32<'c>,
        rows: [I32<'c>; 4],
    ) {
        let [r0, r1, r2, r3] = rows;
        let intrinsic = if ctas == CtaGroup::One { Intrinsic::TmaGather4 } else { Intrinsic::TmaPairGather4 };
        self.copy(ctas, intrinsic, (to, barrier), map, &[col, r0, r1, r2, r3], None);
    }

    fn copy(
        &'c self,
        ctas: CtaGroup,
        intrinsic: Intrinsic,
        (to, barrier): (Shared<'c>, Shared<'c>),
        map: MapId,
        at: &[I32<'c>],
        blocks: Option<I32<'c>>,
    ) {
        let coordinates = at.iter().map(|x| BasicMetadataValueEnum::from(x.v));
        // No cache hint.
        let (hint, no) = (self.i64(0).v.into(), BasicMetadataValueEnum::from(self.bool(false).v));
        let mut args: Vec<BasicMetadataValueEnum>;
        match ctas {
            CtaGroup::One => {
                args = vec![to.v.into(), barrier.v.into(), self.map(map)];
                args.extend(coordinates);
                args.extend([hint, no]);
            }
            CtaGroup::Pair | CtaGroup::TwoPairs => {
                // A block's own shared memory is part of the cluster's, at the same address. The intrinsic has the barrier in
                // the block's, though the instruction takes one of the other block of the pair.
                let first = if ctas == CtaGroup::Pair { self.i32(0) } else { self.cluster_rank() & 2 };
                let to = self.in_space(to.v, CLUSTER);
                let barrier = self.in_space(self.of_peer(barrier, first), SHARED);
                args = vec![to.into(), barrier.into(), self.map(map)];
                args.extend(coordinates);
                let mask = self.block_mask(blocks.unwrap_or(self.i32(0))).into();
                let multicast = self.bool(blocks.is_some()).v.into();
                args.extend([mask, hint, multicast, no, self.i32(2).v.into()]);
            }
        }
        self.call(intrinsic, &args);
    }

    /// The same address as a pointer to another space.
    fn in_space(&'c self, pointer: PointerValue<'c>, space: u16) -> PointerValue<'c> {
        let (word, ty) = (self.context.i64_type(), self.context.ptr_type(AddressSpace::from(space)));
        let address = self.take(self.llvm.build_ptr_to_int(pointer, word, ""), word.const_zero());
        self.take(self.llvm.build_int_to_ptr(address, ty, ""), ty.const_null())
    }
}
