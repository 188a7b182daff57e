//! PTX parser, checker and emulator

pub mod ptxas;
