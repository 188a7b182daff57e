//! What the compiler wrote for the loader: [`Bundle`], a compiled layer — a manifest and the files that it names, each with its
//! hash; and [`PlacedBundle`], a layer for ranks, whose programs are bundles.
//!
//! Nothing here panics on what a file says.
#![warn(missing_docs)]

mod archive;
mod build;
mod bundle;
mod canonical;
mod fingerprint;
mod folder;
pub mod manifest;
mod placed;
mod verify;
mod write;

pub use build::{BundleBuilder, CpuKernelPart, CpuVariantPart, GpuKernelPart, GpuVariantPart};
pub use bundle::Bundle;
pub use canonical::sha256;
pub use fingerprint::{
    BitsDiffer, FINGERPRINT_VERSION, FingerprintLine, FingerprintText, TargetFingerprint, compare_fingerprints,
};
pub use manifest::Manifest;
pub use placed::{
    Crossing, PLACED_FILE, PLACED_FORMAT, PlacedBundle, PlacedExchange, PlacedExperts, PlacedManifest, PlacedOutput,
    PlacedProgram,
};
pub use verify::{MAX_KERNEL_PARAMS, MAX_TENSOR_MAPS, MAX_TOKENS, verify_manifest};
