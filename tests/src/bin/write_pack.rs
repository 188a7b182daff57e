//! Writes the layers, inputs and expected results of a GPU pack: `write-pack DIR`. `cargo xtask gpu-pack` runs it.

use moec::{CompileRequest, Target, Tensor};
use moec_ir::weights::WeightSource;
use moec_ir::{DType, graph};
use moec_runtime::gpu_pack::{PACK_FORMAT, Pack, PackCase, PackWeights};
use moec_tests::timed::{RANGE, TIMED, Timed};
use moec_tests::{cases, sampled};
use moec_weights::safetensors::write_safetensors;
use std::path::Path;

/// Every machine generation that moec compiles for.
const TARGETS: [&str; 5] = ["sm_80", "sm_89", "sm_90a", "sm_100f", "sm_120f"];

/// Rows of inputs that a file holds at most.
const MOST_ROWS: u64 = 128;

/// Of the weights of layers that are timed.
const SEED: u64 = 1;

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    let dir = std::env::args().nth(1).ok_or("usage: write-pack DIR")?;
    let dir = Path::new(&dir);
    for folder in ["bundles", "weights", "data"] {
        std::fs::create_dir_all(dir.join(folder))?;
    }
    let mut pack = Pack { moec_pack: PACK_FORMAT, cases: Vec::new() };
    for case in cases::all() {
        // Every routing of the test list, in the two types that models are run in.
        if !case.name.contains("float16") || case.name.contains("bfloat16") {
            small(dir, &case, &mut pack)?;
        }
    }
    let mut peers = Vec::new();
    for layer in &TIMED {
        timed(dir, layer, &mut pack, &mut peers)?;
    }
    std::fs::write(dir.join("peers.json"), serde_json::to_string_pretty(&peers)? + "\n")?;
    std::fs::write(dir.join("pack.json"), serde_json::to_string_pretty(&pack)? + "\n")?;
    Ok(())
}

fn targets() -> Vec<&'static Target> {
    TARGETS.iter().filter_map(|t| Target::by_name(t)).collect()
}

/// Compiles a layer once for all its cases: the graph decides, not the routing.
fn bundle(
    dir: &Path,
    name: &str,
    graph: &graph::Graph,
    targets: Vec<&'static Target>,
    tokens: (u64, u64),
) -> Result<String, Failure> {
    let path = format!("bundles/{name}");
    if !dir.join(&path).exists() {
        let compiled = moec::compile(&CompileRequest { tokens, ..CompileRequest::new(graph, targets) })?;
        compiled.bundle.write(dir.join(&path))?;
    }
    Ok(path)
}

/// A case of the test list: weights, inputs and what the reference evaluator makes of them.
fn small(dir: &Path, case: &cases::Case, pack: &mut Pack) -> Result<(), Failure> {
    let mut parts = case.name.split('/');
    let (group, model, dtype) =
        (parts.next().unwrap_or_default(), parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    // The pack stores each weight under the layer's own name for it, in the layout that the graph asks for.
    let mut graph = case.graph.clone();
    graph.params.iter_mut().for_each(|p| p.source = WeightSource::tensor(p.name.clone()));
    let bundle = bundle(dir, &format!("{model}-{dtype}"), &graph, targets(), (0, 256))?;
    let weights = format!("weights/{group}-{model}-{dtype}.safetensors");
    let named: Vec<(&str, &Tensor)> = graph.params.iter().map(|p| p.name.as_str()).zip(&case.params).collect();
    write_safetensors(&dir.join(&weights), &named)?;
    for &n_tokens in &case.tokens {
        let input = case.input(n_tokens);
        let outputs = graph::evaluate(&case.graph, std::slice::from_ref(&input), &case.params)?;
        let data = format!("data/{group}-{model}-{dtype}-{n_tokens}.safetensors");
        let mut tensors = vec![("input".to_string(), input)];
        for ((name, _), tensor) in case.graph.outputs.iter().zip(outputs) {
            tensors.push((format!("expected.{name}"), tensor));
        }
        let named: Vec<(&str, &Tensor)> = tensors.iter().map(|(n, t)| (n.as_str(), t)).collect();
        write_safetensors(&dir.join(&data), &named)?;
        pack.cases.push(PackCase {
            name: format!("{} T={n_tokens}", case.name),
            bundle: bundle.clone(),
            weights: PackWeights::File(weights.clone()),
            data,
            repeat: 1,
            tolerance: case.tolerance,
            time: false,
        });
    }
    Ok(())
}

/// A published layer at a few token counts, for its times; a few tokens of each are compared.
fn timed(dir: &Path, layer: &Timed, pack: &mut Pack, peers: &mut Vec<serde_json::Value>) -> Result<(), Failure> {
    let (name, graph) = layer.layer()?;
    // On sm_80 codes become floats: a bundle for it alone has no products of codes.
    let portable: Vec<&'static Target> = targets().into_iter().filter(|t| t.name == "sm_80").collect();
    let bundles = [
        (name.clone(), bundle(dir, &name, &graph, targets(), RANGE)?),
        (format!("{name} portable"), bundle(dir, &format!("{name}-portable"), &graph, portable, RANGE)?),
    ];
    for &n_tokens in layer.tokens {
        let stored = n_tokens.min(MOST_ROWS);
        let data = format!("data/{name}-{stored}.safetensors");
        write_data(&dir.join(&data), &graph, stored)?;
        peers.push(sizes(&graph, &format!("{name} T={n_tokens}"), n_tokens)?);
        for (name, bundle) in &bundles {
            pack.cases.push(PackCase {
                name: format!("{name} T={n_tokens}"),
                bundle: bundle.clone(),
                weights: PackWeights::Random(SEED),
                data: data.clone(),
                repeat: (n_tokens / stored) as u32,
                tolerance: 1e-2,
                time: true,
            });
        }
    }
    Ok(())
}

/// A case and its sizes, for `peers.py`.
fn sizes(graph: &graph::Graph, case: &str, n_tokens: u64) -> Result<serde_json::Value, Failure> {
    let down = graph.params.iter().find(|p| p.name == "experts.down").ok_or("a layer without experts")?;
    let &[experts, hidden, ffn] = &down.ty.shape.iter().filter_map(|d| d.fixed()).collect::<Vec<_>>()[..] else {
        return Err("a layer whose experts are no stack".into());
    };
    let ids = graph.outputs.iter().find(|(name, _)| name == "topk_ids").ok_or("a layer without choices")?.1;
    let per_token = graph.ty(ids).shape.last().and_then(|d| d.fixed());
    Ok(serde_json::json!({
        "case": case, "experts": experts, "hidden": hidden, "ffn": ffn, "per_token": per_token, "tokens": n_tokens,
    }))
}

/// Random rows, and what the reference makes of one or two of them.
fn write_data(path: &Path, graph: &graph::Graph, n_tokens: u64) -> Result<(), Failure> {
    let input = moec::random_tensor(&graph.inputs[0].ty, n_tokens, 1, "input");
    let tokens: Vec<usize> = match n_tokens {
        1 => vec![0],
        n => vec![n as usize / 3, n as usize - 1],
    };
    let outputs = sampled::evaluate(graph, &[sampled::rows(&input, &tokens)], tokens.len(), SEED)?;
    let marks = (0..n_tokens as usize).map(|t| i64::from(tokens.contains(&t))).collect();
    let mut tensors = vec![("input".to_string(), input)];
    tensors.push(("sampled".to_string(), Tensor::int(DType::I32, &[n_tokens as usize], marks)));
    for ((output, _), tensor) in graph.outputs.iter().zip(outputs) {
        tensors.push((format!("expected.{output}"), tensor));
    }
    let named: Vec<(&str, &Tensor)> = tensors.iter().map(|(n, t)| (n.as_str(), t)).collect();
    Ok(write_safetensors(path, &named)?)
}
