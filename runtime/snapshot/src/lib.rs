//! Compiled layers as text: for snapshot tests in your own repository, and to see what two compilers or two settings do differently.
//!
//! ```no_run
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let bundle = moec_bundle::Bundle::open("layer").map_err(|d| d.message)?;
//! let text = moec_snapshot::Snapshot::of(&bundle, moec_snapshot::Kernels::Listed)?.to_string();
//! // insta::assert_snapshot!(text);
//! # Ok(())
//! # }
//! ```
//!
//! The text depends on the layer and the compiler alone: no paths, no times, nothing of the machine; code for the CPU, which is
//! made for one, is represented by its launches. Registers and labels are named so that a change stays where it is
//! ([`moec_ptx::listing`]).
#![warn(missing_docs)]

mod difference;
mod of_bundle;

pub use difference::{Change, Difference};

use moec_ir::diag::Diagnostic;
use std::collections::BTreeMap;
use std::fmt;

/// How much of each kernel a snapshot holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kernels {
    /// Every instruction.
    Listed,
    /// Figures, and a hash of what would be listed: equal where the instructions are.
    Digested,
}

/// A layer, or a PTX file, as sections of text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// In order: the layer, the programs of each target, the kernels of each file.
    pub sections: Vec<Section>,
}

/// A part that is compared with the part of the same title.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Section {
    /// `layer`, `sm_90a, 1 to 16 tokens`, `sm_90a/route.t1.ptx: route`.
    pub title: String,
    /// Figures, of kernels only: instructions by class (`instructions`, `float`, …), bytes of shared memory.
    pub figures: BTreeMap<String, u64>,
    /// Text.
    pub lines: Vec<String>,
}

impl Snapshot {
    /// The kernels of one PTX text.
    ///
    /// # Errors
    /// `ptx-syntax` for what is no PTX; `path` is named in the message.
    pub fn of_ptx(path: &str, text: &str, kernels: Kernels) -> Result<Snapshot, Diagnostic> {
        of_bundle::functions(path, text, kernels).map(|sections| Snapshot { sections })
    }
}

impl fmt::Display for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, s) in self.sections.iter().enumerate() {
            writeln!(f, "{}# {}", if i > 0 { "\n" } else { "" }, s.title)?;
            if !s.figures.is_empty() {
                let figures: Vec<String> = s.figures.iter().map(|(name, n)| format!("{name} {n}")).collect();
                writeln!(f, "{}", figures.join(", "))?;
            }
            s.lines.iter().try_for_each(|l| writeln!(f, "{l}"))?;
        }
        Ok(())
    }
}
