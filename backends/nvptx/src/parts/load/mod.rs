//! How operands come to shared memory.

pub mod cp_async;
mod maps;
pub mod scales;

pub use maps::{CodeRows, SegmentMaps, coded_maps, maps};
