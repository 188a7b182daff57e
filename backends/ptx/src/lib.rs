//! PTX parser, checker and emulator
