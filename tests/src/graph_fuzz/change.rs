//! One change of a layer graph that knows what it is made of.

use crate::changes::random::Draw;
use serde_json::{Map, Value, json};

/// What the schema and the seeds know: operations, keys of nodes with their schema, words and names.
pub struct Vocabulary {
    operations: Vec<String>,
    dtypes: Vec<String>,
    /// Keys of a node that belong to operations, each with its schema.
    attributes: Vec<(String, Value)>,
    /// Nodes of all seeds.
    nodes: Vec<Value>,
}

/// Sizes at which kernels are cut differently, and some that no layer has.
const SIZES: [u64; 18] = [0, 1, 2, 3, 7, 8, 15, 16, 17, 32, 33, 48, 64, 96, 128, 256, 1 << 20, u64::MAX];

/// Words for activations and rules, among them some that nobody knows.
const WORDS: [&str; 16] = [
    "swiglu",
    "geglu",
    "silu",
    "gelu",
    "gelu_tanh",
    "relu",
    "relu2",
    "relu6",
    "quick_gelu",
    "swiglu_oai",
    "sum",
    "softmax",
    "max",
    "none",
    "sigmoid",
    "swish",
];

const STORED: [&str; 10] = [
    "e4m3 by f32(128, 128)",
    "e4m3 by f32(1, 0)",
    "e4m3 by bf16(0, 0)",
    "e5m2 by f32(1, 0)",
    "e2m1 by e8m0(1, 32)",
    "e4m3 by e8m0(1, 32)",
    "e2m1 by e4m3(1, 16)",
    "int4 by f16(1, 32)",
    "int4 by bf16(1, 128)",
    "e4m3 by f32(3, 5)",
];

const EXPRESSIONS: [&str; 8] = [
    "mul(a0, sigmoid(a1))",
    "a0",
    "add(a0, a1)",
    "a1",
    "mul(a0, a0)",
    "min(a0, 7)",
    "a9",
    "mul(a0, sigmoid(mul(a1, 1.702)))",
];

impl Vocabulary {
    /// Reads them.
    ///
    /// # Panics
    /// When the schema has no nodes.
    pub fn new(schema: &Value, seeds: &[Value]) -> Vocabulary {
        let words = |v: &Value| v["enum"].as_array().unwrap().iter().map(|w| w.as_str().unwrap().to_string()).collect();
        let keys = schema["$defs"]["node"]["properties"].as_object().unwrap();
        let common = ["name", "op", "inputs", "comment"];
        let attributes = keys.iter().filter(|(k, _)| !common.contains(&k.as_str()));
        Vocabulary {
            operations: words(&keys["op"]),
            dtypes: words(&schema["$defs"]["dtype"]),
            attributes: attributes.map(|(k, v)| (k.clone(), v.clone())).collect(),
            nodes: seeds.iter().flat_map(|s| list(s, "nodes").to_vec()).collect(),
        }
    }

    fn dtype(&self, r: &mut Draw) -> Value {
        // Most layers have these.
        let usual = ["f32", "bf16", "f16"];
        if r.below(3) > 0 { json!(r.pick(&usual)) } else { json!(r.pick(&self.dtypes)) }
    }

    /// A value for a key of a node, by its schema.
    fn value(&self, r: &mut Draw, key: &str, schema: &Value) -> Value {
        if let Some(words) = schema["enum"].as_array() {
            return r.pick(words).clone();
        }
        match (schema["$ref"].as_str().unwrap_or_default(), key) {
            ("#/$defs/dtype", _) => self.dtype(r),
            ("#/$defs/word", _) => match r.below(4) {
                0 => json!({ "kind": r.pick(&WORDS), "alpha": number(r), "limit": number(r), "eps": number(r) }),
                1 => json!({ "kind": r.pick(&WORDS) }),
                _ => json!(r.pick(&WORDS)),
            },
            (_, "expr") => json!(r.pick(&EXPRESSIONS)),
            _ if schema["type"] == "boolean" => json!(r.below(2) == 0),
            _ if schema["type"] == "integer" => json!(r.pick(&SIZES)),
            _ => number(r),
        }
    }
}

fn number(r: &mut Draw) -> Value {
    match r.below(9) {
        0 => json!(0),
        1 => json!(-1.5),
        2 => json!(1e-20),
        3 => json!(1e30),
        4 => json!("inf"),
        5 => json!("nan"),
        6 => json!(7.0),
        _ => json!(0.5 * r.below(8) as f64),
    }
}

fn list<'a>(graph: &'a Value, key: &str) -> &'a [Value] {
    graph[key].as_array().map_or(&[], Vec::as_slice)
}

fn list_mut<'a>(graph: &'a mut Value, key: &str) -> Option<&'a mut Vec<Value>> {
    graph.get_mut(key).and_then(Value::as_array_mut)
}

/// Every name that a node may take as input.
fn names(graph: &Value) -> Vec<String> {
    let named = ["inputs", "params", "nodes"].into_iter().flat_map(|k| list(graph, k));
    named.filter_map(|v| v["name"].as_str()).map(String::from).collect()
}

/// One of a list of objects, and its place.
fn object<'a>(r: &mut Draw, graph: &'a mut Value, key: &str) -> Option<&'a mut Map<String, Value>> {
    let items = list_mut(graph, key).filter(|l| !l.is_empty())?;
    let at = r.below(items.len());
    items[at].as_object_mut()
}

/// Makes a change, and says what it was; `None` when the graph has nothing to change.
type Kind = fn(&mut Draw, &mut Value, &Vocabulary) -> Option<String>;

/// Makes one change, and says what it was.
pub fn change(r: &mut Draw, graph: &mut Value, known: &Vocabulary) -> String {
    let kinds: [(usize, Kind); 13] = [
        (10, resize),
        (8, retype_all),
        (3, retype),
        (1, reshape),
        (4, attribute),
        (1, operation),
        (8, wrap),
        (3, rewire),
        (2, drop_node),
        (6, outputs),
        (3, store),
        (2, parameter),
        (1, odd),
    ];
    let total: usize = kinds.iter().map(|(weight, _)| weight).sum();
    let mut at = r.below(total);
    for (weight, kind) in kinds {
        if at < weight {
            return kind(r, graph, known).unwrap_or_default();
        }
        at -= weight;
    }
    String::new()
}

/// A size, everywhere it stands: the layer stays consistent.
fn resize(r: &mut Draw, graph: &mut Value, _: &Vocabulary) -> Option<String> {
    fn replace(v: &mut Value, is_size: bool, from: u64, to: u64) {
        match v {
            Value::Number(n) if is_size && n.as_u64() == Some(from) => *v = json!(to),
            Value::Array(l) => l.iter_mut().for_each(|v| replace(v, is_size, from, to)),
            Value::Object(m) => {
                for (key, v) in m {
                    replace(v, matches!(key.as_str(), "shape" | "n_experts" | "len" | "start" | "of"), from, to);
                }
            }
            _ => {}
        }
    }
    let tensors = ["inputs", "params"].into_iter().flat_map(|k| list(graph, k));
    let sizes = tensors.filter_map(|t| t["shape"].as_array()).flatten().filter_map(Value::as_u64);
    let found: Vec<u64> = sizes.collect();
    if found.is_empty() {
        return None;
    }
    let from = *r.pick(&found);
    let to = if r.below(8) == 0 { *r.pick(&SIZES) } else { *r.pick(&SIZES[1..SIZES.len() - 2]) };
    ["inputs", "params", "nodes"].into_iter().for_each(|k| replace(&mut graph[k], false, from, to));
    Some(format!("{from} becomes {to}"))
}

/// A type, everywhere it stands.
fn retype_all(r: &mut Draw, graph: &mut Value, known: &Vocabulary) -> Option<String> {
    let to = known.dtype(r);
    let from = list(graph, "inputs").first()?["dtype"].clone();
    for key in ["inputs", "params", "nodes"] {
        for item in list_mut(graph, key).into_iter().flatten().filter_map(Value::as_object_mut) {
            for key in ["dtype", "round", "gate_round"] {
                if let Some(dtype) = item.get_mut(key).filter(|d| **d == from) {
                    *dtype = to.clone();
                }
            }
        }
    }
    Some(format!("{from} becomes {to}"))
}

/// The type of one tensor.
fn retype(r: &mut Draw, graph: &mut Value, known: &Vocabulary) -> Option<String> {
    let key = *r.pick(&["inputs", "params", "params", "nodes"]);
    let to = known.dtype(r);
    let item = object(r, graph, key)?;
    item.insert("dtype".into(), to.clone());
    Some(format!("{} has type {to}", item["name"]))
}

/// One axis of one tensor, or another number of axes.
fn reshape(r: &mut Draw, graph: &mut Value, _: &Vocabulary) -> Option<String> {
    let key = *r.pick(&["inputs", "params", "params"]);
    let item = object(r, graph, key)?;
    let name = item["name"].clone();
    let shape = item.get_mut("shape")?.as_array_mut()?;
    let at = r.below(shape.len().max(1));
    match r.below(5) {
        0 => shape.push(json!(r.pick(&SIZES))),
        1 if !shape.is_empty() => drop(shape.remove(at)),
        2 if !shape.is_empty() => shape[at] = json!(*r.pick(&["T", "T*4", "T*0", "T*1"])),
        _ if !shape.is_empty() => shape[at] = json!(r.pick(&SIZES)),
        _ => {}
    }
    Some(format!("{name} has shape {shape:?}"))
}

/// A key of a node: another value, one more, or one less.
fn attribute(r: &mut Draw, graph: &mut Value, known: &Vocabulary) -> Option<String> {
    let (any_key, any_schema) = r.pick(&known.attributes).clone();
    let node = object(r, graph, "nodes")?;
    let own: Vec<&(String, Value)> = known.attributes.iter().filter(|(k, _)| node.contains_key(k)).collect();
    let (key, schema) = if own.is_empty() || r.below(5) == 0 { (any_key, any_schema) } else { (*r.pick(&own)).clone() };
    if r.below(6) == 0 {
        node.remove(&key);
        return Some(format!("{} has no {key}", node["name"]));
    }
    let value = known.value(r, &key, &schema);
    node.insert(key.clone(), value.clone());
    Some(format!("{} has {key} {value}", node["name"]))
}

/// Another operation in a node's place, with the keys of a node of that operation if a seed has one.
fn operation(r: &mut Draw, graph: &mut Value, known: &Vocabulary) -> Option<String> {
    let to = r.pick(&known.operations).clone();
    let like: Vec<&Value> = known.nodes.iter().filter(|n| n["op"] == to.as_str()).collect();
    let node = object(r, graph, "nodes")?;
    if let (Some(Value::Object(other)), true) = (like.first(), r.below(3) > 0) {
        let (name, inputs) = (node["name"].clone(), node["inputs"].clone());
        *node = other.clone();
        node.insert("name".into(), name);
        node.insert("inputs".into(), inputs);
    }
    node.insert("op".into(), json!(to));
    Some(format!("{} is {to}", node["name"]))
}

/// A node between a value and those who take it.
fn wrap(r: &mut Draw, graph: &mut Value, known: &Vocabulary) -> Option<String> {
    let dtype = known.dtype(r);
    let nodes = list_mut(graph, "nodes").filter(|l| !l.is_empty())?;
    let at = r.below(nodes.len());
    let value = nodes[at]["name"].as_str()?.to_string();
    let name = format!("wrapped{}", nodes.len());
    let mut node = match r.below(8) {
        0 | 1 => json!({ "op": "cast", "dtype": dtype }),
        2 => json!({ "op": "scale", "factor": number(r) }),
        3 => json!({ "op": "map", "expr": r.pick(&EXPRESSIONS) }),
        4 => {
            json!({ "op": "quantise", "code": r.pick(&["e4m3", "e2m1"]), "block": r.pick(&[16, 32, 128, 7]), "scale": number(r) })
        }
        5 => json!({ "op": "activate", "activation": r.pick(&WORDS) }),
        6 => json!({ "op": "score", "kind": r.pick(&["softmax", "sigmoid", "sqrt_softplus", "max", "sum"]) }),
        _ => json!({ "op": "add", "dtype": dtype }),
    };
    let inputs = if node["op"] == "add" { vec![value.clone(); 2] } else { vec![value.clone()] };
    node["name"] = json!(name);
    node["inputs"] = json!(inputs);
    for later in nodes.iter_mut().skip(at + 1) {
        for input in later.get_mut("inputs").and_then(Value::as_array_mut).into_iter().flatten() {
            if *input == value.as_str() {
                *input = json!(name);
            }
        }
    }
    let what = format!("{} after {value}", node["op"]);
    nodes.insert(at + 1, node);
    if r.below(2) == 0 {
        for output in list_mut(graph, "outputs").into_iter().flatten() {
            if output["value"] == value.as_str() {
                output["value"] = json!(name);
            }
        }
    }
    Some(what)
}

/// Another value for an operand; operands in another order, one more or one less.
fn rewire(r: &mut Draw, graph: &mut Value, _: &Vocabulary) -> Option<String> {
    let names = names(graph);
    let node = object(r, graph, "nodes")?;
    let name = node["name"].clone();
    let inputs = node.get_mut("inputs")?.as_array_mut().filter(|l| !l.is_empty())?;
    let at = r.below(inputs.len());
    match r.below(6) {
        0 => inputs.rotate_left(1),
        1 => drop(inputs.remove(at)),
        2 => inputs.push(json!(r.pick(&names))),
        _ => inputs[at] = json!(r.pick(&names)),
    }
    Some(format!("{name} takes {inputs:?}"))
}

/// A node less; those who took its value take its first operand.
fn drop_node(r: &mut Draw, graph: &mut Value, _: &Vocabulary) -> Option<String> {
    let nodes = list_mut(graph, "nodes").filter(|l| !l.is_empty())?;
    let at = r.below(nodes.len());
    let gone = nodes.remove(at);
    let instead = gone["inputs"].get(0).cloned().unwrap_or(Value::Null);
    if r.below(4) > 0 {
        for input in nodes.iter_mut().filter_map(|n| n.get_mut("inputs")?.as_array_mut()).flatten() {
            if *input == gone["name"] {
                *input = instead.clone();
            }
        }
        for output in list_mut(graph, "outputs").into_iter().flatten() {
            if output["value"] == gone["name"] {
                output["value"] = instead.clone();
            }
        }
    }
    Some(format!("{} is gone", gone["name"]))
}

/// Outputs: other values, one more, one less, another order, equal names.
fn outputs(r: &mut Draw, graph: &mut Value, _: &Vocabulary) -> Option<String> {
    let names = names(graph);
    let any = json!(r.pick(&names));
    let outputs = list_mut(graph, "outputs")?;
    let at = r.below(outputs.len().max(1));
    match r.below(6) {
        0 if !outputs.is_empty() => drop(outputs.remove(at)),
        1 if !outputs.is_empty() => outputs.rotate_left(1),
        2 if !outputs.is_empty() => outputs[at]["value"] = any,
        3 if !outputs.is_empty() => outputs[at]["name"] = any,
        _ => outputs.push(json!({ "name": format!("also{}", outputs.len()), "value": any })),
    }
    Some(format!("outputs are {outputs:?}"))
}

/// How a parameter is published.
fn store(r: &mut Draw, graph: &mut Value, _: &Vocabulary) -> Option<String> {
    let stored = json!(r.pick(&STORED));
    let all = r.below(3) == 0;
    let matrix = |p: &Value| p["shape"].as_array().is_some_and(|s| s.len() == 3);
    if all {
        for p in list_mut(graph, "params")?.iter_mut().filter(|p| matrix(p)) {
            p["stored"] = stored.clone();
        }
        return Some(format!("experts are stored as {stored}"));
    }
    let p = object(r, graph, "params")?;
    p.insert("stored".into(), stored.clone());
    Some(format!("{} is stored as {stored}", p["name"]))
}

/// Parameters: one that nobody takes, one that is missing, two of a name, another source.
fn parameter(r: &mut Draw, graph: &mut Value, known: &Vocabulary) -> Option<String> {
    let dtype = known.dtype(r);
    let params = list_mut(graph, "params").filter(|l| !l.is_empty())?;
    let at = r.below(params.len());
    let name = params[at]["name"].clone();
    match r.below(5) {
        0 => params.push(json!({ "name": "unused", "dtype": dtype, "shape": [r.pick(&SIZES), 8] })),
        1 => drop(params.remove(at)),
        2 => params.push(params[at].clone()),
        3 => params[at]["source"] = json!({ "tensor": "t", "steps": ["transpose"] }),
        _ => params[at]["source"] = json!({ "per_expert": "e.{e}.w", "count": r.pick(&SIZES) }),
    }
    Some(format!("parameter {name}"))
}

/// Something that the schema does not allow.
fn odd(r: &mut Draw, graph: &mut Value, _: &Vocabulary) -> Option<String> {
    let key = *r.pick(&["inputs", "params", "nodes", "outputs"]);
    let strange =
        r.pick(&[json!(null), json!(-1), json!(""), json!([]), json!({}), json!(1.5), json!("T"), json!(true)]).clone();
    if r.below(3) == 0 {
        graph[key] = strange.clone();
        return Some(format!("{key} is {strange}"));
    }
    let item = object(r, graph, key)?;
    let keys: Vec<String> = item.keys().cloned().chain(["surprise".to_string()]).collect();
    let inner = r.pick(&keys).clone();
    item.insert(inner.clone(), strange.clone());
    Some(format!("{inner} of one of {key} is {strange}"))
}
