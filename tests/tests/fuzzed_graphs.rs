//! Layer graphs with random changes, of a fixed seed: each is compiled or told why not, and what compiles for the CPU runs there with the
//! results of the reference. `cargo xtask fuzz --graphs` tries as many as one likes, for every target.

use moec::Target;
use moec_tests::graph_fuzz::Fuzzer;

#[test]
fn changed_graphs_get_an_answer_that_is_no_bug() {
    let fuzzer = Fuzzer::open().unwrap();
    let targets: Vec<&'static Target> = ["cpu", "sm_100a"].into_iter().map(|t| Target::by_name(t).unwrap()).collect();
    let (mut ran, mut refused, mut codes) = (0, 0, Vec::new());
    for n in 0..60 {
        let (graph, changes) = fuzzer.graph(11, n);
        // The GPU's code generator takes most of the time.
        let targets = if n % 8 == 0 { &targets[..] } else { &targets[..1] };
        let answer = fuzzer.answer(&graph, targets, |_| true, n);
        assert!(answer.findings.is_empty(), "graph {n}: {changes:?}: {:?}", answer.findings);
        ran += u32::from(answer.ran.contains(&"cpu"));
        refused += u32::from(!answer.refused.is_empty());
        codes.extend(answer.refused.into_values());
    }
    // Both kinds are there: neither are all changes harmless, nor is everything refused.
    assert!(ran >= 10 && refused >= 10, "{ran} ran, {refused} were refused: {codes:#?}");
}

#[test]
fn a_layer_of_more_blocks_than_a_gpu_takes_is_told_apart() {
    let fuzzer = Fuzzer::open().unwrap();
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/layers/biased_clamped.json");
    // Rows of a million columns, for up to a million tokens.
    let text = std::fs::read_to_string(path).unwrap().replace("36", "1048576");
    let targets = ["cpu", "sm_80", "sm_90a"].map(|t| Target::by_name(t).unwrap());
    let answer = fuzzer.answer(&serde_json::from_str(&text).unwrap(), &targets, |_| false, 1);
    assert!(answer.findings.is_empty() && answer.compiled.contains(&"cpu"), "{answer:?}");
    for target in ["sm_80", "sm_90a"] {
        assert_eq!(answer.refused[target], "grid-too-large", "{answer:?}");
    }
}

#[test]
fn a_router_that_reads_what_others_make_of_its_scores_is_compiled_in_two_parts() {
    let fuzzer = Fuzzer::open().unwrap();
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/layers/sigmoid_groups_shared.json");
    let text = std::fs::read_to_string(path).unwrap();
    // top-k chooses from activated scores, which another kernel makes.
    let node = r#"{ "name": "topk_ids", "op": "top_k", "k": 3, "inputs": ["limited"] }"#;
    let split = r#"{ "name": "shaped", "op": "activate", "activation": "silu", "inputs": ["limited"] },
                   { "name": "topk_ids", "op": "top_k", "k": 3, "inputs": ["shaped"] }"#;
    assert!(text.contains(node));
    let graph = serde_json::from_str(&text.replace(node, split)).unwrap();
    let answer = fuzzer.answer(&graph, &[Target::by_name("cpu").unwrap()], |_| true, 1);
    assert!(!answer.ran.is_empty() && answer.findings.is_empty(), "{answer:?}");
}
