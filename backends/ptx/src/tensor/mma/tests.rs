//! Every shape and type against sums that are written out.

use super::*;
use crate::numeric::format::{self, Rounding};

fn base(m: usize, n: usize, k: usize, elem: Elem, acc: Acc) -> Mma {
    Mma {
        m,
        n,
        k,
        a: elem,
        b: elem,
        c: acc,
        d: acc,
        satfinite: false,
        bit_op: None,
        containers: false,
        scale: None,
        a_col: false,
        b_row: false,
    }
}

/// Small integers that every type but the narrowest holds exactly.
fn value(elem: Elem, seed: usize) -> f32 {
    match elem {
        Elem::B1 => (seed * 7 % 3 == 1) as u8 as f32,
        Elem::U4 | Elem::U8 => (seed * 5 % 13) as f32,
        Elem::E2m1 => [0.0, 0.5, 1.0, -1.5, 2.0, -3.0, 4.0][seed * 3 % 7],
        _ => (seed * 5 % 7) as f32 - 3.0,
    }
}

fn pattern(elem: Elem, x: f32) -> u64 {
    let f = |format| format::encode(f64::from(x), &format, Rounding::NearestEven, false);
    match elem {
        Elem::F16 => f(format::F16),
        Elem::Bf16 => f(format::BF16),
        Elem::Tf32 => u64::from(x.to_bits()),
        Elem::F64 => f64::from(x).to_bits(),
        Elem::S8 | Elem::U8 => (x as i32 & 0xff) as u64,
        Elem::S4 | Elem::U4 => (x as i32 & 0xf) as u64,
        Elem::B1 => x as u64,
        Elem::E4m3 => f(format::E4M3),
        Elem::E5m2 => f(format::E5M2),
        Elem::E2m3 => f(format::E2M3),
        Elem::E3m2 => f(format::E3M2),
        Elem::E2m1 => f(format::E2M1),
    }
}

/// Packs with the formulas of the manual, written per element index i, instead of per register.
fn pack_a(op: &Mma, at: impl Fn(usize, usize) -> f32) -> Vec<Lanes> {
    let width = if op.containers { 8 } else { op.a.bits() as usize };
    let e = 32 / width;
    let shift = if op.containers && op.a == Elem::E2m1 { 2 } else { 0 };
    let mut regs = vec![[0u64; 32]; op.register_counts().0];
    for lane in 0..32 {
        for i in 0..regs.len() * e {
            let (row, col) = if op.m == 8 {
                (lane >> 2, (lane % 4) * e + i)
            } else {
                let row = (lane >> 2) + if (i / e) % 2 == 0 { 0 } else { 8 };
                (row, (lane % 4) * e + i % e + if i >= 2 * e { 4 * e } else { 0 })
            };
            regs[i / e][lane] |= pattern(op.a, at(row, col)) << (width * (i % e) + shift);
        }
    }
    regs
}

fn pack_b(op: &Mma, at: impl Fn(usize, usize) -> f32) -> Vec<Lanes> {
    let width = if op.containers { 8 } else { op.b.bits() as usize };
    let e = 32 / width;
    let shift = if op.containers && op.b == Elem::E2m1 { 2 } else { 0 };
    let mut regs = vec![[0u64; 32]; op.register_counts().1];
    for lane in 0..32 {
        for i in 0..regs.len() * e {
            let row = (lane % 4) * e + i % e + if i >= e { 4 * e } else { 0 };
            regs[i / e][lane] |= pattern(op.b, at(row, lane >> 2)) << (width * (i % e) + shift);
        }
    }
    regs
}

fn check(op: &Mma, want: impl Fn(usize, usize) -> f32, scales: Option<(ScaleOperand<'_>, ScaleOperand<'_>)>) {
    op.check().unwrap();
    let a = pack_a(op, |r, c| value(op.a, r * 31 + c));
    let b = pack_b(op, |r, c| value(op.b, r * 17 + c * 5 + 1));
    let counts = op.register_counts();
    let c0 = |row: usize, col: usize| (row + 2 * col) as f32;
    let mut c = vec![[0u64; 32]; counts.2];
    for lane in 0..32 {
        for i in 0..op.m / 4 {
            let x = c0((lane >> 2) + 8 * (i / 2), (lane % 4) * 2 + (i & 1));
            match op.c {
                Acc::F16 => c[i / 2][lane] |= u64::from(half::f32_to_f16(x)) << (16 * (i % 2)),
                Acc::S32 => c[i][lane] = x as u64,
                _ => c[i][lane] = u64::from(x.to_bits()),
            }
        }
    }
    let mut d = vec![[0u64; 32]; counts.3];
    op.execute(&a, &b, &c, &mut d, scales).unwrap();
    for lane in 0..32 {
        for i in 0..op.m / 4 {
            let (row, col) = ((lane >> 2) + 8 * (i / 2), (lane % 4) * 2 + (i & 1));
            let got = match op.d {
                Acc::F16 => half::f16_to_f32((d[i / 2][lane] >> (16 * (i % 2))) as u16),
                Acc::S32 => d[i][lane] as i32 as f32,
                _ => f32::from_bits(d[i][lane] as u32),
            };
            assert_eq!(got, want(row, col) + c0(row, col), "{op:?} at {row},{col}");
        }
    }
}

fn plain(op: &Mma) {
    let dot = |row: usize, col: usize| -> f32 {
        (0..op.k).map(|p| value(op.a, row * 31 + p) * value(op.b, p * 17 + col * 5 + 1)).sum()
    };
    check(op, dot, None);
}

#[test]
fn every_dense_shape_and_type_multiplies() {
    for k in [8, 16] {
        plain(&base(16, 8, k, Elem::F16, Acc::F32));
        plain(&base(16, 8, k, Elem::F16, Acc::F16));
        plain(&base(16, 8, k, Elem::Bf16, Acc::F32));
        plain(&base(16, 8, k / 2, Elem::Tf32, Acc::F32));
    }
    for (m, k8) in [(8, 16), (16, 16), (16, 32)] {
        for elem in [Elem::S8, Elem::U8] {
            plain(&base(m, 8, k8, elem, Acc::S32));
        }
        for elem in [Elem::S4, Elem::U4] {
            plain(&base(m, 8, 2 * k8, elem, Acc::S32));
        }
        let mut bits = base(m, 8, 8 * k8, Elem::B1, Acc::S32);
        bits.bit_op = Some(BitOp::And);
        plain(&bits);
        bits.bit_op = Some(BitOp::Xor);
        let xor = |row: usize, col: usize| -> f32 {
            (0..bits.k).filter(|p| value(Elem::B1, row * 31 + p) != value(Elem::B1, p * 17 + col * 5 + 1)).count()
                as f32
        };
        check(&bits, xor, None);
    }
    for elem in [Elem::E4m3, Elem::E5m2] {
        plain(&base(16, 8, 16, elem, Acc::F32));
        plain(&base(16, 8, 32, elem, Acc::F32));
        plain(&base(16, 8, 32, elem, Acc::F16));
    }
    for a in [Elem::E4m3, Elem::E5m2, Elem::E2m3, Elem::E3m2, Elem::E2m1] {
        for b in [Elem::E4m3, Elem::E3m2, Elem::E2m1] {
            let mut op = base(16, 8, 32, a, Acc::F32);
            op.b = b;
            op.containers = true;
            plain(&op);
        }
    }
}

#[test]
fn block_scales_come_from_the_selected_lanes_and_bytes() {
    // Every lane and byte has its own scale, so a wrong selection shows.
    let data_a: Lanes = std::array::from_fn(|l| {
        u64::from(u32::from_le_bytes(std::array::from_fn(|b| (125 + (l * 5 + b * 3) % 5) as u8)))
    });
    let data_b: Lanes = std::array::from_fn(|l| {
        u64::from(u32::from_le_bytes(std::array::from_fn(|b| (126 + (l * 3 + b * 7) % 3) as u8)))
    });
    for (vec, containers, k, bytes) in
        [(1usize, true, 32usize, vec![0u32, 1, 2, 3]), (2, false, 64, vec![0, 2]), (4, false, 64, vec![0])]
    {
        for byte_a in bytes.clone() {
            for (ta, tb) in [(0u32, 0u32), (1, 1), (0, 3), (1, 2)] {
                let byte_b = bytes[bytes.len() - 1];
                let mut op = base(16, 8, k, Elem::E2m1, Acc::F32);
                op.containers = containers;
                op.scale = Some(BlockScale { kind: ScaleType::Ue8m0, vec });
                let pow = |byte: u8| 2f32.powi(i32::from(byte) - 127);
                let want = |row: usize, col: usize| -> f32 {
                    (0..k)
                        .map(|p| {
                            let j = p / (k / vec);
                            // Rows 0-7 come from the first lane of the pair, rows 8-15 from the second.
                            let lane_a = (row % 8) * 4 + [0, 2][ta as usize] + usize::from(row > 7);
                            let lane_b = col * 4 + tb as usize;
                            let fa = pow(data_a[lane_a].to_le_bytes()[byte_a as usize + j]);
                            let fb = pow(data_b[lane_b].to_le_bytes()[byte_b as usize + j]);
                            value(Elem::E2m1, row * 31 + p) * value(Elem::E2m1, p * 17 + col * 5 + 1) * fa * fb
                        })
                        .sum()
                };
                let a = ScaleOperand { data: &data_a, byte_id: byte_a, thread_id: ta };
                let b = ScaleOperand { data: &data_b, byte_id: byte_b, thread_id: tb };
                check(&op, want, Some((a, b)));
            }
        }
    }
    let mut op = base(16, 8, 64, Elem::E2m1, Acc::F32);
    op.scale = Some(BlockScale { kind: ScaleType::Ue4m3, vec: 4 });
    let a = ScaleOperand { data: &data_a, byte_id: 1, thread_id: 0 };
    assert!(op.execute(&[[0; 32]; 4], &[[0; 32]; 2], &[[0; 32]; 4], &mut [[0; 32]; 4], Some((a, a))).is_err());
}

#[test]
fn f64_shapes_follow_the_general_fragment_rule() {
    for (m, k) in [(8, 4), (16, 4), (16, 8), (16, 16)] {
        let op = base(m, 8, k, Elem::F64, Acc::F64);
        op.check().unwrap();
        let (na, nb, nc, _) = op.register_counts();
        let at = |r: usize, c: usize| (r * 3 + c) as f64 * 0.5;
        let bt = |r: usize, c: usize| (r as f64) - (c as f64) * 0.25;
        let mut a = vec![[0u64; 32]; na];
        let mut b = vec![[0u64; 32]; nb];
        for lane in 0..32 {
            for (i, reg) in a.iter_mut().enumerate() {
                // The manual's own formula for m16n8k16: col = 2i + t for even i, 2i − 2 + t for odd.
                let (row, col) = if m == 8 {
                    (lane >> 2, lane % 4)
                } else {
                    ((lane >> 2) + 8 * (i % 2), if i % 2 == 0 { 2 * i } else { 2 * i - 2 } + lane % 4)
                };
                reg[lane] = at(row, col).to_bits();
            }
            for (i, reg) in b.iter_mut().enumerate() {
                reg[lane] = bt(lane % 4 + 4 * i, lane >> 2).to_bits();
            }
        }
        let c = vec![[1.0f64.to_bits(); 32]; nc];
        let mut d = c.clone();
        op.execute_f64(&a, &b, &c, &mut d).unwrap();
        for lane in 0..32 {
            for (i, reg) in d.iter().enumerate() {
                let (row, col) = ((lane >> 2) + 8 * (i / 2), 2 * (lane % 4) + i % 2);
                let want: f64 = 1.0 + (0..k).map(|p| at(row, p) * bt(p, col)).sum::<f64>();
                assert_eq!(f64::from_bits(reg[lane]), want);
            }
        }
    }
}

#[test]
fn volta_quad_pairs_multiply_on_their_own() {
    for (a_col, b_row, d_f16, c_f16) in
        [(false, false, false, false), (true, true, false, true), (false, true, true, false), (true, false, true, true)]
    {
        let mut op = base(8, 8, 4, Elem::F16, Acc::F32);
        op.a_col = a_col;
        op.b_row = b_row;
        op.d = if d_f16 { Acc::F16 } else { Acc::F32 };
        op.c = if c_f16 { Acc::F16 } else { Acc::F32 };
        let at = |q: usize, r: usize, c: usize| ((r * 3 + c * 5 + q) % 7) as f32 - 3.0;
        let bt = |q: usize, r: usize, c: usize| ((r * 2 + c * 3 + q) % 5) as f32 - 2.0;
        let ct = |q: usize, r: usize, c: usize| (r + 8 * c + q) as f32;
        let (na, nb, nc, nd) = op.register_counts();
        let mut a = vec![[0u64; 32]; na];
        let mut b = vec![[0u64; 32]; nb];
        let mut c = vec![[0u64; 32]; nc];
        let put = |regs: &mut Vec<Lanes>, lane: usize, i: usize, x: f32| {
            regs[i / 2][lane] |= u64::from(half::f32_to_f16(x)) << (16 * (i % 2));
        };
        let f32_place = |lane: usize, i: usize| {
            let x = (lane & 1) + (i & 2);
            (if lane < 16 { x } else { x + 4 }, (i & 4) + (lane & 2) + (i & 1))
        };
        let f16_place = |lane: usize, i: usize| (if lane < 16 { lane % 4 } else { lane % 4 + 4 }, i);
        for lane in 0..32 {
            let q = lane % 16 / 4;
            for i in 0..4 {
                let upper = if lane < 16 { 0 } else { 4 };
                let (r, k) = if a_col { (i % 4 + upper, lane % 4) } else { (lane % 4 + upper, i) };
                put(&mut a, lane, i, at(q, r, k));
                let (k, n) = if b_row { (lane % 4, i + upper) } else { (i, lane % 4 + upper) };
                put(&mut b, lane, i, bt(q, k, n));
            }
            for i in 0..8 {
                if c_f16 {
                    let (r, n) = f16_place(lane, i);
                    put(&mut c, lane, i, ct(q, r, n));
                } else {
                    let (r, n) = f32_place(lane, i);
                    c[i][lane] = u64::from(ct(q, r, n).to_bits());
                }
            }
        }
        let mut d = vec![[0u64; 32]; nd];
        op.execute(&a, &b, &c, &mut d, None).unwrap();
        for lane in 0..32 {
            let q = lane % 16 / 4;
            for i in 0..8 {
                let ((r, n), got) = if d_f16 {
                    (f16_place(lane, i), half::f16_to_f32((d[i / 2][lane] >> (16 * (i % 2))) as u16))
                } else {
                    (f32_place(lane, i), f32::from_bits(d[i][lane] as u32))
                };
                let want: f32 = ct(q, r, n) + (0..4).map(|p| at(q, r, p) * bt(q, p, n)).sum::<f32>();
                assert_eq!(got, want, "lane {lane} element {i}");
            }
        }
    }
}
