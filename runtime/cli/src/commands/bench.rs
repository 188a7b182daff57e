//! `moec bench`: times of a layer on the CPU, by kernel, beside a plain read of memory, and by turns with another layer.

mod figures;
mod read;

use super::run::{compile, parse_device, parse_source, random_inputs, refuse_decided};
use super::subject::{self, CompileArgs, PartArgs, ShardArgs, Subject};
use crate::commands::run::Source;
use crate::output::{self, Ended, Outcome};
use crate::progress::Progress;
use figures::{Run, Spread};
use moec::{Bundle, Checkpoint, Device, Diagnostic, Layer, LayerOptions, LoadOptions, Target, Tensor, Weights};
use moec_runtime::cpu::{Pool, Times};
use read::Reader;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

#[derive(clap::Args, Debug)]
pub struct Options {
    /// A model directory, a GGUF file, a layer graph, or a bundle that `moec compile` wrote.
    #[arg(value_name = "MODEL|BUNDLE")]
    pub subject: PathBuf,
    /// Where it runs.
    #[arg(long, default_value = "cpu", value_parser = parse_device, value_name = "cpu")]
    pub device: Device,
    /// Token counts.
    #[arg(long, short = 'T', value_delimiter = ',', default_value = "1,16,128,512", value_name = "T[,T…]")]
    pub tokens: Vec<u64>,
    /// Runs of each token count; one more before them is not counted.
    #[arg(long, default_value = "11", value_parser = clap::value_parser!(u32).range(1..=10_000), value_name = "N")]
    pub rounds: u32,
    /// Threads [default: one for each core].
    #[arg(long, default_value = "0", hide_default_value = true, value_name = "N")]
    pub threads: usize,
    /// Another bundle, which takes turns with this layer: times of it by times of this one, pair by pair.
    #[arg(long, value_name = "BUNDLE")]
    pub vs: Option<PathBuf>,
    /// Checkpoint of the weights.
    #[arg(long, value_parser = parse_source, default_value = "random:seed=1", value_name = "DIR|random:seed=1")]
    pub weights: Source,
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
    if options.device != Device::Cpu {
        let d = Diagnostic::machine(
            "wrong-usage",
            format!("moec bench times layers on the CPU, not on {}", options.device),
        );
        return Err(vec![d.help("give --device cpu")]);
    }
    let most = options.tokens.iter().copied().max().unwrap_or(1);
    if most > moec_passes::MAX_TOKENS || options.tokens.contains(&0) {
        let d = Diagnostic::machine("wrong-usage", format!("token counts are 1 to {}", moec_passes::MAX_TOKENS));
        return Err(vec![d.help("give -T 1,16,128")]);
    }
    let bundle = open(options)?;
    let pool = Arc::new(Pool::new(options.threads));
    let progress = Progress::start("loading weights");
    let mut layers = vec![load(&bundle, &options.weights, &pool, most).map_err(one)?];
    if let Some(path) = &options.vs {
        let other = bundle_at(path)?;
        layers.push(load(&other, &options.weights, &pool, most).map_err(one)?);
        same_inputs(&bundle, &other).map_err(one)?;
    }
    let mut reader = Reader::new(pool.n_threads());
    let mut runs = Vec::new();
    for &n_tokens in &options.tokens {
        progress.say(&format!("running T={n_tokens}"));
        runs.push(measure(options, &bundle, &mut layers, &mut reader, n_tokens).map_err(one)?);
    }
    drop(progress);
    let read = Spread::of(reader.seen());
    let text = if options.json {
        figures::json(&runs, &read, pool.n_threads())
    } else {
        figures::text(&runs, &read, pool.n_threads())
    };
    output::print(&text);
    Ok(Ended::Well)
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
            let targets = Target::by_name("cpu").into_iter().collect();
            Ok(compile(&layer, &options.compile, targets).map_err(one)?.bundle)
        }
    }
}

fn bundle_at(path: &Path) -> Result<Bundle, Vec<Diagnostic>> {
    match subject::open(path)? {
        Subject::Bundle(bundle) => Ok(*bundle),
        Subject::Model(_) => {
            let d = Diagnostic::input("bundle-not-found", format!("`{}` is a model, not a bundle", path.display()));
            Err(vec![d.help("`moec compile MODEL --target cpu -o DIR` writes a bundle")])
        }
    }
}

fn load(bundle: &Bundle, weights: &Source, pool: &Arc<Pool>, max_tokens: u64) -> Result<Layer, Diagnostic> {
    let weights = match weights {
        Source::Random { seed, .. } => Weights::Random { seed: *seed },
        Source::Path(path) => Weights::from_checkpoint(Checkpoint::open(path)?),
    };
    let options = LoadOptions { device: Device::Cpu, max_tokens, pool: Some(pool.clone()), ..LoadOptions::default() };
    Layer::load(bundle, &weights, options)
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

/// Rounds in which all layers take turns on the same inputs.
fn measure(
    options: &Options,
    bundle: &Bundle,
    layers: &mut [Layer],
    reader: &mut Reader,
    n_tokens: u64,
) -> Result<Run, Diagnostic> {
    let mut times: Vec<Vec<Times>> = vec![Vec::new(); layers.len()];
    let mut touched = Vec::new();
    for round in 0..=u64::from(options.rounds) {
        let inputs = random_inputs(bundle, n_tokens, round + 1);
        let named: Vec<(&str, &Tensor)> = inputs.iter().map(|(n, t)| (n.as_str(), t)).collect();
        let experts = experts(&layers[0].run_host(&named)?.outputs).or_else(|| experts(&inputs));
        touched.extend(experts.map(|n| n as f64));
        for i in 0..layers.len() {
            // The one that is first has other memory in the caches than the one behind it.
            let i = if round % 2 == 0 { i } else { layers.len() - 1 - i };
            let took = layers[i].time_host(&named, &mut || reader.read())?;
            let took = took.ok_or_else(|| Diagnostic::internal("internal-error", "the layer should be on the CPU"))?;
            if round > 0 {
                times[i].push(took);
            }
        }
    }
    let experts = (!touched.is_empty()).then(|| Spread::of(&touched).median);
    Run::new(layers[0].manifest(), n_tokens, experts, &times)
}

/// How many different experts the ids name.
fn experts(tensors: &[(String, Tensor)]) -> Option<usize> {
    let (_, ids) = tensors.iter().find(|(name, _)| name == "topk_ids")?;
    Some(ids.ints().iter().filter(|id| **id >= 0).collect::<BTreeSet<_>>().len())
}
