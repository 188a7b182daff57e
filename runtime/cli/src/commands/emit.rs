//! What `--emit` and `--print-after` show of a compile.

use super::aot::Aot;
use super::cuda_tools;
use moec::{Bundle, Compiled, Diagnostic, WeightStorage};
use moec_ir::graph::Graph;
use std::collections::BTreeMap;
use std::fmt::Write;

/// Files that can be asked for beside the kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Emit {
    /// `graph.txt`: the layer as the front end read it; `<target>/graph-A-B.txt`: after rewriting.
    Graph,
    /// `egraph.json`: all forms of the layer, as viewers of `egraph-serialize` read it.
    Egraph,
    /// `<target>/tile-A-B.txt`: the tile programs.
    Tile,
    /// `<target>/fingerprint.txt`: what decides the bits of outputs, which every bundle holds.
    Fingerprint,
    /// `<target>/KERNEL-A-B.ll`: optimised LLVM IR.
    Llvm,
    /// The PTX, which every bundle holds.
    Ptx,
    /// `<target>/….cubin`, assembled by ptxas.
    Cubin,
    /// `<target>/….sass`, disassembled by nvdisasm.
    Sass,
    /// The manifest, which every bundle holds.
    Manifest,
    /// `layer.h`: the layer for C and C++, and tables of its kernels.
    Header,
    /// `layer.c`: what `layer.h` declares, with a GPU's kernels in it (cubins where `cubin` is asked for, too), to be linked with
    /// `cpu/layer.o`; comes with the header.
    C,
    /// `layer.rs`: the same as a Rust module.
    Rust,
}

/// Steps after which the layer can be printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Step {
    /// The graph as read.
    Frontend,
    /// The graph after rewriting, for each variant.
    Saturate,
    /// The tile program before launches are merged.
    Lower,
    /// The tile program that is compiled.
    Schedule,
}

impl Step {
    /// In the order of the compile.
    pub const ALL: [Step; 4] = [Step::Frontend, Step::Saturate, Step::Lower, Step::Schedule];

    fn name(self) -> &'static str {
        match self {
            Step::Frontend => "frontend",
            Step::Saturate => "saturate",
            Step::Lower => "lower",
            Step::Schedule => "schedule",
        }
    }
}

/// The layer after a step, for every target and variant.
pub fn step_text(step: Step, graph: &Graph, compiled: &Compiled, weights: WeightStorage) -> Result<String, Diagnostic> {
    if step == Step::Frontend {
        return Ok(format!("; after frontend\n{}", moec_ir::graph::print(graph)));
    }
    let mut out = String::new();
    for t in &compiled.targets {
        for v in &t.variants {
            let text = match step {
                Step::Frontend => String::new(),
                Step::Saturate => moec_ir::graph::print(&v.graph),
                Step::Lower => {
                    moec_passes::lower_graph(&v.graph, t.target, v.saturation.is_some(), weights)?.to_string()
                }
                Step::Schedule => v.program.to_string(),
            };
            // Writing to a string cannot fail.
            let _ = writeln!(out, "; after {}: {} {}..{}\n{text}", step.name(), t.target.name, v.tokens.0, v.tokens.1);
        }
    }
    Ok(out)
}

/// Adds the files that were asked for to the bundle. Names in C begin with `prefix`.
///
/// # Errors
/// `no-ptxas` for cubin and SASS; `wrong-usage` for a prefix that is no name.
pub fn add_files(mut compiled: Compiled, emit: &[Emit], graph: &Graph, prefix: &str) -> Result<Compiled, Diagnostic> {
    let mut cubins: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    if emit.contains(&Emit::Cubin) {
        assembled(&compiled.bundle, Emit::Cubin, &mut cubins)?;
    }
    // Sources hold them in place of the PTX.
    let by_ptx: BTreeMap<String, Vec<u8>> =
        cubins.iter().map(|(path, cubin)| (path.replace(".cubin", ".ptx"), cubin.clone())).collect();
    let mut extra: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    for kind in emit {
        match kind {
            Emit::Graph => {
                extra.insert("graph.txt".into(), moec_ir::graph::print(graph).into_bytes());
                each_variant(&compiled, |target, tokens, v| {
                    extra.insert(format!("{target}/graph-{tokens}.txt"), moec_ir::graph::print(&v.graph).into_bytes());
                });
            }
            Emit::Egraph => {
                let egraph = moec_passes::egraph(graph, compiled.bundle.manifest().numerics);
                let text = serde_json::to_string_pretty(&egraph).unwrap_or_default();
                extra.insert("egraph.json".into(), format!("{text}\n").into_bytes());
            }
            Emit::Header | Emit::C | Emit::Rust => {
                let aot = Aot::new(&compiled.bundle, prefix, &by_ptx)?;
                if *kind == Emit::Rust {
                    extra.insert("layer.rs".into(), aot.rust()?.into_bytes());
                    continue;
                }
                extra.insert("layer.h".into(), aot.header().into_bytes());
                if *kind == Emit::C {
                    extra.insert("layer.c".into(), aot.source()?.into_bytes());
                }
            }
            Emit::Cubin => extra.append(&mut cubins),
            Emit::Sass => assembled(&compiled.bundle, Emit::Sass, &mut extra)?,
            // Kept by the compile itself, or part of every bundle.
            Emit::Tile | Emit::Fingerprint | Emit::Llvm | Emit::Ptx | Emit::Manifest => {}
        }
    }
    if !extra.is_empty() {
        let mut files: BTreeMap<String, Vec<u8>> =
            compiled.bundle.files().map(|(path, content)| (path.to_string(), content.to_vec())).collect();
        files.append(&mut extra);
        compiled.bundle = Bundle::new(compiled.bundle.manifest().clone(), files)?;
    }
    Ok(compiled)
}

fn each_variant(compiled: &Compiled, mut f: impl FnMut(&str, String, &moec::CompiledVariant)) {
    for t in &compiled.targets {
        t.variants.iter().for_each(|v| f(t.target.name, format!("{}-{}", v.tokens.0, v.tokens.1), v));
    }
}

/// Assembles every PTX file of the bundle for its own target.
fn assembled(bundle: &Bundle, kind: Emit, extra: &mut BTreeMap<String, Vec<u8>>) -> Result<(), Diagnostic> {
    let missing = |tool: &str, package: &str| {
        Diagnostic::machine("no-ptxas", format!("there is no {tool} on this machine")).help(format!(
            "`pip install {package}`, or install a CUDA toolkit; `moec doctor` says where it is looked for"
        ))
    };
    let places = cuda_tools::places();
    let ptxas = moec_ptx::ptxas::find(None, &places).map_err(|_| missing("ptxas", "nvidia-cuda-nvcc"))?;
    for (path, content) in bundle.files().filter(|(path, _)| path.ends_with(".ptx")) {
        let target = path.split('/').next().unwrap_or_default();
        let text = String::from_utf8_lossy(content);
        let image = moec_ptx::ptxas::assemble(&ptxas, &text, target)
            .map_err(|e| Diagnostic::internal("internal-error", format!("`{path}`: {e}")))?;
        let stem = path.trim_end_matches(".ptx");
        if kind == Emit::Sass {
            let tool = moec_ptx::ptxas::find_tool("nvdisasm", None, &places)
                .map_err(|_| missing("nvdisasm", "nvidia-cuda-nvdisasm"))?;
            let sass = moec_ptx::ptxas::disassemble(&tool, &image.cubin)
                .map_err(|e| Diagnostic::internal("internal-error", format!("`{path}`: {e}")))?;
            extra.insert(format!("{stem}.sass"), sass.into_bytes());
        } else {
            extra.insert(format!("{stem}.cubin"), image.cubin);
        }
    }
    Ok(())
}
