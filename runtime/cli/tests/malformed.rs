//! Malformed inputs: each gives a diagnostic with its code, exit code 1, nothing on standard output and no panic.
#![allow(clippy::unwrap_used)]

mod common;

use common::{conformance, diagnostics, moec_in, root};
use serde_json::{Value, json};
use std::path::Path;

/// Name of the mistake, arguments, expected code; `make` writes the input into the folder that the command runs in.
struct Malformed {
    name: &'static str,
    args: &'static [&'static str],
    code: &'static str,
    make: fn(&Path),
}

const COMPILE: &[&str] = &["compile", "m", "--target", "cpu", "-o", "out"];
const RUN: &[&str] = &["run", "m", "--input", "random:T=2"];

const LIST: &[Malformed] = &[
    Malformed { name: "no such file", args: COMPILE, code: "not-a-model", make: |_| {} },
    Malformed {
        name: "a directory without a config",
        args: COMPILE,
        code: "not-a-model",
        make: |d| std::fs::create_dir(d.join("m")).unwrap(),
    },
    Malformed {
        name: "a config that is not JSON",
        args: COMPILE,
        code: "config-not-json",
        make: |d| std::fs::write(d.join("m"), "{ \"model_type\": mixtral }").unwrap(),
    },
    Malformed {
        name: "a config that is not text",
        args: COMPILE,
        code: "config-not-json",
        make: |d| std::fs::write(d.join("m"), [0x7b, 0xff, 0xfe, 0x7d]).unwrap(),
    },
    Malformed {
        name: "no model type",
        args: COMPILE,
        code: "missing-config-key",
        make: |d| {
            mixtral(d, |c| {
                c.as_object_mut().unwrap().remove("model_type");
                c.as_object_mut().unwrap().remove("architectures");
            });
        },
    },
    Malformed {
        name: "an unknown model type",
        args: COMPILE,
        code: "unknown-model-type",
        make: |d| mixtral(d, |c| c["model_type"] = json!("mixtrel")),
    },
    Malformed {
        name: "no hidden size",
        args: COMPILE,
        code: "missing-config-key",
        make: |d| mixtral(d, |c| drop(c.as_object_mut().unwrap().remove("hidden_size"))),
    },
    Malformed {
        name: "a hidden size in quotes",
        args: COMPILE,
        code: "config-key-type",
        make: |d| mixtral(d, |c| c["hidden_size"] = json!("4096")),
    },
    Malformed {
        name: "a negative expert width",
        args: COMPILE,
        code: "config-value-range",
        make: |d| mixtral(d, |c| c["intermediate_size"] = json!(-14336)),
    },
    Malformed {
        name: "more experts per token than experts",
        args: COMPILE,
        code: "top-k-exceeds-experts",
        make: |d| mixtral(d, |c| c["num_experts_per_tok"] = json!(9)),
    },
    Malformed {
        name: "groups that do not divide the experts",
        args: COMPILE,
        code: "groups-do-not-divide-experts",
        make: |d| deepseek(d, |c| c["n_group"] = json!(7)),
    },
    Malformed {
        name: "more groups kept than there are",
        args: COMPILE,
        code: "groups-kept-exceed-groups",
        make: |d| deepseek(d, |c| c["topk_group"] = json!(9)),
    },
    Malformed {
        name: "a dense layer",
        args: &["compile", "m", "--layer", "0", "--target", "cpu", "-o", "out"],
        code: "layer-is-dense",
        make: |d| deepseek(d, |_| {}),
    },
    Malformed {
        name: "a layer that the model has not",
        args: &["compile", "m", "--layer", "500", "--target", "cpu", "-o", "out"],
        code: "layer-out-of-range",
        make: |d| deepseek(d, |_| {}),
    },
    Malformed {
        name: "a model without MoE layers",
        args: COMPILE,
        code: "no-moe-layers",
        make: |d| deepseek(d, |c| c["first_k_dense_replace"] = json!(61)),
    },
    Malformed {
        name: "an output folder that holds something else",
        args: COMPILE,
        code: "output-not-a-bundle",
        make: |d| {
            mixtral(d, |_| {});
            std::fs::create_dir(d.join("out")).unwrap();
            std::fs::write(d.join("out/thesis.tex"), "years of work").unwrap();
        },
    },
    Malformed {
        name: "no weights beside the config",
        args: RUN,
        code: "weights-missing",
        make: |d| mixtral(d, |_| {}),
    },
    Malformed {
        name: "a truncated checkpoint",
        args: RUN,
        code: "safetensors-truncated",
        make: |d| checkpoint(d, |bytes| bytes.truncate(bytes.len() / 2)),
    },
    Malformed {
        name: "a checkpoint whose header is cut",
        args: RUN,
        code: "safetensors-truncated",
        make: |d| checkpoint(d, |bytes| bytes.truncate(20)),
    },
    Malformed {
        name: "a checkpoint whose header is noise",
        args: RUN,
        code: "safetensors-header-invalid",
        make: |d| checkpoint(d, |bytes| bytes[9] = b'!'),
    },
    Malformed {
        name: "a checkpoint without the router",
        args: RUN,
        code: "tensor-missing",
        make: |d| checkpoint(d, |bytes| rename(bytes, "block_sparse_moe.gate.weight", "block_sparse_moe.gate.wait__")),
    },
    Malformed {
        name: "a GGUF file that is cut off",
        args: &["run", "m.gguf", "--input", "random:T=2"],
        code: "gguf-truncated",
        make: |d| gguf(d, |bytes| bytes.truncate(bytes.len() / 2)),
    },
    Malformed {
        name: "a GGUF file that is something else",
        args: &["check", "m.gguf", "--target", "cpu"],
        code: "gguf-invalid",
        make: |d| gguf(d, |bytes| bytes[0] = b'P'),
    },
    Malformed {
        name: "a GGUF file of another architecture",
        args: &["check", "m.gguf", "--target", "cpu"],
        code: "gguf-model-unsupported",
        make: |d| gguf(d, |bytes| rename(bytes, "llama", "mamba")),
    },
    Malformed {
        name: "a GGUF file without the number of experts",
        args: &["check", "m.gguf", "--target", "cpu"],
        code: "gguf-metadata-missing",
        make: |d| gguf(d, |bytes| rename(bytes, "llama.expert_count", "llama.expert_cownt")),
    },
    Malformed {
        name: "a GGUF file without a router",
        args: &["check", "m.gguf", "--target", "cpu"],
        code: "gguf-metadata-mismatch",
        make: |d| gguf(d, |bytes| rename(bytes, "blk.1.ffn_gate_inp", "blk.1.fln_gate_inp")),
    },
    Malformed {
        name: "weights of another hidden size",
        args: RUN,
        code: "tensor-shape-mismatch",
        make: |d| {
            checkpoint(d, |_| {});
            edit(&d.join("m/config.json"), |c| c["hidden_size"] = json!(96));
        },
    },
    Malformed {
        name: "a checkpoint in a format that is not read",
        args: RUN,
        code: "quantised-checkpoint",
        make: |d| {
            checkpoint(d, |_| {});
            edit(&d.join("m/config.json"), |c| c["quantization_config"] = json!({ "quant_method": "aqlm", "bits": 2 }));
        },
    },
    Malformed {
        name: "an index that leads out of the directory",
        args: RUN,
        code: "checkpoint-index-invalid",
        make: |d| {
            checkpoint(d, |_| {});
            // A whole `model.safetensors` would count before the index.
            std::fs::remove_file(d.join("m/model.safetensors")).unwrap();
            let index = json!({ "weight_map": { "a": "../../etc/passwd" } });
            std::fs::write(d.join("m/model.safetensors.index.json"), index.to_string()).unwrap();
        },
    },
    Malformed {
        name: "an input of another hidden size",
        args: &["run", "m", "--input", "x.safetensors"],
        code: "input-shape-mismatch",
        make: |d| {
            checkpoint(d, |_| {});
            input(d, "input", &[2, 96]);
        },
    },
    Malformed {
        name: "an input file that is not there",
        args: &["run", "m", "--input", "x.safetensors"],
        code: "file-unreadable",
        make: |d| checkpoint(d, |_| {}),
    },
    Malformed {
        name: "an input file without `input`",
        args: &["run", "m", "--input", "x.safetensors"],
        code: "input-missing",
        make: |d| {
            checkpoint(d, |_| {});
            input(d, "hidden_states", &[2, 64]);
        },
    },
    Malformed {
        name: "a bundle with a flipped bit",
        args: &["run", "b", "--weights", "m", "--input", "random:T=2"],
        code: "bundle-corrupt",
        make: |d| {
            checkpoint(d, |_| {});
            let made = moec_in(d, &["compile", "m", "--target", "cpu", "-o", "b"]);
            assert_eq!(made.code, 0, "{}", made.stderr);
            let object = d.join("b/cpu/layer.o");
            let mut bytes = std::fs::read(&object).unwrap();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            std::fs::write(&object, bytes).unwrap();
        },
    },
    Malformed { name: "a bundle that is not there", args: &["inspect", "m"], code: "bundle-not-found", make: |_| {} },
    Malformed {
        name: "a bundle where a model is asked for",
        args: &["explain", "b"],
        code: "not-a-model",
        make: |d| {
            checkpoint(d, |_| {});
            assert_eq!(moec_in(d, &["compile", "m", "--target", "cpu", "-o", "b"]).code, 0);
        },
    },
    Malformed {
        name: "a folder that is no bundle",
        args: &["inspect", "m"],
        code: "bundle-not-found",
        make: |d| checkpoint(d, |_| {}),
    },
    Malformed {
        name: "a layer graph that is not JSON after its first line",
        args: COMPILE,
        code: "config-not-json",
        make: |d| std::fs::write(d.join("m"), "{ \"moec_graph\": 1, \"nodes\": [ ").unwrap(),
    },
    Malformed {
        name: "a layer graph of another version",
        args: COMPILE,
        code: "graph-version",
        make: |d| std::fs::write(d.join("m"), "{ \"moec_graph\": 99 }").unwrap(),
    },
    Malformed { name: "an unknown code", args: &["explain", "top-k-exceeds"], code: "unknown-code", make: |_| {} },
];

fn mixtral(dir: &Path, change: fn(&mut Value)) {
    std::fs::copy(root().join("examples/models/mixtral-8x7b/config.json"), dir.join("m")).unwrap();
    edit(&dir.join("m"), change);
}

fn deepseek(dir: &Path, change: fn(&mut Value)) {
    std::fs::copy(root().join("examples/models/deepseek-r1/config.json"), dir.join("m")).unwrap();
    edit(&dir.join("m"), change);
}

fn edit(path: &Path, change: fn(&mut Value)) {
    let mut config: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    change(&mut config);
    std::fs::write(path, config.to_string()).unwrap();
}

fn copy_dir(from: &Path, to: &Path) {
    std::fs::create_dir(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

/// The Mixtral checkpoint of the conformance set, its file changed.
fn checkpoint(dir: &Path, change: fn(&mut Vec<u8>)) {
    copy_dir(&conformance("mixtral.f32"), &dir.join("m"));
    let file = dir.join("m/model.safetensors");
    let mut bytes = std::fs::read(&file).unwrap();
    change(&mut bytes);
    std::fs::write(file, bytes).unwrap();
}

/// The Mixtral GGUF file of the conformance set, changed.
fn gguf(dir: &Path, change: fn(&mut Vec<u8>)) {
    let mut bytes = std::fs::read(conformance("gguf.llama").join("model.gguf")).unwrap();
    change(&mut bytes);
    std::fs::write(dir.join("m.gguf"), bytes).unwrap();
}

/// Replaces a name in the header by one of the same length.
fn rename(bytes: &mut [u8], from: &str, to: &str) {
    assert_eq!(from.len(), to.len());
    let n = from.len();
    for i in 0..bytes.len() - n {
        if &bytes[i..i + n] == from.as_bytes() {
            bytes[i..i + n].copy_from_slice(to.as_bytes());
        }
    }
}

/// `x.safetensors` with one f32 tensor of zeros.
fn input(dir: &Path, name: &str, shape: &[usize]) {
    let n = shape.iter().product::<usize>() * 4;
    let header = json!({ name: { "dtype": "F32", "shape": shape, "data_offsets": [0, n] } }).to_string();
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.resize(bytes.len() + n, 0);
    std::fs::write(dir.join("x.safetensors"), bytes).unwrap();
}

#[test]
fn every_malformed_input_is_a_coded_diagnostic_with_exit_code_1() {
    assert!(LIST.len() >= 20);
    let mut wrong = Vec::new();
    for m in LIST {
        let dir = tempfile::tempdir().unwrap();
        (m.make)(dir.path());
        let args: Vec<&str> = m.args.iter().copied().chain(["--message-format", "json"]).collect();
        let run = moec_in(dir.path(), &args);
        let found = diagnostics(&run);
        let codes: Vec<&str> = found.iter().filter_map(|d| d["code"].as_str()).collect();
        if run.code != 1 || codes.first() != Some(&m.code) || !run.stdout.is_empty() || run.stderr.contains("panicked")
        {
            wrong.push(format!(
                "{}: exit code {}, codes {codes:?} instead of {}\n{}",
                m.name, run.code, m.code, run.stderr
            ));
        }
        if m.code != "output-not-a-bundle" {
            assert!(!dir.path().join("out").exists(), "{}: half an output was left behind", m.name);
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn what_a_user_had_in_the_output_folder_is_still_there() {
    let m = LIST.iter().find(|m| m.code == "output-not-a-bundle").unwrap();
    let dir = tempfile::tempdir().unwrap();
    (m.make)(dir.path());
    assert_eq!(moec_in(dir.path(), m.args).code, 1);
    assert_eq!(std::fs::read_to_string(dir.path().join("out/thesis.tex")).unwrap(), "years of work");
}

#[test]
fn a_diagnostic_points_into_the_file() {
    let dir = tempfile::tempdir().unwrap();
    mixtral(dir.path(), |c| c["num_experts_per_tok"] = json!(9));
    let run = moec_in(dir.path(), COMPILE);
    assert!(run.stderr.contains("top-k-exceeds-experts") && run.stderr.contains("m:1:"), "{}", run.stderr);
    assert!(run.stderr.contains("moec explain top-k-exceeds-experts"), "{}", run.stderr);
}
