//! `moec check A B`: whether two bundles give the same bits, by their fingerprints.

use crate::commands::subject;
use crate::output::{self, Ended, Outcome};
use moec::{Bundle, Diagnostic};
use moec_bundle::manifest::TargetEntry;
use moec_bundle::{BitsDiffer, compare_fingerprints};
use std::path::Path;

/// One comparison: the targets of both bundles, and where they differ.
struct Compared {
    targets: [String; 2],
    differ: Vec<BitsDiffer>,
}

pub fn run(a: &Path, b: &Path, json: bool) -> Outcome {
    let [a, b] = [(a, subject::bundle(a)?), (b, subject::bundle(b)?)];
    let pairs = subject::target_pairs([(a.0, &a.1), (b.0, &b.1)]).map_err(|d| vec![d])?;
    let mut all = Vec::new();
    for (x, y) in pairs {
        let texts = [text(a.0, &a.1, x)?, text(b.0, &b.1, y)?];
        let targets = [x.name.clone(), y.name.clone()];
        all.push(Compared { targets, differ: compare_fingerprints(&texts[0], &texts[1]) });
    }
    let same = all.iter().all(|c| c.differ.is_empty());
    if json {
        output::print(&format!("{:#}\n", as_json(same, &all)));
    } else {
        output::print(&all.iter().map(paragraph).collect::<String>());
    }
    Ok(if same { Ended::Well } else { Ended::WithFindings })
}

fn text(
    path: &Path,
    bundle: &Bundle,
    target: &TargetEntry,
) -> Result<Vec<moec_bundle::FingerprintText>, Vec<Diagnostic>> {
    let not_comparable = |what: String| {
        vec![
            Diagnostic::input("bundles-not-comparable", what)
                .note("fingerprints of two versions of the text say nothing about each other")
                .help("compile the layer again with this version of moec"),
        ]
    };
    if let Some(print) = &target.fingerprint
        && print.version != moec_bundle::FINGERPRINT_VERSION
    {
        let (found, read) = (print.version, moec_bundle::FINGERPRINT_VERSION);
        let what = format!("the fingerprint of `{}` has version {found}, and this moec reads {read}", path.display());
        return Err(not_comparable(what));
    }
    let texts = bundle.fingerprint(target).map_err(|d| vec![d])?;
    texts.ok_or_else(|| not_comparable(format!("`{}` has no fingerprint for `{}`", path.display(), target.name)))
}

fn paragraph(c: &Compared) -> String {
    let [a, b] = &c.targets;
    let title = if a == b { a.clone() } else { format!("{a} and {b}") };
    if c.differ.is_empty() {
        // Within an instruction, tensor cores of two chips may sum in other ways.
        return format!("{title}: the same bits on one machine\n");
    }
    let line = |l: &Option<String>| l.clone().unwrap_or_else(|| "nothing".to_string());
    let one = |d: &BitsDiffer| {
        let [x, y] = [&d.lines[0], &d.lines[1]].map(line);
        format!("  `{}` differs, first at `{}`:\n    - {x}\n    + {y}\n", d.output, d.value)
    };
    format!("{title}: not the same bits\n{}", c.differ.iter().map(one).collect::<String>())
}

fn as_json(same: bool, all: &[Compared]) -> serde_json::Value {
    let differ = |d: &BitsDiffer| serde_json::json!({ "output": d.output, "value": d.value, "lines": d.lines });
    let one = |c: &Compared| serde_json::json!({ "targets": c.targets, "differ": c.differ.iter().map(differ).collect::<Vec<_>>() });
    serde_json::json!({ "same": same, "targets": all.iter().map(one).collect::<Vec<_>>() })
}
