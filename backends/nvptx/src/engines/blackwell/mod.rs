//! Contractions on the tensor cores of sm_100 (`tcgen05`): of 16-bit floats, and of codes with codes.
//!
//! The weights are always the first operand: 128 output columns of each panel lie on the 128 lanes of tensor memory, and
//! the rows (tokens) are the instruction's N, a multiple of 16 that follows the rows a tile really has. So decode and
//! prefill are one kernel, an expert with few rows costs little, and a row's sums depend on nothing but the row.

mod contract;
mod copies;
mod decode;
mod layout;
mod products;
mod results;
mod rows;
mod scales;
mod store;

pub use contract::contract;
