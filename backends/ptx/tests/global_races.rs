//! CTAs of a grid that share global memory: what releases, acquires, fences and scopes order is right, and with one of them taken out,
//! turned or of too small a scope it is a race.
#![allow(clippy::unwrap_used)]

use moec_ptx::ast::Module;
use moec_ptx::exec::{Check, Device, Launch, Options, Param, Program, Report, Schedule, Target};

const HEAD: &str = ".version 8.7 .target sm_90a .address_size 64
.visible .entry k(.param .u64 data, .param .u64 flag, .param .u64 out) {
.reg .b32 %r<16>; .reg .b64 %rd<16>; .reg .pred %p<8>;
ld.param.u64 %rd1, [data]; ld.param.u64 %rd2, [flag]; ld.param.u64 %rd3, [out];
mov.u32 %r1, %ctaid.x; mov.u32 %r2, %tid.x; mov.u32 %r9, %nctaid.x;
mul.wide.u32 %rd4, %r2, 4; add.s64 %rd5, %rd1, %rd4;
mad.lo.u32 %r3, %r1, 64, %r2; mul.wide.u32 %rd6, %r3, 4; add.s64 %rd7, %rd1, %rd6;
";

/// Runs a body with blocks of 64 threads on so many host threads, under several schedules; everything that was reported.
fn run(body: &str, blocks: u32, cluster: u32, threads: usize) -> Vec<Report> {
    let module = Module::parse(&format!("{HEAD}{body} ret; }}")).unwrap_or_else(|e| panic!("{e}\n{body}"));
    let program = Program::compile(&module, "k").unwrap_or_else(|e| panic!("{e}\n{body}"));
    let one = |schedule| {
        let mut device = Device::new(Target::parse("sm_90a").unwrap());
        let [data, flag, out] = [4096, 256, 4096].map(|bytes| {
            let address = device.alloc(bytes).unwrap();
            device.upload(address, &vec![0; bytes as usize]).unwrap();
            address
        });
        let params = [data, flag, out].map(Param::U64).to_vec();
        let launch =
            Launch { grid: [blocks, 1, 1], block: [64, 1, 1], cluster: [cluster, 1, 1], params, ..Launch::default() };
        device.launch(&program, &launch, &Options { schedule, threads, ..Options::default() }).unwrap()
    };
    [Schedule::RoundRobin, Schedule::Random(1), Schedule::Random(2)].map(one).into()
}

fn is_right(body: &str, blocks: u32, cluster: u32) {
    for report in run(body, blocks, cluster, 8) {
        assert!(report.findings.is_empty(), "{}\n{body}", report.findings[0]);
    }
}

fn is_a_race(body: &str, blocks: u32, cluster: u32) {
    // Which block comes last is not left to the host.
    let races = run(body, blocks, cluster, 1);
    let found = races.iter().flat_map(|r| &r.findings).any(|f| f.check == Check::Race && f.message.contains("global"));
    assert!(found, "no race in\n{body}");
}

/// Without each of the pieces the rest is a race; with `{…}` around alternatives: the right one, then a wrong one.
fn each_piece_counts(body: &str, blocks: u32, cluster: u32) {
    let whole = body.replace(['«', '»'], "");
    is_right(&whole, blocks, cluster);
    for (at, _) in body.match_indices('«') {
        let end = at + body[at..].find('»').unwrap() + '»'.len_utf8();
        is_a_race(&format!("{}{}", &body[..at], &body[end..]).replace(['«', '»'], ""), blocks, cluster);
    }
}

/// The reduction of CUDA's samples: each block writes, fences and counts; the last one reads what all wrote.
#[test]
fn the_last_block_reads_what_all_wrote() {
    each_piece_counts(
        "add.s32 %r4, %r3, 1; st.global.u32 [%rd7], %r4;
         «bar.sync 0;» setp.ne.u32 %p1, %r2, 0; @%p1 bra WAIT;
         «fence.acq_rel.gpu;» atom.relaxed.gpu.global.add.u32 %r5, [%rd2], 1; «fence.acq_rel.gpu;»
         WAIT: bar.sync 0; setp.ne.u32 %p2, %r2, 0; @%p2 bra END;
         add.s32 %r6, %r5, 1; setp.ne.u32 %p3, %r6, %r9; @%p3 bra END;
         ld.global.u32 %r7, [%rd1]; ld.global.u32 %r8, [%rd1+128]; st.global.u32 [%rd3], %r8; END:",
        4,
        1,
    );
}

/// As Triton and our own kernels write it: one atomic that releases and acquires, and a barrier on both sides.
#[test]
fn an_atomic_releases_and_acquires() {
    let body = |order: &str| {
        format!(
            "st.global.u32 [%rd7], %r3; bar.sync 0; setp.ne.u32 %p1, %r2, 0; .reg .b32 %s; @%p1 bra WAIT;
             atom.{order}.global.add.u32 %r5, [%rd2], 1; st.global.u32 [%rd3+1024], %r5;
             WAIT: bar.sync 0; @%p1 bra END;
             add.s32 %r6, %r5, 1; setp.ne.u32 %p3, %r6, %r9; @%p3 bra END;
             ld.global.u32 %r7, [%rd1]; ld.global.u32 %r8, [%rd1+256]; END:"
        )
        .replace("st.global.u32 [%rd3+1024], %r5;", "")
        .replace(".reg .b32 %s;", "")
    };
    is_right(&body("acq_rel.gpu"), 4, 1);
    is_right(&body("acq_rel.sys"), 4, 1);
    for order in ["acq_rel.cta", "acq_rel.cluster", "release.gpu", "acquire.gpu", "relaxed.gpu"] {
        is_a_race(&body(order), 4, 1);
    }
    // A cluster is a scope for its own CTAs.
    is_right(&body("acq_rel.cluster"), 4, 4);
    is_a_race(&body("acq_rel.cluster"), 4, 2);
    is_a_race(&body("acq_rel.cta"), 4, 4);
}

/// Block 0 sets a flag for which block 1 waits; what it wrote before another flag is passed on.
#[test]
fn flags_pass_on_what_was_seen() {
    let chain = |store: &str, load: &str| {
        format!(
            "setp.ne.u32 %p1, %r2, 0; @%p1 bra END; setp.ne.u32 %p2, %r1, 0; @%p2 bra NEXT;
             st.global.u32 [%rd1], 7; {store} [%rd2], 1; bra END;
             NEXT: sub.s32 %r4, %r1, 1; mul.wide.u32 %rd8, %r4, 4; add.s64 %rd9, %rd2, %rd8;
             SPIN: {load} %r5, [%rd9]; setp.eq.u32 %p3, %r5, 0; @%p3 bra SPIN;
             {store} [%rd9+4], 1; ld.global.u32 %r6, [%rd1]; END:"
        )
    };
    is_right(&chain("st.release.gpu.global.u32", "ld.acquire.gpu.global.u32"), 3, 1);
    is_right(&chain("fence.acq_rel.gpu; st.relaxed.gpu.global.u32", "ld.acquire.gpu.global.u32"), 3, 1);
    is_right(&chain("membar.gl; st.volatile.global.u32", "ld.acquire.sys.global.u32"), 3, 1);
    is_a_race(&chain("st.relaxed.gpu.global.u32", "ld.acquire.gpu.global.u32"), 3, 1);
    is_a_race(&chain("st.release.gpu.global.u32", "ld.relaxed.gpu.global.u32"), 3, 1);
    is_a_race(&chain("membar.cta; st.volatile.global.u32", "ld.acquire.gpu.global.u32"), 3, 1);
    is_a_race(&chain("st.release.cta.global.u32", "ld.acquire.gpu.global.u32"), 3, 1);
}

/// From block 0 to block 1 of its cluster by way of another cluster, whose block 2 passes on what it has learned.
#[test]
fn another_cluster_passes_on_what_a_cluster_has_seen() {
    let detour = |store: &str, load: &str| {
        format!(
            "setp.ne.u32 %p1, %r2, 0; @%p1 bra END; setp.eq.u32 %p4, %r1, 3; @%p4 bra END;
             setp.ne.u32 %p2, %r1, 0; @%p2 bra NEXT; st.global.u32 [%rd1], 7; {store} [%rd2], 1; bra END;
             NEXT: setp.eq.u32 %p5, %r1, 2; selp.u32 %r4, 0, 1, %p5; mul.wide.u32 %rd8, %r4, 4; add.s64 %rd9, %rd2, %rd8;
             SPIN: {load} %r5, [%rd9]; setp.eq.u32 %p3, %r5, 0; @%p3 bra SPIN;
             {store} [%rd9+4], 1; ld.global.u32 %r6, [%rd1]; END:"
        )
    };
    is_right(&detour("st.release.gpu.global.u32", "ld.acquire.gpu.global.u32"), 4, 2);
    is_right(&detour("fence.acq_rel.gpu; st.relaxed.gpu.global.u32", "ld.acquire.gpu.global.u32"), 4, 2);
    is_a_race(&detour("st.relaxed.gpu.global.u32", "ld.acquire.gpu.global.u32"), 4, 2);
    is_a_race(&detour("st.release.gpu.global.u32", "ld.relaxed.gpu.global.u32"), 4, 2);
}

/// As our own kernels and CUDA's cooperative groups do: the last one sets the count back, by a plain store. Who has observed a count
/// comes after it, by an atomic of its own or by a poll.
#[test]
fn the_last_block_sets_the_count_back() {
    let ticket =
        "setp.ne.u32 %p1, %r2, 0; @%p1 bra END; «fence.acq_rel.gpu;» atom.relaxed.gpu.global.add.u32 %r5, [%rd2], 1;
        add.u32 %r5, %r5, 1; setp.ne.u32 %p2, %r5, %r9; @%p2 bra END; fence.acq_rel.gpu; st.global.u32 [%rd2], 0; END:";
    let poll = |atom: &str, load: &str| {
        format!(
            "setp.ne.u32 %p1, %r2, 0; @%p1 bra END; setp.eq.u32 %p3, %r1, 0; @%p3 bra POLL;
             {atom}.global.add.u32 %r5, [%rd2], 1; bra END;
             POLL: {load}.global.u32 %r5, [%rd2]; add.u32 %r5, %r5, 1; setp.lt.u32 %p2, %r5, %r9; @%p2 bra POLL;
             fence.acq_rel.gpu; st.global.u32 [%rd2], 0; END:"
        )
    };
    for _ in 0..20 {
        is_right(&ticket.replace(['«', '»'], ""), 64, 1);
        is_right(&poll("atom.acq_rel.gpu", "ld.acquire.gpu"), 8, 1);
        is_right(&poll("fence.acq_rel.gpu; atom.relaxed.gpu", "ld.relaxed.gpu"), 8, 1);
    }
    is_a_race(&poll("atom.acq_rel.cta", "ld.acquire.gpu"), 8, 1);
}

/// Several blocks may store one value in one place, whichever host thread is first.
#[test]
fn one_value_from_all_blocks_is_no_race() {
    for _ in 0..20 {
        is_right("st.global.u32 [%rd5], 7; st.global.u32 [%rd5+1024], %r2;", 64, 1);
    }
    is_a_race("st.global.u32 [%rd5], %r1;", 64, 1);
}

/// What is written after the release is not released.
#[test]
fn a_release_is_for_what_came_before() {
    is_a_race(
        "setp.ne.u32 %p1, %r2, 0; @%p1 bra END; setp.ne.u32 %p2, %r1, 0; @%p2 bra NEXT;
         fence.acq_rel.gpu; st.global.u32 [%rd1], 7; st.relaxed.gpu.global.u32 [%rd2], 1; bra END;
         NEXT: SPIN: ld.acquire.gpu.global.u32 %r5, [%rd2]; setp.eq.u32 %p3, %r5, 0; @%p3 bra SPIN;
         ld.global.u32 %r6, [%rd1]; END:",
        2,
        1,
    );
}

/// Two blocks that write the same bytes, or bytes side by side, or the same value.
#[test]
fn writes_meet_in_the_same_bytes_only() {
    is_a_race("add.s32 %r4, %r1, 1; st.global.u32 [%rd5], %r4;", 2, 1);
    is_right("st.global.u32 [%rd5], 3;", 2, 1);
    is_right(
        "mul.wide.u32 %rd8, %r1, 2; add.s64 %rd9, %rd1, %rd8; cvt.u16.u32 %h, %r2; st.global.u16 [%rd9], %h;"
            .replace("cvt.u16.u32 %h, %r2;", ".reg .b16 %h; mov.u16 %h, 5;")
            .as_str(),
        8,
        1,
    );
    is_right("red.global.add.u32 [%rd5], 1;", 4, 1);
    is_a_race("setp.ne.u32 %p1, %r1, 0; @%p1 red.global.add.u32 [%rd5], 1; @!%p1 st.global.u32 [%rd5], 9;", 2, 1);
    // Beside atomics a weak read is a note.
    let reports =
        run("ld.global.u32 %r4, [%rd5]; red.global.add.u32 [%rd5], %r4; red.global.add.u32 [%rd5], 1;", 4, 1, 1);
    assert!(reports.iter().all(|r| r.findings.is_empty()));
    assert!(reports.iter().any(|r| r.notes.iter().any(|n| n.check == Check::Race)));
}

/// A barrier of the cluster orders its CTAs, not others.
#[test]
fn a_cluster_barrier_orders_its_ctas() {
    let body = "xor.b32 %r4, %r1, 1; mad.lo.u32 %r5, %r4, 64, %r2; mul.wide.u32 %rd8, %r5, 4; add.s64 %rd9, %rd1, %rd8;
         st.global.u32 [%rd7], %r3; «barrier.cluster.arrive.release; barrier.cluster.wait.acquire;» ld.global.u32 %r6, [%rd9];";
    each_piece_counts(body, 4, 2);
    let other = body.replace(['«', '»'], "").replace("xor.b32 %r4, %r1, 1", "xor.b32 %r4, %r1, 2");
    is_a_race(&other, 4, 2);
}

/// A bulk store is complete for others only after `cp.async.bulk.wait_group`, not after the one that waits for its reads.
#[test]
fn a_bulk_store_is_released_after_its_wait() {
    let body = |wait: &str| {
        format!(
            ".shared .align 16 .b8 s[16]; .reg .b32 %a; mov.u32 %a, s; setp.ne.u32 %p1, %r2, 0; @%p1 bra END;
             setp.ne.u32 %p2, %r1, 0; @%p2 bra NEXT;
             st.shared.v4.u32 [%a], {{1, 2, 3, 4}}; fence.proxy.async.shared::cta;
             cp.async.bulk.global.shared::cta.bulk_group [%rd1], [%a], 16; cp.async.bulk.commit_group;
             {wait} 0; st.release.gpu.global.u32 [%rd2], 1; bra END;
             NEXT: SPIN: ld.acquire.gpu.global.u32 %r5, [%rd2]; setp.eq.u32 %p3, %r5, 0; @%p3 bra SPIN;
             fence.proxy.async; ld.global.u32 %r6, [%rd1]; END:"
        )
    };
    is_right(&body("cp.async.bulk.wait_group"), 2, 1);
    is_a_race(&body("cp.async.bulk.wait_group.read"), 2, 1);
}

/// Bulk copies of one CTA to a part of another's place: the same bytes are no race, whichever host threads run them; others are.
#[test]
fn the_same_bytes_copied_by_all_at_once_are_no_race() {
    let body = |value: &str| {
        format!(
            ".shared .align 128 .b8 tile[2048];
             mov.u32 %r4, tile; mad.lo.u32 %r5, %r2, 32, %r4; mov.u32 %r6, {value};
             st.shared.v4.b32 [%r5], {{%r6, %r6, %r6, %r6}}; st.shared.v4.b32 [%r5+16], {{%r6, %r6, %r6, %r6}};
             fence.proxy.async.shared::cta; bar.sync 0; setp.ne.u32 %p1, %r2, 0; @%p1 bra END;
             and.b32 %r7, %r1, 3; mul.wide.u32 %rd8, %r7, 512; add.s64 %rd8, %rd1, %rd8;
             cp.async.bulk.global.shared::cta.bulk_group [%rd8], [%r4], 2048;
             cp.async.bulk.commit_group; cp.async.bulk.wait_group 0; END:"
        )
    };
    for _ in 0..100 {
        is_right(&body("7"), 64, 1);
    }
    is_a_race(&body("%r1"), 64, 1);
}
