//! Loads, stores and asynchronous copies.
//!
//! The one module of the layer with `unsafe`: inkwell marks address arithmetic so, because LLVM gives an out-of-range
//! `inbounds` address no meaning. The arithmetic here is never `inbounds`; it wraps like integers do.

use super::value::{F32, Global, I32, I64, Shared, ToI32, ToI64, Value};
use super::{Builder, CLUSTER, Intrinsic};
use inkwell::AddressSpace;
use inkwell::types::BasicTypeEnum;
use inkwell::values::{BasicValue, BasicValueEnum, IntValue, PointerValue};
use moec_ir::DType;

/// An address that elements are read from and written to.
pub trait Place<'c>: Copy {
    fn pointer(self) -> (&'c Builder<'c>, PointerValue<'c>);
}
impl<'c> Place<'c> for Global<'c> {
    fn pointer(self) -> (&'c Builder<'c>, PointerValue<'c>) {
        (self.builder, self.v)
    }
}
impl<'c> Place<'c> for Shared<'c> {
    fn pointer(self) -> (&'c Builder<'c>, PointerValue<'c>) {
        (self.builder, self.v)
    }
}

impl<'c> Global<'c> {
    /// The address `bytes` further on.
    pub fn plus(self, bytes: impl ToI64<'c>) -> Global<'c> {
        let builder = self.builder;
        let bytes = bytes.to(builder);
        Global { builder, v: builder.offset(self.v, bytes.v) }
    }
}

impl<'c> Shared<'c> {
    /// The address `bytes` further on.
    pub fn plus(self, bytes: I32<'c>) -> Shared<'c> {
        let builder = self.builder;
        Shared { builder, v: builder.offset(self.v, bytes.wide().v) }
    }

    /// The address a constant number of bytes further on.
    pub fn at(self, bytes: u32) -> Shared<'c> {
        if bytes == 0 {
            return self;
        }
        let builder = self.builder;
        Shared { builder, v: builder.offset(self.v, builder.i64(bytes.into()).v) }
    }
}

impl<'c> Builder<'c> {
    fn offset(&'c self, pointer: PointerValue<'c>, bytes: IntValue<'c>) -> PointerValue<'c> {
        // SAFETY: without `inbounds`, any byte offset is plain address arithmetic.
        let result = unsafe { self.llvm.build_gep(self.context.i8_type(), pointer, &[bytes], "") };
        self.take(result, pointer)
    }

    pub(super) fn load_raw(&'c self, place: impl Place<'c>, ty: BasicTypeEnum<'c>, align: u32) -> BasicValueEnum<'c> {
        let loaded = self.take(self.llvm.build_load(ty, place.pointer().1, ""), ty.const_zero());
        if let Some(Err(e)) = loaded.as_instruction_value().map(|i| i.set_alignment(align)) {
            self.fail(&e.to_string());
        }
        loaded
    }

    pub(super) fn store_raw(&'c self, place: impl Place<'c>, value: BasicValueEnum<'c>, align: u32) {
        match self.llvm.build_store(place.pointer().1, value) {
            Ok(store) => {
                if let Err(e) = store.set_alignment(align) {
                    self.fail(&e.to_string());
                }
            }
            Err(e) => self.fail(&e.to_string()),
        }
    }

    /// Reads one i32.
    pub fn load_i32(&'c self, place: impl Place<'c>) -> I32<'c> {
        I32::from_raw(self, self.load_raw(place, self.context.i32_type().into(), 4))
    }

    /// Writes one i32.
    pub fn store_i32(&'c self, place: impl Place<'c>, value: I32<'c>) {
        self.store_raw(place, value.raw(), 4);
    }

    /// Reads 16 bytes from an address that is a multiple of 16.
    pub fn load_words(&'c self, place: impl Place<'c>) -> [I32<'c>; 4] {
        self.load_vector(place)
    }

    /// Reads `N` (2 or 4) words from an address that is a multiple of their size.
    pub(super) fn load_vector<const N: usize>(&'c self, place: impl Place<'c>) -> [I32<'c>; N] {
        let all = self.load_raw(place, self.context.i32_type().vec_type(N as u32).into(), 4 * N as u32);
        std::array::from_fn(|i| I32::from_raw(self, self.element(all, i)))
    }

    /// Writes 16 bytes to an address that is a multiple of 16.
    pub fn store_words(&'c self, place: impl Place<'c>, words: [I32<'c>; 4]) {
        let raw = self.vector(&words.map(|w| w.raw()));
        self.store_raw(place, raw, 16);
    }

    /// Reads 1, 2 or 4 bytes as the low bits of a word, the others zero. The address is a multiple of their number.
    pub fn load_bits(&'c self, place: impl Place<'c>, bytes: u64) -> I32<'c> {
        let ty = match bytes {
            1 => self.context.i8_type(),
            2 => self.context.i16_type(),
            _ => return self.load_i32(place),
        };
        let narrow = self.load_raw(place, ty.into(), bytes as u32).into_int_value();
        let wide = self.llvm.build_int_z_extend(narrow, self.context.i32_type(), "");
        I32 { builder: self, v: self.take(wide, self.i32(0).v) }
    }

    /// Writes the low 1, 2 or 4 bytes of a word. The address is a multiple of their number.
    pub fn store_bits(&'c self, place: impl Place<'c>, word: I32<'c>, bytes: u64) {
        let ty = match bytes {
            1 => self.context.i8_type(),
            2 => self.context.i16_type(),
            _ => return self.store_i32(place, word),
        };
        let narrow = self.take(self.llvm.build_int_truncate(word.v, ty, ""), ty.const_zero());
        self.store_raw(place, narrow.into(), bytes as u32);
    }

    /// Writes one f32 to where another block of the cluster has `place`.
    pub fn store_f32_to_peer(&'c self, place: Shared<'c>, rank: I32<'c>, value: F32<'c>) {
        self.store_raw(At(self, self.of_peer(place, rank)), value.raw(), 4);
    }

    /// Writes one i32 to where block `rank` of the cluster has `place`.
    pub fn store_i32_to_peer(&'c self, place: Shared<'c>, rank: impl ToI32<'c>, value: I32<'c>) {
        self.store_raw(At(self, self.of_peer(place, rank)), value.raw(), 4);
    }

    /// Reads one i32 where block `rank` of the cluster has `place`.
    pub fn load_i32_of_peer(&'c self, place: Shared<'c>, rank: impl ToI32<'c>) -> I32<'c> {
        self.load_i32(At(self, self.of_peer(place, rank)))
    }

    /// Where block `rank` of the cluster has `place`.
    pub(super) fn of_peer(&'c self, place: Shared<'c>, rank: impl ToI32<'c>) -> PointerValue<'c> {
        let peer = self.call(Intrinsic::MapToPeer, &[place.v.into(), rank.to(self).v.into()]);
        match peer.and_then(|call| call.try_as_basic_value().basic()) {
            Some(BasicValueEnum::PointerValue(peer)) => peer,
            _ => {
                self.fail("mapa gave no pointer");
                self.context.ptr_type(AddressSpace::from(CLUSTER)).const_null()
            }
        }
    }

    /// Reads one f32.
    pub fn load_f32(&'c self, place: impl Place<'c>) -> F32<'c> {
        F32::from_raw(self, self.load_raw(place, self.context.f32_type().into(), 4))
    }

    /// Writes one f32.
    pub fn store_f32(&'c self, place: impl Place<'c>, value: F32<'c>) {
        self.store_raw(place, value.raw(), 4);
    }

    /// Copies one 16-bit element from global to shared memory; zero where `valid` does not hold, without reading.
    pub fn copy_half(&'c self, to: Shared<'c>, from: Global<'c>, valid: super::Bool<'c>) {
        let ty = self.context.i16_type();
        let word = self.var(self.i32(0));
        self.when(valid, || {
            let half = self.load_raw(from, ty.into(), 2).into_int_value();
            let wide = self.take(self.llvm.build_int_z_extend(half, self.context.i32_type(), ""), self.i32(0).v);
            word.set(I32 { builder: self, v: wide });
        });
        let half = self.take(self.llvm.build_int_truncate(word.get().v, ty, ""), ty.const_zero());
        self.store_raw(to, half.into(), 2);
    }

    /// Reads `n` adjacent elements (a power of two) and widens them to f32. The address is aligned to their size or 16 bytes.
    pub fn load_elements(&'c self, place: impl Place<'c>, dtype: DType, n: usize) -> Vec<F32<'c>> {
        let per_load = (16 / dtype.bytes()).min(n);
        let align = (per_load * dtype.bytes()) as u32;
        let mut out = Vec::with_capacity(n);
        for first in (0..n).step_by(per_load) {
            let at = self.offset(place.pointer().1, self.i64((first * dtype.bytes()) as u64).v);
            self.load_one(At(self, at), dtype, per_load, align, &mut out);
        }
        out
    }

    fn load_one(&'c self, place: At<'c>, dtype: DType, n: usize, align: u32, out: &mut Vec<F32<'c>>) {
        match dtype {
            DType::F32 if n == 1 => out.push(self.load_f32(place)),
            DType::F32 => {
                let vector = self.load_raw(place, self.context.f32_type().vec_type(n as u32).into(), align);
                out.extend((0..n).map(|i| F32::from_raw(self, self.element(vector, i))));
            }
            DType::BF16 if n == 1 => {
                let half = self.load_raw(place, self.context.i16_type().into(), align).into_int_value();
                let wide = self.llvm.build_int_z_extend(half, self.context.i32_type(), "");
                out.push((I32 { builder: self, v: self.take(wide, self.i32(0).v) } << 16).as_f32());
            }
            DType::BF16 => {
                let words = n / 2;
                let word = self.context.i32_type();
                let loaded = if words == 1 {
                    self.load_raw(place, word.into(), align)
                } else {
                    self.load_raw(place, word.vec_type(words as u32).into(), align)
                };
                for i in 0..words {
                    let pair = if words == 1 { loaded } else { self.element(loaded, i) };
                    out.extend(self.unpack_bf16(I32::from_raw(self, pair)));
                }
            }
            DType::F16 if n == 1 => {
                let half = self.load_raw(place, self.context.f16_type().into(), align);
                out.push(self.widen_half(half));
            }
            DType::F16 => {
                let vector = self.load_raw(place, self.context.f16_type().vec_type(n as u32).into(), align);
                out.extend((0..n).map(|i| self.widen_half(self.element(vector, i))));
            }
            DType::I32 => {
                for i in 0..n {
                    let at = self.offset(place.1, self.i64(4 * i as u64).v);
                    out.push(self.load_i32(At(self, at)).signed_to_f32());
                }
            }
            DType::F64 | DType::I64 | DType::U8 => {
                self.fail("64-bit elements and bytes are refused before code is built");
                out.extend((0..n).map(|_| self.f32(0.0)));
            }
        }
    }

    /// Rounds adjacent elements to `dtype` and writes them. Their number is a power of two; the address is aligned to
    /// their size or 16 bytes.
    pub fn store_elements(&'c self, place: impl Place<'c>, dtype: DType, values: &[F32<'c>]) {
        let per_store = (16 / dtype.bytes()).min(values.len()).max(1);
        for (i, group) in values.chunks(per_store).enumerate() {
            let at = self.offset(place.pointer().1, self.i64((i * per_store * dtype.bytes()) as u64).v);
            let align = (group.len() * dtype.bytes()) as u32;
            let raw = match dtype {
                DType::BF16 if group.len() == 1 => {
                    let pair = self.pack_bf16(group[0], self.f32(0.0));
                    let ty = self.context.i16_type();
                    self.take(self.llvm.build_int_truncate(pair.v, ty, ""), ty.const_zero()).into()
                }
                DType::BF16 => {
                    let words: Vec<BasicValueEnum> =
                        group.chunks(2).map(|p| self.pack_bf16(p[0], p[1]).raw()).collect();
                    self.vector(&words)
                }
                DType::F16 => {
                    let halves: Vec<BasicValueEnum> = group.iter().map(|&x| self.narrow_half(x)).collect();
                    self.vector(&halves)
                }
                DType::F32 | DType::F64 | DType::I64 | DType::U8 => {
                    self.vector(&group.iter().map(|x| x.raw()).collect::<Vec<_>>())
                }
                DType::I32 => self.vector(&group.iter().map(|x| x.round_to_i32().raw()).collect::<Vec<_>>()),
            };
            self.store_raw(At(self, at), raw, align);
        }
    }

    /// Rounds to `dtype` and widens back.
    pub fn round(&'c self, dtype: DType, x: F32<'c>) -> F32<'c> {
        match dtype {
            DType::BF16 => (self.pack_bf16(x, self.f32(0.0)) << 16).as_f32(),
            DType::F16 => self.widen_half(self.narrow_half(x)),
            DType::F32 | DType::F64 | DType::I32 | DType::I64 | DType::U8 => x,
        }
    }

    fn widen_half(&'c self, half: BasicValueEnum<'c>) -> F32<'c> {
        let ty = self.context.f32_type();
        let wide = self.llvm.build_float_ext(half.into_float_value(), ty, "");
        F32 { builder: self, v: self.take(wide, ty.const_zero()) }
    }

    fn narrow_half(&'c self, x: F32<'c>) -> BasicValueEnum<'c> {
        let ty = self.context.f16_type();
        self.take(self.llvm.build_float_trunc(x.v, ty, ""), ty.const_zero()).into()
    }

    /// `low` in bits 0..16 and `high` in 16..32, each rounded to bf16.
    fn pack_bf16(&'c self, low: F32<'c>, high: F32<'c>) -> I32<'c> {
        let pair = self.call(Intrinsic::PackBf16, &[high.v.into(), low.v.into()]);
        let Some(pair) = pair.and_then(|c| c.try_as_basic_value().basic()) else { return self.i32(0) };
        let word = self.llvm.build_bit_cast(pair, self.context.i32_type(), "");
        I32::from_raw(self, self.take(word, self.i32(0).raw()))
    }

    fn unpack_bf16(&'c self, pair: I32<'c>) -> [F32<'c>; 2] {
        [(pair << 16).as_f32(), (pair & 0xffff_0000).as_f32()]
    }

    fn element(&'c self, vector: BasicValueEnum<'c>, i: usize) -> BasicValueEnum<'c> {
        let index = self.i32(i as u32).v;
        self.take(self.llvm.build_extract_element(vector.into_vector_value(), index, ""), vector)
    }

    /// A vector of equal types; a single value stays as it is.
    pub(super) fn vector(&'c self, parts: &[BasicValueEnum<'c>]) -> BasicValueEnum<'c> {
        let [first, _, ..] = parts else { return parts[0] };
        let mut vector = match first {
            BasicValueEnum::FloatValue(v) => v.get_type().vec_type(parts.len() as u32).get_undef(),
            _ => self.context.i32_type().vec_type(parts.len() as u32).get_undef(),
        };
        for (i, part) in parts.iter().enumerate() {
            let index = self.i32(i as u32).v;
            vector = self.take(self.llvm.build_insert_element(vector, *part, index, ""), vector);
        }
        vector.as_basic_value_enum()
    }

    /// Starts copying `width` bytes (4, 8 or 16) from global to shared memory. The first `bytes` of them are read, the
    /// others are zero.
    pub fn copy_async(&'c self, to: Shared<'c>, from: Global<'c>, width: u32, bytes: I32<'c>) {
        let intrinsic = match width {
            16 => Intrinsic::CpAsync16,
            8 => Intrinsic::CpAsync8,
            _ => Intrinsic::CpAsync4,
        };
        self.call(intrinsic, &[to.v.into(), from.v.into(), bytes.v.into()]);
    }

    /// Makes one group of all copies started by this thread since the last group.
    pub fn commit_copies(&'c self) {
        self.call(Intrinsic::CpAsyncCommit, &[]);
    }

    /// Waits until at most `pending` groups of copies of this thread are under way.
    pub fn wait_copies(&'c self, pending: u32) {
        self.call(Intrinsic::CpAsyncWait, &[self.i32(pending).v.into()]);
    }
}

/// An address in whichever space it came from.
#[derive(Clone, Copy)]
struct At<'c>(&'c Builder<'c>, PointerValue<'c>);

impl<'c> Place<'c> for At<'c> {
    fn pointer(self) -> (&'c Builder<'c>, PointerValue<'c>) {
        (self.0, self.1)
    }
}

impl<'c> I64<'c> {
    /// `self * factor` bytes from elements.
    pub fn bytes_of(self, dtype: DType) -> I64<'c> {
        self * dtype.bytes() as u64
    }
}
