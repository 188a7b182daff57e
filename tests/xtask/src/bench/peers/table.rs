//! What the answers of the programs say: whose times are believed, and their ratios.

use super::About;
use super::engines::{Format, Peer};
use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::json;
use std::collections::BTreeMap;
use std::fmt::Write;

/// What others may take of the processors, in hundredths. Threads that spin while they wait for each other (OpenMP's, in ggml and PyTorch)
/// take many times as long where one of them has no processor; threads that yield or sleep do not.
const QUIET: f64 = 10.0;

/// What `run.py` found out about a layer in a format.
#[derive(Deserialize)]
pub struct Answer {
    model: String,
    format: String,
    /// Programs that stopped answering, and why.
    failed: BTreeMap<String, String>,
    /// The share of the processors that everybody else took while programs ran.
    others: f64,
    runs: Vec<Run>,
}

/// All rounds with one number of tokens.
#[derive(Deserialize)]
struct Run {
    tokens: u64,
    /// Of weights in moec's format that the tokens' experts have, for each round.
    bytes: Vec<f64>,
    /// Of plain reads between the runs.
    read_bytes_per_second: Vec<f64>,
    /// Seconds of each program that answered in all rounds. Those of the clock: of the processor, Linux tells a process no more exactly
    /// than by ticks.
    wall: BTreeMap<String, Vec<f64>>,
    /// Of each result from moec's; `None` is infinite.
    distance: BTreeMap<String, Option<f64>>,
}

/// A line of the table: moec beside one peer.
pub struct Row {
    model: String,
    format: String,
    tokens: u64,
    moec_ms: Option<f64>,
    /// Bytes of weights a second in moec, over those of a plain read.
    read_share: Option<f64>,
    read_gb_per_second: f64,
    others: f64,
    pub peer: &'static str,
    aim: Option<f64>,
    pub judged: Judged,
}

/// What is believed of a peer.
pub enum Judged {
    /// Its results are moec's, so far as formats go; its time over moec's in neighbouring runs.
    Agrees { distance: f64, ms: f64, least: f64, median: f64, most: f64 },
    /// Its results are others, so that its times say nothing.
    Disagrees { distance: Option<f64>, tolerance: f64 },
    /// It has no times, for this reason.
    Failed(String),
    /// It was not there.
    Missing,
}

/// The lines for all answers.
///
/// # Errors
/// When an answer is about a format that there is not.
pub fn rows(answers: &[Answer]) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for answer in answers {
        let format =
            Format::from_name(&answer.format).with_context(|| format!("no format is called {}", answer.format))?;
        for run in &answer.runs {
            rows.extend(format.peers().iter().map(|peer| row(answer, run, peer)));
        }
    }
    Ok(rows)
}

/// Whether moec ran, and every engine that did agrees with it.
pub fn is_good(rows: &[Row]) -> bool {
    rows.iter().all(|row| row.moec_ms.is_some() && !matches!(row.judged, Judged::Disagrees { .. }))
}

fn row(answer: &Answer, run: &Run, peer: &Peer) -> Row {
    let moec = run.wall.get("moec");
    let read = median(run.read_bytes_per_second.iter().copied());
    let share = |wall: &Vec<f64>| median(run.bytes.iter().zip(wall).map(|(bytes, wall)| bytes / wall)) / read;
    Row {
        model: answer.model.clone(),
        format: answer.format.clone(),
        tokens: run.tokens,
        moec_ms: moec.map(|wall| 1e3 * median(wall.iter().copied())),
        read_share: moec.map(share),
        read_gb_per_second: read / 1e9,
        others: answer.others,
        peer: peer.name,
        aim: peer.aim(run.tokens),
        judged: judge(answer, run, peer),
    }
}

fn judge(answer: &Answer, run: &Run, peer: &Peer) -> Judged {
    let Some(moec) = run.wall.get("moec") else {
        let why = answer.failed.get("moec").map_or("it has no times", String::as_str);
        return Judged::Failed(format!("nothing to compare with, moec failed: {why}"));
    };
    // Results come first: a program that computes something else, or nothing, may do so in any time.
    if let Some(&distance) = run.distance.get(peer.name)
        && distance.is_none_or(|far| far > peer.tolerance)
    {
        return Judged::Disagrees { distance, tolerance: peer.tolerance };
    }
    let times = run.wall.get(peer.name).zip(run.distance.get(peer.name).copied().flatten());
    let Some((wall, distance)) = times else {
        return answer.failed.get(peer.name).map_or(Judged::Missing, |why| Judged::Failed(why.clone()));
    };
    let ratios: Vec<f64> = wall.iter().zip(moec).map(|(peer, moec)| peer / moec).collect();
    Judged::Agrees {
        distance,
        ms: 1e3 * median(wall.iter().copied()),
        least: ratios.iter().copied().fold(f64::INFINITY, f64::min),
        most: ratios.iter().copied().fold(0.0, f64::max),
        median: median(ratios),
    }
}

/// Of an even number the mean of the middle two, as Python has it.
fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut sorted: Vec<f64> = values.into_iter().collect();
    sorted.sort_by(f64::total_cmp);
    let (low, high) = (sorted.len().saturating_sub(1) / 2, sorted.len() / 2);
    sorted.get(low).zip(sorted.get(high)).map_or(f64::NAN, |(a, b)| (a + b) / 2.0)
}

/// The tables as text.
pub fn markdown(about: &About, rows: &[Row]) -> String {
    let About { machine, packages, command, threads, pairs, missing } = about;
    let mut text =
        format!("{machine}; {threads} threads; medians of {pairs} rounds. {packages}.\n\n```\n{command}\n```\n");
    let (reads, others) = (rows.iter().map(|r| r.read_gb_per_second), rows.iter().map(|r| r.others));
    let (read, others) = (median(reads), 100.0 * median(others));
    let _ = write!(
        text,
        "\nA plain read reached {read:.1} GB/s; other programs took {others:.0} % of the processors meanwhile.\n"
    );
    if others > QUIET {
        text += "The machine was too busy for these ratios: engines whose threads spin suffer most from that.\n";
    }
    for (package, why) in missing {
        let _ = write!(text, "\n{package} could not be had: {why}\n");
    }
    for group in rows.chunk_by(|a, b| a.model == b.model) {
        let model = &group[0].model;
        let _ = write!(text, "\n**{model}**\n\n");
        text += "| weights | T | ms moec | of a plain read | beside | ms | min | median | max | aim |\n";
        text += "|---|--:|--:|--:|---|--:|--:|--:|--:|--:|\n";
        for row in group {
            line(&mut text, row);
        }
    }
    text
}

fn line(text: &mut String, row: &Row) {
    let ms = row.moec_ms.map_or("–".to_string(), |ms| format!("{ms:.2}"));
    let share = row.read_share.map_or("–".to_string(), |share| format!("{:.0} %", 100.0 * share));
    let aim = row.aim.map_or(String::new(), |aim| format!("{aim}"));
    let beside = match &row.judged {
        Judged::Agrees { ms, least, median, most, .. } => format!("{ms:.2} | {least:.2} | **{median:.2}** | {most:.2}"),
        Judged::Disagrees { distance, tolerance } => {
            let far = distance.map_or("infinitely far".to_string(), |far| format!("{far:.1e}"));
            format!("other results: {far} from moec's, of {tolerance:.0e} | | |")
        }
        Judged::Failed(why) => format!("{} | | |", why.replace('|', "/")),
        Judged::Missing => "not there | | |".to_string(),
    };
    let (format, tokens, peer) = (&row.format, row.tokens, row.peer);
    let _ = writeln!(text, "| {format} | {tokens} | {ms} | {share} | {peer} | {beside} | {aim} |");
}

/// The tables as data.
pub fn json(about: &About, rows: &[Row]) -> serde_json::Value {
    let missing: BTreeMap<_, _> = about.missing.iter().cloned().collect();
    json!({
        "machine": about.machine, "packages": about.packages, "command": about.command,
        "threads": about.threads, "pairs": about.pairs, "missing": missing,
        "rows": rows.iter().map(|row| json!({
            "layer": row.model, "weights": row.format, "tokens": row.tokens, "moec_ms": row.moec_ms,
            "read_share": row.read_share, "read_gb_per_second": row.read_gb_per_second, "others": row.others,
            "peer": row.peer, "aim": row.aim, "result": judged_json(&row.judged),
        })).collect::<Vec<_>>(),
    })
}

fn judged_json(judged: &Judged) -> serde_json::Value {
    match judged {
        Judged::Agrees { distance, ms, least, median, most } => {
            json!({"distance": distance, "ms": ms, "ratio": {"min": least, "median": median, "max": most}})
        }
        Judged::Disagrees { distance, tolerance } => {
            json!({"disagrees": {"distance": distance, "tolerance": tolerance}})
        }
        Judged::Failed(why) => json!({"failed": why}),
        Judged::Missing => json!({"missing": true}),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two rounds of a layer in bf16: ggml agrees, grouped_mm gives other results in half the time, `linear` has ended.
    const RECORDED: &str = r#"[{"model": "qwen3", "format": "bf16", "failed": {"torch linear": "it ended with code -9"}, "others": 0.25, "runs": [{
        "tokens": 16, "bytes": [4e8, 5e8], "read_bytes_per_second": [4e10, 6e10, 5e10],
        "wall": {"moec": [0.02, 0.04], "ggml BF16": [0.03, 0.05], "torch grouped_mm": [0.01, 0.02]},
        "distance": {"ggml BF16": 0.004, "torch grouped_mm": 0.4}}]}]"#;

    fn about() -> About {
        About {
            machine: "a machine".to_string(),
            packages: "ggml==1".to_string(),
            command: "cargo xtask bench --peers".to_string(),
            threads: 2,
            pairs: 2,
            missing: vec![("torch==2".to_string(), "pip cannot install it".to_string())],
        }
    }

    fn table(recorded: &str) -> (Vec<Row>, String) {
        let answers: Vec<Answer> =
            serde_json::from_str(recorded).expect("the recorded answers should be as run.py writes them");
        let rows = rows(&answers).expect("the format should be known");
        let text = markdown(&about(), &rows);
        (rows, text)
    }

    #[test]
    fn ratios_are_of_neighbouring_runs_and_the_read_share_is_of_the_same_run() {
        let (_, text) = table(RECORDED);
        assert!(text.contains("The machine was too busy for these ratios"), "{text}");
        assert!(!table(&RECORDED.replace("0.25", "0.05")).1.contains("too busy"));
        assert!(text.contains("A plain read reached 50.0 GB/s; other programs took 25 % of the processors"), "{text}");
        // 0.03 / 0.02 and 0.05 / 0.04; 4e8 / 0.02 and 5e8 / 0.04 bytes a second, in the middle 1.625e10 of 5e10.
        assert!(
            text.contains("| bf16 | 16 | 30.00 | 32 % | ggml BF16 | 40.00 | 1.25 | **1.38** | 1.50 | 1.2 |"),
            "{text}"
        );
    }

    #[test]
    fn an_engine_that_disagrees_has_no_ratio_however_fast_it_is() {
        let (rows, text) = table(RECORDED);
        assert!(
            text.contains("| torch grouped_mm | other results: 4.0e-1 from moec's, of 2e-2 | | | | 2.3 |"),
            "{text}"
        );
        let grouped = rows.iter().find(|r| r.peer == "torch grouped_mm").expect("the peer should have a line");
        assert!(matches!(grouped.judged, Judged::Disagrees { distance: Some(0.4), .. }));
        assert!(!is_good(&rows) && is_good(&table(&RECORDED.replace("0.4}", "0.004}")).0));
        let (rows, _) = table(&RECORDED.replace("\"torch grouped_mm\": 0.4", "\"torch grouped_mm\": null"));
        assert!(matches!(rows[1].judged, Judged::Disagrees { distance: None, .. }), "NaN should disagree");
    }

    #[test]
    fn an_engine_without_a_compared_result_is_not_believed() {
        let (rows, _) = table(&RECORDED.replace("\"ggml BF16\": 0.004, ", ""));
        assert!(matches!(rows[0].judged, Judged::Missing));
    }

    #[test]
    fn engines_that_ended_or_could_not_be_had_are_named() {
        let (_, text) = table(RECORDED);
        assert!(text.contains("| torch linear | it ended with code -9 | | | |  |"), "{text}");
        assert!(text.contains("torch==2 could not be had: pip cannot install it"), "{text}");
        let (_, text) = table(&RECORDED.replace("\"torch linear\": \"it ended with code -9\"", ""));
        assert!(text.contains("| torch linear | not there | | | |  |"), "{text}");
    }

    #[test]
    fn without_moec_nothing_is_compared() {
        let gone = RECORDED.replace("{\"moec\": [0.02, 0.04], ", "{");
        let (rows, text) = table(&gone);
        assert!(rows.iter().all(|row| matches!(row.judged, Judged::Failed(_))), "{text}");
        assert!(!is_good(&rows));
    }
}
