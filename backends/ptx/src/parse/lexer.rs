//! PTX text to tokens.

use super::{ParseError, error_at};
use crate::ast::Pos;

/// What a token is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenKind {
    /// `mov`, `%r1`, `$L__BB0_1`, `_`
    Word,
    /// `.b32`, `.shared::cta`, `.32x32b`: a dot and what follows it
    Dot,
    /// `12`, `0x1F`, `0f3F800000`, `1.5`
    Number,
    /// `"text"`, quotes included
    Text,
    /// One punctuation character, or `<<`, `>>`
    Mark,
    /// After the last token
    End,
}

/// A token of the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token<'s> {
    /// Kind.
    pub kind: TokenKind,
    /// The characters.
    pub text: &'s str,
    /// Where the token starts.
    pub pos: Pos,
    /// Byte offset of the start.
    pub start: usize,
}

impl Token<'_> {
    /// Whether this token follows `other` without a gap.
    pub fn adjoins(&self, other: &Token<'_>) -> bool {
        other.start + other.text.len() == self.start
    }
}

fn word_start(c: u8) -> bool {
    c.is_ascii_alphabetic() || matches!(c, b'_' | b'$' | b'%')
}

fn word_part(c: u8) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, b'_' | b'$')
}

/// Splits a text into tokens; comments and white space fall away. The last token is `End`.
///
/// # Errors
/// A character that PTX does not have, an unclosed comment or string.
pub fn tokenize(source: &str) -> Result<Vec<Token<'_>>, ParseError> {
    let bytes = source.as_bytes();
    let mut tokens = Vec::with_capacity(bytes.len() / 5);
    let (mut at, mut line, mut line_start) = (0usize, 1u32, 0usize);
    while at < bytes.len() {
        let c = bytes[at];
        let pos = Pos { line, column: (at - line_start) as u32 + 1 };
        match c {
            b'\n' => {
                line += 1;
                at += 1;
                line_start = at;
                continue;
            }
            b' ' | b'\t' | b'\r' | 0x0c => {
                at += 1;
                continue;
            }
            b'/' if bytes.get(at + 1) == Some(&b'/') => {
                while at < bytes.len() && bytes[at] != b'\n' {
                    at += 1;
                }
                continue;
            }
            b'/' if bytes.get(at + 1) == Some(&b'*') => {
                let Some(length) = source[at + 2..].find("*/") else {
                    return Err(error_at(source, pos, "comment is not closed".to_owned()));
                };
                let end = at + 2 + length + 2;
                for (i, b) in bytes[at..end].iter().enumerate() {
                    if *b == b'\n' {
                        line += 1;
                        line_start = at + i + 1;
                    }
                }
                at = end;
                continue;
            }
            // Lines of the C preprocessor's making (`# 12 "file"`) carry nothing.
            b'#' => {
                while at < bytes.len() && bytes[at] != b'\n' {
                    at += 1;
                }
                continue;
            }
            // Some compilers hand their text over with its terminating zero. Nothing follows it.
            0 if bytes[at..].iter().all(|b| *b == 0 || b.is_ascii_whitespace()) => break,
            _ => {}
        }
        let start = at;
        let kind = if word_start(c) && (c != b'%' || bytes.get(at + 1).is_some_and(|b| word_part(*b))) {
            at += 1;
            while at < bytes.len() && word_part(bytes[at]) {
                at += 1;
            }
            TokenKind::Word
        } else if c.is_ascii_digit() {
            at = number_end(bytes, at);
            TokenKind::Number
        } else if c == b'.' {
            at += 1;
            while at < bytes.len() {
                if word_part(bytes[at]) {
                    at += 1;
                } else if bytes[at] == b':'
                    && bytes.get(at + 1) == Some(&b':')
                    && bytes.get(at + 2).is_some_and(|b| word_part(*b))
                {
                    at += 2;
                } else {
                    break;
                }
            }
            if at == start + 1 {
                return Err(error_at(source, pos, "a dot without a word".to_owned()));
            }
            TokenKind::Dot
        } else if c == b'"' {
            at += 1;
            while at < bytes.len() && bytes[at] != b'"' && bytes[at] != b'\n' {
                at += if bytes[at] == b'\\' && bytes.get(at + 1).is_some_and(|b| *b != b'\n') { 2 } else { 1 };
            }
            if bytes.get(at) != Some(&b'"') {
                return Err(error_at(source, pos, "string is not closed".to_owned()));
            }
            at += 1;
            TokenKind::Text
        } else if matches!(
            c,
            b'{' | b'}'
                | b'('
                | b')'
                | b'['
                | b']'
                | b'<'
                | b'>'
                | b','
                | b';'
                | b':'
                | b'='
                | b'@'
                | b'!'
                | b'|'
                | b'+'
                | b'-'
                | b'*'
                | b'&'
                | b'^'
                | b'~'
                | b'?'
                | b'/'
                | b'%'
        ) {
            at += 1;
            TokenKind::Mark
        } else {
            let shown = source[at..].chars().next().unwrap_or('?');
            return Err(error_at(source, pos, format!("PTX has no character {shown:?}")));
        };
        tokens.push(Token { kind, text: &source[start..at], pos, start });
    }
    tokens.push(Token {
        kind: TokenKind::End,
        text: "",
        pos: Pos { line, column: (at - line_start) as u32 + 1 },
        start: at,
    });
    Ok(tokens)
}

/// The end of the number that starts at `at`: hexadecimal, binary, `0f`/`0d` bits, octal, decimal, fraction, exponent, `U`.
fn number_end(bytes: &[u8], mut at: usize) -> usize {
    let second = bytes.get(at + 1).map(u8::to_ascii_lowercase);
    if bytes[at] == b'0' && matches!(second, Some(b'x' | b'f' | b'd')) {
        at += 2;
        while at < bytes.len() && bytes[at].is_ascii_hexdigit() {
            at += 1;
        }
    } else if bytes[at] == b'0' && second == Some(b'b') {
        at += 2;
        while at < bytes.len() && matches!(bytes[at], b'0' | b'1') {
            at += 1;
        }
    } else {
        while at < bytes.len() && bytes[at].is_ascii_digit() {
            at += 1;
        }
        if bytes.get(at) == Some(&b'.') && bytes.get(at + 1).is_some_and(u8::is_ascii_digit) {
            at += 1;
            while at < bytes.len() && bytes[at].is_ascii_digit() {
                at += 1;
            }
        }
        if matches!(bytes.get(at), Some(b'e' | b'E')) {
            let digits = if matches!(bytes.get(at + 1), Some(b'+' | b'-')) { at + 2 } else { at + 1 };
            if bytes.get(digits).is_some_and(u8::is_ascii_digit) {
                at = digits;
                while at < bytes.len() && bytes[at].is_ascii_digit() {
                    at += 1;
                }
            }
        }
    }
    if matches!(bytes.get(at), Some(b'U' | b'u')) {
        at += 1;
    }
    at
}
