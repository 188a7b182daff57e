//! The experts that a map gives to a rank, loaded.

use crate::layer::{ExpertProgram, ExpertPrograms, PlacedLayer};
use crate::rows::take;
use crate::step::RankOptions;
use moec_ir::diag::Diagnostic;
use moec_ir::{DType, Placement, Tensor};
use moec_runtime::{Layer, LoadOptions, SelectedExperts, Weights};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A map, and the experts that a rank has by it. A clone has the same experts, in the same memory: several layers of one rank, each
/// of a client with an exchange of its own, may share them.
#[derive(Clone)]
pub struct Loaded {
    pub(crate) map: Placement,
    /// The layer, the rank, and how many ranks there are.
    pub(crate) of: (u64, u32, u32),
    experts: Arc<Mutex<LoadedExperts>>,
}

/// A member's programs of its experts.
pub(crate) enum LoadedExperts {
    Whole(Box<Layer>),
    /// Columns of activations, and columns of results.
    Columns(Box<Layer>, Box<Layer>),
}

impl Loaded {
    /// The experts, once nobody else computes with them. Not to be held while ranks exchange: a client would wait for the ranks of another.
    pub(crate) fn experts(&self) -> MutexGuard<'_, LoadedExperts> {
        // Whoever panicked with them left rows of its own, which the next run does not read.
        self.experts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// That they are those of a rank of a layer.
    ///
    /// # Errors
    /// `placement-invalid`.
    pub(crate) fn check(&self, fingerprint: u64, rank: u32, n_ranks: u32) -> Result<(), Diagnostic> {
        if self.of == (fingerprint, rank, n_ranks) {
            return Ok(());
        }
        let (_, of, n) = self.of;
        let what = format!("experts that were loaded for rank {of} of {n} are given to rank {rank} of {n_ranks}");
        let what = if self.of.0 == fingerprint { what } else { format!("{what}, in another layer") };
        Err(Diagnostic::input("placement-invalid", what).help("load them with a loader of that rank and layer"))
    }
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
    /// For rank `rank` of `n_ranks` ranks, which may have joined or not. Experts that several layers of the rank share are loaded with it.
    pub fn new(placed: Arc<PlacedLayer>, rank: u32, n_ranks: u32, options: RankOptions) -> ExpertLoader {
        ExpertLoader { placed, rank, n_ranks, options }
    }

    /// The experts of `map`, without compiling anything. They take memory beside those in use until the layer has gone over.
    ///
    /// # Errors
    /// `placement-invalid`, and those of [`Layer::load`].
    pub fn load(&self, map: Placement, weights: &Weights<'_>) -> Result<Loaded, Diagnostic> {
        check(&self.placed, &map, self.n_ranks)?;
        let experts = load_experts(&self.placed, &map, self.rank, self.n_ranks, weights, &self.options)?;
        let of = (self.placed.fingerprint(), self.rank, self.n_ranks);
        Ok(Loaded { map, of, experts: Arc::new(Mutex::new(experts)) })
    }
}

pub(crate) fn load_options(options: &RankOptions, max_tokens: u64) -> LoadOptions {
    LoadOptions { device: options.device.clone(), max_tokens, pool: options.pool.clone(), ..LoadOptions::default() }
}

/// The experts of a map that `rank` of `n_ranks` has a part in.
fn load_experts(
    placed: &PlacedLayer,
    map: &Placement,
    rank: u32,
    n_ranks: u32,
    weights: &Weights<'_>,
    options: &RankOptions,
) -> Result<LoadedExperts, Diagnostic> {
    let members = placed.n_members();
    // Every slot of every rank may go to experts of this one.
    let most = options.max_tokens.saturating_mul(u64::from(n_ranks)).saturating_mul(placed.top_k as u64);
    let load = |program: &ExpertProgram| {
        // Those that a program does not take at once, it takes one part after the other.
        let at_once = program.bundle.manifest().targets.iter().map(|t| t.max_tokens()).max().unwrap_or(0);
        let most = most.min(options.max_slots).min(at_once).clamp(1, moec_bundle::MAX_TOKENS);
        let experts = map.experts_of(rank / members);
        let selected = SelectedExperts { weights, stacks: &program.stacks, experts };
        Layer::load(&program.bundle, &Weights::Experts(selected), load_options(options, most))
    };
    match &placed.experts[(rank % members) as usize] {
        ExpertPrograms::Whole(whole) => Ok(LoadedExperts::Whole(Box::new(load(whole)?))),
        ExpertPrograms::Columns { up, down } => Ok(LoadedExperts::Columns(Box::new(load(up)?), Box::new(load(down)?))),
    }
}

/// That a map is one of the layer on `n_ranks` ranks.
pub(crate) fn check(placed: &PlacedLayer, map: &Placement, n_ranks: u32) -> Result<(), Diagnostic> {
    if placed.exchange.is_some() {
        let what = "a layer that was compiled for kernels that exchange rows is to run with another exchange";
        return Err(Diagnostic::internal("internal-error", what));
    }
    let members = placed.n_members();
    if !n_ranks.is_multiple_of(members) {
        let what = format!("{n_ranks} ranks are no groups of {members}, which share the matrices of an expert");
        return Err(Diagnostic::machine("mesh-invalid", what).help("start a multiple of that"));
    }
    map.check(placed.n_experts, n_ranks / members, placed.n_local)
}

/// The results of slots, as bytes: slot `i` has row `which[i]` and local expert `ids[i]`.
pub(crate) fn run_slots(
    layer: &mut Layer,
    (input, rows): (&str, &Tensor),
    which: &[usize],
    ids: &[i64],
    findings: &mut Vec<String>,
) -> Result<Vec<u8>, Diagnostic> {
    let most = (layer.max_tokens() as usize).max(1);
    let mut results = Vec::new();
    for (which, ids) in which.chunks(most).zip(ids.chunks(most)) {
        let ids = Tensor::int(DType::I32, &[ids.len(), 1], ids.to_vec());
        let run = layer.run_host(&[(input, &take(rows, which)), ("local_ids", &ids)])?;
        findings.extend(run.findings);
        results.extend(run.outputs.first().map(|(_, t)| t.to_bytes()).unwrap_or_default());
    }
    Ok(results)
}
