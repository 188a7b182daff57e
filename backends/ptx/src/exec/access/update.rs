//! The memory side of an atomic.

use crate::exec::context::Cx;
use crate::exec::findings::Check;
use crate::exec::program::MemorySpace;
use crate::exec::race::AccessKind;

/// Replaces the element of a lane by `f` of the old value; gives the old value and whether it had been written.
/// `None` after a finding.
pub(crate) fn update(
    cx: &mut Cx<'_>,
    space: MemorySpace,
    address: u64,
    bytes: u32,
    lane: usize,
    f: &mut dyn FnMut(u64) -> u64,
) -> Option<(u64, bool)> {
    match space {
        MemorySpace::Global | MemorySpace::Generic => {
            let (a, offset) = cx.m.global_range(address, u64::from(bytes), u64::from(bytes), Some(lane as u32))?;
            Some(a.update(offset, bytes, f))
        }
        MemorySpace::Shared | MemorySpace::SharedCluster => {
            let (rank, offset) = cx.m.shared_range(
                address,
                u64::from(bytes),
                u64::from(bytes),
                space == MemorySpace::Shared,
                Some(lane as u32),
            )?;
            cx.track_shared(rank, offset, u64::from(bytes), AccessKind::StrongWrite, lane as u32);
            let shared = &mut cx.m.cluster.ctas[rank].shared;
            let (old, init) = shared.load(offset as usize, bytes as usize);
            shared.store(offset as usize, bytes as usize, f(old), if init { 0 } else { u64::MAX });
            Some((old, init))
        }
        MemorySpace::Local | MemorySpace::Frame | MemorySpace::Const | MemorySpace::Param => {
            cx.m.report(Check::Bounds, Some(lane as u32), || {
                "an atomic outside of global and shared memory".to_owned()
            });
            None
        }
    }
}
