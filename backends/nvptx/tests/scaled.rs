//! Products of codes with codes on Ada, Hopper and Blackwell: the reference's results for every instruction, format and odd size.

mod common;

use common::emulate::{run_given, run_with};
use common::products::{Case, MXFP4, MXFP8, NVFP4, PAIRS, PLAIN, check, check_all, find, format, inputs, program};
use common::programs::schedule;
use common::random::Random;
use moec_ir::act_quant::{ActQuant, ActScale};
use moec_ir::quant::{Code, QuantFormat, ScaleCode};
use moec_ir::target::Target;
use moec_ir::tile::{Schedule, Team};
use moec_ir::{DType, Tensor};

#[test]
fn every_pair_of_formats_gives_the_reference_s_product() {
    for (i, (rows, weights)) in PAIRS.into_iter().enumerate() {
        let case = Case { rows, weights, seed: i as u64, ..PLAIN };
        check_all(&case, i);
    }
}

#[test]
fn results_are_quantised_in_the_epilogue() {
    let formats = [
        ActQuant::MXFP8,
        ActQuant::MXFP4,
        ActQuant::NVFP4,
        ActQuant::FP8_BLOCK,
        ActQuant::FP8_BLOCK_POW2,
        ActQuant { code: Code::E4M3, scale: ActScale::F32, block: 64 },
    ];
    for (i, out) in formats.into_iter().enumerate() {
        let (rows, weights) = PAIRS[(i * 5 + 2) % PAIRS.len()];
        let case = Case { rows, weights, out: Some(out), n: 168, seed: 50 + i as u64, shared: i % 2 == 0, ..PLAIN };
        check_all(&case, i);
    }
}

#[test]
fn any_shape_and_schedule_gives_the_reference_s_product() {
    let mut random = Random(120);
    for seed in 0..24 {
        let mut pick = |list: &[u64]| list[random.below(list.len() as u64) as usize];
        let (rows, weights) = PAIRS[seed as usize % PAIRS.len()];
        let n_experts = pick(&[0, 1, 2, 5]);
        let case = Case {
            rows,
            weights,
            n_experts,
            n: pick(&[1, 8, 24, 65, 130, 136, 256]),
            k: pick(&[1, 2, 17, 31, 40, 63, 64, 129, 130, 160, 200, 256, 300, 512]),
            panels: pick(&[1, 2]) as usize,
            biases: pick(&[0, 1]) == 1,
            gather: n_experts > 0 && pick(&[0, 1]) == 1,
            shared: n_experts > 0 && pick(&[0, 0, 1]) == 1,
            out: [None, None, Some(ActQuant::MXFP8), Some(ActQuant::NVFP4), Some(ActQuant::FP8_BLOCK)]
                [pick(&[0, 1, 2, 3, 4]) as usize],
            schedule: schedule(
                pick(&[1, 8, 16, 32, 64, 128]) as u32,
                pick(&[8, 32, 64, 128]) as u32,
                pick(&[64, 128, 256]) as u32,
                pick(&[2, 3, 4, 6]) as u32,
                pick(&[1, 2, 4, 8]) as u32,
            ),
            n_tokens: pick(&[1, 6, 33]),
            seed: 100 + seed,
        };
        check_all(&case, seed as usize);
    }
}

#[test]
fn neither_tiles_nor_the_order_of_warps_change_a_bit() {
    for (i, (rows, weights)) in PAIRS.into_iter().enumerate().filter(|(i, _)| [2, 4, 8, 10].contains(i)) {
        let case = Case { rows, weights, n: 72, k: 300, n_tokens: 9, seed: 200 + i as u64, ..PLAIN };
        let bits = |target: &str, schedule: Schedule, order| {
            let target = Target::by_name(target).expect("a target");
            let mut random = Random(case.seed);
            let (program, mut held) = program(&Case { schedule, ..case }, &mut random);
            held.extend(inputs(&case, &mut random));
            let out = run_with(&program, target, case.n_tokens, 0, &find(&held), order);
            out[0].floats().iter().map(|x| x.to_bits()).collect::<Vec<_>>()
        };
        for target in ["sm_120f", "sm_100f", "sm_89"] {
            if Target::by_name(target).expect("a target").scaled_product(rows, weights).is_none() {
                continue;
            }
            let first = bits(target, schedule(8, 16, 128, 2, 1), moec_ptx::exec::Schedule::RoundRobin);
            for (seed, s) in
                [(1, schedule(8, 64, 256, 4, 4)), (2, schedule(32, 32, 256, 3, 2)), (3, schedule(64, 64, 128, 2, 8))]
            {
                let other = bits(target, s, moec_ptx::exec::Schedule::Random(seed));
                assert!(first == other, "{case:?} on {target} in {s:?}");
            }
        }
    }
}

/// A pair of blocks gives the bits of one block, in every way of scaling, with columns that end in either block, for rows
/// that fill a tile or hardly begin one, and results as floats or codes.
#[test]
fn pairs_of_blocks_give_the_bits_of_one() {
    let target = Target::by_name("sm_100f").expect("a target");
    let plain =
        [(0, 300, 160), (2, 100, 96), (3, 136, 200), (5, 296, 300), (8, 520, 544), (10, 136, 416), (12, 256, 130)];
    for (i, (pair, n, k)) in plain.into_iter().enumerate() {
        let (rows, weights) = PAIRS[pair];
        let out = (i % 3 == 1).then_some(ActQuant::MXFP8);
        let (shared, gather, panels) = (i % 2 == 0, i % 3 != 0, 1 + i % 2);
        let (n_tokens, seed) = ([70, 9, 33][i % 3], 300 + i as u64);
        let case = Case { rows, weights, n, k, out, shared, gather, panels, n_tokens, seed, ..PLAIN };
        let results = |schedule: Schedule, order| {
            let mut random = Random(case.seed);
            let (program, mut held) = program(&Case { schedule, ..case }, &mut random);
            held.extend(inputs(&case, &mut random));
            if schedule.team != Team::One {
                let images = common::emit(&program, target).expect("a kernel");
                assert!(images[0].ptx.contains("tcgen05.mma.cta_group::2"), "{case:?}");
            }
            run_with(&program, target, case.n_tokens, 1, &find(&held), order)
        };
        let one = schedule([96, 32, 64][i % 3], 128, 128, 3, 8);
        let want = results(one, moec_ptx::exec::Schedule::RoundRobin);
        for (team, dynamic, order) in
            [(Team::Pair, false, seed), (Team::Pair, true, seed + 50), (Team::TwoPairs, i % 2 == 0, seed + 100)]
        {
            let pair = Schedule { team, dynamic, ..one };
            assert!(results(pair, moec_ptx::exec::Schedule::Random(order)) == want, "{case:?}, {team:?}");
        }
    }
}

/// Parts of k, in every way of scaling: right, and the same bits from one block and from a cluster.
#[test]
fn parts_of_k_make_the_same_sums_in_one_block_and_in_a_cluster() {
    let target = Target::by_name("sm_100f").expect("a target");
    for (i, (pair, n, k, k_parts)) in
        [(0, 130, 416, 3), (5, 72, 544, 2), (8, 40, 1056, 4), (10, 136, 400, 2)].into_iter().enumerate()
    {
        let (rows, weights) = PAIRS[pair];
        let out = (i % 2 == 1).then_some(ActQuant::MXFP8);
        let (shared, gather, panels) = (i % 2 == 0, i % 3 != 0, 1 + i % 2);
        let seed = 400 + i as u64;
        let one = Schedule { k_parts, ..schedule(32, 128, 128, 16, 8) };
        let case = Case { rows, weights, n, k, out, shared, gather, panels, n_tokens: 9, seed, schedule: one, ..PLAIN };
        let results = |schedule: Schedule, order| {
            let mut random = Random(case.seed);
            let (program, mut held) = program(&Case { schedule, ..case }, &mut random);
            held.extend(inputs(&case, &mut random));
            let images = common::emit(&program, target).expect("a kernel");
            assert_eq!(images[0].launch.cluster, if schedule.team == Team::SplitK { k_parts } else { 1 }, "{case:?}");
            run_with(&program, target, case.n_tokens, 1, &find(&held), order)
        };
        check(&case, "sm_100f");
        let want = results(one, moec_ptx::exec::Schedule::RoundRobin);
        let split = Schedule { tile_m: 16, team: Team::SplitK, ..one };
        assert!(results(split, moec_ptx::exec::Schedule::Random(seed)) == want, "{case:?}");
    }
}

/// `1 - 2⟨a, b⟩ / (⟨a, a⟩ + ⟨b, b⟩)`: 0 for equal tensors. Source: DeepGEMM's `calc_diff`.
fn difference(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(&x, &y)| f64::from(x) * f64::from(y)).sum::<f64>();
    1.0 - 2.0 * dot(a, b) / (dot(a, a) + dot(b, b))
}

#[test]
fn quantising_both_sides_costs_no_more_than_the_formats_do() {
    const FP8_ROWS: QuantFormat = format(Code::E4M3, ScaleCode::F32, 1, 128);
    let pairs = [
        (ActQuant::FP8_BLOCK, ActQuant::FP8_BLOCK, FP8_ROWS, 1e-3),
        (ActQuant::MXFP8, ActQuant::MXFP8, MXFP8, 1e-3),
        (ActQuant::MXFP8, ActQuant::MXFP4, MXFP4, 1e-2),
        (ActQuant::NVFP4_ROW, ActQuant::NVFP4, NVFP4, 2e-2),
    ];
    let (t, n, k) = (16usize, 96usize, 640usize);
    for (rows, encoder, weights, bound) in pairs {
        let case = Case {
            rows,
            weights,
            n_experts: 0,
            n: n as u64,
            k: k as u64,
            panels: 1,
            biases: false,
            gather: false,
            n_tokens: t as u64,
            seed: 9,
            ..PLAIN
        };
        let mut random = Random(case.seed);
        let (program, mut held) = program(&case, &mut random);
        // Sums of four numbers are nearly normal.
        let mut normal =
            |n: usize| -> Vec<f32> { (0..n).map(|_| (0..4).map(|_| random.unit()).sum::<f32>()).collect() };
        let (a, w) = (normal(t * k), normal(n * k));
        let global = 4.0 / (6.0 * 448.0);
        let mut put = |name: &str, q: ActQuant, values: &[f32]| {
            let coded: Vec<_> = values.chunks(k).map(|row| q.encode(row, global)).collect();
            let f = q.stored();
            let codes: Vec<u8> = coded.iter().flat_map(|r| r.codes.clone()).collect();
            let scales: Vec<u8> = coded.iter().flat_map(|r| &r.scales).flat_map(|&s| f.scale.encode(s)).collect();
            let bytes = |dtype: DType, bytes: &[u8]| {
                let cols = bytes.len() / dtype.bytes() / coded.len();
                Tensor::from_bytes(dtype, &[coded.len(), cols], bytes).expect("rows")
            };
            let globals: Vec<f32> = if q.has_row() { coded.iter().map(|r| r.global).collect() } else { vec![global] };
            let globals = Tensor::float(DType::F32, &[globals.len(), 1], globals);
            held.retain(|(held, _)| {
                ![name, &format!("{name}_scale"), &format!("{name}_global")].contains(&held.as_str())
            });
            held.push((name.to_string(), bytes(DType::U8, &codes)));
            held.push((format!("{name}_scale"), bytes(f.scale.dtype(), &scales)));
            held.push((format!("{name}_global"), globals));
        };
        put("a", rows, &a);
        put("w0", encoder, &w);
        let product = |i: usize| {
            let (row, col) = (&a[i / n * k..][..k], &w[i % n * k..][..k]);
            row.iter().zip(col).map(|(&x, &y)| f64::from(x) * f64::from(y)).sum::<f64>() as f32
        };
        let want: Vec<f32> = (0..t * n).map(product).collect();
        for target in ["sm_100f", "sm_120f"] {
            let got = run_given(&program, Target::by_name(target).expect("a target"), t as u64, 0, &find(&held));
            let d = difference(got[0].floats(), &want);
            assert!(d > 0.0 && d < bound, "{rows:?} by {weights} on {target}: {d}");
        }
    }
}
