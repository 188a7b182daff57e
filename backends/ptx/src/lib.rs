//! PTX parser, checker and emulator

pub mod buffers;
pub mod launch;
pub mod numeric;
pub mod ptxas;
pub mod tensor;
