//! `moec bench`: times of a layer by kernel, beside how fast memory is or what an emulator counted, and by turns with another layer.

mod counted;
mod figures;
mod read;

use super::run::{CpuArgs, compile, parse_device, parse_source, random_inputs, refuse_decided, targets};
use super::subject::{self, CompileArgs, PartArgs, ShardArgs, Subject};
use crate::commands::run::Source;
use crate::output::{self, Ended, Outcome};
use crate::progress::Progress;
use figures::{Run, Spread};
use moec::{Bundle, CachedWeights, Checkpoint, Device, Diagnostic, Layer, LayerOptions, LoadOptions, Tensor, Weights};
use moec_runtime::Times;
use moec_runtime::cpu::Pool;
use read::Reader;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

#[derive(clap::Args, Debug)]
pub struct Options {
    /// A model directory, a GGUF file, a layer graph, or a bundle that `moec compile` wrote.
    #[arg(value_name = "MODEL|BUNDLE")]
    pub subject: PathBuf,
    /// Where it runs: cpu, cuda, cuda:N, or emulator:T with T a GPU target, which counts what kernels do.
    #[arg(long, default_value = "cpu", value_parser = parse_device, value_name = "cpu|cuda[:N]|emulator:T")]
    pub device: Device,
    /// Token counts [default: 1,16,128,512; on an emulator 1,16].
    #[arg(long, short = 'T', value_delimiter = ',', value_name = "T[,T…]")]
    pub tokens: Vec<u64>,
    /// Runs of each token count; one more before them is not counted [default: 11; on an emulator 3].
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=10_000), value_name = "N")]
    pub rounds: Option<u32>,
    /// Threads on the CPU [default: one for each core].
    #[arg(long, default_value = "0", hide_default_value = true, value_name = "N")]
    pub threads: usize,
    /// Another bundle, which takes turns with this layer: times of it by times of this one, pair by pair.
    #[arg(long, value_name = "BUNDLE")]
    pub vs: Option<PathBuf>,
    /// Checkpoint of the weights.
    #[arg(long, value_parser = parse_source, default_value = "random:seed=1", value_name = "DIR|random:seed=1")]
    pub weights: Source,
    /// Keep packed weights in this directory, and take them from there the next time.
    #[arg(long, value_name = "DIR")]
    pub weight_cache: Option<PathBuf>,
    #[command(flatten)]
    pub cpu: CpuArgs,
    /// Everything as JSON, in milliseconds, bytes and GB/s.
    #[arg(long)]
    pub json: bool,
    /// The layer of a model, by its own number [default: its first MoE layer].
    #[arg(long, value_name = "N")]
    pub layer: Option<u32>,
    #[command(flatten)]
    pub shard: ShardArgs,
    #[command(flatten)]
    pub part: PartArgs,
    #[command(flatten)]
    pub compile: CompileArgs,
}

pub fn run(options: &Options) -> Outcome {
    let one = |d: Diagnostic| vec![d];
    let emulated = matches!(options.device, Device::Emulator { .. });
    let tokens: &[u64] = match (&options.tokens[..], emulated) {
        ([], false) => &[1, 16, 128, 512],
        ([], true) => &[1, 16],
        (given, _) => given,
    };
    let most = tokens.iter().copied().max().unwrap_or(1);
    if most > moec_passes::MAX_TOKENS || tokens.contains(&0) {
        let d = Diagnostic::machine("wrong-usage", format!("token counts are 1 to {}", moec_passes::MAX_TOKENS));
        return Err(vec![d.help("give -T 1,16,128")]);
    }
    if options.threads > 0 && options.device != Device::Cpu {
        let d = Diagnostic::machine("wrong-usage", format!("--threads changes nothing on {}", options.device));
        return Err(vec![d.help("leave it out")]);
    }
    let bundle = open(options)?;
    if options.threads > 0 && options.cpu.cpu_affinity.is_some() {
        let d = Diagnostic::machine("wrong-usage", "--threads and --cpu-affinity both say how many threads there are");
        return Err(vec![d.help("give one of them")]);
    }
    let pool = match options.cpu.pool(&options.device).map_err(one)? {
        None if options.device == Device::Cpu => Some(Arc::new(Pool::new(options.threads).map_err(one)?)),
        pinned => pinned,
    };
    let progress = Progress::start("loading weights");
    let mut layers = vec![load(&bundle, options, &pool, most).map_err(one)?];
    if let Some(path) = &options.vs {
        let other = subject::bundle(path)?;
        layers.push(load(&other, options, &pool, most).map_err(one)?);
        same_inputs(&bundle, &other).map_err(one)?;
    }
    let mut bench = Bench {
        bundle: &bundle,
        layers,
        reader: pool.as_ref().map(|p| Reader::new(p.n_threads())),
        copies: Vec::new(),
        findings: BTreeSet::new(),
        rounds: options.rounds.unwrap_or(if emulated { 3 } else { 11 }),
    };
    let mut runs = Vec::new();
    for &n_tokens in tokens {
        progress.say(&format!("running T={n_tokens}"));
        runs.push(bench.measure(n_tokens).map_err(one)?);
    }
    drop(progress);
    let device = figures::On {
        device: options.device.to_string(),
        target: bench.layers.first().map(|l| l.target().to_string()).unwrap_or_default(),
        threads: pool.map(|p| p.n_threads()),
        memory: match &bench.reader {
            Some(reader) => Some(Spread::of(reader.seen())),
            None => (!bench.copies.is_empty()).then(|| Spread::of(&bench.copies)),
        },
    };
    output::print(&if options.json { figures::json(&runs, &device) } else { figures::text(&runs, &device) });
    for finding in &bench.findings {
        output::remark(&format!("finding: {finding}"));
    }
    Ok(if bench.findings.is_empty() { Ended::Well } else { Ended::WithFindings })
}

/// The bundle that is asked for, compiled if need be.
fn open(options: &Options) -> Result<Bundle, Vec<Diagnostic>> {
    let one = |d: Diagnostic| vec![d];
    match subject::open(&options.subject)? {
        Subject::Bundle(bundle) => {
            refuse_decided(options.layer, &options.shard, &options.part, &options.compile).map_err(one)?;
            Ok(*bundle)
        }
        Subject::Model(model) => {
            let (shard, ids_in) = (options.shard.part().map_err(one)?, options.part.ids_in().map_err(one)?);
            let wanted = LayerOptions { dtype: None, shard, part: options.part.part(), ids_in };
            let layer = model.layer_with(options.layer, &wanted)?;
            let layer = layer.with_activations(options.compile.activations.unwrap_or_default()).map_err(one)?;
            crate::bug::working_on(format!("layer: {}", layer.info.name));
            let targets = targets(&options.device).map_err(one)?;
            Ok(compile(&layer, &options.compile, targets).map_err(one)?.bundle)
        }
    }
}

fn load(bundle: &Bundle, options: &Options, pool: &Option<Arc<Pool>>, max_tokens: u64) -> Result<Layer, Diagnostic> {
    let weights = match &options.weights {
        Source::Random { seed, .. } => Weights::Random { seed: *seed },
        Source::Path(path) => {
            let checkpoint = Checkpoint::open(path)?;
            match &options.weight_cache {
                Some(dir) => Weights::Cached(CachedWeights::new(checkpoint.into(), dir)?),
                None => Weights::from_checkpoint(checkpoint),
            }
        }
    };
    let load = LoadOptions {
        device: options.device.clone(),
        max_tokens,
        pool: pool.clone(),
        memory_limit: options.cpu.memory_limit,
        spill_folder: options.weight_cache.clone(),
        ..LoadOptions::default()
    };
    Layer::load(bundle, &weights, load)
}

/// # Errors
/// `wrong-usage` when two layers cannot be given the same inputs.
fn same_inputs(a: &Bundle, b: &Bundle) -> Result<(), Diagnostic> {
    let inputs = |bundle: &Bundle| -> Vec<String> {
        bundle.manifest().inputs.iter().map(|i| format!("{} {}", i.name, i.ty)).collect()
    };
    if inputs(a) == inputs(b) {
        return Ok(());
    }
    let (a, b) = (inputs(a).join(", "), inputs(b).join(", "));
    let d = Diagnostic::machine("wrong-usage", format!("--vs: one layer takes {a}, the other {b}"));
    Err(d.help("compare layers of the same inputs"))
}

/// Layers that take turns, and what was seen beside their times.
struct Bench<'b> {
    bundle: &'b Bundle,
    layers: Vec<Layer>,
    /// On the CPU.
    reader: Option<Reader>,
    /// GB/s of copies of a GPU's memory.
    copies: Vec<f64>,
    findings: BTreeSet<String>,
    rounds: u32,
}

impl Bench<'_> {
    /// Rounds in which all layers take turns on the same inputs.
    fn measure(&mut self, n_tokens: u64) -> Result<Run, Diagnostic> {
        let mut times: Vec<Vec<Times>> = vec![Vec::new(); self.layers.len()];
        let mut touched = Vec::new();
        let mut counted = Vec::new();
        for round in 0..=u64::from(self.rounds) {
            let inputs = random_inputs(self.bundle, n_tokens, round + 1);
            let named: Vec<(&str, &Tensor)> = inputs.iter().map(|(n, t)| (n.as_str(), t)).collect();
            if self.is_emulated() {
                // A run more would take as long as all the others; what is counted does not change from run to run.
                if round == 0 {
                    for layer in &mut self.layers {
                        let (counters, result) = counted::count(layer, &named)?;
                        counted.push(counters);
                        self.findings.extend(result.findings);
                        touched.extend(experts(&result.outputs).or_else(|| experts(&inputs)).map(|n| n as f64));
                    }
                    continue;
                }
            } else {
                let experts = experts(&self.layers[0].run_host(&named)?.outputs).or_else(|| experts(&inputs));
                touched.extend(experts.map(|n| n as f64));
            }
            for i in 0..self.layers.len() {
                // The one that is first has other memory in the caches than the one behind it.
                let i = if round % 2 == 0 { i } else { self.layers.len() - 1 - i };
                let reader = &mut self.reader;
                let took = self.layers[i].time_host(&named, &mut || reader.iter_mut().for_each(Reader::read))?;
                self.copies.extend(took.copies.iter().map(|b| b / 1e9));
                if round > 0 {
                    times[i].push(took);
                }
            }
        }
        let experts = (!touched.is_empty()).then(|| Spread::of(&touched).median);
        Run::new(&self.layers[0], n_tokens, experts, &times, counted)
    }

    fn is_emulated(&mut self) -> bool {
        self.layers.first_mut().is_some_and(|l| l.as_emulator().is_some())
    }
}

/// How many different experts the ids name.
fn experts(tensors: &[(String, Tensor)]) -> Option<usize> {
    let (_, ids) = tensors.iter().find(|(name, _)| name == "topk_ids")?;
    Some(ids.ints().iter().filter(|id| **id >= 0).collect::<BTreeSet<_>>().len())
}
