//! `docs/rewrites.md` lists the catalogue as it is. `UPDATE_DOCS=1 cargo test -p moec-passes --test docs` rewrites it.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use moec_passes::catalogue;
use moec_passes::verify::verify;
use std::fmt::Write;
use std::path::Path;

fn page() -> String {
    let mut out = String::from(
        "# The rewrite catalogue\n\nMade from the code: `passes/src/normalise/rules`.\n\n\
         Classes: `exact` keeps the bits; `reassociates` keeps the value over the reals; `tie-sensitive` may choose another\n\
         expert near a tie. `--numerics bitwise` allows the first, `batch-invariant` and `deterministic` the first two, `fast`\n\
         all three. No rule changes the meaning of a layer.\n\n| theme | rule | class | why | asks that |\n|---|---|---|---|---|\n",
    );
    for (r, report) in catalogue().iter().zip(verify()) {
        let asks: Vec<&str> = report.conditions.iter().map(|c| c.about).collect();
        writeln!(out, "| {} | `{}` | {} | {} | {} |", r.theme, r.name, r.class.name(), r.about, asks.join("; "))
            .unwrap();
    }
    out += "\n`moec rules --verify` checks each rule by itself, wherever it fires in more than forty small layers and odd graphs \
            (`passes/src/verify`):\n\n\
            * over a finite field, where sums, products and quotients are exact and every other function is a hash of its operands: what is\n  \
            equal there for random operands is equal over the rationals but with a probability of about 2^-60;\n\
            * in f32 as the reference evaluator computes it, for random tokens, tied and saturated logits, zeros of both signs, subnormal\n  \
            products, NaN and infinities: `exact` rules bit for bit, others within what rounding can make of both ways (a bound that is\n  \
            computed element by element);\n\
            * choices of `tie-sensitive` rules may fall on another expert only where scores differ by less than four units in the last place.\n\n\
            Conditions are counted: one that never failed, or never held, makes the check fail too. In the tests, more than forty rules that\n\
            are wrong in one way each (a condition left out, a factor dropped, another index or rounding point) are all noticed.\n";
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
