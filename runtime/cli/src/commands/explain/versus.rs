//! `moec explain A B`: what two bundles decided differently, and what it costs by the model.

use crate::commands::subject;
use crate::output::{self, Ended, Outcome, table};
use moec::{Bundle, Diagnostic, Target};
use moec_bundle::compare_fingerprints;
use moec_bundle::manifest::{KernelEntry, TargetEntry, Variant};
use moec_passes::plan::model::{Chip, Model};
use moec_passes::proof::Proof;
use std::path::Path;

/// A kernel.
struct Cut {
    name: String,
    /// Its operation, and how its work is cut.
    cut: String,
    /// Its time with its launch, where the bundle has the tile program.
    seconds: Option<f64>,
}

/// Above this, more tokens are more of the same.
const LARGEST: u64 = 16384;

pub fn run(a: &Path, b: &Path) -> Outcome {
    let bundles = [subject::bundle(a)?, subject::bundle(b)?];
    let pairs = subject::target_pairs([(a, &bundles[0]), (b, &bundles[1])]).map_err(|d| vec![d])?;
    let one = |d: Diagnostic| vec![d];
    let mut out = String::new();
    for (name, path, bundle) in [("A", a, &bundles[0]), ("B", b, &bundles[1])] {
        let m = bundle.manifest();
        out += &format!(
            "{name}: `{}`, {}, moec {}, {}\n",
            path.display(),
            m.layer.name,
            m.moec_version,
            m.numerics.name()
        );
    }
    out += &rewrites(&bundles).map_err(one)?;
    for (x, y) in pairs {
        out += &format!("\n{}\n", if x.name == y.name { x.name.clone() } else { format!("{} and {}", x.name, y.name) });
        if let (Some(p), Some(q)) = (bundles[0].fingerprint(x).map_err(one)?, bundles[1].fingerprint(y).map_err(one)?) {
            let differ = compare_fingerprints(&p, &q);
            out += &match differ.first() {
                None => "  the same bits on one machine\n".to_string(),
                Some(d) => {
                    format!("  other bits, first of `{}` at `{}`; `moec check A B` has them all\n", d.output, d.value)
                }
            };
        }
        for tokens in starts(x, y) {
            out += &launches(&bundles, [x, y], tokens).map_err(one)?;
        }
    }
    output::print(&out);
    Ok(Ended::Well)
}

/// Which rules only one of them used.
fn rewrites(bundles: &[Bundle; 2]) -> Result<String, Diagnostic> {
    let rules = |b: &Bundle| -> Result<Vec<String>, Diagnostic> {
        let Some(file) = &b.manifest().proof else { return Ok(Vec::new()) };
        // A proof that cannot be read is told by `moec check`.
        let proof: Proof = serde_json::from_str(b.text(file)?).unwrap_or_default();
        Ok(proof.steps.into_iter().map(|s| s.rule).collect())
    };
    let (a, b) = (rules(&bundles[0])?, rules(&bundles[1])?);
    let only = |name: &str, these: &[String], those: &[String]| {
        let mut rest = those.to_vec();
        let more = these.iter().filter(|r| match rest.iter().position(|o| o == *r) {
            Some(i) => {
                rest.remove(i);
                false
            }
            None => true,
        });
        let more: Vec<&str> = more.map(String::as_str).collect();
        if more.is_empty() { String::new() } else { format!("only {name} has the rewrites {}\n", more.join(", ")) }
    };
    Ok(match only("A", &a, &b) + &only("B", &b, &a) {
        same if same.is_empty() => format!("the same {} rewrites\n", a.len()),
        other => other,
    })
}

/// Token counts at which a range begins in either.
fn starts(x: &TargetEntry, y: &TargetEntry) -> Vec<u64> {
    let mut all: Vec<u64> = x.variants.iter().chain(&y.variants).map(|v| v.tokens.min.max(1)).collect();
    let last = |t: &TargetEntry| t.max_tokens().min(LARGEST);
    all.retain(|t| *t <= last(x).min(last(y)));
    all.sort_unstable();
    all.dedup();
    all
}

/// The launches of both for a token count, beside each other.
fn launches(bundles: &[Bundle; 2], targets: [&TargetEntry; 2], tokens: u64) -> Result<String, Diagnostic> {
    let side = |i: usize| -> Result<Vec<Cut>, Diagnostic> {
        let variant = targets[i].variant_for(tokens).map(|v| &targets[i].variants[v]);
        variant.map_or(Ok(Vec::new()), |v| kernels_of(&bundles[i], targets[i], v, tokens))
    };
    let [a, b] = [side(0)?, side(1)?];
    let mut names: Vec<&String> = a.iter().map(|k| &k.name).collect();
    names.extend(b.iter().map(|k| &k.name).filter(|n| !a.iter().any(|k| k.name == **n)));
    let cell = |side: &[Cut], name: &str| {
        let found = side.iter().find(|k| k.name == name);
        let us = found.and_then(|k| k.seconds).map_or(String::new(), |s| format!("{:.1}", s * 1e6));
        (found.map_or("—".to_string(), |k| k.cut.clone()), us)
    };
    let rows: Vec<Vec<String>> = names
        .into_iter()
        .map(|name| {
            let ((x, p), (y, q)) = (cell(&a, name), cell(&b, name));
            vec![name.clone(), x.clone(), p, if x == y { "the same".to_string() } else { y }, q]
        })
        .collect();
    let total = |side: &[Cut]| side.iter().map(|k| k.seconds).sum::<Option<f64>>();
    let mut title = format!("\n  T={tokens}");
    match (total(&a), total(&b)) {
        (Some(x), Some(y)) => title += &format!(": {:.1} and {:.1} us, modelled\n", x * 1e6, y * 1e6),
        _ => title += ": times are modelled where both have tile programs (`moec compile --emit tile`)\n",
    }
    let text = table(&["launch", "A", "us", "B", "us"], &rows);
    Ok(title + &text.lines().map(|l| format!("  {l}\n")).collect::<String>())
}

/// The kernels of a program.
fn kernels_of(bundle: &Bundle, target: &TargetEntry, variant: &Variant, tokens: u64) -> Result<Vec<Cut>, Diagnostic> {
    let text = variant.tile_text.as_ref().map(|file| bundle.text(file)).transpose()?;
    let program = text.and_then(|t| moec_ir::tile::parse(t).ok());
    let known = Target::by_name(&target.name).and_then(|t| Some((t, Chip::of(t)?)));
    let seconds = |name: &str| {
        let (program, (target, chip)) = (program.as_ref()?, known?);
        let kernel = program.kernels.iter().find(|k| k.name == name)?;
        Some(Model::new(chip, target).kernel(program, kernel, &kernel.schedule, tokens))
    };
    let kernels = variant.kernels.iter();
    let cut = |k: &KernelEntry| Cut {
        name: k.name.clone(),
        cut: k.tile.clone().unwrap_or_default(),
        seconds: seconds(&k.name),
    };
    Ok(kernels.map(cut).collect())
}
