//! Where a layer's weights come from when it is loaded.

use moec_bundle::manifest::ParamInfo;
use moec_bundle::{Checkpoint, borrow_weight, pack_tensor, pack_weight};
use moec_ir::Tensor;
use moec_ir::diag::Diagnostic;
use moec_ir::tile::Buffer;
use std::sync::Arc;

/// A function that writes a parameter's packed buffer.
pub type Fill<'a> = dyn Fn(&ParamInfo, &Buffer, &mut [u8]) -> Result<(), Diagnostic> + 'a;

/// The weights of a layer.
pub enum Weights<'a> {
    /// Tensors of a checkpoint, found by each parameter's own recipe.
    Checkpoint(Arc<Checkpoint>),
    /// Host tensors in the graph's layout, by the parameter's name.
    Tensors(&'a [(String, Tensor)]),
    /// Whatever the function writes; every byte is zero before.
    Fill(&'a Fill<'a>),
}

impl Weights<'_> {
    /// The weights of a checkpoint.
    pub fn from_checkpoint(checkpoint: Checkpoint) -> Weights<'static> {
        Weights::Checkpoint(Arc::new(checkpoint))
    }

    /// Writes the packed form of a parameter.
    pub(crate) fn pack(&self, param: &ParamInfo, buffer: &Buffer, dst: &mut [u8]) -> Result<(), Diagnostic> {
        match self {
            Weights::Checkpoint(c) => pack_weight(c, &param.param(), buffer, dst),
            Weights::Tensors(list) => {
                let found = list.iter().find(|(name, _)| *name == param.name);
                let (_, tensor) = found.ok_or_else(|| {
                    Diagnostic::input(
                        "tensor-missing",
                        format!("no tensor was given for the weight `{}`, {}", param.name, param.ty),
                    )
                })?;
                pack_tensor(tensor, &param.param(), buffer, dst)
            }
            Weights::Fill(fill) => fill(param, buffer, dst),
        }
    }

    /// The checkpoint's own memory, where it can stand for the packed form, with what keeps it mapped.
    pub(crate) fn borrow(
        &self,
        param: &ParamInfo,
        buffer: &Buffer,
    ) -> Result<Option<(*const u8, Arc<Checkpoint>)>, Diagnostic> {
        let Weights::Checkpoint(c) = self else { return Ok(None) };
        Ok(borrow_weight(c, &param.param(), buffer)?.map(|bytes| (bytes.as_ptr(), c.clone())))
    }
}
