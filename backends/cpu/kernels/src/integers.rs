//! Products of rows of 16-bit integers with codes of four bits.
//!
//! A row is rounded to integers as it is arranged (`integers/rows.rs`). Codes are looked up as integers, and their products with
//! a row's over a step of 32 elements (or 16) are exact: 32 · 32767 · 12 is less than 2^24, the first integer behind which f32 has
//! gaps. So a step's sum does not depend on how a processor makes it, and one scale for each step is all that is rounded.
//!
//! A vector has one column in each lane, the columns' codes being transposed as they are read.

mod factors;
mod few;
mod many;
mod products;
mod rows;

pub(crate) use products::products;
pub(crate) use rows::arrange;

use crate::machine::{Machine, Task};
use moec_ir::quant::ScaleCode;

/// Elements of a step: those of 16 bytes of codes, and of a block of a row.
pub(crate) const STEP: usize = 32;
/// Bytes of a step's codes.
pub(crate) const STEP_BYTES: usize = STEP / 2;
/// Most lanes of any machine.
pub(crate) const MOST_LANES: usize = 16;

/// A machine that multiplies pairs of integers. `D` is 32 bits for each of the `LANES` columns of a vector; an `F` has as many
/// floats.
///
/// # Safety
/// As [`Machine`].
#[allow(clippy::missing_safety_doc, reason = "one contract for all, that of `Machine`")]
pub(crate) trait Integers: Machine {
    /// 32 bits for each column.
    type D: Copy;
    /// The integers that sixteen codes stand for.
    type Table: Copy;
    /// Columns of a vector.
    const LANES: usize = 8 * Self::COLUMNS;
    /// Most rows of a tile, whose sums stay in registers: at most six.
    const TILE_ROWS: usize;

    unsafe fn table(values: &[i8; 16]) -> Self::Table;
    /// The 16 bytes `at` behind each pointer: vector `d` has bytes `4d … 4d + 3` of every column.
    unsafe fn columns(p: &[*const u8; MOST_LANES], at: usize) -> [Self::D; 4];
    /// Eight codes of each column as integers: vector `j` has codes `j` and `j + 4`.
    unsafe fn pairs(table: Self::Table, codes: Self::D) -> [Self::D; 4];
    unsafe fn none() -> Self::D;
    /// In every column `sum` plus both products of `w`'s pair with the pair `x`.
    unsafe fn add_products(sum: Self::D, w: Self::D, x: i32) -> Self::D;
    unsafe fn add_integers(x: Self::D, y: Self::D) -> Self::D;
    /// Aligned to the vector.
    unsafe fn load_pairs(p: *const i32) -> Self::D;
    /// Aligned to the vector.
    unsafe fn store_pairs(p: *mut i32, x: Self::D);
    /// Integers below 2^24 as floats.
    unsafe fn to_floats(x: Self::D) -> Self::F;
    unsafe fn splat_float(x: f32) -> Self::F;
    unsafe fn product(x: Self::F, y: Self::F) -> Self::F;
    /// Scale number `i` of those that lie in every column's 32 bits.
    unsafe fn scales(scale: ScaleCode, bits: Self::D, i: usize) -> Self::F;
    /// Writes the first `n` floats.
    unsafe fn store_first(x: Self::F, n: usize, to: *mut f32);
    /// As [`Machine::apart`].
    unsafe fn apart_integers(task: &impl Task);
}
