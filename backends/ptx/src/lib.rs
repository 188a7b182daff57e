//! PTX parser, checker and emulator.
//!
//! * [`ast`], [`parse`], [`print`]: PTX text to a syntax tree and back.
//! * [`launch`], [`buffers`]: launch recipes, as `moec emulate` runs them.
//! * [`ptxas`]: NVIDIA's assembler and its report.
//! * [`coverage`]: which instructions are executed.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod ast;
pub mod buffers;
pub mod coverage;
pub mod exec;
pub mod launch;
pub mod link;
pub mod listing;
pub mod names;
pub mod numeric;
pub mod parse;
pub mod print;
pub mod ptxas;
pub mod tensor;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
