//! What was measured, for people and for programs.

use super::counted::{self, Counted};
use crate::output;
use moec::{Diagnostic, Layer};
use moec_bundle::manifest::{KernelEntry, Variant};
use moec_ir::tile::Role;
use moec_ptx::exec::Counters;
use moec_runtime::Times;
use serde_json::{Value, json};

/// What was measured on.
pub(super) struct On {
    /// As the user named it.
    pub device: String,
    /// What the layer was compiled for.
    pub target: String,
    /// Of the CPU.
    pub threads: Option<usize>,
    /// GB/s of plain reads of memory, on a GPU of copies (read and written bytes together); `None` on an emulator.
    pub memory: Option<Spread>,
}

/// Least, middle and greatest of some figures.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Spread {
    pub min: f64,
    pub median: f64,
    pub max: f64,
}

impl Spread {
    /// Of at least one figure; zeros of none.
    pub fn of(figures: &[f64]) -> Spread {
        let mut sorted = figures.to_vec();
        sorted.sort_by(f64::total_cmp);
        let at = |i: usize| sorted.get(i).copied().unwrap_or(0.0);
        let n = sorted.len();
        let median = if n.is_multiple_of(2) { (at((n / 2).saturating_sub(1)) + at(n / 2)) / 2.0 } else { at(n / 2) };
        Spread { min: at(0), median, max: at(n.saturating_sub(1)) }
    }

    fn json(&self) -> Value {
        json!({ "min": self.min, "median": self.median, "max": self.max })
    }
}

/// The layer, or one of its kernels.
struct Line {
    name: String,
    /// Milliseconds.
    times: Spread,
    /// Bytes of weights that are read, of the experts that have tokens; `None` where these are not known.
    weights: Option<f64>,
    /// On an emulator.
    counted: Option<Counters>,
}

impl Line {
    /// GB/s of weights, by the median.
    fn speed(&self) -> Option<f64> {
        self.weights.filter(|b| *b > 0.0).map(|b| b / self.times.median / 1e6)
    }
}

/// What was measured with one token count.
pub(super) struct Run {
    n_tokens: u64,
    /// Experts with tokens, in the middle of the rounds.
    experts: Option<f64>,
    /// The layer, then its kernels.
    lines: Vec<Line>,
    /// Of the other layer: milliseconds, and by times of the layer, pair by pair; on an emulator, what was counted.
    vs: Option<(Spread, Spread, Option<Counters>)>,
}

impl Run {
    /// Times of the layer and maybe another, by round, and what an emulator counted of them.
    ///
    /// # Errors
    /// `internal-error` when the manifest has no such kernels.
    pub fn new(
        layer: &Layer,
        n_tokens: u64,
        experts: Option<f64>,
        times: &[Vec<Times>],
        counted: Vec<Counted>,
    ) -> Result<Run, Diagnostic> {
        let odd = || Diagnostic::internal("internal-error", "what ran should be in the manifest");
        let target = layer.manifest().targets.iter().find(|t| t.name == layer.target()).ok_or_else(odd)?;
        let holds = |v: &&Variant| (v.tokens.min..=v.tokens.max).contains(&n_tokens);
        let variant = target.variants.iter().find(holds).ok_or_else(odd)?;
        let own = times.first().ok_or_else(odd)?;
        let ms = |figure: &dyn Fn(&Times) -> f64| -> Vec<f64> { own.iter().map(|t| figure(t) * 1e3).collect() };
        let mut lines = Vec::new();
        for (k, kernel) in variant.kernels.iter().enumerate() {
            let times = Spread::of(&ms(&|t| t.kernels.get(k).copied().unwrap_or(0.0)));
            let counted = counted.first().map(|all| {
                let found = all.iter().find(|(name, _)| *name == kernel.name);
                found.map(|(_, c)| c.clone()).unwrap_or_default()
            });
            lines.push(Line { name: kernel.name.clone(), times, weights: weights(variant, kernel, experts), counted });
        }
        let all = lines.iter().map(|l| l.weights).sum();
        let times_of_all = Spread::of(&ms(&|t| t.all));
        let counted_of_all = counted.first().map(counted::sum);
        lines.insert(0, Line { name: "all".into(), times: times_of_all, weights: all, counted: counted_of_all });
        let vs = times.get(1).map(|other| {
            let ms: Vec<f64> = other.iter().map(|t| t.all * 1e3).collect();
            let ratios: Vec<f64> = other.iter().zip(own).map(|(other, own)| other.all / own.all).collect();
            (Spread::of(&ms), Spread::of(&ratios), counted.get(1).map(counted::sum))
        });
        Ok(Run { n_tokens, experts, lines, vs })
    }
}

/// Bytes of weights that a kernel reads: of matrices for each expert, those of the experts that have tokens.
fn weights(variant: &Variant, kernel: &KernelEntry, experts: Option<f64>) -> Option<f64> {
    let buffers = kernel.operands.iter().filter_map(|o| variant.buffers.get(o.buffer.index()));
    let weights = buffers.filter(|b| matches!(b.role, Role::Weight(_)));
    weights
        .map(|b| {
            let (bytes, matrices) = (b.bytes(0) as f64, b.batch as f64);
            if b.batch > 1 { experts.map(|n| bytes / matrices * n.min(matrices)) } else { Some(bytes) }
        })
        .sum()
}

/// A table.
pub(super) fn text(runs: &[Run], on: &On) -> String {
    let mut rows = Vec::new();
    let mut others = Vec::new();
    for run in runs {
        for (i, line) in run.lines.iter().enumerate() {
            let t = if i == 0 { run.n_tokens.to_string() } else { String::new() };
            let Spread { min, median, max } = line.times;
            let mut row = vec![t, line.name.clone()];
            row.extend([min, median, max].map(|ms| format!("{ms:.3}")));
            match (&line.counted, &on.memory) {
                (Some(c), _) => row.extend(counted::cells(c)),
                (None, memory) => {
                    let speed = line.speed();
                    let share = speed.zip(memory.as_ref()).map(|(s, m)| s / m.median * 100.0);
                    row.push(speed.map_or_else(String::new, |s| format!("{s:.1}")));
                    row.push(share.map_or_else(String::new, |s| format!("{s:.0}")));
                }
            }
            rows.push(row);
        }
        if let Some((times, ratio, counted)) = &run.vs {
            let mut row = vec![run.n_tokens.to_string(), format!("{:.3}", times.median)];
            row.extend([ratio.min, ratio.median, ratio.max].map(|r| format!("{r:.3}")));
            row.extend(counted.iter().flat_map(counted::cells));
            others.push(row);
        }
    }
    let emulated = runs.iter().any(|r| r.lines.iter().any(|l| l.counted.is_some()));
    let (memory, share) = match on.threads {
        Some(_) => ("a plain read of memory", "% of a read"),
        None => ("a copy of memory, bytes read and written", "% of a copy"),
    };
    let mut text = on.device.clone();
    if *on.device != on.target {
        text += &format!(", {}", on.target);
    }
    if let Some(threads) = on.threads {
        text += &format!(", {threads} threads");
    }
    match &on.memory {
        Some(m) => text += &format!("; {memory}: {:.1} GB/s ({:.1} to {:.1})\n\n", m.median, m.min, m.max),
        None => text += "; times are the emulator's own\n\n",
    }
    let measured: &[&str] = if emulated { &counted::TITLES } else { &["GB/s", share] };
    text += &output::table(&[&["T", "kernel", "ms: min", "median", "max"], measured].concat(), &rows);
    if !others.is_empty() {
        text += "\nthe other layer, and its time by this one's, pair by pair\n\n";
        let measured: &[&str] = if emulated { &counted::TITLES } else { &[] };
        text += &output::table(&[&["T", "ms: median", "ratio: min", "median", "max"], measured].concat(), &others);
    }
    text
}

/// The same as JSON.
pub(super) fn json(runs: &[Run], on: &On) -> String {
    let line = |line: &Line| {
        json!({
            "name": line.name,
            "milliseconds": line.times.json(),
            "weight_bytes": line.weights,
            "gb_per_second": line.speed(),
            "share_of_read": line.speed().zip(on.memory.as_ref()).map(|(s, m)| s / m.median),
            "counters": line.counted.as_ref().map(counted::json),
            // What is known by line is of one kernel.
            "all_counters": line.counted.as_ref().filter(|_| line.name != "all"),
        })
    };
    let run = |run: &Run| {
        json!({
            "tokens": run.n_tokens,
            "experts": run.experts,
            "layer": run.lines.first().map(line),
            "kernels": run.lines.iter().skip(1).map(line).collect::<Vec<_>>(),
            "vs": run.vs.as_ref().map(|(times, ratio, counters)| json!({
                "milliseconds": times.json(),
                "ratio": ratio.json(),
                "counters": counters.as_ref().map(counted::json),
            })),
        })
    };
    let all = json!({
        "device": on.device,
        "target": on.target,
        "threads": on.threads,
        "read_gb_per_second": on.memory.as_ref().map(Spread::json),
        "runs": runs.iter().map(run).collect::<Vec<_>>(),
    });
    format!("{all:#}\n")
}

#[cfg(test)]
mod tests {
    use super::Spread;

    #[test]
    fn the_median_of_an_even_number_lies_between_two() {
        assert_eq!(Spread::of(&[3.0, 1.0, 2.0]), Spread { min: 1.0, median: 2.0, max: 3.0 });
        assert_eq!(Spread::of(&[4.0, 1.0, 2.0, 3.0]), Spread { min: 1.0, median: 2.5, max: 4.0 });
    }
}
