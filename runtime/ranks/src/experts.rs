//! The experts that a map gives to a rank, loaded.

use crate::layer::PlacedLayer;
use crate::rank::RankOptions;
use moec_ir::Placement;
use moec_ir::diag::Diagnostic;
use moec_runtime::{Layer, LoadOptions, SelectedExperts, Weights};
use std::sync::Arc;

/// A map, and the experts that a rank has by it.
pub struct Loaded {
    pub(crate) map: Placement,
    pub(crate) experts: Layer,
}

impl std::fmt::Debug for Loaded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Loaded").field("map", &self.map.version()).finish_non_exhaustive()
    }
}

/// Loads the experts that a map gives to one rank.
#[derive(Clone, Debug)]
pub struct ExpertLoader {
    pub(crate) placed: Arc<PlacedLayer>,
    pub(crate) rank: u32,
    pub(crate) n_ranks: u32,
    pub(crate) options: RankOptions,
}

impl ExpertLoader {
    /// The experts of `map`, without compiling anything. They take memory beside those in use until the layer has gone over.
    ///
    /// # Errors
    /// `placement-invalid`, and those of [`Layer::load`].
    pub fn load(&self, map: Placement, weights: &Weights<'_>) -> Result<Loaded, Diagnostic> {
        map.check(self.placed.n_experts, self.n_ranks, self.placed.n_local)?;
        let experts = load_experts(&self.placed, &map, self.rank, self.n_ranks, weights, &self.options)?;
        Ok(Loaded { map, experts })
    }
}

pub(crate) fn load_options(options: &RankOptions, max_tokens: u64) -> LoadOptions {
    LoadOptions { device: options.device.clone(), max_tokens, pool: options.pool.clone(), ..LoadOptions::default() }
}

pub(crate) fn load_experts(
    placed: &PlacedLayer,
    map: &Placement,
    rank: u32,
    n_ranks: u32,
    weights: &Weights<'_>,
    options: &RankOptions,
) -> Result<Layer, Diagnostic> {
    let selected = SelectedExperts { weights, stacks: &placed.stacks, experts: map.experts_of(rank) };
    // Every slot of every rank may go to experts of this one.
    let most = options.max_tokens.saturating_mul(u64::from(n_ranks)).saturating_mul(placed.top_k as u64);
    let most = most.min(options.max_slots).clamp(1, moec_bundle::MAX_TOKENS);
    Layer::load(&placed.experts, &Weights::Experts(selected), load_options(options, most))
}
