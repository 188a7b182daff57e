//! The ways to compute a layer, behind one function.

use moec::{CompileRequest, Device, Session, Weights};
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
    /// Code compiled in this process, with everything that this processor has.
    CpuJit {
        /// `-O0` to `-O3`.
        opt_level: u8,
    },
    /// The object file of a bundle.
    CpuObject,
    /// PTX in the emulator, all checks on; a finding is a failure.
    Emulator {
        /// The target of the PTX.
        target: &'static str,
        /// `-O0` to `-O3`.
        opt_level: u8,
    },
}

/// A layer on an engine, ready to run: inputs to outputs, in the graph's order.
pub type Runner = Box<dyn FnMut(&[Tensor]) -> Result<Vec<Tensor>, Diagnostic>>;

/// The engines that run every case at every token count.
pub const FAST: &[Engine] = &[
    Engine::Tile { target: "cpu", opt_level: 0 },
    Engine::Tile { target: "cpu", opt_level: 2 },
    Engine::Tile { target: "sm_100f", opt_level: 1 },
    Engine::CpuJit { opt_level: 0 },
    Engine::CpuJit { opt_level: 2 },
    Engine::CpuObject,
];

/// The emulator on every machine generation. A large batch takes minutes there: cases leave it out.
pub const EMULATORS: &[Engine] = &[
    Engine::Emulator { target: "sm_80", opt_level: 2 },
    Engine::Emulator { target: "sm_90a", opt_level: 0 },
    Engine::Emulator { target: "sm_90a", opt_level: 2 },
    Engine::Emulator { target: "sm_100f", opt_level: 2 },
    Engine::Emulator { target: "sm_120f", opt_level: 2 },
];

impl Engine {
    /// For test names: `emulator-sm_90a-O2`.
    pub fn name(&self) -> String {
        match self {
            Engine::Tile { target, opt_level } => format!("tile-{target}-O{opt_level}"),
            Engine::CpuJit { opt_level } => format!("jit-O{opt_level}"),
            Engine::CpuObject => "object".to_string(),
            Engine::Emulator { target, opt_level } => format!("emulator-{target}-O{opt_level}"),
        }
    }

    /// Compiles the layer and binds its weights, for up to `max_tokens` tokens.
    ///
    /// # Errors
    /// Those of the compiler and the loader.
    pub fn load(&self, graph: &Graph, params: &[Tensor], max_tokens: usize) -> Result<Runner, Diagnostic> {
        let names = graph.params.iter().map(|p| p.name.clone());
        let named: Vec<(String, Tensor)> = names.zip(params.iter().cloned()).collect();
        let weights = Weights::Tensors(&named);
        let max_tokens = max_tokens.max(1) as u64;
        let compiled = |target: &str, opt_level: u8| {
            let target = Target::by_name(target).expect("a test should name a known target");
            moec::compile(&CompileRequest { opt_level, ..CompileRequest::new(graph, vec![target]) })
        };
        match *self {
            Engine::Tile { target, opt_level } => tile_runner(graph, params, target, opt_level),
            Engine::CpuJit { opt_level } => {
                Ok(session_runner(graph, Session::jit(&compiled("cpu", opt_level)?, &weights, max_tokens)?))
            }
            Engine::CpuObject => {
                let bundle = compiled("cpu", 2)?.bundle;
                Ok(session_runner(graph, Session::load(&bundle, &weights, Device::Cpu, max_tokens)?))
            }
            Engine::Emulator { target, opt_level } => {
                let bundle = compiled(target, opt_level)?.bundle;
                let device = Device::Emulator { target };
                Ok(session_runner(graph, Session::load(&bundle, &weights, device, max_tokens)?))
            }
        }
    }
}

fn tile_runner(graph: &Graph, params: &[Tensor], target: &str, opt_level: u8) -> Result<Runner, Diagnostic> {
    let target = Target::by_name(target).expect("a test should name a known target");
    let options = CompileOptions { opt_level, ..CompileOptions::default() };
    let variants = moec_passes::compile(graph, target, &options)?;
    let params = params.to_vec();
    Ok(Box::new(move |inputs| {
        let n_tokens = inputs[0].shape[0];
        let fits = |v: &&moec_passes::Variant| v.tokens.1 >= n_tokens as u64;
        let variant = variants.iter().find(fits).expect("some variant should fit any token count");
        tile::evaluate(&variant.program, inputs, &params, n_tokens)
    }))
}

fn session_runner(graph: &Graph, mut session: Session) -> Runner {
    let names: Vec<String> = graph.inputs.iter().map(|i| i.name.clone()).collect();
    Box::new(move |inputs| {
        let named: Vec<(&str, &Tensor)> = names.iter().map(String::as_str).zip(inputs).collect();
        let result = session.run(&named)?;
        if let Some(finding) = result.findings.first() {
            let more = result.findings.len() - 1;
            let d = Diagnostic::internal("internal-error", format!("the emulator found: {finding}"));
            return Err(d.note(format!("and {more} more findings")));
        }
        Ok(result.outputs.into_iter().map(|(_, t)| t).collect())
    })
}
