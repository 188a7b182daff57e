//! The data of a launch recipe.

use std::collections::BTreeMap;

/// How to launch one entry.
#[derive(Debug, Clone, PartialEq)]
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
            Self::Buffer { .. } | Self::Null => 8,
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
    pub dtype: TensorType,
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
    /// Interleaved layout.
    pub interleave: Interleave,
    /// What reads outside the tensor give.
    pub outside: Outside,
}

/// Element type of a tensor map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum TensorType {
    U8,
    U16,
    U32,
    I32,
    U64,
    I64,
    F16,
    F32,
    /// f32 with denormals flushed.
    F32Ftz,
    F64,
    Bf16,
    Tf32,
    /// tf32 with denormals flushed.
    Tf32Ftz,
    /// 16 4-bit elements in 8 bytes of global memory, spread to 16 bytes of shared memory.
    B4x16P64,
    /// 16 4-bit elements in 8 bytes, packed in shared memory too.
    B4x16,
    /// 16 6-bit elements in 12 bytes of global memory, spread to 16 bytes of shared memory.
    B6x16P32,
}

impl TensorType {
    /// Every type with its name in a launch recipe.
    pub const NAMES: [(&'static str, Self); 16] = [
        ("u8", Self::U8),
        ("u16", Self::U16),
        ("u32", Self::U32),
        ("i32", Self::I32),
        ("u64", Self::U64),
        ("i64", Self::I64),
        ("f16", Self::F16),
        ("f32", Self::F32),
        ("f32_ftz", Self::F32Ftz),
        ("f64", Self::F64),
        ("bf16", Self::Bf16),
        ("tf32", Self::Tf32),
        ("tf32_ftz", Self::Tf32Ftz),
        ("b4x16_p64", Self::B4x16P64),
        ("b4x16", Self::B4x16),
        ("b6x16_p32", Self::B6x16P32),
    ];

    /// Width of an element in global memory.
    #[must_use]
    pub fn global_bits(self) -> u32 {
        match self {
            Self::B4x16P64 | Self::B4x16 => 4,
            Self::B6x16P32 => 6,
            Self::U8 => 8,
            Self::U16 | Self::F16 | Self::Bf16 => 16,
            Self::U32 | Self::I32 | Self::F32 | Self::F32Ftz | Self::Tf32 | Self::Tf32Ftz => 32,
            Self::U64 | Self::I64 | Self::F64 => 64,
        }
    }

    /// Width of an element in shared memory, padding included.
    #[must_use]
    pub fn shared_bits(self) -> u32 {
        match self {
            Self::B4x16P64 | Self::B6x16P32 => 8,
            Self::B4x16 => 4,
            other => other.global_bits(),
        }
    }
}

/// Swizzle mode of a tensor map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Swizzle {
    /// Rows as they are.
    None,
    /// 16-byte chunks permuted within 32 bytes.
    B32,
    /// 16-byte chunks permuted within 64 bytes.
    B64,
    /// 16-byte chunks permuted within 128 bytes.
    B128,
    /// 32-byte chunks permuted within 128 bytes.
    B128Atom32,
    /// 32-byte chunks permuted within 128 bytes, halves of 8 bytes flipped on odd rows.
    B128Atom32Flip8,
    /// 64-byte chunks permuted within 128 bytes.
    B128Atom64,
}

impl Swizzle {
    /// Every mode with its name in a launch recipe.
    pub const NAMES: [(&'static str, Self); 7] = [
        ("none", Self::None),
        ("32B", Self::B32),
        ("64B", Self::B64),
        ("128B", Self::B128),
        ("128B_atom_32B", Self::B128Atom32),
        ("128B_atom_32B_flip_8B", Self::B128Atom32Flip8),
        ("128B_atom_64B", Self::B128Atom64),
    ];

    /// Bytes of the row that is permuted; the innermost box extent may not be wider. `None` has no limit.
    #[must_use]
    pub fn span_bytes(self) -> Option<u32> {
        match self {
            Self::None => None,
            Self::B32 => Some(32),
            Self::B64 => Some(64),
            Self::B128 | Self::B128Atom32 | Self::B128Atom32Flip8 | Self::B128Atom64 => Some(128),
        }
    }
}

/// Interleaved layout of a tensor map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interleave {
    /// Not interleaved.
    None,
    /// Slices of 16 bytes (NC/8HWC8).
    B16,
    /// Slices of 32 bytes (NC/16HWC16).
    B32,
}

impl Interleave {
    /// Every layout with its name in a launch recipe.
    pub const NAMES: [(&'static str, Self); 3] =
        [("none", Self::None), ("16B", Self::B16), ("32B", Self::B32)];
}

/// What a copy reads outside the tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outside {
    /// Zero.
    Zero,
    /// A NaN that only a few instructions make.
    Nan,
}

impl Outside {
    /// Both with their names in a launch recipe.
    pub const NAMES: [(&'static str, Self); 2] = [("zero", Self::Zero), ("nan", Self::Nan)];
}

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
