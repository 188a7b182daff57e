//! Measures every family in every format on every engine, and writes `docs/models.md`: `write-models FILE [FAMILY…]`.
//! `cargo xtask models` runs it.

use moec_ir::DType;
use moec_tests::quantised::Published;
use moec_tests::recorded::{self, ACTIVATIONS, Format, Place, Recorded, measure, tolerance};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

const INTRODUCTION: &str = "# Models

Written by `cargo xtask models`, which measures what it says. One tiny layer of each model type of Hugging Face
transformers 5.23 or 5.24 is recorded in `ir/frontend/tests/golden`: its config, its weights, and what transformers computed. Here
each goes the way of a user's model — config, rewrites, kernels, bundle, loader, run — on three engines: code for the CPU,
and the PTX of sm_90a and of sm_100a in the emulator, with its checks for races and uninitialised reads on. Cells are
errors of the output: on the CPU · sm_90a · sm_100a; the largest of that of the whole (Frobenius), half of that of any row, and an
eighth of that of any element over the size of its row. What every model type's traps are, and which tests
hold them, is in [semantic-traps.md](semantic-traps.md).

## As transformers computes it

* *config*: the published form of the config is understood.
* *routing*: tokens of the record, all of which chose the experts that transformers chose, on every engine; exact ties count
  as the same choice. `alone` where the record holds no choice of its own.
* *f32*: against transformers. At most 1e-5.
* *bf16*: the layer computes in bfloat16. With `†` against transformers, on a bfloat16 checkpoint of `tests/conformance`;
  otherwise against the reference evaluator of the graph, with the recorded weights rounded to bfloat16: 0 says that all
  engines give the very bits. At most 1e-2.

";

const WEIGHTS: &str = "
## Weights as published

The experts' weights, routed and shared, are stored in the published format, and the layer computes in f32; the expected
output is what the reference evaluator of the graph gives for the dequantised weights. At most 1e-5. The layers are those of
the first table made wider (`tests/src/wide.rs`: hidden states of 160, experts of 32, shared experts of 64 columns, values
drawn from the record), so that rows have whole blocks of 16, 32 and 128 and one that is cut short. Kernels read the codes
of FP8, MXFP8, MXFP4, NVFP4 and INT4, on GPUs and on the CPU, where a checkpoint has rows along K; elsewhere, and for INT8,
GPTQ and AWQ, loading makes floats. INT8, GPTQ and AWQ are formats of single matrices: where the record stacks all experts
in one tensor, each has the name that tools which take such tensors apart give it.

";

const ROWS: &str = "
## Activations rounded, too

`--activations`: the rows before expert matrices are rounded to a format as the first of each pair says, the weights are
stored in the second: MXFP8 × MXFP4 is how gpt-oss and DeepSeek-V4 are served. Both outputs round at the same points.
sm_100a multiplies the codes, sm_90a those of FP8, and the CPU the values that they stand for. At most 1e-3: a value that lies on an edge between
two codes may fall either way when two engines differ in its last bit.

";

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let file = args.next().ok_or("usage: write-models FILE [FAMILY…]")?;
    let wanted: Vec<String> = args.collect();
    let scratch = std::env::temp_dir().join(format!("moec-models-{}", std::process::id()));
    let recorded = recorded::families();
    let mut families: Vec<&str> = recorded.iter().map(|r| r.family.as_str()).collect();
    families.dedup();
    families.retain(|f| wanted.is_empty() || wanted.iter().any(|w| w == f));
    let rows = Mutex::new(vec![Default::default(); families.len()]);
    let next = AtomicUsize::new(0);
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|s| {
        for _ in 0..workers {
            s.spawn(|| {
                loop {
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    let Some(family) = families.get(i) else { break };
                    let layers: Vec<&Recorded> = recorded.iter().filter(|r| r.family == *family).collect();
                    let lines = lines(family, &layers, &scratch.join(i.to_string()));
                    if let Ok(mut rows) = rows.lock() {
                        rows[i] = lines;
                    }
                }
            });
        }
    });
    let _ = std::fs::remove_dir_all(&scratch);
    let rows: Vec<[String; 3]> = rows.into_inner().map_err(|e| e.to_string())?;
    let head =
        |columns: &[&str]| format!("| model type | {} |\n|{}\n", columns.join(" | "), "---|".repeat(1 + columns.len()));
    let mut out = INTRODUCTION.to_string();
    let formats = Published::ALL.map(Published::name);
    let pairs = ACTIVATIONS.map(|(name, _)| name);
    let heads = [head(&["config", "routing", "f32", "bf16"]), head(&formats), head(&pairs)];
    for (i, (head, before)) in heads.iter().zip(["", WEIGHTS, ROWS]).enumerate() {
        out += before;
        out += head;
        rows.iter().for_each(|lines| out += &lines[i]);
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

/// A row of each table.
fn lines(family: &str, layers: &[&Recorded], scratch: &Path) -> [String; 3] {
    let mut routing = String::from("alone");
    let floats = [Format::Float(DType::F32), Format::Float(DType::BF16)];
    let floats = floats.map(|f| cell(family, layers, f, scratch, &mut routing));
    // Engines must agree about the choice in every format.
    let mut choice = String::new();
    let mut cells = |formats: Vec<Format>| {
        let cells: Vec<String> = formats.into_iter().map(|f| cell(family, layers, f, scratch, &mut choice)).collect();
        format!("| {family} | {} |\n", cells.join(" | "))
    };
    let weights = cells(Published::ALL.map(|p| Format::Quantised(p, None)).to_vec());
    let rows = cells(ACTIVATIONS.map(|(_, f)| f).to_vec());
    if choice.contains("differ") {
        routing = choice;
    }
    [format!("| {family} | yes | {routing} | {} |\n", floats.join(" | ")), weights, rows]
}

/// The errors on every engine, the worst of several layers; says how many tokens chose as expected in `routing`.
fn cell(family: &str, layers: &[&Recorded], format: Format, scratch: &Path, routing: &mut String) -> String {
    let published = if format == Format::Float(DType::BF16) { recorded::in_bf16(family) } else { Vec::new() };
    let mark = if published.is_empty() { "" } else { " †" };
    let layers: Vec<&Recorded> = if published.is_empty() { layers.to_vec() } else { published.iter().collect() };
    let mut parts = Vec::new();
    for place in Place::ALL {
        let mut worst: Option<f64> = None;
        let mut problem = None;
        for r in &layers {
            match measure(r, format, place, scratch) {
                Err(e) => problem = Some(e),
                Ok(None) => {}
                Ok(Some(m)) => {
                    worst = Some(worst.unwrap_or(0.0).max(m.error));
                    let same = |other| routing.contains("differ") && other == 0;
                    if let Some((n, other)) = m.routing.filter(|(_, other)| !same(*other) && format != BF16) {
                        *routing =
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
    format!("{}{mark}", parts.join(" · "))
}

const BF16: Format = Format::Float(DType::BF16);

/// `3e-7`, rounded up, so that a figure is never better than what was measured; `0` for none.
fn short(error: f64) -> String {
    if error == 0.0 {
        return "0".to_string();
    }
    let power = error.log10().floor();
    let digit = (error / 10f64.powf(power)).ceil();
    if digit >= 10.0 { format!("1e{}", power as i32 + 1) } else { format!("{digit}e{}", power as i32) }
}
