//! Shared by the tests: programs, random tensors, and running PTX in the emulator.

pub mod assembler;
pub mod coded;
pub mod contractions;
pub mod emulate;
pub mod programs;
pub mod random;
