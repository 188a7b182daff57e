//! Weights as they come from memory: groups of 64 elements of a vector's columns, made floats in registers.

use crate::entries::{ENTRIES, Entries, Recipe};
use crate::machine::Machine;
use crate::values::Matrix;
use moec_ir::quant::ScaleCode;

/// Elements of a group, which eight vectors hold.
pub(crate) const GROUP: usize = 64;
/// Elements of a block of a sum.
pub(crate) const BLOCK: usize = 512;
/// Least elements of a block of codes that has entries of its own, where entries are made for every block.
pub(crate) const LEAST_BLOCK: usize = 32;
/// Entries that a reader needs room for: of two columns, with one or two for a block.
pub(crate) const ROOM: usize = 4 * BLOCK / LEAST_BLOCK;

/// The place of element `i` of a group in the order of lanes: turn times eight plus lane.
pub(crate) const fn place(i: usize) -> usize {
    let turn = i % 32 / 8 * 2 + i % 2;
    turn * 8 + i / 32 * 4 + i % 8 / 2
}

/// Reads the columns of a vector.
pub(crate) trait Reader<M: Machine>: Copy {
    /// Group `g` of the columns: vector `j` is what lanes take in turn `j`.
    ///
    /// # Safety
    /// The group lies within what the reader was made for, and the processor has the machine's features.
    unsafe fn group(&self, g: usize) -> [M::F; 8];
}

/// A kind of weights of a job.
pub(crate) trait Source<M: Machine>: Copy {
    type Reader: Reader<M>;
    /// Whether elements are floats, which are decoded with few registers.
    const FLOATS: bool = false;

    /// A reader of whole groups of elements `first .. end`, at most a block, of one or two columns.
    ///
    /// `ahead` is how many bytes behind what is read memory is asked for. `room` is for [`ROOM`] entries, which the reader
    /// points to.
    ///
    /// # Safety
    /// The matrix has these columns and elements, and `room` is as large as that.
    unsafe fn reader(
        &self,
        m: &Matrix,
        columns: [usize; 2],
        range: (usize, usize),
        ahead: usize,
        room: *mut Entries,
    ) -> Self::Reader;

    /// Bits of an element.
    fn bits(&self) -> usize;
}

/// Eight vectors of four pairs.
#[inline(always)]
fn eight<F: Copy>(pairs: [[F; 2]; 4]) -> [F; 8] {
    let [[a, b], [c, d], [e, f], [g, h]] = pairs;
    [a, b, c, d, e, f, g, h]
}

/// Sixteen bytes `at` behind each column's pointer, and sixteen more `apart` behind those.
#[inline(always)]
unsafe fn halves<M: Machine>(p: [*const u8; 2], at: usize, apart: usize) -> M::B {
    // SAFETY: the caller's contract.
    unsafe { M::quarters([p[0].add(at), p[0].add(at + apart), p[1].add(at), p[1].add(at + apart)]) }
}

/// Floats of 16 bits; f16 when `HALF`.
#[derive(Clone, Copy)]
pub(crate) struct Words<const HALF: bool>;

#[derive(Clone, Copy)]
pub(crate) struct WordsReader<const HALF: bool> {
    at: [*const u8; 2],
    ahead: usize,
}

impl<M: Machine, const HALF: bool> Source<M> for Words<HALF> {
    type Reader = WordsReader<HALF>;
    const FLOATS: bool = true;

    #[inline(always)]
    unsafe fn reader(
        &self,
        m: &Matrix,
        columns: [usize; 2],
        _: (usize, usize),
        ahead: usize,
        _: *mut Entries,
    ) -> Self::Reader {
        WordsReader { at: [m.column(columns[0]), m.column(columns[1])], ahead }
    }

    fn bits(&self) -> usize {
        16
    }
}

impl<M: Machine, const HALF: bool> Reader<M> for WordsReader<HALF> {
    #[inline(always)]
    unsafe fn group(&self, g: usize) -> [M::F; 8] {
        // SAFETY: the caller's contract: 128 bytes of each column are there.
        unsafe {
            let p = [self.at[0].add(g * 128), self.at[1].add(g * 128)];
            for c in 0..M::COLUMNS {
                M::prefetch(p[c].wrapping_add(self.ahead));
                M::prefetch(p[c].wrapping_add(self.ahead + 64));
            }
            let mut pairs = [[M::zero(); 2]; 4];
            for j in 0..4 {
                let words = halves::<M>(p, 16 * j, 64);
                pairs[j] = if HALF { M::widen_f16(words) } else { M::widen_bf16(words) };
            }
            eight(pairs)
        }
    }
}

/// Floats of 32 bits.
#[derive(Clone, Copy)]
pub(crate) struct Floats;

#[derive(Clone, Copy)]
pub(crate) struct FloatsReader {
    at: [*const u8; 2],
    ahead: usize,
}

impl<M: Machine> Source<M> for Floats {
    type Reader = FloatsReader;
    const FLOATS: bool = true;

    #[inline(always)]
    unsafe fn reader(
        &self,
        m: &Matrix,
        columns: [usize; 2],
        _: (usize, usize),
        ahead: usize,
        _: *mut Entries,
    ) -> Self::Reader {
        FloatsReader { at: [m.column(columns[0]), m.column(columns[1])], ahead }
    }

    fn bits(&self) -> usize {
        32
    }
}

impl<M: Machine> Reader<M> for FloatsReader {
    #[inline(always)]
    unsafe fn group(&self, g: usize) -> [M::F; 8] {
        // SAFETY: the caller's contract: 256 bytes of each column are there.
        unsafe {
            let p = [self.at[0].add(g * 256), self.at[1].add(g * 256)];
            for c in 0..M::COLUMNS {
                for line in 0..4 {
                    M::prefetch(p[c].wrapping_add(self.ahead + line * 64));
                }
            }
            let mut pairs = [[M::zero(); 2]; 4];
            for j in 0..4 {
                pairs[j] = M::deal([halves::<M>(p, 32 * j, 128), halves::<M>(p, 32 * j + 16, 128)]);
            }
            eight(pairs)
        }
    }
}

/// The entries of the blocks of one or two columns: made for a reader, or one for every byte that a scale can be.
#[derive(Clone, Copy)]
struct Blocks<const BYTES: bool> {
    entries: [*const u8; 2],
    scales: [*const u8; 2],
    /// Elements of a block are `1 << shift`.
    shift: u32,
}

impl<const BYTES: bool> Blocks<BYTES> {
    /// The entries of the block that element `i` of a column lies in: low bytes, then high ones.
    #[inline(always)]
    unsafe fn of(&self, column: usize, i: usize) -> *const u8 {
        let block = i >> self.shift;
        // SAFETY: the element exists, so its block does.
        unsafe {
            let entry = if BYTES { usize::from(*self.scales[column].add(block)) } else { block };
            self.entries[column].wrapping_add(entry * ENTRIES)
        }
    }

    /// The entries for elements from `i` on in the lower 16 bytes, and for those from `i + 32` on in the upper: low bytes,
    /// high bytes.
    #[inline(always)]
    unsafe fn pair<M: Machine>(&self, i: usize) -> [M::B; 2] {
        // SAFETY: the caller's contract.
        unsafe {
            let (a, b) = (self.of(0, i), self.of(0, i + 32));
            let (c, d) = if M::COLUMNS == 2 { (self.of(1, i), self.of(1, i + 32)) } else { (a, b) };
            M::entry_pairs([a, b, c, d])
        }
    }
}

/// Makes the entries of the blocks that elements `first .. end` of a column lie in; returns where those of block 0 would
/// be.
///
/// # Safety
/// The column has these elements; `room` is for as many entries as they have blocks.
#[inline(always)]
unsafe fn make<M: Machine>(
    m: &Matrix,
    recipe: &Recipe,
    scale: ScaleCode,
    shift: u32,
    column: usize,
    (first, end): (usize, usize),
    room: *mut Entries,
) -> *const u8 {
    let (from, to) = (first >> shift, (end - 1) >> shift);
    let n = to + 1 - from;
    let mut factors = [0.0; BLOCK / LEAST_BLOCK];
    // SAFETY: the caller's contract; a block of a sum has at most so many blocks of codes.
    unsafe {
        M::factors(scale, m.scales(column), from, n, m.global, factors.as_mut_ptr());
        recipe.entries::<M>(factors.as_ptr(), n, room);
    }
    room.cast_const().cast::<u8>().wrapping_sub(from * ENTRIES)
}

/// Codes of four bits whose values are of 16 bits: f16 when `HALF`, else bf16. Scales are looked up by their bytes
/// (`BYTES`) or entries are made for every block; blocks are of 16 elements (`FINE`) or of 32 or more.
#[derive(Clone, Copy)]
pub(crate) struct FourBits<'t, const BYTES: bool, const FINE: bool, const HALF: bool> {
    pub recipe: &'t Recipe,
    pub scale: ScaleCode,
    pub shift: u32,
    /// The entries for every byte of a scale, when `BYTES`.
    pub table: *const Entries,
}

#[derive(Clone, Copy)]
pub(crate) struct FourBitsReader<const BYTES: bool, const FINE: bool, const HALF: bool> {
    codes: [*const u8; 2],
    blocks: Blocks<BYTES>,
    ahead: usize,
}

impl<M: Machine, const BYTES: bool, const FINE: bool, const HALF: bool> Source<M> for FourBits<'_, BYTES, FINE, HALF> {
    type Reader = FourBitsReader<BYTES, FINE, HALF>;

    #[inline(always)]
    unsafe fn reader(
        &self,
        m: &Matrix,
        columns: [usize; 2],
        range: (usize, usize),
        ahead: usize,
        room: *mut Entries,
    ) -> Self::Reader {
        let mut entries = [self.table.cast::<u8>(); 2];
        if !BYTES && range.0 < range.1 {
            for c in 0..M::COLUMNS {
                // SAFETY: the caller's contract; half of the room is for each column.
                unsafe {
                    let room = room.add(c * ROOM / 2);
                    entries[c] = make::<M>(m, self.recipe, self.scale, self.shift, columns[c], range, room);
                }
            }
        }
        let scales = [m.scales(columns[0]), m.scales(columns[1])];
        let blocks = Blocks { entries, scales, shift: self.shift };
        FourBitsReader { codes: [m.column(columns[0]), m.column(columns[1])], blocks, ahead }
    }

    fn bits(&self) -> usize {
        4
    }
}

impl<M: Machine, const BYTES: bool, const FINE: bool, const HALF: bool> Reader<M>
    for FourBitsReader<BYTES, FINE, HALF>
{
    #[inline(always)]
    unsafe fn group(&self, g: usize) -> [M::F; 8] {
        // SAFETY: the caller's contract: 32 bytes of each column are there.
        unsafe {
            let p = [self.codes[0].add(g * 32), self.codes[1].add(g * 32)];
            for c in 0..M::COLUMNS {
                M::prefetch(p[c].wrapping_add(self.ahead));
            }
            let indices = nibbles::<M>(p);
            let i = g * GROUP;
            let first = self.blocks.pair::<M>(i);
            let second = if FINE { self.blocks.pair::<M>(i + 16) } else { first };
            let [a, b] = words::<M, HALF>(first, indices[0]);
            let [c, d] = words::<M, HALF>(second, indices[1]);
            eight([a, b, c, d])
        }
    }
}

/// As [`FourBits`], with values of bf16 and blocks of 32 elements or more whose scales are too many for a table: entries are
/// made in registers where they are used.
#[derive(Clone, Copy)]
pub(crate) struct MadeFourBits<'t> {
    pub recipe: &'t Recipe,
    pub scale: ScaleCode,
    pub shift: u32,
}

#[derive(Clone, Copy)]
pub(crate) struct MadeFourBitsReader<'t> {
    codes: [*const u8; 2],
    /// The factors of each column's blocks, as if from block 0 on.
    factors: [*const f32; 2],
    shift: u32,
    ahead: usize,
    values: &'t [f32; 16],
}

impl<'t, M: Machine> Source<M> for MadeFourBits<'t> {
    type Reader = MadeFourBitsReader<'t>;

    #[inline(always)]
    unsafe fn reader(
        &self,
        m: &Matrix,
        columns: [usize; 2],
        (first, end): (usize, usize),
        ahead: usize,
        room: *mut Entries,
    ) -> Self::Reader {
        let mut factors = [std::ptr::null(); 2];
        if first < end {
            let (from, to) = (first >> self.shift, (end - 1) >> self.shift);
            for c in 0..M::COLUMNS {
                let room = room.cast::<f32>().wrapping_add(c * BLOCK / LEAST_BLOCK);
                // SAFETY: the caller's contract; a block of a sum has at most so many blocks of codes.
                unsafe { M::factors(self.scale, m.scales(columns[c]), from, to + 1 - from, m.global, room) };
                factors[c] = room.cast_const().wrapping_sub(from);
            }
        }
        let codes = [m.column(columns[0]), m.column(columns[1])];
        MadeFourBitsReader { codes, factors, shift: self.shift, ahead, values: &self.recipe.values }
    }

    fn bits(&self) -> usize {
        4
    }
}

impl<M: Machine> Reader<M> for MadeFourBitsReader<'_> {
    #[inline(always)]
    unsafe fn group(&self, g: usize) -> [M::F; 8] {
        // SAFETY: the caller's contract: 32 bytes of each column are there, and factors of their blocks.
        unsafe {
            let p = [self.codes[0].add(g * 32), self.codes[1].add(g * 32)];
            for c in 0..M::COLUMNS {
                M::prefetch(p[c].wrapping_add(self.ahead));
            }
            let (a, b) = ((g * GROUP) >> self.shift, (g * GROUP + 32) >> self.shift);
            let (first, second) = (self.factors[0], self.factors[M::COLUMNS - 1]);
            let factors =
                [first.wrapping_add(a), first.wrapping_add(b), second.wrapping_add(a), second.wrapping_add(b)];
            let entries = M::entries_of(self.values, factors);
            let [first, second] = nibbles::<M>(p);
            let [a, b] = words::<M, false>(entries, first);
            let [c, d] = words::<M, false>(entries, second);
            eight([a, b, c, d])
        }
    }
}

/// 64 codes of four bits as indices: elements 0 … 15 and 32 … 47, then 16 … 31 and 48 … 63.
#[inline(always)]
unsafe fn nibbles<M: Machine>(p: [*const u8; 2]) -> [M::B; 2] {
    // SAFETY: the caller's contract.
    unsafe {
        let pairs = M::bytes(p);
        let nibble = M::splat(15);
        M::interleave(M::and(pairs, nibble), M::and(M::down_four(pairs), nibble))
    }
}

/// The values at sixteen indices (twice), in two pairs of vectors.
#[inline(always)]
unsafe fn words<M: Machine, const HALF: bool>([low, high]: [M::B; 2], indices: M::B) -> [[M::F; 2]; 2] {
    // SAFETY: the caller's contract.
    unsafe {
        let [a, b] = M::interleave(M::look_up(low, indices), M::look_up(high, indices));
        if HALF { [M::widen_f16(a), M::widen_f16(b)] } else { [M::widen_bf16(a), M::widen_bf16(b)] }
    }
}

/// Codes of e4m3 whose values are bf16, with factors that are safe.
#[derive(Clone, Copy)]
pub(crate) struct E4m3<'t> {
    /// For codes whose upper bits are 0, and for the others.
    pub recipes: &'t [Recipe; 2],
    pub scale: ScaleCode,
    pub shift: u32,
}

#[derive(Clone, Copy)]
pub(crate) struct E4m3Reader {
    codes: [*const u8; 2],
    /// For codes whose upper bits are 0, and for the others.
    blocks: [Blocks<false>; 2],
    ahead: usize,
}

impl<M: Machine> Source<M> for E4m3<'_> {
    type Reader = E4m3Reader;

    #[inline(always)]
    unsafe fn reader(
        &self,
        m: &Matrix,
        columns: [usize; 2],
        range: (usize, usize),
        ahead: usize,
        room: *mut Entries,
    ) -> Self::Reader {
        let mut entries = [[std::ptr::null(); 2]; 2];
        if range.0 < range.1 {
            for c in 0..M::COLUMNS {
                for kind in 0..2 {
                    // SAFETY: the caller's contract; a quarter of the room is for each column and kind.
                    unsafe {
                        let room = room.add((c * 2 + kind) * ROOM / 4);
                        let recipe = &self.recipes[kind];
                        entries[kind][c] = make::<M>(m, recipe, self.scale, self.shift, columns[c], range, room);
                    }
                }
            }
        }
        let scales = [m.scales(columns[0]), m.scales(columns[1])];
        let blocks = [
            Blocks { entries: entries[0], scales, shift: self.shift },
            Blocks { entries: entries[1], scales, shift: self.shift },
        ];
        E4m3Reader { codes: [m.column(columns[0]), m.column(columns[1])], blocks, ahead }
    }

    fn bits(&self) -> usize {
        8
    }
}

impl<M: Machine> Reader<M> for E4m3Reader {
    #[inline(always)]
    unsafe fn group(&self, g: usize) -> [M::F; 8] {
        // SAFETY: the caller's contract: 64 bytes of each column are there.
        unsafe {
            let p = [self.codes[0].add(g * 64), self.codes[1].add(g * 64)];
            for c in 0..M::COLUMNS {
                M::prefetch(p[c].wrapping_add(self.ahead));
            }
            let least = self.blocks[0].pair::<M>(g * GROUP);
            let others = self.blocks[1].pair::<M>(g * GROUP);
            let [first, second] = M::sixty_four_bytes(p);
            let [a, b] = e4m3_values::<M>(least, others, first);
            let [c, d] = e4m3_values::<M>(least, others, second);
            eight([a, b, c, d])
        }
    }
}

/// As [`E4m3`] with blocks of 64 elements or more: a group has one block, whose entries are brought in their places once.
#[derive(Clone, Copy)]
pub(crate) struct WideE4m3<'t> {
    /// For codes whose upper bits are 0, and for the others.
    pub recipes: &'t [Recipe; 2],
    pub scale: ScaleCode,
    pub shift: u32,
}

#[derive(Clone, Copy)]
pub(crate) struct WideE4m3Reader<B> {
    codes: [*const u8; 2],
    /// Four vectors for each block, as if from block 0 on.
    entries: *const [[B; 2]; 2],
    shift: u32,
    ahead: usize,
}

impl<M: Machine> Source<M> for WideE4m3<'_> {
    type Reader = WideE4m3Reader<M::B>;

    #[inline(always)]
    unsafe fn reader(
        &self,
        m: &Matrix,
        columns: [usize; 2],
        (first, end): (usize, usize),
        ahead: usize,
        room: *mut Entries,
    ) -> Self::Reader {
        const { assert!(size_of::<[[M::B; 2]; 2]>() * (BLOCK / GROUP) <= ROOM * ENTRIES) };
        let room = room.cast::<[[M::B; 2]; 2]>();
        let from = first >> self.shift;
        if first < end {
            let n = ((end - 1) >> self.shift) + 1 - from;
            let mut factors = [[0.0; BLOCK / GROUP]; 2];
            // SAFETY: the caller's contract; blocks are as long as groups or longer.
            unsafe {
                for c in 0..M::COLUMNS {
                    M::factors(self.scale, m.scales(columns[c]), from, n, m.global, factors[c].as_mut_ptr());
                }
                for block in 0..n {
                    for kind in 0..2 {
                        let mut entries = [Entries::ZERO; 2];
                        for c in 0..M::COLUMNS {
                            self.recipes[kind].entries::<M>(&factors[c][block], 1, &mut entries[c]);
                        }
                        let [a, b] = [&raw const entries[0], &raw const entries[1]].map(|p| p.cast::<u8>());
                        (*room.add(block))[kind] = M::entry_pairs([a, a, b, b]);
                    }
                }
            }
        }
        let entries = room.cast_const().wrapping_sub(from);
        WideE4m3Reader { codes: [m.column(columns[0]), m.column(columns[1])], entries, shift: self.shift, ahead }
    }

    fn bits(&self) -> usize {
        8
    }
}

impl<M: Machine> Reader<M> for WideE4m3Reader<M::B> {
    #[inline(always)]
    unsafe fn group(&self, g: usize) -> [M::F; 8] {
        // SAFETY: the caller's contract: 64 bytes of each column are there.
        unsafe {
            let p = [self.codes[0].add(g * 64), self.codes[1].add(g * 64)];
            for c in 0..M::COLUMNS {
                M::prefetch(p[c].wrapping_add(self.ahead));
            }
            let [least, others] = *self.entries.wrapping_add((g * GROUP) >> self.shift);
            let [first, second] = M::sixty_four_bytes(p);
            let [a, b] = e4m3_values::<M>(least, others, first);
            let [c, d] = e4m3_values::<M>(least, others, second);
            eight([a, b, c, d])
        }
    }
}

/// The values of sixteen codes (twice), in two pairs of vectors.
#[inline(always)]
unsafe fn e4m3_values<M: Machine>(least: [M::B; 2], others: [M::B; 2], codes: M::B) -> [[M::F; 2]; 2] {
    // SAFETY: the caller's contract.
    unsafe {
        let sign = M::splat(0x80);
        let index = M::and(codes, M::splat(15));
        let upper = M::and(M::down_four(codes), M::splat(7));
        let is_least = M::equal(upper, M::splat(0));
        let low = M::select(is_least, M::look_up(least[0], index), M::look_up(others[0], index));
        let high = M::select(is_least, M::look_up(least[1], index), M::add(M::look_up(others[1], index), upper));
        // NaN is the largest magnitude: its value is made all ones.
        let nan = M::equal(M::or(codes, sign), M::splat(0xff));
        let high = M::xor(high, M::and(codes, sign));
        let [a, b] = M::interleave(M::or(low, nan), M::or(high, nan));
        [M::widen_bf16(a), M::widen_bf16(b)]
    }
}
