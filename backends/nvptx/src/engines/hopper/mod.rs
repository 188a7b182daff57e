//! Contractions on the tensor cores of sm_90 (`wgmma`), for 16-bit elements, for codes that become them in
//! registers, and for FP8 codes with FP8 codes or with 4-bit ones that become such in registers.
//!
//! The weights are always the first operand: 128 output columns of each panel are 64 rows of each of two warpgroups, or 64 of
//! two panels those of one each, and the rows of the domain (tokens) are the instruction's columns, whose number follows the rows that a tile has. So decode and
//! prefill are one kernel, an expert with few rows costs little, and a row's sums depend on nothing but the row.
//!
//! How a product is cut is said in [`moec_ir::engine::hopper`].

mod contract;
mod copies;
mod decode;
mod fp8;
mod products;
mod results;
mod widened;

pub use contract::contract;
