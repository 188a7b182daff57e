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
        }
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
