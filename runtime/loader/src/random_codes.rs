//! Random weights of a quantised format: codes and scales, and the floats that they mean.
//!
//! A layer that reads codes and one that reads floats get the same weights, so that their results can be compared.

use crate::weights::{random_bits, random_key};
use moec_bundle::manifest::ParamInfo;
use moec_ir::quant::{Code, QuantFormat, ScaleCode};
use moec_ir::tile::{Buffer, Role};
use rayon::prelude::*;

/// The codes and scales of one parameter. All scales are powers of two, which every code of scales has.
pub(crate) struct RandomCodes {
    format: QuantFormat,
    n: u64,
    k: u64,
    keys: [u64; 2],
    /// Exponent of the larger of the two scales of blocks, and of the global scale.
    scale: i32,
    global: i32,
}

impl RandomCodes {
    /// Those of a parameter that is published quantised; values have a variance of about `1 / k`.
    pub(crate) fn of(seed: u64, param: &ParamInfo) -> Option<RandomCodes> {
        let format = param.stored?;
        let shape: Vec<u64> = param.ty.shape.iter().filter_map(|d| d.fixed()).collect();
        let &[.., n, k] = &shape[..] else { return None };
        // The root mean square of the codes below, over the smaller half of the scales, is about 2^of_codes.
        let of_codes = match format.code {
            Code::E4M3 | Code::E5M2 => -1,
            Code::E2M1 => 1,
            Code::Int4 => 2,
            Code::Int16 => 14,
        };
        let size = -((k.max(1) as f32).log2() / 2.0).round() as i32 - of_codes;
        let (scale, global) = if format.has_global() { (0, size) } else { (size, 0) };
        let key = random_key(seed, &param.name);
        Some(RandomCodes { format, n, k, keys: [key, key ^ 0x5ca1_e000], scale, global })
    }

    /// Byte `byte` of row `row`, counted through the matrices. No NaN, and no code far from the others.
    fn byte(&self, row: u64, byte: u64) -> u8 {
        let bits = random_bits(self.keys[0], row * self.format.code.bytes(self.k) + byte) as u8;
        match self.format.code {
            // Exponents from 4 to 7, that is from 1/8 to 1; of E5M2 from 12 to 15.
            Code::E4M3 => bits & 0x87 | 0x20 | bits >> 2 & 0x18,
            Code::E5M2 => bits & 0x83 | 0x30 | bits >> 2 & 0x0c,
            Code::Int4 | Code::E2M1 if self.k % 2 == 1 && byte == self.k / 2 => bits & 15,
            Code::Int4 | Code::E2M1 | Code::Int16 => bits,
        }
    }

    /// Exponent of the scale of a block; `row` counts the rows of the grids of all matrices.
    fn exponent(&self, row: u64, col: u64) -> i32 {
        let (_, cols) = self.format.scale_grid(self.n, self.k);
        self.scale - (random_bits(self.keys[1], row * cols + col) & 1) as i32
    }

    /// The values of a row, counted through the matrices.
    pub(crate) fn values(&self, row: u64, out: &mut [f32]) {
        let f = &self.format;
        let codes: Vec<u8> = (0..f.code.bytes(self.k)).map(|b| self.byte(row, b)).collect();
        let (rows, _) = f.scale_grid(self.n, self.k);
        let grid_row = row / self.n * rows + (row % self.n).checked_div(f.block_rows).unwrap_or(0);
        for (i, v) in out.iter_mut().enumerate() {
            let block = (i as u64).checked_div(f.block_cols).unwrap_or(0);
            *v = f.code.decode(&codes, i) * ((self.exponent(grid_row, block) + self.global) as f32).exp2();
        }
    }

    /// Fills a buffer of codes, scales or global scales; padding is zero.
    pub(crate) fn fill_part(&self, buffer: &Buffer, dst: &mut [u8]) {
        let width = buffer.dtype.bytes();
        let (pitch, cols) = (buffer.pitch as usize * width, buffer.cols as usize);
        if pitch == 0 {
            return;
        }
        dst.par_chunks_mut(pitch).enumerate().for_each(|(row, out)| {
            out.fill(0);
            for (c, out) in out.chunks_exact_mut(width).take(cols).enumerate() {
                let (row, c) = (row as u64, c as u64);
                match buffer.role {
                    Role::WeightScale(_) => write_power(self.format.scale, self.exponent(row, c), out),
                    Role::WeightGlobal(_) => write_power(ScaleCode::F32, self.global, out),
                    Role::Weight(_) | Role::Input(_) | Role::Output(_) | Role::Workspace | Role::Counter => {
                        out[0] = self.byte(row, c);
                    }
                }
            }
        });
    }
}

/// Writes `2^exponent` as a scale; the exponents here are within every code's reach.
fn write_power(code: ScaleCode, exponent: i32, out: &mut [u8]) {
    let biased = |bias: i32, mantissa_bits: u32| ((exponent + bias) as u32) << mantissa_bits;
    match code {
        ScaleCode::F32 => out.copy_from_slice(&biased(127, 23).to_le_bytes()),
        ScaleCode::BF16 => out.copy_from_slice(&(biased(127, 7) as u16).to_le_bytes()),
        ScaleCode::F16 => out.copy_from_slice(&(biased(15, 10) as u16).to_le_bytes()),
        ScaleCode::E8M0 => out[0] = biased(127, 0) as u8,
        ScaleCode::E4M3 => out[0] = biased(7, 3) as u8,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::{fill_random, random_tensor};
    use moec_ir::shape::{Dim, TensorType};
    use moec_ir::weights::WeightSource;
    use moec_ir::{DType, Tensor};

    #[test]
    fn random_codes_mean_the_random_floats() {
        for code in Code::ALL {
            for scale in ScaleCode::ALL {
                let format = QuantFormat { code, scale, block_rows: 2, block_cols: 16 };
                let ty = TensorType::fixed(DType::BF16, &[3, 5, 41]);
                let param = ParamInfo { name: "w".into(), ty, source: WeightSource::tensor("w"), stored: Some(format) };
                let pack = |role, dtype: DType, (batch, rows, cols)| {
                    let rows = Dim::Fixed(rows);
                    let b = Buffer { name: "w".into(), dtype, batch, rows, cols, pitch: cols, role };
                    let mut out = vec![0xAA; b.bytes(0) as usize];
                    fill_random(4, &param, &b, &mut out).expect("random");
                    out
                };
                let row = code.bytes(41) as usize;
                let codes = pack(Role::Weight(0), DType::U8, (3, 5, row as u64));
                let scales = pack(Role::WeightScale(0), scale.dtype(), (3, 3, 3));
                let globals = pack(Role::WeightGlobal(0), DType::F32, (1, 1, 3));
                let floats = pack(Role::Weight(0), DType::BF16, (3, 5, 41));
                let globals = Tensor::from_bytes(DType::F32, &[3], &globals).expect("three");
                let mut all = Vec::new();
                for r in 0..15 {
                    let grid = scales.len() / 3;
                    let mut out = vec![0.0; 41];
                    let matrix = r / 5;
                    let scales = &scales[matrix * grid..][..grid];
                    let global = globals.floats()[matrix];
                    format.decode_row(&codes[r * row..][..row], scales, global, r as u64 % 5, (5, 41), &mut out);
                    all.extend(out);
                }
                let means = Tensor::float(DType::BF16, &[3, 5, 41], all);
                assert_eq!(means.to_bytes(), floats, "{format}");
                assert_eq!(random_tensor(4, &param), means);
                let size = means.floats().iter().map(|x| x * x).sum::<f32>() / 615.0 * 41.0;
                assert!((0.1..5.0).contains(&size), "{format}: variance {size} / k");
            }
        }
    }
}
