//! `com.microsoft::MoE` nodes of ONNX files, as ONNX Runtime defines them and Hugging Face transformers writes them
//! (`OnnxExporter` with `ort_fusions="cuda"`), and `com.microsoft::QMoE` nodes with integers of 4 and 8 bits.
//!
//! The node takes rows, the router's logits and the experts' weights; softmax over all experts, the choice of K and the
//! weights' normalisation are its own. Where the logits are a matrix product of the same rows with an initialiser, the
//! product is part of the layer; elsewhere the logits are an input, `router_logits`.

use crate::config::{Diagnostics, Layer, LayerOptions, build};
use crate::keys::{MAX_EXPERTS, MAX_WIDTH};
use crate::spec::{ExpertBiases, Experts, MoeSpec, Precision, Router};
use moec_ir::diag::Diagnostic;
use moec_ir::expr::Real;
use moec_ir::graph::{RenormRule, Score};
use moec_ir::weights::{WeightSource, WeightStep};
use moec_ir::{Activation, Curve, DType};
use moec_weights::onnx::{Attribute, File, Node, QMOE_MATRICES, QmoeMatrix};
use std::path::Path;

/// An ONNX file with MoE nodes. A layer is one of them, counted from 0 in the order of the graph.
#[derive(Clone, Debug)]
pub struct OnnxModel {
    file: File,
    /// Indices of the MoE nodes.
    nodes: Vec<usize>,
}

impl OnnxModel {
    /// Reads the graph of an ONNX file.
    ///
    /// # Errors
    /// Those of [`File::open`]; `no-moe-layers` when no node is an MoE node.
    pub fn open(path: impl AsRef<Path>) -> Result<OnnxModel, Diagnostics> {
        let file = File::open(path).map_err(|d| vec![d])?;
        let is_moe = |n: &&Node| n.domain == "com.microsoft" && matches!(n.op.as_str(), "MoE" | "QMoE");
        let nodes: Vec<usize> = file.nodes.iter().enumerate().filter(|(_, n)| is_moe(n)).map(|(i, _)| i).collect();
        if nodes.is_empty() {
            let what = format!("no node of {} is a `com.microsoft::MoE` or `QMoE`", file.path.display());
            return Err(vec![Diagnostic::input("no-moe-layers", what).help(
                "transformers writes such nodes with `OnnxConfig(ort_fusions=\"cuda\")` for models whose router is a \
                 softmax; or compile the model's config.json",
            )]);
        }
        Ok(OnnxModel { file, nodes })
    }

    /// How many MoE nodes there are.
    pub fn n_layers(&self) -> usize {
        self.nodes.len()
    }

    /// MoE node `number`, or the first.
    ///
    /// # Errors
    /// `layer-out-of-range`; `unsupported-layer` for what moec has no operation for; `onnx-invalid` for a node that
    /// contradicts itself; those of [`crate::ModelConfig::layer`] that concern `options`.
    pub fn layer(&self, number: Option<u32>, options: &LayerOptions) -> Result<Layer, Diagnostics> {
        let layer = number.unwrap_or(0);
        let Some(&at) = self.nodes.get(layer as usize) else {
            let (file, last) = (self.file.path.display(), self.nodes.len() - 1);
            let what = format!("{file}: there is no MoE node {layer}; the graph has the nodes 0 to {last}");
            return Err(vec![Diagnostic::input("layer-out-of-range", what)]);
        };
        let reader = Reader { file: &self.file, node: &self.file.nodes[at] };
        let (spec, dtype) = reader.spec().map_err(|d| vec![d])?;
        let dtype = options.dtype.unwrap_or(dtype);
        build("onnx", layer, spec, dtype, None, options).map_err(|d| vec![d])
    }
}

/// Reads one node.
struct Reader<'a> {
    file: &'a File,
    node: &'a Node,
}

/// The place of an operand; of a `QMoE` node, [`QMOE_MATRICES`] has those of weights.
mod operand {
    pub const ROWS: usize = 0;
    pub const LOGITS: usize = 1;
    /// First, second, and a gate of its own.
    pub const MATRICES: [usize; 3] = [2, 4, 6];
    pub const BIASES: [usize; 3] = [3, 5, 7];
    /// Of a `QMoE` node: other weights than those of the choice, and what stands behind them.
    pub const ROUTER_WEIGHTS: usize = 14;
}

/// Gate and up in one tensor.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fusion {
    None,
    Interleaved,
    Halves,
}

impl Fusion {
    /// Rows of an expert's first matrix.
    fn rows(self, ffn: u64) -> u64 {
        if self == Fusion::None { ffn } else { 2 * ffn }
    }
}

impl Reader<'_> {
    fn spec(&self) -> Result<(MoeSpec, DType), Diagnostic> {
        if self.is_quantised() {
            self.check_quantised()?;
        }
        for flag in ["use_sparse_mixer", "swiglu_limit_after_activation"] {
            if self.int(flag, 0)? != 0 {
                return Err(self.unsupported(&format!("`{flag}` = 1")));
            }
        }
        let (fc1, fc2) = match (self.matrix(0)?, self.matrix(1)?) {
            (Some(a), Some(b)) => (a, b),
            _ => return Err(self.invalid("it has no weights `fc1_experts_weights` or `fc2_experts_weights`")),
        };
        let fc3 = self.matrix(2)?;
        let (activation, fusion) = self.activation(fc3.is_some())?;
        let [n_experts, rows, hidden] = [fc1.shape[0], fc1.shape[1], fc1.shape[2]];
        let ffn = if fusion == Fusion::None { rows } else { rows / 2 };
        self.expect(&fc1, &[n_experts, fusion.rows(ffn), hidden])?;
        self.expect(&fc2, &[n_experts, hidden, ffn])?;
        if let Some(fc3) = &fc3 {
            self.expect(fc3, &[n_experts, ffn, hidden])?;
        }
        let top_k = self.int("k", 1)?;
        let top_k = u64::try_from(top_k).ok().filter(|&k| k >= 1 && k <= n_experts);
        let top_k = top_k.ok_or_else(|| self.invalid(&format!("`k` must be from 1 to the {n_experts} experts")))?;
        let is_believed =
            n_experts <= MAX_EXPERTS && hidden <= MAX_WIDTH && ffn <= MAX_WIDTH && n_experts * hidden * ffn > 0;
        if !is_believed {
            return Err(self.invalid(&format!("weights of the shape {:?} are no experts", fc1.shape)));
        }
        let biases = self.biases(&activation, fusion, [n_experts, ffn, hidden])?;
        let (gate, up) = fc1.branches(fc3.as_ref(), ffn, fusion);
        let dtype = fc1.dtype;
        let experts = Experts { ffn, activation, gate, up, down: fc2.whole(), biases, out_norm: None };
        let mut router = self.router(n_experts, hidden)?;
        router.logits = Precision::Layer;
        router.renorm = (self.int("normalize_routing_weights", 0)? != 0).then_some(RenormRule::Sum { eps: Real(0.0) });
        Ok((MoeSpec::new(hidden, n_experts, top_k, router, experts), dtype))
    }

    /// What stands between the matrices, and how gate and up lie.
    fn activation(&self, gated: bool) -> Result<(Activation, Fusion), Diagnostic> {
        let name = self.word("activation_type", "relu")?;
        let fusion = match self.int("swiglu_fusion", 0)? {
            0 => Fusion::None,
            1 => Fusion::Interleaved,
            2 => Fusion::Halves,
            other => return Err(self.invalid(&format!("`swiglu_fusion` is {other}; it is 0, 1 or 2"))),
        };
        let fused = fusion != Fusion::None;
        let activation = match (name.as_str(), gated, fused) {
            ("swiglu", true, true) | ("geglu", true, _) => {
                return Err(
                    self.invalid("gate and up are fused in `fc1_experts_weights`, but there are `fc3_experts_weights`")
                );
            }
            ("swiglu", false, false) | ("geglu", false, false) => {
                return Err(self.invalid(&format!("{name} needs a gate: `fc3_experts_weights`, or `swiglu_fusion`")));
            }
            ("swiglu", ..) => self.swiglu()?,
            ("geglu", false, true) => Activation::GeGluTanh,
            ("silu", true, _) => Activation::SwiGlu,
            ("relu", true, _) => Activation::ReGlu,
            ("identity", true, _) => Activation::Gated(Curve::Linear),
            ("silu", false, _) => Activation::Silu,
            ("relu", false, _) => Activation::Ungated(Curve::Relu),
            ("relu2", false, _) => Activation::Relu2,
            ("identity", false, _) => Activation::Ungated(Curve::Linear),
            // ONNX Runtime's providers compute gelu by different formulas.
            (other, ..) => return Err(self.unsupported(&format!("the activation {other:?}"))),
        };
        // Other activations do not read `swiglu_fusion`.
        let fusion = if matches!(name.as_str(), "swiglu" | "geglu") { fusion } else { Fusion::None };
        Ok((activation, fusion))
    }

    /// `G·sigmoid(alpha·G)·(L + beta)`, both clamped where there is a limit.
    fn swiglu(&self) -> Result<Activation, Diagnostic> {
        let (alpha, beta) = (self.float("activation_alpha", 1.0)?, self.float("activation_beta", 0.0)?);
        let limit = self.float("swiglu_limit", f32::INFINITY)?;
        match (alpha, beta) {
            (1.0, 0.0) if limit == f32::INFINITY => Ok(Activation::SwiGlu),
            (1.0, 0.0) => Ok(Activation::SwiGluClampBefore { limit: Real(limit) }),
            (_, 1.0) => Ok(Activation::SwiGluOai { alpha: Real(alpha), limit: Real(limit.min(f32::MAX)) }),
            _ => Err(self.unsupported(&format!("swiglu with `activation_alpha` {alpha} and `activation_beta` {beta}"))),
        }
    }

    fn biases(
        &self,
        activation: &Activation,
        fusion: Fusion,
        [n_experts, ffn, hidden]: [u64; 3],
    ) -> Result<Option<ExpertBiases>, Diagnostic> {
        let [fc1, fc2, fc3] = [0, 1, 2]
            .map(|i| self.weight(if self.is_quantised() { QMOE_MATRICES[i].bias } else { operand::BIASES[i] }, 2));
        let (fc1, fc2, fc3) = (fc1?, fc2?, fc3?);
        let separate_gate = activation.is_gated() && fusion == Fusion::None;
        match (fc1, fc2, fc3) {
            (None, None, None) => Ok(None),
            (Some(fc1), Some(fc2), fc3) if fc3.is_some() == separate_gate => {
                self.expect(&fc1, &[n_experts, fusion.rows(ffn)])?;
                self.expect(&fc2, &[n_experts, hidden])?;
                if let Some(fc3) = &fc3 {
                    self.expect(fc3, &[n_experts, ffn])?;
                }
                let (gate, up) = fc1.branches(fc3.as_ref(), ffn, fusion);
                Ok(Some(ExpertBiases { gate, up, down: fc2.whole() }))
            }
            _ => Err(self.unsupported("biases of some of the experts' matrices")),
        }
    }

    /// The router's matrix, when the logits are its product with the node's own rows.
    fn router(&self, n_experts: u64, hidden: u64) -> Result<Router, Diagnostic> {
        let logits = self.node.inputs.get(operand::LOGITS).map(String::as_str).unwrap_or_default();
        if logits.is_empty() {
            return Err(self.invalid("it has no `router_probs`"));
        }
        let rows = self.same_rows(self.node.inputs.get(operand::ROWS).map(String::as_str).unwrap_or_default());
        if let Some(product) = self.file.producer(logits)
            && product.domain.is_empty()
            && let [x, w, ..] = product.inputs.as_slice()
            && self.same_rows(x) == rows
            && let Some((dtype, shape)) = self.file.tensors.get(w)
            && dtype.dtype().is_some_and(DType::is_float)
        {
            let plain = |name: &str, value: Attribute| product.attributes.get(name).is_none_or(|a| *a == value);
            let transposed = product.attributes.get("transB") == Some(&Attribute::Int(1));
            let is_gemm =
                product.op == "Gemm" && plain("alpha", Attribute::Float(1.0)) && plain("transA", Attribute::Int(0));
            let weight = |steps| WeightSource::Tensor { names: vec![w.clone()], steps };
            let weight = match (product.op.as_str(), transposed) {
                ("Gemm", true) if is_gemm && *shape == [n_experts, hidden] => Some(weight(Vec::new())),
                ("Gemm", false) if is_gemm && *shape == [hidden, n_experts] => {
                    Some(weight(vec![WeightStep::Transpose]))
                }
                ("MatMul", _) if *shape == [hidden, n_experts] => Some(weight(vec![WeightStep::Transpose])),
                _ => None,
            };
            let bias = product.inputs.get(2).filter(|c| !c.is_empty() && product.op == "Gemm");
            let known = bias.is_none_or(|c| {
                plain("beta", Attribute::Float(1.0)) && self.file.tensors.get(c).is_some_and(|t| t.1 == [n_experts])
            });
            if let Some(weight) = weight.filter(|_| known) {
                let mut router = Router::new(weight, Score::Softmax);
                router.bias = bias.map(|c| WeightSource::Tensor { names: vec![c.clone()], steps: Vec::new() });
                return Ok(router);
            }
        }
        Ok(Router::of_given_logits(Score::Softmax))
    }

    /// The value that `name` is, seen through changes of shape.
    fn same_rows<'b>(&'b self, name: &'b str) -> &'b str {
        let mut name = name;
        // A graph that goes in circles is no graph; the steps are bounded all the same.
        for _ in 0..8 {
            match self.file.producer(name) {
                Some(n) if n.domain.is_empty() && matches!(n.op.as_str(), "Reshape" | "Flatten" | "Identity") => {
                    name = n.inputs.first().map(String::as_str).unwrap_or_default();
                }
                _ => break,
            }
        }
        name
    }

    fn is_quantised(&self) -> bool {
        self.node.op == "QMoE"
    }

    /// That a `QMoE` node has integers, and nothing that is not read.
    fn check_quantised(&self) -> Result<(), Diagnostic> {
        let kind = self.word("quant_type", "int")?;
        if kind != "int" {
            return Err(self.unsupported(&format!("experts quantised as {kind:?}")));
        }
        // By default, bytes lie as ONNX Runtime's CPU kernels read them.
        if self.int("weights_prepacked", -1)? == 1 {
            return Err(self.unsupported("weights in the order of one GPU's kernels (`weights_prepacked` = 1)"));
        }
        if self.int("normalize_routing_weights", 0)? == 0 {
            return Err(self
                .unsupported("`normalize_routing_weights` = 0, which ONNX Runtime's CPU kernels take for 1,")
                .help("set it to 1 where the weights of a token's experts are to sum to 1"));
        }
        match self.node.inputs.iter().skip(operand::ROUTER_WEIGHTS).find(|n| !n.is_empty()) {
            Some(name) => {
                Err(self.unsupported(&format!("routing weights or scales in an operand of its own (`{name}`)")))
            }
            None => Ok(()),
        }
    }

    /// Matrix number `i` of the experts; `None` when it is left out.
    fn matrix(&self, i: usize) -> Result<Option<Weight>, Diagnostic> {
        if self.is_quantised() { self.codes(&QMOE_MATRICES[i]) } else { self.weight(operand::MATRICES[i], 3) }
    }

    /// The matrix that codes of a `QMoE` node stand for, in the type of its scales.
    fn codes(&self, matrix: &QmoeMatrix) -> Result<Option<Weight>, Diagnostic> {
        let operand = |at: usize| self.node.inputs.get(at).filter(|n| !n.is_empty());
        let Some(name) = operand(matrix.codes) else { return Ok(None) };
        let tensor = |name: &String| {
            let found = self.file.tensors.get(name);
            found.ok_or_else(|| self.unsupported(&format!("weights that are no initialisers (`{name}`)")))
        };
        let (stored, shape) = tensor(name)?;
        let scales = operand(matrix.scales).ok_or_else(|| self.invalid(&format!("`{name}` has no scales")))?;
        let (scale, grid) = tensor(scales)?;
        let bits = matrix.bits(self.node);
        let &[n_experts, rows, bytes] = &shape[..] else {
            return Err(self.invalid(&format!("`{name}` has {} axes; 3 are expected", shape.len())));
        };
        let (4 | 8, true) = (bits, stored.to_string() == "U8") else {
            return Err(self.unsupported(&format!("codes of {bits} bits in {stored} (`{name}`)")));
        };
        let dtype = scale.dtype().filter(|d| d.is_float());
        let dtype = dtype.ok_or_else(|| self.unsupported(&format!("scales of type {scale} (`{scales}`)")))?;
        let cols = bytes.saturating_mul(8) / bits as u64;
        let block = self.int("block_size", 0)?;
        let wanted = match u64::try_from(block) {
            Ok(0) => vec![n_experts, rows],
            Ok(block) if cols.is_multiple_of(block) => vec![n_experts, rows, cols / block],
            _ => return Err(self.invalid(&format!("blocks of {block} do not divide the {cols} columns of `{name}`"))),
        };
        if *grid != wanted {
            return Err(self.invalid(&format!("`{scales}` is {grid:?}; beside `{name}` it should be {wanted:?}")));
        }
        if !bytes.is_multiple_of(4) {
            return Err(self.unsupported(&format!("rows of {bytes} bytes, no multiple of 4 (`{name}`)")));
        }
        Ok(Some(Weight { name: name.clone(), dtype, shape: vec![n_experts, rows, cols] }))
    }

    /// The initialiser at an operand; `None` when the operand is left out.
    fn weight(&self, at: usize, rank: usize) -> Result<Option<Weight>, Diagnostic> {
        let Some(name) = self.node.inputs.get(at).filter(|n| !n.is_empty()) else { return Ok(None) };
        let Some((stored, shape)) = self.file.tensors.get(name) else {
            return Err(self.unsupported(&format!("weights that are no initialisers (`{name}`)")));
        };
        let Some(dtype) = stored.dtype().filter(|d| d.is_float()) else {
            return Err(self.unsupported(&format!("weights of type {stored} (`{name}`)")));
        };
        if shape.len() != rank {
            return Err(self.invalid(&format!("`{name}` has {} axes; {rank} are expected", shape.len())));
        }
        Ok(Some(Weight { name: name.clone(), dtype, shape: shape.clone() }))
    }

    fn expect(&self, w: &Weight, shape: &[u64]) -> Result<(), Diagnostic> {
        if w.shape == shape {
            return Ok(());
        }
        Err(self.invalid(&format!("`{}` is {:?}; beside the other weights it should be {shape:?}", w.name, w.shape)))
    }

    fn int(&self, name: &str, default: i64) -> Result<i64, Diagnostic> {
        match self.node.attributes.get(name) {
            None => Ok(default),
            Some(Attribute::Int(i)) => Ok(*i),
            Some(other) => Err(self.invalid(&format!("`{name}` is {other:?}, not a whole number"))),
        }
    }

    fn float(&self, name: &str, default: f32) -> Result<f32, Diagnostic> {
        match self.node.attributes.get(name) {
            None => Ok(default),
            Some(Attribute::Float(x)) => Ok(*x),
            Some(other) => Err(self.invalid(&format!("`{name}` is {other:?}, not a number"))),
        }
    }

    fn word(&self, name: &str, default: &str) -> Result<String, Diagnostic> {
        match self.node.attributes.get(name) {
            None => Ok(default.to_string()),
            Some(Attribute::Word(word)) => Ok(word.clone()),
            Some(other) => Err(self.invalid(&format!("`{name}` is {other:?}, not a word"))),
        }
    }

    fn shown(&self) -> String {
        let Node { name, op, .. } = self.node;
        format!("{}: node `{name}` ({op})", self.file.path.display())
    }

    fn unsupported(&self, what: &str) -> Diagnostic {
        Diagnostic::input("unsupported-layer", format!("{} has {what}, which moec cannot express", self.shown()))
            .help("compile the model's config.json instead, when there is one")
    }

    fn invalid(&self, what: &str) -> Diagnostic {
        Diagnostic::input("onnx-invalid", format!("{}: {what}", self.shown()))
    }
}

/// An initialiser with weights, or codes of them.
struct Weight {
    name: String,
    dtype: DType,
    shape: Vec<u64>,
}

impl Weight {
    fn whole(&self) -> WeightSource {
        WeightSource::Tensor { names: vec![self.name.clone()], steps: Vec::new() }
    }

    /// Gate and up: this tensor and `other`, this one twice where nothing is gated, or its parts.
    fn branches(&self, other: Option<&Weight>, ffn: u64, fusion: Fusion) -> (WeightSource, WeightSource) {
        match fusion {
            Fusion::None => (self.whole(), other.unwrap_or(self).whole()),
            Fusion::Interleaved | Fusion::Halves => (self.half(0, ffn, fusion), self.half(1, ffn, fusion)),
        }
    }

    /// Gate (0) or up (1) of a fused tensor.
    fn half(&self, part: u64, len: u64, fusion: Fusion) -> WeightSource {
        let (start, step) = if fusion == Fusion::Interleaved { (part, 2) } else { (part * len, 1) };
        let slice = WeightStep::Slice { axis: 1, start, step, len, of: Some(2 * len) };
        WeightSource::Tensor { names: vec![self.name.clone()], steps: vec![slice] }
    }
}
