//! Malformed inputs: each gives one coded diagnostic that names the file and the place, and nothing panics.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use moec_frontend::layer_graph::from_json;
use moec_frontend::{LayerOptions, ModelConfig};
use moec_ir::diag::{Diagnostic, code_page};
use proptest::prelude::*;

const GOOD: &str = r#"{
  "model_type": "deepseek_v3", "torch_dtype": "bfloat16", "hidden_size": 64, "moe_intermediate_size": 32,
  "num_hidden_layers": 4, "first_k_dense_replace": 1, "n_routed_experts": 8, "num_experts_per_tok": 2,
  "n_group": 4, "topk_group": 2, "norm_topk_prob": true, "routed_scaling_factor": 2.5, "n_shared_experts": 1,
  "hidden_act": "silu"
}"#;

const GRAPH: &str = r#"{ "moec_graph": 1, "name": "g",
  "inputs": [ { "name": "x", "dtype": "f32", "shape": ["T", 4] } ],
  "params": [ { "name": "w", "dtype": "f32", "shape": [3, 4], "source": "gate" } ],
  "nodes": [ { "name": "logits", "op": "linear", "inputs": ["x", "w"] },
             { "name": "ids", "op": "top_k", "k": 2, "inputs": ["logits"] } ],
  "outputs": [ { "name": "output", "value": "logits" }, { "name": "topk_ids", "value": "ids" } ] }"#;

fn layer(text: &str, number: Option<u32>) -> Result<(), Vec<Diagnostic>> {
    ModelConfig::from_text("c.json", text.to_string())?.layer(number, &LayerOptions::default()).map(|_| ())
}

/// One diagnostic with this code whose message names the file and contains `part`.
fn one(what: &str, got: Result<(), Vec<Diagnostic>>, code: &str, file: &str, part: &str) {
    let got = got.expect_err(what);
    assert_eq!(got.len(), 1, "{what}: {got:?}");
    assert_eq!(got[0].code, code, "{what}: {}", got[0].message);
    let page = code_page(code).unwrap_or_else(|| panic!("no page for {code}"));
    assert!(page.page.lines().count() > 2, "the page of {code} is empty");
    let text = format!("{} {} {}", got[0].message, got[0].notes.join(" "), got[0].help.clone().unwrap_or_default());
    assert!(text.contains(file) || got[0].origin.as_ref().is_some_and(|o| o.file == file), "{what}: {text}");
    assert!(text.contains(part), "{what}: {text}");
}

#[test]
fn the_unchanged_inputs_are_accepted() {
    assert_eq!(layer(GOOD, None), Ok(()));
    assert!(from_json("g.json", GRAPH.to_string()).is_ok());
}

#[test]
fn malformed_configs_are_diagnosed() {
    let cases = [
        ("\"hidden_act\": \"silu\"", "\"hidden_act\": \"silu\",", "config-not-json", "line 6"),
        ("\"model_type\"", "\"model_kind\"", "missing-config-key", "model_type"),
        ("\"deepseek_v3\"", "\"deepseek_v33\"", "unknown-model-type", "the nearest known one is \"deepseek_v3\""),
        ("\"deepseek_v3\"", "17", "config-key-type", "expected a string"),
        ("\"hidden_size\": 64, ", "", "missing-config-key", "`hidden_size`"),
        ("\"hidden_size\": 64", "\"hidden_sise\": 64", "missing-config-key", "there is a key `hidden_sise`"),
        ("\"hidden_size\": 64", "\"hidden_size\": null", "missing-config-key", "`hidden_size`"),
        ("\"hidden_size\": 64", "\"hidden_size\": \"64\"", "config-key-type", "expected a whole number"),
        ("\"hidden_size\": 64", "\"hidden_size\": 64.5", "config-key-type", "64.5"),
        ("\"hidden_size\": 64", "\"hidden_size\": -64", "config-value-range", "-64"),
        ("\"hidden_size\": 64", "\"hidden_size\": 0", "config-value-range", "from 1 to"),
        ("\"hidden_size\": 64", "\"hidden_size\": 99999999999999999999999", "config-value-range", "from 1 to"),
        ("\"hidden_size\": 64", "\"hidden_size\": [[[[]]]]", "config-key-type", "[[[[]]]]"),
        ("\"n_routed_experts\": 8", "\"n_routed_experts\": 4000000000", "config-value-range", "65536"),
        ("\"num_hidden_layers\": 4", "\"num_hidden_layers\": 4000000000", "config-value-range", "4096"),
        ("\"num_experts_per_tok\": 2", "\"num_experts_per_tok\": 9", "top-k-exceeds-experts", "9 experts per token"),
        ("\"n_group\": 4", "\"n_group\": 3", "groups-do-not-divide-experts", "3 groups"),
        ("\"topk_group\": 2", "\"topk_group\": 5", "groups-kept-exceed-groups", "5 of 4"),
        ("\"norm_topk_prob\": true", "\"norm_topk_prob\": \"yes\"", "config-key-type", "true or false"),
        ("2.5", "1e99", "config-value-range", "32-bit"),
        ("2.5", "NaN", "config-key-type", "a number"),
        ("\"silu\"", "\"gulu\"", "unsupported-layer", "gulu"),
        ("\"bfloat16\"", "\"float8_e4m3fn\"", "config-value-range", "bfloat16"),
        ("\"first_k_dense_replace\": 1", "\"first_k_dense_replace\": 4", "no-moe-layers", "4 layers"),
        ("\"n_group\": 4", "\"moe_layer_freq\": [0, 1], \"n_group\": 4", "config-value-range", "it has 2"),
        ("\"n_group\": 4", "\"mlp_layer_types\": \"sparse\", \"n_group\": 4", "config-key-type", "a list"),
        ("\"n_group\": 4", "\"scoring_func\": \"tanh\", \"n_group\": 4", "config-value-range", "sigmoid"),
        ("\"n_group\": 4", "\"quantization_config\": 4, \"n_group\": 4", "config-key-type", "an object"),
    ];
    for (from, to, code, part) in cases {
        let text = GOOD.replacen(from, to, 1);
        assert_ne!(text, GOOD, "{from}");
        one(to, layer(&text, None), code, "c.json", part);
    }
}

#[test]
fn whole_files_that_are_no_config_are_diagnosed() {
    for (text, code) in [
        ("", "config-not-json"),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "config-not-json"),
        ("[1, 2]", "config-key-type"),
        ("null", "config-key-type"),
        ("\"deepseek_v3\"", "config-key-type"),
        ("{}", "missing-config-key"),
        ("{\"text_config\": {}}", "missing-config-key"),
        (GRAPH, "not-a-model"),
    ] {
        one(text, layer(text, None), code, "c.json", "");
    }
}

#[test]
fn layers_that_have_no_experts_are_diagnosed() {
    one("dense", layer(GOOD, Some(0)), "layer-is-dense", "c.json", "MoE layers are 1-3");
    one("beyond", layer(GOOD, Some(4)), "layer-out-of-range", "c.json", "layers 0-3");
    one("far beyond", layer(GOOD, Some(u32::MAX)), "layer-out-of-range", "c.json", "4294967295");
}

#[test]
fn paths_that_hold_no_model_are_diagnosed() {
    let dir = tempfile::tempdir().unwrap();
    let open = |p: &std::path::Path| ModelConfig::open(p).map(|_| ());
    let name = |p: &std::path::Path| p.display().to_string();
    one("empty", open(dir.path()), "not-a-model", &name(dir.path()), "no config.json");
    let absent = dir.path().join("absent.json");
    one("absent", open(&absent), "not-a-model", &name(&absent), "cannot read");
    let binary = dir.path().join("config.json");
    std::fs::write(&binary, [b'{', 0xff, 0xfe]).unwrap();
    one("binary", open(dir.path()), "config-not-json", &name(&binary), "byte 1");
}

#[test]
fn all_mistakes_of_a_config_are_listed_in_file_order() {
    let text = GOOD
        .replace("64", "\"wide\"")
        .replace("\"norm_topk_prob\": true", "\"norm_topk_prob\": 3")
        .replace("32,", "-32,");
    let codes: Vec<String> = layer(&text, None).unwrap_err().into_iter().map(|d| d.code).collect();
    assert_eq!(codes, ["config-key-type", "config-value-range", "config-key-type"]);
}

#[test]
fn malformed_graphs_are_diagnosed() {
    let cases = [
        ("\"moec_graph\": 1", "\"moec_graph\": 2", "graph-version", "version 2"),
        ("\"moec_graph\": 1", "\"moec_graph\": \"1\"", "graph-key-type", "whole number"),
        ("\"moec_graph\": 1", "\"moec_grapf\": 1", "missing-graph-key", "moec_graph"),
        ("\"inputs\": [ {", "\"inputs\": [ 3, {", "graph-key-type", "an object"),
        ("\"nodes\": [", "\"notes\": [], \"nodes\": [", "unknown-graph-key", "is it meant to be `nodes`?"),
        ("\"op\": \"top_k\"", "\"op\": \"topk\"", "unknown-operation", "top_k"),
        ("\"op\": \"top_k\", ", "", "missing-graph-key", "`op`"),
        ("\"k\": 2, ", "", "missing-graph-key", "`k`"),
        ("\"k\": 2", "\"k\": \"two\"", "graph-key-type", "whole number"),
        ("\"k\": 2", "\"k\": 5000000000", "graph-key-type", "whole number"),
        ("\"k\": 2", "\"k\": {\"two\": 2}", "graph-key-type", "whole number"),
        ("\"op\": \"top_k\"", "\"op\": \"activate\", \"activation\": {\"silu\": 1}", "graph-key-type", "swiglu"),
        ("\"k\": 2", "\"k\": 4", "top-k-exceeds-experts", "4 of 3"),
        ("\"k\": 2", "\"k\": 2, \"kk\": 3", "unknown-graph-key", "kk"),
        ("[\"x\", \"w\"]", "[\"x\", \"v\"]", "unknown-value", "\"v\""),
        ("[\"x\", \"w\"]", "[\"x\", \"ids\"]", "unknown-value", "earlier"),
        ("[\"x\", \"w\"]", "[\"x\"]", "operand-count", "2 to 3"),
        ("[3, 4]", "[3, 5]", "expert-width-mismatch", "f32[3, 5]"),
        ("[3, 4]", "[3, -4]", "graph-value-range", "-4"),
        ("[3, 4]", "[3, 4, 1, 1, 1, 1, 1, 1, 1]", "graph-value-range", "at most 8 lengths"),
        ("[3, 4]", "[3, 4, \"N\"]", "graph-key-type", "\"T*4\""),
        ("\"dtype\": \"f32\", \"shape\": [3", "\"dtype\": \"float\", \"shape\": [3", "graph-value-range", "bf16"),
        ("\"source\": \"gate\"", "\"source\": 7", "graph-key-type", "tensor name"),
        (
            "\"source\": \"gate\"",
            "\"source\": {\"tensor\": \"a\", \"steps\": [\"flip\"]}",
            "graph-key-type",
            "transpose",
        ),
        ("\"source\": \"gate\"", "\"source\": {\"per_expert\": \"a\"}", "missing-graph-key", "`count`"),
        ("\"value\": \"ids\"", "\"value\": \"idz\"", "unknown-value", "idz"),
        ("\"name\": \"topk_ids\"", "\"name\": \"output\"", "duplicate-name", "two outputs"),
        ("\"inputs\": [\"logits\"]", "\"inputs\": [\"logits\"], \"dtype\": \"f32\"", "graph-value-range", "i32[T, 2]"),
    ];
    for (from, to, code, part) in cases {
        let text = GRAPH.replacen(from, to, 1);
        assert_ne!(text, GRAPH, "{from}");
        one(to, from_json("g.json", text).map(|_| ()), code, "g.json", part);
    }
}

#[test]
fn the_first_of_several_findings_names_the_cause() {
    for (from, to, code) in [
        ("[3, 4]", "[200000000000000, 4]", "tensor-too-large"),
        ("\"name\": \"ids\", \"op\"", "\"name\": \"logits\", \"op\"", "duplicate-name"),
        ("\"name\": \"w\"", "\"name\": \"x\"", "duplicate-name"),
        ("[\"T\", 4]", "[4, 4]", "input-without-tokens"),
    ] {
        let found = from_json("g.json", GRAPH.replacen(from, to, 1)).expect_err(to);
        assert_eq!(found[0].code, code, "{to}: {found:?}");
    }
}

#[test]
fn a_broken_node_is_reported_once_and_not_by_those_that_read_it() {
    let text = GRAPH.replace("\"op\": \"linear\"", "\"op\": \"linea\"");
    one("linea", from_json("g.json", text).map(|_| ()), "unknown-operation", "g.json", "linear");
}

#[test]
fn deeply_nested_files_are_refused_without_overflowing_the_stack() {
    let deep = "[".repeat(200_000) + &"]".repeat(200_000);
    assert!(layer(&GOOD.replace("64", &deep), None).is_err());
    let mut source = "\"a\"".to_string();
    for _ in 0..1000 {
        source = format!("{{\"first_of\": [{source}]}}");
    }
    one(
        "first_of",
        from_json("g.json", GRAPH.replace("\"gate\"", &source)).map(|_| ()),
        "graph-value-range",
        "g.json",
        "16 deep",
    );
}

/// Megabytes of mistakes: the work and the findings stay in proportion to the file.
#[test]
fn large_hostile_files_are_refused_in_time() {
    let long = "x".repeat(2 << 20);
    assert_eq!(layer(&GOOD.replace("deepseek_v3", &long), None).unwrap_err()[0].code, "unknown-model-type");
    let keys: String = (0..100_000).map(|i| format!("\"key{i}\": {i}, ")).collect();
    assert_eq!(layer(&GOOD.replacen("\"hidden_size\"", &format!("{keys}\"hidden\""), 1), None).unwrap_err().len(), 1);
    let dense: String = (0..300_000).map(|i| format!("{i},")).collect();
    let config = r#"{"model_type": "qwen3_moe", "num_hidden_layers": 4096, "mlp_only_layers": [LIST]}"#;
    assert!(layer(&config.replace("LIST", dense.trim_end_matches(',')), None).is_err());
    let nodes: String = (0..50_000).map(|i| format!("{{\"name\": \"n{i}\", \"op\": \"lin\", \"in\": 1}},")).collect();
    let found = from_json("g.json", GRAPH.replace("\"nodes\": [", &format!("\"nodes\": [{nodes}"))).unwrap_err();
    assert_eq!(found.len(), 100);
    let found =
        from_json("g.json", GRAPH.replace("\"name\": \"logits\"", &format!("\"name\": \"{long}\""))).unwrap_err();
    assert_eq!(found[0].code, "graph-value-range");
}

proptest! {
    #[test]
    fn no_value_of_a_config_key_panics(key in 0usize..14, value in json()) {
        let mut config: serde_json::Value = serde_json::from_str(GOOD).unwrap();
        let keys: Vec<String> = config.as_object().unwrap().keys().cloned().collect();
        config[&keys[key % keys.len()]] = value;
        let _ = layer(&config.to_string(), None);
    }

    #[test]
    fn no_value_of_a_graph_key_panics(path in prop::collection::vec(any::<prop::sample::Index>(), 1..5), value in json()) {
        let mut graph: serde_json::Value = serde_json::from_str(GRAPH).unwrap();
        let mut at = &mut graph;
        for i in path {
            let n = match &at {
                serde_json::Value::Array(a) => a.len(),
                serde_json::Value::Object(o) => o.len(),
                _ => 0,
            };
            if n == 0 {
                break;
            }
            at = match at {
                serde_json::Value::Array(a) => &mut a[i.index(n)],
                serde_json::Value::Object(o) => o.values_mut().nth(i.index(n)).unwrap(),
                _ => unreachable!(),
            };
        }
        *at = value;
        let _ = from_json("g.json", graph.to_string());
    }
}

fn json() -> impl Strategy<Value = serde_json::Value> {
    use serde_json::{Value, json};
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(|b| json!(b)),
        any::<i64>().prop_map(|n| json!(n)),
        any::<u64>().prop_map(|n| json!(n)),
        (0u64..20).prop_map(|n| json!(n)),
        any::<f64>().prop_map(|x| json!(x)),
        "[a-zT*0-9]{0,6}".prop_map(|s| json!(s)),
        Just(json!("x")),
    ];
    leaf.prop_recursive(3, 16, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Value::Array),
            prop::collection::vec(("[a-z]{1,4}", inner), 0..4).prop_map(|m| Value::Object(m.into_iter().collect())),
        ]
    })
}
