//! Where a layer's weights come from when it is loaded.

use crate::random_codes::RandomCodes;
use crate::selected::{FoundExperts, SelectedExperts};
use crate::weight_cache::CachedWeights;
use moec_bundle::Manifest;
use moec_bundle::manifest::ParamInfo;
use moec_ir::diag::Diagnostic;
use moec_ir::tile::Buffer;
use moec_ir::weights::WeightSource;
use moec_ir::{DType, Tensor};
use moec_weights::{Checkpoint, Plan, Published, Source, first, is_part, pack_tensor};
use rayon::prelude::*;
use std::sync::Arc;

/// A function that writes a parameter's packed buffer.
pub type Fill<'a> = dyn Fn(&ParamInfo, &Buffer, &mut [u8]) -> Result<(), Diagnostic> + Send + Sync + 'a;

/// What keeps mapped memory mapped.
pub(crate) type Keep = Arc<dyn std::any::Any + Send + Sync>;

/// Mapped memory, and what keeps it.
pub(crate) type Borrowed = (*const u8, Keep);

/// Told of a weight, and of the buffer that it is packed into, before that begins, on the thread that loads.
pub type Watch<'a> = dyn Fn(&ParamInfo, &Buffer) + Send + Sync + 'a;

/// The weights of a layer. They may be opened on one thread and loaded on others.
pub enum Weights<'a> {
    /// Tensors of a checkpoint, found by each parameter's own recipe.
    Checkpoint(Arc<Checkpoint>),
    /// The same, whose packed form is kept on disk.
    Cached(CachedWeights),
    /// Host tensors in the graph's layout, by the parameter's name.
    Tensors(&'a [(String, Tensor)]),
    /// Whatever the function writes; every byte is zero before.
    Fill(&'a Fill<'a>),
    /// Numbers that look random and are the same on every machine: see [`random_tensor`].
    Random {
        /// Another seed gives other numbers.
        seed: u64,
    },
    /// Others, of which somebody is told before each is packed.
    Watched(&'a Weights<'a>, &'a Watch<'a>),
    /// Those of some experts of a whole layer.
    Experts(SelectedExperts<'a>),
}

impl Weights<'_> {
    /// The weights of a checkpoint.
    pub fn from_checkpoint(checkpoint: Checkpoint) -> Weights<'static> {
        Weights::Checkpoint(Arc::new(checkpoint))
    }

    /// Finds every weight of a layer and checks it, before anything is packed.
    ///
    /// # Errors
    /// Those of [`Plan::new`] and [`Plan::check_scales`], the first of them; `checkpoint-layer-mismatch`.
    pub(crate) fn find(&self, manifest: &Manifest) -> Result<FoundWeights<'_>, Diagnostic> {
        let mut inner = self;
        while let Weights::Watched(weights, _) = inner {
            inner = weights;
        }
        let checkpoint = match inner {
            Weights::Experts(of) => {
                let experts = Some(of.find(manifest)?);
                return Ok(FoundWeights { weights: self, inner, plan: None, experts });
            }
            Weights::Checkpoint(c) => c,
            Weights::Cached(cached) => cached.checkpoint(),
            Weights::Tensors(_) | Weights::Fill(_) | Weights::Random { .. } | Weights::Watched(..) => {
                return Ok(FoundWeights { weights: self, inner, plan: None, experts: None });
            }
        };
        crate::same_layer::check(checkpoint, manifest)?;
        let source = manifest.layer.published_weights.as_ref().map(Source::from_value).transpose()?;
        let model = source.map(|s| Published::read(s, DType::BF16)).transpose()?;
        let params: Vec<_> = manifest.params.iter().map(ParamInfo::param).collect();
        let plan = Plan::new(checkpoint, model.as_ref(), &params).map_err(first)?;
        match inner {
            Weights::Cached(cached) => cached.check_scales(&plan, &manifest.params)?,
            _ => plan.check_scales()?,
        }
        Ok(FoundWeights { weights: self, inner, plan: Some((checkpoint, plan)), experts: None })
    }

    /// Whether each expert's weights have a place of their own, so that they can be taken one by one.
    pub(crate) fn has_places(&self) -> bool {
        match self {
            Weights::Checkpoint(_) => true,
            // Cached are whole parameters.
            Weights::Cached(_) | Weights::Tensors(_) | Weights::Fill(_) | Weights::Random { .. } => false,
            Weights::Watched(of, _) => of.has_places(),
            Weights::Experts(of) => of.weights.has_places(),
        }
    }
}

/// The weights of a layer, found and checked.
pub(crate) struct FoundWeights<'a> {
    /// As they were given, with those who watch.
    weights: &'a Weights<'a>,
    /// Where they come from.
    inner: &'a Weights<'a>,
    /// The plan of those that come from a checkpoint.
    plan: Option<(&'a Arc<Checkpoint>, Plan<'a>)>,
    /// Those of some experts.
    experts: Option<FoundExperts<'a>>,
}

impl FoundWeights<'_> {
    /// Tells whoever watches that a parameter comes next.
    pub(crate) fn begin(&self, param: &ParamInfo, buffer: &Buffer) {
        let mut at = self.weights;
        while let Weights::Watched(weights, watch) = at {
            watch(param, buffer);
            at = weights;
        }
    }

    /// Writes the packed form of a parameter.
    pub(crate) fn pack(&self, param: &ParamInfo, buffer: &Buffer, dst: &mut [u8]) -> Result<(), Diagnostic> {
        if let Some(experts) = &self.experts {
            return experts.pack(param, buffer, dst);
        }
        match (self.inner, &self.plan) {
            (Weights::Cached(cached), Some((_, plan))) => {
                // Checks the layout as well: `dst` is as long as the buffer.
                let packed = cached.packed(plan, param, buffer)?;
                dst.copy_from_slice(packed.bytes());
                Ok(())
            }
            (_, Some((_, plan))) => plan.pack(&param.name, buffer, dst),
            (Weights::Tensors(list), None) => {
                let found = list.iter().find(|(name, _)| *name == param.name);
                let (_, tensor) = found.ok_or_else(|| {
                    Diagnostic::input(
                        "tensor-missing",
                        format!("no tensor was given for the weight `{}`, {}", param.name, param.ty),
                    )
                })?;
                pack_tensor(tensor, &param.param(), buffer, dst)
            }
            (Weights::Fill(fill), None) => fill(param, buffer, dst),
            (Weights::Random { seed }, None) => fill_random(*seed, param, buffer, dst),
            (Weights::Checkpoint(_) | Weights::Cached(_) | Weights::Watched(..) | Weights::Experts(_), None) => {
                Err(Diagnostic::internal("internal-error", "weights of a checkpoint were not looked for"))
            }
        }
    }

    /// Memory of a file that can stand for the packed form, with what keeps it mapped: the checkpoint's own, or the
    /// cache's.
    pub(crate) fn borrow(&self, param: &ParamInfo, buffer: &Buffer) -> Result<Option<Borrowed>, Diagnostic> {
        let Some((checkpoint, plan)) = &self.plan else { return Ok(None) };
        if let Some(bytes) = plan.borrow(&param.name, buffer)? {
            return Ok(Some((bytes.as_ptr(), (*checkpoint).clone() as Keep)));
        }
        let Weights::Cached(cached) = self.inner else { return Ok(None) };
        let packed = cached.packed(plan, param, buffer)?;
        Ok(Some((packed.bytes().as_ptr(), Arc::new(packed) as Keep)))
    }
}

/// 64 bits for number `index`. Exact arithmetic only: every machine gives the same.
pub(crate) fn random_bits(key: u64, index: u64) -> u64 {
    // splitmix64. Source: Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators".
    let mut z = key.wrapping_add(index.wrapping_mul(0x9E37_79B9_7F4A_7C15));
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// The static scale of activations with random weights: for rows whose largest magnitude is 4, in NVFP4.
const INPUT_SCALE: f32 = 4.0 / (6.0 * 448.0);

/// The value of element `index` of a random parameter: uniform, of variance `1 / cols`, so that a product of many keeps
/// the size of its input.
fn random_value(key: u64, cols: u64, index: u64) -> f32 {
    let unit = (random_bits(key, index) >> 40) as f32 / (1u32 << 23) as f32 - 1.0;
    unit * (3.0 / cols.max(1) as f32).sqrt()
}

pub(crate) fn random_key(seed: u64, name: &str) -> u64 {
    // FNV-1a over the name, started from the seed.
    name.bytes().fold(0xCBF2_9CE4_8422_2325 ^ seed, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01B3))
}

/// The parameter that [`Weights::Random`] stands for, as a host tensor in the graph's layout: for reference evaluators.
/// A parameter that is published quantised has random codes, whether it lies in memory as codes or as floats. Integer
/// parameters are zero.
///
/// # Panics
/// When the parameter's shape depends on the token count, which a verified graph rules out.
pub fn random_tensor(seed: u64, param: &ParamInfo) -> Tensor {
    let first = param.ty.shape.first().and_then(|d| d.fixed()).unwrap_or(1);
    random_slices(seed, param, &(0..first).collect::<Vec<_>>())
}

/// Of the tensor of [`random_tensor`], those slices along its first axis: the experts that are needed of a stack that is too
/// large to be held.
///
/// # Panics
/// As [`random_tensor`].
pub fn random_slices(seed: u64, param: &ParamInfo, slices: &[u64]) -> Tensor {
    let (name, ty) = (&param.name, &param.ty);
    let axis = |d: &moec_ir::Dim| d.fixed().expect("a parameter should have a fixed shape");
    let mut shape: Vec<usize> = ty.shape.iter().map(|d| axis(d) as usize).collect();
    let of_slice: usize = shape.iter().skip(1).product();
    let cols = shape.last().copied().unwrap_or(1).max(1);
    if let Some(first) = shape.first_mut() {
        *first = slices.len();
    }
    let n: usize = shape.iter().product();
    if !ty.dtype.is_float() {
        return Tensor::int(ty.dtype, &shape, vec![0; n]);
    }
    let (codes, key) = (RandomCodes::of(seed, param), random_key(seed, name));
    let is_input_scale = matches!(param.source, WeightSource::LargestInputScale(_));
    let mut values = vec![0.0; n];
    values.par_chunks_mut(of_slice.max(1)).zip(slices).for_each(|(slice, &i)| {
        let first = i * of_slice as u64;
        for (r, row) in slice.chunks_mut(cols).enumerate() {
            let first = first + (r * cols) as u64;
            match &codes {
                Some(codes) => codes.values(first / cols as u64, row),
                None if is_input_scale => row.fill(INPUT_SCALE),
                None => (first..).zip(row).for_each(|(i, v)| *v = random_value(key, cols as u64, i)),
            }
        }
    });
    Tensor::float(ty.dtype, &shape, values)
}

pub(crate) fn fill_random(seed: u64, param: &ParamInfo, buffer: &Buffer, dst: &mut [u8]) -> Result<(), Diagnostic> {
    let codes = RandomCodes::of(seed, param);
    if let (Some(codes), true) = (&codes, is_part(buffer)) {
        codes.fill_part(buffer, dst);
        return Ok(());
    }
    let (cols, width) = (buffer.cols as usize, buffer.dtype.bytes());
    let pitch = buffer.pitch as usize * width;
    if !param.ty.dtype.is_float() || pitch == 0 {
        dst.fill(0);
        return Ok(());
    }
    let key = random_key(seed, &param.name);
    dst.par_chunks_mut(pitch).enumerate().for_each(|(r, row)| {
        let mut values = vec![0.0; cols];
        match &codes {
            Some(codes) => codes.values(r as u64, &mut values),
            None if matches!(param.source, WeightSource::LargestInputScale(_)) => values.fill(INPUT_SCALE),
            None => {
                let value = |c| random_value(key, cols as u64, (r * cols + c) as u64);
                values.iter_mut().enumerate().for_each(|(c, v)| *v = value(c));
            }
        }
        for (c, out) in row.chunks_exact_mut(width).enumerate() {
            // Padding is zero.
            let value = values.get(c).copied().unwrap_or(0.0);
            let value = buffer.dtype.round(param.ty.dtype.round(value));
            match buffer.dtype {
                // Already rounded: the upper half is all there is.
                DType::BF16 => out.copy_from_slice(&((value.to_bits() >> 16) as u16).to_le_bytes()),
                DType::F16 => out.copy_from_slice(&Tensor::float(DType::F16, &[1], vec![value]).to_bytes()),
                DType::F32 => out.copy_from_slice(&value.to_le_bytes()),
                DType::F64 => out.copy_from_slice(&f64::from(value).to_le_bytes()),
                DType::I32 | DType::I64 | DType::U8 => out.fill(0),
            }
        }
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use moec_ir::shape::{Dim, TensorType};
    use moec_ir::tile::Role;

    #[test]
    fn random_weights_are_the_packed_random_tensor() {
        for (param_type, buffer_type) in
            [(DType::BF16, DType::BF16), (DType::F32, DType::F32), (DType::BF16, DType::F32), (DType::F16, DType::F16)]
        {
            let ty = TensorType::fixed(param_type, &[3, 5, 7]);
            let param = ParamInfo { name: "w".into(), ty: ty.clone(), source: WeightSource::tensor("w"), stored: None };
            let buffer = Buffer {
                name: "w".into(),
                dtype: buffer_type,
                batch: 3,
                rows: Dim::Fixed(5),
                cols: 7,
                pitch: 8,
                role: Role::Weight(0),
            };
            let (mut a, mut b) =
                (vec![0xAA; 3 * 5 * 8 * buffer_type.bytes()], vec![0xBB; 3 * 5 * 8 * buffer_type.bytes()]);
            fill_random(4, &param, &buffer, &mut a).expect("random");
            pack_tensor(&random_tensor(4, &param), &param.param(), &buffer, &mut b).expect("packed");
            assert_eq!(a, b, "{param_type} in {buffer_type}");
            assert_ne!(random_tensor(4, &param), random_tensor(5, &param));
            let other = ParamInfo { name: "v".into(), ..param.clone() };
            assert_ne!(random_tensor(4, &param), random_tensor(4, &other));
        }
    }

    #[test]
    fn random_values_spread_as_promised() {
        let ty = TensorType::fixed(DType::F32, &[1000, 64]);
        let param = ParamInfo { name: "w".into(), ty, source: WeightSource::tensor("w"), stored: None };
        let t = random_tensor(1, &param);
        let n = t.elements() as f64;
        let mean = t.floats().iter().map(|&x| f64::from(x)).sum::<f64>() / n;
        let variance = t.floats().iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>() / n;
        assert!(mean.abs() < 2e-3 && (variance * 64.0 - 1.0).abs() < 0.02, "mean {mean}, variance {variance}");
    }
}
