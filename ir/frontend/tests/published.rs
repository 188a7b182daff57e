//! The layers of published models, in numbers.

use moec_frontend::{LayerOptions, ModelConfig, layers};
use std::path::PathBuf;

fn config(name: &str) -> ModelConfig {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/configs").join(format!("{name}.json"));
    ModelConfig::open(path).unwrap_or_else(|d| panic!("{name}: {d:?}"))
}

/// One line about the first MoE layer: MoE layers; E, k, H, F; shared width; router.
fn line(name: &str) -> String {
    let config = config(name);
    let layer = config.layer(None, &LayerOptions::default()).unwrap_or_else(|d| panic!("{name}: {d:?}"));
    let f = layer.description;
    let shared = f.shared.map_or(0, |s| s.ffn);
    let moe = layers::ranges(&config.moe_layers());
    format!("{moe}: {} {} {} {} {shared} | {} | {}", f.n_experts, f.top_k, f.hidden, f.ffn, f.router, f.activation)
}

#[test]
fn print_all() {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/configs");
    let mut names: Vec<_> = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
    names.sort();
    for p in names {
        let name = p.file_stem().unwrap().to_str().unwrap();
        match ModelConfig::open(&p) {
            Ok(c) => match c.layer(None, &LayerOptions::default()) {
                Ok(_) => println!("(\"{name}\", \"{}\"),", line(name)),
                Err(d) => println!("{name} !! {d:?}"),
            },
            Err(d) => println!("{name} !! {} {}", d[0].code, d[0].message),
        }
    }
}
