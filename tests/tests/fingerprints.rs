//! Bundles of one fingerprint give the same bits, whatever else is different about them; and a bundle that sums in another order
//! has another fingerprint.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use moec::{CompileRequest, Compiled, Device, Session, Target, Weights};
use moec_bundle::{FingerprintText, compare_fingerprints};
use moec_ir::Tensor;
use moec_tests::cases::{self, Case};
use std::collections::BTreeMap;

const GPUS: [&str; 6] = ["sm_80", "sm_86", "sm_89", "sm_90a", "sm_100f", "sm_120f"];
const TOKENS: usize = 5;

fn compiled(case: &Case, target: &str, opt_level: u8, tokens: (u64, u64)) -> Compiled {
    let target = Target::by_name(target).unwrap();
    let request = CompileRequest { opt_level, tokens, ..CompileRequest::new(&case.graph, vec![target]) };
    moec::compile(&request).unwrap()
}

fn texts(compiled: &Compiled) -> Vec<FingerprintText> {
    compiled.bundle.fingerprint(&compiled.bundle.manifest().targets[0]).unwrap().unwrap()
}

fn run(case: &Case, compiled: &Compiled, device: Device) -> Vec<Tensor> {
    let params = case.graph.params.iter().map(|p| p.name.clone()).zip(case.params.iter().cloned());
    let named: Vec<(String, Tensor)> = params.collect();
    let mut session = Session::load(&compiled.bundle, &Weights::Tensors(&named), device, TOKENS as u64).unwrap();
    let input = case.input(TOKENS);
    let result = session.run(&[(case.graph.inputs[0].name.as_str(), &input)]).unwrap();
    assert!(result.findings.is_empty(), "{:?}", result.findings);
    result.outputs.into_iter().map(|(_, t)| t).collect()
}

/// Outputs of every compile of a case, by the fingerprint of the output: all bits of one are the same. Returns how many compiles
/// gave each.
fn bits_by_fingerprint(case: &Case, compiles: &[(Compiled, Device, String)]) -> Vec<usize> {
    let mut known: BTreeMap<String, (Tensor, &str, usize)> = BTreeMap::new();
    for (compiled, device, name) in compiles {
        let outputs = run(case, compiled, device.clone());
        for (text, got) in texts(compiled).iter().zip(outputs) {
            // Outputs of one step have texts of their own.
            match known.get_mut(&text.hash()) {
                None => {
                    known.insert(text.hash(), (got, name, 1));
                }
                Some((first, of, n)) => {
                    assert_eq!(first, &got, "{}: `{}` of {of} and {name}", case.name, text.output);
                    *n += 1;
                }
            }
        }
    }
    known.into_values().map(|(_, _, n)| n).collect()
}

fn case(name: &str) -> Case {
    cases::all().into_iter().find(|c| c.name == name).unwrap_or_else(|| panic!("no case {name}"))
}

#[test]
fn equal_fingerprints_mean_equal_bits_across_targets_levels_and_ranges() {
    for name in [
        "every_model_at_every_token_count/mixtral_aligned/bfloat16",
        "every_model_at_every_token_count/deepseek/bfloat16",
        "every_model_at_every_token_count/gpt_oss/float32",
    ] {
        let case = case(name);
        let mut compiles = Vec::new();
        for target in GPUS {
            for (opt_level, tokens) in [(1, (0, 4096)), (2, (0, 4096)), (2, (5, 5)), (2, (2048, 4096))] {
                let what = format!("{target} -O{opt_level} for {tokens:?}");
                compiles.push((compiled(&case, target, opt_level, tokens), Device::Emulator { target }, what));
            }
        }
        for opt_level in [0, 1, 2] {
            compiles.push((compiled(&case, "cpu", opt_level, (0, 4096)), Device::Cpu, format!("cpu -O{opt_level}")));
        }
        let counts = bits_by_fingerprint(&case, &compiles);
        // Portable engines of several chips share one; the CPU's is another.
        assert!(counts.iter().any(|&n| n >= 8) && counts.len() >= 4, "{name}: {counts:?}");
    }
}

#[test]
fn another_order_of_sums_is_another_fingerprint() {
    let case = case("every_model_at_every_token_count/mixtral_aligned/bfloat16");
    let [portable, cpu] = ["sm_80", "cpu"].map(|t| compiled(&case, t, 2, (0, 4096)));
    let differ = compare_fingerprints(&texts(&portable), &texts(&cpu));
    assert!(differ.iter().any(|d| d.output == "output"), "{differ:?}");
    let bits = [run(&case, &portable, Device::Emulator { target: "sm_80" }), run(&case, &cpu, Device::Cpu)];
    assert_ne!(bits[0][0], bits[1][0], "the test should tell orders apart");
}
