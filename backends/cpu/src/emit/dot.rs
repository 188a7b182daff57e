//! The inner kernel of every matrix product: a few rows times one column, all accumulators in registers.
//!
//! One column at a time, because weights then come from memory as one sequential stream, which is what hardware
//! prefetchers follow: two or eight columns at once, a few KiB apart, reached half to two thirds of the bandwidth of one.

use super::{Emit, Lanes, plain};
use cranelift_codegen::ir::{InstBuilder, Value};
use moec_ir::DType;

/// Accumulators of four lanes for one product: enough to hide the latency of the multiply-add for a single row.
const ACCUMULATORS: usize = 4;
/// Elements of one turn of the loop for one row, and for several.
const TURN: [u64; 2] = [32, 16];

/// Inner products of length `k` of a few activation rows with one column of weights.
///
/// Element `i` goes to lane `i mod 4` of accumulator `(i / 4) mod 4`, in ascending order; accumulators are added as
/// `(0 + 1) + (2 + 3)`, lanes as `(0 + 2) + (1 + 3)`, and the last `k mod 4` elements after that. So a product has the
/// same bits whatever the number of rows, and a token's result does not depend on its batch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DotBlock {
    /// Contracted elements.
    pub k: u64,
    /// Type of the activations.
    pub a: DType,
    /// Type of the weights.
    pub w: DType,
}

impl Emit<'_> {
    /// The products of each of one to four rows, which start at `rows`, with the column at `w`: one lane for each row.
    pub fn dot_block(&mut self, block: DotBlock, rows: &[Value], w: Value) -> Value {
        let sizes = (block.a.bytes() as u64, block.w.bytes() as u64);
        let zero = self.float(Lanes::Four, 0.0);
        let mut sums = vec![zero; rows.len() * ACCUMULATORS];
        let turn = TURN[usize::from(rows.len() > 1)];
        let turns = block.k / turn * turn;
        if turns > 0 {
            sums = self.turns(turns, turn, &sums, |e, i, sums| {
                let rows: Vec<Value> = rows.iter().map(|&p| e.at(p, i, sizes.0)).collect();
                let w = e.at(w, i, sizes.1);
                (0..turn).step_by(8).fold(sums.to_vec(), |sums, at| e.step_eight(block, &rows, w, at, &sums))
            });
        }
        let eights = block.k / 8 * 8;
        for at in (turns..eights).step_by(8) {
            sums = self.step_eight(block, rows, w, at, &sums);
        }
        if block.k - eights >= 4 {
            sums = self.step_four(block, rows, w, eights, &sums);
        }
        let mut totals: Vec<Value> = sums
            .chunks(ACCUMULATORS)
            .map(|accs| {
                let low = self.b.ins().fadd(accs[0], accs[1]);
                let high = self.b.ins().fadd(accs[2], accs[3]);
                self.b.ins().fadd(low, high)
            })
            .collect();
        totals.resize(4, zero);
        let total = self.sums([totals[0], totals[1], totals[2], totals[3]]);
        if block.k.is_multiple_of(4) {
            return total;
        }
        let mut tail = zero;
        for (lane, x) in self.tail(block, rows, w).into_iter().enumerate() {
            tail = self.b.ins().insertlane(tail, x, lane as u8);
        }
        self.b.ins().fadd(total, tail)
    }

    /// Adds eight elements, `at` elements behind the pointers.
    fn step_eight(&mut self, block: DotBlock, rows: &[Value], w: Value, at: u64, sums: &[Value]) -> Vec<Value> {
        // The loads may move to their uses: their addresses depend on the loop, so they cannot leave it, and beside its
        // use a load becomes an operand of the multiply-add.
        let flags = plain().with_readonly().with_can_move();
        let y = self.load_eight(block.w, flags, w, (at * block.w.bytes() as u64) as i32);
        let mut next = sums.to_vec();
        for (row, &p) in rows.iter().enumerate() {
            let x = self.load_eight(block.a, flags, p, (at * block.a.bytes() as u64) as i32);
            for half in 0..2 {
                let acc = row * ACCUMULATORS + (at as usize / 4 + half) % ACCUMULATORS;
                next[acc] = self.fma(y[half], x[half], next[acc]);
            }
        }
        next
    }

    /// As [`Emit::step_eight`] for four elements.
    fn step_four(&mut self, block: DotBlock, rows: &[Value], w: Value, at: u64, sums: &[Value]) -> Vec<Value> {
        let y = self.load(Lanes::Four, block.w, w, (at * block.w.bytes() as u64) as i32);
        let mut next = sums.to_vec();
        for (row, &p) in rows.iter().enumerate() {
            let x = self.load(Lanes::Four, block.a, p, (at * block.a.bytes() as u64) as i32);
            let acc = row * ACCUMULATORS + at as usize / 4 % ACCUMULATORS;
            next[acc] = self.fma(y, x, next[acc]);
        }
        next
    }

    /// The products of the last `k mod 4` elements, as scalars.
    fn tail(&mut self, block: DotBlock, rows: &[Value], w: Value) -> Vec<Value> {
        let zero = self.float(Lanes::One, 0.0);
        let (first, last) = (self.int(block.k / 4 * 4), self.int(block.k));
        self.repeat(first, last, 1, &vec![zero; rows.len()], |e, i, sums| {
            let at = e.at(w, i, block.w.bytes() as u64);
            let y = e.load(Lanes::One, block.w, at, 0);
            let mut next = Vec::with_capacity(sums.len());
            for (&p, &sum) in rows.iter().zip(sums) {
                let at = e.at(p, i, block.a.bytes() as u64);
                let x = e.load(Lanes::One, block.a, at, 0);
                next.push(e.fma(y, x, sum));
            }
            next
        })
    }
}
