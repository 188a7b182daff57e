//! `docs/models.md` lists every family in every format, with errors that are within bounds; and every family runs with
//! quantised weights.
#![allow(clippy::unwrap_used)]

use libtest_mimic::{Arguments, Failed, Trial};
use moec_ir::{ActQuant, DType};
use moec_tests::quantised::Published;
use moec_tests::recorded::{self, ACTIVATIONS, Format, Place, Recorded, measure, tolerance};
use std::path::Path;

/// Formats for each layer on the CPU, and for every so many layers on an emulated device: `cargo xtask models` measures all.
const ON_CPU: usize = 1;
const EVERY: usize = 4;

/// FP8 rows and 4-bit weights, which Hopper multiplies as FP8.
const WIDENED: [Format; 3] = [
    Format::Quantised(Published::Mxfp4, Some(ActQuant::FP8_BLOCK)),
    Format::Quantised(Published::Int4, Some(ActQuant::FP8_TOKEN)),
    Format::Quantised(Published::Nvfp4, Some(ActQuant::FP8_BLOCK_POW2)),
];

fn main() {
    let args = Arguments::from_args();
    let mut trials = vec![Trial::test("the table is complete and within bounds", the_table_is_complete)];
    let formats: Vec<Format> =
        Published::ALL.map(|p| Format::Quantised(p, None)).into_iter().chain(ACTIVATIONS.map(|(_, f)| f)).collect();
    // Every family and every format is somewhere: layers take the formats in turn.
    let turn = |n: usize| formats[n % formats.len()];
    for (i, recorded) in recorded::families().into_iter().enumerate() {
        let mut on_cpu = vec![Format::Float(DType::BF16)];
        on_cpu.extend((0..ON_CPU).map(|j| turn(ON_CPU * i + j)));
        trials.push(trial(&recorded, Place::Cpu, on_cpu));
        if i % EVERY == 0 {
            let format = turn(i / EVERY);
            trials.push(trial(&recorded, Place::ALL[1 + i / EVERY % 2], vec![format]));
        }
        if ["gpt_oss", "kimi_k2"].contains(&recorded.family.as_str()) {
            trials.push(trial(&recorded, Place::ALL[1], WIDENED.to_vec()));
        }
        if recorded.family == "longcat_flash" {
            // Slots of experts that return their input have no row; the kernels that round rows stop before those.
            for place in &Place::ALL[1..] {
                trials.push(trial(&recorded, *place, ACTIVATIONS.map(|(_, f)| f).to_vec()));
            }
        }
    }
    libtest_mimic::run(&args, trials).exit();
}

fn trial(recorded: &Recorded, place: Place, formats: Vec<Format>) -> Trial {
    let recorded = recorded.clone();
    let name = format!("{place:?}/{}/layer{}", recorded.family, recorded.layer);
    Trial::test(name, move || {
        let scratch = Path::new(env!("CARGO_TARGET_TMPDIR")).join("models");
        for format in formats {
            let measured = measure(&recorded, format, place, &scratch).map_err(|e| format!("{format:?}: {e}"))?;
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
    })
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
    let mut families: Vec<String> = recorded::families().into_iter().map(|r| r.family).collect();
    families.dedup();
    let weights = Published::ALL.map(Published::name);
    let pairs = ACTIVATIONS.map(|(name, _)| name);
    let tables: [(&[&str], f64); 3] = [(&["config", "routing", "f32", "bf16"], 1e-5), (&weights, 1e-5), (&pairs, 1e-3)];
    if rows.len() != tables.len() * (families.len() + 1) {
        return Err(format!("there are {} rows; {help}", rows.len()).into());
    }
    for ((columns, most), table) in tables.into_iter().zip(rows.chunks(families.len() + 1)) {
        let head = [&["model type"], columns].concat();
        if table[0] != head {
            return Err(format!("the table's columns are not {head:?}; {help}").into());
        }
        for (row, family) in table[1..].iter().zip(&families) {
            if row[0] != family {
                return Err(format!("`{}` stands where `{family}` should; {help}", row[0]).into());
            }
            for (column, cell) in head.iter().zip(row).skip(1) {
                cell_is_good(family, column, cell, most)?;
            }
        }
    }
    for model_type in moec_frontend::known_model_types() {
        if !text.contains(model_type) {
            return Err(format!("`{model_type}` is not in the document; {help}").into());
        }
    }
    Ok(())
}

fn cell_is_good(family: &str, column: &str, cell: &str, most: f64) -> Result<(), Failed> {
    let most = if column == "bf16" { 1e-2 } else { most };
    let errors: Vec<&str> = cell.trim_end_matches(" †").split(" · ").collect();
    let measured = errors.len() == Place::ALL.len() && errors.iter().all(|e| e.parse::<f64>().is_ok_and(|e| e <= most));
    let good = match column {
        "config" => cell == "yes",
        "routing" => cell == "alone" || cell.ends_with(" tokens"),
        _ => measured,
    };
    if good { Ok(()) } else { Err(format!("`{family}`, {column}: {cell}").into()) }
}
