//! Module scope: header, variables, functions.

use super::{Parsed, Parser, TokenKind};
use crate::ast::{Declarator, Directive, Function, Initializer, Item, Literal, Module, Number, Space, Variable};

fn space_of(word: &str) -> Option<Space> {
    Some(match word {
        ".reg" => Space::Reg,
        ".global" => Space::Global,
        ".const" => Space::Const,
        ".shared" | ".shared::cta" => Space::Shared,
        ".local" => Space::Local,
        ".param" => Space::Param,
        _ => return None,
    })
}

fn is_type(word: &str) -> bool {
    matches!(
        word,
        "b8" | "b16"
            | "b32"
            | "b64"
            | "b128"
            | "u8"
            | "u16"
            | "u32"
            | "u64"
            | "s8"
            | "s16"
            | "s32"
            | "s64"
            | "f16"
            | "f16x2"
            | "bf16"
            | "bf16x2"
            | "f32"
            | "f32x2"
            | "f64"
            | "pred"
            | "texref"
            | "samplerref"
            | "surfref"
    )
}

/// What may follow the architecture of `.target`.
const TARGET_OPTIONS: [&str; 4] = ["debug", "texmode_unified", "texmode_independent", "map_f64_to_f32"];

fn is_digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())
}

impl Parser<'_> {
    pub(crate) fn module(mut self) -> Parsed<Module> {
        let mut module = Module { version: (0, 0), target: Vec::new(), address_size: 64, items: Vec::new() };
        let start = self.peek().pos;
        while self.peek().kind != TokenKind::End {
            let item = self.item()?;
            if let Item::Directive(d) = &item {
                header(&mut module, d);
            }
            module.items.push(item);
        }
        if module.version == (0, 0) {
            return Err(self.error(start, "the module has no `.version`".to_owned()));
        }
        if module.target.is_empty() {
            return Err(self.error(start, "the module has no `.target`".to_owned()));
        }
        Ok(module)
    }

    fn item(&mut self) -> Parsed<Item> {
        let mut ahead = 0;
        while matches!(self.peek_at(ahead).text, ".extern" | ".visible" | ".weak" | ".common") {
            ahead += 1;
        }
        let word = self.peek_at(ahead);
        if word.kind != TokenKind::Dot {
            return Err(self.unexpected("a directive"));
        }
        if matches!(word.text, ".entry" | ".func") {
            return self.function().map(Item::Function);
        }
        if matches!(word.text, ".version" | ".target" | ".address_size") && ahead == 0 {
            return self.header_directive().map(Item::Directive);
        }
        if space_of(word.text).is_some() {
            let variable = self.variable()?;
            self.expect(";")?;
            return Ok(Item::Variable(variable));
        }
        if ahead > 0 {
            return Err(self.unexpected("a variable or function after its linkage"));
        }
        self.directive().map(Item::Directive)
    }

    /// `.version major.minor`, `.target word, word…` or `.address_size bits`. What follows is the next item, wherever it stands.
    fn header_directive(&mut self) -> Parsed<Directive> {
        let name = self.next();
        let mut args = Vec::new();
        match name.text {
            ".version" => {
                let number = |t: &str| t.split_once('.').is_some_and(|(a, b)| is_digits(a) && is_digits(b));
                if !number(self.peek().text) {
                    return Err(self.unexpected("a version, as in `8.0`"));
                }
                args.push(self.next().text.to_owned());
            }
            ".address_size" => {
                if !matches!(self.peek().text, "32" | "64") {
                    return Err(self.unexpected("32 or 64"));
                }
                args.push(self.next().text.to_owned());
            }
            _ => {
                let word = self.peek().text;
                if !(word.starts_with("sm_") || word.starts_with("compute_")) {
                    return Err(self.unexpected("an architecture, as in `sm_90a`"));
                }
                args.push(self.next().text.to_owned());
                while self.is(",") {
                    args.push(self.next().text.to_owned());
                    let word = self.peek().text;
                    if !(TARGET_OPTIONS.contains(&word) || word.starts_with("sm_")) {
                        return Err(self.unexpected(&format!("one of {}", TARGET_OPTIONS.join(", "))));
                    }
                    args.push(self.next().text.to_owned());
                }
            }
        }
        Ok(Directive { pos: name.pos, name: name.text[1..].to_owned(), args })
    }

    /// A directive that is kept as tokens. `.section` runs to its closing brace, the others to `;` or the end of the line.
    pub(crate) fn directive(&mut self) -> Parsed<Directive> {
        let name = self.next();
        let mut args = Vec::new();
        if name.text == ".section" {
            while !self.is("{") && self.peek().kind != TokenKind::End {
                args.push(self.next().text.to_owned());
            }
            args.push(self.expect("{")?.text.to_owned());
            while !self.is("}") && self.peek().kind != TokenKind::End {
                args.push(self.next().text.to_owned());
            }
            args.push(self.expect("}")?.text.to_owned());
        } else {
            // `.pragma` and `.alias` end with `;`, the rest with their line.
            let closed = matches!(name.text, ".pragma" | ".alias");
            while self.peek().kind != TokenKind::End && (closed || self.peek().pos.line == name.pos.line) {
                let t = self.next();
                args.push(t.text.to_owned());
                if t.text == ";" {
                    break;
                }
            }
            if closed && args.last().map(String::as_str) != Some(";") {
                return Err(self.unexpected("`;`"));
            }
        }
        Ok(Directive { pos: name.pos, name: name.text[1..].to_owned(), args })
    }

    /// A declaration without its `;`.
    pub(crate) fn variable(&mut self) -> Parsed<Variable> {
        let pos = self.peek().pos;
        let mut linkage = Vec::new();
        while matches!(self.peek().text, ".extern" | ".visible" | ".weak" | ".common") {
            linkage.push(self.next().text[1..].to_owned());
        }
        let Some(space) = space_of(self.peek().text) else {
            return Err(self.unexpected("a state space"));
        };
        self.next();
        let (mut qualifiers, mut align, mut vector, mut ty, mut pointer) = (Vec::new(), None, 1, None, false);
        while self.peek().kind == TokenKind::Dot {
            let t = self.next();
            let word = &t.text[1..];
            qualifiers.push(word.to_owned());
            match word {
                "align" => {
                    let number = self.literal()?;
                    let Number::Int(bytes @ 1..=0x1_0000) = number.value else {
                        return Err(
                            self.error(t.pos, format!("`.align {}` is not a power of two up to 65536", number.text))
                        );
                    };
                    if bytes & (bytes - 1) != 0 {
                        return Err(self.error(t.pos, format!("`.align {bytes}` is not a power of two")));
                    }
                    if !pointer {
                        align = Some(bytes as u32);
                    }
                    qualifiers.push(number.text);
                }
                "ptr" => pointer = true,
                "v2" => vector = 2,
                "v4" => vector = 4,
                "v8" => vector = 8,
                "attribute" => {
                    while !self.is(")") && self.peek().kind != TokenKind::End {
                        qualifiers.push(self.next().text.to_owned());
                    }
                    qualifiers.push(self.expect(")")?.text.to_owned());
                }
                _ if is_type(word) => ty = Some(word.to_owned()),
                _ => {}
            }
        }
        let Some(ty) = ty else {
            return Err(self.unexpected("a type"));
        };
        let mut names = vec![self.declarator()?];
        // In a parameter list the comma separates variables, each with its own space.
        while self.is(",") && self.peek_at(1).kind == TokenKind::Word {
            self.next();
            names.push(self.declarator()?);
        }
        Ok(Variable { pos, linkage, space, qualifiers, align, vector, ty, names })
    }

    fn declarator(&mut self) -> Parsed<Declarator> {
        let name = self.word("a name")?;
        let mut range = None;
        if self.eat("<") {
            range = Some(self.count()?);
            self.expect(">")?;
        }
        let mut dims = Vec::new();
        while self.eat("[") {
            dims.push(if self.is("]") { None } else { Some(self.count()?) });
            self.expect("]")?;
        }
        let init = if self.eat("=") { Some(self.initializer()?) } else { None };
        Ok(Declarator { pos: name.pos, name: name.text.to_owned(), range, dims, init })
    }

    fn count(&mut self) -> Parsed<Literal> {
        let pos = self.peek().pos;
        let literal = self.literal()?;
        match literal.value {
            Number::Int(0..=0xffff_ffff) => Ok(literal),
            _ => Err(self.error(pos, format!("`{}` is not a count", literal.text))),
        }
    }

    fn initializer(&mut self) -> Parsed<Initializer> {
        if self.eat("{") {
            self.enter()?;
            let mut list = Vec::new();
            while !self.is("}") {
                list.push(self.initializer()?);
                if !self.eat(",") {
                    break;
                }
            }
            self.expect("}")?;
            self.leave();
            return Ok(Initializer::List(list));
        }
        // `0xFF(sym)`: one byte of an address.
        if self.peek().kind == TokenKind::Number && self.peek_at(1).text == "(" {
            let mask = self.literal()?;
            return self.symbol_initializer(mask.text);
        }
        if self.at_expression() || self.is("(") || self.is("WARP_SZ") {
            return Ok(Initializer::Literal(self.expression()?));
        }
        let name = self.word("an initial value")?;
        if self.is("(") {
            return self.symbol_initializer(name.text.to_owned());
        }
        let offset = self.offset()?;
        Ok(Initializer::Symbol { operator: None, name: name.text.to_owned(), offset })
    }

    fn symbol_initializer(&mut self, operator: String) -> Parsed<Initializer> {
        self.expect("(")?;
        let name = self.word("a variable")?;
        self.expect(")")?;
        let offset = self.offset()?;
        Ok(Initializer::Symbol { operator: Some(operator), name: name.text.to_owned(), offset })
    }

    /// `(.param …, .param …)`
    pub(crate) fn parameter_list(&mut self) -> Parsed<Vec<Variable>> {
        self.expect("(")?;
        let mut list = Vec::new();
        while !self.is(")") {
            list.push(self.variable()?);
            if !self.eat(",") {
                break;
            }
        }
        self.expect(")")?;
        Ok(list)
    }

    fn function(&mut self) -> Parsed<Function> {
        let pos = self.peek().pos;
        let mut linkage = Vec::new();
        while matches!(self.peek().text, ".extern" | ".visible" | ".weak" | ".common") {
            linkage.push(self.next().text[1..].to_owned());
        }
        let entry = self.next().text == ".entry";
        let mut attributes = Vec::new();
        if self.is(".attribute") {
            while !self.is(")") && self.peek().kind != TokenKind::End {
                attributes.push(self.next().text.to_owned());
            }
            attributes.push(self.expect(")")?.text.to_owned());
        }
        let returns = if self.is("(") { Some(self.parameter_list()?) } else { None };
        let name = self.word("the name of the function")?.text.to_owned();
        let params = if self.is("(") { Some(self.parameter_list()?) } else { None };
        let directives = self.function_directives()?;
        let body = if self.is("{") {
            Some(self.block()?)
        } else {
            self.expect(";")?;
            None
        };
        Ok(Function { pos, linkage, entry, attributes, name, returns, params, directives, body })
    }

    /// `.maxntid 128, 1, 1 .noreturn …` up to the body or `;`.
    pub(crate) fn function_directives(&mut self) -> Parsed<Vec<Directive>> {
        let mut directives = Vec::new();
        while self.peek().kind == TokenKind::Dot {
            let name = self.next();
            let mut args = Vec::new();
            loop {
                let t = self.peek();
                let pragma = name.text == ".pragma" && t.text == ";";
                if !pragma && !matches!(t.kind, TokenKind::Number | TokenKind::Text) && t.text != "," {
                    break;
                }
                args.push(self.next().text.to_owned());
                if pragma {
                    break;
                }
            }
            directives.push(Directive { pos: name.pos, name: name.text[1..].to_owned(), args });
        }
        Ok(directives)
    }
}

fn header(module: &mut Module, d: &Directive) {
    match d.name.as_str() {
        "version" => {
            if let Some((major, minor)) = d.args.first().and_then(|v| v.split_once('.')) {
                module.version = (major.parse().unwrap_or(0), minor.parse().unwrap_or(0));
            }
        }
        "target" => module.target = d.args.iter().filter(|a| *a != ",").cloned().collect(),
        "address_size" => module.address_size = d.integers().first().map_or(64, |v| *v as u32),
        _ => {}
    }
}
