//! From a graph to a bundle.

use moec_bundle::manifest::LayerInfo;
use moec_bundle::{Bundle, BundleBuilder, FingerprintText};
use moec_cpu::CpuArch;
use moec_ir::diag::Diagnostic;
use moec_ir::graph::Graph;
use moec_ir::numerics::Numerics;
use moec_ir::target::Target;
use moec_passes::{CompileOptions, MAX_TOKENS, MOST_VARIANTS, OutputPrint, Variant, WeightStorage};
use std::time::Instant;

/// Which token counts a compile is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Phase {
    /// Generation: a few tokens for each sequence.
    Decode,
    /// Reading the prompt: hundreds to thousands of tokens.
    Prefill,
    /// Both.
    #[default]
    Both,
}

impl Phase {
    /// The token counts of the phase, both ends included.
    pub fn tokens(self) -> (u64, u64) {
        match self {
            Phase::Decode => (0, 256),
            Phase::Prefill => (257, MAX_TOKENS),
            Phase::Both => (0, MAX_TOKENS),
        }
    }
}

/// Texts for people that a bundle may hold beside its kernels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Keep {
    /// Each tile program.
    pub tile_text: bool,
    /// The LLVM IR of each GPU kernel.
    pub llvm_ir: bool,
}

/// What to compile, and for what.
#[derive(Clone, Debug)]
pub struct CompileRequest<'a> {
    /// The layer, in the unfused form.
    pub graph: &'a Graph,
    /// What the bundle says about the layer.
    pub info: LayerInfo,
    /// The targets, in the order of the bundle.
    pub targets: Vec<&'static Target>,
    /// Which rewrites may fire.
    pub numerics: Numerics,
    /// 0: a kernel for each operation; 1: rewrites of the graph; 2 and more: launches are merged too.
    pub opt_level: u8,
    /// Smallest and largest token count.
    pub tokens: (u64, u64),
    /// Most programs for a target, each for a range of token counts.
    pub most_variants: usize,
    /// How weights that are published as codes and scales lie in memory.
    pub weights: WeightStorage,
    /// The processors that the object file of a CPU target is for.
    pub cpu_arch: CpuArch,
    /// Tells the symbols of this layer's object file from those of an equal layer, when both are linked into one program.
    pub prefix: String,
    /// What the bundle holds beside the kernels.
    pub keep: Keep,
    /// Whether only the answer is wanted: GPU kernels are built, but no PTX is made of them, which takes most of the time. The bundle
    /// then is none to write or run.
    pub only_check: bool,
    /// Files to be put into the bundle beside the kernels: path and content.
    pub extra_files: Vec<(String, Vec<u8>)>,
}

impl<'a> CompileRequest<'a> {
    /// A request with the usual choices: deterministic, fully optimised, any token count.
    pub fn new(graph: &'a Graph, targets: Vec<&'static Target>) -> CompileRequest<'a> {
        CompileRequest {
            graph,
            info: LayerInfo { name: graph.name.clone(), ..LayerInfo::default() },
            targets,
            numerics: Numerics::default(),
            opt_level: 2,
            tokens: Phase::Both.tokens(),
            most_variants: MOST_VARIANTS,
            weights: WeightStorage::default(),
            cpu_arch: CpuArch::default(),
            prefix: String::new(),
            keep: Keep::default(),
            only_check: false,
            extra_files: Vec::new(),
        }
    }
}

/// Time that a step took.
#[derive(Clone, Debug, PartialEq)]
pub struct Timing {
    /// `passes`, `codegen`, `bundle`.
    pub step: &'static str,
    /// The target, where the step is for one.
    pub target: Option<&'static str>,
    /// Seconds.
    pub seconds: f64,
}

/// A compiled layer.
#[derive(Clone, Debug)]
pub struct Compiled {
    /// What was compiled for each target, in the order of the request.
    pub targets: Vec<CompiledTarget>,
    /// The same, ready to be written or run.
    pub bundle: Bundle,
    /// How long each step took.
    pub timings: Vec<Timing>,
}

/// What was compiled for one target.
#[derive(Clone, Debug)]
pub struct CompiledTarget {
    /// The target.
    pub target: &'static Target,
    /// Programs for ascending ranges of token counts.
    pub variants: Vec<CompiledVariant>,
}

/// A program for a range of token counts, with its decisions.
pub type CompiledVariant = Variant;

/// Compiles a layer.
///
/// # Errors
/// `no-targets`; `grid-too-large`; `unsupported-op`, with the reason, when the layer has something that no kernel computes; internal errors
/// for bugs.
pub fn compile(request: &CompileRequest<'_>) -> Result<Compiled, Diagnostic> {
    compile_reporting(request, &mut |_| {})
}

/// As [`compile`]; `progress` is told what begins.
///
/// # Errors
/// As [`compile`].
pub fn compile_reporting(request: &CompileRequest<'_>, progress: &mut dyn FnMut(&str)) -> Result<Compiled, Diagnostic> {
    if request.targets.is_empty() {
        return Err(Diagnostic::input("no-targets", format!("{} is to be compiled for no target", request.graph.name))
            .note("a name that `Target::by_name` does not know gives none")
            .help("name a target, such as `cpu` or `sm_90a`"));
    }
    let mut timings = Vec::new();
    let mut builder = BundleBuilder::new(request.graph, request.info.clone(), request.numerics);
    let options = CompileOptions {
        numerics: request.numerics,
        opt_level: request.opt_level,
        tokens: request.tokens,
        most_variants: request.most_variants,
        weights: request.weights,
        ..CompileOptions::default()
    };
    let prefix = symbol_prefix(request);
    let mut targets = Vec::new();
    for &target in &request.targets {
        progress(&format!("{}: choosing kernels", target.name));
        let start = Instant::now();
        let variants = moec_passes::compile(request.graph, target, &options)?;
        timings.push(Timing { step: "passes", target: Some(target.name), seconds: start.elapsed().as_secs_f64() });
        progress(&format!("{}: generating code", target.name));
        let start = Instant::now();
        crate::codegen::add_target(&mut builder, target, &variants, request, &prefix)?;
        if let Some(variant) = variants.first() {
            // Rewriting does not depend on the target.
            if let Some(saturation) = variant.saturation.as_ref().filter(|_| targets.is_empty()) {
                builder.add_proof(saturation.proof.to_text());
            }
            let text = |o: &OutputPrint| FingerprintText::new(&o.name, &o.text, &o.names);
            builder.add_fingerprint(target.name, &variant.fingerprint.outputs.iter().map(text).collect::<Vec<_>>());
        }
        timings.push(Timing { step: "codegen", target: Some(target.name), seconds: start.elapsed().as_secs_f64() });
        targets.push(CompiledTarget { target, variants });
    }
    for (path, content) in &request.extra_files {
        builder.add_file(path.clone(), content.clone());
    }
    let start = Instant::now();
    let bundle = builder.finish()?;
    timings.push(Timing { step: "bundle", target: None, seconds: start.elapsed().as_secs_f64() });
    Ok(Compiled { targets, bundle, timings })
}

/// What the symbols of this layer begin with: different layers have different ones.
fn symbol_prefix(request: &CompileRequest<'_>) -> String {
    let sources: Vec<String> = request.graph.params.iter().map(|p| format!("{:?}", p.source)).collect();
    let text =
        [request.prefix.clone(), request.info.name.clone(), moec_ir::graph::print(request.graph), sources.join("\n")];
    format!("moec_{}", &moec_bundle::sha256(text.join("\n").as_bytes())[..12])
}
