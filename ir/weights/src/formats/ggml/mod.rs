//! The element types of GGUF files: blocks of 32 or 256 elements along a row, each with its own scales.
//!
//! A value is computed in f32, in the order of operations of llama.cpp's own dequantisation, so that the bits are the same.
//! Sources: `ggml-common.h` (layouts) and the Python package `gguf` 0.19 (`quants.py`), whose values the tests compare.

mod blocks_of_32;
mod iq4;
mod k_quants;
mod mxfp4;

use crate::pack::convert::f16_value;
use rayon::prelude::*;

/// An element type of GGUF files other than those that moec computes in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GgmlType {
    /// Its place in [`TYPES`].
    index: usize,
}

/// Writes the values of one block; both slices have the lengths that the type says.
type Decode = fn(&[u8], &mut [f32]);

struct Row {
    name: &'static str,
    /// The number in files.
    id: u32,
    elements: u64,
    bytes: u64,
    decode: Option<Decode>,
    scales: Scales,
}

/// Where the scales of a block stand that have to be finite.
#[derive(Clone, Copy)]
enum Scales {
    /// Halves at these bytes.
    Halves(&'static [usize]),
    /// One byte of e8m0 at the beginning.
    E8m0,
}

/// Stored blocks of a tensor.
#[derive(Clone, Debug)]
pub struct Stored<'a> {
    /// Their type.
    pub blocks: GgmlType,
    /// Whole blocks one behind the other.
    pub data: &'a [u8],
    /// The tensor, for messages.
    pub name: String,
}

const fn row(
    name: &'static str,
    id: u32,
    (elements, bytes): (u64, u64),
    decode: Option<Decode>,
    scales: Scales,
) -> Row {
    Row { name, id, elements, bytes, decode, scales }
}

use Scales::{E8m0, Halves};

/// Types by the numbers that files have for them. Those without a decoder are known, so that a file which has them is not
/// refused for tensors that nobody asks for.
const TYPES: &[Row] = &[
    row("Q4_0", 2, (32, 18), Some(blocks_of_32::q4_0), Halves(&[0])),
    row("Q4_1", 3, (32, 20), Some(blocks_of_32::q4_1), Halves(&[0, 2])),
    row("Q5_0", 6, (32, 22), Some(blocks_of_32::q5_0), Halves(&[0])),
    row("Q5_1", 7, (32, 24), Some(blocks_of_32::q5_1), Halves(&[0, 2])),
    row("Q8_0", 8, (32, 34), Some(blocks_of_32::q8_0), Halves(&[0])),
    row("Q8_1", 9, (32, 40), None, Halves(&[])),
    row("Q2_K", 10, (256, 84), Some(k_quants::q2_k), Halves(&[80, 82])),
    row("Q3_K", 11, (256, 110), Some(k_quants::q3_k), Halves(&[108])),
    row("Q4_K", 12, (256, 144), Some(k_quants::q4_k), Halves(&[0, 2])),
    row("Q5_K", 13, (256, 176), Some(k_quants::q5_k), Halves(&[0, 2])),
    row("Q6_K", 14, (256, 210), Some(k_quants::q6_k), Halves(&[208])),
    row("Q8_K", 15, (256, 292), None, Halves(&[])),
    row("IQ2_XXS", 16, (256, 66), None, Halves(&[])),
    row("IQ2_XS", 17, (256, 74), None, Halves(&[])),
    row("IQ3_XXS", 18, (256, 98), None, Halves(&[])),
    row("IQ1_S", 19, (256, 50), None, Halves(&[])),
    row("IQ4_NL", 20, (32, 18), Some(iq4::iq4_nl), Halves(&[0])),
    row("IQ3_S", 21, (256, 110), None, Halves(&[])),
    row("IQ2_S", 22, (256, 82), None, Halves(&[])),
    row("IQ4_XS", 23, (256, 136), Some(iq4::iq4_xs), Halves(&[0])),
    row("IQ1_M", 29, (256, 56), None, Halves(&[])),
    row("TQ1_0", 34, (256, 54), None, Halves(&[])),
    row("TQ2_0", 35, (256, 66), None, Halves(&[])),
    row("MXFP4", 39, (32, 17), Some(mxfp4::mxfp4), E8m0),
    row("NVFP4", 40, (64, 36), None, Halves(&[])),
    row("Q1_0", 41, (128, 18), None, Halves(&[])),
];

/// Elements of the largest block that is decoded.
const LARGEST_BLOCK: usize = 256;

impl GgmlType {
    /// The type with this number in files, if it is one of blocks.
    pub fn from_id(id: u32) -> Option<GgmlType> {
        TYPES.iter().position(|t| t.id == id).map(|index| GgmlType { index })
    }

    /// The name, as in llama.cpp: `Q4_K`.
    pub fn name(self) -> &'static str {
        TYPES[self.index].name
    }

    /// Elements and bytes of a block.
    pub fn block(self) -> (u64, u64) {
        (TYPES[self.index].elements, TYPES[self.index].bytes)
    }

    /// Whether values can be read.
    pub fn is_read(self) -> bool {
        TYPES[self.index].decode.is_some()
    }

    /// Names of the types whose values can be read.
    pub fn read_names() -> Vec<&'static str> {
        TYPES.iter().filter(|t| t.decode.is_some()).map(|t| t.name).collect()
    }
}

impl Stored<'_> {
    /// Dequantises elements `start, start + stride, …`, counted row by row, into `out`. A type that is not read gives zeros.
    pub(crate) fn read(&self, start: u64, stride: u64, out: &mut [f32]) {
        let (elements, bytes) = self.blocks.block();
        let (elements, bytes) = (elements as usize, bytes as usize);
        let Some(decode) = TYPES[self.blocks.index].decode else { return out.fill(0.0) };
        let block = |number: usize| &self.data[number * bytes..(number + 1) * bytes];
        let mut values = [0f32; LARGEST_BLOCK];
        let mut done = 0;
        while done < out.len() {
            let at = start as usize + done * stride as usize;
            let (number, first) = (at / elements, at % elements);
            // Elements that are left in this block.
            let here = (elements - first).div_ceil((stride as usize).max(1)).min(out.len() - done);
            let out = &mut out[done..done + here];
            if here == elements {
                decode(block(number), out);
            } else {
                decode(block(number), &mut values[..elements]);
                out.iter_mut().zip(values[first..].iter().step_by((stride as usize).max(1))).for_each(|(o, v)| *o = *v);
            }
            done += here;
        }
    }

    /// The first block with a scale that is no finite number, and that scale. Zero and negative scales are ordinary here.
    pub(crate) fn bad_scale(&self) -> Option<(u64, f32)> {
        let (_, bytes) = self.blocks.block();
        let scales = TYPES[self.blocks.index].scales;
        let bad = |block: &[u8]| match scales {
            Scales::Halves(at) => at.iter().map(|&i| half(block, i)).find(|d| !d.is_finite()),
            Scales::E8m0 => (block[0] == 255).then_some(f32::NAN),
        };
        let blocks = self.data.par_chunks_exact(bytes as usize).enumerate();
        blocks.find_map_first(|(i, block)| bad(block).map(|value| (i as u64, value)))
    }
}

/// A little-endian half at byte `at` of a block.
fn half(block: &[u8], at: usize) -> f32 {
    f16_value(u16::from_le_bytes([block[at], block[at + 1]]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_are_read_alike_in_runs_and_one_by_one() {
        for index in 0..TYPES.len() {
            let t = GgmlType { index };
            let (elements, bytes) = t.block();
            if !t.is_read() {
                continue;
            }
            let data: Vec<u8> =
                (0..3 * bytes as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8 & 0x3F).collect();
            let mut all = vec![0.0; 3 * elements as usize];
            let stored = Stored { blocks: t, data: &data, name: "x".into() };
            stored.read(0, 1, &mut all);
            for stride in [1, 2, 7, elements, elements + 1] {
                for start in 0..elements + 2 {
                    let len = (3 * elements - start).div_ceil(stride) as usize;
                    let mut out = vec![f32::NAN; len];
                    stored.read(start, stride, &mut out);
                    for (i, v) in out.iter().enumerate() {
                        let want = all[(start + i as u64 * stride) as usize];
                        assert_eq!(v.to_bits(), want.to_bits(), "{} from {start} by {stride}", t.name());
                    }
                }
            }
        }
    }
}
