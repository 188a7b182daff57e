//! The inner kernel of every matrix product: a few rows times a few columns, all accumulators in registers.

use super::{Emit, Lanes, plain};
use cranelift_codegen::ir::{InstBuilder, Value};
use moec_ir::DType;

/// A block of inner products of length `k`: `rows` activation rows by `cols` columns of each of `panels` matrices.
///
/// Each product has one accumulator of four lanes, which adds elements `4i + lane` in ascending order; the lanes are
/// added as `(0 + 2) + (1 + 3)` and the last `k mod 4` elements after that. So a product has the same bits in every block
/// shape, and a token's result does not depend on how many rows its expert has.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DotBlock {
    pub rows: usize,
    pub cols: usize,
    pub panels: usize,
    /// Contracted elements.
    pub k: u64,
    /// Type of the activations.
    pub a: DType,
    /// Type of the weights.
    pub w: DType,
    /// Distance of two columns' weights (rows of the weight matrix), in bytes.
    pub w_pitch: u64,
}

impl DotBlock {
    fn products(self) -> usize {
        self.rows * self.cols * self.panels
    }
}

impl Emit<'_> {
    /// Emits the products of `a[row] · w[panel][col]`.
    ///
    /// `a`: where each row starts. `w`: where the first column of each panel starts. Returns for each panel its products,
    /// row by row, four to a vector; the last vector repeats its last product where there are fewer.
    pub fn dot_block(&mut self, block: DotBlock, a: &[Value], w: &[Value]) -> Vec<Vec<Value>> {
        let sizes = (block.a.bytes() as u64, block.w.bytes() as u64);
        let zero = self.float(Lanes::Four, 0.0);
        let mut sums = vec![zero; block.products()];
        let eights = block.k / 8 * 8;
        if eights > 0 {
            // Two steps a turn halve the loop's own cost; the rest, if any, is one step behind the loop.
            let per_turn = if eights >= 32 { 16 } else { 8 };
            let turns = eights / per_turn * per_turn;
            let (first, last) = (self.int(0), self.int(turns));
            sums = self.repeat(first, last, per_turn as i64, &sums, |e, i, sums| {
                let a: Vec<Value> = a.iter().map(|&p| e.at(p, i, sizes.0)).collect();
                let w: Vec<Value> = w.iter().map(|&p| e.at(p, i, sizes.1)).collect();
                let mut sums = sums.to_vec();
                for step in 0..per_turn / 8 {
                    sums = e.step_eight(block, &a, &w, step * 8, sums);
                }
                sums
            });
            if turns < eights {
                sums = self.step_eight(block, a, w, turns, sums);
            }
        }
        if block.k - eights >= 4 {
            sums = self.step_four(block, a, w, eights, sums);
        }
        let tail = (block.k % 4 > 0).then(|| self.tail(block, a, w));

        (0..block.panels)
            .map(|p| {
                let of_panel: Vec<usize> = (0..block.rows)
                    .flat_map(|r| (0..block.cols).map(move |c| (r * block.panels + p) * block.cols + c))
                    .collect();
                of_panel
                    .chunks(4)
                    .map(|four| {
                        let pick = |i: usize| four[i.min(four.len() - 1)];
                        let vector = self.sums([0, 1, 2, 3].map(|i| sums[pick(i)]));
                        let Some(tail) = &tail else { return vector };
                        let mut last = self.float(Lanes::Four, 0.0);
                        for i in 0..4 {
                            last = self.b.ins().insertlane(last, tail[pick(i)], i as u8);
                        }
                        self.b.ins().fadd(vector, last)
                    })
                    .collect()
            })
            .collect()
    }

    /// Adds eight elements, `at` elements behind the pointers, to every accumulator.
    fn step_eight(&mut self, block: DotBlock, a: &[Value], w: &[Value], at: u64, sums: Vec<Value>) -> Vec<Value> {
        // The loads may move to their uses: their addresses depend on the loop, so they cannot leave it, and placing each
        // beside its use keeps the block within sixteen registers.
        let flags = plain().with_readonly().with_can_move();
        let (a_at, w_at) = (at * block.a.bytes() as u64, at * block.w.bytes() as u64);
        let rows: Vec<[Value; 2]> = a.iter().map(|&p| self.load_eight(block.a, flags, p, a_at as i32)).collect();
        let streams: Vec<[Value; 2]> = w
            .iter()
            .flat_map(|&p| (0..block.cols as u64).map(move |c| (p, (w_at + c * block.w_pitch) as i32)))
            .map(|(p, offset)| self.load_eight(block.w, flags, p, offset))
            .collect();
        let mut next = Vec::with_capacity(sums.len());
        for x in &rows {
            for y in &streams {
                let s = self.fma(y[0], x[0], sums[next.len()]);
                next.push(self.fma(y[1], x[1], s));
            }
        }
        next
    }

    /// As [`Emit::step_eight`] for four elements.
    fn step_four(&mut self, block: DotBlock, a: &[Value], w: &[Value], at: u64, sums: Vec<Value>) -> Vec<Value> {
        let (a_at, w_at) = (at * block.a.bytes() as u64, at * block.w.bytes() as u64);
        let rows: Vec<Value> = a.iter().map(|&p| self.load(Lanes::Four, block.a, p, a_at as i32)).collect();
        let mut streams = Vec::new();
        for &p in w {
            for c in 0..block.cols as u64 {
                streams.push(self.load(Lanes::Four, block.w, p, (w_at + c * block.w_pitch) as i32));
            }
        }
        let mut next = Vec::with_capacity(sums.len());
        for &x in &rows {
            for &y in &streams {
                next.push(self.fma(y, x, sums[next.len()]));
            }
        }
        next
    }

    /// The products of the last `k mod 4` elements, as scalars.
    fn tail(&mut self, block: DotBlock, a: &[Value], w: &[Value]) -> Vec<Value> {
        let zero = self.float(Lanes::One, 0.0);
        let (first, last) = (self.int(block.k / 4 * 4), self.int(block.k));
        self.repeat(first, last, 1, &vec![zero; block.products()], |e, i, sums| {
            let mut rows = Vec::new();
            for &p in a {
                let p = e.at(p, i, block.a.bytes() as u64);
                rows.push(e.load(Lanes::One, block.a, p, 0));
            }
            let mut streams = Vec::new();
            for &p in w {
                let p = e.at(p, i, block.w.bytes() as u64);
                for c in 0..block.cols as u64 {
                    streams.push(e.load(Lanes::One, block.w, p, (c * block.w_pitch) as i32));
                }
            }
            let mut next = Vec::with_capacity(sums.len());
            for &x in &rows {
                for &y in &streams {
                    next.push(e.fma(y, x, sums[next.len()]));
                }
            }
            next
        })
    }
}
