//! A layer in numbers and in one paragraph.

use crate::spec::{MoeSpec, Precision};
use moec_ir::graph::{Graph, GroupScore, Param, RenormRule, Score, Shard};
use moec_ir::quant::{Code, QuantFormat, ScaleCode};
use moec_ir::{Activation, DType};
use serde::Serialize;
use std::collections::BTreeSet;

/// What `moec check` says about a layer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LayerFacts {
    /// The config's `model_type`.
    pub model_type: String,
    /// Layer number, as in the weight names.
    pub layer: u32,
    /// Routed experts E.
    pub n_experts: u64,
    /// Experts per token K.
    pub top_k: u64,
    /// Hidden size H.
    pub hidden: u64,
    /// Expert width F.
    pub ffn: u64,
    /// Width of the space that the experts work in, when it is not the hidden size.
    pub latent: Option<u64>,
    /// The router, step by step.
    pub router: String,
    /// The activation of the routed experts.
    pub activation: String,
    /// Width of the shared expert, and whether its output is gated.
    pub shared: Option<SharedFacts>,
    /// Element type that the layer is compiled in.
    pub dtype: DType,
    /// The checkpoint's weight format, when it is not `dtype`.
    pub quantization: Option<String>,
    /// The part that is compiled, when it is not the whole layer; bytes and flops are then this rank's, on average over ranks
    /// where they depend on the routing.
    pub shard: Option<Shard>,
    /// The formats in which parameters stay as they are published, in words; empty when all become `dtype`.
    pub stored: Vec<String>,
    /// Bytes of all parameters of the layer: codes and scales where they stay as published, `dtype` elsewhere.
    pub weight_bytes: u64,
    /// Bytes of all parameters of the layer in `dtype`.
    pub dense_bytes: u64,
    /// Bytes of the parameters that one token reads.
    pub active_weight_bytes: u64,
    /// Multiplications and additions of the matrix products for one token.
    pub flops_per_token: u64,
}

/// The shared expert.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SharedFacts {
    /// Its width.
    pub ffn: u64,
    /// Whether the sigmoid of a gate multiplies its output.
    pub gated: bool,
}

impl LayerFacts {
    pub(crate) fn new(
        spec: &MoeSpec,
        graph: &Graph,
        model_type: &str,
        layer: u32,
        dtype: DType,
        quantization: Option<String>,
    ) -> LayerFacts {
        let routed_bytes: u64 = graph
            .params
            .iter()
            .filter(|p| p.name.starts_with("experts.") && p.ty.shape.len() > 1)
            .map(stored_bytes)
            .sum();
        let weight_bytes: u64 = graph.params.iter().map(stored_bytes).sum();
        let dense_bytes: u64 = graph.params.iter().map(|p| p.ty.bytes(0)).sum();
        let formats: BTreeSet<QuantFormat> = graph.params.iter().filter_map(|p| p.stored).collect();
        let dense_flops: u64 = graph
            .params
            .iter()
            .filter(|p| p.ty.shape.len() == 2 && !p.name.starts_with("experts."))
            .map(|p| 2 * p.ty.elements(0))
            .sum();
        let expert_elements: u64 = graph
            .params
            .iter()
            .filter(|p| p.ty.shape.len() == 3 && p.name.starts_with("experts."))
            .map(|p| p.ty.elements(0))
            .sum();
        LayerFacts {
            model_type: model_type.to_string(),
            layer,
            n_experts: spec.n_experts,
            top_k: spec.top_k,
            hidden: spec.hidden,
            ffn: spec.experts.ffn,
            latent: spec.latent.as_ref().map(|l| l.width),
            router: router_words(spec, dtype),
            activation: activation_words(&spec.experts.activation),
            shared: match &spec.shared {
                Some(s) => Some(SharedFacts { ffn: s.ffn, gated: s.out_gate.is_some() }),
                None if spec.sinks.is_empty() => None,
                None => Some(SharedFacts { ffn: spec.experts.ffn * spec.sinks.len() as u64, gated: false }),
            },
            dtype,
            quantization,
            shard: None,
            stored: formats.into_iter().map(format_words).collect(),
            weight_bytes,
            dense_bytes,
            active_weight_bytes: weight_bytes - routed_bytes + routed_bytes / spec.n_experts.max(1) * spec.top_k,
            flops_per_token: dense_flops + 2 * expert_elements / spec.n_experts.max(1) * spec.top_k,
        }
    }

    /// The layer in one readable paragraph.
    pub fn paragraph(&self) -> String {
        let shared = match &self.shared {
            None => "no shared expert".to_string(),
            Some(s) => {
                format!("a shared expert of width {}{}", s.ffn, if s.gated { " behind a sigmoid gate" } else { "" })
            }
        };
        let latent = self.latent.map_or(String::new(), |w| format!(", which work in a latent space of {w} columns"));
        let part = self.shard.map_or(String::new(), |s| format!(" This is {s}; sizes are of its part."));
        let format = match &self.quantization {
            None => format!("Weights are {}", self.dtype),
            Some(q) if self.stored.is_empty() => {
                format!("The checkpoint is quantised ({q}); its weights become {} when they are loaded", self.dtype)
            }
            Some(q) => format!(
                "The checkpoint is quantised ({q}); as published in memory: {} ({} as {})",
                self.stored.join(" and "),
                bytes_words(self.dense_bytes),
                self.dtype
            ),
        };
        format!(
            "{} layer {}: {} experts of width {} on a hidden size of {}{latent}, {} of them for each token, and {shared}. \
             Router: {}. Activation: {}. {format}: {} for the layer, of which one token reads {}; {} per token.{part}",
            self.model_type,
            self.layer,
            self.n_experts,
            self.ffn,
            self.hidden,
            self.top_k,
            self.router,
            self.activation,
            bytes_words(self.weight_bytes),
            bytes_words(self.active_weight_bytes),
            flops_words(self.flops_per_token),
        )
    }
}

fn router_words(spec: &MoeSpec, dtype: DType) -> String {
    let (r, n_experts, k) = (&spec.router, spec.n_scored(), spec.top_k);
    let type_of = |p: Precision| if p == Precision::Layer { dtype } else { DType::F32 };
    let network = r.network.as_ref().map(|n| format!("a network of width {} with a state", n.width));
    let mut steps: Vec<String> = network.into_iter().collect();
    steps.push(format!("{} logits{}", type_of(r.logits), if r.bias.is_some() { " with bias" } else { "" }));
    if r.logit_scale != 1.0 {
        steps.push(format!("times {}", r.logit_scale));
    }
    if let Some(jitter) = r.sparse_mixer {
        steps.push(format!(
            "the best expert and the best of the others, each weighted by a softmax over the scores near it (jitter {jitter})"
        ));
        return steps.join(", ");
    }
    let score = match r.score {
        Score::Softmax => "softmax",
        Score::Sigmoid => "sigmoid",
        Score::SqrtSoftplus => "sqrt(softplus)",
    };
    if !r.choose_first {
        steps.push(format!("{score} over {n_experts}"));
    }
    if r.selection_bias.is_some() {
        steps.push("a bias for the choice only".to_string());
    }
    if let Some(g) = &r.groups {
        let by = match g.score {
            GroupScore::Max => "largest score",
            GroupScore::Top2Sum => "sum of two largest scores",
        };
        steps.push(format!("the best {} of {} groups by {by}", g.keep, g.n));
    }
    if let Some(cap) = r.soft_cap {
        steps.push(format!("logits capped at {cap}"));
    }
    if spec.skip_class {
        steps.push("the last of them skips the experts".to_string());
    }
    if spec.zero_experts > 0 {
        steps.push(format!("{} of them return their input", spec.zero_experts));
    }
    steps.push(if r.table.is_some() { format!("{k} experts by token id") } else { format!("top {k}") });
    if r.choose_first {
        steps.push(format!("{score} over the chosen"));
    }
    if !spec.sinks.is_empty() {
        steps.push(format!("weights divided by their sum with {} shared experts", spec.sinks.len()));
    }
    match r.renorm {
        None => {}
        Some(RenormRule::Sum { .. }) => steps.push("weights divided by their sum".to_string()),
        Some(RenormRule::SumAtLeast { min }) => steps.push(format!("weights divided by their sum, at least {min}")),
        Some(RenormRule::PNorm { p }) => steps.push(format!("weights divided by their {p}-norm")),
    }
    if r.scale != 1.0 {
        steps.push(format!("times {}", r.scale));
    }
    if r.expert_scale.is_some() {
        steps.push("times a factor per expert".to_string());
    }
    if spec.routed_scale != 1.0 {
        steps.push(format!("the sum of experts times {}", spec.routed_scale));
    }
    if r.scales_input {
        steps.push("the weight multiplies the expert's input".to_string());
    }
    steps.join(", ")
}

/// An activation by the name that people know.
pub(crate) fn activation_words(a: &Activation) -> String {
    match a {
        Activation::SwiGlu => "SwiGLU".to_string(),
        Activation::SwiGluClampBefore { limit } => format!("SwiGLU, its arguments clamped at {limit}"),
        Activation::SwiGluClampAfter { limit } => format!("SwiGLU, silu and linear branch clamped at {limit}"),
        Activation::SwiGluOai { alpha, limit } => format!("clamped SwiGLU of gpt-oss (alpha {alpha}, limit {limit})"),
        Activation::GeGluTanh => "GeGLU (tanh)".to_string(),
        Activation::GeGluErf => "GeGLU".to_string(),
        Activation::ReGlu => "ReGLU".to_string(),
        Activation::SiTu { beta, linear_beta } => format!("SiTU ({beta}, {linear_beta})"),
        Activation::Relu2 => "squared ReLU, ungated".to_string(),
        Activation::Silu => "SiLU, ungated".to_string(),
        Activation::GeluTanh => "GELU (tanh), ungated".to_string(),
        Activation::Gelu => "GELU, ungated".to_string(),
        Activation::Gated(curve) => format!("{} of the gate", curve.name()),
        Activation::Ungated(curve) => format!("{}, ungated", curve.name()),
    }
}

/// Bytes of a parameter as it lies in memory: codes and scales, or elements.
fn stored_bytes(p: &Param) -> u64 {
    let shape: Vec<u64> = p.ty.shape.iter().filter_map(|d| d.fixed()).collect();
    let (Some(f), [stack @ .., n, k]) = (p.stored, &shape[..]) else { return p.ty.bytes(0) };
    let (rows, cols) = f.scale_grid(*n, *k);
    let matrices: u64 = stack.iter().product();
    matrices * (n * f.code.bytes(*k) + rows * cols * f.scale.bytes())
}

/// A weight format by the name that people know.
fn format_words(f: QuantFormat) -> String {
    match (f.code, f.scale, f.block_rows, f.block_cols) {
        (Code::E4M3, ScaleCode::E8M0, 1, 32) => "MXFP8".to_string(),
        (Code::E4M3, _, 0, 0) => "FP8 with one scale".to_string(),
        (Code::E4M3, _, 1, 0) => "FP8 with a scale for each row".to_string(),
        (Code::E4M3, _, rows, cols) => format!("FP8 in blocks of {rows}x{cols}"),
        (Code::E2M1, ScaleCode::E8M0, 1, 32) => "MXFP4".to_string(),
        (Code::E2M1, ScaleCode::E4M3, 1, 16) => "NVFP4".to_string(),
        (Code::Int4, _, 1, cols) => format!("INT4 in groups of {cols}"),
        _ => f.to_string(),
    }
}

fn bytes_words(n: u64) -> String {
    let n = n as f64;
    let unit = [("GiB", 30), ("MiB", 20), ("KiB", 10)].into_iter().find(|(_, shift)| n >= f64::from(1u32 << shift));
    unit.map_or(format!("{n} bytes"), |(name, shift)| format!("{:.2} {name}", n / f64::from(1u32 << shift)))
}

fn flops_words(n: u64) -> String {
    let n = n as f64;
    let unit = [("Gflop", 1e9), ("Mflop", 1e6), ("kflop", 1e3)].into_iter().find(|(_, size)| n >= *size);
    unit.map_or(format!("{n} flop"), |(name, size)| format!("{:.2} {name}", n / size))
}
