//! Results that are sums of parts along k, added in the order of the parts: the bits are the same whether one block makes
//! the parts one after another or the blocks of a cluster make one each.
//!
//! Sums of other parts lie in shared memory as f32, `[panel, row, column]`. A thread has one column, and the 32 of a warp
//! have adjacent ones, so that no two meet in a bank.

use crate::builder::{BARRIER_BYTES, Bool, Builder, F32, I32, Shared, Var};
use crate::parts::{Barriers, Ring};

/// Columns of a tile.
const COLS: u32 = 128;
const ROW_BYTES: u32 = COLS * 4;

/// How the steps along k are cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KParts {
    /// Sums that make a result, each over a part of k; added in order.
    pub n: u32,
    /// Whether each part is made by a block of its own, and the first adds them; else one block makes them one after another.
    pub split: bool,
}

impl KParts {
    /// Does `body` for every part that this block makes.
    pub fn each<'c>(self, c: &'c Builder<'c>, body: impl FnOnce(I32<'c>)) {
        match (self.split, self.n) {
            (true, _) => body(c.cluster_rank()),
            (false, 1) => body(c.i32(0)),
            (false, n) => c.range(0, n, 1, body),
        }
    }

    /// Of `n_steps`, the first step of a part and the one behind its last.
    pub fn steps<'c>(self, n_steps: u32, part: I32<'c>) -> (I32<'c>, I32<'c>) {
        (part * n_steps / self.n, (part + 1) * n_steps / self.n)
    }

    /// Of `n_steps`, the first step of this block and the one behind its last.
    pub fn all_steps<'c>(self, c: &'c Builder<'c>, n_steps: u32) -> (I32<'c>, I32<'c>) {
        if self.split { self.steps(n_steps, c.cluster_rank()) } else { (c.i32(0), c.i32(n_steps)) }
    }
}

/// What becomes of the sums of a part.
#[derive(Clone, Copy)]
pub enum End<'c> {
    /// This thread keeps them, with those of the parts before.
    Kept(I32<'c>),
    /// The first block of the cluster gets them.
    Sent,
    /// The others are added to them, and the results stored.
    Stored,
}

/// A thread's column of the sums in shared memory.
pub struct Parts<'c> {
    c: &'c Builder<'c>,
    k: KParts,
    column: Shared<'c>,
    /// Rows of a tile, and bytes of the sums of one part.
    tile_m: u32,
    sum_bytes: u32,
    /// Sums of the other blocks are there; there is room for the next.
    full: Barriers<'c>,
    empty: Barriers<'c>,
    /// A place for one tile's sums.
    round: Ring<'c>,
}

impl<'c> Parts<'c> {
    /// Bytes of the barriers.
    pub const BARRIERS: u32 = 2 * BARRIER_BYTES;

    /// Bytes of the sums of one part.
    pub const fn sum_bytes(panels: u32, tile_m: u32) -> u32 {
        panels * tile_m * ROW_BYTES
    }

    /// For column `col` of the tile. Barriers, and sums of `(panels, rows)`, lie at these offsets.
    pub fn new(
        c: &'c Builder<'c>,
        k: KParts,
        col: I32<'c>,
        (panels, tile_m): (u32, u32),
        (barriers, sums): (u32, u32),
    ) -> Parts<'c> {
        let [full, empty] = Self::barriers(c, barriers);
        let column = c.shared().at(sums).plus(col << 2);
        Parts { c, k, column, tile_m, sum_bytes: Self::sum_bytes(panels, tile_m), full, empty, round: Ring::new(c, 1) }
    }

    fn barriers(c: &'c Builder<'c>, at: u32) -> [Barriers<'c>; 2] {
        [at, at + BARRIER_BYTES].map(|at| Barriers::new(c.shared().at(at), 1))
    }

    /// Makes the barriers at this offset, where blocks share a tile, for `warps` warps with sums. One thread calls.
    pub fn init(c: &'c Builder<'c>, k: KParts, at: u32, warps: u32) {
        if k.split {
            let [full, empty] = Self::barriers(c, at);
            // The first block hears of each warp that sends sums, the others of each warp of it that has read them.
            full.init(c, warps * (k.n - 1));
            empty.init(c, warps);
        }
    }

    /// The sums of the column `n` columns further on.
    pub fn further(&self, n: u32) -> Parts<'c> {
        Parts { column: self.column.at(n * 4), ..*self }
    }

    /// Does `take` with the sums of part `part` of a tile, which this thread has, and what becomes of them. `elected` is one
    /// lane of the warp.
    pub fn end(&self, elected: Bool<'c>, part: I32<'c>, take: impl Fn(End<'c>)) {
        let (c, k) = (self.c, self.k);
        match (k.split, k.n) {
            (true, _) => self.end_of_split(elected, take),
            (false, 1) => take(End::Stored),
            (false, n) => c.either(part.ne(n - 1), || take(End::Kept(part)), || take(End::Stored)),
        }
    }

    fn end_of_split(&self, elected: Bool<'c>, take: impl Fn(End<'c>)) {
        let (c, k) = (self.c, self.k);
        let (full, empty) = (self.full.at(c.i32(0)), self.empty.at(c.i32(0)));
        let first = || {
            c.wait_for_peers(full, self.round.parity());
            take(End::Stored);
            c.warp_barrier();
            c.when(elected, || (1..k.n).for_each(|rank| c.arrive_at_peer(empty, rank)));
        };
        let others = || {
            c.wait_for_peers(empty, self.round.parity_before());
            take(End::Sent);
            c.warp_barrier();
            c.when(elected, || c.arrive_at_peer(full, 0));
        };
        c.either(c.cluster_rank().eq(0), first, others);
        self.round.advance();
    }

    /// Does `take` for every part of a tile that this block makes: the part, and what becomes of its sums. `elected` is one
    /// lane of the warp.
    pub fn tile(&self, elected: Bool<'c>, take: impl Fn(I32<'c>, End<'c>)) {
        let (c, k) = (self.c, self.k);
        if !k.split {
            if k.n > 1 {
                c.range(0, k.n - 1, 1, |part| take(part, End::Kept(part)));
            }
            return take(c.i32(k.n - 1), End::Stored);
        }
        let rank = c.cluster_rank();
        self.end_of_split(elected, |end| take(rank, end));
    }

    /// Byte offset of 16 rows of a panel from `row` on in the column.
    fn rows(&self, panel: usize, row: I32<'c>) -> Shared<'c> {
        self.column.plus(row * ROW_BYTES).at(panel as u32 * self.tile_m * ROW_BYTES)
    }

    /// Does with the sums of 16 rows from `row` on, of which `rows` are there, what has to be done; true when they are
    /// complete.
    pub fn add(&self, end: End<'c>, row: I32<'c>, rows: I32<'c>, sums: &mut [Vec<F32<'c>>]) -> bool {
        match end {
            End::Kept(part) => self.keep(part, row, sums),
            End::Sent => self.send(row, rows, sums),
            End::Stored => self.add_others(row, sums),
        }
        matches!(end, End::Stored)
    }

    fn keep(&self, part: I32<'c>, row: I32<'c>, sums: &[Vec<F32<'c>>]) {
        let c = self.c;
        let is_first = part.eq(0);
        for (p, sums) in sums.iter().enumerate() {
            let rows = self.rows(p, row);
            c.when(is_first, || sums.iter().enumerate().for_each(|(i, &x)| c.store_f32(nth_row(rows, i), x)));
            c.when(is_first.not(), || {
                for (i, &x) in sums.iter().enumerate() {
                    let place = nth_row(rows, i);
                    c.store_f32(place, c.load_f32(place) + x);
                }
            });
        }
    }

    fn send(&self, row: I32<'c>, rows: I32<'c>, sums: &[Vec<F32<'c>>]) {
        let c = self.c;
        let to = (c.cluster_rank() - 1) * self.sum_bytes;
        for (p, sums) in sums.iter().enumerate() {
            let first = self.rows(p, row).plus(to);
            for (i, &x) in sums.iter().enumerate() {
                c.when(c.i32(i as u32).lt(rows), || c.store_f32_to_peer(nth_row(first, i), c.i32(0), x));
            }
        }
    }

    fn add_others(&self, row: I32<'c>, sums: &mut [Vec<F32<'c>>]) {
        let c = self.c;
        if self.k.n == 1 {
            return;
        }
        if !self.k.split {
            for (p, sums) in sums.iter_mut().enumerate() {
                let rows = self.rows(p, row);
                sums.iter_mut().enumerate().for_each(|(i, x)| *x = c.load_f32(nth_row(rows, i)) + *x);
            }
            return;
        }
        let totals: Vec<Vec<Var<F32>>> = sums.iter().map(|s| s.iter().map(|&x| c.var(x)).collect()).collect();
        c.range(0, self.k.n - 1, 1, |part| {
            for (p, totals) in totals.iter().enumerate() {
                let rows = self.rows(p, row).plus(part * self.sum_bytes);
                totals.iter().enumerate().for_each(|(i, x)| x.set(x.get() + c.load_f32(nth_row(rows, i))));
            }
        });
        for (sums, totals) in sums.iter_mut().zip(&totals) {
            sums.iter_mut().zip(totals).for_each(|(x, total)| *x = total.get());
        }
    }
}

fn nth_row(first: Shared<'_>, i: usize) -> Shared<'_> {
    first.at(i as u32 * ROW_BYTES)
}
