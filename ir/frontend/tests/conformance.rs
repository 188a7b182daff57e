//! The graphs give the numbers of Hugging Face transformers.
//!
//! Every folder of `tests/conformance` (published families, float checkpoints) and of `golden` beside this file (one tiny
//! layer of each family) holds a checkpoint as transformers saves it, and inputs and outputs of its MoE layers. The
//! reference evaluator runs the layer's graph on them.

mod weights;

use moec_frontend::{LayerOptions, ModelConfig};
use moec_ir::graph::evaluate;
use moec_ir::{DType, Tensor};
use std::path::{Path, PathBuf};
use weights::Tensors;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// The folders below `dir` with a config, sorted; those of quantised checkpoints are left out.
fn cases(dir: &Path) -> Vec<PathBuf> {
    let mut out: Vec<PathBuf> = std::fs::read_dir(dir)
        .unwrap_or_else(|e| panic!("{}: {e}", dir.display()))
        .map(|e| e.unwrap().path())
        .filter(|p| p.join("config.json").exists())
        .collect();
    out.sort();
    out
}

/// Compares every recorded layer of one checkpoint; returns how many were compared.
fn check_checkpoint(dir: &Path) -> usize {
    let name = dir.file_name().unwrap().to_str().unwrap().to_string();
    let config = ModelConfig::open(dir).unwrap_or_else(|d| panic!("{name}: {d:?}"));
    if config.quantization().is_some() {
        return 0;
    }
    let checkpoint = Tensors::open(&dir.join("model.safetensors"));
    let mut compared = 0;
    for layer in 0..64 {
        let file = dir.join(format!("golden.layer{layer}.safetensors"));
        if !file.exists() {
            continue;
        }
        let golden = Tensors::open(&file);
        let layer = config.layer(Some(layer), &LayerOptions::default()).unwrap_or_else(|d| panic!("{name}: {d:?}"));
        let inputs: Vec<Tensor> = layer
            .graph
            .inputs
            .iter()
            .map(|i| golden.get(&i.name).unwrap_or_else(|| panic!("{name}: {}", i.name)))
            .collect();
        let params: Vec<Tensor> = layer
            .graph
            .params
            .iter()
            .map(|p| {
                let shape: Vec<usize> = p.ty.shape.iter().map(|d| d.at(0) as usize).collect();
                let t = checkpoint.resolve(&p.source, &shape).unwrap_or_else(|e| panic!("{name}: {}: {e}", p.name));
                assert_eq!(t.shape, shape, "{name}: shape of {}", p.name);
                t.cast(p.ty.dtype)
            })
            .collect();
        let got = evaluate(&layer.graph, &inputs, &params).unwrap_or_else(|d| panic!("{name}: {d}"));
        let dtype = inputs[0].dtype;
        let tolerance = if dtype == DType::F32 { 1e-5 } else { 1e-2 };
        let want = golden.get("output").unwrap();
        let error = got[0].relative_error(&want);
        assert!(error <= tolerance, "{name} layer {}: output differs by {error:.2e}", layer.layer);
        if let (Some(ids), Some(weights)) = (golden.get("topk_ids"), golden.get("topk_weights")) {
            same_routing(&name, (&got[1], &got[2]), (&ids, &weights), if dtype == DType::F32 { 1e-5 } else { 1e-2 });
        }
        compared += 1;
    }
    assert!(compared > 0, "{name} has no recorded layers");
    compared
}

/// The same experts for every token, in any order, with the same weights.
fn same_routing(name: &str, got: (&Tensor, &Tensor), want: (&Tensor, &Tensor), tolerance: f32) {
    assert_eq!(got.0.shape, want.0.shape, "{name}: shape of topk_ids");
    let k = want.0.cols();
    let rows = |t: (&Tensor, &Tensor)| -> Vec<Vec<(i64, f32)>> {
        let pairs: Vec<(i64, f32)> = t.0.ints().iter().copied().zip(t.1.floats().iter().copied()).collect();
        pairs
            .chunks(k)
            .map(|row| {
                let mut row = row.to_vec();
                row.sort_by_key(|p| p.0);
                row
            })
            .collect()
    };
    for (token, (g, w)) in rows(got).iter().zip(rows(want)).enumerate() {
        let ids = |row: &[(i64, f32)]| row.iter().map(|p| p.0).collect::<Vec<_>>();
        assert_eq!(ids(g), ids(&w), "{name}: experts of token {token}");
        for (a, b) in g.iter().zip(&w) {
            assert!(
                (a.1 - b.1).abs() <= tolerance * b.1.abs().max(0.05),
                "{name}: token {token}: weight {} should be {}",
                a.1,
                b.1
            );
        }
    }
}

#[test]
fn published_families_give_the_numbers_of_transformers() {
    let dir = root().join("../../tests/conformance");
    let compared: usize = cases(&dir).iter().map(|d| check_checkpoint(d)).sum();
    assert!(compared >= 26, "only {compared} layers were compared");
}
