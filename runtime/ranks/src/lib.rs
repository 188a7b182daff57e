//! Layers whose tokens and experts live on ranks.
//!
//! [`PlacedLayer`] is what was compiled: three programs and what travels between them ([`moec_ir::graph::place`]).
//! [`RankLayer`] is one rank of it, loaded: [`RankLayer::step`] takes the rank's own tokens to their output, with the experts
//! of all ranks. Ranks exchange through a [`Comm`]; [`threads`] has one for threads of a process,
//! [`mpi`] one for processes. [`EmulatedRanks`] is all ranks on devices of the emulator, whose own kernels exchange. Which rank holds which
//! expert is a [`moec_ir::Placement`], which a layer takes anew between two steps; [`place_experts`] makes one from
//! measured counts.
#![warn(missing_docs)]

mod balance;
mod comm;
mod dynamic;
mod emulated;
mod exchange;
mod experts;
mod fits;
mod gather;
mod layer;
mod message;
pub mod mpi;
pub mod nccl;
mod on_disk;
mod rank;
mod rows;
mod step;
mod terms;
pub mod threads;
mod tokens;

pub use balance::place_experts;
pub use comm::{Comm, Fault};
pub use emulated::EmulatedRanks;
pub use experts::{ExpertLoader, Loaded};
pub use layer::{ExchangeKernels, ExpertProgram, ExpertPrograms, MemberKernels, PlacedLayer};
pub use on_disk::PlacedInfo;
pub use rank::RankLayer;
pub use step::{RankOptions, StepResult, Traffic};
pub use tokens::{join_tokens, split_evenly, split_tokens};
