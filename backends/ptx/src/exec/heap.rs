//! The heap of `malloc` and `free` in kernels.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

/// Bytes of the heap: CUDA's default of `cudaLimitMallocHeapSize`.
pub(crate) const HEAP_BYTES: u64 = 8 << 20;
/// Alignment of what `malloc` gives.
const ALIGN: u64 = 16;
/// Bytes between blocks that belong to nobody.
const GUARD: u64 = 16;

/// The blocks of the heap, by offset.
#[derive(Debug, Default)]
pub(crate) struct Heap {
    blocks: Mutex<BTreeMap<u64, u64>>,
}

impl Heap {
    /// The offset of a new block; `None` when there is no room.
    pub fn alloc(&self, bytes: u64) -> Option<u64> {
        let mut blocks = self.blocks.lock().unwrap_or_else(PoisonError::into_inner);
        let room = bytes.max(1).checked_add(GUARD)?.checked_next_multiple_of(ALIGN)?;
        let mut at = 0;
        for (start, size) in blocks.iter() {
            if start - at >= room {
                break;
            }
            at = start + size;
        }
        (at.checked_add(room)? <= HEAP_BYTES).then(|| {
            blocks.insert(at, room);
            at
        })
    }

    /// Frees the block at an offset; gives its bytes.
    pub fn free(&self, offset: u64) -> Option<u64> {
        self.blocks.lock().unwrap_or_else(PoisonError::into_inner).remove(&offset)
    }
}

#[cfg(test)]
mod tests {
    use super::{HEAP_BYTES, Heap};

    #[test]
    fn blocks_do_not_overlap_and_are_used_again() {
        let heap = Heap::default();
        let (a, b) = (heap.alloc(24), heap.alloc(1));
        assert_eq!((a, b), (Some(0), Some(48)));
        assert_eq!(heap.free(0), Some(48));
        assert_eq!(heap.free(0), None);
        assert_eq!(heap.alloc(8), Some(0));
        assert_eq!(heap.alloc(HEAP_BYTES), None);
        assert_eq!(heap.alloc(u64::MAX), None);
    }
}
