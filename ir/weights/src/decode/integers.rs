//! Integers with scales and zero points: the value of an element is `(code - zero) · scale`, computed in f32.

use super::runs;
use crate::config::Packing;
use moec_ir::quant::ScaleCode;

/// A stack of quantised `[n, k]` matrices of integers.
#[derive(Clone, Debug)]
pub struct Integers<'a> {
    /// Leading axes of the stack.
    pub leading: Vec<u64>,
    /// Rows of a matrix, of the float matrix.
    pub n: u64,
    /// Columns.
    pub k: u64,
    /// How codes lie in words.
    pub packing: Packing,
    /// Bits of a code.
    pub bits: u32,
    /// Whether codes of packed rows, and their zero points, are one stream of bits, rather than as many whole codes as fit a word.
    pub dense: bool,
    /// The codes.
    pub codes: &'a [u8],
    /// Words or bytes in a row of the tensor of codes.
    pub code_cols: u64,
    /// The scales.
    pub scales: &'a [u8],
    /// Their type.
    pub scale: ScaleCode,
    /// Whether scales and zero points lie `[group, row]` rather than `[row, group]`.
    pub by_group: bool,
    /// The zero points.
    pub zeros: Zeros<'a>,
    /// Groups of a row.
    pub n_groups: u64,
    /// Columns of a group.
    pub group_size: u64,
    /// Whether one scale serves all rows.
    pub one_row: bool,
    /// The group of each column, one word each; checked to be below `n_groups`.
    pub group_of: Option<&'a [u8]>,
    /// What each column was divided by before it was quantised; empty where nothing was.
    pub column_scales: Vec<f32>,
    /// A scale over all scales.
    pub global: f32,
    /// The name of the tensor of scales, for messages.
    pub scales_name: String,
}

/// Zero points.
#[derive(Clone, Copy, Debug)]
pub enum Zeros<'a> {
    /// The same for all.
    All(i32),
    /// Packed as the codes are; `add` is added and the sum cut to the bits of a code.
    Packed {
        /// The words.
        words: &'a [u8],
        /// Words in a row.
        cols: u64,
        /// What is added.
        add: u32,
    },
    /// Signed bytes `[n, groups]`.
    Bytes(&'a [u8]),
    /// As wide as codes, without a sign, the first in a byte's low bits: a line for the groups of each row, or for the rows of each
    /// matrix where these have one group.
    Unsigned {
        /// The lines.
        bytes: &'a [u8],
        /// Bytes of a line.
        cols: u64,
        /// Whether a line is of a matrix's rows.
        along_rows: bool,
    },
}

/// Scales and zero points of neighbouring rows in one group of columns, kept while columns of that group are read.
#[derive(Default)]
pub(crate) struct GroupRun {
    /// The group, the first row and the number of rows.
    key: Option<(u64, u64, usize)>,
    pub scales: Vec<f32>,
    zeros: Vec<i32>,
}

impl GroupRun {
    /// Whether these are other rows or another group than before; then scales and zero points are empty, to be filled.
    pub(crate) fn turns_to(&mut self, group: u64, row: u64, rows: usize) -> bool {
        let new = self.key.replace((group, row, rows)) != Some((group, row, rows));
        if new {
            self.scales.clear();
            self.zeros.clear();
        }
        new
    }
}

/// Bit position, in codes, of each of eight columns of an AWQ word.
const AWQ_PLACE: [u32; 8] = [0, 4, 1, 5, 2, 6, 3, 7];

impl Integers<'_> {
    /// In a few words.
    pub(crate) fn words(&self) -> String {
        let zeros = if matches!(self.zeros, Zeros::All(_)) { "" } else { " with zero points" };
        format!("{}-bit integers{zeros}, groups of {}", self.bits, self.group_size)
    }

    /// The shape of the matrices: `[leading.., n, k]`.
    pub fn shape(&self) -> Vec<u64> {
        self.leading.iter().copied().chain([self.n, self.k]).collect()
    }

    /// Scales in all.
    pub(crate) fn n_scales(&self) -> u64 {
        (self.scales.len() / self.scale.bytes() as usize) as u64
    }

    /// A scale by its number in the stored tensor.
    pub(crate) fn scale_value(&self, index: u64) -> f32 {
        self.scale.decode(self.scales, index as usize)
    }

    /// Whether every element that has this scale is zero, whatever the scale.
    pub(crate) fn is_zero_under(&self, index: u64) -> bool {
        let rows = self.leading.iter().product::<u64>() * self.n;
        (0..rows).all(|row| {
            (0..self.k).all(|col| {
                let group = self.group(col);
                self.scale_index(row, group) != index || self.code(row, col) == self.zero(row, group)
            })
        })
    }

    /// From one code to the next of those that lie one behind the other, in elements of the float matrix.
    pub(crate) fn run_stride(&self) -> u64 {
        match self.packing {
            Packing::Gptq | Packing::GptqPlanes | Packing::Awq => self.k,
            Packing::Rows | Packing::Bytes | Packing::RowPairs => 1,
        }
    }

    /// Dequantises elements `start, start + stride, …` of the matrices, counted row by row, into `out`. `group` keeps what
    /// neighbouring columns share; it belongs to this matrix.
    pub(crate) fn read(&self, start: u64, stride: u64, group: &mut GroupRun, out: &mut [f32]) {
        let plain = self.column_scales.is_empty() && !self.one_row && self.global == 1.0;
        match self.packing {
            Packing::Gptq | Packing::Awq if plain && stride == self.k && 32 % self.bits == 0 => {
                self.read_column(start / self.k, start % self.k, group, out);
            }
            Packing::Rows | Packing::Bytes
                if plain && stride == 1 && self.group_of.is_none() && matches!(self.bits, 4 | 8) =>
            {
                self.read_rows(start, out);
            }
            _ => {
                for (i, v) in out.iter_mut().enumerate() {
                    let at = start + i as u64 * stride;
                    *v = self.element(at / self.k, at % self.k);
                }
            }
        }
    }

    /// Rows `row..` of a column, where these lie one behind the other.
    fn read_column(&self, row: u64, col: u64, run: &mut GroupRun, out: &mut [f32]) {
        let group = self.group(col);
        if run.turns_to(group, row, out.len()) {
            let rows = || row..row + out.len() as u64;
            run.scales.extend(rows().map(|r| self.scale_value(self.scale_index(r, group))));
            run.zeros.extend(rows().map(|r| self.zero(r, group)));
        }
        let words_from = |word: u64| &self.codes[word as usize * 4..];
        let per_word = u64::from(32 / self.bits);
        if self.packing == Packing::Gptq {
            let words = words_from(col / per_word * self.code_cols + row);
            let shift = (col % per_word) as u32 * self.bits;
            runs::parts_of_words(words, shift, self.bits, &run.zeros, &run.scales, out);
        } else {
            // The rest of a word that the run starts in.
            let head = ((8 - row % 8) % 8).min(out.len() as u64) as usize;
            for (r, v) in out[..head].iter_mut().enumerate() {
                *v = (self.code(row + r as u64, col) - run.zeros[r]) as f32 * run.scales[r];
            }
            let words = words_from(col * self.code_cols + row.div_ceil(8));
            let (zeros, scales) = (&run.zeros[head..], &run.scales[head..]);
            runs::words_of_nibbles(words, AWQ_PLACE, zeros, scales, &mut out[head..]);
        }
    }

    /// Elements `start..`, counted row by row, where rows lie one behind the other and groups are equal.
    fn read_rows(&self, start: u64, out: &mut [f32]) {
        let mut done = 0;
        while done < out.len() {
            let (row, col) = ((start + done as u64) / self.k, (start + done as u64) % self.k);
            let group = self.group(col);
            let end = if group + 1 == self.n_groups { self.k } else { (group + 1) * self.group_size };
            let here = ((end - col) as usize).min(out.len() - done);
            let (zero, scale) = (self.zero(row, group), self.scale_value(self.scale_index(row, group)));
            let out = &mut out[done..done + here];
            let width = if self.packing == Packing::Bytes { 1 } else { 4 };
            let codes = &self.codes[(row * self.code_cols) as usize * width..];
            match (self.packing, self.bits) {
                (Packing::Bytes, _) => {
                    let codes = codes[col as usize..].iter().map(|&c| i32::from(c as i8));
                    out.iter_mut().zip(codes).for_each(|(v, c)| *v = (c - zero) as f32 * scale);
                }
                (_, 8) => {
                    let codes = codes[col as usize..].iter().map(|&c| i32::from(c));
                    out.iter_mut().zip(codes).for_each(|(v, c)| *v = (c - zero) as f32 * scale);
                }
                _ => {
                    let table = std::array::from_fn(|c| (c as i32 - zero) as f32 * scale);
                    runs::nibbles(codes, col as usize, &table, out);
                }
            }
            done += here;
        }
    }

    fn group(&self, col: u64) -> u64 {
        match self.group_of {
            Some(g) => u64::from(word(g, col)),
            None => (col / self.group_size).min(self.n_groups - 1),
        }
    }

    fn scale_index(&self, row: u64, group: u64) -> u64 {
        let (matrix, r) = if self.one_row { (row / self.n, 0) } else { (row / self.n, row % self.n) };
        let rows = if self.one_row { 1 } else { self.n };
        let within = if self.by_group { group * rows + r } else { r * self.n_groups + group };
        (matrix * rows * self.n_groups + within) % self.n_scales().max(1)
    }

    fn element(&self, row: u64, col: u64) -> f32 {
        let group = self.group(col);
        let difference = self.code(row, col) - self.zero(row, group);
        let value = difference as f32 * (self.scale_value(self.scale_index(row, group)) * self.global);
        match self.column_scales.get(col as usize) {
            Some(s) => value * s,
            None => value,
        }
    }

    fn code(&self, row: u64, col: u64) -> i32 {
        let bits = u64::from(self.bits);
        match self.packing {
            Packing::Bytes => i32::from(self.codes[(row * self.code_cols + col) as usize] as i8),
            Packing::RowPairs => {
                let byte = self.codes[(row / 2 * self.code_cols + col) as usize];
                // Sign extension of the nibble.
                i32::from((if row.is_multiple_of(2) { byte << 4 } else { byte }) as i8 >> 4)
            }
            Packing::Gptq => {
                // One stream of bits down each column of words.
                self.stream_code(col * bits, |w| word(self.codes, w * self.code_cols + row)) as i32
            }
            Packing::GptqPlanes => self.plane_code(col, |w| word(self.codes, w * self.code_cols + row)) as i32,
            Packing::Awq => {
                self.cut(word(self.codes, col * self.code_cols + row / 8), AWQ_PLACE[(row % 8) as usize], 0)
            }
            Packing::Rows if self.dense => {
                self.stream_code(col * bits, |w| word(self.codes, row * self.code_cols + w)) as i32
            }
            Packing::Rows => {
                let per_word = 32 / bits;
                self.cut(word(self.codes, row * self.code_cols + col / per_word), (col % per_word) as u32, 0)
            }
        }
    }

    fn zero(&self, row: u64, group: u64) -> i32 {
        match self.zeros {
            Zeros::All(zero) => zero,
            Zeros::Packed { words, cols, add } => self.packed_zero(words, cols, add, row, group),
            Zeros::Bytes(bytes) => {
                let offset = if self.packing == Packing::Bytes { 0 } else { 1 << (self.bits - 1) };
                i32::from(bytes[(row * self.n_groups + group) as usize] as i8) + offset
            }
            Zeros::Unsigned { bytes, cols, along_rows } => {
                let (line, at) = if along_rows { (row / self.n, row % self.n) } else { (row, group) };
                let bit = at * u64::from(self.bits);
                i32::from(bytes[(line * cols + bit / 8) as usize] >> (bit % 8)) & self.mask() as i32
            }
        }
    }

    /// A zero point as it is stored, plus `add`.
    pub(crate) fn packed_zero(&self, words: &[u8], cols: u64, add: u32, row: u64, group: u64) -> i32 {
        let bits = u64::from(self.bits);
        match self.packing {
            Packing::Gptq => {
                let stored = self.stream_code(row * bits, |w| word(words, group * cols + w));
                ((stored + u64::from(add)) & self.mask()) as i32
            }
            Packing::GptqPlanes => {
                let stored = self.plane_code(row, |w| word(words, group * cols + w));
                ((stored + u64::from(add)) & self.mask()) as i32
            }
            Packing::Awq => self.cut(word(words, group * cols + row / 8), AWQ_PLACE[(row % 8) as usize], add),
            Packing::Rows if self.dense => {
                let stored = self.stream_code(row * bits, |w| word(words, w * cols + group));
                ((stored + u64::from(add)) & self.mask()) as i32
            }
            Packing::Rows | Packing::Bytes | Packing::RowPairs => {
                let per_word = 32 / bits;
                self.cut(word(words, row / per_word * cols + group), (row % per_word) as u32, add)
            }
        }
    }

    /// The code that begins at `bit` of a stream of words, of which `at` gives one; codes may lie in two words.
    fn stream_code(&self, bit: u64, at: impl Fn(u64) -> u32) -> u64 {
        let (bits, word) = (u64::from(self.bits), |w| u64::from(at(w)));
        let low = word(bit / 32) >> (bit % 32);
        let stream = if bit % 32 + bits > 32 { low | word(bit / 32 + 1) << (32 - bit % 32) } else { low };
        stream & self.mask()
    }

    /// Code number `i` of planes, of which `at` gives a word. 32 codes are as many words as a code has bits: its low four bits (two
    /// of a code of three) in the first of them, then two bits where there are so many more, then one.
    fn plane_code(&self, i: u64, at: impl Fn(u64) -> u32) -> u64 {
        let bits = u64::from(self.bits);
        let (mut code, mut done) = (0, 0);
        for width in [4, 2, 1] {
            if bits - done < width {
                continue;
            }
            // The words before a plane hold as many bits of each code as there are words.
            let per_word = 32 / width;
            let within = i % 32;
            let word = u64::from(at(i / 32 * bits + done + within / per_word));
            let part = word >> (within % per_word * width) & ((1 << width) - 1);
            code |= part << done;
            done += width;
        }
        code
    }

    fn mask(&self) -> u64 {
        (1 << self.bits) - 1
    }

    fn cut(&self, word: u32, place: u32, add: u32) -> i32 {
        let mask = self.mask() as u32;
        ((((word >> (place * self.bits)) & mask) + add) & mask) as i32
    }
}

/// Word `i` of little-endian bytes.
pub(crate) fn word(bytes: &[u8], i: u64) -> u32 {
    let at = i as usize * 4;
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every packing and width with zero points of every kind that goes with it.
    fn all(data: &[u8]) -> Vec<Integers<'_>> {
        let mut all = Vec::new();
        for packing in
            [Packing::Gptq, Packing::GptqPlanes, Packing::Awq, Packing::Rows, Packing::Bytes, Packing::RowPairs]
        {
            let widths: &[u32] = match packing {
                Packing::Awq | Packing::RowPairs => &[4],
                Packing::Bytes => &[8],
                Packing::Gptq => &[2, 3, 4, 8],
                Packing::GptqPlanes => &[3, 5, 6, 7],
                Packing::Rows => &[2, 3, 4, 5, 8],
            };
            for (&bits, (n, k, group_size)) in
                widths.iter().flat_map(|b| [(8u64, 24u64, 24u64), (24, 40, 16), (16, 8, 3), (40, 8, 8)].map(|s| (b, s)))
            {
                let per_word = u64::from(32 / bits);
                let n_groups = k.div_ceil(group_size);
                let (code_cols, zero_cols) = match packing {
                    Packing::GptqPlanes => (n, n.div_ceil(32) * u64::from(bits)),
                    Packing::Gptq => (n, (n * u64::from(bits)).div_ceil(32)),
                    Packing::Awq => (n / 8, n / 8),
                    Packing::Rows if 32 % bits != 0 => ((k * u64::from(bits)).div_ceil(32), n_groups),
                    Packing::Rows => (k.div_ceil(per_word), n_groups),
                    Packing::Bytes | Packing::RowPairs => (k, n_groups),
                };
                let by_group = matches!(packing, Packing::Gptq | Packing::GptqPlanes | Packing::Awq);
                let zeros = match packing {
                    Packing::Bytes | Packing::RowPairs => Zeros::Bytes(&data[11..]),
                    _ => Zeros::Packed { words: &data[13..], cols: zero_cols, add: u32::from(by_group) },
                };
                let unsigned = |along_rows| Zeros::Unsigned {
                    bytes: &data[17..],
                    cols: if along_rows { n * u64::from(bits) } else { n_groups * u64::from(bits) }.div_ceil(8),
                    along_rows,
                };
                let zeros = match (packing, bits) {
                    (Packing::Rows, 4 | 8) => vec![Zeros::All(3), zeros, unsigned(false), unsigned(true)],
                    _ => vec![Zeros::All(3), zeros],
                };
                for zeros in zeros {
                    all.push(Integers {
                        leading: Vec::new(),
                        n,
                        k,
                        packing,
                        bits,
                        dense: 32 % bits != 0,
                        codes: data,
                        code_cols,
                        scales: &data[5..5 + (n * n_groups * 2) as usize],
                        scale: ScaleCode::BF16,
                        by_group,
                        zeros,
                        n_groups,
                        group_size,
                        one_row: false,
                        group_of: None,
                        column_scales: Vec::new(),
                        global: 1.0,
                        scales_name: "s".into(),
                    });
                }
            }
        }
        all
    }

    #[test]
    fn runs_of_elements_are_the_elements_one_by_one() {
        let data: Vec<u8> = (0..9000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8 & 0x77).collect();
        for q in all(&data) {
            let group_of: Vec<u8> = (0..q.k).flat_map(|c| ((c * 7 % q.n_groups) as u32).to_le_bytes()).collect();
            for group_of in [None, Some(&group_of[..])] {
                let q = Integers { group_of, ..q.clone() };
                let mut group = GroupRun::default();
                for stride in [1, 3, q.k] {
                    for start in 0..q.n * q.k {
                        let all = (q.n * q.k - start).div_ceil(stride);
                        for len in [all, all.min(9)] {
                            let mut out = vec![f32::NAN; len as usize];
                            q.read(start, stride, &mut group, &mut out);
                            for (i, v) in out.iter().enumerate() {
                                let at = start + i as u64 * stride;
                                let want = q.element(at / q.k, at % q.k);
                                assert_eq!(v.to_bits(), want.to_bits(), "{:?} {} bits, {at}", q.packing, q.bits);
                            }
                        }
                    }
                }
            }
        }
    }
}
