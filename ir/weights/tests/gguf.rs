//! GGUF files: the container, the values of every type of blocks, names and metadata.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use moec_ir::graph::Param;
use moec_ir::shape::{Dim, TensorType};
use moec_ir::tile::{Buffer, Role};
use moec_ir::weights::{WeightSource, WeightStep};
use moec_ir::{DType, Diagnostic, Tensor};
use moec_weights::gguf::config;
use moec_weights::{Checkpoint, pack_weight, unpack_weight};
use proptest::prelude::*;
use serde_json::json;
use std::path::{Path, PathBuf};

/// A metadata value as files have it.
#[derive(Clone)]
enum Meta {
    Whole(u32),
    Real(f32),
    Flag(bool),
    Text(&'static str),
    Wholes(Vec<u32>),
    Texts(usize),
}

/// A file that is being made; everything in it can be wrong.
#[derive(Clone)]
struct File {
    version: u32,
    metadata: Vec<(String, Meta)>,
    /// Name, shape with the outermost axis first, number of the type, bytes.
    tensors: Vec<(String, Vec<u64>, u32, Vec<u8>)>,
}

const F32: u32 = 0;
const Q8_0: u32 = 8;
const Q4_K: u32 = 12;
const IQ2_S: u32 = 22;
const MXFP4: u32 = 39;

impl File {
    fn of(architecture: &'static str) -> File {
        let name = ("general.architecture".to_string(), Meta::Text(architecture));
        File { version: 3, metadata: vec![name], tensors: Vec::new() }
    }

    fn say(mut self, key: &str, value: Meta) -> File {
        self.metadata.retain(|(k, _)| k != key);
        self.metadata.push((key.to_string(), value));
        self
    }

    fn without(mut self, key: &str) -> File {
        self.metadata.retain(|(k, _)| k != key);
        self.tensors.retain(|t| t.0 != key);
        self
    }

    fn tensor(mut self, name: &str, shape: &[u64], type_id: u32, bytes: usize) -> File {
        let data = (0..bytes).map(|i| (i * 7 % 61) as u8).collect();
        self.tensors.push((name.to_string(), shape.to_vec(), type_id, data));
        self
    }

    fn floats(self, name: &str, shape: &[u64]) -> File {
        let n: u64 = shape.iter().product();
        let mut file = self.tensor(name, shape, F32, 0);
        if let Some(last) = file.tensors.last_mut() {
            last.3 = (0..n).flat_map(|i| (i as f32).to_le_bytes()).collect();
        }
        file
    }

    fn bytes(&self) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        let text = |out: &mut Vec<u8>, t: &str| {
            out.extend((t.len() as u64).to_le_bytes());
            out.extend(t.as_bytes());
        };
        out.extend(self.version.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.metadata.len() as u64).to_le_bytes());
        for (key, value) in &self.metadata {
            text(&mut out, key);
            match value {
                Meta::Whole(n) => out.extend([4u32.to_le_bytes(), n.to_le_bytes()].concat()),
                Meta::Real(x) => out.extend([6u32.to_le_bytes(), x.to_le_bytes()].concat()),
                Meta::Flag(b) => out.extend([&7u32.to_le_bytes()[..], &[u8::from(*b)]].concat()),
                Meta::Text(t) => {
                    out.extend(8u32.to_le_bytes());
                    text(&mut out, t);
                }
                Meta::Wholes(list) => {
                    out.extend([9u32.to_le_bytes(), 4u32.to_le_bytes()].concat());
                    out.extend((list.len() as u64).to_le_bytes());
                    list.iter().for_each(|n| out.extend(n.to_le_bytes()));
                }
                Meta::Texts(n) => {
                    out.extend([9u32.to_le_bytes(), 8u32.to_le_bytes()].concat());
                    out.extend((*n as u64).to_le_bytes());
                    (0..*n).for_each(|i| text(&mut out, &format!("word {i}")));
                }
            }
        }
        let mut offset = 0u64;
        for (name, shape, type_id, data) in &self.tensors {
            text(&mut out, name);
            out.extend((shape.len() as u32).to_le_bytes());
            shape.iter().rev().for_each(|n| out.extend(n.to_le_bytes()));
            out.extend(type_id.to_le_bytes());
            out.extend(offset.to_le_bytes());
            offset = (offset + data.len() as u64).next_multiple_of(32);
        }
        for (_, _, _, data) in &self.tensors {
            out.resize(out.len().next_multiple_of(32), 0);
            out.extend(data);
        }
        out
    }

    fn write(&self) -> (tempfile::TempDir, PathBuf) {
        written(&self.bytes())
    }
}

fn written(bytes: &[u8]) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    std::fs::write(&path, bytes).unwrap();
    (dir, path)
}

/// A Qwen3 model of one layer with four experts, hidden 3, width 2.
fn qwen3() -> File {
    File::of("qwen3moe")
        .say("qwen3moe.block_count", Meta::Whole(1))
        .say("qwen3moe.embedding_length", Meta::Whole(3))
        .say("qwen3moe.expert_count", Meta::Whole(4))
        .say("qwen3moe.expert_used_count", Meta::Whole(2))
        .say("qwen3moe.expert_feed_forward_length", Meta::Whole(2))
        .say("tokenizer.ggml.tokens", Meta::Texts(9))
        .floats("blk.0.ffn_gate_inp.weight", &[4, 3])
        .floats("blk.0.ffn_gate_exps.weight", &[4, 2, 3])
        .floats("blk.0.ffn_up_exps.weight", &[4, 2, 3])
        .floats("blk.0.ffn_down_exps.weight", &[4, 3, 2])
}

/// DeepSeek-V3's metadata over two layers, of which one has experts.
fn deepseek3() -> File {
    File::of("deepseek2")
        .say("deepseek2.block_count", Meta::Whole(2))
        .say("deepseek2.embedding_length", Meta::Whole(8))
        .say("deepseek2.expert_count", Meta::Whole(8))
        .say("deepseek2.expert_used_count", Meta::Whole(2))
        .say("deepseek2.expert_feed_forward_length", Meta::Whole(4))
        .say("deepseek2.expert_shared_count", Meta::Whole(1))
        .say("deepseek2.leading_dense_block_count", Meta::Whole(1))
        .say("deepseek2.expert_weights_scale", Meta::Real(2.827))
        .say("deepseek2.expert_weights_norm", Meta::Flag(true))
        .say("deepseek2.expert_gating_func", Meta::Whole(2))
        .say("deepseek2.expert_group_count", Meta::Whole(4))
        .say("deepseek2.expert_group_used_count", Meta::Whole(2))
        .floats("blk.1.ffn_gate_inp.weight", &[8, 8])
        .floats("blk.1.exp_probs_b.bias", &[8])
}

fn opened(file: &File) -> Result<Vec<String>, Diagnostic> {
    let (_dir, path) = file.write();
    Checkpoint::open(path).map(|c| c.names().map(String::from).collect())
}

fn refused(file: &File) -> (String, String) {
    let (_dir, path) = file.write();
    let d = Checkpoint::open(&path).err().or_else(|| config(&path).err()).expect("should be refused");
    (d.code, d.message)
}

fn json_of(file: &File) -> serde_json::Value {
    let (_dir, path) = file.write();
    config(&path).expect("readable").expect("a GGUF model").json
}

fn read(c: &Checkpoint, name: &str, shape: &[u64], steps: Vec<WeightStep>) -> Result<Tensor, Diagnostic> {
    let source = WeightSource::Tensor { names: vec![name.into()], steps };
    let p = Param { name: "w".into(), ty: TensorType::fixed(DType::F32, shape), source, stored: None };
    let cols = *shape.last().unwrap();
    let rows = Dim::Fixed(shape.iter().product::<u64>() / cols);
    let role = Role::Weight(0);
    let b = Buffer { name: "w".into(), dtype: DType::F32, batch: 1, rows, cols, pitch: cols, role };
    let mut out = vec![0xAB; b.bytes(0) as usize];
    pack_weight(c, &p, &b, &mut out)?;
    unpack_weight(&p, &b, &out)
}

#[test]
fn every_type_has_the_values_of_the_package_gguf() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/conformance");
    let stored = Checkpoint::open(folder.join("ggml-blocks.safetensors")).unwrap();
    let ids = [
        ("Q4_0", 2),
        ("Q4_1", 3),
        ("Q5_0", 6),
        ("Q5_1", 7),
        ("Q8_0", 8),
        ("Q2_K", 10),
        ("Q3_K", 11),
        ("Q4_K", 12),
        ("Q5_K", 13),
        ("Q6_K", 14),
        ("IQ4_NL", 20),
        ("IQ4_XS", 23),
        ("MXFP4", 39),
    ];
    assert_eq!(stored.names().count(), 2 * ids.len());
    for (name, id) in ids {
        let blocks = stored.tensor(&format!("{name}.blocks")).unwrap().unwrap();
        let values = stored.tensor(&format!("{name}.values")).unwrap().unwrap().to_tensor().unwrap();
        let shape: Vec<u64> = values.shape.iter().map(|&n| n as u64).collect();
        let mut file = File::of("qwen3moe").tensor("x", &shape, id, 0);
        file.tensors[0].3 = blocks.data.to_vec();
        let (_dir, path) = file.write();
        let c = Checkpoint::open(path).unwrap();
        let bits = |t: &Tensor| t.floats().iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        let got = read(&c, "x", &shape, vec![]).unwrap();
        assert_eq!(bits(&got), bits(&values), "{name}");
        let across = read(&c, "x", &[shape[1], shape[0]], vec![WeightStep::Transpose]).unwrap();
        for (i, v) in across.floats().iter().enumerate() {
            let (row, col) = (i / shape[0] as usize, i % shape[0] as usize);
            assert_eq!(v.to_bits(), values.floats()[col * shape[1] as usize + row].to_bits(), "{name} transposed");
        }
    }
}

#[test]
fn stacks_are_one_tensor_for_each_expert() {
    let (_dir, path) = qwen3().write();
    let c = Checkpoint::open(path).unwrap();
    let names: Vec<&str> = c.names().filter(|n| n.contains("down_proj") || n.contains("gate.w")).collect();
    let expert = |e| format!("model.layers.0.mlp.experts.{e}.down_proj.weight");
    assert_eq!(names[..4], [expert(0), expert(1), expert(2), expert(3)]);
    assert_eq!(names[4], "model.layers.0.mlp.gate.weight");
    assert_eq!(read(&c, &expert(2), &[3, 2], vec![]).unwrap().floats(), [12., 13., 14., 15., 16., 17.]);
}

#[test]
fn a_fused_stack_is_gate_over_up() {
    let file = qwen3()
        .without("blk.0.ffn_gate_exps.weight")
        .without("blk.0.ffn_up_exps.weight")
        .floats("blk.0.ffn_gate_up_exps.weight", &[4, 4, 3]);
    let (_dir, path) = file.write();
    let c = Checkpoint::open(path).unwrap();
    let part = |m: &str| read(&c, &format!("model.layers.0.mlp.experts.1.{m}.weight"), &[2, 3], vec![]).unwrap();
    assert_eq!(part("gate_proj").floats(), [12., 13., 14., 15., 16., 17.]);
    assert_eq!(part("up_proj").floats(), [18., 19., 20., 21., 22., 23.]);
}

#[test]
fn experts_by_themselves_and_the_shared_expert_have_their_names() {
    let mixtral = File::of("llama").floats("blk.7.ffn_down.3.weight", &[2, 2]).floats("blk.7.attn_q.weight", &[2, 2]);
    assert_eq!(
        opened(&mixtral).unwrap(),
        ["blk.7.attn_q.weight", "model.layers.7.block_sparse_moe.experts.3.w2.weight"]
    );
    let qwen2 = File::of("qwen2moe")
        .floats("blk.0.ffn_gate_inp_shexp.weight", &[4])
        .floats("blk.0.ffn_up_shexp.weight", &[2, 4]);
    let (_dir, path) = qwen2.write();
    let c = Checkpoint::open(path).unwrap();
    let shape = |name: &str| c.tensor(name).unwrap().unwrap().shape.to_vec();
    assert_eq!(shape("model.layers.0.mlp.shared_expert_gate.weight"), [1, 4]);
    assert_eq!(shape("model.layers.0.mlp.shared_expert.up_proj.weight"), [2, 4]);
    let oss = File::of("gpt-oss").floats("blk.0.ffn_gate_inp.bias", &[2]).floats("blk.0.ffn_up_exps.bias", &[2, 3]);
    let names = opened(&oss).unwrap();
    assert_eq!(names[1..], ["model.layers.0.mlp.experts.1.up_proj.bias", "model.layers.0.mlp.router.bias"]);
}

#[test]
fn tensors_of_a_layer_that_have_no_meaning_are_refused() {
    for name in [
        "blk.0.ffn_up_exps.scale",
        "blk.0.ffn_latent_up.weight",
        "blk.0.exp_probs_b.bias",
        "blk.0.ffn_up_chexps.weight",
    ] {
        let (code, message) = refused(&qwen3().floats(name, &[4]));
        assert_eq!(code, "gguf-model-unsupported", "{name}");
        assert!(message.contains(name), "{message}");
    }
}

#[test]
fn metadata_are_the_keys_of_a_config() {
    let want = json!({
        "model_type": "qwen3_moe", "hidden_size": 3, "num_hidden_layers": 1, "hidden_act": "silu", "num_experts": 4,
        "num_experts_per_tok": 2, "moe_intermediate_size": 2, "norm_topk_prob": true, "decoder_sparse_step": 1,
        "mlp_only_layers": [], "torch_dtype": "float32",
    });
    assert_eq!(json_of(&qwen3()), want);
    let v3 = json_of(&deepseek3());
    let get = |key: &str| v3[key].clone();
    assert_eq!(
        ["model_type", "routed_scaling_factor", "n_group", "topk_group"].map(get),
        [json!("deepseek_v3"), json!(2.827), json!(4), json!(2)]
    );
    // Layers that predict further tokens count as blocks, and a list of equal numbers as one.
    let file = qwen3()
        .say("qwen3moe.block_count", Meta::Whole(3))
        .say("qwen3moe.nextn_predict_layers", Meta::Whole(2))
        .say("qwen3moe.expert_used_count", Meta::Wholes(vec![2, 2, 2]));
    assert_eq!(json_of(&file)["num_hidden_layers"], json!(1));
    assert_eq!(json_of(&file)["num_experts_per_tok"], json!(2));
}

#[test]
fn what_the_file_leaves_open_is_not_guessed() {
    for key in ["expert_count", "expert_used_count", "embedding_length", "block_count", "expert_feed_forward_length"] {
        let (code, message) = refused(&qwen3().without(&format!("qwen3moe.{key}")));
        assert_eq!(code, "gguf-metadata-missing", "{key}");
        assert!(message.contains(key), "{message}");
    }
    for key in ["expert_gating_func", "expert_group_count", "expert_group_used_count"] {
        assert_eq!(refused(&deepseek3().without(&format!("deepseek2.{key}"))).0, "gguf-metadata-missing", "{key}");
    }
    assert_eq!(refused(&qwen3().without("general.architecture")).0, "gguf-metadata-missing");
}

#[test]
fn what_would_compute_something_else_is_refused() {
    for (key, value) in [
        ("expert_gating_func", Meta::Whole(2)),
        ("expert_weights_norm", Meta::Flag(false)),
        ("expert_weights_scale", Meta::Real(2.5)),
        ("expert_group_count", Meta::Whole(4)),
        ("leading_dense_block_count", Meta::Whole(1)),
        ("moe_every_n_layers", Meta::Whole(2)),
        ("expert_latent_length", Meta::Whole(64)),
    ] {
        let (code, message) = refused(&qwen3().say(&format!("qwen3moe.{key}"), value));
        assert_eq!(code, "gguf-model-unsupported", "{key}");
        assert!(message.contains(key), "{message}");
    }
    assert_eq!(
        refused(&File { metadata: vec![("general.architecture".into(), Meta::Text("mamba"))], ..qwen3() }).0,
        "gguf-model-unsupported"
    );
}

#[test]
fn contradictions_name_both_sides() {
    let mismatch = |file: &File| {
        let (code, message) = refused(file);
        assert_eq!(code, "gguf-metadata-mismatch", "{message}");
        message
    };
    assert!(mismatch(&qwen3().say("qwen3moe.block_count", Meta::Whole(2))).contains("blk.1.ffn_gate_inp.weight"));
    assert!(mismatch(&qwen3().floats("blk.1.ffn_gate_inp.weight", &[4, 3])).contains("blk.1.ffn_gate_inp.weight"));
    assert!(mismatch(&qwen3().say("qwen3moe.expert_count", Meta::Text("four"))).contains("\"four\""));
    assert!(mismatch(&qwen3().say("qwen3moe.expert_used_count", Meta::Wholes(vec![2, 3]))).contains("[2.0, 3.0]"));
    assert!(mismatch(&deepseek3().say("deepseek2.expert_gating_func", Meta::Whole(1))).contains("exp_probs_b"));
    assert!(mismatch(&deepseek3().say("deepseek2.expert_shared_feed_forward_length", Meta::Whole(5))).contains("= 5"));
    assert!(mismatch(&qwen3().floats("blk.1.ffn_up_exps.weight", &[4, 3])).contains("F32[4, 3]"));
}

#[test]
fn a_type_that_is_not_read_is_refused_when_its_tensor_is_needed() {
    let (_dir, path) = File::of("qwen3moe").tensor("x", &[1, 256], IQ2_S, 82).floats("y", &[1, 2]).write();
    let c = Checkpoint::open(path).unwrap();
    assert!(read(&c, "y", &[1, 2], vec![]).is_ok());
    let d = read(&c, "x", &[1, 256], vec![]).expect_err("not read");
    assert_eq!(d.code, "gguf-type-unsupported");
    assert!(d.message.contains("IQ2_S[1, 256]"), "{}", d.message);
    assert_eq!(refused(&File::of("qwen3moe").tensor("x", &[4], 999, 16)).0, "gguf-type-unsupported");
}

#[test]
fn scales_that_are_no_numbers_are_refused_by_tensor() {
    let mut file = File::of("qwen3moe").tensor("x", &[1, 64], Q8_0, 68).tensor("y", &[1, 32], MXFP4, 17);
    let packed = |file: &File, name: &str, cols| {
        let (_dir, path) = file.write();
        read(&Checkpoint::open(path).unwrap(), name, &[1, cols], vec![]).map_err(|d| (d.code, d.message))
    };
    assert!(packed(&file, "x", 64).is_ok() && packed(&file, "y", 32).is_ok());
    file.tensors[0].3[34..36].copy_from_slice(&0x7C00u16.to_le_bytes());
    file.tensors[1].3[0] = 255;
    for (name, cols) in [("x", 64), ("y", 32)] {
        let (code, message) = packed(&file, name, cols).expect_err("no number");
        assert_eq!(code, "quantised-scale-invalid");
        assert!(message.contains(&format!("`{name}`")), "{message}");
    }
}

#[test]
fn versions_2_and_3_are_read() {
    assert!(opened(&File { version: 2, ..qwen3() }).is_ok());
    for version in [0, 1, 4, 3u32.swap_bytes()] {
        assert_eq!(refused(&File { version, ..qwen3() }).0, "gguf-invalid", "{version}");
    }
}

#[test]
fn containers_that_contradict_themselves_are_refused() {
    let refused = |file: &File| opened(file).expect_err("should be refused").code;
    assert_eq!(refused(&qwen3().floats("blk.0.ffn_gate_inp.weight", &[4, 3])), "gguf-invalid");
    assert_eq!(refused(&File::of("qwen3moe").tensor("x", &[2, 100], Q8_0, 64)), "gguf-invalid");
    assert_eq!(refused(&File::of("qwen3moe").tensor("x", &[1 << 40, 1 << 40], F32, 64)), "gguf-invalid");
    assert_eq!(refused(&File::of("qwen3moe").tensor("x", &[1, 1, 1, 1, 1], F32, 4)), "gguf-invalid");
    assert_eq!(refused(&File::of("qwen3moe").tensor("x", &[64, 256], Q4_K, 100)), "gguf-truncated");
    // 2^60 experts of no elements.
    let many = File::of("qwen3moe").tensor("blk.0.ffn_up_exps.weight", &[1 << 60, 0, 32], F32, 0);
    assert_eq!(refused(&many), "gguf-metadata-mismatch");
    let twice = File::of("qwen3moe").floats("blk.0.exp", &[1]).floats("blk.0.ffn_gate_inp.weight", &[1]);
    let both = twice.floats("model.layers.0.mlp.gate.weight", &[1]);
    assert_eq!(refused(&both), "gguf-invalid");
    for alignment in [Meta::Whole(0), Meta::Whole(7), Meta::Text("32")] {
        assert_eq!(refused(&qwen3().say("general.alignment", alignment)), "gguf-invalid");
    }
}

#[test]
fn a_file_that_is_cut_anywhere_is_refused() {
    let bytes = qwen3().bytes();
    for len in 0..bytes.len() {
        let (_dir, path) = written(&bytes[..len]);
        let code = Checkpoint::open(path).expect_err("cut off").code;
        assert!(len < 4 || code == "gguf-truncated", "{len}: {code}");
    }
}

#[test]
fn parts_of_a_split_model_are_one_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let part = |no, names: &[&str]| {
        let mut file = if no == 0 { qwen3() } else { File { version: 3, metadata: vec![], tensors: qwen3().tensors } };
        file.tensors.retain(|t| names.iter().any(|n| t.0.contains(n)));
        file.say("split.no", Meta::Whole(no))
            .say("split.count", Meta::Whole(2))
            .say("split.tensors.count", Meta::Whole(4))
    };
    let write = |no: u32, file: &File| {
        std::fs::write(dir.path().join(format!("m-0000{}-of-00002.gguf", no + 1)), file.bytes()).unwrap();
    };
    write(0, &part(0, &["inp", "gate_exps"]));
    write(1, &part(1, &["up", "down"]));
    let c = Checkpoint::open(dir.path()).unwrap();
    assert_eq!(c.names().count(), 1 + 3 * 4);
    assert_eq!(config(dir.path()).unwrap().unwrap().json, json_of(&qwen3()));
    // Parts of other models, or in another order, do not fit.
    let code = || Checkpoint::open(dir.path()).expect_err("should be refused").code;
    write(1, &part(1, &["up"]));
    assert_eq!(code(), "gguf-split-incomplete");
    write(1, &part(0, &["up", "down"]));
    assert_eq!(code(), "gguf-split-incomplete");
    write(1, &part(1, &["up", "inp"]));
    assert_eq!(code(), "gguf-invalid");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    /// Whatever the bytes of the header are: an error, or tensors that lie in the file and can be read.
    #[test]
    fn damaged_files_are_refused_or_read_and_never_panic(
        at in any::<prop::sample::Index>(), value in any::<u8>(), deepseek in any::<bool>(),
    ) {
        let mut bytes = if deepseek { deepseek3() } else { qwen3() }.bytes();
        let i = at.index(bytes.len());
        bytes[i] = value;
        let (_dir, path) = written(&bytes);
        let _ = config(&path);
        if let Ok(c) = Checkpoint::open(&path) {
            for name in c.names() {
                if let Ok(Some(t)) = c.tensor(name) {
                    let _ = read(&c, name, t.shape, vec![]).map(|t| t.floats().len());
                }
            }
        }
    }
}
