//! Arithmetic and conversions, executed by small kernels, against exact arithmetic.
//!
//! Domains of up to 16 bits are covered in full; f32 and f64 at every rounding boundary of the narrower format and at
//! samples whose exponents are close enough that rounding matters.
#![allow(clippy::unwrap_used)]

mod arith;
mod exact;

use arith::{Samples, check, map1, map2, map3};
use exact::{
    BF16, E2M1, E2M3, E3M2, E4M3, E5M2, Exact, F16, F32, F64, Format, Mode, TF32, Value, add, div, fma, mul, sqrt,
};

const MODES: [(&str, Mode); 4] = [("rn", Mode::Even), ("rz", Mode::Zero), ("rm", Mode::Down), ("rp", Mode::Up)];

fn is_nan(format: Format, code: u64) -> bool {
    format.decode(code) == Value::Nan
}

/// Fails unless `got` is a NaN where `want` is `None`, else `want`.
fn same(format: Format, want: Option<u64>, got: u64) -> bool {
    want.map_or_else(|| is_nan(format, got), |want| want == got)
}

fn flush(format: Format, code: u64) -> u64 {
    let exponent = (format.sign_bit() - 1) & !((1 << format.mantissa_bits) - 1);
    if code & exponent == 0 { code & format.sign_bit() } else { code }
}

/// Every number of `narrow` and of the points half-way between, each with its two f32 neighbours, both signs.
fn boundaries(narrow: Format) -> Vec<u64> {
    let mut points = Vec::new();
    for code in 0..narrow.end() {
        // One mantissa bit more holds every half-way point.
        let wider = Format { mantissa_bits: narrow.mantissa_bits + 1, ..narrow };
        for fine in [code << 1, code << 1 | 1] {
            let Value::Number(x) = wider.decode(fine) else { continue };
            let near = F32.round(&x, Mode::Even);
            for bits in [near.saturating_sub(1), near, near + 1] {
                points.extend([bits, bits | F32.sign_bit()]);
            }
        }
    }
    points.extend([0x7f80_0000, 0xff80_0000, 0x7fc0_0000, 0xffff_ffff, 0x7f7f_ffff, 1, 0x8000_0001]);
    points.sort_unstable();
    points.dedup();
    points
}

// ---------------------------------------------------------------- narrow formats to wide ones

fn widening(name: &str, narrow: Format, wide: Format, body: &str, mask: u64) {
    let codes: Vec<u64> = (0..=0xffff).filter(|pair: &u64| pair & !mask == 0).collect();
    let got = map1(16, 32, &codes, body);
    check(name, &[&codes], &got, |inputs, got| {
        let half = wide.bits();
        (0..2).all(|i| {
            let bits = if narrow.bits() == 4 { 4 } else { 8 };
            let code = inputs[0] >> (bits * i) & ((1 << narrow.bits()) - 1);
            let want = match narrow.decode(code) {
                Value::Nan => None,
                Value::Infinity { negative } => Some(wide.end() | if negative { wide.sign_bit() } else { 0 }),
                Value::Number(x) => Some(wide.round(&x, Mode::Even)),
            };
            same(wide, want, got >> (u64::from(half) * i) & ((1 << half) - 1))
        })
    });
}

#[test]
fn every_pair_of_fp8_widens_to_f16() {
    widening("e4m3x2", E4M3, F16, "cvt.rn.f16x2.e4m3x2 %o, %a;", 0xffff);
    widening("e5m2x2", E5M2, F16, "cvt.rn.f16x2.e5m2x2 %o, %a;", 0xffff);
}

#[test]
fn every_pair_of_fp6_and_fp4_widens_to_f16() {
    widening("e2m3x2", E2M3, F16, "cvt.rn.f16x2.e2m3x2 %o, %a;", 0x3f3f);
    widening("e3m2x2", E3M2, F16, "cvt.rn.f16x2.e3m2x2 %o, %a;", 0x3f3f);
    widening("e2m1x2", E2M1, F16, "{ .reg .b8 t, u; mov.b16 {t, u}, %a; cvt.rn.f16x2.e2m1x2 %o, t; }", 0xff);
}

#[test]
fn every_pair_of_ue8m0_widens_to_bf16() {
    let codes: Vec<u64> = (0..=0xffff).collect();
    let got = map1(16, 32, &codes, "cvt.rn.bf16x2.ue8m0x2 %o, %a;");
    check("ue8m0x2", &[&codes], &got, |inputs, got| {
        (0..2).all(|i| {
            let code = inputs[0] >> (8 * i) & 0xff;
            let want = (code != 255).then(|| BF16.round(&Exact::new(false, 1, code as i32 - 127), Mode::Even));
            same(BF16, want, got >> (16 * i) & 0xffff)
        })
    });
}

#[test]
fn every_f16_and_bf16_widens_to_f32() {
    let codes: Vec<u64> = (0..=0xffff).collect();
    for (format, body) in [(F16, "cvt.f32.f16 %o, %a;"), (BF16, "cvt.f32.bf16 %o, %a;")] {
        let got = map1(16, 32, &codes, body);
        check(body, &[&codes], &got, |inputs, got| match format.decode(inputs[0]) {
            Value::Nan => is_nan(F32, got),
            Value::Infinity { negative } => got == F32.end() | if negative { F32.sign_bit() } else { 0 },
            Value::Number(x) => got == F32.round(&x, Mode::Even),
        });
    }
}

// ---------------------------------------------------------------- wide formats to narrow ones

/// What `cvt` to a narrow format without infinity (or with `.satfinite`) gives.
fn narrowed(narrow: Format, wide: Format, code: u64, mode: Mode, relu: bool) -> u64 {
    let value = wide.decode(code);
    let nan = match narrow {
        E4M3 | E5M2 => 0x7f,
        E2M1 => 0x7,
        E2M3 | E3M2 => 0x1f,
        other => panic!("{other:?}"),
    };
    match value {
        Value::Nan => nan,
        Value::Infinity { negative: true } | Value::Number(Exact { negative: true, .. }) if relu => 0,
        Value::Infinity { negative } => (narrow.end() - 1) | if negative { narrow.sign_bit() } else { 0 },
        Value::Number(x) => narrow.round_finite(&x, mode),
    }
}

fn narrowing_pairs(narrow: Format, wide: Format, sources: &[u64], body: &str, relu: bool) {
    // The second of the pair is the first turned round, so that both halves see every value.
    let other: Vec<u64> = sources.iter().rev().copied().collect();
    let got = if wide.bits() == 16 {
        let packed: Vec<u64> = sources.iter().zip(&other).map(|(low, high)| high << 16 | low).collect();
        map1(32, 16, &packed, body)
    } else {
        map2(32, 16, sources, &other, body)
    };
    let width = if narrow == E2M1 { 4 } else { 8 };
    check(body, &[sources, &other], &got, |inputs, got| {
        let low = narrowed(narrow, wide, inputs[0], Mode::Even, relu);
        let high = narrowed(narrow, wide, inputs[1], Mode::Even, relu);
        got == high << width | low
    });
}

#[test]
fn every_f16_narrows_to_fp8() {
    let codes: Vec<u64> = (0..=0xffff).collect();
    narrowing_pairs(E4M3, F16, &codes, "cvt.rn.satfinite.e4m3x2.f16x2 %o, %a;", false);
    narrowing_pairs(E5M2, F16, &codes, "cvt.rn.satfinite.e5m2x2.f16x2 %o, %a;", false);
    narrowing_pairs(E4M3, F16, &codes, "cvt.rn.satfinite.relu.e4m3x2.f16x2 %o, %a;", true);
}

#[test]
fn f32_narrows_to_fp8_fp6_and_fp4_at_every_boundary() {
    for (name, format) in [("e4m3x2", E4M3), ("e5m2x2", E5M2), ("e2m3x2", E2M3), ("e3m2x2", E3M2)] {
        let points = boundaries(format);
        let body = format!("cvt.rn.satfinite.{name}.f32 %o, %b, %a;");
        narrowing_pairs(format, F32, &points, &body, false);
        let body = format!("cvt.rn.satfinite.relu.{name}.f32 %o, %b, %a;");
        narrowing_pairs(format, F32, &points, &body, true);
    }
    let points = boundaries(E2M1);
    let body = "{ .reg .b8 t, z; cvt.rn.satfinite.e2m1x2.f32 t, %b, %a; mov.b32 %ro, 0; mov.b16 {z, _}, 0; mov.b16 %o, {t, z}; }";
    narrowing_pairs(
        E2M1,
        F32,
        &points,
        &body.replace("mov.b32 %ro, 0; ", "").replace("mov.b16 {z, _}, 0;", "cvt.u8.u32 z, 0;"),
        false,
    );
}

#[test]
fn f32_narrows_to_ue8m0_towards_zero_and_upwards() {
    let mut samples = Samples::new("ue8m0");
    let mut points: Vec<u64> = (0..=255u64).flat_map(|e| [e << 23, e << 23 | 1, (e << 23).saturating_sub(1)]).collect();
    points.extend((0..2000).map(|_| samples.next() & 0xffff_ffff));
    for (name, up) in [("rz", false), ("rp", true)] {
        let other: Vec<u64> = points.iter().rev().copied().collect();
        let got = map2(32, 16, &points, &other, &format!("cvt.{name}.satfinite.ue8m0x2.f32 %o, %b, %a;"));
        check(name, &[&points, &other], &got, |inputs, got| {
            (0..2).all(|i| {
                let bits = inputs[i] & 0x7fff_ffff;
                let want = match bits {
                    0x7f80_0001.. => 255,
                    0x7f80_0000 => 254,
                    _ => {
                        // The power of two at or below, from the value; 2^-127 is the least.
                        let x = f64::from(f32::from_bits(bits as u32));
                        let floor = if x == 0.0 { -200 } else { ilog2(x) };
                        let exact = x == f64::from(floor).exp2();
                        (floor + i32::from(up && !exact)).clamp(-127, 127) as u64 as i64 + 127
                    }
                } as u64;
                got >> (8 * i) & 0xff == want
            })
        });
    }
}

/// The exponent of the greatest power of two at or below a positive number, by repeated halving and doubling.
fn ilog2(mut x: f64) -> i32 {
    let mut exponent = 0;
    while x >= 2.0 {
        x /= 2.0;
        exponent += 1;
    }
    while x < 1.0 {
        x *= 2.0;
        exponent -= 1;
    }
    exponent
}

#[test]
fn f32_rounds_to_f16_bf16_and_tf32_in_every_mode() {
    let cases: [(&str, Format, Mode); 6] = [
        ("cvt.rn.f16.f32", F16, Mode::Even),
        ("cvt.rz.f16.f32", F16, Mode::Zero),
        ("cvt.rn.bf16.f32", BF16, Mode::Even),
        ("cvt.rz.bf16.f32", BF16, Mode::Zero),
        ("cvt.rp.f16.f32", F16, Mode::Up),
        ("cvt.rm.f16.f32", F16, Mode::Down),
    ];
    for (instruction, format, mode) in cases {
        let points = boundaries(format);
        let got = map1(32, 16, &points, &format!("{instruction} %o, %a;"));
        check(instruction, &[&points], &got, |inputs, got| {
            let want = match F32.decode(inputs[0]) {
                Value::Nan => None,
                Value::Infinity { negative } => Some(format.end() | if negative { format.sign_bit() } else { 0 }),
                Value::Number(x) => Some(format.round(&x, mode)),
            };
            same(format, want, got)
        });
    }
    let points = boundaries(TF32);
    for (instruction, mode) in
        [("cvt.rna.tf32.f32", Mode::Away), ("cvt.rn.tf32.f32", Mode::Even), ("cvt.rz.tf32.f32", Mode::Zero)]
    {
        let got = map1(32, 32, &points, &format!("{instruction} %o, %a;"));
        check(instruction, &[&points], &got, |inputs, got| match F32.decode(inputs[0]) {
            Value::Nan => is_nan(F32, got),
            Value::Infinity { .. } => got == inputs[0],
            Value::Number(x) => got >> 13 == TF32.round(&x, mode),
        });
    }
}

#[test]
fn packed_conversions_put_the_first_operand_high() {
    let points = boundaries(F16);
    let other: Vec<u64> = points.iter().rev().copied().collect();
    for (instruction, format, mode) in [
        ("cvt.rn.f16x2.f32", F16, Mode::Even),
        ("cvt.rz.f16x2.f32", F16, Mode::Zero),
        ("cvt.rn.bf16x2.f32", BF16, Mode::Even),
        ("cvt.rz.bf16x2.f32", BF16, Mode::Zero),
    ] {
        let got = map2(32, 32, &points, &other, &format!("{instruction} %o, %b, %a;"));
        check(instruction, &[&points, &other], &got, |inputs, got| {
            (0..2).all(|i| {
                let want = match F32.decode(inputs[i]) {
                    Value::Nan => None,
                    Value::Infinity { negative } => Some(format.end() | if negative { format.sign_bit() } else { 0 }),
                    Value::Number(x) => Some(format.round(&x, mode)),
                };
                same(format, want, got >> (16 * i) & 0xffff)
            })
        });
    }
}

// ---------------------------------------------------------------- arithmetic

/// Two operands whose exponents are mostly close to each other.
fn pairs(format: Format, samples: &mut Samples, count: usize) -> (Vec<u64>, Vec<u64>) {
    let special = |s: &mut Samples| match s.next() % 12 {
        0 => 0,
        1 => format.end(),
        2 => format.end() + 1,
        3 => 1,
        4 => (1 << format.mantissa_bits) - 1,
        5 => 1 << format.mantissa_bits,
        6 => format.end() - 1,
        _ => s.next(),
    } & (format.sign_bit() | (format.sign_bit() - 1));
    let mut a = Vec::with_capacity(count);
    let mut b = Vec::with_capacity(count);
    let all = format.sign_bit() | (format.sign_bit() - 1);
    for i in 0..count {
        let x = if i % 4 == 0 { special(samples) } else { samples.next() & all };
        let y = match i % 4 {
            0 => special(samples),
            1 => samples.next() & all,
            _ => {
                // An exponent within 30 of the other's, few mantissa bits.
                let exponent = (x >> format.mantissa_bits) & ((1 << format.exponent_bits) - 1);
                let shift = (samples.next() % 61) as i64 - 30;
                let exponent = (exponent as i64 + shift).clamp(0, (1 << format.exponent_bits) - 2) as u64;
                let mantissa = samples.next() & ((1 << format.mantissa_bits) - 1);
                let mantissa =
                    if i % 8 < 4 { mantissa & mantissa << 3 & ((1 << format.mantissa_bits) - 1) } else { mantissa };
                (samples.next() & format.sign_bit()) | exponent << format.mantissa_bits | mantissa
            }
        };
        let sign = samples.next() & format.sign_bit();
        a.push(x ^ sign);
        b.push(y ^ sign);
    }
    (a, b)
}

#[test]
fn f32_sums_products_and_fused_products_round_as_asked() {
    let mut samples = Samples::new("f32");
    for (name, mode) in MODES {
        let (a, b) = pairs(F32, &mut samples, 6000);
        let c: Vec<u64> = pairs(F32, &mut samples, 6000).1;
        for op in ["add", "sub", "mul"] {
            let got = map2(32, 32, &a, &b, &format!("{op}.{name}.f32 %o, %a, %b;"));
            check(&format!("{op}.{name}.f32"), &[&a, &b], &got, |i, got| {
                let want = match op {
                    "add" => add(F32, i[0], i[1], mode),
                    "sub" => add(F32, i[0], i[1] ^ F32.sign_bit(), mode),
                    _ => mul(F32, i[0], i[1], mode),
                };
                same(F32, want, got)
            });
        }
        // A third operand close to the product makes cancellation.
        let close: Vec<u64> = (0..a.len())
            .map(|i| match (i % 3, mul(F32, a[i], b[i], Mode::Even)) {
                (0, Some(p)) => p ^ F32.sign_bit(),
                (1, Some(p)) => (p ^ F32.sign_bit()) ^ (samples.next() & 0xfff),
                _ => c[i],
            })
            .collect();
        let got = map3(32, 32, &a, &b, &close, &format!("fma.{name}.f32 %o, %a, %b, %c;"));
        check(&format!("fma.{name}.f32"), &[&a, &b, &close], &got, |i, got| {
            same(F32, fma(F32, i[0], i[1], Some(i[2]), mode), got)
        });
    }
}

#[test]
fn ftz_flushes_inputs_and_results_and_sat_clamps() {
    let mut samples = Samples::new("ftz");
    let (mut a, b) = pairs(F32, &mut samples, 6000);
    for x in a.iter_mut().step_by(5) {
        *x &= 0x807f_ffff; // subnormal
    }
    let got = map2(32, 32, &a, &b, "add.rn.ftz.f32 %o, %a, %b;");
    check("add.ftz", &[&a, &b], &got, |i, got| {
        let want = add(F32, flush(F32, i[0]), flush(F32, i[1]), Mode::Even).map(|x| flush(F32, x));
        same(F32, want, got)
    });
    let got = map3(32, 32, &a, &b, &b, "fma.rn.ftz.f32 %o, %a, %b, %c;");
    check("fma.ftz", &[&a, &b, &b], &got, |i, got| {
        let [x, y, z] = [i[0], i[1], i[2]].map(|x| flush(F32, x));
        same(F32, fma(F32, x, y, Some(z), Mode::Even).map(|x| flush(F32, x)), got)
    });
    let got = map2(32, 32, &a, &b, "mul.rn.sat.f32 %o, %a, %b;");
    check("mul.sat", &[&a, &b], &got, |i, got| {
        let want = match mul(F32, i[0], i[1], Mode::Even) {
            None => 0, // NaN becomes +0
            Some(x) if x & F32.sign_bit() != 0 => 0,
            Some(x) => x.min(0x3f80_0000),
        };
        got == want
    });
}

#[test]
fn f32_and_f64_quotients_and_roots_are_rounded_once() {
    let mut samples = Samples::new("div");
    for (format, ty, count) in [(F32, "f32", 4000), (F64, "f64", 1500)] {
        let (a, b) = pairs(format, &mut samples, count);
        let finite = |x: u64| matches!(format.decode(x), Value::Number(n) if !n.is_zero());
        let keep: Vec<usize> = (0..a.len()).filter(|i| finite(a[*i]) && finite(b[*i])).collect();
        let a: Vec<u64> = keep.iter().map(|i| a[*i]).collect();
        let b: Vec<u64> = keep.iter().map(|i| b[*i]).collect();
        let positive: Vec<u64> = a.iter().map(|x| x & !format.sign_bit()).collect();
        for (name, mode) in MODES {
            let body = format!("div.{name}.{ty} %o, %a, %b;");
            let got = map2(format.bits(), format.bits(), &a, &b, &body);
            check(&body, &[&a, &b], &got, |i, got| got == div(format, i[0], i[1], mode));
            let body = format!("sqrt.{name}.{ty} %o, %a;");
            let got = map1(format.bits(), format.bits(), &positive, &body);
            check(&body, &[&positive], &got, |i, got| got == sqrt(format, i[0], mode));
            let body = format!("rcp.{name}.{ty} %o, %a;");
            let one = ((1 << (format.exponent_bits - 1)) - 1) << format.mantissa_bits;
            let got = map1(format.bits(), format.bits(), &a, &body);
            check(&body, &[&a], &got, |i, got| got == div(format, one, i[0], mode));
        }
    }
}

#[test]
fn f64_sums_products_and_fused_products_round_as_asked() {
    let mut samples = Samples::new("f64");
    for (name, mode) in MODES {
        let (a, b) = pairs(F64, &mut samples, 2000);
        let c: Vec<u64> = (0..a.len())
            .map(|i| match (i % 3, mul(F64, a[i], b[i], Mode::Even)) {
                (0, Some(p)) => p ^ F64.sign_bit(),
                (1, Some(p)) => p ^ F64.sign_bit() ^ (samples.next() & 0xfff),
                _ => samples.next(),
            })
            .collect();
        let got = map2(64, 64, &a, &b, &format!("add.{name}.f64 %o, %a, %b;"));
        check(&format!("add.{name}.f64"), &[&a, &b], &got, |i, got| same(F64, add(F64, i[0], i[1], mode), got));
        let got = map2(64, 64, &a, &b, &format!("mul.{name}.f64 %o, %a, %b;"));
        check(&format!("mul.{name}.f64"), &[&a, &b], &got, |i, got| same(F64, mul(F64, i[0], i[1], mode), got));
        let got = map3(64, 64, &a, &b, &c, &format!("fma.{name}.f64 %o, %a, %b, %c;"));
        check(&format!("fma.{name}.f64"), &[&a, &b, &c], &got, |i, got| {
            same(F64, fma(F64, i[0], i[1], Some(i[2]), mode), got)
        });
    }
}

#[test]
fn f16_and_bf16_arithmetic_rounds_once() {
    let mut samples = Samples::new("half");
    for (format, ty) in [(F16, "f16"), (BF16, "bf16")] {
        let (a, b) = pairs(format, &mut samples, 8000);
        let c: Vec<u64> = (0..a.len())
            .map(|i| match (i % 3, mul(format, a[i], b[i], Mode::Even)) {
                (0, Some(p)) => p ^ format.sign_bit(),
                (1, Some(p)) => p ^ format.sign_bit() ^ (samples.next() & 0x1f),
                _ => samples.next() & 0xffff,
            })
            .collect();
        for op in ["add", "sub", "mul"] {
            let body = format!("{op}.rn.{ty} %o, %a, %b;");
            let got = map2(16, 16, &a, &b, &body);
            check(&body, &[&a, &b], &got, |i, got| {
                let want = match op {
                    "add" => add(format, i[0], i[1], Mode::Even),
                    "sub" => add(format, i[0], i[1] ^ format.sign_bit(), Mode::Even),
                    _ => mul(format, i[0], i[1], Mode::Even),
                };
                same(format, want, got)
            });
        }
        let body = format!("fma.rn.{ty} %o, %a, %b, %c;");
        let got = map3(16, 16, &a, &b, &c, &body);
        check(&body, &[&a, &b, &c], &got, |i, got| same(format, fma(format, i[0], i[1], Some(i[2]), Mode::Even), got));
        let body = format!("fma.rn.relu.{ty} %o, %a, %b, %c;");
        let got = map3(16, 16, &a, &b, &c, &body);
        check(&body, &[&a, &b, &c], &got, |i, got| {
            let want = fma(format, i[0], i[1], Some(i[2]), Mode::Even);
            same(format, want.map(|x| if x & format.sign_bit() != 0 { 0 } else { x }), got)
        });
    }
}

#[test]
fn packed_halves_and_floats_act_on_each_half() {
    let mut samples = Samples::new("packed");
    for (format, ty) in [(F16, "f16x2"), (BF16, "bf16x2")] {
        let (a, b) = pairs(format, &mut samples, 4000);
        let pack = |x: &[u64]| -> Vec<u64> { x.chunks(2).map(|p| p[0] | p[1] << 16).collect() };
        let (a, b) = (pack(&a), pack(&b));
        let got = map3(32, 32, &a, &b, &b, &format!("fma.rn.{ty} %o, %a, %b, %c;"));
        check(ty, &[&a, &b], &got, |i, got| {
            [0, 16].iter().all(|s| {
                let (x, y) = (i[0] >> s & 0xffff, i[1] >> s & 0xffff);
                same(format, fma(format, x, y, Some(y), Mode::Even), got >> s & 0xffff)
            })
        });
    }
    let (a, b) = pairs(F32, &mut samples, 4000);
    let pack = |x: &[u64]| -> Vec<u64> { x.chunks(2).map(|p| p[0] | p[1] << 32).collect() };
    let (a, b) = (pack(&a), pack(&b));
    let got = map3(64, 64, &a, &b, &a, "fma.rn.f32x2 %o, %a, %b, %c;");
    check("f32x2", &[&a, &b], &got, |i, got| {
        [0, 32].iter().all(|s| {
            let (x, y) = (i[0] >> s & 0xffff_ffff, i[1] >> s & 0xffff_ffff);
            same(F32, fma(F32, x, y, Some(x), Mode::Even), got >> s & 0xffff_ffff)
        })
    });
}

#[test]
fn min_and_max_order_zeros_and_drop_nan_unless_told_otherwise() {
    let mut samples = Samples::new("minmax");
    let (a, b) = pairs(F32, &mut samples, 4000);
    let key = |x: u64| if x & 0x8000_0000 != 0 { -((x & 0x7fff_ffff) as i64) - 1 } else { x as i64 };
    for (op, greater) in [("max", true), ("min", false)] {
        let plain = map2(32, 32, &a, &b, &format!("{op}.f32 %o, %a, %b;"));
        let strict = map2(32, 32, &a, &b, &format!("{op}.NaN.f32 %o, %a, %b;"));
        let pick = |i: &[u64]| if (key(i[0]) > key(i[1])) == greater { i[0] } else { i[1] };
        check(op, &[&a, &b], &plain, |i, got| match (is_nan(F32, i[0]), is_nan(F32, i[1])) {
            (true, true) => is_nan(F32, got),
            (true, false) => got == i[1],
            (false, true) => got == i[0],
            (false, false) => got == pick(i),
        });
        check(op, &[&a, &b], &strict, |i, got| {
            if is_nan(F32, i[0]) || is_nan(F32, i[1]) { is_nan(F32, got) } else { got == pick(i) }
        });
    }
}

// ---------------------------------------------------------------- numbers and integers

#[test]
fn floats_round_to_integers_and_saturate() {
    let mut samples = Samples::new("f2i");
    let mut points: Vec<u64> = (0..4000).map(|_| samples.next() & 0xffff_ffff).collect();
    for whole in
        [-2.5f32, -1.5, -0.5, 0.5, 1.5, 2.5, 2147483520.0, 2147483648.0, -2147483648.0, 4294967296.0, 127.5, 255.5]
    {
        points.extend([whole, whole + 0.25, whole - 0.25].map(|x| u64::from(x.to_bits())));
    }
    points.extend((0..2000).map(|_| u64::from(((samples.next() % 2_000_000) as f32 / 256.0 - 4000.0).to_bits())));
    for (mode, round) in
        [("rni", f64::round_ties_even as fn(f64) -> f64), ("rzi", f64::trunc), ("rmi", f64::floor), ("rpi", f64::ceil)]
    {
        for (ty, low, high) in [
            ("s32", f64::from(i32::MIN), f64::from(i32::MAX)),
            ("u32", 0.0, f64::from(u32::MAX)),
            ("s16", -32768.0, 32767.0),
            ("u16", 0.0, 65535.0),
        ] {
            let width = if ty.ends_with("16") { 16 } else { 32 };
            let body = format!("cvt.{mode}.{ty}.f32 %o, %a;");
            let got = map1(32, width, &points, &body);
            check(&body, &[&points], &got, |i, got| {
                let x = f64::from(f32::from_bits(i[0] as u32));
                let want = if x.is_nan() { 0.0 } else { round(x).clamp(low, high) };
                got == (want as i64 as u64) & ((1 << width) - 1)
            });
        }
    }
}

#[test]
fn integers_round_to_floats() {
    let mut samples = Samples::new("i2f");
    let points: Vec<u64> = (0..4000).map(|i| samples.next() >> (i % 63)).collect();
    for (name, mode) in MODES {
        for (ty, signed) in [("u64", false), ("s64", true)] {
            for (format, to) in [(F32, "f32"), (F64, "f64"), (F16, "f16")] {
                let body = format!("cvt.{name}.{to}.{ty} %o, %a;");
                let got = map1(64, format.bits(), &points, &body);
                check(&body, &[&points], &got, |i, got| {
                    let negative = signed && (i[0] as i64) < 0;
                    let magnitude = if negative { (i[0] as i64).unsigned_abs() } else { i[0] };
                    let want = format.round(&Exact::new(negative, magnitude, 0), mode);
                    got == if magnitude == 0 { 0 } else { want }
                });
            }
        }
    }
}

#[test]
fn integer_conversions_extend_truncate_and_saturate() {
    let mut samples = Samples::new("i2i");
    let points: Vec<u64> = (0..3000).map(|i| samples.next() >> (i % 60)).collect();
    let narrow = |x: i128, bits: u32, signed: bool| -> i128 {
        let low = x & ((1 << bits) - 1);
        if signed && low >> (bits - 1) & 1 == 1 { low - (1 << bits) } else { low }
    };
    for (from, from_bits, from_signed) in [("s32", 32, true), ("u32", 32, false), ("s64", 64, true), ("u64", 64, false)]
    {
        for (to, bits, signed) in [
            ("s8", 8, true),
            ("u8", 8, false),
            ("s16", 16, true),
            ("u16", 16, false),
            ("s32", 32, true),
            ("u32", 32, false),
            ("s64", 64, true),
            ("u64", 64, false),
        ] {
            for sat in ["", ".sat"] {
                let store = bits.max(32);
                let body = format!("cvt{sat}.{to}.{from} %o, %a;");
                let got = map1(from_bits, store, &points, &body);
                check(&body, &[&points], &got, |i, got| {
                    let x = narrow(i128::from(i[0]), from_bits, from_signed);
                    let (low, high) = if signed {
                        (-(1i128 << (bits - 1)), (1i128 << (bits - 1)) - 1)
                    } else {
                        (0, (1i128 << bits) - 1)
                    };
                    let want = if sat.is_empty() { narrow(x, bits, signed) } else { x.clamp(low, high) };
                    got == (want as u64) & if store == 64 { u64::MAX } else { (1 << store) - 1 }
                });
            }
        }
    }
}

// ---------------------------------------------------------------- integers

#[test]
fn integer_arithmetic_wraps_as_two_complement() {
    let mut samples = Samples::new("int");
    let mut a: Vec<u64> = (0..3000).map(|i| (samples.next() >> (i % 50)) & 0xffff_ffff).collect();
    let mut b: Vec<u64> = (0..3000).map(|i| (samples.next() >> (i % 50)) & 0xffff_ffff).collect();
    for edge in [0, 1, 31, 32, 33, 63, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff] {
        for other in [0, 1, 2, 31, 32, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff] {
            a.push(edge);
            b.push(other);
        }
    }
    let divisors: Vec<u64> = b.iter().map(|x| if *x == 0 { 3 } else { *x }).collect();
    type Rule = fn(u32, u32) -> u32;
    let rules: [(&str, Rule); 26] = [
        ("add.u32", u32::wrapping_add),
        ("sub.s32", u32::wrapping_sub),
        ("mul.lo.s32", u32::wrapping_mul),
        ("mul.hi.u32", |a, b| ((u64::from(a) * u64::from(b)) >> 32) as u32),
        ("mul.hi.s32", |a, b| ((i64::from(a as i32) * i64::from(b as i32)) >> 32) as u32),
        ("mul24.lo.u32", |a, b| (a & 0xff_ffff).wrapping_mul(b & 0xff_ffff)),
        ("min.u32", u32::min),
        ("min.s32", |a, b| (a as i32).min(b as i32) as u32),
        ("max.u32", u32::max),
        ("max.s32", |a, b| (a as i32).max(b as i32) as u32),
        ("and.b32", |a, b| a & b),
        ("or.b32", |a, b| a | b),
        ("xor.b32", |a, b| a ^ b),
        ("shl.b32", |a, b| if b > 31 { 0 } else { a << b }),
        ("shr.u32", |a, b| if b > 31 { 0 } else { a >> b }),
        ("shr.s32", |a, b| ((a as i32) >> b.min(31)) as u32),
        ("add.sat.s32", |a, b| (a as i32).saturating_add(b as i32) as u32),
        ("sub.sat.s32", |a, b| (a as i32).saturating_sub(b as i32) as u32),
        ("popc.b32", |a, _| a.count_ones()),
        ("clz.b32", |a, _| a.leading_zeros()),
        ("brev.b32", |a, _| a.reverse_bits()),
        ("not.b32", |a, _| !a),
        ("neg.s32", |a, _| a.wrapping_neg()),
        ("abs.s32", |a, _| (a as i32).wrapping_abs() as u32),
        ("bfind.u32", |a, _| if a == 0 { u32::MAX } else { 31 - a.leading_zeros() }),
        ("cnot.b32", |a, _| u32::from(a == 0)),
    ];
    for (name, rule) in rules {
        let one = ["popc", "clz", "brev", "not", "neg", "abs", "bfind", "cnot"].iter().any(|n| name.starts_with(n));
        let body = if one { format!("{name} %o, %a;") } else { format!("{name} %o, %a, %b;") };
        let got = map2(32, 32, &a, &b, &body);
        check(name, &[&a, &b], &got, |i, got| got == u64::from(rule(i[0] as u32, i[1] as u32)));
    }
    let rules: [(&str, Rule); 4] = [
        ("div.u32", |a, b| a / b),
        ("rem.u32", |a, b| a % b),
        ("div.s32", |a, b| (a as i32).wrapping_div(b as i32) as u32),
        ("rem.s32", |a, b| (a as i32).wrapping_rem(b as i32) as u32),
    ];
    for (name, rule) in rules {
        let got = map2(32, 32, &a, &divisors, &format!("{name} %o, %a, %b;"));
        check(name, &[&a, &divisors], &got, |i, got| got == u64::from(rule(i[0] as u32, i[1] as u32)));
    }
    let got = map2(32, 64, &a, &b, "mul.wide.s32 %o, %a, %b;");
    check("mul.wide.s32", &[&a, &b], &got, |i, got| {
        got == (i64::from(i[0] as u32 as i32) * i64::from(i[1] as u32 as i32)) as u64
    });
    let got = map3(32, 32, &a, &b, &a, "mad.hi.s32 %o, %a, %b, %c;");
    check("mad.hi.s32", &[&a, &b], &got, |i, got| {
        let high = (i64::from(i[0] as u32 as i32) * i64::from(i[1] as u32 as i32)) >> 32;
        got == u64::from((high as u32).wrapping_add(i[0] as u32))
    });
}

#[test]
fn wide_integer_arithmetic_wraps_as_two_complement() {
    let mut samples = Samples::new("int64");
    let a: Vec<u64> = (0..3000).map(|i| samples.next() >> (i % 60)).collect();
    let b: Vec<u64> = (0..3000).map(|i| (samples.next() >> (i % 61)).max(1)).collect();
    type Rule = fn(u64, u64) -> u64;
    let rules: [(&str, Rule); 12] = [
        ("add.s64", u64::wrapping_add),
        ("sub.u64", u64::wrapping_sub),
        ("mul.lo.u64", u64::wrapping_mul),
        ("mul.hi.u64", |a, b| ((u128::from(a) * u128::from(b)) >> 64) as u64),
        ("mul.hi.s64", |a, b| ((i128::from(a as i64) * i128::from(b as i64)) >> 64) as u64),
        ("div.u64", |a, b| a / b),
        ("rem.u64", |a, b| a % b),
        ("div.s64", |a, b| (a as i64).wrapping_div(b as i64) as u64),
        ("rem.s64", |a, b| (a as i64).wrapping_rem(b as i64) as u64),
        ("max.s64", |a, b| (a as i64).max(b as i64) as u64),
        ("min.u64", u64::min),
        ("xor.b64", |a, b| a ^ b),
    ];
    for (name, rule) in rules {
        let got = map2(64, 64, &a, &b, &format!("{name} %o, %a, %b;"));
        check(name, &[&a, &b], &got, |i, got| got == rule(i[0], i[1]));
    }
}

#[test]
fn bit_fields_permutes_and_funnel_shifts_take_bits_where_they_should() {
    let mut samples = Samples::new("bits");
    let a: Vec<u64> = (0..4000).map(|_| samples.next() & 0xffff_ffff).collect();
    let b: Vec<u64> = (0..4000).map(|_| samples.next() & 0xffff_ffff).collect();
    let c: Vec<u64> =
        (0..4000).map(|i| if i % 2 == 0 { samples.next() & 0x3f } else { samples.next() & 0xffff_ffff }).collect();
    let byte = |word: u64, n: u64| word >> (8 * n) & 0xff;
    let got = map3(32, 32, &a, &b, &c, "prmt.b32 %o, %a, %b, %c;");
    check("prmt", &[&a, &b, &c], &got, |i, got| {
        let word = i[1] << 32 | i[0];
        got == (0..4)
            .map(|n| {
                let selector = i[2] >> (4 * n) & 15;
                let value = byte(word, selector & 7);
                (if selector & 8 == 0 {
                    value
                } else if value & 0x80 != 0 {
                    0xff
                } else {
                    0
                }) << (8 * n)
            })
            .sum::<u64>()
    });
    for (name, left, clamp) in [
        ("shf.l.wrap.b32", true, false),
        ("shf.l.clamp.b32", true, true),
        ("shf.r.wrap.b32", false, false),
        ("shf.r.clamp.b32", false, true),
    ] {
        let got = map3(32, 32, &a, &b, &c, &format!("{name} %o, %a, %b, %c;"));
        check(name, &[&a, &b, &c], &got, |i, got| {
            let shift = if clamp { i[2].min(32) } else { i[2] & 31 };
            let word = i[1] << 32 | i[0];
            let want = if left { ((u128::from(word) << shift) >> 32) as u64 } else { word >> shift };
            got == want & 0xffff_ffff
        });
    }
    for (name, signed) in [("bfe.u32", false), ("bfe.s32", true)] {
        let position: Vec<u64> = b.iter().map(|x| x & 0x3f).collect();
        let got = map3(32, 32, &a, &position, &c, &format!("{name} %o, %a, %b, %c;"));
        check(name, &[&a, &position, &c], &got, |i, got| {
            let (start, length) = (i[1] & 0xff, i[2] & 0xff);
            let sign = if !signed || length == 0 { 0 } else { i[0] >> (start + length - 1).min(31) & 1 };
            let mut want = 0;
            for n in 0..32 {
                let inside = n < length && start + n <= 31;
                want |= (if inside { i[0] >> (start + n) & 1 } else { sign }) << n;
            }
            got == want
        });
    }
    for table in [0x96, 0xe8, 0x01, 0xca] {
        let got = map3(32, 32, &a, &b, &c, &format!("lop3.b32 %o, %a, %b, %c, {table};"));
        check("lop3", &[&a, &b, &c], &got, |i, got| {
            (0..32).all(|n| {
                let index = (i[0] >> n & 1) << 2 | (i[1] >> n & 1) << 1 | i[2] >> n & 1;
                got >> n & 1 == table >> index & 1
            })
        });
    }
}

// ---------------------------------------------------------------- approximations

fn approximate(body: &str, inputs: &[f32], limit_ulp: f64, limit_abs: f64, rule: fn(f64) -> f64) {
    let points: Vec<u64> = inputs.iter().map(|x| u64::from(x.to_bits())).collect();
    let got = map1(32, 32, &points, body);
    check(body, &[&points], &got, |i, got| {
        let want = rule(f64::from(f32::from_bits(i[0] as u32)));
        let got = f64::from(f32::from_bits(got as u32));
        let ulp = (want.abs().max(f64::from(f32::MIN_POSITIVE)).log2().floor() - 23.0).exp2();
        (got - want).abs() <= (limit_ulp * ulp).max(limit_abs)
            || (want.is_nan() && got.is_nan())
            || want as f32 == got as f32
    });
}

#[test]
fn approximations_stay_within_the_documented_bounds() {
    let mut samples = Samples::new("approx");
    let mut spread = |low: f64, high: f64| -> Vec<f32> {
        (0..4000).map(|_| (low + (high - low) * (samples.next() >> 11) as f64 / (1u64 << 53) as f64) as f32).collect()
    };
    let near = spread(-20.0, 20.0);
    let wide: Vec<f32> = spread(-120.0, 120.0).iter().map(|e| e.exp2()).collect();
    let signed: Vec<f32> = wide.iter().enumerate().map(|(i, x)| if i % 2 == 0 { *x } else { -*x }).collect();
    approximate("ex2.approx.f32 %o, %a;", &spread(-125.0, 127.0), 2.0, 0.0, f64::exp2);
    approximate("ex2.approx.ftz.f32 %o, %a;", &near, 2.0, 0.0, f64::exp2);
    // Absolute error 2^-22 near 1, relative 2 ulp elsewhere.
    approximate("lg2.approx.f32 %o, %a;", &wide, 2.0, 2f64.powi(-22), f64::log2);
    approximate("rcp.approx.f32 %o, %a;", &signed, 1.0, 0.0, |x| 1.0 / x);
    approximate("rcp.approx.ftz.f32 %o, %a;", &signed, 1.0, 0.0, |x| 1.0 / x);
    approximate("sqrt.approx.f32 %o, %a;", &wide, 2.0, 0.0, f64::sqrt);
    approximate("rsqrt.approx.f32 %o, %a;", &wide, 2.0, 0.0, |x| 1.0 / x.sqrt());
    approximate("sin.approx.f32 %o, %a;", &spread(-3.125, 3.125), 0.0, 2f64.powf(-20.5), f64::sin);
    approximate("cos.approx.f32 %o, %a;", &spread(-3.125, 3.125), 0.0, 2f64.powf(-20.5), f64::cos);
    approximate("tanh.approx.f32 %o, %a;", &near, 2f64.powi(13), 0.0, f64::tanh);
    approximate("div.approx.f32 %o, 0f3F800000, %a;", &spread(0.001, 1000.0), 2.0, 0.0, |x| 1.0 / x);
    approximate("div.full.f32 %o, 0f40490FDB, %a;", &spread(0.001, 1000.0), 2.0, 0.0, |x| {
        f64::from(std::f32::consts::PI) / x
    });
}
