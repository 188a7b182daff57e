//! Engines: ways to run a contraction on tensor cores, one for each generation of them and one for all.
//!
//! | engine | products by | operands by |
//! |---|---|---|
//! | [`portable`] | `mma.sync`, exact f32 multiply-adds | `cp.async` |
//! | [`hopper`] | `wgmma` | TMA, `cp.async` for gathered rows |
//! | [`blackwell`] | `tcgen05` | TMA |
//! | [`geforce`] | `mma.sync` of codes, block-scaled too | `cp.async` |

pub mod blackwell;
pub mod geforce;
pub mod hopper;
pub mod portable;
