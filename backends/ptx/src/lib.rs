//! PTX parser, checker and emulator.
//!
//! * [`ast`], [`parse`], [`print`]: PTX text to a syntax tree and back.

pub mod ast;
pub mod buffers;
pub mod coverage;
pub mod exec;
pub mod launch;
pub mod numeric;
pub mod parse;
pub mod print;
pub mod ptxas;
pub mod tensor;
