//! The manifest of a bundle: what was compiled, and how each target's kernels are bound and launched.

use crate::fingerprint::TargetFingerprint;
use moec_ir::graph::{Graph, Input, Param};
use moec_ir::numerics::{NumericClass, Numerics};
use moec_ir::quant::QuantFormat;
use moec_ir::shape::TensorType;
use moec_ir::tile::{Buffer, BufferId, CpuLaunch, GpuLaunch, Role};
use moec_ir::weights::WeightSource;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The format that this version reads and writes.
pub const FORMAT: u32 = 3;

/// Name of the manifest within a bundle.
pub const MANIFEST_FILE: &str = "manifest.json";
/// Name of the list of hashes within a bundle, as `sha256sum` writes and checks it.
pub const SUMS_FILE: &str = "SHA256SUMS";

/// What a bundle is: the content of `manifest.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Format version: [`FORMAT`].
    pub moec_bundle: u32,
    /// Version of the compiler that wrote it.
    pub moec_version: String,
    /// What was compiled.
    pub layer: LayerInfo,
    /// What the compile was allowed to do to the bits.
    pub numerics: Numerics,
    /// The caller's tensors, in the graph's order; [`Role::Input`] counts in this list.
    pub inputs: Vec<TensorInfo>,
    /// The results, in the graph's order; [`Role::Output`] counts in this list.
    pub outputs: Vec<TensorInfo>,
    /// The checkpoint's tensors, in the graph's order; [`Role::Weight`] counts in this list.
    pub params: Vec<ParamInfo>,
    /// The file that proves that what is computed is the layer as it was written, where it was rewritten.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proof: Option<String>,
    /// One entry for each target, in the order in which they were asked for; names are unique.
    pub targets: Vec<TargetEntry>,
    /// Every other file of the bundle by its path, with `/` between folders.
    pub files: BTreeMap<String, FileInfo>,
}

/// What was compiled.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayerInfo {
    /// Name for people: `deepseek_v3 layer 3`.
    pub name: String,
    /// `model_type` of the config, when there was one.
    #[serde(default)]
    pub model_type: Option<String>,
    /// The model's own number of the layer.
    #[serde(default)]
    pub layer: Option<u32>,
    /// Figures for people and tables, such as `hidden`, `experts`, `top_k`, `ffn`.
    #[serde(default)]
    pub facts: BTreeMap<String, u64>,
    /// What the model's config says about the format of its weights, when it does: weights that come without a config are read
    /// by it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub published_weights: Option<serde_json::Value>,
    /// What the layer computes, fact by fact in words, when it is of a model's config: what a config beside weights is held
    /// against.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub computes: BTreeMap<String, String>,
}

/// A tensor of the caller.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TensorInfo {
    /// Name in input and output files.
    pub name: String,
    /// Its type.
    pub ty: TensorType,
}

/// A tensor of the checkpoint: [`Param`] as it is written down.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ParamInfo {
    /// Name within the layer.
    pub name: String,
    /// Type in the graph's layout.
    pub ty: TensorType,
    /// How a checkpoint becomes it.
    pub source: WeightSource,
    /// How the checkpoint stores it, when buffers hold its codes and scales.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stored: Option<QuantFormat>,
}

/// Everything for one target.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TargetEntry {
    /// Name of the target: `sm_90a`, `cpu`.
    pub name: String,
    /// What the machine needs beyond the name: `x86-64-v3`.
    pub requires: Vec<String>,
    /// CPU targets: the object file that holds every kernel's entry.
    #[serde(default)]
    pub object: Option<String>,
    /// What decides the bits of its outputs, which is the same for all its programs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fingerprint: Option<TargetFingerprint>,
    /// Programs for different token counts: ranges ascend and do not overlap.
    pub variants: Vec<Variant>,
}

/// A range of token counts, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenRange {
    /// Smallest token count.
    pub min: u64,
    /// Largest token count.
    pub max: u64,
}

/// A program for a range of token counts.
///
/// It computes the right result for any token count up to the bundle's largest; the range says where it is the fastest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Variant {
    /// Name of the tile program.
    pub name: String,
    /// The token counts it was made for.
    pub tokens: TokenRange,
    /// Every piece of memory that the kernels name.
    pub buffers: Vec<Buffer>,
    /// Kernels in launch order.
    pub kernels: Vec<KernelEntry>,
    /// How the buffers of role `workspace` lie in one allocation.
    pub workspace: WorkspaceRule,
    /// Text of the tile program, for people.
    #[serde(default)]
    pub tile_text: Option<String>,
}

/// How workspace buffers are laid out in one allocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WorkspaceRule {
    /// One behind the other in the order of the buffers, each at a multiple of 256 bytes.
    Disjoint,
    /// In the order of the buffers, each at the lowest multiple of 256 bytes where it meets no earlier buffer that is
    /// alive at the same time. A buffer is alive from the first kernel that names it to the last.
    Overlay,
}

/// One launch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KernelEntry {
    /// Name within the program.
    pub name: String,
    /// Symbol in the PTX module or object file.
    pub entry: String,
    /// Buffers in the order of the kernel's parameters.
    pub operands: Vec<Operand>,
    /// What the schedule does to the bits, compared with the reference.
    pub class: NumericClass,
    /// The tile operation that it runs and how its work is cut, for people: `contract 64x128x64, 4 stages`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tile: Option<String>,
    /// How it is started.
    pub launch: Launch,
}

/// A buffer as a kernel's parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Operand {
    /// Index into [`Variant::buffers`].
    pub buffer: BufferId,
    /// Whether the kernel writes it.
    pub written: bool,
    /// A weight that the kernel reads at strides that it is given: by the context on the CPU
    /// ([`CpuContext::strides`](moec_ir::abi::CpuContext)), by its tensor maps on a GPU. Others lie as the buffer says.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub strided: bool,
}

/// How a kernel is started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Launch {
    /// On a GPU.
    Gpu {
        /// Path of the PTX within the bundle.
        file: String,
        /// Grid, block, cluster and shared memory.
        launch: GpuLaunch,
    },
    /// On the host's processor, from the target's object file.
    Cpu {
        /// Work items and scratch memory.
        launch: CpuLaunch,
    },
}

/// A file of the bundle.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileInfo {
    /// Size in bytes.
    pub bytes: u64,
    /// SHA-256 of its content, in lowercase hexadecimal.
    pub sha256: String,
}

impl ParamInfo {
    /// The parameter as the graph has it.
    pub fn param(&self) -> Param {
        Param { name: self.name.clone(), ty: self.ty.clone(), source: self.source.clone(), stored: self.stored }
    }
}

impl From<&Param> for ParamInfo {
    fn from(p: &Param) -> ParamInfo {
        ParamInfo { name: p.name.clone(), ty: p.ty.clone(), source: p.source.clone(), stored: p.stored }
    }
}

impl From<&Input> for TensorInfo {
    fn from(i: &Input) -> TensorInfo {
        TensorInfo { name: i.name.clone(), ty: i.ty.clone() }
    }
}

impl Manifest {
    /// A manifest of `graph` without targets or files.
    pub fn of_graph(graph: &Graph, layer: LayerInfo, numerics: Numerics) -> Manifest {
        Manifest {
            moec_bundle: FORMAT,
            moec_version: env!("CARGO_PKG_VERSION").to_string(),
            layer,
            numerics,
            inputs: graph.inputs.iter().map(TensorInfo::from).collect(),
            outputs: graph
                .outputs
                .iter()
                .map(|(name, value)| TensorInfo { name: name.clone(), ty: graph.ty(*value).clone() })
                .collect(),
            params: graph.params.iter().map(ParamInfo::from).collect(),
            proof: None,
            targets: Vec::new(),
            files: BTreeMap::new(),
        }
    }

    /// The entry of the target called `name`.
    pub fn target(&self, name: &str) -> Option<&TargetEntry> {
        self.targets.iter().find(|t| t.name == name)
    }
}

impl TargetEntry {
    /// The largest token count that the target was compiled for.
    pub fn max_tokens(&self) -> u64 {
        self.variants.last().map_or(0, |v| v.tokens.max)
    }

    /// Index of the variant for a token count: the first whose range does not end before it.
    pub fn variant_for(&self, n_tokens: u64) -> Option<usize> {
        self.variants.iter().position(|v| n_tokens <= v.tokens.max)
    }
}

/// Where the workspace buffers of a variant lie: byte offsets from the start of the workspace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkspaceLayout {
    /// For each buffer of the variant; `None` for those that are no workspace.
    pub offsets: Vec<Option<u64>>,
    /// Size of the workspace in bytes.
    pub bytes: u64,
}

impl Variant {
    /// Lays out the workspace for up to `n_tokens` tokens by `rule`, which is usually [`Variant::workspace`]; an emulator
    /// asks for [`WorkspaceRule::Disjoint`] to catch reads of what was never written.
    pub fn workspace_layout(&self, rule: WorkspaceRule, n_tokens: u64) -> WorkspaceLayout {
        const ALIGN: u64 = moec_ir::abi::BUFFER_ALIGN;
        let alive = |id: usize| {
            let mut users =
                (0..self.kernels.len()).filter(|&k| self.kernels[k].operands.iter().any(|o| o.buffer.index() == id));
            let first = users.next();
            (first.unwrap_or(0), users.next_back().or(first).unwrap_or(0))
        };
        // (start, end, first kernel, last kernel) of the buffers placed so far.
        let mut placed: Vec<(u64, u64, usize, usize)> = Vec::new();
        let mut offsets = Vec::with_capacity(self.buffers.len());
        for (id, buffer) in self.buffers.iter().enumerate() {
            if buffer.role != Role::Workspace {
                offsets.push(None);
                continue;
            }
            let bytes = buffer.bytes(n_tokens);
            let (first, last) = match rule {
                WorkspaceRule::Disjoint => (0, usize::MAX),
                WorkspaceRule::Overlay => alive(id),
            };
            let mut rivals: Vec<(u64, u64)> =
                placed.iter().filter(|p| p.2 <= last && first <= p.3).map(|p| (p.0, p.1)).collect();
            rivals.sort_unstable();
            let mut start = 0;
            for (from, to) in rivals {
                if start + bytes <= from {
                    break;
                }
                start = start.max(to.next_multiple_of(ALIGN));
            }
            placed.push((start, start + bytes, first, last));
            offsets.push(Some(start));
        }
        let bytes = placed.iter().map(|p| p.1).max().unwrap_or(0);
        WorkspaceLayout { offsets, bytes: bytes.next_multiple_of(ALIGN) }
    }
}
