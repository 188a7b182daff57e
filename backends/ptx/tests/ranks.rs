//! Ranks that exchange rows through each other's memory: right as written, and every piece of its synchronisation counts.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use moec_ptx::ast::Module;
use moec_ptx::buffers::{Buffer, Buffers, Dtype};
use moec_ptx::exec::{Check, ExecError, Launch, Options, Param, Program, Ranks, RanksReport, Schedule, Step, Target};
use moec_ptx::launch::{emulate_ranks, parse_ranks};

const EXCHANGE: &str = include_str!("ranks/exchange.ptx");
const COLUMNS: u32 = 64;
const SCHEDULES: [Schedule; 4] = [Schedule::RoundRobin, Schedule::Random(1), Schedule::Random(2), Schedule::Random(3)];

/// The shape of an exchange.
#[derive(Clone, Copy)]
struct Shape {
    ranks: u32,
    tokens: u32,
    topk: u32,
    per_rank: u32,
    epochs: u32,
}

const SMALL: Shape = Shape { ranks: 3, tokens: 4, topk: 2, per_rank: 2, epochs: 3 };

/// What a test changes beside the text of the kernels.
#[derive(Clone, Copy, Default)]
struct Odd {
    /// This rank's last kernels never start.
    dies: Option<u32>,
    /// Windows that only their own rank sees.
    private_windows: bool,
}

struct Kernels([Program; 3]);

fn compile(text: &str) -> Kernels {
    let module = Module::parse(text).unwrap_or_else(|e| panic!("{e}"));
    Kernels(
        ["dispatch", "experts", "combine"]
            .map(|name| Program::compile(&module, name).unwrap_or_else(|e| panic!("{e}"))),
    )
}

fn x(epoch: u32, rank: u32, token: u32, column: u32) -> f32 {
    (epoch * 1000 + rank * 100 + token * 10) as f32 + column as f32 / 64.0
}

/// Experts of a token: the last rank's are nobody's, and rank 1 sends to itself only.
fn expert(s: Shape, rank: u32, token: u32, slot: u32) -> u32 {
    match rank {
        1 => s.per_rank + slot % s.per_rank,
        _ => (rank + 3 * token + 2 * slot) % ((s.ranks - 1) * s.per_rank),
    }
}

fn bytes_of(words: impl Iterator<Item = u32>) -> Vec<u8> {
    words.flat_map(u32::to_le_bytes).collect()
}

/// Runs the exchange; the report, and whether every output is right.
fn exchange(kernels: &Kernels, s: Shape, odd: Odd, options: &Options) -> Result<(RanksReport, bool), ExecError> {
    let mut ranks = Ranks::new(Target::parse("sm_90a").unwrap(), s.ranks);
    let window_bytes = 2048 + u64::from(s.ranks * s.tokens) * (4 + 2 * 4 * u64::from(COLUMNS));
    let mut windows = Vec::new();
    for rank in 0..s.ranks {
        let window =
            if odd.private_windows { ranks.alloc(rank, window_bytes) } else { ranks.window(rank, window_bytes) };
        windows.push(window?);
        ranks.upload(windows[rank as usize], &[0; 2048])?;
    }
    let table: Vec<u8> = windows.iter().flat_map(|w| w.to_le_bytes()).collect();
    let (mut streams, mut outs) = (Vec::new(), Vec::new());
    for rank in 0..s.ranks {
        let upload = |ranks: &mut Ranks, bytes: &[u8]| {
            let at = ranks.alloc(rank, bytes.len() as u64).unwrap();
            ranks.upload(at, bytes).unwrap();
            Param::U64(at)
        };
        let pair = |token| (0..s.topk).map(move |slot| expert(s, rank, token, slot));
        let (table, ids) = (upload(&mut ranks, &table), upload(&mut ranks, &bytes_of((0..s.tokens).flat_map(pair))));
        let [r, n, t, k, per] = [rank, s.ranks, s.tokens, s.topk, s.per_rank].map(Param::U32);
        let mut stream = Vec::new();
        for epoch in 1..=s.epochs {
            let row = |token| (0..COLUMNS).map(move |c| x(epoch, rank, token, c).to_bits());
            let x = upload(&mut ranks, &bytes_of((0..s.tokens).flat_map(row)));
            let out = ranks.alloc(rank, u64::from(s.tokens * COLUMNS) * 4)?;
            outs.push((rank, epoch, out));
            let [table, ids, x, r, n, t, k, per] = [&table, &ids, &x, &r, &n, &t, &k, &per].map(Clone::clone);
            let e = Param::U32(epoch);
            let params = [
                [&table, &x, &ids, &r, &n, &t, &k, &per, &e].map(Clone::clone).to_vec(),
                [&table, &r, &n, &t, &e].map(Clone::clone).to_vec(),
                [&table, &ids, &Param::U64(out), &r, &n, &t, &k, &per, &e].map(Clone::clone).to_vec(),
            ];
            let grids = [s.ranks, s.ranks, s.tokens];
            for ((program, params), grid) in kernels.0.iter().zip(params).zip(grids) {
                let launch = Launch { grid: [grid, 1, 1], block: [COLUMNS, 1, 1], params, ..Launch::default() };
                stream.push(Step { program, launch });
            }
        }
        if odd.dies == Some(rank) {
            stream.truncate(stream.len() - 2);
        }
        streams.push(stream);
    }
    let report = ranks.launch(&streams, options)?;
    let mut right = true;
    for (rank, epoch, out) in outs {
        let words = ranks.download(out, (s.tokens * COLUMNS) as usize * 4)?;
        for (i, word) in words.chunks(4).enumerate() {
            let (token, column) = (i as u32 / COLUMNS, i as u32 % COLUMNS);
            let owner = |slot| expert(s, rank, token, slot) / s.per_rank;
            let want = (0..s.topk).map(|slot| x(epoch, rank, token, column) * (owner(slot) + 1) as f32);
            right &= f32::from_le_bytes(word.try_into().unwrap()) == want.sum::<f32>();
        }
    }
    Ok((report, right))
}

fn options(schedule: Schedule) -> Options {
    Options { schedule, threads: 1, ..Options::default() }
}

fn is_right(text: &str, s: Shape, options: &Options) -> RanksReport {
    let (report, right) = exchange(&compile(text), s, Odd::default(), options).unwrap_or_else(|e| panic!("{e}"));
    let findings: Vec<_> = report.all().flat_map(|r| r.findings.iter().chain(&r.notes)).collect();
    assert!(findings.is_empty(), "{}", findings[0]);
    assert!(right, "an output is wrong");
    report
}

#[test]
fn rows_go_there_and_back() {
    for schedule in SCHEDULES {
        is_right(EXCHANGE, SMALL, &options(schedule));
    }
    // However host threads take turns.
    for _ in 0..5 {
        is_right(EXCHANGE, SMALL, &Options { threads: 4, ..Options::default() });
    }
    is_right(EXCHANGE, Shape { ranks: 2, tokens: 1, ..SMALL }, &Options::default());
}

/// A rack of 72 devices, two experts on each.
#[test]
fn a_rack_exchanges_rows() {
    let s = Shape { ranks: 72, tokens: 2, topk: 8, per_rank: 2, epochs: 2 };
    is_right(EXCHANGE, s, &options(Schedule::Random(1)));
}

/// Each row goes once to each rank that owns one of its experts, not once to each expert.
#[test]
fn what_leaves_a_rank_is_counted() {
    let s = SMALL;
    let report = is_right(EXCHANGE, s, &options(Schedule::RoundRobin));
    for rank in 0..s.ranks {
        let sends = |token| {
            let owners = (0..s.topk).map(|slot| expert(s, rank, token, slot) / s.per_rank).filter(|o| *o != rank);
            owners.collect::<std::collections::BTreeSet<u32>>().len() as u64
        };
        let rows: u64 = (0..s.tokens).map(sends).sum();
        let far: u64 = report.launches[rank as usize].iter().step_by(3).map(|r| r.counters.far_store_bytes).sum();
        let flags = u64::from(s.ranks - 1) * 4;
        assert_eq!(far, u64::from(s.epochs) * (rows * (u64::from(COLUMNS) * 4 + 4) + flags), "rank {rank}");
        assert!(report.launches[rank as usize].iter().all(|r| r.counters.far_load_bytes == 0));
    }
}

/// Text to replace, which of its occurrences, and by what.
type Mutant = (&'static str, &'static str, usize, &'static str);

const MUTANTS: [Mutant; 34] = [
    ("dispatch: no barrier before the flag", "bar.sync 0;", 0, ""),
    ("dispatch: a relaxed flag", "st.release.sys.global.u32 [%rd12]", 0, "st.relaxed.sys.global.u32 [%rd12]"),
    ("dispatch: a flag for the device", "st.release.sys.global.u32 [%rd12]", 0, "st.release.gpu.global.u32 [%rd12]"),
    ("dispatch: a flag for the CTA", "st.release.sys.global.u32 [%rd12]", 0, "st.release.cta.global.u32 [%rd12]"),
    ("dispatch: a weak flag", "st.release.sys.global.u32 [%rd12]", 0, "st.global.u32 [%rd12]"),
    (
        "dispatch: the flag before the rows",
        "TOKEN:",
        0,
        "shl.b32 %r19, %r6, 8; or.b32 %r19, %r19, 1; mul.wide.u32 %rd12, %r1, 4; add.s64 %rd12, %rd5, %rd12; st.release.sys.global.u32 [%rd12], %r19;\nTOKEN:",
    ),
    ("dispatch: one row too many", "or.b32 %r19, %r19, %r12;", 0, "add.u32 %r12, %r12, 1; or.b32 %r19, %r19, %r12;"),
    (
        "dispatch: one row too few",
        "or.b32 %r19, %r19, %r12;",
        0,
        "max.u32 %r12, %r12, 1; sub.u32 %r12, %r12, 1; or.b32 %r19, %r19, %r12;",
    ),
    (
        "dispatch: rows begin at one",
        "mov.u32 %r11, 0; mov.u32 %r12, 0;",
        0,
        "mov.u32 %r11, 0; mov.u32 %r12, 0; add.s64 %rd7, %rd7, 256;",
    ),
    (
        "dispatch: tokens begin at one",
        "mov.u32 %r11, 0; mov.u32 %r12, 0;",
        0,
        "mov.u32 %r11, 0; mov.u32 %r12, 0; add.s64 %rd6, %rd6, 4;",
    ),
    (
        "dispatch: no flag where nothing is sent",
        "setp.ne.u32 %p6, %r8, 0;",
        0,
        "setp.eq.u32 %p7, %r12, 0; @%p7 bra DONE; setp.ne.u32 %p6, %r8, 0;",
    ),
    (
        "dispatch: the flag of the last epoch",
        "shl.b32 %r19, %r6, 8;",
        0,
        "sub.u32 %r20, %r6, 1; shl.b32 %r19, %r20, 8;",
    ),
    ("dispatch: the flag of another source", "mul.wide.u32 %rd12, %r1, 4;", 0, "mul.wide.u32 %rd12, %r7, 4;"),
    ("dispatch: the rows of another source", "mul.lo.u32 %r9, %r1, %r3;", 0, "mul.lo.u32 %r9, %r7, %r3;"),
    ("dispatch: the flag without an epoch", "shl.b32 %r19, %r6, 8;", 0, "mov.u32 %r19, 256;"),
    ("experts: no wait", "setp.ne.u32 %p2, %r10, %r6; @%p2 bra POLL;", 0, ""),
    ("experts: a relaxed poll", "ld.acquire.sys.global.u32 %r9", 0, "ld.relaxed.sys.global.u32 %r9"),
    ("experts: a poll for the device", "ld.acquire.sys.global.u32 %r9", 0, "ld.acquire.gpu.global.u32 %r9"),
    ("experts: a volatile poll", "ld.acquire.sys.global.u32 %r9", 0, "ld.volatile.global.u32 %r9"),
    ("experts: no barrier after the poll", "bar.sync 0;", 1, ""),
    ("experts: any epoch will do", "setp.ne.u32 %p2, %r10, %r6;", 0, "setp.eq.u32 %p2, %r10, 0;"),
    ("experts: the flag of the first source", "mul.wide.u32 %rd6, %r7, 4;", 0, "mov.u64 %rd6, 0;"),
    ("experts: no barrier before the flag", "bar.sync 0;", 2, ""),
    ("experts: no fence", "fence.acq_rel.sys;", 0, ""),
    ("experts: a fence for the device", "fence.acq_rel.sys;", 0, "fence.acq_rel.gpu;"),
    ("experts: a flag for the device", "st.relaxed.sys.global.u32", 0, "st.relaxed.gpu.global.u32"),
    ("experts: the fence before the rows", "ROW:", 0, "fence.acq_rel.sys;\nROW:"),
    ("experts: results of another rank", "mul.wide.u32 %rd14, %r12, 256;", 0, "mul.wide.u32 %rd14, %r11, 256;"),
    ("experts: the flag of another rank", "mul.wide.u32 %rd16, %r1, 4;", 0, "mul.wide.u32 %rd16, %r7, 4;"),
    ("combine: no wait", "setp.ne.u32 %p3, %r10, %r6; @%p3 bra POLL;", 0, ""),
    ("combine: no fence", "fence.acq_rel.sys;", 1, ""),
    ("combine: a fence for the device", "fence.acq_rel.sys;", 1, "fence.acq_rel.gpu;"),
    ("combine: a poll for the device", "ld.relaxed.sys.global.u32 %r10", 0, "ld.relaxed.gpu.global.u32 %r10"),
    (
        "combine: no wait for the last rank",
        "setp.ge.u32 %p2, %r9, %r2;",
        0,
        "sub.u32 %r17, %r2, 1; setp.ge.u32 %p2, %r9, %r17;",
    ),
];

fn mutated((name, from, at, to): Mutant) -> String {
    let (start, _) = EXCHANGE.match_indices(from).nth(at).unwrap_or_else(|| panic!("{name}: no such text"));
    let text = format!("{}{to}{}", &EXCHANGE[..start], &EXCHANGE[start + from.len()..]);
    // The fence that is now too early is not there any more.
    if name == "experts: the fence before the rows" {
        return text.replacen("DONE;\n    fence.acq_rel.sys;", "DONE;", 1);
    }
    text
}

/// What gives a mutant away: under the first schedule that does, an error, a finding or a wrong output.
fn given_away(mutant: Mutant) -> Option<String> {
    let kernels = compile(&mutated(mutant));
    SCHEDULES.into_iter().find_map(|schedule| {
        let options = Options { instruction_limit: 20_000_000, ..options(schedule) };
        let (report, right) = match exchange(&kernels, SMALL, Odd::default(), &options) {
            Err(e) => return e.to_string().lines().next().map(str::to_owned),
            Ok(result) => result,
        };
        let finding = report.all().flat_map(|r| &r.findings).next().map(ToString::to_string);
        finding.or_else(|| (!right).then(|| "a wrong output".to_owned())).map(|what| format!("{what} [{schedule:?}]"))
    })
}

#[test]
fn every_mutant_is_noticed() {
    let missed: Vec<&str> = MUTANTS.into_iter().filter(|m| given_away(*m).is_none()).map(|m| m.0).collect();
    assert!(missed.is_empty(), "{missed:?}");
}

#[test]
fn private_memory_is_not_a_window() {
    let odd = Odd { private_windows: true, ..Odd::default() };
    let options = Options { instruction_limit: 5_000_000, ..options(Schedule::RoundRobin) };
    match exchange(&compile(EXCHANGE), SMALL, odd, &options) {
        Ok((report, _)) => {
            let found = report.all().flat_map(|r| &r.findings).any(|f| f.check == Check::Bounds && f.rank.is_some());
            assert!(found);
        }
        // Without their flags, ranks wait for ever.
        Err(e) => assert!(matches!(e, ExecError::Deadlock { .. }), "{e}"),
    }
}

/// A rank that dies leaves the others waiting: where each of them stands is told.
#[test]
fn a_dead_rank_is_a_deadlock() {
    let odd = Odd { dies: Some(2), ..Odd::default() };
    for schedule in SCHEDULES {
        let e = exchange(&compile(EXCHANGE), SMALL, odd, &options(schedule)).unwrap_err();
        let ExecError::Deadlock { state, .. } = e else { panic!("{e}") };
        assert!(state.contains("rank 0, `combine`") && state.contains("rank 1, `combine`"), "{state}");
        assert!(!state.contains("rank 2"), "{state}");
    }
}

/// The same exchange by a recipe; `windows` as the recipe has them.
fn recipe(windows: &str) -> (String, Buffers) {
    let (s, mut buffers) = (Shape { ranks: 2, epochs: 1, ..SMALL }, Buffers::new());
    let of = |dtype, shape: &[usize], bytes| Buffer { dtype, shape: shape.to_vec(), bytes };
    let window = 2048 + s.ranks * s.tokens * (4 + 8 * COLUMNS);
    let mut ranks = Vec::new();
    for rank in 0..s.ranks {
        let row = |token| (0..COLUMNS).map(move |c| x(1, rank, token, c).to_bits());
        let slots = |token| (0..s.topk).map(move |slot| expert(s, rank, token, slot));
        let [t, k, h] = [s.tokens, s.topk, COLUMNS].map(|n| n as usize);
        let of_rank = [
            ("w", of(Dtype::U8, &[window as usize], vec![0; window as usize])),
            ("x", of(Dtype::F32, &[t, h], bytes_of((0..s.tokens).flat_map(row)))),
            ("ids", of(Dtype::I32, &[t, k], bytes_of((0..s.tokens).flat_map(slots)))),
            ("out", of(Dtype::F32, &[t, h], vec![0; t * h * 4])),
        ];
        buffers.extend(of_rank.map(|(name, buffer)| (format!("{name}{rank}"), buffer)));
        let table = r#"{"pointers": ["w0", "w1"]}"#;
        let (x, ids, out) = (named("x", rank), named("ids", rank), named("out", rank));
        let sizes = [s.ranks, s.tokens, s.topk, s.per_rank, 1].map(|n| format!(r#"{{"u32": {n}}}"#));
        let [n, t, k, per, epoch] = &sizes;
        let call = |entry: &str, grid: u32, params: &[&str]| {
            let params = params.join(", ");
            format!(r#"{{"entry": "{entry}", "grid": [{grid},1,1], "block": [64,1,1], "params": [{params}]}}"#)
        };
        let r = format!(r#"{{"u32": {rank}}}"#);
        ranks.push(format!(
            "[{}, {}, {}]",
            call("dispatch", s.ranks, &[table, &x, &ids, &r, n, t, k, per, epoch]),
            call("experts", s.ranks, &[table, &r, n, t, epoch]),
            call("combine", s.tokens, &[table, &ids, &out, &r, n, t, k, per, epoch])
        ));
    }
    let ranks = ranks.join(", ");
    let text = format!(
        r#"{{"target": "sm_90a", "ranks": [{ranks}], "windows": {windows}, "outputs": ["out0", "out1"], "tolerance": {{}}}}"#
    );
    (text, buffers)
}

fn named(name: &str, rank: u32) -> String {
    format!(r#"{{"buffer": "{name}{rank}"}}"#)
}

#[test]
fn a_recipe_runs_ranks() {
    let (text, buffers) = recipe(r#"[["w0"], ["w1"]]"#);
    let recipe = parse_ranks(&text).unwrap().unwrap();
    let done = emulate_ranks(EXCHANGE, &recipe, &buffers, &Options::default()).unwrap();
    assert!(done.report.all().all(|r| r.findings.is_empty() && r.counters.blocks > 0));
    // Rank 1's tokens go to its own experts only, which double them; each has two.
    let x = f32::from_le_bytes(buffers["x1"].bytes[..4].try_into().unwrap());
    assert_eq!(f32::from_le_bytes(done.outputs["out1"].bytes[..4].try_into().unwrap()), 4.0 * x);
    assert!(parse_ranks(r#"{"entry": "k"}"#).unwrap().is_none());
}

#[test]
fn a_recipe_that_does_not_fit_says_where() {
    let error = |windows: &str, change: (&str, &str)| {
        let (text, buffers) = recipe(windows);
        let run = |r| emulate_ranks(EXCHANGE, &r, &buffers, &Options::default()).map(|_| ()).map_err(|e| e.to_string());
        parse_ranks(&text.replace(change.0, change.1))
            .map_err(|e| e.to_string())
            .and_then(|r| run(r.unwrap()))
            .unwrap_err()
    };
    let windows = r#"[["w0"], ["w1"]]"#;
    assert_eq!(
        error(r#"[["w0"], []]"#, ("", "")),
        "launch recipe: `ranks[1][0].params[0]`: `w1` is memory of rank 0, which rank 1 does not see; make it one of the `windows`"
    );
    assert_eq!(
        error(r#"[["w0", "w1"]]"#, ("", "")),
        "launch recipe: `windows`: found 1 lists, expected a list for each of the 2 ranks"
    );
    assert_eq!(
        error(windows, (r#""out1"], "tol"#, r#""x9"], "tol"#)),
        "launch recipe: `outputs[1]`: no launch names `x9`"
    );
    assert_eq!(
        parse_ranks(r#"{"target": "sm_90a", "ranks": [], "windows": [], "outputs": []}"#).unwrap_err().to_string(),
        "launch recipe: `ranks`: found [], expected a list of launches for each rank"
    );
    assert_eq!(
        error(windows, (r#"{"buffer": "x1"}"#, r#"{"u32": 1}"#)),
        "launch recipe: `ranks[1][0].params[1]`: 4 bytes are given, but `x` takes 8"
    );
    assert!(
        error(windows, (r#"{"buffer": "x1"}"#, r#"{"pointers": 1}"#))
            .contains("`ranks[1][0].params[1].pointers`: found 1")
    );
}

#[test]
fn a_stream_for_each_rank() {
    let mut ranks = Ranks::new(Target::parse("sm_90a").unwrap(), 2);
    let e = ranks.launch(&[Vec::new()], &Options::default()).unwrap_err();
    assert_eq!(e.to_string(), "launch of ``: 1 streams for 2 ranks");
    assert!(ranks.launch(&[Vec::new(), Vec::new()], &Options::default()).is_ok());
}

const TOLD: &str = "
.version 8.1
.target sm_90a
.address_size 64
.visible .entry tell(.param .u64 data, .param .u64 flags) {
    .reg .b64 %rd<3>;
    ld.param.u64 %rd1, [data];
    ld.param.u64 %rd2, [flags];
    st.global.u32 [%rd1], 7;
    multimem.st.release.sys.global.u32 [%rd2], 1;
    ret;
}
.visible .entry hear(.param .u64 flag, .param .u64 data, .param .u64 out) {
    .reg .b64 %rd<4>;
    .reg .b32 %r<3>;
    .reg .pred %p<2>;
    ld.param.u64 %rd1, [flag];
    ld.param.u64 %rd2, [data];
    ld.param.u64 %rd3, [out];
again:
    ld.acquire.sys.global.u32 %r1, [%rd1];
    setp.ne.u32 %p1, %r1, 1;
    @%p1 bra again;
    ld.global.u32 %r2, [%rd2];
    st.global.u32 [%rd3], %r2;
    ret;
}
";

/// One store raises the flags of all ranks, releases to each of them what was written before, and is one message.
#[test]
fn a_store_to_a_multicast_group_is_a_store_of_its_order_to_each_member() {
    let run = |text: &str| {
        let module = Module::parse(text).unwrap();
        let [tell, hear] = ["tell", "hear"].map(|name| Program::compile(&module, name).unwrap());
        let mut ranks = Ranks::new(Target::parse("sm_90a").unwrap(), 3);
        let flags: Vec<u64> = (0..3).map(|rank| ranks.window(rank, 256).unwrap()).collect();
        flags.iter().for_each(|&flag| ranks.upload(flag, &[0; 256]).unwrap());
        let all = ranks.memory_mut().multicast(&flags, 256).unwrap();
        let (data, out) = (ranks.window(0, 256).unwrap(), ranks.window(0, 256).unwrap());
        ranks.upload(data, &[0; 256]).unwrap();
        let step = |program, params: &[u64]| {
            let params = params.iter().map(|p| Param::U64(*p)).collect();
            vec![Step { program, launch: Launch { grid: [1; 3], block: [1; 3], params, ..Launch::default() } }]
        };
        let hears = |rank: usize| step(&hear, &[flags[rank], data, out + 4 * rank as u64]);
        let streams = [step(&tell, &[data, all]), hears(1), hears(2)];
        let report = ranks.launch(&streams, &Options::default()).unwrap();
        (ranks.download(out + 4, 8).unwrap(), report)
    };
    let (heard, report) = run(TOLD);
    assert_eq!(heard, [7, 0, 0, 0, 7, 0, 0, 0]);
    assert!(report.all().all(|r| r.findings.is_empty()));
    assert_eq!(report.launches[0][0].counters.far_store_bytes, 4);
    let (_, relaxed) = run(&TOLD.replace("multimem.st.release", "multimem.st.relaxed"));
    assert!(relaxed.all().flat_map(|r| &r.findings).any(|f| f.check == Check::Race));
}
