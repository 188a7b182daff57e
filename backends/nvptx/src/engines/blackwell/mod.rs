//! Contractions on the tensor cores of sm_100 (`tcgen05`), for 16-bit elements and, in `scaled`, for codes.
//!
//! The weights are always the first operand: 128 output columns of each panel lie on the 128 lanes of tensor memory, and
//! the rows (tokens) are the instruction's N, a multiple of 16 that follows the rows a tile really has. So decode and
//! prefill are one kernel, an expert with few rows costs little, and a row's sums depend on nothing but the row.

mod contract;
mod geometry;
mod rows;
mod scaled;

pub use contract::contract;
pub use scaled::scaled;
