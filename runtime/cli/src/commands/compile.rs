//! `moec compile`: a layer to a bundle.

use super::emit::{self, Emit, Step};
use super::kernel_table;
use super::placed::{self, PlacedArgs};
use super::subject::{CompileArgs, ModelArgs, parse_target, parse_tokens};
use crate::output::{self, Ended, Outcome};
use crate::progress::Progress;
use moec::{CompileRequest, Compiled, CpuArch, Diagnostic, Keep, Phase, Target, Timing};
use std::path::PathBuf;

#[derive(clap::Args, Debug)]
pub struct Options {
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub placed: PlacedArgs,
    /// What to compile for: sm_80 sm_86 sm_89 sm_90a sm_100f sm_100a sm_103a sm_107f sm_120f sm_120a, a chip (l40s rtx4090 h100 h200 b200 gb300 rtx5090 …), or cpu.
    #[arg(long, short, required = true, value_delimiter = ',', value_parser = parse_target, value_name = "T[,T…]")]
    pub target: Vec<&'static Target>,
    /// The directory for the bundle, or a .tar for one file; an older bundle there is replaced.
    #[arg(long, short, value_name = "DIR")]
    pub output: PathBuf,
    /// Smallest and largest token count, as A..B with both included.
    #[arg(long, value_parser = parse_tokens, value_name = "A..B")]
    pub tokens: Option<(u64, u64)>,
    /// The token counts of a phase: decode up to 256, prefill above. With --tokens: those that are in both.
    #[arg(long, value_enum, default_value = "both")]
    pub phase: PhaseArg,
    /// Most programs for a target, each for a range of token counts.
    #[arg(long, default_value_t = moec_passes::MOST_VARIANTS, value_name = "N")]
    pub variants: usize,
    /// The processors that code for the target cpu is for [default: x86-64].
    #[arg(long, value_enum, value_name = "ARCH")]
    pub cpu_arch: Option<CpuArchArg>,
    #[command(flatten)]
    pub compile: CompileArgs,
    /// What to write beside the kernels: graph, egraph, tile, llvm, ptx, cubin, sass, manifest, header, c, rust.
    #[arg(long, value_delimiter = ',', value_enum, value_name = "KIND[,KIND…]")]
    pub emit: Vec<Emit>,
    /// What names in layer.h and layer.c begin with [default: the layer's name].
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    pub prefix: String,
    /// Print the layer after a step, on standard error.
    #[arg(long, value_enum, value_name = "PASS", conflicts_with = "print_after_all")]
    pub print_after: Option<Step>,
    /// Print the layer after every step, on standard error.
    #[arg(long)]
    pub print_after_all: bool,
    /// Say on standard error what was decided and how long each step took.
    #[arg(long)]
    pub remarks: bool,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub enum PhaseArg {
    Decode,
    Prefill,
    Both,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub enum CpuArchArg {
    #[value(name = "x86-64")]
    X86_64,
    Aarch64,
}

impl Options {
    /// The processors of a CPU target.
    ///
    /// # Errors
    /// `wrong-usage` when they are given without one.
    pub(super) fn arch(&self) -> Result<CpuArch, Diagnostic> {
        if self.cpu_arch.is_some() && !self.target.iter().any(|t| t.is_cpu()) {
            let d = Diagnostic::machine("wrong-usage", "--cpu-arch is for the target cpu, which is not among --target");
            return Err(d.help("leave it out, or add `cpu` to --target"));
        }
        Ok(match self.cpu_arch {
            None | Some(CpuArchArg::X86_64) => CpuArch::X86_64,
            Some(CpuArchArg::Aarch64) => CpuArch::Aarch64,
        })
    }

    /// The token counts to compile for: those of the phase that lie in the range.
    ///
    /// # Errors
    /// `wrong-usage` when there are none.
    pub(super) fn token_range(&self) -> Result<(u64, u64), Diagnostic> {
        let phase = match self.phase {
            PhaseArg::Decode => Phase::Decode,
            PhaseArg::Prefill => Phase::Prefill,
            PhaseArg::Both => Phase::Both,
        };
        let (first, last) = phase.tokens();
        let (from, to) = self.tokens.unwrap_or((first, last));
        if from > last || to < first {
            let what = format!("--tokens {from}..{to} has no token count of the phase, {first}..{last}");
            return Err(Diagnostic::machine("wrong-usage", what).help("leave out --phase or --tokens"));
        }
        Ok((from.max(first), to.min(last)))
    }
}

pub fn run(options: &Options) -> Outcome {
    if let Some(mesh) = options.placed.mesh {
        return placed::compile(options, mesh);
    }
    let layer =
        options.model.open()?.with_activations(options.compile.activations.unwrap_or_default()).map_err(|d| vec![d])?;
    let tokens = options.token_range().map_err(|d| vec![d])?;
    let mut targets = options.target.clone();
    targets.dedup_by_key(|t| t.name);
    let request = CompileRequest {
        info: layer.info.clone(),
        numerics: options.compile.numerics,
        opt_level: options.compile.opt_level,
        weights: options.compile.weight_storage,
        tokens,
        most_variants: options.variants,
        cpu_arch: options.arch().map_err(|d| vec![d])?,
        prefix: options.prefix.clone(),
        keep: Keep { tile_text: options.emit.contains(&Emit::Tile), llvm_ir: options.emit.contains(&Emit::Llvm) },
        ..CompileRequest::new(&layer.graph, targets)
    };
    let progress = Progress::start("compiling");
    let compiled = moec::compile_reporting(&request, &mut |step| progress.say(step)).map_err(|d| vec![d])?;
    drop(progress);
    let compiled = emit::add_files(compiled, &options.emit, &layer.graph, &options.prefix).map_err(|d| vec![d])?;
    for step in Step::ALL {
        if options.print_after_all || options.print_after == Some(step) {
            output::remark(
                &emit::step_text(step, &layer.graph, &compiled, options.compile.weight_storage).map_err(|d| vec![d])?,
            );
        }
    }
    if options.output.extension().is_some_and(|e| e == "tar") {
        compiled.bundle.write_archive(&options.output).map_err(|d| vec![d])?;
    } else {
        compiled.bundle.write(&options.output).map_err(|d| vec![d])?;
    }
    if options.remarks {
        output::remark(&remarks(&compiled));
    }
    output::print(&format!(
        "{}{}",
        kernel_table::headline(compiled.bundle.manifest()),
        kernel_table::render(&compiled.bundle)
    ));
    Ok(Ended::Well)
}

/// Decisions and times, one a line.
fn remarks(compiled: &Compiled) -> String {
    let mut lines = Vec::new();
    for t in &compiled.targets {
        for v in &t.variants {
            let Some(s) = &v.saturation else { continue };
            let fired: Vec<String> = s.fired.iter().map(|(name, n)| format!("{name} x{n}")).collect();
            lines.push(format!(
                "remark: {} {}..{}: {} e-nodes in {} rounds; {} kernels; {}",
                t.target.name,
                v.tokens.0,
                v.tokens.1,
                s.nodes,
                s.iterations,
                v.program.kernels.len(),
                fired.join(", ")
            ));
        }
    }
    lines.extend(compiled.timings.iter().map(timing_words));
    lines.join("\n")
}

fn timing_words(t: &Timing) -> String {
    format!("remark: {} {}: {:.1} ms", t.step, t.target.unwrap_or("all"), t.seconds * 1e3)
}
