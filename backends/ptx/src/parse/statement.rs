//! Function bodies: statements, instructions, operands.

use super::{Parsed, Parser, TokenKind};
use crate::ast::{Address, Guard, Instruction, Operand, Statement};

impl Parser<'_> {
    /// `{ … }`
    pub(crate) fn block(&mut self) -> Parsed<Vec<Statement>> {
        self.enter()?;
        self.expect("{")?;
        let mut statements = Vec::new();
        while !self.is("}") {
            if self.peek().kind == TokenKind::End {
                return Err(self.unexpected("`}`"));
            }
            // Inline assembly leaves empty statements behind.
            if self.is(";") {
                self.next();
                continue;
            }
            statements.push(self.statement()?);
        }
        self.expect("}")?;
        self.leave();
        Ok(statements)
    }

    fn statement(&mut self) -> Parsed<Statement> {
        let t = self.peek();
        if t.text == "{" {
            return Ok(Statement::Scope(t.pos, self.block()?));
        }
        if t.kind == TokenKind::Dot {
            return self.dot_statement();
        }
        if t.kind == TokenKind::Word && self.peek_at(1).text == ":" {
            self.next();
            self.next();
            return Ok(Statement::Label(t.pos, t.text.to_owned()));
        }
        self.instruction().map(Statement::Instruction)
    }

    fn dot_statement(&mut self) -> Parsed<Statement> {
        let t = self.peek();
        match t.text {
            ".branchtargets" | ".calltargets" => {
                self.next();
                let mut names = Vec::new();
                loop {
                    names.push(self.word("a label")?.text.to_owned());
                    if !self.eat(",") {
                        break;
                    }
                }
                self.expect(";")?;
                Ok(Statement::Targets { pos: t.pos, kind: t.text[1..].to_owned(), names })
            }
            ".callprototype" => {
                self.next();
                let returns = if self.is("(") { Some(self.parameter_list()?) } else { None };
                self.word("`_`")?;
                let params = if self.is("(") { Some(self.parameter_list()?) } else { None };
                let directives = self.function_directives()?;
                self.expect(";")?;
                Ok(Statement::Prototype { pos: t.pos, returns, params, directives })
            }
            ".reg" | ".shared" | ".shared::cta" | ".local" | ".param" | ".global" | ".const" | ".extern"
            | ".visible" | ".weak" => {
                let variable = self.variable()?;
                self.expect(";")?;
                Ok(Statement::Variable(variable))
            }
            ".loc" | ".file" | ".pragma" | ".section" => self.directive().map(Statement::Directive),
            _ => Err(self.unexpected("a statement")),
        }
    }

    fn instruction(&mut self) -> Parsed<Instruction> {
        let pos = self.peek().pos;
        let guard = if self.eat("@") {
            let negated = self.eat("!");
            Some(Guard { negated, name: self.word("a predicate")?.text.to_owned() })
        } else {
            None
        };
        let opcode = self.word("an instruction")?.text.to_owned();
        let mut modifiers = Vec::new();
        while self.peek().kind == TokenKind::Dot {
            modifiers.push(self.next().text[1..].to_owned());
        }
        let mut operands = Vec::new();
        if !self.is(";") {
            loop {
                // Only calls have lists; elsewhere a parenthesis opens a constant expression.
                operands.push(if self.is("(") && opcode != "call" {
                    Operand::Literal(self.expression()?)
                } else {
                    self.operand()?
                });
                if !self.eat(",") {
                    break;
                }
            }
        }
        self.expect(";")?;
        Ok(Instruction { pos, guard, opcode, modifiers, operands })
    }

    /// A word with the component selector that belongs to it (`%tid.x`).
    fn name(&mut self, what: &str) -> Parsed<String> {
        let t = self.word(what)?;
        let next = self.peek();
        let mut name = t.text.to_owned();
        if next.kind == TokenKind::Dot && next.adjoins(&t) {
            name.push_str(self.next().text);
        }
        Ok(name)
    }

    fn operand(&mut self) -> Parsed<Operand> {
        let first = self.single_operand()?;
        if self.eat("|") {
            let second = self.single_operand()?;
            return Ok(Operand::Pair(Box::new(first), Box::new(second)));
        }
        Ok(first)
    }

    fn single_operand(&mut self) -> Parsed<Operand> {
        let t = self.peek();
        match t.text {
            "{" => Ok(Operand::Vector(self.operand_list("{", "}")?)),
            "(" => Ok(Operand::List(self.operand_list("(", ")")?)),
            "[" => self.bracket(),
            _ if self.at_expression() => Ok(Operand::Literal(self.expression()?)),
            "!" => {
                self.next();
                Ok(Operand::Not(self.name("a predicate")?))
            }
            "_" => {
                self.next();
                Ok(Operand::Sink)
            }
            "-" => {
                self.next();
                Ok(Operand::Neg(self.name("a register")?))
            }
            _ => {
                let name = self.name("an operand")?;
                if self.is("(") {
                    self.next();
                    let symbol = self.name("a variable")?;
                    self.expect(")")?;
                    return Ok(Operand::Operator(name, symbol));
                }
                Ok(match self.offset()? {
                    Some(offset) => Operand::Sum(name, offset),
                    None => Operand::Name(name),
                })
            }
        }
    }

    fn operand_list(&mut self, open: &str, close: &str) -> Parsed<Vec<Operand>> {
        self.enter()?;
        self.expect(open)?;
        let mut list = Vec::new();
        while !self.is(close) {
            list.push(self.operand()?);
            if !self.eat(",") {
                break;
            }
        }
        self.expect(close)?;
        self.leave();
        Ok(list)
    }

    fn bracket(&mut self) -> Parsed<Operand> {
        self.expect("[")?;
        let base = if self.at_expression() || self.is("(") {
            Operand::Literal(self.expression()?)
        } else {
            Operand::Name(self.name("an address")?)
        };
        let offset = self.offset()?;
        let address = Address { base: Box::new(base), offset };
        let mut coordinates = Vec::new();
        while self.eat(",") {
            coordinates.push(self.operand()?);
        }
        self.expect("]")?;
        Ok(if coordinates.is_empty() {
            Operand::Address(address)
        } else {
            Operand::Tensor { map: address, coordinates }
        })
    }
}
