//! PTX text to syntax tree.

mod expression;
mod lexer;
mod literal;
mod module;
mod statement;

pub use lexer::{Token, TokenKind, tokenize};

use crate::ast::{Module, Pos};

/// Why a text is not PTX.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}:{}: {message}\n  {text}", pos.line, pos.column)]
pub struct ParseError {
    /// Where.
    pub pos: Pos,
    /// What was expected and what was found.
    pub message: String,
    /// The source line.
    pub text: String,
}

/// Nesting of scopes, vectors and initialisers beyond which a text is refused.
pub(crate) const MAX_DEPTH: u32 = 64;

impl Module {
    /// Reads a module.
    ///
    /// # Errors
    /// The first place at which the text is not PTX.
    pub fn parse(source: &str) -> Result<Module, ParseError> {
        let tokens = tokenize(source)?;
        Parser { source, tokens, at: 0, depth: 0 }.module()
    }
}

pub(crate) struct Parser<'s> {
    source: &'s str,
    tokens: Vec<Token<'s>>,
    at: usize,
    depth: u32,
}

type Parsed<T> = Result<T, ParseError>;

pub(crate) fn error_at(source: &str, pos: Pos, message: String) -> ParseError {
    let text = source.lines().nth(pos.line.saturating_sub(1) as usize).unwrap_or("");
    let text: String = text.trim().chars().take(160).collect();
    ParseError { pos, message, text }
}

impl<'s> Parser<'s> {
    pub(crate) fn peek(&self) -> Token<'s> {
        self.peek_at(0)
    }

    pub(crate) fn peek_at(&self, ahead: usize) -> Token<'s> {
        // The lexer ends every stream with an `End` token.
        self.tokens[(self.at + ahead).min(self.tokens.len() - 1)]
    }

    pub(crate) fn next(&mut self) -> Token<'s> {
        let t = self.peek();
        if self.at + 1 < self.tokens.len() {
            self.at += 1;
        }
        t
    }

    pub(crate) fn is(&self, text: &str) -> bool {
        let t = self.peek();
        t.kind != TokenKind::Text && t.text == text
    }

    pub(crate) fn eat(&mut self, text: &str) -> bool {
        let hit = self.is(text);
        if hit {
            self.next();
        }
        hit
    }

    pub(crate) fn expect(&mut self, text: &str) -> Parsed<Token<'s>> {
        if self.is(text) { Ok(self.next()) } else { Err(self.unexpected(&format!("`{text}`"))) }
    }

    pub(crate) fn word(&mut self, what: &str) -> Parsed<Token<'s>> {
        if self.peek().kind == TokenKind::Word { Ok(self.next()) } else { Err(self.unexpected(what)) }
    }

    pub(crate) fn unexpected(&self, expected: &str) -> ParseError {
        let t = self.peek();
        let found = if t.kind == TokenKind::End { "the end of the text".to_owned() } else { format!("`{}`", t.text) };
        self.error(t.pos, format!("expected {expected}, found {found}"))
    }

    pub(crate) fn error(&self, pos: Pos, message: String) -> ParseError {
        error_at(self.source, pos, message)
    }

    pub(crate) fn enter(&mut self) -> Parsed<()> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(self.error(self.peek().pos, format!("nested deeper than {MAX_DEPTH} levels")));
        }
        Ok(())
    }

    pub(crate) fn leave(&mut self) {
        self.depth -= 1;
    }
}

#[cfg(test)]
mod tests;
