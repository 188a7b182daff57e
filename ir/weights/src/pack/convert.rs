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
            DType::F16 => read::<2>(source, values, |b| f16_value(u16::from_le_bytes(b))),
            DType::BF16 => read::<2>(source, values, |b| f32::from_bits(u32::from(u16::from_le_bytes(b)) << 16)),
            DType::F64 | DType::I32 | DType::I64 | DType::U8 => return,
        }
        narrow(values, from, through, to, out);
    }
}

/// Writes values that came from type `from` to `out`, rounded to `through` and then to `to`, both to nearest even.
pub(crate) fn narrow(values: &mut [f32], from: DType, through: DType, to: DType, out: &mut [u8]) {
    if through != to && through != from {
        match through {
            DType::BF16 => values.iter_mut().for_each(|v| *v = f32::from_bits(u32::from(bf16_bits(*v)) << 16)),
            DType::F16 => values.iter_mut().for_each(|v| *v = through.round(*v)),
            DType::F32 | DType::F64 | DType::I32 | DType::I64 | DType::U8 => {}
        }
    }
    match to {
        DType::F32 => write::<4>(values, out, f32::to_le_bytes),
        DType::F16 => write::<2>(values, out, |v| f16::from_f32(v).to_le_bytes()),
        DType::BF16 => write::<2>(values, out, |v| bf16_bits(v).to_le_bytes()),
        DType::F64 | DType::I32 | DType::I64 | DType::U8 => {}
    }
}

fn gather<const N: usize>(source: Source<'_>, out: &mut [u8]) {
    if source.stride == N {
        out.copy_from_slice(&source.data[source.start..source.start + out.len()]);
        return;
    }
    let (mut data, mut out) = (&source.data[source.start..], out);
    if N == 2 && source.stride == 4 {
        // Every second element of two bytes, as of matrices whose rows take turns. Two in a word: few instructions, so
        // that the processor has several runs of memory on their way.
        let done = data.len().min(out.len() * 2) / 8;
        for (out, four) in out.chunks_exact_mut(4).zip(data.as_chunks().0) {
            let four = u64::from_le_bytes(*four);
            let two = (four & 0xFFFF) as u32 | (four >> 16) as u32 & 0xFFFF_0000;
            out.copy_from_slice(&two.to_le_bytes());
        }
        (data, out) = (&data[done * 8..], &mut out[done * 4..]);
    }
    let elements = data.chunks(source.stride.max(N));
    out.chunks_exact_mut(N).zip(elements).for_each(|(out, element)| out.copy_from_slice(&element[..N]));
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

/// The value of a binary16; a NaN becomes quiet, as processors make it. Written without calls so that loops are
/// vectorised.
pub(crate) fn f16_value(bits: u16) -> f32 {
    const EXPONENTS_APART: f32 = f32::from_bits((127 + 112) << 23);
    let magnitude = u32::from(bits & 0x7FFF) << 13;
    // Exact, also for subnormals; what has the largest exponent is infinite or a NaN instead.
    let finite = (f32::from_bits(magnitude) * EXPONENTS_APART).to_bits();
    let quiet = if bits & 0x3FF == 0 { 0 } else { 0x40_0000 };
    let value = if bits & 0x7C00 == 0x7C00 { magnitude | 0x7F80_0000 | quiet } else { finite };
    f32::from_bits(value | u32::from(bits & 0x8000) << 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn f16_widens_as_the_half_crate_does() {
        for bits in 0..=u16::MAX {
            assert_eq!(f16_value(bits).to_bits(), f16::from_bits(bits).to_f32().to_bits(), "{bits:#x}");
        }
    }

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
