//! `.pt2` files, as `torch.export.save` writes them: a zip archive of stored members with the graph in `models/model.json`
//! (schema 8) and one member for each weight. Read are the nodes of moec's own operator, `moec::experts`, and the weights.

use super::checkpoint::{Part, map, unreadable};
use super::safetensors::{Entry, StoredType};
use memmap2::Mmap;
use moec_ir::diag::Diagnostic;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

/// The operator whose nodes are read.
const TARGET: &str = "torch.ops.moec.experts.default";

/// Longest JSON member that is believed.
const MAX_JSON: u64 = 1 << 30;

/// What a `.pt2` file says, without the weights themselves.
#[derive(Clone, Debug)]
pub struct File {
    /// The file.
    pub path: PathBuf,
    /// The nodes of the operator, in the graph's order.
    pub nodes: Vec<Node>,
    /// Element type and shape of each weight.
    pub tensors: BTreeMap<String, (StoredType, Vec<u64>)>,
}

/// One node of `moec::experts(x, ids, weights, params, form)`.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// Its name in the graph.
    pub name: String,
    /// Names of the weights among its `params`, in order; what is no parameter of the program has its name in the graph.
    pub params: Vec<String>,
    /// How the weights lie and what stands between them, as JSON.
    pub form: String,
    /// Experts per token: the last axis of `ids`.
    pub top_k: Option<u64>,
    /// Element type of the routing weights.
    pub weights: Option<StoredType>,
}

/// Whether a path names a `.pt2` file.
pub fn is_pt2(path: &Path) -> bool {
    path.is_file() && path.extension().is_some_and(|e| e == "pt2")
}

impl File {
    /// Reads the graph of a `.pt2` file.
    ///
    /// # Errors
    /// `checkpoint-not-found`, `checkpoint-unreadable`, `pt2-invalid`.
    pub fn open(path: impl AsRef<Path>) -> Result<File, Diagnostic> {
        let path = path.as_ref();
        let mut archive = Archive::open(path)?;
        let program: Program = archive.json("models/model.json")?;
        let version = program.schema_version.major;
        if version != 8 {
            return Err(invalid(path, format!("its schema has the version {version}; moec reads version 8")));
        }
        let graph = program.graph_module.graph;
        let named: BTreeMap<String, String> =
            program.graph_module.signature.input_specs.iter().filter_map(InputSpec::named).collect();
        let nodes = graph.nodes.iter().filter(|n| n.target == TARGET).map(|n| node(n, &graph, &named)).collect();
        let tensors = archive.weights()?.into_iter().map(|(name, e)| (name, (e.dtype, e.shape))).collect();
        Ok(File { path: path.to_path_buf(), nodes, tensors })
    }
}

/// The weights of a `.pt2` file by name. Those of types that moec does not read, and views that are not dense, are left out.
///
/// # Errors
/// As [`File::open`].
pub(crate) fn open(path: &Path) -> Result<Part, Diagnostic> {
    let mut archive = Archive::open(path)?;
    let entries = archive.weights()?;
    Ok(Part { path: archive.path, map: archive.map, entries })
}

fn node(n: &GraphNode, graph: &Graph, named: &BTreeMap<String, String>) -> Node {
    let arg = |name: &str| n.inputs.iter().find(|i| i.name == name).map(|i| &i.arg);
    let value = |name: &str| graph.tensor_values.get(&arg(name)?.as_tensor.as_ref()?.name);
    let params = arg("params").and_then(|a| a.as_tensors.as_deref()).unwrap_or_default();
    let param = |p: &Name| named.get(&p.name).unwrap_or(&p.name).clone();
    Node {
        name: n.name.clone().unwrap_or_default(),
        params: params.iter().map(param).collect(),
        form: arg("form").and_then(|a| a.as_string.clone()).unwrap_or_default(),
        top_k: value("ids").and_then(|v| v.sizes.last()?.as_int),
        weights: value("weights").and_then(|v| stored_type(v.dtype)),
    }
}

/// `torch._export.serde.schema.ScalarType`.
fn stored_type(number: i64) -> Option<StoredType> {
    Some(match number {
        1 => StoredType::U8,
        2 => StoredType::I8,
        4 => StoredType::I32,
        5 => StoredType::I64,
        6 => StoredType::F16,
        7 => StoredType::F32,
        8 => StoredType::F64,
        13 => StoredType::BF16,
        _ => return None,
    })
}

/// An archive, and the name of the folder in it that holds everything.
struct Archive {
    path: PathBuf,
    map: Mmap,
    zip: zip::ZipArchive<std::fs::File>,
    root: String,
}

impl Archive {
    fn open(path: &Path) -> Result<Archive, Diagnostic> {
        let map = map(path)?;
        let file = std::fs::File::open(path).map_err(|e| unreadable(path, &e))?;
        let zip = zip::ZipArchive::new(file).map_err(|e| invalid(path, format!("it is no zip archive: {e}")))?;
        let root = zip
            .file_names()
            .filter_map(Result::ok)
            .find_map(|n| n.strip_suffix("models/model.json").map(str::to_string));
        let root = root.ok_or_else(|| invalid(path, "it has no `models/model.json`".to_string()))?;
        let mut archive = Archive { path: path.to_path_buf(), map, zip, root };
        let order = archive.text("byteorder")?;
        if order.trim() != "little" {
            return Err(invalid(path, format!("its byte order is {order:?}; moec reads little-endian files")));
        }
        Ok(archive)
    }

    fn text(&mut self, member: &str) -> Result<String, Diagnostic> {
        let name = format!("{}{member}", self.root);
        let wrong = |what: String| invalid(&self.path, format!("`{member}` {what}"));
        let file = self.zip.by_name(&name).map_err(|e| wrong(format!("is not there: {e}")))?;
        if file.size() > MAX_JSON {
            return Err(wrong(format!("is {} bytes long", file.size())));
        }
        let mut text = String::new();
        file.take(MAX_JSON).read_to_string(&mut text).map_err(|e| wrong(format!("cannot be read: {e}")))?;
        Ok(text)
    }

    fn json<T: for<'a> Deserialize<'a>>(&mut self, member: &str) -> Result<T, Diagnostic> {
        let text = self.text(member)?;
        serde_json::from_str(&text)
            .map_err(|e| invalid(&self.path, format!("`{member}` is not as torch.export writes it: {e}")))
    }

    fn weights(&mut self) -> Result<BTreeMap<String, Entry>, Diagnostic> {
        let config: Weights = self.json("data/weights/model_weights_config.json")?;
        let mut entries = BTreeMap::new();
        for (name, weight) in config.config {
            let Some(meta) = weight.tensor_meta.filter(|_| !weight.use_pickle) else { continue };
            let (Some(dtype), Some(shape)) = (stored_type(meta.dtype), meta.shape()) else { continue };
            if !meta.is_dense(&shape) {
                continue;
            }
            let member = format!("data/weights/{}", weight.path_name);
            let wrong = |what: String| invalid(&self.path, format!("`{member}`, the weight `{name}`, {what}"));
            let full = format!("{}{member}", self.root);
            let file = self.zip.by_name(&full).map_err(|e| wrong(format!("is not there: {e}")))?;
            if file.compression() != zip::CompressionMethod::Stored {
                return Err(wrong("is compressed".to_string()));
            }
            let start = file.data_start().ok_or_else(|| wrong("has no place in the file".to_string()))?;
            let size = dtype.bits() / 8;
            let bytes = shape.iter().try_fold(size, |a, &n| a.checked_mul(n));
            let offset = meta.storage_offset.as_int.unwrap_or(0).checked_mul(size);
            let end = bytes.zip(offset).and_then(|(b, o)| b.checked_add(o));
            let (Some(bytes), Some(offset), Some(end)) = (bytes, offset, end) else {
                return Err(wrong("has too many elements".to_string()));
            };
            if end > file.size() || start + end > self.map.len() as u64 {
                return Err(wrong(format!("has {} bytes, but its shape asks for {end}", file.size())));
            }
            let start = (start + offset) as usize;
            entries.insert(name, Entry { dtype, shape, start, end: start + bytes as usize });
        }
        Ok(entries)
    }
}

fn invalid(path: &Path, what: String) -> Diagnostic {
    Diagnostic::input("pt2-invalid", format!("`{}` cannot be read: {what}", path.display()))
}

// What is read of the JSON; other keys are skipped.

#[derive(Deserialize)]
struct Program {
    graph_module: GraphModule,
    schema_version: SchemaVersion,
}

#[derive(Deserialize)]
struct SchemaVersion {
    major: u32,
}

#[derive(Deserialize)]
struct GraphModule {
    graph: Graph,
    signature: Signature,
}

#[derive(Deserialize)]
struct Graph {
    nodes: Vec<GraphNode>,
    tensor_values: BTreeMap<String, TensorMeta>,
}

#[derive(Deserialize)]
struct GraphNode {
    target: String,
    #[serde(default)]
    inputs: Vec<NamedArgument>,
    #[serde(default)]
    name: Option<String>,
}

#[derive(Deserialize)]
struct NamedArgument {
    #[serde(default)]
    name: String,
    arg: Argument,
}

#[derive(Deserialize, Default)]
struct Argument {
    #[serde(default)]
    as_tensor: Option<Name>,
    #[serde(default)]
    as_tensors: Option<Vec<Name>>,
    #[serde(default)]
    as_string: Option<String>,
}

#[derive(Deserialize)]
struct Name {
    name: String,
}

#[derive(Deserialize)]
struct Signature {
    input_specs: Vec<InputSpec>,
}

#[derive(Deserialize)]
struct InputSpec {
    #[serde(default)]
    parameter: Option<Bound>,
    #[serde(default)]
    buffer: Option<Bound>,
}

#[derive(Deserialize)]
struct Bound {
    arg: Name,
    #[serde(alias = "parameter_name", alias = "buffer_name")]
    of: String,
}

impl InputSpec {
    /// A name in the graph and the weight that it stands for.
    fn named(&self) -> Option<(String, String)> {
        let bound = self.parameter.as_ref().or(self.buffer.as_ref())?;
        Some((bound.arg.name.clone(), bound.of.clone()))
    }
}

#[derive(Deserialize)]
struct Weights {
    config: BTreeMap<String, WeightMeta>,
}

#[derive(Deserialize)]
struct WeightMeta {
    path_name: String,
    #[serde(default)]
    use_pickle: bool,
    tensor_meta: Option<TensorMeta>,
}

#[derive(Deserialize)]
struct TensorMeta {
    dtype: i64,
    sizes: Vec<Size>,
    #[serde(default)]
    strides: Vec<Size>,
    #[serde(default)]
    storage_offset: Size,
}

/// A number, or an expression that only the program knows.
#[derive(Deserialize, Default)]
struct Size {
    #[serde(default)]
    as_int: Option<u64>,
}

impl TensorMeta {
    fn shape(&self) -> Option<Vec<u64>> {
        self.sizes.iter().map(|s| s.as_int).collect()
    }

    /// Whether the elements lie in row-major order without gaps.
    fn is_dense(&self, shape: &[u64]) -> bool {
        let mut step = 1u64;
        for (&n, stride) in shape.iter().zip(&self.strides).rev() {
            if n != 1 && stride.as_int != Some(step) {
                return false;
            }
            step = step.saturating_mul(n);
        }
        self.strides.len() == shape.len()
    }
}
