//! `moec explain`: a page on a diagnostic code, or what the compiler decides for a model.

use super::subject::{CompileArgs, ShardArgs, open_layer, parse_target};
use crate::output::{self, Ended, Outcome, table};
use moec::{Diagnostic, LayerOptions, Target};
use moec_ir::diag::{CODES, code_page};
use moec_passes::{Limits, catalogue, cost::CostModel, optimise_with};
use std::path::Path;

#[derive(clap::Args, Debug)]
pub struct Options {
    /// A model, or a diagnostic code such as `top-k-exceeds-experts`; without it, the codes are listed.
    #[arg(value_name = "MODEL|CODE")]
    pub subject: Option<String>,
    /// The layer of a model, by its own number.
    #[arg(long, value_name = "N")]
    pub layer: Option<u32>,
    #[command(flatten)]
    pub shard: ShardArgs,
    /// The machine whose costs decide.
    #[arg(long, short, default_value = "sm_100f", value_parser = parse_target, value_name = "T")]
    pub target: &'static Target,
    /// Token count whose costs decide.
    #[arg(long, default_value_t = 64, value_name = "T")]
    pub tokens: u64,
    #[command(flatten)]
    pub compile: CompileArgs,
}

pub fn run(options: &Options) -> Outcome {
    let Some(subject) = &options.subject else {
        let list: String = CODES.iter().map(|c| format!("{}\n", c.code)).collect();
        output::print(&list);
        return Ok(Ended::Well);
    };
    if let Some(page) = code_page(subject) {
        output::print(page.page);
        return Ok(Ended::Well);
    }
    if Path::new(subject).exists() {
        return explain_model(options, Path::new(subject));
    }
    Err(vec![unknown(subject)])
}

/// The rewrites that fire, and for each what the layer would cost without it.
fn explain_model(options: &Options, path: &Path) -> Outcome {
    let one = |d: Diagnostic| vec![d];
    let shard = options.shard.part().map_err(one)?;
    let layer = open_layer(path, options.layer, &LayerOptions { shard, ..LayerOptions::default() })?;
    let layer = layer.with_activations(options.compile.activations.unwrap_or_default()).map_err(one)?;
    let weights = options.compile.weight_storage;
    let cost = CostModel { machine: options.target.machine, n_tokens: options.tokens, weights };
    let rules: Vec<_> = catalogue().into_iter().filter(|r| options.compile.numerics.allows(r.class)).collect();
    let with_rules = |rules: &[_]| optimise_with(&layer.graph, rules, &cost, Limits::default()).map_err(|d| vec![d]);
    let (_, report) = with_rules(&rules)?;
    let us = |s: f64| format!("{:.1}", s * 1e6);
    let mut rows = Vec::new();
    for (name, times) in &report.fired {
        let without: Vec<_> = rules.iter().filter(|r| r.name != name).copied().collect();
        let saved = with_rules(&without)?.1.cost_after - report.cost_after;
        let about = rules.iter().find(|r| r.name == name).map_or("", |r| r.about);
        rows.push(vec![name.clone(), times.to_string(), us(saved.max(0.0)), about.to_string()]);
    }
    let mut out = layer.facts.as_ref().map_or_else(String::new, |f| format!("{}\n\n", f.paragraph()));
    out += &format!(
        "On {} ({}) at T={}: modelled {} us as written, {} us after rewriting; {} e-nodes, {} rounds{}.\n\n",
        options.target.name,
        options.target.machine.chip,
        options.tokens,
        us(report.cost_before),
        us(report.cost_after),
        report.nodes,
        report.iterations,
        if report.saturated { "" } else { ", stopped by a limit" },
    );
    out += &table(&["rewrite", "times", "us lost without it", "what it does"], &rows);
    output::print(&out);
    Ok(Ended::Well)
}

fn unknown(subject: &str) -> Diagnostic {
    let d = Diagnostic::input("unknown-code", format!("`{subject}` is neither a file nor a diagnostic code"));
    let nearest = CODES.iter().map(|c| c.code).min_by_key(|c| distance(c, subject));
    match nearest.filter(|c| distance(c, subject) <= subject.len().max(4) / 2) {
        Some(code) => d.help(format!("`{code}` is the nearest; `moec explain` lists all")),
        None => d.help("`moec explain` lists all codes"),
    }
}

/// Edits (insert, delete, replace) between two short words.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, &y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_nearest_code_is_proposed() {
        assert_eq!(super::distance("kitten", "sitting"), 3);
        let d = super::unknown("shape-mismach");
        assert!(d.help.is_some_and(|h| h.contains("`shape-mismatch`")));
    }
}
