//! Weights that stay where their host has them.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use common::host::{BF16, BORROW, COPY, EITHER, F32, View, layer, outputs, set};
use common::{must, refused};
use moec::{Bundle, CompileRequest, Model, Target};
use moec_c::*;

const EXPERTS: usize = 8;

/// A Mixtral layer of this size.
fn compiled(hidden: usize, ffn: usize) -> Bundle {
    let path = common::checkpoint().join("config.json");
    let mut config: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    config["hidden_size"] = hidden.into();
    config["intermediate_size"] = ffn.into();
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    let layer = Model::open(dir.path()).expect("model").layer(Some(0)).expect("layer");
    let targets = Target::by_name("cpu").into_iter().collect();
    let request = CompileRequest { tokens: (0, 64), ..CompileRequest::new(&layer.graph, targets) };
    moec::compile(&request).expect("compiles").bundle
}

/// Weights as a framework has them: gate and up in one stack `[E, 2I, H]`, down, router.
struct Model8 {
    hidden: i64,
    ffn: i64,
    gate_up: Vec<f32>,
    down: Vec<f32>,
    router: Vec<f32>,
}

impl Model8 {
    fn new(hidden: usize, ffn: usize) -> Model8 {
        let some = |n: usize, seed: f32| (0..n).map(|i| (i as f32 * 0.37 + seed).sin() / 8.0).collect();
        Model8 {
            hidden: hidden as i64,
            ffn: ffn as i64,
            gate_up: some(EXPERTS * 2 * ffn * hidden, 1.0),
            down: some(EXPERTS * hidden * ffn, 2.0),
            router: some(EXPERTS * hidden, 3.0),
        }
    }

    /// Gate, or up: its first row and the distance of two rows.
    fn half(&self, first: i64, step: i64) -> View {
        let (e, h, i) = (EXPERTS as i64, self.hidden, self.ffn);
        let all = View::dense(&self.gate_up, F32, &[e, 2 * i, h]);
        all.cut((first * h) as u64, &[e, i, h], &[2 * i * h, step * h, 1])
    }

    fn give(&self, layer: *mut moec_layer, [gate, up]: [(i64, i64); 2], hold: i32) {
        let (e, h, i) = (EXPERTS as i64, self.hidden, self.ffn);
        must(set(layer, "experts.gate", &self.half(gate.0, gate.1), hold));
        must(set(layer, "experts.up", &self.half(up.0, up.1), hold));
        must(set(layer, "experts.down", &View::dense(&self.down, F32, &[e, h, i]), hold));
        must(set(layer, "router.weight", &View::dense(&self.router, F32, &[e, h]), hold));
        must(moec_layer_finish(layer));
    }
}

#[test]
fn halves_of_one_stack_are_read_where_they_lie() {
    let bundle = compiled(64, 32);
    let mut model = Model8::new(64, 32);
    let i = model.ffn;
    // Gate first, as transformers and vLLM have it; up first; rows that take turns, as gpt-oss has them.
    for halves in [[(0, 1), (i, 1)], [(i, 1), (0, 1)], [(0, 2), (1, 2)]] {
        let (copied, lent) = (layer(&bundle, 16), layer(&bundle, 16));
        model.give(copied, halves, COPY);
        model.give(lent, halves, BORROW);
        for n in [1, 3, 16] {
            assert!(outputs(copied, &bundle, n) == outputs(lent, &bundle, n), "{halves:?}, {n} tokens");
        }
        // What is written to the memory is what the layer reads, and nothing else.
        let before = outputs(lent, &bundle, 5);
        model.gate_up.iter_mut().for_each(|x| *x = -*x);
        assert!(outputs(lent, &bundle, 5) != before);
        assert!(outputs(copied, &bundle, 5) == before);
        model.gate_up.iter_mut().for_each(|x| *x = -*x);
        assert!(outputs(lent, &bundle, 5) == before);
        must(moec_layer_free(copied));
        must(moec_layer_free(lent));
    }
}

#[test]
fn what_kernels_cannot_read_where_it_lies_is_refused_or_copied() {
    let bundle = compiled(64, 32);
    let model = Model8::new(64, 32);
    let lent = layer(&bundle, 4);
    let (e, h, i) = (EXPERTS as i64, model.hidden, model.ffn);
    // `[E, H, 2I]`: elements of a row lie apart.
    let all = View::dense(&model.gate_up, F32, &[e, h, 2 * i]);
    let transposed = all.cut(0, &[e, i, h], &[h * 2 * i, 1, 2 * i]);
    assert_eq!(refused(set(lent, "experts.gate", &transposed, BORROW)), "parameter-not-borrowable");
    must(set(lent, "experts.gate", &transposed, EITHER));
    let narrow = View::dense(&model.gate_up, BF16, &[e, i, h]);
    assert_eq!(refused(set(lent, "experts.gate", &narrow, BORROW)), "parameter-not-borrowable");
    must(moec_layer_free(lent));
}

/// Bytes of this process that are in memory.
fn resident() -> usize {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    pages.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

/// 48 MB of weights, given and launched: the process does not grow by them.
#[test]
fn borrowed_weights_are_in_memory_once() {
    const INSIDE: &str = "MOEC_TEST_MEMORY";
    // Alone in a process: other tests allocate.
    if std::env::var_os(INSIDE).is_none() {
        let me = std::env::current_exe().unwrap();
        let out = std::process::Command::new(me)
            .args(["borrowed_weights_are_in_memory_once", "--exact", "--nocapture"])
            .env(INSIDE, "1")
            .output()
            .unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stdout));
        return;
    }
    let (bundle, model) = (compiled(512, 1024), Model8::new(512, 1024));
    let weights = 4 * (model.gate_up.len() + model.down.len());
    let halves = [(0, 1), (1024, 1)];
    let grown = |hold: i32| {
        let layer = layer(&bundle, 4);
        let before = resident();
        model.give(layer, halves, hold);
        let result = outputs(layer, &bundle, 2);
        let after = resident();
        must(moec_layer_free(layer));
        (after.saturating_sub(before), result)
    };
    let (lent, a) = grown(BORROW);
    let (copied, b) = grown(COPY);
    assert!(a == b, "same bits");
    assert!(
        lent < weights / 16 && copied > weights * 9 / 10,
        "{lent} and {copied} bytes for {weights} bytes of weights"
    );
}
