//! What a process has in memory of a layer whose experts come from their file: the limit, and little more. A test of its own process,
//! for nothing else may take memory meanwhile.
#![cfg(target_os = "linux")]

mod resident;

use moec::{
    Bundle, CachedWeights, Checkpoint, CompileRequest, DType, Layer, LayerOptions, LoadOptions, Model, Target, Tensor,
    Weights,
};
use moec_weights::safetensors::write_safetensors;
use resident::peak;
use std::path::Path;
use std::sync::Arc;

const EXPERTS: usize = 64;
const HIDDEN: usize = 1024;
const FFN: usize = 512;

const CONFIG: &str = r#"{"architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "dtype": "bfloat16", "hidden_size": 1024,
"moe_intermediate_size": 512, "intermediate_size": 2048, "num_experts": 64, "num_experts_per_tok": 4, "num_hidden_layers": 1,
"hidden_act": "silu", "norm_topk_prob": true, "decoder_sparse_step": 1, "mlp_only_layers": [], "num_attention_heads": 8,
"num_key_value_heads": 4, "head_dim": 128, "vocab_size": 64}"#;

/// Bytes of all experts.
const ALL: u64 = (EXPERTS * 3 * HIDDEN * FFN * 2) as u64;

/// What is not experts: kernels, workspace, what the allocator keeps, pages of the cache while its sums are looked at (16 MiB).
const REST: u64 = 24 << 20;

fn make(folder: &Path) {
    std::fs::write(folder.join("config.json"), CONFIG).expect("writes");
    let matrix = |rows: usize, cols: usize| {
        let value = |i: usize| ((i * 7919 % 1013) as f32 - 506.0) / 8192.0;
        Tensor::float(DType::BF16, &[rows, cols], (0..rows * cols).map(value).collect())
    };
    let (gate, down, router) = (matrix(FFN, HIDDEN), matrix(HIDDEN, FFN), matrix(EXPERTS, HIDDEN));
    let mut tensors = vec![("model.layers.0.mlp.gate.weight".to_string(), &router)];
    for e in 0..EXPERTS {
        for (name, tensor) in [("gate", &gate), ("up", &gate), ("down", &down)] {
            tensors.push((format!("model.layers.0.mlp.experts.{e}.{name}_proj.weight"), tensor));
        }
    }
    let named: Vec<(&str, &Tensor)> = tensors.iter().map(|(n, t)| (n.as_str(), *t)).collect();
    write_safetensors(&folder.join("model.safetensors"), &named).expect("writes");
}

fn load(bundle: &Bundle, folder: &Path, memory_limit: Option<u64>) -> Layer {
    let checkpoint = Arc::new(Checkpoint::open(folder).expect("opens"));
    let weights = Weights::Cached(CachedWeights::new(checkpoint, folder.join("cache")).expect("a cache"));
    let options = LoadOptions { max_tokens: 256, memory_limit, ..LoadOptions::default() };
    Layer::load(bundle, &weights, options).expect("loads")
}

#[test]
fn experts_take_the_limit_and_no_more() {
    let folder = tempfile::tempdir().expect("a folder");
    make(folder.path());
    let layer =
        Model::open(folder.path()).expect("model").layer_with(Some(0), &LayerOptions::default()).expect("layer");
    let cpu = Target::by_name("cpu").into_iter().collect();
    let bundle = moec::compile(&CompileRequest::new(&layer.graph, cpu)).expect("compiles").bundle;
    // Packs.
    drop(load(&bundle, folder.path(), None));
    let ty = bundle.manifest().inputs[0].ty.clone();
    let inputs: Vec<Tensor> =
        [1, 256, 3, 256, 1].iter().zip(0..).map(|(&n, seed)| moec::random_tensor(&ty, n, seed, "input")).collect();
    let run = |layer: &mut Layer| -> Vec<Vec<u8>> {
        let one = |x: &Tensor| layer.run_host(&[("input", x)]).expect("runs").outputs[0].1.to_bytes();
        inputs.iter().map(one).collect()
    };
    let limit = ALL / 5;
    let (at_load, mut limited) = peak(|| load(&bundle, folder.path(), Some(limit)));
    assert!(at_load <= REST, "loading took {at_load} bytes");
    let (in_runs, got) = peak(|| run(&mut limited));
    let memory = limited.expert_memory().expect("limited");
    assert!(memory.asked > 2 * ALL, "every expert was needed, and let go for another: {memory:?}");
    assert!(memory.peak <= limit && memory.peak > limit / 2, "{memory:?}");
    assert!(in_runs <= limit + REST, "runs took {in_runs} bytes; the limit is {limit}");
    // Freed with the layer, so that the next measurement begins where this one did.
    drop(limited);
    let mut free = load(&bundle, folder.path(), None);
    let (in_runs, want) = peak(|| run(&mut free));
    assert!(got == want, "the same bits");
    assert!(in_runs >= ALL / 10 * 8, "this measurement sees all experts where nothing limits them: {in_runs} of {ALL}");
}
