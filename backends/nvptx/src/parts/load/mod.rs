//! How operands come to shared memory.

pub mod cp_async;
mod maps;
pub mod scales;

pub use maps::{SWIZZLE_BYTES, SegmentMaps, code_bytes, coded_maps, maps};
