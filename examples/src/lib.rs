//! Short programs that use moec: `cargo run -p moec-examples --example 01-compile`.
//!
//! * `programs/01-compile.rs` — a published config to PTX.
//! * `programs/02-run-on-the-cpu.rs` — a small layer, compiled in memory and run.
//! * `programs/03-run-ptx-without-a-gpu.rs` — the same layer's PTX in the emulator.
//! * `programs/04-four-ranks.rs` — a layer on four ranks, and experts that move between them.
//!
//! `models/` has the configs of published models, `layers/` layer graphs for what no config describes.

#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;
