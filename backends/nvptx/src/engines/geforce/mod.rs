//! Contractions of codes with codes on sm_120: `mma.sync` with block scaling.
//!
//! Tiles and their order are those of [`crate::engines::portable`]; a segment whose activations are codes is cut and computed here.

mod copy;
mod epilogue;
mod fragments;
mod tile;

pub use tile::tile;
