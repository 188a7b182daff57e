//! A kernel lowered for execution: decoded operations over resolved register slots.

use std::collections::BTreeMap;

use super::context::Cx;
use super::error::ExecError;
use super::unwritten::{Comparison, Spread};

/// Lanes of a warp.
pub const WARP: usize = 32;
/// All lanes.
pub const FULL: u32 = u32::MAX;

/// One register of a whole warp: a zero-extended value for each lane.
pub type Lanes = [u64; WARP];

/// A register slot of a warp. A 128-bit register takes two slots, the low half first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(pub u32);

/// A source of lanes: a register slot, or a constant of the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Src(pub u32);

impl Src {
    pub(crate) const CONSTANT: u32 = 1 << 31;

    pub(crate) fn constant(index: usize) -> Src {
        Src(Src::CONSTANT | index as u32)
    }

    /// The slot, if the source is a register.
    pub fn slot(self) -> Option<Slot> {
        (self.0 & Src::CONSTANT == 0).then_some(Slot(self.0))
    }
}

impl From<Slot> for Src {
    fn from(s: Slot) -> Src {
        Src(s.0)
    }
}

/// A predicate register of a warp: one bit for each lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PredSlot(pub u32);

/// A predicate operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PredSrc {
    /// The register; slot 0 of every warp is constantly true.
    pub slot: PredSlot,
    /// `!p`
    pub negated: bool,
}

impl PredSrc {
    /// The predicate that is always true.
    pub const TRUE: PredSrc = PredSrc { slot: PredSlot(0), negated: false };
    /// The predicate that is always false.
    pub const FALSE: PredSrc = PredSrc { slot: PredSlot(0), negated: true };
}

/// A bracketed operand: a base, and bytes added to it.
#[derive(Clone, Copy, Debug)]
pub struct AddressSrc {
    /// Base address, zero-extended if it is a 32-bit register.
    pub base: Src,
    /// Byte offset, added with wrap-around.
    pub offset: i64,
    /// Whether addresses have 32 bits: those of shared, local, constant and parameter memory, and 32-bit registers.
    pub narrow: bool,
}

impl AddressSrc {
    /// The effective address. Compilers rely on 32-bit addresses wrapping: `[%r1+-64]` with %r1 as a sum that overflowed.
    #[inline]
    pub fn at(self, base: u64) -> u64 {
        let sum = base.wrapping_add_signed(self.offset);
        // What is no 32-bit number, zero- or sign-extended, is left as it is and found to be out of bounds.
        let fits = base >> 32 == 0 || base as i64 >= i64::from(i32::MIN) && (base as i64) < 0;
        if self.narrow && fits { sum & 0xffff_ffff } else { sum }
    }
}

/// What an operation asks of its warp.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Flow {
    /// Go on with the next instruction.
    Next,
    /// Not now: the operation is executed again, from the start, when something in the cluster has changed
    /// (a barrier or mbarrier phase completed, an asynchronous operation completed, lanes arrived).
    Block(Wait),
}

/// What a blocked part of a warp waits for; shown in deadlock reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// The other lanes of the warp that the instruction names, as a mask.
    Lanes(u32),
    /// A CTA barrier.
    Barrier {
        /// 0 to 15.
        id: u32,
        /// Threads that have arrived.
        arrived: u32,
        /// Threads that must arrive.
        expected: u32,
    },
    /// The cluster barrier.
    ClusterBarrier,
    /// A phase of an mbarrier at this shared address.
    Mbarrier(u32),
    /// Asynchronous operations of this kind.
    Async(&'static str),
    /// Something else, in words.
    Other(&'static str),
}

/// An operation written as a closure over decoded operands. The second argument is the mask of executing lanes
/// (guard applied). An operation that blocks must leave no effects behind, save through [`Cx::token`].
pub type Custom = Box<dyn Fn(&mut Cx<'_>, u32) -> Result<Flow, ExecError> + Send + Sync>;

pub(crate) type Map1 = fn(&Lanes, &mut Lanes);
pub(crate) type Map2 = fn(&Lanes, &Lanes, &mut Lanes);
pub(crate) type Map3 = fn(&Lanes, &Lanes, &Lanes, &mut Lanes);
pub(crate) type Compare = fn(&Lanes, &Lanes) -> u32;
pub(crate) type Logic = fn(u32, u32) -> u32;

/// State space of a memory access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemorySpace {
    /// Decided by each address.
    Generic,
    /// `.global`
    Global,
    /// `.shared` / `.shared::cta`
    Shared,
    /// `.shared::cluster`
    SharedCluster,
    /// `.local`
    Local,
    /// `.const`
    Const,
    /// `.param` of the kernel
    Param,
    /// `.param` of a device function or a call: the frame of the thread
    Frame,
}

pub(crate) enum Op {
    Map1 {
        f: Map1,
        d: Slot,
        a: Src,
        spread: Spread,
    },
    Map2 {
        f: Map2,
        d: Slot,
        a: Src,
        b: Src,
        spread: Spread,
    },
    Map3 {
        f: Map3,
        d: Slot,
        a: Src,
        b: Src,
        c: Src,
        spread: Spread,
    },
    /// `d` (and its complement `not_d`) = combine(compare(a, b), p).
    Setp {
        f: Compare,
        d: PredSlot,
        not_d: Option<PredSlot>,
        a: Src,
        b: Src,
        combine: Option<(Logic, PredSrc)>,
        kind: Comparison,
    },
    Logic {
        f: Logic,
        d: PredSlot,
        a: PredSrc,
        b: PredSrc,
    },
    Selp {
        d: Slot,
        a: Src,
        b: Src,
        p: PredSrc,
    },
    /// `d[i] = (a >> shift[i]) & mask`.
    Unpack {
        d: Box<[(Slot, u32)]>,
        a: Src,
        mask: u64,
    },
    /// `d = a[0] | a[1] << shift …`.
    Pack {
        d: Slot,
        a: Box<[(Src, u32)]>,
    },
    Load(Box<super::access::LoadOp>),
    Store(Box<super::access::StoreOp>),
    Bra {
        target: u32,
        p: PredSrc,
    },
    Custom(Custom),
    Brx {
        index: Src,
        targets: Box<[u32]>,
    },
    Call(Box<CallOp>),
    Ret,
    Exit,
    Nop,
}

/// A call of a device function.
pub(crate) struct CallOp {
    pub target: CallTarget,
    /// Caller frame offset and bytes of each argument.
    pub args: Vec<(u32, u32)>,
    /// Caller frame offset and bytes of each returned value.
    pub returns: Vec<(u32, u32)>,
}

pub(crate) enum CallTarget {
    Direct(u32),
    Indirect(Src),
}

/// A function in the flattened code.
#[derive(Clone, Debug, Default)]
pub(crate) struct FunctionInfo {
    pub name: String,
    pub entry_pc: u32,
    /// Bytes of the frame of each thread: `.local` variables and `.param` variables.
    pub frame_bytes: u32,
    /// Frame offset and bytes of parameters and return values.
    pub params: Vec<(u32, u32)>,
    pub returns: Vec<(u32, u32)>,
    /// Registers that a recursive activation must save; empty for functions that never recurse.
    pub saved: Vec<Slot>,
    pub saved_preds: Vec<PredSlot>,
}

pub(crate) struct Instr {
    pub op: Op,
    /// Executing lanes are those of the part and of this predicate. Branches carry their predicate themselves.
    pub guard: PredSrc,
}

/// Where an instruction stands and what it says, for findings and profiles.
#[derive(Clone, Debug)]
pub struct SourceInfo {
    /// Line of the PTX text.
    pub line: u32,
    /// The instruction as printed.
    pub text: String,
    /// What `.loc` says of it: the number of a file, and a line.
    pub place: Option<(u32, u32)>,
    pub(crate) class: super::counters::Class,
}

/// A line of the source that a kernel was compiled from.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Place {
    /// The file, as the compiler was given it.
    pub file: String,
    /// The line, from 1.
    pub line: u32,
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = self.file.rsplit(['/', '\\']).next().unwrap_or(&self.file);
        write!(f, "{name}:{}", self.line)
    }
}

/// A constant lane value that is known when a kernel is launched.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Constant {
    Bits(u64),
    /// Address of a `.global` variable plus an offset.
    Global(usize, i64),
    GridDim(u8),
    BlockDim(u8),
    ClusterDim(u8),
    ClusterSize,
    GridClusters(u8),
    WarpCount,
    DynamicSharedBytes,
    TotalSharedBytes,
}

/// A value that a slot gets when its warp starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Preset {
    Tid(u8),
    Ctaid(u8),
    ClusterCtaid(u8),
    ClusterCtarank,
    Clusterid(u8),
    LaneId,
    WarpId,
    LaneMask(u8),
    SmId,
    /// Shared-memory address of a variable in the CTA's own window: byte offset from the window start.
    SharedAddress(u32),
    /// Start of dynamic shared memory plus an offset.
    DynamicShared(i64),
}

/// A module-scope `.global` or `.const` variable with its initial bytes.
#[derive(Clone, Debug, Default)]
pub(crate) struct DataSymbol {
    /// Empty for the constant bank.
    pub name: String,
    pub align: u64,
    pub bytes: Vec<u8>,
    /// Byte offsets at which the address of another global symbol, a const symbol, or a function is stored.
    pub relocations: Vec<Relocation>,
}

#[derive(Clone, Debug)]
pub(crate) struct Relocation {
    pub at: usize,
    pub bytes: usize,
    pub target: RelocationTarget,
    pub addend: i64,
    /// Bits of the address that are left out below.
    pub shift: u32,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum RelocationTarget {
    Global(usize),
    Const(u64),
    Function(u32),
}

/// A kernel ready to run.
pub struct Program {
    pub(crate) entry: String,
    pub(crate) code: Vec<Instr>,
    pub(crate) source: Vec<SourceInfo>,
    /// The files of the module, as `.file` numbers them.
    pub(crate) files: BTreeMap<u32, String>,
    pub(crate) functions: Vec<FunctionInfo>,
    pub(crate) n_slots: u32,
    /// Width of the register in each slot; 64 for intermediate values.
    pub(crate) slot_bits: Vec<u8>,
    pub(crate) n_preds: u32,
    pub(crate) constants: Vec<Constant>,
    pub(crate) presets: Vec<(Slot, Preset)>,
    pub(crate) globals: Vec<DataSymbol>,
    /// How many of the globals are variables of the module, which all its kernels number alike.
    pub(crate) n_module_globals: usize,
    pub(crate) const_bank: DataSymbol,
    /// Name, offset in the bank and bytes of each `.const` variable of the module.
    pub(crate) consts: Vec<(String, u32, u32)>,
    /// Offset and bytes of each kernel parameter.
    pub(crate) params: Vec<(u32, u32)>,
    pub(crate) param_bytes: u32,
    pub(crate) static_shared_bytes: u32,
    /// Alignment that `.extern .shared` asks for.
    pub(crate) dynamic_align: u32,
    pub(crate) uses_cluster: bool,
    /// Whether the kernel calls `malloc` or `free`.
    pub(crate) uses_heap: bool,
    /// Whether the kernel has `alloca`.
    pub(crate) uses_stack: bool,
    /// Whether there is a `tcgen05.wait::ld`. A kernel without one relies on the registers: a use of a loaded value waits
    /// for the load, which the machine honours.
    pub(crate) waits_for_tmem_loads: bool,
    /// Whether it has `tcgen05.fence`.
    pub(crate) fences_tmem: bool,
    pub(crate) required_cluster: Option<[u32; 3]>,
    pub(crate) required_block: Option<[u32; 3]>,
    pub(crate) max_block: Option<u32>,
    pub(crate) target: super::Target,
}

impl Program {
    /// The kernel's name.
    pub fn entry(&self) -> &str {
        &self.entry
    }

    /// Offset and size in bytes of each kernel parameter.
    pub fn params(&self) -> &[(u32, u32)] {
        &self.params
    }

    /// Bytes of static shared memory.
    pub fn static_shared_bytes(&self) -> u32 {
        self.static_shared_bytes
    }

    /// Bytes of local memory of each thread that are known before it runs.
    pub fn local_bytes(&self) -> u32 {
        self.functions.first().map_or(0, |f| f.frame_bytes)
    }

    /// Bytes of the module's constant variables.
    pub fn const_bytes(&self) -> u32 {
        self.const_bank.bytes.len() as u32
    }

    /// 32-bit registers that the PTX names; NVIDIA's assembler needs fewer.
    pub fn virtual_registers(&self) -> u32 {
        self.slot_bits.iter().map(|bits| u32::from(*bits).div_ceil(32)).sum()
    }

    /// Most threads of a block that the kernel allows (`.maxntid`, `.reqntid`), if it says.
    pub fn max_threads(&self) -> Option<u32> {
        self.required_block.map(|b| b.iter().product()).or(self.max_block)
    }

    /// Line, text of each executable instruction, in code order.
    pub fn source(&self) -> &[SourceInfo] {
        &self.source
    }

    /// Where an instruction comes from, as the compiler said (`.loc`): file and line.
    pub fn place(&self, pc: u32) -> Option<Place> {
        let (file, line) = self.source.get(pc as usize)?.place?;
        Some(Place { file: self.files.get(&file)?.clone(), line })
    }

    /// The target the module was written for.
    pub fn target(&self) -> super::Target {
        self.target
    }

    /// `.reqnctapercluster`, if given.
    pub fn required_cluster(&self) -> Option<[u32; 3]> {
        self.required_cluster
    }

    /// Whether the kernel names its cluster or other CTAs of it.
    pub fn uses_cluster(&self) -> bool {
        self.uses_cluster
    }
}
