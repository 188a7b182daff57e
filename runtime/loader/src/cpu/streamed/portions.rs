//! A step that needs more experts than memory may hold, cut into ranges of experts.

use std::ops::Range;

/// Portions of a limit: while one is multiplied the next is read, and what is left keeps experts for the steps to come.
const OF_LIMIT: u64 = 4;

/// Experts for which a kernel runs at once.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Portion {
    /// Which of the kernels.
    pub kernel: usize,
    /// From the first expert up to one behind the last.
    range: Range<usize>,
    /// Those of them that have rows.
    pub experts: Vec<usize>,
}

/// The portions of all kernels, in the order in which they run, at least one for each. `offsets[e] .. offsets[e + 1]` are the rows
/// of expert `e`; `costs` the bytes of one expert that each kernel reads, none of which is above the limit.
///
/// A kernel has one portion when a whole step fits in the limit.
pub(super) fn cut(offsets: &[i32], costs: &[u64], limit: u64) -> Vec<Portion> {
    let n_experts = offsets.len() - 1;
    let chosen: Vec<usize> = (0..n_experts).filter(|&e| offsets[e] < offsets[e + 1]).collect();
    let step: u64 = costs.iter().map(|cost| cost * chosen.len() as u64).sum();
    let mut portions = Vec::new();
    for (kernel, &cost) in costs.iter().enumerate() {
        let most = if step <= limit { chosen.len() } else { (limit / OF_LIMIT / cost.max(1)) as usize }.max(1);
        // Of about the same size.
        let n = chosen.len().div_ceil(most).max(1);
        let cuts = |i: usize| chosen.len() * i / n;
        portions.extend((0..n).map(|i| {
            let experts = chosen[cuts(i)..cuts(i + 1)].to_vec();
            let range = match (experts.first(), experts.last()) {
                (Some(&first), Some(&last)) => first..last + 1,
                _ => 0..0,
            };
            Portion { kernel, range, experts }
        }));
    }
    portions
}

impl Portion {
    /// Offsets that give the experts of this portion their rows, and all others none.
    pub fn mask(&self, offsets: &[i32], masked: &mut [i32]) {
        let (first, last) = (offsets[self.range.start], offsets[self.range.end]);
        masked.iter_mut().zip(offsets).for_each(|(m, &o)| *m = o.clamp(first, last));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Experts 0, 2, 3 and 6 of seven have rows.
    const OFFSETS: [i32; 8] = [0, 2, 2, 3, 7, 7, 7, 9];

    #[test]
    fn a_step_that_fits_is_one_portion_for_each_kernel() {
        let portions = cut(&OFFSETS, &[20, 10], 120);
        assert_eq!(portions.len(), 2);
        assert!(portions.iter().enumerate().all(|(k, p)| p.kernel == k && p.experts == [0, 2, 3, 6]));
        let mut masked = [0; 8];
        portions[0].mask(&OFFSETS, &mut masked);
        assert_eq!(masked, OFFSETS);
    }

    #[test]
    fn portions_give_every_expert_its_rows_once() {
        for limit in [20, 40, 80, 100, 119] {
            let portions = cut(&OFFSETS, &[20, 10], limit);
            for kernel in [0, 1] {
                let mut rows = [0; 7];
                for p in portions.iter().filter(|p| p.kernel == kernel) {
                    let mut masked = [0; 8];
                    p.mask(&OFFSETS, &mut masked);
                    for e in 0..7 {
                        let n = masked[e + 1] - masked[e];
                        assert!(n == 0 || (masked[e], masked[e + 1]) == (OFFSETS[e], OFFSETS[e + 1]), "{masked:?}");
                        assert_eq!(n > 0, p.experts.contains(&e));
                        rows[e] += n;
                    }
                    assert!(p.experts.len() as u64 * [20, 10][kernel] <= limit);
                }
                assert_eq!(rows, [2, 0, 1, 4, 0, 0, 2], "limit {limit}");
            }
        }
    }

    #[test]
    fn a_kernel_runs_once_when_no_expert_has_rows() {
        let portions = cut(&[0; 5], &[20], 20);
        assert_eq!(portions, [Portion { kernel: 0, range: 0..0, experts: vec![] }]);
        let mut masked = [1; 5];
        portions[0].mask(&[0; 5], &mut masked);
        assert_eq!(masked, [0; 5]);
    }
}
