//! `docs/nvl72.md`: what the model says of layers that are spread over the GPUs of one fabric.

mod cases;
mod chart;
mod page;

pub use chart::chart;
pub use page::page;
