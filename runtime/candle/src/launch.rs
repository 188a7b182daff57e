//! A layer of moec over memory of candle.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, DType, Error, Layout, Result, Storage, Tensor};
use std::sync::Mutex;

/// A layer on the CPU, with the weights of candle's that it reads where they lie.
pub(crate) struct Launch {
    layer: moec::Layer,
    /// Tensors whose memory kernels read, and where that was when the layer was made.
    borrowed: Vec<(Tensor, usize)>,
    /// Which of the outputs is the result; others are written and forgotten.
    output: usize,
    /// Workspaces that no launch uses.
    idle: Mutex<Vec<Vec<u64>>>,
}

impl Launch {
    pub(crate) fn new(layer: moec::Layer, borrowed: Vec<(Tensor, usize)>) -> Result<Launch> {
        let outputs = &layer.manifest().outputs;
        let output = outputs.iter().position(|o| o.name == "output");
        let output = output.ok_or_else(|| Error::msg("the layer has no output called `output`"))?;
        Ok(Launch { layer, borrowed, output, idle: Mutex::default() })
    }

    /// Number and candle's type of the input called `name`.
    pub(crate) fn input(&self, name: &str) -> Result<DType> {
        let found = self.layer.manifest().inputs.iter().find(|i| i.name == name);
        dtype_of(found.ok_or_else(|| Error::msg(format!("the layer has no input called `{name}`")))?.ty.dtype)
    }

    /// Width of the input called `input`.
    pub(crate) fn hidden(&self) -> usize {
        let input = self.layer.manifest().inputs.iter().find(|i| i.name == "input");
        input.and_then(|i| i.ty.shape.last()?.fixed()).unwrap_or(0) as usize
    }

    /// Experts of each token, for a layer that takes them as an input.
    pub(crate) fn top_k(&self) -> usize {
        let ids = self.layer.manifest().inputs.iter().find(|i| i.name == "topk_ids");
        ids.and_then(|i| i.ty.shape.last()?.fixed()).unwrap_or(0) as usize
    }

    /// Runs the layer on inputs in its own order; each is checked against the layer.
    pub(crate) fn run(&self, n_tokens: usize, inputs: &[(&CpuStorage, &Layout)]) -> Result<CpuStorage> {
        let manifest = self.layer.manifest();
        let n = n_tokens as u64;
        if inputs.len() != manifest.inputs.len() {
            candle_core::bail!("the layer takes {} inputs, not {}", manifest.inputs.len(), inputs.len());
        }
        let mut pointers = Vec::with_capacity(inputs.len());
        for ((storage, layout), info) in inputs.iter().zip(&manifest.inputs) {
            let (start, end) =
                layout.contiguous_offsets().ok_or_else(|| Error::RequiresContiguous { op: "moec" }.bt())?;
            let (pointer, elements, dtype) = memory(storage)?;
            // Ids that candle counts without a sign have the same bits: what would be negative is no expert either way.
            let same = dtype_of(info.ty.dtype)? == dtype || (info.ty.dtype == moec::DType::I32 && dtype == DType::U32);
            let fits = end <= elements && ((end - start) * dtype.size_in_bytes()) as u64 == info.ty.bytes(n);
            if !same || !fits {
                let shape = layout.dims();
                candle_core::bail!("`{}` is {dtype:?}{shape:?}, but the layer has {}", info.name, info.ty);
            }
            pointers.push(pointer.wrapping_add(start * dtype.size_in_bytes()));
        }
        // Held until the kernels have run: nobody writes to the weights, or replaces them, meanwhile.
        let guards: Vec<_> = self.borrowed.iter().map(|(tensor, _)| tensor.storage_and_layout().0).collect();
        for (guard, (_, address)) in guards.iter().zip(&self.borrowed) {
            let Storage::Cpu(storage) = &**guard else { candle_core::bail!("weights have left the CPU") };
            if memory(storage)?.0.addr() != *address {
                candle_core::bail!("memory of weights was replaced after the layer was made: make it anew");
            }
        }
        let result = &manifest.outputs[self.output].ty;
        let elements = (result.bytes(n) / result.dtype.bytes() as u64) as usize;
        let mut made = zeros(dtype_of(result.dtype)?, elements)?;
        let mut rest = Vec::new();
        let mut out_pointers = Vec::with_capacity(manifest.outputs.len());
        for (i, info) in manifest.outputs.iter().enumerate() {
            if i == self.output {
                out_pointers.push(memory_mut(&mut made)?);
                continue;
            }
            let mut unused = vec![0u64; (info.ty.bytes(n) as usize).div_ceil(8)];
            out_pointers.push(unused.as_mut_ptr().cast());
            rest.push(unused);
        }
        let cpu = self.layer.cpu().ok_or_else(|| Error::msg("the layer is not on the CPU"))?;
        let bytes = cpu.launch_bytes(n).map_err(wrap)?;
        let mut workspace = self.idle.lock().ok().and_then(|mut idle| idle.pop()).unwrap_or_default();
        if workspace.len() * 8 < bytes as usize {
            workspace = vec![0; (bytes as usize).div_ceil(8)];
        }
        // SAFETY: each input was checked to hold as many bytes as the layer reads for `n` tokens, each output was made with as many
        // as it writes, of memory of its own; the workspace is nobody else's until it is given back; borrowed weights are where
        // they were, and kept from being written to.
        unsafe {
            let at = workspace.as_mut_ptr().cast();
            cpu.launch_in(at, workspace.len() as u64 * 8, n, &pointers, &out_pointers).map_err(wrap)?;
        }
        if let Ok(mut idle) = self.idle.lock() {
            idle.push(workspace);
        }
        Ok(made)
    }
}

/// `x` when it is `[.., H]` in the layer's type.
pub(crate) fn rows(x: &Tensor, hidden: usize, dtype: DType) -> Result<&Tensor> {
    if x.dims().last() != Some(&hidden) || x.dtype() != dtype {
        candle_core::bail!("x is {:?}{:?}, but the layer takes {dtype:?}[.., {hidden}]", x.dtype(), x.dims());
    }
    Ok(x)
}

/// moec's error as candle's.
pub(crate) fn wrap(error: impl Into<moec::Error>) -> Error {
    Error::wrap(error.into())
}

/// candle's name of a type.
pub(crate) fn dtype_of(dtype: moec::DType) -> Result<DType> {
    Ok(match dtype {
        moec::DType::F64 => DType::F64,
        moec::DType::F32 => DType::F32,
        moec::DType::F16 => DType::F16,
        moec::DType::BF16 => DType::BF16,
        moec::DType::I64 => DType::I64,
        moec::DType::I32 => DType::I32,
        moec::DType::U8 => DType::U8,
    })
}

/// moec's name of a float type of candle.
///
/// # Errors
/// When moec does not compute in it.
pub(crate) fn float_of(dtype: DType) -> Result<moec::DType> {
    Ok(match dtype {
        DType::F32 => moec::DType::F32,
        DType::F16 => moec::DType::F16,
        DType::BF16 => moec::DType::BF16,
        other => candle_core::bail!("moec computes in f32, bf16 and f16, not in {other:?}"),
    })
}

/// Where a storage begins, how many elements it has, and of what type.
pub(crate) fn memory(storage: &CpuStorage) -> Result<(*const u8, usize, DType)> {
    let dtype = storage.dtype();
    let (pointer, elements) = match storage {
        CpuStorage::U8(v) => (v.as_ptr().cast(), v.len()),
        CpuStorage::U32(v) => (v.as_ptr().cast(), v.len()),
        CpuStorage::I32(v) => (v.as_ptr().cast(), v.len()),
        CpuStorage::I64(v) => (v.as_ptr().cast(), v.len()),
        CpuStorage::BF16(v) => (v.as_ptr().cast(), v.len()),
        CpuStorage::F16(v) => (v.as_ptr().cast(), v.len()),
        CpuStorage::F32(v) => (v.as_ptr().cast(), v.len()),
        CpuStorage::F64(v) => (v.as_ptr().cast(), v.len()),
        _ => candle_core::bail!("moec does not have elements of type {dtype:?}"),
    };
    Ok((pointer, elements, dtype))
}

fn memory_mut(storage: &mut CpuStorage) -> Result<*mut u8> {
    Ok(match storage {
        CpuStorage::BF16(v) => v.as_mut_ptr().cast(),
        CpuStorage::F16(v) => v.as_mut_ptr().cast(),
        CpuStorage::F32(v) => v.as_mut_ptr().cast(),
        other => candle_core::bail!("moec gives no results of type {:?}", other.dtype()),
    })
}

fn zeros(dtype: DType, elements: usize) -> Result<CpuStorage> {
    Ok(match dtype {
        DType::BF16 => CpuStorage::BF16(vec![Default::default(); elements]),
        DType::F16 => CpuStorage::F16(vec![Default::default(); elements]),
        DType::F32 => CpuStorage::F32(vec![0.0; elements]),
        other => candle_core::bail!("moec gives no results of type {other:?}"),
    })
}
