//! Expressions on values in registers.

use super::Emit;
use super::math::MathFn;
use cranelift_codegen::ir::condcodes::FloatCC;
use cranelift_codegen::ir::{InstBuilder, Value};
use moec_ir::Expr;
use moec_ir::expr::{Binary, ExprOp, Unary};

impl Emit<'_> {
    /// The value of an expression; arguments have equal lanes. Missing arguments are NaN, as in [`Expr::eval`].
    ///
    /// `like` decides the number of lanes when there are no arguments.
    pub fn expr(&mut self, expr: &Expr, args: &[Value], like: Value) -> Value {
        let lanes = self.lanes(like);
        let mut steps: Vec<Value> = Vec::with_capacity(expr.ops.len());
        for op in &expr.ops {
            let value = match *op {
                ExprOp::Arg(n) => match args.get(n as usize) {
                    Some(&v) => v,
                    None => self.float(lanes, f32::NAN),
                },
                ExprOp::Const(c) => self.float(lanes, c.0),
                ExprOp::Unary(f, a) => self.unary(f, steps[a as usize]),
                ExprOp::Binary(f, a, b) => self.binary(f, steps[a as usize], steps[b as usize]),
                ExprOp::Select(c, a, b) => {
                    let zero = self.float(lanes, 0.0);
                    let positive = self.compare(FloatCC::GreaterThan, steps[c as usize], zero);
                    self.pick(positive, steps[a as usize], steps[b as usize])
                }
                ExprOp::Round(dtype, a) => self.round(dtype, steps[a as usize]),
            };
            steps.push(value);
        }
        steps.pop().expect("a verified expression should have a step")
    }

    fn unary(&mut self, f: Unary, x: Value) -> Value {
        match f {
            Unary::Neg => self.b.ins().fneg(x),
            Unary::Abs => self.b.ins().fabs(x),
            Unary::Exp => self.exp(x),
            Unary::Softplus => self.table(MathFn::Softplus, x),
            Unary::Sigmoid => self.sigmoid(x),
            Unary::Tanh => self.table(MathFn::Tanh, x),
            Unary::Erf => self.table(MathFn::Erf, x),
            Unary::Sqrt => self.b.ins().sqrt(x),
            Unary::RoundE4M3 => self.round_to_grid(x, 3, -6, 448.0),
            Unary::RoundE2M1 => self.round_to_grid(x, 1, 0, 6.0),
            Unary::CeilPow2 => {
                let lanes = self.lanes(x);
                let a = self.b.ins().fabs(x);
                let bits = self.bits_of(a);
                let up = self.add_bits(bits, 0x7f_ffff);
                let up = self.and(up, 0x7f80_0000);
                let up = self.of_bits(up);
                let [least, most] = [-126, 127].map(|p| self.float(lanes, 2f32.powi(p)));
                let up = self.extreme(FloatCC::GreaterThan, up, least);
                let up = self.extreme(FloatCC::LessThan, up, most);
                let nan = self.compare(FloatCC::Unordered, x, x);
                self.pick(nan, x, up)
            }
        }
    }

    /// The grid of a small float, as [`Unary::eval`] defines it: a sum rounds at the distance of the grid.
    fn round_to_grid(&mut self, x: Value, mantissa: u32, least: i32, most: f32) -> Value {
        let lanes = self.lanes(x);
        let (least, most) = (self.float(lanes, 2f32.powi(least)), self.float(lanes, most));
        let factor = self.float(lanes, 1.5 * (1u32 << (23 - mantissa)) as f32);
        let a = self.b.ins().fabs(x);
        let a = self.extreme(FloatCC::LessThan, a, most);
        let bits = self.bits_of(a);
        let power = self.and(bits, 0x7f80_0000);
        let power = self.of_bits(power);
        let power = self.extreme(FloatCC::GreaterThan, power, least);
        let shift = self.b.ins().fmul(power, factor);
        let shifted = self.b.ins().fadd(a, shift);
        let rounded = self.b.ins().fsub(shifted, shift);
        let (rounded, x_bits) = (self.bits_of(rounded), self.bits_of(x));
        let sign = self.and(x_bits, 0x8000_0000);
        let signed = self.b.ins().bor(rounded, sign);
        let rounded = self.of_bits(signed);
        let nan = self.compare(FloatCC::Unordered, x, x);
        self.pick(nan, x, rounded)
    }

    fn binary(&mut self, f: Binary, x: Value, y: Value) -> Value {
        match f {
            Binary::Add => self.b.ins().fadd(x, y),
            Binary::Sub => self.b.ins().fsub(x, y),
            Binary::Mul => self.b.ins().fmul(x, y),
            Binary::Div => self.b.ins().fdiv(x, y),
            Binary::Min => self.extreme(FloatCC::LessThan, x, y),
            Binary::Max => self.extreme(FloatCC::GreaterThan, x, y),
        }
    }

    /// The smaller or larger of two; NaN when either is. Cheaper than Cranelift's own, which also orders zeros.
    pub fn extreme(&mut self, wins: FloatCC, x: Value, y: Value) -> Value {
        let better = self.compare(wins, x, y);
        let best = self.pick(better, x, y);
        let nan = self.compare(FloatCC::Unordered, x, x);
        self.pick(nan, x, best)
    }
}
