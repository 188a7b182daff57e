//! Calls of `moec::experts` in `.pt2` files give what PyTorch computed; see `tests/conformance/pt2_cases.py`.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use moec::{Checkpoint, CompileRequest, Model, Session, Target, Tensor, Weights};
use std::io::Write;
use std::path::{Path, PathBuf};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/conformance/pt2")
}

#[test]
fn every_recorded_call_gives_its_output() {
    let mut compared = 0;
    for entry in std::fs::read_dir(folder()).unwrap() {
        let dir = entry.unwrap().path();
        let file = dir.join("layer.pt2");
        let layer = Model::open(&file).unwrap().layer(None).unwrap();
        let compiled =
            moec::compile(&CompileRequest::new(&layer.graph, vec![Target::by_name("cpu").unwrap()])).unwrap();
        let weights = Weights::from_checkpoint(Checkpoint::open(&file).unwrap());
        let mut session = Session::jit(&compiled, &weights, 16).unwrap();
        let golden = Checkpoint::open(dir.join("golden.safetensors")).unwrap();
        let tensor = |name: &str| golden.tensor(name).unwrap().unwrap().to_tensor().unwrap();
        let inputs: Vec<(&str, Tensor)> =
            layer.graph.inputs.iter().map(|i| (i.name.as_str(), tensor(&i.name))).collect();
        let inputs: Vec<(&str, &Tensor)> = inputs.iter().map(|(n, t)| (*n, t)).collect();
        let result = session.run(&inputs).unwrap();
        let error = result.output("output").unwrap().worst_error(&tensor("output"));
        assert!(error < 1e-6, "{}: {error:.1e}", dir.display());
        compared += 1;
    }
    assert_eq!(compared, 3);
}

/// A copy of a recorded file in which `from` is `to` in the member that ends with `member`; compressed where asked for.
fn changed(at: &Path, member: &str, from: &str, to: &str, method: zip::CompressionMethod) -> PathBuf {
    let file = std::fs::File::open(folder().join("gated/layer.pt2")).unwrap();
    let mut source = zip::ZipArchive::new(file).unwrap();
    let path = at.join("changed.pt2");
    let mut out = zip::ZipWriter::new(std::fs::File::create(&path).unwrap());
    for i in 0..source.len() {
        let mut member_file = source.by_index(i).unwrap();
        let name = member_file.name().unwrap().into_owned();
        let mut bytes = Vec::new();
        std::io::Read::read_to_end(&mut member_file, &mut bytes).unwrap();
        if name.ends_with(member) {
            bytes = String::from_utf8(bytes).unwrap().replace(from, to).into_bytes();
        }
        out.start_file(name, zip::write::SimpleFileOptions::default().compression_method(method)).unwrap();
        out.write_all(&bytes).unwrap();
    }
    out.finish().unwrap();
    path
}

#[test]
fn what_is_wrong_with_a_file_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let stored = zip::CompressionMethod::Stored;
    let code = |path: &Path, layer: Option<u32>| match Model::open(path).and_then(|m| m.layer(layer)) {
        Ok(_) => String::new(),
        Err(d) => d[0].code.to_string(),
    };
    let text = dir.path().join("text.pt2");
    std::fs::write(&text, b"no archive").unwrap();
    assert_eq!(code(&text, None), "pt2-invalid");
    let with = |member: &str, from: &str, to: &str| code(&changed(dir.path(), member, from, to, stored), None);
    assert_eq!(with("nothing", "", ""), "");
    assert_eq!(with("byteorder", "little", "big"), "pt2-invalid");
    assert_eq!(with("model.json", "\"major\": 8", "\"major\": 9"), "pt2-invalid");
    assert_eq!(with("model.json", "torch.ops.moec.experts", "torch.ops.aten.add"), "no-moe-layers");
    assert_eq!(with("model.json", "swiglu", "swoglu"), "pt2-invalid");
    assert_eq!(
        with("model.json", "\"parameter_name\": \"up_proj\"", "\"parameter_name\": \"other\""),
        "unsupported-layer"
    );
    assert_eq!(
        with("weights_config.json", "\"path_name\": \"weight_0\"", "\"path_name\": \"weight_9\""),
        "pt2-invalid"
    );
    // As many experts as a number can say.
    let many = with("weights_config.json", "\"as_int\": 8", "\"as_int\": 9223372036854775807");
    assert_eq!(many, "pt2-invalid");
    assert_eq!(code(&folder().join("gated/layer.pt2"), Some(2)), "layer-out-of-range");
}
