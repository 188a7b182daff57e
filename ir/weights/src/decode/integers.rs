//! Integers with scales and zero points: the value of an element is `(code - zero) · scale`, computed in f32.

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

    /// Dequantises elements `start, start + stride, …` of the matrices, counted row by row, into `out`.
    pub fn read(&self, start: u64, stride: u64, out: &mut [f32]) {
        for (i, v) in out.iter_mut().enumerate() {
            let at = start + i as u64 * stride;
            *v = self.element(at / self.k, at % self.k);
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
        let value = difference as f32 * self.scale_value(self.scale_index(row, group));
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
                // One stream of bits down each column of words; codes of three bits may lie in two words.
                let bit = col * bits;
                let at = |w: u64| u64::from(word(self.codes, w * self.code_cols + row));
                let low = at(bit / 32) >> (bit % 32);
                let stream = if bit % 32 + bits > 32 { low | at(bit / 32 + 1) << (32 - bit % 32) } else { low };
                (stream & self.mask()) as i32
            }
            Packing::Awq => self.cut(word(self.codes, col * self.code_cols + row / 8), AWQ_PLACE[(row % 8) as usize], 0),
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
        }
    }

    /// A zero point as it is stored, plus `add`.
    pub(crate) fn packed_zero(&self, words: &[u8], cols: u64, add: u32, row: u64, group: u64) -> i32 {
        let bits = u64::from(self.bits);
        match self.packing {
            Packing::Gptq => {
                let bit = row * bits;
                let at = |w: u64| u64::from(word(words, group * cols + w));
                let low = at(bit / 32) >> (bit % 32);
                let stream = if bit % 32 + bits > 32 { low | at(bit / 32 + 1) << (32 - bit % 32) } else { low };
                (((stream & self.mask()) + u64::from(add)) & self.mask()) as i32
            }
            Packing::Awq => self.cut(word(words, group * cols + row / 8), AWQ_PLACE[(row % 8) as usize], add),
            Packing::Rows | Packing::Bytes | Packing::RowPairs => {
                let per_word = 32 / bits;
                self.cut(word(words, row / per_word * cols + group), (row % per_word) as u32, add)
            }
        }
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
