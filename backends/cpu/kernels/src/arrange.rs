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
    let k = k as usize;
    // SAFETY: the caller's contract.
    unsafe {
        match Encoding::decode(encoding) {
            Some(WeightCode::Floats(DType::BF16)) => {
                rows(k, to, |i| f32::from_bits(u32::from(from.cast::<u16>().add(i).read_unaligned()) << 16));
            }
            Some(WeightCode::Floats(DType::F16)) => {
                rows(k, to, |i| widen_f16(from.cast::<u16>().add(i).read_unaligned()));
            }
            Some(WeightCode::Floats(_) | WeightCode::Codes { .. }) | None => {
                rows(k, to, |i| from.cast::<f32>().add(i).read_unaligned());
            }
        }
    }
}

/// # Safety
/// As [`arrange`].
#[inline(always)]
unsafe fn rows(k: usize, to: *mut f32, element: impl Fn(usize) -> f32) {
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
