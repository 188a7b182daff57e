//! Scales that no quantiser writes: zero over codes that are not, not a number, infinite, negative.
//!
//! AutoRound gives symmetric integers scales of either sign, in every format that it exports to: of integers, negative scales are
//! right where many are negative, and a damaged one where it stands alone.

use super::{Blocks, Elements, Integers};
use moec_ir::quant::{Code, ScaleCode};
use rayon::prelude::*;

/// A scale that is none: where it is, and what it is.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ScaleFault {
    /// The tensor of scales.
    pub tensor: String,
    /// The number of the scale in it.
    pub index: u64,
    /// Its value.
    pub value: f32,
}

/// Looks at every scale of a stored tensor, `either` where those of integers may be negative ([`either_sign`]).
///
/// A zero is a scale where all codes of its block are zero, too: some tools write one for blocks of nothing else.
pub(crate) fn check(elements: &Elements<'_>, either: bool) -> Result<(), ScaleFault> {
    match elements {
        Elements::Plain(..) => Ok(()),
        Elements::Blocks(b) => blocks(b, either),
        Elements::Integers(i) => integers(i, either),
        Elements::Ggml(q) => match q.bad_scale() {
            None => Ok(()),
            Some((index, value)) => Err(ScaleFault { tensor: q.name.clone(), index, value }),
        },
    }
}

fn blocks(b: &Blocks<'_>, either: bool) -> Result<(), ScaleFault> {
    let (grid_rows, grid_cols) = b.format.scale_grid(b.n, b.k);
    if b.n == 0 || b.k == 0 || all_positive(b.format.scale, b.scales.0) {
        return Ok(());
    }
    let either = either && b.format.code == Code::Int4;
    (0..b.matrices() * grid_rows).into_par_iter().try_for_each(|grid_row| {
        let first = grid_row / grid_rows * b.n + grid_row % grid_rows * b.format.block_rows.max(1);
        for grid_col in 0..grid_cols {
            let col = grid_col * b.format.block_cols;
            let index = b.scale_index(first, col);
            let value = b.scale_value(index);
            let right = value > 0.0 || value < 0.0 && either;
            let good = value.is_finite() && (right || value == 0.0 && block_is_zero(b, first, col));
            if !good {
                return Err(ScaleFault { tensor: b.scales_name.clone(), index, value });
            }
        }
        Ok(())
    })
}

/// Whether all scales are positive numbers, as nearly always: one look at their bytes.
fn all_positive(code: ScaleCode, bytes: &[u8]) -> bool {
    let fits = |chunk: &[u8]| match code {
        ScaleCode::E8M0 => chunk.iter().all(|&b| b != 0xff),
        ScaleCode::E4M3 => chunk.iter().all(|&b| (1..0x7f).contains(&b)),
        // Above zero and below infinity, as unsigned numbers.
        ScaleCode::F32 => chunk.as_chunks().0.iter().all(|w| (1..0x7f80_0000).contains(&u32::from_le_bytes(*w))),
        ScaleCode::BF16 => chunk.as_chunks().0.iter().all(|w| (1..0x7f80).contains(&u16::from_le_bytes(*w))),
        ScaleCode::F16 => chunk.as_chunks().0.iter().all(|w| (1..0x7c00).contains(&u16::from_le_bytes(*w))),
    };
    bytes.par_chunks(1 << 16).all(fits)
}

/// Whether all codes of the block that begins at `row` and `col` are zero.
fn block_is_zero(b: &Blocks<'_>, row: u64, col: u64) -> bool {
    let len = |block: u64, from: u64, all: u64| if block == 0 { all } else { block.min(all - from) };
    let rows = len(b.format.block_rows, row % b.n, b.n);
    let cols = len(b.format.block_cols, col, b.k);
    let per_byte = 8 / b.format.code.bits();
    let mut bytes = vec![0u8; b.format.code.bytes(col % per_byte + cols) as usize];
    (row..row + rows).all(|r| {
        b.copy_codes(r, col / per_byte, &mut bytes);
        (0..cols).all(|c| b.format.code.decode(&bytes, (col % per_byte + c) as usize) == 0.0)
    })
}

/// Whether so many scales of a layer's integers are negative that their sign was meant. A router alone has too few to tell.
pub(crate) fn either_sign<'e>(layer: impl Iterator<Item = &'e Elements<'e>>) -> bool {
    const FEW: u64 = 16;
    let (mut all, mut negative) = (0, 0);
    let count =
        |n: u64, value: &(dyn Fn(u64) -> f32 + Sync)| (0..n).into_par_iter().filter(|&i| value(i) < 0.0).count() as u64;
    for elements in layer {
        let (n, found) = match elements {
            Elements::Integers(q) => (q.n_scales(), count(q.n_scales(), &|i| q.scale_value(i))),
            Elements::Blocks(b) if b.format.code == Code::Int4 => {
                let n = b.scales.0.len() as u64 / b.format.scale.bytes();
                (n, count(n, &|i| b.scale_value(i)))
            }
            Elements::Blocks(_) | Elements::Plain(..) | Elements::Ggml(_) => (0, 0),
        };
        all += n;
        negative += found;
    }
    all >= FEW && negative * 8 >= all
}

fn integers(q: &Integers<'_>, either: bool) -> Result<(), ScaleFault> {
    if all_positive(q.scale, q.scales) {
        return Ok(());
    }
    (0..q.n_scales()).into_par_iter().try_for_each(|index| {
        let value = q.scale_value(index);
        let good =
            value.is_finite() && (value > 0.0 || value < 0.0 && either || value == 0.0 && q.is_zero_under(index));
        if good { Ok(()) } else { Err(ScaleFault { tensor: q.scales_name.clone(), index, value }) }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_looked_at_as_their_values_are() {
        for code in ScaleCode::ALL {
            for bits in 0..=0xffffu32 {
                let bytes = match code.bytes() {
                    1 => vec![bits as u8],
                    2 => (bits as u16).to_le_bytes().to_vec(),
                    _ => (bits << 16 | 1).to_le_bytes().to_vec(),
                };
                let value = code.decode(&bytes, 0);
                assert_eq!(all_positive(code, &bytes), value.is_finite() && value > 0.0, "{code:?} {bits:#x}");
            }
        }
    }
}
