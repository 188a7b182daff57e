//! Layer graphs that people could write, right and wrong, through everything that a graph goes through: reading, checking and compiling
//! for each target, and running on the CPU and in the emulator.
//!
//! A graph is a seed of `examples/layers` or `runtime/cli/tests/graphs` with a few changes that know its structure ([`change`]); the
//! `n`-th depends on the random seed and `n` only. Whatever the changes were, an answer is a layer or an error of the user's: no panic,
//! no internal error, `check` and `compile` of one mind, and what compiles also runs, with the reference's results.
//!
//! LLVM takes nearly all of the time. So each graph is checked for every target, which builds all kernels, but compiled to PTX for
//! those only that the caller names.

pub mod change;

use crate::changes::random::Draw;
use moec::{CompileRequest, Device, Diagnostic, Model, Session, Target, Tensor, Weights};
use moec_ir::diag::Fault;
use moec_ir::graph::{Graph, evaluate, verify};
use serde_json::Value;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// Elements of all parameters and values together beyond which a layer is compiled but not run on the CPU.
const MOST_ELEMENTS: u64 = 1 << 21;

/// The same for the emulator, which takes a thousand times as long.
const MOST_EMULATED: u64 = 1 << 16;

/// What graphs are made of, and a folder for them.
pub struct Fuzzer {
    seeds: Vec<Value>,
    vocabulary: change::Vocabulary,
    folder: PathBuf,
}

/// What came of one graph.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answer {
    /// The codes with which it was refused, by what refused it: `read`, a target's name or `run`.
    pub refused: BTreeMap<String, String>,
    /// Targets that it can be compiled for.
    pub compiled: Vec<&'static str>,
    /// Targets that it ran on: the CPU, and GPUs in the emulator.
    pub ran: Vec<&'static str>,
    /// What must not be.
    pub findings: Vec<String>,
}

impl Drop for Fuzzer {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.folder));
    }
}

impl Fuzzer {
    /// Reads the seeds and the schema.
    ///
    /// # Errors
    /// What cannot be read, in words.
    pub fn open() -> Result<Fuzzer, String> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let read = |path: &Path| {
            let text = std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
            // No target computes in f64: such a seed would try nothing.
            serde_json::from_str::<Value>(&text.replace("f64", "f32")).map_err(|e| format!("{}: {e}", path.display()))
        };
        let mut seeds = Vec::new();
        for folder in ["examples/layers", "runtime/cli/tests/graphs"] {
            let listed = std::fs::read_dir(root.join(folder)).map_err(|e| format!("{folder}: {e}"))?;
            let mut files: Vec<PathBuf> = listed.flatten().map(|e| e.path()).collect();
            files.sort();
            for file in files {
                seeds.push(read(&file)?);
            }
        }
        let path = root.join("ir/frontend/schema/moec_graph.schema.json");
        let schema = std::fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
        let schema = serde_json::from_str(&schema).map_err(|e| format!("{}: {e}", path.display()))?;
        let vocabulary = change::Vocabulary::new(&schema, &seeds);
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("moec-fuzz-graphs-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
        Ok(Fuzzer { seeds, vocabulary, folder })
    }

    /// The `n`-th graph, and what was changed.
    pub fn graph(&self, seed: u64, n: u64) -> (Value, Vec<String>) {
        let mut draw = Draw::new(seed, n);
        let mut graph = draw.pick(&self.seeds).clone();
        // With many, nearly everything is refused before it gets far.
        let count = *draw.pick(&[1, 1, 1, 2, 2, 4]);
        let changes = (0..count).map(|_| change::change(&mut draw, &mut graph, &self.vocabulary)).collect();
        (graph, changes)
    }

    /// Gives a graph to everything: checks it for `targets`, of which `full` are compiled to their end and run.
    ///
    /// # Panics
    /// When the folder for files cannot be written.
    pub fn answer(
        &self,
        graph: &Value,
        targets: &[&'static Target],
        full: impl Fn(&Target) -> bool,
        seed: u64,
    ) -> Answer {
        let path = self.folder.join("graph.json");
        std::fs::write(&path, graph.to_string()).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let mut answer = Answer::default();
        let opened = guarded(|| Model::open(&path).and_then(|m| m.layer(None)));
        let layer = match opened {
            Err(panic) => return answer.found(format!("reading panics: {panic}")),
            Ok(Err(diagnostics)) => {
                for d in &diagnostics {
                    answer.refuse("read", d);
                }
                if diagnostics.is_empty() {
                    answer.findings.push("refused without a reason".to_string());
                }
                return answer;
            }
            Ok(Ok(layer)) => layer,
        };
        if let Some(d) = verify(&layer.graph).first() {
            answer.findings.push(format!("an accepted layer does not verify: {d}"));
        }
        let mut draw = Draw::new(seed, 0);
        // With other options for one of them: each graph would take twice as long.
        let with_options = draw.below(targets.len().max(1));
        for (i, &target) in targets.iter().enumerate() {
            self.compile(&layer.graph, target, full(target), (i == with_options).then_some(&mut draw), &mut answer);
        }
        answer
    }

    /// Compiles as `moec check` and, when it is to be done in full, `moec compile` do, and runs; with `draw`, compiles also with options
    /// of the user's that must not matter.
    fn compile(
        &self,
        graph: &Graph,
        target: &'static Target,
        full: bool,
        draw: Option<&mut Draw>,
        answer: &mut Answer,
    ) {
        let request = CompileRequest { only_check: true, ..CompileRequest::new(graph, vec![target]) };
        let check = match guarded(|| moec::compile(&request)) {
            Err(panic) => return answer.findings.push(format!("{}: compiling panics: {panic}", target.name)),
            Ok(check) => check,
        };
        match &check {
            Ok(_) => answer.compiled.push(target.name),
            Err(d) => answer.refuse(target.name, d),
        }
        if let Some(draw) = draw {
            self.compile_with_options(graph, target, &check, draw, answer);
        }
        if !full {
            return;
        }
        let compiled = match (guarded(|| moec::compile(&CompileRequest::new(graph, vec![target]))), check) {
            (Err(panic), _) => return answer.findings.push(format!("{}: compiling panics: {panic}", target.name)),
            (Ok(Ok(compiled)), Ok(_)) => compiled,
            (Ok(Err(a)), Err(b)) if a == b => return,
            (Ok(a), b) => {
                let said =
                    |r: Result<_, Diagnostic>| r.map_or_else(|d| d.to_string(), |_: moec::Compiled| "yes".into());
                let what = format!("{}: `compile` says {}, `check` {}", target.name, said(a), said(b));
                return answer.findings.push(what);
            }
        };
        let n_tokens = [1, 3, 17][graph.nodes.len() % 3];
        let (device, most) = match target.is_cpu() {
            true => (Device::Cpu, MOST_ELEMENTS),
            false => (Device::Emulator { target: target.name }, MOST_EMULATED),
        };
        if elements(graph, n_tokens) <= most {
            self.run(graph, &compiled, target, device, n_tokens, answer);
        }
    }

    /// Options of `moec compile` that must not decide whether a layer can be compiled.
    fn compile_with_options(
        &self,
        graph: &Graph,
        target: &'static Target,
        check: &Result<moec::Compiled, Diagnostic>,
        draw: &mut Draw,
        answer: &mut Answer,
    ) {
        let opt_level = *draw.pick(&[0, 1]);
        let tokens = *draw.pick(&[(1, 1), (1, 4096), (0, 17)]);
        let request =
            CompileRequest { opt_level, tokens, only_check: true, ..CompileRequest::new(graph, vec![target]) };
        let how = format!("-O{opt_level} --tokens {}..{}", tokens.0, tokens.1);
        match (guarded(|| moec::compile(&request)), check) {
            (Err(panic), _) => answer.findings.push(format!("{}: {how}: compiling panics: {panic}", target.name)),
            (Ok(Err(d)), _) if d.fault == Fault::Internal => {
                answer.findings.push(format!("{}: {how}: {d}", target.name));
            }
            (Ok(Err(d)), Ok(_)) => answer.findings.push(format!("{}: compiles, but not with {how}: {d}", target.name)),
            // What is too large for many tokens may do for few.
            (Ok(Ok(_)), Err(d)) if d.code != "grid-too-large" => {
                answer.findings.push(format!("{}: compiles only with {how}: {d}", target.name));
            }
            (Ok(_), _) => {}
        }
    }

    fn run(
        &self,
        graph: &Graph,
        compiled: &moec::Compiled,
        target: &'static Target,
        device: Device,
        n_tokens: u64,
        answer: &mut Answer,
    ) {
        let on = target.name;
        let inputs: Vec<(String, Tensor)> =
            graph.inputs.iter().map(|i| (i.name.clone(), moec::random_tensor(&i.ty, n_tokens, 1, &i.name))).collect();
        let named: Vec<(&str, &Tensor)> = inputs.iter().map(|(n, t)| (n.as_str(), t)).collect();
        let is_published = graph.params.iter().any(|p| p.stored.is_some());
        let params = moec::random_params(graph, 1);
        let tensors: Vec<(String, Tensor)> =
            graph.params.iter().zip(&params).map(|(p, t)| (p.name.clone(), t.clone())).collect();
        let weights = if is_published { Weights::Random { seed: 1 } } else { Weights::Tensors(&tensors) };
        let ran = guarded(|| {
            let mut session = Session::load(&compiled.bundle, &weights, device, n_tokens)?;
            session.run(&named)
        });
        match ran {
            Err(panic) => answer.findings.push(format!("{on}: running panics: {panic}")),
            // Inputs are random: a number may be no expert's.
            Ok(Err(d)) if d.fault == Fault::Input && d.code.starts_with("input-") => answer.refuse("run", &d),
            Ok(Err(d)) => answer.findings.push(format!("{on}: compiles, but does not run: {d}")),
            Ok(Ok(result)) => {
                answer.ran.push(on);
                answer.findings.extend(result.findings.iter().map(|f| format!("{on}: {f}")));
                if is_published {
                    return;
                }
                let tensors: Vec<Tensor> = inputs.iter().map(|(_, t)| t.clone()).collect();
                let got: Vec<Tensor> = result.outputs.iter().map(|(_, t)| t.clone()).collect();
                match guarded(|| evaluate(graph, &tensors, &params)) {
                    Err(panic) => answer.findings.push(format!("the reference panics: {panic}")),
                    Ok(Err(d)) => answer.findings.push(format!("runs, but the reference refuses: {d}")),
                    Ok(Ok(want)) => {
                        answer.findings.extend(far_off(graph, &got, &want).map(|why| format!("{on}: {why}")));
                    }
                }
            }
        }
    }
}

impl Answer {
    fn refuse(&mut self, by: &str, d: &Diagnostic) {
        if d.fault == Fault::Internal {
            self.findings.push(format!("{by}: {d}"));
        }
        self.refused.entry(by.to_string()).or_insert_with(|| d.code.to_string());
    }

    fn found(mut self, what: String) -> Answer {
        self.findings.push(what);
        self
    }
}

/// Runs it; the message of a panic.
fn guarded<T>(what: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(what)).map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        text.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_string())).unwrap_or_default()
    })
}

fn elements(graph: &Graph, n_tokens: u64) -> u64 {
    let of = |shape: &[moec_ir::Dim]| shape.iter().fold(1u64, |n, d| n.saturating_mul(d.at(n_tokens)));
    let params = graph.params.iter().map(|p| of(&p.ty.shape));
    let values = graph.nodes.iter().map(|n| of(&n.ty.shape));
    params.chain(values).fold(0, u64::saturating_add)
}

/// An output of which more than half of the rows are wrong. Fewer may be ties that another order of a sum decides.
fn far_off(graph: &Graph, got: &[Tensor], want: &[Tensor]) -> Option<String> {
    for ((name, _), (g, w)) in graph.outputs.iter().zip(got.iter().zip(want)) {
        if g.elements() != w.elements() || g.dtype.is_float() != w.dtype.is_float() {
            return Some(format!("`{name}` is {:?} instead of {:?}", g.shape, w.shape));
        }
        let cols = w.cols().max(1);
        let rows = w.elements().div_ceil(cols);
        let wrong = if w.dtype.is_float() {
            let row = |i: usize| (&g.floats()[i * cols..(i + 1) * cols], &w.floats()[i * cols..(i + 1) * cols]);
            (0..rows).filter(|&i| row_is_wrong(row(i))).count()
        } else {
            (0..rows).filter(|&i| g.ints()[i * cols..(i + 1) * cols] != w.ints()[i * cols..(i + 1) * cols]).count()
        };
        if 2 * wrong > rows {
            let first = |t: &Tensor| match t.dtype.is_float() {
                true => format!("{:?}", &t.floats()[..cols.min(4)]),
                false => format!("{:?}", &t.ints()[..cols.min(4)]),
            };
            return Some(format!(
                "{wrong} of {rows} rows of `{name}` are not those of the reference: {} instead of {}",
                first(g),
                first(w)
            ));
        }
    }
    None
}

fn row_is_wrong((got, want): (&[f32], &[f32])) -> bool {
    // What has overflowed has so for one order of a sum or the other.
    if want.iter().chain(got).any(|x| !x.is_finite() || x.abs() > 1e30) {
        return false;
    }
    let norm = |x: f64| x * x;
    let error: f64 = got.iter().zip(want).map(|(g, w)| norm(f64::from(*g) - f64::from(*w))).sum();
    let size: f64 = want.iter().map(|w| norm(f64::from(*w))).sum();
    error > 0.05 * 0.05 * size + 1e-12
}
