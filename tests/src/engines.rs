//! The ways to compute a layer, behind one function.

use moec_ir::diag::Diagnostic;
use moec_ir::graph::Graph;
use moec_ir::target::Target;
use moec_ir::{Tensor, tile};
use moec_passes::CompileOptions;

/// A way to compute a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// The reference evaluator of the tile IR.
    Tile {
        /// The target that the program is for.
        target: &'static str,
        /// `-O0` to `-O3`.
        opt_level: u8,
    },
}

/// A layer on an engine, ready to run: inputs to outputs, in the graph's order.
pub type Runner = Box<dyn Fn(&[Tensor]) -> Result<Vec<Tensor>, Diagnostic> + Send>;

/// Every engine that this machine has.
pub const ENGINES: &[Engine] = &[
    Engine::Tile { target: "cpu", opt_level: 0 },
    Engine::Tile { target: "cpu", opt_level: 2 },
    Engine::Tile { target: "sm_80", opt_level: 2 },
    Engine::Tile { target: "sm_100f", opt_level: 1 },
];

impl Engine {
    /// For test names: `tile-sm_90a-O2`.
    pub fn name(&self) -> String {
        match self {
            Engine::Tile { target, opt_level } => format!("tile-{target}-O{opt_level}"),
        }
    }

    /// Compiles the layer and binds its weights.
    ///
    /// # Errors
    /// Those of the compiler.
    pub fn load(&self, graph: &Graph, params: &[Tensor]) -> Result<Runner, Diagnostic> {
        match self {
            Engine::Tile { target, opt_level } => {
                let target = Target::by_name(target).expect("a test should name a known target");
                let options = CompileOptions { opt_level: *opt_level, ..CompileOptions::default() };
                let variants = moec_passes::compile(graph, target, &options)?;
                let params = params.to_vec();
                Ok(Box::new(move |inputs| {
                    let n_tokens = inputs[0].shape[0];
                    let fits = |v: &&moec_passes::Variant| v.tokens.1 >= n_tokens as u64;
                    let variant = variants.iter().find(fits).expect("some variant should fit any token count");
                    tile::evaluate(&variant.program, inputs, &params, n_tokens)
                }))
            }
        }
    }
}
