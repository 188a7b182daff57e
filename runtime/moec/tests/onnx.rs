//! MoE nodes of ONNX files give what transformers and ONNX Runtime computed; see `tests/conformance/onnx_cases.py`.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use moec::{Checkpoint, CompileRequest, Model, Session, Target, Tensor, Weights};
use std::path::{Path, PathBuf};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/conformance/onnx")
}

fn golden(dir: &Path, name: &str) -> Tensor {
    let file = Checkpoint::open(dir.join("golden.safetensors")).unwrap();
    file.tensor(name).unwrap().unwrap_or_else(|| panic!("no {name} in {}", dir.display())).to_tensor().unwrap()
}

/// The largest difference of an element, in terms of the largest element of its row.
fn worst_row(got: &Tensor, want: &Tensor) -> f32 {
    let cols = want.cols();
    let rows = got.floats().chunks(cols).zip(want.floats().chunks(cols));
    let most = |v: &mut dyn Iterator<Item = f32>| v.fold(0f32, |a, b| a.max(b.abs()));
    let error = |(g, w): (&[f32], &[f32])| {
        most(&mut g.iter().zip(w).map(|(a, b)| a - b)) / most(&mut w.iter().copied()).max(f32::MIN_POSITIVE)
    };
    rows.map(error).fold(0f32, f32::max)
}

#[test]
fn every_recorded_node_gives_its_output() {
    let mut compared = 0;
    for entry in std::fs::read_dir(folder()).unwrap() {
        let dir = entry.unwrap().path();
        let file = dir.join("model.onnx");
        let layer = Model::open(&file).unwrap().layer(None).unwrap();
        let compiled =
            moec::compile(&CompileRequest::new(&layer.graph, vec![Target::by_name("cpu").unwrap()])).unwrap();
        let weights = Weights::from_checkpoint(Checkpoint::open(&file).unwrap());
        let mut session = Session::jit(&compiled, &weights, 16).unwrap();
        let inputs: Vec<(&str, Tensor)> =
            layer.graph.inputs.iter().map(|i| (i.name.as_str(), golden(&dir, &i.name))).collect();
        let inputs: Vec<(&str, &Tensor)> = inputs.iter().map(|(n, t)| (*n, t)).collect();
        let result = session.run(&inputs).unwrap();
        let error = worst_row(result.output("output").unwrap(), &golden(&dir, "output"));
        assert!(error < 1e-5, "{}: {error:.1e}", dir.display());
        compared += 1;
    }
    assert_eq!(compared, 12);
}

#[test]
fn the_router_is_part_of_the_layer_where_it_reads_the_same_rows() {
    let inputs = |name: &str| {
        let layer = Model::open(folder().join(name).join("model.onnx")).unwrap().layer(None).unwrap();
        layer.graph.inputs.iter().map(|i| i.name.clone()).collect::<Vec<_>>()
    };
    assert_eq!(inputs("mixtral"), ["input"]);
    assert_eq!(inputs("relu"), ["input", "router_logits"]);
}

#[test]
fn what_is_wrong_with_a_file_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let code = |path: &Path, layer: Option<u32>| match Model::open(path).and_then(|m| m.layer(layer)) {
        Ok(_) => String::new(),
        Err(d) => d[0].code.to_string(),
    };
    let write = |name: &str, bytes: &[u8]| {
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    };
    assert_eq!(code(&write("text.onnx", b"no protobuf at all"), None), "onnx-invalid");
    assert_eq!(code(&write("empty.onnx", b""), None), "onnx-invalid");
    let good = std::fs::read(folder().join("relu/model.onnx")).unwrap();
    assert_eq!(code(&write("cut.onnx", &good[..good.len() / 2]), None), "onnx-invalid");
    assert_eq!(code(&write("good.onnx", &good), Some(1)), "layer-out-of-range");
    let other = |after: &str, from: &str, to: &str| {
        let find =
            |text: &str, at: usize| at + good[at..].windows(text.len()).position(|w| w == text.as_bytes()).unwrap();
        let at = find(from, if after.is_empty() { 0 } else { find(after, 0) });
        let mut bytes = good.clone();
        bytes[at..at + from.len()].copy_from_slice(to.as_bytes());
        bytes
    };
    assert_eq!(code(&write("gelu.onnx", &other("activation_type", "relu", "gelu")), None), "unsupported-layer");
    assert_eq!(code(&write("none.onnx", &other("", "com.microsoft", "com.macrosoft")), None), "no-moe-layers");
    // Of quantised experts: what ONNX Runtime's providers take differently, and what no kernel reads.
    let good = std::fs::read(folder().join("qmoe4-blocks/model.onnx")).unwrap();
    let other = |from: &str, to: &str| {
        let at = good.windows(from.len()).position(|w| w == from.as_bytes()).unwrap();
        let mut bytes = good.clone();
        bytes[at..at + from.len()].copy_from_slice(to.as_bytes());
        bytes
    };
    for (from, to, code_of_it) in [
        ("normalize_routing_weights", "normalize_routing_weightz", "unsupported-layer"),
        // Without blocks, there is one scale for each row.
        ("block_size", "block_sise", "onnx-invalid"),
        ("fc2_scales", "fc2_scalez", "unsupported-layer"),
    ] {
        assert_eq!(code(&write("quantised.onnx", &other(from, to)), None), code_of_it, "{to}");
    }
}

#[test]
fn data_beside_the_file_cannot_lie_elsewhere() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = std::fs::read(folder().join("mixtral/model.onnx")).unwrap();
    let file = dir.path().join("model.onnx");
    std::fs::write(&file, &bytes).unwrap();
    assert_eq!(Checkpoint::open(&file).unwrap_err().code, "checkpoint-not-found");
    std::fs::write(dir.path().join("model.onnx.data"), b"short").unwrap();
    assert_eq!(Checkpoint::open(&file).unwrap_err().code, "onnx-invalid");
    let mut escaped = bytes.clone();
    let name = b"model.onnx.data";
    while let Some(at) = escaped.windows(name.len()).position(|w| w == name) {
        escaped[at..at + name.len()].copy_from_slice(b"../../etc/hosts");
    }
    std::fs::write(&file, &escaped).unwrap();
    assert_eq!(Checkpoint::open(&file).unwrap_err().code, "onnx-invalid");
}
