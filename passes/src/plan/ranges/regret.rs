//! What programs lose against the best ones, at each token count of a grid and with each of three routings.

use crate::plan::model::{Model, Routing};
use crate::plan::{Choice, NO_WORSE, Space, space};
use moec_ir::tile::{Body, Schedule};
use std::ops::Range;

/// What a token count may lose, where the number of programs allows it: with uniform routing.
pub(super) const REGRET: f64 = 0.004;
/// The same with skewed routing (Zipf 1.2), and with all tokens at the same experts.
pub(super) const SKEWED_REGRET: f64 = 0.03;
/// What is lost over this with uniform routing counts many times, for routers are trained towards it.
const MOST_REGRET: f64 = 0.02;

/// A token count and a routing for which programs are priced.
struct Point {
    /// Index into the grid.
    at: usize,
    is_uniform: bool,
    /// What the program loses that loses least at this token count with all routings: no other one can be asked for less.
    least: f64,
}

/// What is lost at most, as a part of the best program's time.
#[derive(Clone, Copy)]
pub(super) struct Lost {
    pub(super) uniform: f64,
    pub(super) skewed: f64,
}

impl Lost {
    const NOTHING: Lost = Lost { uniform: 0.0, skewed: 0.0 };

    fn at(self, point: &Point, lost: f64) -> Lost {
        let lost = if lost > point.least + 1e-6 { lost } else { 0.0 };
        if point.is_uniform {
            Lost { uniform: self.uniform.max(lost), ..self }
        } else {
            Lost { skewed: self.skewed.max(lost), ..self }
        }
    }

    /// Over what may be lost.
    pub(super) fn weighed(self) -> f64 {
        let uniform = self.uniform.max(self.uniform + 10.0 * (self.uniform - MOST_REGRET));
        (uniform / REGRET).max(self.skewed / SKEWED_REGRET)
    }

    /// The most of all, where that weighs less than `bound`.
    fn below<'p>(bound: f64, all: impl Iterator<Item = (&'p Point, f64)>) -> Option<Lost> {
        let mut most = Lost::NOTHING;
        for (point, lost) in all {
            most = most.at(point, lost);
            if most.weighed() >= bound {
                return None;
            }
        }
        Some(most)
    }

    pub(super) fn is_within(self, limit: Lost) -> bool {
        self.uniform <= limit.uniform && self.skewed <= limit.skewed
    }
}

/// Schedules of a kernel that are best somewhere, and their times over that of the best program: `[schedule][point]`.
struct Kernel {
    schedules: Vec<Schedule>,
    shares: Vec<Vec<f64>>,
    /// Of all schedules, at each point.
    least: Vec<f64>,
}

/// Kernels and forms of a layer, priced at all points.
pub(super) struct Priced {
    points: Vec<Point>,
    /// The kernels that are priced.
    kernels: Vec<Kernel>,
    /// Their numbers in each form.
    forms: Vec<Vec<usize>>,
}

/// A form, and for each of its kernels the number of a schedule.
pub(super) type Numbered = (usize, Vec<usize>);

impl Priced {
    pub(super) fn new(space: &Space, model: &Model<'_>, grid: &[u64]) -> Priced {
        let routings = [Routing::Uniform, Routing::Zipf(1.2), Routing::OneHot];
        let models = routings.map(|routing| Model::new(model.chip, model.target).with_routing(routing));
        let mut wanted: Vec<Vec<Schedule>> = space.priced.iter().map(|_| Vec::new()).collect();
        let (mut points, mut least) = (Vec::new(), Vec::new());
        for (at, &n_tokens) in grid.iter().enumerate() {
            points.extend(models.iter().map(|m| Point { at, is_uniform: m.routing == Routing::Uniform, least: 0.0 }));
            least.extend(space.add_best_schedules(&models, n_tokens, &mut wanted));
        }
        let kernel = |(&which, schedules): (&(usize, usize), Vec<Schedule>)| {
            let share = |s: &Schedule| {
                let times = grid.iter().flat_map(|&t| space.with_each(&models, which, s, t));
                times.zip(&least).map(|(time, least)| time / least).collect()
            };
            let shares = schedules.iter().map(share).collect();
            Kernel::new(schedules, shares)
        };
        let kernels = space.priced.iter().zip(wanted).map(kernel).collect();
        let mut priced = Priced { points, kernels, forms: space.prices.clone() };
        for at in 0..grid.len() {
            let best = priced.refined(&(at..at + 1));
            for p in priced.points_in(&(at..at + 1)) {
                priced.points[p].least = priced.time(&best, p) - 1.0;
            }
        }
        priced
    }

    /// What choices lose that lose least at worst in parts of a grid of `n`: in those from `first` on, by their ends.
    pub(super) fn best_from(&self, first: usize, n: usize) -> Vec<Lost> {
        let mut here: Vec<usize> = Vec::new();
        let mut lost: Vec<Vec<Lost>> = self.kernels.iter().map(|k| vec![Lost::NOTHING; k.schedules.len()]).collect();
        let best_to = |last: usize| {
            let new = self.points_in(&(last..last + 1));
            for (kernel, lost) in self.kernels.iter().zip(&mut lost) {
                for (shares, lost) in kernel.shares.iter().zip(lost) {
                    *lost = new.iter().fold(*lost, |l, &p| l.at(&self.points[p], shares[p] - kernel.least[p]));
                }
            }
            here.extend(new);
            let chosen: Vec<usize> = lost.iter().map(|all| first_of_least(all.iter().map(|l| l.weighed()))).collect();
            let mut best: Option<Lost> = None;
            for (form, kernels) in self.forms.iter().enumerate() {
                let choice = (form, kernels.iter().map(|&k| chosen[k]).collect());
                let bound = best.map_or(f64::INFINITY, Lost::weighed);
                best = self.lost_below(&choice, &here, bound).or(best);
            }
            best.unwrap_or(Lost::NOTHING)
        };
        (first..n).map(best_to).collect()
    }

    fn points_in(&self, part: &Range<usize>) -> Vec<usize> {
        (0..self.points.len()).filter(|&p| part.contains(&self.points[p].at)).collect()
    }

    /// The choice of each form in which every kernel by itself loses least.
    fn least_regrets(&self, here: &[usize]) -> impl Iterator<Item = Numbered> {
        let all: Vec<usize> = self.kernels.iter().map(|k| k.least_regret(here, &self.points)).collect();
        let of = move |(form, kernels): (usize, &Vec<usize>)| (form, kernels.iter().map(|&k| all[k]).collect());
        self.forms.iter().enumerate().map(of)
    }

    /// What a choice loses at most at some points, where that is less than `bound`.
    fn lost_below(&self, choice: &Numbered, here: &[usize], bound: f64) -> Option<Lost> {
        let lost = |p: usize| (&self.points[p], self.time(choice, p) - 1.0);
        Lost::below(bound, here.iter().map(|&p| lost(p)))
    }

    /// The time of a choice over that of the best program.
    fn time(&self, (form, schedules): &Numbered, point: usize) -> f64 {
        self.forms[*form].iter().zip(schedules).map(|(&k, &s)| self.kernels[k].shares[s][point]).sum()
    }

    /// A choice that loses no more: where one kernel loses, another one may not, so that each is chosen again beside the others until
    /// nothing is won.
    pub(super) fn refined(&self, part: &Range<usize>) -> Numbered {
        let here = self.points_in(part);
        let refine = |mut best: Numbered| {
            let mut least = self.lost_below(&best, &here, f64::INFINITY).map_or(f64::INFINITY, Lost::weighed);
            loop {
                let before = least;
                for (i, &k) in self.forms[best.0].iter().enumerate() {
                    for s in 0..self.kernels[k].schedules.len() {
                        let mut other = best.clone();
                        other.1[i] = s;
                        if let Some(lost) = self.lost_below(&other, &here, least) {
                            (best, least) = (other, lost.weighed());
                        }
                    }
                }
                if least >= before {
                    return (best, least);
                }
            }
        };
        let all = self.least_regrets(&here).map(refine);
        all.reduce(|a, b| if b.1 < a.1 { b } else { a }).map_or((0, Vec::new()), |best| best.0)
    }

    pub(super) fn choice(&self, (form, schedules): &Numbered) -> Choice {
        let schedule = |(&k, &s): (&usize, &usize)| self.kernels[k].schedules[s];
        let kernels = self.forms.get(*form).into_iter().flatten();
        Choice { form: *form, schedules: kernels.zip(schedules).map(schedule).collect() }
    }
}

impl Kernel {
    fn new(schedules: Vec<Schedule>, shares: Vec<Vec<f64>>) -> Kernel {
        let n_points = shares.first().map_or(0, Vec::len);
        let least = |p: usize| shares.iter().map(|s| s[p]).fold(f64::INFINITY, f64::min);
        Kernel { least: (0..n_points).map(least).collect(), schedules, shares }
    }

    /// The schedule that loses least at worst against the best at each point.
    fn least_regret(&self, here: &[usize], points: &[Point]) -> usize {
        let lost = |shares: &Vec<f64>| {
            let each = here.iter().map(|&p| (&points[p], shares[p] - self.least[p]));
            each.fold(Lost::NOTHING, |lost, (point, x)| lost.at(point, x)).weighed()
        };
        first_of_least(self.shares.iter().map(lost))
    }
}

/// The number of the first of the least.
fn first_of_least(all: impl Iterator<Item = f64>) -> usize {
    all.enumerate().reduce(|a, b| if b.1 < a.1 { b } else { a }).map_or(0, |best| best.0)
}

impl Space {
    /// The times of a kernel by each of the models, in seconds. Routing bears on products alone.
    fn with_each(&self, models: &[Model<'_>], which: (usize, usize), s: &Schedule, n_tokens: u64) -> Vec<f64> {
        let is_product = matches!(self.forms[which.0].0.program.kernels[which.1].body, Body::Contract(_));
        let priced = if is_product { models } else { &models[..1] };
        let mut times: Vec<f64> = priced.iter().map(|m| self.kernel(m, which, s, n_tokens)).collect();
        times.resize(models.len(), times[0]);
        times
    }

    /// The times of the best programs by each of the models, in seconds. Schedules that are best for kernels by one of them, and those that
    /// lose least by all, join those that the kernels have.
    fn add_best_schedules(&self, models: &[Model<'_>], n_tokens: u64, kernels: &mut [Vec<Schedule>]) -> Vec<f64> {
        let priced = |&(form_number, kernel): &(usize, usize)| {
            let (form, parts) = &self.forms[form_number];
            let k = &form.program.kernels[kernel];
            let schedules = space::on_gpu(&form.program, k, models[0].target, parts[kernel], n_tokens);
            let times = |s| self.with_each(models, (form_number, kernel), s, n_tokens);
            (schedules.iter().map(times).collect::<Vec<Vec<f64>>>(), schedules)
        };
        let all: Vec<(Vec<Vec<f64>>, Vec<Schedule>)> = self.priced.iter().map(priced).collect();
        let least = |k: usize, m: usize| all[k].0.iter().map(|times| times[m]).fold(f64::INFINITY, f64::min);
        let best_of = |m: usize| {
            let of = |prices: &Vec<usize>| prices.iter().map(|&k| least(k, m)).sum::<f64>();
            self.prices.iter().map(of).fold(f64::INFINITY, f64::min).max(1e-12)
        };
        let at: Vec<usize> = (0..models.len()).collect();
        let best: Vec<f64> = at.iter().map(|&m| best_of(m)).collect();
        let point = |m: &Model<'_>| Point { at: 0, is_uniform: m.routing == Routing::Uniform, least: 0.0 };
        let points: Vec<Point> = models.iter().map(point).collect();
        for (k, kernel) in kernels.iter_mut().enumerate() {
            let (times, schedules) = &all[k];
            let first_of = |m: usize| times.iter().position(|t| t[m] <= least(k, m) * NO_WORSE).unwrap_or(0);
            let shares = |times: &Vec<f64>| times.iter().zip(&best).map(|(time, best)| time / best).collect();
            let priced = Kernel::new(schedules.clone(), times.iter().map(shares).collect());
            let wanted = at.iter().copied().map(first_of).chain([priced.least_regret(&at, &points)]);
            for s in wanted.filter_map(|s| schedules.get(s)) {
                if !kernel.contains(s) {
                    kernel.push(*s);
                }
            }
        }
        best
    }
}
