//! Object files that need no linking.

use crate::compile::{Text, compile_text};
use crate::error::internal;
use crate::options::{CpuArch, ObjectOptions, machine};
use moec_ir::Diagnostic;
use moec_ir::tile::{CpuLaunch, Program};
use object::write::{Object, Symbol, SymbolSection};
use object::{Architecture, BinaryFormat, Endianness, SectionKind, SymbolFlags, SymbolKind, SymbolScope};

/// Alignment of the code of an object file, in bytes. Mapping it at the start of a page is enough.
pub const TEXT_ALIGN: u64 = 64;

/// A compiled object file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CpuObject {
    /// The ELF file; see the crate's documentation for what is guaranteed.
    pub bytes: Vec<u8>,
    /// Its kernels, by program and then in launch order.
    pub kernels: Vec<CpuKernelImage>,
    /// What the processor must have: the architecture's name, then extensions (`avx2`, `fma`, …).
    pub requires: Vec<String>,
}

/// One kernel of an object file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CpuKernelImage {
    /// Index into the programs that were compiled.
    pub program: usize,
    /// Index into that program's kernels.
    pub kernel: usize,
    /// The symbol, unique in the file: `PREFIX_0_gemm1`.
    pub symbol: String,
    /// How it is launched.
    pub launch: CpuLaunch,
}

/// Compiles one program to an object file.
///
/// # Errors
/// As [`compile_objects`].
pub fn compile_object(program: &Program, options: &ObjectOptions) -> Result<CpuObject, Diagnostic> {
    compile_objects(&[program], options, "moec")
}

/// Compiles several programs (the variants of a layer) to one object file, whose symbols begin with `prefix`: files of
/// different prefixes can be linked into one program. Same input, same bytes, on every host unless
/// native features are asked for.
///
/// # Errors
/// `cpu-native-features` when the options cannot be met on this machine; `internal-error` when a program breaks a rule of
/// the tile IR.
pub fn compile_objects(programs: &[&Program], options: &ObjectOptions, prefix: &str) -> Result<CpuObject, Diagnostic> {
    let machine = machine(options.arch, options.features)?;
    let text = compile_text(&machine, programs)?;
    let symbols: Vec<String> = text
        .functions
        .iter()
        .map(|f| format!("{prefix}_{}_{}", f.program, programs[f.program].kernels[f.kernel].name))
        .collect();
    let bytes = write_elf(&text, &symbols, options.arch)?;
    let kernels = text
        .functions
        .into_iter()
        .zip(symbols)
        .map(|(f, symbol)| CpuKernelImage { program: f.program, kernel: f.kernel, symbol, launch: f.launch })
        .collect();
    Ok(CpuObject { bytes, kernels, requires: machine.requires })
}

fn write_elf(text: &Text, symbols: &[String], arch: CpuArch) -> Result<Vec<u8>, Diagnostic> {
    let architecture = match arch {
        CpuArch::X86_64 => Architecture::X86_64,
        CpuArch::Aarch64 => Architecture::Aarch64,
    };
    let mut file = Object::new(BinaryFormat::Elf, architecture, Endianness::Little);
    let section = file.add_section(Vec::new(), b".text".to_vec(), SectionKind::Text);
    file.set_section_data(section, text.bytes.as_slice(), TEXT_ALIGN);
    for (function, name) in text.functions.iter().zip(symbols) {
        file.add_symbol(Symbol {
            name: name.clone().into_bytes(),
            value: function.offset as u64,
            size: function.len as u64,
            kind: SymbolKind::Text,
            scope: SymbolScope::Dynamic,
            weak: false,
            section: SymbolSection::Section(section),
            flags: SymbolFlags::None,
        });
    }
    // Tells linkers that the code needs no executable stack.
    file.add_section(Vec::new(), b".note.GNU-stack".to_vec(), SectionKind::Other);
    file.write().map_err(|e| internal(format!("the object file cannot be written: {e}")))
}
