//! Tile IR to machine code with Cranelift
