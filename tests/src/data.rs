//! Deterministic weights and inputs.

use moec_ir::graph::{Graph, Param};
use moec_ir::{DType, Tensor};

/// A small generator of numbers (splitmix64, Steele et al. 2014): the same on every machine.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// A generator whose numbers depend on `seed` alone.
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    /// A generator for one thing of many: it depends on the seed and the name.
    pub fn named(seed: u64, name: &str) -> Random {
        let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
        Random(seed ^ hash)
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in [-1, 1).
    pub fn signed(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    /// `n` values, uniform in [-scale, scale).
    pub fn values(&mut self, n: usize, scale: f32) -> Vec<f32> {
        (0..n).map(|_| self.signed() * scale).collect()
    }
}

/// Weights for every parameter of a layer, of a size that keeps activations near 1.
pub fn random_params(graph: &Graph, seed: u64) -> Vec<Tensor> {
    graph.params.iter().map(|p| random_param(p, seed)).collect()
}

fn random_param(param: &Param, seed: u64) -> Tensor {
    let shape: Vec<usize> = param.ty.shape.iter().map(|d| d.at(0) as usize).collect();
    let n = shape.iter().product();
    let mut random = Random::named(seed, &param.name);
    let matrix = shape.len() > 1 && !param.name.ends_with("bias");
    let scale = if matrix { (3.0 / shape[shape.len() - 1] as f32).sqrt() } else { 0.1 };
    Tensor::float(param.ty.dtype, &shape, random.values(n, scale))
}

/// Hidden states `[n_tokens, hidden]` whose first column is 1, so that a router's first column is a bias on its logits.
pub fn random_input(dtype: DType, n_tokens: usize, hidden: usize, seed: u64) -> Tensor {
    let mut values = Random::named(seed, "input").values(n_tokens * hidden, 1.7);
    values.chunks_mut(hidden).for_each(|row| row[0] = 1.0);
    Tensor::float(dtype, &[n_tokens, hidden], values)
}
