//! How fast memory can be read at all, in the same minutes on the same machine.

use std::time::Instant;

/// Memory that no core's caches hold.
const BYTES: usize = 256 << 20;
/// What is read at once.
const PIECE: usize = 64 << 20;

/// Reads memory, and remembers how fast that was. As it does so, what was in the caches leaves them.
pub(super) struct Reader {
    memory: Vec<u64>,
    next: usize,
    threads: usize,
    seen: Vec<f64>,
}

impl Reader {
    pub fn new(threads: usize) -> Reader {
        // Not zero: pages of zeros may be one page.
        Reader { memory: vec![1; BYTES / 8], next: 0, threads, seen: Vec::new() }
    }

    /// Reads the next piece on all threads.
    pub fn read(&mut self) {
        let words = PIECE / 8;
        let piece = &self.memory[self.next..self.next + words];
        self.next = (self.next + words) % self.memory.len();
        let part = (words / self.threads).max(1);
        let start = Instant::now();
        std::thread::scope(|scope| {
            for part in piece.chunks(part).skip(1) {
                scope.spawn(move || std::hint::black_box(sum(part)));
            }
            std::hint::black_box(sum(piece.chunks(part).next().unwrap_or_default()));
        });
        self.seen.push(PIECE as f64 / start.elapsed().as_secs_f64() / 1e9);
    }

    /// GB/s of every read.
    pub fn seen(&self) -> &[f64] {
        &self.seen
    }
}

/// Adds up words as fast as the compiler knows how.
fn sum(words: &[u64]) -> u64 {
    let mut sums = [0u64; 32];
    for chunk in words.chunks_exact(32) {
        for (sum, word) in sums.iter_mut().zip(chunk) {
            *sum = sum.wrapping_add(*word);
        }
    }
    sums.iter().fold(0, |a, b| a.wrapping_add(*b))
}
