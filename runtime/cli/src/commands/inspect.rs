//! `moec inspect`: what a bundle holds.

use super::kernel_table;
use super::subject::{self, Subject};
use crate::output::{self, Ended, Outcome, table};
use moec::{Bundle, Diagnostic};
use std::path::PathBuf;

#[derive(clap::Args, Debug)]
pub struct Options {
    /// A bundle: a directory, or a .tar.
    pub bundle: PathBuf,
}

pub fn run(options: &Options) -> Outcome {
    let bundle = match subject::open(&options.bundle)? {
        Subject::Bundle(bundle) => bundle,
        Subject::Model(_) => {
            let what = format!("`{}` is a model, not a bundle", options.bundle.display());
            return Err(vec![
                Diagnostic::input("bundle-not-found", what)
                    .help("`moec compile MODEL --target T -o DIR` writes a bundle"),
            ]);
        }
    };
    output::print(&describe(&bundle));
    Ok(Ended::Well)
}

fn describe(bundle: &Bundle) -> String {
    let manifest = bundle.manifest();
    let mut out = kernel_table::headline(manifest);
    out += &format!("written by moec {}\n\n", manifest.moec_version);
    let tensors = |list: &[moec_bundle::manifest::TensorInfo]| {
        list.iter().map(|t| format!("{} {}", t.name, t.ty)).collect::<Vec<_>>().join(", ")
    };
    out += &format!("inputs   {}\noutputs  {}\n\n", tensors(&manifest.inputs), tensors(&manifest.outputs));
    let params: Vec<Vec<String>> =
        manifest.params.iter().map(|p| vec![p.name.clone(), p.ty.to_string(), p.ty.bytes(0).to_string()]).collect();
    out += &table(&["parameter", "type", "bytes"], &params);
    out.push('\n');
    out += &kernel_table::render(bundle, &|_, _| None);
    for target in &manifest.targets {
        for v in &target.variants {
            let n = v.tokens.max.min(4096).max(v.tokens.min);
            let workspace = v.workspace_layout(v.workspace, n).bytes;
            let packed: u64 = v.buffers.iter().filter(|b| b.role.param().is_some()).map(|b| b.bytes(n)).sum();
            out += &format!(
                "{} {}..{}: {packed} bytes of packed weights, {workspace} bytes of workspace at T={n}\n",
                target.name, v.tokens.min, v.tokens.max
            );
        }
    }
    out
}
