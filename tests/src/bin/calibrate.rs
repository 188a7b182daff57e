//! Fits the guesses of the model of time to the `results.json` of a GPU pack: `calibrate RESULTS.json`. `cargo xtask calibrate` runs it.
#![allow(clippy::print_stdout, reason = "it prints what it found")]

use moec_runtime::gpu_pack::PackReport;
use moec_tests::calibrate;

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    let path = std::env::args().nth(1).ok_or("usage: calibrate RESULTS.json")?;
    let text = std::fs::read_to_string(&path).map_err(|e| format!("{path}: {e}"))?;
    let report: PackReport = serde_json::from_str(&text)
        .map_err(|e| format!("{path}: {e}; expected what `run.sh` of a GPU pack writes to results.json"))?;
    let (_, text) = calibrate::report(&report, calibrate::chip(&report)?)?;
    print!("{text}");
    Ok(())
}
