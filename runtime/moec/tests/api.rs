//! What an engine in Rust relies on.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use moec::{CompileRequest, DType, Device, Model, Session, Target, Tensor, View, ViewMut};
use std::path::{Path, PathBuf};

fn checkpoint(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/conformance").join(name)
}

#[test]
fn a_layer_for_no_target_is_refused() {
    let layer = Model::open(checkpoint("mixtral.f32")).unwrap().layer(None).unwrap();
    let targets = Target::by_name("sm_42").into_iter().collect();
    assert_eq!(moec::compile(&CompileRequest::new(&layer.graph, targets)).unwrap_err().code, "no-targets");
}

#[test]
fn engines_may_load_on_one_thread_and_run_on_another() {
    fn send<T: Send>() {}
    fn sync<T: Sync>() {}
    // Holds when it compiles.
    send::<moec::Weights<'_>>();
    sync::<moec::Weights<'_>>();
    send::<moec::Model>();
    sync::<moec::Model>();
    send::<moec::Bundle>();
    sync::<moec::Bundle>();
    send::<moec::LayerBuilder>();
    send::<moec::Layer>();
    sync::<moec::Layer>();
    send::<moec::Session>();
    sync::<moec::Session>();
    send::<moec::Error>();
    sync::<moec::Error>();

    let layer = Model::open(checkpoint("mixtral.f32")).unwrap().layer(None).unwrap();
    let compiled = moec::compile(&CompileRequest::new(&layer.graph, vec![Target::by_name("cpu").unwrap()])).unwrap();
    let weights = moec::Weights::from_checkpoint(moec::Checkpoint::open(checkpoint("mixtral.f32")).unwrap());
    let input = moec::random_tensor(&layer.graph.inputs[0].ty, 5, 1, "input");
    let load = move || Session::jit(&compiled, &weights, 8).unwrap();
    let mut session = std::thread::spawn(load).join().unwrap();
    let here = session.run(&[("input", &input)]).unwrap();
    let there = std::thread::spawn(move || session.run(&[("input", &input)]).unwrap()).join().unwrap();
    assert_eq!(here.output("output"), there.output("output"));
}

#[test]
fn one_error_type_takes_both_kinds() {
    fn open(name: &str) -> moec::Result<Session> {
        let layer = Model::open(checkpoint(name))?.layer(None)?;
        Ok(Session::open(&layer, Device::Cpu, 8)?)
    }
    let text = open("nowhere").unwrap_err().to_string();
    assert!(text.starts_with("error[not-a-model]: ") && text.contains("\n  help: "), "{text}");
    assert!(open("mixtral.f32").is_ok());
}

#[test]
fn a_folder_of_another_family_is_refused_where_its_tensors_fit() {
    let run = |model: &str, weights: PathBuf| {
        let layer = Model::open(checkpoint(model)).unwrap().with_weights(weights).layer(Some(0)).unwrap();
        Session::open(&layer, Device::Cpu, 8).map(|_| ())
    };
    for (model, other, named) in [
        ("qwen3_moe.f32", "olmoe.f32", "weights of the chosen experts"),
        ("olmoe.f32", "qwen3_moe.f32", "weights of the chosen experts"),
        ("gguf.qwen3moe", "gguf.olmoe", "weights of the chosen experts"),
    ] {
        let refused = run(model, checkpoint(other)).unwrap_err();
        assert_eq!(refused.code, "checkpoint-layer-mismatch", "{model}: {}", refused.message);
        assert!(refused.message.contains(named), "{}", refused.message);
        run(model, checkpoint(model)).unwrap();
    }
    // A file that is named by itself is taken as it is.
    run("qwen3_moe.f32", checkpoint("olmoe.f32").join("model.safetensors")).unwrap();
}

#[test]
fn tensors_are_read_and_written_where_they_lie() {
    for (name, dtype) in [("qwen3_moe.bf16", DType::BF16), ("qwen3_moe.f32", DType::F32)] {
        let layer = Model::open(checkpoint(name)).unwrap().layer(None).unwrap();
        let mut session = Session::open(&layer, Device::Cpu, 8).unwrap();
        let input = moec::random_tensor(&layer.graph.inputs[0].ty, 5, 1, "input");
        let want = session.run(&[("input", &input)]).unwrap();
        let want = want.output("output").unwrap();
        let bytes = input.to_bytes();
        // An allocation of whole words begins at a multiple of an element's size.
        let mut words = vec![0u64; want.elements() * dtype.bytes() / 8];
        let out: &mut [u8] = unsafe { std::slice::from_raw_parts_mut(words.as_mut_ptr().cast(), words.len() * 8) };
        let shape = input.shape.clone();
        let x = View::new(dtype, &shape, &bytes).unwrap();
        let y = ViewMut::new(dtype, &shape, out).unwrap();
        session.run_into(&[("input", x)], &mut [("output", y)]).unwrap();
        let got = Tensor::from_bytes(dtype, &shape, unsafe {
            std::slice::from_raw_parts(words.as_ptr().cast(), words.len() * 8)
        });
        assert_eq!(got.as_ref(), Some(want));
    }
}

#[test]
fn a_view_that_does_not_fit_is_refused_before_anything_runs() {
    let layer = Model::open(checkpoint("qwen3_moe.f32")).unwrap().layer(None).unwrap();
    let mut session = Session::open(&layer, Device::Cpu, 8).unwrap();
    let memory = vec![0f32; 5 * 64];
    let bytes: &[u8] = unsafe { std::slice::from_raw_parts(memory.as_ptr().cast(), memory.len() * 4) };
    assert_eq!(View::new(DType::F32, &[5, 63], bytes).unwrap_err().code, "tensor-shape-mismatch");
    assert_eq!(View::new(DType::F32, &[1, 64], &bytes[1..257]).unwrap_err().code, "tensor-misaligned");
    let x = View::new(DType::F32, &[5, 64], bytes).unwrap();
    let narrow = View::new(DType::F32, &[10, 32], bytes).unwrap();
    let half = View::new(DType::BF16, &[5, 128], bytes).unwrap();
    assert_eq!(session.run_into(&[("input", narrow)], &mut []).unwrap_err().code, "input-shape-mismatch");
    assert_eq!(session.run_into(&[("input", half)], &mut []).unwrap_err().code, "input-type-mismatch");
    assert_eq!(session.run_into(&[], &mut []).unwrap_err().code, "input-missing");
    let mut short = vec![0f32; 4 * 64];
    let short: &mut [u8] = unsafe { std::slice::from_raw_parts_mut(short.as_mut_ptr().cast(), 4 * 64 * 4) };
    let out = ViewMut::new(DType::F32, &[4, 64], short).unwrap();
    assert_eq!(session.run_into(&[("input", x)], &mut [("output", out)]).unwrap_err().code, "input-shape-mismatch");
    let mut memory = [vec![0f32; 5 * 64], vec![0f32; 5 * 64]];
    let mut outputs = memory.iter_mut().map(|m| {
        let bytes = unsafe { std::slice::from_raw_parts_mut(m.as_mut_ptr().cast(), 5 * 64 * 4) };
        ("output", ViewMut::new(DType::F32, &[5, 64], bytes).unwrap())
    });
    let (first, second) = (outputs.next().unwrap(), outputs.next().unwrap());
    assert_eq!(session.run_into(&[("input", x)], &mut [first, second]).unwrap_err().code, "duplicate-name");
    let mut other = vec![0f32; 5 * 64];
    let other: &mut [u8] = unsafe { std::slice::from_raw_parts_mut(other.as_mut_ptr().cast(), 5 * 64 * 4) };
    let other = ("result", ViewMut::new(DType::F32, &[5, 64], other).unwrap());
    assert_eq!(session.run_into(&[("input", x)], &mut [other]).unwrap_err().code, "output-name-mismatch");
    session.run_into(&[("input", x)], &mut []).unwrap();
}
