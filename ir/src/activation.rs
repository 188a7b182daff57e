//! The activation functions of experts, as data.

use crate::expr::{Binary, Expr, ExprBuilder, Real, Unary};
use serde::{Deserialize, Serialize};

/// What stands between the first and the second matrix of an expert.
///
/// Gated ones take `(gate, up)`, ungated ones `(up)`. All compute in f32; the node's type rounds once at the end.
/// Formulas: `facts` of each model family; silu(x) = x·sigmoid(x).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// `silu(gate) * up` (Mixtral, Qwen, DeepSeek, …).
    SwiGlu,
    /// `silu(min(gate, limit)) * clamp(up, -limit, limit)` (DeepSeek-V4).
    SwiGluClampBefore {
        /// The clamp.
        limit: Real,
    },
    /// `min(silu(gate), limit) * clamp(up, -limit, limit)` (Step-3.5).
    SwiGluClampAfter {
        /// The clamp.
        limit: Real,
    },
    /// `g·sigmoid(alpha·g) * (u + 1)` with `g = min(gate, limit)`, `u = clamp(up, -limit, limit)` (gpt-oss, MiniMax-M3).
    SwiGluOai {
        /// Slope inside the sigmoid; 1.702 in the published models.
        alpha: Real,
        /// The clamp.
        limit: Real,
    },
    /// `gelu_tanh(gate) * up`, gelu by its tanh approximation (Gemma).
    GeGluTanh,
    /// `gelu(gate) * up`, gelu by erf.
    GeGluErf,
    /// `relu(gate) * up`.
    ReGlu,
    /// `[beta·tanh(g/beta)·sigmoid(g)] * [linear_beta·tanh(u/linear_beta)]` (Kimi K3).
    SiTu {
        /// Soft clamp of the gate.
        beta: Real,
        /// Soft clamp of the linear branch.
        linear_beta: Real,
    },
    /// `relu(up)²`, ungated (Nemotron-3).
    Relu2,
    /// `silu(up)`, ungated.
    Silu,
    /// `gelu_tanh(up)`, ungated.
    GeluTanh,
    /// `gelu(up)`, gelu by erf, ungated.
    Gelu,
}

impl Activation {
    /// Whether there is a gate matrix: two arguments instead of one.
    pub fn is_gated(&self) -> bool {
        match self {
            Activation::SwiGlu
            | Activation::SwiGluClampBefore { .. }
            | Activation::SwiGluClampAfter { .. }
            | Activation::SwiGluOai { .. }
            | Activation::GeGluTanh
            | Activation::GeGluErf
            | Activation::ReGlu
            | Activation::SiTu { .. } => true,
            Activation::Relu2 | Activation::Silu | Activation::GeluTanh | Activation::Gelu => false,
        }
    }

    /// The function as an expression: argument 0 is the gate and 1 is up; ungated ones take up as argument 0.
    pub fn expr(&self) -> Expr {
        let mut b = ExprBuilder::new();
        let x = b.arg(0);
        let result = match self {
            Activation::SwiGlu => {
                let s = silu(&mut b, x);
                times_up(&mut b, s)
            }
            Activation::SwiGluClampBefore { limit } => {
                let l = b.constant(limit.0);
                let g = b.binary(Binary::Min, x, l);
                let s = silu(&mut b, g);
                let u = clamped_up(&mut b, *limit);
                b.binary(Binary::Mul, s, u)
            }
            Activation::SwiGluClampAfter { limit } => {
                let s = silu(&mut b, x);
                let l = b.constant(limit.0);
                let s = b.binary(Binary::Min, s, l);
                let u = clamped_up(&mut b, *limit);
                b.binary(Binary::Mul, s, u)
            }
            Activation::SwiGluOai { alpha, limit } => {
                let l = b.constant(limit.0);
                let g = b.binary(Binary::Min, x, l);
                let a = b.constant(alpha.0);
                let ag = b.binary(Binary::Mul, a, g);
                let s = b.unary(Unary::Sigmoid, ag);
                let gs = b.binary(Binary::Mul, g, s);
                let u = clamped_up(&mut b, *limit);
                let one = b.constant(1.0);
                let u1 = b.binary(Binary::Add, u, one);
                b.binary(Binary::Mul, u1, gs)
            }
            Activation::GeGluTanh => {
                let g = gelu_tanh(&mut b, x);
                times_up(&mut b, g)
            }
            Activation::GeGluErf => {
                let g = gelu(&mut b, x);
                times_up(&mut b, g)
            }
            Activation::ReGlu => {
                let zero = b.constant(0.0);
                let r = b.binary(Binary::Max, x, zero);
                times_up(&mut b, r)
            }
            Activation::SiTu { beta, linear_beta } => {
                let g = soft_clamp(&mut b, x, *beta);
                let s = b.unary(Unary::Sigmoid, x);
                let gs = b.binary(Binary::Mul, g, s);
                let up = b.arg(1);
                let u = soft_clamp(&mut b, up, *linear_beta);
                b.binary(Binary::Mul, gs, u)
            }
            Activation::Relu2 => {
                let zero = b.constant(0.0);
                let r = b.binary(Binary::Max, x, zero);
                b.binary(Binary::Mul, r, r)
            }
            Activation::Silu => silu(&mut b, x),
            Activation::GeluTanh => gelu_tanh(&mut b, x),
            Activation::Gelu => gelu(&mut b, x),
        };
        b.finish(result)
    }
}

fn silu(b: &mut ExprBuilder, x: u32) -> u32 {
    let s = b.unary(Unary::Sigmoid, x);
    b.binary(Binary::Mul, x, s)
}

fn times_up(b: &mut ExprBuilder, g: u32) -> u32 {
    let u = b.arg(1);
    b.binary(Binary::Mul, g, u)
}

fn clamped_up(b: &mut ExprBuilder, limit: Real) -> u32 {
    let u = b.arg(1);
    let hi = b.constant(limit.0);
    let lo = b.constant(-limit.0);
    let u = b.binary(Binary::Min, u, hi);
    b.binary(Binary::Max, u, lo)
}

fn soft_clamp(b: &mut ExprBuilder, x: u32, beta: Real) -> u32 {
    let c = b.constant(beta.0);
    let q = b.binary(Binary::Div, x, c);
    let t = b.unary(Unary::Tanh, q);
    b.binary(Binary::Mul, c, t)
}

/// `0.5·x·(1 + erf(x/√2))`
fn gelu(b: &mut ExprBuilder, x: u32) -> u32 {
    let c = b.constant(std::f32::consts::FRAC_1_SQRT_2);
    let xc = b.binary(Binary::Mul, x, c);
    let e = b.unary(Unary::Erf, xc);
    let one = b.constant(1.0);
    let e1 = b.binary(Binary::Add, one, e);
    let half = b.constant(0.5);
    let hx = b.binary(Binary::Mul, half, x);
    b.binary(Binary::Mul, hx, e1)
}

/// `0.5·x·(1 + tanh(√(2/π)·(x + 0.044715·x³)))`, Hendrycks & Gimpel 2016.
fn gelu_tanh(b: &mut ExprBuilder, x: u32) -> u32 {
    let xx = b.binary(Binary::Mul, x, x);
    let xxx = b.binary(Binary::Mul, xx, x);
    let c = b.constant(0.044_715);
    let cx = b.binary(Binary::Mul, c, xxx);
    let inner = b.binary(Binary::Add, x, cx);
    let k = b.constant(0.797_884_6);
    let arg = b.binary(Binary::Mul, k, inner);
    let t = b.unary(Unary::Tanh, arg);
    let one = b.constant(1.0);
    let t1 = b.binary(Binary::Add, one, t);
    let half = b.constant(0.5);
    let hx = b.binary(Binary::Mul, half, x);
    b.binary(Binary::Mul, hx, t1)
}
