//! Files of weights, opened without trusting them.

pub mod checkpoint;
mod index;
pub mod safetensors;
