//! What the kernels are written with: vectors of eight floats, and of 32 bytes, for each of one or two columns.
//!
//! An algorithm is written once over [`Machine`] and compiled for every processor, so that the order of sums, which the
//! bits depend on, is written once. All functions are inlined into entry points that have the processor's features.

use moec_ir::quant::ScaleCode;

/// A processor's vectors. `F` is eight lanes of f32 for each column, `B` 32 bytes for each; operations on bytes that move
/// some work in pieces of 16 bytes.
///
/// # Safety
/// Functions are unsafe because the processor must have the machine's features; those with pointers also need them to be
/// valid for what they read or write.
#[allow(clippy::missing_safety_doc, reason = "one contract for all, above")]
pub(crate) trait Machine: Copy {
    /// Floats.
    type F: Copy;
    /// Bytes.
    type B: Copy;
    /// Columns in a vector: one or two.
    const COLUMNS: usize;

    unsafe fn zero() -> Self::F;
    /// `x * y + z`, rounded once.
    unsafe fn fma(x: Self::F, y: Self::F, z: Self::F) -> Self::F;
    unsafe fn sum(x: Self::F, y: Self::F) -> Self::F;
    /// Aligned to the vector.
    unsafe fn load(p: *const f32) -> Self::F;
    /// Aligned to the vector.
    unsafe fn store(p: *mut f32, x: Self::F);
    /// The eight floats at `p`, for every column.
    unsafe fn spread(p: *const f32) -> Self::F;
    /// The sum of each column's lanes: `s[l] = t[l] + t[l + 4]`, then `(s[0] + s[2]) + (s[1] + s[3])`.
    unsafe fn sums(x: Self::F) -> [f32; 2];
    /// Writes the sums of the lanes of the first `n` columns of four vectors.
    #[inline(always)]
    unsafe fn store_sums(x: [Self::F; 4], n: usize, to: *mut f32) {
        for i in 0..4 {
            // SAFETY: the caller's contract.
            unsafe {
                let sums = Self::sums(x[i]);
                for c in 0..Self::COLUMNS {
                    let at = i * Self::COLUMNS + c;
                    if at < n {
                        *to.add(at) = sums[c];
                    }
                }
            }
        }
    }

    /// 32 bytes of each column.
    unsafe fn bytes(p: [*const u8; 2]) -> Self::B;
    /// 16 bytes from each pointer, two for each column.
    unsafe fn quarters(p: [*const u8; 4]) -> Self::B;
    unsafe fn splat(byte: u8) -> Self::B;
    unsafe fn and(x: Self::B, y: Self::B) -> Self::B;
    unsafe fn or(x: Self::B, y: Self::B) -> Self::B;
    unsafe fn xor(x: Self::B, y: Self::B) -> Self::B;
    /// All ones in bytes that are equal, else 0.
    unsafe fn equal(x: Self::B, y: Self::B) -> Self::B;
    /// Sums of bytes.
    unsafe fn add(x: Self::B, y: Self::B) -> Self::B;
    /// Words of 16 bits moved down by four bits.
    unsafe fn down_four(x: Self::B) -> Self::B;
    /// In every 16 bytes: entries of `table` at indices below 16.
    unsafe fn look_up(table: Self::B, index: Self::B) -> Self::B;
    /// In every 16 bytes: bytes of the lower halves of `x` and `y` by turns, and of the upper halves.
    unsafe fn interleave(x: Self::B, y: Self::B) -> [Self::B; 2];
    /// `x` where the mask's bytes are all ones, `y` where they are 0.
    unsafe fn select(mask: Self::B, x: Self::B, y: Self::B) -> Self::B;
    /// 64 words of each column: in each of four vectors, eight of a column's first 32 words, and eight of the others.
    #[inline(always)]
    unsafe fn groups_of_words(p: [*const u8; 2]) -> [Self::B; 4] {
        let mut words = [unsafe { Self::splat(0) }; 4];
        for q in 0..4 {
            let at = [16 * q, 16 * q + 64];
            // SAFETY: the caller's contract.
            words[q] = unsafe { Self::quarters([p[0].add(at[0]), p[0].add(at[1]), p[1].add(at[0]), p[1].add(at[1])]) };
        }
        words
    }
    /// In every 16 bytes, the even and the odd words as bf16.
    unsafe fn widen_bf16(x: Self::B) -> [Self::F; 2];
    /// In every 16 bytes, the even and the odd words as f16.
    unsafe fn widen_f16(x: Self::B) -> [Self::F; 2];
    /// In every 16 bytes, the even and the odd ones of the four floats of `x` and, behind them, the four of `y`.
    unsafe fn deal(x: [Self::B; 2]) -> [Self::F; 2];
    /// For each of `n` factors, writes the low bytes of sixteen words and then their high bytes, 32 bytes behind the ones
    /// before: `values · factor` rounded to bf16 less `less`. A factor that is NaN is a quiet one.
    unsafe fn entries(values: &[f32; 16], less: u16, factors: *const f32, n: usize, to: *mut u8);
    /// Writes scales `first .. first + n` of those at `from`, times `global`; a NaN becomes a quiet one. No other scale is
    /// read, but up to a multiple of 16 anything is written.
    unsafe fn factors(scale: ScaleCode, from: *const u8, first: usize, n: usize, global: f32, to: *mut f32);
    /// The least of `n` bytes.
    #[inline(always)]
    unsafe fn least_byte(p: *const u8, n: usize) -> u8 {
        // SAFETY: the caller's contract.
        (0..n).fold(u8::MAX, |least, i| least.min(unsafe { *p.add(i) }))
    }
    /// Whether entries of codes of four bits are sixteen words, not their low bytes and then their high ones.
    const WORD_ENTRIES: bool = false;
    /// As [`Machine::entries`] with nothing taken off, in the order that [`Machine::four_bits`] wants.
    #[inline(always)]
    unsafe fn word_entries(values: &[f32; 16], factors: *const f32, n: usize, to: *mut u8) {
        // SAFETY: the caller's contract.
        unsafe { Self::entries(values, 0, factors, n, to) }
    }
    /// 64 codes of four bits of each column as words, by entries: for each half of a column one for its first sixteen codes
    /// and one for the others.
    #[inline(always)]
    unsafe fn four_bits(p: [*const u8; 2], [first, second]: [[*const u8; 4]; 2]) -> [Self::B; 4] {
        // SAFETY: the caller's contract.
        unsafe {
            let indices = nibbles::<Self>(p);
            let [a, b] = words::<Self>(Self::entry_pairs(first), indices[0]);
            let [c, d] = words::<Self>(Self::entry_pairs(second), indices[1]);
            [a, b, c, d]
        }
    }
    /// As [`Machine::four_bits`], by the factors of both halves of each column. A word that should be subnormal may be zero
    /// when `MAY_FLUSH`.
    #[inline(always)]
    unsafe fn four_bits_of<const MAY_FLUSH: bool>(
        values: &[f32; 16],
        p: [*const u8; 2],
        factors: [*const f32; 4],
    ) -> [Self::B; 4] {
        // SAFETY: the caller's contract.
        unsafe {
            let entries = Self::entries_of(values, factors);
            let [first, second] = nibbles::<Self>(p);
            let [a, b] = words::<Self>(entries, first);
            let [c, d] = words::<Self>(entries, second);
            [a, b, c, d]
        }
    }
    /// The least of what `n` factors, zeros aside, have twice their bits less one of.
    #[inline(always)]
    unsafe fn least_of(p: *const f32, n: usize) -> u32 {
        // SAFETY: the caller's contract. The sign is shifted out; zero becomes the greatest.
        (0..n).fold(u32::MAX, |least, i| least.min(unsafe { (*p.add(i)).to_bits() << 1 }.wrapping_sub(1)))
    }
    /// [`Machine::entry_pairs`] of the entries of factors at `p`, which are made in registers, with nothing taken off.
    unsafe fn entries_of(values: &[f32; 16], p: [*const f32; 4]) -> [Self::B; 2];
    /// Entries at `p`, two for each column: low bytes, and high bytes.
    unsafe fn entry_pairs(p: [*const u8; 4]) -> [Self::B; 2];
    /// For 64 bytes of each column: its first and third 16 bytes, and its second and fourth.
    #[inline(always)]
    unsafe fn sixty_four_bytes(p: [*const u8; 2]) -> [Self::B; 2] {
        // SAFETY: the caller's contract.
        unsafe {
            let even = Self::quarters([p[0], p[0].add(32), p[1], p[1].add(32)]);
            [even, Self::quarters([p[0].add(16), p[0].add(48), p[1].add(16), p[1].add(48)])]
        }
    }

    /// Whether codes of e4m3 are looked up in tables of all magnitudes.
    const E4M3_TABLES: bool = false;
    /// Writes such a table: low bytes of `values · factor` rounded to bf16, then the high ones.
    unsafe fn e4m3_table(_values: &[f32; 128], _factor: f32, _to: *mut u8) {
        unreachable!("machines with tables should make them");
    }
    /// 64 codes of e4m3 of each column as words, by one table for all.
    unsafe fn e4m3_by_table(_p: [*const u8; 2], _table: *const u8) -> [Self::B; 4] {
        unreachable!("machines with tables should read them");
    }

    /// Does a task in a function of its own, compiled for the machine: within a larger one, registers would run out.
    unsafe fn apart(task: &impl Task);
    /// Asks for the line of memory at `p`, which need not be there.
    unsafe fn prefetch(p: *const u8);
    /// As [`Machine::prefetch`], as far as the second cache. Rows of weights that are as long as a page have one place of the
    /// first cache for all columns that are read and asked for at once, and push each other out of it.
    unsafe fn prefetch_second(p: *const u8);
}

/// Work that [`Machine::apart`] does.
pub(crate) trait Task {
    /// Does it; inlined.
    ///
    /// # Safety
    /// As said where the task is made.
    unsafe fn run(&self);
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

/// The values at sixteen indices (twice), in two vectors.
#[inline(always)]
unsafe fn words<M: Machine>([low, high]: [M::B; 2], indices: M::B) -> [M::B; 2] {
    // SAFETY: the caller's contract.
    unsafe { M::interleave(M::look_up(low, indices), M::look_up(high, indices)) }
}
