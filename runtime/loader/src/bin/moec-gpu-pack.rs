//! Checks and times a pack on this machine: `moec-gpu-pack [DIR] [--device D] [--json FILE] [--no-times] [--only CASE]`.
//!
//! Exit codes: 0 everything as expected; 1 something differs, or the pack is damaged; 2 wrong usage, or the machine
//! lacks a GPU or driver.

use moec_ir::diag::{Diagnostic, Fault};
use moec_runtime::Device;
use moec_runtime::gpu_pack::{run_pack, table};
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

const USAGE: &str = "\
usage: moec-gpu-pack [DIR] [--device cuda|cuda:N|cpu|emulator:T] [--json FILE] [--no-times] [--only CASE]

Runs every case of the pack in DIR (default: the folder of this program), or the one of that name; compares with the expected results, times
what is to be timed, prints a table and writes all figures to FILE (default: gpu-pack.json in the current folder).
";

struct Arguments {
    dir: PathBuf,
    device: Device,
    json: PathBuf,
    with_times: bool,
    only: Option<String>,
}

fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Arguments, String> {
    let beside = std::env::current_exe().ok().and_then(|p| p.parent().map(PathBuf::from)).unwrap_or_default();
    let (device, json) = (Device::Cuda { ordinal: 0 }, "gpu-pack.json".into());
    let mut out = Arguments { dir: beside, device, json, with_times: true, only: None };
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or_else(|| format!("`{argument}` needs a value"));
        match argument.as_str() {
            "--device" => out.device = Device::parse(&value()?).map_err(|d| d.to_string())?,
            "--json" => out.json = value()?.into(),
            "--no-times" => out.with_times = false,
            "--only" => out.only = Some(value()?),
            flag if flag.starts_with('-') => return Err(format!("`{flag}` is no option")),
            dir => out.dir = dir.into(),
        }
    }
    Ok(out)
}

fn main() -> ExitCode {
    // Output that nobody reads any more is no error of this program.
    let say = |text: &str| _ = std::io::stderr().lock().write_all(text.as_bytes());
    let arguments = match parse(std::env::args().skip(1)) {
        Ok(arguments) => arguments,
        Err(why) => {
            say(&format!("error: {why}\n\n{USAGE}"));
            return ExitCode::from(2);
        }
    };
    let progress = &mut |case: &str| say(&format!("running {case}\n"));
    let only = arguments.only.as_deref();
    match run_pack(&arguments.dir, &arguments.device, arguments.with_times, only, progress) {
        Ok(report) => {
            _ = std::io::stdout().lock().write_all(table(&report).as_bytes());
            let json = serde_json::to_string_pretty(&report).unwrap_or_default() + "\n";
            if let Err(e) = std::fs::write(&arguments.json, json) {
                say(&format!("error: `{}` cannot be written: {e}\n", arguments.json.display()));
                return ExitCode::from(1);
            }
            ExitCode::from(u8::from(!report.all_ok()))
        }
        Err(d) => {
            say(&render(&d));
            ExitCode::from(match d.fault {
                Fault::Input => 1,
                Fault::Machine => 2,
                Fault::Internal => 70,
            })
        }
    }
}

fn render(d: &Diagnostic) -> String {
    let notes: String = d.notes.iter().map(|n| format!("  = {n}\n")).collect();
    let help = d.help.as_ref().map(|h| format!("  = help: {h}\n")).unwrap_or_default();
    format!("error[{}]: {}\n{notes}{help}", d.code, d.message)
}
