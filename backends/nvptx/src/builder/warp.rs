//! Exchange between the lanes of a warp. All lanes must take part.

use super::value::{Bool, F32, I32, ToI32};
use super::{Builder, Intrinsic};

impl<'c> Builder<'c> {
    /// The value of lane `lane`.
    pub fn read_lane(&'c self, x: I32<'c>, lane: impl ToI32<'c>) -> I32<'c> {
        let lane = lane.to(self);
        self.call_i32(
            Intrinsic::ShflIdx,
            &[self.full_warp().v.into(), x.v.into(), lane.v.into(), self.i32(31).v.into()],
        )
    }

    /// The value of the lane whose number differs in the bits `mask`.
    pub fn read_peer(&'c self, x: I32<'c>, mask: u32) -> I32<'c> {
        let (mask, clamp) = (self.i32(mask), self.i32(31));
        self.call_i32(Intrinsic::ShflBfly, &[self.full_warp().v.into(), x.v.into(), mask.v.into(), clamp.v.into()])
    }

    /// The mask of lanes where `condition` holds.
    pub fn ballot(&'c self, condition: Bool<'c>) -> I32<'c> {
        self.call_i32(Intrinsic::Ballot, &[self.full_warp().v.into(), condition.v.into()])
    }

    /// The mask of lanes with an equal `x`.
    pub fn equal_lanes(&'c self, x: I32<'c>) -> I32<'c> {
        self.call_i32(Intrinsic::MatchAny, &[self.full_warp().v.into(), x.v.into()])
    }

    /// The largest `x` of the warp.
    pub fn warp_max(&'c self, x: I32<'c>) -> I32<'c> {
        self.call_i32(Intrinsic::ReduxUmax, &[x.v.into(), self.full_warp().v.into()])
    }

    /// The smallest `x` of the warp.
    pub fn warp_min(&'c self, x: I32<'c>) -> I32<'c> {
        self.call_i32(Intrinsic::ReduxUmin, &[x.v.into(), self.full_warp().v.into()])
    }

    /// The sum over the warp, the same bits in every lane: pairs at distance 16 first, then 8, 4, 2, 1.
    pub fn warp_sum(&'c self, x: F32<'c>) -> F32<'c> {
        [16, 8, 4, 2, 1].iter().fold(x, |x, &mask| x + self.read_peer(x.bits(), mask).as_f32())
    }

    /// The largest over the warp; NaN when one is NaN.
    pub fn warp_maximum(&'c self, x: F32<'c>) -> F32<'c> {
        [16, 8, 4, 2, 1].iter().fold(x, |x, &mask| x.maximum(self.read_peer(x.bits(), mask).as_f32()))
    }

    /// The sum of `x` over this lane and all lanes before it.
    pub fn warp_prefix_sum(&'c self, x: I32<'c>, lane: I32<'c>) -> I32<'c> {
        [1u32, 2, 4, 8, 16].iter().fold(x, |x, &distance| {
            let args = [self.full_warp().v.into(), x.v.into(), self.i32(distance).v.into(), self.i32(0).v.into()];
            let before = self.call_i32(Intrinsic::ShflUp, &args);
            x + self.select(lane.ge(distance), before, self.i32(0))
        })
    }
}
