//! Syntax tree to PTX text.
//!
//! Printing and parsing again gives the same tree, and the same tokens as the text that the tree was read from
//! (empty statements and redundant trailing commas in initialisers apart).

use std::fmt::{self, Display, Formatter, Write};

use crate::ast::{
    Address, Declarator, Directive, Function, Guard, Initializer, Instruction, Item, Module, Offset, Operand,
    Statement, Variable,
};

/// Writes items with a separator.
fn joined<T: Display>(f: &mut Formatter<'_>, items: &[T], separator: &str) -> fmt::Result {
    for (i, item) in items.iter().enumerate() {
        if i > 0 {
            f.write_str(separator)?;
        }
        item.fmt(f)?;
    }
    Ok(())
}

impl Display for Module {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        for item in &self.items {
            match item {
                Item::Variable(v) => writeln!(f, "{v};")?,
                Item::Function(function) => writeln!(f, "{function}")?,
                Item::Directive(d) => writeln!(f, "{d}")?,
            }
        }
        Ok(())
    }
}

impl Display for Directive {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, ".{}", self.name)?;
        for arg in &self.args {
            write!(f, " {arg}")?;
        }
        Ok(())
    }
}

impl Display for Variable {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        for word in &self.linkage {
            write!(f, ".{word} ")?;
        }
        write!(f, ".{}", self.space.keyword())?;
        let mut plain = false;
        let mut attribute = false;
        for word in &self.qualifiers {
            // The number after `align` and the tokens of an attribute list carry no dot of their own.
            if plain || attribute {
                write!(f, " {word}")?;
                plain = false;
                attribute = attribute && word != ")";
            } else {
                write!(f, " .{word}")?;
                plain = word == "align";
                attribute = word == "attribute";
            }
        }
        f.write_char(' ')?;
        joined(f, &self.names, ", ")
    }
}

impl Display for Declarator {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        if let Some(range) = &self.range {
            write!(f, "<{}>", range.text)?;
        }
        for dim in &self.dims {
            match dim {
                Some(n) => write!(f, "[{}]", n.text)?,
                None => f.write_str("[]")?,
            }
        }
        match &self.init {
            Some(init) => write!(f, " = {init}"),
            None => Ok(()),
        }
    }
}

impl Display for Initializer {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Initializer::Literal(l) => f.write_str(&l.text),
            Initializer::Symbol { operator, name, offset } => {
                match operator {
                    Some(operator) => write!(f, "{operator}({name})")?,
                    None => f.write_str(name)?,
                }
                offset.iter().try_for_each(|o| write!(f, "{o}"))
            }
            Initializer::List(list) => {
                f.write_char('{')?;
                joined(f, list, ", ")?;
                f.write_char('}')
            }
        }
    }
}

impl Display for Offset {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        self.tokens.iter().try_for_each(|t| f.write_str(t))
    }
}

fn parameters(f: &mut Formatter<'_>, list: &[Variable]) -> fmt::Result {
    f.write_char('(')?;
    joined(f, list, ", ")?;
    f.write_char(')')
}

impl Display for Function {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        for word in &self.linkage {
            write!(f, ".{word} ")?;
        }
        f.write_str(if self.entry { ".entry " } else { ".func " })?;
        for token in &self.attributes {
            write!(f, "{token} ")?;
        }
        if let Some(returns) = &self.returns {
            parameters(f, returns)?;
            f.write_char(' ')?;
        }
        f.write_str(&self.name)?;
        if let Some(params) = &self.params {
            parameters(f, params)?;
        }
        f.write_char('\n')?;
        for d in &self.directives {
            writeln!(f, "{d}")?;
        }
        match &self.body {
            Some(body) => block(f, body, 0),
            None => f.write_char(';'),
        }
    }
}

fn block(f: &mut Formatter<'_>, body: &[Statement], depth: usize) -> fmt::Result {
    let indent = "  ".repeat(depth);
    writeln!(f, "{indent}{{")?;
    for statement in body {
        match statement {
            Statement::Label(_, name) => writeln!(f, "{indent}{name}:")?,
            Statement::Instruction(i) => writeln!(f, "{indent}  {i};")?,
            Statement::Variable(v) => writeln!(f, "{indent}  {v};")?,
            Statement::Scope(_, inner) => {
                block(f, inner, depth + 1)?;
                f.write_char('\n')?;
            }
            Statement::Targets { kind, names, .. } => {
                write!(f, "{indent}  .{kind} ")?;
                joined(f, names, ", ")?;
                f.write_str(";\n")?;
            }
            Statement::Prototype { returns, params, directives, .. } => {
                write!(f, "{indent}  .callprototype ")?;
                if let Some(returns) = returns {
                    parameters(f, returns)?;
                    f.write_char(' ')?;
                }
                f.write_char('_')?;
                if let Some(params) = params {
                    f.write_char(' ')?;
                    parameters(f, params)?;
                }
                for d in directives {
                    write!(f, " {d}")?;
                }
                f.write_str(";\n")?;
            }
            Statement::Directive(d) => writeln!(f, "{indent}  {d}")?,
        }
    }
    write!(f, "{indent}}}")
}

impl Display for Guard {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "@{}{}", if self.negated { "!" } else { "" }, self.name)
    }
}

/// Without the closing `;`.
impl Display for Instruction {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        if let Some(guard) = &self.guard {
            guard.fmt(f)?;
            f.write_char(' ')?;
        }
        f.write_str(&self.opcode)?;
        for m in &self.modifiers {
            f.write_char('.')?;
            f.write_str(m)?;
        }
        if !self.operands.is_empty() {
            f.write_char(' ')?;
            joined(f, &self.operands, ", ")?;
        }
        Ok(())
    }
}

impl Display for Operand {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Operand::Name(n) => f.write_str(n),
            Operand::Sum(n, offset) => write!(f, "{n}{offset}"),
            Operand::Operator(op, n) => write!(f, "{op}({n})"),
            Operand::Literal(l) => f.write_str(&l.text),
            Operand::Not(n) => write!(f, "!{n}"),
            Operand::Neg(n) => write!(f, "-{n}"),
            Operand::Sink => f.write_char('_'),
            Operand::Vector(list) => {
                f.write_char('{')?;
                joined(f, list, ", ")?;
                f.write_char('}')
            }
            Operand::Pair(a, b) => write!(f, "{a}|{b}"),
            Operand::Address(a) => {
                f.write_char('[')?;
                a.fmt(f)?;
                f.write_char(']')
            }
            Operand::Tensor { map, coordinates } => {
                write!(f, "[{map}, ")?;
                joined(f, coordinates, ", ")?;
                f.write_char(']')
            }
            Operand::List(list) => {
                f.write_char('(')?;
                joined(f, list, ", ")?;
                f.write_char(')')
            }
        }
    }
}

impl Display for Address {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        self.base.fmt(f)?;
        self.offset.iter().try_for_each(|o| o.fmt(f))
    }
}
