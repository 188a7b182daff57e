//! Writes the layers, inputs and expected results of a GPU pack: `write-pack DIR`. `cargo xtask gpu-pack` runs it.

use moec::{CompileRequest, Model, Target, Tensor};
use moec_ir::graph;
use moec_ir::weights::WeightSource;
use moec_runtime::gpu_pack::{PACK_FORMAT, Pack, PackCase, PackWeights};
use moec_tests::cases;
use moec_weights::safetensors::write_safetensors;
use std::path::Path;

/// Every machine generation that moec compiles for.
const TARGETS: [&str; 4] = ["sm_80", "sm_90a", "sm_100f", "sm_120f"];

/// Published layers that are timed, with random weights: too large to be shipped, or to be evaluated by the reference.
const TIMED: [&str; 3] = ["qwen3-235b-a22b", "gpt-oss-120b", "deepseek-r1"];

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
    for name in TIMED {
        timed(dir, name, &mut pack)?;
    }
    std::fs::write(dir.join("pack.json"), serde_json::to_string_pretty(&pack)? + "\n")?;
    Ok(())
}

fn targets() -> Vec<&'static Target> {
    TARGETS.iter().filter_map(|t| Target::by_name(t)).collect()
}

/// Compiles a layer once for all its cases: the graph decides, not the routing.
fn bundle(dir: &Path, name: &str, graph: &graph::Graph, tokens: (u64, u64)) -> Result<String, Failure> {
    let path = format!("bundles/{name}");
    if !dir.join(&path).exists() {
        let compiled = moec::compile(&CompileRequest { tokens, ..CompileRequest::new(graph, targets()) })?;
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
    let bundle = bundle(dir, &format!("{model}-{dtype}"), &graph, (0, 256))?;
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
            tolerance: case.tolerance,
            time: false,
        });
    }
    Ok(())
}

/// A published layer at a few token counts, for its times.
fn timed(dir: &Path, name: &str, pack: &mut Pack) -> Result<(), Failure> {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/models").join(name);
    let layer = Model::open(model).and_then(|m| m.layer(None)).map_err(|d| format!("{d:?}"))?;
    let bundle = bundle(dir, name, &layer.graph, (0, 4096))?;
    for n_tokens in [1, 16, 128] {
        let input = moec::random_tensor(&layer.graph.inputs[0].ty, n_tokens, 1, "input");
        let data = format!("data/{name}-{n_tokens}.safetensors");
        write_safetensors(&dir.join(&data), &[("input", &input)])?;
        pack.cases.push(PackCase {
            name: format!("{name} T={n_tokens}"),
            bundle: bundle.clone(),
            weights: PackWeights::Random(1),
            data,
            tolerance: 1e-2,
            time: true,
        });
    }
    Ok(())
}
