//! How fast the emulator is: lane instructions a second on scalar code, and a tensor-core tile step against a plain loop.
//!
//! `cargo bench -p moec-ptx` prints a table. Each figure is the best of several runs on one core.
#![allow(clippy::print_stdout)]

#[path = "../tests/common/mod.rs"]
mod common;

use std::hint::black_box;
use std::time::Instant;

use moec_ptx::ast::Module;
use moec_ptx::buffers::{Buffer, Buffers, Dtype};
use moec_ptx::exec::{Checks, Counters, Program};
use moec_ptx::launch::{Options, emulate};

/// Seconds of the fastest of `times` runs.
fn best(times: usize, mut run: impl FnMut()) -> f64 {
    let one = |run: &mut dyn FnMut()| {
        let started = Instant::now();
        run();
        started.elapsed().as_secs_f64()
    };
    (0..times).map(|_| one(&mut run)).fold(f64::INFINITY, f64::min)
}

fn scalar_kernel(body: &str) -> String {
    format!(
        ".version 8.0\n.target sm_90a\n.address_size 64\n.visible .entry k(.param .u64 o, .param .u32 n)\n{{\n\
         .reg .pred %p<4>;\n.reg .b32 %r<16>;\n.reg .b64 %rd<4>;\n.reg .f32 %f<16>;\n\
         mov.u32 %r1, %tid.x;\nld.param.u32 %r2, [n];\nmov.u32 %r3, 0;\nmov.u32 %r4, %r1;\ncvt.rn.f32.u32 %f1, %r1;\n\
         mov.f32 %f2, 0f3F800000;\nmov.f32 %f3, 0f3F7FFFFF;\nmov.u32 %r5, 12345;\n\
         LOOP:\n{body}\nadd.u32 %r3, %r3, 1;\nsetp.lt.u32 %p1, %r3, %r2;\n@%p1 bra LOOP;\n\
         ld.param.u64 %rd1, [o];\nmad.wide.u32 %rd1, %r1, 4, %rd1;\ncvt.rzi.u32.f32 %r6, %f2;\nadd.u32 %r6, %r6, %r4;\n\
         st.global.u32 [%rd1], %r6;\nret;\n}}\n"
    )
}

/// Lane instructions a second of a loop, on one core.
fn scalar(name: &str, body: &str, options: &Options) {
    let ptx = scalar_kernel(body);
    let json = r#"{"entry":"k","target":"sm_90a","grid":[1,1,1],"block":[128,1,1],
                   "params":[{"buffer":"o"},{"u32":20000}],"outputs":["o"]}"#;
    let buffers = Buffers::from([("o".to_string(), Buffer::zeros(Dtype::U32, 128))]);
    let mut lanes = 0;
    let seconds = best(5, || {
        let result = emulate(&ptx, json, &buffers, options).expect("the kernel should run");
        lanes = result.report.counters.lane_instructions;
    });
    println!("{name:<52} {:>9.1} million lane instructions a second", lanes as f64 / seconds / 1e6);
}

/// `c += a · bᵀ` of 128 × 128 × 64, f32, as one would write it.
fn triple_loop(a: &[f32], b: &[f32], c: &mut [f32]) {
    for i in 0..128 {
        for j in 0..128 {
            let mut sum = 0.0;
            for k in 0..64 {
                sum += a[i * 64 + k] * b[j * 64 + k];
            }
            c[i * 128 + j] += sum;
        }
    }
}

/// Repeats the tensor-core statements of a corpus kernel and takes the time of one 128×128×64 step.
fn tile_steps(options: &Options) {
    let steps = 200;
    let a: Vec<f32> = (0..128 * 64).map(|i| (i % 17) as f32 * 0.25).collect();
    let b: Vec<f32> = (0..128 * 64).map(|i| (i % 13) as f32 * 0.5).collect();
    let mut c = vec![0f32; 128 * 128];
    let plain = best(5, || {
        for _ in 0..steps {
            triple_loop(black_box(&a), black_box(&b), black_box(&mut c));
        }
    }) / f64::from(steps);
    println!("{:<52} {:>9.1} µs", "128x128x64 step, plain Rust f32 triple loop", plain * 1e6);
    for (name, ptx, json, smem) in [wgmma_step(), tcgen05_step(), mma_step()] {
        let buffers = Buffers::from([("o".to_string(), Buffer::zeros(Dtype::F32, 128 * 128))]);
        let run = |n: u32| {
            let json = json.replace("STEPS", &n.to_string()).replace("SMEM", &smem.to_string());
            best(5, || {
                emulate(&ptx, &json, &buffers, options).expect("the kernel should run");
            })
        };
        let (few, many) = (run(10), run(10 + 60));
        let step = (many - few) / 60.0;
        println!("{:<52} {:>9.1} µs   {:>5.2} times the loop", name, step * 1e6, step / plain);
    }
}

fn fill_shared(bytes: u32) -> String {
    // Every thread writes small bf16 numbers over its part of both tiles.
    format!(
        "mov.u32 %r1, %tid.x;\nmov.u32 %r2, dsm;\nshl.b32 %r3, %r1, 2;\nadd.u32 %r4, %r2, %r3;\nadd.u32 %r5, %r2, {bytes};\n\
         FILL:\nmov.u32 %r6, 0x3F803F00;\nst.shared.b32 [%r4], %r6;\nadd.u32 %r4, %r4, 512;\nsetp.lt.u32 %p1, %r4, %r5;\n@%p1 bra FILL;\n\
         fence.proxy.async.shared::cta;\nbar.sync 0;\n"
    )
}

type Step = (&'static str, String, String, u32);

fn recipe(target: &str) -> String {
    format!(
        r#"{{"entry":"k","target":"{target}","grid":[1,1,1],"block":[128,1,1],"dynamic_smem_bytes":SMEM,
            "params":[{{"buffer":"o"}},{{"u32":STEPS}}],"outputs":["o"]}}"#
    )
}

const HEAD: &str =
    ".visible .entry k(.param .u64 o, .param .u32 n)\n{\n.reg .pred %p<4>;\n.reg .b32 %r<400>;\n.reg .b64 %rd<16>;\n";

/// Two m64n128k16 × 4 of one warpgroup: 128 × 128 × 64.
fn wgmma_step() -> Step {
    let accumulator = |base: usize| (0..64).map(|i| format!("%r{}", base + i)).collect::<Vec<_>>().join(",");
    let mut body = String::new();
    for half in 0..2 {
        for k in 0..4 {
            body.push_str(&format!(
                "add.s64 %rd6, %rd2, {};\nadd.s64 %rd7, %rd3, {};\n\
                 wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {{{}}}, %rd6, %rd7, 1, 1, 1, 0, 0;\n",
                half * 512 + k * 2,
                k * 2,
                accumulator(100 + 64 * half)
            ));
        }
    }
    let zero: String = (100..228).map(|i| format!("mov.b32 %r{i}, 0;\n")).collect();
    let ptx = format!(
        ".version 8.0\n.target sm_90a\n.address_size 64\n.extern .shared .align 1024 .b8 dsm[];\n{HEAD}{}{zero}\
         shr.u32 %r7, %r2, 4;\nand.b32 %r7, %r7, 0x3fff;\ncvt.u64.u32 %rd2, %r7;\nmov.u64 %rd4, 0x4000004000010000;\nor.b64 %rd2, %rd2, %rd4;\n\
         add.s64 %rd3, %rd2, 1024;\nmov.u32 %r8, 0;\nld.param.u32 %r9, [n];\n\
         LOOP:\nwgmma.fence.sync.aligned;\n{body}wgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 0;\n\
         add.u32 %r8, %r8, 1;\nsetp.lt.u32 %p1, %r8, %r9;\n@%p1 bra LOOP;\n\
         ld.param.u64 %rd1, [o];\nmad.wide.u32 %rd1, %r1, 4, %rd1;\nst.global.b32 [%rd1], %r100;\nst.global.b32 [%rd1+512], %r164;\nret;\n}}\n",
        fill_shared(32768)
    );
    ("128x128x64 step, wgmma bf16", ptx, recipe("sm_90a"), 32768)
}

fn tcgen05_step() -> Step {
    let mut body = String::new();
    for k in 0..4 {
        body.push_str(&format!(
            "add.s64 %rd6, %rd2, {0};\nadd.s64 %rd7, %rd3, {0};\n@%p2 tcgen05.mma.cta_group::1.kind::f16 [%r10], %rd6, %rd7, %r11, %p3;\n",
            k * 2
        ));
    }
    let ptx = format!(
        ".version 8.6\n.target sm_100a\n.address_size 64\n.extern .shared .align 1024 .b8 dsm[];\n{HEAD}\
         .shared .align 8 .b8 bar[8];\n.shared .align 4 .b8 slot[4];\n{fill}\
         shr.u32 %r12, %r1, 5;\nsetp.eq.u32 %p1, %r12, 0;\n@%p1 tcgen05.alloc.cta_group::1.sync.aligned.shared::cta.b32 [slot], 128;\n\
         @%p1 tcgen05.relinquish_alloc_permit.cta_group::1.sync.aligned;\n\
         setp.eq.u32 %p2, %r1, 0;\n@%p2 mbarrier.init.shared::cta.b64 [bar], 1;\nbar.sync 0;\nld.shared.b32 %r10, [slot];\n\
         shr.u32 %r7, %r2, 4;\ncvt.u64.u32 %rd2, %r7;\nmov.u64 %rd4, 0x4000404000010000;\nor.b64 %rd2, %rd2, %rd4;\n\
         add.s64 %rd3, %rd2, 1024;\nmov.u32 %r8, 0;\nld.param.u32 %r9, [n];\nmov.u32 %r11, 0x08200490;\nsetp.ne.u32 %p3, 0, 0;\nmov.u32 %r13, 0;\n\
         LOOP:\n{body}setp.eq.u32 %p3, 0, 0;\n@%p2 tcgen05.commit.cta_group::1.mbarrier::arrive::one.shared::cluster.b64 [bar];\n\
         WAIT:\nmbarrier.try_wait.parity.shared::cta.b64 %p1, [bar], %r13;\n@!%p1 bra WAIT;\nxor.b32 %r13, %r13, 1;\n\
         add.u32 %r8, %r8, 1;\nsetp.lt.u32 %p1, %r8, %r9;\n@%p1 bra LOOP;\n\
         tcgen05.fence::after_thread_sync;\nshl.b32 %r14, %r12, 21;\nadd.u32 %r14, %r14, %r10;\n\
         tcgen05.ld.sync.aligned.32x32b.x1.b32 {{%r15}}, [%r14];\ntcgen05.wait::ld.sync.aligned;\n\
         ld.param.u64 %rd1, [o];\nmad.wide.u32 %rd1, %r1, 4, %rd1;\nst.global.b32 [%rd1], %r15;\nbar.sync 0;\n\
         setp.eq.u32 %p1, %r12, 0;\n@%p1 tcgen05.dealloc.cta_group::1.sync.aligned.b32 %r10, 128;\nret;\n}}\n",
        fill = fill_shared(32768)
    );
    ("128x128x64 step, tcgen05 bf16", ptx, recipe("sm_100a"), 32768)
}

/// Four warps, each 32 rows: 2 × 16 × 4 of m16n8k16.
fn mma_step() -> Step {
    let mut body = String::new();
    for k in 0..4 {
        for m in 0..2 {
            for n in 0..16 {
                let c = 100 + (m * 16 + n) * 4;
                body.push_str(&format!(
                    "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {{%r{c},%r{},%r{},%r{}}}, {{%r{a},%r{a},%r{a},%r{a}}}, {{%r{b},%r{b}}}, {{%r{c},%r{},%r{},%r{}}};\n",
                    c + 1, c + 2, c + 3, c + 1, c + 2, c + 3,
                    a = 20 + k * 2 + m,
                    b = 30 + k * 16 + n
                ));
            }
        }
    }
    let zero: String = (100..228).map(|i| format!("mov.b32 %r{i}, 0;\n")).collect();
    let operands: String = (20..100).map(|i| format!("mov.b32 %r{i}, 0x3F803F00;\n")).collect();
    let ptx = format!(
        ".version 8.0\n.target sm_80\n.address_size 64\n{HEAD}mov.u32 %r1, %tid.x;\n{zero}{operands}mov.u32 %r8, 0;\nld.param.u32 %r9, [n];\n\
         LOOP:\n{body}add.u32 %r8, %r8, 1;\nsetp.lt.u32 %p1, %r8, %r9;\n@%p1 bra LOOP;\n\
         ld.param.u64 %rd1, [o];\nmad.wide.u32 %rd1, %r1, 4, %rd1;\nst.global.b32 [%rd1], %r100;\nst.global.b32 [%rd1+512], %r227;\nret;\n}}\n"
    );
    ("128x128x64 step, mma.sync bf16", ptx, recipe("sm_80"), 0)
}

/// Where the time of the whole corpus goes: reading text, lowering, executing; and what is executed.
fn corpus(label: &str, options: &Options) {
    let mut phases = [("parse", 0.0), ("lower", 0.0), ("place buffers, execute, read results", 0.0)];
    let mut counters = Counters::default();
    for name in common::entry_names() {
        let entry = common::entry(&name);
        let times = [0, 1, 2].map(|phase| {
            best(2, || match phase {
                0 => drop(Module::parse(&entry.ptx)),
                1 => drop(Module::parse(&entry.ptx).map(|module| Program::compile(&module, &entry.launch.entry))),
                _ => {
                    if let Ok(result) = emulate(&entry.ptx, &entry.launch_json, &entry.buffers, options) {
                        counters.add(&result.report.counters);
                    }
                }
            })
        });
        phases[0].1 += times[0];
        phases[1].1 += times[1] - times[0];
        phases[2].1 += times[2] - times[1];
    }
    let total: f64 = phases.iter().map(|(_, seconds)| seconds).sum();
    println!("the whole corpus, {label}: {total:.2} s");
    for (phase, seconds) in phases {
        println!("  {phase:<50} {:>9.1} ms {:>5.1} %", seconds * 1e3, 100.0 * seconds / total);
    }
    println!("  warp instructions by class, both runs together:");
    let all: u64 = counters.by_class.values().sum();
    let mut classes: Vec<_> = counters.by_class.iter().collect();
    classes.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
    for (class, count) in classes {
        println!("    {:<48} {count:>12} {:>5.1} %", format!("{class:?}"), 100.0 * *count as f64 / all as f64);
    }
}

fn main() {
    // `cargo test --benches` passes `--test`: one quick pass that shows that the benchmark still works.
    let quick = std::env::args().any(|argument| argument == "--test");
    let fast = Options { checks: Checks::NONE, threads: 1, ..Options::default() };
    let checked = Options { threads: 1, ..Options::default() };
    let uncounted = Options { counters: false, ..checked.clone() };
    for (label, options) in [("no checks", &fast), ("all checks", &checked), ("all checks, no counters", &uncounted)] {
        println!("{label}, one core");
        scalar(
            "  integer multiply-add, xor",
            "mad.lo.u32 %r4, %r4, %r5, %r3;\nxor.b32 %r4, %r4, %r1;\nshl.b32 %r7, %r4, 3;\nadd.u32 %r4, %r4, %r7;",
            options,
        );
        scalar(
            "  f32 fused multiply-add",
            "fma.rn.f32 %f2, %f2, %f3, %f1;\nfma.rn.f32 %f4, %f2, %f3, %f1;\nfma.rn.f32 %f5, %f4, %f3, %f2;\nadd.f32 %f2, %f2, %f5;",
            options,
        );
        tile_steps(options);
        if quick {
            return;
        }
    }
    corpus("all checks", &checked);
    corpus("all checks, no counters", &uncounted);
}
