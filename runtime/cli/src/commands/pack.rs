//! `moec pack`: the weights of a bundle as its kernels read them, for programs that launch kernels without moec's runtime.

use crate::commands::subject::{self, Subject};
use crate::output::{self, Ended, Outcome};
use crate::progress::Progress;
use moec::{Checkpoint, Diagnostic, Weights};
use moec_bundle::manifest::ParamInfo;
use moec_ir::tile::Buffer;
use std::path::PathBuf;

#[derive(clap::Args, Debug)]
pub struct Options {
    /// A bundle: a directory, or a .tar.
    pub bundle: PathBuf,
    /// The checkpoint: a directory or a file.
    #[arg(long, value_name = "DIR|FILE")]
    pub weights: PathBuf,
    /// The target whose kernels read them [default: the bundle's first].
    #[arg(long, value_name = "T")]
    pub target: Option<String>,
    /// The file to write.
    #[arg(long, short, value_name = "FILE.safetensors")]
    pub output: PathBuf,
}

pub fn run(options: &Options) -> Outcome {
    let one = |d: Diagnostic| vec![d];
    let Subject::Bundle(bundle) = subject::open(&options.bundle)? else {
        let what = format!("`{}` is a model, not a bundle", options.bundle.display());
        let d = Diagnostic::input("bundle-not-found", what);
        return Err(vec![d.help("`moec compile MODEL --target T -o DIR` writes a bundle")]);
    };
    let first = bundle.manifest().targets.first().map_or("", |t| t.name.as_str());
    let target = options.target.as_deref().unwrap_or(first);
    let progress = Progress::start("packing weights");
    let weights = Weights::from_checkpoint(Checkpoint::open(&options.weights).map_err(one)?);
    let watch = |param: &ParamInfo, _: &Buffer| progress.say(&format!("packing `{}`", param.name));
    moec_runtime::write_packed(&bundle, target, &Weights::Watched(&weights, &watch), &options.output).map_err(one)?;
    drop(progress);
    let buffers = moec_runtime::weight_buffers(bundle.manifest(), target).map_err(one)?;
    let rows: Vec<Vec<String>> = buffers
        .iter()
        .map(|(name, b)| {
            let shape = format!("{}[{}, {}, {}]", b.dtype, b.batch, b.rows.at(0), b.pitch);
            vec![name.clone(), shape, b.bytes(0).to_string()]
        })
        .collect();
    output::print(&output::table(&["weight", "as kernels read it", "bytes"], &rows));
    Ok(Ended::Well)
}
