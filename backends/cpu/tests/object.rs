//! What an object file promises to its loader.
#![allow(clippy::unwrap_used)]

mod common;

use common::layer::{Layer, build};
use moec_cpu::{CpuArch, CpuFeatures, ObjectOptions, compile_object, compile_objects, print_assembly, print_clif};
use moec_ir::{Activation, DType};
use object::{Object, ObjectSection, ObjectSymbol};

/// A layer that uses every kind of kernel, several types, and functions from the table.
fn layer() -> Layer {
    let activation = Activation::GeGluErf;
    Layer { activation, biases: true, shared: Some(24), ..Layer::new(6, 2, 44, 36).dtypes(DType::BF16, DType::F16) }
}

#[test]
fn an_object_needs_no_linking_on_either_architecture() {
    let (program, _) = build(&layer());
    for arch in [CpuArch::X86_64, CpuArch::Aarch64] {
        let made = compile_object(&program, &ObjectOptions { arch, features: CpuFeatures::Baseline }).unwrap();
        let file = object::File::parse(made.bytes.as_slice()).unwrap();
        assert_eq!(file.sections().map(|s| s.relocations().count()).sum::<usize>(), 0, "{arch:?} relocations");
        assert_eq!(file.symbols().filter(|s| s.is_undefined()).count(), 0, "{arch:?} undefined symbols");
        let filled: Vec<&str> = file
            .sections()
            .filter(|s| s.size() > 0 && !["", ".symtab", ".strtab", ".shstrtab"].contains(&s.name().unwrap()))
            .map(|s| s.name().unwrap())
            .collect();
        assert_eq!(filled, [".text"], "{arch:?} sections");
        let names: Vec<&str> = made.kernels.iter().map(|k| k.symbol.as_str()).collect();
        assert_eq!(
            names,
            ["moec_0_router_scores", "moec_0_route", "moec_0_plan", "moec_0_gemm1", "moec_0_gemm2", "moec_0_combine"]
        );
        for name in names {
            let symbol = file.symbols().find(|s| s.name() == Ok(name)).unwrap();
            assert_eq!(symbol.address() % 64, 0, "{name} starts a cache line");
            assert!(symbol.address() + symbol.size() <= file.section_by_name(".text").unwrap().size());
        }
    }
}

#[test]
fn the_same_program_gives_the_same_bytes() {
    let (program, _) = build(&layer());
    let first = compile_object(&program, &ObjectOptions::default()).unwrap();
    let second = compile_object(&program, &ObjectOptions::default()).unwrap();
    assert_eq!(first, second);
}

#[test]
fn an_object_says_what_it_requires() {
    let (program, _) = build(&Layer::new(2, 1, 8, 8));
    let x86 = compile_object(&program, &ObjectOptions::default()).unwrap();
    assert_eq!(x86.requires[0], "x86_64");
    assert!(["avx", "avx2", "fma"].iter().all(|f| x86.requires.iter().any(|r| r == f)), "{:?}", x86.requires);
    let options = ObjectOptions { arch: CpuArch::Aarch64, features: CpuFeatures::Baseline };
    assert_eq!(compile_object(&program, &options).unwrap().requires, ["aarch64"]);
}

#[test]
fn several_programs_share_one_object() {
    let (a, _) = build(&Layer::new(2, 1, 8, 8));
    let (b, _) = build(&Layer::new(3, 1, 8, 8));
    let made = compile_objects(&[&a, &b], &ObjectOptions::default(), "moec").unwrap();
    assert_eq!(made.kernels.len(), a.kernels.len() + b.kernels.len());
    let last = made.kernels.last().unwrap();
    assert_eq!((last.program, last.kernel, last.symbol.as_str()), (1, 5, "moec_1_combine"));
}

#[test]
fn native_code_for_another_machine_is_refused() {
    let (program, _) = build(&Layer::new(2, 1, 8, 8));
    let other = if CpuArch::host() == Some(CpuArch::X86_64) { CpuArch::Aarch64 } else { CpuArch::X86_64 };
    let error = compile_object(&program, &ObjectOptions { arch: other, features: CpuFeatures::Native }).unwrap_err();
    assert_eq!(error.code, "cpu-native-features");
}

#[test]
fn a_program_that_breaks_the_rules_is_refused() {
    let (mut program, _) = build(&Layer::new(2, 1, 8, 8));
    program.buffers[0].pitch = 3;
    let error = compile_object(&program, &ObjectOptions::default()).unwrap_err();
    assert_eq!(error.code, "tile-program-invalid");
}

#[test]
fn code_prints_for_people() {
    let (program, _) = build(&Layer::new(2, 1, 8, 8));
    let clif = print_clif(&program, 3, &ObjectOptions::default()).unwrap();
    assert!(clif.contains("fma"), "a contraction multiplies and adds:\n{clif}");
    let assembly = print_assembly(&program, 3, &ObjectOptions::default()).unwrap();
    assert!(assembly.contains("vfmadd"), "in one instruction:\n{assembly}");
    assert!(print_clif(&program, 99, &ObjectOptions::default()).is_err());
}
