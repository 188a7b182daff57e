//! Rows between ranks by the kernels that are compiled: right under every order, and every piece of their synchronisation counts.

#[path = "exchange/bench.rs"]
mod bench;
#[path = "exchange/mutants.rs"]
mod mutants;

use bench::{Case, Kernels, Ran, Slip, compiled, emitted, run};
use moec_ir::Placement;
use moec_ir::act_quant::{ActQuant, ActScale};
use moec_ir::exchange::{ExchangeKernel, Stage};
use moec_ir::quant::Code;
use moec_ir::window::Stopped;
use moec_ptx::exec::{Options, Schedule};
use mutants::{MUTANTS, Mutant};

const SCHEDULES: [Schedule; 4] = [Schedule::RoundRobin, Schedule::Random(1), Schedule::Random(2), Schedule::Random(3)];

fn options(schedule: Schedule) -> Options {
    Options { schedule, threads: 1, instruction_limit: 20_000_000, ..Options::default() }
}

/// Three ranks, the last without experts of its own at first, seven experts of which some are held twice; slots without an expert.
fn small() -> Case {
    let map = |version, ranks: &[&[u32]]| Placement::new(version, 7, ranks.iter().map(|r| r.to_vec()).collect());
    let first = map(1, &[&[0, 1, 2, 6], &[3, 4, 5, 6], &[]]).expect("a map");
    let second = map(2, &[&[6, 0], &[3, 1, 5], &[2, 4, 0, 6]]).expect("a map");
    Case {
        counts: vec![3, 0, 4],
        max_tokens: 4,
        top_k: 3,
        members: 1,
        words: 12,
        codes: None,
        target: "sm_90a",
        maps: vec![first.clone(), first, second.clone(), second],
        ids: |step, rank, token, slot| match (rank + token + slot + step) % 5 {
            0 => -1,
            _ => i64::from((2 * token + 3 * slot + rank + step) % 7),
        },
        wide_ids: false,
        dies: None,
        other_map: None,
        other_size: None,
        deadline: u32::MAX,
        multicast: true,
        first_epoch: 1,
        slip: None,
    }
}

fn is_right(ran: &Ran) {
    let report = ran.report.as_ref().unwrap_or_else(|e| panic!("{e}"));
    let findings: Vec<_> = report.all().flat_map(|r| r.findings.iter().chain(&r.notes)).collect();
    assert!(findings.is_empty(), "{}", findings.iter().map(|f| format!("{f}\n")).collect::<String>());
    assert_eq!(ran.wrong, None);
}

#[test]
fn rows_go_there_and_back_and_a_map_changes_on_the_way() {
    let case = small();
    let kernels = compiled(emitted(&case));
    for schedule in SCHEDULES {
        is_right(&run(&case, &kernels, &options(schedule)));
    }
    // Epochs wrap around.
    is_right(&run(&Case { first_epoch: u32::MAX - 1, ..case }, &kernels, &options(Schedule::Random(4))));
}

/// 64-bit ids, rows that only words divide, one rank alone, many more slots than a block has threads for.
#[test]
fn shapes_are_what_they_are() {
    let even = |n_experts, n_ranks| Placement::even(n_experts, n_ranks).expect("a map");
    let wide =
        Case { wide_ids: true, words: 7, ids: |_, r, t, s| [-1, 1 << 40, 2, 5][(r + t + s) as usize % 4], ..small() };
    let alone = Case { counts: vec![2], maps: vec![even(7, 1); 3], ..small() };
    let many = Case {
        counts: vec![2, 2, 1, 2],
        max_tokens: 2,
        top_k: 130,
        words: 1,
        maps: vec![even(16, 4); 2],
        ids: |_, r, t, s| i64::from((r + t + s * s) % 17),
        ..small()
    };
    for case in [wide, alone, many] {
        is_right(&run(&case, &compiled(emitted(&case)), &options(Schedule::Random(7))));
    }
}

/// Two groups of two ranks, whose members have seven of 14 columns of activations each, and six or seven of 13 of results. A group has no
/// expert at first, one is held by both afterwards; a rank has no tokens.
fn cut() -> Case {
    let map = |version, groups: &[&[u32]]| Placement::new(version, 7, groups.iter().map(|g| g.to_vec()).collect());
    let first = map(1, &[&[], &[0, 1, 2, 3, 4, 5, 6]]).expect("a map");
    let second = map(2, &[&[6, 0, 3], &[3, 1, 5, 2, 4]]).expect("a map");
    Case {
        counts: vec![3, 0, 2, 1],
        max_tokens: 3,
        members: 2,
        words: 13,
        maps: vec![first, second.clone(), second],
        ..small()
    }
}

#[test]
fn members_of_a_group_share_activations() {
    let case = cut();
    let kernels = compiled(emitted(&case));
    for schedule in SCHEDULES {
        is_right(&run(&case, &kernels, &options(schedule)));
    }
    is_right(&run(&Case { first_epoch: u32::MAX, ..case }, &kernels, &options(Schedule::Random(4))));
    // One group of three, with rows of codes; many slots, and four groups of two of which no row goes to most.
    let even = |n_experts, n| Placement::even(n_experts, n).expect("a map");
    let three = Case {
        counts: vec![1, 2, 0],
        members: 3,
        words: 70,
        codes: Some(ActQuant::MXFP8),
        maps: vec![even(7, 1); 2],
        ..cut()
    };
    let wide = Case {
        counts: vec![1, 0, 0, 2, 0, 0, 0, 1],
        top_k: 40,
        words: 260,
        maps: vec![even(40, 4); 2],
        ids: |step, r, t, s| i64::from((s % 12) + 3 * t + r + step),
        ..cut()
    };
    for case in [three, wide] {
        is_right(&run(&case, &compiled(emitted(&case)), &options(Schedule::Random(6))));
    }
}

/// Rows are rounded as the reference rounds them, by instructions and without: formats of every kind of scale, rows that end within a word of
/// codes, rows that block after block is zero.
#[test]
fn codes_on_their_way_have_the_values_of_the_rounding() {
    let odd = ActQuant { code: Code::E2M1, scale: ActScale::E4M3Row, block: 24 };
    let formats = ActQuant::NAMES.into_iter().map(|(_, q)| q).filter(|q| !q.has_global()).chain([odd]);
    for (i, quant) in formats.enumerate() {
        for (target, words) in [("sm_80", 260), ("sm_90a", 70), ("sm_100a", 512), ("sm_120a", 35)] {
            let maps = small().maps[1..3].to_vec();
            let case = Case { words, codes: Some(quant), target, multicast: i % 2 == 0, maps, ..small() };
            let ran = run(&case, &compiled(emitted(&case)), &options(Schedule::Random(i as u64)));
            assert_eq!(ran.wrong, None, "{quant:?} on {target}");
            is_right(&ran);
        }
    }
}

/// Where nobody goes on, the rank that is missing is named, by every rank that waits for it.
#[test]
fn a_wait_ends_and_names_the_rank() {
    let before = Case { dies: Some((1, 1, Stage::Before)), deadline: 40, ..small() };
    // Rank 2, which alone has tokens, shares experts with rank 3.
    let (counts, maps) = (vec![0, 0, 3, 0], cut().maps[..2].to_vec());
    let between = Case { counts, maps, dies: Some((3, 1, Stage::Between)), deadline: 40, ..cut() };
    for (case, what) in [(before, (Stopped::NoRows, 1, 2, 0)), (between, (Stopped::NoActivations, 3, 2, 1))] {
        let kernels = compiled(emitted(&case));
        for schedule in SCHEDULES {
            let ran = run(&case, &kernels, &options(schedule));
            let error = ran.report.expect_err("a rank is dead").to_string();
            assert!(error.contains("stopped itself"), "{error}");
            let r = ran.stopped.first().expect("a report");
            assert_eq!((r.what, r.peer, r.wanted, r.found), what, "{r:?}");
        }
    }
}

#[test]
fn ranks_that_do_not_agree_stop() {
    let other = Placement::new(1, 7, vec![vec![0, 1, 2], vec![3, 4, 5, 6], vec![]]).expect("a map");
    let newer = small().maps[0].clone().with_version(9);
    for (case, what) in [
        (Case { other_map: Some((2, other)), ..small() }, Stopped::OtherMap),
        (Case { other_map: Some((2, newer)), ..small() }, Stopped::OtherVersion),
        (Case { other_size: Some((2, 5)), ..small() }, Stopped::OtherSizes),
    ] {
        let ran = run(&case, &compiled(emitted(&case)), &options(Schedule::RoundRobin));
        assert!(ran.report.is_err());
        let r = ran.stopped.first().expect("a report");
        assert!(r.what == what && (r.peer == 2) != (r.rank == 2), "{r:?}");
    }
}

/// A row goes once to each rank that has one of its experts, with a line of slots; a flag to every rank, by one store where there is one
/// that reaches all.
/// All of it is little more than the rows alone, in a layer of DeepSeek-V3's experts and slots with an eighth of its columns.
#[test]
fn what_leaves_a_rank_is_counted() {
    let v3 = Case {
        counts: vec![4; 8],
        top_k: 8,
        words: 448,
        maps: vec![Placement::even(256, 8).expect("a map")],
        ids: |_, rank, token, slot| i64::from((131 * rank + 37 * token + 29 * slot + 7 * slot * slot) % 256),
        ..small()
    };
    // A wider row: of codes, which are less, the slots are more.
    let codes = Case { words: 896, codes: Some(ActQuant::MXFP8), ..v3.clone() };
    let one = Case { maps: small().maps[..1].to_vec(), ..small() };
    let singly = Case { multicast: false, ..one.clone() };
    // A token on each of 72 ranks: as many messages as ranks that have an expert of it, and one.
    let rack = Case {
        counts: vec![1; 72],
        max_tokens: 1,
        maps: vec![Placement::even(288, 72).expect("a map")],
        ids: |_, rank, _, slot| i64::from((131 * rank + 29 * slot + 7 * slot * slot) % 288),
        ..v3.clone()
    };
    for (case, most) in [(one, None), (singly, None), (v3, Some(1.05)), (codes, Some(1.05)), (rack, Some(1.05))] {
        let ran = run(&case, &compiled(emitted(&case)), &options(Schedule::RoundRobin));
        is_right(&ran);
        for rank in 0..case.n_ranks() {
            let touched = |token| {
                let owners = (0..case.top_k).filter_map(|slot| case.owner(0, rank, token, slot)).map(|(r, _)| r);
                owners.filter(|r| *r != rank).collect::<std::collections::BTreeSet<u32>>().len() as u64
            };
            let rows: u64 = (0..case.counts[rank as usize]).map(touched).sum();
            let row = case.exchange(0).row_bytes;
            let line = 4 * (u64::from(case.top_k) + 1);
            let flags = if case.multicast { 8 } else { u64::from(case.n_ranks() - 1) * 8 };
            let got = ran.bytes(rank, "dispatch");
            assert_eq!(got, rows * (row + line) + flags, "rank {rank}");
            // Back go the results of slots that came, from the product that makes them, and a flag to whoever sent one.
            let owned = |of: u32| {
                let slots = (0..case.counts[of as usize]).flat_map(|t| (0..case.top_k).map(move |slot| (t, slot)));
                slots.filter(|&(t, slot)| case.owner(0, of, t, slot).is_some_and(|(r, _)| r == rank)).count() as u64
            };
            let others: Vec<u64> = (0..case.n_ranks()).filter(|&of| of != rank).map(owned).collect();
            let results = others.iter().sum::<u64>() * case.exchange(0).result_bytes;
            let answers = others.iter().filter(|&&n| n > 0).count() as u64 * 4;
            assert_eq!((ran.bytes(rank, "experts"), ran.bytes(rank, "answer")), (results, answers), "rank {rank}");
            let bare = (rows * row) as f64;
            assert!(
                most.is_none_or(|most| got as f64 <= most * bare),
                "rank {rank}: {got} bytes for {rows} rows of {row}"
            );
        }
    }
}

/// With experts cut over groups, a row goes once to each member of each group that has one of its experts. Of activations, a member sends its
/// columns of the slots that came to each other member, and a flag of 4 bytes.
#[test]
fn what_leaves_a_member_is_counted() {
    let case = Case { maps: cut().maps[1..2].to_vec(), multicast: false, ..cut() };
    let ran = run(&case, &compiled(emitted(&case)), &options(Schedule::RoundRobin));
    is_right(&ran);
    let (n, members) = (case.n_ranks(), case.members);
    let slots = |rank, token| (0..case.top_k).filter_map(|slot| case.owner(0, rank, token, slot)).collect::<Vec<_>>();
    for rank in 0..n {
        let group = rank / members;
        let tokens = |source: u32| (0..case.counts[source as usize]).map(move |token| (source, token));
        let rows: u64 = tokens(rank)
            .map(|(source, token)| {
                let groups: std::collections::BTreeSet<u32> =
                    slots(source, token).into_iter().map(|(g, _)| g).collect();
                groups.into_iter().map(|g| u64::from(members) - u64::from(g == group)).sum::<u64>()
            })
            .sum();
        let line = 4 * (u64::from(case.top_k) + 1);
        let rows = rows * (case.exchange(0).row_bytes + line) + u64::from(n - 1) * 8;
        assert_eq!(ran.bytes(rank, "dispatch"), rows, "rank {rank}");
        let came = (0..n).flat_map(tokens).flat_map(|(s, t)| slots(s, t)).filter(|(g, _)| *g == group).count() as u64;
        let own = case.exchange(rank % members).cut.expect("a member").act.bytes;
        assert_eq!(ran.bytes(rank, "share"), u64::from(members - 1) * (came * own + 4), "rank {rank}");
        // Of results, each member its columns.
        let of_others = (0..n)
            .filter(|&source| source != rank)
            .map(|source| tokens(source).flat_map(|(s, t)| slots(s, t)).filter(|(g, _)| *g == group).count() as u64);
        let own = case.exchange(rank % members).own_result().bytes;
        assert_eq!(ran.bytes(rank, "down"), of_others.clone().sum::<u64>() * own, "rank {rank}");
        assert_eq!(ran.bytes(rank, "answer"), 4 * of_others.filter(|&n| n > 0).count() as u64, "rank {rank}");
    }
}

/// What gives a mutant away.
fn mutant_given_away(case: &Case, mutant: &Mutant, kernels: &[Vec<ExchangeKernel>]) -> Option<String> {
    given_away(case, &compiled(mutant.of(kernels)?))
}

/// What gives away that something is wrong: under the first order that does, an error, a finding or a wrong result.
fn given_away(case: &Case, kernels: &Kernels) -> Option<String> {
    SCHEDULES.into_iter().find_map(|schedule| {
        let ran = run(case, kernels, &Options { instruction_limit: 5_000_000, ..options(schedule) });
        let report = match &ran.report {
            Ok(report) => report,
            Err(e) => return e.to_string().lines().next().map(str::to_owned),
        };
        let finding = report.all().flat_map(|r| &r.findings).next().map(ToString::to_string);
        finding.or(ran.wrong)
    })
}

#[test]
fn every_slip_is_noticed() {
    // Slots and rows for more than one warp, where barriers count.
    let even = Placement::even(40, 2).expect("a map");
    let wide = Case {
        counts: vec![2, 1],
        max_tokens: 2,
        top_k: 40,
        words: 260,
        maps: vec![even; 3],
        ids: |step, r, t, s| i64::from((7 * s + 3 * t + r + step) % 40),
        multicast: false,
        ..small()
    };
    let one_group = vec![Placement::even(7, 1).expect("a map"); 3];
    let wide_cut = Case { counts: vec![2, 1], max_tokens: 2, members: 2, words: 260, maps: one_group, ..small() };
    let cases = [small(), wide, wide_cut].map(|case| (emitted(&case), case));
    is_right(&run(&cases[1].1, &compiled(cases[1].0.clone()), &options(Schedule::Random(5))));
    let is_missed = |m: &&Mutant| cases.iter().all(|(kernels, case)| mutant_given_away(case, m, kernels).is_none());
    let missed: Vec<String> = MUTANTS.iter().filter(is_missed).map(Mutant::name).collect();
    assert!(missed.is_empty(), "{missed:?}");
}

/// Results that are stored elsewhere, or said to be there before they are.
#[test]
fn results_at_wrong_places_and_times_are_noticed() {
    for case in [small(), cut()] {
        let kernels = compiled(emitted(&case));
        assert_eq!(given_away(&case, &kernels), None);
        for slip in [Slip::FlagsFirst, Slip::OtherParity, Slip::NextSlot, Slip::OneElementFurther] {
            let case = Case { slip: Some(slip), ..case.clone() };
            assert!(given_away(&case, &kernels).is_some(), "{slip:?} with {} members", case.members);
        }
    }
}

/// Lane instructions of dispatch and of decode for an element of a row of codes, from rows of 4096 and 8192: the figures of
/// `passes/src/plan/model/fabrics.json`.
#[test]
fn what_an_element_of_codes_takes_is_counted() {
    for (quant, figures) in [(ActQuant::MXFP8, [14.7, 7.25]), (ActQuant::MXFP4, [11.1, 6.1])] {
        let count = |words| {
            let maps = vec![Placement::even(7, 1).expect("a map")];
            let (counts, codes, target) = (vec![1], Some(quant), "sm_100a");
            let case =
                Case { counts, max_tokens: 1, maps, words, codes, target, ids: |_, _, _, s| s.into(), ..small() };
            let ran = run(&case, &compiled(emitted(&case)), &options(Schedule::RoundRobin));
            is_right(&ran);
            let launches = &ran.report.expect("it ran").launches[0];
            // Dispatch, receive, decode.
            [0, 2].map(|i| launches[i].counters.lane_instructions as f64)
        };
        let (some, twice) = (count(4096), count(8192));
        for i in 0..2 {
            let got = (twice[i] - some[i]) / 4096.0;
            assert!((got - figures[i]).abs() < 0.05, "{quant:?}: {got}, not {}", figures[i]);
        }
    }
}
