//! What engines are made of.
//!
//! A contraction for TMA runs as a pipeline of warps with different roles in CTAs that live as long as the kernel. One warp
//! says which tile is next (`tiles`), some fill a ring of stages in shared memory (`ring`, `load`), where weights are codes
//! others make floats of them (`decode`), some feed the tensor cores, and the rest turn sums into results (`store`). `team` is
//! what CTAs that make a tile together agree on, `k_parts` how sums over parts of k become one, `chain` how tiles wait for tiles of the
//! same launch, `finish` what follows the last rows.

mod chain;
pub mod coded_row;
pub mod decode;
pub mod encode;
mod finish;
pub mod k_parts;
pub mod load;
pub mod math;
mod ring;
pub mod store;
mod team;
mod tiles;

pub use chain::Chains;
pub use decode::CodedPanel;
pub use finish::{Finish, Group};
pub use load::{CodeRows, SegmentMaps, coded_maps, maps};
pub use ring::{Barriers, Ring};
pub use store::{Epilogue, ScaledColumn};
pub use team::Member;
pub use tiles::{Board, Order, Reader, Tile, Tiles, extent, publish_tiles, segment_tiles};
