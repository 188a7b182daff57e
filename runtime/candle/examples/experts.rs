//! Experts of candle's own tensors, once by candle's operations and once by moec, which reads the weights where they lie.

#![allow(clippy::print_stdout, reason = "a program for people")]

use candle_core::{D, Device, Result, Tensor};
use moec_candle::Experts;

fn main() -> Result<()> {
    let (n_experts, hidden, ffn, top_k, n_tokens) = (8, 128, 64, 2, 5);
    let device = Device::Cpu;
    let gate_up = Tensor::randn(0f32, 0.1, (n_experts, 2 * ffn, hidden), &device)?;
    let down = Tensor::randn(0f32, 0.1, (n_experts, hidden, ffn), &device)?;
    let x = Tensor::randn(0f32, 1., (n_tokens, hidden), &device)?;

    // A router: the best of random scores.
    let scores = Tensor::rand(0f32, 1., (n_tokens, n_experts), &device)?;
    let ids = scores.arg_sort_last_dim(false)?.narrow(D::Minus1, 0, top_k)?.contiguous()?;
    let weights = scores.gather(&ids, D::Minus1)?;

    let experts = Experts::new(&gate_up, &down, "swiglu", top_k, 64)?;
    let got = experts.forward(&x, &ids, &weights)?;
    let want = by_candle(&x, &ids, &weights, &gate_up, &down)?;
    let error = (got - &want)?.abs()?.max_all()?.to_scalar::<f32>()?;
    println!("largest difference {error:.1e}, of numbers up to {:.1}", want.abs()?.max_all()?.to_scalar::<f32>()?);
    if error > 1e-4 {
        candle_core::bail!("the two differ");
    }
    Ok(())
}

/// The same, token by token.
fn by_candle(x: &Tensor, ids: &Tensor, weights: &Tensor, gate_up: &Tensor, down: &Tensor) -> Result<Tensor> {
    let ids = ids.to_vec2::<u32>()?;
    let mut rows = Vec::new();
    for (t, experts) in ids.iter().enumerate() {
        let row = x.narrow(0, t, 1)?;
        let mut sum = row.zeros_like()?;
        for (k, &e) in experts.iter().enumerate() {
            let both = row.matmul(&gate_up.get(e as usize)?.t()?)?.chunk(2, D::Minus1)?;
            let act = (silu(&both[0])? * &both[1])?;
            let weight = weights.get(t)?.get(k)?;
            sum = (sum + act.matmul(&down.get(e as usize)?.t()?)?.broadcast_mul(&weight)?)?;
        }
        rows.push(sum);
    }
    Tensor::cat(&rows, 0)
}

fn silu(x: &Tensor) -> Result<Tensor> {
    x / (x.neg()?.exp()? + 1.)?
}
