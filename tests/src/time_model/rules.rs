//! What each rewrite is worth: the time of layers without it.

use super::model;
use moec_frontend::{LayerOptions, ModelConfig, layer_graph};
use moec_ir::Numerics;
use moec_ir::graph::{Graph, Shard, ShardKind};
use moec_passes::plan::Space;
use moec_passes::plan::model::Model;
use moec_passes::{Limits, Price, Rule, WeightStorage, allowed, catalogue, lower_graph, normalise_with};
use std::fmt::Write;
use std::path::Path;

/// Published configs, a family each.
const CONFIGS: [&str; 14] = [
    "deepseek-v2-lite",
    "deepseek-v3",
    "deepseek-v4-flash",
    "gemma-4-26b-a4b",
    "gpt-oss-120b",
    "kimi-k2-instruct",
    "llama4-maverick",
    "longcat-flash-chat.reconstructed",
    "minimax-m2",
    "mixtral-8x7b-v0.1",
    "olmoe-1b-7b-0125-instruct",
    "phi-3.5-moe.reconstructed",
    "qwen1.5-moe-a2.7b.reconstructed",
    "qwen3-next-80b-a3b",
];

/// A layer in the smallest operations there are, as a user may write it.
const WORDY: &str = include_str!("wordy.json");

const TOKENS: [u64; 3] = [1, 64, 4096];

/// Layers with their names: as published, a rank of eight that share experts, and one of a user.
fn layers() -> Vec<(String, Graph)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../ir/frontend/tests/configs");
    let published = |name: &str, shard: Option<Shard>| {
        let config = ModelConfig::open(folder.join(format!("{name}.json"))).unwrap_or_else(|d| panic!("{name}: {d:?}"));
        let options = LayerOptions { shard, ..LayerOptions::default() };
        config.layer(None, &options).unwrap_or_else(|d| panic!("{name}: {d:?}")).graph
    };
    let of = |name: &str| (name.split(".rec").next().unwrap_or(name).to_string(), published(name, None));
    let mut all: Vec<(String, Graph)> = CONFIGS.into_iter().map(of).collect();
    let rank = Shard { kind: ShardKind::Expert, count: 8, rank: 0 };
    all.push(("a rank of eight of deepseek-v3".to_string(), published("deepseek-v3", Some(rank))));
    let wordy = layer_graph::from_json("wordy.json", WORDY.to_string()).unwrap_or_else(|d| panic!("{d:?}"));
    all.push(("a layer in the smallest operations".to_string(), wordy));
    all
}

/// What some of the rules make of a layer.
struct Outcome {
    /// By [`TOKENS`].
    seconds: [f64; 3],
    /// What is moved and stepped through for a token.
    price: Price,
    fired: Vec<String>,
}

/// Nothing where no kernels come out.
fn outcome(graph: &Graph, rules: &[Rule], model: &Model<'_>) -> Option<Outcome> {
    let (normal, report) = normalise_with(graph, rules, Limits::default()).ok()?;
    let program = lower_graph(&normal, model.target, true, WeightStorage::default()).ok()?;
    let space = Space::new(&program, model, true);
    let fired = report.fired.into_iter().map(|(name, _)| name).collect();
    Some(Outcome { seconds: TOKENS.map(|t| space.best(model, t).1), price: report.after?, fired })
}

/// What a layer, or the worst of several, loses without a rule.
#[derive(Clone, Default)]
struct Lost {
    layers: usize,
    time: f64,
    place: String,
    values: u64,
    steps: u64,
}

impl Lost {
    fn add(&mut self, name: &str, with: &Outcome, without: &Outcome) {
        for (t, (without, with)) in TOKENS.iter().zip(without.seconds.iter().zip(with.seconds)) {
            let lost = without / with - 1.0;
            if lost > self.time {
                (self.time, self.place) = (lost, format!("{name}, T = {t}"));
            }
        }
        self.values = self.values.max(without.price.values.saturating_sub(with.price.values));
        self.steps = self.steps.max(without.price.steps.saturating_sub(with.price.steps));
    }
}

/// The section of the page.
pub(super) fn worth() -> String {
    let mut out = format!(
        "\n## What each rewrite is worth\n\nThe most that one of {} published layers, a rank of eight, or a layer that is written in the \
         smallest operations loses on B200 without it, at T = 1, 64 or 4096, with those `--numerics` where it is worth most: time, numbers that \
         are read and written for a token, and steps of row programs. Steps of routers have no time of their own in the model, and weighted \
         sums wait for memory.\n\n\
         | without | layers | time | where | numbers | steps |\n|---|--:|--:|---|--:|--:|\n",
        CONFIGS.len()
    );
    let model = model("b200");
    let catalogue = catalogue();
    let mut table = vec![Lost::default(); catalogue.len()];
    for (name, graph) in layers() {
        let mut met = vec![false; catalogue.len()];
        for numerics in [Numerics::Bitwise, Numerics::Deterministic, Numerics::Fast] {
            let rules = allowed(numerics);
            let with = outcome(&graph, &rules, &model).unwrap_or_else(|| panic!("{name} has no kernels"));
            for (i, rule) in catalogue.iter().enumerate().filter(|(_, r)| with.fired.iter().any(|f| f == r.name)) {
                met[i] = true;
                let others: Vec<Rule> = rules.iter().filter(|r| r.name != rule.name).copied().collect();
                if let Some(without) = outcome(&graph, &others, &model) {
                    table[i].add(&name, &with, &without);
                }
            }
        }
        table.iter_mut().zip(met).for_each(|(lost, met)| lost.layers += usize::from(met));
    }
    for (rule, Lost { layers, time, place, values, steps }) in catalogue.iter().zip(table) {
        let time = time * 100.0;
        writeln!(out, "| `{}` | {layers} | {time:.2} % | {place} | {values} | {steps} |", rule.name).expect("memory");
    }
    out
}
