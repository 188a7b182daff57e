//! What placed graphs mean, by the reference evaluator: head, experts and tail together are the layer.

use moec::Tensor;
use moec_ir::graph::arbitrary::{moe_graph, tensors};
use moec_ir::graph::{
    self, Graph, Rounding, Source, Wire, cut_columns, evaluate, place, results_at_places, results_in_expert_order,
    round_on_wire,
};
use moec_ir::{ActQuant, DType};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

type Named<'t> = Vec<(&'t str, &'t Tensor)>;

/// A graph's outputs, its inputs and parameters being found by name.
fn run(graph: &Graph, inputs: &Named<'_>, params: &Named<'_>) -> Vec<Tensor> {
    let find = |list: &Named<'_>, name: &str| {
        list.iter().find(|(n, _)| *n == name).map_or_else(|| panic!("`{name}` is not given"), |(_, t)| (*t).clone())
    };
    let found = graph::verify(graph);
    assert!(found.is_empty(), "{found:?}\n{}", graph::print(graph));
    let inputs: Vec<Tensor> = graph.inputs.iter().map(|i| find(inputs, &i.name)).collect();
    let params: Vec<Tensor> = graph.params.iter().map(|p| find(params, &p.name)).collect();
    evaluate(graph, &inputs, &params).expect("evaluates")
}

fn rows_of(t: &Tensor, which: &[usize]) -> Tensor {
    let cols = t.cols();
    let values = which.iter().flat_map(|&i| t.floats()[i * cols..(i + 1) * cols].to_vec()).collect();
    Tensor::float(t.dtype, &[which.len(), cols], values)
}

/// The outputs of a layer by way of its placed form, with all experts on one rank.
fn placed_outputs(graph: &Graph, rounding: Rounding, inputs: &[Tensor], params: &[Tensor]) -> Vec<Tensor> {
    let placed = place(graph, u32::MAX, rounding).expect("can be placed");
    let given: Named<'_> = graph.inputs.iter().map(|i| i.name.as_str()).zip(inputs).collect();
    let params: Named<'_> = graph.params.iter().map(|p| p.name.as_str()).zip(params).collect();
    let made = placed.head.as_ref().map(|head| run(head, &given, &params)).unwrap_or_default();
    let head: Named<'_> =
        placed.head.iter().flat_map(|h| &h.outputs).map(|(name, _)| name.as_str()).zip(&made).collect();
    let value = |source: &Source| {
        let (list, name) = match source {
            Source::Input(name) => (&given, name),
            Source::Head(name) => (&head, name),
        };
        list.iter().find(|(n, _)| n == name).expect("a source is there").1
    };
    let (rows, ids) = (value(&placed.rows), value(&placed.ids));
    // A row for each slot that has an expert, in an order of our own: the last token first.
    let has_expert = |&slot: &usize| (0..i64::from(placed.n_experts)).contains(&ids.ints()[slot]);
    let slots: Vec<usize> = (0..ids.elements()).rev().filter(has_expert).collect();
    let sent = rows_of(rows, &slots.iter().map(|s| s / ids.cols()).collect::<Vec<_>>());
    let sent = match placed.wire {
        Wire::Rows(dtype) => {
            assert_eq!(sent.dtype, dtype);
            sent
        }
        Wire::Codes(q) => {
            let values = sent.floats().chunks(sent.cols().max(1)).flat_map(|r| q.quantise(r, 1.0)).collect();
            Tensor::float(placed.experts.inputs[0].ty.dtype, &sent.shape, values)
        }
    };
    let local = Tensor::int(DType::I32, &[slots.len(), 1], slots.iter().map(|&s| ids.ints()[s]).collect());
    let results = &run(&placed.experts, &vec![("rows", &sent), ("local_ids", &local)], &params)[0];
    let cols = results.cols();
    // The same rows where the last product leaves them.
    let in_order = results_in_expert_order(&placed.experts).expect("ends with the slots");
    let left = run(&in_order, &vec![("rows", &sent), ("local_ids", &local)], &params);
    let of_slots: Vec<usize> = left[1].ints().iter().map(|&row| row as usize).collect();
    assert!(rows_of(&left[0], &of_slots).to_bytes() == results.to_bytes(), "{}", graph::print(&in_order));
    // Where they are stored is no part of what they are.
    let stored = results_at_places(&placed.experts, 8).expect("ends with the slots");
    let places = Tensor::int(DType::I64, &local.shape, (0..slots.len() as i64).collect());
    let given = vec![("rows", &sent), ("local_ids", &local), ("slot_places", &places)];
    assert!(run(&stored, &given, &params)[0].to_bytes() == left[0].to_bytes(), "{}", graph::print(&stored));
    let mut all = vec![0.0; ids.elements() * cols];
    for (row, &slot) in results.floats().chunks(cols).zip(&slots) {
        all[slot * cols..(slot + 1) * cols].copy_from_slice(row);
    }
    let all = Tensor::float(results.dtype, &[ids.elements(), cols], all);
    let weights = placed.weights.as_ref().map(|w| value(w).clone());
    let mut tail: Named<'_> = vec![("slot_rows", &all)];
    tail.extend(weights.as_ref().map(|w| ("slot_weights", w)));
    tail.extend(placed.crossing.iter().map(|(name, source)| (name.as_str(), value(source))));
    let mut last = run(&placed.tail, &tail, &params).into_iter();
    let outputs = placed.outputs.iter().map(|(name, maker)| match maker {
        graph::Maker::Head => value(&Source::Head(name.clone())).clone(),
        graph::Maker::Tail => last.next().expect("the tail has its outputs in order"),
    });
    outputs.collect()
}

#[test]
fn head_experts_and_tail_are_the_layer() {
    let mut runner = TestRunner::new(Config { cases: 300, failure_persistence: None, ..Config::default() });
    let wires = prop_oneof![
        3 => Just(None),
        1 => Just(Some(Wire::Rows(DType::BF16))),
        1 => Just(Some(Wire::Codes(ActQuant::FP8_TOKEN))),
        1 => Just(Some(Wire::Codes(ActQuant::MXFP4))),
    ];
    let test = |(layer, wire, n_tokens, seed): (Graph, Option<Wire>, usize, u64)| {
        let is_narrower = |w: &Wire| !matches!(w, Wire::Rows(_)) || layer.inputs[0].ty.dtype == DType::F32;
        let layer = match wire.filter(is_narrower) {
            // A layer that rounds its rows already cannot round them again.
            Some(wire) => round_on_wire(&layer, wire).unwrap_or(layer),
            None => layer,
        };
        let (inputs, params) = tensors(&layer, n_tokens, seed);
        let want = evaluate(&layer, &inputs, &params).expect("evaluates");
        for rounding in [Rounding::BeforeDispatch, Rounding::AfterDispatch] {
            let got = placed_outputs(&layer, rounding, &inputs, &params);
            for ((name, _), (got, want)) in layer.outputs.iter().zip(got.iter().zip(&want)) {
                prop_assert_eq!(&got.shape, &want.shape);
                prop_assert!(got.to_bytes() == want.to_bytes(), "`{}`, {:?}\n{}", name, rounding, graph::print(&layer));
            }
        }
        Ok(())
    };
    runner.run(&(moe_graph(), wires, 0usize..7, any::<u64>()), test).expect("placed layers are the layers");
}

const LAYER: &str = r#"graph "layer"
input "x" : f32[T, 6]
input "ids" : i32[T, 2]
input "w" : f32[T, 2]
param "up" : f32[4, 6, 6] = tensor("up")
%0 = input index=0 () : f32[T, 6]  "x"
%1 = input index=1 () : i32[T, 2]  "ids"
%2 = input index=2 () : f32[T, 2]  "w"
%3 = param index=0 () : f32[4, 6, 6]  "up"
%4 = permute n_experts=4 (%0, %1) : f32[T*2, 6]  "rows"
%5 = grouped_linear (%4, %1, %3) : f32[T*2, 6]  "y"
%6 = unpermute n_experts=4 (%5, %1) : f32[T*2, 6]  "slots"
%7 = weighted_sum (%6, %2) : f32[T, 6]  "sum"
output "output" = %7
"#;

/// A layer without a router has no head; and what cannot be placed is told why, with the operation.
#[test]
fn layers_that_cannot_be_placed_are_refused() {
    let whole = graph::parse("g.mir", LAYER).expect("parses");
    let placed = place(&whole, 2, Rounding::BeforeDispatch).expect("can be placed");
    assert!(placed.head.is_none() && placed.stacks.len() == 1 && placed.widths() == (6, 6));
    assert_eq!(placed.experts.params[0].ty.shape[0].fixed(), Some(2), "two local experts");
    let with = |from: &str, to: &str| graph::parse("g.mir", &LAYER.replace(from, to)).expect("parses");
    let twice = with(
        "output \"output\" = %7",
        "%8 = permute n_experts=4 (%7, %1) : f32[T*2, 6]  \"again\"\n%9 = grouped_linear (%8, %1, %3) : f32[T*2, 6]  \"z\"\n\
         %10 = unpermute n_experts=4 (%9, %1) : f32[T*2, 6]  \"back\"\n%11 = weighted_sum (%10, %2) : f32[T, 6]  \"sum2\"\noutput \"output\" = %11",
    );
    let fused = with("%5 = grouped_linear (%4, %1, %3)", "%5 = gather_grouped_linear (%0, %1, %3)");
    let slots_out = with("output \"output\" = %7", "output \"output\" = %7\noutput \"slots\" = %6");
    let nothing = with("output \"output\" = %7", "output \"output\" = %0");
    let other_sum = with(
        "output \"output\" = %7",
        "%8 = scale factor=2.0 (%2) : f32[T, 2]  \"w2\"\n%9 = weighted_sum (%6, %8) : f32[T, 6]  \"s2\"\n%10 = add (%7, %9) : f32[T, 6]  \"both\"\noutput \"output\" = %10",
    );
    for (layer, word, node) in [
        (twice, "2 times", "again"),
        (fused, "fused form", "y"),
        (slots_out, "a row for each slot", "slots"),
        (nothing, "no output comes of its experts", "slots"),
        (other_sum, "two sets of weights", "s2"),
    ] {
        let d = place(&layer, 2, Rounding::BeforeDispatch).expect_err("cannot be placed");
        assert!(d.code == "layer-not-placeable" && d.message.contains(word), "{d}");
        assert!(d.notes.iter().any(|n| n.contains(&format!("`{node}`"))), "{d} {:?}", d.notes);
    }
    // Without an activation between two products there is nothing to cut; and 13 ranks have no column each.
    let d = cut_columns(&place(&whole, 2, Rounding::BeforeDispatch).expect("can be placed"), 2, 0)
        .expect_err("one product");
    assert!(d.code == "layer-not-placeable" && d.message.contains("cannot be cut over ranks"), "{d}");
    let two = LAYER
        .replace("param \"up\"", "param \"down\" : f32[4, 6, 6] = tensor(\"down\")\nparam \"up\"")
        .replace("%3 = param index=0 ()", "%3 = param index=1 ()");
    let two = two.split_once("%6 =").expect("an unpermute").0.to_string()
        + "%6 = param index=0 () : f32[4, 6, 6]  \"down\"\n%7 = grouped_linear (%5, %1, %6) : f32[T*2, 6]  \"z\"\n\
           %8 = unpermute n_experts=4 (%7, %1) : f32[T*2, 6]  \"slots\"\n%9 = weighted_sum (%8, %2) : f32[T, 6]  \"sum\"\n\
           output \"output\" = %9\n";
    let two = place(&graph::parse("g.mir", &two).expect("parses"), 2, Rounding::BeforeDispatch).expect("can be placed");
    let columns = cut_columns(&two, 4, 3).expect("can be cut");
    assert_eq!((columns.up_stacks.len(), columns.down_stacks[0].ty.to_string()), (1, "f32[4, 1, 6]".to_string()));
    assert_eq!(cut_columns(&two, 13, 0).expect_err("six columns").code, "shard-too-narrow");
    for wire in [Wire::Rows(DType::F32), Wire::Codes(ActQuant::NVFP4), Wire::Rows(DType::I32)] {
        match round_on_wire(&whole, wire) {
            Ok(same) => assert!(wire == Wire::Rows(DType::F32) && same == whole),
            Err(d) => assert!(d.code == "layer-not-placeable" && wire != Wire::Rows(DType::F32), "{d}"),
        }
    }
}
