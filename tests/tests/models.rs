//! `docs/models.md` lists every family in every format, with errors that are within bounds; and every family runs with
//! quantised weights.
#![allow(clippy::unwrap_used)]

use libtest_mimic::{Arguments, Failed, Trial};
use moec_ir::DType;
use moec_tests::quantised::Published;
use moec_tests::recorded::{self, Format, Place, measure, tolerance};
use std::path::Path;

/// Places in the emulator are a few families: `cargo xtask models` measures all.
const EMULATED: [&str; 4] = ["deepseek_v3", "gpt_oss", "mixtral", "nemotron_h"];

fn main() {
    let args = Arguments::from_args();
    let mut trials = vec![Trial::test("the table is complete and within bounds", the_table_is_complete)];
    for recorded in recorded::families() {
        let mut places = vec![Place::Cpu];
        if EMULATED.contains(&recorded.family.as_str()) {
            places.push(Place::Emulator("sm_100a"));
        }
        for place in places {
            let recorded = recorded.clone();
            let name = format!("{place:?}/{}/layer{}", recorded.family, recorded.layer);
            trials.push(Trial::test(name, move || {
                let scratch = Path::new(env!("CARGO_TARGET_TMPDIR")).join("models");
                let formats = Published::ALL.map(Format::Quantised);
                for format in formats.into_iter().chain([Format::Float(DType::BF16)]) {
                    let measured =
                        measure(&recorded, format, place, &scratch).map_err(|e| format!("{format:?}: {e}"))?;
                    let Some(m) = measured else { continue };
                    if m.error > tolerance(format) {
                        return Err(format!("{format:?}: relative error {:.2e}", m.error).into());
                    }
                    if let Some((n, other)) = m.routing.filter(|_| !matches!(format, Format::Float(_)))
                        && other > 0
                    {
                        return Err(format!("{format:?}: {other} of {n} tokens chose other experts").into());
                    }
                }
                Ok(())
            }));
        }
    }
    libtest_mimic::run(&args, trials).exit();
}

fn the_table_is_complete() -> Result<(), Failed> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/models.md");
    let text = std::fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
    let help = "run `cargo xtask models`";
    let rows: Vec<Vec<&str>> = text
        .lines()
        .filter(|l| l.starts_with("| "))
        .map(|l| l.trim_matches('|').split('|').map(str::trim).collect())
        .collect();
    let formats = Published::ALL.map(Published::name);
    let mut head = vec!["model type", "config", "routing", "f32", "bf16"];
    head.extend(formats);
    if rows.first() != Some(&head) {
        return Err(format!("the table's columns are not {head:?}; {help}").into());
    }
    let mut families: Vec<String> = recorded::families().into_iter().map(|r| r.family).collect();
    families.dedup();
    let listed: Vec<&str> = rows[1..].iter().map(|r| r[0]).collect();
    if listed != families {
        return Err(format!("the table lists other families than are recorded; {help}").into());
    }
    for row in &rows[1..] {
        for (column, cell) in head.iter().zip(row).skip(3) {
            let most = if *column == "bf16" { 1e-2 } else { 1e-5 };
            let errors: Vec<&str> = cell.trim_end_matches(" †").split(" · ").collect();
            let good = |e: &str| e.parse::<f64>().is_ok_and(|e| e <= most);
            let missing = *cell == "—" && formats[2..].contains(column);
            let measured = errors.len() == Place::ALL.len() && errors.iter().all(|e| good(e));
            if !missing && !measured {
                return Err(format!("`{}`, {column}: {cell}", row[0]).into());
            }
        }
        if row[1] != "yes" || row[2].contains("differ") {
            return Err(format!("`{}`: {} {}", row[0], row[1], row[2]).into());
        }
    }
    for model_type in moec_frontend::known_model_types() {
        if !text.contains(model_type) {
            return Err(format!("`{model_type}` is not in the document; {help}").into());
        }
    }
    Ok(())
}
