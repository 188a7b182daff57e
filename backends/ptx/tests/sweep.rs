//! Integer instructions with every modifier against formulas over 128-bit integers that share nothing with the emulator.
#![allow(clippy::unwrap_used)]

mod arith;

use arith::{Samples, check, map1, map2, map3};

/// Values with edges in front.
fn values(name: &str, bits: u32, count: usize) -> Vec<u64> {
    let full = if bits == 64 { u64::MAX } else { (1 << bits) - 1 };
    let sign = 1u64 << (bits - 1);
    let edges = [0, 1, 2, full, full - 1, sign, sign - 1, sign + 1, 31, 32, 33, 0x80_0000, 0x7f_ffff, 0xff_ffff];
    let mut samples = Samples::new(name);
    edges.iter().map(|v| v & full).chain(std::iter::repeat_with(|| samples.next() & full)).take(count).collect()
}

fn signed(v: u64, bits: u32) -> i128 {
    let v = i128::from(v) & ((1 << bits) - 1);
    if v >> (bits - 1) & 1 == 1 { v - (1 << bits) } else { v }
}

fn value(v: u64, bits: u32, is_signed: bool) -> i128 {
    if is_signed { signed(v, bits) } else { i128::from(v) & ((1 << bits) - 1) }
}

fn low(v: i128, bits: u32) -> u64 {
    (v & ((1i128 << bits) - 1)) as u64
}

/// Every pair of the edges and some more.
fn pairs(name: &str, bits: u32) -> (Vec<u64>, Vec<u64>) {
    let (a, b) = (values(name, bits, 40), values(&format!("{name}'"), bits, 40));
    a.iter().flat_map(|x| b.iter().map(move |y| (*x, *y))).unzip()
}

#[test]
fn sums_products_and_extremes_of_every_width_and_sign() {
    for bits in [16u32, 32, 64] {
        for s in [false, true] {
            let ty = format!("{}{bits}", if s { 's' } else { 'u' });
            let (a, b) = pairs(&ty, bits);
            type Model = fn(i128, i128, u32) -> i128;
            let models: [(&str, Model); 6] = [
                ("add", |x, y, _| x + y),
                ("sub", |x, y, _| x - y),
                ("mul.lo", |x, y, _| x.wrapping_mul(y)),
                ("mul.hi", |x, y, n| x.wrapping_mul(y) >> n),
                ("min", |x, y, _| x.min(y)),
                ("max", |x, y, _| x.max(y)),
            ];
            for (name, model) in models {
                if bits == 64 && !s && name == "mul.hi" {
                    continue;
                }
                let got = map2(bits, bits, &a, &b, &format!("{name}.{ty} %o, %a, %b;"));
                check(&format!("{name}.{ty}"), &[&a, &b], &got, |v, r| {
                    r == low(model(value(v[0], bits, s), value(v[1], bits, s), bits), bits)
                });
            }
        }
    }
}

#[test]
fn signs_counts_and_complements_of_every_width() {
    for bits in [16u32, 32, 64] {
        let a = values("one", bits, 200);
        for (name, model) in [
            ("neg.s", (|x, _| -x) as fn(i128, u32) -> i128),
            ("abs.s", |x, _| x.abs()),
            ("not.b", |x, _| !x),
            ("cnot.b", |x, _| i128::from(x == 0)),
        ] {
            let got = map1(bits, bits, &a, &format!("{name}{bits} %o, %a;"));
            check(name, &[&a], &got, |v, r| r == low(model(signed(v[0], bits), bits), bits));
        }
    }
}

#[test]
fn saturating_forms_stop_at_the_ends_of_their_type() {
    let (a, b) = pairs("sat", 32);
    let c: Vec<u64> = a.iter().zip(&b).map(|(x, y)| (x ^ y.rotate_left(7)) & 0xffff_ffff).collect();
    let clamp = |v: i128| low(v.clamp(i128::from(i32::MIN), i128::from(i32::MAX)), 32);
    for (name, sign) in [("add", 1), ("sub", -1)] {
        let got = map2(32, 32, &a, &b, &format!("{name}.sat.s32 %o, %a, %b;"));
        check(name, &[&a, &b], &got, |v, r| r == clamp(signed(v[0], 32) + sign * signed(v[1], 32)));
    }
    let got = map3(32, 32, &a, &b, &c, "mad.hi.sat.s32 %o, %a, %b, %c;");
    check("mad.hi.sat", &[&a, &b, &c], &got, |v, r| {
        r == clamp(((signed(v[0], 32) * signed(v[1], 32)) >> 32) + signed(v[2], 32))
    });
    for (form, sat, hi, s) in [
        ("mad24.hi.sat.s32", true, true, true),
        ("mad24.hi.s32", false, true, true),
        ("mad24.lo.s32", false, false, true),
        ("mad24.hi.u32", false, true, false),
        ("mad24.lo.u32", false, false, false),
    ] {
        let got = map3(32, 32, &a, &b, &c, &format!("{form} %o, %a, %b, %c;"));
        check(form, &[&a, &b, &c], &got, |v, r| {
            let product = value(v[0], 24, s) * value(v[1], 24, s);
            let part = if hi { signed(low(product >> 16, 32), 32) } else { product };
            let sum = part + signed(v[2], 32);
            r == if sat { clamp(sum) } else { low(sum, 32) }
        });
    }
}

#[test]
fn chains_of_carries_and_borrows_give_the_wide_result() {
    let (a, b) = pairs("carry", 64);
    let split = "mov.b64 {%r4, %r5}, %a; mov.b64 {%r6, %r7}, %b;";
    for (op, sign) in [("add", 1), ("sub", -1)] {
        let body = format!("{split} {op}.cc.u32 %r4, %r4, %r6; {op}c.u32 %r5, %r5, %r7; mov.b64 %o, {{%r4, %r5}};");
        let got = map2(64, 64, &a, &b, &body);
        check(op, &[&a, &b], &got, |v, r| r == low(i128::from(v[0]) + sign * i128::from(v[1]), 64));
    }
    // The flag itself: 1 after a subtraction without borrow, as after a sum with carry.
    let narrow: (Vec<u64>, Vec<u64>) = pairs("flag", 32);
    let got = map2(32, 32, &narrow.0, &narrow.1, "sub.cc.u32 %r4, %a, %b; addc.u32 %o, 0, 0;");
    check("sub.cc", &[&narrow.0, &narrow.1], &got, |v, r| r == u64::from(v[0] >= v[1]));
    let got = map2(32, 32, &narrow.0, &narrow.1, "add.cc.u32 %r4, %a, %b; subc.u32 %o, 0, 0;");
    check("add.cc, subc", &[&narrow.0, &narrow.1], &got, |v, r| {
        r == if (v[0] + v[1]) >> 32 == 1 { 0 } else { 0xffff_ffff }
    });
}

#[test]
fn a_selection_by_a_flushed_sign_takes_minus_zero_for_zero() {
    let c: Vec<u64> =
        [0u32, 0x8000_0000, 0x8000_0001, 0x807f_ffff, 0x8080_0000, 1, 0x7fc0_0000, 0xff80_0000, 0x3f80_0000]
            .iter()
            .map(|v| u64::from(*v))
            .collect();
    let a = vec![7; c.len()];
    for (form, flush) in [("slct.f32.f32", false), ("slct.ftz.f32.f32", true), ("slct.f32.ftz.f32", true)] {
        let got = map2(32, 32, &a, &c, &format!("{form} %o, %a, 0f00000000, %b;"));
        check(form, &[&a, &c], &got, |v, r| {
            let x = f32::from_bits(v[1] as u32);
            let x = if flush && x.is_subnormal() { 0.0 } else { x };
            r == if x >= 0.0 { 7 } else { 0 }
        });
    }
}
