//! `moec run --mesh`, and `moec run` of a bundle for ranks: a layer on threads of this process, or on processes.

mod args;

pub use args::{ExchangeArg, MeshArgs, RanksArg, WireArg};
pub(super) use args::{parse_mesh, parse_wire};

use super::run::{self, Options, Source};
use super::subject::{self, Subject};
use crate::output::{Ended, Outcome};
use crate::progress::Progress;
use moec::ranks::mpi::MpiComm;
use moec::ranks::{
    Comm, EmulatedRanks, PlacedLayer, RankLayer, RankOptions, StepResult, join_tokens, split_evenly, split_tokens,
    threads,
};
use moec::{
    Checkpoint, CompileRequest, Device, Diagnostic, LayerOptions, Mesh, ModelLayer, Placement, RunResult, Spread,
    Tensor, TensorType, Weights, compile_exchanging, compile_placed,
};
use moec_bundle::PlacedBundle;
use moec_ir::graph::Op;
use moec_runtime::cpu::Pool;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A layer that is ready to be loaded on ranks.
struct Ready {
    placed: PlacedLayer,
    mesh: Mesh,
    map: Placement,
    /// Why the host exchanges rows, where it does.
    by_host: Option<String>,
    /// The layer's inputs.
    inputs: Vec<(String, TensorType)>,
    /// Experts of the whole layer, for random ids.
    n_experts: Option<u64>,
    checkpoint: Option<PathBuf>,
}

/// Runs a model, or a bundle for ranks, on the ranks of a mesh; what comes out is gathered in the order of tokens.
pub(super) fn run(options: &Options) -> Outcome {
    let one = |d: Diagnostic| vec![d];
    refuse(options).map_err(one)?;
    let ready = match options.mesh.mesh {
        _ if PlacedBundle::is_at(&options.subject) => open_bundle(options)?,
        Some(mesh) => compile(options, mesh)?,
        None => return Err(vec![Diagnostic::internal("internal-error", "ranks need a mesh")]),
    };
    let inputs = inputs(options, &ready).map_err(one)?;
    let n_tokens = inputs.first().and_then(|(_, t)| t.shape.first()).copied().unwrap_or(0);
    let counts = counts(options.mesh.tokens_per_rank.as_deref(), n_tokens, ready.mesh).map_err(one)?;
    let weights = match (&options.weights, &ready.checkpoint) {
        (Some(Source::Random { .. }), _) if ready.mesh.tp > 1 => return Err(vec![random_with_tp(ready.mesh)]),
        (Some(Source::Random { seed, .. }), _) => Weights::Random { seed: *seed },
        (_, Some(path)) => Weights::from_checkpoint(Checkpoint::open(path).map_err(one)?),
        (_, None) => return Err(vec![run::weights_missing(options)]),
    };
    let progress = Progress::start("loading weights and running");
    let said = match &ready.by_host {
        Some(why) => format!("rows are exchanged by the host: {why}\n"),
        None => String::from("rows are exchanged by kernels of the ranks\n"),
    };
    let run = Run {
        placed: Arc::new(ready.placed),
        map: &ready.map,
        weights: &weights,
        inputs: &inputs,
        counts: &counts,
        device: options.device.clone(),
        rounds: options.mesh.rounds.unwrap_or(0),
    };
    let timeout = options.mesh.timeout();
    let steps = match options.mesh.ranks() {
        RanksArg::Threads if ready.by_host.is_none() => run.in_emulator().map(Some),
        RanksArg::Threads => run.on_threads(timeout).map(Some),
        RanksArg::Mpi(library) => run.as_process(library.as_deref(), ready.mesh, timeout),
    };
    // The first process has everybody's.
    let Some(steps) = steps.map_err(one)? else { return Ok(Ended::Well) };
    drop(progress);
    let result =
        gather(&steps, run::targets(&options.device).map_err(one)?.first().map_or("cpu", |t| t.name)).map_err(one)?;
    if let Some(path) = &options.output {
        run::write_results(path, &result).map_err(one)?;
    }
    crate::output::print(&said);
    crate::output::print(&table(&steps, &ready.map, ready.mesh.tp, &counts));
    run::report(options, &result, n_tokens as u64)
}

/// Compiles a model for the ranks of `mesh`.
fn compile(options: &Options, mesh: Mesh) -> Result<Ready, Vec<Diagnostic>> {
    let one = |d: Diagnostic| vec![d];
    let (layer, checkpoint) = open(options)?;
    let map = placement(options.mesh.placement.as_deref(), n_experts(&layer).map_err(one)?, mesh).map_err(one)?;
    let targets = run::targets(&options.device).map_err(one)?;
    let request = CompileRequest {
        info: layer.info.clone(),
        numerics: options.compile.numerics,
        opt_level: options.compile.opt_level,
        weights: options.compile.weight_storage,
        ..CompileRequest::new(&layer.graph, targets)
    };
    let progress = Progress::start("compiling");
    let wire = options.mesh.wire.and_then(|w| w.0);
    let spread = Spread { n_members: mesh.tp, wire, ..Spread::new(map.most_local()) };
    let mut say = |step: &str| progress.say(step);
    let by_kernels = match by_kernels(options) {
        Ok(()) => compile_exchanging(&request, &spread, &mut say).map_err(one)?,
        Err(why) => Err(why),
    };
    let (placed, by_host) = match by_kernels {
        Ok(placed) => (placed, None),
        Err(why) if options.mesh.exchange == Some(ExchangeArg::Kernels) => {
            let d = Diagnostic::machine("wrong-usage", format!("--exchange kernels cannot be: {why}"));
            return Err(vec![d.help("give --exchange host, or --device emulator:T without --ranks")]);
        }
        Err(why) => (compile_placed(&request, &spread, &mut say).map_err(one)?, Some(why)),
    };
    let inputs = layer.graph.inputs.iter().map(|i| (i.name.clone(), i.ty.clone())).collect();
    let n_experts = layer.info.facts.get("experts").copied();
    Ok(Ready { placed, mesh, map, by_host, inputs, n_experts, checkpoint })
}

/// Opens a bundle for ranks, on the mesh that it was compiled for or another one of as many members.
fn open_bundle(options: &Options) -> Result<Ready, Vec<Diagnostic>> {
    let one = |d: Diagnostic| vec![d];
    let args = &options.mesh;
    run::refuse_decided(options.layer, &options.shard, &options.part, &options.compile).map_err(one)?;
    if args.wire.is_some() {
        let d = Diagnostic::machine("wrong-usage", "--wire changes nothing of a layer that is compiled");
        return Err(vec![d.help("give --wire to `moec compile`, or give the model")]);
    }
    let bundle = PlacedBundle::open(&options.subject).map_err(one)?;
    let m = bundle.manifest();
    let mesh = args.mesh.unwrap_or(m.mesh);
    if mesh.tp != m.mesh.tp {
        let what =
            format!("the bundle is for {}, and the mesh is {mesh}: its experts are cut for other groups", m.mesh);
        return Err(vec![Diagnostic::machine("mesh-invalid", what).help("compile it for that mesh, or give its tp")]);
    }
    let map = placement(args.placement.as_deref(), m.n_experts, mesh).map_err(one)?;
    map.check(m.n_experts, mesh.ep, m.n_local).map_err(one)?;
    let placed = PlacedLayer::from_bundle(&bundle).map_err(one)?;
    let wrong = |what: &str, help: &str| vec![Diagnostic::machine("wrong-usage", what.to_string()).help(help)];
    let by_host = match (placed.exchange_targets().is_empty(), by_kernels(options)) {
        (false, Err(why)) => {
            let what = format!("the bundle has kernels that exchange rows, and they cannot run: {why}");
            let help = "give --device emulator:T, or compile it with --exchange host or for cpu";
            return Err(wrong(&what, help));
        }
        (false, Ok(())) => None,
        (true, _) if args.exchange == Some(ExchangeArg::Kernels) => {
            let what = "--exchange kernels cannot be: the bundle has no kernels that exchange rows";
            return Err(wrong(what, "compile it for GPU targets alone, without --exchange host"));
        }
        (true, _) => Some("the bundle was compiled so".to_string()),
    };
    let inputs = m.inputs.iter().map(|i| (i.name.clone(), i.ty.clone())).collect();
    let checkpoint = match &options.weights {
        Some(Source::Path(path)) => Some(path.clone()),
        Some(Source::Random { .. }) | None => None,
    };
    let n_experts = m.layer.facts.get("experts").copied();
    Ok(Ready { placed, mesh, map, by_host, inputs, n_experts, checkpoint })
}

/// Whether ranks exchange rows by kernels of their own; why not, in words.
fn by_kernels(options: &Options) -> Result<(), String> {
    match (&options.device, options.mesh.ranks()) {
        _ if options.mesh.exchange == Some(ExchangeArg::Host) => Err("--exchange host was given".into()),
        (Device::Emulator { .. }, RanksArg::Threads) => Ok(()),
        (Device::Emulator { .. }, RanksArg::Mpi(_)) => Err("ranks are processes".into()),
        _ => Err("ranks are on CPUs".into()),
    }
}

/// Random numbers go by their place in a matrix, and the members of a group have parts.
fn random_with_tp(mesh: Mesh) -> Diagnostic {
    let what = format!(
        "random weights on {mesh} would not be those of the layer on one rank: matrices are cut before they are filled"
    );
    Diagnostic::machine("wrong-usage", what).help("give a checkpoint with --weights, or a mesh without tp")
}

/// Options that only one rank takes.
fn refuse(options: &Options) -> Result<(), Diagnostic> {
    let given = [
        ("--jit", options.jit),
        ("--weight-cache", options.weight_cache.is_some()),
        ("--memory-limit", options.cpu.memory_limit.is_some()),
        ("--cpu-affinity", options.cpu.cpu_affinity.is_some()),
        ("--counters", options.counters.is_some()),
    ];
    let wrong = |what: String| Err(Diagnostic::machine("wrong-usage", what));
    if let Some((option, _)) = given.into_iter().find(|(_, given)| *given) {
        return wrong(format!("{option} is for a layer on one rank"))
            .map_err(|d| d.help("leave it out, or run the model on one rank"));
    }
    if options.mesh.rounds.is_some() && options.device != Device::Cpu {
        return wrong("--rounds times steps on CPUs".into()).map_err(|d| d.help("leave it out, or give --device cpu"));
    }
    if matches!(options.device, Device::Cuda { .. }) {
        return wrong("ranks run on CPUs and in the emulator; memory is not mapped between GPUs yet".into())
            .map_err(|d| d.help("give --device cpu or --device emulator:T"));
    }
    Ok(())
}

/// The layer, in the type of its input, and where its weights are.
fn open(options: &Options) -> Result<(ModelLayer, Option<PathBuf>), Vec<Diagnostic>> {
    let one = |d: Diagnostic| vec![d];
    let Subject::Model(model) = subject::open(&options.subject)? else {
        let d = Diagnostic::machine("wrong-usage", "a bundle holds the layer of one rank; --mesh needs the model");
        return Err(vec![d.help("give the model directory")]);
    };
    let model = match &options.weights {
        Some(Source::Path(path)) => model.with_weights(path),
        Some(Source::Random { .. }) | None => *model,
    };
    let dtype = run::input_type(options).map_err(one)?;
    let ids_in = options.part.ids_in().map_err(one)?;
    let wanted = LayerOptions { dtype, shard: None, part: options.part.part(), ids_in };
    let layer = model.layer_with(options.layer, &wanted)?;
    let layer = layer.with_activations(options.compile.activations.unwrap_or_default()).map_err(one)?;
    crate::bug::working_on(format!("layer: {}", layer.info.name));
    if let (None, Some(d)) = (&options.weights, &layer.not_loadable) {
        return Err(vec![d.clone()]);
    }
    let checkpoint = layer.checkpoint.clone();
    Ok((layer, checkpoint))
}

/// Experts of a layer.
///
/// # Errors
/// `layer-not-placeable` for a layer without.
pub(super) fn n_experts(layer: &ModelLayer) -> Result<u32, Diagnostic> {
    let of = |op: &Op| if let Op::Permute { n_experts } = op { Some(*n_experts) } else { None };
    layer.graph.nodes.iter().find_map(|n| of(&n.op)).ok_or_else(|| {
        let what =
            format!("`{}` cannot be spread over ranks: tokens are not dispatched to experts in it", layer.graph.name);
        Diagnostic::input("layer-not-placeable", what)
    })
}

pub(super) fn placement(file: Option<&Path>, n_experts: u32, mesh: Mesh) -> Result<Placement, Diagnostic> {
    let Some(path) = file else { return Placement::even(n_experts, mesh.ep) };
    let text = std::fs::read_to_string(path).map_err(|e| subject::unreadable(path, &e))?;
    let map = Placement::from_json(&path.display().to_string(), &text)?;
    map.check(n_experts, mesh.ep, map.most_local())?;
    Ok(map)
}

fn counts(given: Option<&[usize]>, n_tokens: usize, mesh: Mesh) -> Result<Vec<usize>, Diagnostic> {
    let Some(given) = given else { return Ok(split_evenly(n_tokens, mesh.n_ranks())) };
    let total = given.iter().try_fold(0usize, |a, &n| a.checked_add(n));
    if given.len() != mesh.n_ranks() as usize || total != Some(n_tokens) {
        let what = format!(
            "--tokens-per-rank names {} ranks with {} tokens; there are {} ranks and {n_tokens} tokens",
            given.len(),
            total.map_or("too many".to_string(), |t| t.to_string()),
            mesh.n_ranks()
        );
        return Err(
            Diagnostic::machine("wrong-usage", what).help("give a number for each rank; together, those of the input")
        );
    }
    Ok(given.to_vec())
}

fn inputs(options: &Options, ready: &Ready) -> Result<Vec<(String, Tensor)>, Diagnostic> {
    match &options.input {
        Source::Random { n_tokens, seed } => {
            let inputs = ready.inputs.iter().map(|(name, ty)| (name.as_str(), ty));
            Ok(run::random_tensors(inputs, ready.n_experts, *n_tokens, *seed))
        }
        Source::Path(path) => run::file_tensors(path, ready.inputs.iter().map(|(name, _)| name.as_str())),
    }
}

/// What all ranks are given.
struct Run<'r> {
    placed: Arc<PlacedLayer>,
    map: &'r Placement,
    weights: &'r Weights<'r>,
    inputs: &'r [(String, Tensor)],
    counts: &'r [usize],
    device: Device,
    /// Steps more, which are timed.
    rounds: u32,
}

impl Run<'_> {
    fn on_threads(&self, timeout: Duration) -> Result<Vec<StepResult>, Diagnostic> {
        threads::run(threads::connect(self.counts.len() as u32, timeout), |comm| Ok(self.step(comm)?.1))
    }

    /// On devices of the emulator, whose kernels run together.
    fn in_emulator(&self) -> Result<Vec<StepResult>, Diagnostic> {
        let Device::Emulator { target } = self.device else {
            return Err(Diagnostic::internal("internal-error", "kernels that exchange run in the emulator"));
        };
        let max_tokens = self.counts.iter().copied().max().unwrap_or(0) as u32;
        // The emulator finds ranks that wait for ever; its clock is no clock of people.
        let sizes = (max_tokens, u32::MAX);
        let options = moec_runtime::LoadOptions::default().emulator;
        let mut ranks =
            EmulatedRanks::load(self.placed.clone(), self.map.clone(), self.weights, target, sizes, options)?;
        let mut parts: Vec<Vec<(&str, Tensor)>> = vec![Vec::new(); self.counts.len()];
        for (name, tensor) in self.inputs {
            let of_ranks = split_tokens(tensor, self.counts)?;
            parts.iter_mut().zip(of_ranks).for_each(|(part, tensor)| part.push((name.as_str(), tensor)));
        }
        let given: Vec<Vec<(&str, &Tensor)>> =
            parts.iter().map(|part| part.iter().map(|(name, tensor)| (*name, tensor)).collect()).collect();
        ranks.step(&given)
    }

    /// The results of all ranks on the first of them.
    fn as_process(
        &self,
        library: Option<&Path>,
        mesh: Mesh,
        timeout: Duration,
    ) -> Result<Option<Vec<StepResult>>, Diagnostic> {
        let (mut layer, step) = self.step(MpiComm::start(library, mesh.n_ranks(), timeout)?)?;
        layer.gather(&step)
    }

    fn step<C: Comm>(&self, mut comm: C) -> Result<(RankLayer<C>, StepResult), Diagnostic> {
        let rank = comm.rank() as usize;
        let (parts, pool) = match self.part(rank) {
            Ok(made) => made,
            Err(d) => {
                comm.end(&d.message);
                return Err(d);
            }
        };
        let max_tokens = self.counts.iter().copied().max().unwrap_or(0).max(1) as u64;
        let options = RankOptions { pool: Some(Arc::new(pool)), ..RankOptions::new(self.device.clone(), max_tokens) };
        let mut layer = RankLayer::join(self.placed.clone(), comm, self.map.clone(), self.weights, options)?;
        let own: Vec<(&str, &Tensor)> = self.inputs.iter().map(|(n, _)| n.as_str()).zip(&parts).collect();
        let step = layer.step(&own)?;
        let mut times = Vec::new();
        for _ in 0..self.rounds {
            let start = Instant::now();
            layer.step(&own)?;
            times.push(start.elapsed().as_secs_f64() * 1e3);
        }
        times.sort_by(f64::total_cmp);
        if let (0, [least, .., most]) = (rank, &times[..]) {
            let median = times[times.len() / 2];
            crate::output::print(&format!(
                "{} steps took {least:.2} to {most:.2} ms, the median {median:.2}\n",
                times.len()
            ));
        }
        Ok((layer, step))
    }

    /// A rank's own tokens, and its share of the cores.
    fn part(&self, rank: usize) -> Result<(Vec<Tensor>, Pool), Diagnostic> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let of = |t: &Tensor| Ok(split_tokens(t, self.counts)?.swap_remove(rank));
        let parts = self.inputs.iter().map(|(_, t)| of(t)).collect::<Result<_, Diagnostic>>()?;
        Ok((parts, Pool::new((cores / self.counts.len().max(1)).max(1))?))
    }
}

/// The outputs of all ranks in the order of tokens.
fn gather(steps: &[StepResult], target: &str) -> Result<RunResult, Diagnostic> {
    let broken = || Diagnostic::internal("internal-error", "ranks should have the same outputs");
    let first = steps.first().ok_or_else(broken)?;
    let mut outputs = Vec::new();
    for (i, (name, _)) in first.outputs.iter().enumerate() {
        let parts: Option<Vec<&Tensor>> = steps.iter().map(|s| s.outputs.get(i).map(|(_, t)| t)).collect();
        let joined = parts.and_then(|p| join_tokens(&p)).ok_or_else(broken)?;
        outputs.push((name.clone(), joined));
    }
    let findings = steps.iter().zip(0..).flat_map(|(s, r)| s.findings.iter().map(move |f| format!("rank {r}: {f}")));
    Ok(RunResult::of_ranks(outputs, findings.collect(), target))
}

/// What each rank had, sent and computed.
fn table(steps: &[StepResult], map: &Placement, tp: u32, counts: &[usize]) -> String {
    let row = |((r, s), n): ((u32, &StepResult), &usize)| {
        let (t, kib) = (&s.traffic, |bytes: u64| format!("{:.1}", bytes as f64 / 1024.0));
        vec![
            r.to_string(),
            map.experts_of(r / tp.max(1)).len().to_string(),
            n.to_string(),
            t.rows_sent.to_string(),
            kib(t.row_bytes_sent),
            t.slots_computed.to_string(),
            kib(t.result_bytes_sent),
        ]
    };
    let rows: Vec<Vec<String>> = (0u32..).zip(steps).zip(counts).map(row).collect();
    let header = ["rank", "experts", "tokens", "rows sent", "KiB sent", "slots computed", "KiB returned"];
    crate::output::table(&header, &rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_of_ranks_add_up_to_the_inputs() {
        let mesh = Mesh { ep: 3, tp: 1 };
        assert_eq!(counts(None, 7, mesh).map_err(|d| d.code), Ok(vec![3, 2, 2]));
        assert_eq!(counts(Some(&[0, 7, 0]), 7, mesh).map_err(|d| d.code), Ok(vec![0, 7, 0]));
        for wrong in [&[7][..], &[1, 2, 3], &[usize::MAX, 1, 7]] {
            assert_eq!(counts(Some(wrong), 7, mesh).map_err(|d| d.code), Err("wrong-usage".to_string()));
        }
    }
}
