//! A job with rows of bf16 and weights whose values are bf16, by how many rows it has.

use super::Pairs;
use super::few::{few_rows, fits};
use super::many::{Any, FillWords, Read, many_rows};
use crate::machine::Task;
use crate::products::{Way, codes};
use crate::readers::{WordReader, WordSource, Words};
use crate::scratch::{MOST_ROWS, Scratch};
use crate::values::Matrix;
use moec_ir::abi::{Products, WeightCode};
use std::marker::PhantomData;

/// [`moec_ir::abi::CpuKernels::products`] of rows that [`super::arrange`] wrote.
///
/// # Safety
/// The job's pointers are valid as [`Products`] says, and the processor has the machine's features.
#[inline(always)]
pub(crate) unsafe fn products<M: Pairs>(job: &Products) {
    if job.n_rows == 0 || job.n_columns == 0 {
        return;
    }
    assert!(job.n_rows as usize <= MOST_ROWS, "a job should have at most {MOST_ROWS} rows");
    let scratch = Scratch::new(job.scratch);
    // SAFETY: the caller's contract.
    unsafe {
        let m = Matrix::new(job);
        match m.code {
            WeightCode::Floats(_) => <InPairs as Way<M>>::words(&m, Words::<false>, scratch),
            WeightCode::Codes { code, scale, round } => codes::<M, InPairs>(&m, code, scale, round, scratch),
        }
    }
}

/// Pairs of words are multiplied.
struct InPairs;

impl<M: Pairs> Way<M> for InPairs {
    #[inline(always)]
    unsafe fn words<S: WordSource<M>>(m: &Matrix, source: S, scratch: Scratch) {
        // SAFETY: the caller's contract.
        unsafe {
            if const { <S::Reader as WordReader<M>>::HALF } {
                unreachable!("rows of bf16 are said of weights of bf16 only");
            }
            let machine = PhantomData;
            let few =
                if fits::<M>(m.job.n_rows as usize, m.job.k as usize) { m.job.n_rows as usize } else { usize::MAX };
            match few {
                1 => M::apart(&FewRows::<M, S, 1> { m, source, scratch, machine }),
                2 => M::apart(&FewRows::<M, S, 2> { m, source, scratch, machine }),
                3 => M::apart(&FewRows::<M, S, 3> { m, source, scratch, machine }),
                4 => M::apart(&FewRows::<M, S, 4> { m, source, scratch, machine }),
                _ => M::apart(&ManyRows::<M, _> { m, fill: Read(source), scratch, machine }),
            }
        }
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

impl<M: Pairs, S: WordSource<M>, const ROWS: usize> Task for FewRows<'_, M, S, ROWS> {
    #[inline(always)]
    unsafe fn run(&self) {
        // SAFETY: the contract of `InPairs::words`.
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

impl<M: Pairs, F: FillWords<M>> Task for ManyRows<'_, M, F> {
    #[inline(always)]
    unsafe fn run(&self) {
        // SAFETY: the contract of `InPairs::words`.
        unsafe { many_rows::<M, F>(self.m, &self.fill, self.scratch) }
    }
}
