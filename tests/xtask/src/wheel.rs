//! The Python package as a wheel: Python files, the C library, the command line and LLVM, in one zip.
//!
//! Nothing in it depends on a version of Python: the library is called through ctypes. So it is written here, and no Python
//! build tool is needed.

use crate::{elf, places};
use anyhow::{Context, Result};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest, Sha256};
use std::io::{Seek, Write};
use std::path::{Path, PathBuf};
use zip::write::SimpleFileOptions;

/// The command line, and what vLLM and SGLang look for.
const ENTRY_POINTS: &str = "[console_scripts]\nmoec = moec.cli:main\n\n[vllm.general_plugins]\nmoec = moec.vllm:register\n\n\
     [sglang.srt.plugins]\nmoec = moec.sglang:register\n";

/// Writes the wheel of a folder that `dist` made into `to`; returns its path.
///
/// # Errors
/// When a file cannot be read or written.
pub fn write(dist: &Path, to: &Path) -> Result<PathBuf> {
    let version = env!("CARGO_PKG_VERSION");
    let (major, minor) = elf::GLIBC;
    let tag = format!("py3-none-manylinux_{major}_{minor}_{}", std::env::consts::ARCH);
    let path = to.join(format!("moec-{version}-{tag}.whl"));
    let info = format!("moec-{version}.dist-info");
    let mut files = package()?;
    for folder in ["bin", "lib"] {
        for entry in std::fs::read_dir(dist.join(folder))? {
            let from = entry?.path();
            let name = from.file_name().context("a file has a name")?.to_string_lossy().into_owned();
            // Python links nothing statically, and compiles with the command line.
            if !name.ends_with(".a") && name != "libmoec_compiler.so" {
                files.push((format!("moec/{folder}/{name}"), std::fs::read(&from)?));
            }
        }
    }
    let metadata = format!(
        "Metadata-Version: 2.1\nName: moec\nVersion: {version}\nSummary: Compiled Mixture-of-Experts layers\n\
         License: MIT OR Apache-2.0\nRequires-Python: >=3.10\n"
    );
    let wheel = format!("Wheel-Version: 1.0\nGenerator: moec xtask\nRoot-Is-Purelib: false\nTag: {tag}\n");
    files.push((format!("{info}/METADATA"), metadata.into_bytes()));
    files.push((format!("{info}/WHEEL"), wheel.into_bytes()));
    files.push((format!("{info}/entry_points.txt"), ENTRY_POINTS.into()));
    let file = std::fs::File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
    pack(&mut files, &info, file)?;
    Ok(path)
}

/// The Python files of the package.
fn package() -> Result<Vec<(String, Vec<u8>)>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(places::root().join("runtime/python/moec"))? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "py") {
            let name = path.file_name().context("a file has a name")?.to_string_lossy().into_owned();
            files.push((format!("moec/{name}"), std::fs::read(&path)?));
        }
    }
    // Says that the package has types.
    files.push(("moec/py.typed".into(), Vec::new()));
    Ok(files)
}

/// Writes the files and the list of their hashes. The same files give the same bytes.
fn pack(files: &mut [(String, Vec<u8>)], info: &str, to: impl Write + Seek) -> Result<()> {
    files.sort();
    let mut zip = zip::ZipWriter::new(to);
    let mut record = String::new();
    for (name, content) in &*files {
        let mode = if name.starts_with("moec/bin/") { 0o755 } else { 0o644 };
        let options = SimpleFileOptions::default().unix_permissions(mode).last_modified_time(zip::DateTime::default());
        zip.start_file(name.as_str(), options.compression_method(zip::CompressionMethod::Deflated))?;
        zip.write_all(content)?;
        record += &format!("{name},sha256={},{}\n", URL_SAFE_NO_PAD.encode(Sha256::digest(content)), content.len());
    }
    let list = format!("{info}/RECORD");
    record += &format!("{list},,\n");
    zip.start_file(list.as_str(), SimpleFileOptions::default().last_modified_time(zip::DateTime::default()))?;
    zip.write_all(record.as_bytes())?;
    zip.finish()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Cursor, Read};

    #[test]
    fn a_wheel_lists_its_files_with_hashes() {
        let files = [("moec/b.py", "b"), ("moec/bin/moec", "program"), ("x.dist-info/WHEEL", "w")];
        let mut files: Vec<_> = files.iter().map(|(n, c)| (n.to_string(), c.as_bytes().to_vec())).collect();
        let packed = |files: &mut Vec<_>| {
            let mut out = Cursor::new(Vec::new());
            pack(files, "x.dist-info", &mut out).unwrap();
            out.into_inner()
        };
        let first = packed(&mut files);
        files.reverse();
        assert_eq!(packed(&mut files), first);
        let mut zip = zip::ZipArchive::new(Cursor::new(first)).unwrap();
        assert_eq!(zip.by_name("moec/bin/moec").unwrap().unix_mode().unwrap() & 0o777, 0o755);
        let mut record = String::new();
        zip.by_name("x.dist-info/RECORD").unwrap().read_to_string(&mut record).unwrap();
        // `printf b | openssl dgst -sha256 -binary | base64`
        assert!(record.contains("moec/b.py,sha256=PiPoFgA5WUoziU9lZOGxNIu9egCI1CxKy3PurtWcAJ0,1\n"), "{record}");
        assert!(record.ends_with("x.dist-info/RECORD,,\n"));
    }

    #[test]
    fn the_package_has_its_modules() {
        let names: Vec<String> = package().unwrap().into_iter().map(|(name, _)| name).collect();
        for name in [
            "moec/__init__.py",
            "moec/torch.py",
            "moec/transformers.py",
            "moec/vllm.py",
            "moec/sglang.py",
            "moec/py.typed",
        ] {
            assert!(names.iter().any(|n| n == name), "{names:?}");
        }
    }
}
