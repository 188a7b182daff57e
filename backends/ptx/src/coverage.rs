//! Which PTX instructions and forms the emulator executes.
//!
//! [`forms`] is a catalogue of instruction forms; [`probe`] compiles one of them as a kernel would use it. The list in
//! `COVERAGE.md` is what the catalogue and the compiler give, so it cannot say more than the code does.

mod catalogue;

use std::fmt::Write as _;

use crate::ast::{Module, Statement};
use crate::exec::lower::availability::Lacks;
use crate::exec::{CompileError, Program, Target};
use crate::launch::EmulateError;

/// A group of instructions under one heading.
#[derive(Debug, Clone, Copy)]
pub struct Section {
    /// Heading.
    pub title: &'static str,
    /// The templates.
    pub templates: &'static [Template],
}

/// A pattern of instruction forms: `<a|b|c>` stands for one of `a`, `b`, `c`; `%r[4]` for `{%r0, %r1, %r2, %r3}`.
#[derive(Debug, Clone, Copy)]
pub struct Template {
    /// The first machine that has the instruction.
    pub target: &'static str,
    /// The pattern.
    pub pattern: &'static str,
}

/// One instruction form with the template that it comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Form {
    /// The first machine that has it.
    pub target: &'static str,
    /// The statement, without `;`.
    pub statement: String,
}

impl Form {
    /// The instruction without its operands, such as `add.sat.s32`.
    #[must_use]
    pub fn name(&self) -> &str {
        self.statement.split_whitespace().next().unwrap_or_default()
    }

    /// A module with one kernel `k` that holds the statement.
    #[must_use]
    pub fn module(&self) -> String {
        module(self.target, &[self])
    }
}

/// The sections of the catalogue, in the order of the PTX manual.
#[must_use]
pub fn sections() -> &'static [Section] {
    catalogue::SECTIONS
}

/// Every form of a template.
#[must_use]
pub fn forms(template: &Template) -> Vec<Form> {
    expand(template.pattern)
        .into_iter()
        .map(|statement| Form { target: template.target, statement: expand_vectors(&statement) })
        .collect()
}

/// A module for `target` with one kernel `k` that holds the statements of `forms`, each on a line of its own.
#[must_use]
pub fn module(target: &str, forms: &[&Form]) -> String {
    let mut out = format!(".version 9.0\n.target {target}\n.address_size 64\n{}", catalogue::PREAMBLE);
    for form in forms {
        // A scope ends without a semicolon.
        let end = if form.statement.ends_with('}') && form.statement.starts_with('{') { "" } else { ";" };
        let _ = writeln!(out, "{}{end}", form.statement);
    }
    out.push_str(catalogue::END);
    out
}

/// Compiles a form for execution.
///
/// # Errors
/// What the parser or the compiler says of it.
pub fn probe(form: &Form) -> Result<(), EmulateError> {
    let module = Module::parse(&form.module())?;
    Program::compile(&module, "k").map(drop).map_err(|error: CompileError| error.into())
}

/// What `target` or `.version` lacks of a form, in words; `None` if it has everything.
///
/// # Errors
/// What the parser says of the form.
pub fn unavailable(form: &Form, target: Target, version: (u32, u32)) -> Result<Option<String>, EmulateError> {
    let module = Module::parse(&form.module())?;
    let (mut found, lacks) = (None, Lacks::new(target, version));
    let kernel = module.entries().find(|f| f.name == "k");
    let mut blocks: Vec<&[Statement]> = kernel.and_then(|k| k.body.as_deref()).into_iter().collect();
    while let Some(block) = blocks.pop() {
        for statement in block {
            match statement {
                Statement::Instruction(i) => found = found.or_else(|| lacks.of(i)),
                Statement::Scope(_, inner) => blocks.push(inner),
                _ => {}
            }
        }
    }
    Ok(found)
}

/// Picks one alternative of each `<…|…>` in all ways.
fn expand(pattern: &str) -> Vec<String> {
    let Some((before, rest)) = pattern.split_once('<') else { return vec![pattern.to_string()] };
    let Some((choices, after)) = rest.split_once('>') else { return vec![pattern.to_string()] };
    let tails = expand(after);
    choices.split('|').flat_map(|choice| tails.iter().map(move |tail| format!("{before}{choice}{tail}"))).collect()
}

/// Writes out `%r[n]` as a vector of n registers.
fn expand_vectors(statement: &str) -> String {
    let mut out = String::new();
    let mut rest = statement;
    while let Some(at) = rest.find('%') {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        let name = 1 + rest[1..].find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(rest.len() - 1);
        let count = rest[name..].strip_prefix('[').and_then(|tail| tail.split_once(']'));
        match count.and_then(|(digits, tail)| Some((digits.parse::<u32>().ok()?, tail))) {
            Some((count, tail)) => {
                let registers: Vec<String> = (0..count).map(|i| format!("{}{i}", &rest[..name])).collect();
                let _ = write!(out, "{{{}}}", registers.join(","));
                rest = tail;
            }
            None => {
                out.push_str(&rest[..name]);
                rest = &rest[name..];
            }
        }
    }
    out + rest
}

/// The coverage list as a page: for each template how many of its forms are executed, and which are not.
#[must_use]
pub fn page() -> String {
    let mut body = String::new();
    let (mut all, mut executed) = (0, 0);
    for section in sections() {
        let _ =
            write!(body, "\n## {}\n\n| forms | from | executed | not executed |\n|---|---|---|---|\n", section.title);
        for template in section.templates {
            let forms = forms(template);
            let refused: Vec<&Form> = forms.iter().filter(|form| probe(form).is_err()).collect();
            all += forms.len();
            executed += forms.len() - refused.len();
            let names: Vec<String> = refused.iter().map(|form| format!("`{}`", form.name())).collect();
            let _ = writeln!(
                body,
                "| `{}` | {} | {} of {} | {} |",
                template.pattern.replace('|', "\\|"),
                template.target,
                forms.len() - refused.len(),
                forms.len(),
                names.join(" "),
            );
        }
    }
    format!(
        "# PTX that the emulator executes\n\n\
         Made by `cargo test -p moec-ptx --test coverage` from the catalogue in `src/coverage/` and the compiler; \
         set `MOEC_BLESS=1` to write it again.\n\
         `<a|b>` stands for one of the words, `%r[4]` for a vector of four registers. \
         \"From\" is the first machine that has the form (`sm_100a` also stands for its family, `sm_120a` for what only consumer Blackwell has).\n\n\
         {executed} of {all} forms are executed; the others are refused with an error that names the instruction and its line.\n{body}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_expand_in_all_ways() {
        let template = Template { target: "sm_80", pattern: "op<.a|>.<x|y> %r[2], [%rd1+%r3]" };
        let statements: Vec<String> = forms(&template).into_iter().map(|form| form.statement).collect();
        assert_eq!(
            statements,
            [
                "op.a.x {%r0,%r1}, [%rd1+%r3]",
                "op.a.y {%r0,%r1}, [%rd1+%r3]",
                "op.x {%r0,%r1}, [%rd1+%r3]",
                "op.y {%r0,%r1}, [%rd1+%r3]",
            ]
        );
    }
}
