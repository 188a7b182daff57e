//! What a layer became is proven from what it was, by a checker that does not know the rules.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use moec_ir::expr::Real;
use moec_ir::graph::{GraphBuilder, GroupScore, Op, RowMask, Score};
use moec_ir::weights::WeightSource;
use moec_ir::{Activation, DType, Dim, NumericClass, Numerics, TensorType};
use moec_passes::proof::{Proof, ProofFault, check};
use moec_passes::verify::layers::{Layer, deepseek, plain};
use moec_passes::{Limits, egraph, normalise};

fn layers() -> Vec<Layer> {
    let mut list = Vec::new();
    for d in [DType::F32, DType::BF16] {
        list.push(plain(d));
        list.push(deepseek(d));
        list.push(Layer { shared: Some(12), shared_gate: true, bias: true, ..plain(d) });
        list.push(Layer { act: Activation::Relu2, ..deepseek(d) });
        list.push(Layer { hidden: 512, ffn: 256, experts: 48, selection: Some((8, 4)), ..deepseek(d) });
    }
    list
}

fn proof(layer: &Layer, numerics: Numerics) -> Proof {
    normalise(&layer.graph(), numerics, Limits::default()).unwrap().1.proof
}

#[test]
fn every_layer_has_a_proof_that_holds() {
    for layer in layers() {
        for numerics in [Numerics::Bitwise, Numerics::Deterministic, Numerics::Fast] {
            let proof = proof(&layer, numerics);
            assert!(!proof.steps.is_empty(), "{layer:?}");
            assert_eq!(check(&proof, numerics), Ok(()), "{layer:?} {numerics:?}");
            assert_eq!(serde_json::from_str::<Proof>(&proof.to_text()).unwrap(), proof);
        }
    }
}

#[test]
fn scores_that_saturate_are_ties_and_no_fault() {
    // Most of these scores are 1: the lower expert is chosen by them, and the one of the larger logit by the logits.
    let mut b = GraphBuilder::new("saturated");
    let x = b.input("input", TensorType::new(DType::F32, [Dim::TOKENS, Dim::Fixed(32)]));
    let w = b.param("router.weight", TensorType::fixed(DType::F32, &[16, 32]), WeightSource::tensor("unused"));
    let logits = b.node("logits", Op::Linear, &[x, w]).unwrap();
    let large = b.node("large", Op::Scale(Real(1e4)), &[logits]).unwrap();
    let scores = b.node("scores", Op::Score(Score::Sigmoid), &[large]).unwrap();
    let ids = b.node("ids", Op::TopK { k: 4 }, &[scores]).unwrap();
    let limit = Op::GroupLimit { n_groups: 1, keep: 1, score: GroupScore::Max, fill: RowMask::NegInf };
    let same = b.node("same", limit, &[scores]).unwrap();
    let chosen = b.node("chosen", Op::GatherScores, &[same, ids]).unwrap();
    b.output("ids", ids);
    b.output("chosen", chosen);
    let graph = b.finish();
    for n in [Numerics::Bitwise, Numerics::Fast] {
        let proof = normalise(&graph, n, Limits::default()).unwrap().1.proof;
        assert!(!proof.steps.is_empty());
        assert_eq!(check(&proof, n), Ok(()), "{n:?}");
    }
}

#[test]
fn proofs_that_were_changed_are_refused() {
    let layer = Layer { scale: 1.0, ..deepseek(DType::BF16) };
    let numerics = Numerics::Deterministic;
    let good = proof(&layer, numerics);
    let refused = |what: &str, change: &dyn Fn(&mut Proof)| {
        let mut proof = good.clone();
        change(&mut proof);
        assert_ne!(proof, good, "{what}");
        check(&proof, numerics).expect_err(what)
    };
    // Each step is needed.
    for i in 0..good.steps.len() {
        let fault = refused("a step left out", &|p| {
            p.steps.remove(i);
        });
        assert!(matches!(fault, ProofFault::NotProven(_)), "{fault}");
    }
    // Each operand of what a step made, replaced by another term.
    for (i, step) in good.steps.iter().enumerate() {
        for operand in 0..good.terms[step.after].operands.len() {
            refused(&format!("operand {operand} of step {i} exchanged"), &|p| {
                let after = p.steps[i].after;
                p.terms[after].operands[operand] ^= 1;
            });
        }
    }
    let combine = good.terms.iter().position(|t| matches!(t.op, Op::Combine { .. })).unwrap();
    let fault = refused("a factor", &|p| {
        if let Op::Combine { scale, .. } = &mut p.terms[combine].op {
            *scale = Real(1.5);
        }
    });
    assert!(matches!(fault, ProofFault::Wrong(_) | ProofFault::NotProven(_)), "{fault}");
    let act = good.terms.iter().position(|t| matches!(t.op, Op::GroupedLinearAct { .. })).unwrap();
    let fault = refused("a rounding point", &|p| {
        if let Op::GroupedLinearAct { round, .. } = &mut p.terms[act].op {
            *round = DType::F32;
        }
    });
    assert!(matches!(fault, ProofFault::OtherBits(_) | ProofFault::NotProven(_)), "{fault}");
    assert_eq!(refused("a version", &|p| p.version += 1), ProofFault::Version(2));
    let fault = refused("a class", &|p| p.steps[0].class = NumericClass::TieSensitive);
    assert_eq!(fault, ProofFault::NotAllowed(0));
    let fault = refused("a term that is not there", &|p| p.steps[0].after = 10_000);
    assert!(matches!(fault, ProofFault::Malformed(_)), "{fault}");
    let fault = refused("a cycle", &|p| p.terms[combine].operands[0] = combine);
    assert!(matches!(fault, ProofFault::Malformed(_)), "{fault}");
}

#[test]
fn the_egraph_is_written_as_viewers_read_it() {
    let graph = deepseek(DType::BF16).graph();
    let written = egraph(&graph, Numerics::Deterministic);
    let json = serde_json::to_value(&written).unwrap();
    let nodes = json["nodes"].as_object().unwrap();
    assert_eq!(json["root_eclasses"].as_array().unwrap().len(), graph.outputs.len());
    for node in nodes.values() {
        // Every operand is a node that is there, and every class has a type.
        assert!(node["children"].as_array().unwrap().iter().all(|c| nodes.contains_key(c.as_str().unwrap())), "{node}");
        assert!(json["class_data"][node["eclass"].as_str().unwrap()]["type"].is_string(), "{node}");
        assert!(node["cost"].is_f64() && node["subsumed"] == false, "{node}");
    }
    // Forms compete.
    assert!(nodes.len() > json["class_data"].as_object().unwrap().len());
    assert!(nodes.values().any(|n| n["op"] == "combine (taken)"), "{json}");
}
