//! Folders and figures of this machine that several commands need.

use std::path::{Path, PathBuf};

/// The root of the workspace.
pub fn root() -> PathBuf {
    // tests/xtask is two levels below it.
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap_or(here).to_path_buf()
}

/// Cargo's target folder.
pub fn target_dir() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(dir) => root().join(dir),
        None => root().join("target"),
    }
}

/// Where the assembler and the disassemblers are installed.
pub fn tools_dir() -> PathBuf {
    target_dir().join("tools")
}

/// Where cargo keeps the packages that it has fetched.
pub fn cargo_home() -> PathBuf {
    let home = || PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cargo");
    std::env::var_os("CARGO_HOME").map_or_else(home, PathBuf::from)
}

/// The cargo that runs this command.
pub fn cargo() -> std::process::Command {
    let mut command = std::process::Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root()).env("CARGO_TERM_COLOR", "never");
    command
}

/// How many compiler processes fit this machine: one a core, and 2.5 GB of free memory for each.
pub fn jobs() -> usize {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let free_kb = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| {
        let line = text.lines().find(|l| l.starts_with("MemAvailable:"))?;
        line.split_whitespace().nth(1)?.parse::<usize>().ok()
    });
    let by_memory = free_kb.map_or(cores, |kb| kb / 2_500_000);
    cores.min(by_memory).max(1)
}
