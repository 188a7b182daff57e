//! Reads published model configs and layer graphs into the moec graph IR.
//!
//! [`ModelConfig`] reads a Hugging Face `config.json`. A family of models is one entry of [`families::FAMILIES`] and one
//! file of `families/`: a small function that says what the keys of its config mean, filling in a [`spec::MoeSpec`].
//! The rest is shared: [`keys`] collects mistakes in the config, `assemble` turns the specification into a graph.
//!
//! [`layer_graph`] reads and writes layers as JSON, for what no published config describes. [`open`] takes either.

#![warn(missing_docs)]

mod assemble;
mod computes;
pub mod config;
pub mod facts;
pub mod families;
pub mod json;
pub mod keys;
pub mod layer_graph;
pub mod layers;
pub mod layout;
pub mod onnx;
mod open;
pub mod pt2;
mod published_rows;
mod quantisation;
mod routers;
pub mod spec;
mod stored;

pub use config::{Diagnostics, Layer, LayerOptions, ModelConfig, Part, known_model_types};
pub use facts::LayerFacts;
pub use onnx::OnnxModel;
pub use open::{Opened, open, open_text};
pub use pt2::Pt2Model;
pub use published_rows::PublishedRows;
