//! What the tests over the whole of moec share: cases, engines, data.
#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr, reason = "this crate is tests only")]

pub mod calibrate;
pub mod cases;
pub mod changes;
pub mod compare;
pub mod data;
pub mod engines;
pub mod fabric;
pub mod graph_fuzz;
pub mod instructions;
pub mod placed;
pub mod quantised;
pub mod recorded;
pub mod runs;
pub mod sampled;
pub mod time_model;
pub mod timed;
pub mod traffic;
pub mod wide;
