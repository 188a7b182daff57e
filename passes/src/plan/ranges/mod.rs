//! Ranges of token counts: as few as keep within bounds what a token count loses by running the program of its range
//! instead of its own best one.

mod regret;

use super::model::Model;
use super::{Choice, Options, Planned, Space};
use regret::{Lost, Priced, REGRET, SKEWED_REGRET};
use std::ops::Range;

/// What skewed routing may lose before uniform routing loses more.
const MOST_SKEWED_REGRET: f64 = 0.3;

/// Above this, more tokens are more of the same.
const LARGEST: u64 = 16384;

/// Above this, a quarter of the way to the next power of two has a point of its own: rows that all go to the same experts fill tiles at
/// powers of two, and half way between.
const QUARTERS: u64 = 16;

/// Powers of two, half and quarters of the way between, that lie in `tokens`; at least one.
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

/// The fewest parts of a grid of `n` that lose at most `limit`; among those the ones that lose least.
fn cut(n: usize, limit: Lost, best: &[Vec<Lost>]) -> Option<Vec<Range<usize>>> {
    // For each end: parts, what they lose together, and where the last begins.
    let mut ways: Vec<Option<(usize, f64, usize)>> = vec![Some((0, 0.0, 0))];
    for end in 1..=n {
        let way = |first: usize| {
            let ((parts, lost, _), worst) = (ways[first]?, best[first][end - 1 - first]);
            worst.is_within(limit).then_some((parts + 1, lost + worst.weighed(), first))
        };
        ways.push((0..end).filter_map(way).reduce(|a, b| if (b.0, b.1) < (a.0, a.1) { b } else { a }));
    }
    let mut parts = Vec::new();
    let mut end = n;
    while end > 0 {
        let (.., first) = ways[end]?;
        parts.push(first..end);
        end = first;
    }
    parts.reverse();
    Some(parts)
}

/// What may be lost: first as little as is wanted; then more with skewed routing, and behind some of that with all.
fn limits() -> impl Iterator<Item = Lost> {
    let growing = std::iter::successors(Some(1.0), |x| Some(x * 1.25)).take_while(|x| *x < 1e10);
    growing.map(|x: f64| {
        let uniform = (x * SKEWED_REGRET / MOST_SKEWED_REGRET).max(1.0) * REGRET;
        Lost { uniform, skewed: x * SKEWED_REGRET }
    })
}

/// The programs for a layer's token counts.
pub fn ranges(space: &Space, model: &Model<'_>, options: &Options) -> Vec<Planned> {
    let grid = grid(options.tokens);
    let priced = Priced::new(space, model, &grid);
    let best: Vec<Vec<Lost>> = (0..grid.len()).map(|first| priced.best_from(first, grid.len())).collect();
    // What may be lost grows until the programs are few enough, which one program is in the end.
    let few = |parts: &Vec<Range<usize>>| parts.len() <= options.most_variants.max(1);
    let parts = limits().filter_map(|limit| cut(grid.len(), limit, &best)).find(few).unwrap_or_default();
    let choices: Vec<Choice> = parts.iter().map(|p| priced.choice(&priced.refined(p))).collect();
    let mut from = options.tokens.0;
    let mut planned: Vec<Planned> = Vec::new();
    for (i, choice) in choices.iter().enumerate() {
        let end = match (parts.get(i + 1), choices.get(i + 1)) {
            (Some(part), Some(next)) => {
                last_no_worse(space, model, [choice, next], (grid[part.start - 1], grid[part.start]))
            }
            _ => options.tokens.1,
        };
        let program = space.program(choice);
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
