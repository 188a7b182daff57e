//! What is chosen for which token counts, and what a token count loses by running the program of its range.

use super::cases::{Case, cases, compile, graph, variant};
use super::{is_product, model, target};
use moec_frontend::{LayerOptions, ModelConfig};
use moec_ir::Numerics;
use moec_ir::target::Target;
use moec_ir::tile::{Body, Kernel, Program, Schedule, Team};
use moec_passes::plan::Space;
use moec_passes::plan::forms::{Form, MERGES};
use moec_passes::plan::model::{Model, Routing};
use moec_passes::{CompileOptions, Limits, Variant, WeightStorage, lower_graph, normalise};
use std::fmt::Write;
use std::path::{Path, PathBuf};

/// Ways to route whose losses are bounded.
fn routings() -> [(&'static str, Routing); 3] {
    [("uniform", Routing::Uniform), ("Zipf 1.2", Routing::Zipf(1.2)), ("one-hot", Routing::OneHot)]
}

/// Token counts on and off the grid that ranges are made from.
const TOKENS: [u64; 22] =
    [1, 2, 3, 5, 8, 13, 16, 24, 40, 64, 100, 128, 200, 256, 400, 700, 1024, 1500, 2500, 4096, 7000, 16384];

const CHIPS: [&str; 3] = ["h200", "b200", "rtx5090"];

/// The program of a layer before planning.
fn lowered(case: &Case, target: &Target) -> Program {
    let (graph, _) = normalise(&graph(case), Numerics::default(), Limits::default()).expect("a form");
    lower_graph(&graph, target, true, WeightStorage::default()).expect("a program")
}

/// The largest loss of the program that is run, and where it is, with each routing.
fn worst(case: &Case, uniform: &Model<'_>, variants: &[Variant]) -> Vec<(f64, u64)> {
    let space = Space::new(&lowered(case, uniform.target), uniform, true);
    let with = |routing: Routing| {
        let model = Model::new(uniform.chip, uniform.target).with_routing(routing);
        let lost = |&t: &u64| (model.seconds(variant(variants, t), t) / space.best(&model, t).1 - 1.0, t);
        TOKENS.iter().map(lost).reduce(|a, b| if b.0 > a.0 { b } else { a }).unwrap_or((0.0, 0))
    };
    routings().into_iter().map(|(_, r)| with(r)).collect()
}

/// What any layer may lose on a chip, as a part of the best program's time: with uniform routing, Zipf 1.2 and one-hot.
const MOST_LOST: [(&str, [f64; 3]); CHIPS.len()] =
    [("h200", [0.025, 0.255, 0.295]), ("b200", [0.028, 0.11, 0.595]), ("rtx5090", [0.021, 0.045, 0.22])];

/// Losses of any layer on any chip that are over its bounds, as sentences.
pub fn regrets() -> Vec<String> {
    let mut out = Vec::new();
    for (name, most) in MOST_LOST {
        let m = model(name);
        for case in &cases() {
            let all = worst(case, &m, &compile(case, m.target)).into_iter().zip(routings()).zip(most);
            let over = all.filter(|(((lost, _), _), most)| lost > most);
            out.extend(over.map(|(((lost, t), (routing, _)), _)| {
                format!("{} on {name}, {routing}: {:.1} % at T={t}", case.name, lost * 100.0)
            }));
        }
    }
    out
}

/// Example models for which fewer than `least` different programs are chosen over all token counts, as sentences.
pub fn few_programs(least: usize) -> Vec<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/models");
    let mut models: Vec<PathBuf> =
        std::fs::read_dir(folder).expect("examples/models").map(|e| e.expect("readable").path()).collect();
    models.sort();
    let mut out = Vec::new();
    for path in &models {
        let layer = ModelConfig::open(path).and_then(|m| m.layer(None, &LayerOptions::default()));
        let graph = layer.unwrap_or_else(|d| panic!("{}: {d:?}", path.display())).graph;
        for name in CHIPS {
            let variants = moec_passes::compile(&graph, target(name), &CompileOptions::default()).expect("programs");
            let cuts = |v: &Variant| v.program.kernels.iter().map(|k| (k.name.clone(), k.schedule)).collect::<Vec<_>>();
            let mut programs: Vec<_> = variants.iter().map(cuts).collect();
            programs.dedup();
            if programs.len() < least {
                let model = path.file_name().expect("a folder").to_string_lossy();
                out.push(format!("{model} on {name}: {}", programs.len()));
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
        for name in CHIPS {
            let m = model(name);
            let variants = compile(case, m.target);
            let mut ends: Vec<String> = variants.iter().rev().skip(1).rev().map(|v| v.tokens.1.to_string()).collect();
            ends.push("…".into());
            let lost: Vec<String> = worst(case, &m, &variants)
                .into_iter()
                .map(|(lost, t)| if lost > 5e-4 { format!("{:.1} (T = {t})", lost * 100.0) } else { "0.0".into() })
                .collect();
            writeln!(out, "| {} | {} | {} | {} |", case.name, m.chip.name, ends.join(", "), lost.join(" | "))
                .expect("memory");
        }
    }
    out
}

/// What a choice would be without: a name, forms and schedules that are left.
struct Without {
    name: &'static str,
    form: fn(&Form) -> bool,
    schedule: fn(&Kernel, &Schedule) -> bool,
}

/// Whether a form has the merge of that name.
fn has(form: &Form, merge: &str) -> bool {
    assert!(MERGES.iter().any(|m| m.name == merge), "{merge}");
    form.merges.contains(&merge)
}

const SHARED: &str = "shared beside routed experts";
const LOGITS: &str = "logits by many CTAs";
const ONE_LAUNCH: &str = "gate, up and down in one launch";
const COMBINED: &str = "slots added up by the down product's last CTAs";

/// Forms and kinds of schedules, each of which has to be worth something.
fn withouts() -> Vec<Without> {
    let any_form: fn(&Form) -> bool = |_| true;
    let any: fn(&Kernel, &Schedule) -> bool = |_, _| true;
    vec![
        Without { name: SHARED, form: |f| !has(f, SHARED), schedule: any },
        Without { name: "shared experts in launches of their own", form: |f| has(f, SHARED), schedule: any },
        Without { name: LOGITS, form: |f| !has(f, LOGITS), schedule: any },
        Without { name: "logits by one CTA or cluster", form: |f| has(f, LOGITS), schedule: any },
        Without { name: COMBINED, form: |f| !has(f, COMBINED), schedule: any },
        Without { name: "slots added up in a launch of their own", form: |f| has(f, COMBINED), schedule: any },
        Without { name: ONE_LAUNCH, form: |f| !has(f, ONE_LAUNCH), schedule: any },
        Without { name: "gate, up and down in several launches", form: |f| has(f, ONE_LAUNCH), schedule: any },
        Without { name: "one CTA for a tile", form: any_form, schedule: |k, s| !is_product(k) || s.team != Team::One },
        Without { name: "pairs", form: any_form, schedule: |_, s| s.team != Team::Pair },
        Without { name: "two pairs", form: any_form, schedule: |_, s| s.team != Team::TwoPairs },
        Without { name: "neighbours", form: any_form, schedule: |_, s| s.team != Team::Neighbours },
        Without { name: "tiles of up to 32 rows", form: any_form, schedule: |k, s| !is_product(k) || s.tile_m > 32 },
        Without {
            name: "tiles of more than 32 rows",
            form: any_form,
            schedule: |k, s| !is_product(k) || s.tile_m <= 32,
        },
        Without { name: "expert order by one CTA", form: any_form, schedule: |k, s| !orders(k) || s.order_ctas > 1 },
        Without { name: "expert order by a cluster", form: any_form, schedule: |_, s| s.order_ctas == 1 },
        Without { name: "routers of up to 16 rows", form: any_form, schedule: |k, s| !is_rows(k) || s.tile_m > 16 },
        Without {
            name: "routers of more than 16 rows",
            form: any_form,
            schedule: |k, s| !is_rows(k) || s.tile_m <= 16,
        },
    ]
}

/// Whether a kernel puts slots in expert order.
fn orders(k: &Kernel) -> bool {
    matches!(&k.body, Body::Plan(_)) || matches!(&k.body, Body::Rows(r) if r.plan.is_some())
}

fn is_rows(k: &Kernel) -> bool {
    matches!(k.body, Body::Rows(_))
}

/// What layers lose without one of the choices, at most.
pub(super) fn worth() -> String {
    let mut out = String::from(
        "\n## What each choice is worth\n\nThe most that a layer of the table above loses without it, at any of the token counts 1, 8, 64, 512, \
         4096, 16384.\n\n| without | most lost | where |\n|---|--:|---|\n",
    );
    let all: Vec<_> = CHIPS
        .iter()
        .flat_map(|name| cases().into_iter().map(move |case| (*name, case)))
        .map(|(name, case)| {
            let m = model(name);
            let space = Space::new(&lowered(&case, m.target), &m, true);
            (m, case.name, space)
        })
        .collect();
    for w in withouts() {
        let mut worst = (0.0, String::from("—"));
        for (m, case, space) in &all {
            for t in [1, 8, 64, 512, 4096, 16384] {
                let lost = space.least(m, t, w.form, w.schedule) / space.least(m, t, |_| true, |_, _| true) - 1.0;
                // Where nothing else is built, it is no choice.
                if lost.is_finite() && lost > worst.0 {
                    worst = (lost, format!("{case} on {}, T = {t}", m.chip.name));
                }
            }
        }
        writeln!(out, "| {} | {:.1} % | {} |", w.name, worst.0 * 100.0, worst.1).expect("memory");
    }
    out
}
