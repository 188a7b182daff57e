//! Arranged rows of bf16: groups of 64 words, four turns of eight pairs each, then the least exponent of every block.

use super::{Pairs, exponent};
use crate::readers::{BLOCK, GROUP};
use moec_ir::abi::arranged_len;

/// An arranged row.
#[derive(Clone, Copy)]
pub(super) struct Row(*const u8);

impl Row {
    /// Row `r` of those at `rows`, of `k` elements.
    #[inline(always)]
    pub fn of(rows: *const f32, k: u64, r: usize) -> Row {
        Row(rows.cast::<u8>().wrapping_add(r * arranged_len(k) as usize * size_of::<f32>()))
    }

    /// The words of the turns from element `first` on, which begins a group.
    #[inline(always)]
    pub fn words(self, first: usize) -> *const u8 {
        self.0.wrapping_add(first * 2)
    }

    /// The least exponent of block `block`.
    ///
    /// # Safety
    /// The row has been arranged, and has such a block.
    #[inline(always)]
    pub unsafe fn exponent(self, k: u64, block: usize) -> u32 {
        // SAFETY: the caller's contract.
        unsafe { u32::from(*self.0.cast::<u16>().add(k.next_multiple_of(GROUP as u64) as usize + block)) }
    }
}

/// [`moec_ir::abi::CpuKernels::arrange`] of bf16.
///
/// # Safety
/// `from` holds `k` elements, `to` is for those and the rest of the last group as f32, and the processor has the machine's
/// features.
#[inline(always)]
pub(crate) unsafe fn arrange<M: Pairs>(from: *const u8, k: u64, to: *mut u8) {
    let (n, len) = (k as usize, (k as usize).next_multiple_of(GROUP));
    // SAFETY: the caller's contract. Words and exponents take half of the room for floats and less.
    unsafe {
        let exponents = to.cast::<u16>().add(len);
        for (block, first) in (0..len).step_by(BLOCK).enumerate() {
            let mut least = M::splat(0xff);
            for first in (first..len.min(first + BLOCK)).step_by(GROUP) {
                let to = to.add(first * 2);
                let group = if first + GROUP <= n {
                    M::arrange_group(from.add(first * 2), to)
                } else {
                    let mut words = [0u8; GROUP * 2];
                    std::ptr::copy_nonoverlapping(from.add(first * 2), words.as_mut_ptr(), (n - first) * 2);
                    M::arrange_group(words.as_ptr(), to)
                };
                least = M::lesser(least, group);
            }
            *exponents.add(block) = exponent(M::least_word(least)) as u16;
        }
    }
}
