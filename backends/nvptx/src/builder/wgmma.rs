//! The tensor cores of sm_90: four warps multiply together, asynchronously.
//!
//! LLVM has no intrinsic for the product, so it is inline assembly. Registers that products use in flight go through the
//! fence and through the wait as operands that are read and written: LLVM then moves no computation of them across.

use super::value::{F32, I32, ToI32, Value};
use super::{Builder, Intrinsic, Var, flag};
use inkwell::attributes::AttributeLoc;
use inkwell::types::BasicTypeEnum;
use inkwell::values::{BasicMetadataValueEnum, BasicValueEnum};

/// What a product multiplies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WgmmaType {
    F16,
    Bf16,
    E4M3,
}

impl WgmmaType {
    /// Elements along k of an instruction: 32 bytes.
    fn k(self) -> u32 {
        if self == WgmmaType::E4M3 { 32 } else { 16 }
    }

    fn name(self) -> &'static str {
        match self {
            WgmmaType::F16 => "f16",
            WgmmaType::Bf16 => "bf16",
            WgmmaType::E4M3 => "e4m3",
        }
    }
}

/// The first operand of a product: 64 rows.
#[derive(Clone, Copy)]
pub enum WgmmaRows<'c> {
    /// In shared memory ([`Builder::swizzled_tile`]).
    Shared(I32<'c>),
    /// In registers: lane `l` of warp `w` has row `16 w + l / 4` and the one eight below it, each pair of elements `2 (l mod 4)`
    /// and the pair eight behind it: `[row, row + 8, row, row + 8]` of the first pairs, then of those behind.
    Registers([I32<'c>; 4]),
}

impl<'c> Builder<'c> {
    /// Lets this thread have `n` registers from here on, a multiple of 8 from 24 to 256: more or fewer than it has. All warps
    /// of a warpgroup call.
    pub fn take_registers(&'c self, n: u32) {
        self.call(Intrinsic::RegistersInc, &[self.i32(n).v.into()]);
    }

    /// As [`Builder::take_registers`], fewer than it has.
    pub fn give_registers(&'c self, n: u32) {
        self.call(Intrinsic::RegistersDec, &[self.i32(n).v.into()]);
    }

    /// Orders what this thread did to sums, and to the registers `rows`, before products that it starts next.
    pub fn fence_products(&'c self, rows: &mut [[I32<'c>; 4]]) {
        let flat: Vec<BasicValueEnum> = rows.iter().flatten().map(|x| x.raw()).collect();
        let fenced = self.through("wgmma.fence.sync.aligned;", "r", &flat);
        for (to, from) in rows.iter_mut().flatten().zip(fenced) {
            *to = I32::from_raw(self, from);
        }
    }

    /// Makes one group of the products that were started since the last group.
    pub fn commit_products(&'c self) {
        self.call(Intrinsic::WgmmaCommit, &[]);
    }

    /// Waits until at most `pending` groups of products are under way.
    pub fn wait_products(&'c self, pending: u64) {
        self.call(Intrinsic::WgmmaWait, &[self.i64(pending).v.into()]);
    }

    /// Waits for all products, whose sums are `sums`.
    pub fn finish_products(&'c self, sums: &[Var<'c, F32<'c>>]) {
        self.finish_products_but(0, sums);
    }

    /// Waits until at most `pending` groups of products are under way; `sums` are those of the last that is not.
    pub fn finish_products_but(&'c self, pending: u32, sums: &[Var<'c, F32<'c>>]) {
        let values: Vec<BasicValueEnum> = sums.iter().map(|x| x.get().raw()).collect();
        let done = self.through(&format!("wgmma.wait_group.sync.aligned {pending};"), "f", &values);
        sums.iter().zip(done).for_each(|(sum, x)| sum.set(F32::from_raw(self, x)));
    }

    /// Starts `sums = A·Bᵀ`, plus `sums` where `adds` is not 0: 64 rows of A, `n` rows of B (a multiple of 8, at most 256) in
    /// shared memory, 32 bytes deep. Lane `l` of warp `w` has the sums of row `16 w + l / 4` of A and rows `8 j + 2 (l mod 4)`
    /// and the next of B at `4 j` and `4 j + 1`, and of the row of A eight below at `4 j + 2` and `4 j + 3`.
    pub fn start_wgmma(
        &'c self,
        (ty, n): (WgmmaType, u32),
        sums: &[Var<'c, F32<'c>>],
        a: WgmmaRows<'c>,
        b: I32<'c>,
        adds: impl ToI32<'c>,
    ) {
        let n_sums = n as usize / 2;
        let Some(sums) = sums.get(..n_sums) else { return self.fail("a product has fewer sums than it makes") };
        let values: Vec<BasicValueEnum> = sums.iter().map(|x| x.get().raw()).collect();
        let mut more: Vec<(BasicValueEnum, char)> = Vec::new();
        let first = 2 * n_sums;
        let a = match a {
            WgmmaRows::Shared(low) => {
                more.push((self.wgmma_descriptor(low), 'l'));
                format!("${first}")
            }
            WgmmaRows::Registers(rows) => {
                more.extend(rows.iter().map(|x| (x.raw(), 'r')));
                format!("{{${}, ${}, ${}, ${}}}", first, first + 1, first + 2, first + 3)
            }
        };
        let b_at = first + more.len();
        more.push((self.wgmma_descriptor(b), 'l'));
        more.push((adds.to(self).raw(), 'r'));
        // Neither operand is negated, and of 16-bit elements neither is transposed.
        let (from_registers, is_half) = (more.len() > 3, ty != WgmmaType::E4M3);
        let flags = match (is_half, from_registers) {
            (false, _) => "1, 1",
            (true, true) => "1, 1, 0",
            (true, false) => "1, 1, 0, 0",
        };
        let d: Vec<String> = (0..n_sums).map(|i| format!("${i}")).collect();
        let (k, name) = (ty.k(), ty.name());
        let text = format!(
            "{{ .reg .pred adds; setp.ne.b32 adds, ${}, 0; \
             wgmma.mma_async.sync.aligned.m64n{n}k{k}.f32.{name}.{name} {{{}}}, {a}, ${b_at}, adds, {flags}; }}",
            b_at + 1,
            d.join(", ")
        );
        let made = self.assembly(&text, "f", &values, &more);
        sums.iter().zip(made).for_each(|(sum, x)| sum.set(F32::from_raw(self, x)));
    }

    /// The descriptor of a tile: rows of 128 bytes in the 128-byte swizzle.
    ///
    /// Source: PTX ISA, wgmma matrix descriptor: start address >> 4 in bits 0-13, stride of groups of eight rows >> 4 in bits
    /// 32-45, swizzle (1: 128 bytes) in bits 62-63.
    fn wgmma_descriptor(&'c self, low: I32<'c>) -> BasicValueEnum<'c> {
        const HIGH: u32 = (1024 >> 4) | 1 << 30;
        let pair = self.vector(&[low.raw(), self.i32(HIGH).raw()]);
        let ty = self.context.i64_type();
        self.take(self.llvm.build_bit_cast(pair, ty, ""), ty.const_zero())
    }

    /// Runs an instruction that has `values` in place.
    fn through(&'c self, text: &str, class: &str, values: &[BasicValueEnum<'c>]) -> Vec<BasicValueEnum<'c>> {
        self.assembly(text, class, values, &[])
    }

    /// Inline assembly that reads and writes `values`, in registers of `class`, and reads `more`, each in its class; gives the
    /// new values.
    fn assembly(
        &'c self,
        text: &str,
        class: &str,
        values: &[BasicValueEnum<'c>],
        more: &[(BasicValueEnum<'c>, char)],
    ) -> Vec<BasicValueEnum<'c>> {
        let outputs = values.iter().map(|_| format!("={class}"));
        let tied = (0..values.len()).map(|i| i.to_string());
        let inputs = more.iter().map(|(_, class)| class.to_string());
        let constraints: Vec<String> = outputs.chain(tied).chain(inputs).chain(["~{memory}".into()]).collect();
        let types: Vec<BasicTypeEnum> = values.iter().map(|v| v.get_type()).collect();
        let args: Vec<BasicMetadataValueEnum> =
            values.iter().copied().chain(more.iter().map(|(v, _)| *v)).map(Into::into).collect();
        let params: Vec<_> =
            types.iter().copied().chain(more.iter().map(|(v, _)| v.get_type())).map(Into::into).collect();
        let ty = match types.as_slice() {
            [] => self.context.void_type().fn_type(&params, false),
            [one] => {
                use inkwell::types::BasicType;
                one.fn_type(&params, false)
            }
            several => self.context.struct_type(several, false).fn_type(&params, false),
        };
        let asm = self.context.create_inline_asm(ty, text.to_string(), constraints.join(","), true, false, None, false);
        let call = match self.llvm.build_indirect_call(ty, asm, &args, "") {
            Ok(call) => call,
            Err(e) => {
                self.fail(&format!("inline assembly: {e}"));
                return values.to_vec();
            }
        };
        call.add_attribute(AttributeLoc::Function, flag(self.context, "convergent"));
        match (call.try_as_basic_value().basic(), values.len()) {
            (_, 0) => Vec::new(),
            (Some(one), 1) => vec![one],
            (Some(BasicValueEnum::StructValue(all)), n) => (0..n as u32)
                .map(|i| self.take(self.llvm.build_extract_value(all, i, ""), values[i as usize]))
                .collect(),
            _ => {
                self.fail("inline assembly gave no values");
                values.to_vec()
            }
        }
    }
}
