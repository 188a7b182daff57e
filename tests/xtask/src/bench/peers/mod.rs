//! `cargo xtask bench --peers`: layers on the CPU, moec and other engines by turns.
//!
//! Every engine has a program that keeps a layer in memory and runs it on request; all have the same weights, get the same tokens and
//! experts, and take turns. `run.py` asks them and writes down what they took and how far their results are from moec's;
//! [`table`] believes the times of those that agree. Installed and measured below `target/bench-peers`, with a C++ compiler and Python 3.10
//! or later.

mod engines;
mod install;
mod table;

use crate::places;
use anyhow::{Context, Result, bail, ensure};
use engines::{Format, Model};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What `cargo xtask bench --peers` takes beside.
#[derive(clap::Args)]
pub struct Comparison {
    /// Layers [default: all].
    #[arg(long, requires = "peers", value_delimiter = ',', value_enum)]
    layers: Vec<Model>,
    /// Formats of weights, for each of the layers [default: all for qwen3, bf16 for mixtral, mxfp4 for gpt-oss].
    #[arg(long, requires = "peers", value_delimiter = ',', value_enum)]
    formats: Vec<Format>,
    /// Numbers of tokens, up to 1024.
    #[arg(long, requires = "peers", value_delimiter = ',', default_value = "1,16,64,512", value_parser = clap::value_parser!(u64).range(1..=1024))]
    tokens: Vec<u64>,
    /// Rounds in which every engine runs once.
    #[arg(long, requires = "peers", default_value = "9", value_parser = clap::value_parser!(u64).range(1..))]
    pairs: u64,
    /// Threads of every engine.
    #[arg(long, requires = "peers", default_value = "2", value_parser = clap::value_parser!(u64).range(1..))]
    threads: u64,
    /// Give engines real-time priority while they run: other programs, builds for instance, then wait for them (needs to be root).
    #[arg(long, requires = "peers")]
    realtime: bool,
}

/// Installs, runs, prints the tables and writes them; `false` when an engine does not agree with moec, or moec itself failed.
///
/// # Errors
/// When moec's own programs cannot be built, or Python is missing. Where a peer cannot be had, the table says so.
pub fn run(options: &Comparison) -> Result<bool> {
    let home = places::target_dir().join("bench-peers");
    std::fs::create_dir_all(&home)?;
    let peers = install::all(&home);
    let examples = moec()?;
    let layers = if options.layers.is_empty() { Model::ALL.to_vec() } else { options.layers.clone() };
    let mut jobs = Vec::new();
    for model in layers {
        let formats = if options.formats.is_empty() { model.formats() } else { &options.formats };
        jobs.extend(formats.iter().map(|&format| job(options, model, format, &peers, &examples)));
    }
    let answers = ask(&jobs, &home)?;
    let rows = table::rows(&answers)?;
    let about = About {
        machine: machine(),
        packages: install::PACKAGES.join(", "),
        command: format!("cargo xtask {}", std::env::args().skip(1).collect::<Vec<_>>().join(" ")),
        threads: options.threads,
        pairs: options.pairs,
        missing: peers.missing(),
    };
    let text = table::markdown(&about, &rows);
    println!("{text}");
    std::fs::write(home.join("results.md"), &text)?;
    std::fs::write(home.join("results.json"), serde_json::to_string_pretty(&table::json(&about, &rows))?)?;
    println!("written to {}/results.md and .json; single runs are in answers.json there", home.display());
    Ok(table::is_good(&rows))
}

/// What a table is about.
struct About {
    machine: String,
    packages: String,
    command: String,
    threads: u64,
    pairs: u64,
    /// Engines that could not be had, and why.
    missing: Vec<(String, String)>,
}

/// Builds moec's programs; gives their folder.
fn moec() -> Result<PathBuf> {
    let args = ["build", "--release", "-p", "moec-cpu", "--example", "layer_times", "--example", "plain_read"];
    ensure!(places::cargo().args(args).status().context("cannot run cargo")?.success(), "moec does not build");
    Ok(places::target_dir().join("release/examples"))
}

/// What `run.py` is told of one layer in one format.
fn job(
    options: &Comparison,
    model: Model,
    format: Format,
    peers: &install::Peers,
    examples: &Path,
) -> serde_json::Value {
    let (size, threads) = (model.size(), options.threads.to_string());
    let moec = json!({
        "name": "moec",
        "command": [examples.join("layer_times"), model.name(), format.name(), threads, "FOLDER"],
    });
    let sizes = [size.experts, size.top_k, size.hidden, size.ffn, u64::from(size.oai)].map(|n| n.to_string());
    let peers = format.peers().iter().filter_map(|peer| {
        let program = peers.command(peer.package)?;
        let numbers = sizes.iter().cloned().chain([size.scale.to_string(), threads.clone(), "FOLDER".to_string()]);
        let command: Vec<String> = program
            .into_iter()
            .chain([format.name().to_string()])
            .chain(numbers)
            .chain([peer.way.to_string()])
            .collect();
        Some(json!({ "name": peer.name, "command": command }))
    });
    json!({
        "model": model.name(),
        "format": format.name(),
        "layer": {
            "experts": size.experts, "top_k": size.top_k, "hidden": size.hidden, "ffn": size.ffn,
            "oai": size.oai, "scale": size.scale,
        },
        "threads": options.threads,
        "tokens": options.tokens,
        "pairs": options.pairs,
        "realtime": options.realtime,
        "reader": json!([examples.join("plain_read"), threads]),
        "engines": std::iter::once(moec).chain(peers).collect::<Vec<_>>(),
    })
}

/// Has the jobs run, and gives the answers.
fn ask(jobs: &[serde_json::Value], home: &Path) -> Result<Vec<table::Answer>> {
    let (list, answers) = (home.join("jobs.json"), home.join("answers.json"));
    std::fs::write(&list, serde_json::to_string_pretty(jobs)?)?;
    let asked = Command::new("python3")
        .arg(scripts().join("run.py"))
        .args([&list, &answers])
        // The programs by turns are asked as `pair.py` asks two builds of moec.
        .env("PYTHONPATH", places::root().join("backends/cpu/examples"))
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .status()
        .context("cannot start python3")?;
    if !asked.success() {
        bail!("the programs could not be asked");
    }
    Ok(serde_json::from_str(&std::fs::read_to_string(answers)?)?)
}

/// Where the programs in Python and C++ lie.
fn scripts() -> PathBuf {
    places::root().join("tests/xtask/src/bench/peers")
}

/// The processor, and how many of its cores there are.
fn machine() -> String {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let of =
        |key: &str| text.lines().find(|l| l.starts_with(key)).and_then(|l| l.split(": ").nth(1)).unwrap_or("unknown");
    format!("{} (family {}, model {}), {cores} cores", of("model name"), of("cpu family"), of("model\t"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use table::Judged;

    /// A job of a small layer with programs that stand in for engines.
    #[cfg(target_os = "linux")]
    #[test]
    fn programs_take_turns_and_one_that_disagrees_or_ends_has_no_ratio() {
        if !Command::new("python3").arg("--version").output().is_ok_and(|out| out.status.success()) {
            println!("skipped: no python");
            return;
        }
        let home = tempfile::tempdir().expect("there should be a place for files");
        let fake = scripts().join("fake_engine.py");
        let engine = |name: &str, args: &[&str]| {
            let command: Vec<String> =
                [&["python3", &fake.to_string_lossy(), "64"], args].concat().iter().map(|w| w.to_string()).collect();
            json!({ "name": name, "command": command })
        };
        let reader = ["sh", "-c", "echo ready; while read bytes; do echo 0.001 0.001; done"];
        let job = json!({
            "model": "small", "format": "bf16", "threads": 1, "tokens": [1, 4], "pairs": 2, "realtime": false, "reader": reader,
            "layer": { "experts": 4, "top_k": 2, "hidden": 64, "ffn": 32, "oai": false, "scale": 1.0 },
            "engines": [
                engine("moec", &["1"]),
                engine("ggml BF16", &["1.001"]),
                engine("torch grouped_mm", &["-1"]),
                engine("torch linear", &["1", "1"]),
            ],
        });
        let rows =
            table::rows(&ask(&[job], home.path()).expect("the programs should be asked")).expect("bf16 is known");
        assert_eq!(rows.len(), 6, "three peers with two numbers of tokens");
        let (one, four) = rows.split_at(3);
        for row in [&one[0], &four[0], &one[2]] {
            let Judged::Agrees { distance, least, most, .. } = row.judged else { panic!("{} agrees", row.peer) };
            assert!(distance < 2e-3 && least == 1.0 && most == 1.0);
        }
        for row in [&one[1], &four[1]] {
            assert!(matches!(row.judged, Judged::Disagrees { distance: Some(2.0), .. }), "{} disagrees", row.peer);
        }
        let Judged::Failed(why) = &four[2].judged else { panic!("{} has ended", four[2].peer) };
        assert_eq!(why, "it ended with code 1: no memory for so many tokens");
    }
}
