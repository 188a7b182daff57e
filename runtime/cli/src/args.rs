//! The command line, as `moec --help` shows it.

use crate::report::{Color, MessageFormat};
use clap::{Parser, Subcommand};

/// Compiles Mixture-of-Experts layers to GPU and CPU code.
#[derive(Parser, Debug)]
#[command(name = "moec", version, max_term_width = 110, after_help = AFTER)]
pub struct Args {
    /// How diagnostics are written to standard error.
    #[arg(long, global = true, value_enum, default_value = "human")]
    pub message_format: MessageFormat,
    /// Colours in diagnostics.
    #[arg(long, global = true, value_enum, default_value = "auto")]
    pub color: Color,
    #[command(subcommand)]
    pub command: Command,
}

const AFTER: &str = "MODEL is a model directory (config.json, and *.safetensors where weights are needed), a config.json, \
a GGUF, ONNX or .pt2 file, or a layer graph (a JSON file with \"moec_graph\": 1, as \
`moec schema` describes it).\n\
Exit codes: 0 done; 1 the input is wrong; 2 wrong usage, or this machine lacks something; 70 a bug of moec.";

#[derive(Subcommand, Debug)]
pub enum Command {
    /// Compile a layer for one or more targets and write a bundle.
    Compile(crate::commands::compile::Options),
    /// Run a layer on the CPU, on a GPU, or in the PTX emulator.
    Run(crate::commands::run::Options),
    /// Time a layer and its kernels on the CPU, beside a plain read of memory, or by turns with another bundle.
    Bench(crate::commands::bench::Options),
    /// Run one PTX kernel in the emulator, from a launch recipe; or a program that calls the CUDA driver.
    Emulate(crate::commands::emulate::Options),
    /// Tell whether a layer can be compiled, and if not, why.
    Check(crate::commands::check::Options),
    /// Tell which rewrites a layer gets and what each saves, or explain a diagnostic code.
    Explain(crate::commands::explain::Options),
    /// Show the kernels of a bundle: variants, launches, parameters.
    Inspect(crate::commands::inspect::Options),
    /// Compare two bundles or PTX files: programs, launches, instructions. Exit code 1 when they differ.
    Diff(crate::commands::diff::Options),
    /// Write the weights of a bundle as its kernels read them, for programs without moec's runtime.
    Pack(crate::commands::pack::Options),
    /// Spread experts over ranks by measured counts: which rank holds which, with redundant experts for `moec run --mesh`.
    Place(crate::commands::place::Options),
    /// List the rewrites, their numeric classes and side conditions.
    Rules(crate::commands::rules::Options),
    /// Print the JSON schema of layer graphs.
    Schema(crate::commands::schema::Options),
    /// Tell what this machine has, and how to get what it lacks.
    Doctor(crate::commands::doctor::Options),
}
