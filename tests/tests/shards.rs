//! Tensor-parallel and expert-parallel ranks: their outputs, added in f32, are the output of the whole layer.
#![allow(clippy::unwrap_used)]

use libtest_mimic::{Arguments, Failed, Trial};
use moec::{
    Checkpoint, CompileRequest, Device, LayerOptions, Model, Session, Shard, ShardKind, Target, Tensor, Weights,
};
use moec_ir::graph::{self, Graph, Param};
use moec_ir::tile::{Buffer, Role};
use moec_ir::weights::WeightSource;
use moec_ir::{ActQuant, DType, Dim};
use moec_tests::cases::{self, Routing};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A whole layer, where its weights are, and an input.
struct Whole {
    name: String,
    graph: Graph,
    weights: PathBuf,
    input: Tensor,
    /// What the model's own implementation gives, where that is known.
    golden: Option<Tensor>,
    tolerance: f64,
}

#[derive(Clone, Copy, PartialEq)]
enum Engine {
    Reference,
    Jit,
    Object,
    Emulator(&'static str),
}

fn main() {
    let args = Arguments::from_args();
    let mut wholes: Vec<Whole> = CONFORMANCE.iter().map(|&(dir, layer)| conformance(dir, layer)).collect();
    wholes.extend(cases::all().into_iter().filter(is_taken).map(random));
    let mut trials = Vec::new();
    for whole in wholes {
        let whole = Arc::new(whole);
        for kind in [ShardKind::Tensor, ShardKind::Expert] {
            for count in [2, 3, 4] {
                let mut engines = vec![("reference", Engine::Reference), ("jit", Engine::Jit)];
                let published = whole.golden.is_some();
                if count == 2 && published {
                    engines.push(("object", Engine::Object));
                }
                if count == 2 && whole.name.contains("bf") {
                    engines.push(("emulator-sm_100f", Engine::Emulator("sm_100f")));
                }
                if count == 3 && published {
                    engines.push(("emulator-sm_90a", Engine::Emulator("sm_90a")));
                }
                for (engine_name, engine) in engines {
                    let whole = whole.clone();
                    let name = format!("{engine_name}/{}/{kind:?}-{count}", whole.name);
                    trials.push(Trial::test(name, move || ranks_add_up(&whole, kind, count, engine)));
                }
            }
        }
    }
    for (dir, layer, rows, target) in ROUNDED {
        let name = format!("emulator-{target}/{dir}/{} {} rows/Expert-2", rows.code.name(), rows.block);
        let engine = Engine::Emulator(target);
        trials.push(Trial::test(name, move || ranks_add_up(&rounded(dir, layer, rows)?, ShardKind::Expert, 2, engine)));
    }
    trials.push(Trial::test("norms after the experts are refused", norms_after_the_experts_are_refused));
    trials.push(Trial::test("impossible ranks are refused", impossible_ranks_are_refused));
    trials.push(Trial::test("ranks share the weights", ranks_share_the_weights));
    libtest_mimic::run(&args, trials).exit();
}

/// Checkpoints in different layouts: experts one by one and stacked, halves and interleaved rows, biases, shared experts
/// with and without a gate, quantised blocks.
const CONFORMANCE: [(&str, u32); 9] = [
    ("deepseek_v3.f32", 1),
    ("deepseek_v3.bf16", 1),
    ("deepseek_v3.fp8-block.h256", 1),
    ("gpt_oss.f32", 0),
    ("gpt_oss.mxfp4-gptoss.h256", 0),
    ("mixtral.f32", 0),
    ("mixtral.bf16", 0),
    ("qwen2_moe.f32", 0),
    ("qwen2_moe.bf16", 0),
];

/// Checkpoints whose rows are rounded as well. A rank has rows of other ranks' slots, which nobody writes, and the kernels
/// that round rows have to leave them alone: the emulator finds reads of what was never written.
const ROUNDED: [(&str, u32, ActQuant, &str); 4] = [
    ("deepseek_v3.fp8-block.h256", 1, ActQuant::FP8_BLOCK, "sm_90a"),
    ("deepseek_v3.fp8-block.h256", 1, ActQuant::FP8_TOKEN, "sm_120a"),
    ("qwen3_moe.mxfp8", 0, ActQuant::MXFP8, "sm_100a"),
    ("qwen3_moe.nvfp4-ct", 0, ActQuant::NVFP4_ROW, "sm_100a"),
];

fn rounded(dir: &str, layer: u32, rows: ActQuant) -> Result<Whole, Failed> {
    let whole = conformance(dir, layer);
    let graph = graph::quantise_activations(&whole.graph, rows).map_err(text)?;
    Ok(Whole { graph, golden: None, tolerance: 1e-3, ..whole })
}

fn conformance(dir: &str, layer: u32) -> Whole {
    let weights = Path::new(env!("CARGO_MANIFEST_DIR")).join("conformance").join(dir);
    let golden = Checkpoint::open(weights.join(format!("golden.layer{layer}.safetensors"))).unwrap();
    let tensor = |name: &str| golden.tensor(name).unwrap().unwrap().to_tensor().unwrap();
    let input = tensor("input");
    let model = Model::open(&weights).unwrap();
    let layer = model.layer_as(Some(layer), Some(input.dtype)).unwrap();
    let tolerance = if input.dtype == DType::F32 { 1e-5 } else { 1e-2 };
    Whole { name: dir.to_string(), graph: layer.graph, weights, input, golden: Some(tensor("output")), tolerance }
}

/// Random layers, and those in which some experts, and so some ranks, get no token.
fn is_taken(case: &cases::Case) -> bool {
    // Activations in blocks of 128 columns cannot be cut where an expert is not as wide as that.
    let plain = !case.name.contains("quantised_activations");
    plain && matches!(case.routing, Routing::Random | Routing::OneExpert | Routing::EmptyExperts)
}

/// A random layer whose weights are written to a checkpoint of their own.
fn random(mut case: cases::Case) -> Whole {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("shards").join(case.name.replace('/', "-"));
    std::fs::create_dir_all(&folder).unwrap();
    for param in &mut case.graph.params {
        param.source = WeightSource::tensor(param.name.clone());
    }
    let named: Vec<(&str, &Tensor)> = case.graph.params.iter().map(|p| p.name.as_str()).zip(&case.params).collect();
    let weights = folder.join("model.safetensors");
    moec_weights::safetensors::write_safetensors(&weights, &named).unwrap();
    let input = case.input(5);
    Whole { name: case.name, graph: case.graph, weights: folder, input, golden: None, tolerance: case.tolerance }
}

fn text(d: moec::Diagnostic) -> Failed {
    format!("{d} {:?}", d.notes).into()
}

fn ranks_add_up(whole: &Whole, kind: ShardKind, count: u32, engine: Engine) -> Result<(), Failed> {
    let want = run(&whole.graph, whole, Engine::Reference)?;
    let mut sum = vec![0.0f32; want[0].elements()];
    let mut widest = 0;
    for rank in 0..count {
        let part = graph::shard(&whole.graph, Shard { kind, count, rank }).map_err(text)?;
        let found = graph::verify(&part);
        if let Some(d) = found.into_iter().next() {
            return Err(text(d));
        }
        widest = widest.max(part.params.iter().map(|p| p.ty.bytes(0)).sum::<u64>());
        let got = run(&part, whole, engine)?;
        sum.iter_mut().zip(got[0].floats()).for_each(|(s, v)| *s += v);
        if got[1].ints() != want[1].ints() {
            return Err(format!("rank {rank} chose other experts").into());
        }
    }
    let all: u64 = whole.graph.params.iter().map(|p| p.ty.bytes(0)).sum();
    if widest >= all {
        return Err(format!("a rank holds {widest} of {all} bytes").into());
    }
    let sum = Tensor::float(DType::F32, &want[0].shape, sum);
    for (what, want) in std::iter::once(("the whole layer", &want[0])).chain(whole.golden.iter().map(|g| ("golden", g)))
    {
        let error = sum.worst_error(want);
        if error > whole.tolerance {
            return Err(format!("relative error {error:.2e} against {what}").into());
        }
    }
    Ok(())
}

/// The outputs of a graph, with the weights of `whole` read through its sources.
fn run(graph: &Graph, whole: &Whole, engine: Engine) -> Result<Vec<Tensor>, Failed> {
    let checkpoint = Checkpoint::open(&whole.weights).map_err(text)?;
    let target = match engine {
        Engine::Reference => {
            let params: Result<Vec<Tensor>, Failed> = graph.params.iter().map(|p| read(&checkpoint, p)).collect();
            return graph::evaluate(graph, std::slice::from_ref(&whole.input), &params?).map_err(text);
        }
        Engine::Jit | Engine::Object => "cpu",
        Engine::Emulator(target) => target,
    };
    let compiled = moec::compile(&CompileRequest::new(graph, Target::by_name(target).into_iter().collect()));
    let compiled = compiled.map_err(text)?;
    let weights = Weights::from_checkpoint(checkpoint);
    let n_tokens = whole.input.shape[0] as u64;
    let mut session = match engine {
        Engine::Jit => Session::jit(&compiled, &weights, n_tokens),
        Engine::Reference | Engine::Object => Session::load(&compiled.bundle, &weights, Device::Cpu, n_tokens),
        Engine::Emulator(target) => Session::load(&compiled.bundle, &weights, Device::Emulator { target }, n_tokens),
    }
    .map_err(text)?;
    let result = session.run(&[("input", &whole.input)]).map_err(text)?;
    match result.findings.first() {
        Some(finding) => Err(format!("the emulator found: {finding}").into()),
        None => Ok(result.outputs.into_iter().map(|(_, t)| t).collect()),
    }
}

/// A parameter as its source says.
fn read(checkpoint: &Checkpoint, param: &Param) -> Result<Tensor, Failed> {
    let shape: Vec<u64> = param.ty.shape.iter().map(|d| d.fixed().unwrap()).collect();
    let cols = *shape.last().unwrap();
    let buffer = Buffer {
        name: param.name.clone(),
        dtype: param.ty.dtype,
        batch: 1,
        rows: Dim::Fixed(shape.iter().product::<u64>() / cols),
        cols,
        pitch: cols,
        role: Role::Weight(0),
    };
    let mut bytes = vec![0; buffer.bytes(0) as usize];
    moec_weights::pack_weight(checkpoint, param, &buffer, &mut bytes).map_err(text)?;
    moec_weights::unpack_weight(param, &buffer, &bytes).map_err(text)
}

fn layer(config: &str, shard: Shard) -> Result<moec_frontend::Layer, Vec<moec::Diagnostic>> {
    let model = moec_frontend::ModelConfig::from_text("config.json", config.to_string()).unwrap();
    model.layer(None, &LayerOptions { shard: Some(shard), ..LayerOptions::default() })
}

const MIXTRAL: &str = r#"{ "model_type": "mixtral", "hidden_size": 16, "intermediate_size": 12, "num_hidden_layers": 1,
    "num_local_experts": 4, "num_experts_per_tok": 2 }"#;

fn norms_after_the_experts_are_refused() -> Result<(), Failed> {
    let config = r#"{ "model_type": "gemma4_text", "hidden_size": 16, "intermediate_size": 24, "moe_intermediate_size": 8,
        "num_hidden_layers": 1, "num_experts": 4, "top_k_experts": 2, "enable_moe_block": true, "rms_norm_eps": 1e-6 }"#;
    for kind in [ShardKind::Tensor, ShardKind::Expert] {
        let refused = layer(config, Shard { kind, count: 2, rank: 0 }).expect_err("a norm follows the experts");
        assert_eq!(refused[0].code, "layer-not-shardable", "{refused:?}");
        assert!(refused[0].message.contains("rms_norm"), "{refused:?}");
    }
    Ok(())
}

fn impossible_ranks_are_refused() -> Result<(), Failed> {
    let code = |kind, count, rank| layer(MIXTRAL, Shard { kind, count, rank }).map_err(|d| d[0].code.clone()).err();
    for kind in [ShardKind::Tensor, ShardKind::Expert] {
        assert_eq!(code(kind, 2, 2).as_deref(), Some("shard-out-of-range"));
        assert_eq!(code(kind, 0, 0).as_deref(), Some("shard-out-of-range"));
        assert_eq!(code(kind, 13, 0).as_deref(), Some("shard-too-narrow"));
        assert_eq!(code(kind, 4, 3), None);
    }
    let none = r#"graph "local"
input "input" : f32[T, 4]
%0 = input index=0 () : f32[T, 4]  "input"
%1 = top_k k=1 (%0) : i32[T, 1]  "ids"
%2 = local_ids first=0 count=0 (%1) : i32[T, 1]  "local"
output "local" = %2
"#;
    let found = graph::verify(&graph::parse("g.mir", none).unwrap());
    assert_eq!(found[0].code, "local-ids-range");
    Ok(())
}

/// Together the ranks hold each column and each expert once.
fn ranks_share_the_weights() -> Result<(), Failed> {
    let of = |graph: &Graph, name: &str| {
        graph.params.iter().filter(|p| p.name == name).map(|p| p.ty.elements(0)).sum::<u64>()
    };
    let whole = conformance("deepseek_v3.f32", 1).graph;
    for (kind, name) in [
        (ShardKind::Tensor, "experts.gate"),
        (ShardKind::Tensor, "experts.down"),
        (ShardKind::Tensor, "shared.up"),
        (ShardKind::Expert, "experts.up"),
        (ShardKind::Expert, "shared.down"),
    ] {
        for count in [2, 3, 5] {
            let parts = (0..count).map(|rank| graph::shard(&whole, Shard { kind, count, rank }).unwrap());
            assert_eq!(parts.map(|g| of(&g, name)).sum::<u64>(), of(&whole, name), "{kind:?} {count} {name}");
        }
    }
    Ok(())
}
