//! Floating point by exact arithmetic, for comparison with the emulator.
//!
//! Nothing here shares an idea with the emulator's own conversions. A number is an exact fixed-point integer of 4,480 bits,
//! so that sums, products and fused products of f64 never round. Rounding is a binary search over the codes of the
//! destination: for every format the positive codes stand in the order of their values.

/// Words of a number.
const WORDS: usize = 70;
/// Weight of bit 0 is 2^-SCALE. The product of two smallest f64 is 2^-2148.
const SCALE: i32 = 2200;

/// An exact number: sign and magnitude.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Exact {
    pub negative: bool,
    magnitude: [u64; WORDS],
}

impl Exact {
    pub fn zero(negative: bool) -> Self {
        Self { negative, magnitude: [0; WORDS] }
    }

    /// `mantissa * 2^exponent`
    pub fn new(negative: bool, mantissa: u64, exponent: i32) -> Self {
        let mut out = Self::zero(negative);
        let at = exponent + SCALE;
        assert!(at >= 0, "exponent {exponent} is below the range");
        let (word, bit) = (at as usize / 64, at as usize % 64);
        let wide = u128::from(mantissa) << bit;
        out.magnitude[word] = wide as u64;
        out.magnitude[word + 1] = (wide >> 64) as u64;
        out
    }

    pub fn is_zero(&self) -> bool {
        self.magnitude.iter().all(|w| *w == 0)
    }

    /// Compares magnitudes.
    pub fn compare(&self, other: &Self) -> std::cmp::Ordering {
        self.magnitude.iter().rev().cmp(other.magnitude.iter().rev())
    }

    fn add_magnitude(&self, other: &Self) -> [u64; WORDS] {
        let mut carry = false;
        std::array::from_fn(|i| {
            let (sum, c1) = self.magnitude[i].overflowing_add(other.magnitude[i]);
            let (sum, c2) = sum.overflowing_add(u64::from(carry));
            carry = c1 || c2;
            sum
        })
    }

    fn sub_magnitude(&self, other: &Self) -> [u64; WORDS] {
        let mut borrow = false;
        std::array::from_fn(|i| {
            let (rest, b1) = self.magnitude[i].overflowing_sub(other.magnitude[i]);
            let (rest, b2) = rest.overflowing_sub(u64::from(borrow));
            borrow = b1 || b2;
            rest
        })
    }

    /// The sum. An exact zero takes the sign that IEEE 754 gives it: that of both, or `-` only when rounding down.
    pub fn plus(&self, other: &Self, mode: Mode) -> Self {
        if self.negative == other.negative {
            return Self { negative: self.negative, magnitude: self.add_magnitude(other) };
        }
        match self.compare(other) {
            std::cmp::Ordering::Equal => Self::zero(mode == Mode::Down),
            std::cmp::Ordering::Greater => Self { negative: self.negative, magnitude: self.sub_magnitude(other) },
            std::cmp::Ordering::Less => Self { negative: other.negative, magnitude: other.sub_magnitude(self) },
        }
    }

    fn doubled(&self) -> Self {
        Self { negative: self.negative, magnitude: self.add_magnitude(self) }
    }
}

/// How a number that the format does not hold is rounded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// `.rn`: nearest, ties to the even code.
    Even,
    /// `.rna`: nearest, ties away from zero.
    Away,
    /// `.rz`: towards zero.
    Zero,
    /// `.rp`: upwards.
    Up,
    /// `.rm`: downwards.
    Down,
}

/// A binary floating-point format.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Format {
    pub exponent_bits: u32,
    pub mantissa_bits: u32,
    pub special: Special,
}

/// What the highest exponent means.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Special {
    /// Infinity and NaN, as in IEEE 754.
    Ieee,
    /// All ones is NaN, everything else is a number (e4m3).
    OneNan,
    /// Everything is a number (e2m3, e3m2, e2m1).
    Nothing,
}

pub const F64: Format = Format { exponent_bits: 11, mantissa_bits: 52, special: Special::Ieee };
pub const F32: Format = Format { exponent_bits: 8, mantissa_bits: 23, special: Special::Ieee };
pub const TF32: Format = Format { exponent_bits: 8, mantissa_bits: 10, special: Special::Ieee };
pub const BF16: Format = Format { exponent_bits: 8, mantissa_bits: 7, special: Special::Ieee };
pub const F16: Format = Format { exponent_bits: 5, mantissa_bits: 10, special: Special::Ieee };
pub const E5M2: Format = Format { exponent_bits: 5, mantissa_bits: 2, special: Special::Ieee };
pub const E4M3: Format = Format { exponent_bits: 4, mantissa_bits: 3, special: Special::OneNan };
pub const E3M2: Format = Format { exponent_bits: 3, mantissa_bits: 2, special: Special::Nothing };
pub const E2M3: Format = Format { exponent_bits: 2, mantissa_bits: 3, special: Special::Nothing };
pub const E2M1: Format = Format { exponent_bits: 2, mantissa_bits: 1, special: Special::Nothing };

/// What a code stands for.
// Numbers are made and dropped one at a time; a box for each would only cost time.
#[allow(clippy::large_enum_variant)]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    Nan,
    Infinity { negative: bool },
    Number(Exact),
}

impl Format {
    pub fn bits(self) -> u32 {
        1 + self.exponent_bits + self.mantissa_bits
    }

    pub fn sign_bit(self) -> u64 {
        1 << (self.bits() - 1)
    }

    /// Code of infinity, or the first code past the numbers.
    pub fn end(self) -> u64 {
        match self.special {
            Special::Ieee => ((1 << self.exponent_bits) - 1) << self.mantissa_bits,
            Special::OneNan => self.sign_bit() - 1,
            Special::Nothing => self.sign_bit(),
        }
    }

    /// The magnitude that a code without sign has, where codes past the numbers go on as if the format were wider.
    fn magnitude(self, code: u64) -> Exact {
        let exponent = (code >> self.mantissa_bits) as i32;
        let mantissa = code & ((1 << self.mantissa_bits) - 1);
        let bias = (1 << (self.exponent_bits - 1)) - 1;
        let unit = 1 - bias - self.mantissa_bits as i32;
        match exponent {
            0 => Exact::new(false, mantissa, unit),
            _ => Exact::new(false, mantissa | 1 << self.mantissa_bits, unit + exponent - 1),
        }
    }

    pub fn decode(self, code: u64) -> Value {
        let negative = code & self.sign_bit() != 0;
        let code = code & (self.sign_bit() - 1);
        match code.cmp(&self.end()) {
            std::cmp::Ordering::Less => {
                let mut number = self.magnitude(code);
                number.negative = negative;
                Value::Number(number)
            }
            std::cmp::Ordering::Equal if self.special == Special::Ieee => Value::Infinity { negative },
            _ => Value::Nan,
        }
    }

    /// Rounds to a code. Overflow gives `end()` (infinity) or the greatest number, as the mode asks, with the sign.
    pub fn round(self, x: &Exact, mode: Mode) -> u64 {
        // Greatest code whose magnitude is not above |x|.
        let (mut low, mut high) = (0, self.end());
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            if self.magnitude(middle).compare(x).is_gt() {
                high = middle;
            } else {
                low = middle;
            }
        }
        let below = self.magnitude(low);
        let sign = if x.negative { self.sign_bit() } else { 0 };
        if below.compare(x).is_eq() {
            return sign | low;
        }
        let up = match mode {
            Mode::Zero => false,
            Mode::Up => !x.negative,
            Mode::Down => x.negative,
            Mode::Even | Mode::Away => {
                let above = self.magnitude(low + 1);
                let sum = Exact { negative: false, magnitude: below.add_magnitude(&above) };
                match x.doubled().compare(&sum) {
                    std::cmp::Ordering::Less => false,
                    std::cmp::Ordering::Greater => true,
                    std::cmp::Ordering::Equal => mode == Mode::Away || low & 1 == 1,
                }
            }
        };
        let code = low + u64::from(up);
        // The code after the last number is the sign bit where the format has no infinity and no NaN.
        sign | if self.special == Special::Nothing { code.min(self.end() - 1) } else { code }
    }

    /// As `round`, but a finite number never leaves the numbers of the format (`.satfinite`).
    pub fn round_finite(self, x: &Exact, mode: Mode) -> u64 {
        let code = self.round(x, mode);
        let sign = code & self.sign_bit();
        sign | (code & !self.sign_bit()).min(self.end() - 1)
    }
}

/// Sign, integer mantissa and exponent of a finite code.
fn parts(format: Format, code: u64) -> (bool, u64, i32) {
    let negative = code & format.sign_bit() != 0;
    let code = code & (format.sign_bit() - 1);
    let exponent = (code >> format.mantissa_bits) as i32;
    let mantissa = code & ((1 << format.mantissa_bits) - 1);
    let unit = 1 - ((1 << (format.exponent_bits - 1)) - 1) - format.mantissa_bits as i32;
    match exponent {
        0 => (negative, mantissa, unit),
        _ => (negative, mantissa | 1 << format.mantissa_bits, unit + exponent - 1),
    }
}

fn product(format: Format, a: u64, b: u64) -> Exact {
    let (na, ma, ea) = parts(format, a);
    let (nb, mb, eb) = parts(format, b);
    let wide = u128::from(ma) * u128::from(mb);
    let low = Exact::new(na != nb, wide as u64, ea + eb);
    let high = Exact::new(na != nb, (wide >> 64) as u64, ea + eb + 64);
    Exact { negative: na != nb, magnitude: low.add_magnitude(&high) }
}

/// `a + b`; `None` stands for NaN.
pub fn add(format: Format, a: u64, b: u64, mode: Mode) -> Option<u64> {
    match (format.decode(a), format.decode(b)) {
        (Value::Nan, _) | (_, Value::Nan) => None,
        (Value::Infinity { negative: x }, Value::Infinity { negative: y }) if x != y => None,
        (Value::Infinity { .. }, _) => Some(a),
        (_, Value::Infinity { .. }) => Some(b),
        (Value::Number(x), Value::Number(y)) => Some(format.round(&x.plus(&y, mode), mode)),
    }
}

/// `a * b`; `None` stands for NaN.
pub fn mul(format: Format, a: u64, b: u64, mode: Mode) -> Option<u64> {
    fma(format, a, b, None, mode)
}

/// `a * b + c`, rounded once; without `c`, `a * b`. `None` stands for NaN.
pub fn fma(format: Format, a: u64, b: u64, c: Option<u64>, mode: Mode) -> Option<u64> {
    let negative = (a ^ b) & format.sign_bit() != 0;
    let c_value = c.map(|c| format.decode(c));
    let infinite = match (format.decode(a), format.decode(b)) {
        (Value::Nan, _) | (_, Value::Nan) => return None,
        (Value::Infinity { .. }, Value::Number(n)) | (Value::Number(n), Value::Infinity { .. }) => {
            if n.is_zero() {
                return None;
            }
            true
        }
        (Value::Infinity { .. }, Value::Infinity { .. }) => true,
        (Value::Number(_), Value::Number(_)) => false,
    };
    let sign = if negative { format.sign_bit() } else { 0 };
    match c_value {
        Some(Value::Nan) => None,
        Some(Value::Infinity { negative: other }) if infinite && other != negative => None,
        Some(Value::Infinity { .. }) => c,
        _ if infinite => Some(sign | format.end()),
        Some(Value::Number(c)) => Some(format.round(&product(format, a, b).plus(&c, mode), mode)),
        None => Some(format.round(&product(format, a, b), mode)),
    }
}

/// `a / b` of finite, non-zero numbers, by long division of the mantissas.
pub fn div(format: Format, a: u64, b: u64, mode: Mode) -> u64 {
    let (na, ma, ea) = parts(format, a);
    let (nb, mb, eb) = parts(format, b);
    assert!(ma != 0 && mb != 0);
    // 63 bits in front of the point are enough for any 53-bit divisor; a rest that is left counts as half a last bit.
    let shift = 63 + mb.ilog2() as i32 - ma.ilog2() as i32;
    let wide = u128::from(ma) << shift;
    let (quotient, rest) = ((wide / u128::from(mb)) as u64, wide % u128::from(mb));
    let whole = Exact::new(na != nb, quotient, ea - eb - shift);
    let exact = match rest {
        0 => whole,
        _ => whole.plus(&Exact::new(na != nb, 1, ea - eb - shift - 1), mode),
    };
    format.round(&exact, mode)
}

/// The square root of a finite, positive number, by bits.
pub fn sqrt(format: Format, a: u64, mode: Mode) -> u64 {
    let (_, mantissa, mut exponent) = parts(format, a);
    assert!(mantissa != 0);
    let mut wide = u128::from(mantissa);
    // At least 120 bits below the root sign, at an even exponent: the root has 60.
    let mut shift = 126 - wide.ilog2() as i32;
    if (exponent - shift) % 2 != 0 {
        shift -= 1;
    }
    wide <<= shift;
    exponent -= shift;
    let mut root: u64 = 0;
    for bit in (0..64).rev() {
        let trial = root | 1 << bit;
        if u128::from(trial).checked_mul(u128::from(trial)).is_some_and(|square| square <= wide) {
            root = trial;
        }
    }
    let whole = Exact::new(false, root, exponent / 2);
    let exact = if u128::from(root) * u128::from(root) == wide {
        whole
    } else {
        whole.plus(&Exact::new(false, 1, exponent / 2 - 1), mode)
    };
    format.round(&exact, mode)
}
