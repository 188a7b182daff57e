//! Tensor-core semantics as pure functions.
