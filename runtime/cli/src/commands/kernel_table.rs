//! The table of kernels and variants that `compile` and `inspect` print.

use crate::output::table;
use moec::Bundle;
use moec_bundle::manifest::{Launch, Manifest};

/// Token count at which a variant's launches are shown: its largest, but no more than a usual prefill chunk.
const SHOWN_AT_MOST: u64 = 4096;

/// One row for each kernel of each variant.
pub fn render(bundle: &Bundle) -> String {
    let manifest = bundle.manifest();
    let mut rows = Vec::new();
    for target in &manifest.targets {
        for variant in &target.variants {
            let n_tokens = variant.tokens.max.min(SHOWN_AT_MOST).max(variant.tokens.min);
            for (k, entry) in variant.kernels.iter().enumerate() {
                let first = k == 0;
                let mut row = vec![
                    if first { target.name.clone() } else { String::new() },
                    if first { format!("{}..{}", variant.tokens.min, variant.tokens.max) } else { String::new() },
                    entry.name.clone(),
                    entry.tile.clone().unwrap_or_else(|| "-".to_string()),
                ];
                row.extend(launch_words(bundle, &entry.launch, n_tokens));
                rows.push(row);
            }
        }
    }
    if rows.is_empty() {
        return String::new();
    }
    table(&["target", "tokens", "kernel", "tile", "T", "grid", "block", "smem", "code bytes"], &rows)
}

/// Token count, grid, block, shared memory, bytes of code.
fn launch_words(bundle: &Bundle, launch: &Launch, n_tokens: u64) -> Vec<String> {
    match launch {
        Launch::Gpu { file, launch } => {
            let grid: Vec<String> = launch.grid.iter().map(|g| g.at(n_tokens).to_string()).collect();
            // As many blocks as run at once share the tiles.
            let grid = if launch.persistent { format!("{} tiles", grid[0]) } else { grid.join("x") };
            let bytes = bundle.manifest().files.get(file).map_or(0, |f| f.bytes);
            vec![
                n_tokens.to_string(),
                grid,
                launch.block_threads.to_string(),
                launch.dynamic_smem_bytes.to_string(),
                bytes.to_string(),
            ]
        }
        Launch::Cpu { launch } => {
            let items = format!("{} items", launch.items.at(n_tokens));
            vec![n_tokens.to_string(), items, "-".into(), "-".into(), "-".into()]
        }
    }
}

/// The layer in one line.
pub fn headline(manifest: &Manifest) -> String {
    let facts: Vec<String> = manifest.layer.facts.iter().map(|(k, v)| format!("{k} {v}")).collect();
    format!("{} ({}), numerics {}\n", manifest.layer.name, facts.join(", "), manifest.numerics.name())
}
