//! Fingerprints: what decides the bits of a layer's outputs, so that two bundles can be compared without running them.
//!
//! For each output there is a text, one line for each value and each step from the inputs on: rounding points, formats, and for
//! every sum the engine that makes it and its parts of k. The manifest has its SHA-256; the file has the text, with the names of
//! values after `#`, which do not count.

use crate::bundle::Bundle;
use crate::canonical::sha256;
use crate::manifest::TargetEntry;
use moec_ir::diag::Diagnostic;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt::Write;

/// The version of the text and of what kernels do below it: equal hashes of different versions mean nothing.
pub const FINGERPRINT_VERSION: u32 = 1;

/// What comes between a line and the name of its value.
const NAME: &str = "  # ";

/// The fingerprint of all programs of a target, in the manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TargetFingerprint {
    /// [`FINGERPRINT_VERSION`] of the compiler.
    pub version: u32,
    /// Path of the texts within the bundle.
    pub file: String,
    /// SHA-256 of the text of each output.
    pub outputs: BTreeMap<String, String>,
}

/// The text of one output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FingerprintText {
    /// Name of the output.
    pub output: String,
    /// Lines, from the inputs to the output.
    pub lines: Vec<FingerprintLine>,
}

/// A value or a step.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FingerprintLine {
    /// What decides bits.
    pub text: String,
    /// What the value is called; none for a step.
    pub name: Option<String>,
}

/// How two targets' outputs differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BitsDiffer {
    /// The output, by name.
    pub output: String,
    /// The value that is the first to differ, as the first bundle calls it; the output where it is not there.
    pub value: String,
    /// The first line that differs: that of the first bundle and that of the second, where they have one.
    pub lines: [Option<String>; 2],
}

impl FingerprintText {
    /// From its text, one line for each value and step, and the names of the values in the order in which they are declared:
    /// `%0 = …`.
    pub fn new(output: &str, text: &str, names: &[String]) -> FingerprintText {
        let mut names = names.iter();
        let line = |text: &str| {
            let declared = text.trim_start().strip_prefix('%').and_then(|t| t.split_once(" = "));
            let declares = declared.is_some_and(|(n, _)| n.bytes().all(|b| b.is_ascii_digit()));
            let name = if declares { names.next().cloned() } else { None };
            FingerprintLine { text: text.to_string(), name }
        };
        FingerprintText { output: output.to_string(), lines: text.lines().map(line).collect() }
    }

    /// SHA-256 of what decides bits.
    pub fn hash(&self) -> String {
        let lines: String = self.lines.iter().map(|l| format!("{}\n", l.text)).collect();
        sha256(format!("moec fingerprint {FINGERPRINT_VERSION}\n{lines}").as_bytes())
    }
}

/// The file of a target's texts.
pub(crate) fn write(texts: &[FingerprintText]) -> String {
    let mut out = format!("moec fingerprint {FINGERPRINT_VERSION}\n");
    for t in texts {
        // Writing to a string cannot fail.
        let _ = writeln!(out, "output {} sha256 {}", t.output, t.hash());
        for line in &t.lines {
            let name = line.name.as_ref().map_or(String::new(), |n| format!("{NAME}{n}"));
            let _ = writeln!(out, "{}{name}", line.text);
        }
    }
    out
}

fn read(text: &str) -> Vec<FingerprintText> {
    let mut texts: Vec<FingerprintText> = Vec::new();
    for line in text.lines().skip(1) {
        if let Some((output, _)) = line.strip_prefix("output ").and_then(|l| l.rsplit_once(" sha256 ")) {
            texts.push(FingerprintText { output: output.to_string(), lines: Vec::new() });
        } else if let Some(t) = texts.last_mut() {
            let (text, name) =
                line.split_once(NAME).map_or((line, None), |(text, name)| (text, Some(name.to_string())));
            t.lines.push(FingerprintLine { text: text.to_string(), name });
        }
    }
    texts
}

impl Bundle {
    /// The texts of a target's fingerprint, in the order of the outputs; nothing where the bundle has none.
    ///
    /// # Errors
    /// `bundle-corrupt` when a text does not have the hash that the manifest gives.
    pub fn fingerprint(&self, target: &TargetEntry) -> Result<Option<Vec<FingerprintText>>, Diagnostic> {
        let Some(print) = &target.fingerprint else { return Ok(None) };
        let texts = read(self.text(&print.file)?);
        let known = |t: &FingerprintText| print.outputs.get(&t.output) == Some(&t.hash());
        if print.version == FINGERPRINT_VERSION && !(texts.len() == print.outputs.len() && texts.iter().all(known)) {
            return Err(Diagnostic::input(
                "bundle-corrupt",
                format!("`{}` is not the fingerprint of its target", print.file),
            )
            .note("its text does not have the SHA-256 that the manifest gives")
            .help("copy the bundle again, or compile it again"));
        }
        Ok(Some(texts))
    }
}

/// Where two fingerprints of the same outputs differ; nothing when all bits are the same. An output that only one of them has
/// differs.
pub fn compare_fingerprints(a: &[FingerprintText], b: &[FingerprintText]) -> Vec<BitsDiffer> {
    let find = |texts: &[FingerprintText], output: &str| texts.iter().find(|t| t.output == output).cloned();
    let mut outputs: Vec<&str> = a.iter().map(|t| t.output.as_str()).collect();
    outputs.extend(b.iter().map(|t| t.output.as_str()).filter(|o| find(a, o).is_none()));
    let differ = |output: &str| {
        let [x, y] = [find(a, output), find(b, output)].map(|t| t.map_or(Vec::new(), |t| t.lines));
        let same = x.iter().zip(&y).take_while(|(p, q)| p.text == q.text).count();
        if same == x.len() && same == y.len() && !x.is_empty() {
            return None;
        }
        // A step stands before the value that it makes.
        let value = x[same.min(x.len())..].iter().find_map(|l| l.name.clone());
        let line = |l: &[FingerprintLine]| l.get(same).map(|l| l.text.trim().to_string());
        Some(BitsDiffer {
            output: output.to_string(),
            value: value.unwrap_or_else(|| output.to_string()),
            lines: [line(&x), line(&y)],
        })
    };
    outputs.into_iter().filter_map(differ).collect()
}
