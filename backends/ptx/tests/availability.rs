//! The machines and versions on which an instruction exists are those for which NVIDIA's assembler takes it.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use moec_ptx::coverage::{self, Form};
use moec_ptx::exec::Target;
use moec_ptx::ptxas::{self, PtxasError};

const TARGETS: [&str; 15] = [
    "sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_90a", "sm_100", "sm_100a", "sm_100f", "sm_103a", "sm_110a",
    "sm_120", "sm_120a", "sm_120f", "sm_121a",
];

/// Versions that are tried, with the machine that had all of its instructions by then.
const VERSIONS: [(&str, &[(u32, u32)]); 4] = [
    ("sm_80", &[(7, 0), (7, 1), (7, 4), (7, 8), (8, 3)]),
    ("sm_90a", &[(8, 0), (8, 1), (8, 3), (8, 6)]),
    ("sm_100a", &[(8, 6), (8, 7), (8, 8)]),
    ("sm_120a", &[(8, 7), (8, 8)]),
];

fn find_ptxas() -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/tools");
    let mut places: Vec<PathBuf> = std::env::var_os("MOEC_PTXAS").map(PathBuf::from).into_iter().collect();
    places.extend(std::env::var_os("CARGO_TARGET_DIR").map(|target| PathBuf::from(target).join("tools")));
    places.push(root);
    places.extend(std::env::var_os("PATH").iter().flat_map(std::env::split_paths));
    ptxas::find(None, &places).ok()
}

/// The numbers of the forms that the assembler refuses.
fn refused(path: &Path, target: &str, version: (u32, u32), forms: &[(usize, &Form)]) -> BTreeSet<usize> {
    let list: Vec<&Form> = forms.iter().map(|(_, f)| *f).collect();
    let mut text =
        coverage::module(target, &list).replace(".version 9.0", &format!(".version {}.{}", version.0, version.1));
    if version < (8, 3) {
        text = text.replace(".reg .b128 %q<4>;\n", "\n");
    }
    let Err(error) = ptxas::assemble_with(path, &text, target, &["-O0"]) else { return BTreeSet::new() };
    let PtxasError::Rejected { rejection, .. } = error else { panic!("{error}") };
    let first = text.lines().position(|l| l.starts_with(&list[0].statement)).unwrap() + 1;
    let message = rejection.to_string();
    let lines =
        message.split("line ").skip(1).filter_map(|s| s.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok());
    let bad: BTreeSet<usize> =
        lines.filter(|l: &usize| *l >= first).filter_map(|l| Some(forms.get(l - first)?.0)).collect();
    if bad.is_empty() {
        if forms.len() == 1 {
            return BTreeSet::from([forms[0].0]);
        }
        let (a, b) = forms.split_at(forms.len() / 2);
        let mut all = refused(path, target, version, a);
        all.extend(refused(path, target, version, b));
        return all;
    }
    // Errors of a later stage are hidden by those of an earlier one.
    let rest: Vec<(usize, &Form)> = forms.iter().filter(|(n, _)| !bad.contains(n)).copied().collect();
    let mut all = bad;
    if !rest.is_empty() {
        all.extend(refused(path, target, version, &rest));
    }
    all
}

fn compare(path: &Path, target: &str, version: (u32, u32), wrong: &mut Vec<String>) {
    let machine = Target::parse(target).unwrap();
    for section in coverage::sections() {
        let forms: Vec<Form> = section.templates.iter().flat_map(coverage::forms).collect();
        let numbered: Vec<(usize, &Form)> = forms.iter().enumerate().collect();
        let refused = refused(path, target, version, &numbered);
        for (n, form) in numbered {
            let ours = coverage::unavailable(form, machine, version).unwrap();
            if ours.is_some() != refused.contains(&n) {
                wrong.push(format!(
                    "{target} {version:?} `{}`: ptxas refuses: {}; here: {ours:?}",
                    form.statement,
                    refused.contains(&n)
                ));
            }
        }
    }
}

#[test]
fn an_instruction_exists_where_ptxas_takes_it() {
    let Some(path) = find_ptxas() else {
        eprintln!("skipped: no ptxas; `cargo xtask tools` installs it");
        return;
    };
    let mut wrong = Vec::new();
    for target in TARGETS {
        compare(&path, target, (9, 5), &mut wrong);
    }
    for (target, versions) in VERSIONS {
        for version in versions {
            compare(&path, target, *version, &mut wrong);
        }
    }
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
}
