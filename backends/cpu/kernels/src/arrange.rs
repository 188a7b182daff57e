//! Rows in the order of lanes.

use crate::readers::{GROUP, place};
use crate::round::widen_f16;
use moec_ir::DType;
use moec_ir::abi::{Encoding, WeightCode};

/// [`moec_ir::abi::CpuKernels::arrange`].
///
/// # Safety
/// `from` holds `k` elements, and `to` is for those and the rest of the last group.
#[inline(always)]
pub(crate) unsafe fn arrange(from: *const u8, encoding: u64, k: u64, to: *mut f32) {
    // SAFETY: the caller's contract.
    unsafe { of_elements(from, encoding, Lanes { k: k as usize, to }) }
}

/// Something that is made of a row, of whatever type its elements are.
pub(crate) trait OfRow {
    /// Makes it; inlined.
    ///
    /// # Safety
    /// As said where it is made; `element` takes numbers below the length of the row.
    unsafe fn make(&self, element: impl Fn(usize) -> f32);
}

/// Makes something of the row at `from`, whose elements `encoding` says.
///
/// # Safety
/// The row is as long as `what` wants, whose own contract holds.
#[inline(always)]
pub(crate) unsafe fn of_elements(from: *const u8, encoding: u64, what: impl OfRow) {
    // SAFETY: the caller's contract.
    unsafe {
        match Encoding::decode(encoding) {
            Some(WeightCode::Floats(DType::BF16)) => {
                what.make(|i| f32::from_bits(u32::from(from.cast::<u16>().add(i).read_unaligned()) << 16));
            }
            Some(WeightCode::Floats(DType::F16)) => {
                what.make(|i| widen_f16(from.cast::<u16>().add(i).read_unaligned()));
            }
            Some(WeightCode::Floats(_) | WeightCode::Codes { .. }) | None => {
                what.make(|i| from.cast::<f32>().add(i).read_unaligned());
            }
        }
    }
}

/// A row of floats in the order of lanes.
struct Lanes {
    k: usize,
    to: *mut f32,
}

impl OfRow for Lanes {
    #[inline(always)]
    unsafe fn make(&self, element: impl Fn(usize) -> f32) {
        let Lanes { k, to } = *self;
        for g in 0..k / GROUP {
            for turn in 0..8 {
                for lane in 0..8 {
                    let i = g * GROUP + turn / 2 * 8 + (1 - turn % 2) + lane % 4 * 2 + lane / 4 * 32;
                    // SAFETY: the caller's contract.
                    unsafe { *to.add(g * GROUP + turn * 8 + lane) = element(i) };
                }
            }
        }
        let whole = k / GROUP * GROUP;
        if whole < k {
            for i in 0..GROUP {
                let v = if whole + i < k { element(whole + i) } else { 0.0 };
                // SAFETY: the caller's contract.
                unsafe { *to.add(whole + place(i)) = v };
            }
        }
    }
}
