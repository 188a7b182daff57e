//! A job, by what its weights are and how many rows it has.

use crate::entries::{E2M1_BY_E8M0, E4M3_LEAST, Entries, INT4_BY_E8M0, Least, Recipe, SAFE, is_safe_for_e4m3};
use crate::few::few_rows;
use crate::machine::{Machine, Task};
use crate::many::{Any, Fill, Read, many_rows};
use crate::readers::{
    E4m3, Floats, FourBits, GROUP, LEAST_BLOCK, MadeFourBits, Source, TabledE4m3, WideE4m3, WordSource, Words,
    exponent_of_byte,
};
use crate::scratch::{MOST_ROWS, REST, Scratch};
use crate::values::{Matrix, byte_scales, factor};
use moec_ir::DType;
use moec_ir::abi::{Products, WeightCode};
use moec_ir::quant::{Code, ScaleCode};
use std::marker::PhantomData;

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
            WeightCode::Codes { code, scale, round } => codes::<M, InFloats>(&m, code, scale, round, scratch),
        }
    }
}

/// How jobs with codes are done.
pub(crate) trait Way<M: Machine> {
    /// With a source that was found for them.
    ///
    /// # Safety
    /// As [`products`].
    unsafe fn words<S: WordSource<M>>(m: &Matrix, source: S, scratch: Scratch);

    /// One value at a time.
    ///
    /// # Safety
    /// As [`products`].
    unsafe fn any(m: &Matrix, scratch: Scratch);
}

/// # Safety
/// As [`products`].
#[inline(always)]
pub(crate) unsafe fn codes<M: Machine, W: Way<M>>(
    m: &Matrix,
    code: Code,
    scale: ScaleCode,
    round: DType,
    scratch: Scratch,
) {
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
                let least_exponent = 0;
                match byte_scales(scale) {
                    Some(values) if !half => {
                        let (table, least_exponent) = by_bytes::<M>(m, code, scale, recipe, values, scratch);
                        if fine {
                            let source = FourBits::<true, 4, false> { recipe, scale, shift, table, least_exponent };
                            W::words(m, source, scratch);
                        } else if M::WORD_ENTRIES && shift == 5 {
                            let source = FourBits::<true, 5, false> { recipe, scale, shift, table, least_exponent };
                            W::words(m, source, scratch);
                        } else {
                            let source = FourBits::<true, 0, false> { recipe, scale, shift, table, least_exponent };
                            W::words(m, source, scratch);
                        }
                    }
                    Some(_) | None if !coarse => W::any(m, scratch),
                    Some(_) | None if half => {
                        let table = std::ptr::null();
                        let source = FourBits::<false, 0, true> { recipe, scale, shift, table, least_exponent };
                        W::words(m, source, scratch);
                    }
                    Some(_) | None if M::WORD_ENTRIES && shift == 5 => {
                        W::words(m, MadeFourBits::<5> { recipe, scale, shift }, scratch)
                    }
                    Some(_) | None => W::words(m, MadeFourBits::<0> { recipe, scale, shift }, scratch),
                }
            }
            (Code::E4M3, DType::BF16) if coarse => {
                if M::E4M3_TABLES && shift >= GROUP.trailing_zeros() {
                    let room = std::slice::from_raw_parts_mut(scratch.rest, REST);
                    if let Some(source) = TabledE4m3::new::<M>(m, scale, shift, room) {
                        return W::words(m, source, scratch);
                    }
                }
                let recipes = &Recipe::e4m3();
                let least_exponent = safe_factors(m, scale).map(|least| least.exponent(E4M3_LEAST));
                match least_exponent {
                    Some(least_exponent) if shift >= GROUP.trailing_zeros() => {
                        W::words(m, WideE4m3 { recipes, scale, shift, least_exponent }, scratch);
                    }
                    Some(least_exponent) => W::words(m, E4m3 { recipes, scale, shift, least_exponent }, scratch),
                    None => W::any(m, scratch),
                }
            }
            (Code::E4M3 | Code::E5M2 | Code::E2M1 | Code::Int4 | Code::Int16, _) => W::any(m, scratch),
        }
    }
}

/// The entries of codes of four bits for every byte of a scale, and a bound of the exponents of the job's values.
///
/// # Safety
/// As [`products`].
#[inline(always)]
unsafe fn by_bytes<M: Machine>(
    m: &Matrix,
    code: Code,
    scale: ScaleCode,
    recipe: &Recipe,
    values: &[f32; 256],
    scratch: Scratch,
) -> (*const Entries, u32) {
    if scale == ScaleCode::E8M0 && m.global == 1.0 {
        // SAFETY: the caller's contract: there are such scales.
        let least = unsafe { least_scale::<M>(m) };
        let entries = if code == Code::Int4 { &INT4_BY_E8M0 } else { &E2M1_BY_E8M0 };
        return (entries[usize::from(M::WORD_ENTRIES)].as_ptr(), exponent_of_byte(least, recipe));
    }
    let mut factors = [0.0; 256];
    for (factor, value) in factors.iter_mut().zip(values) {
        let product = value * m.global;
        *factor = if product.is_nan() { f32::NAN } else { product };
    }
    // SAFETY: the caller's contract.
    unsafe { recipe.entries::<M>(factors.as_ptr(), 256, scratch.table) };
    let mut least = Least::ZEROS;
    factors.iter().for_each(|&factor| least.add(factor));
    (scratch.table, least.exponent(recipe.least_value()))
}

/// The least of the job's scales of one byte.
///
/// # Safety
/// As [`products`].
#[inline(always)]
unsafe fn least_scale<M: Machine>(m: &Matrix) -> u8 {
    let blocks = (m.job.k as usize).div_ceil(m.block);
    let n_columns = m.job.n_columns as usize;
    // SAFETY: the caller's contract.
    unsafe {
        if m.job.block_rows == 1 && m.job.scales_pitch as usize == blocks {
            return M::least_byte(m.scales(0), n_columns * blocks);
        }
        (0..n_columns).fold(u8::MAX, |least, column| least.min(M::least_byte(m.scales(column), blocks)))
    }
}

/// Calls a function with the scales of every column of the job, once for neighbours that share theirs, until one gives
/// false; returns whether none did.
fn all_scales(m: &Matrix, mut good: impl FnMut(*const u8) -> bool) -> bool {
    let mut last = std::ptr::null();
    (0..m.job.n_columns as usize).all(|column| {
        let scales = m.scales(column);
        let is_new = scales != last;
        last = scales;
        !is_new || good(scales)
    })
}

/// The least factor of the job when all are as [`is_safe_for_e4m3`] asks.
///
/// # Safety
/// As [`products`].
unsafe fn safe_factors(m: &Matrix, scale: ScaleCode) -> Option<Least> {
    let blocks = (m.job.k as usize).div_ceil(m.block);
    let mut least = Least::ZEROS;
    let is_safe = all_scales(m, |scales| {
        if scale == ScaleCode::E8M0 {
            // SAFETY: the caller's contract. Such a scale is its factor's exponent.
            let bytes = unsafe { std::slice::from_raw_parts(scales, blocks) };
            let (low, high) = bytes.iter().fold((u8::MAX, 0), |(low, high), &b| (low.min(b), high.max(b)));
            least.add(f32::from_bits(u32::from(low) << 23));
            return m.global == 1.0 && SAFE.contains(&u32::from(low)) && SAFE.contains(&u32::from(high));
        }
        (0..blocks).all(|block| {
            // SAFETY: the caller's contract.
            let factor = unsafe { factor(scale, scales, block, m.global) };
            least.add(factor);
            is_safe_for_e4m3(factor)
        })
    });
    is_safe.then_some(least)
}

/// # Safety
/// As [`products`].
#[inline(always)]
unsafe fn run<M: Machine, S: Source<M>>(m: &Matrix, source: S, scratch: Scratch) {
    // SAFETY: the caller's contract.
    unsafe {
        match m.job.n_rows as usize {
            1 => M::apart(&FewRows::<M, S, 1> { m, source, scratch, machine: PhantomData }),
            // Of sixteen registers, decoding codes leaves too few for the sums of more rows.
            2 if M::COLUMNS == 2 || S::FLOATS => {
                M::apart(&FewRows::<M, S, 2> { m, source, scratch, machine: PhantomData });
            }
            3 if M::COLUMNS == 2 || S::FLOATS => {
                M::apart(&FewRows::<M, S, 3> { m, source, scratch, machine: PhantomData });
            }
            _ => M::apart(&ManyRows::<M, _> { m, fill: Read(source), scratch, machine: PhantomData }),
        }
    }
}

/// Values become floats, which are multiplied.
struct InFloats;

impl<M: Machine> Way<M> for InFloats {
    #[inline(always)]
    unsafe fn words<S: WordSource<M>>(m: &Matrix, source: S, scratch: Scratch) {
        // SAFETY: the caller's contract.
        unsafe { run::<M, S>(m, source, scratch) }
    }

    #[inline(always)]
    unsafe fn any(m: &Matrix, scratch: Scratch) {
        // SAFETY: the caller's contract.
        unsafe { M::apart(&ManyRows::<M, _> { m, fill: Any, scratch, machine: PhantomData }) }
    }
}

/// [`few_rows`] of a job.
struct FewRows<'j, M, S, const ROWS: usize> {
    m: &'j Matrix<'j>,
    source: S,
    scratch: Scratch,
    machine: PhantomData<M>,
}

impl<M: Machine, S: Source<M>, const ROWS: usize> Task for FewRows<'_, M, S, ROWS> {
    #[inline(always)]
    unsafe fn run(&self) {
        // SAFETY: the contract of `run`.
        unsafe { few_rows::<M, S, ROWS>(self.m, &self.source, self.scratch) }
    }
}

/// [`many_rows`] of a job.
struct ManyRows<'j, M, F> {
    m: &'j Matrix<'j>,
    fill: F,
    scratch: Scratch,
    machine: PhantomData<M>,
}

impl<M: Machine, F: Fill<M>> Task for ManyRows<'_, M, F> {
    #[inline(always)]
    unsafe fn run(&self) {
        // SAFETY: the contract of `run`.
        unsafe { many_rows::<M>(self.m, &self.fill, self.scratch) }
    }
}
