//! Which CTA wrote a word of global memory last in a launch, and which read it since.
//!
//! A word of 8 bytes has room for one writer and one reader; who comes later takes the place of who was there before, so that a
//! conflict with the one before may go unseen, but what is seen is one. Memory that no kernel has written costs nothing, and a read
//! leaves a mark only where something was written before.

use std::sync::OnceLock;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

/// Words of 8 bytes of a page.
const WORDS: usize = 512;

/// An access in 64 bits; 0 is none, or one that does not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mark(u64);

/// Instruction of accesses whose own number does not fit.
const UNKNOWN_PC: u32 = (1 << 13) - 1;

impl Mark {
    /// An access by an actor of a cluster at its tick, without bytes. `None` when one of the numbers is too large to be told.
    pub fn new(cluster: u64, actor: u32, tick: u32, pc: u32, strong: bool) -> Option<Mark> {
        let fits = cluster < 1 << 16 && actor < 1 << 10 && (1..1 << 16).contains(&tick);
        fits.then(|| {
            let pc = u64::from(pc.min(UNKNOWN_PC));
            Mark(cluster << 48 | u64::from(actor) << 38 | u64::from(tick) << 22 | pc << 9 | u64::from(strong) << 8)
        })
    }

    /// The same of these bytes of the word.
    pub fn of(self, bytes: u8) -> Mark {
        Mark(self.0 & !0xff | u64::from(bytes))
    }

    pub fn bytes(self) -> u8 {
        self.0 as u8
    }

    pub fn strong(self) -> bool {
        self.0 >> 8 & 1 == 1
    }

    /// The instruction, where it is known.
    pub fn pc(self) -> Option<u32> {
        Some((self.0 >> 9) as u32 & UNKNOWN_PC).filter(|pc| *pc != UNKNOWN_PC)
    }

    pub fn tick(self) -> u32 {
        (self.0 >> 22) as u32 & 0xffff
    }

    pub fn actor(self) -> u32 {
        (self.0 >> 38) as u32 & 0x3ff
    }

    pub fn cluster(self) -> u64 {
        self.0 >> 48
    }

    /// Whether it is by the same instruction of the same actor in the same tick.
    #[inline]
    pub fn like(self, other: Mark) -> bool {
        (self.0 ^ other.0) >> 8 == 0
    }
}

/// The marks of 4 KiB.
pub(crate) struct Page {
    writers: Box<[AtomicU64]>,
    readers: OnceLock<Box<[AtomicU64]>>,
}

impl Page {
    fn new() -> Page {
        Page { writers: bytemuck::zeroed_slice_box(WORDS), readers: OnceLock::new() }
    }

    /// Who wrote a word last.
    #[inline]
    pub fn writer(&self, word: usize) -> Option<Mark> {
        match self.writers[word % WORDS].load(Acquire) {
            0 => None,
            mark => Some(Mark(mark)),
        }
    }

    #[inline]
    pub fn wrote(&self, word: usize, mark: Option<Mark>) {
        self.writers[word % WORDS].store(mark.map_or(0, |m| m.0), Release);
    }

    /// Who read a word last since the page was first written.
    #[inline]
    pub fn reader(&self, word: usize) -> Option<Mark> {
        match self.readers.get()?[word % WORDS].load(Relaxed) {
            0 => None,
            mark => Some(Mark(mark)),
        }
    }

    #[inline]
    pub fn read(&self, word: usize, mark: Option<Mark>) {
        let readers = self.readers.get_or_init(|| bytemuck::zeroed_slice_box(WORDS));
        readers[word % WORDS].store(mark.map_or(0, |m| m.0), Relaxed);
    }
}

/// The pages of an allocation that were written.
#[derive(Default)]
pub(crate) struct Shadow {
    pages: OnceLock<Box<[OnceLock<Box<Page>>]>>,
}

impl Shadow {
    /// Whether a CTA of this launch has written here.
    #[inline]
    pub fn is_written(&self) -> bool {
        self.pages.get().is_some()
    }

    /// The page of a word, if it was written.
    #[inline]
    pub fn page(&self, word: usize) -> Option<&Page> {
        self.pages.get()?.get(word / WORDS)?.get().map(Box::as_ref)
    }

    /// The page of a word of an allocation of so many words.
    #[inline]
    pub fn page_to_write(&self, word: usize, words: usize) -> Option<&Page> {
        let pages = self.pages.get_or_init(|| (0..words.div_ceil(WORDS)).map(|_| OnceLock::new()).collect());
        pages.get(word / WORDS).map(|page| page.get_or_init(|| Box::new(Page::new())).as_ref())
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.pages = OnceLock::new();
    }
}

#[cfg(test)]
mod tests {
    use super::{Mark, Shadow};

    #[test]
    fn a_mark_keeps_what_it_is_made_of() {
        let mark = Mark::new(65535, 1023, 65535, 8190, true).unwrap().of(0xf0);
        assert_eq!((mark.cluster(), mark.actor(), mark.tick(), mark.pc()), (65535, 1023, 65535, Some(8190)));
        assert!(mark.strong() && mark.bytes() == 0xf0 && mark.like(mark.of(1)));
        assert_eq!(Mark::new(0, 0, 1, 1 << 20, false).unwrap().pc(), None);
        for (cluster, actor, tick) in [(65536, 0, 1), (0, 1024, 1), (0, 0, 65536), (0, 0, 0)] {
            assert_eq!(Mark::new(cluster, actor, tick, 0, false), None);
        }
    }

    #[test]
    fn pages_are_made_when_they_are_written() {
        let (mut shadow, mark) = (Shadow::default(), Mark::new(1, 2, 3, 4, false));
        assert!(!shadow.is_written() && shadow.page(700).is_none());
        shadow.page_to_write(700, 1024).unwrap().wrote(700, mark);
        assert_eq!((shadow.page(700).unwrap().writer(700), shadow.page(700).unwrap().reader(700)), (mark, None));
        assert!(shadow.page(1).is_none());
        shadow.clear();
        assert!(!shadow.is_written());
    }
}
