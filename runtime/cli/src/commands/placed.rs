//! Layers for ranks on disk: `moec compile --mesh`, and `moec inspect` of what it writes.

use super::compile;
use super::mesh::{self, ExchangeArg, WireArg, parse_mesh, parse_wire};
use crate::output::{self, Ended, Outcome, table};
use crate::progress::Progress;
use moec::ranks::{PlacedInfo, PlacedLayer};
use moec::{CompileRequest, Diagnostic, Keep, Mesh, Spread, compile_exchanging, compile_placed};
use moec_bundle::manifest::TensorInfo;
use moec_bundle::{PlacedBundle, PlacedManifest};
use moec_ir::ActQuant;
use moec_ir::exchange::{Blocks, ExchangeKernel, Stage};
use moec_ir::graph::Wire;
use std::path::PathBuf;

/// A layer for ranks that each have tokens and experts of their own.
#[derive(clap::Args, Debug)]
pub struct PlacedArgs {
    /// Compile for N * M ranks with tokens of their own and N groups of M ranks with experts of their own, which share their matrices
    /// column by column. The folder holds what every rank's host needs, and `moec run` takes it.
    #[arg(long, value_name = "ep=N[,tp=M]", value_parser = parse_mesh, conflicts_with_all = ["tp", "ep", "rank"])]
    pub mesh: Option<Mesh>,
    /// Leave room for the experts of this placement, as `moec place` writes it. Where experts are is decided when weights are loaded.
    #[arg(long, value_name = "FILE", requires = "mesh")]
    pub placement: Option<PathBuf>,
    /// Leave room for so many experts on a rank, or a group of ranks [default: those of the placement].
    #[arg(long, value_name = "N", requires = "mesh", conflicts_with = "placement")]
    pub local_experts: Option<u32>,
    /// Round rows on their way to experts to this format [default: they are sent as they are].
    #[arg(long, requires = "mesh", value_parser = parse_wire,
          value_name = "none|bf16|f16|fp8-block|fp8-block-pow2|fp8-token|mxfp8|mxfp4|nvfp4")]
    pub wire: Option<WireArg>,
    /// What brings rows to experts and results back: kernels of the ranks, or the host between launches [default: kernels for GPU
    /// targets, where they do the layer; else the host].
    #[arg(long, requires = "mesh", value_enum, value_name = "kernels|host")]
    pub exchange: Option<ExchangeArg>,
}

/// Compiles a layer for ranks.
pub fn compile(options: &compile::Options, mesh: Mesh) -> Outcome {
    let one = |d: Diagnostic| vec![d];
    refuse(options).map_err(one)?;
    let args = &options.placed;
    let layer = options.model.open()?.with_activations(options.compile.activations.unwrap_or_default()).map_err(one)?;
    let map = mesh::placement(args.placement.as_deref(), mesh::n_experts(&layer).map_err(one)?, mesh).map_err(one)?;
    let n_local = args.local_experts.unwrap_or(map.most_local());
    if n_local < map.most_local() || n_local > map.n_experts() {
        let (most, all) = (map.most_local(), map.n_experts());
        let what = format!("--local-experts {n_local} is not from {most}, which all experts need on {mesh}, to {all}");
        return Err(vec![
            Diagnostic::machine("wrong-usage", what).help("give a number in that range, or leave it out"),
        ]);
    }
    let mut targets = options.target.clone();
    targets.dedup_by_key(|t| t.name);
    let max_tokens = options.token_range().map_err(|d| vec![d])?.1;
    let all_gpus = targets.iter().all(|t| !t.is_cpu());
    let request = CompileRequest {
        info: layer.info.clone(),
        numerics: options.compile.numerics,
        opt_level: options.compile.opt_level,
        weights: options.compile.weight_storage,
        // A rank may have no tokens in any phase.
        tokens: (0, max_tokens),
        most_variants: options.variants,
        cpu_arch: options.arch().map_err(one)?,
        keep: Keep::default(),
        ..CompileRequest::new(&layer.graph, targets)
    };
    let wire = args.wire.and_then(|w| w.0);
    let spread = Spread { n_members: mesh.tp, wire, n_ranks: mesh.n_ranks(), ..Spread::new(n_local) };
    let progress = Progress::start("compiling");
    let mut say = |step: &str| progress.say(step);
    let by_kernels = match args.exchange {
        Some(ExchangeArg::Host) => Err("--exchange host was given".to_string()),
        _ if !all_gpus => Err("ranks are on CPUs".to_string()),
        _ => compile_exchanging(&request, &spread, &mut say).map_err(one)?,
    };
    let (placed, by_host) = match by_kernels {
        Ok(placed) => (placed, None),
        Err(why) if args.exchange == Some(ExchangeArg::Kernels) => {
            let d = Diagnostic::machine("wrong-usage", format!("--exchange kernels cannot be: {why}"));
            return Err(vec![d.help("give --exchange host, or GPU targets alone")]);
        }
        Err(why) => (compile_placed(&request, &spread, &mut say).map_err(one)?, Some(why)),
    };
    drop(progress);
    let inputs = layer.graph.inputs.iter().map(TensorInfo::from).collect();
    let info = PlacedInfo { layer: layer.info.clone(), inputs, mesh, max_tokens };
    let bundle = placed.to_bundle(info).map_err(one)?;
    bundle.write(&options.output).map_err(one)?;
    output::print(&describe(&bundle, &placed, by_host.as_deref()));
    Ok(Ended::Well)
}

/// Options that only a layer on one rank takes.
fn refuse(options: &compile::Options) -> Result<(), Diagnostic> {
    let tar = options.output.extension().is_some_and(|e| e == "tar");
    let given = [
        ("--emit", !options.emit.is_empty()),
        ("--prefix", !options.prefix.is_empty()),
        ("--print-after", options.print_after.is_some()),
        ("--print-after-all", options.print_after_all),
        ("--remarks", options.remarks),
        ("a .tar as output", tar),
    ];
    match given.into_iter().find(|(_, given)| *given) {
        Some((option, _)) => {
            let d = Diagnostic::machine("wrong-usage", format!("{option} is for a layer on one rank"));
            Err(d.help("leave it out, or --mesh"))
        }
        None => Ok(()),
    }
}

/// Says what is in a bundle for ranks.
pub fn inspect(path: &std::path::Path, json: bool) -> Outcome {
    let bundle = PlacedBundle::open(path).map_err(|d| vec![d])?;
    let placed = PlacedLayer::from_bundle(&bundle).map_err(|d| vec![d])?;
    if json {
        let mut value = serde_json::json!(bundle.manifest());
        let windows = windows(bundle.manifest());
        value["window_bytes"] = windows.map_or(serde_json::Value::Null, |(n, bytes)| {
            serde_json::json!({ "ranks": bundle.manifest().mesh.n_ranks(), "max_tokens": n, "bytes": bytes })
        });
        output::print(&format!("{value:#}\n"));
    } else {
        output::print(&describe(&bundle, &placed, None));
    }
    Ok(Ended::Well)
}

/// Tokens of a rank for which windows are shown, at most: those of a decode step.
const SHOWN_AT_MOST: u64 = 256;

/// Tokens of a rank, and the bytes that it maps for them; nothing where the host exchanges rows.
fn windows(m: &PlacedManifest) -> Option<(u64, u64)> {
    let n = m.max_tokens.min(SHOWN_AT_MOST);
    m.exchange.first().map(|of| (n, of.what.window(m.mesh.n_ranks(), n as u32).bytes()))
}

/// What a host needs to know, and the steps of a rank in order. `by_host` is why the host exchanges rows, where that is known.
fn describe(bundle: &PlacedBundle, placed: &PlacedLayer, by_host: Option<&str>) -> String {
    let m = bundle.manifest();
    let whose = if m.mesh.tp > 1 { "a group of ranks" } else { "a rank" };
    let mut out = format!(
        "{} for {}: {} experts, {} for each token, room for {} on {whose}; up to {} tokens of a rank\n",
        m.layer.name, m.mesh, m.n_experts, m.top_k, m.n_local, m.max_tokens
    );
    let (row, result) = placed.bytes_on_the_wire();
    let wire = match m.wire {
        Wire::Rows(dtype) => dtype.to_string(),
        Wire::Codes(q) => {
            let name = ActQuant::NAMES.iter().find(|(_, known)| *known == q).map_or("rounded", |(name, _)| name);
            format!("{name} codes")
        }
    };
    out += &format!("a row is sent as {wire}, {row} bytes; a result comes back for each slot, {result} bytes\n");
    out += &match windows(m) {
        Some((n, bytes)) => format!(
            "rows are exchanged by kernels, through a window of {bytes} bytes on each of {} ranks of up to {n} tokens\n",
            m.mesh.n_ranks()
        ),
        None => format!("rows are exchanged by the host{}\n", by_host.map_or(String::new(), |why| format!(": {why}"))),
    };
    out += &format!("written by moec {}\n\n", m.moec_version);
    let inputs: Vec<String> = m.inputs.iter().map(|t| format!("{} {}", t.name, t.ty)).collect();
    let outputs: Vec<&str> = m.outputs.iter().map(|o| o.name.as_str()).collect();
    out += &format!("inputs   {}\noutputs  {}\n\n", inputs.join(", "), outputs.join(", "));
    out + &table(&["ranks", "runs", "launches", "code bytes"], &steps(bundle))
}

/// What a rank runs in a step, in order; kernels that exchange rows, of the first target.
fn steps(bundle: &PlacedBundle) -> Vec<Vec<String>> {
    let m = bundle.manifest();
    let mut rows = Vec::new();
    let program = |who: &str, file: &str| {
        let launches = bundle.program(file).map(|b| {
            let of = b.manifest().targets.iter().map(|t| {
                let n = t.variants.iter().map(|v| v.kernels.len()).max().unwrap_or(0);
                format!("{n} on {}", t.name)
            });
            of.collect::<Vec<_>>().join(", ")
        });
        let bytes = m.files.get(file).map_or(0, |f| f.bytes);
        vec![who.to_string(), file.to_string(), launches.unwrap_or_default(), bytes.to_string()]
    };
    rows.extend(m.head.iter().map(|file| program("all", file)));
    let members: Vec<String> = match m.mesh.tp {
        1 => vec!["all".into()],
        n => (0..n).map(|member| format!("member {member}")).collect(),
    };
    let exchange = |rows: &mut Vec<Vec<String>>, stage: Stage| {
        for (member, (who, of)) in members.iter().zip(&m.exchange).enumerate() {
            let Some((target, kernels)) = of.kernels.iter().next() else { continue };
            for kernel in kernels.iter().filter(|k| k.stage == stage) {
                let file = PlacedBundle::kernel_path(target, member, &kernel.entry);
                let bytes = m.files.get(&file).map_or(0, |f| f.bytes);
                rows.push(vec![who.clone(), file, blocks(kernel), bytes.to_string()]);
            }
        }
    };
    let experts = |rows: &mut Vec<Vec<String>>, nth: usize| {
        let of = members.iter().zip(&m.experts).filter_map(|(who, of)| Some((who, of.programs.get(nth)?)));
        rows.extend(of.map(|(who, p)| program(who, &p.file)));
    };
    exchange(&mut rows, Stage::Before);
    experts(&mut rows, 0);
    exchange(&mut rows, Stage::Between);
    experts(&mut rows, 1);
    exchange(&mut rows, Stage::Behind);
    rows.push(program("all", &m.tail));
    rows
}

fn blocks(kernel: &ExchangeKernel) -> String {
    let of = match kernel.blocks {
        Blocks::Tokens => "own token",
        Blocks::Ranks => "rank",
        Blocks::AllTokens => "token of all ranks",
    };
    format!("1, a block for each {of}")
}
