//! `mma.sync`: fragments of a warp to matrices and back.
//!
//! Registers are lane arrays: `regs[r][lane]`. With g = lane / 4 and t = lane % 4, register r of A holds row g + 8·(r & 1) and, with
//! e elements in a register, columns 4e·(r >> 1) + e·t onwards; register r of B holds column g and rows 4e·r + e·t onwards; this
//! one rule covers every shape but the f16 m8n8k4. C and D: element i at row g + 8·(i >> 1), column 2t + (i & 1).
//! Source: PTX ISA 9.1, section 9.7.14.5.

use std::borrow::Borrow;

use super::elem::{Elem, Packing, decode_word, per_word};
use super::{TensorError, invalid, matmul, unsupported};
use crate::numeric::{half, scale};

/// One register of all lanes, zero-extended.
pub type Lanes = [u64; 32];

/// Type of C and D.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Acc {
    /// Half precision, two elements in a register.
    F16,
    /// Single precision.
    F32,
    /// 32-bit integer.
    S32,
    /// Double precision.
    F64,
}

/// How single bits are combined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BitOp {
    /// `.xor.popc`
    Xor,
    /// `.and.popc`
    And,
}

/// The type of scale factors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScaleType {
    /// Powers of two.
    Ue8m0,
    /// e4m3 without sign.
    Ue4m3,
}

impl ScaleType {
    /// The value of one scale byte.
    #[must_use]
    #[inline]
    pub fn decode(self, byte: u8) -> f32 {
        match self {
            Self::Ue8m0 => scale::ue8m0_to_f32(byte),
            Self::Ue4m3 => scale::ue4m3_to_f32(byte),
        }
    }
}

/// Block scaling of an `mma.sync`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockScale {
    /// Scale factor type.
    pub kind: ScaleType,
    /// Scale factors a row (1, 2 or 4): `.scale_vec::nX`.
    pub vec: usize,
}

/// A dense `mma.sync` form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mma {
    /// Rows of A and D.
    pub m: usize,
    /// Columns of B and D.
    pub n: usize,
    /// Columns of A, rows of B.
    pub k: usize,
    /// Element type of A.
    pub a: Elem,
    /// Element type of B.
    pub b: Elem,
    /// Type of C.
    pub c: Acc,
    /// Type of D.
    pub d: Acc,
    /// `.satfinite` on integer accumulators.
    pub satfinite: bool,
    /// For `.b1`.
    pub bit_op: Option<BitOp>,
    /// Whether 4- and 6-bit floats stand in byte containers (`kind::f8f6f4`, `kind::mxf8f6f4`).
    pub containers: bool,
    /// Block scaling.
    pub scale: Option<BlockScale>,
    /// A is column-major (only m8n8k4 f16).
    pub a_col: bool,
    /// B is row-major (only m8n8k4 f16).
    pub b_row: bool,
}

/// Scale operands of a block-scaled form: the register, and its `{byte-id, thread-id}` selectors.
#[derive(Debug, Clone, Copy)]
pub struct ScaleOperand<'a> {
    /// The scale data register.
    pub data: &'a Lanes,
    /// Byte selector.
    pub byte_id: u32,
    /// Thread selector.
    pub thread_id: u32,
}

impl Mma {
    fn packing(&self) -> Packing {
        if self.containers { Packing::ByteContainer } else { Packing::Dense }
    }

    /// Whether this is the quad-pair form of Volta.
    #[must_use]
    pub fn is_volta(&self) -> bool {
        (self.m, self.n, self.k) == (8, 8, 4) && self.a == Elem::F16
    }

    /// Registers of A, B, C and D per lane (64-bit ones for f64).
    #[must_use]
    pub fn register_counts(&self) -> (usize, usize, usize, usize) {
        let acc = |acc: Acc| match acc {
            Acc::F16 => self.m * self.n / 64,
            Acc::F32 | Acc::S32 | Acc::F64 => self.m * self.n / 32,
        };
        if self.is_volta() {
            let acc = |acc: Acc| if acc == Acc::F16 { 4 } else { 8 };
            return (2, 2, acc(self.c), acc(self.d));
        }
        let (pa, pb) = if self.a == Elem::F64 {
            (1, 1)
        } else {
            (per_word(self.a, self.packing()), per_word(self.b, self.packing()))
        };
        (self.m * self.k / 32 / pa, self.k * self.n / 32 / pb, acc(self.c), acc(self.d))
    }

    /// Multiply-add operations of one instruction, times two.
    #[must_use]
    pub fn flops(&self) -> u64 {
        let tiles = if self.is_volta() { 4 } else { 1 };
        2 * (self.m * self.n * self.k * tiles) as u64
    }

    /// Checks that shape and types form an instruction that PTX has.
    ///
    /// # Errors
    /// `Invalid` for combinations that do not exist.
    pub fn check(&self) -> Result<(), TensorError> {
        use Elem::{B1, Bf16, E2m1, E2m3, E3m2, E4m3, E5m2, F16, F64, S4, S8, Tf32, U4, U8};
        let shape = (self.m, self.n, self.k);
        let ok = match self.a {
            F16 => matches!(shape, (8, 8, 4) | (16, 8, 8) | (16, 8, 16)) && self.b == F16,
            Bf16 => matches!(shape, (16, 8, 8) | (16, 8, 16)) && self.b == Bf16,
            Tf32 => matches!(shape, (16, 8, 4) | (16, 8, 8)) && self.b == Tf32,
            F64 => matches!(shape, (8, 8, 4) | (16, 8, 4) | (16, 8, 8) | (16, 8, 16)) && self.b == F64,
            S8 | U8 => matches!(shape, (8, 8, 16) | (16, 8, 16) | (16, 8, 32)) && matches!(self.b, S8 | U8),
            S4 | U4 => matches!(shape, (8, 8, 32) | (16, 8, 32) | (16, 8, 64)) && matches!(self.b, S4 | U4),
            B1 => matches!(shape, (8, 8, 128) | (16, 8, 128) | (16, 8, 256)) && self.b == B1 && self.bit_op.is_some(),
            E4m3 | E5m2 | E2m3 | E3m2 | E2m1 => {
                let small = matches!(self.b, E4m3 | E5m2 | E2m3 | E3m2 | E2m1);
                match (self.scale, self.containers) {
                    (Some(scale), false) => shape == (16, 8, 64) && self.a == E2m1 && self.b == E2m1 && scale.vec != 1,
                    (Some(scale), true) => shape == (16, 8, 32) && small && scale.vec == 1,
                    (None, true) => shape == (16, 8, 32) && small,
                    (None, false) => {
                        matches!(shape, (16, 8, 16) | (16, 8, 32)) && small && self.a.bits() == 8 && self.b.bits() == 8
                    }
                }
            }
        };
        let acc = match self.a {
            F64 => self.c == Acc::F64 && self.d == Acc::F64,
            a if a.is_integer() => self.c == Acc::S32 && self.d == Acc::S32,
            F16 | E4m3 | E5m2 | E2m3 | E3m2 | E2m1 if self.scale.is_none() => {
                matches!(self.c, Acc::F16 | Acc::F32) && matches!(self.d, Acc::F16 | Acc::F32)
            }
            _ => self.c == Acc::F32 && self.d == Acc::F32,
        };
        if ok && acc {
            Ok(())
        } else {
            invalid(format!("mma.m{}n{}k{} with {:?} and {:?} does not exist", self.m, self.n, self.k, self.a, self.b))
        }
    }

    /// Executes one instruction on 32-bit registers; `d` has [`Self::register_counts`] entries.
    ///
    /// # Errors
    /// `Invalid` for combinations or selectors that PTX does not allow; `Unsupported` for f64 (see [`Self::execute_f64`]).
    #[allow(clippy::needless_range_loop, reason = "lanes are numbers here, as in the manual")]
    pub fn execute<L: Borrow<Lanes>>(
        &self,
        a: &[L],
        b: &[L],
        c: &[L],
        d: &mut [Lanes],
        scales: Option<(ScaleOperand<'_>, ScaleOperand<'_>)>,
    ) -> Result<(), TensorError> {
        if self.a == Elem::F64 {
            return unsupported("f64 mma on 32-bit registers");
        }
        let counts = self.register_counts();
        if (a.len(), b.len(), c.len(), d.len()) != counts {
            return invalid(format!("mma takes {counts:?} registers, got {:?}", (a.len(), b.len(), c.len(), d.len())));
        }
        if self.is_volta() {
            let own = |list: &[L]| list.iter().map(|l| *l.borrow()).collect::<Vec<Lanes>>();
            self.execute_volta(&own(a), &own(b), &own(c), d);
            return Ok(());
        }
        let mut partial = [0f32; 16 * 8];
        // The largest shapes, of single bits, have 256 columns; clearing room for them takes longer than most products.
        match self.k {
            0..=16 => self.product::<{ 16 * 16 }, { 8 * 16 }, L>(a, b, scales, &mut partial)?,
            17..=64 => self.product::<{ 16 * 64 }, { 8 * 64 }, L>(a, b, scales, &mut partial)?,
            _ => self.product::<{ 16 * 256 }, { 8 * 256 }, L>(a, b, scales, &mut partial)?,
        }
        let (m, n) = (self.m, self.n);
        for lane in 0..32 {
            let (g, t) = (lane / 4, lane % 4);
            for pair in 0..m / 8 {
                let row = g + 8 * pair;
                let at = row * n + 2 * t;
                let (p0, p1) = (partial[at], partial[at + 1]);
                if self.c == Acc::S32 {
                    for (i, p) in [p0, p1].into_iter().enumerate() {
                        let sum = matmul::add_s32(c[2 * pair + i].borrow()[lane] as i32, p, self.satfinite);
                        d[2 * pair + i][lane] = u64::from(sum as u32);
                    }
                    continue;
                }
                let (c0, c1) = match self.c {
                    Acc::F16 => {
                        let word = c[pair].borrow()[lane];
                        (half::f16_to_f32(word as u16), half::f16_to_f32((word >> 16) as u16))
                    }
                    _ => {
                        let of = |i: usize| f32::from_bits(c[2 * pair + i].borrow()[lane] as u32);
                        (of(0), of(1))
                    }
                };
                match self.d {
                    Acc::F16 => {
                        d[pair][lane] =
                            u64::from(half::f32_to_f16(c0 + p0)) | u64::from(half::f32_to_f16(c1 + p1)) << 16;
                    }
                    _ => {
                        d[2 * pair][lane] = u64::from((c0 + p0).to_bits());
                        d[2 * pair + 1][lane] = u64::from((c1 + p1).to_bits());
                    }
                }
            }
        }
        Ok(())
    }

    /// Decodes A and B, which have room for so many elements, and multiplies them.
    fn product<const A: usize, const B: usize, L: Borrow<Lanes>>(
        &self,
        a: &[L],
        b: &[L],
        scales: Option<(ScaleOperand<'_>, ScaleOperand<'_>)>,
        partial: &mut [f32],
    ) -> Result<(), TensorError> {
        let (m, n, k) = (self.m, self.n, self.k);
        let mut am = [0f32; A];
        let mut bm = [0f32; B];
        self.gather(a, b, &mut am, &mut bm);
        match (self.scale, scales) {
            (None, _) => {
                matmul::multiply(m, n, k, &am, &bm, partial);
                if self.bit_op == Some(BitOp::Xor) {
                    // popc(a xor b) = popc(a) + popc(b) - 2 popc(a and b)
                    for i in 0..m {
                        let row: f32 = am[i * k..][..k].iter().sum();
                        for j in 0..n {
                            let column: f32 = (0..k).map(|p| bm[p * n + j]).sum();
                            partial[i * n + j] = row + column - 2.0 * partial[i * n + j];
                        }
                    }
                }
                Ok(())
            }
            (Some(scale), Some((sa, sb))) => self.scaled(scale, &sa, &sb, &am, &bm, partial),
            (Some(_), None) => invalid("a block-scaled mma needs scale operands"),
        }
    }

    fn gather<L: Borrow<Lanes>>(&self, a: &[L], b: &[L], am: &mut [f32], bm: &mut [f32]) {
        let packing = self.packing();
        let (n, k) = (self.n, self.k);
        // The usual two, without a choice for each word.
        match (self.a, self.b, self.m) {
            (Elem::Bf16, Elem::Bf16, 16) => return gather_halves(n, k, half::bf16_to_f32, [a, b], am, bm),
            (Elem::F16, Elem::F16, 16) => return gather_halves(n, k, half::f16_to_f32, [a, b], am, bm),
            _ => {}
        }
        let e = per_word(self.a, packing);
        let both_halves = usize::from(self.m == 16);
        for (r, lanes) in a.iter().enumerate() {
            let (half_row, k_group) = if both_halves == 1 { (r & 1, r >> 1) } else { (0, r) };
            for (lane, word) in lanes.borrow().iter().enumerate() {
                let row = lane / 4 + 8 * half_row;
                let col = 4 * e * k_group + e * (lane % 4);
                decode_word(*word as u32, self.a, packing, &mut am[row * k + col..][..e]);
            }
        }
        let e = per_word(self.b, packing);
        let mut values = [0f32; 32];
        for (r, lanes) in b.iter().enumerate() {
            for (lane, word) in lanes.borrow().iter().enumerate() {
                decode_word(*word as u32, self.b, packing, &mut values[..e]);
                let row = 4 * e * r + e * (lane % 4);
                for (i, value) in values[..e].iter().enumerate() {
                    bm[(row + i) * n + lane / 4] = *value;
                }
            }
        }
    }

    fn scaled(
        &self,
        scale: BlockScale,
        sa: &ScaleOperand<'_>,
        sb: &ScaleOperand<'_>,
        am: &[f32],
        bm: &[f32],
        total: &mut [f32],
    ) -> Result<(), TensorError> {
        let byte_ok = |id: u32| match scale.vec {
            1 => id < 4,
            2 => id == 0 || id == 2,
            _ => id == 0,
        };
        if !byte_ok(sa.byte_id) || !byte_ok(sb.byte_id) || sa.thread_id > 1 || sb.thread_id > 3 {
            return invalid(format!(
                "scale selectors {{{}, {}}} and {{{}, {}}} are not allowed with scale_vec::{}X",
                sa.byte_id, sa.thread_id, sb.byte_id, sb.thread_id, scale.vec
            ));
        }
        let (m, n, k) = (self.m, self.n, self.k);
        let block = k / scale.vec;
        let mut partial = [0f32; 16 * 8];
        total[..m * n].fill(0.0);
        for j in 0..scale.vec {
            matmul::multiply_slice(m, n, k, j * block..(j + 1) * block, am, bm, &mut partial);
            for row in 0..m {
                let lane = 4 * (row % 8) + 2 * sa.thread_id as usize + row / 8;
                let fa = scale.kind.decode((sa.data[lane] >> (8 * (sa.byte_id as usize + j))) as u8);
                for col in 0..n {
                    let lane = 4 * col + sb.thread_id as usize;
                    let fb = scale.kind.decode((sb.data[lane] >> (8 * (sb.byte_id as usize + j))) as u8);
                    total[row * n + col] += apply_scale(partial[row * n + col], fa, fb);
                }
            }
        }
        Ok(())
    }

    /// Executes an f64 form on 64-bit registers. Sums are fused multiply-adds, k ascending, starting from C, as IEEE 754 asks of
    /// `mma.f64`.
    ///
    /// # Errors
    /// `Invalid` when register counts do not fit.
    pub fn execute_f64(&self, a: &[Lanes], b: &[Lanes], c: &[Lanes], d: &mut [Lanes]) -> Result<(), TensorError> {
        let counts = self.register_counts();
        if (a.len(), b.len(), c.len(), d.len()) != counts {
            return invalid(format!("mma takes {counts:?} registers, got {:?}", (a.len(), b.len(), c.len(), d.len())));
        }
        let rows = self.m / 8;
        for lane in 0..32 {
            for i in 0..c.len() {
                let (row, col) = (lane / 4 + 8 * (i >> 1), 2 * (lane % 4) + (i & 1));
                let mut sum = f64::from_bits(c[i][lane]);
                for p in 0..self.k {
                    let x = f64::from_bits(a[row / 8 + rows * (p / 4)][4 * (row % 8) + p % 4]);
                    let y = f64::from_bits(b[p / 4][4 * col + p % 4]);
                    sum = x.mul_add(y, sum);
                }
                d[i][lane] = sum.to_bits();
            }
        }
        Ok(())
    }

    /// m8n8k4 with f16: four independent products, one for each quad pair (lanes q·4.. and 16 + q·4..).
    fn execute_volta(&self, a: &[Lanes], b: &[Lanes], c: &[Lanes], d: &mut [Lanes]) {
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

/// Of m16n8k16: where the two elements of each register of a lane lie, of A by rows of 16 and of B by rows of 8.
const LANES_OF_16X8X16: [([u8; 4], [u8; 2]); 32] = {
    let mut all = [([0; 4], [0; 2]); 32];
    let mut lane = 0;
    while lane < 32 {
        let (row, column) = (lane as u8 / 4, 2 * (lane as u8 % 4));
        let at = 16 * row + column;
        all[lane] = ([at, at + 128, at + 8, at + 136], [8 * column + row, 8 * (column + 8) + row]);
        lane += 1;
    }
    all
};

/// [`Mma::gather`] of m16 with 16-bit elements.
#[inline]
fn gather_halves<L: Borrow<Lanes>>(
    n: usize,
    k: usize,
    decode: impl Fn(u16) -> f32,
    [a, b]: [&[L]; 2],
    am: &mut [f32],
    bm: &mut [f32],
) {
    // The shape of nearly all, with nothing left to be checked.
    if let ([a0, a1, a2, a3], [b0, b1], Ok(am), Ok(bm)) =
        (a, b, <&mut [f32; 256]>::try_from(&mut *am), <&mut [f32; 128]>::try_from(&mut *bm))
        && (n, k) == (8, 16)
    {
        for (lane, (rows, columns)) in LANES_OF_16X8X16.iter().enumerate() {
            for (a, at) in [a0, a1, a2, a3].into_iter().zip(rows) {
                let word = a.borrow()[lane];
                let at = usize::from(*at & 254);
                am[at] = decode(word as u16);
                am[at + 1] = decode((word >> 16) as u16);
            }
            for (b, at) in [b0, b1].into_iter().zip(columns) {
                let word = b.borrow()[lane];
                let at = usize::from(*at).min(119);
                bm[at] = decode(word as u16);
                bm[at + 8] = decode((word >> 16) as u16);
            }
        }
        return;
    }
    for (r, lanes) in a.iter().enumerate() {
        for (lane, word) in lanes.borrow().iter().enumerate() {
            let at = (lane / 4 + 8 * (r & 1)) * k + 8 * (r >> 1) + 2 * (lane % 4);
            am[at] = decode(*word as u16);
            am[at + 1] = decode((*word >> 16) as u16);
        }
    }
    for (r, lanes) in b.iter().enumerate() {
        for (lane, word) in lanes.borrow().iter().enumerate() {
            let at = (8 * r + 2 * (lane % 4)) * n + lane / 4;
            bm[at] = decode(*word as u16);
            bm[at + n] = decode((*word >> 16) as u16);
        }
    }
}

/// `partial · fa · fb` without intermediate overflow: the product of two scale factors is exact in f64.
#[must_use]
#[inline]
pub fn apply_scale(partial: f32, fa: f32, fb: f32) -> f32 {
    (f64::from(partial) * (f64::from(fa) * f64::from(fb))) as f32
}

#[cfg(test)]
#[allow(clippy::needless_range_loop, reason = "lanes are numbers here, as in the manual")]
mod tests {
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
        for (a_col, b_row, d_f16, c_f16) in [
            (false, false, false, false),
            (true, true, false, true),
            (false, true, true, false),
            (true, false, true, true),
        ] {
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
}
