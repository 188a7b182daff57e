//! Measures every family in every format on every engine, and writes `docs/models.md`: `write-models FILE`.
//! `cargo xtask models` runs it.

use moec_ir::DType;
use moec_tests::quantised::Published;
use moec_tests::recorded::{self, Format, Place, Recorded, measure, tolerance};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

const INTRODUCTION: &str = "# Models

Written by `cargo xtask models`, which measures what it says. One tiny layer of each model type of Hugging Face
transformers 5.23 is recorded in `ir/frontend/tests/golden`: its config, its weights, and what transformers computed. Here
each goes the way of a user's model — config, rewrites, kernels, bundle, loader, run — on three engines: code for the CPU,
and the PTX of sm_90a and of sm_100a in the emulator, with its checks for races and uninitialised reads on.

* *routing*: tokens of the record, all of which chose the experts that transformers chose, on every engine; exact ties count
  as the same choice. `alone` where the record holds no choice of its own.
* *f32*: relative Frobenius error of the output against transformers: on the CPU · sm_90a · sm_100a. At most 1e-5.
* *bf16*: the layer computes in bfloat16. With `†` against transformers, on a bfloat16 checkpoint of `tests/conformance`;
  otherwise against the reference evaluator of the graph, with the recorded weights rounded to bfloat16: 0 says that all
  engines give the very bits. At most 1e-2.
* *quantised*: the experts' weights, routed and shared, are stored in the published format and the layer computes in f32,
  against the reference evaluator with the dequantised weights. At most 1e-5. GPU kernels read the codes where the format is
  kept in memory (FP8 128×128, MXFP4, NVFP4, INT4); elsewhere, and on the CPU, loading makes floats. Rows of the recorded layers are 10 to 28 columns
  long, so that blocks of 16, 32 and 128 are all cut short.
* `—`: the recorded layer has no matrix that the format can hold: INT4 is stored in words of eight codes, and the NVFP4 cases
  need rows of at most one block of 16; the families whose records have no such rows are left out there.

";

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let file = std::env::args().nth(1).ok_or("usage: write-models FILE")?;
    let scratch = std::env::temp_dir().join(format!("moec-models-{}", std::process::id()));
    let recorded = recorded::families();
    let mut families: Vec<&str> = recorded.iter().map(|r| r.family.as_str()).collect();
    families.dedup();
    let rows = Mutex::new(vec![String::new(); families.len()]);
    let next = AtomicUsize::new(0);
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|s| {
        for _ in 0..workers {
            s.spawn(|| {
                loop {
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    let Some(family) = families.get(i) else { break };
                    let layers: Vec<&Recorded> = recorded.iter().filter(|r| r.family == *family).collect();
                    let line = row(family, &layers, &scratch.join(i.to_string()));
                    if let Ok(mut rows) = rows.lock() {
                        rows[i] = line;
                    }
                }
            });
        }
    });
    let _ = std::fs::remove_dir_all(&scratch);
    let mut out = INTRODUCTION.to_string();
    let formats: Vec<&str> = Published::ALL.iter().map(|f| f.name()).collect();
    out += &format!("| model type | config | routing | f32 | bf16 | {} |\n", formats.join(" | "));
    out += &format!("|{}\n", "---|".repeat(5 + formats.len()));
    for line in rows.into_inner().map_err(|e| e.to_string())? {
        out += &line;
        out.push('\n');
    }
    let refused = recorded::refused();
    for (model_type, why) in &refused {
        out += &format!("\n`{model_type}` is refused: {why}.\n");
    }
    let listed = |t: &&str| families.contains(t) || refused.iter().any(|(r, _)| r == t);
    let others: Vec<&str> = moec_frontend::known_model_types().into_iter().filter(|t| !listed(t)).collect();
    out += &format!(
        "\nAlso understood, without a recorded layer of their own (wrappers, other spellings, and models that transformers\n\
         has no class for): {}.\n",
        others.join(", ")
    );
    std::fs::write(Path::new(&file), out)?;
    Ok(())
}

fn row(family: &str, layers: &[&Recorded], scratch: &Path) -> String {
    let mut cells = Vec::new();
    let mut routing = String::from("alone");
    let floats = [Format::Float(DType::F32), Format::Float(DType::BF16)];
    for format in floats.into_iter().chain(Published::ALL.map(Format::Quantised)) {
        let mut parts = Vec::new();
        let published = if format == Format::Float(DType::BF16) { recorded::in_bf16(family) } else { Vec::new() };
        let (layers, mark) =
            if published.is_empty() { (layers.to_vec(), "") } else { (published.iter().collect(), " †") };
        for place in Place::ALL {
            let mut worst: Option<f64> = None;
            let mut problem = None;
            for r in &layers {
                match measure(r, format, place, scratch) {
                    Err(e) => problem = Some(e),
                    Ok(None) => {}
                    Ok(Some(m)) => {
                        worst = Some(worst.unwrap_or(0.0).max(m.error));
                        if let (Some((n, other)), Format::Float(DType::F32)) = (m.routing, format) {
                            routing =
                                if other == 0 { format!("{n} tokens") } else { format!("**{other} of {n} differ**") };
                        }
                    }
                }
            }
            parts.push(match (problem, worst) {
                (Some(e), _) => format!("**{}**", e.replace('|', "/")),
                (None, None) => "—".to_string(),
                (None, Some(e)) if e <= tolerance(format) => short(e),
                (None, Some(e)) => format!("**{}**", short(e)),
            });
        }
        parts.dedup_by(|a, b| *a == "—" && *b == "—");
        cells.push(format!("{}{mark}", parts.join(" · ")));
    }
    format!("| {family} | yes | {routing} | {} |", cells.join(" | "))
}

/// `3e-7`, rounded up, so that a figure is never better than what was measured; `0` for none.
fn short(error: f64) -> String {
    if error == 0.0 {
        return "0".to_string();
    }
    let power = error.log10().floor();
    let digit = (error / 10f64.powf(power)).ceil();
    if digit >= 10.0 { format!("1e{}", power as i32 + 1) } else { format!("{digit}e{}", power as i32) }
}
