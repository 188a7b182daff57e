//! Files of weights, opened without trusting them.

pub mod checkpoint;
pub mod gguf;
mod index;
pub mod onnx;
pub mod pt2;
pub mod safetensors;
