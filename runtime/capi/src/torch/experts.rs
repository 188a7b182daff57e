//! Experts whose weights are the operator's operands: a layer is prepared for them when they are met for the first time.
//!
//! What is prepared is found by where the weights lie. An address alone would not do: it is given out again, and what lies there
//! is written to. So Python has it forgotten when PyTorch frees the memory, and weights that were copied are asked for
//! their version at every call.

use super::run;
use super::shim::{Shim, Tensor, Value, coded};
use crate::layer::Created;
use moec_ir::DType;
use moec_ir::diag::Diagnostic;
use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

/// Where the weights lie, number by number, and how the experts are built.
type Key = (Vec<i64>, String);

struct Prepared {
    layer: Arc<Created>,
    handle: usize,
    max_tokens: u64,
    /// The weights that were copied, with their versions then.
    copied: Vec<(usize, i64)>,
}

static PREPARED: RwLock<BTreeMap<Key, Prepared>> = RwLock::new(BTreeMap::new());

/// Forgets what was prepared as this layer.
pub fn forget(handle: usize) {
    PREPARED.write().unwrap_or_else(PoisonError::into_inner).retain(|_, p| p.handle != handle);
}

/// Runs the operator on its five arguments.
///
/// # Errors
/// Those of a launch, and what keeps the experts from being prepared.
pub fn run(shim: &'static Shim, stack: &[Value]) -> Result<Value, Diagnostic> {
    let [x, ids, weights] = [0, 1, 2].map(|i| shim.tensor(stack[i]));
    let params = shim.tensors(stack[3]);
    let form = shim.text(stack[4]);
    let params = params?;
    let (n_tokens, top_k) = (length(&x, 0)?, length(&ids, 1)?);
    let key = (place(&params, top_k)?, form);
    let layer = match find(&key, &params, n_tokens)? {
        Some(layer) => layer,
        None => prepare(shim, &key, &params, &ids, n_tokens)?,
    };
    // Weights of tokens in bf16 or f16 lose nothing in f32, which is what the layer takes.
    let weights = if weights.view()?.dtype.bits == 16 { weights.to(DType::F32)? } else { weights };
    let output = run::run(shim, &layer, vec![x, ids, weights])?.into_iter().next();
    output
        .map(Tensor::into_value)
        .ok_or_else(|| Diagnostic::internal("internal-error", "experts should have an output"))
}

fn length(tensor: &Tensor, axis: usize) -> Result<i64, Diagnostic> {
    let view = tensor.view()?;
    match view.ndim {
        // SAFETY: PyTorch's tensors have as many lengths as axes.
        2 => Ok(unsafe { view.shape.add(axis).read() }),
        n => Err(Diagnostic::input("input-shape-mismatch", format!("experts take tensors of two axes; one has {n}"))),
    }
}

/// All that makes two lists of tensors the same memory in the same layout.
fn place(params: &[Tensor], top_k: i64) -> Result<Vec<i64>, Diagnostic> {
    let mut place = Vec::with_capacity(16 * params.len());
    for param in params {
        let t = param.view()?;
        let dtype = i64::from(t.dtype.code) << 8 | i64::from(t.dtype.bits);
        place.extend([t.data as i64, dtype, i64::from(t.ndim)]);
        for i in 0..t.ndim as usize {
            // SAFETY: PyTorch's tensors have as many lengths and strides as axes.
            place.extend(unsafe { [t.shape.add(i).read(), t.strides.add(i).read()] });
        }
    }
    place.push(top_k);
    Ok(place)
}

fn find(key: &Key, params: &[Tensor], n_tokens: i64) -> Result<Option<Arc<Created>>, Diagnostic> {
    let prepared = PREPARED.read().unwrap_or_else(PoisonError::into_inner);
    let Some(found) = prepared.get(key).filter(|p| n_tokens as u64 <= p.max_tokens) else {
        return Ok(None);
    };
    for (i, version) in &found.copied {
        if params[*i].version()? != *version {
            return Ok(None);
        }
    }
    Ok(Some(found.layer.clone()))
}

/// Has Python prepare a layer: it has the compiler.
fn prepare(
    shim: &'static Shim,
    key: &Key,
    params: &[Tensor],
    ids: &Tensor,
    n_tokens: i64,
) -> Result<Arc<Created>, Diagnostic> {
    let again = params.iter().map(Tensor::again).collect::<Result<Vec<_>, _>>()?;
    // (ids, params, form, n_tokens) -> three numbers, or an error in lines: PyTorch's ABI gives results of one type right only.
    let mut stack = [ids.again()?.into_value(), shim.list(again)?, shim.string(&key.1)?, n_tokens as Value];
    shim.call_any(c"moec::experts_prepare", c"", &mut stack)?;
    let answer = shim.text(stack[0]);
    if let Some((code, rest)) = answer.split_once('\n') {
        return Err(coded(code, rest));
    }
    let numbers: Vec<u64> = answer.split(' ').filter_map(|n| n.parse().ok()).collect();
    let &[handle, watched, max_tokens] = &numbers[..] else {
        return Err(Diagnostic::internal("internal-error", format!("moec::experts_prepare gave `{answer}`")));
    };
    let handle = handle as usize;
    let mut copied = Vec::new();
    for (i, param) in params.iter().enumerate() {
        if watched >> i & 1 == 1 {
            copied.push((i, param.version()?));
        }
    }
    let layer = crate::layer::get(handle)?;
    let prepared = Prepared { layer: layer.clone(), handle, max_tokens, copied };
    PREPARED.write().unwrap_or_else(PoisonError::into_inner).insert(key.clone(), prepared);
    Ok(layer)
}
