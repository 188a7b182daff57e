//! Routers whose columns many CTAs share: the bits of one CTA or cluster, with an order of experts behind and without, and every piece
//! of the synchronisation counts.

mod common;

use common::emulate::{run_images, run_in_order};
use common::mutant::Mutant;
use common::programs::{Layer, Schedules, layer, schedule, with_logits_by_many, with_plan_after_route};
use common::random::tensors;
use moec_ir::DType;
use moec_ir::target::Target;
use moec_ir::tile::{Buffer, Role};
use moec_ptx::exec::Schedule as Order;

const ORDERS: [Order; 4] = [Order::RoundRobin, Order::Random(1), Order::Random(2), Order::Random(3)];

fn target(name: &str) -> &'static Target {
    Target::by_name(name).expect("a target")
}

#[test]
fn many_ctas_choose_as_one_does() {
    let few = Layer::small(DType::BF16);
    let many = Layer { n_experts: 136, top_k: 3, hidden: 72, ..Layer::small(DType::BF16) };
    let in_f32 = Layer { router: DType::F32, ..many.clone() };
    for (i, l) in [few, many, in_f32].into_iter().enumerate() {
        for name in ["sm_80", "sm_90a"] {
            let on = target(name);
            let schedules = Schedules { rows: schedule(4, 8, 64, 1, 8), ..Schedules::for_rows(16) };
            let apart = layer(&l, &schedules);
            for (j, (t, logit_ctas)) in [(0, 8), (1, 2), (1, 64), (9, 16), (33, 4)].into_iter().enumerate() {
                let (inputs, params) = tensors(&apart, t, t);
                let order = ORDERS[(i + j) % 4];
                let want = run_in_order(&apart, on, &inputs, &params, t, 0, order);
                let shared = with_logits_by_many(apart.clone(), logit_ctas);
                for program in [&shared, &with_plan_after_route(shared.clone())] {
                    let got = run_in_order(program, on, &inputs, &params, t, 0, order);
                    assert_eq!(got, want, "{name}, layer {i}, {logit_ctas} CTAs, T = {t}");
                }
            }
        }
    }
}

#[test]
fn every_slip_is_noticed() {
    let (on, t) = (target("sm_80"), 9);
    let l = Layer { n_experts: 40, top_k: 3, ..Layer::small(DType::BF16) };
    let schedules = Schedules { rows: schedule(4, 8, 64, 1, 2), ..Schedules::for_rows(16) };
    let program = common::fitted(&with_logits_by_many(layer(&l, &schedules), 4), on);
    let images = common::emit(&program, on).expect("kernels");
    let (inputs, params) = tensors(&program, t, 5);
    let content = |b: &Buffer| match b.role {
        Role::Input(i) => Some(inputs[i as usize].clone()),
        Role::Weight(i) => Some(params[i as usize].clone()),
        _ => None,
    };
    let run = |images: &[_], order| run_images(&program, images, on, t, 0, &content, order);
    let want = run(&images, Order::RoundRobin);
    assert!(want.is_ok(), "{want:?}");
    for mutant in [
        Mutant("no fence before the count", ("membar.gl", 0), "membar", "//"),
        Mutant("no fence behind the last count", ("membar.gl", 1), "membar", "//"),
        Mutant("the same number for all", ("atom.global.add", 0), "add", "max"),
        Mutant("a count that others do not see", ("atom.global.add", 0), "atom.global", "atom.cta.global"),
        Mutant("a counter that is left", ("], 0;", 0), "st.global", "// st.global"),
    ] {
        let mut changed = images.clone();
        changed[0] = mutant.of(&changed[0]);
        let is_noticed = ORDERS.iter().any(|&order| run(&changed, order) != want);
        assert!(is_noticed, "{}", mutant.0);
    }
}
