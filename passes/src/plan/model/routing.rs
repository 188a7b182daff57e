//! How many rows experts get.

use std::collections::BTreeMap;
use std::fmt;

/// How tokens choose experts, independently of each other.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Routing {
    /// All experts alike.
    #[default]
    Uniform,
    /// The n-th expert in proportion to n^-s.
    Zipf(f64),
    /// In proportion to counts, such as were measured; one for each expert.
    Counts(Vec<u64>),
    /// All tokens the same experts.
    OneHot,
}

impl fmt::Display for Routing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Routing::Uniform => f.write_str("uniform"),
            Routing::Zipf(s) => write!(f, "Zipf {s}"),
            Routing::Counts(_) => f.write_str("counted"),
            Routing::OneHot => f.write_str("one-hot"),
        }
    }
}

impl Routing {
    /// `(experts, probability that a token chooses one of them)` of the `here` experts of a layer, where a token chooses `per_token`
    /// of `of`.
    fn classes(&self, Share { here, of }: Share, per_token: u64) -> Vec<(f64, f64)> {
        let of = of.max(here);
        let (e, n, k) = (here as f64, of as f64, per_token.min(of) as f64);
        match self {
            Routing::Uniform => vec![(e, k / n)],
            // As many of those that all tokens choose as there are in the mean.
            Routing::OneHot => vec![(k * e / n, 1.0), (e - k * e / n, 0.0)],
            Routing::Zipf(s) => spread(in_proportion((1..=of).map(|n| (n as f64).powf(-s)).collect(), k), here),
            Routing::Counts(counts) => {
                let at = |i: u64| counts.get(i as usize).map_or(0.0, |&n| n as f64);
                spread(in_proportion((0..of).map(at).collect(), k), here)
            }
        }
    }
}

/// The experts that a program has, and how many there are to choose from: those of other ranks, and such as have no weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Share {
    /// Experts of the program.
    pub here: u64,
    /// Experts that tokens choose from.
    pub of: u64,
}

/// `here` of all experts, from the first to the last: it is not known which a rank has.
fn spread(all: Vec<(f64, f64)>, here: u64) -> Vec<(f64, f64)> {
    let of = all.len() as u64;
    (0..here).filter_map(|i| all.get((i * of / here.max(1)) as usize).copied()).collect()
}

/// Probabilities in proportion to `weights` that come to `k` together: none is over 1, and what is cut off others get.
fn in_proportion(weights: Vec<f64>, k: f64) -> Vec<(f64, f64)> {
    let mut p = vec![0.0; weights.len()];
    let mut free: Vec<usize> = (0..weights.len()).filter(|&i| weights[i] > 0.0).collect();
    let mut left = k;
    while !free.is_empty() {
        let sum: f64 = free.iter().map(|&i| weights[i]).sum();
        let (full, others): (Vec<usize>, Vec<usize>) = free.iter().partition(|&&i| weights[i] * left >= sum);
        if full.is_empty() {
            others.iter().for_each(|&i| p[i] = weights[i] * left / sum);
            break;
        }
        full.iter().for_each(|&i| p[i] = 1.0);
        left -= full.len() as f64;
        free = others;
    }
    p.into_iter().map(|p| (1.0, p)).collect()
}

/// The experts of a layer by the rows that they get.
#[derive(Clone, Debug, PartialEq)]
pub struct Load {
    /// `(rows, experts)`, experts being a mean; rows of many that differ by little are one entry.
    by_rows: Vec<(f64, f64)>,
    /// Whether nothing is left to chance.
    is_certain: bool,
}

impl Load {
    /// Of experts for `n_tokens` tokens that choose `per_token` each: the rows of an expert are binomial.
    pub fn new(routing: &Routing, experts: Share, per_token: u64, n_tokens: u64) -> Load {
        let mut bins: BTreeMap<u64, (f64, f64)> = BTreeMap::new();
        for (experts, p) in routing.classes(experts, per_token) {
            binomial(n_tokens, p, |rows, probability| {
                let bin = bins.entry(bin(rows)).or_default();
                bin.0 += rows * probability * experts;
                bin.1 += probability * experts;
            });
        }
        let by_rows = bins.into_values().filter(|b| b.1 > 0.0).map(|(rows, n)| (rows / n, n)).collect();
        let is_whole = experts.here >= experts.of;
        Load { by_rows, is_certain: (n_tokens <= 1 && is_whole) || *routing == Routing::OneHot }
    }

    /// One matrix for all rows.
    pub fn dense(rows: u64) -> Load {
        Load { by_rows: vec![(rows as f64, 1.0)], is_certain: true }
    }

    /// The sum of `f` over all experts: what is expected of it.
    pub fn sum(&self, f: impl Fn(f64) -> f64) -> f64 {
        self.by_rows.iter().map(|&(rows, experts)| experts * f(rows)).sum()
    }

    /// How far the sum of `f` lies from what is expected, as a standard deviation, experts being independent.
    pub fn spread(&self, f: impl Fn(f64) -> f64) -> f64 {
        if self.is_certain {
            return 0.0;
        }
        let (n, mean) = (self.sum(|_| 1.0).max(1.0), self.sum(&f));
        (self.sum(|x| f(x) * f(x)) - mean * mean / n).max(0.0).sqrt()
    }
}

/// Numbers of rows that count as one: of 128 and more those that differ by 2 %.
fn bin(rows: f64) -> u64 {
    if rows < 128.0 { rows as u64 } else { 128 + ((rows / 128.0).ln() / 0.02) as u64 }
}

/// Calls `each` with the numbers that `n` trials of probability `p` come to, and how likely they are.
pub(super) fn binomial(n: u64, p: f64, mut each: impl FnMut(f64, f64)) {
    if p <= 0.0 || p >= 1.0 || n == 0 {
        each(if p > 0.0 { n as f64 } else { 0.0 }, 1.0);
        return;
    }
    let mean = n as f64 * p;
    let wide = 9.0 * (mean * (1.0 - p)).sqrt() + 12.0;
    let (low, high) = ((mean - wide).max(0.0) as u64, ((mean + wide) as u64).min(n));
    // The logarithm of the probability of `low`, and from there by ratios.
    let choices = ln_factorial(n) - ln_factorial(low) - ln_factorial(n - low);
    let mut probability = (choices + low as f64 * p.ln() + (n - low) as f64 * (1.0 - p).ln()).exp();
    for x in low..=high {
        if probability > 1e-12 {
            each(x as f64, probability);
        }
        probability *= (n - x) as f64 / (x + 1) as f64 * p / (1.0 - p);
    }
}

/// Stirling's series; below 20 the sum itself.
fn ln_factorial(n: u64) -> f64 {
    if n < 20 {
        return (2..=n).map(|i| (i as f64).ln()).sum();
    }
    let x = n as f64;
    x * x.ln() - x + 0.5 * (std::f64::consts::TAU * x).ln() + 1.0 / (12.0 * x) - 1.0 / (360.0 * x.powi(3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_and_experts_come_to_what_there_is() {
        let counts = Routing::Counts((0..64).map(|i| i * i).collect());
        for routing in [Routing::Uniform, Routing::Zipf(1.2), counts, Routing::OneHot] {
            for n_tokens in [0, 1, 7, 300, 16384] {
                let load = Load::new(&routing, Share { here: 64, of: 64 }, 6, n_tokens);
                let (rows, experts) = (load.sum(|x| x), load.sum(|_| 1.0));
                assert!((rows - 6.0 * n_tokens as f64).abs() <= 1e-6 * rows + 1e-9, "{routing:?} {n_tokens}: {rows}");
                assert!((experts - 64.0).abs() < 1e-6, "{routing:?} {n_tokens}: {experts}");
            }
        }
    }

    #[test]
    fn touched_experts_are_those_of_the_formula() {
        let share = Share { here: 256, of: 256 };
        let touched = Load::new(&Routing::Uniform, share, 8, 100).sum(|x| f64::from(x > 0.0));
        let formula = 256.0 * (1.0 - (1.0 - 8.0f64 / 256.0).powi(100));
        assert!((touched - formula).abs() < 1e-6, "{touched} is not {formula}");
    }

    #[test]
    fn a_rank_has_its_part_of_the_rows() {
        for routing in [Routing::Uniform, Routing::OneHot] {
            let load = Load::new(&routing, Share { here: 32, of: 256 }, 8, 100);
            assert!((load.sum(|x| x) - 100.0).abs() < 1e-6, "{routing:?}: {}", load.sum(|x| x));
            assert!((load.sum(|_| 1.0) - 32.0).abs() < 1e-6, "{routing:?}");
        }
        let all = Load::new(&Routing::Zipf(1.2), Share { here: 256, of: 256 }, 8, 100);
        let part = Load::new(&Routing::Zipf(1.2), Share { here: 32, of: 256 }, 8, 100);
        let share = part.sum(|x| x) / all.sum(|x| x);
        assert!((0.1..0.25).contains(&share), "{share}");
    }
}
