//! What the executor does with small kernels: results, schedules, findings.

use super::{Check, CompileError, Device, ExecError, Launch, Options, Param, Program, Report, Schedule, Target};
use crate::ast::Module;

/// A kernel with one parameter `x`, the address of `%rd0`, and registers to spare.
fn kernel(body: &str) -> String {
    format!(
        ".version 8.6\n.target sm_90a\n.address_size 64\n.extern .shared .align 16 .b8 dyn[];\n.visible .entry k(.param .u64 x)\n{{\n\
         .reg .pred %p<16>; .reg .b16 %rs<16>; .reg .b32 %r<32>; .reg .b64 %rd<32>; .reg .f32 %f<16>;\n\
         .shared .align 16 .b8 s[1024];\n.shared .align 8 .b64 bar;\nld.param.u64 %rd0, [x];\nmov.u32 %r0, %tid.x;\n{body}\nret;\n}}\n"
    )
}

/// `%rd1`: the address of the thread's own word of the output.
const OWN: &str = "mul.wide.u32 %rd1, %r0, 4; add.s64 %rd1, %rd0, %rd1;";

struct Run {
    words: Vec<u32>,
    report: Report,
}

fn compile(body: &str) -> Result<Program, CompileError> {
    Program::compile(&Module::parse(&kernel(body))?, "k")
}

fn launch(body: &str, l: Launch, options: &Options, init: &[u32]) -> Result<Run, ExecError> {
    let program = compile(body).unwrap_or_else(|e| panic!("{e}"));
    let mut device = Device::new(Target::parse("sm_90a").unwrap());
    let x = device.alloc(init.len() as u64 * 4).unwrap();
    let bytes: Vec<u8> = init.iter().flat_map(|w| w.to_le_bytes()).collect();
    device.upload(x, &bytes).unwrap();
    let report = device.launch(&program, &Launch { params: vec![Param::U64(x)], ..l }, options)?;
    let out = device.download(x, init.len() * 4).unwrap();
    Ok(Run { words: out.chunks(4).map(|c| u32::from_le_bytes(c.try_into().unwrap())).collect(), report })
}

fn block(threads: u32) -> Launch {
    Launch { block: [threads, 1, 1], ..Launch::default() }
}

fn run(body: &str, threads: u32) -> Run {
    launch(body, block(threads), &Options::default(), &vec![0; threads as usize]).unwrap_or_else(|e| panic!("{e}"))
}

fn checks_of(r: &Run) -> Vec<Check> {
    r.report.findings.iter().map(|f| f.check).collect()
}

fn clean(r: &Run) {
    assert!(r.report.findings.is_empty(), "{:#?}", r.report.findings);
}

#[test]
fn lanes_of_a_warp_may_pass_a_lock_to_each_other() {
    let body = "L: atom.global.cas.b32 %r1, [%rd0], 0, 1; setp.ne.u32 %p1, %r1, 0; @%p1 bra L;\n\
                ld.volatile.global.u32 %r2, [%rd0+4]; add.u32 %r2, %r2, 1; st.volatile.global.u32 [%rd0+4], %r2;\n\
                atom.global.exch.b32 %r1, [%rd0], 0;";
    let r = run(body, 64);
    clean(&r);
    assert_eq!(r.words[1], 64);
}

#[test]
fn blocks_that_wait_for_each_other_all_get_their_turn() {
    // A grid barrier: more blocks than host threads, each spins until all have come.
    let body = "setp.ne.u32 %p1, %r0, 0; @%p1 bra DONE; atom.global.add.u32 %r1, [%rd0], 1; mov.u32 %r3, %nctaid.x;\n\
                L: ld.acquire.gpu.global.u32 %r2, [%rd0]; setp.lt.u32 %p2, %r2, %r3; @%p2 bra L; atom.global.add.u32 %r1, [%rd0+4], 1; DONE:";
    for threads in [1, 2] {
        let options = Options { threads, ..Options::default() };
        let r = launch(body, Launch { grid: [37, 1, 1], block: [32, 1, 1], ..Launch::default() }, &options, &[0; 4])
            .unwrap_or_else(|e| panic!("{e}"));
        clean(&r);
        assert_eq!(r.words[1], 37);
    }
}

#[test]
fn halves_that_were_packed_are_known_apart() {
    // %r5 is never written; LLVM packs values side by side that have nothing to do with each other.
    let body = |stored: &str| {
        format!("{OWN} mov.b64 %rd2, {{%r0, %r5}}; mov.b64 {{%r6, %r7}}, %rd2; st.global.b32 [%rd1], {stored};")
    };
    let r = run(&body("%r6"), 32);
    clean(&r);
    assert_eq!(r.words[31], 31);
    assert_eq!(checks_of(&run(&body("%r7"), 32)), [Check::Uninitialized]);
    // The lower half of a sum depends on the lower halves only; a product's upper part on everything. A register that is
    // written again is whole.
    let body = |then: &str| {
        format!("{OWN} mov.b64 %rd2, {{%r0, %r5}}; {then} mov.b64 {{%r6, %r7}}, %rd2; st.global.b32 [%rd1], %r6;")
    };
    clean(&run(&body("add.u64 %rd2, %rd2, 1;"), 32));
    assert_eq!(checks_of(&run(&body("mul.hi.u64 %rd2, %rd2, 3;"), 32)), [Check::Uninitialized]);
    clean(&run(&body("mov.u64 %rd2, 7;"), 32));
}

#[test]
fn recursion_keeps_each_activation_apart() {
    let text = ".version 8.6\n.target sm_90a\n.address_size 64\n\
        .func (.param .b32 r) fact(.param .b32 n) { .reg .pred %p<2>; .reg .b32 %r<6>;\n\
        ld.param.u32 %r1, [n]; mov.u32 %r2, 1; setp.le.u32 %p1, %r1, 1; @%p1 bra E; sub.u32 %r3, %r1, 1;\n\
        { .param .b32 a; .param .b32 b; st.param.b32 [a], %r3; call.uni (b), fact, (a); ld.param.b32 %r4, [b]; } mul.lo.u32 %r2, %r1, %r4;\n\
        E: st.param.b32 [r], %r2; ret; }\n\
        .visible .entry k(.param .u64 x) { .reg .b32 %r<6>; .reg .b64 %rd<4>; ld.param.u64 %rd0, [x]; mov.u32 %r0, %tid.x;\n\
        mul.wide.u32 %rd1, %r0, 4; add.s64 %rd1, %rd0, %rd1; and.b32 %r2, %r0, 7;\n\
        { .param .b32 a; .param .b32 b; st.param.b32 [a], %r2; call.uni (b), fact, (a); ld.param.b32 %r1, [b]; } st.global.u32 [%rd1], %r1; ret; }";
    let program = Program::compile(&Module::parse(text).unwrap(), "k").unwrap();
    let mut device = Device::new(Target::parse("sm_90a").unwrap());
    let x = device.alloc(128).unwrap();
    let report =
        device.launch(&program, &Launch { params: vec![Param::U64(x)], ..block(32) }, &Options::default()).unwrap();
    assert!(report.findings.is_empty(), "{:?}", report.findings);
    let out = device.download(x, 128).unwrap();
    let want = [1, 1, 2, 6, 24, 120, 720, 5040];
    for (i, w) in out.chunks(4).enumerate() {
        assert_eq!(u32::from_le_bytes(w.try_into().unwrap()), want[i % 8], "thread {i}");
    }
}

#[test]
fn branch_tables_split_and_join() {
    let body = format!(
        "{OWN} and.b32 %r1, %r0, 3; T: .branchtargets A, B, C, D; brx.idx %r1, T;\n\
         A: mov.u32 %r2, 10; bra E; B: mov.u32 %r2, 11; bra E; C: mov.u32 %r2, 12; bra E; D: mov.u32 %r2, 13;\n\
         E: bar.warp.sync 0xffffffff; st.global.u32 [%rd1], %r2;"
    );
    let r = run(&body, 32);
    clean(&r);
    assert!(r.words.iter().enumerate().all(|(i, w)| *w == 10 + i as u32 % 4));
}

#[test]
fn tiles_of_a_warp_name_member_masks_of_their_own() {
    let tiles = "and.b32 %r3, %r0, 24; mov.u32 %r4, 255; shl.b32 %r4, %r4, %r3;";
    let add = "redux.sync.add.u32 %r5, %r0, %r4; st.global.u32 [%rd1], %r5;";
    let r = run(&format!("{OWN} {tiles} {add}"), 32);
    clean(&r);
    assert_eq!(r.words, (0..32).map(|t| (t / 8 * 8..t / 8 * 8 + 8).sum()).collect::<Vec<u32>>());
    let r = run(&format!("{OWN} {tiles} setp.eq.u32 %p1, %r0, 9; @%p1 mov.u32 %r4, -1; {add}"), 32);
    assert!(checks_of(&r).contains(&Check::Divergence), "{:?}", r.report.findings);
}

#[test]
fn carries_pass_from_word_to_word() {
    let body = format!(
        "{OWN} mov.u32 %r1, 0xffffffff; add.cc.u32 %r2, %r1, 1; addc.cc.u32 %r3, %r1, 0; addc.u32 %r4, 5, 0;\n\
         sub.cc.u32 %r5, 0, 1; subc.u32 %r6, 7, 0; mul.lo.u32 %r4, %r4, 100; add.u32 %r4, %r4, %r6; st.global.u32 [%rd1], %r4;"
    );
    assert_eq!(run(&body, 1).words[0], 606);
}

#[test]
fn a_missing_barrier_is_a_race_in_every_schedule() {
    let shift = "mov.u32 %r1, s; mad.lo.u32 %r2, %r0, 4, %r1; xor.b32 %r3, %r0, 32; mad.lo.u32 %r3, %r3, 4, %r1; st.shared.u32 [%r2], %r0;";
    let rest = format!("ld.shared.u32 %r4, [%r3]; {OWN} st.global.u32 [%rd1], %r4;");
    for schedule in [Schedule::RoundRobin, Schedule::Random(1), Schedule::Random(2)] {
        let options = Options { schedule, ..Options::default() };
        let good = launch(&format!("{shift} bar.sync 0; {rest}"), block(64), &options, &[0; 64]).unwrap();
        clean(&good);
        assert_eq!(good.words[0], 32);
        let bad = launch(&format!("{shift} {rest}"), block(64), &options, &[0; 64]).unwrap();
        let found = checks_of(&bad);
        assert!(found.contains(&Check::Race) || found.contains(&Check::Uninitialized), "{found:?}");
        let race = bad.report.findings.iter().find(|f| f.check == Check::Race);
        assert!(race.is_none_or(|f| f.other.as_ref().is_some_and(|o| o.contains("warp"))), "{race:?}");
    }
}

#[test]
fn values_that_nobody_wrote_are_found_where_they_matter() {
    let body = format!("{OWN} add.u32 %r2, %r1, 1; st.global.u32 [%rd1], %r2;");
    assert_eq!(checks_of(&run(&body, 32)), [Check::Uninitialized]);
    // Reading garbage that is not used is no error.
    let body = format!("{OWN} add.u32 %r2, %r1, 1; mov.u32 %r2, 7; st.global.u32 [%rd1], %r2;");
    clean(&run(&body, 32));
    let body = "ld.shared.u32 %r1, [s]; setp.eq.u32 %p1, %r1, 0; @%p1 bra L; L:";
    assert_eq!(checks_of(&run(body, 32)), [Check::Uninitialized]);
}

#[test]
fn accesses_outside_are_found_in_every_space() {
    for (body, check) in [
        ("st.global.u32 [%rd0+4096], %r0;", Check::Bounds),
        ("ld.global.u32 %r1, [%rd0+2];", Check::Alignment),
        ("ld.shared.u32 %r1, [s+65536];", Check::Bounds),
        ("st.shared.u32 [s+1], %r0;", Check::Alignment),
        (".local .b8 l[16]; mov.u64 %rd2, l; ld.local.u32 %r1, [%rd2+262144];", Check::Bounds),
        ("mov.u64 %rd2, 0; ld.u32 %r1, [%rd2];", Check::Bounds),
    ] {
        let r = launch(body, block(1), &Options::default(), &[0; 4]).unwrap_or_else(|e| panic!("{e}"));
        assert!(checks_of(&r).contains(&check), "{body}: {:?}", r.report.findings);
    }
}

#[test]
fn a_barrier_that_not_all_warps_reach_is_a_deadlock() {
    let body = "setp.lt.u32 %p1, %r0, 32; @%p1 bra L; bar.sync 1, 64; L:";
    let e = launch(body, block(64), &Options::default(), &[0; 64]).map(|r| r.report).unwrap_err();
    let ExecError::Deadlock { state, .. } = e else { panic!("{e}") };
    assert!(
        state.contains("Barrier { id: 1, arrived: 32, expected: 64 }") && state.contains("bar.sync 1, 64"),
        "{state}"
    );
}

#[test]
fn a_barrier_in_a_diverged_warp_is_a_deadlock() {
    let body = "setp.lt.u32 %p1, %r0, 16; @%p1 bra A; bar.sync 0; bra B; A: bar.sync 1; B:";
    let e = launch(body, block(32), &Options::default(), &[0; 32]).map(|r| r.report).unwrap_err();
    assert!(matches!(e, ExecError::Deadlock { .. }), "{e}");
}

const WAIT: &str = "W: mbarrier.try_wait.parity.shared.b64 %p2, [bar], 0; @!%p2 bra W;";

#[test]
fn a_wait_for_bytes_that_never_come_is_a_deadlock() {
    let body = format!("mbarrier.init.shared.b64 [bar], 1; mbarrier.arrive.expect_tx.shared.b64 _, [bar], 64; {WAIT}");
    let e = launch(&body, block(1), &Options::default(), &[0; 4]).map(|r| r.report).unwrap_err();
    let ExecError::Deadlock { state, .. } = e else { panic!("{e}") };
    assert!(state.contains("64 bytes open"), "{state}");
}

/// Thread 0 copies 128 bytes in, all threads read them.
fn bulk_load(init: &str, wait: &str) -> String {
    format!(
        "setp.ne.u32 %p1, %r0, 0; @%p1 bra J; mbarrier.init.shared.b64 [bar], 1; {init}\n\
         mbarrier.arrive.expect_tx.shared.b64 _, [bar], 128;\n\
         cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [s], [%rd0], 128, [bar]; J: bar.sync 0;\n\
         {wait} mov.u32 %r1, s; and.b32 %r5, %r0, 31; mad.lo.u32 %r1, %r5, 4, %r1; ld.shared.u32 %r2, [%r1]; add.u32 %r2, %r2, 1; {OWN} st.global.u32 [%rd1+128], %r2;"
    )
}

#[test]
fn a_bulk_load_is_seen_after_its_wait_and_not_before() {
    let words: Vec<u32> = (0..96).collect();
    for schedule in [Schedule::RoundRobin, Schedule::Random(3), Schedule::Random(4)] {
        let options = Options { schedule, ..Options::default() };
        let good =
            launch(&bulk_load("fence.mbarrier_init.release.cluster;", WAIT), block(64), &options, &words).unwrap();
        clean(&good);
        assert_eq!(good.words[32 + 5], 6);
        let bad = launch(&bulk_load("", ""), block(64), &options, &words).unwrap();
        let found = checks_of(&bad);
        assert!(
            found.iter().any(|c| matches!(c, Check::Race | Check::Uninitialized | Check::Asynchronous)),
            "{found:?}"
        );
    }
}

#[test]
fn a_bulk_store_needs_the_proxy_fence() {
    let body = |fence: &str| {
        format!(
            "mov.u32 %r1, s; mad.lo.u32 %r2, %r0, 4, %r1; st.shared.u32 [%r2], %r0; {fence} bar.sync 0; setp.ne.u32 %p1, %r0, 0; @%p1 bra L;\n\
             cp.async.bulk.global.shared::cta.bulk_group [%rd0], [s], 128; cp.async.bulk.commit_group; cp.async.bulk.wait_group 0; L:"
        )
    };
    let good = run(&body("fence.proxy.async.shared::cta;"), 32);
    clean(&good);
    assert_eq!(good.words[31], 31);
    assert_eq!(checks_of(&run(&body(""), 32)), [Check::Proxy]);
}

#[test]
fn leaving_with_a_bulk_store_that_nobody_committed_is_found() {
    let body = "st.shared.v4.u32 [s], {%r0, %r0, %r0, %r0}; fence.proxy.async.shared::cta; cp.async.bulk.global.shared::cta.bulk_group [%rd0], [s], 16;";
    let r = launch(body, block(1), &Options::default(), &[0; 4]).unwrap();
    assert_eq!(checks_of(&r), [Check::Asynchronous]);
}

#[test]
fn leaving_without_a_wait_for_a_committed_bulk_store_is_a_note() {
    let body = |wait: &str| {
        format!(
            "st.shared.v4.u32 [s], {{%r0, %r0, %r0, %r0}}; fence.proxy.async.shared::cta; cp.async.bulk.global.shared::cta.bulk_group [%rd0], [s], 16; cp.async.bulk.commit_group; {wait}"
        )
    };
    let go = |wait: &str| launch(&body(wait), block(1), &Options::default(), &[0; 4]).unwrap();
    for (wait, notes) in [("", 1), ("cp.async.bulk.wait_group 0;", 0), ("cp.async.bulk.wait_group.read 0;", 0)] {
        let r = go(wait);
        clean(&r);
        assert_eq!(r.report.notes.len(), notes, "{wait} {:?}", r.report.notes);
    }
}

#[test]
fn bits_that_nobody_looks_at_may_be_unwritten() {
    // %r9 and %h9 are never written.
    for (body, fine) in [
        ("prmt.b32 %r3, %r0, %r9, 0x3210;", true),
        ("prmt.b32 %r3, %r0, %r9, 0x4210;", false),
        ("xor.b32 %r3, %r9, %r9;", true),
        ("sub.u32 %r3, %r9, %r9;", true),
        ("and.b32 %r3, %r9, 0;", true),
        ("and.b32 %r3, %r9, 1;", false),
        ("lop3.b32 %r3, %r0, %r1, %r9, 0xc0;", true),
        ("lop3.b32 %r3, %r1, %r1, %r9, 0x80;", false),
        ("mov.b32 %r4, {%rs1, %rs9}; and.b32 %r3, %r4, 0xffff;", true),
        ("mov.b32 %r4, {%rs1, %rs9}; add.f16x2 %r4, %r4, %r4; mov.b32 {%rs3, %rs4}, %r4; cvt.u32.u16 %r3, %rs3;", true),
        (
            "mov.b32 %r4, {%rs1, %rs9}; add.f16x2 %r4, %r4, %r4; mov.b32 {%rs3, %rs4}, %r4; cvt.u32.u16 %r3, %rs4;",
            false,
        ),
        ("bfi.b32 %r4, %r0, %r9, 0, 16; bfi.b32 %r3, %r0, %r4, 16, 16;", true),
        ("bfi.b32 %r4, %r0, %r9, 0, 15; bfi.b32 %r3, %r0, %r4, 16, 16; and.b32 %r3, %r3, 0x8000;", false),
        ("shl.b32 %r4, %r9, 16; shr.u32 %r3, %r4, 16; and.b32 %r3, %r3, 0; ", true),
        ("shf.l.wrap.b32 %r3, %r9, %r0, 0;", true),
        ("and.b32 %r4, %r9, 0xff00; or.b32 %r4, %r4, 1; setp.eq.u32 %p1, %r4, 0; selp.u32 %r3, 1, 2, %p1;", true),
        ("and.b32 %r4, %r9, 0xff; setp.lt.u32 %p1, %r4, 256; selp.u32 %r3, 1, 2, %p1;", true),
        ("and.b32 %r4, %r9, 0xff; setp.lt.u32 %p1, %r4, 255; selp.u32 %r3, 1, 2, %p1;", false),
        ("setp.eq.u32 %p1, %r9, 3; selp.u32 %r3, 1, 2, %p1;", false),
        ("st.shared.u8 [s], %r0; bar.warp.sync -1; ld.shared.u32 %r4, [s]; cvt.u32.u8 %r3, %r4;", true),
        (
            "st.shared.u8 [s], %r0; bar.warp.sync -1; ld.shared.u32 %r4, [s]; st.shared.u32 [s+8], %r4; ld.shared.u8 %r3, [s+9];",
            false,
        ),
        (
            "and.b32 %r4, %r9, 0xf0; or.b32 %r4, %r4, 5; st.shared.u8 [s], %r4; ld.shared.u8 %r4, [s]; and.b32 %r3, %r4, 15;",
            true,
        ),
        ("shfl.sync.idx.b32 %r4, %r9, 0, 31, -1; and.b32 %r3, %r4, 0;", true),
        ("mul.lo.u32 %r3, %r9, 2;", false),
    ] {
        let r = run(
            &format!("{OWN} mov.u32 %r1, 5; mov.u16 %rs1, 7; {body} popc.b32 %r3, %r3; st.global.u32 [%rd1], %r3;"),
            1,
        );
        let found = !r.report.findings.is_empty();
        assert_eq!(!found, fine, "{body}: {:?} {:?}", r.report.findings, r.report.notes);
    }
}

#[test]
fn the_carry_flag_after_a_subtraction_says_that_nothing_was_borrowed() {
    for (body, want) in [
        ("add.cc.u32 %r1, 0, 0; subc.u32 %r3, 0, 0;", 0xffff_ffffu32),
        ("sub.cc.u32 %r1, 5, 3; addc.u32 %r3, 0, 0;", 1),
        ("sub.cc.u32 %r1, 3, 5; addc.u32 %r3, 0, 0;", 0),
        ("sub.cc.u32 %r1, 0, 1; subc.u32 %r3, 7, 0;", 6),
        ("sub.cc.u32 %r1, 1, 1; subc.cc.u32 %r2, 0, 1; subc.u32 %r3, 5, 0;", 4),
        ("add.cc.u32 %r1, 0xffffffff, 1; addc.u32 %r3, 2, 3;", 6),
    ] {
        let r = run(&format!("{OWN} {body} st.global.u32 [%rd1], %r3;"), 1);
        clean(&r);
        assert_eq!(r.words[0], want, "{body}");
    }
}

#[test]
fn mbarrier_misuse_is_found() {
    for body in [
        "mbarrier.arrive.shared.b64 %rd2, [bar];",
        "mbarrier.init.shared.b64 [bar], 0;",
        "mbarrier.init.shared.b64 [bar], 2; mbarrier.arrive.shared.b64 %rd2, [bar], 3;",
        "mbarrier.init.shared.b64 [bar], 1; mbarrier.inval.shared.b64 [bar]; mbarrier.arrive.shared.b64 %rd2, [bar];",
        "mbarrier.init.shared.b64 [bar], 1; mbarrier.arrive.noComplete.shared.b64 %rd2, [bar], 1;",
        "mbarrier.init.shared.b64 [bar], 2; mbarrier.arrive.shared.b64 %rd2, [bar]; mbarrier.inval.shared.b64 [bar];",
    ] {
        let r = run(body, 1);
        assert!(checks_of(&r).contains(&Check::Mbarrier), "{body}: {:?}", r.report.findings);
    }
}

#[test]
fn cp_async_data_comes_with_its_group_and_not_before() {
    let body = |wait: &str| {
        format!(
            "mov.u32 %r1, s; mad.lo.u32 %r2, %r0, 16, %r1; mul.wide.u32 %rd2, %r0, 16; add.s64 %rd2, %rd0, %rd2;\n\
             cp.async.cg.shared.global [%r2], [%rd2], 16; cp.async.commit_group; {wait} ld.shared.u32 %r3, [%r2]; add.u32 %r3, %r3, 1; st.global.u32 [%rd2], %r3;"
        )
    };
    let words: Vec<u32> = (0..128).collect();
    let good = launch(&body("cp.async.wait_group 0;"), block(32), &Options::default(), &words).unwrap();
    clean(&good);
    assert_eq!(good.words[4], 5);
    for schedule in [Schedule::RoundRobin, Schedule::Random(7)] {
        let bad = launch(&body(""), block(32), &Options { schedule, ..Options::default() }, &words).unwrap();
        assert!(
            checks_of(&bad).iter().any(|c| matches!(c, Check::Race | Check::Uninitialized)),
            "{:?}",
            bad.report.findings
        );
    }
}

#[test]
fn peers_of_a_cluster_share_memory_until_one_leaves() {
    let body = |last: &str| {
        format!(
            "mov.u32 %r1, %cluster_ctarank; add.u32 %r2, %r1, 70; mad.lo.u32 %r6, %r0, 4, s; st.shared.u32 [%r6], %r2;\n\
             barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned; {last}"
        )
    };
    let read = format!(
        "xor.b32 %r3, %r1, 1; mapa.shared::cluster.u32 %r4, %r6, %r3; ld.shared::cluster.u32 %r5, [%r4];\n\
         mov.u32 %r7, %ctaid.x; mad.lo.u32 %r0, %r7, 32, %r0; {OWN} st.global.u32 [%rd1], %r5;"
    );
    let two = Launch { grid: [2, 1, 1], block: [32, 1, 1], cluster: [2, 1, 1], ..Launch::default() };
    // `s` in an immediate position is an address too.
    let body_text =
        |last: &str| body(last).replace("mad.lo.u32 %r6, %r0, 4, s;", "mov.u32 %r8, s; mad.lo.u32 %r6, %r0, 4, %r8;");
    let good = launch(
        &body_text(&format!("{read} barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;")),
        two.clone(),
        &Options::default(),
        &[0; 64],
    )
    .unwrap();
    clean(&good);
    assert_eq!((good.words[0], good.words[63]), (71, 70));
    // Rank 1 leaves at once; rank 0 dawdles before it reads.
    let dawdle = format!(
        "setp.ne.u32 %p1, %r1, 0; @%p1 bra OUT; mov.u32 %r9, 0; Z: add.u32 %r9, %r9, 1; setp.lt.u32 %p2, %r9, 5000; @%p2 bra Z; {read} OUT:"
    );
    let bad = launch(&body_text(&dawdle), two, &Options::default(), &[0; 64]).unwrap();
    assert_eq!(checks_of(&bad), [Check::ClusterExit]);
}

#[test]
fn an_endless_loop_ends_at_the_instruction_limit() {
    let options = Options { instruction_limit: 100_000, ..Options::default() };
    let e = launch("L: bra L;", block(32), &options, &[0; 4]).map(|r| r.report).unwrap_err();
    assert!(matches!(e, ExecError::InstructionLimit { executed, .. } if executed < 200_000), "{e}");
}

#[test]
fn what_is_not_supported_is_named() {
    for (body, word) in [
        ("tex.2d.v4.f32.f32 {%f1,%f2,%f3,%f4}, [%rd0, {%f1,%f2}];", "tex.2d"),
        ("cvt.u32.frob.u8 %r1, %r2;", "frob"),
        ("add.q7 %r1, %r2, %r3;", "q7"),
    ] {
        let e = compile(body).map(|_| ()).unwrap_err();
        assert!(
            matches!(e, CompileError::Unsupported { .. })
                && e.to_string().contains(word)
                && e.to_string().contains("line 12"),
            "{e}"
        );
    }
    for body in ["add.u32 %r1, %rd1, 4;", "bra NOWHERE;", "mov.u32 %r1, %q1;", "mov.u32 %r99, 1;"] {
        assert!(matches!(compile(body), Err(CompileError::Invalid { .. })), "{body}");
    }
}

#[test]
fn launches_that_do_not_fit_are_refused() {
    for l in [
        block(2048),
        Launch { grid: [3, 1, 1], cluster: [2, 1, 1], ..block(32) },
        Launch { dynamic_smem_bytes: 300 << 10, ..block(32) },
        Launch { grid: [0, 1, 1], ..block(32) },
    ] {
        let e = launch("", l, &Options::default(), &[0; 4]).map(|r| r.report).unwrap_err();
        assert!(matches!(e, ExecError::Launch { .. }), "{e}");
    }
}

#[test]
fn traffic_is_counted_by_sector_and_first_touch() {
    let r = run(&format!("{OWN} ld.global.u32 %r1, [%rd1]; add.u32 %r1, %r1, 1; st.global.u32 [%rd1], %r1;"), 64);
    let c = &r.report.counters;
    assert_eq!((c.global_load_bytes, c.global_load_sectors), (256, 8));
    assert_eq!((c.global_store_bytes, c.global_store_sectors), (256, 8));
    assert_eq!((c.dram_read_bytes, c.dram_write_bytes, c.l2_footprint_bytes), (256, 256, 256));
    assert_eq!(r.report.traffic.len(), 1);
    assert_eq!(c.blocks, 1);
}

#[test]
fn sectors_are_counted_once_and_as_often_as_asked_for() {
    // Four warps read one word each of the same sector, and store each its own.
    let body = format!("mov.u64 %rd3, %rd0; ld.global.u32 %r1, [%rd3]; {OWN} st.global.u32 [%rd1], %r1;");
    let r = run(&body, 128);
    let traffic: Vec<_> = r.report.traffic.iter().map(|t| (t.loads, t.stores)).collect();
    let moved = |once_bytes, asked_bytes| crate::exec::Moved { once_bytes, asked_bytes };
    assert_eq!(traffic, [(moved(32, 4 * 32), moved(512, 512))]);
    assert_eq!(r.report.counters.l2_footprint_bytes, 512);
}

#[test]
fn bank_conflicts_are_counted_by_line() {
    let body = |stride: u32| format!("mov.u32 %r1, dyn; mad.lo.u32 %r2, %r0, {stride}, %r1; st.shared.u32 [%r2], %r0;");
    for (stride, passes) in [(4, 1), (8, 2), (128, 32), (0, 1)] {
        let l = Launch { dynamic_smem_bytes: 4096, ..block(32) };
        let r = launch(&body(stride), l, &Options::default(), &[0; 4]).unwrap();
        let b: Vec<_> = r.report.counters.banks.values().collect();
        assert_eq!((b.len(), b[0].passes, b[0].ideal_passes), (1, passes, 1), "stride {stride}");
    }
}

#[test]
fn one_seed_gives_one_schedule() {
    let body = format!("atom.shared.add.u32 %r1, [s], 1; {OWN} st.global.u32 [%rd1], %r1;");
    let body = format!("st.shared.u32 [s], 0; bar.sync 0; {body}");
    let once = |seed| {
        launch(&body, block(256), &Options { schedule: Schedule::Random(seed), ..Options::default() }, &[0; 256])
            .unwrap()
            .words
    };
    assert_eq!(once(5), once(5));
    let mut sorted = once(6);
    sorted.sort_unstable();
    assert_eq!(sorted, (0..256).collect::<Vec<u32>>());
}

#[test]
fn shared_variables_of_other_kernels_take_no_room() {
    let text = ".version 8.6\n.target sm_90a\n.address_size 64\n.shared .align 16 .b8 a[131072];\n.shared .align 16 .b8 b[131072];\n\
        .visible .entry k(.param .u64 x) { .reg .b32 %r<4>; mov.u32 %r1, 1; st.shared.u32 [a], %r1; ret; }\n\
        .visible .entry j(.param .u64 x) { .reg .b32 %r<4>; mov.u32 %r1, 1; st.shared.u32 [b], %r1; ret; }";
    let module = Module::parse(text).unwrap();
    for entry in ["k", "j"] {
        let program = Program::compile(&module, entry).unwrap();
        let mut device = Device::new(Target::parse("sm_90a").unwrap());
        let r =
            device.launch(&program, &Launch { params: vec![Param::U64(0)], ..block(1) }, &Options::default()).unwrap();
        assert!(r.findings.is_empty());
    }
}

#[test]
fn a_bulk_store_of_zeros_fills_shared_memory() {
    let body = format!(
        "st.bulk.weak.shared::cta [s], 128, 0; mov.u32 %r1, s; mad.lo.u32 %r1, %r0, 4, %r1; ld.shared.u32 %r2, [%r1]; add.u32 %r2, %r2, 3; {OWN} st.global.u32 [%rd1], %r2;"
    );
    let text = kernel(&body).replace("sm_90a", "sm_100a");
    let program = Program::compile(&Module::parse(&text).unwrap(), "k").unwrap();
    let mut device = Device::new(Target::parse("sm_100a").unwrap());
    let x = device.alloc(128).unwrap();
    let report =
        device.launch(&program, &Launch { params: vec![Param::U64(x)], ..block(32) }, &Options::default()).unwrap();
    assert!(report.findings.is_empty(), "{:#?}", report.findings);
    assert_eq!(device.download(x, 128).unwrap(), [3, 0, 0, 0].repeat(32));
}

#[test]
fn lanes_of_words_are_added_compared_and_averaged() {
    let cases = [
        ("vabsdiff4.u32.u32.u32 %r3, %r1, %r2, 0;", 0x0101_0010u32),
        ("vabsdiff4.u32.u32.u32.add %r3, %r1, %r2, 5;", 0x17),
        ("vadd4.s32.s32.s32.sat %r3, %r1, %r2, 0;", 0x03fd_06f0),
        ("vavrg4.u32.u32.u32 %r3, %r1, %r2, 0;", 0x02ff_0378),
        ("vset4.u32.u32.lt %r3, %r1, %r2, 0;", 0x0100_0000),
        ("vadd.u32.u32.u32 %r3, %r1.b0, %r2.h1;", 0x80 + 0x02fe),
        ("vadd.u32.u32.u32.sat %r3.b1, %r1.b0, %r2.b0, 0x11223344;", 0x1122_f044),
        ("vadd2.u32.u32.u32 %r3.h1, %r1, %r2, 0x7;", 0x04fd_0007),
        ("vmad.s32.s32.s32 %r3, -%r1.b0, %r2.b0, 1;", (-(-128i32 * 0x70) + 1) as u32),
        ("vmad.u32.u32.u32.shr7 %r3, %r1.b0, %r2.b0, 0;", 0x70),
        ("vshr.s32.s32.u32.clamp %r3, 0x80000000, 40;", 0xffff_ffff),
        ("vmin.s32.s32.s32.max %r3, %r1.b0, %r2.b0, 3;", 3),
    ];
    for (statement, want) in cases {
        let r = run(
            &format!("{OWN} mov.u32 %r1, 0x01ff0380; mov.u32 %r2, 0x02fe0370; {statement} st.global.u32 [%rd1], %r3;"),
            1,
        );
        clean(&r);
        assert_eq!(r.words[0], want, "{statement}: {:#x}", r.words[0]);
    }
}

#[test]
fn a_wmma_product_is_the_product_of_its_matrices() {
    // A[r][c] = r + c, B = identity, C = 100, as f16 and f32 in global memory that the kernel fills itself.
    let half = |x: u32| u32::from(crate::numeric::half::f32_to_f16(x as f32));
    let mut init = vec![0u32; 1024];
    for r in 0..16u32 {
        for c in 0..16u32 {
            let at = (r * 16 + c) as usize;
            init[at / 2] |= half(r + c) << (16 * (at % 2));
            init[128 + at / 2] |= half(u32::from(r == c)) << (16 * (at % 2));
            init[256 + at] = 100f32.to_bits();
        }
    }
    for (layout, index) in [("row", 0), ("col", 1)] {
        let body = format!(
            "add.u64 %rd1, %rd0, 512; add.u64 %rd2, %rd0, 1024; add.u64 %rd3, %rd0, 2048; mov.u32 %r31, 16;\n\
             .reg .b32 a<8>; .reg .b32 b<8>; .reg .b32 c<8>;\n\
             wmma.load.a.sync.aligned.row.m16n16k16.global.f16 {{a0,a1,a2,a3,a4,a5,a6,a7}}, [%rd0], %r31;\n\
             wmma.load.b.sync.aligned.{layout}.m16n16k16.global.f16 {{b0,b1,b2,b3,b4,b5,b6,b7}}, [%rd1];\n\
             wmma.load.c.sync.aligned.row.m16n16k16.global.f32 {{c0,c1,c2,c3,c4,c5,c6,c7}}, [%rd2];\n\
             wmma.mma.sync.aligned.row.{layout}.m16n16k16.f32.f32 {{c0,c1,c2,c3,c4,c5,c6,c7}}, {{a0,a1,a2,a3,a4,a5,a6,a7}}, {{b0,b1,b2,b3,b4,b5,b6,b7}}, {{c0,c1,c2,c3,c4,c5,c6,c7}};\n\
             wmma.store.d.sync.aligned.{layout}.m16n16k16.global.f32 [%rd3], {{c0,c1,c2,c3,c4,c5,c6,c7}}, %r31;"
        );
        let r = launch(&body, block(32), &Options::default(), &init).unwrap_or_else(|e| panic!("{e}"));
        clean(&r);
        for row in 0..16 {
            for c in 0..16 {
                let at = if index == 0 { row * 16 + c } else { c * 16 + row };
                assert_eq!(f32::from_bits(r.words[512 + at]), 100.0 + (row + c) as f32, "{layout} {row} {c}");
            }
        }
    }
}

#[test]
fn a_shared_address_of_32_bits_wraps_before_the_access() {
    let r = run(
        &format!(
            "{OWN} mov.u32 %r1, s; st.shared.u32 [%r1+4], 7; sub.u32 %r2, %r1, 0x100; add.u32 %r2, %r2, 0xfffffff0; ld.shared.u32 %r3, [%r2+0x114]; st.global.u32 [%rd1], %r3;"
        ),
        1,
    );
    clean(&r);
    let r = run(
        &format!(
            "{OWN} mov.u32 %r1, s; st.shared.u32 [%r1+4], 7; neg.s32 %r2, %r1; not.b32 %r2, %r2; add.u32 %r2, %r2, 1; sub.u32 %r4, 0, 64; ld.shared.u32 %r3, [%r4+1092]; st.global.u32 [%rd1], %r3;"
        ),
        1,
    );
    clean(&r);
    assert_eq!(r.words[0], 7);
}

#[test]
fn what_a_kernel_prints_and_asserts_is_told() {
    let text = |body: &str| {
        format!(
            ".version 8.0\n.target sm_90a\n.address_size 64\n\
             .extern .func (.param .b32 r) vprintf(.param .b64 f, .param .b64 v);\n\
             .extern .func __assertfail(.param .b64 m, .param .b64 f, .param .b32 l, .param .b64 n, .param .b64 s);\n\
             .global .align 1 .b8 f[18] = {{120, 61, 37, 100, 32, 37, 46, 50, 102, 32, 37, 115, 33, 10, 0, 104, 105, 0}};\n\
             .visible .entry k(.param .u64 x) {{ .reg .b64 %rd<4>; .reg .b32 %r<4>; .local .align 8 .b8 v[24];\n{body}\nret; }}"
        )
    };
    let go = |body: &str| {
        let program = Program::compile(&Module::parse(&text(body)).unwrap(), "k").unwrap();
        let mut device = Device::new(Target::parse("sm_90a").unwrap());
        device.launch(&program, &Launch { params: vec![Param::U64(0)], ..block(1) }, &Options::default())
    };
    let report = go("st.local.u32 [v], -3; st.local.f64 [v+8], 0d4004000000000000; mov.u64 %rd1, f; add.u64 %rd2, %rd1, 15; st.local.u64 [v+16], %rd2;\n\
                     mov.u64 %rd3, v; cvta.local.u64 %rd3, %rd3; { .param .b64 a; .param .b64 b; .param .b32 c; st.param.b64 [a], %rd1; st.param.b64 [b], %rd3; call.uni (c), vprintf, (a, b); ld.param.b32 %r1, [c]; }").unwrap();
    assert_eq!(report.printed, "x=-3 2.50 hi!\n");
    let error = go("mov.u64 %rd1, f; { .param .b64 a; .param .b64 b; .param .b32 c; .param .b64 d; .param .b64 e; add.u64 %rd1, %rd1, 15; st.param.b64 [a], %rd1; st.param.b64 [b], %rd1; st.param.b32 [c], 12; st.param.b64 [d], %rd1; st.param.b64 [e], 1; call.uni __assertfail, (a, b, c, d, e); }").unwrap_err();
    assert!(error.to_string().contains("`hi` at hi:12 in `hi`"), "{error}");
}

#[test]
fn a_finding_names_the_line_of_the_source() {
    // A race between two warps, compiled from two lines of a file; the loop variable's line 0 stands for none.
    let body = ".loc 1 12 5\nmov.u32 %r1, s;\n.loc 1 13 5, function_name $L__info_string0, inlined_at 1 40 3\n\
                st.shared.u32 [%r1], %r0;\n.loc 1 0 0\nadd.u32 %r2, %r1, 4;";
    let text = kernel(body) + ".file 1 \"/src/gemm.cu\"\n";
    let program = Program::compile(&Module::parse(&text).unwrap(), "k").unwrap_or_else(|e| panic!("{e}"));
    let mut device = Device::new(Target::parse("sm_90a").unwrap());
    let x = device.alloc(4).unwrap();
    let launch = Launch { params: vec![Param::U64(x)], ..block(64) };
    let report = device.launch(&program, &launch, &Options::default()).unwrap();
    let race = report.findings.iter().find(|f| f.check == Check::Race).unwrap();
    let place = race.place.clone().unwrap();
    assert_eq!((place.file.as_str(), place.line), ("/src/gemm.cu", 13));
    let shown = race.to_string();
    assert!(shown.contains(" gemm.cu:13,") && race.other.as_ref().unwrap().contains("(gemm.cu:13)"), "{shown}");
}
