//! A loaded layer takes the memory of its published weights and little more. A test of its own process, for nothing else may take
//! memory meanwhile.
#![cfg(target_os = "linux")]
#![allow(clippy::print_stderr, reason = "figures of a test")]

mod resident;

use moec::{
    Bundle, CachedWeights, Checkpoint, CompileRequest, DType, Layer, LayerOptions, LoadOptions, Model, Target, Tensor,
    Weights,
};
use moec_weights::safetensors::write_safetensors;
use resident::peak;
use std::path::Path;
use std::sync::Arc;

const HIDDEN: usize = 1024;
const FFN: usize = 512;

/// Tokens of a step: enough of them for every expert to be chosen.
const TOKENS: u64 = 256;

/// How the experts are published.
#[derive(Clone, Copy, Debug)]
enum Form {
    Bf16,
    /// The same, all experts in one tensor.
    Stacked,
    /// Two codes of E2M1 in a byte, a scale for 32 of them.
    Mxfp4,
}

impl Form {
    /// Enough of them for their bytes to be many times what a layer takes beside weights.
    fn experts(self) -> usize {
        match self {
            Form::Bf16 | Form::Stacked => 128,
            Form::Mxfp4 => 512,
        }
    }

    fn config(self) -> String {
        let quantised = match self {
            Form::Bf16 | Form::Stacked => "",
            Form::Mxfp4 => {
                r#""quantization_config": {"quant_method": "compressed-tensors", "format": "mxfp4-pack-quantized", "ignore": [],
"config_groups": {"group_0": {"targets": ["Linear"],
"weights": {"num_bits": 4, "type": "float", "strategy": "group", "group_size": 32, "symmetric": true}}}},"#
            }
        };
        let experts = self.experts();
        format!(
            r#"{{"architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "dtype": "bfloat16", {quantised}
"hidden_size": {HIDDEN}, "moe_intermediate_size": {FFN}, "intermediate_size": 2048, "num_experts": {experts},
"num_experts_per_tok": 8, "num_hidden_layers": 1, "hidden_act": "silu", "norm_topk_prob": true, "decoder_sparse_step": 1,
"mlp_only_layers": [], "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 128, "vocab_size": 64}}"#
        )
    }

    /// The tensors of a matrix, with what is put behind its name.
    fn matrix(self, rows: usize, cols: usize) -> Vec<(&'static str, Tensor)> {
        match self {
            Form::Bf16 | Form::Stacked => vec![("weight", floats(&[rows, cols]))],
            Form::Mxfp4 => vec![
                ("weight_packed", bytes(rows, cols / 2, |i| (i * 7919 % 251) as u8)),
                ("weight_scale", bytes(rows, cols / 32, |i| 120 + (i % 3) as u8)),
            ],
        }
    }
}

fn floats(shape: &[usize]) -> Tensor {
    let value = |i: usize| ((i * 7919 % 1013) as f32 - 506.0) / 8192.0;
    Tensor::float(DType::BF16, shape, (0..shape.iter().product()).map(value).collect())
}

fn bytes(rows: usize, cols: usize, value: impl Fn(usize) -> u8) -> Tensor {
    Tensor::int(DType::U8, &[rows, cols], (0..rows * cols).map(|i| i64::from(value(i))).collect())
}

/// Writes a checkpoint; returns the bytes of its tensors.
fn publish(form: Form, folder: &Path) -> u64 {
    std::fs::write(folder.join("config.json"), form.config()).expect("writes");
    let (gate, down, router) = (form.matrix(FFN, HIDDEN), form.matrix(HIDDEN, FFN), floats(&[form.experts(), HIDDEN]));
    let mut tensors = vec![("model.layers.0.mlp.gate.weight".to_string(), &router)];
    let stacks = match form {
        Form::Stacked => vec![
            ("gate_up_proj", floats(&[form.experts(), 2 * FFN, HIDDEN])),
            ("down_proj", floats(&[form.experts(), HIDDEN, FFN])),
        ],
        Form::Bf16 | Form::Mxfp4 => Vec::new(),
    };
    tensors.extend(stacks.iter().map(|(name, tensor)| (format!("model.layers.0.mlp.experts.{name}"), tensor)));
    for e in (0..form.experts()).filter(|_| stacks.is_empty()) {
        for (name, parts) in [("gate", &gate), ("up", &gate), ("down", &down)] {
            for (part, tensor) in parts {
                tensors.push((format!("model.layers.0.mlp.experts.{e}.{name}_proj.{part}"), tensor));
            }
        }
    }
    let named: Vec<(&str, &Tensor)> = tensors.iter().map(|(n, t)| (n.as_str(), *t)).collect();
    write_safetensors(&folder.join("model.safetensors"), &named).expect("writes");
    tensors.iter().map(|(_, t)| (t.elements() * t.dtype.bytes()) as u64).sum()
}

/// Loads the layer, by way of its cache or not, and runs a step that needs every expert.
fn load_and_run(bundle: &Bundle, folder: &Path, cached: bool, input: &Tensor) -> (Layer, Vec<u8>) {
    let checkpoint = Arc::new(Checkpoint::open(folder).expect("opens"));
    let weights = match cached {
        true => Weights::Cached(CachedWeights::new(checkpoint, folder.join("cache")).expect("a cache")),
        false => Weights::Checkpoint(checkpoint),
    };
    let options = LoadOptions { max_tokens: TOKENS, ..LoadOptions::default() };
    let mut layer = Layer::load(bundle, &weights, options).expect("loads");
    let output = layer.run_host(&[("input", input)]).expect("runs").outputs[0].1.to_bytes();
    (layer, output)
}

/// Bytes of the files that hold packed weights.
fn packed_bytes(folder: &Path) -> u64 {
    let files = std::fs::read_dir(folder.join("cache")).expect("a cache").map(|f| f.expect("a file"));
    files
        .filter(|f| f.path().extension().is_some_and(|e| e == "packed"))
        .map(|f| f.metadata().expect("a size").len())
        .sum()
}

#[test]
fn a_layer_takes_the_bytes_of_its_published_weights() {
    for form in [Form::Bf16, Form::Stacked, Form::Mxfp4] {
        let folder = tempfile::tempdir().expect("a folder");
        let published = publish(form, folder.path());
        let layer =
            Model::open(folder.path()).expect("model").layer_with(Some(0), &LayerOptions::default()).expect("layer");
        let cpu = Target::by_name("cpu").into_iter().collect();
        let bundle = moec::compile(&CompileRequest::new(&layer.graph, cpu)).expect("compiles").bundle;
        let input = moec::random_tensor(&bundle.manifest().inputs[0].ty, TOKENS, 7, "input");
        let load = |cached| load_and_run(&bundle, folder.path(), cached, &input);
        // Layers are dropped before the next, so that all begin without one.
        let (packs, want) = peak(|| load(false).1);
        let (writes, first) = peak(|| load(true).1);
        let (maps, (_layer, second)) = peak(|| load(true));
        assert!(first == want && second == want, "the same bits");
        let share = |bytes: u64| bytes as f64 / published as f64;
        eprintln!(
            "{form:?}: {published} bytes are published; packed {:.3} of them; peak of a load that packs {:.3}, that writes the cache \
             {:.3}, from the cache {:.3}",
            share(packed_bytes(folder.path())),
            share(packs),
            share(writes),
            share(maps)
        );
        for bytes in [packs, writes, maps] {
            assert!(bytes >= published / 10 * 9, "{form:?}: this measurement sees the weights: {bytes} of {published}");
            assert!(share(bytes) <= 1.05, "{form:?}: {bytes} bytes for weights of {published}");
        }
    }
}
