//! The inner products of row programs: a row with one column of a router's matrix, in generated code.

use super::{Emit, Lanes, plain};
use cranelift_codegen::ir::{InstBuilder, Value};
use moec_ir::DType;

/// Accumulators of four lanes: enough to hide the latency of the multiply-add.
const ACCUMULATORS: usize = 4;
/// Elements of one turn of the loop.
const TURN: u64 = 32;

/// Inner products of length `k` of an activation row with one column of weights.
///
/// Element `i` goes to lane `i mod 4` of accumulator `(i / 4) mod 4`, in ascending order; accumulators are added as
/// `(0 + 1) + (2 + 3)`, lanes as `(0 + 2) + (1 + 3)`, and the last `k mod 4` elements after that.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dot {
    /// Contracted elements.
    pub k: u64,
    /// Type of the activations.
    pub a: DType,
    /// Type of the weights.
    pub w: DType,
}

impl Emit<'_> {
    /// The product of the row at `row` with the column at `w`.
    pub fn dot(&mut self, dot: Dot, row: Value, w: Value) -> Value {
        let zero = self.float(Lanes::Four, 0.0);
        let mut sums = vec![zero; ACCUMULATORS];
        let turns = dot.k / TURN * TURN;
        if turns > 0 {
            sums = self.turns(turns, TURN, &sums, |e, i, sums| {
                let row = e.at(row, i, dot.a.bytes() as u64);
                let w = e.at(w, i, dot.w.bytes() as u64);
                (0..TURN).step_by(8).fold(sums.to_vec(), |sums, at| e.step_eight(dot, row, w, at, &sums))
            });
        }
        let eights = dot.k / 8 * 8;
        for at in (turns..eights).step_by(8) {
            sums = self.step_eight(dot, row, w, at, &sums);
        }
        if dot.k - eights >= 4 {
            sums = self.step_four(dot, row, w, eights, &sums);
        }
        let low = self.b.ins().fadd(sums[0], sums[1]);
        let high = self.b.ins().fadd(sums[2], sums[3]);
        let total = self.b.ins().fadd(low, high);
        let total = self.sum(total);
        if dot.k.is_multiple_of(4) {
            return total;
        }
        let tail = self.tail(dot, row, w);
        self.b.ins().fadd(total, tail)
    }

    /// Adds eight elements, `at` elements behind the pointers.
    fn step_eight(&mut self, dot: Dot, row: Value, w: Value, at: u64, sums: &[Value]) -> Vec<Value> {
        // The loads may move to their uses: their addresses depend on the loop, so they cannot leave it, and beside its
        // use a load becomes an operand of the multiply-add.
        let flags = plain().with_readonly().with_can_move();
        let y = self.load_eight(dot.w, flags, w, (at * dot.w.bytes() as u64) as i32);
        let x = self.load_eight(dot.a, flags, row, (at * dot.a.bytes() as u64) as i32);
        let mut next = sums.to_vec();
        for half in 0..2 {
            let acc = (at as usize / 4 + half) % ACCUMULATORS;
            next[acc] = self.fma(y[half], x[half], next[acc]);
        }
        next
    }

    /// As [`Emit::step_eight`] for four elements.
    fn step_four(&mut self, dot: Dot, row: Value, w: Value, at: u64, sums: &[Value]) -> Vec<Value> {
        let y = self.load(Lanes::Four, dot.w, w, (at * dot.w.bytes() as u64) as i32);
        let x = self.load(Lanes::Four, dot.a, row, (at * dot.a.bytes() as u64) as i32);
        let mut next = sums.to_vec();
        let acc = at as usize / 4 % ACCUMULATORS;
        next[acc] = self.fma(y, x, next[acc]);
        next
    }

    /// The product of the last `k mod 4` elements.
    fn tail(&mut self, dot: Dot, row: Value, w: Value) -> Value {
        let zero = self.float(Lanes::One, 0.0);
        let (first, last) = (self.int(dot.k / 4 * 4), self.int(dot.k));
        self.repeat(first, last, 1, &[zero], |e, i, sums| {
            let at = e.at(w, i, dot.w.bytes() as u64);
            let y = e.load(Lanes::One, dot.w, at, 0);
            let at = e.at(row, i, dot.a.bytes() as u64);
            let x = e.load(Lanes::One, dot.a, at, 0);
            vec![e.fma(y, x, sums[0])]
        })[0]
    }
}
