//! Layer graphs as JSON, for layers that no published config describes.
//!
//! ```json
//! { "moec_graph": 1, "name": "tiny",
//!   "inputs": [ { "name": "input", "dtype": "f32", "shape": ["T", 4] } ],
//!   "params": [ { "name": "router", "dtype": "f32", "shape": [2, 4], "source": "gate.weight" } ],
//!   "nodes": [ { "name": "logits", "op": "linear", "inputs": ["input", "router"] },
//!              { "name": "ids", "op": "top_k", "inputs": ["logits"], "k": 1 } ],
//!   "outputs": [ { "name": "topk_ids", "value": "ids" } ] }
//! ```
//!
//! Nodes are written in an order in which they can be computed and name their operands: inputs, parameters and earlier
//! nodes. Shapes of nodes are inferred; `dtype` on a node says where the model rounds. The schema is
//! `schema/moec_graph.schema.json`.

use crate::json::{GRAPH, Json, Object, nearest};
use moec_ir::DType;
use moec_ir::diag::Diagnostic;
use moec_ir::expr::Real;
use moec_ir::graph::{Attr, AttrError, Graph, Input, Node, Op, Param, ValueId, infer_type, verify};
use moec_ir::quant::QuantFormat;
use moec_ir::shape::{Dim, TensorType};
use moec_ir::text::Cursor;
use moec_ir::weights::{WeightSource, WeightStep};
use std::collections::{BTreeMap, BTreeSet};

/// The version of the format that this library writes.
pub const VERSION: u64 = 1;

/// Longest name of a value, in bytes; messages repeat names.
const MAX_NAME: usize = 256;

/// Most problems that are kept.
const MAX_PROBLEMS: usize = 100;
/// Most axes of a tensor; no operation takes as many.
const MAX_AXES: usize = 8;

/// How deep `first_of` may nest.
const MAX_DEPTH: u32 = 16;

/// The graph that the JSON in `text` describes, verified; `file` is its name in messages. Nodes have the bytes of their
/// JSON as origin.
///
/// # Errors
/// * `graph-not-json`, `missing-graph-key`, `graph-key-type`, `graph-value-range`, `unknown-graph-key`.
/// * `graph-version` — written for another version of moec.
/// * `unknown-operation`, `unknown-value`, `duplicate-name`.
/// * Those of [`infer_type`] and [`verify`].
pub fn from_json(file: &str, text: String) -> Result<Graph, Vec<Diagnostic>> {
    let top = Json::parse(file, text, GRAPH).and_then(|t| t.object()).map_err(|d| vec![d])?;
    let version = top.require("moec_graph").map_err(|d| vec![d])?;
    if version.whole(0..=u64::MAX).map_err(|d| vec![d])? != VERSION {
        return Err(vec![
            Diagnostic::input(
                "graph-version",
                format!("{file} is a layer graph of version {}; this moec reads version {VERSION}", version.shown()),
            )
            .at(Some(version.origin())),
        ]);
    }
    let mut r = Reader::default();
    r.known_keys(&top, &["moec_graph", "$schema", "name", "comment", "inputs", "params", "nodes", "outputs"]);
    r.graph.name = match top.get("name") {
        Some(v) => r.keep(v.string()).unwrap_or_default(),
        None => file.to_string(),
    };
    for v in r.required_list(&top, "inputs") {
        let read = r.input(&v);
        r.keep_named(&v, read);
    }
    if let Some(params) = top.get("params") {
        for v in r.keep(params.list()).unwrap_or_default() {
            let read = r.param(&v);
            r.keep_named(&v, read);
        }
    }
    for v in r.required_list(&top, "nodes") {
        let read = r.node(&v);
        r.keep_named(&v, read);
    }
    for v in r.required_list(&top, "outputs") {
        let read = r.output(&v);
        r.keep(read);
    }
    if r.problems.is_empty() {
        r.problems = verify(&r.graph);
        r.problems.truncate(MAX_PROBLEMS);
        for d in &mut r.problems {
            d.origin = d.origin.take().or_else(|| Some(top.node().origin()));
        }
    }
    if r.problems.is_empty() { Ok(r.graph) } else { Err(r.problems) }
}

#[derive(Default)]
struct Reader {
    graph: Graph,
    /// Inputs and parameters by name.
    leaves: BTreeMap<String, (Op, TensorType)>,
    /// Nodes made so far, by name.
    values: BTreeMap<String, ValueId>,
    /// Names of inputs, parameters and nodes that could not be read.
    failed: BTreeSet<String>,
    problems: Vec<Diagnostic>,
}

/// Why something could not be read.
enum Problem {
    /// It is wrong itself.
    New(Diagnostic),
    /// It refers to something that is wrong, which has been reported.
    Follows,
}

impl From<Diagnostic> for Problem {
    fn from(d: Diagnostic) -> Problem {
        Problem::New(d)
    }
}

impl Reader {
    fn keep<T, P: Into<Problem>>(&mut self, result: Result<T, P>) -> Option<T> {
        match result.map_err(Into::into) {
            Ok(v) => Some(v),
            Err(Problem::New(d)) => {
                self.problem(d);
                None
            }
            Err(Problem::Follows) => None,
        }
    }

    fn problem(&mut self, d: Diagnostic) {
        if self.problems.len() < MAX_PROBLEMS {
            self.problems.push(d);
        }
    }

    /// Keeps a problem with the thing that `v` describes. Nodes that read it later are not to blame.
    fn keep_named<P: Into<Problem>>(&mut self, v: &Json, result: Result<(), P>) {
        if self.keep(result).is_none()
            && let Some(name) = v.object().ok().and_then(|o| o.get("name").and_then(|n| n.string().ok()))
        {
            self.failed.insert(name);
        }
    }

    fn required_list(&mut self, top: &Object, key: &str) -> Vec<Json> {
        self.keep(top.require(key).and_then(Json::list)).unwrap_or_default()
    }

    fn known_keys(&mut self, o: &Object, known: &[&str]) {
        for (key, v) in o.members() {
            if known.contains(&key.as_str()) {
                continue;
            }
            let mut d =
                Diagnostic::input("unknown-graph-key", format!("{}: there is no key `{}` here", v.file(), v.path()))
                    .note(format!("known keys: {}", known.join(", ")))
                    .at(Some(v.origin()));
            if let Some(near) = nearest(key, known.iter().copied(), 2) {
                d = d.help(format!("is it meant to be `{near}`?"));
            }
            self.problem(d);
        }
    }

    fn input(&mut self, v: &Json) -> Result<(), Diagnostic> {
        let o = v.object()?;
        self.known_keys(&o, &["name", "dtype", "shape", "comment"]);
        let ty = tensor_type(&o)?;
        let name = self.new_leaf(&o, Op::Input(self.graph.inputs.len() as u32), &ty)?;
        self.graph.inputs.push(Input { name, ty });
        Ok(())
    }

    fn param(&mut self, v: &Json) -> Result<(), Diagnostic> {
        let o = v.object()?;
        self.known_keys(&o, &["name", "dtype", "shape", "stored", "source", "comment"]);
        let ty = tensor_type(&o)?;
        let name = self.new_leaf(&o, Op::Param(self.graph.params.len() as u32), &ty)?;
        let source = match o.get("source") {
            Some(s) => source(s, 0)?,
            None => WeightSource::tensor(&name),
        };
        let stored = o.get("stored").map(stored).transpose()?;
        self.graph.params.push(Param { name, ty, source, stored });
        Ok(())
    }

    /// The name of an input or parameter, which must be new: nodes refer to both.
    fn new_leaf(&mut self, o: &Object, op: Op, ty: &TensorType) -> Result<String, Diagnostic> {
        let node = o.require("name")?;
        let name = short_name(node)?;
        match self.leaves.insert(name.clone(), (op, ty.clone())) {
            None => Ok(name),
            Some(_) => Err(duplicate(node)),
        }
    }

    fn node(&mut self, v: &Json) -> Result<(), Problem> {
        let o = v.object()?;
        let name_node = o.require("name")?;
        let name = short_name(name_node)?;
        if self.values.contains_key(&name) {
            return Err(duplicate(name_node).into());
        }
        let op = self.op(&o)?;
        let mut keys = vec!["name", "op", "inputs", "dtype", "comment"];
        keys.extend(op.attrs().iter().map(|(k, _)| *k));
        self.known_keys(&o, &keys);
        let mut inputs = Vec::new();
        if let Some(list) = o.get("inputs") {
            for v in list.list()? {
                inputs.push(self.value(&v)?);
            }
        }
        let ty = match op {
            Op::Input(n) => self.graph.inputs.get(n as usize).map(|i| i.ty.clone()),
            Op::Param(n) => self.graph.params.get(n as usize).map(|p| p.ty.clone()),
            _ => {
                let types: Vec<&TensorType> = inputs.iter().map(|&i| self.graph.ty(i)).collect();
                let names: Vec<&str> = inputs.iter().map(|&i| self.graph.node(i).name.as_str()).collect();
                Some(infer_type(&name, &op, &types, &names).map_err(|d| d.at(Some(v.origin())))?)
            }
        };
        let Some(mut ty) = ty else {
            return Err(o.require("index")?.out_of_range("the number of an input or parameter, counted from 0").into());
        };
        if let Some(node) = o.get("dtype") {
            let dtype = dtype(node)?;
            if dtype.is_float() != ty.dtype.is_float() {
                return Err(node.out_of_range(&format!("a type that `{}` can have; it gives {ty}", op.name())).into());
            }
            ty.dtype = dtype;
        }
        self.push(Node { name, op, inputs, ty, origin: Some(v.origin()) });
        Ok(())
    }

    fn push(&mut self, node: Node) -> ValueId {
        let id = ValueId(self.graph.nodes.len() as u32);
        self.values.insert(node.name.clone(), id);
        self.graph.nodes.push(node);
        id
    }

    fn op(&self, o: &Object) -> Result<Op, Diagnostic> {
        let node = o.require("op")?;
        let name = node.string()?;
        // What no attribute can be is a word that fits nowhere, so that what is expected is said.
        let get = |key: &str| o.get(key).map(|v| attr(v).unwrap_or_else(|| Attr::Word(String::new(), Vec::new())));
        Op::from_attrs(&name, &get).map_err(|e| match e {
            AttrError::UnknownOp => {
                let message = format!("{}: there is no operation {}", node.file(), node.shown());
                let d = Diagnostic::input("unknown-operation", message)
                    .note(format!("operations: {}", Op::NAMES.join(", ")))
                    .at(Some(node.origin()));
                match nearest(&name, Op::NAMES.into_iter(), 8) {
                    Some(near) => d.help(format!("the nearest one is {near:?}")),
                    None => d,
                }
            }
            AttrError::Absent(key) => o.missing(&[key]),
            AttrError::Unfit(key, expected) => match o.get(key) {
                Some(v) => v.wrong_type(&expected),
                None => o.missing(&[key]),
            },
        })
    }

    /// The value that a name stands for; inputs and parameters become nodes where they are first used.
    fn value(&mut self, v: &Json) -> Result<ValueId, Problem> {
        let name = v.string()?;
        if let Some(&id) = self.values.get(&name) {
            return Ok(id);
        }
        if self.failed.contains(&name) {
            return Err(Problem::Follows);
        }
        let Some((op, ty)) = self.leaves.get(&name).cloned() else {
            let message =
                format!("{}: `{}` is {}, which is no input, parameter or earlier node", v.file(), v.path(), v.shown());
            return Err(Diagnostic::input("unknown-value", message)
                .note("nodes are written in an order in which they can be computed")
                .at(Some(v.origin()))
                .into());
        };
        Ok(self.push(Node { name, op, inputs: Vec::new(), ty, origin: Some(v.origin()) }))
    }

    fn output(&mut self, v: &Json) -> Result<(), Problem> {
        let o = v.object()?;
        self.known_keys(&o, &["name", "value", "comment"]);
        let name = short_name(o.require("name")?)?;
        let value = self.value(o.require("value")?)?;
        self.graph.outputs.push((name, value));
        Ok(())
    }
}

fn duplicate(node: &Json) -> Diagnostic {
    let message = format!("{}: `{}` is {}, a name that is taken already", node.file(), node.path(), node.shown());
    Diagnostic::input("duplicate-name", message).at(Some(node.origin()))
}

/// The name of an input, parameter, node or output.
fn short_name(node: &Json) -> Result<String, Diagnostic> {
    let name = node.string()?;
    if name.len() <= MAX_NAME { Ok(name) } else { Err(node.out_of_range(&format!("at most {MAX_NAME} bytes long"))) }
}

fn dtype(v: &Json) -> Result<DType, Diagnostic> {
    let names = DType::ALL.map(|d| format!("{:?}", d.name())).join(", ");
    DType::from_name(&v.string()?).ok_or_else(|| v.out_of_range(&format!("one of {names}")))
}

fn tensor_type(o: &Object) -> Result<TensorType, Diagnostic> {
    let dtype = dtype(o.require("dtype")?)?;
    let node = o.require("shape")?;
    let axes = node.list()?;
    if axes.len() > MAX_AXES {
        return Err(node.out_of_range(&format!("a list of at most {MAX_AXES} lengths; it has {}", axes.len())));
    }
    let shape = axes.iter().map(axis).collect::<Result<Vec<Dim>, Diagnostic>>()?;
    Ok(TensorType { dtype, shape })
}

/// A length, `"T"`, or `"T*4"`.
fn axis(v: &Json) -> Result<Dim, Diagnostic> {
    if !v.is_string() {
        return v.whole(0..=1 << 48).map(Dim::Fixed);
    }
    let text = v.string()?;
    let times = match text.strip_prefix('T') {
        Some("") => Some(1),
        Some(rest) => rest.strip_prefix('*').and_then(|n| n.parse().ok()).filter(|&n| n <= 1 << 48),
        None => None,
    };
    times.map(Dim::PerToken).ok_or_else(|| v.wrong_type("a length, \"T\" or a multiple of it such as \"T*4\""))
}

/// A JSON value as an attribute of an operation; `None` for what no attribute can be.
fn attr(v: &Json) -> Option<Attr> {
    if v.is_string() {
        let word = v.string().ok()?;
        let special = [("NaN", f32::NAN), ("inf", f32::INFINITY), ("-inf", f32::NEG_INFINITY)];
        return Some(match special.iter().find(|(w, _)| *w == word) {
            Some((_, x)) => Attr::Real(Real(*x)),
            None => Attr::Word(word, Vec::new()),
        });
    }
    if v.is_object() {
        let o = v.object().ok()?;
        let word = o.get("kind")?.string().ok()?;
        let numbers = o.members().iter().filter(|(k, _)| k != "kind");
        let args = numbers.map(|(k, v)| Some((k.clone(), real(v)?))).collect::<Option<Vec<(String, Real)>>>()?;
        return Some(Attr::Word(word, args));
    }
    v.flag().ok().map(Attr::Flag).or_else(|| v.raw().parse().ok().map(Attr::Whole)).or_else(|| real(v).map(Attr::Real))
}

fn real(v: &Json) -> Option<Real> {
    match attr_number(v.raw()) {
        Some(x) => Some(Real(x)),
        None if v.is_string() => attr(v).and_then(|a| if let Attr::Real(x) = a { Some(x) } else { None }),
        None => None,
    }
}

/// A JSON number that an f32 can hold.
fn attr_number(raw: &str) -> Option<f32> {
    let numeric = raw.starts_with(|c: char| c == '-' || c.is_ascii_digit());
    raw.parse::<f32>().ok().filter(|x| numeric && x.is_finite())
}

/// `"e2m1 by e8m0(1, 32)"`: codes, scales, rows and columns of a block.
fn stored(v: &Json) -> Result<QuantFormat, Diagnostic> {
    let text = v.string()?;
    let mut cursor = Cursor::new(&text);
    match cursor.quant_format() {
        Ok(format) if cursor.at_end() => Ok(format),
        _ => Err(v.out_of_range("codes, scales, and the rows and columns of a block, such as e4m3 by f32(128, 128)")),
    }
}

fn source(v: &Json, depth: u32) -> Result<WeightSource, Diagnostic> {
    let expected = "a tensor name, or an object with `tensor`, `per_expert`, `first_of` or `largest_input_scale`";
    if v.is_string() {
        return Ok(WeightSource::tensor(v.string()?));
    }
    let o = v.object().map_err(|_| v.wrong_type(expected))?;
    let only = |known: &[&str]| match o.members().iter().find(|(k, _)| !known.contains(&k.as_str())) {
        Some((_, extra)) => Err(Diagnostic::input(
            "unknown-graph-key",
            format!("{}: there is no key `{}` here", extra.file(), extra.path()),
        )
        .note(format!("known keys: {}", known.join(", ")))
        .at(Some(extra.origin()))),
        None => Ok(()),
    };
    if let Some(names) = o.get("tensor") {
        only(&["tensor", "steps"])?;
        return Ok(WeightSource::Tensor { names: self::names(names)?, steps: steps(&o)? });
    }
    if let Some(names) = o.get("per_expert") {
        only(&["per_expert", "first", "count", "steps"])?;
        let first = o.get("first").map_or(Ok(0), |v| v.whole(0..=1 << 16))?;
        let count = o.require("count")?.whole(0..=1 << 16)?;
        return Ok(WeightSource::PerExpert { names: self::names(names)?, first, count, steps: steps(&o)? });
    }
    if let Some(sources) = o.get("first_of") {
        only(&["first_of"])?;
        if depth >= MAX_DEPTH {
            return Err(v.out_of_range(&format!("nested at most {MAX_DEPTH} deep")));
        }
        return Ok(WeightSource::FirstOf(
            sources.list()?.iter().map(|s| source(s, depth + 1)).collect::<Result<_, Diagnostic>>()?,
        ));
    }
    if let Some(sources) = o.get("largest_input_scale") {
        only(&["largest_input_scale"])?;
        if depth >= MAX_DEPTH {
            return Err(v.out_of_range(&format!("nested at most {MAX_DEPTH} deep")));
        }
        return Ok(WeightSource::LargestInputScale(
            sources.list()?.iter().map(|s| source(s, depth + 1)).collect::<Result<_, Diagnostic>>()?,
        ));
    }
    Err(v.wrong_type(expected))
}

/// One name, or a list of candidates.
fn names(v: &Json) -> Result<Vec<String>, Diagnostic> {
    if v.is_string() { Ok(vec![v.string()?]) } else { v.list()?.iter().map(Json::string).collect() }
}

fn steps(o: &Object) -> Result<Vec<WeightStep>, Diagnostic> {
    let Some(list) = o.get("steps") else { return Ok(Vec::new()) };
    list.list()?.iter().map(step).collect()
}

fn step(v: &Json) -> Result<WeightStep, Diagnostic> {
    let wrong = || v.wrong_type("\"transpose\", {\"slice\": …} or {\"reshape\": …}");
    if v.is_string() {
        return if v.string()? == "transpose" { Ok(WeightStep::Transpose) } else { Err(wrong()) };
    }
    let o = v.object().map_err(|_| wrong())?;
    if let Some(slice) = o.get("slice") {
        let s = slice.object()?;
        let n = |key: &str, most: u64| s.require(key)?.whole(0..=most);
        return Ok(WeightStep::Slice {
            axis: n("axis", 15)? as u32,
            start: n("start", 1 << 48)?,
            step: n("step", 1 << 48)?,
            len: n("len", 1 << 48)?,
            of: s.get("of").map(|v| v.whole(0..=1 << 48)).transpose()?,
        });
    }
    match o.get("reshape") {
        Some(shape) => {
            let shape = shape.list()?.iter().map(|n| n.whole(0..=1 << 48)).collect::<Result<_, Diagnostic>>()?;
            Ok(WeightStep::Reshape { shape })
        }
        None => Err(wrong()),
    }
}

/// `graph` as JSON. [`from_json`] gives the same graph back, but for origins.
pub fn to_json(graph: &Graph) -> String {
    let mut out = format!("{{\n  \"moec_graph\": {VERSION},\n  \"name\": {},\n", quoted(&graph.name));
    let inputs = graph.inputs.iter().map(|i| format!("{{ \"name\": {}, {} }}", quoted(&i.name), type_text(&i.ty)));
    out += &section("inputs", inputs);
    let params = graph.params.iter().map(|p| {
        let source = source_text(&p.source);
        let stored = p.stored.map_or_else(String::new, |f| format!("\"stored\": \"{f}\", "));
        format!("{{ \"name\": {}, {}, {stored}\"source\": {source} }}", quoted(&p.name), type_text(&p.ty))
    });
    out += &section("params", params);
    let explicit = !leaves_at_first_use(graph);
    let is_leaf = |n: &Node| matches!(n.op, Op::Input(_) | Op::Param(_));
    out += &section("nodes", graph.nodes.iter().filter(|n| explicit || !is_leaf(n)).map(|n| node_text(graph, n)));
    let outputs = graph
        .outputs
        .iter()
        .map(|(name, v)| format!("{{ \"name\": {}, \"value\": {} }}", quoted(name), quoted(value_name(graph, *v))));
    out += section("outputs", outputs).trim_end_matches(",\n");
    out + "\n}\n"
}

fn section(key: &str, items: impl Iterator<Item = String>) -> String {
    let items: Vec<String> = items.map(|i| format!("    {i}")).collect();
    if items.is_empty() {
        return format!("  \"{key}\": [],\n");
    }
    format!("  \"{key}\": [\n{}\n  ],\n", items.join(",\n"))
}

/// Whether leaves stand where [`Reader::value`] would put them, under the names of what they stand for.
fn leaves_at_first_use(graph: &Graph) -> bool {
    let mut next = 0;
    let mut seen = vec![false; graph.nodes.len()];
    let mut meet = |v: ValueId, next: &mut usize| {
        let Some(node) = graph.nodes.get(v.index()) else { return false };
        let declared = match node.op {
            Op::Input(n) => graph.inputs.get(n as usize).map(|i| &i.name),
            Op::Param(n) => graph.params.get(n as usize).map(|p| &p.name),
            _ => return true,
        };
        if declared != Some(&node.name) {
            return false;
        }
        if !seen[v.index()] {
            seen[v.index()] = true;
            if v.index() != *next {
                return false;
            }
            *next += 1;
        }
        true
    };
    for (i, node) in graph.nodes.iter().enumerate() {
        if matches!(node.op, Op::Input(_) | Op::Param(_)) {
            continue;
        }
        if !node.inputs.iter().all(|&v| meet(v, &mut next)) || next != i {
            return false;
        }
        next += 1;
    }
    graph.outputs.iter().all(|&(_, v)| meet(v, &mut next)) && next == graph.nodes.len()
}

fn value_name(graph: &Graph, v: ValueId) -> &str {
    graph.nodes.get(v.index()).map_or("", |n| n.name.as_str())
}

fn node_text(graph: &Graph, node: &Node) -> String {
    let inputs: Vec<String> = node.inputs.iter().map(|&v| quoted(value_name(graph, v))).collect();
    let mut out = format!("{{ \"name\": {}, \"op\": \"{}\"", quoted(&node.name), node.op.name());
    for (key, attr) in node.op.attrs() {
        out += &format!(", \"{key}\": {}", attr_text(&attr));
    }
    if !inputs.is_empty() {
        out += &format!(", \"inputs\": [{}]", inputs.join(", "));
    }
    let types: Vec<&TensorType> =
        node.inputs.iter().filter_map(|v| graph.nodes.get(v.index()).map(|n| &n.ty)).collect();
    let names = vec![""; types.len()];
    let is_leaf = matches!(node.op, Op::Input(_) | Op::Param(_));
    let inferred = infer_type(&node.name, &node.op, &types, &names).ok();
    if !is_leaf && inferred.is_none_or(|t| t.dtype != node.ty.dtype) {
        out += &format!(", \"dtype\": \"{}\"", node.ty.dtype);
    }
    out + " }"
}

fn attr_text(attr: &Attr) -> String {
    match attr {
        Attr::Whole(n) => n.to_string(),
        Attr::Real(x) => real_text(*x),
        Attr::Flag(b) => b.to_string(),
        Attr::Text(text) => quoted(text),
        Attr::Word(word, args) if args.is_empty() => quoted(word),
        Attr::Word(word, args) => {
            let args: String = args.iter().map(|(k, v)| format!(", \"{k}\": {}", real_text(*v))).collect();
            format!("{{ \"kind\": {}{args} }}", quoted(word))
        }
    }
}

/// The shortest decimal that reads back to the same bits; what JSON has no number for is a string.
fn real_text(x: Real) -> String {
    if x.0.is_finite() { x.to_string() } else { format!("\"{x}\"") }
}

fn type_text(ty: &TensorType) -> String {
    let axis = |d: &Dim| match d {
        Dim::Fixed(n) => n.to_string(),
        Dim::PerToken(_) => format!("\"{d}\""),
    };
    let shape: Vec<String> = ty.shape.iter().map(axis).collect();
    format!("\"dtype\": \"{}\", \"shape\": [{}]", ty.dtype, shape.join(", "))
}

fn source_text(source: &WeightSource) -> String {
    match source {
        WeightSource::Tensor { names, steps } => {
            if let ([name], true) = (names.as_slice(), steps.is_empty()) {
                return quoted(name);
            }
            format!("{{ \"tensor\": {}{} }}", names_text(names), steps_text(steps))
        }
        WeightSource::PerExpert { names, first, count, steps } => {
            let first = if *first == 0 { String::new() } else { format!(", \"first\": {first}") };
            format!("{{ \"per_expert\": {}{first}, \"count\": {count}{} }}", names_text(names), steps_text(steps))
        }
        WeightSource::FirstOf(sources) => {
            let sources: Vec<String> = sources.iter().map(source_text).collect();
            format!("{{ \"first_of\": [{}] }}", sources.join(", "))
        }
        WeightSource::LargestInputScale(sources) => {
            let sources: Vec<String> = sources.iter().map(source_text).collect();
            format!("{{ \"largest_input_scale\": [{}] }}", sources.join(", "))
        }
    }
}

fn names_text(names: &[String]) -> String {
    match names {
        [name] => quoted(name),
        names => format!("[{}]", names.iter().map(|n| quoted(n)).collect::<Vec<_>>().join(", ")),
    }
}

fn steps_text(steps: &[WeightStep]) -> String {
    if steps.is_empty() {
        return String::new();
    }
    let one = |s: &WeightStep| match s {
        WeightStep::Transpose => "\"transpose\"".to_string(),
        WeightStep::Slice { axis, start, step, len, of } => {
            let of = of.map_or(String::new(), |n| format!(", \"of\": {n}"));
            format!("{{ \"slice\": {{ \"axis\": {axis}, \"start\": {start}, \"step\": {step}, \"len\": {len}{of} }} }}")
        }
        WeightStep::Reshape { shape } => {
            let shape: Vec<String> = shape.iter().map(ToString::to_string).collect();
            format!("{{ \"reshape\": [{}] }}", shape.join(", "))
        }
    };
    let steps: Vec<String> = steps.iter().map(one).collect();
    format!(", \"steps\": [{}]", steps.join(", "))
}

fn quoted(text: &str) -> String {
    serde_json::Value::String(text.to_string()).to_string()
}
