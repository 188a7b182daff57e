//! Every kernel of the example models assembles with ptxas, without spills. Registers and shared memory are a snapshot.
#![allow(clippy::print_stdout, reason = "a test says why it was skipped")]

use moec::{CompileRequest, Model, Target};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

const TARGETS: [&str; 4] = ["sm_80", "sm_90a", "sm_100f", "sm_120f"];

/// Machines that the PTX of a family target is assembled for as well.
const ALSO: [(&str, &[&str]); 1] = [("sm_100f", &["sm_100a", "sm_103a"])];

fn ptxas() -> Option<PathBuf> {
    let found = std::env::var_os("MOEC_PTXAS").map(PathBuf::from);
    let required = std::env::var("MOEC_REQUIRE").is_ok_and(|r| r.contains("ptxas"));
    assert!(found.is_some() || !required, "MOEC_REQUIRE asks for ptxas, but MOEC_PTXAS names none");
    found
}

#[test]
fn every_kernel_of_the_example_models_assembles_without_spills() {
    let Some(ptxas) = ptxas() else {
        println!("skipped: no ptxas, see moec doctor");
        return;
    };
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/models");
    let mut models: Vec<PathBuf> =
        std::fs::read_dir(folder).expect("examples/models").map(|e| e.expect("readable").path()).collect();
    models.sort();
    // (model, kernel file, PTX, machine): equal text is assembled once.
    let mut work: BTreeMap<(String, String), Vec<String>> = BTreeMap::new();
    for model in &models {
        let name = model.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let layer = Model::open(model).and_then(|m| m.layer(None)).unwrap_or_else(|d| panic!("{name}: {d:?}"));
        let targets = TARGETS.iter().filter_map(|t| Target::by_name(t)).collect();
        let compiled =
            moec::compile(&CompileRequest::new(&layer.graph, targets)).unwrap_or_else(|d| panic!("{name}: {d}"));
        for (path, content) in compiled.bundle.files().filter(|(p, _)| p.ends_with(".ptx")) {
            let (target, file) = path.split_once('/').expect("PTX lies in the folder of its target");
            let kernel = file.rsplit_once('-').map_or(file, |(k, _)| k);
            let ptx = String::from_utf8_lossy(content).into_owned();
            let also = ALSO.iter().find(|(t, _)| *t == target).map_or(&[][..], |(_, list)| list);
            for machine in std::iter::once(target).chain(also.iter().copied()) {
                work.entry((machine.to_string(), ptx.clone())).or_default().push(format!("{name} {kernel}"));
            }
        }
    }
    let rows = assemble_all(&ptxas, &work);
    let spills: Vec<&String> = rows.iter().filter(|r| !r.contains(" 0 spill")).collect();
    assert!(spills.is_empty(), "kernels spill registers: {spills:#?}");
    insta::assert_snapshot!("ptxas", rows.join("\n"));
}

/// `model kernel | machine | registers | shared memory | spills`, sorted.
fn assemble_all(ptxas: &Path, work: &BTreeMap<(String, String), Vec<String>>) -> Vec<String> {
    let list: Vec<_> = work.iter().collect();
    let (next, rows) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(((machine, ptx), names)) = list.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let done = moec_ptx::ptxas::assemble(ptxas, ptx, machine)
                        .unwrap_or_else(|e| panic!("{} for {machine}: {e}", names.join(", ")));
                    let entry =
                        done.report.entries.first().unwrap_or_else(|| panic!("{names:?}: no entry in the report"));
                    let spill = entry.spill_store_bytes + entry.spill_load_bytes;
                    let row = format!(
                        "{:<9} {:>3} registers {:>6} bytes shared {spill} spill  {}",
                        machine,
                        entry.registers,
                        entry.static_smem_bytes,
                        names.join(", "),
                    );
                    rows.lock().expect("no thread panics while it holds the rows").push(row);
                }
            });
        }
    });
    let mut rows = rows.into_inner().expect("no thread panics while it holds the rows");
    rows.sort();
    rows
}
