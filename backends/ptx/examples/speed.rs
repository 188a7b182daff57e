//! How long the emulator takes for whole kernels, all checks on: `cargo run --release -p moec-ptx --example speed [CASE] [RUNS]`.
//!
//! `gemm` is the corpus kernel `triton_matmul_tma_bf16_tn_sm100` (TMA, `tcgen05`) at 1024 x 1024 x 1024, `moe` the fused-MoE kernel
//! `triton_moe_bf16_wide_sm80` (`cp.async`, `mma.sync`) ten times, `scalar` a loop of integer instructions. Each run prints its seconds,
//! so that two builds can be run in turn; the last line says the median and the most memory that the process held.
#![allow(clippy::print_stdout, clippy::unwrap_used)]

use moec_ptx::buffers::{self, Buffer, Buffers, Dtype};
use moec_ptx::launch::{Options, emulate};
use std::path::Path;
use std::time::Instant;

type Case = (String, String, Buffers);

fn main() {
    let mut args = std::env::args().skip(1);
    let (name, runs) = (args.next().unwrap_or("gemm".into()), args.next().map_or(5, |n| n.parse().unwrap()));
    let ((ptx, recipe, input), times) = match name.as_str() {
        "gemm" => (gemm(), 1),
        "moe" => (entry("triton_moe_bf16_wide_sm80"), 10),
        "scalar" => (scalar(), 1),
        other => (entry(other), 1),
    };
    let options = Options { threads: 1, ..Options::default() };
    let mut seconds: Vec<f64> = (0..runs)
        .map(|_| {
            let start = Instant::now();
            for _ in 0..times {
                let result = emulate(&ptx, &recipe, &input, &options).unwrap();
                assert!(result.report.findings.is_empty(), "{}", result.report.findings[0]);
            }
            let seconds = start.elapsed().as_secs_f64();
            println!("{name} {seconds:.3}");
            seconds
        })
        .collect();
    seconds.sort_by(f64::total_cmp);
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let most = status.lines().find(|l| l.starts_with("VmHWM")).unwrap_or("VmHWM: unknown");
    println!(
        "{name}: median {:.3} s of {runs}, {}",
        seconds[seconds.len() / 2],
        most.split_whitespace().collect::<Vec<_>>().join(" ")
    );
}

fn entry(name: &str) -> Case {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name);
    let text = |file: &str| std::fs::read_to_string(dir.join(file)).unwrap();
    let input = buffers::read(&std::fs::read(dir.join("buffers.safetensors")).unwrap()).unwrap();
    (text("kernel.ptx"), text("launch.json"), input)
}

/// The corpus kernel takes its sizes from its arguments: a grid of 8 by 8 tiles of 128 by 128.
fn gemm() -> Case {
    let (ptx, recipe, _) = entry("triton_matmul_tma_bf16_tn_sm100");
    let mut launch: serde_json::Value = serde_json::from_str(&recipe).unwrap();
    launch["grid"] = serde_json::json!([8, 8, 1]);
    for param in launch["params"].as_array_mut().unwrap() {
        if let Some(map) = param.get_mut("tensor_map") {
            map["dims"] = serde_json::json!([1024, 1024]);
            map["strides_bytes"] = serde_json::json!([2048]);
        }
        for (kind, value) in param.as_object_mut().unwrap() {
            if kind == "i32" || (kind == "u64" && *value != 1) {
                *value = 1024.into();
            }
        }
    }
    // Small integers, of which sums are exact.
    let matrix = |step: usize| Buffer {
        dtype: Dtype::BF16,
        shape: vec![1024, 1024],
        bytes: (0..1 << 20).flat_map(|i| [0x3f80u16, 0x4000, 0, 0xbf80][(i / step + i) % 4].to_le_bytes()).collect(),
    };
    let zeros = Buffer { bytes: vec![0; 2 << 20], ..matrix(1) };
    let input = Buffers::from([("a".into(), matrix(1021)), ("b".into(), matrix(37)), ("c".into(), zeros)]);
    (ptx, launch.to_string(), input)
}

fn scalar() -> Case {
    let body = "mad.lo.u32 %r4, %r4, %r5, %r3;\nxor.b32 %r4, %r4, %r1;\nshl.b32 %r7, %r4, 3;\nadd.u32 %r4, %r4, %r7;\n";
    let ptx = format!(
        ".version 8.0\n.target sm_90a\n.address_size 64\n.visible .entry k(.param .u64 o)\n{{\n.reg .pred %p<2>;\n.reg .b32 %r<8>;\n\
         .reg .b64 %rd<2>;\nmov.u32 %r1, %tid.x;\nmov.u32 %r3, 0;\nmov.u32 %r4, %r1;\nmov.u32 %r5, 12345;\nLOOP:\n{body}\
         add.u32 %r3, %r3, 1;\nsetp.lt.u32 %p1, %r3, 200000;\n@%p1 bra LOOP;\nld.param.u64 %rd1, [o];\n\
         mad.wide.u32 %rd1, %r1, 4, %rd1;\nst.global.u32 [%rd1], %r4;\nret;\n}}\n"
    );
    let recipe =
        r#"{"entry":"k","target":"sm_90a","grid":[1,1,1],"block":[128,1,1],"params":[{"buffer":"o"}],"outputs":["o"]}"#;
    (ptx, recipe.to_string(), Buffers::from([("o".to_string(), Buffer::zeros(Dtype::U32, 128))]))
}
