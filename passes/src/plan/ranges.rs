//! Ranges of token counts: as few as keep within bounds what a token count loses by running the program of its range
//! instead of its own best one.

use super::model::{Model, Routing};
use super::{Choice, Options, Planned, Space};
use moec_ir::tile::Schedule;

/// What a token count may lose, where the number of programs allows it: with uniform routing.
const REGRET: f64 = 0.004;
/// The same with skewed routing (Zipf 1.2), and with all tokens at the same experts, over that.
const SKEWED: f64 = 8.0;
const ONE_HOT: f64 = 25.0;

/// Above this, more tokens are more of the same.
const LARGEST: u64 = 16384;

/// Above this, a quarter of the way to the next power of two has a point of its own.
const QUARTERS: u64 = 1024;

/// Powers of two, and half way between, with many tokens quarters of the way, that lie in `tokens`; at least one.
fn grid(tokens: (u64, u64)) -> Vec<u64> {
    let first = tokens.0.clamp(1, LARGEST);
    let last = tokens.1.clamp(first, LARGEST);
    let steps = (0..15).flat_map(|i| [1 << i, 3 << i >> 1]);
    let quarters = (0..15).flat_map(|i| [5 << i >> 2, 7 << i >> 2]).filter(|t| *t > QUARTERS);
    let mut all: Vec<u64> = steps.chain(quarters).filter(|t| (first..=last).contains(t)).chain([first, last]).collect();
    all.sort_unstable();
    all.dedup();
    all
}

/// A token count and a routing for which programs are priced.
struct Point {
    /// Index into the grid.
    at: usize,
    /// What a loss counts.
    weight: f64,
}

/// Schedules of a kernel that are best somewhere, and their times over that of the best program: `[schedule][point]`.
struct Kernel {
    schedules: Vec<Schedule>,
    shares: Vec<Vec<f64>>,
}

struct Priced {
    points: Vec<Point>,
    /// The kernels that are priced.
    kernels: Vec<Kernel>,
    /// Their numbers in each form.
    forms: Vec<Vec<usize>>,
}

impl Priced {
    fn new(space: &Space, model: &Model<'_>, grid: &[u64]) -> Priced {
        let routings = [(Routing::Uniform, 1.0), (Routing::Zipf(1.2), SKEWED), (Routing::OneHot, ONE_HOT)];
        let mut points = Vec::new();
        let mut kernels: Vec<Kernel> = space.priced.iter().map(|_| Kernel::new()).collect();
        let models = routings.map(|(routing, factor)| {
            let exact = routing == Routing::Uniform;
            let model = Model::new(model.chip, model.target).with_routing(routing);
            let here = grid.iter().enumerate().filter(|(_, t)| exact || t.is_power_of_two());
            let at: Vec<(usize, u64, f64)> =
                here.map(|(i, &t)| (i, t, space.add_best_schedules(&model, t, &mut kernels))).collect();
            points.extend(at.iter().map(|&(at, ..)| Point { at, weight: 1.0 / factor }));
            (model, at)
        });
        for (&which, kernel) in space.priced.iter().zip(&mut kernels) {
            let share = |s: &Schedule| {
                let of = |(model, at): &(Model<'_>, Vec<(usize, u64, f64)>)| -> Vec<f64> {
                    at.iter().map(|&(_, t, least)| space.kernel(model, which, s, t) / least.max(1e-12)).collect()
                };
                models.iter().flat_map(of).collect()
            };
            kernel.shares = kernel.schedules.iter().map(share).collect();
        }
        Priced { points, kernels, forms: space.prices.clone() }
    }

    /// The choice that loses least at worst in a part of the grid, and what.
    fn best_in(&self, part: &std::ops::Range<usize>) -> (Choice, f64) {
        let here: Vec<usize> = (0..self.points.len()).filter(|&p| part.contains(&self.points[p].at)).collect();
        let mut best = (Choice { form: 0, schedules: Vec::new() }, f64::INFINITY);
        let all: Vec<usize> = self.kernels.iter().map(|k| k.least_regret(&here, &self.points)).collect();
        for (form, kernels) in self.forms.iter().enumerate() {
            let mut lost = vec![-1.0; here.len()];
            let mut schedules = Vec::new();
            for &number in kernels {
                let (kernel, chosen) = (&self.kernels[number], all[number]);
                lost.iter_mut().zip(&here).for_each(|(lost, &p)| *lost += kernel.shares[chosen][p]);
                schedules.push(kernel.schedules[chosen]);
            }
            let worst = lost.iter().zip(&here).map(|(lost, &p)| lost * self.points[p].weight).fold(0.0, f64::max);
            if worst < best.1 {
                best = (Choice { form, schedules }, worst);
            }
        }
        best
    }
}

impl Kernel {
    fn new() -> Kernel {
        Kernel { schedules: Vec::new(), shares: Vec::new() }
    }

    /// The schedule that loses least at worst against the best at each point.
    fn least_regret(&self, here: &[usize], points: &[Point]) -> usize {
        let least: Vec<f64> =
            here.iter().map(|&p| self.shares.iter().map(|s| s[p]).fold(f64::INFINITY, f64::min)).collect();
        let worst = |s: usize| {
            let of = |(&p, least): (&usize, &f64)| (self.shares[s][p] - least) * points[p].weight;
            here.iter().zip(&least).map(of).fold(0.0, f64::max)
        };
        let all = (0..self.schedules.len()).map(|s| (s, worst(s)));
        all.reduce(|a, b| if b.1 < a.1 { b } else { a }).map_or(0, |best| best.0)
    }
}

impl Space {
    /// The time of the best program, in seconds; the schedules that are best for kernels join those that they have.
    fn add_best_schedules(&self, model: &Model<'_>, n_tokens: u64, kernels: &mut [Kernel]) -> f64 {
        let all = self.best_schedules(model, n_tokens);
        for (kernel, (schedule, _)) in kernels.iter_mut().zip(&all) {
            if !kernel.schedules.contains(schedule) {
                kernel.schedules.push(*schedule);
            }
        }
        let time = |prices: &Vec<usize>| prices.iter().map(|&price| all[price].1).sum();
        self.prices.iter().map(time).fold(f64::INFINITY, f64::min)
    }
}

/// A part of the grid, and what runs in it.
struct Part {
    first: usize,
    choice: Choice,
}

/// The fewest parts of a grid of `n` that lose at most `limit`; among those the ones that lose least.
fn cut(n: usize, limit: f64, best: &[Vec<(Choice, f64)>]) -> Option<Vec<Part>> {
    // For each end: parts, what they lose together, and where the last begins.
    let mut ways: Vec<Option<(usize, f64, usize)>> = vec![Some((0, 0.0, 0))];
    for end in 1..=n {
        let way = |first: usize| {
            let ((parts, lost, _), worst) = (ways[first]?, best[first][end - 1 - first].1);
            (worst <= limit).then_some((parts + 1, lost + worst, first))
        };
        ways.push((0..end).filter_map(way).reduce(|a, b| if (b.0, b.1) < (a.0, a.1) { b } else { a }));
    }
    let mut parts = Vec::new();
    let mut end = n;
    while end > 0 {
        let (.., first) = ways[end]?;
        parts.push(Part { first, choice: best[first][end - 1 - first].0.clone() });
        end = first;
    }
    parts.reverse();
    Some(parts)
}

/// The programs for a layer's token counts.
pub fn ranges(space: &Space, model: &Model<'_>, options: &Options) -> Vec<Planned> {
    let grid = grid(options.tokens);
    let priced = Priced::new(space, model, &grid);
    let from = |first: usize| (first..grid.len()).map(|last| priced.best_in(&(first..last + 1))).collect();
    let best: Vec<Vec<(Choice, f64)>> = (0..grid.len()).map(from).collect();
    // What may be lost grows until the programs are few enough, which one program is in the end.
    let limits = std::iter::successors(Some(REGRET), |l| Some(l * 1.25)).take_while(|l| *l < 1e9);
    let few = |parts: &Vec<Part>| parts.len() <= options.most_variants.max(1);
    let parts = limits.filter_map(|limit| cut(grid.len(), limit, &best)).find(few).unwrap_or_default();
    let mut from = options.tokens.0;
    let mut planned: Vec<Planned> = Vec::new();
    for (i, part) in parts.iter().enumerate() {
        let end = match parts.get(i + 1) {
            Some(next) => {
                last_no_worse(space, model, [&part.choice, &next.choice], (grid[next.first - 1], grid[next.first]))
            }
            None => options.tokens.1,
        };
        let program = space.program(&part.choice);
        match planned.last_mut().filter(|last| last.program == program) {
            Some(last) => last.tokens.1 = end,
            None => planned.push(Planned { tokens: (from, end), program }),
        }
        from = end + 1;
    }
    planned
}

/// The last token count before `to` for which the first choice is no worse than the second, as it is at `from`.
fn last_no_worse(space: &Space, model: &Model<'_>, choices: [&Choice; 2], (from, to): (u64, u64)) -> u64 {
    let (mut low, mut high) = (from, to);
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        let [first, second] = choices.map(|c| space.seconds(model, c, middle));
        if first <= second { low = middle } else { high = middle }
    }
    low
}
