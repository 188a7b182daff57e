//! Deterministic inputs.

use moec::Random;
use moec_ir::{DType, Tensor};

/// Hidden states `[n_tokens, hidden]` whose first column is 1, so that a router's first column is a bias on its logits.
pub fn random_input(dtype: DType, n_tokens: usize, hidden: usize, seed: u64) -> Tensor {
    let mut values = Random::new(seed, "input").values(n_tokens * hidden, 1.7);
    values.chunks_mut(hidden).for_each(|row| row[0] = 1.0);
    Tensor::float(dtype, &[n_tokens, hidden], values)
}
