//! Which blocks and groups scales are for, by their shape.

use moec_ir::quant::QuantFormat;

/// The blocks of a matrix, and how far apart the scales of matrices, rows of blocks and columns of blocks lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Grid {
    /// Rows of a block; 0 for all.
    pub rows: u64,
    /// Columns of a block; 0 for all.
    pub cols: u64,
    /// In scales.
    pub steps: [u64; 3],
}

/// The first of `blocks` (rows and columns, 0 for all) of which a stack `[leading.., n, k]` has as many as `scales` has axes
/// for: `[leading.., grid rows, grid columns]`, without axes of one at the end, or `[grid rows, 1, grid columns, 1]` as ModelOpt
/// writes them. One scale alone may stand for the whole stack.
pub(crate) fn grid(leading: &[u64], (n, k): (u64, u64), scales: &[u64], blocks: &[(u64, u64)]) -> Option<Grid> {
    let single = scales.iter().all(|&a| a == 1);
    let rest = scales.strip_prefix(leading);
    blocks.iter().copied().find_map(|(rows, cols)| {
        let count = |len: u64, block: u64| if block == 0 { 1 } else { len.div_ceil(block) };
        let (grid_rows, grid_cols) = (count(n, rows), count(k, cols));
        if single && grid_rows == 1 && grid_cols == 1 && (leading.is_empty() || (rows, cols) == (0, 0)) {
            return Some(Grid { rows, cols, steps: [0, 0, 0] });
        }
        let fits = match rest? {
            [] | [1] => grid_rows == 1 && grid_cols == 1,
            [a] => *a == grid_rows && grid_cols == 1,
            [a, b] | [a, 1, b, 1] => (*a, *b) == (grid_rows, grid_cols),
            _ => false,
        };
        let steps = [grid_rows.saturating_mul(grid_cols), grid_cols, 1];
        fits.then_some(Grid { rows, cols, steps })
    })
}

/// Whether a tensor of scales is as long as a format needs it.
pub(crate) fn covers(format: &QuantFormat, matrices: u64, (n, k): (u64, u64), steps: [u64; 3], bytes: usize) -> bool {
    let (rows, cols) = format.scale_grid(n, k);
    if matrices == 0 || n == 0 || k == 0 {
        return true;
    }
    let last = [(matrices - 1, steps[0]), (rows - 1, steps[1]), (cols - 1, steps[2])]
        .iter()
        .try_fold(0u64, |sum, &(count, step)| sum.checked_add(count.checked_mul(step)?));
    last.and_then(|l| (l + 1).checked_mul(format.scale.bytes())).is_some_and(|need| need <= bytes as u64)
}

/// Whether a tool may have cut rows of `k` columns into groups of `size`. A last group that is cut short fits many sizes; one that
/// is no multiple of eight comes from the config of another checkpoint.
pub(crate) fn plausible(size: u64, k: u64) -> bool {
    size >= k || k.is_multiple_of(size) || size.is_multiple_of(8)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blocks(leading: &[u64], nk: (u64, u64), scales: &[u64], of: &[(u64, u64)]) -> Option<(u64, u64)> {
        grid(leading, nk, scales, of).map(|g| (g.rows, g.cols))
    }

    #[test]
    fn scales_have_the_shape_of_their_blocks() {
        let all = [(0, 0), (1, 0), (128, 128)];
        assert_eq!(blocks(&[], (256, 64), &[], &all), Some((0, 0)));
        assert_eq!(blocks(&[], (256, 64), &[256], &all), Some((1, 0)));
        assert_eq!(blocks(&[], (256, 64), &[256, 1], &all), Some((1, 0)));
        assert_eq!(blocks(&[], (256, 200), &[2, 2], &all), Some((128, 128)));
        assert_eq!(blocks(&[], (256, 200), &[2, 1, 2, 1], &all), Some((128, 128)));
        assert_eq!(blocks(&[], (256, 200), &[4, 1], &all), None);
        assert_eq!(blocks(&[], (256, 200), &[2, 2], &[(128, 64)]), None);
    }

    #[test]
    fn a_stack_has_a_scale_for_all_or_one_for_each() {
        let grid = |scales: &[u64]| grid(&[3], (8, 8), scales, &[(0, 0), (1, 0)]).map(|g| (g.rows, g.steps));
        assert_eq!(grid(&[]), Some((0, [0, 0, 0])));
        assert_eq!(grid(&[1, 1, 1]), Some((0, [0, 0, 0])));
        assert_eq!(grid(&[3]), Some((0, [1, 1, 1])));
        assert_eq!(grid(&[3, 8]), Some((1, [8, 1, 1])));
        assert_eq!(grid(&[8, 3]), None);
    }
}
