//! Threads that bring pages into memory.

use super::pages::Pages;
use super::resident::Shared;
use std::sync::Arc;
use std::thread::JoinHandle;

/// Threads that wait for the disk: two cores got most out of an NVMe disk with two to four (docs/performance.md).
const THREADS: usize = 4;

/// Bytes that are read at once: within what Linux reads for one piece of advice, and enough of them in an expert for all threads.
pub(super) const PIECE: usize = 1 << 20;

/// A piece of a matrix that is to be read.
#[derive(Clone, Copy)]
pub(super) struct Piece {
    pub stack: usize,
    pub expert: usize,
    pub pages: Pages,
}

/// The threads; they end when this is dropped.
pub(super) struct Readers {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Readers {
    pub fn start(shared: Arc<Shared>) -> Readers {
        let threads = (0..THREADS).map_while(|i| {
            let shared = shared.clone();
            std::thread::Builder::new().name(format!("moec-read-{i}")).spawn(move || read(&shared)).ok()
        });
        let threads: Vec<_> = threads.collect();
        Readers { shared, threads }
    }

    /// Whether there is none, so that whoever waits has to read.
    pub fn is_empty(&self) -> bool {
        self.threads.is_empty()
    }
}

fn read(shared: &Shared) {
    while let Some(piece) = shared.next_piece() {
        let result = piece.pages.bring();
        shared.finish(piece, result);
    }
}

impl Drop for Readers {
    fn drop(&mut self) {
        self.shared.stop();
        for thread in self.threads.drain(..) {
            // A reader does nothing that unwinds.
            let _ = thread.join();
        }
    }
}
