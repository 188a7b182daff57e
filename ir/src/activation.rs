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
    /// `curve(gate) * up`.
    Gated(Curve),
    /// `curve(up)`, ungated.
    Ungated(Curve),
}

/// Functions that transformers knows by name and that no published model has, or none in this place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Curve {
    /// `x·sigmoid(1.702·x)`
    QuickGelu,
    /// gelu by erf, from -10 to 10.
    #[serde(rename = "gelu_10")]
    Gelu10,
    /// `max(x, 0)`
    Relu,
    /// `max(x, 0)²`
    Relu2,
    /// `x` from 0 to 6.
    Relu6,
    /// `x`, and `0.01·x` below 0.
    LeakyRelu,
    /// `x·relu6(x + 3)/6`
    HardSwish,
    /// `x·tanh(softplus(x))`
    Mish,
    /// `0.5·(1 + erf((x - 0.707107)/(0.282095·√2)))`, of MEGA.
    Laplace,
    /// `1/(1 + e^-x)`
    Sigmoid,
    /// Hyperbolic tangent.
    Tanh,
    /// `sqrt(softplus(x))`
    SqrtSoftplus,
    /// `x`
    Linear,
}

#[allow(clippy::approx_constant, reason = "the published constant has six digits")]
const LAPLACE_MEAN: f32 = 0.707_107;

impl Curve {
    /// Every function, in declaration order.
    pub const ALL: [Curve; 13] = [
        Curve::QuickGelu,
        Curve::Gelu10,
        Curve::Relu,
        Curve::Relu2,
        Curve::Relu6,
        Curve::LeakyRelu,
        Curve::HardSwish,
        Curve::Mish,
        Curve::Laplace,
        Curve::Sigmoid,
        Curve::Tanh,
        Curve::SqrtSoftplus,
        Curve::Linear,
    ];

    /// The name that configs give it.
    pub fn name(self) -> &'static str {
        match self {
            Curve::QuickGelu => "quick_gelu",
            Curve::Gelu10 => "gelu_10",
            Curve::Relu => "relu",
            Curve::Relu2 => "relu2",
            Curve::Relu6 => "relu6",
            Curve::LeakyRelu => "leaky_relu",
            Curve::HardSwish => "hardswish",
            Curve::Mish => "mish",
            Curve::Laplace => "laplace",
            Curve::Sigmoid => "sigmoid",
            Curve::Tanh => "tanh",
            Curve::SqrtSoftplus => "sqrtsoftplus",
            Curve::Linear => "linear",
        }
    }

    /// The function that has this name in configs.
    pub fn by_name(name: &str) -> Option<Curve> {
        Curve::ALL.into_iter().find(|c| c.name() == name)
    }

    fn of(self, b: &mut ExprBuilder, x: u32) -> u32 {
        let clamp = |b: &mut ExprBuilder, x: u32, low: f32, high: f32| {
            let (low, high) = (b.constant(low), b.constant(high));
            let x = b.binary(Binary::Max, x, low);
            b.binary(Binary::Min, x, high)
        };
        let relu = |b: &mut ExprBuilder, x: u32| {
            let zero = b.constant(0.0);
            b.binary(Binary::Max, x, zero)
        };
        match self {
            Curve::QuickGelu => {
                let a = b.constant(1.702);
                let ax = b.binary(Binary::Mul, a, x);
                let s = b.unary(Unary::Sigmoid, ax);
                b.binary(Binary::Mul, x, s)
            }
            Curve::Gelu10 => {
                let g = gelu(b, x);
                clamp(b, g, -10.0, 10.0)
            }
            Curve::Relu => relu(b, x),
            Curve::Relu2 => {
                let r = relu(b, x);
                b.binary(Binary::Mul, r, r)
            }
            Curve::Relu6 => clamp(b, x, 0.0, 6.0),
            Curve::LeakyRelu => {
                let slope = b.constant(0.01);
                let less = b.binary(Binary::Mul, slope, x);
                b.binary(Binary::Max, x, less)
            }
            Curve::HardSwish => {
                let three = b.constant(3.0);
                let moved = b.binary(Binary::Add, x, three);
                let r = clamp(b, moved, 0.0, 6.0);
                let xr = b.binary(Binary::Mul, x, r);
                let six = b.constant(6.0);
                b.binary(Binary::Div, xr, six)
            }
            Curve::Mish => {
                let s = b.unary(Unary::Softplus, x);
                let t = b.unary(Unary::Tanh, s);
                b.binary(Binary::Mul, x, t)
            }
            Curve::Laplace => {
                // The digits that transformers has, not 1/√2.
                let mu = b.constant(LAPLACE_MEAN);
                let sigma = b.constant(0.282_095 * std::f32::consts::SQRT_2);
                let moved = b.binary(Binary::Sub, x, mu);
                let q = b.binary(Binary::Div, moved, sigma);
                let e = b.unary(Unary::Erf, q);
                let one = b.constant(1.0);
                let e1 = b.binary(Binary::Add, one, e);
                let half = b.constant(0.5);
                b.binary(Binary::Mul, half, e1)
            }
            Curve::Sigmoid => b.unary(Unary::Sigmoid, x),
            Curve::Tanh => b.unary(Unary::Tanh, x),
            Curve::SqrtSoftplus => {
                let s = b.unary(Unary::Softplus, x);
                b.unary(Unary::Sqrt, s)
            }
            Curve::Linear => x,
        }
    }
}

impl Activation {
    /// Whether there is a gate matrix: two arguments instead of one.
    pub fn is_gated(&self) -> bool {
        self.gated().is_none()
    }

    /// The gated activation that multiplies `up` with this function of the gate; nothing for one that is gated already.
    pub fn gated(&self) -> Option<Activation> {
        match self {
            Activation::Silu => Some(Activation::SwiGlu),
            Activation::GeluTanh => Some(Activation::GeGluTanh),
            Activation::Gelu => Some(Activation::GeGluErf),
            Activation::Relu2 => Some(Activation::Gated(Curve::Relu2)),
            Activation::Ungated(curve) => Some(Activation::Gated(*curve)),
            Activation::SwiGlu
            | Activation::SwiGluClampBefore { .. }
            | Activation::SwiGluClampAfter { .. }
            | Activation::SwiGluOai { .. }
            | Activation::GeGluTanh
            | Activation::GeGluErf
            | Activation::ReGlu
            | Activation::SiTu { .. }
            | Activation::Gated(_) => None,
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
            Activation::Gated(curve) => {
                let g = curve.of(&mut b, x);
                times_up(&mut b, g)
            }
            Activation::Ungated(curve) => curve.of(&mut b, x),
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Values of torch in float64 for these arguments.
    const X: [f32; 8] = [-11.0, -3.5, -0.75, 0.0, 0.5, 2.25, 7.0, 11.0];
    const TORCH: [(&str, [f32; 8]); 13] = [
        ("quick_gelu", [-8.138257e-08, -0.009033446, -0.1636099, 0.0, 0.3503884, 2.202168, 6.999953, 11.0]),
        ("gelu_10", [0.0, -0.0008142018, -0.1699705, 0.0, 0.3457312, 2.222495, 7.0, 10.0]),
        ("relu", [0.0, 0.0, 0.0, 0.0, 0.5, 2.25, 7.0, 11.0]),
        ("relu2", [0.0, 0.0, 0.0, 0.0, 0.25, 5.0625, 49.0, 121.0]),
        ("relu6", [0.0, 0.0, 0.0, 0.0, 0.5, 2.25, 6.0, 6.0]),
        ("leaky_relu", [-0.11, -0.035, -0.0075, 0.0, 0.5, 2.25, 7.0, 11.0]),
        ("hardswish", [0.0, 0.0, -0.28125, 0.0, 0.2916667, 1.96875, 7.0, 11.0]),
        ("mish", [-0.0001837172, -0.1040958, -0.2764947, 0.0, 0.3752452, 2.209457, 6.999988, 11.0]),
        ("laplace", [0.0, 0.0, 1.200229e-07, 0.00609446, 0.2314211, 1.0, 1.0, 1.0]),
        ("sigmoid", [1.670142e-05, 0.02931223, 0.3208213, 0.5, 0.6224593, 0.9046505, 0.9990889, 0.9999833]),
        ("tanh", [-1.0, -0.9981779, -0.635149, 0.0, 0.4621172, 0.9780261, 0.9999983, 1.0]),
        ("sqrtsoftplus", [0.004086754, 0.1724831, 0.6219896, 0.8325546, 0.9869534, 1.533038, 2.645924, 3.316627]),
        ("linear", [-11.0, -3.5, -0.75, 0.0, 0.5, 2.25, 7.0, 11.0]),
    ];

    #[test]
    fn curves_are_those_of_torch() {
        assert_eq!(TORCH.map(|(name, _)| name), Curve::ALL.map(Curve::name));
        for (name, want) in TORCH {
            let curve = Curve::by_name(name).expect("a listed name should be known");
            for (x, want) in X.into_iter().zip(want) {
                let one = Activation::Ungated(curve).expr().eval(&[x]);
                assert!((one - want).abs() <= 3e-6 * want.abs() + 2e-7, "{name}({x}) is {one} instead of {want}");
                assert_eq!(Activation::Gated(curve).expr().eval(&[x, -3.0]), -3.0 * one, "{name}({x}) times -3");
            }
        }
    }
}
