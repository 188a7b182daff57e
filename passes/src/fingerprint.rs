//! What decides the bits of a layer's outputs, as a text: rounding points, formats, and for every sum the engine that makes it and
//! its parts.
//!
//! Equal texts of one version mean equal bits; what an engine does inside a step of k is in them by its name only. What does not bear on them is left out: names, tiles, stages, the CTAs of a tile, and which kernels
//! share a launch; values are numbered from the outputs on. All programs of a layer for a target have one text, which
//! [`crate::compile`] holds.

use moec_ir::Engine;
use moec_ir::engine::rows::Way;
use moec_ir::target::Target;
use moec_ir::tile::{Body, BufferId, Contract, Kernel, Program, Role, RowOp, RowOpKind, RowProgram, Schedule};
use std::collections::BTreeMap;
use std::fmt::Write;

/// What decides the bits of a program's outputs, in the order of the graph.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fingerprint {
    /// One for each output.
    pub outputs: Vec<OutputPrint>,
}

/// What decides the bits of one output.
#[derive(Clone, Debug)]
pub struct OutputPrint {
    /// Name of the output.
    pub name: String,
    /// One line for each value and each step, from inputs to the output.
    pub text: String,
    /// What the values are called, for people: `%0`, `%1`, …
    pub names: Vec<String>,
}

impl PartialEq for OutputPrint {
    /// What values are called changes no bits.
    fn eq(&self, other: &OutputPrint) -> bool {
        self.name == other.name && self.text == other.text
    }
}

impl Eq for OutputPrint {}

/// A part of a kernel that could be a kernel of its own, and how its sums are made.
struct Unit {
    body: Body,
    sums: String,
    /// `(buffer, is written)`
    operands: Vec<(BufferId, bool)>,
}

impl Unit {
    fn new(body: Body, sums: String) -> Unit {
        Unit { operands: body.operands(), body, sums }
    }
}

impl Fingerprint {
    /// Of a program as it is scheduled for a target.
    pub fn of(program: &Program, target: &Target) -> Fingerprint {
        let units: Vec<Unit> = program.kernels.iter().flat_map(|k| units(program, k, target)).collect();
        let mut outputs: Vec<(u32, BufferId)> = program
            .buffers
            .iter()
            .enumerate()
            .filter_map(|(i, b)| if let Role::Output(n) = b.role { Some((n, BufferId(i as u32))) } else { None })
            .collect();
        outputs.sort_unstable();
        let print = |&(_, b): &(u32, BufferId)| {
            let done = vec![false; units.len()];
            let mut writer = Writer {
                program,
                units: &units,
                done,
                numbers: BTreeMap::new(),
                names: Vec::new(),
                text: String::new(),
            };
            writer.value(b);
            let number = writer.number(b);
            let _ = writeln!(writer.text, "  result %{number}");
            OutputPrint { name: program.buffer(b).name.clone(), text: writer.text, names: writer.names }
        };
        Fingerprint { outputs: outputs.iter().map(print).collect() }
    }

    /// The texts of all outputs, one behind the other.
    pub fn text(&self) -> String {
        self.outputs.iter().map(|o| format!("{}:\n{}", o.name, o.text)).collect()
    }
}

/// What a kernel does, taken apart: launches are merged in some programs of a layer only.
fn units(program: &Program, kernel: &Kernel, target: &Target) -> Vec<Unit> {
    match &kernel.body {
        Body::Contract(c) => {
            let engine = Engine::of(target, program, c).map_or_else(|_| target.name.to_string(), |e| e.to_string());
            let sums = format!("sums by {engine}, {} parts of k", kernel.schedule.k_parts);
            let one = |s| Unit::new(Body::Contract(Contract::of(vec![s])), sums.clone());
            let mut all: Vec<Unit> = c.segments.iter().cloned().map(one).collect();
            all.extend(c.combine.iter().map(|then| Unit::new(Body::Combine(then.combine.clone()), String::new())));
            all
        }
        Body::Rows(r) => {
            let alone = RowProgram { quantise: Vec::new(), plan: None, logits: None, ..r.clone() };
            let mut all = vec![Unit::new(Body::Rows(alone), rows_sums(program, r, kernel, target))];
            all.extend(r.quantise.iter().map(|q| Unit::new(Body::Quantise(q.clone()), String::new())));
            all.extend(r.plan.iter().map(|p| Unit::new(Body::Plan(p.plan.clone()), String::new())));
            all
        }
        Body::Plan(_) | Body::Map(_) | Body::Quantise(_) | Body::Combine(_) => {
            vec![Unit::new(kernel.body.clone(), String::new())]
        }
    }
}

/// The warps of a router share k, on tensor cores and without.
fn rows_sums(program: &Program, rows: &RowProgram, kernel: &Kernel, target: &Target) -> String {
    if target.is_cpu() {
        return format!("sums by {}", target.name);
    }
    let way = |op: &RowOp| match op.kind {
        RowOpKind::Linear { x, w, .. } => Some(match Way::of(program, x, w) {
            Way::Mma(ty) => format!("sums by mma.sync of {ty:?} in {} parts of k", kernel.schedule.warps),
            Way::Fma => "sums by multiply-adds in 32 parts of k".to_string(),
        }),
        _ => None,
    };
    rows.ops.iter().filter_map(way).collect::<Vec<_>>().join("; ")
}

struct Writer<'a> {
    program: &'a Program,
    units: &'a [Unit],
    done: Vec<bool>,
    /// Numbers of buffers in the text.
    numbers: BTreeMap<u32, usize>,
    /// Names of buffers, by those numbers.
    names: Vec<String>,
    text: String,
}

impl Writer<'_> {
    /// Writes what makes a buffer, after what that needs.
    fn value(&mut self, b: BufferId) {
        let units = self.units;
        let makers: Vec<usize> =
            (0..units.len()).filter(|&u| units[u].operands.contains(&(b, true)) && !self.done[u]).collect();
        for u in makers {
            self.done[u] = true;
            for &(operand, written) in &units[u].operands {
                if !written {
                    self.value(operand);
                }
            }
            self.unit(&units[u]);
        }
        self.number(b);
    }

    fn unit(&mut self, unit: &Unit) {
        let schedule = Schedule::new(1, 1, 1, 1, 1);
        let kernel = Kernel { name: "step".to_string(), body: unit.body.clone(), schedule };
        // Name and schedule come first.
        let text = kernel.to_string();
        let body = text.split_once(") ").map_or(text.as_str(), |(_, body)| body);
        let mut out = "  ".to_string();
        let mut parts = body.split('%');
        out += parts.next().unwrap_or_default();
        for part in parts {
            let digits = part.len() - part.trim_start_matches(|c: char| c.is_ascii_digit()).len();
            match part[..digits].parse::<u32>() {
                Ok(id) => {
                    let number = self.number(BufferId(id));
                    let _ = write!(out, "%{number}{}", &part[digits..]);
                }
                Err(_) => {
                    let _ = write!(out, "%{part}");
                }
            }
        }
        if !unit.sums.is_empty() {
            let _ = writeln!(self.text, "  {}:", unit.sums);
        }
        self.text += &out;
    }

    /// The number of a buffer, which is declared when it is first met.
    fn number(&mut self, b: BufferId) -> usize {
        if let Some(&n) = self.numbers.get(&b.0) {
            return n;
        }
        let n = self.numbers.len();
        self.numbers.insert(b.0, n);
        let buffer = self.program.buffer(b);
        self.names.push(buffer.name.clone());
        let role = match &buffer.role {
            // Kept in memory or given: what it holds is the same.
            Role::Workspace | Role::Counter => String::new(),
            given => format!(" {given:?}").to_lowercase(),
        };
        let _ =
            writeln!(self.text, "  %{n} = {}[{}, {}, {}]{role}", buffer.dtype, buffer.batch, buffer.rows, buffer.cols);
        n
    }
}
