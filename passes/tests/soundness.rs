//! Each rule alone keeps every value, as exactly as its class says.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod layers;

use layers::{Layer, deepseek, plain, tensors};
use moec_ir::expr::Real;
use moec_ir::graph::{Graph, GraphBuilder, Op};
use moec_ir::{Activation, DType, Dim, NumericClass, TensorType};
use moec_passes::{catalogue, soundness::check};

fn layers() -> Vec<Layer> {
    let mut list = Vec::new();
    for d in [DType::F32, DType::BF16, DType::F16] {
        list.push(plain(d));
        list.push(deepseek(d));
        list.push(Layer { selection: Some((4, 4)), ..deepseek(d) });
        list.push(Layer { shared: Some(12), shared_gate: true, bias: true, ..plain(d) });
        list.push(Layer { act: Activation::Relu2, ..deepseek(d) });
        list.push(Layer { top_k: 6, scale: 3.0, ..plain(d) });
        list.push(Layer { scale: 1.0, ..deepseek(d) });
    }
    list
}

/// Chains that no family needs, but a graph of the user's may have.
fn casts_and_factors() -> Graph {
    let mut b = GraphBuilder::new("casts and factors");
    let x = b.input("input", TensorType::new(DType::BF16, [Dim::TOKENS, Dim::Fixed(8)]));
    let wide = b.node_as("wide", Op::Cast, &[x], Some(DType::F32)).unwrap();
    let back = b.node_as("back", Op::Cast, &[wide], Some(DType::BF16)).unwrap();
    let same = b.node("same", Op::Cast, &[back]).unwrap();
    let half = b.node_as("half", Op::Scale(Real(0.3)), &[same], Some(DType::F32)).unwrap();
    let more = b.node("more", Op::Scale(Real(0.7)), &[half]).unwrap();
    b.output("output", more);
    b.finish()
}

#[test]
fn each_rule_alone_is_sound() {
    for rule in catalogue() {
        let mut fired = 0;
        let graphs = layers().into_iter().map(|l| (l.dtype, l.graph())).chain([(DType::BF16, casts_and_factors())]);
        for (dtype, graph) in graphs {
            for (n_tokens, seed) in [(1, 1), (5, 2), (16, 3)] {
                let (inputs, params) = tensors(&graph, n_tokens, seed);
                // Rules that work on what another rule made are checked on top of the exact ones.
                for others in [false, true] {
                    let mut rules = vec![rule];
                    if others {
                        rules.extend(catalogue().into_iter().filter(|r| r.class == NumericClass::Exact));
                    }
                    let report = check(&graph, &rules, &inputs, &params);
                    fired += report.fired.get(rule.name).copied().unwrap_or(0);
                    let tolerance = match (rule.class, dtype) {
                        (NumericClass::Exact, _) => 0.0,
                        (_, DType::F32) => 2e-6,
                        (_, _) => 1e-2,
                    };
                    assert!(report.worst_error <= tolerance, "{}: {report:?} on {graph:?}", rule.name);
                    assert!(!report.ids_differ, "{}: {report:?} on {graph:?}", rule.name);
                }
            }
        }
        assert!(fired > 0, "rule `{}` never fired on a layer of this test", rule.name);
    }
}

#[test]
fn scaling_the_input_of_an_expert_is_not_scaling_its_output() {
    // The negative of a tempting rule: w·f(x) is not f(w·x), because an activation is not homogeneous.
    let silu = Activation::SwiGlu.expr();
    let (g, u, w) = (1.5, 0.5, 0.25);
    let outside = w * silu.eval(&[g, u]);
    let inside = silu.eval(&[w * g, w * u]);
    assert!((outside - inside).abs() > 0.1 * outside.abs());
}

#[test]
fn the_catalogue_has_one_rule_of_each_name() {
    let mut names: Vec<&str> = catalogue().iter().map(|r| r.name).collect();
    names.sort_unstable();
    let n = names.len();
    names.dedup();
    assert_eq!(names.len(), n);
}
