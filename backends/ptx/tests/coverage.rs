//! The coverage list is what the code does, and its forms are PTX that NVIDIA's assembler accepts.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

use std::collections::BTreeMap;
use std::path::PathBuf;

use moec_ptx::coverage::{self, Form};
use moec_ptx::ptxas::{self, PtxasError};

#[test]
fn the_coverage_page_is_current() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("COVERAGE.md");
    let page = coverage::page();
    if std::env::var_os("MOEC_BLESS").is_some() {
        std::fs::write(&path, &page).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    let differs = page.lines().zip(written.lines()).find(|(now, then)| now != then);
    assert!(page == written, "COVERAGE.md is not current; run with MOEC_BLESS=1. First difference: {differs:?}");
}

#[test]
fn every_form_of_the_catalogue_is_accepted_by_ptxas() {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../target/tools");
    let mut places: Vec<PathBuf> = std::env::var_os("MOEC_PTXAS").map(PathBuf::from).into_iter().collect();
    places.extend(std::env::var_os("CARGO_TARGET_DIR").map(|target| PathBuf::from(target).join("tools")));
    places.push(root);
    places.extend(std::env::var_os("PATH").iter().flat_map(std::env::split_paths));
    let Ok(path) = ptxas::find(None, &places) else {
        eprintln!("skipped: no ptxas; `cargo xtask tools` installs it");
        return;
    };
    // A kernel may use one `cta_group` only, so each section is a module of its own.
    for section in coverage::sections() {
        let mut by_target: BTreeMap<&str, Vec<Form>> = BTreeMap::new();
        for template in section.templates {
            by_target.entry(template.target).or_default().extend(coverage::forms(template));
        }
        for (target, forms) in by_target {
            let module = coverage::module(target, &forms.iter().collect::<Vec<_>>());
            match ptxas::assemble_with(&path, &module, target, &["-O0"]) {
                Ok(_) => {}
                Err(PtxasError::Rejected { rejection, .. }) => panic!("{}: {rejection}", section.title),
                Err(error) => panic!("{error}"),
            }
        }
    }
}
