//! The kernels of the corpus and small helpers that several tests share.
#![allow(dead_code)]

use std::path::{Path, PathBuf};

use moec_ptx::ast::{Module, Operand, Statement};
use moec_ptx::buffers::{self, Buffers};
use moec_ptx::launch::{self, Launch};

/// One folder of the corpus.
pub struct Entry {
    pub name: String,
    pub ptx: String,
    pub launch_json: String,
    pub launch: Launch,
    pub buffers: Buffers,
    pub expected: Buffers,
}

/// The corpus of this crate, or another folder of entries that `MOEC_CORPUS` names.
pub fn corpus_folder() -> PathBuf {
    std::env::var_os("MOEC_CORPUS").map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus"), PathBuf::from)
}

/// The folder for what tests write: the build folder's `ptx-reports`.
pub fn report_folder() -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target"), PathBuf::from);
    let folder = target.join("ptx-reports");
    std::fs::create_dir_all(&folder).expect("the build folder should be writable");
    folder
}

/// Names of all entries, sorted.
pub fn entry_names() -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(corpus_folder())
        .expect("the corpus should be there")
        .map(|item| item.expect("the corpus should be readable"))
        .filter(|item| item.path().join("kernel.ptx").is_file())
        .map(|item| item.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

/// Reads one entry.
pub fn entry(name: &str) -> Entry {
    let folder = corpus_folder().join(name);
    let text = |file: &str| {
        let path = folder.join(file);
        std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    };
    let tensors = |file: &str| {
        let path = folder.join(file);
        let bytes = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        buffers::read(&bytes).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    };
    let launch_json = text("launch.json");
    Entry {
        name: name.to_string(),
        ptx: text("kernel.ptx"),
        launch: launch::parse(&launch_json).unwrap_or_else(|error| panic!("{name}: {error}")),
        launch_json,
        buffers: tensors("buffers.safetensors"),
        expected: tensors("expected.safetensors"),
    }
}

/// Calls `visit` for every statement of a body, those of inner scopes included.
pub fn walk<'a>(body: &'a [Statement], visit: &mut impl FnMut(&'a Statement)) {
    for statement in body {
        visit(statement);
        if let Statement::Scope(_, inner) = statement {
            walk(inner, visit);
        }
    }
}

/// What a module exercises beside plain arithmetic, loads and stores: short names of instructions, sorted.
pub fn exercised(module: &Module) -> Vec<String> {
    const PLAIN: [&str; 36] = [
        "add", "sub", "mul", "mad", "fma", "mov", "cvta", "ld", "st", "setp", "set", "selp", "and", "or", "xor", "not",
        "shl", "shr", "bra", "ret", "exit", "min", "max", "neg", "abs", "cnot", "rem", "pragma", "loc", "slct", "call",
        "nop", "copysign", "testp", "trap", "brkpt",
    ];
    // Words that say how an instruction is ordered or hinted, not what it does.
    const MUTED: [&str; 16] = [
        "sync",
        "aligned",
        "row",
        "col",
        "cta",
        "gpu",
        "sys",
        "global",
        "shared",
        "shared::cta",
        "relaxed",
        "weak",
        "uni",
        "b64",
        "bulk_group",
        "mbarrier::complete_tx::bytes",
    ];
    let mut names = std::collections::BTreeSet::new();
    for function in module.functions() {
        let Some(body) = &function.body else { continue };
        walk(body, &mut |statement| {
            if let Statement::Instruction(i) = statement {
                let packed = i.modifiers.iter().any(|m| m.ends_with("x2"));
                if PLAIN.contains(&i.opcode.as_str()) && !packed {
                    return;
                }
                let mut name = i.opcode.clone();
                for modifier in i.modifiers.iter().filter(|m| !MUTED.contains(&m.as_str())) {
                    name.push('.');
                    name.push_str(modifier);
                }
                let in_registers = i.opcode == "wgmma" && matches!(i.operands.get(1), Some(Operand::Vector(_)));
                if in_registers {
                    name.push_str(" (A in registers)");
                }
                names.insert(name);
            }
        });
    }
    names.into_iter().collect()
}

/// The opcodes that a list of names starts with, each once, for a narrow column.
pub fn families(names: &[String]) -> String {
    let mut families: Vec<String> = names
        .iter()
        .map(|name| {
            let mut words = name.split('.');
            let first = words.next().unwrap_or_default();
            match (first, words.next()) {
                (
                    "tcgen05" | "wgmma" | "mbarrier" | "cp" | "fence" | "barrier" | "mma" | "atom" | "red",
                    Some(second),
                ) => {
                    format!("{first}.{second}")
                }
                _ => first.to_string(),
            }
        })
        .collect();
    families.dedup();
    families.join(" ")
}
