//! Grids: how many blocks a kernel asks for.

use moec_ir::shape::Dim;
use moec_ir::tile::Extent;

/// The blocks of a kernel along one axis: tiles of rows times tiles of columns.
pub struct Grid;

impl Grid {
    /// `col_tiles` blocks for every `tile_rows` of `rows` rows.
    pub fn tiles(rows: Dim, tile_rows: u32, col_tiles: u64) -> Extent {
        match rows {
            Dim::Fixed(n) => Extent::fixed(n.div_ceil(tile_rows.into()) * col_tiles),
            Dim::PerToken(k) => Extent::tiles(k, tile_rows.into(), col_tiles),
        }
    }

    /// An extent that is at least each of `a` and `b` for every token count.
    pub fn cover(a: Extent, b: Extent) -> Extent {
        if a.mul == 0 || b.mul == 0 {
            let (fixed, other) = if a.mul == 0 { (a, b) } else { (b, a) };
            return Extent { min: fixed.min.max(other.min), ..other };
        }
        Extent {
            mul: a.mul.max(b.mul),
            per_token: a.per_token.max(b.per_token),
            div: a.div.min(b.div),
            add: a.add.max(b.add),
            min: a.min.max(b.min),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_covering_extent_is_large_enough_for_both() {
        let grouped = Extent::grouped_tiles(8, 64, 256, 32);
        let dense = Extent::tiles(1, 16, 112);
        let both = Grid::cover(grouped, dense);
        for t in [0, 1, 2, 7, 16, 130, 4096] {
            assert!(both.at(t) >= grouped.at(t).max(dense.at(t)), "T = {t}");
        }
    }

    #[test]
    fn a_fixed_extent_becomes_the_lower_bound() {
        let both = Grid::cover(Extent::fixed(12), Extent::tiles(1, 16, 2));
        assert_eq!((both.at(0), both.at(1000)), (12, 126));
    }
}
