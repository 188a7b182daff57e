//! The program on machines that are not the one that built it: what it needs, and where it finds LLVM.
#![cfg(target_os = "linux")]

mod common;

use common::{diagnostics, root};
use object::read::elf::{Dyn, ElfFile64, FileHeader};
use std::path::{Path, PathBuf};
use std::process::Command;

const MOEC: &str = env!("CARGO_BIN_EXE_moec");

/// `moec` as it arrives elsewhere: `bin/moec` in a folder of its own, with no path of this machine's LLVM in it.
struct Elsewhere {
    dir: tempfile::TempDir,
    /// This machine's LLVM.
    llvm: PathBuf,
}

impl Elsewhere {
    fn new() -> Elsewhere {
        let llvm = llvm_of(MOEC.as_ref()).expect("the machine that built moec has LLVM");
        let dir = tempfile::tempdir().expect("a folder");
        std::fs::create_dir(dir.path().join("bin")).expect("files should be copied");
        let mut program = std::fs::read(MOEC).expect("files should be copied");
        let path = llvm.to_str().expect("an UTF-8 path").as_bytes();
        let at: Vec<usize> = memchr_all(&program, path);
        assert!(!at.is_empty(), "the program should know where its build found LLVM");
        // Another folder of the same length, which is not there.
        at.into_iter().for_each(|i| program[i + 1..i + 5].fill(b'\x7f'));
        let to = dir.path().join("bin/moec");
        std::fs::write(&to, program).expect("files should be copied");
        std::fs::set_permissions(&to, std::fs::metadata(MOEC).expect("files should be copied").permissions())
            .expect("files should be copied");
        Elsewhere { dir, llvm }
    }

    fn moec(&self, args: &[&str]) -> common::Run {
        let output = Command::new(self.dir.path().join("bin/moec"))
            .args(args)
            .current_dir(self.dir.path())
            .env_clear()
            .output()
            .expect("moec should start");
        common::Run {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

fn memchr_all(text: &[u8], what: &[u8]) -> Vec<usize> {
    (0..text.len().saturating_sub(what.len())).filter(|&i| text[i] == what[0] && text[i..].starts_with(what)).collect()
}

/// What `doctor` says: the file of LLVM.
fn llvm_of(program: &Path) -> Option<PathBuf> {
    let out = Command::new(program).args(["doctor", "--json"]).output().expect("doctor should run");
    let json: serde_json::Value = serde_json::from_slice(&out.stdout).expect("JSON");
    let finding = json["findings"].as_array()?.iter().find(|f| f["what"] == "llvm")?;
    Some(PathBuf::from(finding["found"].as_str()?.split_once(" at ")?.1))
}

fn config() -> String {
    root().join("tests/conformance/mixtral.f32/config.json").to_str().expect("an UTF-8 path").to_string()
}

#[test]
fn the_program_needs_nothing_but_the_system() {
    let bytes = std::fs::read(MOEC).unwrap();
    let elf = ElfFile64::<object::Endianness>::parse(&*bytes).unwrap();
    let (header, endian) = (elf.elf_header(), elf.endian());
    let sections = header.sections(endian, &*bytes).unwrap();
    let (entries, strings) = sections.dynamic(endian, &*bytes).unwrap().expect("a dynamic section");
    let strings = sections.strings(endian, &*bytes, strings).unwrap();
    let texts = |tag: u32| -> Vec<String> {
        let values = entries.iter().filter(|e| e.tag32(endian) == Some(tag));
        values.map(|e| String::from_utf8_lossy(e.string(endian, strings).unwrap()).into_owned()).collect()
    };
    let needed = texts(object::elf::DT_NEEDED);
    let system = ["libc.so", "libm.so", "libgcc_s.so", "libdl.so", "libpthread.so", "librt.so", "ld-linux"];
    for name in &needed {
        assert!(system.iter().any(|s| name.starts_with(s)), "{name} is no part of the system: {needed:?}");
    }
    assert!(needed.iter().any(|n| n.starts_with("libc.so")), "{needed:?}");
    assert_eq!(texts(object::elf::DT_RPATH), [""; 0]);
    assert_eq!(texts(object::elf::DT_RUNPATH), [""; 0]);
}

#[test]
fn without_llvm_everything_but_gpu_code_works() {
    let there = Elsewhere::new();
    assert_eq!(there.moec(&["--version"]).code, 0);
    let cpu = there.moec(&["compile", &config(), "--target", "cpu", "-o", "cpu"]);
    assert_eq!(cpu.code, 0, "{}", cpu.stderr);
    let gpu = ["compile", &config(), "--target", "sm_90a", "-o", "gpu", "--message-format", "json"];
    let run = there.moec(&gpu);
    assert_eq!(run.code, 2, "{}", run.stderr);
    let said = diagnostics(&run);
    assert_eq!(said[0]["code"], "llvm-missing", "{said:?}");
    assert!(said[0].to_string().contains("bin/../lib/libLLVM"), "the places are named: {said:?}");
    let doctor = there.moec(&["doctor"]).stdout;
    assert!(doctor.contains("lacks  llvm"), "{doctor}");
}

#[test]
fn llvm_is_found_in_the_lib_folder_beside_bin() {
    let there = Elsewhere::new();
    std::fs::create_dir(there.dir.path().join("lib")).unwrap();
    let shipped = there.dir.path().join("lib").join(there.llvm.file_name().unwrap());
    // A second name, not a symbolic link: what doctor says should be the shipped file. Copied where /tmp is another disk.
    std::fs::hard_link(&there.llvm, &shipped).or_else(|_| std::fs::copy(&there.llvm, &shipped).map(drop)).unwrap();
    let run = there.moec(&["compile", &config(), "--target", "sm_90a", "-o", "gpu"]);
    assert_eq!(run.code, 0, "{}", run.stderr);
    let found = llvm_of(&there.dir.path().join("bin/moec")).expect("LLVM");
    assert_eq!(found, shipped.canonicalize().unwrap());
}

/// `pip install nvidia-cuda-nvcc` puts `ptxas` into the packages of Python, on no search path.
#[test]
fn doctor_finds_what_pip_installed() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let script = |path: PathBuf, text: String| {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    };
    let packages = dir.path().join("site-packages");
    script(dir.path().join("bin/python3"), format!("echo {}", packages.display()));
    for tool in ["ptxas", "nvdisasm"] {
        script(packages.join("nvidia/cu13/bin").join(tool), format!("echo '{tool}: release 13.5, V13.5.37'"));
    }
    let mut doctor = Command::new(MOEC);
    doctor.arg("doctor").current_dir(dir.path()).env_clear().env("PATH", dir.path().join("bin"));
    let text = String::from_utf8_lossy(&doctor.output().unwrap().stdout).into_owned();
    for tool in ["ptxas", "nvdisasm"] {
        let place = packages.join("nvidia/cu13/bin").join(tool);
        assert!(text.contains(&format!("13.5 at {}", place.display())), "{text}");
    }
}
