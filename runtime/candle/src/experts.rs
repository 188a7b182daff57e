//! Routed experts alone, for models that choose by themselves.

use crate::launch::{Launch, float_of, memory, rows, wrap};
use candle_core::{CpuStorage, CustomOp3, D, DType, Layout, Result, Shape, Storage, Tensor};
use moec::{CompileRequest, Graph, Hold, LayerBuilder, LoadOptions, MemoryView, Target};
use serde_json::{Value, json};
use std::path::Path;
use std::sync::Arc;

/// The routed experts of a layer, with their weights. A clone is the same experts.
#[derive(Clone)]
pub struct Experts {
    op: Arc<Box<dyn CustomOp3 + Send + Sync>>,
    hidden: usize,
    top_k: usize,
    dtype: DType,
}

impl Experts {
    /// Compiles the routed experts of layer `number` of a model (`None`: its first MoE layer), and loads their weights, for calls
    /// of up to `max_tokens` tokens.
    ///
    /// # Errors
    /// Those of [`crate::MoeLayer::open`].
    pub fn open(model: impl AsRef<Path>, number: Option<u32>, max_tokens: u64) -> Result<Experts> {
        let part = moec::Part::Experts { ids: moec::DType::I32, weights: moec::DType::F32 };
        let options = moec::LayerOptions { part, ..moec::LayerOptions::default() };
        let layer = moec::Model::open(model).and_then(|m| m.layer_with(number, &options)).map_err(wrap)?;
        let session = moec::Session::open(&layer, moec::Device::Cpu, max_tokens).map_err(wrap)?;
        Experts::made(session.into_layer(), Vec::new())
    }

    /// Experts over candle's own tensors, for calls of up to `max_tokens` tokens with `top_k` experts each. Weights are read
    /// where they lie when their rows are whole and of 16 bytes times a number, and copied otherwise.
    ///
    /// `gate_up` is `[E, 2I, H]`, all of gate first, or `[E, I, H]` for experts without a gate; `down` is `[E, H, I]`; both in one
    /// type, f32, bf16 or f16. `activation` is moec's name of it, such as `swiglu`, `geglu_tanh` or, without a gate, `relu2`.
    ///
    /// # Errors
    /// `unknown-activation` and others about what does not fit together.
    pub fn new(gate_up: &Tensor, down: &Tensor, activation: &str, top_k: usize, max_tokens: u64) -> Result<Experts> {
        let (n_experts, hidden, ffn) = down.dims3()?;
        let (_, both, _) = gate_up.dims3()?;
        if down.dtype() != gate_up.dtype() {
            candle_core::bail!("`gate_up` is {:?}, `down` is {:?}", gate_up.dtype(), down.dtype());
        }
        let dtype = float_of(down.dtype())?;
        let mut params = vec![("experts.down", down.clone())];
        if both == 2 * ffn {
            params.push(("experts.gate", gate_up.narrow(1, 0, ffn)?));
            params.push(("experts.up", gate_up.narrow(1, ffn, ffn)?));
        } else {
            params.push(("experts.up", gate_up.clone()));
        }
        let sizes = Sizes { n_experts, hidden, ffn, top_k };
        let text = graph(dtype, &sizes, activation, params.len() == 3).to_string();
        let graph: Graph = moec::Model::from_text("experts", text).and_then(|m| m.layer(None)).map_err(wrap)?.graph;
        let targets = Target::by_name("cpu").into_iter().collect();
        let compiled = moec::compile(&CompileRequest::new(&graph, targets)).map_err(wrap)?;
        let options = LoadOptions { max_tokens, ..LoadOptions::default() };
        let mut builder = LayerBuilder::new(&compiled.bundle, options).map_err(wrap)?;
        let mut borrowed = Vec::new();
        for (name, tensor) in params {
            if let Some(address) = give(&mut builder, name, &tensor)? {
                borrowed.push((tensor, address));
            }
        }
        Experts::made(builder.finish().map_err(wrap)?, borrowed)
    }

    fn made(layer: moec::Layer, borrowed: Vec<(Tensor, usize)>) -> Result<Experts> {
        let launch = Launch::new(layer, borrowed)?;
        let (hidden, top_k, dtype) = (launch.hidden(), launch.top_k(), launch.input("input")?);
        Ok(Experts { op: Arc::new(Box::new(Op(launch))), hidden, top_k, dtype })
    }

    /// Each token's weighted sum over its experts: `x[T, H]`, `ids[T, k]` (u32, i32 or i64; one that no expert has is skipped),
    /// `weights[T, k]` (any float type) → `[T, H]`, in the experts' own type.
    ///
    /// # Errors
    /// When shapes or types do not fit, or there are more than `max_tokens` tokens.
    pub fn forward(&self, x: &Tensor, ids: &Tensor, weights: &Tensor) -> Result<Tensor> {
        let x = rows(x, self.hidden, self.dtype)?;
        let n_tokens = x.elem_count() / self.hidden.max(1);
        for (name, tensor) in [("ids", ids), ("weights", weights)] {
            if tensor.dims() != [n_tokens, self.top_k] {
                candle_core::bail!(
                    "{name} are {:?}, but there are {n_tokens} tokens of {}",
                    tensor.shape(),
                    self.top_k
                );
            }
        }
        let ids = match ids.dtype() {
            DType::U32 | DType::I32 => ids.contiguous()?,
            DType::I64 => narrow(ids)?,
            other => candle_core::bail!("ids are u32, i32 or i64, not {other:?}"),
        };
        let weights = weights.to_dtype(DType::F32)?.contiguous()?;
        x.contiguous()?.apply_op3_arc(&ids, &weights, self.op.clone())
    }
}

/// Ids in 32 bits; those that have more are no expert's.
fn narrow(ids: &Tensor) -> Result<Tensor> {
    let wide = ids.flatten_all()?.to_vec1::<i64>()?;
    let narrow: Vec<i32> = wide.into_iter().map(|id| i32::try_from(id).unwrap_or(-1)).collect();
    Tensor::from_vec(narrow, ids.shape(), ids.device())
}

/// Gives a parameter its weight; where it lies, if kernels read it there.
fn give(builder: &mut LayerBuilder, name: &str, tensor: &Tensor) -> Result<Option<usize>> {
    let (guard, layout) = tensor.storage_and_layout();
    let Storage::Cpu(storage) = &*guard else { candle_core::bail!("`{name}` is not in the CPU's memory") };
    let (pointer, elements, dtype) = memory(storage)?;
    let dtype = float_of(dtype)?;
    let axes: Vec<(u64, u64)> =
        layout.dims().iter().zip(layout.stride()).map(|(&n, &stride)| (n as u64, stride as u64)).collect();
    let start = layout.start_offset() * dtype.bytes();
    let extent = MemoryView::extent(dtype, &axes).filter(|&n| start as u64 + n <= (elements * dtype.bytes()) as u64);
    let Some(extent) = extent else { candle_core::bail!("`{name}` ends behind its memory") };
    // SAFETY: checked to lie in the storage, which the guard keeps.
    let bytes = unsafe { std::slice::from_raw_parts(pointer.wrapping_add(start), extent as usize) };
    let view = MemoryView { dtype, axes, bytes };
    let param = builder.param(name).map_err(wrap)?;
    // SAFETY: the launch keeps the tensor, and looks before each run whether its memory is where it was.
    let borrowed = unsafe { builder.set(param, &view, Hold::Borrow) };
    match borrowed {
        Ok(()) => Ok(Some(pointer.addr())),
        Err(d) if d.code == "parameter-not-borrowable" => {
            // SAFETY: nothing is borrowed.
            unsafe { builder.set(param, &view, Hold::Copy) }.map_err(wrap)?;
            Ok(None)
        }
        Err(d) => Err(wrap(d)),
    }
}

struct Sizes {
    n_experts: usize,
    hidden: usize,
    ffn: usize,
    top_k: usize,
}

/// The layer graph of experts alone.
fn graph(dtype: moec::DType, sizes: &Sizes, activation: &str, gated: bool) -> Value {
    let Sizes { n_experts, hidden, ffn, top_k } = *sizes;
    let dtype = dtype.to_string();
    let branches: &[&str] = if gated { &["gate", "up"] } else { &["up"] };
    let product = |name: &str, rows: &str| json!({"name": name, "op": "grouped_linear", "inputs": [rows, "ids", format!("experts.{name}")]});
    let param = |name: &str, n: usize, k: usize| json!({"name": format!("experts.{name}"), "dtype": dtype, "shape": [n_experts, n, k]});
    let input = |name: &str, dtype: &str, width: usize| json!({"name": name, "dtype": dtype, "shape": ["T", width]});
    let mut nodes = vec![
        json!({"name": "ids", "op": "local_ids", "first": 0, "count": n_experts, "inputs": ["topk_ids"]}),
        json!({"name": "rows", "op": "permute", "n_experts": n_experts, "inputs": ["input", "ids"]}),
    ];
    nodes.extend(branches.iter().map(|branch| product(branch, "rows")));
    nodes.extend([
        json!({"name": "act", "op": "activate", "activation": activation, "inputs": branches}),
        product("down", "act"),
        json!({"name": "slots", "op": "unpermute", "n_experts": n_experts, "inputs": ["down", "ids"]}),
        json!({"name": "output", "op": "weighted_sum", "inputs": ["slots", "topk_weights"]}),
    ]);
    let mut params: Vec<Value> = branches.iter().map(|branch| param(branch, ffn, hidden)).collect();
    params.push(param("down", hidden, ffn));
    json!({
        "moec_graph": 1,
        "name": "experts",
        "inputs": [input("input", &dtype, hidden), input("topk_ids", "i32", top_k), input("topk_weights", "f32", top_k)],
        "params": params,
        "nodes": nodes,
        "outputs": [{"name": "output", "value": "output"}],
    })
}

struct Op(Launch);

impl CustomOp3 for Op {
    fn name(&self) -> &'static str {
        "moec"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        ids: &CpuStorage,
        ids_layout: &Layout,
        weights: &CpuStorage,
        weights_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let n_tokens = x_layout.shape().elem_count() / x_layout.dim(D::Minus1)?.max(1);
        let inputs = [(x, x_layout), (ids, ids_layout), (weights, weights_layout)];
        Ok((self.0.run(n_tokens, &inputs)?, x_layout.shape().clone()))
    }
}
