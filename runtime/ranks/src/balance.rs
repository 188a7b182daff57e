//! A placement from measured counts.

use moec_ir::Placement;
use moec_ir::diag::Diagnostic;

/// Spreads experts with the loads `counts` over `n_ranks` ranks, with room for `n_redundant` more copies of the busiest.
///
/// First each further copy goes to the expert whose load for each copy is the largest; then copies, the heaviest first, go to the
/// rank with the least load that has room and does not hold the expert. Ranks have room for as many copies as they get when
/// all are spread evenly. A copy that finds no such rank is left out, and the expert's other copies share its load.
/// Ties go to the lower number: the same counts give the same map.
///
/// Source: DeepSeek's EPLB (github.com/deepseek-ai/EPLB, `replicate_experts` and `balanced_packing`, without groups of
/// experts and nodes); the packing is longest processing time first, Graham 1969, "Bounds on multiprocessing timing anomalies".
///
/// # Errors
/// `placement-invalid` for no ranks, or too many.
pub fn place_experts(counts: &[u64], n_ranks: u32, n_redundant: u32, version: u64) -> Result<Placement, Diagnostic> {
    let n = (n_ranks as usize).max(1);
    let mut copies = vec![1usize; counts.len()];
    let load = |e: usize, copies: &[usize]| counts[e] as f64 / copies[e] as f64;
    for _ in 0..n_redundant {
        // More copies than ranks are of no use.
        let open = (0..counts.len()).filter(|&e| copies[e] < n);
        let Some(busiest) = open.reduce(|a, b| if load(b, &copies) > load(a, &copies) { b } else { a }) else { break };
        copies[busiest] += 1;
    }
    let mut order: Vec<usize> = (0..counts.len()).collect();
    order.sort_by(|&a, &b| load(b, &copies).total_cmp(&load(a, &copies)).then(a.cmp(&b)));
    let room = copies.iter().sum::<usize>().div_ceil(n);
    let mut ranks: Vec<Vec<u32>> = vec![Vec::new(); n];
    let mut loads = vec![0.0f64; n];
    for e in order {
        for copy in 0..copies[e] {
            let free = (0..n).filter(|&r| ranks[r].len() < room && !ranks[r].contains(&(e as u32)));
            let least = free.reduce(|a, b| if loads[b] < loads[a] { b } else { a });
            let Some(rank) = least else {
                debug_assert!(copy > 0, "every expert should find a rank");
                break;
            };
            ranks[rank].push(e as u32);
            loads[rank] += load(e, &copies);
        }
    }
    ranks.iter_mut().for_each(|r| r.sort_unstable());
    Placement::new(version, counts.len() as u32, if n_ranks == 0 { Vec::new() } else { ranks })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_busiest_expert_is_held_twice() {
        let p = place_experts(&[90, 10, 10, 10], 2, 1, 4).unwrap();
        assert_eq!((p.replicas_of(0).len(), p.version()), (2, 4));
        assert!((p.imbalance(&[90, 10, 10, 10]) - 65.0 / 60.0).abs() < 1e-12);
        assert!(place_experts(&[1, 1], 0, 0, 0).is_err());
    }

    #[test]
    fn every_expert_has_a_rank_whatever_the_numbers() {
        for n_experts in [1usize, 2, 3, 7, 8] {
            for n_ranks in 1..=5u32 {
                for n_redundant in [0, 1, 3, 50] {
                    let counts: Vec<u64> = (0..n_experts as u64).map(|e| e * e % 5 * 10).collect();
                    let p = place_experts(&counts, n_ranks, n_redundant, 0).unwrap();
                    let most = (n_experts + n_redundant as usize).div_ceil(n_ranks as usize);
                    assert!(p.most_local() as usize <= most, "{n_experts} {n_ranks} {n_redundant}");
                }
            }
        }
    }
}
