//! `mma.sync`: fragments of a warp to matrices and back.
//!
//! Registers are lane arrays: `regs[r][lane]`. With g = lane / 4 and t = lane % 4, register r of A holds row g + 8·(r & 1) and, with
//! e elements in a register, columns 4e·(r >> 1) + e·t onwards; register r of B holds column g and rows 4e·r + e·t onwards; this
//! one rule covers every shape but the f16 m8n8k4. C and D: element i at row g + 8·(i >> 1), column 2t + (i & 1).
//! Source: PTX ISA 9.1, section 9.7.14.5.

mod halves;
mod volta;

use std::borrow::Borrow;

use super::elem::{Elem, Packing, decode_word, per_word};
use super::{TensorError, invalid, matmul, unsupported};
use crate::numeric::{half, scale};
use halves::gather_halves;

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
        if let (Acc::F32, Acc::F32, [c0, c1, c2, c3], [d0, d1, d2, d3]) = (self.c, self.d, c, &mut *d)
            && n == 8
        {
            // The usual ones: registers 0 and 1 are a pair of row lane / 4, 2 and 3 of the row eight below.
            for (half, [(c0, d0), (c1, d1)]) in [[(c0, d0), (c1, d1)], [(c2, d2), (c3, d3)]].into_iter().enumerate() {
                let pairs = partial[64 * half..][..64].as_chunks::<2>().0;
                let c = c0.borrow().iter().zip(c1.borrow());
                for (([p0, p1], (c0, c1)), (d0, d1)) in pairs.iter().zip(c).zip(d0.iter_mut().zip(d1)) {
                    *d0 = u64::from((f32::from_bits(*c0 as u32) + p0).to_bits());
                    *d1 = u64::from((f32::from_bits(*c1 as u32) + p1).to_bits());
                }
            }
            return Ok(());
        }
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
}

/// `partial · fa · fb` without intermediate overflow: the product of two scale factors is exact in f64.
#[must_use]
#[inline]
pub fn apply_scale(partial: f32, fa: f32, fb: f32) -> f32 {
    (f64::from(partial) * (f64::from(fa) * f64::from(fb))) as f32
}

#[cfg(test)]
#[allow(clippy::needless_range_loop, reason = "lanes are numbers here, as in the manual")]
mod tests;
