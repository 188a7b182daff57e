//! The plan of a layer's weights: which tensors become which parameter, checked whole before anything is copied.

use crate::config::{Published, Source};
use crate::decode::{Elements, ScaleFault, check_scales, either_sign};
use crate::formats::bad_scale;
use crate::input_scale;
use crate::pack::{self, parts, read_once};
use crate::read::checkpoint::Checkpoint;
use crate::resolve::{From, Piece, resolve};
use crate::whole;
use moec_ir::DType;
use moec_ir::Tensor;
use moec_ir::diag::Diagnostic;
use moec_ir::graph::Param;
use moec_ir::tile::Buffer;
use moec_ir::weights::WeightSource;

/// Where every weight of a layer comes from.
#[derive(Debug)]
pub struct Plan<'a> {
    checkpoint: &'a Checkpoint,
    published: Option<Published>,
    weights: Vec<Planned<'a>>,
}

/// Where one weight comes from.
#[derive(Debug)]
pub(crate) struct Planned<'a> {
    pub param: Param,
    pub content: Content<'a>,
}

#[derive(Debug)]
pub(crate) enum Content<'a> {
    /// One tensor, or one for each expert.
    Pieces(Vec<Piece<'a>>),
    /// A number that was found beside others.
    Number(f32),
}

/// A weight of a plan, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedWeight {
    /// The parameter.
    pub param: String,
    /// Its type in the graph.
    pub ty: String,
    /// Its tensors by the form in which they are stored; more than one where experts are stored differently.
    pub forms: Vec<StoredForm>,
    /// Bytes that will be read.
    pub bytes: u64,
}

/// Tensors that are stored in one form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredForm {
    /// `BF16[64, 2048]`, `e2m1 by e8m0(1, 32) [64, 2048]`.
    pub stored: String,
    /// Their names in the checkpoint, without those of scales and zero points.
    pub tensors: Vec<String>,
}

impl<'a> Plan<'a> {
    /// Finds the tensors of `params` and checks names, types, shapes, schemes and global scales; no other data is read.
    ///
    /// `model` is what the config of the model says of its weights. A config beside the weights that speaks of them counts before
    /// it, for it came with them.
    ///
    /// # Errors
    /// All that were found: `tensor-missing`, `tensor-shape-mismatch`, `weight-steps-mismatch`, `weight-type-unsupported`,
    /// `weight-layout-ambiguous`; `quantised-checkpoint`, `quantisation-key-unknown`, `quantisation-not-described`,
    /// `quantisation-contradicts-config`, `quantised-form-ambiguous`, `quantised-scale-missing`, `quantised-scale-mismatch`,
    /// `quantised-scale-invalid`, `quantised-zero-point-missing`; those of [`Published::beside`] and [`Checkpoint::tensor`].
    pub fn new(
        checkpoint: &'a Checkpoint,
        model: Option<&Published>,
        params: &[Param],
    ) -> Result<Plan<'a>, Vec<Diagnostic>> {
        let published = published(checkpoint, model).map_err(|d| vec![d])?;
        if let Some(refusal) = published.as_ref().and_then(|p| p.refusal.clone()) {
            return Err(vec![refusal]);
        }
        let from = From { checkpoint, published: published.as_ref() };
        let numbers: Vec<bool> =
            params.iter().map(|p| matches!(p.source, WeightSource::LargestInputScale(_))).collect();
        let tensors: Vec<Param> =
            params.iter().zip(&numbers).filter(|(_, number)| !**number).map(|(p, _)| p.clone()).collect();
        let mut resolved = resolve(from, &tensors).into_iter();
        let (mut weights, mut errors) = (Vec::new(), Vec::new());
        for param in params {
            let content = match &param.source {
                WeightSource::LargestInputScale(of) => input_scale::largest(checkpoint, of).map(Content::Number),
                WeightSource::Tensor { .. } | WeightSource::PerExpert { .. } | WeightSource::FirstOf(_) => resolved
                    .next()
                    .unwrap_or_else(|| Err(crate::resolve::missing(checkpoint, param)))
                    .map(Content::Pieces),
            };
            match content {
                Ok(content) => weights.push(Planned { param: param.clone(), content }),
                // Gate and up of one tensor have one error.
                Err(d) if errors.contains(&d) => {}
                Err(d) => errors.push(d),
            }
        }
        if !errors.is_empty() {
            return Err(errors);
        }
        let plan = Plan { checkpoint, published, weights };
        let pieces: Vec<&Piece<'_>> = plan.pieces().collect();
        whole::check(checkpoint, plan.published.as_ref(), &pieces).map_err(|d| vec![d])?;
        Ok(plan)
    }

    /// Looks at every scale of the weights. Pages that have been looked at are let go.
    ///
    /// # Errors
    /// `quantised-scale-invalid` for one that is zero over codes that are not, negative, infinite or not a number.
    pub fn check_scales(&self) -> Result<(), Diagnostic> {
        let pieces: Vec<&Piece<'_>> = self.coded().collect();
        let check = |either| {
            pieces.chunks(read_once::TENSORS as usize).try_for_each(|some| {
                let checked = some.iter().try_for_each(|p| check_scales(&p.elements, either));
                self.checkpoint.release();
                checked
            })
        };
        let checked = match check(false) {
            Err(fault) if fault.value < 0.0 && either_sign(self.pieces().map(|p| &p.elements)) => check(true),
            checked => checked,
        };
        checked.map_err(|ScaleFault { tensor, index, value }| {
            bad_scale(&tensor, index, value, &self.checkpoint.path().display().to_string())
        })
    }

    /// Whether any weight is stored as codes with scales.
    pub fn has_scales(&self) -> bool {
        self.coded().next().is_some()
    }

    fn coded(&self) -> impl Iterator<Item = &Piece<'a>> {
        self.pieces().filter(|p| !matches!(p.elements, Elements::Plain(..)))
    }

    fn pieces(&self) -> impl Iterator<Item = &Piece<'a>> {
        self.weights.iter().flat_map(|w| match &w.content {
            Content::Pieces(pieces) => &pieces[..],
            Content::Number(_) => &[],
        })
    }

    fn weight(&self, name: &str) -> Result<&Planned<'a>, Diagnostic> {
        self.weights
            .iter()
            .find(|w| w.param.name == name)
            .ok_or_else(|| Diagnostic::internal("internal-error", format!("the weight `{name}` is not in the plan")))
    }

    /// Fills `dst` with the parameter called `name`, in the layout of `buffer`.
    ///
    /// Quantised tensors are dequantised in f32; a buffer of codes, scales or global scales gets what the checkpoint has of them,
    /// bit for bit. Elements are rounded to the parameter's type and then to the buffer's (to nearest even; widening is exact).
    /// Columns from `cols` to `pitch` become zero. Every byte of `dst` is written. Runs on all threads of the rayon pool.
    ///
    /// # Errors
    /// `stored-format-mismatch`, `scale-not-exact`, `weight-out-of-range`, `buffer-shape-mismatch`.
    pub fn pack(&self, name: &str, buffer: &Buffer, dst: &mut [u8]) -> Result<(), Diagnostic> {
        let Planned { param, content } = self.weight(name)?;
        let release = || self.checkpoint.release();
        let packed = match content {
            Content::Number(number) => {
                pack::pack_tensor(&Tensor::float(DType::F32, &[1], vec![*number]), param, buffer, dst)
            }
            Content::Pieces(pieces) if parts::is_part(buffer) => {
                let from = format!("`{}`", self.checkpoint.path().display());
                parts::pack(&from, param, pieces, buffer, dst, &release)
            }
            Content::Pieces(pieces) => pack::pack_pieces(param, pieces, buffer, dst, &release),
        };
        // What is left, and what the system has mapped around it.
        self.checkpoint.release();
        packed
    }

    /// The checkpoint's own memory as the buffer, when it needs no packing: one tensor of the wanted type, whole, in order,
    /// without padding, at an address that kernels accept.
    ///
    /// # Errors
    /// `buffer-shape-mismatch`.
    pub fn borrow(&self, name: &str, buffer: &Buffer) -> Result<Option<&'a [u8]>, Diagnostic> {
        let Planned { param, content } = self.weight(name)?;
        match content {
            Content::Pieces(pieces) if !parts::is_part(buffer) => pack::borrow_pieces(param, pieces, buffer),
            Content::Pieces(_) | Content::Number(_) => Ok(None),
        }
    }

    /// Words that tell what is said of these weights from what could be said: for names of cached files.
    pub fn identity(&self) -> String {
        self.published.as_ref().map_or_else(String::new, |p| format!("{} {}", p.source.place, p.source.config))
    }

    /// Which format the config names, if it names one.
    pub fn published(&self) -> Option<&Published> {
        self.published.as_ref()
    }

    /// The plan for people, a row for each parameter.
    pub fn rows(&self) -> Vec<PlannedWeight> {
        self.weights.iter().map(row).collect()
    }
}

fn row(w: &Planned<'_>) -> PlannedWeight {
    let (forms, bytes) = match &w.content {
        Content::Number(n) => {
            let stored = format!("{n}, the largest static scale beside its matrices");
            (vec![StoredForm { stored, tensors: Vec::new() }], 4)
        }
        Content::Pieces(pieces) => {
            let mut forms: Vec<StoredForm> = Vec::new();
            for p in pieces {
                match forms.iter_mut().find(|f| f.stored == p.stored) {
                    Some(form) => form.tensors.push(p.tensor.clone()),
                    None => forms.push(StoredForm { stored: p.stored.clone(), tensors: vec![p.tensor.clone()] }),
                }
            }
            let bytes = pieces.iter().map(|p| match &p.elements {
                Elements::Plain(dtype, _) => p.view.shape().iter().product::<u64>() * dtype.bytes() as u64,
                Elements::Blocks(b) => b.codes.0.len() as u64 + b.scales.0.len() as u64,
                Elements::Integers(i) => i.codes.len() as u64 + i.scales.len() as u64,
                Elements::Ggml(q) => q.data.len() as u64,
            });
            (forms, bytes.sum())
        }
    };
    PlannedWeight { param: w.param.name.clone(), ty: w.param.ty.to_string(), forms, bytes }
}

/// What counts: the config beside the weights, when it speaks of them, else the model's.
fn published(checkpoint: &Checkpoint, model: Option<&Published>) -> Result<Option<Published>, Diagnostic> {
    // The types of a GGUF file say all; a config beside it is about another form of the weights.
    if checkpoint.is_gguf() {
        return Ok(None);
    }
    let beside = Published::beside(checkpoint.folder(), DType::BF16)?;
    if let Some((own, model)) = beside.as_ref().zip(model) {
        own.check_agrees(model, "the config beside the weights", "the model's config")?;
    }
    Ok(beside.or_else(|| model.cloned()))
}

/// For each parameter that is marked as stored in codes, whether a checkpoint holds it so, and its codes can be copied. Also where
/// tensors are missing or do not fit, which loading tells better.
pub fn holds_codes(checkpoint: &Checkpoint, model: Option<&Published>, params: &[Param]) -> Vec<bool> {
    let Ok(published) = published(checkpoint, model) else { return vec![true; params.len()] };
    let from = From { checkpoint, published: published.as_ref() };
    let resolved = resolve(from, params);
    let one = |(param, pieces): (&Param, Result<Vec<Piece<'_>>, Diagnostic>)| match pieces {
        Ok(pieces) => parts::holds_codes(param, &pieces),
        Err(_) => true,
    };
    params.iter().zip(resolved).map(one).collect()
}

/// As [`Plan::pack`], of one parameter alone, with what the config beside the weights says.
///
/// # Errors
/// Those of [`Plan::new`], the first of them, [`Plan::check_scales`] and [`Plan::pack`].
pub fn pack_weight(checkpoint: &Checkpoint, param: &Param, buffer: &Buffer, dst: &mut [u8]) -> Result<(), Diagnostic> {
    let plan = Plan::new(checkpoint, None, std::slice::from_ref(param)).map_err(first)?;
    plan.check_scales()?;
    plan.pack(&param.name, buffer, dst)
}

/// The first of several errors, which says how many there are.
pub fn first(mut errors: Vec<Diagnostic>) -> Diagnostic {
    let more = errors.len().saturating_sub(1);
    if errors.is_empty() {
        return Diagnostic::internal("internal-error", "a plan failed without an error");
    }
    let d = errors.swap_remove(0);
    if more == 0 {
        d
    } else {
        d.note(format!("{more} more weights cannot be read; `moec check MODEL --weights` lists them"))
    }
}

impl Source {
    /// What a bundle keeps of the config.
    pub fn to_value(&self) -> serde_json::Value {
        serde_json::to_value(self).unwrap_or_default()
    }

    /// The inverse of [`Source::to_value`].
    ///
    /// # Errors
    /// `bundle-invalid` for a value that is none.
    pub fn from_value(value: &serde_json::Value) -> Result<Source, Diagnostic> {
        serde_json::from_value(value.clone()).map_err(|e| {
            Diagnostic::input("bundle-invalid", format!("what the bundle says of its weights cannot be read: {e}"))
        })
    }
}
