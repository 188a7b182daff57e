//! Comments of PTX say which part of a kernel a basic block comes from, and change nothing else.

mod common;

use common::coded::{in_codes, in_format};
use common::fitted;
use common::programs::{Layer, Schedules, layer};
use moec_ir::DType;
use moec_ir::act_quant::ActQuant;
use moec_ir::quant::{Code, QuantFormat, ScaleCode};
use moec_ir::target::Target;
use moec_ir::tile::Program;
use moec_nvptx::{EmitOptions, emit_with};

/// The text without the comments behind labels and braces.
fn without_comments(ptx: &str) -> String {
    let strip = |line: &str| {
        let is_block = line.starts_with("$L__BB") || line.starts_with('{');
        line.split_once(" // ").filter(|_| is_block).map_or(line, |(code, _)| code).to_string() + "\n"
    };
    ptx.lines().map(strip).collect()
}

fn programs() -> Vec<Program> {
    let small = |dtype| layer(&Layer::small(dtype), &Schedules::for_rows(16));
    let mxfp4 = QuantFormat { code: Code::E2M1, scale: ScaleCode::E8M0, block_rows: 1, block_cols: 32 };
    vec![
        small(DType::BF16),
        small(DType::F32),
        in_format(small(DType::BF16), mxfp4, false),
        in_codes(small(DType::BF16), ActQuant::MXFP8, mxfp4),
    ]
}

#[test]
fn comments_change_no_code() {
    for name in ["sm_80", "sm_90a", "sm_100f", "sm_120f"] {
        let target = Target::by_name(name).expect("a target");
        // Block-scaled products are Blackwell's.
        let n = if matches!(name, "sm_80" | "sm_90a") { 3 } else { 4 };
        for program in programs().into_iter().take(n) {
            let program = fitted(&program, target);
            let emit = |no_comments| {
                let options = EmitOptions { no_comments, ..EmitOptions::default() };
                emit_with(&program, target, &options).expect("emitted")
            };
            for (with, without) in emit(false).iter().zip(emit(true)) {
                assert_eq!(without_comments(&with.ptx), without_comments(&without.ptx), "{name} {}", with.entry);
                assert!(!without.ptx.contains("products") && !with.ptx.contains(".loc"), "{}", with.ptx);
            }
        }
    }
}

#[test]
fn a_block_says_what_it_does() {
    let target = Target::by_name("sm_100f").expect("a target");
    let program = fitted(&programs()[0], target);
    let images = emit_with(&program, target, &EmitOptions::default()).expect("emitted");
    let text: String = images.iter().map(|i| i.ptx.as_str()).collect();
    for part in
        ["copies of weights", "copies of rows", "products", "results", "tiles", "= top_k", "store r", "sum of slots"]
    {
        let found = text
            .lines()
            .any(|l| l.starts_with("$L__BB") && l.split_once(" // ").is_some_and(|(_, c)| c.contains(part)));
        assert!(found, "no block of {part}");
    }
}
