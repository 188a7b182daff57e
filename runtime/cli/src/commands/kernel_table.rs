//! The table of kernels and variants that `compile` and `inspect` print.

use crate::output::table;
use moec::Bundle;
use moec_bundle::manifest::{Launch, Manifest};
use moec_ir::tile::{Body, Kernel};

/// Token count at which a variant's launches are shown: its largest, but no more than a usual prefill chunk.
const SHOWN_AT_MOST: u64 = 4096;

/// One row for each kernel of each variant. `kernels` gives the tile program of (target, variant), where it is known.
pub fn render(bundle: &Bundle, kernels: &dyn Fn(&str, usize) -> Option<Vec<Kernel>>) -> String {
    let manifest = bundle.manifest();
    let mut rows = Vec::new();
    for target in &manifest.targets {
        for (v, variant) in target.variants.iter().enumerate() {
            let n_tokens = variant.tokens.max.min(SHOWN_AT_MOST).max(variant.tokens.min);
            let programs = kernels(&target.name, v);
            for (k, entry) in variant.kernels.iter().enumerate() {
                let tile = programs.as_ref().and_then(|p| p.get(k)).map_or("-".to_string(), tile_words);
                let first = k == 0;
                let mut row = vec![
                    if first { target.name.clone() } else { String::new() },
                    if first { format!("{}..{}", variant.tokens.min, variant.tokens.max) } else { String::new() },
                    entry.name.clone(),
                    tile,
                ];
                row.extend(launch_words(bundle, &entry.launch, n_tokens));
                rows.push(row);
            }
        }
    }
    if rows.is_empty() {
        return String::new();
    }
    let mut header = vec!["target", "tokens", "kernel", "tile", "T", "grid", "block", "smem", "code bytes"];
    // A bundle does not hold tile programs.
    if rows.iter().all(|row| row[3] == "-") {
        header.remove(3);
        rows.iter_mut().for_each(|row| {
            row.remove(3);
        });
    }
    table(&header, &rows)
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

/// How a kernel's work is cut: `64x128x64, 4 stages` for products.
fn tile_words(kernel: &Kernel) -> String {
    let s = kernel.schedule;
    match kernel.body {
        Body::Contract(_) => format!("{}x{}x{}, {} stages", s.tile_m, s.tile_n, s.tile_k, s.stages),
        Body::Rows(_) | Body::Quantise(_) => format!("{} rows", s.tile_m),
        Body::Plan(_) => "sort".to_string(),
        Body::Map(_) | Body::Combine(_) => format!("{}x{}", s.tile_m, s.tile_n),
    }
}

/// The layer in one line.
pub fn headline(manifest: &Manifest) -> String {
    let facts: Vec<String> = manifest.layer.facts.iter().map(|(k, v)| format!("{k} {v}")).collect();
    format!("{} ({}), numerics {}\n", manifest.layer.name, facts.join(", "), manifest.numerics.name())
}
