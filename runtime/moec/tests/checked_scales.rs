//! Scales are looked at once for each state of a checkpoint whose packed weights are kept, and bad ones are refused every time.

use moec::{
    CachedWeights, Checkpoint, CompileRequest, DType, Diagnostic, Layer, LayerOptions, LoadOptions, Model, Target,
    Tensor, Weights,
};
use moec_weights::safetensors::write_safetensors;
use std::path::Path;
use std::sync::Arc;

const CONFIG: &str = r#"{"architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "dtype": "bfloat16",
"quantization_config": {"quant_method": "compressed-tensors", "format": "mxfp4-pack-quantized", "ignore": [],
"config_groups": {"group_0": {"targets": ["Linear"],
"weights": {"num_bits": 4, "type": "float", "strategy": "group", "group_size": 32, "symmetric": true}}}},
"hidden_size": 64, "moe_intermediate_size": 32, "intermediate_size": 128, "num_experts": 4, "num_experts_per_tok": 2,
"num_hidden_layers": 1, "hidden_act": "silu", "norm_topk_prob": true, "decoder_sparse_step": 1, "mlp_only_layers": [],
"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 32, "vocab_size": 64}"#;

/// Writes a checkpoint whose last scale is `last`; 255 stands for no number.
fn publish(folder: &Path, last: i64) {
    let bytes = |rows: usize, cols: usize, value: i64| Tensor::int(DType::U8, &[rows, cols], vec![value; rows * cols]);
    let router = Tensor::float(DType::BF16, &[4, 64], (0..256).map(|i| (i % 7) as f32 / 8.0).collect());
    let mut tensors = vec![("model.layers.0.mlp.gate.weight".to_string(), router)];
    for e in 0..4 {
        for (name, rows, cols) in [("gate", 32, 64), ("up", 32, 64), ("down", 64, 32)] {
            let module = format!("model.layers.0.mlp.experts.{e}.{name}_proj");
            let mut scales = vec![120; rows * cols / 32];
            if (e, name) == (3, "down") {
                scales[rows * cols / 32 - 1] = last;
            }
            tensors.push((format!("{module}.weight_packed"), bytes(rows, cols / 2, 0x52)));
            tensors.push((format!("{module}.weight_scale"), Tensor::int(DType::U8, &[rows, cols / 32], scales)));
        }
    }
    let named: Vec<(&str, &Tensor)> = tensors.iter().map(|(n, t)| (n.as_str(), t)).collect();
    let file = folder.join("model.safetensors");
    write_safetensors(&file, &named).expect("writes");
    // The same time for all states: what the file system says of changes to it cannot be set.
    let file = std::fs::File::options().write(true).open(file).expect("opens");
    file.set_modified(std::time::UNIX_EPOCH).expect("a time of change");
}

/// Until a file counts as one that does not change.
fn settle() {
    std::thread::sleep(std::time::Duration::from_millis(1100));
}

#[test]
fn scales_are_looked_at_again_when_the_checkpoint_has_changed() {
    let dir = tempfile::tempdir().expect("a folder");
    let folder = dir.path();
    std::fs::write(folder.join("config.json"), CONFIG).expect("writes");
    publish(folder, 121);
    let layer = Model::open(folder).expect("model").layer_with(Some(0), &LayerOptions::default()).expect("layer");
    let cpu = Target::by_name("cpu").into_iter().collect();
    let bundle = moec::compile(&CompileRequest::new(&layer.graph, cpu)).expect("compiles").bundle;
    let load = || -> Result<Layer, Diagnostic> {
        let checkpoint = Arc::new(Checkpoint::open(folder)?);
        let weights = Weights::Cached(CachedWeights::new(checkpoint, folder.join("cache"))?);
        Layer::load(&bundle, &weights, LoadOptions::default())
    };
    let checked = || {
        let files = std::fs::read_dir(folder.join("cache")).expect("a cache").map(|f| f.expect("a file").path());
        files.filter(|p| p.extension().is_some_and(|e| e == "checked")).count()
    };
    load().expect("good scales");
    assert_eq!(checked(), 0, "the checkpoint has just changed");
    settle();
    for _ in 0..2 {
        load().expect("good scales");
        assert_eq!(checked(), usize::from(cfg!(unix)));
    }
    publish(folder, 255);
    for _ in 0..2 {
        assert_eq!(load().expect_err("a scale is no number").code, "quantised-scale-invalid");
        settle();
    }
}
