//! Contractions with the instructions of sm_80, which every later machine has too: `cp.async`, `ldmatrix`, `mma.sync`
//! for 16-bit inputs, and exact f32 multiply-adds for everything else.

mod coded;
mod contract;
mod copy;
mod epilogue;
mod fma;
mod mma;

pub use contract::contract;
