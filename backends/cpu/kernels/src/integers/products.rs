//! A job with rows of integers, by how many it has.

use super::few::{Blocks, few_rows};
use super::many::many_rows;
use super::{Integers, STEP};
use crate::machine::Task;
use crate::scratch::{MOST_ROWS, Scratch};
use crate::values::{Matrix, four_bits};
use moec_ir::abi::{Products, WeightCode};
use moec_ir::quant::Code;
use std::marker::PhantomData;

/// [`moec_ir::abi::CpuKernels::products`] of rows of integers.
///
/// # Safety
/// The job's pointers are valid as [`Products`] says, and the processor has the machine's features.
#[inline(always)]
pub(crate) unsafe fn products<M: Integers>(job: &Products) {
    if job.n_rows == 0 || job.n_columns == 0 {
        return;
    }
    assert!(job.n_rows as usize <= MOST_ROWS, "a job should have at most {MOST_ROWS} rows");
    // SAFETY: the caller's contract.
    unsafe {
        let m = Matrix::new(job);
        let WeightCode::Codes { code, scale, .. } = m.code else {
            unreachable!("rows of integers should be multiplied with codes");
        };
        // Halves are doubled.
        let unit = if code == Code::E2M1 { 0.5 } else { 1.0 };
        let mut values = [0; 16];
        for (value, float) in values.iter_mut().zip(four_bits(code)) {
            *value = (float / unit) as i8;
        }
        // One block is one of any length; so is that of a job without elements.
        let all = m.block >= job.k as usize;
        let elements = if all { m.block.next_multiple_of(STEP) } else { m.block };
        let blocks = Blocks { scale, elements, unit };
        let (values, scratch) = (&values, Scratch::new(job.scratch));
        let fine = elements == STEP / 2;
        let m = &m;
        match (job.n_rows, fine) {
            (1, false) => M::apart_integers(&Few::<M, 1, false> { m, values, blocks, scratch, machine: PhantomData }),
            (2, false) => M::apart_integers(&Few::<M, 2, false> { m, values, blocks, scratch, machine: PhantomData }),
            (3, false) => M::apart_integers(&Few::<M, 3, false> { m, values, blocks, scratch, machine: PhantomData }),
            (4, false) => M::apart_integers(&Few::<M, 4, false> { m, values, blocks, scratch, machine: PhantomData }),
            (_, false) => M::apart_integers(&Many::<M, false> { m, values, blocks, scratch, machine: PhantomData }),
            (1, true) => M::apart_integers(&Few::<M, 1, true> { m, values, blocks, scratch, machine: PhantomData }),
            (2, true) => M::apart_integers(&Few::<M, 2, true> { m, values, blocks, scratch, machine: PhantomData }),
            (3, true) => M::apart_integers(&Few::<M, 3, true> { m, values, blocks, scratch, machine: PhantomData }),
            (4, true) => M::apart_integers(&Few::<M, 4, true> { m, values, blocks, scratch, machine: PhantomData }),
            (_, true) => M::apart_integers(&Many::<M, true> { m, values, blocks, scratch, machine: PhantomData }),
        }
    }
}

/// [`few_rows`] of a job.
struct Few<'j, M, const ROWS: usize, const FINE: bool> {
    m: &'j Matrix<'j>,
    values: &'j [i8; 16],
    blocks: Blocks,
    scratch: Scratch,
    machine: PhantomData<M>,
}

impl<M: Integers, const ROWS: usize, const FINE: bool> Task for Few<'_, M, ROWS, FINE> {
    #[inline(always)]
    unsafe fn run(&self) {
        // SAFETY: the contract of `run`.
        unsafe { few_rows::<M, ROWS, FINE>(self.m, M::table(self.values), self.blocks, self.scratch) }
    }
}

/// [`many_rows`] of a job.
struct Many<'j, M, const FINE: bool> {
    m: &'j Matrix<'j>,
    values: &'j [i8; 16],
    blocks: Blocks,
    scratch: Scratch,
    machine: PhantomData<M>,
}

impl<M: Integers, const FINE: bool> Task for Many<'_, M, FINE> {
    #[inline(always)]
    unsafe fn run(&self) {
        // SAFETY: the contract of `run`.
        unsafe { many_rows::<M, FINE>(self.m, M::table(self.values), self.blocks, self.scratch) }
    }
}
