//! Constant expressions: C's operators over 64-bit integers and doubles, evaluated as they are read.

use super::{Parsed, Parser, TokenKind};
use crate::ast::{Literal, Number};

/// A value while an expression is evaluated.
#[derive(Clone, Copy, Debug)]
enum Value {
    /// Two's complement, and whether the type is `.u64`.
    Int(u64, bool),
    Float(f64),
}

/// Binary operators by how tightly they bind, loosest first.
const LEVELS: [&[&str]; 10] = [
    &["||"],
    &["&&"],
    &["|"],
    &["^"],
    &["&"],
    &["==", "!="],
    &["<=", ">=", "<", ">"],
    &["<<", ">>"],
    &["+", "-"],
    &["*", "/", "%"],
];
/// The level of products.
pub(super) const PRODUCT: usize = 9;

impl Value {
    fn of(n: Number) -> Value {
        match n {
            // A number that `.s64` does not hold is a `.u64`.
            Number::Int(v) => Value::Int(v as u64, v > i128::from(i64::MAX)),
            Number::F32(b) => Value::Float(f64::from(f32::from_bits(b))),
            Number::F64(b) => Value::Float(f64::from_bits(b)),
        }
    }

    fn number(self) -> Number {
        match self {
            Value::Int(v, true) => Number::Int(i128::from(v)),
            Value::Int(v, false) => Number::Int(i128::from(v as i64)),
            Value::Float(x) => Number::F64(x.to_bits()),
        }
    }

    fn holds(self) -> bool {
        match self {
            Value::Int(v, _) => v != 0,
            Value::Float(x) => x != 0.0,
        }
    }

    fn float(self) -> f64 {
        match self {
            Value::Int(v, true) => v as f64,
            Value::Int(v, false) => v as i64 as f64,
            Value::Float(x) => x,
        }
    }
}

fn truth(holds: bool) -> Value {
    Value::Int(u64::from(holds), false)
}

/// `None` for a division by zero or an operator that the type lacks.
fn binary(op: &str, a: Value, b: Value) -> Option<Value> {
    match op {
        "&&" => return Some(truth(a.holds() && b.holds())),
        "||" => return Some(truth(a.holds() || b.holds())),
        _ => {}
    }
    let (Value::Int(x, xu), Value::Int(y, yu)) = (a, b) else {
        let (x, y) = (a.float(), b.float());
        return Some(match op {
            "+" => Value::Float(x + y),
            "-" => Value::Float(x - y),
            "*" => Value::Float(x * y),
            "/" => Value::Float(x / y),
            "==" => truth(x == y),
            "!=" => truth(x != y),
            "<" => truth(x < y),
            "<=" => truth(x <= y),
            ">" => truth(x > y),
            ">=" => truth(x >= y),
            _ => return None,
        });
    };
    let unsigned = xu || yu;
    let (sx, sy) = (x as i64, y as i64);
    let less = if unsigned { x < y } else { sx < sy };
    let v = match op {
        "+" => x.wrapping_add(y),
        "-" => x.wrapping_sub(y),
        "*" => x.wrapping_mul(y),
        "/" if unsigned => x.checked_div(y)?,
        "/" => (y != 0).then(|| sx.wrapping_div(sy))? as u64,
        "%" if unsigned => x.checked_rem(y)?,
        "%" => (y != 0).then(|| sx.wrapping_rem(sy))? as u64,
        "|" => x | y,
        "^" => x ^ y,
        "&" => x & y,
        "<<" => return Some(Value::Int(x.checked_shl(u32::try_from(y).unwrap_or(64)).unwrap_or(0), xu)),
        ">>" => {
            let by = u32::try_from(y).unwrap_or(64);
            let v = if xu { x.checked_shr(by).unwrap_or(0) } else { (sx >> by.min(63)) as u64 };
            return Some(Value::Int(v, xu));
        }
        "==" => return Some(truth(x == y)),
        "!=" => return Some(truth(x != y)),
        "<" => return Some(truth(less)),
        ">=" => return Some(truth(!less)),
        ">" => return Some(truth(x != y && !less)),
        "<=" => return Some(truth(x == y || less)),
        _ => return None,
    };
    Some(Value::Int(v, unsigned))
}

impl Parser<'_> {
    /// Whether a constant expression starts here. A parenthesis may also open a list: the caller knows.
    pub(crate) fn at_expression(&self) -> bool {
        let mut ahead = 0;
        while matches!(self.peek_at(ahead).text, "-" | "~" | "!" | "+") && self.peek_at(ahead).kind == TokenKind::Mark {
            ahead += 1;
        }
        let t = self.peek_at(ahead);
        let constant = t.kind == TokenKind::Number || t.text == "WARP_SZ" || (ahead > 0 && t.text == "(");
        constant
            && (ahead > 0 || t.kind == TokenKind::Number || self.peek_at(1).kind == TokenKind::Mark && self.operator(1))
    }

    /// Whether the token `ahead` is a binary operator.
    fn operator(&self, ahead: usize) -> bool {
        let text = self.peek_at(ahead).text;
        LEVELS.iter().any(|l| l.iter().any(|op| op.starts_with(text))) || text == "?"
    }

    /// A constant expression; a single number keeps its own value and spelling.
    pub(crate) fn expression(&mut self) -> Parsed<Literal> {
        let start = self.at;
        if self.at_literal() {
            let literal = self.literal()?;
            if !self.operator(0) || self.peek().kind != TokenKind::Mark {
                return Ok(literal);
            }
            self.at = start;
        }
        let value = self.conditional()?;
        Ok(Literal { text: self.spelling(start), value: value.number() })
    }

    /// A sum's term, for offsets.
    pub(super) fn term(&mut self) -> Parsed<Literal> {
        let start = self.at;
        let value = self.level(PRODUCT)?;
        Ok(Literal { text: self.spelling(start), value: value.number() })
    }

    fn spelling(&self, start: usize) -> String {
        self.tokens[start..self.at].iter().map(|t| t.text).collect()
    }

    fn conditional(&mut self) -> Parsed<Value> {
        self.enter()?;
        let condition = self.level(0)?;
        let value = if self.eat("?") {
            let yes = self.conditional()?;
            self.expect(":")?;
            let no = self.conditional()?;
            if condition.holds() { yes } else { no }
        } else {
            condition
        };
        self.leave();
        Ok(value)
    }

    /// Consumes one of the operators of a level, which may be two characters without a gap.
    fn eat_operator(&mut self, level: usize) -> Option<&'static str> {
        let (a, b) = (self.peek(), self.peek_at(1));
        if a.kind != TokenKind::Mark {
            return None;
        }
        let double = b.kind == TokenKind::Mark && b.adjoins(&a) && {
            let joined: [&str; 8] = ["||", "&&", "==", "!=", "<=", ">=", "<<", ">>"];
            joined.iter().any(|j| j.starts_with(a.text) && &j[1..] == b.text)
        };
        let op = LEVELS[level].iter().find(|op| {
            if double { op.len() == 2 && op.starts_with(a.text) && &op[1..] == b.text } else { **op == a.text }
        })?;
        (0..op.len()).for_each(|_| {
            self.next();
        });
        Some(op)
    }

    fn level(&mut self, level: usize) -> Parsed<Value> {
        if level > PRODUCT {
            return self.unary();
        }
        let mut value = self.level(level + 1)?;
        loop {
            let pos = self.peek().pos;
            let Some(op) = self.eat_operator(level) else { return Ok(value) };
            let right = self.level(level + 1)?;
            value = binary(op, value, right)
                .ok_or_else(|| self.error(pos, format!("`{op}` of these constants has no value")))?;
        }
    }

    fn unary(&mut self) -> Parsed<Value> {
        self.enter()?;
        let pos = self.peek().pos;
        let value = if self.eat("-") {
            match self.unary()? {
                Value::Int(v, u) => Value::Int(v.wrapping_neg(), u),
                Value::Float(x) => Value::Float(-x),
            }
        } else if self.eat("+") {
            self.unary()?
        } else if self.eat("!") {
            truth(!self.unary()?.holds())
        } else if self.eat("~") {
            match self.unary()? {
                Value::Int(v, u) => Value::Int(!v, u),
                Value::Float(_) => return Err(self.error(pos, "`~` of a fraction".to_owned())),
            }
        } else if self.eat("(") {
            if self.is(".s64") || self.is(".u64") {
                let unsigned = self.next().text == ".u64";
                self.expect(")")?;
                match self.unary()? {
                    Value::Int(v, _) => Value::Int(v, unsigned),
                    Value::Float(x) if unsigned => Value::Int(x as u64, true),
                    Value::Float(x) => Value::Int(x as i64 as u64, false),
                }
            } else {
                let inner = self.conditional()?;
                self.expect(")")?;
                inner
            }
        } else if self.eat("WARP_SZ") {
            Value::Int(32, false)
        } else {
            Value::of(self.literal()?.value)
        };
        self.leave();
        Ok(value)
    }
}
