//! When stored bytes that have been copied are let go, while many threads copy rows of a parameter.

use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes of a buffer that are packed before the stored ones are let go.
const BYTES: u64 = 8 << 20;

/// Stored tensors that are read before all pages are let go: around each the system may map 2 MiB, of tensors that nobody asked for.
pub(crate) const TENSORS: u64 = 4;

/// Lets go of what has been read.
pub(crate) type Release<'r> = &'r (dyn Fn() + Sync);

/// Counts rows that have been copied. Stored bytes are let go after some of them, so that a parameter does not lie in memory
/// twice, and no thread waits for another; what is let go too early is read again.
pub(crate) struct ReadOnce<'r> {
    /// Rows that are copied before pages are let go.
    every: u64,
    copied: AtomicU64,
    release: Release<'r>,
}

impl<'r> ReadOnce<'r> {
    /// Of tensors of `rows_of_tensor` rows, each of which takes `row_bytes` in the buffer.
    pub fn new(rows_of_tensor: u64, row_bytes: usize, release: Release<'r>) -> ReadOnce<'r> {
        let every = rows_of_tensor.saturating_mul(TENSORS).min(BYTES / row_bytes.max(1) as u64).max(1);
        ReadOnce { every, copied: AtomicU64::new(0), release }
    }

    /// Counts rows; each row is counted once.
    pub fn copied(&self, rows: u64) {
        let before = self.copied.fetch_add(rows, Ordering::Relaxed);
        if before / self.every != (before + rows) / self.every {
            (self.release)();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rayon::prelude::*;

    #[test]
    fn pages_are_let_go_after_tensors_and_after_bytes() {
        for (rows_of_tensor, row_bytes, every) in [(5, 100, 20), (1 << 40, 2 << 20, 4), (u64::MAX, 64 << 20, 1)] {
            let count = AtomicU64::new(0);
            let release = || {
                count.fetch_add(1, Ordering::Relaxed);
            };
            let rows = ReadOnce::new(rows_of_tensor, row_bytes, &release);
            // Rows come in any order, and several at a time.
            (0..every * 10).collect::<Vec<u64>>().par_iter().for_each(|_| rows.copied(1));
            assert_eq!(count.load(Ordering::Relaxed), 10);
            rows.copied(every * 3);
            assert_eq!(count.load(Ordering::Relaxed), 11);
        }
    }
}
