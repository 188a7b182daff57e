//! What two snapshots have that the other has not.

use crate::{Section, Snapshot};
use serde::Serialize;
use similar::{DiffOp, TextDiff};
use std::collections::BTreeMap;
use std::fmt;

/// Unchanged lines that are shown around changed ones.
const CONTEXT: usize = 2;

/// The sections in which two snapshots differ; none where they are equal.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// In the order of the first, then those that only the second has.
    pub changes: Vec<Change>,
}

/// A section that differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Change {
    /// Its title.
    pub section: String,
    /// Figures that differ: in the first and in the second, 0 where there is none.
    pub figures: BTreeMap<String, (u64, u64)>,
    /// Lines that only the first has.
    pub removed: usize,
    /// Lines that only the second has.
    pub added: usize,
    /// Both kinds as a unified diff.
    pub text: String,
}

impl Difference {
    /// Compares section by section.
    pub fn between(a: &Snapshot, b: &Snapshot) -> Difference {
        let empty = |title: &str| Section { title: title.to_string(), figures: BTreeMap::new(), lines: Vec::new() };
        let find = |s: &Snapshot, title: &str| s.sections.iter().find(|s| s.title == title).cloned();
        let only_second = b.sections.iter().filter(|s| find(a, &s.title).is_none());
        let titles = a.sections.iter().chain(only_second).map(|s| s.title.as_str());
        let sections = titles.map(|t| (find(a, t).unwrap_or_else(|| empty(t)), find(b, t).unwrap_or_else(|| empty(t))));
        Difference { changes: sections.filter(|(x, y)| x != y).map(|(x, y)| change(&x, &y)).collect() }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }
}

fn change(a: &Section, b: &Section) -> Change {
    let names = a.figures.keys().chain(b.figures.keys());
    let value = |s: &Section, name: &String| s.figures.get(name).copied().unwrap_or(0);
    let figures: BTreeMap<String, (u64, u64)> = names.map(|n| (n.clone(), (value(a, n), value(b, n)))).collect();
    let (x, y): (Vec<&str>, Vec<&str>) =
        (a.lines.iter().map(String::as_str).collect(), b.lines.iter().map(String::as_str).collect());
    let diff = TextDiff::from_slices(&x, &y);
    let count =
        |of: &dyn Fn(&DiffOp) -> usize| diff.ops().iter().filter(|o| !matches!(o, DiffOp::Equal { .. })).map(of).sum();
    let mut text = String::new();
    for group in diff.grouped_ops(CONTEXT) {
        let (Some(first), Some(last)) = (group.first(), group.last()) else { continue };
        let range = |start: usize, end: usize| format!("{},{}", start + 1, end - start);
        let old = range(first.old_range().start, last.old_range().end);
        let new = range(first.new_range().start, last.new_range().end);
        text += &format!("@@ -{old} +{new} @@\n");
        for change in group.iter().flat_map(|op| diff.iter_changes(op)) {
            text += &format!("{}{}\n", change.tag(), change.value());
        }
    }
    Change {
        section: a.title.clone(),
        figures: figures.into_iter().filter(|(_, (a, b))| a != b).collect(),
        removed: count(&|o| o.old_range().len()),
        added: count(&|o| o.new_range().len()),
        text,
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, c) in self.changes.iter().enumerate() {
            writeln!(f, "{}# {}", if i > 0 { "\n" } else { "" }, c.section)?;
            if !c.figures.is_empty() {
                let figures: Vec<String> = c.figures.iter().map(|(n, (a, b))| format!("{n} {a} -> {b}")).collect();
                writeln!(f, "{}", figures.join(", "))?;
            }
            f.write_str(&c.text)?;
        }
        Ok(())
    }
}
