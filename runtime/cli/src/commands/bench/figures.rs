//! What was measured, for people and for programs.

use crate::output;
use moec::Diagnostic;
use moec_bundle::manifest::{KernelEntry, Manifest, Variant};
use moec_ir::tile::Role;
use moec_runtime::cpu::Times;
use serde_json::{Value, json};

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
    /// Of the other layer: milliseconds, and by times of the layer, pair by pair.
    vs: Option<(Spread, Spread)>,
}

impl Run {
    /// Times of the layer and maybe another, by round.
    ///
    /// # Errors
    /// `internal-error` when the manifest has no such kernels.
    pub fn new(
        manifest: &Manifest,
        n_tokens: u64,
        experts: Option<f64>,
        times: &[Vec<Times>],
    ) -> Result<Run, Diagnostic> {
        let odd = || Diagnostic::internal("internal-error", "what ran should be in the manifest");
        let target = manifest.targets.iter().find(|t| t.name == "cpu").ok_or_else(odd)?;
        let holds = |v: &&Variant| (v.tokens.min..=v.tokens.max).contains(&n_tokens);
        let variant = target.variants.iter().find(holds).ok_or_else(odd)?;
        let own = times.first().ok_or_else(odd)?;
        let ms = |figure: &dyn Fn(&Times) -> f64| -> Vec<f64> { own.iter().map(|t| figure(t) * 1e3).collect() };
        let mut lines = Vec::new();
        for (k, kernel) in variant.kernels.iter().enumerate() {
            let times = Spread::of(&ms(&|t| t.kernels.get(k).copied().unwrap_or(0.0)));
            lines.push(Line { name: kernel.name.clone(), times, weights: weights(variant, kernel, experts) });
        }
        let all = lines.iter().map(|l| l.weights).sum();
        lines.insert(0, Line { name: "all".to_string(), times: Spread::of(&ms(&|t| t.all)), weights: all });
        let vs = times.get(1).map(|other| {
            let ms: Vec<f64> = other.iter().map(|t| t.all * 1e3).collect();
            let ratios: Vec<f64> = other.iter().zip(own).map(|(other, own)| other.all / own.all).collect();
            (Spread::of(&ms), Spread::of(&ratios))
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
pub(super) fn text(runs: &[Run], read: &Spread, threads: usize) -> String {
    let mut rows = Vec::new();
    let mut others = Vec::new();
    for run in runs {
        for (i, line) in run.lines.iter().enumerate() {
            let t = if i == 0 { run.n_tokens.to_string() } else { String::new() };
            let Spread { min, median, max } = line.times;
            let speed = line.speed();
            rows.push(vec![
                t,
                line.name.clone(),
                format!("{min:.3}"),
                format!("{median:.3}"),
                format!("{max:.3}"),
                speed.map_or_else(String::new, |s| format!("{s:.1}")),
                speed.map_or_else(String::new, |s| format!("{:.0}", s / read.median * 100.0)),
            ]);
        }
        if let Some((times, ratio)) = &run.vs {
            others.push(vec![
                run.n_tokens.to_string(),
                format!("{:.3}", times.median),
                format!("{:.3}", ratio.min),
                format!("{:.3}", ratio.median),
                format!("{:.3}", ratio.max),
            ]);
        }
    }
    let mut text = format!(
        "cpu, {threads} threads; a plain read of memory: {:.1} GB/s ({:.1} to {:.1})\n\n",
        read.median, read.min, read.max
    );
    text += &output::table(&["T", "kernel", "ms: min", "median", "max", "GB/s", "% of a read"], &rows);
    if !others.is_empty() {
        text += "\nthe other layer, and its time by this one's, pair by pair\n\n";
        text += &output::table(&["T", "ms: median", "ratio: min", "median", "max"], &others);
    }
    text
}

/// The same as JSON.
pub(super) fn json(runs: &[Run], read: &Spread, threads: usize) -> String {
    let line = |line: &Line| {
        json!({
            "name": line.name,
            "milliseconds": line.times.json(),
            "weight_bytes": line.weights,
            "gb_per_second": line.speed(),
            "share_of_read": line.speed().map(|s| s / read.median),
        })
    };
    let run = |run: &Run| {
        json!({
            "tokens": run.n_tokens,
            "experts": run.experts,
            "layer": run.lines.first().map(line),
            "kernels": run.lines.iter().skip(1).map(line).collect::<Vec<_>>(),
            "vs": run.vs.as_ref().map(|(times, ratio)| json!({ "milliseconds": times.json(), "ratio": ratio.json() })),
        })
    };
    let all = json!({
        "device": "cpu",
        "threads": threads,
        "read_gb_per_second": read.json(),
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
