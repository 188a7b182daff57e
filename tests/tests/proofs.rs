//! Rewrites of every family, of the example models at their real sizes, whole and as experts alone, have proofs that hold.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use moec_frontend::{LayerOptions, ModelConfig};
use moec_ir::Numerics;
use moec_ir::graph::Graph;
use moec_passes::proof::check;
use moec_passes::{Limits, normalise};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

fn folders() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let inside = |p: &str| std::fs::read_dir(root.join(p)).unwrap().map(|e| e.unwrap().path()).collect::<Vec<_>>();
    let mut all = [inside("../ir/frontend/tests/golden"), inside("../examples/models")].concat();
    all.sort();
    all
}

fn graphs() -> Vec<(String, Graph)> {
    let mut out = Vec::new();
    for dir in folders() {
        let Ok(config) = ModelConfig::open(&dir) else { continue };
        for part in [
            moec_frontend::Part::Layer,
            moec_frontend::Part::Experts { ids: moec_ir::DType::I32, weights: moec_ir::DType::F32 },
        ] {
            let options = LayerOptions { part, ..LayerOptions::default() };
            // Families that are refused have nothing to be rewritten.
            if let Ok(layer) = config.layer(None, &options) {
                out.push((format!("{} {part:?}", dir.display()), layer.graph));
            }
        }
    }
    out
}

#[test]
fn the_rewrites_of_every_family_are_proven() {
    let (mut n, mut rules) = (0, BTreeSet::new());
    for (name, graph) in graphs() {
        for numerics in [Numerics::Bitwise, Numerics::Deterministic, Numerics::Fast] {
            let (_, saturation) = normalise(&graph, numerics, Limits::default()).unwrap();
            assert_eq!(check(&saturation.proof, numerics), Ok(()), "{name} {numerics:?}");
            rules.extend(saturation.proof.steps.into_iter().map(|s| s.rule));
            n += 1;
        }
    }
    assert!(n > 200 && rules.len() > 10, "{n} layers, {rules:?}");
}
