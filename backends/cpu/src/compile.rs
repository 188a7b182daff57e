//! From a tile program to machine code: one function for each kernel, one behind the other.

use crate::check::check_program;
use crate::emit::{Emit, kernel_signature};
use crate::error::internal;
use crate::kernels;
use crate::options::Machine;
use cranelift_codegen::Context;
use cranelift_codegen::control::ControlPlane;
use cranelift_codegen::ir::{Function, UserFuncName};
use cranelift_frontend::{FunctionBuilder, FunctionBuilderContext};
use moec_ir::Diagnostic;
use moec_ir::tile::{CpuLaunch, Kernel, Program};

/// Distance of function starts, in bytes: a cache line, which also satisfies the constants that functions carry.
const FUNCTION_ALIGN: usize = 64;

/// Machine code that runs wherever it is placed at a multiple of [`TEXT_ALIGN`](crate::TEXT_ALIGN).
#[derive(Default)]
pub(crate) struct Text {
    pub bytes: Vec<u8>,
    pub functions: Vec<TextFunction>,
}

/// One kernel in a [`Text`].
pub(crate) struct TextFunction {
    /// Index into the programs.
    pub program: usize,
    /// Index into the program's kernels.
    pub kernel: usize,
    pub offset: usize,
    pub len: usize,
    pub launch: CpuLaunch,
}

/// Compiles every kernel of every program.
pub(crate) fn compile_text(machine: &Machine, programs: &[&Program]) -> Result<Text, Diagnostic> {
    let mut text = Text::default();
    let mut builder = FunctionBuilderContext::new();
    for (p, program) in programs.iter().enumerate() {
        check_program(program)?;
        for (k, kernel) in program.kernels.iter().enumerate() {
            let code = compile_kernel(machine, program, kernel, &mut builder)?;
            let padding =
                if machine.isa.triple().architecture == target_lexicon::Architecture::X86_64 { 0xcc } else { 0 };
            text.bytes.resize(text.bytes.len().next_multiple_of(FUNCTION_ALIGN), padding);
            let offset = text.bytes.len();
            text.bytes.extend_from_slice(&code);
            let launch = kernels::launch(program, kernel);
            text.functions.push(TextFunction { program: p, kernel: k, offset, len: code.len(), launch });
        }
    }
    Ok(text)
}

/// The verified function of one kernel.
fn build(machine: &Machine, program: &Program, kernel: &Kernel, builder: &mut FunctionBuilderContext) -> Function {
    let isa = &*machine.isa;
    let mut function = Function::with_name_signature(UserFuncName::default(), kernel_signature(isa));
    let b = FunctionBuilder::new(&mut function, builder);
    let mut e = Emit::start(b, program, &kernel.body.operands(), isa, machine.fma);
    kernels::emit(&mut e, program, kernel);
    e.finish(isa);
    function
}

fn compile_kernel(
    machine: &Machine,
    program: &Program,
    kernel: &Kernel,
    builder: &mut FunctionBuilderContext,
) -> Result<Vec<u8>, Diagnostic> {
    let function = build(machine, program, kernel, builder);
    let mut context = Context::for_function(function);
    // The verifier runs first, so that wrong code ends here.
    let result = context.compile(&*machine.isa, &mut ControlPlane::default());
    let code = result.map_err(|e| {
        internal(format!("kernel `{}` of `{}` does not compile", kernel.name, program.name))
            .note(cranelift_codegen::print_errors::pretty_error(e.func, e.inner))
    })?;
    if let Some(reloc) = code.buffer.relocs().first() {
        return Err(internal(format!("kernel `{}` needs a relocation: {reloc:?}", kernel.name)));
    }
    Ok(code.code_buffer().to_vec())
}

/// The intermediate code of one kernel before optimisation, for people.
pub(crate) fn clif(machine: &Machine, program: &Program, kernel: usize) -> Result<String, Diagnostic> {
    check_program(program)?;
    let Some(kernel) = program.kernels.get(kernel) else {
        return Err(internal(format!("`{}` has no kernel number {kernel}", program.name)));
    };
    Ok(build(machine, program, kernel, &mut FunctionBuilderContext::new()).display().to_string())
}

/// The disassembly of one kernel, for people.
pub(crate) fn disassemble(machine: &Machine, program: &Program, kernel: usize) -> Result<String, Diagnostic> {
    check_program(program)?;
    let Some(kernel) = program.kernels.get(kernel) else {
        return Err(internal(format!("`{}` has no kernel number {kernel}", program.name)));
    };
    let function = build(machine, program, kernel, &mut FunctionBuilderContext::new());
    let mut context = Context::for_function(function);
    context.set_disasm(true);
    let code = context
        .compile(&*machine.isa, &mut ControlPlane::default())
        .map_err(|e| internal(format!("kernel `{}` does not compile: {}", kernel.name, e.inner)))?;
    Ok(code.vcode.clone().unwrap_or_default())
}
