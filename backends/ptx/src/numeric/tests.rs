//! Every conversion against a second opinion: a binary search among all values of the format, in f64.

use super::arith;
use super::convert::{FloatCvt, float_to_float, float_to_int, int_to_float};
use super::format::{
    self, BF16, E2M1, E2M3, E3M2, E4M3, E5M2, F16, F32, F64, Format, Rounding, Special, TF32, decode, encode,
};
use super::{half, scale};

const SMALL: [(&str, Format); 8] = [
    ("f16", F16),
    ("bf16", BF16),
    ("tf32", TF32),
    ("e4m3", E4M3),
    ("e5m2", E5M2),
    ("e2m3", E2M3),
    ("e3m2", E3M2),
    ("e2m1", E2M1),
];

struct Xorshift(u64);

impl Xorshift {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
}

/// All non-negative finite values of a format in order, by plain arithmetic on the definition.
fn values(format: &Format) -> Vec<f64> {
    let mut list = Vec::new();
    for bits in 0..=format.max_finite() {
        let e = (bits >> format.mantissa_bits) as i32;
        let m = (bits & ((1 << format.mantissa_bits) - 1)) as f64 / (1u64 << format.mantissa_bits) as f64;
        list.push(if e == 0 { m * 2f64.powi(1 - format.bias) } else { (1.0 + m) * 2f64.powi(e - format.bias) });
    }
    list
}

/// The reference rounding: looks the magnitude up among all values; `None` stands for overflow.
fn search(list: &[f64], x: f64, rounding: Rounding) -> Option<usize> {
    let magnitude = x.abs();
    let above = list.partition_point(|v| *v < magnitude);
    if above < list.len() && list[above] == magnitude {
        return Some(above);
    }
    let below = above - 1;
    let top = list[list.len() - 1];
    let beyond = if above < list.len() { list[above] } else { top + (top - list[list.len() - 2]) };
    let up = match rounding {
        Rounding::Zero => false,
        Rounding::Up => x > 0.0,
        Rounding::Down => x < 0.0,
        Rounding::NearestAway => magnitude - list[below] >= beyond - magnitude,
        _ => {
            let (d, u) = (magnitude - list[below], beyond - magnitude);
            u < d || (u == d && below % 2 == 1)
        }
    };
    // Far beyond the largest value only the direction counts.
    if !up {
        Some(below)
    } else if above < list.len() {
        Some(above)
    } else {
        None
    }
}

fn check(name: &str, format: &Format, list: &[f64], x: f64) {
    for rounding in [Rounding::NearestEven, Rounding::NearestAway, Rounding::Zero, Rounding::Up, Rounding::Down] {
        for satfinite in [false, true] {
            let got = encode(x, format, rounding, satfinite);
            let sign = if x.is_sign_negative() { format.sign_mask() } else { 0 };
            let want = match search(list, x, rounding) {
                Some(index) => sign | index as u64,
                None if satfinite => sign | format.max_finite(),
                None if format.special == Special::NanOnly => format.nan(),
                None => sign | format.infinity(),
            };
            assert_eq!(got, want, "{name} {x:e} {rounding:?} satfinite {satfinite}: {got:#x}, expected {want:#x}");
        }
    }
}

#[test]
fn every_value_of_every_small_format_round_trips() {
    for (name, format) in SMALL {
        let list = values(&format);
        for (bits, value) in list.iter().enumerate() {
            assert_eq!(decode(bits as u64, &format), *value, "{name} {bits:#x}");
            assert_eq!(encode(*value, &format, Rounding::NearestEven, false), bits as u64, "{name} {bits:#x}");
            let negative = bits as u64 | format.sign_mask();
            assert_eq!(decode(negative, &format), -*value);
            assert_eq!(encode(-*value, &format, Rounding::Up, true), negative);
        }
    }
}

#[test]
fn every_midpoint_and_its_neighbours_round_as_the_search_does() {
    for (name, format) in SMALL {
        let list = values(&format);
        let step = if list.len() > 100_000 { 97 } else { 1 };
        for pair in list.windows(2).step_by(step) {
            let middle = (pair[0] + pair[1]) / 2.0;
            for x in [middle, middle.next_up(), middle.next_down(), pair[0].next_up(), pair[1].next_down()] {
                check(name, &format, &list, x);
                check(name, &format, &list, -x);
            }
        }
        let top = list[list.len() - 1];
        let ulp = top - list[list.len() - 2];
        for x in [top + ulp / 4.0, top + ulp / 2.0, (top + ulp / 2.0).next_up(), top + ulp] {
            check(name, &format, &list, x);
            check(name, &format, &list, -x);
        }
    }
}

#[test]
fn random_floats_round_as_the_search_does() {
    let mut random = Xorshift(7);
    for (name, format) in SMALL {
        let list = values(&format);
        for _ in 0..20_000 {
            let x = f64::from(f32::from_bits(random.next() as u32));
            if x.is_finite() && x.abs() < list[list.len() - 1] * 1.9 {
                check(name, &format, &list, x);
            }
        }
    }
}

#[test]
fn nan_and_infinity_follow_the_format() {
    let e = |x: f64, f: &Format, sat: bool| encode(x, f, Rounding::NearestEven, sat);
    assert_eq!(e(f64::NAN, &F16, false), 0x7fff);
    assert_eq!(e(f64::NAN, &BF16, true), 0x7fff);
    assert_eq!(e(f64::NAN, &E4M3, true), 0x7f);
    assert_eq!(e(f64::NAN, &E5M2, true), 0x7f);
    assert_eq!(e(f64::NAN, &E2M1, true), 0x7);
    assert_eq!(e(f64::NAN, &E2M3, true), 0x1f);
    assert_eq!(e(f64::NEG_INFINITY, &F16, false), 0xfc00);
    assert_eq!(e(f64::NEG_INFINITY, &F16, true), 0xfbff);
    assert_eq!(e(f64::NEG_INFINITY, &E4M3, true), 0xfe);
    assert_eq!(e(1e6, &E4M3, true), 0x7e);
    assert_eq!(e(-1e6, &E5M2, true), 0xfb);
    assert_eq!(e(1e6, &E2M1, true), 0x7);
    assert!(decode(0x7f, &E4M3).is_nan() && decode(0xff, &E4M3).is_nan());
    assert!(decode(0x7d, &E5M2).is_nan());
    assert_eq!(decode(0x7c, &E5M2), f64::INFINITY);
}

#[test]
fn f64_to_f32_agrees_with_the_processor() {
    let mut random = Xorshift(11);
    for _ in 0..200_000 {
        let x = f64::from_bits(random.next());
        let narrow =
            f64::from(f32::from_bits(random.next() as u32)) * (1.0 + f64::from(random.next() as u8) * 2f64.powi(-27));
        for x in [x, narrow] {
            if !x.is_nan() {
                assert_eq!(encode(x, &F32, Rounding::NearestEven, false) as u32, (x as f32).to_bits(), "{x:e}");
            }
        }
    }
    for x in [1.5, -0.0, f64::MIN_POSITIVE / 3.0, f64::MAX] {
        assert_eq!(encode(x, &F64, Rounding::Zero, false), x.to_bits());
        assert_eq!(decode(x.to_bits(), &F64), x);
    }
}

#[test]
fn quick_half_conversions_equal_the_general_ones() {
    for bits in 0..=u16::MAX {
        let (f, b) = (half::f16_to_f32(bits), half::bf16_to_f32(bits));
        let (wf, wb) = (decode(u64::from(bits), &F16), decode(u64::from(bits), &BF16));
        assert!(f64::from(f) == wf || (f.is_nan() && wf.is_nan()), "{bits:#x}");
        assert!(f64::from(b) == wb || (b.is_nan() && wb.is_nan()), "{bits:#x}");
    }
    let mut random = Xorshift(3);
    let test = |bits: u32| {
        let x = f32::from_bits(bits);
        let wide = f64::from(x);
        assert_eq!(u64::from(half::f32_to_f16(x)), encode(wide, &F16, Rounding::NearestEven, false), "f16 {bits:#x}");
        assert_eq!(
            u64::from(half::f32_to_bf16(x)),
            encode(wide, &BF16, Rounding::NearestEven, false),
            "bf16 {bits:#x}"
        );
    };
    for bits in (0..=u32::MAX).step_by(4099) {
        test(bits);
    }
    // All f16 midpoints and their neighbours.
    for bits in 0..0x7c00u16 {
        let middle = (half::f16_to_f32(bits) + half::f16_to_f32(bits + 1).min(65536.0)) / 2.0;
        for delta in [-1i32, 0, 1] {
            test(middle.to_bits().wrapping_add_signed(delta));
            test(middle.to_bits().wrapping_add_signed(delta) | 1 << 31);
        }
    }
    for _ in 0..200_000 {
        test(random.next() as u32);
    }
}

#[test]
fn stochastic_rounding_carries_when_random_plus_discarded_bits_overflow() {
    // 1 + 5/2^16 of a bf16 unit is discarded: 16 random bits.
    let x = f64::from(f32::from_bits(0x3f80_0005));
    let rs = |bits| encode(x, &BF16, Rounding::Stochastic { bits, count: 16 }, false);
    assert_eq!(rs(0xffff - 5), 0x3f80);
    assert_eq!(rs(0xffff - 4), 0x3f81);
    assert_eq!(encode(1.0, &BF16, Rounding::Stochastic { bits: 0xffff, count: 16 }, false), 0x3f80);
    // e4m3 at 1: unit 1/8; half a unit is the top discarded bit.
    let half_up = |bits| encode(1.0625, &E4M3, Rounding::Stochastic { bits, count: 16 }, true);
    assert_eq!(half_up(0x7fff), 0x38);
    assert_eq!(half_up(0x8000), 0x39);
}

#[test]
fn ue8m0_brackets_every_exponent() {
    for byte in 0..=254u8 {
        let value = scale::ue8m0_to_f32(byte);
        assert_eq!(f64::from(value), 2f64.powi(i32::from(byte) - 127));
        for rounding in [Rounding::Zero, Rounding::Up] {
            assert_eq!(scale::f32_to_ue8m0(value, rounding, true), byte);
            assert_eq!(scale::f32_to_ue8m0(-value, rounding, true), byte);
        }
        assert_eq!(scale::f32_to_ue8m0(value.next_up(), Rounding::Up, true), (byte + 1).min(254));
        assert_eq!(scale::f32_to_ue8m0(value.next_up(), Rounding::Zero, true), byte);
        if byte > 0 {
            assert_eq!(scale::f32_to_ue8m0(value.next_down(), Rounding::Up, true), byte);
            assert_eq!(scale::f32_to_ue8m0(value.next_down(), Rounding::Zero, true), byte - 1);
        }
    }
    assert_eq!(scale::f32_to_ue8m0(f32::MAX, Rounding::Up, false), 0xff);
    assert_eq!(scale::f32_to_ue8m0(f32::INFINITY, Rounding::Up, true), 0xfe);
    assert_eq!(scale::f32_to_ue8m0(f32::NAN, Rounding::Zero, true), 0xff);
    assert!(scale::ue8m0_to_f32(0xff).is_nan());
    assert_eq!(scale::f32_to_ue8m0(0.0, Rounding::Up, true), 0);
}

#[test]
fn relu_sat_and_ftz_apply_around_the_rounding() {
    let mut cvt = FloatCvt::new(F32, F16, Rounding::NearestEven);
    let convert = |x: f32, cvt: &FloatCvt| float_to_float(u64::from(x.to_bits()), cvt);
    cvt.relu = true;
    assert_eq!(convert(-3.0, &cvt), 0);
    assert_eq!(convert(-0.0, &cvt), 0);
    assert_eq!(convert(f32::NAN, &cvt), 0x7fff);
    assert_eq!(convert(3.0, &cvt), 0x4200);
    let mut cvt = FloatCvt::new(F32, F32, Rounding::NearestEven);
    cvt.sat = true;
    assert_eq!(convert(7.0, &cvt), 0x3f80_0000);
    assert_eq!(convert(f32::NAN, &cvt), 0);
    assert_eq!(convert(-1.0, &cvt), 0);
    cvt.sat = false;
    cvt.ftz = true;
    assert_eq!(convert(-1e-40, &cvt), 0x8000_0000);
    let mut narrow = FloatCvt::new(F64, F32, Rounding::NearestEven);
    narrow.ftz = true;
    assert_eq!(float_to_float(1e-40f64.to_bits(), &narrow), 0);
}

#[test]
fn floats_become_integers_with_clamping_and_the_nan_rule() {
    assert_eq!(float_to_int(2.5, Rounding::NearestEven, true, 32, false), 2);
    assert_eq!(float_to_int(-2.5, Rounding::Down, true, 32, false), 0xffff_fffd);
    assert_eq!(float_to_int(-2.5, Rounding::Up, true, 8, false), 0xfe);
    assert_eq!(float_to_int(300.0, Rounding::Zero, false, 8, false), 255);
    assert_eq!(float_to_int(-1.0, Rounding::Zero, false, 32, false), 0);
    assert_eq!(float_to_int(1e30, Rounding::Zero, true, 64, true), i64::MAX as u64);
    assert_eq!(float_to_int(f64::NAN, Rounding::Zero, true, 32, false), 0);
    assert_eq!(float_to_int(f64::NAN, Rounding::Zero, true, 32, true), 0x8000_0000);
    assert_eq!(float_to_int(f64::NAN, Rounding::Zero, false, 64, false), 1 << 63);
    let mut random = Xorshift(5);
    for _ in 0..100_000 {
        let x = f32::from_bits(random.next() as u32);
        if !x.is_nan() {
            assert_eq!(float_to_int(f64::from(x), Rounding::Zero, true, 32, false) as u32 as i32, x as i32);
            assert_eq!(float_to_int(f64::from(x), Rounding::Zero, false, 64, false), x as u64);
        }
    }
}

#[test]
fn integers_become_floats_with_one_rounding() {
    let mut random = Xorshift(9);
    for _ in 0..200_000 {
        let value = random.next() >> (random.next() % 64);
        let signed = value as i64;
        assert_eq!(int_to_float(i128::from(value), &F32, Rounding::NearestEven) as u32, (value as f32).to_bits());
        assert_eq!(int_to_float(i128::from(signed), &F32, Rounding::NearestEven) as u32, (signed as f32).to_bits());
        assert_eq!(int_to_float(i128::from(value), &F64, Rounding::NearestEven), (value as f64).to_bits());
        let down = f32::from_bits(int_to_float(i128::from(signed), &F32, Rounding::Down) as u32);
        let up = f32::from_bits(int_to_float(i128::from(signed), &F32, Rounding::Up) as u32);
        assert!(down as i128 <= i128::from(signed) && up as i128 >= i128::from(signed));
        assert!(down == up || down.next_up() == up);
    }
    assert_eq!(int_to_float(65535, &F16, Rounding::NearestEven), 0x7c00);
    assert_eq!(int_to_float(65535, &F16, Rounding::Zero), 0x7bff);
}

/// Exact comparison of a result with a sum or product, through 256-bit style splitting, is replaced by the bracketing property:
/// the rounded-down and rounded-up results are equal or neighbours and enclose the nearest one.
fn bracket(down: f64, nearest: f64, up: f64, zero: f64, next: impl Fn(f64) -> f64) {
    assert!(down <= nearest && nearest <= up, "{down:e} {nearest:e} {up:e}");
    assert!(down == up || next(down) == up, "{down:e} {up:e} are not neighbours");
    assert_eq!(zero, if nearest >= 0.0 { down.max(if up <= 0.0 { up } else { down }) } else { up }, "{down:e} {up:e}");
}

#[test]
fn directed_arithmetic_brackets_the_nearest_result() {
    let mut random = Xorshift(21);
    let modes = [Rounding::Down, Rounding::NearestEven, Rounding::Up, Rounding::Zero];
    for _ in 0..100_000 {
        let mut pick = || f32::from_bits((random.next() as u32 & 0x8fff_ffff) | 0x3000_0000);
        let (a, b, c) = (pick(), pick(), pick());
        let f = |m| f64::from(arith::fma_f32(a, b, c, m));
        let [d, n, u, z] = modes.map(f);
        assert_eq!(n as f32, a.mul_add(b, c));
        bracket(d, n, u, z, |x| f64::from((x as f32).next_up()));
        let [d, n, u, z] = modes.map(|m| f64::from(arith::add_f32(a, b, m)));
        bracket(d, n, u, z, |x| f64::from((x as f32).next_up()));
        let [d, n, u, z] = modes.map(|m| f64::from(arith::mul_f32(a, b, m)));
        bracket(d, n, u, z, |x| f64::from((x as f32).next_up()));
        let mut wide = || f64::from_bits((random.next() & 0x80ff_ffff_ffff_ffff) | 0x3f00_0000_0000_0000);
        let (a, b, c) = (wide(), wide(), wide());
        let [d, n, u, z] = modes.map(|m| arith::fma_f64(a, b, c, m));
        bracket(d, n, u, z, f64::next_up);
        let [d, n, u, z] = modes.map(|m| arith::add_f64(a, b, m));
        bracket(d, n, u, z, f64::next_up);
        let [d, n, u, z] = modes.map(|m| arith::mul_f64(a, b, m));
        bracket(d, n, u, z, f64::next_up);
    }
    assert_eq!(arith::add_f32(1.0, -1.0, Rounding::Down).to_bits(), (-0.0f32).to_bits());
    assert_eq!(arith::add_f64(f64::MAX, f64::MAX, Rounding::Zero), f64::MAX);
    assert_eq!(arith::mul_f64(1e-300, 1e-300, Rounding::Up), f64::from_bits(1));
    assert_eq!(arith::mul_f64(3.0, 5.0, Rounding::Up), 15.0);
    let _ = format::split(1.0);
}
