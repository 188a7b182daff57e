//! Slots that are added up by those who store the last rows of the down product: the bits of a launch of its own, on every engine,
//! under every order, with slots without an expert; and every piece of the synchronisation counts.

mod common;

use common::given_ids::{EXPERTS, ORDERS, TOP_K, lists, outputs};
use common::mutant::Mutant;
use common::programs::{Builder, schedule, with_combine_after_product};
use moec_ir::expr::{Binary, Expr, ExprBuilder};
use moec_ir::target::Target;
use moec_ir::tile::{
    Body, ColAccess, Combine, Contract, Groups, MapArg, Panel, Plan, Program, RowAccess, RowMap, Schedule, Segment,
    Team,
};
use moec_ir::{DType, Dim};

const FFN: u64 = 64;

fn target(name: &str) -> &'static Target {
    Target::by_name(name).expect("a target")
}

/// Expert order of given ids, the down product of given activations, beside it that of a shared expert, and the sum.
fn down(dtype: DType, hidden: u64, shared: bool, s: Schedule) -> Program {
    let mut b = Builder::default();
    let (t, slots) = (Dim::TOKENS, Dim::PerToken(TOP_K));
    let act = b.input("act", dtype, slots, FFN);
    let shared_act = b.input("shared_act", dtype, t, FFN);
    let ids = b.input("ids", DType::I32, t, TOP_K);
    let weights = b.input("weights", DType::F32, t, TOP_K);
    let offsets = b.workspace("offsets", DType::I32, Dim::Fixed(1), EXPERTS + 1);
    let slot_to_row = b.workspace("slot_to_row", DType::I32, t, TOP_K);
    let row_to_token = b.workspace("row_to_token", DType::I32, slots, 1);
    let plan = Plan { ids, n_experts: EXPERTS, offsets, slot_to_row, row_to_token, places: None };
    b.kernel("plan", Body::Plan(plan), schedule(1, 1, 1, 1, 4));

    let segment = |a, groups, weights, out| Segment {
        a,
        a_quant: None,
        a_round: None,
        a_rows: RowMap::Same,
        groups,
        panels: vec![Panel::dense(weights)],
        biases: vec![None],
        epilogue: Expr::identity(),
        out,
        out_quant: None,
        out_places: None,
    };
    let (y, w) = (b.workspace("y", dtype, slots, hidden), b.weight("down", dtype, EXPERTS, hidden, FFN));
    let mut segments = vec![segment(act, Groups::ByExpert { offsets }, w, y)];
    let mut args = Vec::new();
    if shared {
        let (out, w) = (b.workspace("shared_y", dtype, t, hidden), b.weight("shared_down", dtype, 1, hidden, FFN));
        segments.push(segment(shared_act, Groups::Dense, w, out));
        args.push(MapArg { buffer: out, row: RowAccess::Same, col: ColAccess::From(0) });
    }
    b.kernel("down", Body::Contract(Contract::of(segments)), s);
    let out = b.output("out", dtype, t, hidden, 0);
    let mut e = ExprBuilder::new();
    let (sum, other) = (e.arg(0), if shared { e.arg(1) } else { e.constant(1.0) });
    let sum = e.binary(Binary::Add, sum, other);
    let expr = e.finish(sum);
    let combine = Combine { y, slot_to_row: Some(slot_to_row), weights, args, expr, out };
    b.kernel("combine", Body::Combine(combine), schedule(1, 64, 1, 1, 4));
    b.finish("down")
}

/// Holds that both ways give the same bits with such a schedule of the product.
#[track_caller]
fn check(on: &str, dtype: DType, s: Schedule, hidden: u64) {
    let on = target(on);
    for shared in [false, true] {
        let apart = common::fitted(&down(dtype, hidden, shared, s), on);
        let together = with_combine_after_product(apart.clone());
        let [a, b] = [&apart, &together].map(|p| common::emit(p, on).expect("kernels"));
        assert_eq!(b.len() + 1, a.len());
        for (i, t) in [0u64, 1, 9, 33].into_iter().enumerate() {
            for (j, ids) in lists((t * TOP_K) as usize).into_iter().enumerate() {
                let order = ORDERS[(i + j) % 4];
                let want = outputs((&apart, &a), on, &ids, 0, order).unwrap_or_else(|e| panic!("{e}"));
                let got = outputs((&together, &b), on, &ids, 1, order).unwrap_or_else(|e| panic!("{e}"));
                assert_eq!(got, want, "{}, T = {t}, list {j}, {s:?}, shared {shared}", on.name);
            }
        }
    }
}

#[test]
fn portable_products() {
    check("sm_80", DType::BF16, schedule(16, 64, 64, 2, 4), 200);
    check("sm_120a", DType::F16, schedule(32, 32, 64, 2, 4), 96);
    check("sm_80", DType::F32, schedule(16, 64, 32, 2, 4), 72);
    check("sm_80", DType::BF16, Schedule { rest_m: 16, ..schedule(32, 64, 64, 2, 4) }, 200);
}

#[test]
fn hopper_products() {
    check("sm_90a", DType::BF16, schedule(16, 128, 64, 4, 12), 200);
    check("sm_90a", DType::BF16, Schedule { team: Team::Neighbours, ..schedule(8, 128, 64, 4, 12) }, 264);
    check("sm_90a", DType::BF16, Schedule { team: Team::SplitK, k_parts: 2, ..schedule(16, 128, 32, 4, 12) }, 136);
    check("sm_90a", DType::BF16, Schedule { k_parts: 2, ..schedule(16, 128, 32, 4, 12) }, 136);
}

#[test]
fn blackwell_products() {
    check("sm_100a", DType::BF16, schedule(16, 128, 64, 4, 8), 200);
    check("sm_100a", DType::BF16, Schedule { team: Team::Pair, ..schedule(32, 256, 64, 4, 8) }, 264);
    check("sm_100a", DType::BF16, Schedule { team: Team::TwoPairs, ..schedule(32, 256, 64, 4, 8) }, 264);
    check("sm_100a", DType::BF16, Schedule { team: Team::SplitK, k_parts: 2, ..schedule(16, 128, 32, 4, 8) }, 136);
    check("sm_100a", DType::BF16, Schedule { dynamic: true, ..schedule(16, 128, 64, 4, 8) }, 136);
}

/// Holds that each slip is noticed: by a check, by other results, or by a counter that is left.
fn are_noticed(on: &str, s: Schedule, mutants: &[Mutant]) {
    let on = target(on);
    let program = with_combine_after_product(common::fitted(&down(DType::BF16, 136, true, s), on));
    let images = common::emit(&program, on).expect("kernels");
    for mutant in mutants {
        let mut changed = images.clone();
        let product = changed.last_mut().expect("a product");
        *product = mutant.of(product);
        let mut tries = lists(27).into_iter().flat_map(|list| ORDERS.map(|order| (list.clone(), order)));
        let is_noticed = tries.any(|(ids, order)| {
            let want = outputs((&program, &images), on, &ids, 0, order).unwrap_or_else(|e| panic!("{e}"));
            outputs((&program, &changed), on, &ids, 0, order) != Ok(want)
        });
        assert!(is_noticed, "{}", mutant.0);
    }
}

/// Barriers of a warp are none of them: the emulator holds a warp's accesses to be in order.
#[test]
fn every_slip_of_warps_is_noticed() {
    are_noticed(
        "sm_90a",
        schedule(16, 128, 64, 4, 12),
        &[
            Mutant("no fence before the count", ("membar.gl", 0), "membar", "//"),
            Mutant("a fence of the CTA alone before the count", ("membar.gl", 0), "membar.gl", "membar.cta"),
            Mutant("no fence behind the last count", ("membar.gl", 1), "membar", "//"),
            Mutant("a count that others do not see", ("atom.global.add", 0), "atom.global", "atom.cta.global"),
            Mutant("the most rows in place of all", ("atom.global.add", 0), "add", "max"),
            Mutant("a counter that is left", ("], 0;", 0), "st.global", "// st.global"),
        ],
    );
}

#[test]
fn every_slip_of_ctas_is_noticed() {
    are_noticed(
        "sm_80",
        schedule(16, 64, 64, 2, 4),
        &[
            Mutant("no fence before the count", ("membar.gl", 0), "membar", "//"),
            Mutant("no fence behind the last count", ("membar.gl", 1), "membar", "//"),
            Mutant("a count before all threads have stored", ("bar.sync", 1), "bar", "//"),
            Mutant("a count before it is there", ("bar.sync", 2), "bar", "//"),
            Mutant("the most rows in place of all", ("atom.global.add", 0), "add", "max"),
            Mutant("a counter that is left", ("], 0;", 0), "st.global", "// st.global"),
        ],
    );
}
