//! Which pieces of a parameter have been copied whole, while many threads copy rows of them.

use crate::resolve::Piece;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

/// Told of a piece whose rows have all been copied, by the thread that copied the last of them.
pub(crate) type Done<'d> = &'d (dyn Fn(&Piece<'_>) + Sync);

/// What is left to be copied of each piece: stored bytes are let go as soon as nothing is, so that a parameter does not lie in memory
/// twice, and no thread waits for another.
pub(crate) struct Progress<'p> {
    pieces: &'p [Piece<'p>],
    per_piece: u64,
    left: Vec<AtomicU64>,
    done: Done<'p>,
}

impl<'p> Progress<'p> {
    /// Of pieces of `per_piece` rows each, which is not zero.
    pub fn new(pieces: &'p [Piece<'p>], per_piece: u64, done: Done<'p>) -> Progress<'p> {
        Progress { pieces, per_piece, left: pieces.iter().map(|_| AtomicU64::new(per_piece)).collect(), done }
    }

    /// Counts rows, of the parameter, that have been copied; each row is counted once.
    pub fn copied(&self, rows: Range<u64>) {
        let first = (rows.start / self.per_piece) as usize;
        for (i, (piece, left)) in self.pieces.iter().zip(&self.left).enumerate().skip(first) {
            let of_piece = i as u64 * self.per_piece..(i as u64 + 1) * self.per_piece;
            if of_piece.start >= rows.end {
                break;
            }
            let count = rows.end.min(of_piece.end) - rows.start.max(of_piece.start);
            // Whoever counts down to zero comes after the reads of all others.
            if left.fetch_sub(count, Ordering::AcqRel) == count {
                (self.done)(piece);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::Elements;
    use crate::strided::Strided;
    use moec_ir::DType;
    use rayon::prelude::*;
    use std::sync::Mutex;

    #[test]
    fn every_piece_is_done_once_when_its_last_row_is_copied() {
        let piece = |i: usize| Piece {
            name: i.to_string(),
            tensor: i.to_string(),
            stored: String::new(),
            elements: Elements::Plain(DType::F32, &[]),
            view: Strided::dense(&[7, 1]),
        };
        let pieces: Vec<Piece<'_>> = (0..5).map(piece).collect();
        let told = Mutex::new(Vec::new());
        let done = |p: &Piece<'_>| told.lock().expect("told").push(p.name.clone());
        let progress = Progress::new(&pieces, 7, &done);
        // Rows 3 to 24: all of the second and third piece, in parts that begin and end anywhere.
        for rows in [20..25, 3..8, 8..20] {
            progress.copied(rows);
        }
        assert_eq!(*told.lock().expect("told"), ["1", "2"]);
        (0..3).chain(25..35).collect::<Vec<u64>>().par_iter().for_each(|&row| progress.copied(row..row + 1));
        let mut all = told.lock().expect("told").clone();
        all.sort();
        assert_eq!(all, ["0", "1", "2", "3", "4"]);
    }
}
