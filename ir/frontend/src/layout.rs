//! Tensor names of one layer, and the layouts in which families publish their experts.

use crate::keys::Keys;
use crate::spec::{ExpertBiases, Experts, Shared};
use moec_ir::Activation;
use moec_ir::weights::{WeightSource, WeightStep};

/// Names tensors of one layer.
pub struct Names {
    bases: Vec<String>,
}

/// Which half of a fused gate-and-up tensor.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The gate.
    Gate,
    /// The linear branch.
    Up,
}

impl Names {
    /// Names below `layers.N.` of a decoder.
    pub fn layer(keys: &Keys, layer: u32) -> Names {
        Names { bases: keys.prefixes.iter().map(|p| format!("{p}layers.{layer}.")).collect() }
    }

    /// Names below these beginnings, for families that do not count `layers.N.`.
    pub fn exact(bases: &[&str]) -> Names {
        Names { bases: bases.iter().map(|b| (*b).to_string()).collect() }
    }

    fn all(&self, suffixes: &[&str]) -> Vec<String> {
        suffixes.iter().flat_map(|s| self.bases.iter().map(move |b| format!("{b}{s}"))).collect()
    }

    /// The first of `suffixes` that exists, as it is.
    pub fn tensor(&self, suffixes: &[&str]) -> WeightSource {
        self.steps(suffixes, Vec::new())
    }

    /// The first of `suffixes` that exists, after `steps`.
    pub fn steps(&self, suffixes: &[&str], steps: Vec<WeightStep>) -> WeightSource {
        WeightSource::Tensor { names: self.all(suffixes), steps }
    }

    /// The first of `suffixes` that exists, read as a vector of `len`: some families store `[1, E]` or a scalar axis.
    pub fn vector(&self, suffixes: &[&str], len: u64) -> WeightSource {
        self.steps(suffixes, vec![WeightStep::Reshape { shape: vec![len] }])
    }

    /// One tensor per expert, `{e}` standing for its number.
    pub fn per_expert(&self, suffixes: &[&str], n_experts: u64) -> WeightSource {
        WeightSource::PerExpert { names: self.all(suffixes), first: 0, count: n_experts, steps: Vec::new() }
    }

    /// Half of a stacked `[E, 2F, H]` tensor, gate over up.
    pub fn stacked_half(&self, suffixes: &[&str], part: Part, ffn: u64) -> WeightSource {
        self.steps(suffixes, vec![half(1, part, ffn)])
    }

    /// Half of a stacked `[E, H, 2F]` tensor, gate before up, transposed.
    pub fn stacked_half_transposed(&self, suffixes: &[&str], part: Part, ffn: u64) -> WeightSource {
        self.steps(suffixes, vec![half(2, part, ffn), WeightStep::Transpose])
    }

    /// Half of a dense `[2S, H]` matrix, gate over up.
    pub fn dense_half(&self, suffixes: &[&str], part: Part, ffn: u64) -> WeightSource {
        self.steps(suffixes, vec![half(0, part, ffn)])
    }

    /// A stacked tensor, transposed: stored `[E, F, H]`, wanted `[E, H, F]`.
    pub fn transposed(&self, suffixes: &[&str]) -> WeightSource {
        self.steps(suffixes, vec![WeightStep::Transpose])
    }

    /// Experts as separate Linears below `stem` (`mlp.experts`), with the names of gate, up and down; also accepted in the
    /// stacked form that transformers 5 holds in memory: `gate_up_proj` `[E, 2F, H]`, `down_proj` `[E, H, F]`.
    pub fn experts(
        &self,
        stem: &str,
        [gate, up, down]: [&str; 3],
        n_experts: u64,
        ffn: u64,
        activation: Activation,
    ) -> Experts {
        let one = |name: &str| self.per_expert(&[&format!("{stem}.{{e}}.{name}.weight")], n_experts);
        let fused = format!("{stem}.gate_up_proj");
        let (gate, up, down) = (one(gate), one(up), one(down));
        Experts {
            ffn,
            gate: WeightSource::FirstOf(vec![gate, self.stacked_half(&[&fused], Part::Gate, ffn)]),
            up: if activation.is_gated() {
                WeightSource::FirstOf(vec![up, self.stacked_half(&[&fused], Part::Up, ffn)])
            } else {
                WeightSource::FirstOf(vec![up, self.tensor(&[&format!("{stem}.up_proj")])])
            },
            down: WeightSource::FirstOf(vec![down, self.tensor(&[&format!("{stem}.down_proj")])]),
            activation,
            biases: None,
            out_norm: None,
        }
    }
}

impl Names {
    /// Experts in two stacked tensors: gate over up `[E, 2F, H]`, and down `[E, H, F]`.
    pub fn stacked_experts(&self, gate_up: &[&str], down: &[&str], ffn: u64, activation: Activation) -> Experts {
        Experts {
            ffn,
            activation,
            gate: self.stacked_half(gate_up, Part::Gate, ffn),
            up: self.stacked_half(gate_up, Part::Up, ffn),
            down: self.tensor(down),
            biases: None,
            out_norm: None,
        }
    }

    /// Experts in two stacked tensors stored the other way: `[E, H, 2F]` and `[E, F, H]`.
    pub fn transposed_experts(&self, gate_up: &[&str], down: &[&str], ffn: u64, activation: Activation) -> Experts {
        Experts {
            ffn,
            activation,
            gate: self.stacked_half_transposed(gate_up, Part::Gate, ffn),
            up: self.stacked_half_transposed(gate_up, Part::Up, ffn),
            down: self.transposed(down),
            biases: None,
            out_norm: None,
        }
    }

    /// Biases of three Linears below `stem`.
    pub fn mlp_biases(&self, stem: &str, [gate, up, down]: [&str; 3]) -> ExpertBiases {
        let bias = |m: &str| self.tensor(&[&format!("{stem}.{m}.bias")]);
        ExpertBiases { gate: bias(gate), up: bias(up), down: bias(down) }
    }

    /// A dense MLP of three Linears below `stem`.
    pub fn mlp(&self, stem: &str, [gate, up, down]: [&str; 3], ffn: u64, activation: Activation) -> Shared {
        let matrix = |m: &str| self.tensor(&[&format!("{stem}.{m}.weight")]);
        Shared::new(ffn, activation, matrix(gate), matrix(up), matrix(down))
    }
}

/// The names that most families give to the matrices of an expert.
pub const GATE_UP_DOWN: [&str; 3] = ["gate_proj", "up_proj", "down_proj"];
/// The names of the Mixtral line: 1 is the gate, 3 the linear branch, 2 the way down.
pub const W1_W3_W2: [&str; 3] = ["w1", "w3", "w2"];

fn half(axis: u32, part: Part, ffn: u64) -> WeightStep {
    let start = if part == Part::Gate { 0 } else { ffn };
    WeightStep::Slice { axis, start, step: 1, len: ffn, of: Some(2 * ffn) }
}
