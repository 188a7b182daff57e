//! Fits the model's guesses to times that a GPU measured.
//!
//! What is fitted are figures that nobody has published: shares of published rates, latencies, instructions an element. The
//! error of a time is the logarithm of modelled ÷ measured; the fit makes the sum of its squares least, and holds each figure to
//! what it was as by one measurement in a hundred, so that figures that no measurement tells stay as they are.

use super::{Assumptions, Chip, Model, Routing};
use moec_ir::target::Target;
use moec_ir::tile::{Kernel, Program};
use std::cell::RefCell;

/// What the model knows of a chip.
#[derive(Clone, Debug, PartialEq)]
pub struct Figures {
    /// The chip.
    pub chip: Chip,
    /// What holds of all chips.
    pub assumptions: Assumptions,
}

/// What was measured.
#[derive(Clone, Copy, Debug)]
pub enum Work<'p> {
    /// One kernel alone, without its launch.
    Kernel(&'p Kernel),
    /// All kernels of the program, launched one after another.
    Layer,
}

/// A time.
#[derive(Clone, Copy, Debug)]
pub struct Measured<'p> {
    /// The program that ran.
    pub program: &'p Program,
    /// For which it was compiled.
    pub target: &'p Target,
    /// How much of it.
    pub work: Work<'p>,
    /// Tokens, which chose experts evenly.
    pub n_tokens: u64,
    /// The time with weights in memory, not in the L2, in seconds.
    pub seconds: f64,
}

/// How far modelled times are from measured ones.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Residual {
    /// The factor that times are off by, up or down, on the geometric mean of its squares.
    pub typical: f64,
    /// The largest such factor.
    pub worst: f64,
}

/// A figure that may be fitted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Fitted {
    /// Its name in `chips.json`.
    pub name: &'static str,
    /// Whether it is the chip's own, not all chips'.
    pub is_of_chip: bool,
    /// What it was.
    pub before: f64,
    /// What fits best.
    pub after: f64,
    /// Whether it would have gone farther than a guess may be wrong.
    pub is_at_limit: bool,
    /// Measured times that depend on it, where it ends.
    pub n_times: usize,
}

/// What came of a fit.
#[derive(Clone, Debug, PartialEq)]
pub struct Calibration {
    /// The fitted figures.
    pub figures: Figures,
    /// Every figure that might have been fitted.
    pub fitted: Vec<Fitted>,
    /// Modelled times in seconds before and after, in the order of the measured ones.
    pub times: Vec<[f64; 2]>,
    /// With the figures as they were.
    pub before: Residual,
    /// With the fitted figures.
    pub after: Residual,
}

/// A figure that is a guess.
struct Guess {
    name: &'static str,
    is_of_chip: bool,
    of: fn(&mut Figures) -> &mut f64,
    /// The most that it can be; shares end at 1.
    most: f64,
}

impl Guess {
    fn value(&self, f: &Figures) -> f64 {
        *(self.of)(&mut f.clone())
    }

    /// The least and the most that it may become.
    fn limits(&self, start: &Figures) -> [f64; 2] {
        let was = self.value(start);
        [was / FARTHEST, (was * FARTHEST).min(self.most)]
    }
}

const GUESSES: [Guess; 16] = [
    Guess { name: "l2_bytes_per_s", is_of_chip: true, of: |f| &mut f.chip.l2_bytes_per_s, most: f64::INFINITY },
    Guess { name: "launch_s", is_of_chip: true, of: |f| &mut f.chip.launch_s, most: f64::INFINITY },
    Guess { name: "memory_share", is_of_chip: false, of: |f| &mut f.assumptions.memory_share, most: 1.0 },
    Guess { name: "tensor_share", is_of_chip: false, of: |f| &mut f.assumptions.tensor_share, most: 1.0 },
    Guess { name: "mma_sync_share", is_of_chip: false, of: |f| &mut f.assumptions.mma_sync_share, most: 1.0 },
    of_all("epilogue_instructions", |f| &mut f.assumptions.epilogue_instructions),
    of_all("order_cycles", |f| &mut f.assumptions.order_cycles),
    of_all("order_exchange_s", |f| &mut f.assumptions.order_exchange_s),
    of_all("fill_s", |f| &mut f.assumptions.fill_s),
    of_all("latency_s", |f| &mut f.assumptions.latency_s),
    of_all("l2_latency_s", |f| &mut f.assumptions.l2_latency_s),
    of_all("decode_e4m3", |f| &mut f.assumptions.decode_e4m3),
    of_all("decode_e2m1", |f| &mut f.assumptions.decode_e2m1),
    of_all("decode_int4", |f| &mut f.assumptions.decode_int4),
    of_all("widen_e2m1", |f| &mut f.assumptions.widen_e2m1),
    of_all("widen_int4", |f| &mut f.assumptions.widen_int4),
];

const fn of_all(name: &'static str, of: fn(&mut Figures) -> &mut f64) -> Guess {
    Guess { name, is_of_chip: false, of, most: f64::INFINITY }
}

/// What holding on to a figure weighs against one measurement.
const HOLD: f64 = 0.002;
/// The first step of a figure, as a factor, and the last.
const STEPS: [f64; 2] = [1.5, 1.002];
/// No figure changes by more than this factor: what would have to is a mistake of the model, not of a guess.
const FARTHEST: f64 = 8.0;

/// Fits `start` to measured times. The same times give the same figures.
pub fn fit(start: &Figures, times: &[Measured<'_>]) -> Calibration {
    let pricer = Pricer { times, loads: RefCell::default() };
    let mut best = start.clone();
    let cost = |f: &Figures| -> f64 {
        let errors: f64 = pricer.errors(f).iter().map(|e| e * e).sum();
        let held = GUESSES.iter().map(|g| (g.value(f) / g.value(start)).ln().powi(2));
        errors + HOLD * held.sum::<f64>()
    };
    let mut least = cost(&best);
    let mut step: f64 = STEPS[0];
    while step > STEPS[1] {
        let mut moved = false;
        for g in &GUESSES {
            for factor in [step, 1.0 / step] {
                let mut next = best.clone();
                let [low, high] = g.limits(start);
                *(g.of)(&mut next) = (g.value(&best) * factor).clamp(low, high);
                let found = cost(&next);
                if found < least {
                    (best, least, moved) = (next, found, true);
                    break;
                }
            }
        }
        if !moved {
            step = step.sqrt();
        }
    }
    let [before, after] = [start, &best].map(|f| pricer.seconds(f));
    Calibration {
        fitted: GUESSES.iter().map(|g| pricer.fitted(g, start, &best)).collect(),
        before: residual(&pricer.errors(start)),
        after: residual(&pricer.errors(&best)),
        times: before.into_iter().zip(after).map(|(b, a)| [b, a]).collect(),
        figures: best,
    }
}

fn residual(errors: &[f64]) -> Residual {
    let squares = errors.iter().map(|e| e * e).sum::<f64>() / errors.len().max(1) as f64;
    Residual { typical: squares.sqrt().exp(), worst: errors.iter().map(|e| e.abs()).fold(0.0, f64::max).exp() }
}

/// Prices the same work with one set of figures after another.
struct Pricer<'t, 'p> {
    times: &'t [Measured<'p>],
    /// Rows of experts do not depend on figures.
    loads: RefCell<super::Loads>,
}

impl Pricer<'_, '_> {
    fn seconds(&self, f: &Figures) -> Vec<f64> {
        self.times.iter().map(|m| self.price(f, m)).collect()
    }

    fn price(&self, f: &Figures, m: &Measured<'_>) -> f64 {
        let model = Model {
            assumptions: &f.assumptions,
            routing: Routing::Uniform,
            loads: RefCell::new(self.loads.take()),
            ..Model::new(&f.chip, m.target)
        };
        let seconds = match m.work {
            Work::Kernel(k) => model.kernel(m.program, k, &k.schedule, m.n_tokens) - f.chip.launch_s,
            Work::Layer => model.seconds(m.program, m.n_tokens),
        };
        self.loads.replace(model.loads.into_inner());
        seconds
    }

    fn errors(&self, f: &Figures) -> Vec<f64> {
        let error = |(m, s): (&Measured<'_>, f64)| (s / m.seconds).ln();
        self.times.iter().zip(self.seconds(f)).map(error).collect()
    }

    /// What became of a guess.
    fn fitted(&self, g: &Guess, start: &Figures, end: &Figures) -> Fitted {
        let mut more = end.clone();
        *(g.of)(&mut more) *= 0.99;
        let differs = self.seconds(end).into_iter().zip(self.seconds(&more)).filter(|(a, b)| a != b);
        let after = g.value(end);
        let [least, most] = g.limits(start);
        Fitted {
            name: g.name,
            is_of_chip: g.is_of_chip,
            before: g.value(start),
            after,
            is_at_limit: after <= least || after >= most,
            n_times: differs.count(),
        }
    }
}
