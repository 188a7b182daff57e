//! Small kernels for forms that the corpus lacks, against formulas written from the manual.

use crate::ast::Module;
use crate::exec::{Check, Device, Launch, Options, Param, Program, Report, Schedule, Target};
use crate::numeric::half;
use crate::tensor::swizzle::Swizzle;
use crate::tensor::tensormap::{MapElem, TensorMap};

struct Run {
    out: Vec<u32>,
    report: Report,
}

/// Runs `ptx` with `src` and `out` as the first two parameters, in every schedule, and returns the last run.
fn run(ptx: &str, target: &str, cluster: u32, src: &[u8], out_words: usize, params: impl Fn(u64) -> Vec<Param>) -> Run {
    let module = Module::parse(ptx).unwrap_or_else(|e| panic!("{e}\n{ptx}"));
    let program = Program::compile(&module, "k").unwrap_or_else(|e| panic!("{e}"));
    let mut last = None;
    for schedule in [Schedule::RoundRobin, Schedule::Random(1), Schedule::Random(4)] {
        let mut device = Device::new(Target::parse(target).unwrap());
        let from = device.alloc(src.len().max(16) as u64).unwrap();
        device.upload(from, src).unwrap();
        let to = device.alloc(out_words as u64 * 4).unwrap();
        device.upload(to, &vec![0xee; out_words * 4]).unwrap();
        let mut all = vec![Param::U64(from), Param::U64(to)];
        all.extend(params(from));
        let launch = Launch {
            grid: [cluster, 1, 1],
            block: [128, 1, 1],
            cluster: [cluster, 1, 1],
            dynamic_smem_bytes: 65536,
            params: all,
        };
        let options = Options { schedule, instruction_limit: 10_000_000, ..Options::default() };
        let report = device.launch(&program, &launch, &options).unwrap_or_else(|e| panic!("{e}"));
        let bytes = device.download(to, out_words * 4).unwrap();
        let out = bytes.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        last = Some(Run { out, report });
    }
    last.unwrap()
}

fn no_findings(run: &Run) {
    assert!(run.report.findings.is_empty(), "{}", run.report.findings[0]);
}

/// A tcgen05 kernel: copies `words` of source to shared memory, fills `columns` of tensor memory with 1000 + column, runs `body` in
/// which `%r20` is the tensor memory address, `%r21` the shared address >> 4, `%p9` thread 0 (of the first CTA), and `%r22` the
/// mbarrier, then waits for one arrival and stores all cells.
fn tcgen05(group: u32, words: usize, columns: usize, body: &str, issue: &str) -> String {
    let regs = |n: usize, first: usize| (first..first + n).map(|i| format!("%c{i}")).collect::<Vec<_>>().join(", ");
    let list = regs(columns, 0);
    let mut fill = String::new();
    let mut stores = String::new();
    for c in 0..columns {
        fill += &format!("mov.b32 %c{c}, 0f{:08X};\n", (1000.0 + c as f32).to_bits());
        stores += &format!("st.global.b32 [%rd5+{}], %c{c};\n", 4 * c);
    }
    let cluster = if group == 2 { ".explicitcluster\n.reqnctapercluster 2, 1, 1" } else { "" };
    let sync =
        if group == 2 { "barrier.cluster.arrive.aligned;\nbarrier.cluster.wait.aligned;" } else { "bar.sync 0;" };
    format!(
        ".version 8.6\n.target sm_100a\n.address_size 64\n.extern .shared .align 1024 .b8 dsm[];\n\
         .visible .entry k(.param .u64 src, .param .u64 out, .param .u64 ad, .param .u64 bd, .param .u32 id)\n{cluster}\n{{\n\
         .shared .align 16 .b8 aux[16];\n.reg .pred %p<12>;\n.reg .b32 %r<40>;\n.reg .b32 %c<{columns}>;\n.reg .b64 %rd<20>;\n\
         mov.u32 %r1, %tid.x;\nmov.u32 %r2, %cluster_ctarank;\nld.param.u64 %rd1, [src];\nld.param.u64 %rd2, [out];\n\
         mov.u32 %r3, dsm;\nmov.u32 %r4, %r1;\nmul.lo.u32 %r16, %r2, {bytes};\ncvt.u64.u32 %rd15, %r16;\nadd.s64 %rd1, %rd1, %rd15;\n\
         COPY:\nsetp.ge.u32 %p1, %r4, {words};\n@%p1 bra COPIED;\nmul.wide.u32 %rd3, %r4, 4;\nadd.s64 %rd4, %rd1, %rd3;\n\
         ld.global.b32 %r5, [%rd4];\nshl.b32 %r6, %r4, 2;\nadd.u32 %r7, %r3, %r6;\nst.shared.b32 [%r7], %r5;\nadd.u32 %r4, %r4, 128;\nbra COPY;\n\
         COPIED:\nfence.proxy.async.shared::cta;\nmov.u32 %r22, aux;\nadd.u32 %r22, %r22, 8;\n\
         setp.eq.u32 %p2, %r1, 0;\n@%p2 mbarrier.init.shared::cta.b64 [%r22], 1;\n@%p2 fence.mbarrier_init.release.cluster;\n\
         shr.u32 %r8, %r1, 5;\nsetp.eq.u32 %p3, %r8, 0;\n@%p3 tcgen05.alloc.cta_group::{group}.sync.aligned.shared::cta.b32 [aux], 128;\n\
         {sync}\nbar.sync 0;\nld.shared.b32 %r20, [aux];\nshl.b32 %r9, %r8, 21;\nadd.u32 %r10, %r20, %r9;\n{fill}\
         tcgen05.st.sync.aligned.32x32b.x{columns}.b32 [%r10], {{{list}}};\ntcgen05.wait::st.sync.aligned;\n\
         tcgen05.fence::before_thread_sync;\n{sync}\nbar.sync 0;\ntcgen05.fence::after_thread_sync;\n\
         shr.u32 %r21, %r3, 4;\nand.b32 %r21, %r21, 0x3fff;\ncvt.u64.u32 %rd6, %r21;\nld.param.u64 %rd7, [ad];\nld.param.u64 %rd8, [bd];\n\
         add.s64 %rd7, %rd7, %rd6;\nadd.s64 %rd8, %rd8, %rd6;\nld.param.u32 %r23, [id];\n{body}\n\
         setp.eq.and.u32 %p9, %r2, 0, %p2;\nsetp.ne.u32 %p8, 0, 1;\n{issue}\n\
         WAIT:\nmbarrier.try_wait.parity.shared::cta.b64 %p4, [%r22], 0;\n@!%p4 bra WAIT;\ntcgen05.fence::after_thread_sync;\n\
         tcgen05.ld.sync.aligned.32x32b.x{columns}.b32 {{{list}}}, [%r10];\ntcgen05.wait::ld.sync.aligned;\n\
         mad.lo.u32 %r11, %r2, 128, %r1;\nmul.wide.u32 %rd5, %r11, {row};\nadd.s64 %rd5, %rd2, %rd5;\n{stores}\
         tcgen05.fence::before_thread_sync;\n{sync}\nbar.sync 0;\n\
         @%p3 tcgen05.dealloc.cta_group::{group}.sync.aligned.b32 %r20, 128;\nret;\n}}\n",
        row = 4 * columns,
        bytes = 4 * words,
    )
}

const COMMIT: &str = "@%p9 tcgen05.commit.cta_group::1.mbarrier::arrive::one.shared::cluster.b64 [%r22];\n";

/// No swizzle, K-major: rows of 16 bytes, 8 rows a core matrix; cores 128 bytes apart along rows, `leading` along K.
fn plain_descriptor(offset: u64, leading: u64) -> u64 {
    1 << 46 | (128 >> 4) << 32 | (leading >> 4) << 16 | offset >> 4
}

/// Elements [lines, 16] of f16 in that layout with `leading` = lines · 16.
fn plain_f16(lines: usize, value: impl Fn(usize, usize) -> f32) -> Vec<u8> {
    let mut bytes = vec![0u8; lines * 32];
    for line in 0..lines {
        for k in 0..16 {
            let at = line / 8 * 128 + line % 8 * 16 + k / 8 * lines * 16 + k % 8 * 2;
            bytes[at..at + 2].copy_from_slice(&half::f32_to_f16(value(line, k)).to_le_bytes());
        }
    }
    bytes
}

fn a_value(row: usize, k: usize) -> f32 {
    ((row * 3 + k * 5) % 7) as f32 - 3.0
}

fn b_value(col: usize, k: usize) -> f32 {
    ((col * 5 + k * 3) % 5) as f32 - 2.0
}

fn dot(row: usize, col: usize) -> f32 {
    (0..16).map(|k| a_value(row, k) * b_value(col, k)).sum()
}

fn f16_idesc(m: usize, n: usize) -> u32 {
    1 << 4 | (n as u32 >> 3) << 17 | (m as u32 >> 4) << 24
}

/// One kind::f16 MMA of [m, n] with operands in shared memory; returns the cells of tensor memory, 128 lanes a CTA.
fn f16_mma(m: usize, n: usize, columns: usize, suffix: &str, tail: &str, address: &str) -> Vec<f32> {
    let mut src = plain_f16(m, a_value);
    let b_at = src.len() as u64;
    src.extend(plain_f16(n, b_value));
    let issue =
        format!("@%p9 tcgen05.mma{suffix}.cta_group::1.kind::f16 [{address}], %rd7, %rd8, %r23, {tail};\n{COMMIT}");
    let ptx = tcgen05(1, src.len() / 4, columns, "", &issue);
    let result = run(&ptx, "sm_100a", 1, &src, 128 * columns, |_| {
        vec![
            Param::U64(plain_descriptor(0, m as u64 * 16)),
            Param::U64(plain_descriptor(b_at, n as u64 * 16)),
            Param::U32(f16_idesc(m, n)),
        ]
    });
    no_findings(&result);
    result.out.iter().map(|w| f32::from_bits(*w)).collect()
}

#[test]
fn m64_uses_half_of_the_lanes_and_leaves_the_others() {
    for (address, first) in [("%r20", 0), ("%r20+1048576", 16)] {
        let cells = f16_mma(64, 16, 16, "", "0", address);
        for lane in 0..128 {
            for col in 0..16 {
                let (quarter, in_quarter) = (lane / 32, lane % 32);
                let mine = in_quarter / 16 * 16 == first;
                let want = if mine { dot(16 * quarter + in_quarter % 16, col) } else { 1000.0 + col as f32 };
                assert_eq!(cells[lane * 16 + col], want, "lane {lane} column {col}");
            }
        }
    }
}

#[test]
fn disabled_lanes_keep_their_values_and_the_input_is_scaled() {
    // Lanes 0 to 31 odd, and lane 127, are off; D is multiplied by 2^-2.
    let cells = f16_mma(128, 16, 16, "", "{0xaaaaaaaa, 0, 0, 0x80000000}, 1, 2", "%r20");
    for lane in 0..128 {
        let off = lane == 127 || lane < 32 && lane % 2 == 1;
        for col in 0..16 {
            let old = 1000.0 + col as f32;
            let want = if off { old } else { dot(lane, col) + old / 4.0 };
            assert_eq!(cells[lane * 16 + col], want, "lane {lane} column {col}");
        }
    }
}

#[test]
fn weight_stationary_shapes_fold_columns_over_lanes() {
    for (m, parts) in [(32usize, 4usize), (64, 2), (128, 1)] {
        let n = 64;
        let columns = n / parts;
        let cells = f16_mma(m, n, columns, ".ws", "0", "%r20");
        for lane in 0..128 {
            for c in 0..columns {
                assert_eq!(
                    cells[lane * columns + c],
                    dot(lane % m, lane / m * columns + c),
                    "M {m} lane {lane} column {c}"
                );
            }
        }
    }
}

#[test]
fn a_pair_with_m_128_folds_columns_in_halves() {
    let (m, n) = (128usize, 32usize);
    // Each CTA holds 64 rows of A and 16 columns of B.
    let mut src = Vec::new();
    for cta in 0..2 {
        src.extend(plain_f16(64, |row, k| a_value(64 * cta + row, k)));
        src.extend(plain_f16(16, |col, k| b_value(16 * cta + col, k)));
    }
    let issue = "@%p9 tcgen05.mma.cta_group::2.kind::f16 [%r20], %rd7, %rd8, %r23, %p8;\n\
                 @%p9 tcgen05.commit.cta_group::2.mbarrier::arrive::one.shared::cluster.multicast::cluster.b64 [%r22], 3;\n"
        .replace("%p8", "0");
    let ptx = tcgen05(2, src.len() / 8, 16, "", &issue);
    let result = run(&ptx, "sm_100a", 2, &src, 2 * 128 * 16, |_| {
        vec![
            Param::U64(plain_descriptor(0, 1024)),
            Param::U64(plain_descriptor(2048, 256)),
            Param::U32(f16_idesc(m, n)),
        ]
    });
    no_findings(&result);
    for cta in 0..2 {
        for lane in 0..128 {
            for c in 0..16 {
                let got = f32::from_bits(result.out[(cta * 128 + lane) * 16 + c]);
                assert_eq!(got, dot(64 * cta + lane % 64, lane / 64 * 16 + c), "CTA {cta} lane {lane} column {c}");
            }
        }
    }
}

#[test]
fn a_from_tensor_memory_of_bytes_multiplies() {
    // A is e4m3 [128, 32] in columns 64 to 71, four elements a cell; B e4m3 [16, 32] in shared memory.
    let (n, k) = (16usize, 32usize);
    let e4m3 = |x: f32| {
        crate::numeric::encode(f64::from(x), &crate::numeric::format::E4M3, crate::numeric::Rounding::Zero, true) as u8
    };
    let mut src = vec![0u8; n * k];
    for col in 0..n {
        for p in 0..k {
            src[col / 8 * 128 + col % 8 * 16 + p / 16 * n * 16 + p % 16] = e4m3(b_value(col, p));
        }
    }
    // Thread (= lane) computes its own row: element p is (lane + p) % 4, whose e4m3 patterns come from a table in a register.
    let table = [0.0, 1.0, 2.0, 3.0].map(e4m3);
    let packed = u32::from_le_bytes(table);
    let mut body = String::from("and.b32 %r30, %r1, 3;\nshl.b32 %r31, %r30, 3;\n");
    body += &format!("mov.b32 %r32, {packed};\nshf.r.wrap.b32 %r33, %r32, %r32, %r31;\nadd.u32 %r34, %r10, 64;\n");
    body += "tcgen05.st.sync.aligned.32x32b.x8.b32 [%r34], {%r33, %r33, %r33, %r33, %r33, %r33, %r33, %r33};\n\
             tcgen05.wait::st.sync.aligned;\ntcgen05.fence::before_thread_sync;\nbar.sync 0;\ntcgen05.fence::after_thread_sync;\n\
             add.u32 %r35, %r20, 64;\n";
    let issue = format!("@%p9 tcgen05.mma.cta_group::1.kind::f8f6f4 [%r20], [%r35], %rd8, %r23, 0;\n{COMMIT}");
    let ptx = tcgen05(1, src.len() / 4, 16, &body, &issue);
    let result = run(&ptx, "sm_100a", 1, &src, 128 * 16, |_| {
        vec![Param::U64(0), Param::U64(plain_descriptor(0, 256)), Param::U32(f16_idesc(128, n))]
    });
    no_findings(&result);
    for lane in 0..128 {
        for col in 0..n {
            let want: f32 = (0..k).map(|p| ((lane + p) % 4) as f32 * b_value(col, p)).sum();
            assert_eq!(f32::from_bits(result.out[lane * 16 + col]), want, "lane {lane} column {col}");
        }
    }
}

#[test]
fn compressed_copies_expand_into_lanes() {
    // 128 rows of sixteen 4-bit values, padded to 16 bytes.
    let src: Vec<u8> = (0..128 * 16).map(|i| if i % 16 < 8 { (i / 16 + i % 16) as u8 } else { 0x99 }).collect();
    let issue = format!("@%p9 tcgen05.cp.cta_group::1.128x128b.b8x16.b4x16_p64 [%r20], %rd7;\n{COMMIT}");
    let ptx = tcgen05(1, src.len() / 4, 4, "", &issue);
    let result = run(&ptx, "sm_100a", 1, &src, 128 * 4, |_| {
        vec![Param::U64(plain_descriptor(0, 0)), Param::U64(0), Param::U32(0)]
    });
    no_findings(&result);
    for lane in 0..128 {
        for element in 0..16 {
            let nibble = src[16 * lane + element / 2] >> (4 * (element % 2)) & 15;
            let got = result.out[lane * 4 + element / 4] >> (8 * (element % 4)) & 0xff;
            assert_eq!(got, u32::from(nibble) << 2, "lane {lane} element {element}");
        }
    }
}

#[test]
fn a_load_that_does_not_wait_for_the_product_is_found() {
    let mut src = plain_f16(128, a_value);
    src.extend(plain_f16(16, b_value));
    let early = "@%p9 tcgen05.mma.cta_group::1.kind::f16 [%r20], %rd7, %rd8, %r23, 0;\n\
                 tcgen05.ld.sync.aligned.32x32b.x1.b32 {%r36}, [%r10];\ntcgen05.wait::ld.sync.aligned;\n";
    let ptx = tcgen05(1, src.len() / 4, 16, "", &format!("{early}{COMMIT}"));
    let result = run(&ptx, "sm_100a", 1, &src, 128 * 16, |_| {
        vec![
            Param::U64(plain_descriptor(0, 2048)),
            Param::U64(plain_descriptor(4096, 256)),
            Param::U32(f16_idesc(128, 16)),
        ]
    });
    assert!(result.report.findings.iter().any(|f| f.check == Check::TensorMemory), "{:?}", result.report.findings);
}

#[test]
fn reductions_while_loading_run_over_columns() {
    let ptx = tcgen05(
        1,
        4,
        8,
        "",
        &format!(
            "add.u32 %r37, %r10, 2;\ntcgen05.ld.red.sync.aligned.32x32b.x4.max.f32 {{%r30, %r31, %r32, %r33}}, %r34, [%r37];\n\
             tcgen05.ld.red.sync.aligned.32x32b.x2.min.u32 {{%r30, %r31}}, %r35, [%r37];\ntcgen05.wait::ld.sync.aligned;\n\
             tcgen05.st.sync.aligned.32x32b.x2.b32 [%r10], {{%r34, %r35}};\ntcgen05.wait::st.sync.aligned;\nbar.sync 0;\n{COMMIT}"
        ),
    );
    let ptx = ptx.replace(".target sm_100a", ".target sm_103a").replace(".version 8.6", ".version 8.8");
    let result = run(&ptx, "sm_103a", 1, &[0; 16], 128 * 8, |_| vec![Param::U64(0), Param::U64(0), Param::U32(0)]);
    no_findings(&result);
    assert_eq!(f32::from_bits(result.out[8]), 1005.0);
    assert_eq!(f32::from_bits(result.out[9]), 1002.0);
}

/// A kernel of one thread block that loads a box by TMA, of which the mbarrier counts `transaction` bytes, and stores `bytes` of shared
/// memory.
fn tma_load(prepare: &str, map: &str, form: &str, coordinates: &str, transaction: usize, bytes: usize) -> String {
    format!(
        ".version 8.6\n.target sm_100a\n.address_size 64\n.extern .shared .align 1024 .b8 dsm[];\n\
         .visible .entry k(.param .u64 src, .param .u64 out, .param .align 64 .b8 map[128])\n{{\n\
         .shared .align 16 .b8 aux[16];\n.reg .pred %p<8>;\n.reg .b32 %r<20>;\n.reg .b64 %rd<20>;\n\
         ld.param.u64 %rd1, [src];\nld.param.u64 %rd2, [out];\nmov.u32 %r1, %tid.x;\nmov.b64 %rd3, map;\ncvta.param.u64 %rd3, %rd3;\n\
         mov.u32 %r2, aux;\nmov.u32 %r3, dsm;\nsetp.eq.u32 %p1, %r1, 0;\n@%p1 mbarrier.init.shared::cta.b64 [%r2], 1;\n\
         fence.proxy.async.shared::cta;\nbar.sync 0;\n{prepare}\n\
         @%p1 mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r2], {transaction};\n\
         @%p1 cp.async.bulk.tensor.{form}.shared::cta.global.mbarrier::complete_tx::bytes [%r3], [{map}, {{{coordinates}}}], [%r2];\n\
         WAIT:\nmbarrier.try_wait.parity.shared::cta.b64 %p2, [%r2], 0;\n@!%p2 bra WAIT;\n\
         COPY:\nsetp.ge.u32 %p3, %r1, {words};\n@%p3 bra DONE;\nshl.b32 %r4, %r1, 2;\nadd.u32 %r5, %r3, %r4;\nld.shared.b32 %r6, [%r5];\n\
         mul.wide.u32 %rd4, %r1, 4;\nadd.s64 %rd5, %rd2, %rd4;\nst.global.b32 [%rd5], %r6;\nadd.u32 %r1, %r1, 128;\nbra COPY;\nDONE:\nret;\n}}\n",
        words = bytes / 4,
    )
}

fn map_of(address: u64) -> TensorMap {
    TensorMap {
        address,
        elem: MapElem::F32,
        rank: 3,
        dims: [20, 5, 3, 1, 1],
        strides: [80, 400, 0, 0],
        box_dims: [8, 4, 2, 1, 1],
        element_strides: [1, 2, 1, 1, 1],
        interleave: 0,
        swizzle: Swizzle::None,
        fill_nan: true,
    }
}

#[test]
fn boxes_outside_the_tensor_are_filled_with_nan() {
    let src: Vec<u8> = (0..300u32).flat_map(|i| (i as f32).to_le_bytes()).collect();
    let ptx = tma_load("", "%rd3", "3d", "-2, 1, 2", 128, 128);
    let result = run(&ptx, "sm_100a", 1, &src, 32, |from| vec![Param::Bytes(map_of(from).encode().unwrap().to_vec())]);
    no_findings(&result);
    for z in 0..2i32 {
        for y in 0..2i32 {
            for x in 0..8i32 {
                let got = f32::from_bits(result.out[(z * 16 + y * 8 + x) as usize]);
                let (cx, cy, cz) = (x - 2, 1 + 2 * y, z + 2);
                if cx >= 0 && cz < 3 {
                    assert_eq!(got, (cz * 100 + cy * 20 + cx) as f32);
                } else {
                    assert!(got.is_nan());
                }
            }
        }
    }
}

#[test]
fn padded_four_bit_boxes_load_with_swizzle() {
    let src: Vec<u8> = (0..1024).map(|i| (i * 7 % 256) as u8).collect();
    let map = |address| TensorMap {
        address,
        elem: MapElem::B4x16P64,
        rank: 2,
        dims: [256, 8, 1, 1, 1],
        strides: [128, 0, 0, 0],
        box_dims: [128, 4, 1, 1, 1],
        element_strides: [1; 5],
        swizzle: Swizzle::B128,
        fill_nan: false,
        ..map_of(address)
    };
    let ptx = tma_load("", "%rd3", "2d", "128, 3", 64 * 4, 128 * 4);
    let result = run(&ptx, "sm_100a", 1, &src, 128, |from| vec![Param::Bytes(map(from).encode().unwrap().to_vec())]);
    no_findings(&result);
    let bytes: Vec<u8> = result.out.iter().flat_map(|w| w.to_le_bytes()).collect();
    for row in 0..4 {
        for unit in 0..8 {
            let at = row * 128 + (unit ^ row) * 16;
            assert_eq!(bytes[at..at + 8], src[(3 + row) * 128 + 64 + unit * 8..][..8], "row {row} unit {unit}");
            assert_eq!(bytes[at + 8..at + 16], [0; 8]);
        }
    }
}

#[test]
fn edited_tensor_maps_need_the_acquire_fence() {
    let src: Vec<u8> = (0..300u32).flat_map(|i| (i as f32).to_le_bytes()).collect();
    for fenced in [true, false] {
        let fence = if fenced { "fence.proxy.tensormap::generic.acquire.gpu [%rd6], 128;" } else { "" };
        // Warp 0 writes a map to shared memory, moves its first dimension on by 40 bytes' worth of rows, and publishes it.
        let prepare = format!(
            "add.s64 %rd6, %rd1, 2048;\nadd.u32 %r7, %r3, 4096;\nsetp.lt.u32 %p4, %r1, 32;\n@!%p4 bra AFTER;\n\
             shl.b32 %r8, %r1, 2;\nadd.u32 %r9, %r7, %r8;\ncvt.u64.u32 %rd7, %r8;\nadd.s64 %rd8, %rd3, %rd7;\nld.b32 %r10, [%rd8];\n\
             st.shared.b32 [%r9], %r10;\nbar.warp.sync 0xffffffff;\n@%p1 tensormap.replace.tile.fill_mode.shared::cta.b1024.b32 [%r7], 0;\n\
             @%p1 tensormap.replace.tile.global_dim.shared::cta.b1024.b32 [%r7], 0, 4;\nbar.warp.sync 0xffffffff;\n\
             tensormap.cp_fenceproxy.global.shared::cta.tensormap::generic.release.gpu.sync.aligned [%rd6], [%r7], 128;\n{fence}\n\
             AFTER:\nbar.sync 0;\n"
        );
        let ptx = tma_load(&prepare, "%rd6", "3d", "0, 0, 0", 128, 128);
        let mut memory = src.clone();
        memory.resize(4096, 0);
        let result =
            run(&ptx, "sm_100a", 1, &memory, 32, |from| vec![Param::Bytes(map_of(from).encode().unwrap().to_vec())]);
        assert_eq!(
            result.report.findings.iter().any(|f| f.check == Check::Proxy),
            !fenced,
            "{:?}",
            result.report.findings
        );
        for x in 0..8 {
            let got = f32::from_bits(result.out[8 + x]);
            assert_eq!(got, if x < 4 { (40 + x) as f32 } else { 0.0 });
        }
    }
}
