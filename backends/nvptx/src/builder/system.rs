//! What kernels of several GPUs do with each other's memory: addresses of peers, flags of system scope, waits that end.

use super::memory::Place;
use super::value::{Bool, Global, I32, I64, Value};
use super::{Builder, GLOBAL, Intrinsic};
use inkwell::values::{BasicValue, BasicValueEnum, InstructionValue};
use inkwell::{AddressSpace, AtomicOrdering, IntPredicate};

impl<'c> Global<'c> {
    /// The address of global memory that lies here.
    pub fn address(self) -> Global<'c> {
        self.builder.load_address(self)
    }
}

impl<'c> Builder<'c> {
    /// Reads an address of global memory.
    pub fn load_address(&'c self, place: impl Place<'c>) -> Global<'c> {
        let ty = self.context.ptr_type(AddressSpace::from(GLOBAL));
        Global::from_raw(self, self.load_raw(place, ty.into(), 8))
    }

    /// Writes an address of global memory.
    pub fn store_address(&'c self, place: impl Place<'c>, address: Global<'c>) {
        self.store_raw(place, address.v.into(), 8);
    }

    /// Reads a flag that another GPU may write at the same time. What it covers may be read after [`Builder::fence_system`].
    pub fn load_flag(&'c self, flag: Global<'c>) -> I32<'c> {
        let value = self.load_raw(flag, self.context.i32_type().into(), 4);
        self.order(value.as_instruction_value(), AtomicOrdering::Monotonic);
        I32::from_raw(self, value)
    }

    /// Raises a flag: whoever reads it, on any GPU, then sees all that this thread wrote before or knows to be written.
    pub fn release_flag(&'c self, flag: Global<'c>, value: I32<'c>) {
        match self.llvm.build_store(flag.v, value.v) {
            Ok(store) => {
                self.check_instruction(store.set_alignment(4));
                self.order(Some(store), AtomicOrdering::Release);
            }
            Err(e) => self.fail(&e.to_string()),
        }
    }

    /// Reads a flag of two words, the first in the low half of 8 bytes.
    pub fn load_flag_pair(&'c self, flag: Global<'c>) -> [I32<'c>; 2] {
        let value = self.load_raw(flag, self.context.i64_type().into(), 8);
        self.order(value.as_instruction_value(), AtomicOrdering::Monotonic);
        let pair = I64::from_raw(self, value);
        [pair.low(), pair.high()]
    }

    /// As [`Builder::release_flag`], two words at once.
    pub fn release_flag_pair(&'c self, flag: Global<'c>, words: [I32<'c>; 2]) {
        match self.llvm.build_store(flag.v, self.pair(words).v) {
            Ok(store) => {
                self.check_instruction(store.set_alignment(8));
                self.order(Some(store), AtomicOrdering::Release);
            }
            Err(e) => self.fail(&e.to_string()),
        }
    }

    /// The same on all GPUs of a multicast group, by one store to an address of the group. sm_90 and later.
    pub fn release_flag_pair_to_all(&'c self, flag: Global<'c>, words: [I32<'c>; 2]) {
        self.ptx_version.set(self.ptx_version.get().max(81));
        let ty = self.context.void_type().fn_type(&[flag.v.get_type().into(), self.context.i64_type().into()], false);
        let text = "multimem.st.release.sys.global.b64 [$0], $1;".to_string();
        let asm = self.context.create_inline_asm(ty, text, "l,l,~{memory}".to_string(), true, false, None, false);
        let args = [flag.v.into(), self.pair(words).v.into()];
        self.check(self.llvm.build_indirect_call(ty, asm, &args, ""));
    }

    /// Whether nothing lies at an address.
    pub fn is_null(&'c self, address: Global<'c>) -> Bool<'c> {
        let is_null = self.llvm.build_is_null(address.v, "");
        Bool::from_raw(self, self.take(is_null, self.context.bool_type().const_zero()).as_basic_value_enum())
    }

    fn pair(&'c self, [low, high]: [I32<'c>; 2]) -> I64<'c> {
        let high = self.llvm.build_left_shift(high.wide().v, self.i64(32).v, "");
        let high = self.take(high, self.i64(0).v);
        I64 { builder: self, v: self.take(self.llvm.build_or(high, low.wide().v, ""), high) }
    }

    /// Orders what this thread read and wrote before against what it does after, for all GPUs.
    pub fn fence_system(&'c self) {
        self.check(self.llvm.build_fence(AtomicOrdering::AcquireRelease, false, ""));
    }

    /// A clock that all threads of a GPU share, in ns.
    pub fn global_timer(&'c self) -> I64<'c> {
        let now = self.call(Intrinsic::GlobalTimer, &[]).and_then(|c| c.try_as_basic_value().basic());
        match now {
            Some(BasicValueEnum::IntValue(v)) => I64 { builder: self, v },
            _ => {
                self.fail("the timer gave no integer");
                self.i64(0)
            }
        }
    }

    /// Whether `now` is more than `units` units of 1024 ns after `start`.
    pub fn is_later(&'c self, now: I64<'c>, start: I64<'c>, units: I32<'c>) -> Bool<'c> {
        let (passed, most) = (now - start, units.wide() * 1024);
        let later = self.llvm.build_int_compare(IntPredicate::UGT, passed.v, most.v, "");
        Bool::from_raw(self, self.take(later, self.context.bool_type().const_zero()).as_basic_value_enum())
    }

    /// Stops the grid with an error.
    pub fn trap(&'c self) {
        self.call(Intrinsic::Trap, &[]);
    }

    fn order(&self, of: Option<InstructionValue<'c>>, ordering: AtomicOrdering) {
        match of {
            Some(instruction) => self.check_instruction(instruction.set_atomic_ordering(ordering)),
            None => self.fail("an access that is no instruction cannot be ordered"),
        }
    }

    fn check_instruction<T, E: std::fmt::Display>(&self, result: Result<T, E>) {
        if let Err(e) = result {
            self.fail(&e.to_string());
        }
    }
}
