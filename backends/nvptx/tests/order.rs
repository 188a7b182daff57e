//! Expert order by the CTAs of a cluster: that of the reference for any ids, under every order, and every piece of the kernels'
//! synchronisation counts.

mod common;

use common::emulate::run_images;
use common::mutant::Mutant;
use common::programs::{Builder, schedule, with_plan_after_route};
use common::random::Random;
use moec_ir::target::Target;
use moec_ir::tile::{
    Body, Buffer, Plan, Program, Role, RowId, RowOp, RowOpKind, RowProgram, RowStore, Schedule, evaluate,
};
use moec_ir::{DType, Dim, Tensor};
use moec_nvptx::GpuKernelImage;
use moec_ptx::exec::Schedule as Order;

const ORDERS: [Order; 4] = [Order::RoundRobin, Order::Random(1), Order::Random(2), Order::Random(3)];

fn sm90() -> &'static Target {
    Target::by_name("sm_90a").expect("a target")
}

/// Slots in expert order, of ids that are given.
fn order(n_experts: u64, top_k: u64, s: Schedule) -> Program {
    let mut b = Builder::default();
    let ids = b.input("ids", DType::I32, Dim::TOKENS, top_k);
    plan(&mut b, ids, n_experts, top_k, s);
    b.finish("plan")
}

fn plan(b: &mut Builder, ids: moec_ir::tile::BufferId, n_experts: u64, top_k: u64, s: Schedule) {
    let offsets = b.output("offsets", DType::I32, Dim::Fixed(1), n_experts + 1, 0);
    let slot_to_row = b.output("slot_to_row", DType::I32, Dim::TOKENS, top_k, 1);
    let row_to_token = b.output("row_to_token", DType::I32, Dim::PerToken(top_k), 1, 2);
    b.kernel("plan", Body::Plan(Plan { ids, n_experts, offsets, slot_to_row, row_to_token, places: None }), s);
}

/// A row program that copies such ids, with the order made at its end.
fn order_after_rows(n_experts: u64, top_k: u64, s: Schedule) -> Program {
    let mut b = Builder::default();
    let given = b.input("given", DType::I32, Dim::TOKENS, top_k);
    let ids = b.workspace("ids", DType::I32, Dim::TOKENS, top_k);
    let ops = vec![RowOp { kind: RowOpKind::Load(given), width: top_k, dtype: DType::I32 }];
    let stores = vec![RowStore { value: RowId(0), buffer: ids }];
    let rows = RowProgram::of(Dim::TOKENS, ops, stores);
    b.kernel("route", Body::Rows(rows), s);
    plan(&mut b, ids, n_experts, top_k, s);
    with_plan_after_route(b.finish("rows"))
}

/// Ids of `n` slots: any, any and some that are none, the last expert's alone, none.
fn lists(n_experts: u64, n: usize) -> [Vec<i64>; 4] {
    let mut random = Random(n_experts + n as u64);
    let of = |f: &mut dyn FnMut() -> i64| (0..n).map(|_| f()).collect();
    [
        of(&mut || random.below(n_experts) as i64),
        of(&mut || random.below(n_experts + 4) as i64 - 2),
        of(&mut || n_experts as i64 - 1),
        of(&mut || -1),
    ]
}

/// What the kernels make of the ids, if it is not the order of the reference: what is found, or "another order".
fn wrong(
    program: &Program,
    images: &[GpuKernelImage],
    ids: &Tensor,
    extra_blocks: u32,
    order: Order,
) -> Result<(), String> {
    let n_tokens = ids.shape[0];
    let want = evaluate(program, std::slice::from_ref(ids), &[], n_tokens).expect("tensors fit");
    let content = |b: &Buffer| match b.role {
        Role::Input(_) => Some(ids.clone()),
        _ => None,
    };
    let got = run_images(program, images, sm90(), n_tokens as u64, extra_blocks, &content, order)?;
    if got == want { Ok(()) } else { Err("another order".into()) }
}

/// Holds that kernels make the reference's order of all kinds of ids.
#[track_caller]
fn check(of: fn(u64, u64, Schedule) -> Program, s: Schedule, tokens: &[u64]) {
    for (n_experts, top_k) in [(3, 2), (128, 8), (384, 8)] {
        let program = of(n_experts, top_k, s);
        let images = common::emit(&program, sm90()).expect("kernels");
        assert!(images.iter().any(|i| i.launch.cluster == s.order_ctas), "{s:?}");
        for (i, &t) in tokens.iter().enumerate() {
            for (j, list) in lists(n_experts, (t * top_k) as usize).into_iter().enumerate() {
                let ids = Tensor::int(DType::I32, &[t as usize, top_k as usize], list);
                let result = wrong(&program, &images, &ids, 1, ORDERS[(i + j) % 4]);
                assert!(result.is_ok(), "{result:?} E = {n_experts}, T = {t}, list {j}, {s:?}");
            }
        }
    }
}

#[test]
fn a_cluster_makes_the_order_of_one_cta() {
    for (order_ctas, warps) in [(1, 4), (2, 32), (4, 2), (8, 4)] {
        check(order, Schedule { order_ctas, ..schedule(1, 1, 1, 1, warps) }, &[0, 1, 31, 33, 1000]);
    }
}

#[test]
fn the_cluster_that_ends_last_makes_the_order() {
    for (order_ctas, tile_m) in [(1, 4), (2, 3), (4, 16), (8, 4)] {
        check(order_after_rows, Schedule { order_ctas, ..schedule(tile_m, 1, 1, 1, 4) }, &[0, 1, 31, 33, 200]);
    }
}

/// Holds that a slip is noticed: by a check, or by the order.
#[track_caller]
fn is_noticed(mutant: &Mutant, program: &Program, image: &GpuKernelImage) {
    let changed = [mutant.of(image)];
    let many = lists(40, 200).into_iter().flat_map(|list| ORDERS.map(|order| (list.clone(), order)));
    // With few slots a CTA is done soon, perhaps before others have read its sums.
    let few = (0..500).map(|seed| (vec![7, 1], Order::Random(seed)));
    let mut tries = many.chain(few);
    let is_noticed = tries.any(|(list, order)| {
        let ids = Tensor::int(DType::I32, &[list.len() / 2, 2], list);
        wrong(program, &changed, &ids, 0, order).is_err()
    });
    assert!(is_noticed, "{}", mutant.0);
}

#[test]
fn every_slip_of_the_cluster_is_noticed() {
    let program = order(40, 2, Schedule { order_ctas: 4, ..schedule(1, 1, 1, 1, 2) });
    let image = &common::emit(&program, sm90()).expect("a kernel")[0];
    for mutant in [
        Mutant("nobody says that its sums are there", ("barrier.cluster.arrive", 0), "barrier", "//"),
        Mutant("nobody waits for the others' sums", ("barrier.cluster.wait", 0), "barrier", "//"),
        Mutant("nobody says that it has read the others' sums", ("barrier.cluster.arrive", 1), "barrier", "//"),
        Mutant("a CTA leaves while its sums are read", ("barrier.cluster.wait", 1), "barrier", "//"),
        Mutant("the second CTA's sums in place of the first's", ("mapa", 0), ", 0;", ", 1;"),
        Mutant("the first CTA's sums in place of the last's", ("mapa", 3), ", 3;", ", 0;"),
        Mutant("every CTA is the last", ("%cluster_ctarank", 0), "%cluster_ctarank", "%cluster_nctarank"),
        Mutant("counts before counters are zero", ("bar.sync", 0), "bar", "//"),
        Mutant("sums before all have counted", ("bar.sync", 1), "bar", "//"),
        Mutant("rows before all have summed", ("bar.sync", 2), "bar", "//"),
        Mutant("slots before first rows are known", ("bar.sync", 3), "bar", "//"),
    ] {
        is_noticed(&mutant, &program, image);
    }
}

#[test]
fn every_slip_of_the_last_cluster_is_noticed() {
    let program = order_after_rows(40, 2, Schedule { order_ctas: 4, ..schedule(4, 1, 1, 1, 2) });
    let image = &common::emit(&program, sm90()).expect("a kernel")[0];
    for mutant in [
        Mutant("nobody says that its rows are done", ("barrier.cluster.arrive", 0), "barrier", "//"),
        Mutant("a number before all rows are done", ("barrier.cluster.wait", 0), "barrier", "//"),
        Mutant("no fence before the number", ("membar.gl", 0), "membar", "//"),
        Mutant("no fence behind the last number", ("membar.gl", 1), "membar", "//"),
        Mutant("a number before it is sent", ("barrier.cluster.wait", 1), "barrier", "//"),
        Mutant("a number that one CTA does not get", ("mapa", 1), ", 1;", ", 0;"),
        Mutant("counters where the number still lies", ("bar.sync", 0), "bar", "//"),
        Mutant("a CTA leaves while its sums are read", ("barrier.cluster.wait", 3), "barrier", "//"),
    ] {
        is_noticed(&mutant, &program, image);
    }
}
