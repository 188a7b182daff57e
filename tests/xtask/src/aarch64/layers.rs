//! Recorded layers as C programs for aarch64.

use super::tools::{Tools, ok};
use crate::places;
use anyhow::{Context, Result, ensure};
use moec_ir::{DType, Tensor};
use moec_weights::Checkpoint;
use serde::Deserialize;
use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A recorded layer, of `tests/conformance/INDEX.json`.
#[derive(Deserialize)]
struct Entry {
    dir: String,
    layer: u32,
}

/// Reads rows on standard input and the packed weights of a file, and writes the rows of the layer; on three threads, whose work
/// is done one after the other.
const MAIN: &str = r#"#include "layer.h"
#include <stdio.h>
#include <stdlib.h>

enum { N_THREADS = 3 };

static void run(void *pool, moec_aot_items items, void *work, uint64_t n_items) {
  (void)pool;
  for (uint32_t t = 0; t < N_THREADS; t++) items(work, n_items * t / N_THREADS, n_items * (t + 1) / N_THREADS, t);
}

int main(int argc, char **argv) {
  const struct moec_aot_threads threads = {N_THREADS, NULL, run};
  const size_t room = 1 << 24;
  unsigned char *weights = malloc(room), *input = malloc(room), *output = malloc(room);
  FILE *file = argc == 2 ? fopen(argv[1], "rb") : NULL;
  if (file == NULL || weights == NULL || input == NULL || output == NULL) return 2;
  if (fread(weights, 1, room, file) == room) return 2;
  const uint64_t n_tokens = fread(input, ROW_BYTES, room / ROW_BYTES, stdin);
  struct layer_tensors tensors = {0};
TENSORS
  const uint64_t bytes = layer_workspace_bytes(n_tokens, N_THREADS);
  const int status = layer_launch(&tensors, n_tokens, malloc(bytes), bytes, &threads);
  if (status != MOEC_AOT_OK) return 10 + status;
  return fwrite(output, ROW_BYTES, n_tokens, stdout) == n_tokens ? 0 : 2;
}
"#;

/// Every recorded layer whose checkpoint has the filter in its name; layers with codes of four bits also with rows of integers.
/// `false` when one is wrong.
///
/// # Errors
/// When something cannot be built or started.
pub fn run(tools: &Tools, filter: &str) -> Result<bool> {
    let kernels = tools.cargo().args(["build", "--package", "moec-kernels-c"]).args(Tools::CARGO).status()?;
    ensure!(kernels.success(), "the kernels cannot be built for aarch64");
    ensure!(places::cargo().args(["build", "--package", "moec-cli"]).status()?.success(), "moec cannot be built");
    let home = places::target_dir().join("aarch64/layers");
    fs::create_dir_all(&home)?;
    let index = places::root().join("tests/conformance/INDEX.json");
    let entries: Vec<Entry> = serde_json::from_str(&fs::read_to_string(&index)?)?;
    let (mut n, mut good) = (0, true);
    for entry in entries.iter().filter(|e| e.dir.contains(filter)) {
        for int16 in [false, true] {
            if int16 && !has_four_bits(&home) {
                continue;
            }
            let verdict = Layer { tools, home: &home, entry, int16 }.check()?;
            let rows = if int16 { "int16 rows" } else { "" };
            println!("{:<28} layer {} {rows:<11}{}", entry.dir, entry.layer, verdict.words());
            good &= verdict.is_good();
            n += 1;
        }
    }
    ensure!(n > 0, "no checkpoint of {} has `{filter}` in its name", index.display());
    println!("{n} layers");
    Ok(good)
}

/// Whether the layer that was compiled last multiplies codes of four bits.
fn has_four_bits(home: &Path) -> bool {
    let text = fs::read_to_string(home.join("aarch64/cpu/tile-0-64.txt")).unwrap_or_default();
    [" as e2m1 by ", " as int4 by "].iter().any(|code| text.contains(code))
}

/// How a layer's rows compare.
struct Verdict {
    /// How far they are from the record.
    error: f64,
    /// The most that is allowed; nothing is where the record was made in another type or with other rows.
    tolerance: Option<f64>,
    /// Elements that differ from those on x86-64, of all.
    differ: (usize, usize),
}

impl Verdict {
    fn is_good(&self) -> bool {
        self.tolerance.is_none_or(|most| self.error <= most) && self.differ.0 == 0
    }

    fn words(&self) -> String {
        let Verdict { error, tolerance, differ: (differ, all) } = self;
        let bits = match differ {
            0 => "the bits of x86-64".to_string(),
            n => format!("{n} of {all} elements DIFFER from x86-64"),
        };
        let record = match tolerance {
            None => String::new(),
            Some(most) if error <= most => format!(", {most:.0e} allowed"),
            Some(most) => format!(", {most:.0e} allowed: WRONG"),
        };
        format!("{bits}; {error:.1e} from the record{record}")
    }
}

struct Layer<'a> {
    tools: &'a Tools,
    home: &'a Path,
    entry: &'a Entry,
    /// Whether rows are rounded to 16-bit integers.
    int16: bool,
}

impl Layer<'_> {
    fn check(&self) -> Result<Verdict> {
        let model = places::root().join("tests/conformance").join(&self.entry.dir);
        let golden_path = model.join(format!("golden.layer{}.safetensors", self.entry.layer));
        let (model, golden) = (model.display().to_string(), tensors(&golden_path, &["input", "output"])?);
        for arch in ["aarch64", "x86-64"] {
            let layer = self.entry.layer.to_string();
            let place = ["compile", &model, "--layer", &layer, "--target", "cpu", "--cpu-arch", arch, "-o", arch];
            let what = ["--tokens", "0..64", "--emit", "header,c,tile", "--prefix", "layer"];
            let rows: &[&str] = if self.int16 { &["--activations", "int16"] } else { &[] };
            self.moec(&[&place[..], &what, rows].concat())?;
        }
        self.moec(&["pack", "aarch64", "--weights", &model, "-o", "weights.safetensors"])?;
        let header = fs::read_to_string(self.home.join("aarch64/layer.h"))?;
        let dtype = if header.contains("input; /* bf16[") { DType::BF16 } else { DType::F32 };
        let input = golden[0].cast(dtype);
        fs::write(self.home.join("input.safetensors"), safetensors("input", &input)?)?;
        self.moec(&["run", "x86-64", "--weights", &model, "--input", "input.safetensors", "-o", "x86-64.safetensors"])?;
        let host = tensors(&self.home.join("x86-64.safetensors"), &["output"])?.remove(0);
        let program = self.build(&header, dtype)?;
        let rows = self.emulated(&program, &input.to_bytes())?;
        let got = Tensor::from_bytes(dtype, &host.shape, &rows).context("the program wrote too little")?;
        let differ = got.floats().iter().zip(host.floats()).filter(|(a, b)| a.to_bits() != b.to_bits()).count();
        let tolerance =
            (golden[0].dtype == dtype && !self.int16).then_some(if dtype == DType::F32 { 1e-5 } else { 1e-2 });
        Ok(Verdict { error: got.worst_error(&golden[1]), tolerance, differ: (differ, got.floats().len()) })
    }

    fn moec(&self, args: &[&str]) -> Result<()> {
        ok(Command::new(places::target_dir().join("debug/moec")).args(args).current_dir(self.home))
    }

    /// Compiles and links a program of the layer.
    fn build(&self, header: &str, dtype: DType) -> Result<PathBuf> {
        let weights = fs::read(self.home.join("weights.safetensors"))?;
        let file = Checkpoint::open(self.home.join("weights.safetensors"))?;
        let mut lines = String::new();
        for field in fields(header) {
            match field {
                Field::Input("input") => lines += "  tensors.input = input;\n",
                Field::Output("output") => lines += "  tensors.output = output;\n",
                Field::Input(name) | Field::Output(name) => writeln!(lines, "  tensors.{name} = malloc(room);")?,
                Field::Weight(name, source) => {
                    let view = file.tensor(source)?.with_context(|| format!("no weight {source} was packed"))?;
                    let at = offset(&weights, source).with_context(|| format!("{source} is in no header"))?;
                    ensure!(at + view.data.len() <= weights.len(), "{source} ends behind its file");
                    writeln!(lines, "  tensors.{name} = weights + {at};")?;
                }
            }
        }
        let hidden: usize = header
            .lines()
            .find_map(|l| l.strip_prefix("#define LAYER_HIDDEN "))
            .and_then(|n| n.trim().parse().ok())
            .context("the header should say how long rows are")?;
        let source = MAIN.replace("TENSORS\n", &lines).replace("ROW_BYTES", &(hidden * dtype.bytes()).to_string());
        fs::write(self.home.join("main.c"), source)?;
        let program = self.home.join("program");
        ok(self
            .tools
            .gcc()
            .args([
                "-O1",
                "-std=c11",
                "-Wall",
                "-Werror",
                "-Iaarch64",
                "main.c",
                "aarch64/layer.c",
                "aarch64/cpu/layer.o",
            ])
            .arg(self.tools.built().join("libmoec_kernels.a"))
            .args(["-lm", "-o"])
            .arg(&program)
            .current_dir(self.home))?;
        Ok(program)
    }

    /// What the program writes.
    fn emulated(&self, program: &Path, rows: &[u8]) -> Result<Vec<u8>> {
        let mut command = self.tools.emulate(program);
        command.arg(self.home.join("weights.safetensors")).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn()?;
        child.stdin.take().context("piped")?.write_all(rows)?;
        let out = child.wait_with_output()?;
        ensure!(out.status.success(), "{} on aarch64: {}", self.entry.dir, out.status);
        Ok(out.stdout)
    }
}

/// A field of `struct layer_tensors`.
enum Field<'h> {
    Input(&'h str),
    Output(&'h str),
    /// With the weight's own name.
    Weight(&'h str, &'h str),
}

fn fields(header: &str) -> Vec<Field<'_>> {
    let body = header.split_once("struct layer_tensors {").map_or("", |(_, rest)| rest);
    let body = body.split_once("};").map_or("", |(body, _)| body);
    body.lines()
        .filter_map(|line| {
            let (declared, comment) = line.trim().split_once("; /* ")?;
            let name = declared.rsplit('*').next()?;
            Some(match comment.split_once(": ") {
                Some((source, _)) => Field::Weight(name, source),
                None if declared.starts_with("const ") => Field::Input(name),
                None => Field::Output(name),
            })
        })
        .collect()
}

/// A file of one tensor.
fn safetensors(name: &str, tensor: &Tensor) -> Result<Vec<u8>> {
    let (data, dtype) = (tensor.to_bytes(), if tensor.dtype == DType::BF16 { "BF16" } else { "F32" });
    let entry = serde_json::json!({ "dtype": dtype, "shape": tensor.shape, "data_offsets": [0, data.len()] });
    let mut header = serde_json::to_vec(&serde_json::json!({ name: entry }))?;
    header.resize(header.len().next_multiple_of(8), b' ');
    Ok([&(header.len() as u64).to_le_bytes()[..], &header, &data].concat())
}

/// Where a tensor's data begins in a safetensors file.
fn offset(file: &[u8], name: &str) -> Option<usize> {
    let n = u64::from_le_bytes(file.get(..8)?.try_into().ok()?) as usize;
    let header: serde_json::Value = serde_json::from_slice(file.get(8..8 + n)?).ok()?;
    Some(8 + n + header.get(name)?.get("data_offsets")?.get(0)?.as_u64()? as usize)
}

fn tensors(path: &Path, names: &[&str]) -> Result<Vec<Tensor>> {
    let file = Checkpoint::open(path)?;
    let one = |name: &&str| {
        let view = file.tensor(name)?.with_context(|| format!("{} has no {name}", path.display()))?;
        view.to_tensor().with_context(|| format!("{name} of {} is no tensor", path.display()))
    };
    names.iter().map(one).collect()
}
