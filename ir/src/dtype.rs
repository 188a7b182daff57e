//! Element types, and rounding to them.

use serde::{Deserialize, Serialize};

/// The type of one element.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DType {
    /// IEEE binary64; only the reference evaluators compute in it.
    F64,
    /// IEEE binary32.
    F32,
    /// IEEE binary16.
    F16,
    /// bfloat16: the upper half of a binary32.
    BF16,
    /// 32-bit signed integer: expert ids, offsets, row maps.
    I32,
    /// 64-bit signed integer: token ids.
    I64,
    /// A byte: codes of quantised weights, and scales of eight bits. Only buffers of weights have it.
    U8,
}

impl DType {
    /// Every type that a value of a layer can have, in declaration order: all but [`DType::U8`].
    pub const ALL: [DType; 6] = [DType::F64, DType::F32, DType::F16, DType::BF16, DType::I32, DType::I64];

    /// Size of one element in bytes.
    pub fn bytes(self) -> usize {
        match self {
            DType::F64 | DType::I64 => 8,
            DType::F32 | DType::I32 => 4,
            DType::F16 | DType::BF16 => 2,
            DType::U8 => 1,
        }
    }

    /// Whether values are floating point.
    pub fn is_float(self) -> bool {
        match self {
            DType::F64 | DType::F32 | DType::F16 | DType::BF16 => true,
            DType::I32 | DType::I64 | DType::U8 => false,
        }
    }

    /// The name in text forms and JSON: `f32`, `bf16`, …
    pub fn name(self) -> &'static str {
        match self {
            DType::F64 => "f64",
            DType::F32 => "f32",
            DType::F16 => "f16",
            DType::BF16 => "bf16",
            DType::I32 => "i32",
            DType::I64 => "i64",
            DType::U8 => "u8",
        }
    }

    /// The type of values called `name` in text forms, if there is one.
    pub fn from_name(name: &str) -> Option<DType> {
        DType::ALL.into_iter().find(|d| d.name() == name)
    }

    /// Rounds an f32 to this type (to nearest even) and widens it back. Identity for f32 and wider, truncation for integers.
    pub fn round(self, x: f32) -> f32 {
        match self {
            DType::F64 | DType::F32 => x,
            DType::F16 => half::f16::from_f32(x).to_f32(),
            DType::BF16 => half::bf16::from_f32(x).to_f32(),
            DType::I32 | DType::I64 | DType::U8 => x.trunc(),
        }
    }
}

impl std::fmt::Display for DType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}
