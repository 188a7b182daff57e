//! A weight that a host gives: floats, or codes and scales; in the host's memory or the GPU's.

use crate::builder::{Hold, not_borrowable};
use crate::plan::WeightSlot;
use moec_bundle::manifest::ParamInfo;
use moec_ir::abi::Strides;
use moec_ir::diag::Diagnostic;
use moec_ir::tile::{Buffer, Role};
use moec_weights::{CodedView, MemoryView, Part};

/// What is given for a parameter.
pub(crate) enum Given<'v> {
    Floats(&'v MemoryView<'v>),
    Codes(&'v CodedView<'v>),
}

/// Number of the memory that a part lies in.
fn number(part: Part) -> usize {
    match part {
        Part::Codes => 0,
        Part::Scales => 1,
    }
}

impl<'v> Given<'v> {
    /// The memory that stands for a slot where it lies, by its number, and how it lies; `None` when it is to be copied.
    ///
    /// # Errors
    /// `parameter-not-borrowable`.
    pub fn lent(
        &self,
        param: &ParamInfo,
        slot: &WeightSlot,
        hold: Hold,
    ) -> Result<Option<(usize, Strides)>, Diagnostic> {
        if hold == Hold::Copy {
            return Ok(None);
        }
        let found = match self {
            Given::Floats(view) => view.in_place(&param.param(), &slot.buffer, slot.strided).map(|s| (0, s)),
            Given::Codes(view) => {
                view.in_place(&param.param(), &slot.buffer, slot.strided).map(|(part, s)| (number(part), s))
            }
        };
        match found {
            Ok(found) => Ok(Some(found)),
            Err(why) if hold == Hold::Borrow && !slot.is_scale() => Err(not_borrowable(param, &why)),
            Err(_) => Ok(None),
        }
    }

    /// The memory with this number.
    pub fn bytes(&self, number: usize) -> &'v [u8] {
        match self {
            Given::Floats(view) => view.bytes,
            Given::Codes(view) => view.part(if number == 0 { Part::Codes } else { Part::Scales }).bytes,
        }
    }

    /// Writes what a buffer holds of it.
    pub fn pack(&self, param: &ParamInfo, buffer: &Buffer, dst: &mut [u8]) -> Result<(), Diagnostic> {
        match self {
            Given::Floats(view) => view.pack(&param.param(), buffer, dst),
            Given::Codes(view) => view.pack(&param.param(), buffer, dst),
        }
    }
}

impl WeightSlot {
    /// Whether it is small beside its codes, so that a copy of it counts for nothing.
    pub fn is_scale(&self) -> bool {
        matches!(self.buffer.role, Role::WeightScale(_) | Role::WeightGlobal(_))
    }
}

/// What was brought from a GPU.
#[cfg(feature = "cuda")]
pub(crate) type Brought = [Vec<u8>; 2];

#[cfg(feature = "cuda")]
impl Given<'_> {
    /// Copies what lies on the GPU, at these addresses, to the host.
    ///
    /// # Safety
    /// The addresses are of memory of the device that holds what the views describe.
    pub unsafe fn bring(&self, device: &crate::cuda::CudaDevice, addresses: [u64; 2]) -> Result<Brought, Diagnostic> {
        let views: &[&MemoryView<'_>] = match self {
            Given::Floats(view) => &[view],
            Given::Codes(view) => &[view.part(Part::Codes), view.part(Part::Scales)],
        };
        let mut out = [Vec::new(), Vec::new()];
        for ((view, address), out) in views.iter().zip(addresses).zip(&mut out) {
            let bytes = MemoryView::extent(view.dtype, &view.axes).unwrap_or(0);
            *out = vec![0; bytes as usize];
            // SAFETY: the caller's contract.
            unsafe { device.read(address, out)? };
        }
        Ok(out)
    }

    /// Does something with the same weight in the host's memory.
    pub fn with(
        &self,
        param: &ParamInfo,
        brought: &Brought,
        what: impl FnOnce(&Given<'_>) -> Result<(), Diagnostic>,
    ) -> Result<(), Diagnostic> {
        match self {
            Given::Floats(view) => {
                what(&Given::Floats(&MemoryView { dtype: view.dtype, axes: view.axes.clone(), bytes: &brought[0] }))
            }
            Given::Codes(view) => {
                let view = view.in_memory(&brought[0], &brought[1]);
                view.check_scales(&param.param())?;
                what(&Given::Codes(&view))
            }
        }
    }
}
