//! The matrix products that compiled CPU layers call through [`CpuKernels`].
//!
//! The one room of the CPU backend with instructions of particular processors. [`table`] chooses by what the processor
//! has: AVX-512 with or without BF16, AVX2, NEON, or portable code. An algorithm is written once, over vectors (`machine.rs`), so
//! all give the same bits; what they are is defined by [`Products`].
//!
//! A job is done in one of two ways, which do not differ in bits either: with few rows, codes become floats in registers
//! and are multiplied at once; with many, a block of a panel of columns becomes floats in cache, and all rows are
//! multiplied with it, in tiles that stay in registers. Where rows and weights are bf16 and the processor multiplies pairs,
//! `pairs.rs` does both.
#![warn(missing_docs)]
#![cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "no other processor multiplies pairs"))]
// Loops over small arrays of vectors are unrolled; iterators over them are not, without inlining.
#![allow(clippy::needless_range_loop)]

mod arrange;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod entries;
mod few;
mod integers;
mod machine;
mod many;
#[cfg(target_arch = "aarch64")]
mod neon;
#[cfg(target_arch = "x86_64")]
mod pairs;
mod portable;
mod products;
mod readers;
mod round;
mod scratch;
mod values;

use integers::Integers;
use moec_ir::abi::{CpuKernels, Encoding, Products};
use portable::Portable;

/// Whether this processor's products of pairs are as documented.
#[cfg(target_arch = "x86_64")]
static ADDS: std::sync::OnceLock<bool> = std::sync::OnceLock::new();

/// Instructions that kernels can be compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Instructions {
    /// What every processor has.
    Portable,
    /// AVX2, FMA and F16C.
    Avx2,
    /// AVX-512 F, BW, DQ, VL, VBMI and VNNI beside those.
    Avx512,
    /// AVX-512 BF16 beside those.
    Avx512Bf16,
    /// NEON, of 64-bit Arm.
    Neon,
}

impl Instructions {
    /// What this processor has, the best last. All give the same bits: one that multiplies pairs in another way than documented
    /// counts as one that does not.
    pub fn here() -> Vec<Instructions> {
        let mut found = vec![Instructions::Portable];
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = std::arch::is_x86_feature_detected!("avx2")
                && std::arch::is_x86_feature_detected!("fma")
                && std::arch::is_x86_feature_detected!("f16c");
            let avx512 = std::arch::is_x86_feature_detected!("avx512f")
                && std::arch::is_x86_feature_detected!("avx512bw")
                && std::arch::is_x86_feature_detected!("avx512dq")
                && std::arch::is_x86_feature_detected!("avx512vl")
                && std::arch::is_x86_feature_detected!("avx512vbmi")
                && std::arch::is_x86_feature_detected!("avx512vnni");
            found.extend(avx2.then_some(Instructions::Avx2));
            // SAFETY: asked only where the processor has all of these.
            let adds = || *ADDS.get_or_init(|| unsafe { avx512::bf16::adds_as_documented() });
            let bf16 = std::arch::is_x86_feature_detected!("avx512bf16") && avx2 && avx512 && adds();
            found.extend((avx2 && avx512).then_some(Instructions::Avx512));
            found.extend(bf16.then_some(Instructions::Avx512Bf16));
        }
        #[cfg(target_arch = "aarch64")]
        found.push(Instructions::Neon);
        found
    }
}

/// The functions that this processor runs fastest.
pub fn table() -> CpuKernels {
    with(Instructions::here().pop().unwrap_or(Instructions::Portable)).expect("instructions found here should be here")
}

/// The functions for particular instructions; `None` when this processor does not have them.
pub fn with(instructions: Instructions) -> Option<CpuKernels> {
    if !Instructions::here().contains(&instructions) {
        return None;
    }
    Some(match instructions {
        #[cfg(target_arch = "x86_64")]
        Instructions::Avx2 => CpuKernels { arrange: arrange_avx2, products: products_avx2 },
        #[cfg(target_arch = "x86_64")]
        Instructions::Avx512 => CpuKernels { arrange: arrange_avx512, products: products_avx512 },
        #[cfg(target_arch = "x86_64")]
        Instructions::Avx512Bf16 => CpuKernels { arrange: arrange_avx512_bf16, products: products_avx512_bf16 },
        #[cfg(not(target_arch = "x86_64"))]
        Instructions::Avx2 | Instructions::Avx512 | Instructions::Avx512Bf16 => return None,
        #[cfg(target_arch = "aarch64")]
        Instructions::Neon => neon::kernels(),
        #[cfg(not(target_arch = "aarch64"))]
        Instructions::Neon => return None,
        Instructions::Portable => CpuKernels { arrange: arrange_portable, products: products_portable },
    })
}

/// # Safety
/// As [`CpuKernels::arrange`].
#[inline(always)]
unsafe fn arrange_row(from: *const u8, encoding: u64, k: u64, to: *mut f32) {
    // SAFETY: the caller's contract.
    unsafe {
        if Encoding::has_int16_rows(encoding) {
            integers::arrange(from, encoding, k, to);
        } else {
            arrange::arrange(from, encoding, k, to);
        }
    }
}

/// # Safety
/// As [`CpuKernels::products`], and the processor has the machine's features.
#[inline(always)]
unsafe fn products_of<M: Integers>(job: &Products) {
    // SAFETY: the caller's contract.
    unsafe {
        if Encoding::has_int16_rows(job.encoding) {
            integers::products::<M>(job);
        } else {
            products::products::<M>(job);
        }
    }
}

unsafe extern "C" fn arrange_portable(from: *const u8, encoding: u64, k: u64, to: *mut f32) {
    // SAFETY: the contract of `CpuKernels::arrange`.
    unsafe { arrange_row(from, encoding, k, to) }
}

unsafe extern "C" fn products_portable(job: *const Products) {
    // SAFETY: the contract of `CpuKernels::products`.
    unsafe { products_of::<Portable>(&*job) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe extern "C" fn arrange_avx2(from: *const u8, encoding: u64, k: u64, to: *mut f32) {
    // SAFETY: the contract of `CpuKernels::arrange`.
    unsafe { arrange_row(from, encoding, k, to) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe extern "C" fn products_avx2(job: *const Products) {
    // SAFETY: the contract of `CpuKernels::products`; `with` has found AVX2, FMA and F16C.
    unsafe { products_of::<avx2::Avx2>(&*job) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi")]
unsafe extern "C" fn arrange_avx512(from: *const u8, encoding: u64, k: u64, to: *mut f32) {
    // SAFETY: the contract of `CpuKernels::arrange`.
    unsafe { arrange_row(from, encoding, k, to) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi")]
unsafe extern "C" fn products_avx512(job: *const Products) {
    // SAFETY: the contract of `CpuKernels::products`; `with` has found all of these.
    unsafe { products_of::<avx512::Avx512<false>>(&*job) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512bf16")]
unsafe extern "C" fn arrange_avx512_bf16(from: *const u8, encoding: u64, k: u64, to: *mut f32) {
    // SAFETY: the contract of `CpuKernels::arrange`; `with` has found all of these.
    unsafe {
        if Encoding::has_bf16_rows(encoding) {
            pairs::arrange::<avx512::Avx512<true>>(from, k, to.cast());
        } else {
            arrange_avx512(from, encoding, k, to);
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512bf16")]
unsafe extern "C" fn products_avx512_bf16(job: *const Products) {
    // SAFETY: the contract of `CpuKernels::products`; `with` has found all of these.
    unsafe {
        if Encoding::has_bf16_rows((*job).encoding) {
            pairs::products::<avx512::Avx512<true>>(&*job);
        } else {
            products_avx512(job);
        }
    }
}
