//! Every diagnostic code has a page with a meaning, and a test that provokes it.

use moec_ir::diag::CODES;
use std::path::{Path, PathBuf};

/// Codes that no test on an ordinary machine can provoke, and why.
const NOT_PROVOKED: &[(&str, &str)] = &[
    ("internal-error", "a bug of moec"),
    ("out-of-memory", "needs a machine without memory"),
    ("checkpoint-unreadable", "needs a file that this user may not read"),
    ("cpu-jit-host", "needs another processor than x86-64"),
    ("device-not-built-in", "needs another build of the loader"),
    ("unsupported-op", "every operation has a kernel today; graphs of one operation that has none would be invalid"),
    ("weight-type-unsupported", "needs a checkpoint of integer weights"),
    ("graph-not-json", "a file that is not JSON is told as a config that is not JSON"),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn sources(dir: &Path, out: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).expect("the workspace should be readable") {
        let path = entry.expect("the workspace should be readable").path();
        let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        if path.is_dir() && name != "target" && !name.starts_with('.') && name != "conformance" && name != "corpus" {
            sources(&path, out);
        } else if name.ends_with(".rs") || name.ends_with(".mir") {
            out.push(path);
        }
    }
}

/// The part of a file that is tests: all of it in a folder `tests`, what follows `#[cfg(test)]` elsewhere.
fn test_text(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let in_tests =
        path.components().any(|c| ["tests", "filetests"].contains(&c.as_os_str().to_string_lossy().as_ref()));
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    if name == "codes.rs" {
        String::new()
    } else if in_tests || name == "tests.rs" {
        text
    } else {
        text.split_once("#[cfg(test)]").map(|(_, tests)| tests.to_string()).unwrap_or_default()
    }
}

#[test]
fn every_code_has_a_page_with_a_meaning() {
    for page in CODES {
        let (title, rest) = page.page.split_once('\n').unwrap_or((page.page, ""));
        assert_eq!(title, format!("# {}", page.code));
        assert!(rest.trim().len() > 40, "the page of `{}` should say what it means", page.code);
    }
}

#[test]
fn every_code_has_a_test_that_provokes_it() {
    let mut files = Vec::new();
    sources(&root(), &mut files);
    let texts: Vec<String> = files.iter().map(|f| test_text(f)).collect();
    let provoked = |code: &str| {
        let (quoted, noted) = (format!("\"{code}\""), format!("error: {code}\n"));
        texts.iter().any(|t| t.contains(&quoted) || t.contains(&noted))
    };
    let missing: Vec<&str> = CODES.iter().map(|c| c.code).filter(|c| !provoked(c)).collect();
    let excused: Vec<&str> = NOT_PROVOKED.iter().map(|(c, _)| *c).collect();
    let wrong: Vec<&&str> = missing.iter().filter(|c| !excused.contains(c)).collect();
    assert!(wrong.is_empty(), "no test provokes {wrong:?}");
}
