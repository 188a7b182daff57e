//! PTX as text that stays the same where the code does.
//!
//! A change in one place of a kernel renumbers the registers and labels behind it, so that two texts differ everywhere. In a
//! [`Listing`] registers are named by their type and the order of their first use in a block, labels and parameters by their
//! order in the kernel, and what says nothing about the code is left out: declarations of registers, source lines, the order in
//! which functions stand. Two kernels with equal listings execute the same instructions; which value of another block a register
//! holds is not told, so the inverse needs the PTX itself.

use std::collections::{BTreeMap, HashMap};

use crate::ast::{Address, Function, Instruction, Module, Operand, Statement, Variable};
use crate::exec::counters::Class;
use crate::exec::lower::class_of;

/// A kernel or device function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listing {
    /// Its name.
    pub name: String,
    /// Lines of text: directives, labels, instructions (two spaces in front).
    pub lines: Vec<String>,
    /// Instructions by class, as they stand in the text.
    pub instructions: BTreeMap<Class, u64>,
    /// Bytes of `.shared` variables of the function.
    pub static_smem_bytes: u64,
}

impl Listing {
    /// Instructions in all.
    pub fn n_instructions(&self) -> u64 {
        self.instructions.values().sum()
    }
}

/// The functions of a module that have a body, by name.
pub fn listings(module: &Module) -> Vec<Listing> {
    let mut all: Vec<Listing> = module.functions().filter_map(|f| Some(listing(f, f.body.as_ref()?))).collect();
    all.sort_by(|a, b| a.name.cmp(&b.name));
    all
}

fn listing(function: &Function, body: &[Statement]) -> Listing {
    let mut names = Names::default();
    let parameters = function.params.iter().flatten().flat_map(|p| &p.names);
    names.whole.extend(parameters.enumerate().map(|(i, d)| (d.name.clone(), format!("param{i}"))));
    names.collect(body, &mut 0);
    let mut out = Listing {
        name: function.name.clone(),
        lines: function.directives.iter().map(ToString::to_string).collect(),
        instructions: BTreeMap::new(),
        static_smem_bytes: 0,
    };
    statements(body, &mut names, &mut out);
    out
}

fn statements(body: &[Statement], names: &mut Names, out: &mut Listing) {
    for statement in body {
        match statement {
            Statement::Label(_, name) => {
                names.begin_block();
                let label = names.rename(name);
                out.lines.push(format!("{label}:"));
            }
            Statement::Instruction(i) => {
                let class = class_of(i);
                *out.instructions.entry(class).or_default() += 1;
                let renamed = names.instruction(i);
                out.lines.push(format!("  {renamed};"));
                if class == Class::Control {
                    names.begin_block();
                }
            }
            Statement::Variable(v) if v.space == crate::ast::Space::Reg => {}
            Statement::Variable(v) => {
                if v.space == crate::ast::Space::Shared {
                    out.static_smem_bytes += bytes(v);
                }
                out.lines.push(format!("  {v};"));
            }
            Statement::Scope(_, inner) => statements(inner, names, out),
            Statement::Targets { kind, names: targets, .. } => {
                let targets: Vec<String> = targets.iter().map(|t| names.rename(t)).collect();
                out.lines.push(format!("  .{kind} {};", targets.join(", ")));
            }
            Statement::Prototype { .. } => out.lines.push("  .callprototype".to_string()),
            Statement::Directive(d) if d.name == "loc" => {}
            Statement::Directive(d) => out.lines.push(format!("  {d}")),
        }
    }
}

/// Bytes of a declared variable.
fn bytes(v: &Variable) -> u64 {
    let element = v.ty.trim_start_matches(|c: char| c.is_ascii_alphabetic()).parse::<u64>().unwrap_or(0) / 8;
    let count = |d: &crate::ast::Declarator| {
        let dim = |n: &Option<crate::ast::Literal>| n.as_ref().and_then(|n| n.text.parse::<u64>().ok()).unwrap_or(0);
        d.dims.iter().map(dim).product::<u64>()
    };
    v.names.iter().map(|d| count(d) * element * u64::from(v.vector)).sum()
}

/// What names become.
#[derive(Default)]
struct Names {
    /// Labels and parameters, in the whole function.
    whole: HashMap<String, String>,
    /// Registers `prefix0 …`: prefix, and the stem of their type.
    ranges: Vec<(String, &'static str)>,
    /// Registers that are declared by name.
    single: HashMap<String, &'static str>,
    /// Registers of the block.
    block: HashMap<String, String>,
    /// How many of each stem the block has.
    counts: BTreeMap<&'static str, u64>,
}

impl Names {
    fn collect(&mut self, body: &[Statement], n_labels: &mut u64) {
        for statement in body {
            match statement {
                Statement::Label(_, name) => {
                    *n_labels += 1;
                    self.whole.insert(name.clone(), format!("L{n_labels}"));
                }
                Statement::Scope(_, inner) => self.collect(inner, n_labels),
                Statement::Variable(v) if v.space == crate::ast::Space::Reg => {
                    for d in &v.names {
                        match &d.range {
                            Some(_) => self.ranges.push((d.name.clone(), stem(&v.ty))),
                            None => drop(self.single.insert(d.name.clone(), stem(&v.ty))),
                        }
                    }
                }
                Statement::Variable(_)
                | Statement::Instruction(_)
                | Statement::Targets { .. }
                | Statement::Prototype { .. }
                | Statement::Directive(_) => {}
            }
        }
    }

    fn begin_block(&mut self) {
        self.block.clear();
        self.counts.clear();
    }

    fn register(&self, name: &str) -> Option<&'static str> {
        let numbered = |prefix: &str| {
            name.strip_prefix(prefix).is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
        };
        let of_range = || self.ranges.iter().find(|(prefix, _)| numbered(prefix)).map(|(_, stem)| *stem);
        self.single.get(name).copied().or_else(of_range)
    }

    fn rename(&mut self, name: &str) -> String {
        if let Some(known) = self.whole.get(name).or_else(|| self.block.get(name)) {
            return known.clone();
        }
        let Some(stem) = self.register(name) else { return name.to_string() };
        let count = self.counts.entry(stem).or_default();
        *count += 1;
        let new = format!("%{stem}{count}");
        self.block.insert(name.to_string(), new.clone());
        new
    }

    fn instruction(&mut self, i: &Instruction) -> Instruction {
        let mut new = i.clone();
        if let Some(guard) = &mut new.guard {
            guard.name = self.rename(&guard.name);
        }
        new.operands.iter_mut().for_each(|o| self.operand(o));
        new
    }

    fn operand(&mut self, o: &mut Operand) {
        match o {
            Operand::Name(n) | Operand::Sum(n, _) | Operand::Operator(_, n) | Operand::Not(n) | Operand::Neg(n) => {
                // `%v.x` is a part of a vector register.
                match n.rsplit_once('.').map(|(base, part)| (base.to_string(), part.to_string())) {
                    Some((base, part)) if self.register(&base).is_some() => {
                        *n = format!("{}.{part}", self.rename(&base))
                    }
                    _ => *n = self.rename(n),
                }
            }
            Operand::Literal(_) | Operand::Sink => {}
            Operand::Vector(list) | Operand::List(list) => list.iter_mut().for_each(|o| self.operand(o)),
            Operand::Pair(a, b) => {
                self.operand(a);
                self.operand(b);
            }
            Operand::Address(a) => self.address(a),
            Operand::Tensor { map, coordinates } => {
                self.address(map);
                coordinates.iter_mut().for_each(|o| self.operand(o));
            }
        }
    }

    fn address(&mut self, a: &mut Address) {
        self.operand(&mut a.base);
    }
}

/// The usual name of registers of a type.
fn stem(ty: &str) -> &'static str {
    match ty {
        "pred" => "p",
        "f32" => "f",
        "f64" => "fd",
        t if t.ends_with("8") && !t.ends_with("128") => "rb",
        t if t.ends_with("16") => "rs",
        t if t.ends_with("32") => "r",
        t if t.ends_with("64") => "rd",
        _ => "rq",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(body: &str) -> Listing {
        let text = format!(
            ".version 8.0\n.target sm_80\n.address_size 64\n.visible .entry k(.param .u64 k_param_0)\n{{\n{body}\n}}\n"
        );
        listings(&Module::parse(&text).expect("PTX")).remove(0)
    }

    #[test]
    fn what_was_renumbered_is_the_same() {
        let a = of(".reg .b32 %r<9>; .reg .pred %p<2>; .reg .b64 %rd<3>;
            ld.param.u64 %rd1, [k_param_0]; mov.u32 %r5, %tid.x; setp.eq.s32 %p1, %r5, 0; @%p1 bra $L_7; add.s32 %r7, %r5, 1; $L_7: ret;");
        let b = of(".reg .pred %q<2>; .reg .b32 %x<9>; .reg .b64 %a;
            ld.param.u64 %a, [k_param_0]; mov.u32 %x1, %tid.x; setp.eq.s32 %q1, %x1, 0; @%q1 bra EXIT; add.s32 %x2, %x1, 1; EXIT: ret;");
        assert_eq!(a.lines, b.lines);
        assert_eq!(a.lines[3], "  @%p1 bra L1;");
        assert_eq!(a.n_instructions(), 6);
    }

    #[test]
    fn a_change_stays_where_it_is() {
        let head = ".reg .b32 %r<20>; mov.u32 %r1, %tid.x; bra A; ";
        let a = of(&format!("{head} add.s32 %r2, %r1, 1; bra A; A: mul.lo.s32 %r3, %r1, %r1; ret;"));
        let b =
            of(&format!("{head} xor.b32 %r2, %r1, 7; add.s32 %r3, %r2, 1; bra A; A: mul.lo.s32 %r9, %r1, %r1; ret;"));
        let common = |x: &[String], y: &[String]| x.iter().zip(y).take_while(|(a, b)| a == b).count();
        assert_eq!(common(&a.lines, &b.lines), 2);
        assert_eq!(a.lines[a.lines.len() - 3..], b.lines[b.lines.len() - 3..]);
    }

    #[test]
    fn shared_variables_count_their_bytes() {
        let l = of(".shared .align 16 .b8 a[48]; .shared .f32 b[2][3]; ret;");
        assert_eq!(l.static_smem_bytes, 72);
    }
}
