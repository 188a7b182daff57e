//! Reads the text form of a graph, which [`super::print`] describes.

use super::{Attr, AttrError, Graph, Input, Node, Op, Param, ValueId};
use crate::DType;
use crate::diag::{Diagnostic, Origin};
use crate::expr::Real;
use crate::quant::{Code, QuantFormat, ScaleCode};
use crate::shape::{Dim, TensorType};
use crate::weights::{WeightSource, WeightStep};

/// How deep `first_of` may nest; the published layouts need one level.
const MAX_DEPTH: u32 = 16;

/// The graph that `text` describes; `file` is its name in messages. The graph is not verified, and has no origins but
/// those of its nodes.
///
/// # Errors
/// `graph-syntax`, with the line and column of the first mistake.
pub fn parse(file: &str, text: &str) -> Result<Graph, Diagnostic> {
    let mut p = Parser { file, text, at: 0 };
    p.skip_lines();
    p.word_is("graph")?;
    let mut graph = Graph { name: p.string()?, ..Graph::default() };
    p.end_of_line()?;
    while !p.at_end() {
        let start = p.at;
        if p.eat("%") {
            let number = p.whole()?;
            if number != graph.nodes.len() as u64 {
                p.at = start;
                return Err(p.expected(&format!("value %{}: values are numbered in order", graph.nodes.len())));
            }
            p.token("=")?;
            let mut node = p.node()?;
            node.origin = Some(Origin { file: file.to_string(), start, end: p.at });
            graph.nodes.push(node);
        } else {
            match p.word()? {
                "input" => {
                    let name = p.string()?;
                    p.token(":")?;
                    graph.inputs.push(Input { name, ty: p.tensor_type()? });
                }
                "param" => {
                    let name = p.string()?;
                    p.token(":")?;
                    let ty = p.tensor_type()?;
                    let stored = if p.eat("stored") { Some(p.quant_format()?) } else { None };
                    p.token("=")?;
                    graph.params.push(Param { name, ty, source: p.source(0)?, stored });
                }
                "output" => {
                    let name = p.string()?;
                    p.token("=")?;
                    graph.outputs.push((name, p.value()?));
                }
                _ => {
                    p.at = start;
                    return Err(p.expected("input, param, output or a value (%0)"));
                }
            }
        }
        p.end_of_line()?;
    }
    Ok(graph)
}

struct Parser<'a> {
    file: &'a str,
    text: &'a str,
    at: usize,
}

impl<'a> Parser<'a> {
    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn at_end(&self) -> bool {
        self.at >= self.text.len()
    }

    /// Skips blanks within a line.
    fn blanks(&mut self) {
        let rest = self.rest();
        self.at += rest.len() - rest.trim_start_matches([' ', '\t']).len();
    }

    /// Skips blank lines and comments.
    fn skip_lines(&mut self) {
        loop {
            let before = self.at;
            let rest = self.rest();
            self.at += rest.len() - rest.trim_start().len();
            if self.rest().starts_with(';') {
                self.at += self.rest().find('\n').unwrap_or(self.rest().len());
            }
            if self.at == before {
                return;
            }
        }
    }

    fn end_of_line(&mut self) -> Result<(), Diagnostic> {
        self.blanks();
        if !(self.at_end() || self.rest().starts_with(['\n', '\r', ';'])) {
            return Err(self.expected("the end of the line"));
        }
        self.skip_lines();
        Ok(())
    }

    fn expected(&self, what: &str) -> Diagnostic {
        let line = self.text[..self.at].matches('\n').count() + 1;
        let column = self.text[..self.at].chars().rev().take_while(|&c| c != '\n').count() + 1;
        let found: String = self.rest().chars().take_while(|&c| c != '\n').take(20).collect();
        let found = if found.is_empty() { "the end of the line".to_string() } else { format!("`{found}`") };
        let end = self.at + self.rest().chars().next().map_or(0, char::len_utf8);
        Diagnostic::input("graph-syntax", format!("{}:{line}:{column}: expected {what}; found {found}", self.file))
            .at(Some(Origin { file: self.file.to_string(), start: self.at, end }))
    }

    fn eat(&mut self, token: &str) -> bool {
        self.blanks();
        let found = self.rest().starts_with(token);
        if found {
            self.at += token.len();
        }
        found
    }

    fn token(&mut self, token: &str) -> Result<(), Diagnostic> {
        if self.eat(token) { Ok(()) } else { Err(self.expected(&format!("`{token}`"))) }
    }

    fn word(&mut self) -> Result<&'a str, Diagnostic> {
        self.blanks();
        let rest = self.rest();
        let len = rest.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(rest.len());
        if len == 0 || rest.starts_with(|c: char| c.is_ascii_digit()) {
            return Err(self.expected("a word"));
        }
        self.at += len;
        Ok(&rest[..len])
    }

    fn word_is(&mut self, word: &str) -> Result<(), Diagnostic> {
        let start = self.at;
        match self.word() {
            Ok(w) if w == word => Ok(()),
            Ok(_) | Err(_) => {
                self.at = start;
                Err(self.expected(&format!("`{word}`")))
            }
        }
    }

    /// The characters of a number, which may be any number of Rust's syntax.
    fn number_text(&mut self) -> &'a str {
        self.blanks();
        let rest = self.rest();
        let is_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '+');
        let len = rest.find(|c| !is_part(c)).unwrap_or(rest.len());
        self.at += len;
        &rest[..len]
    }

    fn whole(&mut self) -> Result<u64, Diagnostic> {
        self.blanks();
        let rest = self.rest();
        let len = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let n = rest[..len].parse().map_err(|_| self.expected("a whole number"))?;
        self.at += len;
        Ok(n)
    }

    fn whole32(&mut self) -> Result<u32, Diagnostic> {
        self.blanks();
        let start = self.at;
        let n = self.whole()?;
        u32::try_from(n).map_err(|_| {
            self.at = start;
            self.expected(&format!("a whole number up to {}", u32::MAX))
        })
    }

    fn real(&mut self) -> Result<Real, Diagnostic> {
        self.blanks();
        let start = self.at;
        match self.number_text().parse::<f32>() {
            Ok(x) => Ok(Real(x)),
            Err(_) => {
                self.at = start;
                Err(self.expected("a number"))
            }
        }
    }

    fn string(&mut self) -> Result<String, Diagnostic> {
        self.blanks();
        let rest = self.rest();
        let mut escaped = false;
        let end = rest.char_indices().skip(1).find(|&(_, c)| {
            let closes = c == '"' && !escaped;
            escaped = c == '\\' && !escaped;
            closes
        });
        let text = end.filter(|_| rest.starts_with('"')).map(|(i, _)| &rest[..=i]);
        match text.and_then(|t| serde_json::from_str(t).ok().map(|s| (t.len(), s))) {
            Some((len, s)) => {
                self.at += len;
                Ok(s)
            }
            None => Err(self.expected("a string in double quotes")),
        }
    }

    /// `e2m1 by e8m0(1, 32)`
    fn quant_format(&mut self) -> Result<QuantFormat, Diagnostic> {
        self.blanks();
        let start = self.at;
        let Some(code) = Code::from_name(self.word()?) else {
            self.at = start;
            return Err(self.expected("a code of weights (e4m3, e5m2, e2m1, int4)"));
        };
        self.word_is("by")?;
        self.blanks();
        let start = self.at;
        let Some(scale) = ScaleCode::from_name(self.word()?) else {
            self.at = start;
            return Err(self.expected("a code of scales (f32, bf16, f16, e8m0, e4m3)"));
        };
        self.token("(")?;
        let block_rows = self.whole()?;
        self.token(",")?;
        let block_cols = self.whole()?;
        self.token(")")?;
        Ok(QuantFormat { code, scale, block_rows, block_cols })
    }

    fn value(&mut self) -> Result<ValueId, Diagnostic> {
        self.token("%")?;
        Ok(ValueId(self.whole32()?))
    }

    /// Items between `open` and `)`, separated by commas.
    fn list<T>(&mut self, mut item: impl FnMut(&mut Self) -> Result<T, Diagnostic>) -> Result<Vec<T>, Diagnostic> {
        self.token("(")?;
        let mut out = Vec::new();
        if self.eat(")") {
            return Ok(out);
        }
        loop {
            out.push(item(self)?);
            if self.eat(")") {
                return Ok(out);
            }
            self.token(",")?;
        }
    }

    fn tensor_type(&mut self) -> Result<TensorType, Diagnostic> {
        self.blanks();
        let start = self.at;
        let dtype = self.word().ok().and_then(DType::from_name);
        let Some(dtype) = dtype else {
            self.at = start;
            return Err(self.expected(&format!("an element type ({})", DType::ALL.map(DType::name).join(", "))));
        };
        self.token("[")?;
        let mut shape = Vec::new();
        if self.eat("]") {
            return Ok(TensorType { dtype, shape });
        }
        loop {
            shape.push(if self.eat("T") {
                Dim::PerToken(if self.eat("*") { self.whole()? } else { 1 })
            } else {
                Dim::Fixed(self.whole()?)
            });
            if self.eat("]") {
                return Ok(TensorType { dtype, shape });
            }
            self.token(",")?;
        }
    }

    fn node(&mut self) -> Result<Node, Diagnostic> {
        self.blanks();
        let start = self.at;
        let name = self.word()?;
        let mut attrs: Vec<(&str, usize, Attr)> = Vec::new();
        loop {
            self.blanks();
            if self.rest().starts_with('(') {
                break;
            }
            let at = self.at;
            let key =
                self.word().map_err(|_| self.expected("an attribute (key=value) or the operands in parentheses"))?;
            self.token("=")?;
            let attr = self.attr()?;
            attrs.push((key, at, attr));
        }
        let get = |key: &str| attrs.iter().find(|(k, ..)| *k == key).map(|(.., v)| v.clone());
        let op = match Op::from_attrs(name, &get) {
            Ok(op) => op,
            Err(AttrError::UnknownOp) => {
                self.at = start;
                return Err(self.expected(&format!("an operation ({})", Op::NAMES.join(", "))));
            }
            Err(AttrError::Absent(key)) => return Err(self.expected(&format!("attribute `{key}` of `{name}`"))),
            Err(AttrError::Unfit(key, want)) => {
                self.at = attrs.iter().find(|(k, ..)| *k == key).map_or(start, |(_, at, _)| *at);
                return Err(self.expected(&format!("{want} for `{key}`")));
            }
        };
        let known = op.attrs();
        if let Some((key, at, _)) = attrs.iter().find(|(k, ..)| !known.iter().any(|(n, _)| n == k)) {
            let key = (*key).to_string();
            self.at = *at;
            return Err(self.expected(&format!("no attribute `{key}`, which `{name}` does not have")));
        }
        let inputs = self.list(Parser::value)?;
        self.token(":")?;
        let ty = self.tensor_type()?;
        Ok(Node { name: self.string()?, op, inputs, ty, origin: None })
    }

    fn attr(&mut self) -> Result<Attr, Diagnostic> {
        self.blanks();
        let start = self.at;
        if self.rest().starts_with(|c: char| c.is_ascii_digit() || c == '-') {
            let text = self.number_text();
            if let Ok(n) = text.parse::<u64>() {
                return Ok(Attr::Whole(n));
            }
            self.at = start;
            return Ok(Attr::Real(self.real()?));
        }
        if self.rest().starts_with('"') {
            return Ok(Attr::Text(self.string()?));
        }
        let word = self.word()?;
        match word {
            "true" => return Ok(Attr::Flag(true)),
            "false" => return Ok(Attr::Flag(false)),
            "NaN" => return Ok(Attr::Real(Real(f32::NAN))),
            "inf" => return Ok(Attr::Real(Real(f32::INFINITY))),
            _ => {}
        }
        // Only a parenthesis without a blank before it holds arguments; operands follow a blank.
        if !self.rest().starts_with('(') {
            return Ok(Attr::Word(word.to_string(), Vec::new()));
        }
        let args = self.list(|p| {
            let key = p.word()?.to_string();
            p.token("=")?;
            Ok((key, p.real()?))
        })?;
        Ok(Attr::Word(word.to_string(), args))
    }

    fn source(&mut self, depth: u32) -> Result<WeightSource, Diagnostic> {
        self.blanks();
        let start = self.at;
        match self.word() {
            Ok("tensor") => {
                self.token("(")?;
                let names = self.names()?;
                Ok(WeightSource::Tensor { names, steps: self.steps()? })
            }
            Ok("per_expert") => {
                self.token("(")?;
                let count = self.whole()?;
                let first = if self.eat("from") { self.whole()? } else { 0 };
                self.token(",")?;
                let names = self.names()?;
                Ok(WeightSource::PerExpert { names, first, count, steps: self.steps()? })
            }
            Ok("first_of") if depth < MAX_DEPTH => Ok(WeightSource::FirstOf(self.list(|p| p.source(depth + 1))?)),
            Ok("largest_input_scale") if depth < MAX_DEPTH => {
                Ok(WeightSource::LargestInputScale(self.list(|p| p.source(depth + 1))?))
            }
            Ok(_) | Err(_) => {
                self.at = start;
                Err(self.expected("tensor, per_expert, first_of or largest_input_scale"))
            }
        }
    }

    /// Names separated by `|`, up to the closing parenthesis.
    fn names(&mut self) -> Result<Vec<String>, Diagnostic> {
        let mut out = Vec::new();
        if self.eat(")") {
            return Ok(out);
        }
        loop {
            out.push(self.string()?);
            if self.eat(")") {
                return Ok(out);
            }
            self.token("|")?;
        }
    }

    fn steps(&mut self) -> Result<Vec<WeightStep>, Diagnostic> {
        let mut out = Vec::new();
        loop {
            self.blanks();
            let start = self.at;
            match self.word() {
                Ok("transpose") => out.push(WeightStep::Transpose),
                Ok("slice") => {
                    self.token("(")?;
                    let axis = self.keyed("axis", Parser::whole32)?;
                    self.token(",")?;
                    let start = self.keyed("start", Parser::whole)?;
                    self.token(",")?;
                    let step = self.keyed("step", Parser::whole)?;
                    self.token(",")?;
                    let len = self.keyed("len", Parser::whole)?;
                    let of = if self.eat(",") { Some(self.keyed("of", Parser::whole)?) } else { None };
                    self.token(")")?;
                    out.push(WeightStep::Slice { axis, start, step, len, of });
                }
                Ok("reshape") => out.push(WeightStep::Reshape { shape: self.list(Parser::whole)? }),
                Ok(_) | Err(_) => {
                    self.at = start;
                    return Ok(out);
                }
            }
        }
    }

    fn keyed<T>(&mut self, key: &str, item: impl Fn(&mut Self) -> Result<T, Diagnostic>) -> Result<T, Diagnostic> {
        self.word_is(key)?;
        self.token("=")?;
        item(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::print;

    const SMALL: &str = r#"graph "a \"small\" layer"
input "input" : bf16[T, 6]
param "w" : bf16[4, 6] stored e2m1 by e8m0(1, 2) = first_of(tensor("a.w" | "b.w") slice(axis=1, start=0, step=2, len=6) transpose, per_expert(4, "e.{e}.w") reshape(4, 6))
%0 = input index=0 () : bf16[T, 6]  "input"
%1 = param index=0 () : bf16[4, 6]  "w"
%2 = linear (%0, %1) : f32[T, 4]  "logits"
%3 = top_k k=2 (%2) : i32[T, 2]  "ids"
%4 = scale factor=0.1 (%2) : f32[T, 4]  "scaled"
%5 = activate activation=swiglu_oai(alpha=1.702, limit=7.0) (%4, %4) : f32[T, 4]  "act"
output "output" = %5
output "topk_ids" = %3
"#;

    #[test]
    fn what_was_printed_parses_to_the_same_text() {
        let graph = parse("small.mir", SMALL).expect("text should parse");
        assert_eq!(print(&graph), SMALL);
        assert_eq!(graph.nodes[4].op, Op::Scale(Real(0.1)));
    }

    #[test]
    fn blank_lines_and_comments_are_skipped() {
        let text = SMALL.replace('\n', "  ; a remark\n\n");
        assert_eq!(print(&parse("small.mir", &format!("; head\n{text}")).expect("text should parse")), SMALL);
    }

    #[test]
    fn mistakes_are_placed() {
        let cases = [
            ("", "1:1: expected `graph`"),
            ("graph x", "1:7: expected a string"),
            ("graph \"g\" y", "1:11: expected the end of the line"),
            ("graph \"g\"\nfoo", "2:1: expected input, param, output"),
            ("graph \"g\"\n%1 = linear () : f32[T] \"a\"", "2:1: expected value %0"),
            ("graph \"g\"\n%0 = lineal () : f32[T] \"a\"", "2:6: expected an operation"),
            ("graph \"g\"\n%0 = top_k () : f32[T] \"a\"", "2:12: expected attribute `k`"),
            ("graph \"g\"\n%0 = top_k k=-1 () : f32[T] \"a\"", "2:12: expected a whole number"),
            ("graph \"g\"\n%0 = add k=1 () : f32[T] \"a\"", "2:10: expected no attribute `k`"),
            ("graph \"g\"\n%0 = add (%0 %1) : f32[T] \"a\"", "2:14: expected `,`"),
            ("graph \"g\"\n%0 = add () : f33[T] \"a\"", "2:15: expected an element type"),
            ("graph \"g\"\n%0 = add () : f32[T*] \"a\"", "2:21: expected a whole number"),
            (
                "graph \"g\"\nparam \"p\" : f32[1] = file(\"x\")",
                "2:22: expected tensor, per_expert, first_of or largest_input_scale",
            ),
            ("graph \"g\"\nparam \"p\" : f32[1] stored e3m2", "2:27: expected a code of weights"),
            ("graph \"g\"\nparam \"p\" : f32[1] stored int4 by e5m2", "2:35: expected a code of scales"),
            ("graph \"g\"\ninput \"p\" : f32[99999999999999999999]", "2:17: expected a whole number"),
            ("graph \"g\"\noutput \"o\" = %99999999999", "2:15: expected a whole number up to"),
        ];
        for (text, want) in cases {
            let d = parse("g.mir", text).expect_err(text);
            assert_eq!(d.code, "graph-syntax");
            assert!(d.message.contains(want), "{text:?}: {}", d.message);
        }
    }

    #[test]
    fn nesting_is_bounded() {
        let text = format!("graph \"g\"\nparam \"p\" : f32[1] = {}", "first_of(".repeat(100_000));
        assert_eq!(parse("g.mir", &text).expect_err("too deep").code, "graph-syntax");
    }
}
