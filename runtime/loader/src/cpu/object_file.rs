//! Makes the kernels of an object file callable.

use memmap2::{Mmap, MmapMut};
use moec_ir::abi::CpuKernel;
use moec_ir::diag::Diagnostic;
use object::{Architecture, Object, ObjectSection, ObjectSymbol, SectionKind};
use std::collections::BTreeMap;

/// The code of an object file, mapped executable.
#[derive(Debug)]
pub struct Code {
    map: Mmap,
    /// Byte offset of each function by symbol.
    functions: BTreeMap<String, usize>,
}

impl Code {
    /// Maps the code of a relocatable ELF file as moec's CPU backend writes it: one `.text`, no relocations, no undefined
    /// symbols.
    ///
    /// # Errors
    /// `cpu-object-invalid`; `cpu-features-missing` for another processor's file; `out-of-memory`.
    pub fn load(bytes: &[u8]) -> Result<Code, Diagnostic> {
        let invalid = |why: String| {
            Diagnostic::input("cpu-object-invalid", "the CPU object file of the bundle cannot be loaded")
                .note(why)
                .help("compile the layer again with this version of moec")
        };
        let file = object::File::parse(bytes).map_err(|e| invalid(e.to_string()))?;
        let host = if cfg!(target_arch = "x86_64") {
            Architecture::X86_64
        } else if cfg!(target_arch = "aarch64") {
            Architecture::Aarch64
        } else {
            Architecture::Unknown
        };
        if file.architecture() != host {
            return Err(Diagnostic::machine(
                "cpu-features-missing",
                format!("the layer was compiled for {:?} processors, this one is {host:?}", file.architecture()),
            )
            .help(compile_for_here()));
        }
        let mut text: Option<(object::SectionIndex, &[u8])> = None;
        for section in file.sections() {
            if section.relocations().next().is_some() {
                return Err(invalid("it has relocations".into()));
            }
            if section.kind() == SectionKind::Text && section.size() > 0 {
                if text.is_some() {
                    return Err(invalid("it has more than one section of code".into()));
                }
                text = Some((section.index(), section.data().map_err(|e| invalid(e.to_string()))?));
            }
        }
        let (index, data) = text.unwrap_or((object::SectionIndex(0), &[]));
        let mut functions = BTreeMap::new();
        for symbol in file.symbols() {
            let name = symbol.name().map_err(|e| invalid(e.to_string()))?;
            if symbol.is_undefined() && !name.is_empty() {
                return Err(invalid(format!("it needs `{name}` from elsewhere")));
            }
            if symbol.section_index() == Some(index) && !name.is_empty() {
                let at = usize::try_from(symbol.address()).ok().filter(|&at| at < data.len());
                functions
                    .insert(name.to_string(), at.ok_or_else(|| invalid(format!("`{name}` lies outside its code")))?);
            }
        }
        let refused =
            |e: std::io::Error| Diagnostic::machine("out-of-memory", format!("there is no memory for code: {e}"));
        let mut memory = MmapMut::map_anon(data.len().max(1)).map_err(refused)?;
        memory[..data.len()].copy_from_slice(data);
        Ok(Code { map: memory.make_exec().map_err(refused)?, functions })
    }

    /// The function at `symbol`. It may be called as long as this lives.
    ///
    /// # Errors
    /// `cpu-object-invalid` when there is no such symbol.
    pub fn kernel(&self, symbol: &str) -> Result<CpuKernel, Diagnostic> {
        let at = self.functions.get(symbol).ok_or_else(|| {
            Diagnostic::input(
                "cpu-object-invalid",
                format!("the CPU object file of the bundle has no function `{symbol}`"),
            )
            .help("compile the layer again with this version of moec")
        })?;
        let start: *const u8 = &raw const self.map[*at];
        // SAFETY: a pointer into mapped, executable memory becomes a function pointer of the same size. That the bytes
        // there are a function of this signature is what whoever calls it vouches for: `CpuKernel` is unsafe to call.
        Ok(unsafe { std::mem::transmute::<*const u8, CpuKernel>(start) })
    }
}

/// What to do with a layer for other processors.
fn compile_for_here() -> String {
    format!("compile the layer with `--cpu-arch {}`", std::env::consts::ARCH.replace('_', "-"))
}

/// Checks that this processor has everything that a compiled layer needs.
///
/// # Errors
/// `cpu-features-missing`, naming what is missing.
pub fn check_features(requires: &[String]) -> Result<(), Diagnostic> {
    let missing: Vec<&str> = requires.iter().map(String::as_str).filter(|r| !has_feature(r)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(Diagnostic::machine(
        "cpu-features-missing",
        format!("this processor lacks what the layer was compiled for: {}", missing.join(", ")),
    )
    .help(match missing.iter().any(|m| ["x86_64", "aarch64"].contains(m)) {
        true => compile_for_here(),
        false => "run it on a newer processor: `--cpu-arch x86-64` needs AVX2 and FMA".to_string(),
    }))
}

#[cfg(target_arch = "x86_64")]
fn has_feature(name: &str) -> bool {
    use std::arch::is_x86_feature_detected as has;
    match name {
        "x86_64" | "sse2" => true,
        "x86-64-v2" => ["cx16", "popcnt", "sse3", "ssse3", "sse4.1", "sse4.2"].into_iter().all(has_feature),
        "x86-64-v3" => {
            ["x86-64-v2", "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "lzcnt"].into_iter().all(has_feature)
        }
        "sse3" => has!("sse3"),
        "ssse3" => has!("ssse3"),
        "sse41" | "sse4.1" => has!("sse4.1"),
        "sse42" | "sse4.2" => has!("sse4.2"),
        "popcnt" => has!("popcnt"),
        "cmpxchg16b" | "cx16" => has!("cmpxchg16b"),
        "avx" => has!("avx"),
        "avx2" => has!("avx2"),
        "bmi1" => has!("bmi1"),
        "bmi2" => has!("bmi2"),
        "f16c" => has!("f16c"),
        "fma" => has!("fma"),
        "lzcnt" => has!("lzcnt"),
        "avx512f" => has!("avx512f"),
        "avx512bitalg" => has!("avx512bitalg"),
        "avx512dq" => has!("avx512dq"),
        "avx512vbmi" => has!("avx512vbmi"),
        "avx512vl" => has!("avx512vl"),
        // A name from a newer compiler: not knowing it is no reason to run into an illegal instruction.
        _ => false,
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn has_feature(name: &str) -> bool {
    name == std::env::consts::ARCH
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_object_file_is_refused() {
        for bytes in [&b""[..], b"\x7fELF", b"hello", &[0; 4096]] {
            assert_eq!(Code::load(bytes).expect_err("should be refused").code, "cpu-object-invalid");
        }
    }

    #[test]
    fn missing_features_are_named() {
        assert!(check_features(&[]).is_ok());
        let d = check_features(&["x86_64".into(), "quantum".into()]).expect_err("should be refused");
        assert_eq!(d.code, "cpu-features-missing");
        assert!(d.message.contains("quantum"), "{d}");
    }
}
