//! Memory around which nothing may be touched.

use std::alloc::{Layout, alloc, dealloc};

/// Where memory lies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Place {
    /// Its last byte is a page's last, with a page behind it that cannot be touched.
    #[default]
    EndsAtGuard,
    /// Its first byte is a page's first, with a page before it that cannot be touched.
    BeginsAtGuard,
    /// Exactly as large as asked for, on the heap: what sanitizers watch.
    Heap,
}

impl Place {
    pub const ALL: [Place; 3] = [Place::EndsAtGuard, Place::BeginsAtGuard, Place::Heap];
}

/// Bytes in such memory.
pub struct Guarded {
    place: Place,
    /// What was allocated, with guards.
    all: *mut u8,
    all_bytes: usize,
    start: *mut u8,
    len: usize,
}

const PAGE: usize = 4096;
/// Of memory on the heap: that of arranged rows and scratch memory.
const ALIGN: usize = 64;

impl Guarded {
    pub fn new(bytes: &[u8], place: Place) -> Guarded {
        let room = bytes.len().next_multiple_of(PAGE);
        let (all, all_bytes, start) = match place {
            Place::EndsAtGuard => {
                let map = map(room + PAGE, room);
                (map, room + PAGE, map.wrapping_add(room - bytes.len()))
            }
            Place::BeginsAtGuard => {
                let map = map(room + PAGE, 0);
                (map, room + PAGE, map.wrapping_add(PAGE))
            }
            Place::Heap => {
                // SAFETY: the layout has a size.
                let memory = unsafe { alloc(Layout::from_size_align(bytes.len().max(1), ALIGN).unwrap()) };
                assert!(!memory.is_null());
                (memory, bytes.len().max(1), memory)
            }
        };
        // SAFETY: `bytes.len()` bytes from `start` lie in what was allocated, outside the guard.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), start, bytes.len()) };
        Guarded { place, all, all_bytes, start, len: bytes.len() }
    }

    pub fn pointer(&self) -> *mut u8 {
        self.start
    }

    pub fn bytes(&self) -> &[u8] {
        // SAFETY: the memory is this value's and open.
        unsafe { std::slice::from_raw_parts(self.start, self.len) }
    }

    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and nobody else has it.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.len) }
    }

    pub fn floats(&self) -> Vec<f32> {
        self.bytes().chunks_exact(4).map(|c| f32::from_le_bytes(c.try_into().unwrap())).collect()
    }
}

/// A new mapping, of which the page at `guard` cannot be touched.
fn map(bytes: usize, guard: usize) -> *mut u8 {
    // SAFETY: a new anonymous mapping, of which a page is then closed.
    unsafe {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let map = libc::mmap(std::ptr::null_mut(), bytes, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0);
        assert_ne!(map, libc::MAP_FAILED);
        assert_eq!(libc::mprotect(map.cast::<u8>().add(guard).cast(), PAGE, libc::PROT_NONE), 0);
        map.cast()
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        // SAFETY: what was allocated is this value's own, and this is how.
        unsafe {
            match self.place {
                Place::EndsAtGuard | Place::BeginsAtGuard => {
                    libc::munmap(self.all.cast(), self.all_bytes);
                }
                Place::Heap => dealloc(self.all, Layout::from_size_align(self.all_bytes, ALIGN).unwrap()),
            }
        }
    }
}
