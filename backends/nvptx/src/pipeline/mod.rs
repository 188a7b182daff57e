//! What machines with TMA share: tensor maps, rings of barriers, the order of tiles, the end of a tile.
//!
//! A contraction runs as a pipeline of warps with different roles in blocks that live as long as the kernel. One warp
//! says which tile is next (`tiles`, `claims`), some fill a ring of stages in shared memory (`ring`, `maps`), where weights
//! are codes others make floats of them (`codes`), one feeds the tensor cores, and the rest turn sums into results
//! (`epilogue`). The tensor cores themselves are the machine's own.

mod claims;
mod codes;
mod crew;
mod epilogue;
mod maps;
mod ring;
mod tiles;

pub use codes::CodedPanel;
pub use crew::Crew;
pub use epilogue::Epilogue;
pub use maps::{SWIZZLE_BYTES, SegmentMaps, code_bytes, coded_maps, maps};
pub use ring::{Barriers, Ring};
pub use tiles::{Board, Order, Reader, Tile, extent, publish_tiles};
