//! GGUF, the files of llama.cpp: the container, what its metadata say about a model, and its tensors under the names that
//! Hugging Face checkpoints have.
//!
//! * [`container`] reads the header: metadata and where the tensors lie.
//! * [`architectures`] is the table of models: for each `general.architecture` the keys of a `config.json`, and names.
//! * [`tensors`] presents a layer's tensors: stacks of experts as slices, one for each expert.
//! * [`files`] finds the files of a model, which may be split.

mod architectures;
mod config;
mod container;
mod files;
mod model;
mod tensors;

pub use config::{GgufConfig, config};
pub(crate) use files::find;
pub(crate) use model::open;
