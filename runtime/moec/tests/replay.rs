//! A layer that is given the experts that it would have chosen makes the same bits, on the CPU; others are weighed as the
//! router scores them.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use moec::{Checkpoint, CompileRequest, DType, LayerOptions, Model, RunResult, Session, Target, Tensor, Weights};
use std::path::{Path, PathBuf};

fn golden(family: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../ir/frontend/tests/golden").join(family)
}

/// The layer that is recorded, and its input.
fn recorded(dir: &Path) -> (u32, Tensor) {
    let file = |number: u32| dir.join(format!("golden.layer{number}.safetensors"));
    let number = (0..8).find(|&n| file(n).exists()).unwrap();
    let input = Checkpoint::open(file(number)).unwrap().tensor("input").unwrap().unwrap().to_tensor().unwrap();
    (number, input)
}

fn session(dir: &Path, ids_in: Option<DType>) -> (Session, Vec<String>) {
    let options = LayerOptions { ids_in, ..LayerOptions::default() };
    let layer = Model::open(dir).unwrap().layer_with(Some(recorded(dir).0), &options).unwrap();
    let compiled = moec::compile(&CompileRequest::new(&layer.graph, vec![Target::by_name("cpu").unwrap()])).unwrap();
    let weights = Weights::from_checkpoint(Checkpoint::open(dir).unwrap());
    (Session::jit(&compiled, &weights, 16).unwrap(), layer.graph.inputs.iter().map(|i| i.name.clone()).collect())
}

fn run(session: &mut Session, input: &Tensor, ids: Option<&Tensor>) -> RunResult {
    let mut inputs = vec![("input", input)];
    inputs.extend(ids.map(|ids| ("topk_ids", ids)));
    session.run(&inputs).unwrap()
}

#[test]
fn the_experts_that_a_layer_chose_make_the_same_bits_again() {
    for family in ["mixtral", "deepseek_v2", "deepseek_v3", "gpt_oss", "longcat_flash", "inkling_text", "gemma4"] {
        let dir = golden(family);
        let (mut chooses, _) = session(&dir, None);
        let (_, input) = recorded(&dir);
        let want = run(&mut chooses, &input, None);
        let ids = want.output("topk_ids").unwrap();
        for dtype in [DType::I32, DType::I64] {
            let (mut given, names) = session(&dir, Some(dtype));
            assert_eq!(names, ["input", "topk_ids"], "{family}");
            let ids = Tensor::int(dtype, &ids.shape, ids.ints().to_vec());
            let got = run(&mut given, &input, Some(&ids));
            for name in ["output", "topk_weights"] {
                assert_eq!(got.output(name), want.output(name), "{family}: {name}");
            }
        }
    }
}

#[test]
fn numbers_that_no_expert_has_are_left_out() {
    // Sigmoid and renormalised, softmax and renormalised, softmax of the chosen logits, with sinks.
    for family in ["deepseek_v3", "mixtral", "gpt_oss", "inkling_text"] {
        let dir = golden(family);
        let (mut given, _) = session(&dir, Some(DType::I64));
        let (_, input) = recorded(&dir);
        let n = input.shape[0];
        let row = |ids: [i64; 3]| Tensor::int(DType::I64, &[n, 3], ids.repeat(n));
        let mut weights =
            |ids| run(&mut given, &input, Some(&row(ids))).output("topk_weights").unwrap().floats().to_vec();
        let two = weights([4, 1, -1]);
        assert_eq!(two, weights([4, 1, 1 << 40]), "{family}");
        // What the others have does not depend on which number stands for nothing, nor on where it stands.
        let turned: Vec<f32> = weights([8, 1, 4]).chunks(3).flat_map(|w| [w[2], w[1], w[0]]).collect();
        assert_eq!(two, turned, "{family}");
        assert!(two.chunks(3).all(|w| w[2] == 0.0 && w[0] > 0.0 && w[1] > 0.0), "{family}: {two:?}");
        if family == "mixtral" {
            assert!(two.chunks(3).all(|w| (w[0] + w[1] - 1.0).abs() < 1e-6), "{two:?}");
        }
        let none = run(&mut given, &input, Some(&row([-1, 8, i64::MIN])));
        assert!(none.output("topk_weights").unwrap().floats().iter().all(|&w| w == 0.0), "{family}");
        assert!(none.output("output").unwrap().floats().iter().all(|v| v.is_finite()), "{family}");
    }
}
