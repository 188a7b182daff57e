//! What is chosen for which token counts, and what a token count loses by running the program of its range.

use super::cases::{Case, cases, compile, graph, variant};
use super::model;
use moec_ir::Numerics;
use moec_ir::target::Target;
use moec_ir::tile::Program;
use moec_passes::plan::Space;
use moec_passes::plan::model::{Chip, Model, Routing};
use moec_passes::{Limits, Variant, WeightStorage, lower_graph, normalise};
use std::fmt::Write;

/// Ways to route whose losses are bounded.
fn routings() -> [(&'static str, Routing); 3] {
    [("uniform", Routing::Uniform), ("Zipf 1.2", Routing::Zipf(1.2)), ("one-hot", Routing::OneHot)]
}

/// Token counts on and off the grid that ranges are made from.
const TOKENS: [u64; 22] =
    [1, 2, 3, 5, 8, 13, 16, 24, 40, 64, 100, 128, 200, 256, 400, 700, 1024, 1500, 2500, 4096, 7000, 16384];

/// Programs of a layer before planning.
pub(super) fn lowered(case: &Case, target: &Target) -> Program {
    let (graph, _) = normalise(&graph(case), Numerics::default(), Limits::default()).expect("a form");
    lower_graph(&graph, target, true, WeightStorage::default()).expect("a program")
}

/// The largest loss of the program that is run, and where it is, with each routing.
fn worst(case: &Case, chip: &'static Chip, target: &'static Target, variants: &[Variant]) -> Vec<(f64, u64)> {
    let plain = Model::new(chip, target);
    let space = Space::new(&lowered(case, target), &plain, true);
    let with = |routing: Routing| {
        let model = Model::new(chip, target).with_routing(routing);
        let lost = |&t: &u64| (model.seconds(variant(variants, t), t) / space.best(&model, t).1 - 1.0, t);
        TOKENS.iter().map(lost).reduce(|a, b| if b.0 > a.0 { b } else { a }).unwrap_or((0.0, 0))
    };
    routings().into_iter().map(|(_, r)| with(r)).collect()
}

/// Losses of over `limit` of any layer on any chip, as sentences.
pub fn regrets(limit: f64) -> Vec<String> {
    let mut out = Vec::new();
    for name in ["h200", "b200", "rtx5090"] {
        let m = model(name);
        for case in &cases() {
            let variants = compile(case, m.target);
            for ((routing, _), (lost, t)) in routings().iter().zip(worst(case, m.chip, m.target, &variants)) {
                if lost > limit {
                    out.push(format!("{} on {name}, {routing}: {:.1} % at T={t}", case.name, lost * 100.0));
                }
            }
        }
    }
    out
}

/// The section of the page.
pub(super) fn section() -> String {
    let mut out = String::from(
        "\n## What is chosen\n\nThe last token count of each program, and the most that a token count loses by running the program of \
         its range instead of its own best one, in %.\n\n| layer | chip | up to | uniform | Zipf 1.2 | one-hot |\n|---|---|---|--:|--:|--:|\n",
    );
    for case in &cases() {
        for name in ["h200", "b200", "rtx5090"] {
            let m = model(name);
            let variants = compile(case, m.target);
            let ends: Vec<String> = variants.iter().rev().skip(1).rev().map(|v| v.tokens.1.to_string()).collect();
            let lost: Vec<String> = worst(case, m.chip, m.target, &variants)
                .into_iter()
                .map(|(lost, t)| if lost > 5e-4 { format!("{:.1} (T = {t})", lost * 100.0) } else { "0.0".into() })
                .collect();
            writeln!(out, "| {} | {} | {}, … | {} |", case.name, m.chip.name, ends.join(", "), lost.join(" | "))
                .expect("memory");
        }
    }
    out
}
