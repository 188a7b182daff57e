//! Correct kernels with one thing taken out or turned: the emulator must report a finding, or the result must be wrong.
//!
//! Prints a table and writes it to `target/ptx-reports/mutants.md`.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod common;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex};

use libtest_mimic::{Arguments, Failed, Trial};
use moec_ptx::buffers;
use moec_ptx::exec::Schedule;
use moec_ptx::launch::{EmulateError, Options, emulate_launch};

/// A change of the PTX text. Occurrences count from 0.
enum Edit {
    /// Takes out the n-th statement that contains the text.
    Remove(&'static str, usize),
    /// Takes out every statement that contains the text.
    RemoveAll(&'static str),
    /// Replaces the n-th occurrence of a text.
    Replace(&'static str, usize, &'static str),
}
use Edit::{Remove, RemoveAll, Replace};

struct Mutant {
    kernel: &'static str,
    what: &'static str,
    edit: Edit,
}

const fn mutant(kernel: &'static str, what: &'static str, edit: Edit) -> Mutant {
    Mutant { kernel, what, edit }
}

const MUTANTS: &[Mutant] = &[
    // Bulk copies and their barrier.
    mutant("nvcc_bulk_copy_sm90", "no proxy fence before the bulk store", Remove("fence.proxy.async.shared::cta", 0)),
    mutant("nvcc_bulk_copy_sm90", "no barrier before the bulk store", Remove("bar.sync", 1)),
    mutant("nvcc_bulk_copy_sm90", "no barrier after mbarrier.init", Remove("bar.sync", 0)),
    mutant("nvcc_bulk_copy_sm90", "no expect_tx", Remove("mbarrier.arrive.expect_tx", 0)),
    mutant("nvcc_bulk_copy_sm90", "no mbarrier.init", Remove("mbarrier.init", 0)),
    mutant("nvcc_bulk_copy_sm90", "half as many bytes copied as expected", Replace("[%rd4], 2048", 0, "[%rd4], 1024")),
    mutant(
        "nvcc_bulk_copy_sm90",
        "waits for the other parity",
        Replace("b64 p, [%r28], %r29;", 0, "b64 p, [%r28], 1;"),
    ),
    mutant("nvcc_bulk_copy_sm90", "no commit of the bulk store", Remove("cp.async.bulk.commit_group", 0)),
    // Tensor maps.
    mutant(
        "nvcc_tma_tile_128B_sm90",
        "waits for the other parity",
        Replace("b64 p, [%r23], %r24;", 0, "b64 p, [%r23], 1;"),
    ),
    mutant("nvcc_tma_tile_128B_sm90", "no expect_tx", Remove("mbarrier.arrive.expect_tx", 0)),
    mutant(
        "nvcc_tma_reduce_sm90",
        "no proxy fence before the tensor reduction",
        Remove("fence.proxy.async.shared::cta", 0),
    ),
    mutant("nvcc_tma_reduce_sm90", "no barrier before the tensor reduction", Remove("bar.sync", 0)),
    mutant("nvcc_tma_multicast_sm90", "no cluster barrier before the multicast", Remove("barrier.cluster.wait", 0)),
    mutant(
        "nvcc_tma_multicast_sm90",
        "no cluster barrier at all before the multicast",
        Replace("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;", 0, ""),
    ),
    mutant("nvcc_tma_multicast_sm90", "no expect_tx", Remove("mbarrier.arrive.expect_tx", 0)),
    mutant(
        "triton_tma_gather4_sm100",
        "expects twice the bytes",
        Replace("b64 _, [%r1], 4096", 0, "b64 _, [%r1], 8192"),
    ),
    mutant(
        "triton_tma_gather4_sm100",
        "expects half the bytes",
        Replace("b64 _, [%r1], 4096", 0, "b64 _, [%r1], 2048"),
    ),
    mutant("triton_device_tensor_maps_sm90", "no tensor-map fence", Remove("fence.proxy.tensormap", 0)),
    // Clusters.
    mutant(
        "nvcc_cluster_ptx_sm90",
        "no cluster barrier after mbarrier.init",
        Replace("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;", 0, ""),
    ),
    mutant("nvcc_cluster_ptx_sm90", "no remote arrival", Remove("mbarrier.arrive.release.cluster.shared::cluster", 0)),
    mutant("nvcc_cluster_ptx_sm90", "no local arrival", Remove("mbarrier.arrive.shared::cta.b64 _, [%r35]", 0)),
    mutant("nvcc_cluster_ptx_sm90", "no expect_tx for the copy between CTAs", Remove("mbarrier.arrive.expect_tx", 0)),
    mutant("nvcc_cluster_ptx_sm90", "no expect_tx for st.async", Remove("mbarrier.arrive.expect_tx", 1)),
    mutant(
        "nvcc_cluster_ptx_sm90",
        "no proxy fence before the copy between CTAs",
        Remove("fence.proxy.async.shared::cta", 0),
    ),
    mutant(
        "nvcc_cluster_ptx_sm90",
        "leaves while the peer still reads",
        Replace("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;", 1, ""),
    ),
    mutant("nvcc_dsmem_hist_sm90", "no cluster barrier after clearing", Replace("barrier.cluster.wait;", 0, "")),
    mutant("nvcc_dsmem_hist_sm90", "no cluster wait before reading", Replace("barrier.cluster.wait;", 1, "")),
    mutant("nvcc_dsmem_hist_sm90", "leaves while the peer still reads", Replace("barrier.cluster.wait;", 2, "")),
    // cp.async.
    mutant("nvcc_cp_async_mbar_sm90", "no arrival of the copies", Remove("cp.async.mbarrier.arrive", 0)),
    mutant("nvcc_cp_async_mbar_sm90", "no barrier after mbarrier.init", Remove("bar.sync", 0)),
    mutant(
        "triton_matmul_bf16_tn_sm80",
        "waits for one group too few",
        Replace("cp.async.wait_group \t2", 0, "cp.async.wait_group 4"),
    ),
    mutant("triton_matmul_bf16_tn_sm80", "no barrier after the wait", Remove("bar.sync", 0)),
    mutant(
        "triton_matmul_bf16_tn_sm80",
        "no wait in the loop",
        Replace("cp.async.wait_group \t2;\n\tcp.async.wait_group \t2;", 0, ""),
    ),
    mutant("triton_matmul_bf16_tn_sm80", "no barrier before a stage is overwritten", Remove("bar.sync", 2)),
    // Barriers.
    mutant("nvcc_named_bar_sm90", "no named barrier between two warps", Remove("bar.sync 1, 64", 0)),
    mutant("nvcc_named_bar_sm90", "no arrival at a named barrier", Remove("bar.arrive 2", 0)),
    mutant("nvcc_named_bar_sm90", "another barrier", Replace("bar.sync 2, 128", 0, "bar.sync 4, 128")),
    mutant("nvcc_mma_ldmatrix_sm90", "no barrier before ldmatrix", Remove("bar.sync", 0)),
    mutant("nvcc_mma_ldmatrix_sm90", "no barrier before the tile is overwritten", Remove("bar.sync", 1)),
    mutant("triton_reduce_atomic_sm90", "no barrier between the warps of a reduction", Remove("bar.sync", 0)),
    mutant("triton_reduce_atomic_sm90", "no barrier between the warps of the second reduction", Remove("bar.sync", 3)),
    mutant("triton_softmax_sm90", "no barrier in the row sum", Remove("bar.sync", 0)),
    mutant("nvcc_cuda_barrier_sm90", "no arrival of the consumers", Remove("mbarrier.arrive.shared::cta", 3)),
    mutant(
        "nvcc_cuda_barrier_sm90",
        "more arrivals expected than come",
        Replace("mov.u32 \t%r21, 128", 0, "mov.u32 \t%r21, 160"),
    ),
    // wgmma.
    mutant("triton_gluon_wgmma_f16_reg_sm90", "no wgmma.wait_group", Remove("wgmma.wait_group", 0)),
    mutant("triton_gluon_wgmma_f16_reg_sm90", "no wgmma.fence", Remove("wgmma.fence", 0)),
    mutant("triton_gluon_wgmma_f16_reg_sm90", "no commit", Remove("wgmma.commit_group", 0)),
    mutant(
        "triton_gluon_wgmma_f16_reg_sm90",
        "no proxy fence before wgmma",
        Remove("fence.proxy.async.shared::cta", 0),
    ),
    mutant("triton_gluon_wgmma_f16_reg_sm90", "no barrier before wgmma", Remove("bar.sync", 0)),
    mutant(
        "triton_gluon_wgmma_f16_reg_sm90",
        "a bit of the descriptor's stride",
        Replace("4611686293305294848", 0, "4611686289010327552"),
    ),
    mutant(
        "triton_gluon_wgmma_f16_reg_sm90",
        "a bit of the descriptor's swizzle",
        Replace("4611686293305294848", 1, "13835058330159458304"),
    ),
    mutant(
        "triton_gluon_wgmma_f16_reg_sm90",
        "B read as not transposed",
        Replace("%rd10, %p1, 1, 1, 1", 0, "%rd10, %p1, 1, 1, 0"),
    ),
    mutant("triton_matmul_tma_bf16_tn_sm90", "expects half the bytes", Replace("[%r6], 32768", 0, "[%r6], 16384")),
    mutant(
        "triton_attention_tma_sm90",
        "lets one wgmma group too many run on",
        Replace("wgmma.wait_group.sync.aligned 0", 0, "wgmma.wait_group.sync.aligned 1"),
    ),
    mutant(
        "triton_matmul_tma_bf16_tn_sm90",
        "no wait for the last wgmma",
        Remove("wgmma.wait_group.sync.aligned 0", 0),
    ),
    mutant(
        "triton_matmul_tma_bf16_tn_sm90",
        "waits for the other parity",
        Replace("b64 complete, [%r27], %r153", 0, "b64 complete, [%r27], 1"),
    ),
    mutant(
        "triton_matmul_tma_bf16_tn_sm90",
        "no proxy fence before the store",
        Remove("fence.proxy.async.shared::cta", 0),
    ),
    // Tensor memory.
    mutant("triton_gluon_tmem_32x32b_sm100", "no dealloc", Remove("tcgen05.dealloc", 0)),
    mutant(
        "triton_gluon_tmem_32x32b_sm100",
        "dealloc of half the columns",
        Replace("b32 %r165, 32", 0, "b32 %r165, 64"),
    ),
    mutant(
        "triton_gluon_tmem_32x32b_sm100",
        "no tcgen05.wait::ld before the values are used",
        Remove("tcgen05.wait::ld", 0),
    ),
    mutant("triton_gluon_tmem_32x32b_sm100", "no tcgen05.wait::st", Remove("tcgen05.wait::st", 0)),
    mutant("triton_gluon_tmem_32x32b_sm100", "no commit", Remove("tcgen05.commit", 0)),
    mutant(
        "triton_gluon_tmem_32x32b_sm100",
        "no proxy fence before the mma",
        Remove("fence.proxy.async.shared::cta", 0),
    ),
    mutant(
        "triton_gluon_tmem_32x32b_sm100",
        "waits for the other parity",
        Replace("mov.b32 \t%r67, 0", 0, "mov.b32 \t%r67, 1"),
    ),
    mutant(
        "triton_gluon_tmem_32x32b_sm100",
        "a bit of the instruction descriptor's N",
        Replace("134742032", 0, "134610960"),
    ),
    mutant(
        "triton_gluon_tmem_32x32b_sm100",
        "a bit of the instruction descriptor's types",
        Replace("134742032", 0, "134742160"),
    ),
    mutant(
        "triton_gluon_tmem_32x32b_sm100",
        "a bit of the shared-memory descriptor's swizzle",
        Replace("mov.b32 \t%r59, 1073758272", 0, "mov.b32 \t%r59, -2147467200"),
    ),
    mutant(
        "triton_gluon_tmem_32x32b_sm100",
        "a bit of the shared-memory descriptor's stride",
        Replace("mov.b32 \t%r59, 1073758272", 0, "mov.b32 \t%r59, 1073758273"),
    ),
    mutant(
        "triton_gluon_tmem_32x32b_sm100",
        "k advances by half a step",
        Replace("add.s32 \t%r60, %r56, 2", 0, "add.s32 \t%r60, %r56, 1"),
    ),
    mutant(
        "triton_gluon_tmem_32x32b_sm100",
        "the first product adds to what nobody wrote",
        Replace("mov.pred \t%p6, 0", 0, "mov.pred \t%p6, -1"),
    ),
    mutant("triton_gluon_tmem_32x32b_sm100", "no barrier between the loads of warps", Remove("bar.sync", 2)),
    mutant(
        "triton_gluon_mma_pair_bf16_sm100",
        "no cluster barrier before the product",
        Replace(
            "barrier.cluster.arrive.aligned;\n\tbarrier.cluster.wait.aligned;\n\tfence.proxy.async.shared::cluster;",
            0,
            "fence.proxy.async.shared::cluster;",
        ),
    ),
    mutant(
        "triton_gluon_mma_pair_bf16_sm100",
        "commits to the first CTA only",
        Replace("mov.b16 \t%rs4, 3", 0, "mov.b16 \t%rs4, 1"),
    ),
    mutant("triton_dot_scaled_mxfp8_sm100", "no wait for cp.async", Remove("cp.async.wait_group", 0)),
    // Launch control and roles.
    mutant("nvcc_clc_steal_sm100", "no expect_tx for the answer", Remove("mbarrier.arrive.expect_tx", 0)),
    mutant(
        "triton_matmul_roles_f16_sm100",
        "the epilogue does not hand the accumulator back",
        Remove("mbarrier.arrive.shared::cta.b64 _, [%r301]", 0),
    ),
    mutant(
        "triton_matmul_roles_f16_sm100",
        "no proxy fence before the store",
        Remove("fence.proxy.async.shared::cta", 0),
    ),
    mutant(
        "nvcc_scaled_mxfp4_mxfp8_pair_sm100",
        "no expect_tx for the answer in each CTA",
        Remove("mbarrier.arrive.expect_tx.shared::cluster", 0),
    ),
    mutant(
        "nvcc_scaled_mxfp4_mxfp8_sm120",
        "codes of e2m1 stay in the lowest bits",
        Replace("shl.b32 \t%r", 0, "add.s32 \t%r"),
    ),
    // Fences of tensor memory around thread synchronisation.
    mutant(
        "nvcc_scaled_mxfp4_sm100",
        "no tcgen05.fence after the accumulator is complete",
        Remove("tcgen05.fence::after_thread_sync", 3),
    ),
    mutant(
        "nvcc_scaled_nvfp4_sm100",
        "no tcgen05.fence after the accumulator is complete",
        Remove("tcgen05.fence::after_thread_sync", 3),
    ),
    mutant(
        "nvcc_scaled_mxfp4_mxfp8_pair_sm100",
        "no tcgen05.fence before the accumulator is given back",
        Remove("tcgen05.fence::before_thread_sync", 1),
    ),
    mutant("nvcc_scaled_mxfp4_mxfp8_pair_sm100", "no tcgen05.fence at all", RemoveAll("tcgen05.fence")),
    // Exit.
    mutant("nvcc_bulk_copy_sm100", "leaves without cp.async.bulk.wait_group", RemoveAll("cp.async.bulk.wait_group")),
    mutant("triton_gluon_tmem_32x32b_sm100", "no tcgen05.wait::ld at all", RemoveAll("tcgen05.wait::ld")),
    // Pairs of CTAs.
    mutant(
        "triton_gluon_pair_tma_sm100",
        "a copy of one CTA counts at the leader's barrier",
        Replace("tensor.2d.cta_group::2.shared::cluster", 0, "tensor.2d.shared::cluster"),
    ),
    mutant(
        "nvcc_scaled_mxfp4_mxfp8_pair_sm100",
        "scale factors for one CTA only",
        Replace("tcgen05.cp.cta_group::2", 0, "tcgen05.cp.cta_group::1"),
    ),
    mutant(
        "nvcc_scaled_mxfp4_mxfp8_pair_sm100",
        "no commit that frees the stage in both CTAs",
        Replace(".multicast::cluster.b64 [%r68], %rs1", 0, ".b64 [%r68]"),
    ),
];

const SCHEDULES: [Schedule; 5] =
    [Schedule::RoundRobin, Schedule::Random(1), Schedule::Random(2), Schedule::Random(3), Schedule::Random(4)];

/// Far above what the kernels here take; a mutant that spins for ever ends here.
const INSTRUCTION_LIMIT: u64 = 3_000_000;

fn apply(ptx: &str, edit: &Edit) -> Option<String> {
    let (pattern, nth) = match edit {
        RemoveAll(pattern) => {
            let mut text = apply(ptx, &Remove(pattern, 0))?;
            while let Some(less) = apply(&text, &Remove(pattern, 0)) {
                text = less;
            }
            return Some(text);
        }
        Remove(pattern, nth) | Replace(pattern, nth, _) => (*pattern, *nth),
    };
    let (at, _) = ptx.match_indices(pattern).nth(nth)?;
    let (from, to, with) = match edit {
        Replace(_, _, with) => (at, at + pattern.len(), *with),
        Remove(..) | RemoveAll(_) => {
            let from = ptx[..at].rfind([';', '{', '\n']).map_or(0, |end| end + 1);
            (from, at + ptx[at..].find(';')? + 1, "")
        }
    };
    Some(format!("{}{with}{}", &ptx[..from], &ptx[to..]))
}

/// How a mutant shows under one schedule; `None` when it does not, an error when it cannot be run.
fn shows(entry: &common::Entry, ptx: &str, schedule: Schedule) -> Result<Option<String>, String> {
    let options = Options { schedule, instruction_limit: INSTRUCTION_LIMIT, ..Options::default() };
    let result = match emulate_launch(ptx, &entry.launch, &entry.buffers, &options) {
        Ok(result) => result,
        Err(EmulateError::Exec(error)) => {
            return Ok(Some(error.to_string().lines().next().unwrap_or_default().to_string()));
        }
        Err(error) => return Err(error.to_string()),
    };
    if let Some(finding) = result.report.findings.first() {
        return Ok(Some(format!("{}: {} (line {})", finding.check, finding.message, finding.line)));
    }
    for name in &entry.launch.outputs {
        let tolerance = entry.launch.tolerance.get(name).copied().unwrap_or(0.0);
        match buffers::compare(&result.outputs[name], &entry.expected[name]) {
            Ok(difference) if difference.within(tolerance) => {}
            Ok(difference) => return Ok(Some(format!("wrong result: `{name}` is off by {:.1e}", difference.rel_fro))),
            Err(error) => return Err(error.to_string()),
        }
    }
    // What machines put up with.
    Ok(result.report.notes.first().map(|note| format!("note: {}: {} (line {})", note.check, note.message, note.line)))
}

type Table = Arc<Mutex<BTreeMap<usize, String>>>;

fn run(index: usize, table: &Table) -> Result<(), Failed> {
    let mutant = &MUTANTS[index];
    let entry = common::entry(mutant.kernel);
    let ptx = apply(&entry.ptx, &mutant.edit).ok_or("the text to change is not in the kernel")?;
    let mut found = None;
    for schedule in SCHEDULES {
        if let Some(how) = shows(&entry, &ptx, schedule)? {
            found = Some(format!("{how} [{schedule:?}]"));
            break;
        }
    }
    let text = found.clone().unwrap_or_else(|| "NOT NOTICED".to_string());
    if let Ok(mut rows) = table.lock() {
        rows.insert(index, text);
    }
    if found.is_some() { Ok(()) } else { Err("neither a finding nor a wrong result under any schedule".into()) }
}

fn main() {
    assert!(MUTANTS.len() >= 40);
    let arguments = Arguments::from_args();
    let table = Table::default();
    let trials = (0..MUTANTS.len())
        .map(|index| {
            let table = Arc::clone(&table);
            let name = format!("{}: {}", MUTANTS[index].kernel, MUTANTS[index].what);
            Trial::test(name, move || run(index, &table))
        })
        .collect();
    let conclusion = libtest_mimic::run(&arguments, trials);
    let rows = table.lock().expect("no trial should panic while it writes its row");
    if !arguments.list && !rows.is_empty() {
        let mut out = String::from("| kernel | change | noticed by |\n|---|---|---|\n");
        for (index, how) in rows.iter() {
            let mutant = &MUTANTS[*index];
            let _ = writeln!(out, "| `{}` | {} | {} |", mutant.kernel, mutant.what, how.replace('|', "\\|"));
        }
        let noticed = rows.values().filter(|how| *how != "NOT NOTICED").count();
        println!("\n{out}\n{noticed} of {} mutants noticed", rows.len());
        if arguments.filter.is_none() {
            let text = format!("# Mutants of correct kernels\n\n{noticed} of {} are noticed.\n\n{out}", rows.len());
            let path = common::report_folder().join("mutants.md");
            std::fs::write(&path, text).expect("the report folder should be writable");
        }
    }
    conclusion.exit();
}
