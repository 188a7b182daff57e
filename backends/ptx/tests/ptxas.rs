//! Runs NVIDIA's assembler, where there is one, on small PTX texts.
//!
//! It is looked for in `MOEC_PTXAS`, in `target/tools` and on `PATH`. Without one each test says so and passes, unless
//! `MOEC_REQUIRE` names `ptxas`.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

use std::path::PathBuf;

use moec_ptx::ptxas::{self, PtxasError};

fn places() -> Vec<PathBuf> {
    let mut places: Vec<PathBuf> = std::env::var_os("MOEC_PTXAS").map(PathBuf::from).into_iter().collect();
    let target = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../target"), PathBuf::from);
    places.push(target.join("tools"));
    places.push(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../target/tools"));
    if let Some(path) = std::env::var_os("PATH") {
        places.extend(std::env::split_paths(&path));
    }
    places
}

fn tool(name: &str) -> Option<PathBuf> {
    match ptxas::find_tool(name, None, &places()) {
        Ok(path) => Some(path),
        Err(error) => {
            let required = std::env::var("MOEC_REQUIRE").unwrap_or_default();
            assert!(!required.split(',').any(|r| r == "ptxas"), "{error}");
            eprintln!("skipped: no {name}; `cargo xtask tools` installs it");
            None
        }
    }
}

const SPILLING_FREE: &str = "\
.version 8.0
.target sm_90a
.address_size 64
.visible .entry twice(.param .u64 p)
{
    .reg .b64 %rd<3>;
    .reg .f32 %f<3>;
    .shared .align 4 .b8 s[512];
    ld.param.u64 %rd1, [p];
    cvta.to.global.u64 %rd2, %rd1;
    ld.global.f32 %f1, [%rd2];
    st.shared.f32 [s], %f1;
    bar.sync 0;
    ld.shared.f32 %f2, [s];
    add.rn.f32 %f2, %f2, %f2;
    st.global.f32 [%rd2], %f2;
    ret;
}
";

#[test]
fn registers_shared_memory_and_spills_of_a_kernel_are_reported() {
    let Some(path) = tool("ptxas") else { return };
    let assembled = ptxas::assemble(&path, SPILLING_FREE, "sm_90a").unwrap();
    let entry = assembled.report.entry("twice").unwrap();
    assert_eq!(entry.target, "sm_90a");
    assert!((4..=16).contains(&entry.registers), "{entry:?}");
    assert_eq!(entry.static_smem_bytes, 512);
    assert_eq!(entry.barriers, 1);
    assert_eq!(assembled.report.spill_bytes(), 0);
    assert!(assembled.cubin.starts_with(b"\x7fELF"));

    let Some(nvdisasm) = tool("nvdisasm") else {
        return;
    };
    let sass = ptxas::disassemble(&nvdisasm, &assembled.cubin).unwrap();
    assert!(sass.contains("STS") && sass.contains("EXIT"), "{sass}");
    let Some(cuobjdump) = tool("cuobjdump") else {
        return;
    };
    assert!(ptxas::resource_usage(&cuobjdump, &assembled.cubin).unwrap().contains("REG:"));
}

#[test]
fn a_register_limit_makes_spills_show_in_the_report() {
    let Some(path) = tool("ptxas") else { return };
    let mut ptx = String::from(
        ".version 8.0\n.target sm_90a\n.address_size 64\n.visible .entry wide(.param .u64 p)\n{\n\
         .reg .b64 %rd<3>;\n.reg .f32 %f<65>;\nld.param.u64 %rd1, [p];\n",
    );
    for i in 0..64 {
        ptx.push_str(&format!("ld.volatile.global.f32 %f{i}, [%rd1+{}];\n", 4 * i));
    }
    for i in 0..64 {
        ptx.push_str(&format!("st.volatile.global.f32 [%rd1+{}], %f{i};\n", 4 * (63 - i)));
    }
    ptx.push_str("ret;\n}\n");
    let free = ptxas::assemble(&path, &ptx, "sm_90a").unwrap();
    assert_eq!(free.report.spill_bytes(), 0);
    let tight = ptxas::assemble_with(&path, &ptx, "sm_90a", &["--maxrregcount=32"]).unwrap();
    let entry = tight.report.entry("wide").unwrap();
    assert!(entry.registers <= 32);
    assert!(entry.spill_store_bytes >= 4 * 32 && entry.spill_load_bytes >= 4 * 32, "{entry:?}");
}

#[test]
fn a_refused_ptx_names_the_guilty_lines() {
    let Some(path) = tool("ptxas") else { return };
    let ptx = SPILLING_FREE.replace("add.rn.f32 %f2, %f2, %f2;", "frob.f32 %f2;");
    let error = ptxas::assemble(&path, &ptx, "sm_90a").unwrap_err();
    let PtxasError::Rejected { rejection, target } = &error else { panic!("{error}") };
    assert_eq!(target, "sm_90a");
    assert_eq!(rejection.messages[0].line, Some(15));
    assert_eq!(rejection.excerpts[0], "frob.f32 %f2;");
    assert!(error.to_string().contains("line 15"), "{error}");
}

#[test]
fn a_target_that_does_not_exist_is_refused_with_the_words_of_ptxas() {
    let Some(path) = tool("ptxas") else { return };
    let error = ptxas::assemble(&path, SPILLING_FREE, "sm_99").unwrap_err();
    assert!(error.to_string().contains("sm_99"), "{error}");
}

#[test]
fn the_release_is_read_from_the_version_text() {
    let Some(path) = tool("ptxas") else { return };
    let release = ptxas::release(&path).unwrap();
    assert!(release.split('.').all(|part| part.parse::<u32>().is_ok()), "{release}");
}

#[test]
fn an_installed_folder_is_used_as_it_is() {
    // Three empty files stand for the tools: nothing is downloaded when they are there.
    let folder = tempfile::tempdir().unwrap();
    let bin = folder.path().join("nvidia/cu13/bin");
    std::fs::create_dir_all(&bin).unwrap();
    for name in ["ptxas", "nvdisasm", "cuobjdump"] {
        std::fs::write(bin.join(name), "").unwrap();
    }
    assert_eq!(ptxas::install(folder.path()).unwrap(), bin.join("ptxas"));
    std::fs::remove_file(bin.join("nvdisasm")).unwrap();
    assert_eq!(ptxas::installed(folder.path()), None);
}
