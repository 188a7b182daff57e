//! Rounding to 16-bit floats and back, without branches, so that loops over it become vector code.

use moec_ir::DType;

/// The bits of a number rounded to bf16, to nearest even. A NaN stays one if it is quiet.
#[inline(always)]
pub(crate) fn narrow_bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    (bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16) as u16
}

/// The bits of a number rounded to f16: to nearest even, subnormals kept, overflow to infinity, a NaN stays one.
#[inline(always)]
pub(crate) fn narrow_f16(x: f32) -> u16 {
    let bits = x.to_bits();
    let magnitude = bits & 0x7fff_ffff;
    let normal = (magnitude.wrapping_add(0xfff + (magnitude >> 13 & 1)) >> 13).wrapping_sub(112 << 10);
    // Adding ½ leaves one unit in the last place per 2⁻²⁴, which is the spacing of f16 subnormals.
    let small = (f32::from_bits(magnitude) + 0.5).to_bits().wrapping_sub(0.5f32.to_bits());
    // 2⁻¹⁴ is the least normal f16, 65520 the least number that rounds to infinity.
    let finite = if magnitude < 0x3880_0000 { small } else { normal };
    let capped = if magnitude >= 0x477f_f000 { 0x7c00 } else { finite };
    let value = if magnitude > 0x7f80_0000 { 0x7e00 } else { capped };
    (value | bits >> 16 & 0x8000) as u16
}

/// The number with these bits of f16.
#[inline(always)]
pub(crate) fn widen_f16(half: u16) -> f32 {
    let magnitude = u32::from(half & 0x7fff) << 13;
    // As f32 bits this is the value times 2⁻¹¹², subnormal or not.
    let finite = (f32::from_bits(magnitude) * f32::from_bits((127 + 112) << 23)).to_bits();
    let value = if magnitude >= 0x1f << 23 { finite | 0x7f80_0000 } else { finite };
    f32::from_bits(value | u32::from(half & 0x8000) << 16)
}

/// A number rounded to a float type.
#[inline(always)]
pub(crate) fn round(x: f32, to: DType) -> f32 {
    match to {
        DType::BF16 if x.is_nan() => x,
        DType::BF16 => f32::from_bits(u32::from(narrow_bf16(x)) << 16),
        DType::F16 => widen_f16(narrow_f16(x)),
        DType::F64 | DType::F32 | DType::I32 | DType::I64 | DType::U8 => x,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use moec_ir::Tensor;

    /// Numbers around every boundary of the 16-bit types.
    fn numbers() -> Vec<f32> {
        let near = |b: u32| [b.wrapping_sub(1), b, b.wrapping_add(1)];
        (0..=u16::MAX)
            .flat_map(|h| [u32::from(h) << 16, u32::from(h) << 16 | 0x8000, u32::from(h) << 16 | 0x1000])
            .flat_map(near)
            .map(f32::from_bits)
            .filter(|x| !x.is_nan())
            .collect()
    }

    #[test]
    fn every_boundary_rounds_as_tensors_do() {
        let x = numbers();
        for to in [DType::BF16, DType::F16] {
            let want = Tensor::float(to, &[x.len()], x.clone());
            for (x, want) in x.iter().zip(want.floats()) {
                let got = round(*x, to);
                assert_eq!(got.to_bits(), want.to_bits(), "{x:e} to {to}: {got:e}, not {want:e}");
            }
        }
    }

    #[test]
    fn nan_stays_nan() {
        for x in [f32::NAN, -f32::NAN, f32::from_bits(0x7f80_0001), f32::from_bits(0xffff_ffff)] {
            assert!(round(x, DType::BF16).is_nan() && round(x, DType::F16).is_nan());
        }
        assert!(widen_f16(0x7c01).is_nan() && widen_f16(0xfe00).is_nan());
    }
}
