//! Weights of a layer with some of the experts, in an order that is known when it is loaded.

use crate::weights::{FoundWeights, Weights};
use moec_bundle::Manifest;
use moec_bundle::manifest::ParamInfo;
use moec_ir::Dim;
use moec_ir::diag::Diagnostic;
use moec_ir::graph::{Param, slice_param};
use moec_ir::tile::{Buffer, Role};

/// Which experts of a whole layer the local experts of a layer are.
#[derive(Clone, Copy)]
pub struct SelectedExperts<'a> {
    /// The weights of the whole layer.
    pub weights: &'a Weights<'a>,
    /// The parameters with an axis of experts, outermost, as the whole layer has them.
    pub stacks: &'a [Param],
    /// The expert of each local expert. Those behind the last have no weights: they are zero.
    pub experts: &'a [u32],
}

/// The same, found and checked.
pub(crate) struct FoundExperts<'a> {
    /// Parameters without an axis of experts.
    others: Box<FoundWeights<'a>>,
    stacks: Vec<ParamInfo>,
    found: Found<'a>,
    experts: &'a [u32],
}

enum Found<'a> {
    /// For each local expert, the weights of that expert alone.
    One(Vec<FoundWeights<'a>>),
    /// The weights of all experts, which cannot be taken one by one: numbers that depend on their place.
    All(Box<FoundWeights<'a>>),
}

impl SelectedExperts<'_> {
    /// # Errors
    /// As [`Weights::find`]; `argument-invalid` for an expert that the whole layer has not.
    pub(crate) fn find(&self, manifest: &Manifest) -> Result<FoundExperts<'_>, Diagnostic> {
        let is_stack = |p: &&ParamInfo| self.stacks.iter().any(|s| s.name == p.name);
        let with = |params: Vec<ParamInfo>| Manifest { params, ..manifest.clone() };
        let others = with(manifest.params.iter().filter(|p| !is_stack(p)).cloned().collect());
        let mut stacks = Vec::new();
        for local in manifest.params.iter().filter(is_stack) {
            // As codes or floats, as the layer was compiled.
            let whole = self.stacks.iter().filter(|s| s.name == local.name);
            stacks.extend(whole.map(|s| ParamInfo { stored: local.stored, ..info(s) }));
        }
        let most = stacks.iter().map(count).min().unwrap_or(u64::MAX);
        if let Some(&wrong) = self.experts.iter().find(|&&e| u64::from(e) >= most) {
            let what = format!("a local expert is to be expert {wrong}, and the layer has {most}");
            return Err(Diagnostic::input("argument-invalid", what));
        }
        let found = if self.weights.has_places() {
            let one = |&e: &u32| {
                let range = u64::from(e)..u64::from(e) + 1;
                let of = |p: &ParamInfo| info(&slice_param(&p.param(), 0, &range));
                self.weights.find(&with(stacks.iter().map(of).collect()))
            };
            Found::One(self.experts.iter().map(one).collect::<Result<_, _>>()?)
        } else {
            Found::All(Box::new(self.weights.find(&with(stacks.clone()))?))
        };
        let others = Box::new(self.weights.find(&others)?);
        Ok(FoundExperts { others, stacks, found, experts: self.experts })
    }
}

impl FoundExperts<'_> {
    /// Writes the packed form of a parameter.
    pub(crate) fn pack(&self, param: &ParamInfo, buffer: &Buffer, dst: &mut [u8]) -> Result<(), Diagnostic> {
        let Some(whole) = self.stacks.iter().find(|p| p.name == param.name) else {
            return self.others.pack(param, buffer, dst);
        };
        let bytes = bytes_of_one(param, buffer);
        dst.chunks_mut(bytes.max(1)).skip(self.experts.len()).for_each(|none| none.fill(0));
        match &self.found {
            Found::One(found) => {
                let one = with_experts(param, buffer, 1);
                for ((found, &e), dst) in found.iter().zip(self.experts).zip(dst.chunks_mut(bytes)) {
                    let of = slice_param(&whole.param(), 0, &(u64::from(e)..u64::from(e) + 1));
                    found.pack(&info(&of), &one, dst)?;
                }
            }
            Found::All(found) => {
                let all = with_experts(param, buffer, count(whole));
                let mut memory = vec![0; all.bytes(0) as usize];
                found.pack(whole, &all, &mut memory)?;
                for (&e, dst) in self.experts.iter().zip(dst.chunks_mut(bytes)) {
                    dst.copy_from_slice(&memory[e as usize * bytes..][..dst.len()]);
                }
            }
        }
        Ok(())
    }
}

/// Experts of a stack.
fn count(stack: &ParamInfo) -> u64 {
    stack.ty.shape.first().and_then(|d| d.fixed()).unwrap_or(0)
}

fn info(param: &Param) -> ParamInfo {
    let Param { name, ty, source, stored } = param.clone();
    ParamInfo { name, ty, source, stored }
}

/// Where the axis of experts is in a buffer: matrices, rows of a bias, or columns of global scales.
enum Axis {
    Batch,
    Rows,
    Cols,
}

fn axis(param: &ParamInfo, buffer: &Buffer) -> Axis {
    match (&buffer.role, param.ty.shape.len()) {
        (Role::WeightGlobal(_), _) | (_, 0 | 1) => Axis::Cols,
        (_, 2) => Axis::Rows,
        _ => Axis::Batch,
    }
}

/// Bytes from one expert to the next.
fn bytes_of_one(param: &ParamInfo, buffer: &Buffer) -> usize {
    let element = buffer.dtype.bytes() as u64;
    let rows = buffer.rows.fixed().unwrap_or(1);
    let bytes = match axis(param, buffer) {
        Axis::Batch => rows * buffer.pitch * element,
        Axis::Rows => buffer.pitch * element,
        Axis::Cols => element,
    };
    bytes as usize
}

/// The packed form of one expert of a parameter with an axis of experts: where two programs have it alike, the bytes of each expert are
/// the same, however many experts each has room for.
pub fn of_one_expert(param: &ParamInfo, buffer: &Buffer) -> Buffer {
    with_experts(param, buffer, 1)
}

/// The buffer with `n` experts.
fn with_experts(param: &ParamInfo, buffer: &Buffer, n: u64) -> Buffer {
    let mut out = buffer.clone();
    match axis(param, buffer) {
        Axis::Batch => out.batch = n,
        Axis::Rows => out.rows = Dim::Fixed(n),
        Axis::Cols => (out.cols, out.pitch) = (n, n),
    }
    out
}
