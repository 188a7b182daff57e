//! Reads safetensors and follows weight sources, in the plainest way.

use moec_ir::tensor::Data;
use moec_ir::weights::{WeightSource, WeightStep};
use moec_ir::{DType, Tensor};
use std::collections::BTreeMap;
use std::path::Path;

/// The tensors of one file.
pub struct Tensors(BTreeMap<String, Tensor>);

impl Tensors {
    pub fn open(path: &Path) -> Tensors {
        let bytes = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let mut out = BTreeMap::new();
        for (name, view) in file.tensors() {
            let dtype = match view.dtype() {
                safetensors::Dtype::F32 => DType::F32,
                safetensors::Dtype::BF16 => DType::BF16,
                safetensors::Dtype::F16 => DType::F16,
                safetensors::Dtype::I64 => DType::I64,
                safetensors::Dtype::I32 => DType::I32,
                _ => continue,
            };
            out.insert(
                name,
                Tensor::from_bytes(dtype, view.shape(), view.data()).expect("length should fit the shape"),
            );
        }
        Tensors(out)
    }

    pub fn get(&self, name: &str) -> Option<Tensor> {
        self.0.get(name).cloned()
    }

    /// The tensor that `source` describes, when it has (or can be given) the shape.
    pub fn resolve(&self, source: &WeightSource, shape: &[usize]) -> Result<Tensor, String> {
        match source {
            WeightSource::Tensor { names, steps } => {
                let name =
                    names.iter().find(|n| self.0.contains_key(*n)).ok_or_else(|| format!("none of {names:?}"))?;
                steps.iter().try_fold(self.0[name].clone(), |t, s| apply(s, &t))
            }
            WeightSource::PerExpert { names, first, count, steps } => {
                let at = |template: &str, e: u64| template.replace("{e}", &e.to_string());
                let template = names
                    .iter()
                    .find(|n| self.0.contains_key(&at(n, *first)))
                    .ok_or_else(|| format!("none of {names:?}"))?;
                let mut parts = Vec::new();
                for e in *first..*first + *count {
                    let t = self.0.get(&at(template, e)).ok_or_else(|| format!("no {}", at(template, e)))?;
                    parts.push(steps.iter().try_fold(t.clone(), |t, s| apply(s, &t))?);
                }
                let mut stacked = vec![parts.len()];
                stacked.extend(&parts[0].shape);
                let values = parts.iter().flat_map(|p| p.floats().to_vec()).collect();
                Ok(Tensor::float(parts[0].dtype, &stacked, values))
            }
            WeightSource::FirstOf(sources) => {
                let mut errors = Vec::new();
                for s in sources {
                    match self.resolve(s, shape) {
                        Ok(t) if t.shape == shape => return Ok(t),
                        Ok(t) => errors.push(format!("shape {:?}", t.shape)),
                        Err(e) => errors.push(e),
                    }
                }
                Err(errors.join("; "))
            }
            WeightSource::LargestInputScale(_) => Err("a scale of activations is no weight".to_string()),
        }
    }
}

fn apply(step: &WeightStep, t: &Tensor) -> Result<Tensor, String> {
    let Data::Float(values) = &t.data else { return Err("an integer tensor".to_string()) };
    match step {
        WeightStep::Reshape { shape } => {
            let shape: Vec<usize> = shape.iter().map(|&n| n as usize).collect();
            if shape.iter().product::<usize>() != values.len() {
                return Err(format!("{:?} cannot be read as {shape:?}", t.shape));
            }
            Ok(Tensor::float(t.dtype, &shape, values.clone()))
        }
        WeightStep::Transpose => {
            let rank = t.shape.len();
            if rank < 2 {
                return Err(format!("{:?} cannot be transposed", t.shape));
            }
            let (rows, cols) = (t.shape[rank - 2], t.shape[rank - 1]);
            let mut out = Vec::with_capacity(values.len());
            for matrix in values.chunks((rows * cols).max(1)) {
                for c in 0..cols {
                    for r in 0..rows {
                        out.push(matrix[r * cols + c]);
                    }
                }
            }
            let mut shape = t.shape.clone();
            shape.swap(rank - 2, rank - 1);
            Ok(Tensor::float(t.dtype, &shape, out))
        }
        WeightStep::Slice { axis, start, step, len, .. } => {
            let axis = *axis as usize;
            let extent = *t.shape.get(axis).ok_or("no such axis")?;
            let kept: Vec<usize> = (0..*len).map(|i| (start + i * step) as usize).collect();
            if kept.iter().any(|&i| i >= extent) {
                return Err(format!("axis {axis} of {:?} is too short", t.shape));
            }
            let inner: usize = t.shape[axis + 1..].iter().product();
            let outer: usize = t.shape[..axis].iter().product();
            let mut out = Vec::new();
            for o in 0..outer {
                for &i in &kept {
                    let at = (o * extent + i) * inner;
                    out.extend_from_slice(&values[at..at + inner]);
                }
            }
            let mut shape = t.shape.clone();
            shape[axis] = kept.len();
            Ok(Tensor::float(t.dtype, &shape, out))
        }
    }
}
