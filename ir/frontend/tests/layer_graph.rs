//! Layer graphs as JSON: round trips, the published schema, the examples.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use moec_frontend::layer_graph::{from_json, to_json};
use moec_frontend::{LayerOptions, ModelConfig, Opened, open};
use moec_ir::graph::arbitrary::{moe_graph, tensors};
use moec_ir::graph::{Graph, Op, evaluate, parse, print, verify};
use proptest::prelude::*;
use serde_json::Value;
use std::path::{Path, PathBuf};

fn without_origins(mut graph: Graph) -> Graph {
    graph.nodes.iter_mut().for_each(|n| n.origin = None);
    graph
}

fn files(dir: &str) -> Vec<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join(dir);
    let mut out: Vec<PathBuf> = std::fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap().path())
        .filter(|p| p.extension().is_some_and(|e| e == "json"))
        .collect();
    out.sort();
    out
}

/// The first MoE layer of every published config that moec can express.
fn published() -> Vec<Graph> {
    let layer = |p: &PathBuf| ModelConfig::open(p).ok()?.layer(None, &LayerOptions::default()).ok();
    files("tests/configs").iter().filter_map(layer).map(|l| l.graph).collect()
}

#[test]
fn layers_of_published_models_are_valid_and_read_back_from_both_forms() {
    let graphs = published();
    assert!(graphs.len() >= 30, "only {} graphs", graphs.len());
    for graph in graphs {
        assert_eq!(verify(&graph), vec![], "{}", graph.name);
        let text = print(&graph);
        assert_eq!(without_origins(parse("g.mir", &text).unwrap()), graph, "{}", graph.name);
        let json = to_json(&graph);
        assert_eq!(without_origins(from_json("g.json", json).unwrap()), graph, "{}", graph.name);
    }
}

proptest! {
    #[test]
    fn json_reads_back_to_the_same_graph(graph in moe_graph()) {
        let back = from_json("random.json", to_json(&graph)).map_err(|d| TestCaseError::fail(format!("{d:?}")))?;
        prop_assert_eq!(without_origins(back), graph);
    }

    #[test]
    fn written_json_fits_the_schema(graph in moe_graph()) {
        let value = serde_json::from_str(&to_json(&graph)).unwrap();
        prop_assert_eq!(schema().errors(&value), Vec::<String>::new());
    }

    #[test]
    fn damaged_json_is_refused_without_a_panic(graph in moe_graph(), at: prop::sample::Index, byte in 32u8..127) {
        let mut text = to_json(&graph).into_bytes();
        let i = at.index(text.len());
        text[i] = byte;
        let _ = from_json("damaged.json", String::from_utf8(text).unwrap());
    }
}

#[test]
fn leaves_that_are_declared_early_keep_their_place() {
    let text = r#"graph "early"
input "input" : f32[T, 4]
param "b" : f32[4] = tensor("b")
param "a" : f32[4] = tensor("a")
%0 = param index=1 () : f32[4]  "first"
%1 = param index=0 () : f32[4]  "b"
%2 = input index=0 () : f32[T, 4]  "input"
%3 = add (%2, %1) : f32[T, 4]  "x"
%4 = add (%3, %0) : f32[T, 4]  "y"
output "output" = %4
"#;
    let graph = without_origins(parse("early.mir", text).unwrap());
    assert_eq!(without_origins(from_json("early.json", to_json(&graph)).unwrap()), graph);
}

#[test]
fn examples_fit_the_schema_and_run() {
    let examples = files("../../examples/layers");
    assert!(examples.len() >= 3);
    for path in examples {
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(schema().errors(&serde_json::from_str(&text).unwrap()), Vec::<String>::new(), "{}", path.display());
        let Ok(Opened::Graph(graph)) = open(&path) else { panic!("{} should be a layer graph", path.display()) };
        let (inputs, params) = tensors(&graph, 5, 1);
        let out = evaluate(&graph, &inputs, &params).unwrap();
        assert_eq!(out[0].shape, inputs[0].shape);
        assert!(out[0].floats().iter().any(|&x| x != 0.0));
    }
}

#[test]
fn the_schema_refuses_what_the_reader_refuses() {
    let good = std::fs::read_to_string(&files("../../examples/layers")[0]).unwrap();
    for (from, to) in [
        ("\"moec_graph\": 1", "\"moec_graph\": 2"),
        ("\"op\": \"top_k\"", "\"op\": \"topk\""),
        ("[\"T\", 36]", "[\"N\", 36]"),
        ("\"k\": 2", "\"k\": \"two\""),
        ("\"inputs\": [\"logits\"]", "\"input\": [\"logits\"]"),
        ("\"dtype\": \"f32\"", "\"dtype\": \"f31\""),
        ("\"transpose\"", "\"transposed\""),
    ] {
        let text = good.replacen(from, to, 1);
        assert_ne!(text, good, "{from}");
        assert_ne!(schema().errors(&serde_json::from_str(&text).unwrap()), Vec::<String>::new(), "schema: {to}");
        assert!(from_json("bad.json", text).is_err(), "reader: {to}");
    }
}

#[test]
fn the_schema_knows_every_operation() {
    let schema = schema().0;
    let known = schema["$defs"]["node"]["properties"]["op"]["enum"].as_array().expect("a list of operations");
    let mut known: Vec<&str> = known.iter().filter_map(Value::as_str).collect();
    let mut names = Op::NAMES.to_vec();
    known.sort_unstable();
    names.sort_unstable();
    assert_eq!(known, names);
}

/// As much of JSON Schema as the published schema uses.
struct Schema(Value);

fn schema() -> Schema {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("schema/moec_graph.schema.json");
    Schema(serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap())
}

impl Schema {
    fn errors(&self, value: &Value) -> Vec<String> {
        let mut out = Vec::new();
        self.check(&self.0, value, "", &mut out);
        out
    }

    fn check(&self, schema: &Value, v: &Value, at: &str, out: &mut Vec<String>) {
        let Some(schema) = schema.as_object() else { return };
        let mut fail = |what: &str| out.push(format!("{at}: {what}"));
        for (key, rule) in schema {
            match key.as_str() {
                "$schema" | "$id" | "title" | "description" | "$defs" | "properties" | "items" | "$ref" | "anyOf" => {}
                "const" => {
                    if v != rule {
                        fail("const");
                    }
                }
                "enum" => {
                    if !rule.as_array().unwrap().contains(v) {
                        fail("enum");
                    }
                }
                "type" => {
                    let is = |t: &str| match t {
                        "object" => v.is_object(),
                        "array" => v.is_array(),
                        "string" => v.is_string(),
                        "boolean" => v.is_boolean(),
                        "integer" => v.is_u64() || v.is_i64(),
                        "number" => v.is_number(),
                        other => panic!("type {other}"),
                    };
                    let fits = match rule {
                        Value::Array(types) => types.iter().any(|t| is(t.as_str().unwrap())),
                        one => is(one.as_str().unwrap()),
                    };
                    if !fits {
                        fail("type");
                    }
                }
                "required" => {
                    for name in rule.as_array().unwrap() {
                        if v.is_object() && v.get(name.as_str().unwrap()).is_none() {
                            fail(&format!("required {name}"));
                        }
                    }
                }
                "minimum" => {
                    if v.as_f64().is_some_and(|x| x < rule.as_f64().unwrap()) {
                        fail("minimum");
                    }
                }
                "maximum" => {
                    if v.as_f64().is_some_and(|x| x > rule.as_f64().unwrap()) {
                        fail("maximum");
                    }
                }
                "minItems" => {
                    if v.as_array().is_some_and(|a| (a.len() as u64) < rule.as_u64().unwrap()) {
                        fail("minItems");
                    }
                }
                "pattern" => {
                    // The only pattern of the schema: an axis in tokens.
                    assert_eq!(rule.as_str(), Some("^T([*][0-9]+)?$"));
                    let fits = |s: &str| {
                        s == "T"
                            || s.strip_prefix("T*")
                                .is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
                    };
                    if v.as_str().is_some_and(|s| !fits(s)) {
                        fail("pattern");
                    }
                }
                "additionalProperties" => {
                    assert_eq!(rule, &Value::Bool(false));
                    let known = schema["properties"].as_object().unwrap();
                    for k in v.as_object().into_iter().flat_map(|o| o.keys()).filter(|k| !known.contains_key(*k)) {
                        fail(&format!("unknown {k}"));
                    }
                }
                other => panic!("the schema uses {other}, which this test does not check"),
            }
        }
        for (name, rule) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
            if let Some(member) = v.get(name) {
                self.check(rule, member, &format!("{at}/{name}"), out);
            }
        }
        if let Some(rule) = schema.get("items") {
            for (i, item) in v.as_array().into_iter().flatten().enumerate() {
                self.check(rule, item, &format!("{at}/{i}"), out);
            }
        }
        if let Some(name) = schema.get("$ref").and_then(Value::as_str) {
            let def = &self.0["$defs"][name.strip_prefix("#/$defs/").unwrap()];
            assert!(!def.is_null(), "{name}");
            self.check(def, v, at, out);
        }
        if let Some(options) = schema.get("anyOf").and_then(Value::as_array) {
            let fits = options.iter().any(|o| {
                let mut found = Vec::new();
                self.check(o, v, at, &mut found);
                found.is_empty()
            });
            if !fits {
                out.push(format!("{at}: anyOf"));
            }
        }
    }
}
