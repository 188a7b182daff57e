//! The published layers that a GPU pack times, with random weights: they are too many to be shipped.

use moec::Model;
use moec_ir::act_quant::ActQuant;
use moec_ir::graph::{self, Graph};
use std::path::Path;

/// A layer of `examples/models`. Each is timed on a GPU's own engine and on the portable one, which every GPU has.
pub struct Timed {
    /// The model.
    pub model: &'static str,
    /// What rows are rounded to, where they are.
    pub activations: Option<ActQuant>,
    /// Token counts.
    pub tokens: &'static [u64],
}

/// Every layer that is timed.
pub const TIMED: [Timed; 5] = [
    Timed { model: "mixtral-8x7b", activations: None, tokens: &[1, 64, 4096] },
    Timed { model: "qwen3-235b-a22b", activations: None, tokens: &[1, 16, 128] },
    Timed { model: "gpt-oss-120b", activations: None, tokens: &[1, 64, 1024] },
    Timed { model: "deepseek-r1", activations: None, tokens: &[1, 16, 128] },
    Timed { model: "deepseek-r1", activations: Some(ActQuant::FP8_BLOCK), tokens: &[1, 128, 4096] },
];

/// The token counts that their bundles are compiled for.
pub const RANGE: (u64, u64) = (0, 4096);

impl Timed {
    /// What its cases are called, and the layer.
    ///
    /// # Errors
    /// When the model cannot be read.
    pub fn layer(&self) -> Result<(String, Graph), String> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/models").join(self.model);
        let graph = Model::open(path).and_then(|m| m.layer(None)).map_err(|d| format!("{d:?}"))?.graph;
        match self.activations {
            None => Ok((self.model.to_string(), graph)),
            Some(q) => {
                let graph = graph::quantise_activations(&graph, q).map_err(|d| format!("{d:?}"))?;
                Ok((format!("{}-fp8-rows", self.model), graph))
            }
        }
    }
}
