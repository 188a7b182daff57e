//! One file for each subcommand, and what several of them share.

pub mod aot;
pub mod bench;
pub mod check;
pub mod compile;
pub mod counters;
pub mod cuda_tools;
mod decisions;
pub mod diff;
pub mod doctor;
pub mod emit;
pub mod emulate;
pub mod explain;
pub mod inspect;
pub mod kernel_table;
pub mod mesh;
pub mod pack;
mod page;
pub mod place;
pub mod placed;
pub mod rules;
pub mod run;
pub mod schema;
mod shared_weights;
pub mod subject;
