//! mbarriers: what warps with different roles wait for.
//!
//! A barrier counts arrivals and bytes of asynchronous copies; when both are complete its phase ends and the next begins.
//! A wait names the phase by its parity and comes back at once for the parity before the first phase.

use super::value::{Bool, I32, Shared, ToI32, Value};
use super::{Builder, Intrinsic};
use inkwell::values::BasicValueEnum;

/// Bytes of a barrier.
pub const BARRIER_BYTES: u32 = 8;

impl<'c> Builder<'c> {
    /// Makes the 8 bytes at `barrier` a barrier whose phases take `arrivals` arrivals.
    pub fn init_barrier(&'c self, barrier: Shared<'c>, arrivals: u32) {
        self.call(Intrinsic::BarrierInit, &[barrier.v.into(), self.i32(arrivals).v.into()]);
    }

    /// Makes this thread's new barriers known to asynchronous copies; a barrier of the block must follow.
    pub fn publish_barriers(&'c self) {
        self.call(Intrinsic::FenceBarrierInit, &[]);
    }

    /// Arrives: what this thread did before is seen by whoever waits for the phase.
    pub fn arrive(&'c self, barrier: Shared<'c>) {
        self.arrive_for(barrier, 1);
    }

    /// Arrives in the place of `n`.
    pub fn arrive_for(&'c self, barrier: Shared<'c>, n: u32) {
        self.call(Intrinsic::BarrierArrive, &[barrier.v.into(), self.i32(n).v.into()]);
    }

    /// Arrives and adds `bytes` to the bytes that copies must bring before the phase ends.
    pub fn arrive_expecting(&'c self, barrier: Shared<'c>, bytes: impl ToI32<'c>) {
        let bytes = bytes.to(self);
        self.call(Intrinsic::BarrierArriveExpect, &[barrier.v.into(), bytes.v.into()]);
    }

    /// Arrives at the barrier that block `rank` of the cluster has at this place: what this thread did before is seen by
    /// whoever waits with [`Builder::wait_for_peers`].
    pub fn arrive_at_peer(&'c self, barrier: Shared<'c>, rank: impl ToI32<'c>) {
        let peer = self.of_peer(barrier, rank);
        self.call(Intrinsic::BarrierArrivePeer, &[peer.into(), self.i32(1).v.into()]);
    }

    /// Waits until the phase of this parity (0 or 1) has ended.
    pub fn wait_for(&'c self, barrier: Shared<'c>, parity: I32<'c>) {
        self.wait(Intrinsic::BarrierTryWait, barrier, parity);
    }

    /// As [`Builder::wait_for`], where threads of other blocks of the cluster arrive: what they did is seen.
    pub fn wait_for_peers(&'c self, barrier: Shared<'c>, parity: I32<'c>) {
        self.wait(Intrinsic::BarrierTryWaitPeers, barrier, parity);
    }

    fn wait(&'c self, intrinsic: Intrinsic, barrier: Shared<'c>, parity: I32<'c>) {
        self.repeat(|| {
            let done = self.call(intrinsic, &[barrier.v.into(), parity.v.into()]);
            match done.and_then(|c| c.try_as_basic_value().basic()) {
                Some(done @ BasicValueEnum::IntValue(_)) => Bool::from_raw(self, done).not(),
                _ => {
                    self.fail("a wait gave no truth value");
                    self.bool(false)
                }
            }
        });
    }

    /// Makes this thread's writes to shared memory visible to tensor cores; a barrier must follow.
    pub fn publish_shared(&'c self) {
        self.call(Intrinsic::FenceProxyAsync, &[]);
    }

    /// True for one lane of the warp. All lanes must take part.
    pub fn elect(&'c self) -> Bool<'c> {
        let both = self.call(Intrinsic::Elect, &[self.full_warp().v.into()]);
        match both.and_then(|c| c.try_as_basic_value().basic()) {
            Some(BasicValueEnum::StructValue(both)) => {
                let zero = self.context.bool_type().const_zero();
                Bool::from_raw(self, self.take(self.llvm.build_extract_value(both, 1, ""), zero))
            }
            _ => {
                self.fail("elect gave no struct");
                self.bool(false)
            }
        }
    }
}
