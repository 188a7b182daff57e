//! The list of cases that every engine runs: `tests/cases/*.toml`.

use crate::data::random_input;
use moec::random_params;
use moec_frontend::{LayerOptions, ModelConfig};
use moec_ir::graph::{Graph, quantise_activations};
use moec_ir::{ActQuant, DType, Tensor};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::Path;

/// A file of cases.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    model: BTreeMap<String, toml::Table>,
    case: Vec<CaseGroup>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CaseGroup {
    name: String,
    models: Vec<String>,
    dtypes: Vec<String>,
    tokens: Vec<usize>,
    routing: Routing,
    /// Formats that activations are rounded to, by name; without the key they stay in the layer's type.
    #[serde(default)]
    activations: Vec<String>,
}

/// How the router's weights are made; the comments of the case file say what each is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs)]
pub enum Routing {
    Random,
    Ties,
    Pairs,
    OneExpert,
    EmptyExperts,
    NanLogit,
    InfLogit,
    NegInfLogits,
    NanToken,
}

/// One layer with weights, and the token counts to run.
#[derive(Clone, Debug)]
pub struct Case {
    /// `group/model/dtype`.
    pub name: String,
    /// What it computes.
    pub graph: Graph,
    /// In the order of the graph.
    pub params: Vec<Tensor>,
    /// Token counts.
    pub tokens: Vec<usize>,
    /// How the router was made.
    pub routing: Routing,
    /// Largest error of an engine: [`Tensor::worst_error`].
    pub tolerance: f64,
}

/// Every case of `tests/cases`.
///
/// # Panics
/// When a file is not what this module reads, or a config is refused.
pub fn all() -> Vec<Case> {
    let mut out = Vec::new();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("cases");
    let mut files: Vec<_> = std::fs::read_dir(&folder)
        .expect("tests/cases should exist")
        .map(|e| e.expect("tests/cases should be readable").path())
        .collect();
    files.sort();
    for path in files {
        let text = std::fs::read_to_string(&path).expect("a case file should be readable");
        let file: File = toml::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        for group in &file.case {
            for model in &group.models {
                for dtype in &group.dtypes {
                    let config = file.model.get(model).unwrap_or_else(|| panic!("no model `{model}`"));
                    let formats = group.activations.iter().map(|a| Some(a.as_str()));
                    let formats: Vec<Option<&str>> =
                        if group.activations.is_empty() { vec![None] } else { formats.collect() };
                    out.extend(formats.into_iter().map(|a| case(group, model, config, dtype, a)));
                }
            }
        }
    }
    out
}

fn case(group: &CaseGroup, model: &str, config: &toml::Table, dtype: &str, activations: Option<&str>) -> Case {
    let mut config = config.clone();
    config.insert("torch_dtype".into(), dtype.into());
    let text = serde_json::to_string(&config).expect("a table should be JSON");
    let mut name = format!("{}/{model}/{dtype}", group.name);
    let config = ModelConfig::from_text(&name, text).unwrap_or_else(|d| panic!("{name}: {d:?}"));
    let layer = config.layer(None, &LayerOptions::default()).unwrap_or_else(|d| panic!("{name}: {d:?}"));
    let mut graph = layer.graph;
    // Codes are compared with codes: one that lies on an edge may fall either way when its input differs in the last bit.
    let mut tolerance = if dtype == "float32" { 1e-5 } else { 1e-2 };
    if let Some(a) = activations {
        name = format!("{name}/{a}");
        let format = ActQuant::from_name(a).unwrap_or_else(|| panic!("{name}: no format `{a}`"));
        graph = quantise_activations(&graph, format).unwrap_or_else(|d| panic!("{name}: {d:?}"));
        tolerance = if dtype == "float32" { 1e-3 } else { 1e-2 };
    }
    let mut params = random_params(&graph, 7);
    shape_router(&graph, &mut params, group.routing);
    Case { name, graph, params, tokens: group.tokens.clone(), routing: group.routing, tolerance }
}

/// Rewrites the router's matrix. Its first column meets the input's column of ones: it is a bias on the logits.
fn shape_router(graph: &Graph, params: &mut [Tensor], routing: Routing) {
    let i = graph.params.iter().position(|p| p.name == "router.weight").expect("a layer should have a router");
    let dtype = params[i].dtype;
    let (n_experts, hidden) = (params[i].shape[0], params[i].shape[1]);
    let mut w = params[i].floats().to_vec();
    let bias = |w: &mut [f32], e: usize, value: f32| w[e * hidden] = value;
    match routing {
        Routing::Random | Routing::NanToken => {}
        Routing::Ties => (1..n_experts).for_each(|e| w.copy_within(0..hidden, e * hidden)),
        Routing::Pairs => {
            (1..n_experts).step_by(2).for_each(|e| w.copy_within((e - 1) * hidden..e * hidden, e * hidden));
        }
        Routing::OneExpert => bias(&mut w, n_experts / 2, 60.0),
        Routing::EmptyExperts => (n_experts.div_ceil(2)..n_experts).for_each(|e| bias(&mut w, e, -60.0)),
        Routing::NanLogit => bias(&mut w, 2, f32::NAN),
        Routing::InfLogit => bias(&mut w, 1, f32::INFINITY),
        Routing::NegInfLogits => (1..n_experts).for_each(|e| bias(&mut w, e, f32::NEG_INFINITY)),
    }
    params[i] = Tensor::float(dtype, &[n_experts, hidden], w);
    if matches!(routing, Routing::Ties | Routing::Pairs)
        && let Some(b) = graph.params.iter().position(|p| p.name == "router.bias")
    {
        let zeros = vec![0.0; params[b].elements()];
        params[b] = Tensor::float(params[b].dtype, &params[b].shape.clone(), zeros);
    }
}

impl Case {
    /// The layer's input for a token count.
    pub fn input(&self, n_tokens: usize) -> Tensor {
        let ty = &self.graph.inputs[0].ty;
        let hidden = ty.shape[1].at(0) as usize;
        let mut x = random_input(ty.dtype, n_tokens, hidden, 11);
        if self.routing == Routing::NanToken && n_tokens > 0 {
            let mut values = x.floats().to_vec();
            values[..hidden].fill(f32::NAN);
            x = Tensor::float(ty.dtype, &[n_tokens, hidden], values);
        }
        x
    }

    /// Checks that the reference's choice of experts is what the routing is meant to make: a case that has lost its
    /// point must not stay green.
    ///
    /// # Panics
    /// When it is not.
    pub fn check_routing(&self, ids: &Tensor) {
        let k = ids.cols();
        let n_experts = self.graph.params.iter().find(|p| p.name == "router.weight").map_or(0, |p| p.ty.shape[0].at(0));
        let grouped = self.name.contains("deepseek");
        for row in ids.ints().chunks(k) {
            match self.routing {
                Routing::Random | Routing::NanToken | Routing::InfLogit => {}
                Routing::Ties if grouped => {}
                Routing::Ties => {
                    let want: Vec<i64> = (0..k as i64).collect();
                    assert_eq!(row, want, "{}: ties should choose the lower experts", self.name);
                }
                Routing::Pairs => {
                    let first_chosen = |e: i64| e % 2 == 0 || row.contains(&(e - 1));
                    assert!(row.iter().all(|&e| first_chosen(e)), "{}: {row:?}", self.name);
                }
                Routing::OneExpert => assert_eq!(row[0], n_experts as i64 / 2, "{}", self.name),
                Routing::EmptyExperts => {
                    assert!(row.iter().all(|&e| (e as u64) < n_experts.div_ceil(2)), "{}: {row:?}", self.name);
                }
                // Softmax over a row with a NaN is NaN everywhere: then the lower experts win.
                Routing::NanLogit => assert!(row[0] == 2 || row[0] == 0, "{}: {row:?}", self.name),
                Routing::NegInfLogits => assert!(row.contains(&0), "{}: {row:?}", self.name),
            }
        }
    }
}

/// The element type of a layer's input.
pub fn dtype_of(graph: &Graph) -> DType {
    graph.inputs[0].ty.dtype
}
