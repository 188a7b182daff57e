//! From the graph IR to tile programs: the passes of moec, on one screen in [`compile`].
#![warn(missing_docs)]

pub mod cost;
mod extract;
mod language;
mod lower;
mod merge_launches;
mod names;
mod plan_after_route;
mod quantise_in_route;
mod rules;
mod saturate;
mod schedule;
pub mod soundness;

pub use lower::{WeightStorage, lower_graph};
pub use rules::{Rule, catalogue};
pub use saturate::{Limits, Saturation, optimise, optimise_with};

use cost::CostModel;
use moec_ir::graph::Graph;
use moec_ir::target::Target;
use moec_ir::tile::{self, Program};
use moec_ir::{Diagnostic, Numerics};

/// How to compile.
#[derive(Clone, Copy, Debug)]
pub struct CompileOptions {
    /// Which rewrites may fire.
    pub numerics: Numerics,
    /// 0: as written, a kernel for each operation. 1: rewrites of the graph. 2 and more: launches are merged too.
    pub opt_level: u8,
    /// Smallest and largest token count that has to run.
    pub tokens: (u64, u64),
    /// Limits of the saturation.
    pub limits: Limits,
    /// How quantised weights lie in memory.
    pub weights: WeightStorage,
}

impl Default for CompileOptions {
    fn default() -> CompileOptions {
        CompileOptions {
            numerics: Numerics::default(),
            opt_level: 2,
            tokens: (0, MAX_TOKENS),
            limits: Limits::default(),
            weights: WeightStorage::default(),
        }
    }
}

/// Largest token count of one run.
pub const MAX_TOKENS: u64 = 1 << 20;

/// Upper ends of the token buckets: one token and few, a decode batch, a mixed batch, a prefill.
pub const TOKEN_BUCKETS: [u64; 4] = [16, 128, 1024, MAX_TOKENS];

/// The program for a range of token counts.
#[derive(Clone, Debug, PartialEq)]
pub struct Variant {
    /// Smallest and largest token count it is meant for; it is right for every token count.
    pub tokens: (u64, u64),
    /// The graph after rewriting.
    pub graph: Graph,
    /// What the rewriting did; `None` at `opt_level` 0.
    pub saturation: Option<Saturation>,
    /// The program.
    pub program: Program,
}

/// Compiles a verified graph for one target: one variant for each token bucket, fewer where buckets agree.
///
/// # Errors
/// `unsupported-op` when the layer needs something that no kernel computes; `internal-error` and
/// `tile-program-invalid` for bugs of moec.
pub fn compile(graph: &Graph, target: &Target, options: &CompileOptions) -> Result<Vec<Variant>, Diagnostic> {
    let mut variants: Vec<Variant> = Vec::new();
    for tokens in buckets(options.tokens) {
        let variant = compile_bucket(graph, target, options, tokens)?;
        match variants.last_mut() {
            Some(last) if last.program == variant.program => last.tokens.1 = tokens.1,
            _ => variants.push(variant),
        }
    }
    Ok(variants)
}

fn compile_bucket(
    graph: &Graph,
    target: &Target,
    options: &CompileOptions,
    tokens: (u64, u64),
) -> Result<Variant, Diagnostic> {
    // A prefill is modelled at a usual chunk, not at the largest that could ever come.
    let n_tokens = tokens.1.min(4096);
    let optimise_graph = options.opt_level > 0;
    let weights = options.weights;
    let (graph, saturation) = if optimise_graph {
        let cost = CostModel { machine: target.machine, n_tokens, weights };
        let (graph, report) = optimise(graph, options.numerics, &cost, options.limits)?;
        (graph, Some(report))
    } else {
        (graph.clone(), None)
    };
    let mut program = lower_graph(&graph, target, optimise_graph, weights)?;
    if options.opt_level > 1 {
        quantise_in_route::quantise_in_route(&mut program);
        merge_launches::merge_launches(&mut program);
        if !target.is_cpu() {
            plan_after_route::plan_after_route(&mut program);
        }
    }
    schedule::set_schedules(&mut program, target, n_tokens);
    match tile::verify(&program).into_iter().next() {
        None => Ok(Variant { tokens, graph, saturation, program }),
        Some(error) => Err(error),
    }
}

/// The parts of the token buckets that lie in `tokens`.
fn buckets(tokens: (u64, u64)) -> Vec<(u64, u64)> {
    let (first, last) = (tokens.0, tokens.1.max(tokens.0));
    let mut from = 0;
    let mut parts = Vec::new();
    for end in TOKEN_BUCKETS {
        if from <= last && end >= first {
            parts.push((from.max(first), end.min(last)));
        }
        from = end + 1;
    }
    parts
}
