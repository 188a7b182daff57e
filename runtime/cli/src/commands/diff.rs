//! `moec diff`: what two bundles or PTX files do differently.

use super::cuda_tools::assembled;
use super::subject::{self, Subject};
use crate::output::{self, Ended, Outcome};
use moec::Diagnostic;
use moec_snapshot::{Difference, Kernels, Snapshot};
use std::path::{Path, PathBuf};

#[derive(clap::Args, Debug)]
pub struct Options {
    /// A bundle, or a PTX file.
    pub a: PathBuf,
    /// What it is compared with.
    pub b: PathBuf,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
    /// Do not list what changed within kernels, only figures and programs.
    #[arg(long)]
    pub brief: bool,
}

pub fn run(options: &Options) -> Outcome {
    let (mut a, mut b) = (open(&options.a, options.brief)?, open(&options.b, options.brief)?);
    // Two single kernels are compared whatever their files and they are called.
    if let ([x], [y]) = (&mut a.sections[..], &mut b.sections[..]) {
        y.title.clone_from(&x.title);
    }
    let difference = Difference::between(&a, &b);
    if options.json {
        let value = serde_json::json!({ "same": difference.is_empty(), "changes": difference.changes });
        output::print(&format!("{value:#}\n"));
    } else if difference.is_empty() {
        output::print("the same programs, launches and instructions\n");
    } else {
        output::print(&difference.to_string());
    }
    Ok(if difference.is_empty() { Ended::Well } else { Ended::WithFindings })
}

/// The snapshot of a bundle or PTX file, with the figures of `ptxas` where it is installed.
fn open(path: &Path, brief: bool) -> Result<Snapshot, Vec<Diagnostic>> {
    let kernels = if brief { Kernels::Digested } else { Kernels::Listed };
    let one = |d: Diagnostic| vec![d];
    let is_ptx = path.is_file() && path.extension().is_some_and(|e| e == "ptx");
    let (mut snapshot, files) = if is_ptx {
        let text = std::fs::read_to_string(path).map_err(|e| one(subject::unreadable(path, &e)))?;
        (Snapshot::of_ptx("kernel", &text, kernels).map_err(one)?, vec![("kernel".to_string(), text)])
    } else {
        match subject::open(path)? {
            Subject::Bundle(bundle) => {
                let ptx = bundle.files().filter(|(p, _)| p.ends_with(".ptx"));
                let files = ptx.map(|(p, c)| (p.to_string(), String::from_utf8_lossy(c).into_owned())).collect();
                (Snapshot::of(&bundle, kernels).map_err(one)?, files)
            }
            Subject::Model(_) => {
                let what = format!("`{}` is a model, neither a bundle nor a PTX file", path.display());
                let help = "`moec compile MODEL --target T -o DIR` writes a bundle";
                return Err(one(Diagnostic::input("bundle-not-found", what).help(help)));
            }
        }
    };
    for (file, text) in files {
        for entry in assembled(&text).iter().flat_map(|a| &a.report.entries) {
            let title = format!("{file}: {}", entry.name);
            if let Some(section) = snapshot.sections.iter_mut().find(|s| s.title == title) {
                section.figures.insert("registers".to_string(), entry.registers.into());
                let spilled = entry.spill_store_bytes + entry.spill_load_bytes;
                section.figures.insert("spilled bytes".to_string(), spilled.into());
            }
        }
    }
    Ok(snapshot)
}
