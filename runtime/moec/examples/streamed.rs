//! What a step takes whose experts come from the disk, beside one with all experts in memory: `streamed FOLDER [T,T…]`.
//!
//! Makes a layer of Qwen3-30B-A3B's sizes in FOLDER, which must be on the disk in question, and runs steps on it whose experts are
//! drawn uniformly or by Zipf's law. Before each step what the system keeps of files in its own memory is dropped (`dd`), so that
//! reads are reads. A step in memory comes after each, on the same tokens.
#![allow(clippy::print_stdout, reason = "a program")]

use moec::{
    CachedWeights, Checkpoint, CompileRequest, DType, Layer, LayerOptions, LoadOptions, Model, Part, Target, Tensor,
    Weights,
};
use moec_weights::safetensors::write_safetensors;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Instant;

const EXPERTS: usize = 128;
const TOP_K: usize = 8;
const HIDDEN: usize = 2048;
const FFN: usize = 768;

const CONFIG: &str = r#"{"architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "dtype": "bfloat16", "hidden_size": 2048,
"moe_intermediate_size": 768, "intermediate_size": 6144, "num_experts": 128, "num_experts_per_tok": 8, "num_hidden_layers": 1,
"hidden_act": "silu", "norm_topk_prob": true, "decoder_sparse_step": 1, "mlp_only_layers": [], "num_attention_heads": 32,
"num_key_value_heads": 4, "head_dim": 128, "vocab_size": 64}"#;

/// Numbers that look random: xorshift64.
struct Random(u64);

impl Random {
    fn unit(&mut self) -> f64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Different experts for each token, of these shares.
    fn experts(&mut self, n_tokens: usize, shares: &[f64]) -> Tensor {
        let mut ids = Vec::new();
        for _ in 0..n_tokens {
            let mut left = shares.to_vec();
            for _ in 0..TOP_K {
                let mut at = self.unit() * left.iter().sum::<f64>();
                let chosen = left.iter().position(|share| {
                    at -= share;
                    at < 0.0 && *share > 0.0
                });
                let chosen = chosen.unwrap_or_else(|| left.iter().rposition(|s| *s > 0.0).expect("some are left"));
                left[chosen] = 0.0;
                ids.push(chosen as i64);
            }
        }
        Tensor::int(DType::I64, &[n_tokens, TOP_K], ids)
    }
}

fn make(folder: &Path) -> Result<(), Box<dyn std::error::Error>> {
    std::fs::create_dir_all(folder)?;
    std::fs::write(folder.join("config.json"), CONFIG)?;
    let mut random = Random(7);
    let mut matrix = |rows: usize, cols: usize| {
        Tensor::float(
            DType::BF16,
            &[rows, cols],
            (0..rows * cols).map(|_| random.unit() as f32 * 0.05 - 0.025).collect(),
        )
    };
    // All experts alike: only where they lie counts.
    let (gate, down, router) = (matrix(FFN, HIDDEN), matrix(HIDDEN, FFN), matrix(EXPERTS, HIDDEN));
    let mut tensors = vec![("model.layers.0.mlp.gate.weight".to_string(), &router)];
    for e in 0..EXPERTS {
        for (name, tensor) in [("gate", &gate), ("up", &gate), ("down", &down)] {
            tensors.push((format!("model.layers.0.mlp.experts.{e}.{name}_proj.weight"), tensor));
        }
    }
    let named: Vec<(&str, &Tensor)> = tensors.iter().map(|(n, t)| (n.as_str(), *t)).collect();
    Ok(write_safetensors(&folder.join("model.safetensors"), &named)?)
}

/// Drops what the system keeps of files, but for what is mapped.
fn drop_files(folder: &Path) -> Result<(), Box<dyn std::error::Error>> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "packed") {
            let arg = format!("if={}", path.display());
            Command::new("dd").args([&arg, "iflag=nocache", "count=0", "status=none"]).status()?;
        }
    }
    Ok(())
}

fn median(of: &mut [f64]) -> f64 {
    of.sort_by(f64::total_cmp);
    of[of.len() / 2]
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().collect();
    let folder = Path::new(args.get(1).ok_or("give a folder")?);
    let tokens: Vec<usize> =
        args.get(2).map_or("1,16,512", String::as_str).split(',').map(str::parse).collect::<Result<_, _>>()?;
    if !folder.join("model.safetensors").exists() {
        make(folder)?;
    }
    let part = Part::Experts { ids: DType::I64, weights: DType::F32 };
    let model = Model::open(folder).map_err(|d| d[0].clone())?;
    let layer =
        model.layer_with(Some(0), &LayerOptions { part, ..LayerOptions::default() }).map_err(|d| d[0].clone())?;
    let bundle =
        moec::compile(&CompileRequest::new(&layer.graph, Target::by_name("cpu").into_iter().collect()))?.bundle;
    let (most, cache) = (*tokens.iter().max().ok_or("give token counts")?, folder.join("cache"));
    let checkpoint = Arc::new(Checkpoint::open(folder)?);
    let load = |memory_limit| {
        let weights = Weights::Cached(CachedWeights::new(checkpoint.clone(), &cache)?);
        Layer::load(&bundle, &weights, LoadOptions { max_tokens: most as u64, memory_limit, ..LoadOptions::default() })
    };
    let all = load(Some(1 << 40))?.expert_memory().ok_or("a limited layer")?.all;
    let mut free = Layer::load(
        &bundle,
        &Weights::Checkpoint(checkpoint.clone()),
        LoadOptions { max_tokens: most as u64, ..LoadOptions::default() },
    )?;
    let zipf: Vec<f64> = (0..EXPERTS).map(|e| 1.0 / (1 + (e * 37) % EXPERTS) as f64).collect();
    println!("| routing | T | limit | ms a step | in memory | ratio | MB read a step |\n|---|--:|--:|--:|--:|--:|--:|");
    for (routing, shares) in [("uniform", vec![1.0; EXPERTS]), ("Zipf", zipf)] {
        for &n_tokens in &tokens {
            for percent in [100, 50, 25] {
                let mut layer = load(Some(if percent == 100 { 1 << 40 } else { all * percent / 100 }))?;
                let mut random = Random(11);
                let x = moec::random_tensor(&layer.manifest().inputs[0].ty.clone(), n_tokens as u64, 5, "input");
                let weights = Tensor::float(DType::F32, &[n_tokens, TOP_K], vec![1.0 / TOP_K as f32; n_tokens * TOP_K]);
                let (warm, steps) = if n_tokens > 64 { (2, 7) } else { (60 / n_tokens.min(6), 41) };
                let (mut times, mut in_memory, mut read) = (Vec::new(), Vec::new(), 0);
                for step in 0..warm + steps {
                    if step == warm {
                        read = layer.expert_memory().ok_or("a limited layer")?.asked;
                    }
                    let ids = random.experts(n_tokens, &shares);
                    let inputs = [("input", &x), ("topk_ids", &ids), ("topk_weights", &weights)];
                    drop_files(&cache)?;
                    let time = |layer: &mut Layer, times: &mut Vec<f64>| -> Result<Tensor, moec::Diagnostic> {
                        let start = Instant::now();
                        let result = layer.run_host(&inputs)?;
                        if step >= warm {
                            times.push(start.elapsed().as_secs_f64() * 1e3);
                        }
                        Ok(result.outputs[0].1.clone())
                    };
                    let got = time(&mut layer, &mut times)?;
                    assert!(got == time(&mut free, &mut in_memory)?, "the same bits");
                }
                let read = (layer.expert_memory().ok_or("a limited layer")?.asked - read) as f64 / steps as f64 / 1e6;
                let (a, b) = (median(&mut times), median(&mut in_memory));
                println!("| {routing} | {n_tokens} | {percent} % | {a:.1} | {b:.1} | {:.2} | {read:.0} |", a / b);
            }
        }
    }
    Ok(())
}
