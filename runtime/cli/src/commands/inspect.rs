//! `moec inspect`: what a bundle holds.

use super::subject;
use super::{cuda_tools, kernel_table, placed, shared_weights};
use crate::output::{self, Ended, Outcome, table};
use moec::{Bundle, Diagnostic};
use moec_bundle::PlacedBundle;
use moec_bundle::manifest::{Launch, TargetEntry};
use moec_ir::ptx_release::{PtxRelease, ptx_version};
use moec_snapshot::{Kernels, Snapshot};
use std::path::PathBuf;

#[derive(clap::Args, Debug)]
pub struct Options {
    /// A bundle: a directory, or a .tar; or a bundle for ranks.
    pub bundle: PathBuf,
    /// Print one JSON object: hashes and sizes of files, launches, instructions by class; registers, spills and the size of
    /// the machine code where ptxas is installed.
    #[arg(long)]
    pub json: bool,
    /// Of two bundles for ranks, such as those of prefill and decode: which packed weights both have alike.
    #[arg(long, value_name = "BUNDLE", conflicts_with = "json")]
    pub shares: Option<PathBuf>,
}

pub fn run(options: &Options) -> Outcome {
    if let Some(other) = &options.shares {
        let [a, b] = [&options.bundle, other].map(PlacedBundle::open);
        let one = |d: Diagnostic| vec![d];
        output::print(&shared_weights::text(&a.map_err(one)?, &b.map_err(one)?).map_err(one)?);
        return Ok(Ended::Well);
    }
    if PlacedBundle::is_at(&options.bundle) {
        return placed::inspect(&options.bundle, options.json);
    }
    let bundle = subject::bundle(&options.bundle)?;
    if options.json {
        output::print(&format!("{:#}\n", as_json(&bundle)?));
    } else {
        output::print(&describe(&bundle));
    }
    Ok(Ended::Well)
}

fn as_json(bundle: &Bundle) -> Result<serde_json::Value, Vec<Diagnostic>> {
    let manifest = bundle.manifest();
    let mut files = serde_json::Map::new();
    for (path, content) in bundle.files() {
        let stored = manifest.files.get(path);
        let mut file = serde_json::json!({
            "bytes": content.len(), "sha256": stored.map(|f| &f.sha256),
        });
        if path.ends_with(".ptx") {
            let text = String::from_utf8_lossy(content);
            let snapshot = Snapshot::of_ptx(path, &text, Kernels::Digested).map_err(|d| vec![d])?;
            let assembled = cuda_tools::assembled(&text);
            let kernels = snapshot.sections.iter().map(|s| {
                let name = s.title.rsplit(": ").next().unwrap_or_default();
                let entry = assembled.as_ref().and_then(|a| a.report.entry(name));
                serde_json::json!({
                    "name": name, "figures": s.figures, "listing": s.lines.first(),
                    "registers": entry.map(|e| e.registers),
                    "spilled_bytes": entry.map(|e| e.spill_store_bytes + e.spill_load_bytes),
                })
            });
            file["kernels"] = kernels.collect();
            let release = ptx_version(&text).and_then(PtxRelease::of);
            file["ptx_version"] = serde_json::json!(release.map(|r| decimal(r.ptx)));
            file["cuda_driver"] = serde_json::json!(release.map(|r| decimal(r.cuda)));
            file["cubin_bytes"] = serde_json::json!(assembled.as_ref().map(|a| a.cubin.len()));
        }
        files.insert(path.to_string(), file);
    }
    Ok(serde_json::json!({
        "moec_version": manifest.moec_version, "layer": manifest.layer, "numerics": manifest.numerics,
        "inputs": manifest.inputs, "outputs": manifest.outputs, "params": manifest.params,
        "targets": manifest.targets, "files": files,
    }))
}

/// A version that is kept times ten.
fn decimal(version: u32) -> String {
    format!("{}.{}", version / 10, version % 10)
}

/// What the driver of a target's GPU has to be: that of the kernel that needs the newest.
fn driver_line(bundle: &Bundle, target: &TargetEntry) -> String {
    let ptx = |l: &Launch| match l {
        Launch::Gpu { file, .. } => ptx_version(&String::from_utf8_lossy(bundle.file(file).ok()?)),
        Launch::Cpu { .. } => None,
    };
    let newest = target.variants.iter().flat_map(|v| &v.kernels).filter_map(|k| ptx(&k.launch)).max();
    match newest.and_then(PtxRelease::of) {
        Some(r) => format!("{}: PTX {}, which needs {}\n", target.name, decimal(r.ptx), r.sentence()),
        None => String::new(),
    }
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
    out += &kernel_table::render(bundle);
    for target in &manifest.targets {
        out += &driver_line(bundle, target);
    }
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
