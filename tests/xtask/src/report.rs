//! Reads the output of `cargo test` and counts what ran, by kind.

use std::collections::BTreeMap;

/// Reasons for which a test may skip itself. Any other reason makes the run fail, so that skips cannot pile up unseen.
const KNOWN_REASONS: [&str; 6] =
    ["no CUDA device", "no ptxas", "no python", "no C compiler", "no address sanitizer", "no MPI"];

/// Counts of one test binary or one crate's doc tests.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Row {
    /// Tests that ran and passed.
    pub passed: usize,
    /// Tests that failed.
    pub failed: usize,
    /// Tests that skipped themselves.
    pub skipped: usize,
    /// Seconds, as the test binary prints them.
    pub seconds: f64,
}

/// What a run of `cargo test` did so far.
#[derive(Debug, Default)]
pub struct Report {
    /// Counts by (kind, crate or binary).
    pub rows: BTreeMap<(String, String), Row>,
    /// How many tests gave each reason for skipping.
    pub skips: BTreeMap<String, usize>,
    /// Names of the tests that failed.
    pub failures: Vec<String>,
    current: Option<(String, String)>,
}

impl Report {
    /// Takes one line of the merged output. Returns whether it is worth showing while the tests run.
    pub fn line(&mut self, line: &str) -> bool {
        let text = line.trim();
        if let Some(what) = text.strip_prefix("Running ") {
            self.current = Some(kind_of(what));
            return true;
        }
        if let Some(what) = text.strip_prefix("Doc-tests ") {
            self.current = Some(("doc".to_string(), what.replace('_', "-")));
            return true;
        }
        if let Some(reason) = text.strip_prefix("skipped: ") {
            self.skip(reason);
            return false;
        }
        if let Some(rest) = text.strip_prefix("test ") {
            if let Some((_, reason)) = rest.split_once(" ... ignored, ") {
                *self.skips.entry(reason.to_string()).or_default() += 1;
            } else if let Some((name, _)) = rest.split_once(" ... FAILED") {
                self.failures.push(name.trim().to_string());
                return true;
            } else if rest.starts_with("result: ") {
                self.result(rest);
                return true;
            }
            return false;
        }
        text.starts_with("error") || text.starts_with("warning: unused") || text.starts_with("Compiling moec")
    }

    /// A test that passed and said on its output that it did nothing: it counts as skipped, not as passed.
    fn skip(&mut self, reason: &str) {
        *self.skips.entry(reason.to_string()).or_default() += 1;
        if let Some(key) = self.current.clone() {
            self.rows.entry(key).or_default().skipped += 1;
        }
    }

    fn result(&mut self, rest: &str) {
        let Some(key) = self.current.clone() else { return };
        let count = |word: &str| -> usize {
            let words: Vec<&str> = rest.split([' ', ';']).filter(|w| !w.is_empty()).collect();
            words.windows(2).find(|w| w[1] == word).and_then(|w| w[0].parse().ok()).unwrap_or(0)
        };
        let row = self.rows.entry(key).or_default();
        // Tests that printed `skipped:` are among the passed ones of the binary's own count.
        row.passed += count("passed").saturating_sub(row.skipped);
        row.skipped += count("ignored");
        row.failed += count("failed");
        row.seconds += rest
            .split_once("finished in ")
            .and_then(|(_, s)| s.trim_end_matches('s').parse::<f64>().ok())
            .unwrap_or(0.0);
    }

    /// Reasons for skipping that nobody has agreed to.
    pub fn unknown_reasons(&self) -> Vec<&str> {
        let known = |reason: &str| KNOWN_REASONS.iter().any(|k| reason.starts_with(k));
        self.skips.keys().map(String::as_str).filter(|r| !known(r)).collect()
    }

    /// Whether nothing failed.
    pub fn is_green(&self) -> bool {
        self.failures.is_empty() && self.rows.values().all(|r| r.failed == 0) && self.unknown_reasons().is_empty()
    }

    /// The table of kinds, and why tests were skipped.
    pub fn table(&self) -> String {
        let mut out =
            format!("{:<14} {:<22} {:>7} {:>7} {:>8} {:>9}\n", "kind", "of", "passed", "failed", "skipped", "seconds");
        let mut total = Row::default();
        for ((kind, name), row) in &self.rows {
            total.passed += row.passed;
            total.failed += row.failed;
            total.skipped += row.skipped;
            total.seconds += row.seconds;
            if row.passed + row.failed + row.skipped > 0 {
                out += &table_row(kind, name, row);
            }
        }
        out += &table_row("total", "", &total);
        for (reason, n) in &self.skips {
            out += &format!("skipped {n}: {reason}\n");
        }
        out
    }
}

fn table_row(kind: &str, name: &str, row: &Row) -> String {
    format!("{kind:<14} {name:<22} {:>7} {:>7} {:>8} {:>9.1}\n", row.passed, row.failed, row.skipped, row.seconds)
}

/// Kind and name from `unittests src/lib.rs (target/debug/deps/moec_ir-0a1b)` or `tests/layering.rs (…)`.
fn kind_of(what: &str) -> (String, String) {
    let (source, binary) = what.split_once(" (").unwrap_or((what, ""));
    let name = binary.trim_end_matches(')').rsplit('/').next().unwrap_or("");
    let name = name.rsplit_once('-').map_or(name, |(n, _)| n).replace('_', "-");
    match source.strip_prefix("unittests ") {
        Some(_) => ("unit".to_string(), name),
        None => {
            let stem = source.rsplit('/').next().unwrap_or(source).trim_end_matches(".rs");
            (stem.to_string(), source.split("/tests/").next().unwrap_or(source).trim_end_matches(".rs").to_string())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tests_are_counted_by_kind() {
        let mut r = Report::default();
        for line in [
            "     Running unittests src/lib.rs (target/debug/deps/moec_ir-0a1b)",
            "test shape::a ... ok",
            "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.25s",
            "     Running tests/layering.rs (target/debug/deps/layering-0a1b)",
            "skipped: no ptxas, see moec doctor",
            "test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s",
        ] {
            r.line(line);
        }
        assert_eq!(
            r.rows[&("unit".to_string(), "moec-ir".to_string())],
            Row { passed: 3, failed: 0, skipped: 1, seconds: 0.25 }
        );
        let layering = r.rows.iter().find(|((kind, _), _)| kind == "layering").map(|(_, row)| row.clone());
        assert_eq!(layering, Some(Row { passed: 1, failed: 0, skipped: 1, seconds: 0.0 }));
        assert!(r.is_green());
    }

    #[test]
    fn an_unknown_reason_for_skipping_fails_the_run() {
        let mut r = Report::default();
        r.line("test slow_one ... ignored, takes too long");
        assert!(!r.is_green());
    }

    #[test]
    fn a_failure_is_named() {
        let mut r = Report::default();
        r.line("test shape::b ... FAILED");
        assert_eq!(r.failures, ["shape::b"]);
        assert!(!r.is_green());
    }
}
