//! What the emitted PTX looks like: the text of small kernels, and a histogram of instructions of large ones.

mod common;

use common::emit;
use common::programs::{Builder, Gemm, Layer, Schedules, gemm, layer, schedule};
use moec_ir::expr::{Binary, ExprBuilder, Unary};
use moec_ir::target::Target;
use moec_ir::tile::{Body, ColAccess, Map, MapArg, RowAccess};
use moec_ir::{DType, Dim};
use moec_nvptx::{EmitOptions, emit_with};
use std::collections::BTreeMap;
use std::fmt::Write;

fn target(name: &str) -> &'static Target {
    Target::by_name(name).expect("a target")
}

/// Whether the linked LLVM is the release that the snapshots were made with; another may choose other instructions.
fn is_pinned() -> bool {
    moec_nvptx::llvm().is_ok_and(|l| l.version == (22, 1, 2))
}

#[test]
fn ptx_of_a_small_product() {
    if !is_pinned() {
        return;
    }
    let g = Gemm {
        n_experts: 0,
        n: 16,
        k: 32,
        panels: 1,
        a: DType::BF16,
        w: DType::BF16,
        out: DType::BF16,
        biases: false,
        gather: false,
        padding: 0,
    };
    let images = emit(&gemm(&g, schedule(16, 16, 16, 2, 1)), target("sm_80")).expect("emitted");
    insta::assert_snapshot!(images[0].ptx);
}

#[test]
fn ptx_of_a_sigmoid() {
    if !is_pinned() {
        return;
    }
    let mut b = Builder::default();
    let x = b.input("x", DType::BF16, Dim::TOKENS, 8);
    let out = b.output("out", DType::F32, Dim::TOKENS, 8, 0);
    let mut e = ExprBuilder::new();
    let arg = e.arg(0);
    let s = e.unary(Unary::Sigmoid, arg);
    let y = e.binary(Binary::Mul, arg, s);
    let args = vec![MapArg { buffer: x, row: RowAccess::Same, col: ColAccess::From(0) }];
    let expr = e.finish(y);
    b.kernel("silu", Body::Map(Map { args, expr, out, until: None, out_places: None }), schedule(4, 2, 1, 1, 1));
    let images = emit(&b.finish("map"), target("sm_100f")).expect("emitted");
    insta::assert_snapshot!(images[0].ptx);
}

/// How often each instruction stands in PTX text, and what the kernel asks for.
fn digest(program: &moec_ir::tile::Program, name: &str) -> String {
    let mut out = String::new();
    for image in emit(program, target(name)).expect("emitted") {
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        for line in image.ptx.lines().map(str::trim) {
            let words: Vec<&str> = line.split_whitespace().collect();
            let opcode = if line.starts_with('@') { words.get(1) } else { words.first() };
            let Some(opcode) = opcode.map(|o| o.trim_end_matches(';')) else { continue };
            let is_instruction = opcode.starts_with(|c: char| c.is_ascii_lowercase()) && !opcode.ends_with(':');
            if is_instruction {
                *counts.entry(opcode).or_default() += 1;
            }
        }
        let launch = &image.launch;
        writeln!(out, "{}: {} threads, {} bytes", image.entry, launch.block_threads, launch.dynamic_smem_bytes)
            .expect("memory");
        for (opcode, n) in counts {
            writeln!(out, "  {n:>5} {opcode}").expect("memory");
        }
    }
    out
}

#[test]
fn instructions_of_deepseek_r1() {
    if !is_pinned() {
        return;
    }
    insta::assert_snapshot!("decode", digest(&layer(&Layer::deepseek_r1(), &Schedules::for_rows(16)), "sm_90a"));
    insta::assert_snapshot!("prefill", digest(&layer(&Layer::deepseek_r1(), &Schedules::for_rows(128)), "sm_90a"));
    let mut products = layer(&Layer::deepseek_r1(), &Schedules::for_rows(128));
    products.kernels.retain(|k| k.name.starts_with("gemm"));
    insta::assert_snapshot!("tcgen05", digest(&products, "sm_100f"));
}

/// A kernel that starts before its predecessor is done must not touch memory until it has waited, and must not read
/// through the cache for constants what another kernel writes.
#[test]
fn no_kernel_touches_memory_before_its_predecessor_is_done() {
    let l = Layer { shared: 64, biases: true, groups: Some((4, 2)), ..Layer::small(DType::BF16) };
    let program = layer(&l, &Schedules::for_rows(16));
    for name in ["sm_90a", "sm_100f", "sm_120f"] {
        for image in emit(&program, target(name)).expect("emitted") {
            assert!(image.launch.programmatic);
            let (before, after) = image.ptx.split_once("griddepcontrol.wait").expect("a wait");
            assert!(before.contains("griddepcontrol.launch_dependents"), "{} for {name}", image.entry);
            for access in [".global", "cp.async"] {
                // Only the header names the space otherwise.
                let code = before.split_once('{').map_or("", |(_, code)| code);
                assert!(!code.contains(access), "{} for {name}: {access} before the wait", image.entry);
            }
            if image.entry == "combine" {
                assert!(!after.contains("ld.global.nc"), "{name}");
            }
        }
    }
    for image in emit(&program, target("sm_80")).expect("emitted") {
        assert!(!image.launch.programmatic && !image.ptx.contains("griddepcontrol"));
    }
}

#[test]
fn the_same_program_gives_the_same_bytes_on_any_number_of_threads() {
    let program = layer(&Layer::small(DType::BF16), &Schedules::for_rows(16));
    let program = common::fitted(&program, target("sm_100f"));
    let with = |threads| {
        emit_with(&program, target("sm_100f"), &EmitOptions { llvm_ir: true, threads, ..EmitOptions::default() })
            .expect("emitted")
    };
    let one = with(1);
    assert!((2..5).all(|n| with(n) == one));
    assert!(one.iter().all(|image| image.llvm_ir.as_ref().is_some_and(|ir| ir.contains("ptx_kernel"))));
}

#[test]
fn what_cannot_be_a_kernel_is_refused_by_name() {
    let program = layer(&Layer::small(DType::F64), &Schedules::for_rows(16));
    let error = emit(&program, target("sm_80")).expect_err("f64");
    assert_eq!(error.code, "element-type-not-on-gpu");
    let program = layer(&Layer::small(DType::BF16), &Schedules::for_rows(16));
    assert_eq!(emit(&program, target("cpu")).expect_err("no GPU").code, "not-a-gpu-target");
    // What is asked and not built is refused, not rounded.
    for name in ["sm_80", "sm_90a", "sm_100f", "sm_120f"] {
        let error = moec_nvptx::emit(&program, target(name)).expect_err("other schedules are nearest");
        assert!(error.code == "internal-error" && error.notes[0].contains("nearest that is built"), "{error:?}");
    }
    let wide = Layer { n_experts: 5000, ..Layer::small(DType::BF16) };
    let error = emit(&layer(&wide, &Schedules::for_rows(16)), target("sm_80")).expect_err("too wide");
    assert_eq!(error.code, "row-too-wide");
    // Each lane of a warp would keep thousands of bounds in registers, and LLVM does not come back.
    let many = Layer { n_experts: 1 << 20, ..Layer::small(DType::BF16) };
    let error = emit(&layer(&many, &Schedules::for_rows(16)), target("sm_90a")).expect_err("too many experts");
    assert!(error.code == "row-too-wide" && error.message.contains("1048576 experts"), "{error:?}");
}
