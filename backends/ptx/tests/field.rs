//! Kernels as other compilers and people write them: each runs without a finding and gives the expected values.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use moec_ptx::buffers;
use moec_ptx::exec::Schedule;
use moec_ptx::launch::{EmulateError, Emulation, Options, emulate_launch, parse};

/// Kernels that the machine they name cannot run.
const REFUSED: [&str; 1] = ["target_tcgen05_on_sm90"];

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/field")
}

fn run(name: &str, schedule: Schedule) -> Result<Emulation, EmulateError> {
    let folder = folder().join(name);
    let ptx = std::fs::read_to_string(folder.join("kernel.ptx")).unwrap();
    let launch = parse(&std::fs::read_to_string(folder.join("launch.json")).unwrap()).unwrap();
    let input = buffers::read(&std::fs::read(folder.join("buffers.safetensors")).unwrap()).unwrap();
    emulate_launch(&ptx, &launch, &input, &Options { schedule, ..Options::default() })
}

fn problems(name: &str, schedule: Schedule) -> Vec<String> {
    let emulation = match run(name, schedule) {
        Ok(emulation) => emulation,
        Err(error) => return vec![error.to_string()],
    };
    let folder = folder().join(name);
    let launch = parse(&std::fs::read_to_string(folder.join("launch.json")).unwrap()).unwrap();
    let expected = buffers::read(&std::fs::read(folder.join("expected.safetensors")).unwrap()).unwrap();
    let mut problems: Vec<String> = emulation.report.findings.iter().map(ToString::to_string).collect();
    for (output, want) in &expected {
        let error = buffers::compare(&emulation.outputs[output], want).unwrap().rel_fro;
        let allowed = launch.tolerance.get(output).copied().unwrap_or(0.0);
        if error.is_nan() || error > allowed {
            problems.push(format!("`{output}` is off by {error:e}, allowed is {allowed:e}"));
        }
    }
    problems
}

#[test]
fn kernels_of_other_compilers_give_their_values_without_a_finding() {
    let mut names: Vec<String> =
        std::fs::read_dir(folder()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    let mut all = Vec::new();
    for name in names.iter().filter(|n| !REFUSED.contains(&n.as_str())) {
        for schedule in [Schedule::RoundRobin, Schedule::Random(7)] {
            all.extend(problems(name, schedule).iter().map(|p| format!("{name}: {p}")));
        }
    }
    assert!(names.len() > 20, "{names:?}");
    assert!(all.is_empty(), "{}", all.join("\n"));
}

#[test]
fn an_instruction_that_the_target_lacks_is_refused_by_name() {
    for name in REFUSED {
        let error = run(name, Schedule::RoundRobin).unwrap_err().to_string();
        assert!(error.contains("tcgen05.alloc") && error.contains("sm_90a"), "{error}");
    }
}
