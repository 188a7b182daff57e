//! The experts of a layer alone, for hosts that route by themselves: against what transformers computed, with its own routing.

use moec::{Checkpoint, CompileRequest, DType, Device, LayerOptions, Model, Part, Session, Target, Tensor, Weights};
use std::path::PathBuf;

/// Families whose layer is nothing but a router and experts.
const FAMILIES: [&str; 5] = ["mixtral.f32", "qwen3_moe.f32", "olmoe.f32", "gpt_oss.f32", "minimax_m2.f32"];

fn folder(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("conformance").join(name)
}

/// A tensor that transformers wrote beside the checkpoint.
fn golden(family: &str, name: &str) -> Tensor {
    let file = Checkpoint::open(folder(family).join("golden.layer0.safetensors")).expect("golden");
    file.tensor(name).expect("readable").expect("there").to_tensor().expect("of a type that moec has")
}

fn session(family: &str, ids: DType, weights: DType, device: &str) -> Session {
    let options = LayerOptions { part: Part::Experts { ids, weights }, ..LayerOptions::default() };
    let layer = Model::open(folder(family)).expect("model").layer_with(Some(0), &options).expect("layer");
    let device = Device::parse(device).expect("device");
    let target = match &device {
        Device::Emulator { target } => target,
        Device::Cpu | Device::Cuda { .. } => "cpu",
    };
    let targets = Target::by_name(target).into_iter().collect();
    let request = CompileRequest { info: layer.info.clone(), ..CompileRequest::new(&layer.graph, targets) };
    let compiled = moec::compile(&request).expect("compiles");
    let weights = Weights::from_checkpoint(Checkpoint::open(folder(family)).expect("checkpoint"));
    Session::load(&compiled.bundle, &weights, device, 64).expect("loads")
}

fn run(session: &mut Session, x: &Tensor, ids: &Tensor, weights: &Tensor) -> Tensor {
    let inputs = [("input", x), ("topk_ids", ids), ("topk_weights", weights)];
    session.run(&inputs).expect("runs").output("output").expect("output").clone()
}

#[test]
fn experts_alone_give_what_transformers_gives() {
    for family in FAMILIES {
        let [x, ids, weights, want] = ["input", "topk_ids", "topk_weights", "output"].map(|n| golden(family, n));
        assert_eq!(ids.dtype, DType::I64, "transformers has wide ids");
        for device in ["cpu", "emulator:sm_90a"] {
            let got = run(&mut session(family, DType::I64, DType::F32, device), &x, &ids, &weights);
            let error = got.worst_error(&want);
            assert!(error < 1e-5, "{family} on {device}: {error}");
        }
        let narrow = Tensor::int(DType::I32, &ids.shape, ids.ints().to_vec());
        let got = run(&mut session(family, DType::I32, DType::F32, "cpu"), &x, &narrow, &weights);
        assert!(got.worst_error(&want) < 1e-5, "{family}");
    }
}

#[test]
fn weights_may_come_in_bf16() {
    let [x, ids, weights, want] = ["input", "topk_ids", "topk_weights", "output"].map(|n| golden("mixtral.f32", n));
    let coarse = weights.cast(DType::BF16);
    for device in ["cpu", "emulator:sm_90a"] {
        let got = run(&mut session("mixtral.f32", DType::I64, DType::BF16, device), &x, &ids, &coarse);
        let same = run(&mut session("mixtral.f32", DType::I64, DType::F32, device), &x, &ids, &coarse.cast(DType::F32));
        assert_eq!(got, same);
        assert!(got.worst_error(&want) < 1e-2);
    }
}

/// −1 (vLLM), E (transformers under expert parallelism), and ids whose lower half would be an expert.
#[test]
fn ids_that_no_expert_has_are_skipped() {
    let family = "mixtral.f32";
    let [x, ids, weights] = ["input", "topk_ids", "topk_weights"].map(|n| golden(family, n));
    let nobody = [-1, 8, 1 << 40, (1 << 32) + 3, i64::MIN, i64::MAX, i64::from(i32::MAX)];
    let (mut strange, mut zeroed) = (ids.ints().to_vec(), weights.floats().to_vec());
    for (i, id) in nobody.into_iter().enumerate() {
        // One slot of each of seven tokens.
        strange[3 * i] = id;
        zeroed[3 * i] = 0.0;
    }
    let strange = Tensor::int(DType::I64, &ids.shape, strange);
    let zeroed = Tensor::float(DType::F32, &weights.shape, zeroed);
    for device in ["cpu", "emulator:sm_90a"] {
        let mut session = session(family, DType::I64, DType::F32, device);
        let skipped = run(&mut session, &x, &strange, &weights);
        let without = run(&mut session, &x, &ids, &zeroed);
        assert!(skipped.worst_error(&without) < 1e-6, "{device}");
        assert!(skipped.floats().iter().all(|v| v.is_finite()));
    }
}

/// Shared experts, the router's parts and what follows the sum are the host's.
#[test]
fn only_the_experts_weights_are_parameters() {
    for family in ["deepseek_v3.f32", "qwen2_moe.f32", "glm4_moe.f32"] {
        let options =
            LayerOptions { part: Part::Experts { ids: DType::I64, weights: DType::F32 }, ..LayerOptions::default() };
        let layer = Model::open(folder(family)).expect("model").layer_with(None, &options).expect("layer");
        let names: Vec<&str> = layer.graph.params.iter().map(|p| p.name.as_str()).collect();
        assert_eq!(names, ["experts.gate", "experts.up", "experts.down"], "{family}");
        assert_eq!(layer.graph.outputs.len(), 1);
    }
}

#[test]
fn a_layer_graph_has_no_part() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../examples/layers/softmax_top2.json");
    let options =
        LayerOptions { part: Part::Experts { ids: DType::I64, weights: DType::F32 }, ..LayerOptions::default() };
    let refused = Model::open(path).expect("graph").layer_with(None, &options).expect_err("refused");
    assert_eq!(refused[0].code, "unsupported-layer");
}

#[test]
fn one_ranks_part_of_the_experts_adds_up() {
    use moec::{Shard, ShardKind};
    let family = "mixtral.f32";
    let [x, ids, weights, want] = ["input", "topk_ids", "topk_weights", "output"].map(|n| golden(family, n));
    for kind in [ShardKind::Expert, ShardKind::Tensor] {
        let mut sum = vec![0f32; want.elements()];
        for rank in 0..3 {
            let options = LayerOptions {
                part: Part::Experts { ids: DType::I64, weights: DType::F32 },
                shard: Some(Shard { kind, count: 3, rank }),
                ..LayerOptions::default()
            };
            let layer = Model::open(folder(family)).expect("model").layer_with(Some(0), &options).expect("layer");
            let cpu = Target::by_name("cpu").into_iter().collect();
            let compiled = moec::compile(&CompileRequest::new(&layer.graph, cpu)).expect("compiles");
            let checkpoint = Weights::from_checkpoint(Checkpoint::open(folder(family)).expect("checkpoint"));
            let mut session = Session::load(&compiled.bundle, &checkpoint, Device::Cpu, 64).expect("loads");
            let part = run(&mut session, &x, &ids, &weights);
            sum.iter_mut().zip(part.floats()).for_each(|(s, p)| *s += p);
        }
        assert!(Tensor::float(DType::F32, &want.shape, sum).worst_error(&want) < 1e-5, "{kind:?}");
    }
}
