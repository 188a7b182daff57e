//! Marks and memory change in one order on all host threads.
//!
//! A write is first compared with the marks of earlier accesses, then marked, then done. Another host thread may come between: then
//! two atomics would be marked in the other order than they were done, or a mark would be there before its value. So strong writes
//! hold a lock of their place from the mark to the write, and weak ones tell which bytes they are at.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks of strong writes; those of one 16-byte piece of memory share one.
const LOCKS: u64 = 64;

pub(crate) struct HostOrder {
    locks: Box<[Mutex<()>]>,
    threads: Box<[Writing]>,
}

/// The bytes that a host thread is writing; none where the end is 0. Apart from the others' for the cache's sake.
#[derive(Default)]
#[repr(align(64))]
struct Writing {
    start: AtomicU64,
    end: AtomicU64,
}

/// A host thread is writing; until it is dropped.
pub(crate) struct Writes<'a>(&'a Writing);

impl Drop for Writes<'_> {
    fn drop(&mut self) {
        self.0.end.store(0, Release);
    }
}

/// What a write holds from its mark until it is done.
#[allow(dead_code)] // Held, not read.
pub(crate) enum Write<'a> {
    Strong(MutexGuard<'a, ()>),
    Weak(Writes<'a>),
}

impl HostOrder {
    pub fn new(threads: usize) -> HostOrder {
        HostOrder {
            locks: (0..LOCKS).map(|_| Mutex::new(())).collect(),
            threads: (0..threads).map(|_| Writing::default()).collect(),
        }
    }

    /// Before a strong write is marked; held until it is done.
    pub fn strong(&self, address: u64) -> MutexGuard<'_, ()> {
        self.locks[(address / 16 % LOCKS) as usize].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Before a weak write of these bytes by a host thread is marked; held until it is done.
    #[inline]
    pub fn weak(&self, thread: usize, address: u64, bytes: u64) -> Writes<'_> {
        let writing = &self.threads[thread];
        writing.start.store(address, Relaxed);
        writing.end.store(address + bytes, Release);
        Writes(writing)
    }

    /// Waits until what others had marked in the word of 8 bytes at `address` is written. Meanwhile the thread counts as writing
    /// nothing: two that wait for each other would wait forever. The word that it is at has not been marked yet, and those before it
    /// are written.
    #[cold]
    pub fn settle(&self, thread: usize, address: u64) {
        let own = &self.threads[thread];
        let end = own.end.swap(0, Release);
        for other in self.threads.iter().filter(|t| !std::ptr::eq(*t, own)) {
            while other.end.load(Acquire) > address && other.start.load(Relaxed) < address + 8 {
                std::thread::yield_now();
            }
        }
        own.end.store(end, Release);
    }
}

#[cfg(test)]
mod tests {
    use super::HostOrder;
    use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

    #[test]
    fn a_marked_word_is_waited_for() {
        let (order, done) = (HostOrder::new(2), AtomicBool::new(false));
        let write = order.weak(0, 64, 16);
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| {
                let _own = order.weak(1, 72, 8);
                order.settle(1, 72);
                assert!(done.load(SeqCst));
            });
            // Other words are not waited for.
            order.settle(0, 128);
            std::thread::sleep(std::time::Duration::from_millis(5));
            done.store(true, SeqCst);
            drop(write);
            waiter.join().unwrap();
        });
    }

    #[test]
    fn two_that_meet_do_not_wait_for_each_other() {
        let order = HostOrder::new(2);
        std::thread::scope(|scope| {
            for thread in 0..2 {
                let order = &order;
                scope.spawn(move || {
                    for _ in 0..1000 {
                        let _write = order.weak(thread, 64, 8);
                        order.settle(thread, 64);
                    }
                });
            }
        });
    }
}
