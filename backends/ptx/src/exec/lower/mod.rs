//! Syntax tree to executable program.

pub(crate) mod availability;
mod body;
mod carry;
mod class;
mod compile;
mod control;
mod convert;
mod copy;
mod data;
mod device;
mod float;
mod half;
mod integer;
pub(crate) mod lanes;
mod links;
pub(crate) mod memory;
mod moves;
mod multimem;
mod operand;
mod order;
mod stack;
mod sync;
mod types;
mod vectors;
mod video;
mod warp;

use std::collections::BTreeMap;
use std::fmt::Write as _;

use rustc_hash::FxHashMap;

use super::Target;
use super::counters::Class;
use super::error::CompileError;
use super::program::{
    Constant, Custom, DataSymbol, FunctionInfo, Instr, Op, PredSlot, PredSrc, Preset, Slot, SourceInfo, Src,
};
use crate::ast::{Function, Instruction, Item, Module, Operand, Pos};

pub(crate) use class::class_of;
pub(crate) use copy::LaneCopy;
pub use types::Ty;

/// Registers of a kernel and its functions beyond which a program is refused.
const MAX_REGISTERS: u32 = 1 << 17;
/// Instructions beyond which a program is refused.
const MAX_INSTRUCTIONS: usize = 1 << 22;

/// What is being lowered. Its text is made when a message or the list of instructions asks for it.
enum Current<'m> {
    Instruction(&'m Instruction),
    Text(Pos, String),
}

impl Current<'_> {
    fn told(&self) -> (Pos, String) {
        match self {
            Current::Instruction(i) => {
                // Room for nearly all, so that it need not grow.
                let mut text = String::with_capacity(80);
                let _ = write!(text, "{i}");
                (i.pos, text)
            }
            Current::Text(pos, text) => (*pos, text.clone()),
        }
    }
}

/// What a name declares.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Symbol {
    /// `.shared` by number; it gets its place when the kernel first names it.
    SharedVariable(usize),
    /// `.extern .shared`: dynamic shared memory.
    DynamicShared,
    /// `.local` of the function: frame offset.
    Local(u32),
    /// `.param` of a call or a device function: frame offset and bytes.
    Frame(u32, u32),
    /// `.param` of the kernel: offset in the parameter bank.
    Param(u32),
    /// `.global`: index into the program's globals.
    Global(usize),
    /// `.const`: offset in the constant bank.
    Const(u32),
    /// `.func`: number.
    Function(u32),
}

#[derive(Clone, Copy, Debug)]
enum Register {
    Value(Slot, u32),
    Pred(PredSlot),
}

#[derive(Clone, Debug)]
struct Range {
    count: u64,
    ty: String,
}

#[derive(Default)]
struct Scope {
    registers: FxHashMap<String, Register>,
    declared: FxHashMap<String, String>,
    ranges: FxHashMap<String, Range>,
    vectors: FxHashMap<String, u32>,
    symbols: FxHashMap<String, Symbol>,
    labels: FxHashMap<String, usize>,
    targets: FxHashMap<String, Vec<String>>,
}

/// Lowers one kernel and the functions it calls. Also the interface for the lowering of tensor instructions.
pub struct Lower<'m> {
    module: &'m Module,
    target: Target,
    lacks: availability::Lacks,
    code: Vec<Instr>,
    source: Vec<SourceInfo>,
    constants: Vec<Constant>,
    constant_index: FxHashMap<Constant, Src>,
    presets: FxHashMap<Preset, Slot>,
    n_slots: u32,
    slot_bits: Vec<u8>,
    n_preds: u32,
    scopes: Vec<Scope>,
    /// Code position of each label, when known.
    label_pcs: Vec<Option<u32>>,
    /// Branches to patch: code position, index into its targets, label.
    fixups: Vec<(usize, usize, usize)>,
    functions: Vec<FunctionInfo>,
    /// Functions in order of numbers; the kernel is 0.
    bodies: Vec<&'m Function>,
    function_index: FxHashMap<String, u32>,
    calls: Vec<(u32, Option<u32>)>,
    address_taken: Vec<u32>,
    current_function: u32,
    /// Return values of the current function that are registers: name, frame offset, bytes.
    register_returns: Vec<(String, u32, u32)>,
    frame_bytes: u32,
    globals: Vec<DataSymbol>,
    /// Bytes of `.global` and `.const` variables.
    data_bytes: u64,
    const_bank: DataSymbol,
    n_module_globals: usize,
    consts: Vec<(String, u32, u32)>,
    static_shared: u32,
    /// Bytes, alignment and place of each `.shared` variable. Those of other kernels of the module take no room.
    shared_variables: Vec<(u32, u32, Option<u32>)>,
    dynamic_align: u32,
    uses_cluster: bool,
    uses_heap: bool,
    has_vectors: bool,
    uses_stack: bool,
    waits_for_tmem_loads: bool,
    fences_tmem: bool,
    current: Current<'m>,
    /// The last `.loc`: the number of a file, and a line.
    loc: Option<(u32, u32)>,
    class: Class,
    guard: PredSrc,
}

impl<'m> Lower<'m> {
    /// The target of the module.
    pub fn target(&self) -> Target {
        self.target
    }

    /// An instruction or form that is not executed.
    pub fn unsupported(&self, message: impl Into<String>) -> CompileError {
        let (pos, text) = self.current.told();
        CompileError::Unsupported { pos, text, message: message.into() }
    }

    /// A program that contradicts PTX.
    pub fn invalid(&self, message: impl Into<String>) -> CompileError {
        let (pos, text) = self.current.told();
        CompileError::Invalid { pos, text, message: message.into() }
    }

    /// An instruction that the module's target or version does not have.
    fn unavailable(&self, message: String) -> CompileError {
        let (pos, text) = self.current.told();
        CompileError::Unavailable { pos, text, message }
    }

    /// A fresh slot for intermediate values.
    pub fn scratch(&mut self) -> Slot {
        self.n_slots += 1;
        self.slot_bits.push(64);
        Slot(self.n_slots - 1)
    }

    /// Two adjacent fresh slots, for 128 bits.
    pub fn scratch_pair(&mut self) -> Slot {
        self.n_slots += 2;
        self.slot_bits.extend([64, 64]);
        Slot(self.n_slots - 2)
    }

    /// A fresh predicate.
    pub fn scratch_pred(&mut self) -> PredSlot {
        self.n_preds += 1;
        PredSlot(self.n_preds - 1)
    }

    /// A constant source.
    pub fn bits(&mut self, bits: u64) -> Src {
        self.constant(Constant::Bits(bits))
    }

    pub(crate) fn constant(&mut self, c: Constant) -> Src {
        let next = Src::constant(self.constants.len());
        let constants = &mut self.constants;
        *self.constant_index.entry(c.clone()).or_insert_with(|| {
            constants.push(c);
            next
        })
    }

    pub(crate) fn preset(&mut self, p: Preset) -> Src {
        if let Some(s) = self.presets.get(&p) {
            return (*s).into();
        }
        let s = self.scratch();
        self.presets.insert(p, s);
        s.into()
    }

    /// Declares that the kernel has a `tcgen05.wait::ld`.
    pub(crate) fn waits_for_tmem_loads(&mut self) {
        self.waits_for_tmem_loads = true;
    }

    /// Notes that the kernel has a fence of tensor memory.
    pub(crate) fn fences_tmem(&mut self) {
        self.fences_tmem = true;
    }

    /// Declares that the kernel uses cluster features.
    pub fn uses_cluster(&mut self) {
        self.uses_cluster = true;
    }

    /// Sets the class under which the instruction is counted.
    pub fn class(&mut self, class: Class) {
        self.class = class;
    }

    pub(crate) fn emit(&mut self, op: Op) {
        let guard = self.guard;
        self.emit_guarded(op, guard);
    }

    pub(crate) fn emit_guarded(&mut self, op: Op, guard: PredSrc) {
        let (pos, text) = self.current.told();
        self.source.push(SourceInfo { line: pos.line, text, place: self.loc, class: self.class });
        self.code.push(Instr { op, guard });
    }

    /// Emits an operation that is a closure.
    pub fn emit_custom(&mut self, f: Custom) {
        self.emit(Op::Custom(f));
    }

    fn instruction(&mut self, i: &'m Instruction) -> Result<(), CompileError> {
        self.current = Current::Instruction(i);
        if self.code.len() > MAX_INSTRUCTIONS || self.n_slots > MAX_REGISTERS {
            return Err(
                self.unsupported(format!("more than {MAX_INSTRUCTIONS} instructions or {MAX_REGISTERS} registers"))
            );
        }
        self.guard = match &i.guard {
            Some(g) => {
                let p = self.pred_named(&g.name)?;
                PredSrc { slot: p, negated: g.negated }
            }
            None => PredSrc::TRUE,
        };
        self.class = class_of(i);
        if let Some(lacks) = self.lacks.of(i) {
            return Err(self.unavailable(lacks));
        }
        match i.opcode.as_str() {
            "bra" | "brx" | "call" | "ret" | "exit" | "trap" | "brkpt" => self.control(i),
            _ if self.has_vectors => self.with_vectors(&order::canonical(i)),
            _ => self.dispatch(&order::canonical(i)),
        }
    }

    /// One place that knows which file lowers which opcode.
    fn dispatch(&mut self, i: &Instruction) -> Result<(), CompileError> {
        let ty = i.modifiers.last().map_or("", String::as_str);
        match i.opcode.as_str() {
            "mov" | "selp" | "slct" | "cvta" | "isspacep" | "set" | "setp" | "testp" | "mapa" | "getctarank"
            | "pmevent" | "nanosleep" => self.moves(i),
            "alloca" | "stacksave" | "stackrestore" => self.stack(i),
            "ld" | "ldu" | "st" | "atom" | "red" | "prefetch" | "prefetchu" | "applypriority" | "discard"
            | "createpolicy" => self.memory(i),
            "cvt" => self.convert(i),
            "multimem" => self.multimem(i),
            "bar"
            | "barrier"
            | "membar"
            | "fence"
            | "mbarrier"
            | "griddepcontrol"
            | "setmaxnreg"
            | "clusterlaunchcontrol" => self.sync(i),
            "cp" if !i.has("tensor") => self.copy(i),
            "shfl" | "vote" | "match" | "redux" | "activemask" | "elect" => self.warp(i),
            "add" | "sub" | "mad" if i.has("cc") => self.carry(i),
            "addc" | "subc" | "madc" => self.carry(i),
            "add" | "sub" | "mul" | "mad" | "fma" | "min" | "max" | "abs" | "neg" | "div" | "rem" | "copysign"
            | "rcp" | "sqrt" | "rsqrt" | "sin" | "cos" | "lg2" | "ex2" | "tanh"
                if types::is_float(ty) || i.modifiers.iter().any(|m| matches!(m.as_str(), "f32" | "f32x2")) =>
            {
                self.float(i)
            }
            "and" | "or" | "xor" | "not" | "cnot" | "shl" | "shr" | "add" | "sub" | "mul" | "mad" | "mul24"
            | "mad24" | "sad" | "div" | "rem" | "abs" | "neg" | "min" | "max" | "popc" | "clz" | "brev" | "bfe"
            | "bfi" | "bfind" | "fns" | "bmsk" | "szext" | "lop3" | "shf" | "prmt" | "dp4a" | "dp2a" => self.integer(i),
            opcode if video::is_video(opcode) => self.video(i),
            _ => match super::tensor::lower(self, i)? {
                Some(custom) => {
                    self.emit(Op::Custom(custom));
                    Ok(())
                }
                None => Err(self.unsupported(format!("instruction `{}`", i.full_name()))),
            },
        }
    }

    /// The files that `.file` numbers.
    fn files(&self) -> BTreeMap<u32, String> {
        let file = |i: &Item| match i {
            Item::Directive(d) if d.name == "file" => {
                let name = d.args.get(1)?.trim_matches('"').to_string();
                Some((d.args.first()?.parse().ok()?, name))
            }
            Item::Directive(_) | Item::Function(_) | Item::Variable(_) => None,
        };
        self.module.items.iter().filter_map(file).collect()
    }
}

/// The operands of an instruction by number, or an error that says how many there should be.
pub(crate) fn operands<'i, const N: usize>(
    l: &Lower<'_>,
    i: &'i Instruction,
) -> Result<&'i [Operand; N], CompileError> {
    i.operands
        .as_slice()
        .try_into()
        .map_err(|_| l.invalid(format!("`{}` has {} operands, {N} expected", i.full_name(), i.operands.len())))
}
