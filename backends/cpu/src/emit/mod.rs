//! What the bodies of kernels are written with: loops, addresses, elements, arithmetic on one or four lanes.
//!
//! Every value is pure SSA with block parameters; there are no Cranelift variables.

mod convert;
mod dot;
mod expr;
mod lanes;
mod math;

pub(crate) use dot::Dot;
pub(crate) use lanes::Lanes;

use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::{
    self, AbiParam, BlockArg, InstBuilder, MemFlagsData, SigRef, Signature, Type, Value, types,
};
use cranelift_codegen::isa::{CallConv, TargetIsa};
use cranelift_frontend::FunctionBuilder;
use moec_ir::abi::{CpuKernels, Strides};
use moec_ir::shape::Dim;
use moec_ir::tile::{Buffer, BufferId, Program};

/// Byte offsets in [`moec_ir::abi::CpuContext`].
const CONTEXT_BUFFERS: i32 = 0;
const CONTEXT_TOKENS: i32 = 8;
const CONTEXT_SCRATCH: i32 = 16;
const CONTEXT_MATH: i32 = 24;
const CONTEXT_KERNELS: i32 = 32;
const CONTEXT_STRIDES: i32 = 40;

/// An entry of [`moec_ir::abi::CpuKernels`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KernelFn {
    Arrange,
    Products,
}

/// Emits the body of one kernel.
pub(crate) struct Emit<'a> {
    pub b: FunctionBuilder<'a>,
    /// The token count, i64.
    pub n_tokens: Value,
    /// Scratch memory of this call.
    pub scratch: Value,
    /// First work item.
    pub begin: Value,
    /// One past the last work item.
    pub end: Value,
    math: Value,
    context: Value,
    program: &'a Program,
    operands: Vec<(BufferId, Value)>,
    unary: Option<SigRef>,
    binary: Option<SigRef>,
    call_conv: CallConv,
    fma: bool,
}

/// The signature of [`moec_ir::abi::CpuKernel`].
pub(crate) fn kernel_signature(isa: &dyn TargetIsa) -> Signature {
    let mut s = Signature::new(isa.default_call_conv());
    s.params.extend([AbiParam::new(types::I64); 3]);
    s
}

/// An access that never faults: addresses come from verified programs.
pub(crate) fn plain() -> MemFlagsData {
    MemFlagsData::new().with_notrap()
}

impl<'a> Emit<'a> {
    /// Starts a kernel over `operands`, the buffers of its parameters in order.
    pub fn start(
        mut b: FunctionBuilder<'a>,
        program: &'a Program,
        operands: &[(BufferId, bool)],
        isa: &dyn TargetIsa,
        fma: bool,
    ) -> Emit<'a> {
        let entry = b.create_block();
        b.append_block_params_for_function_params(entry);
        b.switch_to_block(entry);
        let [context, begin, end] = [0, 1, 2].map(|i| b.block_params(entry)[i]);
        let buffers = b.ins().load(types::I64, plain(), context, CONTEXT_BUFFERS);
        let n_tokens = b.ins().load(types::I64, plain(), context, CONTEXT_TOKENS);
        let scratch = b.ins().load(types::I64, plain(), context, CONTEXT_SCRATCH);
        let math = b.ins().load(types::I64, plain(), context, CONTEXT_MATH);
        let operands = operands
            .iter()
            .enumerate()
            .map(|(i, &(id, _))| (id, b.ins().load(types::I64, plain(), buffers, i as i32 * 8)))
            .collect();
        let call_conv = isa.default_call_conv();
        Emit {
            b,
            n_tokens,
            scratch,
            begin,
            end,
            math,
            context,
            program,
            operands,
            unary: None,
            binary: None,
            call_conv,
            fma,
        }
    }

    /// Ends the function.
    pub fn finish(mut self, isa: &dyn TargetIsa) {
        self.b.ins().return_(&[]);
        self.b.seal_all_blocks();
        self.b.finalize(isa.frontend_config());
    }

    /// The program that the kernel is part of.
    pub fn program(&self) -> &'a Program {
        self.program
    }

    /// The buffer called by `id`.
    pub fn buffer(&self, id: BufferId) -> &'a Buffer {
        self.program.buffer(id)
    }

    /// The place of a buffer among the kernel's operands.
    fn operand(&self, id: BufferId) -> usize {
        let found = self.operands.iter().position(|(b, _)| *b == id);
        found.expect("a kernel's operands should list every buffer that it names")
    }

    /// Where a buffer of this kernel starts.
    pub fn pointer(&self, id: BufferId) -> Value {
        self.operands[self.operand(id)].1
    }

    /// Bytes from a matrix to the next and from a row to the next, of a weight that may lie anywhere.
    pub fn strides(&mut self, id: BufferId) -> (Value, Value) {
        let at = self.operand(id) * size_of::<Strides>();
        let all = self.b.ins().load(types::I64, plain(), self.context, CONTEXT_STRIDES);
        let mut load = |field: usize| self.b.ins().load(types::I64, plain(), all, (at + field) as i32);
        (load(std::mem::offset_of!(Strides, matrix)), load(std::mem::offset_of!(Strides, row)))
    }

    /// Where row `row` (i64) of a buffer starts.
    pub fn row_pointer(&mut self, id: BufferId, row: Value) -> Value {
        let buffer = self.buffer(id);
        let bytes = buffer.pitch * buffer.dtype.bytes() as u64;
        let (base, offset) = (self.pointer(id), self.times(row, bytes));
        self.b.ins().iadd(base, offset)
    }

    /// An i64 constant.
    pub fn int(&mut self, x: u64) -> Value {
        self.b.ins().iconst(types::I64, x as i64)
    }

    /// The length of an axis, i64.
    pub fn dim(&mut self, dim: Dim) -> Value {
        match dim {
            Dim::Fixed(n) => self.int(n),
            Dim::PerToken(k) => self.times(self.n_tokens, k),
        }
    }

    /// `x * factor`
    pub fn times(&mut self, x: Value, factor: u64) -> Value {
        match factor {
            1 => x,
            f if f.is_power_of_two() => self.b.ins().ishl_imm_u(x, i64::from(f.trailing_zeros())),
            f => self.b.ins().imul_imm_s(x, f as i64),
        }
    }

    /// `x + offset`
    pub fn plus(&mut self, x: Value, offset: i64) -> Value {
        if offset == 0 { x } else { self.b.ins().iadd_imm_s(x, offset) }
    }

    /// `base + index * bytes`
    pub fn at(&mut self, base: Value, index: Value, bytes: u64) -> Value {
        let offset = self.times(index, bytes);
        self.b.ins().iadd(base, offset)
    }

    /// The smaller of two i64, signed.
    pub fn smaller(&mut self, x: Value, y: Value) -> Value {
        self.b.ins().smin(x, y)
    }

    /// An i32 at `pointer + offset`, sign-extended.
    pub fn load_i32(&mut self, pointer: Value, offset: i32) -> Value {
        let x = self.b.ins().load(types::I32, plain(), pointer, offset);
        self.b.ins().sextend(types::I64, x)
    }

    /// Stores the low half of an i64.
    pub fn store_i32(&mut self, x: Value, pointer: Value, offset: i32) {
        self.b.ins().istore32(plain(), x, pointer, offset);
    }

    /// Entry `index` of an i32 buffer, counting row by row (its pitch equals its columns), sign-extended.
    pub fn map_entry(&mut self, map: BufferId, index: Value) -> Value {
        let base = self.pointer(map);
        let at = self.at(base, index, 4);
        self.load_i32(at, 0)
    }

    /// `for i in (begin..end).step_by(step)` with values carried from one turn to the next; returns their last state.
    ///
    /// `body` gives the next state. The test stands at the bottom, so that a turn costs one branch.
    pub fn repeat(
        &mut self,
        begin: Value,
        end: Value,
        step: i64,
        carried: &[Value],
        body: impl FnOnce(&mut Self, Value, &[Value]) -> Vec<Value>,
    ) -> Vec<Value> {
        let types: Vec<Type> = carried.iter().map(|&v| self.b.func.dfg.value_type(v)).collect();
        let (turn, done) = (self.b.create_block(), self.b.create_block());
        let i = self.b.append_block_param(turn, types::I64);
        let state: Vec<Value> = types.iter().map(|&t| self.b.append_block_param(turn, t)).collect();
        let result: Vec<Value> = types.iter().map(|&t| self.b.append_block_param(done, t)).collect();

        let some = self.b.ins().icmp(IntCC::SignedLessThan, begin, end);
        self.branch(some, (turn, [&[begin], carried].concat()), (done, carried.to_vec()));

        self.b.switch_to_block(turn);
        let next = body(self, i, &state);
        let after = self.b.ins().iadd_imm_s(i, step);
        let more = self.b.ins().icmp(IntCC::SignedLessThan, after, end);
        self.branch(more, (turn, [&[after], &next[..]].concat()), (done, next));

        self.b.switch_to_block(done);
        result
    }

    /// [`Emit::repeat`] over `0 .. n` with the test at the top.
    ///
    /// The next state is then used in one place only, without which Cranelift does not make loads operands of other
    /// instructions; in a long body that is worth more than the jump.
    pub fn turns(
        &mut self,
        n: u64,
        step: u64,
        carried: &[Value],
        body: impl FnOnce(&mut Self, Value, &[Value]) -> Vec<Value>,
    ) -> Vec<Value> {
        let types: Vec<Type> = carried.iter().map(|&v| self.b.func.dfg.value_type(v)).collect();
        let [head, turn, done] = [self.b.create_block(), self.b.create_block(), self.b.create_block()];
        let i = self.b.append_block_param(head, types::I64);
        let state: Vec<Value> = types.iter().map(|&t| self.b.append_block_param(head, t)).collect();
        let (zero, n) = (self.int(0), self.int(n));
        self.jump(head, &[&[zero], carried].concat());
        self.b.switch_to_block(head);
        let more = self.b.ins().icmp(IntCC::UnsignedLessThan, i, n);
        self.branch(more, (turn, Vec::new()), (done, Vec::new()));
        self.b.switch_to_block(turn);
        let next = body(self, i, &state);
        let after = self.b.ins().iadd_imm_s(i, step as i64);
        self.jump(head, &[&[after], &next[..]].concat());
        self.b.switch_to_block(done);
        state
    }

    /// The first of `from .. end` for which `found` is true, else the greater of `from` and `end`.
    pub fn first(&mut self, from: Value, end: Value, found: impl FnOnce(&mut Self, Value) -> Value) -> Value {
        let [head, test, done] = [self.b.create_block(), self.b.create_block(), self.b.create_block()];
        let i = self.b.append_block_param(head, types::I64);
        self.jump(head, &[from]);
        self.b.switch_to_block(head);
        let more = self.b.ins().icmp(IntCC::SignedLessThan, i, end);
        self.branch(more, (test, Vec::new()), (done, Vec::new()));
        self.b.switch_to_block(test);
        let is_found = found(self, i);
        let after = self.b.ins().iadd_imm_s(i, 1);
        self.branch(is_found, (done, Vec::new()), (head, vec![after]));
        self.b.switch_to_block(done);
        i
    }

    /// For `i` from `begin` on while it is below `end`: `body`, which gives the next one.
    pub fn walk(&mut self, begin: Value, end: Value, body: impl FnOnce(&mut Self, Value) -> Value) {
        let [head, turn, done] = [self.b.create_block(), self.b.create_block(), self.b.create_block()];
        let i = self.b.append_block_param(head, types::I64);
        self.jump(head, &[begin]);
        self.b.switch_to_block(head);
        let more = self.b.ins().icmp(IntCC::SignedLessThan, i, end);
        self.branch(more, (turn, Vec::new()), (done, Vec::new()));
        self.b.switch_to_block(turn);
        let next = body(self, i);
        self.jump(head, &[next]);
        self.b.switch_to_block(done);
    }

    /// [`Emit::repeat`] by ones without carried values.
    pub fn each(&mut self, begin: Value, end: Value, body: impl FnOnce(&mut Self, Value)) {
        self.repeat(begin, end, 1, &[], |e, i, _| {
            body(e, i);
            Vec::new()
        });
    }

    /// `for i in 0..n` for a length known when compiling.
    pub fn each_of(&mut self, n: u64, body: impl FnOnce(&mut Self, Value)) {
        let (zero, n) = (self.int(0), self.int(n));
        self.each(zero, n, body);
    }

    /// `if condition { yes } else { no }`; both give values of the same types.
    pub fn choose(
        &mut self,
        condition: Value,
        yes: impl FnOnce(&mut Self) -> Vec<Value>,
        no: impl FnOnce(&mut Self) -> Vec<Value>,
    ) -> Vec<Value> {
        let [then, other, done] = [self.b.create_block(), self.b.create_block(), self.b.create_block()];
        self.branch(condition, (then, Vec::new()), (other, Vec::new()));
        self.b.switch_to_block(then);
        let values = yes(self);
        let types: Vec<Type> = values.iter().map(|&v| self.b.func.dfg.value_type(v)).collect();
        self.jump(done, &values);
        self.b.switch_to_block(other);
        let values = no(self);
        self.jump(done, &values);
        let result = types.iter().map(|&t| self.b.append_block_param(done, t)).collect();
        self.b.switch_to_block(done);
        result
    }

    /// `if condition { yes }`
    pub fn when(&mut self, condition: Value, yes: impl FnOnce(&mut Self)) {
        let [then, done] = [self.b.create_block(), self.b.create_block()];
        self.branch(condition, (then, Vec::new()), (done, Vec::new()));
        self.b.switch_to_block(then);
        yes(self);
        self.jump(done, &[]);
        self.b.switch_to_block(done);
    }

    fn jump(&mut self, to: ir::Block, args: &[Value]) {
        let args: Vec<BlockArg> = args.iter().map(|&v| v.into()).collect();
        self.b.ins().jump(to, &args);
    }

    fn branch(&mut self, condition: Value, yes: (ir::Block, Vec<Value>), no: (ir::Block, Vec<Value>)) {
        let [a, b] = [yes.1, no.1].map(|v| v.into_iter().map(BlockArg::from).collect::<Vec<BlockArg>>());
        self.b.ins().brif(condition, yes.0, &a, no.0, &b);
    }

    /// Calls a function of [`moec_ir::abi::CpuKernels`].
    pub fn call_kernel(&mut self, function: KernelFn, args: &[Value]) {
        let mut s = Signature::new(self.call_conv);
        s.params.extend(args.iter().map(|_| AbiParam::new(types::I64)));
        let signature = self.b.import_signature(s);
        let offset = match function {
            KernelFn::Arrange => std::mem::offset_of!(CpuKernels, arrange),
            KernelFn::Products => std::mem::offset_of!(CpuKernels, products),
        };
        let table = self.b.ins().load(types::I64, plain(), self.context, CONTEXT_KERNELS);
        let callee = self.b.ins().load(types::I64, plain(), table, offset as i32);
        self.b.ins().call_indirect(signature, callee, args);
    }

    /// Calls the function at byte `offset` of [`moec_ir::abi::CpuMath`] with scalar arguments.
    fn call_math(&mut self, offset: i32, args: &[Value]) -> Value {
        let cached = if args.len() == 1 { self.unary } else { self.binary };
        let signature = cached.unwrap_or_else(|| {
            let mut s = Signature::new(self.call_conv);
            s.params.extend(args.iter().map(|_| AbiParam::new(types::F32)));
            s.returns.push(AbiParam::new(types::F32));
            let s = self.b.import_signature(s);
            *(if args.len() == 1 { &mut self.unary } else { &mut self.binary }) = Some(s);
            s
        });
        let callee = self.b.ins().load(types::I64, plain(), self.math, offset);
        let call = self.b.ins().call_indirect(signature, callee, args);
        self.b.inst_results(call)[0]
    }
}
