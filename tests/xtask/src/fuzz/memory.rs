//! An allocator that counts what a thread holds.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    static HELD: Cell<isize> = const { Cell::new(0) };
    static MOST: Cell<isize> = const { Cell::new(0) };
}

/// Starts to count this thread's memory from 0.
pub fn start() {
    HELD.with(|h| h.set(0));
    MOST.with(|m| m.set(0));
}

/// The most bytes held at a time since [`start`].
pub fn most_held() -> usize {
    MOST.with(|m| m.get().max(0) as usize)
}

fn count(bytes: isize) {
    // A thread that is ending has no counters any more.
    let _ = HELD.try_with(|h| {
        h.set(h.get() + bytes);
        let _ = MOST.try_with(|m| m.set(m.get().max(h.get())));
    });
}

struct Counting;

// SAFETY: every call is handed to the system's allocator unchanged; counting touches only cells of this thread.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: as the caller promises for this call.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: as the caller promises for this call.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;
