//! Copies and converts a row of stored floats; the loops that loading a layer spends its time in.

use half::f16;
use moec_ir::DType;

/// Where the elements of a row lie in a stored tensor, in bytes.
#[derive(Clone, Copy)]
pub(crate) struct Source<'a> {
    pub data: &'a [u8],
    /// The first element.
    pub start: usize,
    /// From one element to the next.
    pub stride: usize,
}

/// Fills `out` with as many elements as it has room for, from type `from`, rounded to `through` and then to `to`, both to
/// nearest even. All three are f32, f16 or bf16; other types leave `out` as it is.
pub(crate) fn convert_row(source: Source<'_>, from: DType, through: DType, to: DType, out: &mut [u8]) {
    if from == to && from == through {
        match from {
            DType::F32 => gather::<4>(source, out),
            DType::F16 | DType::BF16 => gather::<2>(source, out),
            DType::F64 | DType::I32 | DType::I64 | DType::U8 => {}
        }
        return;
    }
    // In pieces that stay in the first-level cache between reading and writing.
    let mut values = [0f32; 256];
    let width = to.bytes();
    for (piece, out) in out.chunks_mut(values.len() * width).enumerate() {
        let values = &mut values[..out.len() / width];
        let start = source.start + piece * 256 * source.stride;
        let source = Source { start, ..source };
        match from {
            DType::F32 => read::<4>(source, values, f32::from_le_bytes),
            DType::F16 => read::<2>(source, values, |b| f16::from_le_bytes(b).to_f32()),
            DType::BF16 => read::<2>(source, values, |b| f32::from_bits(u32::from(u16::from_le_bytes(b)) << 16)),
            DType::F64 | DType::I32 | DType::I64 | DType::U8 => return,
        }
        if through != to && through != from && through != DType::F32 {
            values.iter_mut().for_each(|v| *v = through.round(*v));
        }
        match to {
            DType::F32 => write::<4>(values, out, f32::to_le_bytes),
            DType::F16 => write::<2>(values, out, |v| f16::from_f32(v).to_le_bytes()),
            DType::BF16 => write::<2>(values, out, |v| bf16_bits(v).to_le_bytes()),
            DType::F64 | DType::I32 | DType::I64 | DType::U8 => return,
        }
    }
}

fn gather<const N: usize>(source: Source<'_>, out: &mut [u8]) {
    if source.stride == N {
        out.copy_from_slice(&source.data[source.start..source.start + out.len()]);
        return;
    }
    let mut at = source.start;
    for out in out.chunks_exact_mut(N) {
        out.copy_from_slice(&source.data[at..at + N]);
        at += source.stride;
    }
}

fn read<const N: usize>(source: Source<'_>, values: &mut [f32], widen: impl Fn([u8; N]) -> f32) {
    let element = |bytes: &[u8]| bytes.first_chunk::<N>().copied().unwrap_or([0; N]);
    if source.stride == N {
        let bytes = &source.data[source.start..source.start + values.len() * N];
        values.iter_mut().zip(bytes.chunks_exact(N)).for_each(|(v, b)| *v = widen(element(b)));
        return;
    }
    let mut at = source.start;
    for v in values {
        *v = widen(element(&source.data[at..at + N]));
        at += source.stride;
    }
}

fn write<const N: usize>(values: &[f32], out: &mut [u8], narrow: impl Fn(f32) -> [u8; N]) {
    values.iter().zip(out.chunks_exact_mut(N)).for_each(|(v, o)| o.copy_from_slice(&narrow(*v)));
}

/// The upper half of an f32, rounded to nearest even; a NaN stays one. Written without calls so that loops are vectorised.
fn bf16_bits(x: f32) -> u16 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7FFF + ((bits >> 16) & 1));
    ((if x.is_nan() { bits | 0x40_0000 } else { rounded }) >> 16) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bf16_rounds_as_the_half_crate_does() {
        // All upper halves, with the lower halves around the rounding boundary.
        for high in 0..=u16::MAX {
            for low in [0u32, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF] {
                let x = f32::from_bits(u32::from(high) << 16 | low);
                assert_eq!(bf16_bits(x), half::bf16::from_f32(x).to_bits(), "{:#x}", x.to_bits());
            }
        }
    }
}
