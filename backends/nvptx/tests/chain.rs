//! Gate and up, and then down, in one launch: the bits of two, with every cut of the tiles, under every order, with experts without
//! rows; and every piece of the waiting counts.

mod common;

use common::given_ids::{EXPERTS, ORDERS, TOP_K, lists, outputs};
use common::mutant::Mutant;
use common::programs::{Builder, schedule, with_chains, with_combine_after_product};
use moec_ir::expr::{Binary, Expr, ExprBuilder};
use moec_ir::target::Target;
use moec_ir::tile::{
    Body, ColAccess, Combine, Contract, Groups, MapArg, Panel, Plan, Program, RowAccess, RowMap, Schedule, Segment,
};
use moec_ir::{Activation, DType, Dim};
use moec_nvptx::GpuKernelImage;

fn target(name: &str) -> &'static Target {
    Target::by_name(name).expect("a target")
}

/// Expert order of given ids, gate and up, and down, beside them a shared expert, and the sum.
fn experts(dtype: DType, (hidden, ffn): (u64, u64), shared: bool, s: Schedule) -> Program {
    let mut b = Builder::default();
    let (t, slots) = (Dim::TOKENS, Dim::PerToken(TOP_K));
    let x = b.input("x", dtype, t, hidden);
    let ids = b.input("ids", DType::I32, t, TOP_K);
    let weights = b.input("weights", DType::F32, t, TOP_K);
    let offsets = b.workspace("offsets", DType::I32, Dim::Fixed(1), EXPERTS + 1);
    let slot_to_row = b.workspace("slot_to_row", DType::I32, t, TOP_K);
    let row_to_token = b.workspace("row_to_token", DType::I32, slots, 1);
    let plan = Plan { ids, n_experts: EXPERTS, offsets, slot_to_row, row_to_token, places: None };
    b.kernel("plan", Body::Plan(plan), schedule(1, 1, 1, 1, 4));

    let of = |a, a_rows, groups, panels: Vec<_>, epilogue, out| Segment {
        a,
        a_quant: None,
        a_round: None,
        a_rows,
        groups,
        biases: vec![None; panels.len()],
        panels: panels.into_iter().map(Panel::dense).collect(),
        epilogue,
        out,
        out_quant: None,
        out_places: None,
    };
    let gated = || common::programs::epilogue(&Activation::SwiGlu, dtype);
    let (routed, dense) = (Groups::ByExpert { offsets }, Groups::Dense);
    let (act, y) = (b.workspace("act", dtype, slots, ffn), b.workspace("y", dtype, slots, hidden));
    let [gate, up] = ["gate", "up"].map(|name| b.weight(name, dtype, EXPERTS, ffn, hidden));
    let down = b.weight("down", dtype, EXPERTS, hidden, ffn);
    let mut first = vec![of(x, RowMap::Gather(row_to_token), routed, vec![gate, up], gated(), act)];
    let mut then = vec![of(act, RowMap::Same, routed, vec![down], Expr::identity(), y)];
    let mut args = Vec::new();
    if shared {
        let (act, y) = (b.workspace("shared_act", dtype, t, ffn), b.workspace("shared_y", dtype, t, hidden));
        let [gate, up] = ["shared_gate", "shared_up"].map(|name| b.weight(name, dtype, 1, ffn, hidden));
        let down = b.weight("shared_down", dtype, 1, hidden, ffn);
        first.push(of(x, RowMap::Same, dense, vec![gate, up], gated(), act));
        then.push(of(act, RowMap::Same, dense, vec![down], Expr::identity(), y));
        args.push(MapArg { buffer: y, row: RowAccess::Same, col: ColAccess::From(0) });
    }
    b.kernel("gate_up", Body::Contract(Contract::of(first)), s);
    b.kernel("down", Body::Contract(Contract::of(then)), s);
    let out = b.output("out", dtype, t, hidden, 0);
    let mut e = ExprBuilder::new();
    let (sum, other) = (e.arg(0), if shared { e.arg(1) } else { e.constant(1.0) });
    let sum = e.binary(Binary::Add, sum, other);
    let expr = e.finish(sum);
    let combine = Combine { y, slot_to_row: Some(slot_to_row), weights, args, expr, out };
    b.kernel("combine", Body::Combine(combine), schedule(1, 64, 1, 1, 4));
    b.finish("experts")
}

/// Holds that one launch gives the bits of two with such a schedule, and with the sum over slots in it, too.
#[track_caller]
fn check(on: &str, dtype: DType, s: Schedule, sizes: (u64, u64)) {
    let on = target(on);
    for shared in [false, true] {
        let apart = common::fitted(&experts(dtype, sizes, shared, s), on);
        let chained = common::fitted(&with_chains(apart.clone()), on);
        let whole = with_combine_after_product(chained.clone());
        let [a, b, c] = [&apart, &chained, &whole].map(|p| common::emit(p, on).expect("kernels"));
        assert_eq!((b.len() + 1, c.len() + 2), (a.len(), a.len()));
        for (i, t) in [0u64, 1, 20].into_iter().enumerate() {
            for (j, ids) in lists((t * TOP_K) as usize).into_iter().enumerate() {
                let order = ORDERS[(i + j) % 4];
                let want = outputs((&apart, &a), on, &ids, 0, order).unwrap_or_else(|e| panic!("{e}"));
                for (program, images) in [(&chained, &b), (&whole, &c)] {
                    let got = outputs((program, images), on, &ids, 1, order).unwrap_or_else(|e| panic!("{e}"));
                    assert_eq!(got, want, "{}, T = {t}, list {j}, {s:?}, shared {shared}", on.name);
                }
            }
        }
    }
}

#[test]
fn blackwell_products() {
    check("sm_100a", DType::BF16, schedule(16, 128, 64, 4, 8), (200, 136));
    check("sm_100a", DType::F16, schedule(32, 128, 64, 4, 8), (264, 72));
    check("sm_100a", DType::BF16, schedule(64, 128, 64, 2, 8), (72, 264));
}

#[test]
fn hopper_products() {
    check("sm_90a", DType::BF16, schedule(16, 128, 64, 4, 12), (200, 136));
    check("sm_90a", DType::F16, schedule(8, 128, 64, 4, 12), (264, 72));
    check("sm_90a", DType::BF16, schedule(64, 128, 64, 3, 12), (72, 264));
}

/// The kernel whose first wait for a count looks once and goes on.
fn without_wait(image: &GpuKernelImage) -> GpuKernelImage {
    let mut lines: Vec<&str> = image.ptx.lines().collect();
    let at = lines.iter().position(|l| l.contains("ld.relaxed.sys.global.b32")).expect("a wait");
    let is_less = at + lines[at..].iter().position(|l| l.contains("setp.")).expect("a comparison");
    let (start, count) = lines[is_less].split_once(", ").expect("operands");
    let same = format!("{start}, {0}, {0};", count.split(',').next().expect("an operand"));
    lines[is_less] = &same;
    GpuKernelImage { ptx: lines.join("\n"), ..image.clone() }
}

/// Holds that each slip is noticed: by a check, by other results, by a counter that is left, or because nothing ends.
fn are_noticed(on: &str, s: Schedule, mutants: &[Mutant]) {
    let on = target(on);
    let program = with_chains(experts(DType::BF16, (136, 136), true, s));
    let program = with_combine_after_product(common::fitted(&program, on));
    let images = common::emit(&program, on).expect("kernels");
    let changes = mutants.iter().map(|m| (m.0, m.of(images.last().expect("a product"))));
    let no_wait = ("no wait for rows", without_wait(images.last().expect("a product")));
    for (name, slip) in changes.chain([no_wait]) {
        let mut changed = images.clone();
        *changed.last_mut().expect("a product") = slip;
        let mut tries = lists(27).into_iter().flat_map(|list| ORDERS.map(|order| (list.clone(), order)));
        let is_noticed = tries.any(|(ids, order)| {
            let want = outputs((&program, &images), on, &ids, 0, order).unwrap_or_else(|e| panic!("{e}"));
            outputs((&program, &changed), on, &ids, 0, order) != Ok(want)
        });
        assert!(is_noticed, "{name}");
    }
}

/// That copies read by another way than threads write is no business of the emulator in global memory: the fence of copies is none of
/// them.
#[test]
fn every_slip_is_noticed() {
    are_noticed(
        "sm_100a",
        schedule(16, 128, 64, 4, 8),
        &[
            Mutant("no fence behind the wait", ("membar.gl", 0), "membar", "//"),
            Mutant("a number that others draw too", ("atom.global.add", 1), "1;", "0;"),
            Mutant("a drawn counter that is left", ("], 0;", 1), "st.global", "// st.global"),
            Mutant("no fence before rows are counted", ("membar.gl", 6), "membar", "//"),
            Mutant("a fence of the CTA alone before the count", ("membar.gl", 6), "membar.gl", "membar.cta"),
            Mutant("a count that others do not see", ("atom.global.add", 2), "atom.global", "atom.cta.global"),
            Mutant("a reader too many", ("atom.global.add", 3), "1;", "2;"),
            Mutant("the most in place of all", ("atom.global.add", 2), "add", "max"),
            Mutant("a count of stores that is left", ("], 0;", 2), "st.global", "// st.global"),
            Mutant("a count of readers that is left", ("], 0;", 3), "st.global", "// st.global"),
        ],
    );
}
