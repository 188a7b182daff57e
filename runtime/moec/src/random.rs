//! Deterministic random tensors, for trials and tests without a checkpoint.

use moec_ir::graph::Graph;
use moec_ir::shape::TensorType;
use moec_ir::weights::WeightSource;
use moec_ir::{DType, Tensor};

/// A small generator of numbers: the same on every machine.
///
/// Source: Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators" (SplitMix64).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// A generator for one thing of many: its numbers depend on the seed and the name alone.
    pub fn new(seed: u64, name: &str) -> Random {
        // FNV-1a: different names give unrelated streams.
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

/// A tensor of type `ty` with variance 1, or, for integers, values in 0..1024.
pub fn random_tensor(ty: &TensorType, n_tokens: u64, seed: u64, name: &str) -> Tensor {
    let shape: Vec<usize> = ty.shape.iter().map(|d| d.at(n_tokens) as usize).collect();
    let n = shape.iter().product();
    let mut random = Random::new(seed, name);
    match ty.dtype {
        DType::I32 | DType::I64 | DType::U8 => {
            Tensor::int(ty.dtype, &shape, (0..n).map(|_| (random.bits() % 1024) as i64).collect())
        }
        DType::F64 | DType::F32 | DType::F16 | DType::BF16 => {
            Tensor::float(ty.dtype, &shape, random.values(n, 3f32.sqrt()))
        }
    }
}

/// Weights for every parameter of a layer, in the graph's order, of a size that keeps activations near 1.
pub fn random_params(graph: &Graph, seed: u64) -> Vec<Tensor> {
    let param = |p: &moec_ir::graph::Param| {
        let shape: Vec<usize> = p.ty.shape.iter().map(|d| d.at(0) as usize).collect();
        let n = shape.iter().product();
        if matches!(p.source, WeightSource::LargestInputScale(_)) {
            // For rows whose largest magnitude is 4, in NVFP4.
            return Tensor::float(p.ty.dtype, &shape, vec![4.0 / (6.0 * 448.0); n]);
        }
        let matrix = shape.len() > 1 && !p.name.ends_with("bias");
        let scale = if matrix { (3.0 / shape[shape.len() - 1] as f32).sqrt() } else { 0.1 };
        Tensor::float(p.ty.dtype, &shape, Random::new(seed, &p.name).values(n, scale))
    };
    graph.params.iter().map(param).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_numbers_and_a_name_gives_others() {
        let values = |seed, name| Random::new(seed, name).values(4, 1.0);
        assert_eq!(values(1, "a"), values(1, "a"));
        assert_ne!(values(1, "a"), values(2, "a"));
        assert_ne!(values(1, "a"), values(1, "b"));
        assert!(values(3, "c").iter().all(|v| (-1.0..1.0).contains(v)));
    }
}
