//! Contractions of codes with codes: `mma.sync` of FP8 on sm_89, and with block scaling on sm_120.
//!
//! Tiles and their order are those of [`crate::engines::portable`]; a segment whose activations are codes is cut and computed here.

mod copy;
mod epilogue;
mod fragments;
mod tile;

pub use tile::tile;
