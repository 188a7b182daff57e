//! `mma.m8n8k4` of 16-bit elements, Volta's form.

use super::{Acc, Lanes, Mma};
use crate::numeric::half;

impl Mma {
    /// m8n8k4 with f16: four independent products, one for each quad pair (lanes q·4.. and 16 + q·4..).
    pub(super) fn execute_volta(&self, a: &[Lanes], b: &[Lanes], c: &[Lanes], d: &mut [Lanes]) {
        let element =
            |regs: &[Lanes], lane: usize, i: usize| half::f16_to_f32((regs[i / 2][lane] >> (16 * (i % 2))) as u16);
        // The lane of a quad pair that stands for index 0 to 7 of the axis that lanes span.
        let lane_of = |quad: usize, index: usize| 4 * quad + index % 4 + 16 * (index / 4);
        let snapshot = c.to_vec();
        for quad in 0..4 {
            let mut am = [[0f32; 4]; 8];
            let mut bm = [[0f32; 8]; 4];
            for x in 0..8 {
                for i in 0..4 {
                    if self.a_col {
                        // Lane holds column lane % 4, rows i + 4·(upper half).
                        am[i + 4 * (x / 4)][x % 4] = element(a, lane_of(quad, x), i);
                    } else {
                        am[x][i] = element(a, lane_of(quad, x), i);
                    }
                    if self.b_row {
                        bm[x % 4][i + 4 * (x / 4)] = element(b, lane_of(quad, x), i);
                    } else {
                        bm[i][x] = element(b, lane_of(quad, x), i);
                    }
                }
            }
            let dot = |row: usize, col: usize| -> f32 { (0..4).map(|p| am[row][p] * bm[p][col]).sum() };
            for x in 0..8 {
                let lane = lane_of(quad, x);
                let coordinates = |acc: Acc, i: usize| {
                    if acc == Acc::F16 {
                        (x, i)
                    } else {
                        let row = (lane & 1) + (i & 2) + if lane >= 16 { 4 } else { 0 };
                        (row, (i & 4) + (lane & 2) + (i & 1))
                    }
                };
                let read_c = |row: usize, col: usize| {
                    // The lane and register that hold C's element, for a C type that may differ from D's.
                    if self.c == Acc::F16 {
                        element(&snapshot, lane_of(quad, row), col)
                    } else {
                        let holder = 4 * quad + (row & 1) + (col & 2) + if row >= 4 { 16 } else { 0 };
                        f32::from_bits(snapshot[(row & 2) + (col & 4) + (col & 1)][holder] as u32)
                    }
                };
                for i in 0..8 {
                    let (row, col) = coordinates(self.d, i);
                    let value = read_c(row, col) + dot(row, col);
                    if self.d == Acc::F16 {
                        let bits = u64::from(half::f32_to_f16(value));
                        let word = &mut d[i / 2][lane];
                        *word = if i % 2 == 0 { *word & 0xffff_0000 | bits } else { *word & 0xffff | bits << 16 };
                    } else {
                        d[i][lane] = u64::from(value.to_bits());
                    }
                }
            }
        }
    }
}
