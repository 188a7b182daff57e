//! Changes one thing in valid quantised checkpoints for a while: `fuzz-checkpoints SECONDS SEED [ONLY]`. `cargo xtask fuzz
//! --checkpoints` runs it. Fails when what loads has other values than the untouched checkpoint, or something panics.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a developer's program")]

use moec_tests::changes::Case;
use moec_tests::changes::random::{Change, Draw, Words, change};
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

/// What a change was, where it was made in a checkpoint that can be either: the case, words of the change, the reason.
const OTHER_CHECKPOINTS: &[(&str, &str, &str)] = &[
    ("rules/", "json: ", "made so that only the config tells which of two groups, orders or packings counts"),
    ("gptq", "checkpoint_format", "asymmetric zero points are in range whether they are stored less one or not"),
    ("autoround", "packing_format", "the same"),
    ("", "group_size to 48", "a last group that is cut short fits several sizes"),
    (
        "llmcompressor/w3a16",
        "weight_packed to",
        "words of ten whole codes, as compressed-tensors once wrote, are as many",
    ),
];

fn main() -> ExitCode {
    let args: Vec<u64> = std::env::args().skip(1).map(|a| a.parse().expect("SECONDS SEED [ONLY]")).collect();
    let (seconds, seed, only) = (args[0], args[1], args.get(2).copied());
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let scratch = std::env::temp_dir().join(format!("moec-fuzz-{}", std::process::id()));
    let mut folders = Vec::new();
    find(&root.join("checkpoints"), &mut folders);
    find(&root.join("conformance"), &mut folders);
    folders.sort();
    let (mut cases, mut not_loaded) = (Vec::new(), 0);
    for folder in folders {
        let name = folder.strip_prefix(root).unwrap().display().to_string();
        match Case::open(&folder, &name, &scratch) {
            Ok(case) => cases.push(case),
            Err(_) => not_loaded += 1,
        }
    }
    println!("{} checkpoints ({not_loaded} more are refused as they are)", cases.len());
    let words = Words::of(&cases);
    let (start, mut n) = (Instant::now(), only.unwrap_or(0));
    let (mut refused, mut same, mut other, mut findings) = (0u64, 0u64, 0u64, 0u64);
    let mut codes = BTreeMap::<String, u64>::new();
    std::panic::set_hook(Box::new(|_| {}));
    while start.elapsed().as_secs() < seconds {
        let mut r = Draw::new(seed, n);
        let case = &cases[r.below(cases.len())];
        let (what, change) = change(&mut r, case, &words);
        match &change {
            Change::Tensors(tensors) => case.write_tensors(tensors),
            Change::Config(file, config) => case.write_config(file, config),
        }
        let loaded = catch_unwind(AssertUnwindSafe(|| case.load()));
        match &change {
            Change::Tensors(_) => case.write_tensors(&case.tensors),
            Change::Config(file, _) => case.write_config(file, &case.configs[file]),
        }
        if only.is_some() {
            println!("{}: {what}: {:?}", case.name, loaded.as_ref().map(|l| l.as_ref().map(|_| "loads")));
        }
        match loaded {
            Err(_) => {
                println!("{n}: {}: {what}: PANICS", case.name);
                findings += 1;
            }
            Ok(Err(code)) => {
                refused += 1;
                *codes.entry(code).or_default() += 1;
            }
            Ok(Ok(values)) if values == case.control => same += 1,
            Ok(Ok(_)) if OTHER_CHECKPOINTS.iter().any(|(c, w, _)| case.name.contains(c) && what.contains(w)) => {
                other += 1
            }
            Ok(Ok(_)) => {
                println!("{n}: {}: {what}: other values", case.name);
                findings += 1;
            }
        }
        n += 1;
        if only.is_some() {
            break;
        }
    }
    drop(std::fs::remove_dir_all(&scratch));
    println!(
        "{n} changes in {} s (seed {seed}): {refused} refused, {same} with the values of before, {other} other valid checkpoints, {findings} findings",
        start.elapsed().as_secs()
    );
    for (code, count) in codes {
        println!("  {code}: {count}");
    }
    ExitCode::from(u8::from(findings > 0))
}

/// Every folder with one whole quantised checkpoint.
fn find(folder: &Path, out: &mut Vec<PathBuf>) {
    let small = std::fs::metadata(folder.join("model.safetensors")).is_ok_and(|m| m.len() < 400_000);
    let config = std::fs::read_to_string(folder.join("config.json")).unwrap_or_default();
    if small && (config.contains("quantization_config") || folder.join("hf_quant_config.json").exists()) {
        out.push(folder.to_path_buf());
    }
    for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap).filter(|e| e.path().is_dir()) {
        find(&entry.path(), out);
    }
}
