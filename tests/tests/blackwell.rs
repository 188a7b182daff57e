//! What kernels for Blackwell move, multiply and wait for in shared memory, counted by the emulator, is within bounds; every
//! instruction that they use is one that kernels of other compilers in the emulator's corpus use too.
//!
//! The table of counts is a snapshot: `INSTA_UPDATE=always cargo test -p moec-tests --test blackwell` writes it anew.

use moec_tests::runs::{Run, check, runs, table};
use moec_tests::traffic::Routing;

#[test]
fn blackwell_moves_little_more_than_the_least() {
    let runs = runs("sm_100f", &[Routing::Independent, Routing::Alike], |_| true);
    let table = table(&runs);
    check(&runs, &table);
    for Run { name, is_decode, measured: m } in &runs {
        if *is_decode {
            assert!(m.over_layer() <= 1.05, "{name} moves too much\n{table}");
            // Even without a cache: no expert's weights are read twice.
            assert!(m.weights_asked() <= 1.05, "{name} reads weights twice\n{table}");
        }
        for l in m.launches.iter().filter(|l| l.is_contraction) {
            assert!(l.counters.tensor.keys().all(|k| k.starts_with("tcgen05")), "{name}: {}", l.name);
            assert_eq!(l.conflicts(), [], "{name}: bank conflicts in {}", l.name);
        }
    }
    insta::assert_snapshot!("sm_100f", table);
}

#[test]
fn consumer_blackwell_moves_little_more_than_the_least() {
    let runs =
        runs("sm_120f", &[Routing::Independent], |m| m.name.starts_with("Qwen3") || m.name.starts_with("DeepSeek"));
    let table = table(&runs);
    check(&runs, &table);
    insta::assert_snapshot!("sm_120f", table);
}

#[test]
fn instructions_are_those_of_kernels_of_other_compilers() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/blackwell-instructions.md");
    let (page, missing) = moec_tests::instructions::page();
    if std::env::var_os("MOEC_BLESS").is_some() {
        std::fs::write(&path, &page).expect("docs should be writable");
    }
    assert!(missing.is_empty(), "no kernel of the corpus has these: {missing:#?}");
    assert_eq!(moec_tests::instructions::unused_exceptions(&page), [""; 0], "exceptions that nothing needs");
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(page == written, "docs/blackwell-instructions.md is not current; run with MOEC_BLESS=1");
}

#[test]
fn the_time_model_is_current_and_no_faster_than_memory() {
    let (time, floor) = moec_tests::time_model::floor_check();
    assert!(time > floor && time < 3.0 * floor, "{time} s for bytes that take {floor} s");
    assert_eq!(moec_tests::time_model::regrets(), [""; 0]);
    // Tiles of two heights serve all token counts of this one but the fewest: a third program would lower no loss that counts.
    assert_eq!(moec_tests::time_model::few_programs(3), ["qwen3-235b-a22b on rtx5090: 2"]);
    assert_eq!(moec_tests::time_model::slower_than_portable(0.05), [""; 0]);
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/time-model.md");
    let page = moec_tests::time_model::page();
    if std::env::var_os("MOEC_BLESS").is_some() {
        std::fs::write(&path, &page).expect("docs should be writable");
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(page == written, "docs/time-model.md is not current; run `cargo xtask time-model`");
}

#[test]
fn the_time_model_of_fabrics_is_current() {
    let docs = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs");
    for (name, made) in [("nvl72.md", moec_tests::fabric::page()), ("nvl72.svg", moec_tests::fabric::chart())] {
        let path = docs.join(name);
        if std::env::var_os("MOEC_BLESS").is_some() {
            std::fs::write(&path, &made).expect("docs should be writable");
        }
        let written = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(made == written, "docs/{name} is not current; run `cargo xtask time-model`");
    }
}
