//! Numbers that operations are evaluated over: elements of a finite field, and reals that know how far f32 may be from them.

use moec_ir::DType;

/// What an operation computes with.
pub trait Number: Clone {
    /// A constant.
    fn constant(c: f32) -> Self;
    /// Minus infinity: a score that is never chosen.
    fn masked() -> Self;
    /// Where it lies on the line of reals: what choices are made by.
    fn real(&self) -> f64;
    /// The sum.
    fn add(&self, other: &Self) -> Self;
    /// The product.
    fn mul(&self, other: &Self) -> Self;
    /// The quotient.
    fn div(&self, other: &Self) -> Self;
    /// A function that nothing is known of but its values, which `of_reals` gives; `name` tells it from others.
    fn function(name: &str, args: &[Self], of_reals: impl Fn(&[f64]) -> f64) -> Self;
    /// Rounded to a type.
    fn rounded(&self, dtype: DType) -> Self;
}

/// The largest prime below 2^64.
const PRIME: u64 = u64::MAX - 58;

/// Constants of a smaller magnitude count as zero: they guard divisions, and rules may drop them.
const NOTHING: f32 = 1e-12;

/// An element of the field of [`PRIME`] elements, and the real beside it, by which choices are made.
///
/// Sums, products and quotients are those of the field, so two expressions that are equal over the rationals are equal here, and two
/// that are not differ but with a probability of about their degree over 2^64, for random operands (Schwartz and Zippel). Any other
/// function is a hash of its name and operands: nothing holds for it but that equal operands give equal values. Rounding does
/// nothing.
#[derive(Clone, Copy, Debug)]
pub struct Field {
    /// The element.
    pub element: u64,
    /// The real beside it.
    pub real: f64,
}

impl Field {
    /// An element that depends on `seed` alone, beside a real.
    pub fn random(seed: u64, real: f64) -> Field {
        Field { element: mix(seed) % PRIME, real }
    }
}

/// A permutation of 64 bits that looks random (the finaliser of SplitMix64).
fn mix(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

fn times(a: u64, b: u64) -> u64 {
    (u128::from(a) * u128::from(b) % u128::from(PRIME)) as u64
}

fn power(base: u64, mut exponent: u64) -> u64 {
    let (mut square, mut result) = (base, 1);
    while exponent > 0 {
        if exponent & 1 == 1 {
            result = times(result, square);
        }
        square = times(square, square);
        exponent >>= 1;
    }
    result
}

/// The quotient 1 / a by Fermat's little theorem; 0 for 0.
fn inverse(a: u64) -> u64 {
    power(a, PRIME - 2)
}

impl Number for Field {
    fn constant(c: f32) -> Field {
        if !c.is_finite() {
            return Field::function(&format!("{c}"), &[], |_| f64::from(c));
        }
        let real = f64::from(c);
        if c.abs() < NOTHING {
            return Field { element: 0, real };
        }
        // c = ± mantissa · 2^(exponent - 150), with a mantissa of 24 bits; subnormal numbers are nothing.
        let (mantissa, exponent) =
            (u64::from(c.to_bits() & 0x7F_FFFF | 0x80_0000), u64::from(c.to_bits() >> 23 & 0xFF));
        let scale = if exponent >= 150 { power(2, exponent - 150) } else { inverse(power(2, 150 - exponent)) };
        let element = times(mantissa, scale);
        Field { element: if c < 0.0 { PRIME - element } else { element }, real }
    }

    fn masked() -> Field {
        Field::constant(f32::NEG_INFINITY)
    }

    fn real(&self) -> f64 {
        self.real
    }

    fn add(&self, other: &Field) -> Field {
        let sum = (u128::from(self.element) + u128::from(other.element)) % u128::from(PRIME);
        Field { element: sum as u64, real: self.real + other.real }
    }

    fn mul(&self, other: &Field) -> Field {
        Field { element: times(self.element, other.element), real: self.real * other.real }
    }

    fn div(&self, other: &Field) -> Field {
        Field { element: times(self.element, inverse(other.element)), real: self.real / other.real }
    }

    fn function(name: &str, args: &[Field], of_reals: impl Fn(&[f64]) -> f64) -> Field {
        let hash = name.bytes().fold(0x6D6F_6563, |h, byte| mix(h ^ u64::from(byte)));
        let hash = args.iter().fold(hash, |h, a| mix(h ^ a.element));
        let reals: Vec<f64> = args.iter().map(|a| a.real).collect();
        Field { element: hash % PRIME, real: of_reals(&reals) }
    }

    fn rounded(&self, _dtype: DType) -> Field {
        *self
    }
}

/// A real in f64, and how far an evaluation may be from it that computes every operation in f32, in any order of sums, and rounds
/// where the graph says so.
#[derive(Clone, Copy, Debug)]
pub struct Bounded {
    /// The value.
    pub value: f64,
    /// The bound.
    pub bound: f64,
}

impl Bounded {
    /// A value that is what it is.
    pub fn exact(value: f32) -> Bounded {
        Bounded { value: f64::from(value), bound: 0.0 }
    }

    /// After one operation in f32.
    fn after(value: f64, bound: f64) -> Bounded {
        Bounded { value, bound }.rounded(DType::F32)
    }
}

impl Number for Bounded {
    fn constant(c: f32) -> Bounded {
        Bounded::exact(c)
    }

    fn masked() -> Bounded {
        Bounded::exact(f32::NEG_INFINITY)
    }

    fn real(&self) -> f64 {
        self.value
    }

    fn add(&self, other: &Bounded) -> Bounded {
        Bounded::after(self.value + other.value, self.bound + other.bound)
    }

    fn mul(&self, other: &Bounded) -> Bounded {
        let bound = self.bound * (other.value.abs() + other.bound) + self.value.abs() * other.bound;
        Bounded::after(self.value * other.value, bound)
    }

    fn div(&self, other: &Bounded) -> Bounded {
        let value = self.value / other.value;
        Bounded::after(value, (self.bound + value.abs() * other.bound) / (other.value.abs() - other.bound).max(0.0))
    }

    fn function(_name: &str, args: &[Bounded], of_reals: impl Fn(&[f64]) -> f64) -> Bounded {
        let values: Vec<f64> = args.iter().map(|a| a.value).collect();
        let value = of_reals(&values);
        // Functions are smooth or steps between neighbours, so the ends of each operand's interval tell how far it goes.
        let moved = |i: usize, by: f64| {
            let mut at = values.clone();
            at[i] += by;
            (of_reals(&at) - value).abs()
        };
        let bound = (0..args.len()).map(|i| moved(i, args[i].bound).max(moved(i, -args[i].bound))).sum();
        Bounded::after(value, bound)
    }

    fn rounded(&self, dtype: DType) -> Bounded {
        // Half a unit in the last place, and half of the smallest number.
        let (relative, least) = match dtype {
            DType::BF16 => (2f64.powi(-9), 2f64.powi(-134)),
            DType::F16 => (2f64.powi(-11), 2f64.powi(-25)),
            DType::F32 => (2f64.powi(-24), 2f64.powi(-150)),
            DType::F64 | DType::I32 | DType::I64 | DType::U8 => (0.0, 0.0),
        };
        let size = self.value.abs() + self.bound;
        Bounded { value: self.value, bound: self.bound + if size.is_finite() { relative * size } else { 0.0 } + least }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_field_is_one() {
        let of = Field::constant;
        for (a, b) in [(3.0, 0.25), (-1.5, 7.0), (1e6, -0.3)] {
            let (x, y) = (of(a), of(b));
            assert_eq!(x.mul(&y).div(&y).element, x.element);
            assert_eq!(x.add(&y).element, y.add(&x).element);
            assert_eq!(x.mul(&y.add(&of(1.0))).element, x.mul(&y).add(&x).element);
        }
        assert_eq!(of(0.5).add(&of(0.25)).element, of(0.75).element);
        assert_eq!(of(-2.0).add(&of(2.0)).element, 0);
        assert_ne!(of(2f32.powi(61)).element, of(1.0).element);
        let f = |x: f32| Field::function("f", &[of(x)], |x| x[0]);
        assert_eq!(f(2.0).element, f(2.0).element);
        assert_ne!(f(2.0).element, f(3.0).element);
    }

    #[test]
    fn bounds_hold_what_rounding_does() {
        let (a, b) = (0.1f32, 0.3f32);
        let sum = Bounded::exact(a).mul(&Bounded::exact(b)).add(&Bounded::exact(b)).rounded(DType::BF16);
        let computed = f64::from(DType::BF16.round(a * b + b));
        assert!((computed - sum.value).abs() <= sum.bound && sum.bound < 4e-3, "{sum:?} {computed}");
    }
}
