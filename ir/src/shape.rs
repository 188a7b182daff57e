//! Shapes with a symbolic token count.

use crate::DType;
use serde::{Deserialize, Serialize};

/// One axis of a shape: a fixed length, or a multiple of the token count `T`, which is known only when the layer runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Dim {
    /// A length known when compiling, in elements.
    Fixed(u64),
    /// `n` times the token count. `PerToken(1)` is `T`; `PerToken(K)` is the number of slots.
    PerToken(u64),
}

impl Dim {
    /// The axis that counts tokens.
    pub const TOKENS: Dim = Dim::PerToken(1);

    /// The length for a given token count.
    pub fn at(self, n_tokens: u64) -> u64 {
        match self {
            Dim::Fixed(n) => n,
            Dim::PerToken(k) => k * n_tokens,
        }
    }

    /// The length, when it does not depend on the token count.
    pub fn fixed(self) -> Option<u64> {
        match self {
            Dim::Fixed(n) => Some(n),
            Dim::PerToken(_) => None,
        }
    }
}

impl std::fmt::Display for Dim {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Dim::Fixed(n) => write!(f, "{n}"),
            Dim::PerToken(1) => f.write_str("T"),
            Dim::PerToken(k) => write!(f, "T*{k}"),
        }
    }
}

/// Element type and shape of a value, outermost axis first, rows contiguous.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TensorType {
    /// Type of an element.
    pub dtype: DType,
    /// Axes, outermost first.
    pub shape: Vec<Dim>,
}

impl TensorType {
    /// A type from its parts.
    pub fn new(dtype: DType, shape: impl Into<Vec<Dim>>) -> TensorType {
        TensorType { dtype, shape: shape.into() }
    }

    /// A type whose axes are all fixed.
    pub fn fixed(dtype: DType, shape: &[u64]) -> TensorType {
        TensorType { dtype, shape: shape.iter().map(|&n| Dim::Fixed(n)).collect() }
    }

    /// Number of elements for a given token count.
    pub fn elements(&self, n_tokens: u64) -> u64 {
        self.shape.iter().map(|d| d.at(n_tokens)).product()
    }

    /// Size in bytes for a given token count.
    pub fn bytes(&self, n_tokens: u64) -> u64 {
        self.elements(n_tokens) * self.dtype.bytes() as u64
    }

    /// The innermost axis; `None` for a scalar.
    pub fn last(&self) -> Option<Dim> {
        self.shape.last().copied()
    }
}

impl std::fmt::Display for TensorType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}[", self.dtype)?;
        for (i, d) in self.shape.iter().enumerate() {
            write!(f, "{}{d}", if i > 0 { ", " } else { "" })?;
        }
        f.write_str("]")
    }
}
