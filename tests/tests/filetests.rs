//! Runs every `.mir` file of `tests/filetests`; `tests/filetests/README.md` describes the format.

use libtest_mimic::{Arguments, Failed, Trial};
use moec_ir::graph::{self, Graph};
use moec_ir::target::Target;
use moec_passes::CompileOptions;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("filetests")
}

fn main() {
    let args = Arguments::from_args();
    let mut files = Vec::new();
    collect(&folder(), &mut files);
    files.sort();
    let trials = files.into_iter().map(|path| {
        let name = path.strip_prefix(folder()).unwrap_or(&path).with_extension("").to_string_lossy().into_owned();
        Trial::test(name.clone(), move || run(&path, &name))
    });
    libtest_mimic::run(&args, trials.collect()).exit();
}

fn collect(dir: &Path, out: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).expect("tests/filetests should be readable") {
        let path = entry.expect("tests/filetests should be readable").path();
        if path.is_dir() {
            collect(&path, out);
        } else if path.extension().is_some_and(|e| e == "mir") {
            out.push(path);
        }
    }
}

/// A directive of the header: `; key: value`.
fn directive<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    text.lines().find_map(|l| l.strip_prefix("; ")?.strip_prefix(key)?.strip_prefix(": ")).map(str::trim)
}

fn run(path: &Path, name: &str) -> Result<(), Failed> {
    let text = std::fs::read_to_string(path)?;
    let tests = directive(&text, "test").ok_or("no `; test:` line")?;
    let file = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    if tests == "error" {
        return expect_error(&file, &text);
    }
    let graph = graph::parse(&file, &text).map_err(|d| d.to_string())?;
    let problems = graph::verify(&graph);
    if !problems.is_empty() {
        return Err(format!("the graph is not valid: {problems:?}").into());
    }
    let target = directive(&text, "target").unwrap_or("cpu");
    let target = Target::by_name(target).ok_or_else(|| format!("no target `{target}`"))?;
    let tokens = directive(&text, "tokens").map_or(Ok(16), str::parse).map_err(|e| format!("tokens: {e}"))?;
    let mut out = String::new();
    for test in tests.split(',').map(str::trim) {
        out += &format!("; {test}\n{}\n", show(test, &graph, target, tokens)?);
    }
    let snapshot = std::panic::catch_unwind(|| {
        let mut settings = insta::Settings::clone_current();
        settings.set_snapshot_path(path.parent().unwrap_or(path));
        settings.set_prepend_module_to_snapshot(false);
        settings.set_omit_expression(true);
        settings.bind(|| insta::assert_snapshot!(name.rsplit('/').next().unwrap_or(name), out));
    });
    snapshot.map_err(|_| Failed::from("the snapshot differs; run with INSTA_UPDATE=always and read the diff"))
}

/// What a test of this name prints.
fn show(test: &str, graph: &Graph, target: &'static Target, tokens: u64) -> Result<String, Failed> {
    let variant = |opt_level: u8| {
        let options = CompileOptions { opt_level, tokens: (tokens, tokens), ..CompileOptions::default() };
        let variants = moec_passes::compile(graph, target, &options).map_err(|d| Failed::from(d.to_string()))?;
        variants.into_iter().next().ok_or_else(|| Failed::from("no variant"))
    };
    Ok(match test {
        "print" => graph::print(graph),
        "optimize" => graph::print(&variant(2)?.graph),
        "lower" => variant(0)?.program.to_string(),
        "tile" => variant(2)?.program.to_string(),
        "ptx" => {
            let images = moec_nvptx::emit(&variant(2)?.program, target).map_err(|d| d.to_string())?;
            images
                .iter()
                .map(|i| digest(&i.entry, &i.ptx, i.launch.block_threads, i.launch.dynamic_smem_bytes))
                .collect()
        }
        _ => return Err(format!("`{test}` is no test: print, optimize, lower, tile, ptx, error").into()),
    })
}

/// A kernel in numbers: launch, and how often each instruction stands in the text. Register numbers would change with
/// every release of LLVM; what the kernel is made of does not.
fn digest(entry: &str, ptx: &str, threads: u32, smem: u32) -> String {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for line in ptx.lines().map(str::trim) {
        let line = if line.starts_with('@') { line.split_once(' ').map_or("", |(_, rest)| rest.trim()) } else { line };
        let word = line.split([' ', '\t', ';']).next().unwrap_or("");
        let opcode = word.split('.').next().unwrap_or("");
        let tensor = [
            "mma", "ldmatrix", "cp", "wgmma", "tcgen05", "mbarrier", "bar", "barrier", "shfl", "vote", "redux", "atom",
        ];
        if tensor.contains(&opcode) {
            *counts.entry(word).or_default() += 1;
        } else if !opcode.is_empty() && opcode.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit()) {
            *counts.entry(opcode).or_default() += 1;
        }
    }
    let mut out = format!("{entry}: {threads} threads, {smem} bytes of dynamic shared memory\n");
    for (word, n) in counts {
        let _ = writeln!(out, "  {n:>5} {word}");
    }
    out
}

/// The graph is refused with the code that stands on the guilty line as `; error: CODE`.
fn expect_error(file: &str, text: &str) -> Result<(), Failed> {
    let mut expected = Vec::new();
    for (i, line) in text.lines().enumerate() {
        if let Some((_, code)) = line.split_once("; error: ") {
            expected.push((i + 1, code.trim().to_string()));
        }
    }
    let found: Vec<moec_ir::Diagnostic> = match graph::parse(file, text) {
        Ok(graph) => graph::verify(&graph),
        Err(d) => vec![d],
    };
    let line_of = |at: usize| text.get(..at).map_or(0, |before| before.matches('\n').count() + 1);
    let mut found: Vec<(usize, String)> =
        found.into_iter().map(|d| (d.origin.map_or(0, |o| line_of(o.start)), d.code)).collect();
    found.sort();
    // A diagnostic about the whole graph has no line; its code may stand on any.
    let fits = found.len() == expected.len()
        && expected.iter().all(|(line, code)| found.iter().any(|(l, c)| c == code && (*l == *line || *l == 0)));
    if fits { Ok(()) } else { Err(format!("found {found:?} instead of {expected:?}").into()) }
}
