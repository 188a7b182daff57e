//! What a program or shared library asks the system's loader for.

use anyhow::{Context, Result};
use object::Endianness;
use object::elf::{DT_NEEDED, DT_RPATH, DT_RUNPATH};
use object::read::elf::{Dyn, ElfFile64, FileHeader};
use std::path::Path;

/// The dynamic section of an ELF file, as far as it names files and folders.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Dynamic {
    /// Libraries that are loaded with it.
    pub needed: Vec<String>,
    /// Folders that it adds to the search.
    pub search: Vec<String>,
    /// The newest glibc that has a symbol which it asks for, as in `GLIBC_2.34`.
    pub glibc: (u32, u32),
}

/// The glibc that what is shipped may ask for, and no newer one: RHEL 9 has it.
pub const GLIBC: (u32, u32) = (2, 34);

/// Libraries that every Linux machine with glibc has, by the start of their names; `libz` is there for LLVM.
const SYSTEM: [&str; 10] = [
    "libc.so.",
    "libm.so.",
    "libgcc_s.so.",
    "libdl.so.",
    "libpthread.so.",
    "librt.so.",
    "libz.so.",
    "libutil.so.",
    "ld-linux-x86-64.so.",
    "ld-linux-aarch64.so.",
];

/// Reads the dynamic section; `None` for what is no 64-bit ELF file or has none, such as an archive of objects.
///
/// # Errors
/// When the file cannot be read, or is broken.
pub fn dynamic(path: &Path) -> Result<Option<Dynamic>> {
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    if !bytes.starts_with(b"\x7fELF") {
        return Ok(None);
    }
    let elf = ElfFile64::<Endianness>::parse(&*bytes).with_context(|| format!("{} is broken", path.display()))?;
    let (header, endian) = (elf.elf_header(), elf.endian());
    let sections = header.sections(endian, &*bytes)?;
    let Some((entries, strings)) = sections.dynamic(endian, &*bytes)? else { return Ok(None) };
    let strings = sections.strings(endian, &*bytes, strings)?;
    let mut found = Dynamic::default();
    for entry in entries {
        let list = match entry.tag32(endian) {
            Some(DT_NEEDED) => &mut found.needed,
            Some(DT_RPATH | DT_RUNPATH) => &mut found.search,
            _ => continue,
        };
        list.push(String::from_utf8_lossy(entry.string(endian, strings)?).into_owned());
    }
    if let Some((mut libraries, strings)) = sections.gnu_verneed(endian, &*bytes)? {
        let strings = sections.strings(endian, &*bytes, strings)?;
        while let Some((_, mut versions)) = libraries.next()? {
            while let Some(version) = versions.next()? {
                let name = String::from_utf8_lossy(version.name(endian, strings)?);
                found.glibc = found.glibc.max(glibc_of(&name).unwrap_or_default());
            }
        }
    }
    Ok(Some(found))
}

/// The numbers in a version such as `GLIBC_2.2.5`, the first two of them; `None` for versions of other libraries.
fn glibc_of(version: &str) -> Option<(u32, u32)> {
    let mut numbers = version.strip_prefix("GLIBC_")?.split('.').map(|n| n.parse().ok());
    Some((numbers.next()??, numbers.next()??))
}

impl Dynamic {
    /// What ties the file to the machine that built it: libraries that are no part of the system, folders that do not go
    /// out from the file itself. Empty is good.
    pub fn ties(&self) -> Vec<&str> {
        let foreign = self.needed.iter().filter(|n| !SYSTEM.iter().any(|s| n.starts_with(s)));
        let folders = self.search.iter().flat_map(|s| s.split(':')).filter(|s| !s.starts_with("$ORIGIN"));
        foreign.map(String::as_str).chain(folders).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_os = "linux")]
    #[test]
    fn this_program_needs_the_system_only() {
        let me = std::env::current_exe().unwrap();
        let found = dynamic(&me).unwrap().expect("a program has a dynamic section");
        assert!(found.needed.iter().any(|n| n.starts_with("libc.so.")), "{found:?}");
        assert_eq!(found.ties(), [""; 0]);
        assert!(found.glibc >= (2, 2), "{found:?}");
    }

    #[test]
    fn versions_are_numbers() {
        assert_eq!(glibc_of("GLIBC_2.2.5"), Some((2, 2)));
        assert!(glibc_of("GLIBC_2.9") < glibc_of("GLIBC_2.34"));
        assert_eq!((glibc_of("GCC_3.0"), glibc_of("GLIBC_PRIVATE")), (None, None));
    }

    #[test]
    fn absolute_paths_and_strange_libraries_are_ties() {
        let found = Dynamic {
            needed: ["libc.so.6", "/root/libLLVM.so.22", "libfoo.so.1"].map(String::from).to_vec(),
            search: vec!["$ORIGIN/../lib:/opt/lib".into()],
            ..Dynamic::default()
        };
        assert_eq!(found.ties(), ["/root/libLLVM.so.22", "libfoo.so.1", "/opt/lib"]);
    }
}
