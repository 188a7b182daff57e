//! The floats that weights stand for, one at a time: any encoding, and the ends that are no whole group.

use crate::round::{round, widen_f16};
use moec_ir::DType;
use moec_ir::abi::{Encoding, Products, WeightCode};
use moec_ir::quant::{Code, ScaleCode};
use std::sync::LazyLock;

/// The values of every byte of an 8-bit code.
type Bytes = [f32; 256];

fn table(value: impl Fn(u8) -> f32) -> Bytes {
    std::array::from_fn(|b| value(b as u8))
}

static E4M3: LazyLock<Bytes> = LazyLock::new(|| table(moec_ir::quant::e4m3));
static E5M2: LazyLock<Bytes> = LazyLock::new(|| table(moec_ir::quant::e5m2));
static E8M0: LazyLock<Bytes> = LazyLock::new(|| table(moec_ir::quant::e8m0));
static E2M1: LazyLock<[f32; 16]> = LazyLock::new(|| std::array::from_fn(|c| moec_ir::quant::e2m1(c as u8)));
static INT4: LazyLock<[f32; 16]> = LazyLock::new(|| std::array::from_fn(|c| c as f32 - 8.0));

/// The values of codes of four bits.
pub(crate) fn four_bits(code: Code) -> &'static [f32; 16] {
    if code == Code::Int4 { &INT4 } else { &E2M1 }
}

/// The values of codes of e4m3 without their sign.
pub(crate) fn e4m3_magnitudes() -> &'static [f32; 128] {
    E4M3.first_chunk().expect("there are as many codes")
}

/// The values of every byte of scales of one byte.
pub(crate) fn byte_scales(scale: ScaleCode) -> Option<&'static Bytes> {
    match scale {
        ScaleCode::E8M0 => Some(&E8M0),
        ScaleCode::E4M3 => Some(&E4M3),
        ScaleCode::F32 | ScaleCode::BF16 | ScaleCode::F16 => None,
    }
}

/// A matrix as its job describes it.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<'j> {
    pub job: &'j Products,
    pub code: WeightCode,
    /// The factor on all scales.
    pub global: f32,
    /// Elements of a block along a column.
    pub block: usize,
}

impl<'j> Matrix<'j> {
    /// # Safety
    /// The job's pointers are valid as [`Products`] says.
    pub unsafe fn new(job: &'j Products) -> Matrix<'j> {
        let code = Encoding::decode(job.encoding).expect("generated code should name an encoding that there is");
        let coded = matches!(code, WeightCode::Codes { .. });
        // SAFETY: the caller's contract; a factor is read only where there are scales.
        let global = if coded && !job.global.is_null() { unsafe { *job.global } } else { 1.0 };
        let k = job.k.max(1);
        let block = if job.block_cols == 0 { k } else { job.block_cols.min(k) };
        Matrix { job, code, global, block: block as usize }
    }

    /// Where column `column` (of the job) begins.
    pub fn column(&self, column: usize) -> *const u8 {
        self.job.weights.wrapping_add(column * self.job.pitch as usize)
    }

    /// What is added to the address of column `column` where memory is asked for: behind the last column the job that follows begins.
    #[inline(always)]
    pub fn jump(&self, column: usize) -> usize {
        let end = self.job.n_columns as usize;
        if column < end || self.job.next.is_null() {
            0
        } else {
            self.job.next.addr().wrapping_sub(self.column(end).addr())
        }
    }

    /// Where the scales of column `column` (of the job) begin.
    #[inline(always)]
    pub fn scales(&self, column: usize) -> *const u8 {
        let n = self.job.first_column + column as u64;
        // Most formats have scales for each column; a division takes as long as some groups of codes.
        let row = if self.job.block_rows == 1 { n } else { n.checked_div(self.job.block_rows).unwrap_or(0) };
        self.job.scales.wrapping_add((row * self.job.scales_pitch) as usize)
    }

    /// Elements `first ..` of column `column`, as many as `to` holds.
    ///
    /// # Safety
    /// The column has these elements.
    pub unsafe fn decode(&self, column: usize, first: usize, to: &mut [f32]) {
        let from = self.column(column);
        // SAFETY: the caller's contract.
        unsafe {
            match self.code {
                WeightCode::Floats(dtype) => floats(dtype, from, first, to),
                WeightCode::Codes { code, scale, round } => {
                    let scales = self.scales(column);
                    let mut at = 0;
                    while at < to.len() {
                        let block = (first + at) / self.block;
                        let end = ((block + 1) * self.block - first).min(to.len());
                        let factor = factor(scale, scales, block, self.global);
                        codes(code, from, first + at, &mut to[at..end]);
                        scaled(factor, round, &mut to[at..end]);
                        at = end;
                    }
                }
            }
        }
    }
}

/// Where the elements and the scales of one or two columns begin.
#[derive(Clone, Copy)]
pub(crate) struct Columns {
    pub codes: [*const u8; 2],
    pub scales: [*const u8; 2],
}

impl Columns {
    #[inline(always)]
    pub fn of(m: &Matrix, [a, b]: [usize; 2]) -> Columns {
        // Jobs of floats do not say where scales would be.
        let scales = match m.code {
            WeightCode::Floats(_) => [std::ptr::null(); 2],
            WeightCode::Codes { .. } => [m.scales(a), m.scales(b)],
        };
        Columns { codes: [m.column(a), m.column(b)], scales }
    }
}

/// Scale number `block` of those at `scales`, times `global`; a NaN becomes a quiet one.
///
/// # Safety
/// There is such a scale.
#[inline(always)]
pub(crate) unsafe fn factor(scale: ScaleCode, scales: *const u8, block: usize, global: f32) -> f32 {
    // SAFETY: the caller's contract. Scales of more than a byte lie where buffers put elements of their size.
    let value = unsafe {
        match scale {
            ScaleCode::F32 => scales.cast::<f32>().add(block).read_unaligned(),
            ScaleCode::BF16 => f32::from_bits(u32::from(scales.cast::<u16>().add(block).read_unaligned()) << 16),
            ScaleCode::F16 => widen_f16(scales.cast::<u16>().add(block).read_unaligned()),
            ScaleCode::E8M0 => E8M0[usize::from(*scales.add(block))],
            ScaleCode::E4M3 => E4M3[usize::from(*scales.add(block))],
        }
    };
    let factor = value * global;
    if factor.is_nan() { f32::NAN } else { factor }
}

/// # Safety
/// There are such elements.
unsafe fn floats(dtype: DType, from: *const u8, first: usize, to: &mut [f32]) {
    // SAFETY: the caller's contract.
    unsafe {
        match dtype {
            DType::BF16 | DType::F16 => {
                let from = from.cast::<u16>().add(first);
                for (i, v) in to.iter_mut().enumerate() {
                    let bits = from.add(i).read_unaligned();
                    *v = if dtype == DType::F16 { widen_f16(bits) } else { f32::from_bits(u32::from(bits) << 16) };
                }
            }
            DType::F64 | DType::F32 | DType::I32 | DType::I64 | DType::U8 => {
                let from = from.cast::<f32>().add(first);
                to.iter_mut().enumerate().for_each(|(i, v)| *v = from.add(i).read_unaligned());
            }
        }
    }
}

/// # Safety
/// There are such codes.
unsafe fn codes(code: Code, from: *const u8, first: usize, to: &mut [f32]) {
    let values: &[f32] = match code {
        Code::E4M3 => &*E4M3,
        Code::E5M2 => &*E5M2,
        Code::E2M1 => &*E2M1,
        Code::Int4 => &*INT4,
        Code::Int16 => unreachable!("an encoding should not name codes of rows"),
    };
    for (i, v) in to.iter_mut().enumerate() {
        let at = first + i;
        // SAFETY: the caller's contract.
        let index = unsafe {
            match code {
                Code::E4M3 | Code::E5M2 => *from.add(at),
                Code::E2M1 | Code::Int4 | Code::Int16 => *from.add(at / 2) >> (at % 2 * 4) & 15,
            }
        };
        *v = values[usize::from(index)];
    }
}

fn scaled(factor: f32, to: DType, values: &mut [f32]) {
    match to {
        DType::BF16 => values.iter_mut().for_each(|v| *v = round(*v * factor, DType::BF16)),
        DType::F16 => values.iter_mut().for_each(|v| *v = round(*v * factor, DType::F16)),
        DType::F64 | DType::F32 | DType::I32 | DType::I64 | DType::U8 => values.iter_mut().for_each(|v| *v *= factor),
    }
}
