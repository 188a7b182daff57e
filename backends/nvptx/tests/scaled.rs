//! Products of codes with codes on Ada, Hopper and Blackwell: the reference's results for every instruction, format and odd size.

mod common;

use common::coded::Matrices;
use common::emulate::{run_given, run_with};
use common::programs::{Builder, epilogue, schedule};
use common::random::Random;
use moec_ir::act_quant::{ActQuant, ActScale};
use moec_ir::expr::Expr;
use moec_ir::quant::{Code, QuantFormat, ScaleCode};
use moec_ir::shape::Dim;
use moec_ir::target::Target;
use moec_ir::tile::{
    Body, Buffer, BufferId, Contract, Groups, Panel, PanelQuant, Program, Role, RowMap, RowQuant, Schedule, Segment,
    Team, evaluate_given,
};
use moec_ir::{Activation, DType, Tensor};

/// A product in one of its forms.
#[derive(Clone, Copy, Debug)]
struct Case {
    rows: ActQuant,
    weights: QuantFormat,
    /// 0 for a dense product.
    n_experts: u64,
    n: u64,
    k: u64,
    panels: usize,
    biases: bool,
    /// Whether rows are gathered: two for each token.
    gather: bool,
    /// Whether a dense product of the same rows shares the launch.
    shared: bool,
    out: Option<ActQuant>,
    schedule: Schedule,
    n_tokens: u64,
    seed: u64,
}

const fn format(code: Code, scale: ScaleCode, block_rows: u64, block_cols: u64) -> QuantFormat {
    QuantFormat { code, scale, block_rows, block_cols }
}

const MXFP4: QuantFormat = format(Code::E2M1, ScaleCode::E8M0, 1, 32);
const MXFP8: QuantFormat = format(Code::E4M3, ScaleCode::E8M0, 1, 32);
const MXFP8_E5M2: QuantFormat = format(Code::E5M2, ScaleCode::E8M0, 1, 32);
const NVFP4: QuantFormat = format(Code::E2M1, ScaleCode::E4M3, 1, 16);
const DEEPSEEK: QuantFormat = format(Code::E4M3, ScaleCode::F32, 128, 128);

/// Every pair that has an instruction, by how its codes and scales are read.
const PAIRS: [(ActQuant, QuantFormat); 14] = [
    (ActQuant::MXFP8, MXFP8),
    (ActQuant::MXFP8, MXFP8_E5M2),
    (ActQuant::MXFP8, MXFP4),
    (ActQuant::MXFP4, MXFP8),
    (ActQuant::MXFP4, MXFP8_E5M2),
    (ActQuant::MXFP4, MXFP4),
    (ActQuant::FP8_BLOCK_POW2, MXFP4),
    (ActQuant { code: Code::E2M1, scale: ActScale::Pow2, block: 64 }, MXFP4),
    (ActQuant::NVFP4, NVFP4),
    (ActQuant::NVFP4_ROW, NVFP4),
    (ActQuant::FP8_BLOCK, DEEPSEEK),
    (ActQuant::FP8_BLOCK_POW2, DEEPSEEK),
    (ActQuant::FP8_TOKEN, format(Code::E4M3, ScaleCode::BF16, 1, 0)),
    (ActQuant::FP8_TOKEN, format(Code::E4M3, ScaleCode::F32, 0, 0)),
];

/// Adds buffers for rows of codes.
fn coded_rows(
    b: &mut Builder,
    name: &str,
    q: ActQuant,
    rows: Dim,
    cols: u64,
    role: impl Fn(&mut Builder) -> Role,
) -> (BufferId, RowQuant) {
    let format = q.stored();
    let buffer = |b: &mut Builder, suffix: &str, dtype: DType, cols: u64, align: u64| {
        let role = role(b);
        let id = b.buffer(&format!("{name}{suffix}"), dtype, 1, rows, cols, role);
        b.buffers[id.index()].pitch = (cols * dtype.bytes() as u64).next_multiple_of(align) / dtype.bytes() as u64;
        id
    };
    let codes = buffer(b, "", DType::U8, format.code.bytes(cols), 64);
    let scales = buffer(b, "_scale", format.scale.dtype(), format.scale_grid(1, cols).1, 16);
    let own = q.has_row().then(|| buffer(b, "_global", DType::F32, 1, 4));
    let global =
        own.or_else(|| q.has_global().then(|| b.input(&format!("{name}_global"), DType::F32, Dim::Fixed(1), 1)));
    (codes, RowQuant { q, cols, scales, global })
}

/// The program of a case, and what its weights hold.
fn program(case: &Case, random: &mut Random) -> (Program, Vec<(String, Tensor)>) {
    let mut b = Builder::default();
    let mut held = Vec::new();
    let input = |b: &mut Builder| {
        b.inputs += 1;
        Role::Input(b.inputs - 1)
    };
    let (a, quant) = coded_rows(&mut b, "a", case.rows, Dim::TOKENS, case.k, input);
    let mut segment = |b: &mut Builder, name: &str, n_experts: u64, gather: bool, first_output: u32| {
        let e = n_experts.max(1);
        let rows = if gather { Dim::PerToken(2) } else { Dim::TOKENS };
        let groups = if n_experts > 0 {
            Groups::ByExpert { offsets: b.input("offsets", DType::I32, Dim::Fixed(1), e + 1) }
        } else {
            Groups::Dense
        };
        let a_rows = if gather { RowMap::Gather(b.input("map", DType::I32, rows, 1)) } else { RowMap::Same };
        let mut panels = Vec::new();
        let mut biases = Vec::new();
        for p in 0..case.panels {
            let f = case.weights;
            let name = format!("{name}w{p}");
            let m = Matrices::random(f, (e, case.n, case.k), f.has_global(), false, random);
            let bytes = f.code.bytes(case.k);
            let weights = b.weight(&name, DType::U8, e, case.n, bytes);
            b.buffers[weights.index()].pitch = bytes.next_multiple_of(64);
            let Role::Weight(param) = b.buffers[weights.index()].role else { panic!("a weight") };
            let (rows, cols) = f.scale_grid(case.n, case.k);
            let scale = f.scale.dtype();
            let (rows, role) = (Dim::Fixed(rows), Role::WeightScale(param));
            let scales = b.buffer(&format!("{name}_scale"), scale, e, rows, cols, role);
            // As lowered, or as dense as can be.
            if !case.seed.is_multiple_of(3) {
                b.buffers[scales.index()].pitch = (cols * f.scale.bytes()).next_multiple_of(16) / f.scale.bytes();
            }
            let global = f.has_global().then(|| {
                held.push((format!("{name}_global"), Tensor::float(DType::F32, &[1, e as usize], m.globals.clone())));
                b.buffer(&format!("{name}_global"), DType::F32, 1, Dim::Fixed(1), e, Role::WeightGlobal(param))
            });
            held.push((name.clone(), m.code_tensor()));
            held.push((format!("{name}_scale"), m.scale_tensor()));
            let quant = PanelQuant { format: f, scales, global, round: DType::F32 };
            panels.push(Panel { weights, quant: Some(quant) });
            biases.push(case.biases.then(|| {
                let name = format!("{name}_bias");
                held.push((name.clone(), random.tensor(DType::BF16, &[e as usize, case.n as usize], 0.3)));
                b.weight(&name, DType::BF16, 1, e, case.n)
            }));
        }
        let mut expr = if case.panels == 2 { epilogue(&Activation::SwiGlu, DType::BF16) } else { Expr::identity() };
        let name = format!("{name}out");
        let (out, out_quant) = match case.out {
            None => (b.output(&name, DType::F32, rows, case.n, first_output), None),
            Some(q) => {
                expr = Expr::round_to(DType::BF16).compose(&[expr]);
                let next = std::cell::Cell::new(first_output);
                let (out, quant) = coded_rows(b, &name, q, rows, case.n, |_| {
                    next.set(next.get() + 1);
                    Role::Output(next.get() - 1)
                });
                (out, Some(quant))
            }
        };
        let (a_quant, epilogue) = (Some(quant.clone()), expr);
        Segment { a, a_quant, a_rows, groups, panels, biases, epilogue, out, out_quant }
    };
    let mut segments = vec![segment(&mut b, "", case.n_experts, case.gather, 0)];
    if case.shared {
        segments.push(segment(&mut b, "shared_", 0, false, 2));
    }
    b.kernel("gemm", Body::Contract(Contract { segments }), case.schedule);
    (b.finish("gemm"), held)
}

/// What the inputs hold: random rows as codes, cuts between experts, rows to gather, global scales.
fn inputs(case: &Case, random: &mut Random) -> Vec<(String, Tensor)> {
    let (t, k) = (case.n_tokens as usize, case.k as usize);
    let (mut codes, mut scales, mut globals) = (Vec::new(), Vec::new(), Vec::new());
    let stored = case.rows.stored();
    let given = 3.0 / (6.0 * 448.0);
    for _ in 0..t {
        let row: Vec<f32> = (0..k).map(|i| random.unit() * [0.3, 3.0, 0.01][i / 48 % 3]).collect();
        let coded = case.rows.encode(&row, given);
        codes.extend(coded.codes);
        match stored.scale {
            ScaleCode::F32 => scales.extend(coded.scales.iter().flat_map(|s| s.to_le_bytes())),
            _ => scales.extend(coded.scales.iter().flat_map(|&s| stored.scale.encode(s))),
        }
        globals.push(coded.global);
    }
    let n_blocks = stored.scale_grid(1, case.k).1 as usize;
    let bytes = |dtype, cols: usize, bytes: &[u8]| Tensor::from_bytes(dtype, &[t, cols], bytes).expect("rows");
    let mut all = vec![
        ("a".to_string(), bytes(DType::U8, stored.code.bytes(case.k) as usize, &codes)),
        ("a_scale".to_string(), bytes(stored.scale.dtype(), n_blocks, &scales)),
        ("out_global".to_string(), Tensor::float(DType::F32, &[1, 1], vec![0.002])),
        ("shared_out_global".to_string(), Tensor::float(DType::F32, &[1, 1], vec![0.003])),
    ];
    let global = if case.rows.has_row() { globals } else { vec![given] };
    all.push(("a_global".to_string(), Tensor::float(DType::F32, &[global.len(), 1], global)));
    let rows = if case.gather { 2 * t } else { t };
    let mut cuts: Vec<i64> = (1..case.n_experts).map(|_| random.below(rows as u64 + 1) as i64).collect();
    cuts.sort_unstable();
    let offsets: Vec<i64> = std::iter::once(0).chain(cuts).chain([rows as i64]).collect();
    all.push(("offsets".to_string(), Tensor::int(DType::I32, &[1, offsets.len()], offsets)));
    let map = (0..rows).map(|_| random.below(t as u64) as i64).collect();
    all.push(("map".to_string(), Tensor::int(DType::I32, &[rows, 1], map)));
    all
}

fn find<'a>(held: &'a [(String, Tensor)]) -> impl Fn(&Buffer) -> Option<Tensor> + 'a {
    |b| held.iter().find(|(name, _)| *name == b.name).map(|(_, t)| t.clone())
}

/// The values of rows of codes.
fn decoded(q: ActQuant, cols: u64, codes: &Tensor, scales: &Tensor, global: f32) -> Tensor {
    let (row, blocks) = (codes.shape[1], scales.shape[1]);
    let (codes, scales) = (codes.to_bytes(), scales.to_bytes());
    let width = q.stored().scale.bytes() as usize * blocks;
    let rows = codes.len() / row;
    let mut values = vec![0.0; rows * cols as usize];
    for (i, out) in values.chunks_mut(cols as usize).enumerate() {
        let (codes, scales) = (&codes[i * row..(i + 1) * row], &scales[i * width..(i + 1) * width]);
        q.stored().decode_row(codes, scales, global, 0, (1, cols), out);
    }
    Tensor::float(DType::F32, &[rows, cols as usize], values)
}

#[track_caller]
fn check(case: &Case, target: &str) {
    let mut random = Random(case.seed);
    let (program, mut held) = program(case, &mut random);
    held.extend(inputs(case, &mut random));
    let got = run_given(&program, Target::by_name(target).expect("a target"), case.n_tokens, 1, &find(&held));
    let want = evaluate_given(&program, case.n_tokens as usize, find(&held)).expect("tensors fit");
    match case.out {
        None => {
            for (got, want) in got.iter().zip(&want) {
                let e = got.worst_error(want);
                assert!(e <= 2e-6, "{case:?} on {target}: relative error {e}");
            }
        }
        Some(q) => {
            for (i, (got, want)) in got.chunks(2).zip(want.chunks(2)).enumerate() {
                let global = if q.has_global() { [0.002, 0.003][i] } else { 1.0 };
                let [got, want] = [got, want].map(|x| decoded(q, case.n, &x[0], &x[1], global));
                let e = got.worst_error(&want);
                let differ = got.floats().iter().zip(want.floats()).filter(|(a, b)| a != b).count();
                // A sum in another order may fall on the other side of a tie.
                assert!(differ * 300 <= got.floats().len(), "{case:?} on {target}: {differ} codes differ, error {e}");
                assert!(e <= 1e-2, "{case:?} on {target}: relative error {e}");
            }
        }
    }
}

/// On all generations that multiply the pair; sm_90 makes blocks of results that are as wide as a tile, and sm_89 FP8 only.
#[track_caller]
fn check_all(case: &Case, i: usize) {
    let hopper = Target::by_name("sm_90a").expect("a target");
    if hopper.scaled_product(case.rows, case.weights).is_some() && case.out.is_none_or(|q| q.block == 128) {
        check(case, hopper.name);
    }
    let ada = Target::by_name("sm_89").expect("a target");
    if ada.scaled_product(case.rows, case.weights).is_some() && case.out.is_none_or(|q| q.code == Code::E4M3) {
        check(case, ada.name);
    }
    for family in [["sm_120f", "sm_120a"], ["sm_100f", "sm_100a"]] {
        let name = family[i % 2];
        if Target::by_name(name).expect("a target").scaled_product(case.rows, case.weights).is_some() {
            check(case, name);
        }
    }
}

const PLAIN: Case = Case {
    rows: ActQuant::MXFP8,
    weights: MXFP8,
    n_experts: 3,
    n: 80,
    k: 416,
    panels: 2,
    biases: true,
    gather: true,
    shared: false,
    out: None,
    schedule: schedule(8, 32, 256, 3, 2),
    n_tokens: 7,
    seed: 0,
};

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

/// On sm_90: tiles of any height, parts of k by one CTA or a cluster, rows that are adjacent or gathered, columns that end in
/// either warpgroup, results as floats or codes, in any order of warps.
#[test]
fn hopper_gives_the_same_bits_in_every_tile_and_order() {
    let target = Target::by_name("sm_90a").expect("a target");
    for (i, (pair, n, k)) in [(10, 300, 160), (11, 40, 600), (12, 136, 416), (13, 256, 1030)].into_iter().enumerate() {
        let (rows, weights) = PAIRS[pair];
        let out = (i % 2 == 1).then_some(if i == 1 { ActQuant::FP8_BLOCK_POW2 } else { ActQuant::FP8_BLOCK });
        let (shared, gather, panels) = (i % 2 == 0, i != 2, 1 + i % 2);
        let k_parts = 2 + i as u32 % 3;
        let case = Case {
            rows,
            weights,
            n,
            k,
            out,
            shared,
            gather,
            panels,
            n_tokens: [70, 9, 33, 21][i],
            seed: 500 + i as u64,
            ..PLAIN
        };
        let results = |schedule: Schedule, order| {
            let mut random = Random(case.seed);
            let (program, mut held) = program(&Case { schedule, ..case }, &mut random);
            held.extend(inputs(&case, &mut random));
            let out = run_with(&program, target, case.n_tokens, 1, &find(&held), order);
            out.iter().map(Tensor::to_bytes).collect::<Vec<_>>()
        };
        let at = |tile_m, stages, team| Schedule { k_parts, team, ..schedule(tile_m, 128, 128, stages, 12) };
        let first = results(at(16, 4, Team::One), moec_ptx::exec::Schedule::RoundRobin);
        for (seed, s) in [
            (1, at(8, 2, Team::One)),
            (2, at(128, 3, Team::One)),
            (3, at(16, 5, Team::SplitK)),
            (4, at(8, 4, Team::Neighbours)),
        ] {
            let other = results(s, moec_ptx::exec::Schedule::Random(seed));
            assert!(first == other, "{case:?} in {s:?}");
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
