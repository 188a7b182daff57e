//! A bundle as sections.

use crate::{Kernels, Section, Snapshot};
use moec_bundle::Bundle;
use moec_bundle::manifest::{KernelEntry, Launch, Manifest, Variant};
use moec_ir::diag::Diagnostic;
use moec_ptx::ast::Module;
use moec_ptx::listing::{Listing, listings};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

/// Token counts at which launches are shown, within a variant's range.
const SHOWN_AT_MOST: u64 = 4096;

impl Snapshot {
    /// A compiled layer.
    ///
    /// # Errors
    /// Those of [`Snapshot::of_ptx`], for a bundle that moec did not write.
    pub fn of(bundle: &Bundle, kernels: Kernels) -> Result<Snapshot, Diagnostic> {
        let manifest = bundle.manifest();
        let mut sections = vec![layer(manifest)];
        for target in &manifest.targets {
            sections.extend(target.variants.iter().map(|v| program(&target.name, v)));
        }
        for (path, content) in bundle.files().filter(|(path, _)| path.ends_with(".ptx")) {
            sections.extend(functions(path, &String::from_utf8_lossy(content), kernels)?);
        }
        Ok(Snapshot { sections })
    }
}

fn layer(manifest: &Manifest) -> Section {
    let mut lines = vec![manifest.layer.name.clone(), format!("numerics {}", manifest.numerics.name())];
    lines.extend(manifest.layer.facts.iter().map(|(k, v)| format!("{k} {v}")));
    let tensors = [("input", &manifest.inputs), ("output", &manifest.outputs)];
    lines.extend(
        tensors.iter().flat_map(|(what, list)| list.iter().map(move |t| format!("{what} {} {}", t.name, t.ty))),
    );
    for p in &manifest.params {
        let stored = p.stored.map_or(String::new(), |f| format!(", stored as {f}"));
        lines.push(format!("parameter {} {}{stored}", p.name, p.ty));
    }
    Section { title: "layer".to_string(), figures: BTreeMap::new(), lines }
}

fn program(target: &str, v: &Variant) -> Section {
    let most = v.tokens.max.min(SHOWN_AT_MOST).max(v.tokens.min);
    let counts = if v.tokens.min == most { vec![most] } else { vec![v.tokens.min, most] };
    let mut lines: Vec<String> = v.kernels.iter().map(|k| launch(k, &counts)).collect();
    lines.push(format!("workspace {} bytes for {most} tokens", v.workspace_layout(v.workspace, most).bytes));
    let title = format!("{target}, {} to {} tokens", v.tokens.min, v.tokens.max);
    Section { title, figures: BTreeMap::new(), lines }
}

fn launch(k: &KernelEntry, counts: &[u64]) -> String {
    let each = |f: &dyn Fn(u64) -> String| counts.iter().map(|&n| f(n)).collect::<Vec<_>>().join(" .. ");
    let class = k.class.name();
    match &k.launch {
        Launch::Cpu { launch } => format!("{} ({class}): {} items", k.name, each(&|n| launch.items.at(n).to_string())),
        Launch::Gpu { file, launch } => {
            let grid = each(&|n| launch.grid.map(|g| g.at(n).to_string()).join("x"));
            let mut words = vec![
                format!("grid {grid}"),
                format!("{} threads", launch.block_threads),
                format!("{} bytes of shared memory", launch.dynamic_smem_bytes),
            ];
            words.extend((launch.cluster > 1).then(|| format!("clusters of {}", launch.cluster)));
            words.extend(launch.persistent.then(|| "persistent".to_string()));
            words.extend(launch.programmatic.then(|| "programmatic".to_string()));
            let maps = launch.tensor_maps.len();
            words.extend((maps > 0).then(|| format!("{maps} tensor maps")));
            format!("{} ({class}): {} from {file}", k.name, words.join(", "))
        }
    }
}

/// A section for each function of a PTX file.
pub(crate) fn functions(path: &str, text: &str, kernels: Kernels) -> Result<Vec<Section>, Diagnostic> {
    let module = Module::parse(text).map_err(|e| {
        Diagnostic::input("ptx-syntax", format!("`{path}` is no PTX: {e}")).help("give a PTX file or a bundle")
    })?;
    Ok(listings(&module).into_iter().map(|l| function(path, l, kernels)).collect())
}

fn function(path: &str, l: Listing, kernels: Kernels) -> Section {
    let mut figures: BTreeMap<String, u64> = l.instructions.iter().map(|(c, n)| (c.name().to_string(), *n)).collect();
    figures.insert("instructions".to_string(), l.n_instructions());
    figures.extend((l.static_smem_bytes > 0).then(|| ("static shared bytes".to_string(), l.static_smem_bytes)));
    let lines = match kernels {
        Kernels::Listed => l.lines,
        Kernels::Digested => {
            let hash = Sha256::digest(l.lines.join("\n").as_bytes());
            vec![format!("sha256 {}", hash.iter().map(|b| format!("{b:02x}")).collect::<String>())]
        }
    };
    Section { title: format!("{path}: {}", l.name), figures, lines }
}
