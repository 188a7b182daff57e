//! The data of a launch recipe.

use std::collections::BTreeMap;

use crate::tensor::TensorError;
use crate::tensor::swizzle::Swizzle;
use crate::tensor::tensormap::{self, MapElem};

/// How to launch one entry.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Launch {
    /// Name of the `.entry`.
    pub entry: String,
    /// The machine, such as `sm_90a`.
    pub target: String,
    /// CTAs in x, y, z (not clusters).
    pub grid: [u32; 3],
    /// Threads a CTA in x, y, z.
    pub block: [u32; 3],
    /// CTAs a cluster in x, y, z; `[1, 1, 1]` for a launch without clusters.
    pub cluster: [u32; 3],
    /// Dynamic shared memory of each CTA.
    pub dynamic_smem_bytes: u32,
    /// The parameters, in the order of `.param`.
    pub params: Vec<Param>,
    /// Buffers that are results.
    pub outputs: Vec<String>,
    /// For each output, the greatest ‖got − want‖ / ‖want‖ that is right; 0 asks for equal values.
    pub tolerance: BTreeMap<String, f64>,
    /// Free text.
    pub note: String,
    /// Which compiler wrote the PTX; free text.
    pub source: String,
}

/// How to launch kernels on several devices that run together.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RanksLaunch {
    /// The machine of every rank.
    pub target: String,
    /// The launches of each rank, in order; their targets and outputs are those of all.
    pub ranks: Vec<Vec<Launch>>,
    /// The buffers of each rank that kernels of all ranks see. Every other buffer is seen by the rank that names it only.
    pub windows: Vec<Vec<String>>,
    /// Buffers that are results.
    pub outputs: Vec<String>,
    /// As [`Launch::tolerance`].
    pub tolerance: BTreeMap<String, f64>,
}

/// One parameter of a launch.
#[derive(Debug, Clone, PartialEq)]
pub enum Param {
    /// The address of a byte of a buffer; 8 bytes.
    Buffer {
        /// Name of the buffer.
        name: String,
        /// Which of its bytes.
        offset_bytes: u64,
    },
    /// The address of a table with the addresses of these buffers, 8 bytes each; 8 bytes.
    Pointers(Vec<String>),
    /// An 8-byte zero.
    Null,
    /// A number of 1, 2, 4 or 8 bytes, little-endian.
    Scalar(Vec<u8>),
    /// A struct by value.
    Bytes {
        /// Its content.
        bytes: Vec<u8>,
        /// What is written over it at launch.
        patches: Vec<Patch>,
    },
    /// An encoded tensor map; 128 bytes.
    TensorMap(TensorMap),
}

impl Param {
    /// Bytes the parameter takes in `.param` space.
    #[must_use]
    pub fn size_bytes(&self) -> usize {
        match self {
            Self::Buffer { .. } | Self::Pointers(_) | Self::Null => 8,
            Self::Scalar(bytes) | Self::Bytes { bytes, .. } => bytes.len(),
            Self::TensorMap(_) => 128,
        }
    }
}

/// Something that only the launch knows, written into a struct that is passed by value.
#[derive(Debug, Clone, PartialEq)]
pub struct Patch {
    /// Byte offset in the struct.
    pub at: usize,
    /// What is written there.
    pub value: PatchValue,
}

/// The content of a [`Patch`].
#[derive(Debug, Clone, PartialEq)]
pub enum PatchValue {
    /// The address of a byte of a buffer; 8 bytes.
    Buffer {
        /// Name of the buffer.
        name: String,
        /// Which of its bytes.
        offset_bytes: u64,
    },
    /// An encoded tensor map; 128 bytes.
    TensorMap(TensorMap),
}

/// The arguments of `cuTensorMapEncodeTiled`. Lists run from the innermost dimension outwards.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorMap {
    /// Name of the buffer that holds the tensor.
    pub buffer: String,
    /// Where in the buffer the tensor starts.
    pub offset_bytes: u64,
    /// Element type.
    pub dtype: MapElem,
    /// Elements a dimension.
    pub dims: Vec<u64>,
    /// Bytes from one index to the next, for all dimensions but the innermost.
    pub strides_bytes: Vec<u64>,
    /// Elements a dimension that one copy moves.
    pub box_dims: Vec<u32>,
    /// Every how many elements are taken.
    pub element_strides: Vec<u32>,
    /// Permutation of 16-byte (or 32-byte) chunks in shared memory.
    pub swizzle: Swizzle,
    /// Whether reads outside the tensor give NaN instead of zero.
    pub fill_nan: bool,
}

impl TensorMap {
    /// The 128-byte object for a tensor at `address`.
    ///
    /// # Errors
    /// What `cuTensorMapEncodeTiled` would refuse, naming the argument.
    pub fn encode(&self, address: u64) -> Result<[u8; tensormap::BYTES], TensorError> {
        let filled = |list: &[u32]| std::array::from_fn(|d| list.get(d).copied().unwrap_or(1));
        tensormap::TensorMap {
            address,
            elem: self.dtype,
            rank: self.dims.len(),
            dims: std::array::from_fn(|d| self.dims.get(d).copied().unwrap_or(1)),
            strides: std::array::from_fn(|d| self.strides_bytes.get(d).copied().unwrap_or(0)),
            box_dims: filled(&self.box_dims),
            element_strides: filled(&self.element_strides),
            interleave: 0,
            swizzle: self.swizzle,
            fill_nan: self.fill_nan,
        }
        .encode()
    }
}

/// Element types with their names in a launch recipe.
pub const TENSOR_TYPES: [(&str, MapElem); 16] = [
    ("u8", MapElem::U8),
    ("u16", MapElem::U16),
    ("u32", MapElem::U32),
    ("i32", MapElem::S32),
    ("u64", MapElem::U64),
    ("i64", MapElem::S64),
    ("f16", MapElem::F16),
    ("f32", MapElem::F32),
    ("f32_ftz", MapElem::F32Ftz),
    ("f64", MapElem::F64),
    ("bf16", MapElem::Bf16),
    ("tf32", MapElem::Tf32),
    ("tf32_ftz", MapElem::Tf32Ftz),
    ("b4x16_p64", MapElem::B4x16P64),
    ("b4x16", MapElem::B4x16),
    ("b6x16_p32", MapElem::B6x16P32),
];

/// Swizzle modes with their names in a launch recipe.
pub const SWIZZLES: [(&str, Swizzle); 7] = [
    ("none", Swizzle::None),
    ("32B", Swizzle::B32),
    ("64B", Swizzle::B64),
    ("128B", Swizzle::B128),
    ("128B_atom_32B", Swizzle::B128Atom32),
    ("128B_atom_32B_flip_8B", Swizzle::B128Atom32Flip8),
    ("128B_atom_64B", Swizzle::B128Atom64),
];

/// What is wrong with a launch recipe.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum LaunchError {
    /// Not JSON.
    #[error("launch recipe: {0}")]
    Json(String),
    /// A field has the wrong type or value.
    #[error("launch recipe: `{field}`: found {found}, expected {expected}")]
    Field {
        /// Path of the field, such as `params[3].tensor_map.swizzle`.
        field: String,
        /// What stands there.
        found: String,
        /// What should stand there.
        expected: String,
    },
    /// The recipe does not fit the PTX or the buffers.
    #[error("launch recipe: `{field}`: {what}")]
    Mismatch {
        /// Path of the field.
        field: String,
        /// What does not fit, with both sides.
        what: String,
    },
}
