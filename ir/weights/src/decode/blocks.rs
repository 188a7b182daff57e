//! Codes with one scale for each block of rows and columns, and perhaps one over all blocks of a matrix.

use super::integers::GroupRun;
use super::runs;
use moec_ir::quant::{QuantFormat, ScaleCode};

/// A stack of quantised `[n, k]` matrices.
#[derive(Clone, Debug)]
pub struct Blocks<'a> {
    /// How codes and scales are read.
    pub format: QuantFormat,
    /// Leading axes of the stack.
    pub leading: Vec<u64>,
    /// Rows of a matrix.
    pub n: u64,
    /// Columns of a matrix, in elements.
    pub k: u64,
    /// Whether the float tensor is the transpose of these matrices.
    pub transposed: bool,
    /// The bytes of the codes, and how far matrices, rows, and bytes along K lie apart in them.
    pub codes: (&'a [u8], [u64; 3]),
    /// The bytes of the scales, and how far the grids of matrices, their rows and columns lie apart, in scales.
    pub scales: (&'a [u8], [u64; 3]),
    /// One for all matrices, or one for each; empty where the format has none.
    pub globals: Vec<f32>,
    /// What each column was divided by before it was quantised; empty where nothing was.
    pub column_scales: Vec<f32>,
    /// The name of the tensor of scales, for messages.
    pub scales_name: String,
}

impl<'a> Blocks<'a> {
    /// The shape of the matrices: `[leading.., n, k]`.
    pub fn shape(&self) -> Vec<u64> {
        self.leading.iter().copied().chain([self.n, self.k]).collect()
    }

    /// Matrices of the stack.
    pub fn matrices(&self) -> u64 {
        self.leading.iter().product()
    }

    /// How far apart codes lie that are stored row by row, without gaps: matrices, rows, bytes.
    pub fn dense_codes(format: &QuantFormat, n: u64, k: u64) -> [u64; 3] {
        let row = format.code.bytes(k);
        [n.saturating_mul(row), row, 1]
    }

    /// How far apart scales lie that are stored row by row: grids, rows, columns.
    pub fn dense_scales(format: &QuantFormat, n: u64, k: u64) -> [u64; 3] {
        let (rows, cols) = format.scale_grid(n, k);
        [rows.saturating_mul(cols), cols, 1]
    }

    fn code_at(&self, row: u64) -> u64 {
        let (_, [matrix, line, _]) = self.codes;
        row / self.n * matrix + row % self.n * line
    }

    /// Copies bytes `first..` of the codes of a row, counted through the matrices, as many as `out` has room for.
    pub(crate) fn copy_codes(&self, row: u64, first: u64, out: &mut [u8]) {
        let (bytes, [_, _, step]) = self.codes;
        let start = (self.code_at(row) + first * step) as usize;
        if step == 1 {
            out.copy_from_slice(&bytes[start..start + out.len()]);
        } else {
            out.iter_mut().zip(bytes[start..].iter().step_by(step as usize)).for_each(|(o, b)| *o = *b);
        }
    }

    /// The row of the grids of scales, counted through the matrices, that a row of the matrices has.
    pub(crate) fn scale_row(&self, row: u64) -> u64 {
        let (grid_rows, _) = self.format.scale_grid(self.n, self.k);
        row / self.n * grid_rows + (row % self.n).checked_div(self.format.block_rows).unwrap_or(0)
    }

    /// The number, in the stored tensor, of the scale in row `grid_row`, counted through the grids, and column `grid_col`.
    fn scale_at(&self, grid_row: u64, grid_col: u64) -> u64 {
        let (grid_rows, _) = self.format.scale_grid(self.n, self.k);
        let (_, [grid, line, step]) = self.scales;
        grid_row / grid_rows * grid + grid_row % grid_rows * line + grid_col * step
    }

    /// The number, in the stored tensor, of the scale of an element.
    pub(crate) fn scale_index(&self, row: u64, col: u64) -> u64 {
        self.scale_at(self.scale_row(row), col.checked_div(self.format.block_cols).unwrap_or(0))
    }

    /// A scale as it is stored.
    pub(crate) fn scale_bytes(&self, index: u64) -> &'a [u8] {
        let bytes = self.format.scale.bytes() as usize;
        &self.scales.0[index as usize * bytes..(index as usize + 1) * bytes]
    }

    /// The scales of `n` blocks of columns from the one of column `col` on, as they are stored, where they lie one behind the other.
    pub(crate) fn scale_run(&self, row: u64, col: u64, n: usize) -> Option<&'a [u8]> {
        let (scales, [_, _, step]) = self.scales;
        let (bytes, first) = (self.format.scale.bytes() as usize, self.scale_index(row, col) as usize);
        (step == 1).then(|| scales.get(first * bytes..(first + n) * bytes)).flatten()
    }

    /// A scale.
    pub(crate) fn scale_value(&self, index: u64) -> f32 {
        match self.format.scale {
            ScaleCode::E4M3 => runs::e4m3_value(self.scales.0[index as usize]),
            ScaleCode::F32 | ScaleCode::BF16 | ScaleCode::F16 | ScaleCode::E8M0 => {
                self.format.scale.decode(self.scales.0, index as usize)
            }
        }
    }

    /// From one element to the next of those whose codes lie one behind the other, in elements of the matrices.
    pub(crate) fn run_stride(&self) -> u64 {
        if self.codes.1[2] == 1 { 1 } else { self.k }
    }

    /// The global scale of the matrix that a row is in.
    pub(crate) fn global(&self, row: u64) -> f32 {
        self.globals.get((row / self.n) as usize).or(self.globals.first()).copied().unwrap_or(1.0)
    }

    /// Dequantises elements `start, start + stride, …` of the matrices, counted row by row, into `out`. `group` keeps what
    /// neighbouring columns share; it belongs to this tensor.
    pub(crate) fn read(&self, start: u64, stride: u64, group: &mut GroupRun, out: &mut [f32]) {
        // Codes of a column lie one behind the other.
        let across = stride == self.k && stride > 1 && self.codes.1[1] == 1;
        let mut done = 0;
        while done < out.len() {
            let at = start + done as u64 * stride;
            let (row, col) = (at / self.k, at % self.k);
            // Elements that are left in this matrix, or in this row.
            let left = if across { self.n - row % self.n } else { (self.k - col).div_ceil(stride.max(1)) } as usize;
            let here = left.min(out.len() - done);
            let out = &mut out[done..done + here];
            if across {
                self.read_column(row, col, group, out);
            } else {
                self.read_row(row, col, stride, out);
            }
            done += here;
        }
    }

    /// Rows `row..` of a column, in one matrix, where these lie one behind the other.
    fn read_column(&self, row: u64, col: u64, group: &mut GroupRun, out: &mut [f32]) {
        let f = &self.format;
        if group.turns_to(col.checked_div(f.block_cols).unwrap_or(0), row, out.len()) {
            let rows = row..row + out.len() as u64;
            group.scales.extend(rows.map(|r| self.scale_value(self.scale_index(r, col)) * self.global(r)));
        }
        let per_byte = 8 / f.code.bits();
        let first = self.code_at(row) + col / per_byte * self.codes.1[2];
        runs::across(f.code, &self.codes.0[first as usize..], (col % per_byte) as usize, &group.scales, out);
        if let Some(s) = self.column_scales.get(col as usize) {
            out.iter_mut().for_each(|v| *v *= s);
        }
    }

    fn read_row(&self, row: u64, first: u64, stride: u64, out: &mut [f32]) {
        let f = &self.format;
        let codes = &self.codes.0[self.code_at(row) as usize..];
        let byte_step = self.codes.1[2];
        let per_byte = 8 / f.code.bits();
        let (grid, global) = (self.scale_at(self.scale_row(row), 0), self.global(row));
        let block_of = |col: u64| col.checked_div(f.block_cols).unwrap_or(0);
        let mut done = 0;
        while done < out.len() {
            let col = first + done as u64 * stride;
            // Elements that are left under this scale.
            let end = if f.block_cols == 0 { self.k } else { (block_of(col) + 1) * f.block_cols };
            let left = (end - col).div_ceil(stride.max(1)) as usize;
            let here = left.min(out.len() - done);
            let scale = self.scale_value(grid + block_of(col) * self.scales.1[2]) * global;
            let out = &mut out[done..done + here];
            if stride == 1 && byte_step == 1 {
                runs::scaled(f.code, codes, col as usize, scale, out);
            } else {
                let cols = (col..).step_by(stride as usize);
                out.iter_mut().zip(cols).for_each(|(v, col)| {
                    let byte = codes[(col / per_byte * byte_step) as usize];
                    *v = f.code.decode(&[byte], (col % per_byte) as usize) * scale;
                });
            }
            done += here;
        }
        if !self.column_scales.is_empty() {
            for (i, v) in out.iter_mut().enumerate() {
                *v *= self.column_scales[(first + i as u64 * stride) as usize];
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use moec_ir::quant::Code;

    #[test]
    fn runs_of_elements_are_the_elements_one_by_one() {
        let data: Vec<u8> = (0..4000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8 & 0x77).collect();
        for (code, scale, block) in [
            (Code::E4M3, ScaleCode::F32, (3, 5)),
            (Code::E5M2, ScaleCode::BF16, (0, 0)),
            (Code::E2M1, ScaleCode::E4M3, (1, 16)),
            (Code::E2M1, ScaleCode::E8M0, (1, 32)),
            (Code::Int4, ScaleCode::F16, (1, 8)),
            (Code::Int4, ScaleCode::F32, (1, 7)),
        ] {
            for (n, k, turned) in [(5u64, 37u64, false), (4, 32, false), (4, 32, true), (3, 1, false), (1, 2, true)] {
                let format = QuantFormat { code, scale, block_rows: block.0, block_cols: block.1 };
                let (codes, scales) = (Blocks::dense_codes(&format, n, k), Blocks::dense_scales(&format, n, k));
                let q = Blocks {
                    format,
                    leading: vec![2],
                    n,
                    k,
                    transposed: turned,
                    codes: (&data, if turned { [codes[0], 1, n] } else { codes }),
                    scales: (&data[7..], scales),
                    globals: vec![0.75, 3.0],
                    column_scales: Vec::new(),
                    scales_name: "s".into(),
                };
                let element = |at: u64| {
                    let (row, col) = (at / k, at % k);
                    let scale = q.format.scale.decode(q.scales.0, q.scale_index(row, col) as usize);
                    let mut byte = [0];
                    q.copy_codes(row, col * code.bits() / 8, &mut byte);
                    code.decode(&byte, (col % (8 / code.bits())) as usize) * (scale * q.globals[(row / n) as usize])
                };
                let mut group = GroupRun::default();
                for stride in [1, 2, 3, k, k + 1] {
                    for start in 0..2 * n * k {
                        let len = (2 * n * k - start).div_ceil(stride);
                        for len in [len, len.min(9), 1] {
                            let mut out = vec![f32::NAN; len as usize];
                            q.read(start, stride, &mut group, &mut out);
                            let want: Vec<f32> = (0..len).map(|i| element(start + i * stride)).collect();
                            assert_eq!(bits(&out), bits(&want), "{format}, {n} × {k}, from {start} by {stride}");
                        }
                    }
                }
            }
        }
    }

    fn bits(values: &[f32]) -> Vec<u32> {
        values.iter().map(|v| v.to_bits()).collect()
    }
}
