//! Checkpoints as tools write them and as people reported them: each gives the values of whoever made it, or is refused by a
//! sentence that names what is wrong. `tests/checkpoints/README.md` says where each comes from.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test may panic, and says what was refused")]

use libtest_mimic::{Arguments, Failed, Trial};
use moec::{Checkpoint, CompileRequest, LayerOptions, Model, Session, Target, Tensor, Weights};
use moec_ir::{DType, Diagnostic};
use std::path::{Path, PathBuf};

/// Cases that have to be refused: the code, and words of the message.
const REFUSED: &[(&str, &str, &[&str])] = &[
    ("rules/gptq-nogs-64-96", "quantisation-not-described", &["how many columns a group has"]),
    ("rules/ci-order-silent", "quantised-checkpoint", &["config_groups"]),
    ("bitsandbytes/int8", "quantised-checkpoint", &["bitsandbytes"]),
    ("bitsandbytes/nf4", "quantised-checkpoint", &["bitsandbytes"]),
    ("bitsandbytes/nf4-double", "quantised-checkpoint", &["bitsandbytes"]),
    ("hqq/4-bits", "quantised-checkpoint", &["hqq"]),
    ("hqq/4-bits-axis0", "quantised-checkpoint", &["hqq"]),
    ("fp_quant/mxfp4", "quantised-checkpoint", &["fp_quant"]),
    ("fp_quant/nvfp4", "quantised-checkpoint", &["fp_quant"]),
    ("quanto/int8", "quantised-checkpoint", &["optimum-quanto"]),
    ("quanto/int4", "quantised-checkpoint", &["optimum-quanto"]),
    ("quanto/fp8", "quantised-checkpoint", &["optimum-quanto"]),
    ("inc/awq4", "quantised-checkpoint", &["neural-compressor"]),
    ("inc/rtn3", "quantised-scale-mismatch", &["gate.scales"]),
    ("inc/rtn5", "quantised-checkpoint", &["5 bits"]),
    ("inc/rtn-nf4", "quantised-scale-mismatch", &["gate.scales"]),
    ("inc/rtn-int8", "quantised-scale-mismatch", &["gate.scales"]),
    ("inc/fp8-qdq", "quantised-checkpoint", &["unnamed format"]),
    ("inc/fp8-qdq-compressed", "quantised-scale-missing", &["gate.weight"]),
    ("torchao/fp8-rows", "quantised-checkpoint", &["torchao"]),
    ("quark/int4-channel", "quantised-checkpoint", &["`int4` `per_channel` of Quark"]),
    ("quark/int4-group", "quantised-checkpoint", &["`int4` `per_group` of Quark"]),
    ("quark/uint4-group", "quantised-checkpoint", &["`uint4` `per_group` of Quark"]),
    ("quark/mxfp6-e2m3", "quantised-checkpoint", &["`fp6_e2m3` `per_group` of Quark"]),
    ("quark/mxfp6-e3m2", "quantised-checkpoint", &["`fp6_e3m2` `per_group` of Quark"]),
    (
        "nvfp4-weight-global-scale/all-missing",
        "quantised-scale-missing",
        &["experts.0.gate_proj.weight", "global scale"],
    ),
    ("nvfp4-weight-global-scale/one-missing", "quantised-scale-missing", &["experts.2.up_proj.weight", "global scale"]),
    ("nvfp4-weight-global-scale/ct-one-missing", "quantised-scale-missing", &["experts.2.up_proj", "global scale"]),
    ("nvfp4-weight-global-scale/ct-0", "quantised-scale-invalid", &["experts.1.down_proj.weight_global_scale", "is 0"]),
    (
        "nvfp4-weight-global-scale/ct-nan",
        "quantised-scale-invalid",
        &["experts.1.down_proj.weight_global_scale", "NaN"],
    ),
];

fn main() {
    let args = Arguments::from_args();
    if let Some(folder) = std::env::var_os("MOEC_CHECKPOINT_CASES") {
        return check_written(&args, Path::new(&folder));
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("checkpoints");
    let mut cases = Vec::new();
    find(&root, &mut cases);
    cases.sort();
    assert!(cases.len() > 30, "{} cases", cases.len());
    let name = |case: &Path| case.strip_prefix(&root).unwrap().display().to_string();
    let names: Vec<String> = cases.iter().map(|c| name(c)).collect();
    let trial = |case: PathBuf| {
        let name = name(&case);
        Trial::test(name.clone(), move || judge(&case, &name))
    };
    let mut trials: Vec<Trial> = cases.into_iter().map(trial).collect();
    trials.push(Trial::test("the_table_of_docs_lists_what_runs", move || check_table(&names)));
    libtest_mimic::run(&args, trials).exit();
}

/// What tools wrote just now (`cargo xtask conformance --tools`): each is read right, or refused as stored ones are, or as a format
/// that is not read.
fn check_written(args: &Arguments, folder: &Path) {
    let mut cases = Vec::new();
    find(folder, &mut cases);
    cases.sort();
    assert!(!cases.is_empty(), "no recipe wrote a case");
    let trial = |case: PathBuf| {
        let name = case.file_name().unwrap().to_string_lossy().into_owned();
        Trial::test(name.clone(), move || match run(&case) {
            Ok((got, want)) => close(&got, &want),
            Err(d) if matches!(&*d.code, "quantised-checkpoint" | "gguf-type-unsupported" | "adapter-not-merged") => {
                println!("{name}: refused: {}", d.message);
                Ok(())
            }
            Err(d) => Err(format!("{}: {} {:?}", d.code, d.message, d.notes).into()),
        })
    };
    libtest_mimic::run(args, cases.into_iter().map(trial).collect()).exit();
}

/// The tools whose checkpoints are in a folder of their own.
const TOOLS: &[(&str, &str)] = &[
    ("autoround/", "auto-round 0.16.1"),
    ("bitsandbytes/", "bitsandbytes 0.50.2"),
    ("fp_quant/", "fp_quant 0.3.2"),
    ("gptqmodel/", "gptqmodel 7.7.0"),
    ("hqq/", "hqq 0.2.8.post1"),
    ("inc/", "neural-compressor-pt 3.10"),
    ("llmcompressor/", "llmcompressor 0.14.0.1"),
    ("modelopt/", "nvidia-modelopt 0.47.0"),
    ("quanto/", "optimum-quanto 0.2.7"),
    ("quark/", "amd-quark 0.13"),
    ("torchao/", "torchao 0.18.0"),
];

/// The rows of docs/checkpoints.md: tool, checkpoint, verdict.
fn check_table(names: &[String]) -> Result<(), Failed> {
    let row = |name: &String| {
        let (folder, tool) = TOOLS.iter().find(|(folder, _)| name.starts_with(folder))?;
        let case = &name[folder.len()..];
        let verdict = REFUSED.iter().find(|(end, ..)| name.ends_with(end));
        let verdict = verdict.map_or("read".to_string(), |(_, code, _)| format!("refused: `{code}`"));
        Some(format!("| {tool} | {case} | {verdict} |\n"))
    };
    let rows: String = names.iter().filter_map(row).collect();
    let table = format!("<!-- table -->\n| tool | checkpoint | verdict |\n|---|---|---|\n{rows}<!-- end of table -->");
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/checkpoints.md");
    let text = std::fs::read_to_string(&path)?;
    let (start, end) = (text.find("<!-- table -->").unwrap(), text.find("<!-- end of table -->").unwrap());
    let now = &text[start..end + "<!-- end of table -->".len()];
    if now == table {
        return Ok(());
    }
    if std::env::var_os("MOEC_BLESS").is_some() {
        std::fs::write(&path, text.replace(now, &table))?;
        return Ok(());
    }
    Err("docs/checkpoints.md does not list the checkpoints of tests/checkpoints; MOEC_BLESS=1 writes it".into())
}

/// Every folder with a folder `io`.
fn find(folder: &Path, out: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap).filter(|e| e.path().is_dir()) {
        if entry.file_name() == "io" {
            out.push(folder.to_path_buf());
        } else {
            find(&entry.path(), out);
        }
    }
}

fn judge(case: &Path, name: &str) -> Result<(), Failed> {
    let refused = REFUSED.iter().find(|(end, ..)| name.ends_with(end));
    match (run(case), refused) {
        (Ok((got, want)), None) => close(&got, &want),
        (Err(d), Some((_, code, words))) => {
            let named = d.code == *code && words.iter().all(|w| d.message.contains(w));
            if named { Ok(()) } else { Err(format!("refused otherwise: {}: {}", d.code, d.message).into()) }
        }
        (Ok(_), Some((_, code, _))) => Err(format!("loads, but should be refused with `{code}`").into()),
        (Err(d), None) => Err(format!("{}: {} {:?}", d.code, d.message, d.notes).into()),
    }
}

/// The layer's output on the CPU in float32, and the expected one.
fn run(case: &Path) -> Result<(Tensor, Tensor), Diagnostic> {
    let first = |mut all: Vec<Diagnostic>| all.swap_remove(0);
    let tensor = |file: &str, name: &str| -> Result<Tensor, Diagnostic> {
        Ok(Checkpoint::open(case.join("io").join(file))?.tensor(name)?.unwrap().to_tensor().unwrap())
    };
    let (input, want) = (tensor("input.safetensors", "input")?, tensor("expected.safetensors", "output")?);
    // The weights may lie apart, or be a model and an adapter of it.
    let apart = [case.join("../weights"), case.join("adapter")];
    let weights = apart.into_iter().find(|p| p.is_dir()).unwrap_or_else(|| case.to_path_buf());
    let model = Model::open(case).map_err(first)?.with_weights(&weights);
    let options = LayerOptions { dtype: Some(DType::F32), ..LayerOptions::default() };
    let layer = model.layer_with(None, &options).map_err(first)?;
    if let Some(d) = layer.not_loadable {
        return Err(d);
    }
    let n_tokens = input.shape[0] as u64;
    let request = CompileRequest {
        tokens: (n_tokens, n_tokens),
        info: layer.info.clone(),
        ..CompileRequest::new(&layer.graph, Target::by_name("cpu").into_iter().collect())
    };
    let compiled = moec::compile(&request)?;
    let weights = Weights::from_checkpoint(Checkpoint::open(&weights)?);
    let mut session = Session::jit(&compiled, &weights, n_tokens)?;
    let result = session.run(&[("input", &input)])?;
    Ok((result.output("output").unwrap().clone(), want))
}

/// Every row within 1e-5 of its own size.
fn close(got: &Tensor, want: &Tensor) -> Result<(), Failed> {
    if got.shape != want.shape {
        return Err(format!("{:?} instead of {:?}", got.shape, want.shape).into());
    }
    let cols = got.cols();
    for (r, (a, b)) in got.floats().chunks(cols).zip(want.floats().chunks(cols)).enumerate() {
        let row = |v: &[f32]| Tensor::float(DType::F32, &[v.len()], v.to_vec());
        let error = row(a).worst_error(&row(b));
        if error > 1e-5 {
            return Err(format!("row {r} differs by {error:.2e}").into());
        }
    }
    Ok(())
}
