//! The layer before and after rewriting, drawn in ranks.

use super::escaped;
use crate::commands::decisions::Decided;
use moec_ir::graph::{Graph, Op};
use std::fmt::Write;

const WIDTH: usize = 150;
const HEIGHT: usize = 40;
const GAP: (usize, usize) = (12, 22);

/// Both layers side by side, and the rules that lead from one to the other.
pub fn section(before: &Graph, decided: &Decided) -> String {
    let steps: Vec<String> = decided.report.proof.steps.iter().map(|s| format!("<code>{}</code>", s.rule)).collect();
    let mut out = format!(
        "<h2>The layer before and after rewriting</h2>\n<p>{} e-nodes in {} rounds{}. Steps of the proof: {}. Parameters are not drawn; what \
         rewriting made has a thick border.</p>\n<div class=pair>\n",
        decided.report.nodes,
        decided.report.iterations,
        if decided.report.saturated { "" } else { ", stopped by a limit" },
        if steps.is_empty() { "none".to_string() } else { steps.join(", ") },
    );
    for (title, graph) in [("As written", before), ("As compiled", &decided.normal)] {
        let n = drawn(graph).len();
        let _ = writeln!(
            out,
            "<figure><h3>{title}: {n} operations</h3><div class=scroll>{}</div></figure>",
            drawing(graph, |op| !before.nodes.iter().any(|n| n.op == *op))
        );
    }
    out + "</div>\n"
}

/// Nodes that are drawn: all but parameters and what is made of nothing else.
fn drawn(graph: &Graph) -> Vec<usize> {
    let mut of_tokens = vec![false; graph.nodes.len()];
    for (i, node) in graph.nodes.iter().enumerate() {
        of_tokens[i] = matches!(node.op, Op::Input(_)) || node.inputs.iter().any(|v| of_tokens[v.index()]);
    }
    (0..graph.nodes.len()).filter(|&i| of_tokens[i]).collect()
}

fn drawing(graph: &Graph, is_new: impl Fn(&Op) -> bool) -> String {
    let nodes = drawn(graph);
    // A node lies one rank below the lowest of its operands.
    let mut rank = vec![0; graph.nodes.len()];
    let mut ranks: Vec<Vec<usize>> = Vec::new();
    for &i in &nodes {
        let operands = graph.nodes[i].inputs.iter().map(|v| v.index()).filter(|o| nodes.contains(o));
        rank[i] = operands.map(|o| rank[o] + 1).max().unwrap_or(0);
        if ranks.len() <= rank[i] {
            ranks.resize(rank[i] + 1, Vec::new());
        }
        ranks[rank[i]].push(i);
    }
    let widest = ranks.iter().map(Vec::len).max().unwrap_or(1);
    let width = widest * (WIDTH + GAP.0) + GAP.0;
    let height = ranks.len() * (HEIGHT + GAP.1) + GAP.1;
    let mut at = vec![(0, 0); graph.nodes.len()];
    for (r, row) in ranks.iter().enumerate() {
        let left = (width - row.len() * (WIDTH + GAP.0)) / 2 + GAP.0 / 2;
        for (i, &node) in row.iter().enumerate() {
            at[node] = (left + i * (WIDTH + GAP.0), GAP.1 + r * (HEIGHT + GAP.1));
        }
    }
    let mut out =
        format!("<svg width={width} height={height} viewBox=\"0 0 {width} {height}\" role=img aria-label=graph>\n");
    for &i in &nodes {
        for o in graph.nodes[i].inputs.iter().map(|v| v.index()).filter(|o| nodes.contains(o)) {
            let [(x, y), (u, v)] = [(at[o].0 + WIDTH / 2, at[o].1 + HEIGHT), (at[i].0 + WIDTH / 2, at[i].1)];
            let middle = (y + v) / 2;
            let _ = writeln!(out, "<path class=edge d=\"M{x} {y}C{x} {middle} {u} {middle} {u} {v}\"/>");
        }
    }
    for &i in &nodes {
        let (node, (x, y)) = (&graph.nodes[i], at[i]);
        let class = if is_new(&node.op) { "node new" } else { "node" };
        let (cx, name, ty) = (x + WIDTH / 2, short(&node.name, 20), short(&node.ty.to_string(), 22));
        let _ = writeln!(
            out,
            "<g><title>{}: {} : {}</title><rect class=\"{class}\" x={x} y={y} width={WIDTH} height={HEIGHT} rx=6 />\
             <text x={cx} y={} text-anchor=middle>{}</text><text class=soft x={cx} y={} text-anchor=middle>{}</text></g>",
            escaped(&node.name),
            node.op.name(),
            node.ty,
            y + 17,
            escaped(if matches!(node.op, Op::Input(_)) { &name } else { node.op.name() }),
            y + 33,
            escaped(&ty),
        );
    }
    out + "</svg>"
}

/// The beginning of a text that is too long.
fn short(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.to_string();
    }
    text.chars().take(most - 1).chain(['…']).collect()
}
