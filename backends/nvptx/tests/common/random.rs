//! Reproducible tensors.
#![allow(dead_code)]

use super::programs::Gemm;
use moec_ir::tile::{Program, Role};
use moec_ir::{DType, Tensor};

/// A small generator (splitmix64): the tests need the same numbers everywhere, not good ones.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Between -1 and 1.
    pub fn unit(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u32 << 23) as f32 - 1.0
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    pub fn tensor(&mut self, dtype: DType, shape: &[usize], scale: f32) -> Tensor {
        let n = shape.iter().product();
        Tensor::float(dtype, shape, (0..n).map(|_| self.unit() * scale).collect())
    }
}

/// Random inputs and parameters of a program, in the order of their numbers. Integer inputs are zeros.
pub fn tensors(program: &Program, n_tokens: u64, seed: u64) -> (Vec<Tensor>, Vec<Tensor>) {
    let mut random = Random(seed);
    let mut inputs: Vec<(u32, Tensor)> = Vec::new();
    let mut weights: Vec<(u32, Tensor)> = Vec::new();
    for b in &program.buffers {
        let shape = [(b.batch * b.rows.at(n_tokens)) as usize, b.cols as usize];
        let make = |random: &mut Random, scale| {
            if b.dtype.is_float() {
                random.tensor(b.dtype, &shape, scale)
            } else {
                Tensor::int(b.dtype, &shape, vec![0; shape[0] * shape[1]])
            }
        };
        match b.role {
            Role::Input(i) => inputs.push((i, make(&mut random, 1.0))),
            // Keeps sums over the columns of the order of one.
            Role::Weight(i) => weights.push((i, make(&mut random, 2.0 / (b.cols as f32).sqrt()))),
            Role::WeightScale(_) | Role::WeightGlobal(_) | Role::Output(_) | Role::Workspace | Role::Counter => {}
        }
    }
    let sorted = |mut list: Vec<(u32, Tensor)>| {
        list.sort_by_key(|(i, _)| *i);
        list.into_iter().map(|(_, t)| t).collect()
    };
    (sorted(inputs), sorted(weights))
}

/// Sets the inputs of a [`super::programs::gemm`] that are numbers of rows: random cuts between experts, some of them empty, and random rows
/// to gather.
pub fn set_rows(g: &Gemm, inputs: &mut [Tensor], n_tokens: u64, random: &mut Random) {
    let rows = if g.gather { 2 * n_tokens } else { n_tokens };
    let mut next = 1;
    if g.n_experts > 0 {
        let mut cuts: Vec<i64> = (1..g.n_experts).map(|_| random.below(rows + 1) as i64).collect();
        cuts.sort_unstable();
        let offsets = std::iter::once(0).chain(cuts).chain([rows as i64]).collect();
        inputs[next] = Tensor::int(DType::I32, &[1, g.n_experts as usize + 1], offsets);
        next += 1;
    }
    if g.gather {
        let map = (0..rows).map(|_| random.below(n_tokens) as i64).collect();
        inputs[next] = Tensor::int(DType::I32, &[rows as usize, 1], map);
    }
}
