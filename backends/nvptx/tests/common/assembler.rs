//! NVIDIA's assembler and disassembler, where they are.
#![allow(dead_code, clippy::print_stderr)]

use moec_ptx::ptxas;
use std::path::{Path, PathBuf};

/// Where the tools are looked for.
fn places() -> Vec<PathBuf> {
    let mut places: Vec<PathBuf> = std::env::var_os("MOEC_PTXAS").map(PathBuf::from).into_iter().collect();
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target");
    places.extend(std::env::var_os("CARGO_TARGET_DIR").map(|t| PathBuf::from(t).join("tools")));
    places.push(workspace.join("tools"));
    places.extend(std::env::var_os("PATH").iter().flat_map(std::env::split_paths));
    places
}

pub fn find_ptxas() -> Option<PathBuf> {
    match ptxas::find(None, &places()) {
        Ok(path) => Some(path),
        Err(error) => {
            let required = std::env::var("MOEC_REQUIRE").unwrap_or_default();
            assert!(!required.split(',').any(|r| r == "ptxas"), "{error}");
            eprintln!("skipped: no ptxas; `cargo xtask tools` installs it");
            None
        }
    }
}

/// The disassembler, beside the assembler or where that is looked for.
pub fn find_nvdisasm(ptxas: &Path) -> Option<PathBuf> {
    let mut beside = places();
    beside.extend(ptxas.parent().map(Path::to_path_buf));
    let found = ptxas::find_tool("nvdisasm", None, &beside).ok();
    if found.is_none() {
        eprintln!("skipped: no nvdisasm; `cargo xtask tools` installs it");
    }
    found
}

/// The opcodes of a disassembly, in straight pieces that end at labels.
pub fn opcodes(sass: &str) -> Vec<Vec<String>> {
    let opcode = |line: &str| {
        let code = line.trim_start().strip_prefix("/*")?.split_once("*/")?.1.trim_start();
        let words: Vec<&str> = code.split_whitespace().collect();
        let word = if words.first()?.starts_with('@') { words.get(1)? } else { words.first()? };
        word.starts_with(|c: char| c.is_ascii_uppercase()).then(|| word.trim_end_matches(';').to_string())
    };
    let mut blocks: Vec<Vec<String>> = vec![Vec::new()];
    for line in sass.lines() {
        if line.trim_end().ends_with(':') {
            blocks.push(Vec::new());
        }
        blocks.last_mut().expect("one at least").extend(opcode(line));
    }
    blocks
}
