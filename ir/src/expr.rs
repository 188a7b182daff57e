//! Scalar expressions: what prologues, epilogues and activations compute on each element.
//!
//! An activation or a rounding point is data of this kind, so a new one needs no new kernel.

use crate::DType;
use serde::{Deserialize, Serialize};

/// An f32 constant that can be compared, hashed and ordered (by its bits).
#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Real(pub f32);

impl Real {
    fn key(self) -> u32 {
        self.0.to_bits()
    }
}
impl PartialEq for Real {
    fn eq(&self, other: &Real) -> bool {
        self.key() == other.key()
    }
}
impl Eq for Real {}
impl PartialOrd for Real {
    fn partial_cmp(&self, other: &Real) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Real {
    fn cmp(&self, other: &Real) -> std::cmp::Ordering {
        self.key().cmp(&other.key())
    }
}
impl std::hash::Hash for Real {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.key().hash(state);
    }
}
impl std::fmt::Debug for Real {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.0)
    }
}
impl std::fmt::Display for Real {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.0)
    }
}
impl From<f32> for Real {
    fn from(x: f32) -> Real {
        Real(x)
    }
}

/// A function of one f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Unary {
    /// `-x`
    Neg,
    /// `|x|`
    Abs,
    /// `e^x`
    Exp,
    /// `ln(1 + e^x)`, computed without overflow: `max(x, 0) + ln(1 + e^-|x|)`.
    Softplus,
    /// `1 / (1 + e^-x)`
    Sigmoid,
    /// Hyperbolic tangent.
    Tanh,
    /// Gauss error function.
    Erf,
    /// `sqrt(x)`
    Sqrt,
    /// The nearest value of FP8 e4m3, to even at ties, at most 448 in magnitude.
    #[serde(rename = "round_e4m3")]
    RoundE4M3,
    /// The nearest value of FP4 e2m1, to even at ties, at most 6 in magnitude.
    #[serde(rename = "round_e2m1")]
    RoundE2M1,
    /// The smallest power of two, from 2^-126 to 2^127, that is not below `|x|`; 2^127 where there is none.
    #[serde(rename = "ceil_pow2")]
    CeilPow2,
}

/// A function of two f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Binary {
    /// `a + b`
    Add,
    /// `a - b`
    Sub,
    /// `a * b`
    Mul,
    /// `a / b`
    Div,
    /// The smaller; NaN when either is NaN (as `torch.clamp`).
    Min,
    /// The larger; NaN when either is NaN (as `torch.clamp`).
    Max,
}

/// One step of an [`Expr`]. Operands are indices of earlier steps.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ExprOp {
    /// The n-th argument.
    Arg(u32),
    /// A constant.
    Const(Real),
    /// A function of one earlier step.
    Unary(Unary, u32),
    /// A function of two earlier steps.
    Binary(Binary, u32, u32),
    /// The second step where the first is greater than 0, else (also where it is NaN) the third.
    Select(u32, u32, u32),
    /// Rounds an earlier step to a narrower type (to nearest even) and widens it back: a rounding point of the model.
    Round(DType, u32),
}

/// A scalar expression over f32 arguments: steps in order, the last one is the result.
///
/// Built with [`ExprBuilder`]; the steps are never empty and refer only backwards.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Expr {
    /// The steps; operands refer to smaller indices.
    pub ops: Vec<ExprOp>,
}

impl Expr {
    /// The expression that returns its first argument.
    pub fn identity() -> Expr {
        Expr { ops: vec![ExprOp::Arg(0)] }
    }

    /// Whether this is [`Expr::identity`].
    pub fn is_identity(&self) -> bool {
        self.ops == [ExprOp::Arg(0)]
    }

    /// The first argument rounded to `dtype`; the identity for f32.
    pub fn round_to(dtype: DType) -> Expr {
        let mut b = ExprBuilder::new();
        let x = b.arg(0);
        let r = b.round(dtype, x);
        b.finish(r)
    }

    /// One more than the largest argument number used; 0 for a constant.
    pub fn n_args(&self) -> usize {
        self.ops.iter().map(|op| if let ExprOp::Arg(n) = op { *n as usize + 1 } else { 0 }).max().unwrap_or(0)
    }

    /// Whether the steps are non-empty and refer only backwards. Everything else here assumes it.
    pub fn is_well_formed(&self) -> bool {
        let back = |i: usize, j: u32| (j as usize) < i;
        !self.ops.is_empty()
            && self.ops.iter().enumerate().all(|(i, op)| match op {
                ExprOp::Arg(_) | ExprOp::Const(_) => true,
                ExprOp::Unary(_, a) | ExprOp::Round(_, a) => back(i, *a),
                ExprOp::Binary(_, a, b) => back(i, *a) && back(i, *b),
                ExprOp::Select(c, a, b) => back(i, *c) && back(i, *a) && back(i, *b),
            })
    }

    /// Evaluates in f32. Missing arguments read as NaN.
    pub fn eval(&self, args: &[f32]) -> f32 {
        let mut v: Vec<f32> = Vec::with_capacity(self.ops.len());
        for op in &self.ops {
            let x = match op {
                ExprOp::Arg(n) => args.get(*n as usize).copied().unwrap_or(f32::NAN),
                ExprOp::Const(c) => c.0,
                ExprOp::Unary(f, a) => f.eval(v[*a as usize]),
                ExprOp::Binary(f, a, b) => f.eval(v[*a as usize], v[*b as usize]),
                ExprOp::Select(c, a, b) => v[if v[*c as usize] > 0.0 { *a } else { *b } as usize],
                ExprOp::Round(d, a) => d.round(v[*a as usize]),
            };
            v.push(x);
        }
        v.last().copied().unwrap_or(f32::NAN)
    }

    /// `self` after its argument `i` has been replaced by `inner[i]`, whose own argument numbers stay as they are.
    ///
    /// Arguments without an entry stay arguments of the same number.
    pub fn compose(&self, inner: &[Expr]) -> Expr {
        let mut b = ExprBuilder::new();
        let heads: Vec<u32> = inner.iter().map(|e| b.splice(e, &|n| ExprOp::Arg(n))).collect();
        let mut map: Vec<u32> = Vec::with_capacity(self.ops.len());
        for op in &self.ops {
            let id = match op {
                ExprOp::Arg(n) => heads.get(*n as usize).copied().unwrap_or_else(|| b.arg(*n)),
                ExprOp::Const(c) => b.constant(c.0),
                ExprOp::Unary(f, a) => b.unary(*f, map[*a as usize]),
                ExprOp::Binary(f, x, y) => b.binary(*f, map[*x as usize], map[*y as usize]),
                ExprOp::Select(c, x, y) => b.select(map[*c as usize], map[*x as usize], map[*y as usize]),
                ExprOp::Round(d, a) => b.round(*d, map[*a as usize]),
            };
            map.push(id);
        }
        let result = map.last().copied().unwrap_or(0);
        b.finish(result)
    }

    /// `self` with every argument number mapped by `f`.
    pub fn renumber(&self, f: impl Fn(u32) -> u32) -> Expr {
        let ops = self.ops.iter().map(|op| if let ExprOp::Arg(n) = op { ExprOp::Arg(f(*n)) } else { op.clone() });
        Expr { ops: ops.collect() }
    }
}

impl Unary {
    /// The value in f32; transcendental functions are computed in f64 and rounded once.
    pub fn eval(self, x: f32) -> f32 {
        let d = f64::from(x);
        match self {
            Unary::Neg => -x,
            Unary::Abs => x.abs(),
            Unary::Exp => d.exp() as f32,
            // `max` would turn NaN into 0.
            Unary::Softplus if x.is_nan() => x,
            Unary::Softplus => (d.max(0.0) + (-d.abs()).exp().ln_1p()) as f32,
            Unary::Sigmoid => (1.0 / (1.0 + (-d).exp())) as f32,
            Unary::Tanh => d.tanh() as f32,
            Unary::Erf => erf(d) as f32,
            Unary::Sqrt => x.sqrt(),
            Unary::RoundE4M3 => round_to_grid(x, 3, -6, 448.0),
            Unary::RoundE2M1 => round_to_grid(x, 1, 0, 6.0),
            Unary::CeilPow2 if x.is_nan() => x,
            Unary::CeilPow2 => {
                let up = (x.abs().to_bits() + 0x7f_ffff) & 0x7f80_0000;
                f32::from_bits(up.clamp(1 << 23, 254 << 23))
            }
        }
    }

    /// The name in text forms.
    pub fn name(self) -> &'static str {
        match self {
            Unary::Neg => "neg",
            Unary::Abs => "abs",
            Unary::Exp => "exp",
            Unary::Softplus => "softplus",
            Unary::Sigmoid => "sigmoid",
            Unary::Tanh => "tanh",
            Unary::Erf => "erf",
            Unary::Sqrt => "sqrt",
            Unary::RoundE4M3 => "round_e4m3",
            Unary::RoundE2M1 => "round_e2m1",
            Unary::CeilPow2 => "ceil_pow2",
        }
    }

    /// Every function, in declaration order.
    pub const ALL: [Unary; 11] = [
        Unary::Neg,
        Unary::Abs,
        Unary::Exp,
        Unary::Softplus,
        Unary::Sigmoid,
        Unary::Tanh,
        Unary::Erf,
        Unary::Sqrt,
        Unary::RoundE4M3,
        Unary::RoundE2M1,
        Unary::CeilPow2,
    ];
}

impl Binary {
    /// The value in f32.
    pub fn eval(self, a: f32, b: f32) -> f32 {
        match self {
            Binary::Add => a + b,
            Binary::Sub => a - b,
            Binary::Mul => a * b,
            Binary::Div => a / b,
            Binary::Min if a.is_nan() || b.is_nan() => f32::NAN,
            Binary::Max if a.is_nan() || b.is_nan() => f32::NAN,
            Binary::Min => a.min(b),
            Binary::Max => a.max(b),
        }
    }

    /// The name in text forms.
    pub fn name(self) -> &'static str {
        match self {
            Binary::Add => "add",
            Binary::Sub => "sub",
            Binary::Mul => "mul",
            Binary::Div => "div",
            Binary::Min => "min",
            Binary::Max => "max",
        }
    }

    /// Every function, in declaration order.
    pub const ALL: [Binary; 6] = [Binary::Add, Binary::Sub, Binary::Mul, Binary::Div, Binary::Min, Binary::Max];
}

/// `x` on the grid of a small float with `mantissa` stored bits whose least normal number is `2^least` and whose largest
/// number is `most`.
///
/// Adding and taking away `1.5·2^n` rounds to multiples of `2^(n-23)`: here the distance of the grid at `x`.
fn round_to_grid(x: f32, mantissa: u32, least: i32, most: f32) -> f32 {
    if x.is_nan() {
        return x;
    }
    let a = x.abs().min(most);
    let power = f32::from_bits(a.to_bits() & 0x7f80_0000).max(2f32.powi(least));
    let shift = power * (1.5 * (1u32 << (23 - mantissa)) as f32);
    ((a + shift) - shift).copysign(x)
}

/// Error function in f64: the series for small arguments, the continued fraction for the complement beyond.
///
/// Source: Abramowitz & Stegun 7.1.6 (series) and 7.1.14 (continued fraction).
pub fn erf(x: f64) -> f64 {
    if x.is_nan() {
        return x;
    }
    let a = x.abs();
    let value = if a < 2.5 {
        let (mut term, mut sum, mut n) = (a, a, 0.0);
        while term > 1e-18 * sum && n < 200.0 {
            n += 1.0;
            term *= 2.0 * a * a / (2.0 * n + 1.0);
            sum += term;
        }
        2.0 / std::f64::consts::PI.sqrt() * (-a * a).exp() * sum
    } else if a < 6.5 {
        let mut f = a;
        for i in (1..=80).rev() {
            f = a + f64::from(i) / 2.0 / f;
        }
        1.0 - (-a * a).exp() / std::f64::consts::PI.sqrt() / f
    } else {
        1.0
    };
    value.copysign(x)
}

/// Builds an [`Expr`], sharing equal steps.
#[derive(Default)]
pub struct ExprBuilder {
    ops: Vec<ExprOp>,
}

impl ExprBuilder {
    /// An empty builder.
    pub fn new() -> ExprBuilder {
        ExprBuilder::default()
    }

    fn push(&mut self, op: ExprOp) -> u32 {
        let found = self.ops.iter().position(|o| *o == op);
        found.unwrap_or_else(|| {
            self.ops.push(op);
            self.ops.len() - 1
        }) as u32
    }

    /// The n-th argument.
    pub fn arg(&mut self, n: u32) -> u32 {
        self.push(ExprOp::Arg(n))
    }

    /// A constant.
    pub fn constant(&mut self, x: f32) -> u32 {
        self.push(ExprOp::Const(Real(x)))
    }

    /// A function of one step.
    pub fn unary(&mut self, f: Unary, a: u32) -> u32 {
        self.push(ExprOp::Unary(f, a))
    }

    /// A function of two steps.
    pub fn binary(&mut self, f: Binary, a: u32, b: u32) -> u32 {
        self.push(ExprOp::Binary(f, a, b))
    }

    /// Step `a` where step `c` is greater than 0, else step `b`.
    pub fn select(&mut self, c: u32, a: u32, b: u32) -> u32 {
        self.push(ExprOp::Select(c, a, b))
    }

    /// A rounding point; nothing for f32 and wider.
    pub fn round(&mut self, dtype: DType, a: u32) -> u32 {
        match dtype {
            DType::F16 | DType::BF16 => self.push(ExprOp::Round(dtype, a)),
            DType::F64 | DType::F32 | DType::I32 | DType::I64 | DType::U8 => a,
        }
    }

    /// Copies another expression in, mapping its arguments, and returns its result step.
    pub fn splice(&mut self, e: &Expr, arg: &dyn Fn(u32) -> ExprOp) -> u32 {
        let mut map: Vec<u32> = Vec::with_capacity(e.ops.len());
        for op in &e.ops {
            let id = match op {
                ExprOp::Arg(n) => self.push(arg(*n)),
                ExprOp::Const(c) => self.push(ExprOp::Const(*c)),
                ExprOp::Unary(f, a) => self.unary(*f, map[*a as usize]),
                ExprOp::Binary(f, a, b) => self.binary(*f, map[*a as usize], map[*b as usize]),
                ExprOp::Select(c, a, b) => self.select(map[*c as usize], map[*a as usize], map[*b as usize]),
                ExprOp::Round(d, a) => self.round(*d, map[*a as usize]),
            };
            map.push(id);
        }
        map.last().copied().unwrap_or(0)
    }

    /// The expression whose result is step `result`: the steps that it needs, each after its operands, in the order in
    /// which a depth-first walk first leaves them. Equal computations come out equal, however they were built.
    pub fn finish(self, result: u32) -> Expr {
        let mut out = ExprBuilder::new();
        let mut moved: Vec<Option<u32>> = vec![None; self.ops.len()];
        // Operands are earlier steps, so the walk's stack is bounded by the number of steps.
        let mut stack = vec![result];
        while let Some(&top) = stack.last() {
            let operands: &[u32] = match &self.ops[top as usize] {
                ExprOp::Arg(_) | ExprOp::Const(_) => &[],
                ExprOp::Unary(_, a) | ExprOp::Round(_, a) => &[*a],
                ExprOp::Binary(_, a, b) => &[*a, *b],
                ExprOp::Select(c, a, b) => &[*c, *a, *b],
            };
            if let Some(&next) = operands.iter().find(|&&o| moved[o as usize].is_none()) {
                stack.push(next);
                continue;
            }
            stack.pop();
            let at = |o: &u32| moved[*o as usize].unwrap_or(0);
            let op = match &self.ops[top as usize] {
                op @ (ExprOp::Arg(_) | ExprOp::Const(_)) => op.clone(),
                ExprOp::Unary(f, a) => ExprOp::Unary(*f, at(a)),
                ExprOp::Round(d, a) => ExprOp::Round(*d, at(a)),
                ExprOp::Binary(f, a, b) => ExprOp::Binary(*f, at(a), at(b)),
                ExprOp::Select(c, a, b) => ExprOp::Select(at(c), at(a), at(b)),
            };
            let id = out.push(op);
            moved[top as usize] = Some(id);
        }
        Expr { ops: out.ops }
    }
}

impl std::fmt::Display for Expr {
    /// Prints as a nested call, `mul(silu, a1)` style; shared steps are repeated. Arguments are `a0`, `a1`, …
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        fn go(e: &Expr, i: usize, out: &mut String) {
            match &e.ops[i] {
                ExprOp::Arg(n) => out.push_str(&format!("a{n}")),
                ExprOp::Const(c) => out.push_str(&format!("{c}")),
                ExprOp::Unary(u, a) => {
                    out.push_str(&format!("{}(", u.name()));
                    go(e, *a as usize, out);
                    out.push(')');
                }
                ExprOp::Binary(b, x, y) => {
                    out.push_str(&format!("{}(", b.name()));
                    go(e, *x as usize, out);
                    out.push_str(", ");
                    go(e, *y as usize, out);
                    out.push(')');
                }
                ExprOp::Select(c, x, y) => {
                    for (before, step) in [("select(", c), (", ", x), (", ", y)] {
                        out.push_str(before);
                        go(e, *step as usize, out);
                    }
                    out.push(')');
                }
                ExprOp::Round(d, a) => {
                    out.push_str(&format!("{d}("));
                    go(e, *a as usize, out);
                    out.push(')');
                }
            }
        }
        let mut out = String::new();
        if let Some(last) = self.ops.len().checked_sub(1) {
            go(self, last, &mut out);
        }
        f.write_str(&out)
    }
}
