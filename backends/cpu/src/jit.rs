//! Code in this process's memory. With the tests, the only place of this crate that needs `unsafe`.

use crate::compile::compile_text;
use crate::error::internal;
use crate::options::{CpuArch, CpuFeatures, machine};
use memmap2::{Mmap, MmapMut};
use moec_ir::Diagnostic;
use moec_ir::abi::CpuKernel;
use moec_ir::tile::{CpuLaunch, Program};

/// Compiles programs for the processor that this process runs on.
#[derive(Clone, Copy, Debug, Default)]
pub struct Jit {
    /// Extensions that are used. Results of baseline and native code are the same bit for bit on machines that have FMA.
    pub features: CpuFeatures,
}

/// The kernels of a program, ready to be called. Function pointers are valid as long as this lives.
#[derive(Debug)]
pub struct JitProgram {
    kernels: Vec<JitKernel>,
    /// Keeps the code mapped.
    _code: Option<Mmap>,
}

/// One callable kernel.
#[derive(Clone, Debug)]
pub struct JitKernel {
    /// The code. Calling it is unsafe: see [`moec_ir::abi`].
    pub function: CpuKernel,
    /// How it is launched.
    pub launch: CpuLaunch,
}

impl Jit {
    /// A compiler that uses everything that this processor has.
    pub fn native() -> Jit {
        Jit { features: CpuFeatures::Native }
    }

    /// Compiles a program.
    ///
    /// # Errors
    /// `cpu-jit-host` when code cannot be run in this process (another processor than x86-64, or memory that may not be
    /// made executable); `internal-error` when the program breaks a rule of the tile IR.
    pub fn compile(&self, program: &Program) -> Result<JitProgram, Diagnostic> {
        // Arm needs its instruction cache told about new code, which has not been tried here; objects are not affected.
        if CpuArch::host() != Some(CpuArch::X86_64) {
            return Err(Diagnostic::machine(
                "cpu-jit-host",
                "code can be compiled in memory on x86-64 Unix machines only",
            )
            .help("compile an object file instead"));
        }
        let machine = machine(CpuArch::X86_64, self.features)?;
        let text = compile_text(&machine, &[program])?;
        if text.bytes.is_empty() {
            return Ok(JitProgram { kernels: Vec::new(), _code: None });
        }
        let refused = |e: std::io::Error| {
            Diagnostic::machine("cpu-jit-host", format!("no executable memory of {} bytes: {e}", text.bytes.len()))
        };
        let mut memory = MmapMut::map_anon(text.bytes.len()).map_err(refused)?;
        memory.copy_from_slice(&text.bytes);
        let code = memory.make_exec().map_err(refused)?;
        let kernels = text
            .functions
            .into_iter()
            .map(|f| {
                let start = code.get(f.offset..f.offset + f.len).ok_or_else(|| {
                    internal(format!("kernel {} lies outside its {} bytes of code", f.kernel, code.len()))
                })?;
                // SAFETY: these bytes are a whole function with the signature of `CpuKernel`, made by `compile_text` for
                // this architecture; they are mapped executable and stay so while `JitProgram` owns the mapping.
                let function = unsafe { std::mem::transmute::<*const u8, CpuKernel>(start.as_ptr()) };
                Ok(JitKernel { function, launch: f.launch })
            })
            .collect::<Result<_, Diagnostic>>()?;
        Ok(JitProgram { kernels, _code: Some(code) })
    }
}

impl JitProgram {
    /// The kernels, in launch order.
    pub fn kernels(&self) -> &[JitKernel] {
        &self.kernels
    }
}
