//! Tensor memory and the tensor cores of sm_100.
//!
//! A tensor-memory address is `lane << 16 | column`, with 128 lanes and 512 columns of 32 bits.

use super::value::{Bool, F32, I32, I64, Shared, ToI32, Value};
use super::{BlockScaled, Builder, Intrinsic};
use inkwell::AddressSpace;
use inkwell::values::{BasicMetadataValueEnum, BasicValueEnum, IntValue};

/// Address space of tensor memory.
const TENSOR: u16 = 6;

/// The blocks whose tensor cores work together. All instructions of a kernel agree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CtaGroup {
    One,
    /// Two of a cluster, of ranks 0 and 1: each has half of the rows of A, of B, and of D. Rank 0 starts products.
    Pair,
    /// Two pairs of a cluster with the same A: ranks 0 and 1, 2 and 3.
    TwoPairs,
}

impl CtaGroup {
    /// How many multiply together.
    pub fn count(self) -> u32 {
        if self == CtaGroup::One { 1 } else { 2 }
    }

    /// How many such groups have the same A.
    pub fn groups(self) -> u32 {
        if self == CtaGroup::TwoPairs { 2 } else { 1 }
    }

    /// Rows of A of an instruction.
    fn rows(self) -> u32 {
        128 * self.count()
    }
}

/// Columns of one load from tensor memory.
pub const LOAD_COLUMNS: u32 = 16;

impl<'c> Builder<'c> {
    fn tensor(&'c self, address: I32<'c>) -> BasicMetadataValueEnum<'c> {
        let ty = self.context.ptr_type(AddressSpace::from(TENSOR));
        self.take(self.llvm.build_int_to_ptr(address.v, ty, ""), ty.const_null()).into()
    }

    /// Takes `columns` (a power of two from 32) of tensor memory for the block and writes their address to `place`. A whole
    /// warp calls, of each block of a pair; it waits until another block on the multiprocessor has given them back.
    pub fn allocate_tensor(&'c self, ctas: CtaGroup, place: Shared<'c>, columns: u32) {
        let (allocate, relinquish) = match ctas {
            CtaGroup::One => (Intrinsic::TmemAlloc, Intrinsic::TmemRelinquish),
            CtaGroup::Pair | CtaGroup::TwoPairs => (Intrinsic::TmemAllocPair, Intrinsic::TmemRelinquishPair),
        };
        self.call(allocate, &[place.v.into(), self.i32(columns).v.into()]);
        self.call(relinquish, &[]);
    }

    /// Gives tensor memory back. The warp that took it calls.
    pub fn free_tensor(&'c self, ctas: CtaGroup, address: I32<'c>, columns: u32) {
        let free = if ctas == CtaGroup::One { Intrinsic::TmemDealloc } else { Intrinsic::TmemDeallocPair };
        self.call(free, &[self.tensor(address), self.i32(columns).v.into()]);
    }

    /// Orders this thread's tensor-memory operations before the barrier that follows.
    pub fn before_sync(&'c self) {
        self.call(Intrinsic::TmemFenceBefore, &[]);
    }

    /// Orders this thread's tensor-memory operations after the barrier before.
    pub fn after_sync(&'c self) {
        self.call(Intrinsic::TmemFenceAfter, &[]);
    }

    /// Starts reading [`LOAD_COLUMNS`] columns; lane `l` of warp `w` gets those of tensor-memory lane `32·(w mod 4) + l`,
    /// which `address` must name for `l` = 0. The values are there after [`Builder::wait_tensor`].
    pub fn load_tensor(&'c self, address: I32<'c>) -> Vec<F32<'c>> {
        let all = self.call(Intrinsic::TmemLoad16, &[self.tensor(address), self.bool(false).v.into()]);
        let Some(BasicValueEnum::VectorValue(all)) = all.and_then(|c| c.try_as_basic_value().basic()) else {
            self.fail("a load from tensor memory gave no vector");
            return vec![self.f32(0.0); LOAD_COLUMNS as usize];
        };
        let one = |i: u32| {
            let element = self.llvm.build_extract_element(all, self.i32(i).v, "");
            I32::from_raw(self, self.take(element, self.i32(0).raw())).as_f32()
        };
        (0..LOAD_COLUMNS).map(one).collect()
    }

    /// Waits for this thread's loads from tensor memory.
    pub fn wait_tensor(&'c self) {
        self.call(Intrinsic::TmemWaitLoad, &[]);
    }

    /// Starts `D = A·Bᵀ`, plus D where `accumulate` holds, of 16-bit elements: 128 rows of A of each block, as many rows of B as
    /// the instruction descriptor says, 16 elements deep. Both blocks of a pair have their operands at the same place. `a` and `b` say where in shared memory ([`Builder::swizzled_tile`]).
    pub fn start_mma(
        &'c self,
        ctas: CtaGroup,
        d: I32<'c>,
        (a, b): (I32<'c>, I32<'c>),
        instruction: I32<'c>,
        accumulate: Bool<'c>,
    ) {
        // Kind f16 (bf16 as well).
        self.start_mma_of(ctas, 0, d, (a, b), instruction, accumulate);
    }

    /// As [`Builder::start_mma`], of FP8 elements, 32 deep.
    pub fn start_fp8_mma(
        &'c self,
        ctas: CtaGroup,
        d: I32<'c>,
        (a, b): (I32<'c>, I32<'c>),
        instruction: I32<'c>,
        accumulate: Bool<'c>,
    ) {
        // Kind f8f6f4.
        self.start_mma_of(ctas, 2, d, (a, b), instruction, accumulate);
    }

    /// As [`Builder::start_mma`], of codes with a scale for each block, 32 bytes deep in shared memory. `scales` are the
    /// tensor-memory addresses of those of A and of B ([`Builder::copy_scales`]).
    pub fn start_scaled_mma(
        &'c self,
        (ctas, kind): (CtaGroup, BlockScaled),
        d: I32<'c>,
        (a, b): (I32<'c>, I32<'c>),
        scales: (I32<'c>, I32<'c>),
        instruction: I32<'c>,
        accumulate: Bool<'c>,
    ) {
        let [group, collector] = [ctas.count(), 0].map(|x| BasicMetadataValueEnum::from(self.i32(x).v));
        let (d, a, b) = (self.tensor(d), self.descriptor(a), self.descriptor(b));
        let (of_a, of_b) = (self.tensor(scales.0), self.tensor(scales.1));
        let intrinsic = match kind {
            BlockScaled::Mxf8f6f4 => Intrinsic::TmemMmaMx,
            BlockScaled::Mxf4 => Intrinsic::TmemMmaMx4,
            BlockScaled::Mxf4Nvf4 => Intrinsic::TmemMmaNv4,
        };
        self.call(intrinsic, &[d, a, b, instruction.v.into(), accumulate.v.into(), of_a, of_b, group, collector]);
    }

    /// Starts copying 512 bytes of scales, four for each of 128 rows, to four columns of tensor memory: row `r`, scale `j`
    /// lies at byte `(r mod 32)·16 + (r / 32)·4 + j`. Products that this thread starts later find them. Each block of a pair
    /// copies from its own shared memory to its own tensor memory.
    pub fn copy_scales(&'c self, ctas: CtaGroup, to: I32<'c>, from: Shared<'c>) {
        // Not swizzled; groups of eight rows of 16 bytes are 128 bytes apart.
        const HIGH: u32 = (128 >> 4) | 1 << 14;
        let pair = self.vector(&[self.descriptor_address(from).raw(), self.i32(HIGH).raw()]);
        let ty = self.context.i64_type();
        let descriptor = self.take(self.llvm.build_bit_cast(pair, ty, ""), ty.const_zero()).into();
        let copy = if ctas == CtaGroup::One { Intrinsic::TmemCopyScales } else { Intrinsic::TmemCopyScalesPair };
        self.call(copy, &[self.tensor(to), descriptor]);
    }

    fn start_mma_of(
        &'c self,
        ctas: CtaGroup,
        kind: u32,
        d: I32<'c>,
        (a, b): (I32<'c>, I32<'c>),
        instruction: I32<'c>,
        accumulate: Bool<'c>,
    ) {
        // A is not kept in the collector.
        let [kind, group, collector] = [kind, ctas.count(), 0].map(|x| BasicMetadataValueEnum::from(self.i32(x).v));
        let (d, a, b) = (self.tensor(d), self.descriptor(a), self.descriptor(b));
        let args = [d, a, b, instruction.v.into(), accumulate.v.into(), kind, group, collector];
        self.call(Intrinsic::Tcgen05Mma, &args);
    }

    /// Arrives at `barrier`, of both blocks of a pair, when all products that this thread has started are done.
    pub fn arrive_after_mma(&'c self, ctas: CtaGroup, barrier: Shared<'c>) {
        match ctas {
            CtaGroup::One => {
                self.call(Intrinsic::Tcgen05Commit, &[barrier.v.into()]);
            }
            CtaGroup::Pair => self.commit(barrier, self.i32(0b11)),
            CtaGroup::TwoPairs => self.commit(barrier, self.i32(0b11) << (self.cluster_rank() & 2)),
        }
    }

    /// As [`Builder::arrive_after_mma`], at the barriers of all blocks that have the same A.
    pub fn arrive_everywhere_after_mma(&'c self, ctas: CtaGroup, barrier: Shared<'c>) {
        match ctas {
            CtaGroup::One | CtaGroup::Pair => self.arrive_after_mma(ctas, barrier),
            CtaGroup::TwoPairs => self.commit(barrier, self.i32(0b1111)),
        }
    }

    fn commit(&'c self, barrier: Shared<'c>, blocks: I32<'c>) {
        let blocks = self.block_mask(blocks);
        self.call(Intrinsic::Tcgen05CommitPair, &[barrier.v.into(), blocks.into()]);
    }

    /// A bit for each block of the cluster.
    pub(super) fn block_mask(&'c self, blocks: I32<'c>) -> IntValue<'c> {
        let ty = self.context.i16_type();
        self.take(self.llvm.build_int_truncate(blocks.v, ty, ""), ty.const_zero())
    }

    /// The lower half of the descriptor of a tile in shared memory, at a multiple of 1024 bytes: rows of 128 bytes along
    /// k, 16-byte pieces exchanged in the 128-byte pattern. What lies `n` bytes further on is described by `+ n / 16`.
    pub fn swizzled_tile(&'c self, tile: Shared<'c>) -> I32<'c> {
        self.descriptor_address(tile)
    }

    fn descriptor_address(&'c self, place: Shared<'c>) -> I32<'c> {
        let ty = self.context.i64_type();
        let address = self.take(self.llvm.build_ptr_to_int(place.v, ty, ""), ty.const_zero());
        (I64 { builder: self, v: address }.low() >> 4) & 0x3fff
    }

    /// The whole descriptor. Put together as a pair of words: LLVM 22 writes a 64-bit sum as `register + constant`, which
    /// is no operand of `tcgen05.mma`.
    ///
    /// Source: PTX ISA, tcgen05 matrix descriptor: start address >> 4 in bits 0-13, stride of groups of eight rows >> 4
    /// in bits 32-45, 1 in bits 46-48, swizzle (2: 128 bytes) in bits 61-63.
    fn descriptor(&'c self, low: I32<'c>) -> BasicMetadataValueEnum<'c> {
        const HIGH: u32 = (1024 >> 4) | 1 << 14 | 2 << 29;
        let pair = self.vector(&[low.raw(), self.i32(HIGH).raw()]);
        let ty = self.context.i64_type();
        self.take(self.llvm.build_bit_cast(pair, ty, ""), ty.const_zero()).into()
    }

    /// The instruction descriptor of a product of codes, as [`Builder::mma_instruction`]: `a` and `b` are the types of the
    /// codes, `e8m0` says that scales are powers of two. The numbers of the first scales in their four bytes, those of A from
    /// bit 29 and those of B from bit 4, are added by the caller.
    pub fn scaled_instruction(&'c self, ctas: CtaGroup, (a, b): (u32, u32), e8m0: bool, n: impl ToI32<'c>) -> I32<'c> {
        let n = n.to(self);
        (n << (17 - 3)) | (a << 7 | b << 10 | u32::from(e8m0) << 23 | (ctas.rows() >> 7) << 27)
    }

    /// The instruction descriptor for 128 rows of A of each block, `n` (a multiple of 16, of 32 for a pair, at most 256) rows
    /// of B, sums in f32. `elem` is
    /// 0 for f16 and 1 for bf16.
    ///
    /// Source: PTX ISA, tcgen05 instruction descriptor: type of D in bits 4-5, of A in 7-9, of B in 10-12, N >> 3 from bit
    /// 17, M >> 4 from bit 24.
    pub fn mma_instruction(&'c self, ctas: CtaGroup, elem: u32, n: impl ToI32<'c>) -> I32<'c> {
        let n = n.to(self);
        (n << (17 - 3)) | (1 << 4 | elem << 7 | elem << 10 | (ctas.rows() >> 4) << 24)
    }
}
