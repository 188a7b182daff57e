//! `moec run`: a layer on a device, with an input from a file or a generator.

use super::counters;
use super::mesh::{self, MeshArgs};
use super::subject::{self, CompileArgs, PartArgs, ShardArgs, Subject};
use crate::output::{self, Ended, Outcome};
use crate::progress::Progress;
use moec::{
    Bundle, CachedWeights, Checkpoint, CompileRequest, Compiled, Device, Diagnostic, LayerOptions, LoadOptions,
    ModelLayer, RunResult, Session, Target, Tensor, TensorType, Weights,
};
use moec_bundle::PlacedBundle;
use moec_bundle::manifest::ParamInfo;
use moec_ir::DType;
use moec_ir::tile::Buffer;
use moec_runtime::cpu::{Interleaving, Pool};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

#[derive(clap::Args, Debug)]
pub struct Options {
    /// A model directory, a GGUF file, a layer graph, or a bundle that `moec compile` wrote, for one rank or for many.
    #[arg(value_name = "MODEL|BUNDLE")]
    pub subject: PathBuf,
    /// Where it runs: cpu, cuda, cuda:N, or emulator:T with T a GPU target.
    #[arg(long, default_value = "cpu", value_parser = parse_device, value_name = "cpu|cuda[:N]|emulator:T")]
    pub device: Device,
    /// The layer of a model, by its own number [default: its first MoE layer].
    #[arg(long, value_name = "N")]
    pub layer: Option<u32>,
    #[command(flatten)]
    pub shard: ShardArgs,
    #[command(flatten)]
    pub mesh: MeshArgs,
    #[command(flatten)]
    pub part: PartArgs,
    /// A safetensors file with `input` [T, H], or a generator.
    #[arg(long, value_parser = parse_source, value_name = "FILE|random:T=64,seed=1")]
    pub input: Source,
    /// Where the results go: `output`, `topk_ids`, `topk_weights`.
    #[arg(long, short, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// A file whose `output` the result is compared with.
    #[arg(long, value_name = "FILE")]
    pub expect: Option<PathBuf>,
    /// Largest relative error of the whole (Frobenius norm); a row may have twice, an element eight times as much
    /// [default: 1e-5 for float32, 1e-2 otherwise].
    #[arg(long, value_name = "ERROR")]
    pub tolerance: Option<f64>,
    /// Checkpoint of the weights, or random:seed=N [default: the model's directory].
    #[arg(long, value_parser = parse_source, value_name = "DIR|random:seed=1")]
    pub weights: Option<Source>,
    /// Keep packed weights in this directory, and take them from there the next time.
    #[arg(long, value_name = "DIR")]
    pub weight_cache: Option<PathBuf>,
    #[command(flatten)]
    pub cpu: CpuArgs,
    /// On the CPU, compile in memory for this very processor instead of taking the bundle's object file.
    #[arg(long)]
    pub jit: bool,
    /// On an emulator: prints what each kernel moved, multiplied and executed, or writes it as JSON.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "-", value_name = "FILE.json")]
    pub counters: Option<PathBuf>,
    #[command(flatten)]
    pub compile: CompileArgs,
}

/// How the CPU's memory and processors are used.
#[derive(clap::Args, Clone, Debug)]
pub struct CpuArgs {
    /// On the CPU, keep at most so many bytes of routed experts in memory and read the others from the weight cache, or from a
    /// checkpoint that needs no packing, as they are chosen.
    #[arg(long, value_parser = parse_size, value_name = "8GiB")]
    pub memory_limit: Option<u64>,
    /// On the CPU, a thread on each of these processors, where it stays, as taskset names them [default: a thread for each core, where the
    /// system puts it].
    #[arg(long, value_parser = parse_cpus, value_name = "0-3,8")]
    pub cpu_affinity: Option<Cpus>,
}

/// Processors, in the order of threads.
#[derive(Clone, Debug)]
pub struct Cpus(pub Vec<usize>);

fn parse_cpus(text: &str) -> Result<Cpus, String> {
    moec_runtime::cpu::parse_cpus(text).map(Cpus).map_err(|d| format!("{}; {}", d.message, d.help.unwrap_or_default()))
}

impl CpuArgs {
    /// A pool on the processors that are named, if any are. This thread is one of it.
    pub fn pool(&self, device: &Device) -> Result<Option<Arc<Pool>>, Diagnostic> {
        let Some(Cpus(cpus)) = &self.cpu_affinity else { return Ok(None) };
        if *device != Device::Cpu {
            let d = Diagnostic::machine("wrong-usage", format!("--cpu-affinity changes nothing on {device}"));
            return Err(d.help("leave it out"));
        }
        let pool = Pool::pinned(cpus)?;
        if let Interleaving::Refused(..) = pool.interleaving() {
            output::remark(&format!("warning: {}", pool.interleaving()));
        }
        Ok(Some(Arc::new(pool)))
    }
}

pub(super) fn parse_size(text: &str) -> Result<u64, String> {
    moec_runtime::parse_bytes(text).map_err(|d| format!("{}; {}", d.message, d.help.unwrap_or_default()))
}

/// Where tensors come from.
#[derive(Clone, Debug)]
pub enum Source {
    /// A file or directory.
    Path(PathBuf),
    /// A generator.
    Random {
        /// Token count.
        n_tokens: u64,
        /// Seed.
        seed: u64,
    },
}

pub(super) fn parse_device(name: &str) -> Result<Device, String> {
    Device::parse(name).map_err(|d| format!("{}; {}", d.message, d.help.unwrap_or_default()))
}

pub(super) fn parse_source(text: &str) -> Result<Source, String> {
    if text == "random" && !Path::new(text).exists() {
        return Err("give numbers too: random:T=64,seed=1 for inputs, random:seed=1 for weights".to_string());
    }
    let Some(list) = text.strip_prefix("random:") else { return Ok(Source::Path(PathBuf::from(text))) };
    let (mut n_tokens, mut seed) = (64, 1);
    for part in list.split(',').filter(|p| !p.is_empty()) {
        let value = |v: &str| v.parse::<u64>().map_err(|_| format!("`{part}` needs a whole number"));
        match part.split_once('=') {
            Some(("T", v)) => n_tokens = value(v)?,
            Some(("seed", v)) => seed = value(v)?,
            _ => return Err(format!("`{part}` is not T=… or seed=…")),
        }
    }
    if n_tokens > moec_passes::MAX_TOKENS {
        return Err(format!("T={n_tokens} is more than {}", moec_passes::MAX_TOKENS));
    }
    Ok(Source::Random { n_tokens, seed })
}

/// A layer that is ready to be loaded.
struct Ready {
    bundle: Bundle,
    compiled: Option<Compiled>,
    checkpoint: Option<PathBuf>,
}

pub fn run(options: &Options) -> Outcome {
    let one = |d: Diagnostic| vec![d];
    if options.mesh.mesh.is_some() || PlacedBundle::is_at(&options.subject) {
        return mesh::run(options);
    }
    options.mesh.refuse().map_err(one)?;
    if options.counters.is_some() && !matches!(options.device, Device::Emulator { .. }) {
        let d = Diagnostic::machine("wrong-usage", format!("{} counts nothing", options.device));
        return Err(vec![d.help("give --device emulator:T with --counters")]);
    }
    let ready = prepare(options)?;
    let inputs = inputs(options, &ready.bundle).map_err(one)?;
    let n_tokens = inputs.first().and_then(|(_, t)| t.shape.first()).map_or(1, |&n| n as u64);
    let progress = Progress::start("loading weights");
    let mut session = load(options, &ready, n_tokens.max(1), &progress).map_err(one)?;
    if let Some(layer) = session.layer().as_emulator() {
        layer.set_options(|o| o.counters = options.counters.is_some());
    }
    progress.say("running");
    let named: Vec<(&str, &Tensor)> = inputs.iter().map(|(n, t)| (n.as_str(), t)).collect();
    let result = session.run(&named).map_err(one)?;
    drop(progress);
    if let Some(path) = &options.output {
        write_results(path, &result).map_err(one)?;
    }
    let ended = report(options, &result, n_tokens)?;
    if let (Some(to), Some(layer)) = (&options.counters, session.layer().as_emulator()) {
        if to.as_os_str() == "-" {
            output::print(&counters::table(layer));
        } else {
            output::write_file(to, counters::json(layer).as_bytes()).map_err(one)?;
        }
    }
    Ok(ended)
}

/// Refuses the first option that only a model takes: what it asks for was decided when the bundle was compiled.
///
/// # Errors
/// `wrong-usage`.
pub(super) fn refuse_decided(
    layer: Option<u32>,
    shard: &ShardArgs,
    part: &PartArgs,
    compile: &CompileArgs,
) -> Result<(), Diagnostic> {
    if shard.part()?.is_some() {
        let d = Diagnostic::machine("wrong-usage", "a bundle holds one rank's part already");
        return Err(d.help("give --tp, --ep and --rank to `moec compile`, or give the model"));
    }
    let given = [
        ("--layer", layer.is_some()),
        ("--part", part.part != subject::PartArg::Layer),
        ("--ids-in", part.ids_in.is_some()),
        ("--topk-ids", part.topk_ids != DType::I32),
        ("--topk-weights", part.topk_weights != DType::F32),
        ("--numerics", compile.numerics != moec::Numerics::Deterministic),
        ("-O", compile.opt_level != 2),
        ("--weight-storage", !matches!(compile.weight_storage, moec::WeightStorage::AsPublished)),
        ("--activations", compile.activations.is_some()),
    ];
    let Some((option, _)) = given.into_iter().find(|(_, given)| *given) else { return Ok(()) };
    let d = Diagnostic::machine("wrong-usage", format!("{option} changes nothing of a layer that is compiled"));
    Err(d.help(format!("give {option} to `moec compile`, or give the model")))
}

/// Compiles a model, or opens a bundle.
fn prepare(options: &Options) -> Result<Ready, Vec<Diagnostic>> {
    let checkpoint = match &options.weights {
        Some(Source::Path(path)) => Some(path.clone()),
        Some(Source::Random { .. }) | None => None,
    };
    let shard = options.shard.part().map_err(|d| vec![d])?;
    match subject::open(&options.subject)? {
        Subject::Bundle(bundle) => {
            refuse_decided(options.layer, &options.shard, &options.part, &options.compile).map_err(|d| vec![d])?;
            if options.jit {
                let d = Diagnostic::machine("wrong-usage", "a bundle holds compiled code; --jit needs the model");
                return Err(vec![d.help("give the model directory")]);
            }
            Ok(Ready { bundle: *bundle, compiled: None, checkpoint })
        }
        Subject::Model(model) => {
            // The layer computes in the type of its input.
            let one = |d: Diagnostic| vec![d];
            let dtype = input_type(options).map_err(one)?;
            let model = match &checkpoint {
                Some(path) => model.with_weights(path),
                None => *model,
            };
            let ids_in = options.part.ids_in().map_err(one)?;
            let wanted = LayerOptions { dtype, shard, part: options.part.part(), ids_in };
            let layer = model.layer_with(options.layer, &wanted)?;
            let layer = layer.with_activations(options.compile.activations.unwrap_or_default()).map_err(one)?;
            crate::bug::working_on(format!("layer: {}", layer.info.name));
            if options.weights.is_none()
                && let Some(d) = layer.not_loadable
            {
                return Err(vec![d]);
            }
            let targets = targets(&options.device).map_err(|d| vec![d])?;
            let compiled = compile(&layer, &options.compile, targets).map_err(|d| vec![d])?;
            Ok(Ready {
                bundle: compiled.bundle.clone(),
                compiled: Some(compiled),
                checkpoint: checkpoint.or(layer.checkpoint),
            })
        }
    }
}

/// Compiles a layer, telling how far it is.
pub(super) fn compile(
    layer: &ModelLayer,
    options: &CompileArgs,
    targets: Vec<&'static Target>,
) -> Result<Compiled, Diagnostic> {
    let request = CompileRequest {
        info: layer.info.clone(),
        numerics: options.numerics,
        opt_level: options.opt_level,
        weights: options.weight_storage,
        ..CompileRequest::new(&layer.graph, targets)
    };
    let progress = Progress::start("compiling");
    moec::compile_reporting(&request, &mut |step| progress.say(step))
}

/// What has to be compiled for a device.
pub(super) fn targets(device: &Device) -> Result<Vec<&'static Target>, Diagnostic> {
    match device {
        Device::Cpu => Ok(Target::by_name("cpu").into_iter().collect()),
        Device::Emulator { target } => Ok(Target::by_name(target).into_iter().collect()),
        Device::Cuda { ordinal } => {
            let (major, minor) = moec_runtime::cuda::CudaDevice::open(*ordinal)?.info().capability;
            let names = moec_ir::target::TARGETS.iter().filter(|t| !t.is_cpu()).map(|t| t.name);
            let best = moec_runtime::best_target(names, major, minor).and_then(Target::by_name);
            best.map(|t| vec![t]).ok_or_else(|| {
                Diagnostic::machine(
                    "target-not-in-bundle",
                    format!("moec has no target for {device}, a GPU of compute capability {major}.{minor}"),
                )
            })
        }
    }
}

/// Opens a file of inputs or results, which lies in the form of a checkpoint but is none.
fn tensor_file(path: &Path) -> Result<Checkpoint, Diagnostic> {
    std::fs::metadata(path).map_err(|e| subject::unreadable(path, &e))?;
    Checkpoint::open(path)
}

/// The float type of the hidden states in the input file, when there is one.
pub(super) fn input_type(options: &Options) -> Result<Option<DType>, Diagnostic> {
    let Source::Path(path) = &options.input else { return Ok(None) };
    let file = tensor_file(path)?;
    let input = file.tensor("input")?;
    Ok(input.and_then(|t| t.dtype.dtype()).filter(|d| matches!(d, DType::F32 | DType::F16 | DType::BF16)))
}

fn inputs(options: &Options, bundle: &Bundle) -> Result<Vec<(String, Tensor)>, Diagnostic> {
    let wanted = &bundle.manifest().inputs;
    match &options.input {
        Source::Random { n_tokens, seed } => Ok(random_inputs(bundle, *n_tokens, *seed)),
        Source::Path(path) => file_tensors(path, wanted.iter().map(|i| i.name.as_str())),
    }
}

/// Those of the tensors called `names` that a file has.
pub(super) fn file_tensors<'n>(
    path: &Path,
    names: impl Iterator<Item = &'n str>,
) -> Result<Vec<(String, Tensor)>, Diagnostic> {
    let file = tensor_file(path)?;
    let found = names.filter_map(|name| Some(tensor(&file, name).transpose()?.map(|t| (name.to_string(), t))));
    found.collect()
}

/// Random inputs for a layer.
pub(super) fn random_inputs(bundle: &Bundle, n_tokens: u64, seed: u64) -> Vec<(String, Tensor)> {
    let n_experts = bundle.manifest().layer.facts.get("experts").copied();
    random_tensors(bundle.manifest().inputs.iter().map(|i| (i.name.as_str(), &i.ty)), n_experts, n_tokens, seed)
}

/// Random tensors of these names and types.
pub(super) fn random_tensors<'n>(
    wanted: impl Iterator<Item = (&'n str, &'n TensorType)>,
    n_experts: Option<u64>,
    n_tokens: u64,
    seed: u64,
) -> Vec<(String, Tensor)> {
    let random = |(name, ty): (&str, &TensorType)| {
        let tensor = moec::random_tensor(ty, n_tokens, seed, name);
        // Any number is an id, but one that no expert has tries nothing.
        match (name, n_experts) {
            ("topk_ids", Some(n)) if n > 0 => {
                let ids = tensor.ints().iter().map(|id| id % n as i64).collect();
                (name.to_string(), Tensor::int(tensor.dtype, &tensor.shape, ids))
            }
            _ => (name.to_string(), tensor),
        }
    };
    wanted.map(random).collect()
}

fn tensor(file: &Checkpoint, name: &str) -> Result<Option<Tensor>, Diagnostic> {
    let Some(view) = file.tensor(name)? else { return Ok(None) };
    let converted = view.to_tensor().ok_or_else(|| {
        Diagnostic::input(
            "input-type-mismatch",
            format!(
                "`{name}` in `{}` is {}; moec computes in float and integer types only",
                file.path().display(),
                view.describe()
            ),
        )
    });
    converted.map(Some)
}

fn load(options: &Options, ready: &Ready, n_tokens: u64, progress: &Progress) -> Result<Session, Diagnostic> {
    let weights = match (&options.weights, &ready.checkpoint) {
        (Some(Source::Random { seed, .. }), _) => Weights::Random { seed: *seed },
        (_, Some(path)) => {
            let checkpoint = Checkpoint::open(path)?;
            match &options.weight_cache {
                Some(dir) => Weights::Cached(CachedWeights::new(checkpoint.into(), dir)?),
                None => Weights::from_checkpoint(checkpoint),
            }
        }
        (_, None) => return Err(weights_missing(options)),
    };
    let done = AtomicU64::new(0);
    let watch = |param: &ParamInfo, buffer: &Buffer| {
        let before = done.fetch_add(buffer.bytes(0), Ordering::Relaxed) as f64 / (1u64 << 30) as f64;
        progress.say(&format!("loading weights: {before:.2} GiB so far, `{}`", param.name));
    };
    let weights = Weights::Watched(&weights, &watch);
    let load = LoadOptions {
        device: options.device.clone(),
        max_tokens: n_tokens,
        memory_limit: options.cpu.memory_limit,
        spill_folder: options.weight_cache.clone(),
        pool: options.cpu.pool(&options.device)?,
        ..LoadOptions::default()
    };
    match (&ready.compiled, options.jit) {
        (Some(compiled), true) => Session::jit_with(compiled, &weights, load),
        _ => Session::load_with(&ready.bundle, &weights, load),
    }
}

pub(super) fn weights_missing(options: &Options) -> Diagnostic {
    let what = format!("there are no weights beside `{}`", options.subject.display());
    Diagnostic::input("weights-missing", what)
        .help("give a checkpoint with --weights DIR, or --weights random:seed=1 for a trial")
}

/// Writes the results; expert ids as int64, as other tools expect them.
pub(super) fn write_results(path: &Path, result: &RunResult) -> Result<(), Diagnostic> {
    let wide = |t: &Tensor| match t.dtype {
        DType::I32 => Tensor::int(DType::I64, &t.shape, t.ints().to_vec()),
        DType::F64 | DType::F32 | DType::F16 | DType::BF16 | DType::I64 | DType::U8 => t.clone(),
    };
    let tensors: Vec<(&String, Tensor)> = result.outputs.iter().map(|(n, t)| (n, wide(t))).collect();
    let named: Vec<(&str, &Tensor)> = tensors.iter().map(|(n, t)| (n.as_str(), t)).collect();
    moec_weights::safetensors::write_safetensors(path, &named)
}

pub(super) fn report(options: &Options, result: &RunResult, n_tokens: u64) -> Outcome {
    let mut ended = Ended::Well;
    let mut text =
        format!("ran {} (variant {}) on {} with T={n_tokens}\n", result.target, result.variant, options.device);
    for finding in &result.findings {
        text += &format!("finding: {finding}\n");
        ended = Ended::WithFindings;
    }
    if let Some(path) = &options.expect {
        let (line, good) = compare(options, result, path).map_err(|d| vec![d])?;
        text += &line;
        if !good {
            ended = Ended::WithFindings;
        }
    }
    output::print(&text);
    Ok(ended)
}

/// The error against a file of expected results in words, and whether it is within the tolerance.
fn compare(options: &Options, result: &RunResult, path: &Path) -> Result<(String, bool), Diagnostic> {
    let file = tensor_file(path)?;
    let want = tensor(&file, "output")?.ok_or_else(|| {
        Diagnostic::input("tensor-missing", format!("`{}` has no tensor `output` to compare with", path.display()))
    })?;
    let got = result.output("output").ok_or_else(|| {
        let names: Vec<String> = result.outputs.iter().map(|(name, _)| format!("`{name}`")).collect();
        Diagnostic::input(
            "output-name-mismatch",
            format!("--expect compares `output`; the layer gives {}", names.join(", ")),
        )
        .help("name the output of the graph `output`")
    })?;
    if got.shape != want.shape {
        return Err(Diagnostic::input(
            "input-shape-mismatch",
            format!("the result is {:?}; `output` in `{}` is {:?}", got.shape, path.display(), want.shape),
        ));
    }
    let tolerance = options.tolerance.unwrap_or(if got.dtype == DType::F32 { 1e-5 } else { 1e-2 });
    let error = got.worst_error(&want);
    let mut text = format!("output: relative error {error:.2e}, tolerance {tolerance:.0e}\n");
    if let (Some(ids), Some(want)) = (result.output("topk_ids"), tensor(&file, "topk_ids")?) {
        let sets = |t: &Tensor| -> Vec<Vec<i64>> {
            let sorted = |row: &[i64]| {
                let mut row = row.to_vec();
                row.sort_unstable();
                row
            };
            t.ints().chunks(t.cols().max(1)).map(sorted).collect()
        };
        let differ = sets(ids).iter().zip(&sets(&want)).filter(|(a, b)| a != b).count();
        text += &format!("topk_ids: {differ} of {} tokens chose other experts\n", ids.shape[0]);
    }
    Ok((text, error <= tolerance))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generators_are_read() {
        assert!(matches!(parse_source("random:T=7,seed=3"), Ok(Source::Random { n_tokens: 7, seed: 3 })));
        assert!(matches!(parse_source("random:"), Ok(Source::Random { n_tokens: 64, seed: 1 })));
        assert!(matches!(parse_source("a.safetensors"), Ok(Source::Path(_))));
        for wrong in ["random:T=x", "random:K=3", "random:T=99999999999"] {
            assert!(parse_source(wrong).is_err(), "{wrong}");
        }
    }
}
