//! From the graph IR to tile programs: the passes of moec, on one screen in [`compile`].
#![warn(missing_docs)]

mod algebra;
mod fingerprint;
mod lower;
mod names;
mod normalise;
pub mod plan;
pub mod proof;
pub mod verify;

pub use fingerprint::{Fingerprint, OutputPrint};
pub use lower::{WeightStorage, lower_graph};
pub use normalise::{
    EGraphPicture, Limits, Missed, PictureClass, PictureNode, Price, Rule, Saturation, allowed, catalogue, egraph,
    missed, normalise, normalise_with,
};

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
    /// Most programs for a target.
    pub most_variants: usize,
}

impl Default for CompileOptions {
    fn default() -> CompileOptions {
        CompileOptions {
            numerics: Numerics::default(),
            opt_level: 2,
            tokens: (0, MAX_TOKENS),
            limits: Limits::default(),
            weights: WeightStorage::default(),
            most_variants: MOST_VARIANTS,
        }
    }
}

/// Largest token count of one run.
pub const MAX_TOKENS: u64 = 1 << 20;

/// Most programs for a target, unless the caller says otherwise.
pub const MOST_VARIANTS: usize = 8;

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
    /// What decides its bits: the same for all programs of a target.
    pub fingerprint: Fingerprint,
}

/// Compiles a verified graph for one target: one variant for each range of token counts in which other choices win.
///
/// All of them give a token the same bits ([`Fingerprint`]).
///
/// # Errors
/// `unsupported-op` when the layer needs something that no kernel computes; `internal-error` and
/// `tile-program-invalid` for bugs of moec.
pub fn compile(graph: &Graph, target: &Target, options: &CompileOptions) -> Result<Vec<Variant>, Diagnostic> {
    let optimise = options.opt_level > 0;
    let (graph, saturation) = if optimise {
        let (graph, report) = normalise(graph, options.numerics, options.limits)?;
        hold(&report.proof, options.numerics, &graph.name)?;
        (graph, Some(report))
    } else {
        (graph.clone(), None)
    };
    let program = lower_graph(&graph, target, optimise, options.weights)?;
    let planned = plan::plan(
        &program,
        target,
        &plan::Options {
            tokens: (options.tokens.0, options.tokens.1.max(options.tokens.0)),
            most_variants: options.most_variants,
            merge: options.opt_level > 1,
        },
    );
    let print = |p: &plan::Planned| {
        let mut print = Fingerprint::of(&p.program, target);
        // A buffer may have another name than the output that it holds.
        print.outputs.iter_mut().zip(&graph.outputs).for_each(|(o, (name, _))| o.name.clone_from(name));
        print
    };
    let prints: Vec<Fingerprint> = planned.iter().map(print).collect();
    if let Some(other) = prints.iter().find(|n| **n != prints[0]) {
        let what = format!("programs of `{}` for {} give other bits at other token counts", graph.name, target.name);
        return Err(Diagnostic::internal("internal-error", what).note(prints[0].text()).note(other.text()));
    }
    let variant = |(p, fingerprint): (plan::Planned, Fingerprint)| match tile::verify(&p.program).into_iter().next() {
        None => Ok(Variant {
            tokens: p.tokens,
            graph: graph.clone(),
            saturation: saturation.clone(),
            program: p.program,
            fingerprint,
        }),
        Some(error) => Err(error),
    };
    planned.into_iter().zip(prints).map(variant).collect()
}

/// Checks the proof of a rewriting: a rule that is wrong is better refused than compiled. What cannot be evaluated passes.
fn hold(proof: &proof::Proof, numerics: Numerics, name: &str) -> Result<(), Diagnostic> {
    match proof::check(proof, numerics) {
        Ok(()) | Err(proof::ProofFault::TooLarge | proof::ProofFault::Malformed(_)) => Ok(()),
        Err(fault) => {
            let what = format!("the rewrites of `{name}` do not hold: {fault}");
            Err(Diagnostic::internal("internal-error", what))
        }
    }
}
