//! Products of codes with codes, and the reference's results.
#![allow(dead_code)]

use super::coded::Matrices;
use super::emulate::{run_given, run_with};
use super::programs::{Builder, epilogue, schedule};
use super::random::Random;
use moec_ir::act_quant::{ActQuant, ActScale};
use moec_ir::expr::Expr;
use moec_ir::quant::{Code, QuantFormat, ScaleCode};
use moec_ir::shape::Dim;
use moec_ir::target::Target;
use moec_ir::tile::{
    Body, Buffer, BufferId, Contract, Groups, Panel, PanelQuant, Program, Role, RowMap, RowQuant, Schedule, Segment,
    evaluate_given,
};
use moec_ir::{Activation, DType, Tensor};

/// A product in one of its forms.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    pub rows: ActQuant,
    pub weights: QuantFormat,
    /// 0 for a dense product.
    pub n_experts: u64,
    pub n: u64,
    pub k: u64,
    pub panels: usize,
    pub biases: bool,
    /// Whether rows are gathered: two for each token.
    pub gather: bool,
    /// Whether a dense product of the same rows shares the launch.
    pub shared: bool,
    pub out: Option<ActQuant>,
    pub schedule: Schedule,
    pub n_tokens: u64,
    pub seed: u64,
}

pub const fn format(code: Code, scale: ScaleCode, block_rows: u64, block_cols: u64) -> QuantFormat {
    QuantFormat { code, scale, block_rows, block_cols }
}

pub const MXFP4: QuantFormat = format(Code::E2M1, ScaleCode::E8M0, 1, 32);
pub const MXFP8: QuantFormat = format(Code::E4M3, ScaleCode::E8M0, 1, 32);
pub const MXFP8_E5M2: QuantFormat = format(Code::E5M2, ScaleCode::E8M0, 1, 32);
pub const NVFP4: QuantFormat = format(Code::E2M1, ScaleCode::E4M3, 1, 16);
pub const DEEPSEEK: QuantFormat = format(Code::E4M3, ScaleCode::F32, 128, 128);

/// Every pair that has an instruction, by how its codes and scales are read.
pub const PAIRS: [(ActQuant, QuantFormat); 14] = [
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
pub fn coded_rows(
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
pub fn program(case: &Case, random: &mut Random) -> (Program, Vec<(String, Tensor)>) {
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
        Segment {
            a,
            a_quant,
            a_round: None,
            a_rows,
            groups,
            panels,
            biases,
            epilogue,
            out,
            out_quant,
            out_places: None,
        }
    };
    let mut segments = vec![segment(&mut b, "", case.n_experts, case.gather, 0)];
    if case.shared {
        segments.push(segment(&mut b, "shared_", 0, false, 2));
    }
    b.kernel("gemm", Body::Contract(Contract::of(segments)), case.schedule);
    (b.finish("gemm"), held)
}

/// What the inputs hold: random rows as codes, cuts between experts, rows to gather, global scales.
pub fn inputs(case: &Case, random: &mut Random) -> Vec<(String, Tensor)> {
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

pub fn find<'a>(held: &'a [(String, Tensor)]) -> impl Fn(&Buffer) -> Option<Tensor> + 'a {
    |b| held.iter().find(|(name, _)| *name == b.name).map(|(_, t)| t.clone())
}

/// The values of rows of codes.
pub fn decoded(q: ActQuant, cols: u64, codes: &Tensor, scales: &Tensor, global: f32) -> Tensor {
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
pub fn check(case: &Case, target: &str) {
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
pub fn check_all(case: &Case, i: usize) {
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

pub const PLAIN: Case = Case {
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

/// The bytes of a case's results with a schedule and an order of warps.
pub fn results(case: &Case, target: &str, schedule: Schedule, order: moec_ptx::exec::Schedule) -> Vec<Vec<u8>> {
    let mut random = Random(case.seed);
    let (program, mut held) = program(&Case { schedule, ..*case }, &mut random);
    held.extend(inputs(case, &mut random));
    let target = Target::by_name(target).expect("a target");
    let out = run_with(&program, target, case.n_tokens, 1, &find(&held), order);
    out.iter().map(Tensor::to_bytes).collect()
}
