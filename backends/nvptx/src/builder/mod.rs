//! A thin typed layer over inkwell in which kernels are written.
//!
//! [`Builder`] is one kernel being built. Its values ([`I32`], [`F32`], [`Global`], …) carry their element type and address
//! space and have operators; control flow takes closures; variables become registers. Nothing here returns an error
//! or panics: what LLVM's builder refuses is remembered, and [`Builder::finish`] tells.

mod barrier;
mod claim;
mod flow;
mod intrinsic;
mod memory;
mod origin;
mod pairs;
mod scaled;
mod system;
mod tcgen05;
mod tensor;
mod tma;
mod value;
mod warp;
mod wgmma;

pub use barrier::BARRIER_BYTES;
pub use claim::CLAIM_BYTES;
pub use flow::Var;
pub use intrinsic::Intrinsic;
pub use moec_ir::engine::MmaType;
pub use moec_ir::engine::blackwell::BlockScaled;
pub use moec_ir::engine::geforce::CodedMma;
pub use origin::annotate;
pub use scaled::ScaleWord;
pub use tcgen05::{CtaGroup, LOAD_COLUMNS};
pub use tma::MapId;
pub use value::{Bool, F32, Global, I32, I64, Shared};
pub use wgmma::{WgmmaRows, WgmmaType};

use crate::kernels::Registers;
use inkwell::AddressSpace;
use inkwell::attributes::{Attribute, AttributeLoc};
use inkwell::builder::{Builder as LlvmBuilder, BuilderError};
use inkwell::context::Context;
use inkwell::module::Module;
use inkwell::types::AnyType;
use inkwell::values::{BasicMetadataValueEnum, BasicValueEnum, CallSiteValue, FunctionValue, PointerValue};
use intrinsic::Declarations;
use moec_ir::tile::GpuLaunch;
use origin::Origins;
use std::cell::{Cell, RefCell};

/// Address space of global memory.
const GLOBAL: u16 = 1;
/// Address space of a block's shared memory.
const SHARED: u16 = 3;
/// Address space of the shared memory of a cluster's blocks.
const CLUSTER: u16 = 7;
/// LLVM's calling convention `ptx_kernel`.
const PTX_KERNEL: u32 = 71;

/// A kernel being built.
pub struct Builder<'c> {
    context: &'c Context,
    llvm: LlvmBuilder<'c>,
    /// Stands at the end of the entry block, which holds only variables.
    entry: LlvmBuilder<'c>,
    function: FunctionValue<'c>,
    intrinsics: Declarations<'c>,
    /// Where the parts of the kernel are told apart.
    origins: Option<Origins<'c>>,
    dynamic_shared: PointerValue<'c>,
    /// Parameters before the tensor maps.
    n_pointers: usize,
    fault: RefCell<Option<String>>,
    ptx_version: Cell<u32>,
}

/// A parameter of a kernel: a pointer to global memory.
#[derive(Clone, Copy, Debug)]
pub struct Param {
    /// Whether the kernel only reads through it, and no other parameter reaches the same memory to write it.
    pub read_only: bool,
}

impl<'c> Builder<'c> {
    /// Starts the kernel `name` for blocks and clusters of exactly the launch's size, with pointers to global memory and
    /// then the launch's tensor maps as parameters.
    pub fn new(
        context: &'c Context,
        module: &Module<'c>,
        name: &str,
        params: &[Param],
        launch: &GpuLaunch,
        registers: Registers,
    ) -> Builder<'c> {
        let pointer = context.ptr_type(AddressSpace::from(GLOBAL));
        let generic = context.ptr_type(AddressSpace::default());
        let maps = launch.tensor_maps.len();
        let types: Vec<_> =
            (0..params.len() + maps).map(|i| if i < params.len() { pointer } else { generic }.into()).collect();
        let function = module.add_function(name, context.void_type().fn_type(&types, false), None);
        function.set_call_conventions(PTX_KERNEL);
        let reqntid = context.create_string_attribute("nvvm.reqntid", &launch.block_threads.to_string());
        function.add_attribute(AttributeLoc::Function, reqntid);
        if launch.cluster > 1 {
            let cluster = context.create_string_attribute("nvvm.cluster_dim", &launch.cluster.to_string());
            function.add_attribute(AttributeLoc::Function, cluster);
        }
        if registers == Registers::Plenty {
            let one_block = context.create_string_attribute("nvvm.minctasm", "1");
            function.add_attribute(AttributeLoc::Function, one_block);
        }
        function.add_attribute(AttributeLoc::Function, flag(context, "nounwind"));
        // Together they let LLVM use the read-only path (`ld.global.nc`).
        for (i, _) in params.iter().enumerate().filter(|(_, p)| p.read_only) {
            for name in ["noalias", "readonly"] {
                function.add_attribute(AttributeLoc::Param(i as u32), flag(context, name));
            }
        }
        // The hardware reads a tensor map at its address: as a grid constant it is never copied to local memory.
        let map = context.i8_type().array_type(128).as_any_type_enum();
        for i in params.len()..params.len() + maps {
            let by_value = context.create_type_attribute(Attribute::get_named_enum_kind_id("byval"), map);
            let align = context.create_enum_attribute(Attribute::get_named_enum_kind_id("align"), 64);
            let constant = context.create_string_attribute("nvvm.grid_constant", "");
            for attribute in [by_value, align, constant] {
                function.add_attribute(AttributeLoc::Param(i as u32), attribute);
            }
        }
        let bytes = context.i8_type().array_type(0);
        let shared = module.add_global(bytes, Some(AddressSpace::from(SHARED)), "shared_memory");
        // Swizzled tiles repeat every 1024 bytes, counted from address 0.
        shared.set_alignment(if maps > 0 { 1024 } else { 128 });
        let (llvm, entry) = (context.create_builder(), context.create_builder());
        let [variables, start] = ["entry", "start"].map(|n| context.append_basic_block(function, n));
        entry.position_at_end(variables);
        llvm.position_at_end(start);
        let intrinsics = Declarations::new(context, module);
        let dynamic_shared = shared.as_pointer_value();
        let n_pointers = params.len();
        let (fault, ptx_version) = (RefCell::new(None), Cell::new(0));
        let origins = None;
        Builder { context, llvm, entry, function, intrinsics, origins, dynamic_shared, n_pointers, fault, ptx_version }
    }

    /// The same kernel, with its parts told apart from here on (see [`Builder::part`]).
    pub fn with_parts(self, module: &Module<'c>, name: &str) -> Builder<'c> {
        let origins = Origins::new(self.context, module, self.function, name);
        origins.locate(self.context, &self.llvm, 1);
        Builder { origins: Some(origins), ..self }
    }

    /// Ends the kernel; the names of its parts.
    ///
    /// # Errors
    /// What LLVM's builder refused first.
    pub fn finish(&self) -> Result<Vec<String>, String> {
        self.check(self.llvm.build_return(None));
        if let Some(start) = self.function.get_basic_blocks().get(1) {
            self.check(self.entry.build_unconditional_branch(*start));
        }
        let names = self.origins.as_ref().map_or_else(Vec::new, Origins::finish);
        self.fault.borrow_mut().take().map_or(Ok(names), Err)
    }

    /// The PTX version, times ten, that its instructions need where that is higher than the target's.
    pub fn ptx_version(&self) -> u32 {
        self.ptx_version.get()
    }

    /// The n-th parameter.
    pub fn param(&'c self, n: usize) -> Global<'c> {
        let pointer = match self.function.get_nth_param(n as u32) {
            Some(BasicValueEnum::PointerValue(p)) => p,
            _ => {
                self.fail("a kernel asked for a parameter that it does not have");
                self.context.ptr_type(AddressSpace::from(GLOBAL)).const_null()
            }
        };
        Global { builder: self, v: pointer }
    }

    /// The start of the block's dynamic shared memory.
    pub fn shared(&'c self) -> Shared<'c> {
        Shared { builder: self, v: self.dynamic_shared }
    }

    pub fn i32(&'c self, x: u32) -> I32<'c> {
        I32 { builder: self, v: self.context.i32_type().const_int(x.into(), false) }
    }

    pub fn i64(&'c self, x: u64) -> I64<'c> {
        I64 { builder: self, v: self.context.i64_type().const_int(x, false) }
    }

    pub fn f32(&'c self, x: f32) -> F32<'c> {
        // By its bits: a NaN keeps its payload, and nothing goes through decimal text.
        self.i32(x.to_bits()).as_f32()
    }

    pub fn bool(&'c self, x: bool) -> Bool<'c> {
        Bool { builder: self, v: self.context.bool_type().const_int(x.into(), false) }
    }

    /// The number of the thread in its block.
    pub fn thread(&'c self) -> I32<'c> {
        self.call_i32(Intrinsic::TidX, &[])
    }

    /// The number of the thread in its warp.
    pub fn lane(&'c self) -> I32<'c> {
        self.thread() & 31
    }

    /// The number of the warp in its block, the same register for all its lanes.
    pub fn warp(&'c self) -> I32<'c> {
        self.read_lane(self.thread() >> 5, 0)
    }

    /// The number of the block along x.
    pub fn block_x(&'c self) -> I32<'c> {
        self.call_i32(Intrinsic::CtaidX, &[])
    }

    /// Blocks along x.
    pub fn blocks_x(&'c self) -> I32<'c> {
        self.call_i32(Intrinsic::NCtaidX, &[])
    }

    /// The number of the block along z.
    pub fn block_z(&'c self) -> I32<'c> {
        self.call_i32(Intrinsic::CtaidZ, &[])
    }

    /// The mask of the lanes before this one.
    pub fn lanes_before(&'c self) -> I32<'c> {
        self.call_i32(Intrinsic::LaneMaskLt, &[])
    }

    fn call(&'c self, intrinsic: Intrinsic, args: &[BasicMetadataValueEnum<'c>]) -> Option<CallSiteValue<'c>> {
        self.ptx_version.set(self.ptx_version.get().max(intrinsic.ptx_version()));
        let call = self.llvm.build_call(self.intrinsics.get(intrinsic), args, "");
        match call {
            Ok(call) => {
                if intrinsic.needs_convergent() {
                    call.add_attribute(AttributeLoc::Function, flag(self.context, "convergent"));
                }
                Some(call)
            }
            Err(e) => {
                self.fail(&format!("a call of {intrinsic:?}: {e}"));
                None
            }
        }
    }

    fn call_i32(&'c self, intrinsic: Intrinsic, args: &[BasicMetadataValueEnum<'c>]) -> I32<'c> {
        match self.call(intrinsic, args).and_then(|c| c.try_as_basic_value().basic()) {
            Some(BasicValueEnum::IntValue(v)) => I32 { builder: self, v },
            _ => {
                self.fail(&format!("{intrinsic:?} gave no integer"));
                self.i32(0)
            }
        }
    }

    fn call_f32(&'c self, intrinsic: Intrinsic, args: &[BasicMetadataValueEnum<'c>]) -> F32<'c> {
        match self.call(intrinsic, args).and_then(|c| c.try_as_basic_value().basic()) {
            Some(BasicValueEnum::FloatValue(v)) => F32 { builder: self, v },
            _ => {
                self.fail(&format!("{intrinsic:?} gave no float"));
                self.f32(0.0)
            }
        }
    }

    /// The value, or `otherwise` after remembering the fault.
    fn take<T>(&self, result: Result<T, BuilderError>, otherwise: impl Into<T>) -> T {
        match result {
            Ok(value) => value,
            Err(e) => {
                self.fail(&e.to_string());
                otherwise.into()
            }
        }
    }

    fn check<T>(&self, result: Result<T, BuilderError>) {
        if let Err(e) = result {
            self.fail(&e.to_string());
        }
    }

    /// Remembers that the kernel cannot be built as asked: [`Builder::finish`] tells.
    pub fn fail(&self, what: &str) {
        self.fault.borrow_mut().get_or_insert_with(|| what.to_string());
    }
}

fn flag(context: &Context, name: &str) -> Attribute {
    context.create_enum_attribute(Attribute::get_named_enum_kind_id(name), 0)
}
