//! One thing in a valid quantised checkpoint is changed: a tensor is dropped, renamed, retyped or reshaped, a scale is made one
//! that no quantiser writes, a key of the config goes or gets another value. What loads all the same has the values of the
//! untouched checkpoint, or the change is on the list of those that make another valid checkpoint; nothing panics.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test may panic, and tells how much it tried")]

use moec_tests::changes::Case;
use moec_tests::changes::systematic::{changed_configs, changed_tensors};
use std::path::{Path, PathBuf};

/// Changes of a config that make another valid checkpoint of the same tensors, with the reason why nothing can tell.
const OTHER_CHECKPOINTS: &[(&str, &str)] = &[
    ("checkpoint_format", "asymmetric zero points are in range whether they are stored less one or not"),
    ("packing_format", "the same"),
];

fn cases() -> Vec<PathBuf> {
    let conformance = Path::new(env!("CARGO_MANIFEST_DIR")).join("conformance");
    let mut all: Vec<PathBuf> = std::fs::read_dir(conformance).unwrap().map(|e| e.unwrap().path()).collect();
    all.retain(|p| {
        let config = std::fs::read_to_string(p.join("config.json")).unwrap_or_default();
        let small = std::fs::metadata(p.join("model.safetensors")).is_ok_and(|m| m.len() < 200_000);
        small && (config.contains("quantization_config") || p.join("hf_quant_config.json").exists())
    });
    // What tools wrote that is not among them: scaled inputs, stacks, bits that straddle words.
    let written = Path::new(env!("CARGO_MANIFEST_DIR")).join("checkpoints");
    for case in
        ["modelopt/qwen3_moe.int4-awq", "modelopt/llama4_text.nvfp4", "llmcompressor/w3a16.asym", "quark/fp8-channel"]
    {
        all.push(written.join(case));
    }
    all.sort();
    all
}

#[test]
fn what_loads_has_the_values_of_the_untouched_checkpoint() {
    let (mut tried, mut refused, mut same) = (0, 0, 0);
    let mut silent = Vec::new();
    let scratch = Path::new(env!("CARGO_TARGET_TMPDIR")).join("mutated");
    for folder in cases() {
        let name = folder.file_name().unwrap().to_string_lossy().into_owned();
        let case = Case::open(&folder, &name, &scratch).unwrap_or_else(|code| panic!("{name}: {code}"));
        let mut judge = |what: &str| match case.load() {
            Err(_) => refused += 1,
            Ok(values) if values == case.control => same += 1,
            Ok(_) if OTHER_CHECKPOINTS.iter().any(|(key, _)| what.ends_with(key)) => same += 1,
            Ok(_) => silent.push(format!("{name}: {what}")),
        };
        // The first and the last expert stand for all.
        let layer = case.layer_prefix();
        let wanted = |n: &str| n.starts_with(&layer) && !(1..3).any(|e| n.contains(&format!("experts.{e}.")));
        for (what, changed) in changed_tensors(&case.tensors, &wanted) {
            case.write_tensors(&changed);
            tried += 1;
            judge(&what);
        }
        case.restore();
        let config = &case.configs["config.json"];
        if config.get("quantization_config").is_some() {
            for (what, changed) in changed_configs(config) {
                case.write_config("config.json", &changed);
                tried += 1;
                judge(&what);
            }
        }
    }
    println!("{tried} changes: {refused} refused, {same} with the values of before");
    assert!(tried > 1000 && refused > 500, "{tried} changes, {refused} refused");
    assert!(silent.is_empty(), "{} changes give other values without a word:\n{}", silent.len(), silent.join("\n"));
}
