//! The text form of a graph. [`super::parse`] reads it back.
//!
//! ```text
//! graph "mixtral layer 0"
//! input "input" : bf16[T, 4096]
//! param "router.weight" : bf16[8, 4096] = tensor("model.layers.0.block_sparse_moe.gate.weight")
//! param "experts.up" : bf16[8, 14336, 4096] stored e4m3 by f32(128, 128) = per_expert(8, "model.layers.0.block_sparse_moe.experts.{e}.w3.weight")
//! %0 = input index=0 () : bf16[T, 4096]  "input"
//! %1 = param index=0 () : bf16[8, 4096]  "router.weight"
//! %2 = linear (%0, %1) : bf16[T, 8]  "router.logits"
//! %3 = top_k k=2 (%2) : i32[T, 2]  "topk_ids"
//! output "topk_ids" = %3
//! ```
//!
//! One statement a line; `;` starts a comment. Strings are JSON strings, floats are written so that they read back to
//! the same bits. Origins are not written.

use super::{Attr, Graph, Node};
use crate::weights::{WeightSource, WeightStep};
use std::fmt::Write;

/// The graph as text.
pub fn print(graph: &Graph) -> String {
    let mut out = format!("graph {}\n", quoted(&graph.name));
    // Writing to a string cannot fail.
    for input in &graph.inputs {
        let _ = writeln!(out, "input {} : {}", quoted(&input.name), input.ty);
    }
    for param in &graph.params {
        let stored = param.stored.map_or(String::new(), |f| format!(" stored {f}"));
        let _ = writeln!(out, "param {} : {}{stored} = {}", quoted(&param.name), param.ty, source(&param.source));
    }
    for (i, node) in graph.nodes.iter().enumerate() {
        let _ = writeln!(out, "%{i} = {}", statement(node));
    }
    for (name, value) in &graph.outputs {
        let _ = writeln!(out, "output {} = {value}", quoted(name));
    }
    out
}

fn statement(node: &Node) -> String {
    let mut out = node.op.name().to_string();
    for (key, attr) in node.op.attrs() {
        let _ = write!(out, " {key}={}", attr_text(&attr));
    }
    let inputs: Vec<String> = node.inputs.iter().map(ToString::to_string).collect();
    let _ = write!(out, " ({}) : {}  {}", inputs.join(", "), node.ty, quoted(&node.name));
    out
}

fn attr_text(attr: &Attr) -> String {
    match attr {
        Attr::Whole(n) => n.to_string(),
        Attr::Real(x) => x.to_string(),
        Attr::Flag(b) => b.to_string(),
        Attr::Text(text) => quoted(text),
        Attr::Word(word, args) if args.is_empty() => word.clone(),
        Attr::Word(word, args) => {
            let args: Vec<String> = args.iter().map(|(k, v)| format!("{k}={v}")).collect();
            format!("{word}({})", args.join(", "))
        }
    }
}

/// A weight source in the text form: `tensor("a" | "b") transpose`, `per_expert(8, "…{e}…")`,
/// `per_expert(8 from 16, "…{e}…")`, `first_of(…, …)`, `largest_input_scale(…, …)`.
pub fn source(source: &WeightSource) -> String {
    let names = |names: &[String]| names.iter().map(|n| quoted(n)).collect::<Vec<_>>().join(" | ");
    match source {
        WeightSource::Tensor { names: n, steps } => format!("tensor({}){}", names(n), steps_text(steps)),
        WeightSource::PerExpert { names: n, first, count, steps } => {
            let from = if *first == 0 { String::new() } else { format!(" from {first}") };
            format!("per_expert({count}{from}, {}){}", names(n), steps_text(steps))
        }
        WeightSource::FirstOf(sources) => {
            let all: Vec<String> = sources.iter().map(self::source).collect();
            format!("first_of({})", all.join(", "))
        }
        WeightSource::LargestInputScale(sources) => {
            let all: Vec<String> = sources.iter().map(self::source).collect();
            format!("largest_input_scale({})", all.join(", "))
        }
    }
}

fn steps_text(steps: &[WeightStep]) -> String {
    let one = |s: &WeightStep| match s {
        WeightStep::Transpose => " transpose".to_string(),
        WeightStep::Slice { axis, start, step, len, of } => {
            let of = of.map_or(String::new(), |n| format!(", of={n}"));
            format!(" slice(axis={axis}, start={start}, step={step}, len={len}{of})")
        }
        WeightStep::Reshape { shape } => {
            let shape: Vec<String> = shape.iter().map(ToString::to_string).collect();
            format!(" reshape({})", shape.join(", "))
        }
    };
    steps.iter().map(one).collect()
}

fn quoted(text: &str) -> String {
    serde_json::Value::String(text.to_string()).to_string()
}
