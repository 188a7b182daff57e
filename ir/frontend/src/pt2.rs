//! Nodes of moec's operator `moec::experts` in `.pt2` files of PyTorch: routed experts whose weights are the program's.

use crate::config::{Diagnostics, Layer, LayerOptions, Part, build};
use crate::spec::{ExpertBiases, Experts, MoeSpec, Router};
use moec_ir::diag::Diagnostic;
use moec_ir::expr::Real;
use moec_ir::graph::{Attr, Op, Score};
use moec_ir::weights::{WeightSource, WeightStep};
use moec_ir::{Activation, DType};
use moec_weights::pt2::{File, Node};
use serde::Deserialize;
use serde_json::Value;
use std::path::Path;

/// A `.pt2` file with nodes of the operator. A layer is one of them, counted from 0 in the order of the graph.
#[derive(Clone, Debug)]
pub struct Pt2Model {
    file: File,
}

/// What the operator's `form` says.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Form {
    gated: bool,
    transposed: bool,
    interleaved: bool,
    activation: Value,
}

impl Pt2Model {
    /// Reads the graph of a `.pt2` file.
    ///
    /// # Errors
    /// Those of [`File::open`]; `no-moe-layers` when no node is of the operator.
    pub fn open(path: impl AsRef<Path>) -> Result<Pt2Model, Diagnostics> {
        let file = File::open(path).map_err(|d| vec![d])?;
        if file.nodes.is_empty() {
            let what = format!("no node of {} is a call of `moec::experts`", file.path.display());
            return Err(vec![Diagnostic::input("no-moe-layers", what).help(
                "export the model with `experts_implementation=\"moec\"` (moec.transformers), or compile its config.json",
            )]);
        }
        Ok(Pt2Model { file })
    }

    /// Node `number`, or the first: routed experts alone, with ids in i64 unless `options` name another part.
    ///
    /// # Errors
    /// `layer-out-of-range`; `unsupported-layer` for operands that are no weights of the program; `pt2-invalid` for a node
    /// that contradicts itself; those of [`crate::ModelConfig::layer`] that concern `options`.
    pub fn layer(&self, number: Option<u32>, options: &LayerOptions) -> Result<Layer, Diagnostics> {
        let layer = number.unwrap_or(0);
        let Some(node) = self.file.nodes.get(layer as usize) else {
            let (file, last) = (self.file.path.display(), self.file.nodes.len() - 1);
            let what =
                format!("{file}: there is no call {layer} of `moec::experts`; the graph has the calls 0 to {last}");
            return Err(vec![Diagnostic::input("layer-out-of-range", what)]);
        };
        let (spec, dtype, weights) = self.spec(node).map_err(|d| vec![d])?;
        let part = match options.part {
            Part::Layer => Part::Experts { ids: DType::I64, weights },
            part @ Part::Experts { .. } => part,
        };
        let options = LayerOptions { part, ..options.clone() };
        build("pt2", layer, spec, options.dtype.unwrap_or(dtype), None, &options).map_err(|d| vec![d])
    }

    fn spec(&self, node: &Node) -> Result<(MoeSpec, DType, DType), Diagnostic> {
        let shown = format!("{}: node `{}`", self.file.path.display(), node.name);
        let invalid = |what: String| Diagnostic::input("pt2-invalid", format!("{shown}: {what}"));
        let form: Form =
            serde_json::from_str(&node.form).map_err(|e| invalid(format!("its `form` is not known: {e}")))?;
        let activation = activation(&form.activation)
            .filter(|a| a.is_gated() == form.gated)
            .ok_or_else(|| invalid(format!("its `form` names the activation {}", form.activation)))?;
        let mut shapes = Vec::new();
        let mut dtypes = Vec::new();
        for name in &node.params {
            let Some((stored, shape)) = self.file.tensors.get(name) else {
                let what = format!("{shown} reads `{name}`, which is no dense weight of the program");
                return Err(Diagnostic::input("unsupported-layer", what)
                    .help("hand the operator the module's own parameters, contiguous ones"));
            };
            let dtype = stored.dtype().filter(|d| d.is_float());
            dtypes.push(dtype.ok_or_else(|| invalid(format!("`{name}` has the type {stored}")))?);
            shapes.push(shape.as_slice());
        }
        let (up, down, biases) = match node.params.as_slice() {
            [up, down] => (up, down, None),
            [up, down, up_bias, down_bias] => (up, down, Some((up_bias, down_bias))),
            other => return Err(invalid(format!("it has {} weights; 2 or 4 are expected", other.len()))),
        };
        let (n_experts, hidden, rows) = match (shapes[0], form.transposed) {
            (&[e, rows, hidden], false) | (&[e, hidden, rows], true) => (e, hidden, rows),
            (shape, _) => return Err(invalid(format!("`{up}` has the shape {shape:?}"))),
        };
        let ffn = if form.gated { rows / 2 } else { rows };
        let expected = if form.transposed { [n_experts, ffn, hidden] } else { [n_experts, hidden, ffn] };
        let fits = shapes[1] == expected
            && (!form.gated || rows % 2 == 0)
            && n_experts * hidden * ffn > 0
            && shapes.get(2).is_none_or(|s| *s == [n_experts, rows])
            && shapes.get(3).is_none_or(|s| *s == [n_experts, hidden])
            && dtypes.iter().all(|d| *d == dtypes[0]);
        if !fits {
            return Err(invalid(format!(
                "shapes or types of its weights {:?} do not fit together: {shapes:?}",
                node.params
            )));
        }
        let top_k = node.top_k.filter(|&k| k >= 1);
        let top_k = top_k.ok_or_else(|| invalid("the number of experts per token is not a constant".to_string()))?;
        let weights = node.weights.and_then(|w| w.dtype()).filter(|d| d.is_float());
        let weights = weights.ok_or_else(|| invalid("its routing weights have no type that moec reads".to_string()))?;

        let tensor = |name: &String, steps| WeightSource::Tensor { names: vec![name.clone()], steps };
        let turned = |mut steps: Vec<WeightStep>| {
            steps.extend(form.transposed.then_some(WeightStep::Transpose));
            steps
        };
        // Gate (0) or up (1) along an axis of a tensor that has both; all of one without a gate.
        let branch = |axis: u32, part: u64| -> Vec<WeightStep> {
            let (start, step) = if form.interleaved { (part, 2) } else { (part * ffn, 1) };
            let slice = WeightStep::Slice { axis, start, step, len: ffn, of: Some(2 * ffn) };
            form.gated.then_some(slice).into_iter().collect()
        };
        let axis = if form.transposed { 2 } else { 1 };
        let experts = Experts {
            ffn,
            activation,
            gate: tensor(up, turned(branch(axis, 0))),
            up: tensor(up, turned(branch(axis, 1))),
            down: tensor(down, turned(Vec::new())),
            biases: biases.map(|(up, down)| ExpertBiases {
                gate: tensor(up, branch(1, 0)),
                up: tensor(up, branch(1, 1)),
                down: tensor(down, Vec::new()),
            }),
            out_norm: None,
        };
        // The program routes by itself.
        let router = Router::of_given_logits(Score::Softmax);
        Ok((MoeSpec::new(hidden, n_experts, top_k, router, experts), dtypes[0], weights))
    }
}

/// The activation of a form: a word, or an object with the word as its `kind` and numbers.
fn activation(value: &Value) -> Option<Activation> {
    let attr = match value {
        Value::String(word) => Attr::Word(word.clone(), Vec::new()),
        Value::Object(o) => {
            let number = |(k, v): (&String, &Value)| Some((k.clone(), Real(v.as_f64()? as f32)));
            let numbers = o.iter().filter(|(k, _)| *k != "kind").map(number);
            Attr::Word(o.get("kind")?.as_str()?.to_string(), numbers.collect::<Option<_>>()?)
        }
        _ => return None,
    };
    match Op::from_attrs("activate", &|key| (key == "activation").then(|| attr.clone())) {
        Ok(Op::Activate(activation)) => Some(activation),
        _ => None,
    }
}
