//! Numbers.

use super::{Parsed, Parser, TokenKind};
use crate::ast::{Literal, Number, Offset};

/// The value of a number token, `None` if it is none or does not fit 64 bits.
fn number(text: &str) -> Option<Number> {
    let lower = text.to_ascii_lowercase();
    let digits = lower.trim_end_matches('u');
    let value = if let Some(hex) = lower.strip_prefix("0f").filter(|h| !h.is_empty()) {
        (hex.len() == 8).then(|| u32::from_str_radix(hex, 16).ok().map(Number::F32)).flatten()?
    } else if let Some(hex) = lower.strip_prefix("0d").filter(|h| !h.is_empty()) {
        (hex.len() == 16).then(|| u64::from_str_radix(hex, 16).ok().map(Number::F64)).flatten()?
    } else if let Some(hex) = digits.strip_prefix("0x") {
        Number::Int(i128::from(u64::from_str_radix(hex, 16).ok()?))
    } else if let Some(bits) = digits.strip_prefix("0b") {
        Number::Int(i128::from(u64::from_str_radix(bits, 2).ok()?))
    } else if digits.contains(['.', 'e']) {
        Number::F64(digits.parse::<f64>().ok()?.to_bits())
    } else if digits.len() > 1 && digits.starts_with('0') {
        Number::Int(i128::from(u64::from_str_radix(&digits[1..], 8).ok()?))
    } else {
        Number::Int(i128::from(digits.parse::<u64>().ok()?))
    };
    Some(value)
}

fn negative(value: Number) -> Number {
    match value {
        Number::Int(v) => Number::Int(-v),
        Number::F32(b) => Number::F32(b ^ 0x8000_0000),
        Number::F64(b) => Number::F64(b ^ 0x8000_0000_0000_0000),
    }
}

impl Parser<'_> {
    /// Whether a literal starts here.
    pub(crate) fn at_literal(&self) -> bool {
        self.peek().kind == TokenKind::Number || (self.is("-") && self.peek_at(1).kind == TokenKind::Number)
    }

    pub(crate) fn literal(&mut self) -> Parsed<Literal> {
        let minus = self.eat("-");
        let t = self.peek();
        if t.kind != TokenKind::Number {
            return Err(self.unexpected("a number"));
        }
        let value = number(t.text).ok_or_else(|| self.error(t.pos, format!("`{}` is not a 64-bit number", t.text)))?;
        self.next();
        Ok(if minus {
            Literal { text: format!("-{}", t.text), value: negative(value) }
        } else {
            Literal { text: t.text.to_owned(), value }
        })
    }

    /// `+8`, `+-8`, `-8`, `+4*2-1`, or nothing.
    pub(crate) fn offset(&mut self) -> Parsed<Option<Offset>> {
        let start = self.at;
        let mut sum = 0i128;
        loop {
            let sign = if self.eat("+") {
                1i128
            } else if self.eat("-") {
                -1
            } else {
                break;
            };
            let pos = self.peek().pos;
            let Number::Int(value) = self.term()?.value else {
                return Err(self.error(pos, "an offset is a whole number".to_owned()));
            };
            // Addresses wrap at 64 bits, so an offset above i64::MAX is its two's complement.
            sum = i128::from((sum + sign * value) as i64);
        }
        if self.at == start {
            return Ok(None);
        }
        let tokens = self.tokens[start..self.at].iter().map(|t| t.text.to_owned()).collect();
        Ok(Some(Offset { tokens, value: sum as i64 }))
    }
}
