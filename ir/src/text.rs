//! A cursor over the text forms: words, numbers, strings and punctuation, with line and column for messages.

use crate::diag::Diagnostic;
use crate::expr::{Binary, Expr, ExprBuilder, Unary};
use crate::quant::{Code, QuantFormat, ScaleCode};
use crate::shape::Dim;
use crate::{DType, TensorType};

/// Reads a text form token by token. White space and `;` comments to the end of the line are skipped.
pub struct Cursor<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Cursor<'a> {
    /// At the start of `text`.
    pub fn new(text: &'a str) -> Cursor<'a> {
        Cursor { text, at: 0 }
    }

    fn skip(&mut self) {
        loop {
            let rest = &self.text[self.at..];
            let trimmed = rest.trim_start();
            self.at += rest.len() - trimmed.len();
            if !trimmed.starts_with(';') {
                return;
            }
            self.at += trimmed.find('\n').unwrap_or(trimmed.len());
        }
    }

    /// An error at the next token: `text-syntax`.
    pub fn error(&mut self, expected: &str) -> Diagnostic {
        self.skip();
        let line = self.text[..self.at].matches('\n').count() + 1;
        let column = self.text[..self.at].rsplit('\n').next().map_or(0, |l| l.chars().count()) + 1;
        let found: String = self.text[self.at..].chars().take_while(|c| !c.is_whitespace()).take(24).collect();
        let found = if found.is_empty() { "the end".to_string() } else { format!("`{found}`") };
        Diagnostic::input("text-syntax", format!("line {line}, column {column}: expected {expected}, found {found}"))
    }

    /// Whether everything has been read.
    pub fn at_end(&mut self) -> bool {
        self.skip();
        self.at == self.text.len()
    }

    /// Takes `token` if it comes next. A word token must not be the start of a longer word.
    pub fn take(&mut self, token: &str) -> bool {
        self.skip();
        let rest = &self.text[self.at..];
        let is_word = token.ends_with(|c: char| c.is_alphanumeric() || c == '_');
        let ends = rest.strip_prefix(token).is_some_and(|after| !(is_word && after.starts_with(is_word_char)));
        if ends {
            self.at += token.len();
        }
        ends
    }

    /// Takes `token` or fails.
    ///
    /// # Errors
    /// `text-syntax`
    pub fn expect(&mut self, token: &str) -> Result<(), Diagnostic> {
        if self.take(token) { Ok(()) } else { Err(self.error(&format!("`{token}`"))) }
    }

    /// Takes a word: letters, digits, `_`.
    ///
    /// # Errors
    /// `text-syntax`
    pub fn word(&mut self) -> Result<&'a str, Diagnostic> {
        self.skip();
        let rest = &self.text[self.at..];
        let len = rest.find(|c: char| !is_word_char(c)).unwrap_or(rest.len());
        if len == 0 {
            return Err(self.error("a word"));
        }
        self.at += len;
        Ok(&rest[..len])
    }

    /// Takes a quoted string, with the escapes of Rust's `{:?}`.
    ///
    /// # Errors
    /// `text-syntax`
    pub fn string(&mut self) -> Result<String, Diagnostic> {
        self.skip();
        let rest = &self.text[self.at..];
        if !rest.starts_with('"') {
            return Err(self.error("a quoted string"));
        }
        let mut out = String::new();
        let mut chars = rest.char_indices().skip(1);
        while let Some((i, c)) = chars.next() {
            match c {
                '"' => {
                    self.at += i + 1;
                    return Ok(out);
                }
                '\\' => match chars.next().map(|(_, c)| c) {
                    Some('n') => out.push('\n'),
                    Some('t') => out.push('\t'),
                    Some('r') => out.push('\r'),
                    Some('0') => out.push('\0'),
                    Some(c @ ('"' | '\\' | '\'')) => out.push(c),
                    Some('u') => {
                        let code: String = chars.by_ref().map(|(_, c)| c).skip(1).take_while(|&c| c != '}').collect();
                        let c = u32::from_str_radix(&code, 16).ok().and_then(char::from_u32);
                        out.push(c.ok_or_else(|| self.error("a character escape"))?);
                    }
                    _ => return Err(self.error("a known escape")),
                },
                c => out.push(c),
            }
        }
        Err(self.error("a closing quote"))
    }

    /// Takes a number without sign, fraction or exponent.
    ///
    /// # Errors
    /// `text-syntax`
    pub fn integer(&mut self) -> Result<u64, Diagnostic> {
        self.skip();
        let rest = &self.text[self.at..];
        let len = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let value = rest[..len].parse().map_err(|_| self.error("a number"))?;
        self.at += len;
        Ok(value)
    }

    /// As [`Cursor::integer`], for 32 bits.
    ///
    /// # Errors
    /// `text-syntax`
    pub fn small(&mut self) -> Result<u32, Diagnostic> {
        let start = self.at;
        u32::try_from(self.integer()?).map_err(|_| {
            self.at = start;
            self.error("a number of 32 bits")
        })
    }

    /// Takes a floating-point number as Rust prints it (`1.0`, `-2.5e-7`, `inf`, `-inf`, `NaN`).
    ///
    /// # Errors
    /// `text-syntax`
    pub fn real(&mut self) -> Result<f32, Diagnostic> {
        self.skip();
        let rest = &self.text[self.at..];
        let mut len = 0;
        for (i, c) in rest.char_indices() {
            let after_e = i > 0 && rest[..i].ends_with(['e', 'E']);
            let fits =
                c.is_ascii_alphanumeric() || c == '.' || (c == '-' && (i == 0 || after_e)) || (c == '+' && after_e);
            if !fits {
                break;
            }
            len = i + c.len_utf8();
        }
        let value = rest[..len].parse().map_err(|_| self.error("a number"))?;
        self.at += len;
        Ok(value)
    }

    /// Takes the element type of a buffer.
    ///
    /// # Errors
    /// `text-syntax`
    pub fn dtype(&mut self) -> Result<DType, Diagnostic> {
        let start = self.at;
        let name = self.word()?;
        let bytes = (name == DType::U8.name()).then_some(DType::U8);
        DType::from_name(name).or(bytes).ok_or_else(|| {
            self.at = start;
            self.error("an element type")
        })
    }

    /// Takes a quantised format: `e2m1 by e8m0(1, 32)`.
    ///
    /// # Errors
    /// `text-syntax`
    pub fn quant_format(&mut self) -> Result<QuantFormat, Diagnostic> {
        let start = self.at;
        let Some(code) = Code::from_name(self.word()?) else {
            self.at = start;
            return Err(self.error("a code of weights (e4m3, e5m2, e2m1, int4)"));
        };
        self.expect("by")?;
        let start = self.at;
        let Some(scale) = ScaleCode::from_name(self.word()?) else {
            self.at = start;
            return Err(self.error("a code of scales (f32, bf16, f16, e8m0, e4m3)"));
        };
        self.expect("(")?;
        let block_rows = self.integer()?;
        self.expect(",")?;
        let block_cols = self.integer()?;
        self.expect(")")?;
        Ok(QuantFormat { code, scale, block_rows, block_cols })
    }

    /// Takes an axis: `7`, `T`, `T*8`.
    ///
    /// # Errors
    /// `text-syntax`
    pub fn dim(&mut self) -> Result<Dim, Diagnostic> {
        if !self.take("T") {
            return Ok(Dim::Fixed(self.integer()?));
        }
        Ok(Dim::PerToken(if self.take("*") { self.integer()? } else { 1 }))
    }

    /// Takes a type: `bf16[T, 64]`.
    ///
    /// # Errors
    /// `text-syntax`
    pub fn tensor_type(&mut self) -> Result<TensorType, Diagnostic> {
        let dtype = self.dtype()?;
        self.expect("[")?;
        let mut shape = Vec::new();
        while !self.take("]") {
            if !shape.is_empty() {
                self.expect(",")?;
            }
            shape.push(self.dim()?);
        }
        Ok(TensorType { dtype, shape })
    }

    /// Takes an expression: `mul(a0, sigmoid(a0))`.
    ///
    /// # Errors
    /// `text-syntax`
    pub fn expr(&mut self) -> Result<Expr, Diagnostic> {
        let mut b = ExprBuilder::new();
        let result = self.expr_step(&mut b, 0)?;
        Ok(b.finish(result))
    }

    fn expr_step(&mut self, b: &mut ExprBuilder, depth: u32) -> Result<u32, Diagnostic> {
        if depth > 200 {
            return Err(self.error("an expression nested less than 200 deep"));
        }
        self.skip();
        let start = self.at;
        let starts_number = self.text[start..].starts_with(|c: char| c.is_ascii_digit() || c == '-');
        if starts_number || self.text[start..].starts_with("inf") || self.text[start..].starts_with("NaN") {
            let value = self.real()?;
            return Ok(b.constant(value));
        }
        let name = self.word()?;
        if let Some(n) = name.strip_prefix('a').and_then(|n| n.parse().ok()) {
            return Ok(b.arg(n));
        }
        self.expect("(")?;
        let x = self.expr_step(b, depth + 1)?;
        let result = if let Some(f) = Unary::ALL.into_iter().find(|f| f.name() == name) {
            b.unary(f, x)
        } else if let Some(d) = DType::from_name(name).filter(|d| matches!(d, DType::F16 | DType::BF16)) {
            b.round(d, x)
        } else if let Some(f) = Binary::ALL.into_iter().find(|f| f.name() == name) {
            self.expect(",")?;
            let y = self.expr_step(b, depth + 1)?;
            b.binary(f, x, y)
        } else if name == "select" {
            self.expect(",")?;
            let y = self.expr_step(b, depth + 1)?;
            self.expect(",")?;
            let z = self.expr_step(b, depth + 1)?;
            b.select(x, y, z)
        } else {
            self.at = start;
            return Err(self.error("a function"));
        };
        self.expect(")")?;
        Ok(result)
    }
}

fn is_word_char(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}
