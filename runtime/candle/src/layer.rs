//! Whole layers: router, experts, shared experts.

use crate::launch::{Launch, wrap};
use candle_core::{CpuStorage, CustomOp1, DType, Layout, Module, Result, Shape, Tensor};
use std::path::Path;
use std::sync::Arc;

/// A Mixture-of-Experts layer with its router and weights. A clone is the same layer.
#[derive(Clone)]
pub struct MoeLayer {
    op: Arc<Box<dyn CustomOp1 + Send + Sync>>,
    hidden: usize,
    dtype: DType,
}

impl MoeLayer {
    /// Compiles layer `number` of a model (by its own count; `None`: its first MoE layer) for this machine's CPU, and loads
    /// its weights, for calls of up to `max_tokens` tokens. `model` is a directory with `config.json` and weights, or a GGUF
    /// file; weights that are published as codes stay codes.
    ///
    /// # Errors
    /// Those of [`moec::Model::open`], [`moec::Model::layer`] and [`moec::Session::open`].
    pub fn open(model: impl AsRef<Path>, number: Option<u32>, max_tokens: u64) -> Result<MoeLayer> {
        let layer = moec::Model::open(model).and_then(|m| m.layer(number)).map_err(wrap)?;
        MoeLayer::new(moec::Session::open(&layer, moec::Device::Cpu, max_tokens).map_err(wrap)?.into_layer())
    }

    /// A layer that was loaded before.
    ///
    /// # Errors
    /// When it takes more than `input`, or has no `output`.
    pub fn new(layer: moec::Layer) -> Result<MoeLayer> {
        if layer.manifest().inputs.len() != 1 {
            candle_core::bail!("the layer takes more than `input`: `Experts` takes ids and weights as well");
        }
        let launch = Launch::new(layer, Vec::new())?;
        let (hidden, dtype) = (launch.hidden(), launch.input("input")?);
        Ok(MoeLayer { op: Arc::new(Box::new(Op(launch))), hidden, dtype })
    }
}

impl Module for MoeLayer {
    /// `[.., H]` → `[.., H]`, in the layer's own type.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let x = crate::launch::rows(x, self.hidden, self.dtype)?;
        x.contiguous()?.apply_op1_arc(self.op.clone())
    }
}

struct Op(Launch);

impl CustomOp1 for Op {
    fn name(&self) -> &'static str {
        "moec"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let n_tokens = layout.shape().elem_count() / self.0.hidden().max(1);
        Ok((self.0.run(n_tokens, &[(x, layout)])?, layout.shape().clone()))
    }
}
