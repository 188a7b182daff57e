//! `docs/rewrites.md` lists the catalogue as it is. `UPDATE_DOCS=1 cargo test -p moec-passes --test docs` rewrites it.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use moec_passes::catalogue;
use std::fmt::Write;
use std::path::Path;

fn page() -> String {
    let mut out = String::from(
        "# The rewrite catalogue\n\nMade from the code: `passes/src/normalise/rules`.\n\n\
         Classes: `exact` keeps the bits; `reassociates` keeps the value over the reals; `tie-sensitive` may choose another\n\
         expert near a tie. `--numerics bitwise` allows the first, `batch-invariant` and `deterministic` the first two, `fast`\n\
         all three. No rule changes the meaning of a layer.\n\n| theme | rule | class | when and why |\n|---|---|---|---|\n",
    );
    for r in catalogue() {
        writeln!(out, "| {} | `{}` | {} | {} |", r.theme, r.name, r.class.name(), r.about).unwrap();
    }
    out += "\nEach rule is checked alone and together with the exact ones by evaluating every way in which the e-graph makes every\n\
            value, on layers of every kind (`passes/tests/soundness.rs`).\n";
    out
}

#[test]
fn the_list_of_rewrites_is_current() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/rewrites.md");
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&file, page()).unwrap();
    }
    let found = std::fs::read_to_string(&file).unwrap_or_default();
    assert!(
        found == page(),
        "docs/rewrites.md is out of date: run UPDATE_DOCS=1 cargo test -p moec-passes --test docs"
    );
}
