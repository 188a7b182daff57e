//! ONNX files: the nodes of their graph, and their initialisers as the tensors of a checkpoint.
//!
//! * [`proto`] has the messages.
//! * [`qmoe`] tells which initialisers are one quantised matrix.
//! * [`tensors`] tells where initialisers lie: in the file itself, or in files beside it.

mod proto;
mod qmoe;
mod tensors;

use super::checkpoint::map;
use super::safetensors::StoredType;
use moec_ir::diag::Diagnostic;
use prost::Message;
use prost::bytes::Bytes;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

pub use qmoe::{QMOE_MATRICES, QmoeMatrix};
pub(crate) use tensors::open;

/// Whether a path names an ONNX file. The format has no mark of its own at its beginning.
pub fn is_onnx(path: &Path) -> bool {
    path.is_file() && path.extension().is_some_and(|e| e == "onnx")
}

/// What an ONNX file says, without the weights themselves.
#[derive(Clone, Debug, Default)]
pub struct File {
    /// The file.
    pub path: PathBuf,
    /// The nodes of the main graph, in the file's order.
    pub nodes: Vec<Node>,
    /// Element type and shape of each initialiser.
    pub tensors: BTreeMap<String, (StoredType, Vec<u64>)>,
}

/// One node.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Node {
    /// Its name; may be empty.
    pub name: String,
    /// The operation set: empty for ONNX's own.
    pub domain: String,
    /// The operation.
    pub op: String,
    /// Names of the values it reads; empty for an optional one that is left out.
    pub inputs: Vec<String>,
    /// Names of the values it makes.
    pub outputs: Vec<String>,
    /// Its attributes that are numbers or words.
    pub attributes: BTreeMap<String, Attribute>,
}

/// The value of an attribute.
#[derive(Clone, Debug, PartialEq)]
pub enum Attribute {
    /// A whole number.
    Int(i64),
    /// A number.
    Float(f32),
    /// A word.
    Word(String),
}

impl File {
    /// Reads the graph of an ONNX file.
    ///
    /// # Errors
    /// `checkpoint-not-found`, `checkpoint-unreadable`, `onnx-invalid`.
    pub fn open(path: impl AsRef<Path>) -> Result<File, Diagnostic> {
        let path = path.as_ref();
        let (graph, _) = parse(path)?;
        let mut tensors = BTreeMap::new();
        for t in &graph.initializer {
            // Types that moec does not read are told when a layer asks for the tensor.
            if let (Some(dtype), Ok(shape)) = (tensors::stored_type(t.data_type), tensors::shape(path, t)) {
                tensors.insert(t.name.clone(), (dtype, shape));
            }
        }
        let nodes = graph.node.into_iter().map(node).collect();
        Ok(File { path: path.to_path_buf(), nodes, tensors })
    }

    /// The node that makes a value.
    pub fn producer(&self, value: &str) -> Option<&Node> {
        self.nodes.iter().find(|n| n.outputs.iter().any(|o| o == value)).filter(|_| !value.is_empty())
    }
}

fn node(n: proto::Node) -> Node {
    let attributes = n.attribute.into_iter().filter_map(|a| {
        let value = match a.kind {
            1 => Attribute::Float(a.f),
            2 => Attribute::Int(a.i),
            3 => Attribute::Word(String::from_utf8_lossy(&a.s).into_owned()),
            _ => return None,
        };
        Some((a.name, value))
    });
    Node {
        attributes: attributes.collect(),
        name: n.name,
        domain: n.domain,
        op: n.op_type,
        inputs: n.input,
        outputs: n.output,
    }
}

/// The graph of a file, and the file's bytes, in which those of its tensors lie.
fn parse(path: &Path) -> Result<(proto::Graph, Bytes), Diagnostic> {
    let bytes = Bytes::from_owner(map(path)?);
    let model = proto::Model::decode(bytes.clone()).map_err(|e| invalid(path, format!("it is no ONNX model: {e}")))?;
    let graph = model.graph.ok_or_else(|| invalid(path, "it has no graph".to_string()))?;
    Ok((graph, bytes))
}

pub(super) fn invalid(path: &Path, what: String) -> Diagnostic {
    Diagnostic::input("onnx-invalid", format!("`{}` cannot be read: {what}", path.display()))
}
