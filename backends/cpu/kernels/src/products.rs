//! A job, by what its weights are and how many rows it has.

use crate::entries::{Recipe, SAFE, is_safe_for_e4m3};
use crate::few::few_rows;
use crate::machine::Machine;
use crate::many::{Any, Fill, Read, many_rows};
use crate::readers::{E4m3, Floats, FourBits, LEAST_BLOCK, Source, Words};
use crate::scratch::{MOST_ROWS, Scratch};
use crate::values::{Matrix, byte_scales, factor};
use moec_ir::DType;
use moec_ir::abi::{Products, WeightCode};
use moec_ir::quant::{Code, ScaleCode};

/// Most rows that are multiplied as weights are decoded: above, decoding them again costs more than a panel.
const FEW_ROWS: usize = 3;

/// [`moec_ir::abi::CpuKernels::products`].
///
/// # Safety
/// The job's pointers are valid as [`Products`] says, and the processor has the machine's features.
#[inline(always)]
pub(crate) unsafe fn products<M: Machine>(job: &Products) {
    if job.n_rows == 0 || job.n_columns == 0 {
        return;
    }
    assert!(job.n_rows as usize <= MOST_ROWS, "a job should have at most {MOST_ROWS} rows");
    let scratch = Scratch::new(job.scratch);
    // SAFETY: the caller's contract.
    unsafe {
        let m = Matrix::new(job);
        match m.code {
            WeightCode::Floats(DType::BF16) => run::<M, _>(&m, Words::<false>, scratch),
            WeightCode::Floats(DType::F16) => run::<M, _>(&m, Words::<true>, scratch),
            WeightCode::Floats(_) => run::<M, _>(&m, Floats, scratch),
            WeightCode::Codes { code, scale, round } => codes::<M>(&m, code, scale, round, scratch),
        }
    }
}

/// # Safety
/// As [`products`].
#[inline(always)]
unsafe fn codes<M: Machine>(m: &Matrix, code: Code, scale: ScaleCode, round: DType, scratch: Scratch) {
    let k = m.job.k as usize;
    // One block is one of any length.
    let shift = if m.block >= k { usize::BITS - 1 } else { m.block.trailing_zeros() };
    let is_even = m.block >= k || m.block.is_power_of_two();
    let coarse = is_even && m.block >= LEAST_BLOCK.min(k);
    let fine = m.block == 16 && k > 16;
    // Every value of these codes and powers of two is a bf16.
    let round = if round == DType::F32 && scale == ScaleCode::E8M0 { DType::BF16 } else { round };
    // SAFETY: the caller's contract.
    unsafe {
        match (code, round) {
            (Code::E2M1 | Code::Int4, DType::BF16 | DType::F16) if coarse || fine => {
                let recipe = &Recipe::four_bits(code, round);
                let half = round == DType::F16;
                let table = scratch.table.cast_const();
                match byte_scales(scale) {
                    Some(values) if !half => {
                        let mut factors = [0.0; 256];
                        for (factor, value) in factors.iter_mut().zip(values) {
                            let product = value * m.global;
                            *factor = if product.is_nan() { f32::NAN } else { product };
                        }
                        recipe.entries::<M>(factors.as_ptr(), 256, scratch.table);
                        if fine {
                            let source = FourBits::<true, true, false> { recipe, scale, shift, table };
                            run::<M, _>(m, source, scratch);
                        } else {
                            let source = FourBits::<true, false, false> { recipe, scale, shift, table };
                            run::<M, _>(m, source, scratch);
                        }
                    }
                    Some(_) | None if !coarse => many_rows::<M>(m, &Any, scratch),
                    Some(_) | None if half => {
                        let source = FourBits::<false, false, true> { recipe, scale, shift, table };
                        run::<M, _>(m, source, scratch);
                    }
                    Some(_) | None => {
                        let source = FourBits::<false, false, false> { recipe, scale, shift, table };
                        run::<M, _>(m, source, scratch);
                    }
                }
            }
            (Code::E4M3, DType::BF16) if coarse && factors_are_safe(m, scale) => {
                run::<M, _>(m, E4m3 { recipes: &Recipe::e4m3(), scale, shift }, scratch);
            }
            (Code::E4M3 | Code::E5M2 | Code::E2M1 | Code::Int4, _) => many_rows::<M>(m, &Any, scratch),
        }
    }
}

/// Whether [`is_safe_for_e4m3`] for every factor of the job.
///
/// # Safety
/// As [`products`].
unsafe fn factors_are_safe(m: &Matrix, scale: ScaleCode) -> bool {
    let blocks = (m.job.k as usize).div_ceil(m.block);
    let mut last = std::ptr::null();
    (0..m.job.n_columns as usize).all(|column| {
        let scales = m.scales(column);
        if scales == last {
            return true;
        }
        last = scales;
        if scale == ScaleCode::E8M0 {
            // SAFETY: the caller's contract. Such a scale is its factor's exponent.
            let bytes = unsafe { std::slice::from_raw_parts(scales, blocks) };
            return m.global == 1.0 && bytes.iter().fold(true, |all, &b| all & SAFE.contains(&u32::from(b)));
        }
        // SAFETY: the caller's contract.
        (0..blocks).all(|block| is_safe_for_e4m3(unsafe { factor(scale, scales, block, m.global) }))
    })
}

/// # Safety
/// As [`products`].
#[inline(always)]
unsafe fn run<M: Machine, S: Source<M>>(m: &Matrix, source: S, scratch: Scratch)
where
    Read<S>: Fill<M>,
{
    // SAFETY: the caller's contract.
    unsafe {
        match m.job.n_rows as usize {
            1 => few_rows::<M, S, 1, 4>(m, &source, 0, scratch),
            2 if M::COLUMNS == 2 => few_rows::<M, S, 2, 4>(m, &source, 0, scratch),
            2 => few_rows::<M, S, 2, 2>(m, &source, 0, scratch),
            FEW_ROWS if M::COLUMNS == 2 => few_rows::<M, S, FEW_ROWS, 4>(m, &source, 0, scratch),
            FEW_ROWS => few_rows::<M, S, FEW_ROWS, 2>(m, &source, 0, scratch),
            _ => many_rows::<M>(m, &Read(source), scratch),
        }
    }
}
