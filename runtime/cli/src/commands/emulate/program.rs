//! `moec emulate -- PROGRAM`: a program whose CUDA driver is the emulator.

use crate::output::{self, Ended, counted};
use crate::report::MessageFormat;
use moec::Diagnostic;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The driver's file, beside the programs of this project or in the `lib` folder of what is given to users.
const FILE: &str = "libmoec_emulated_driver.so";

/// What the program finds in its environment.
pub struct Setting<'a> {
    pub gpu: Option<&'a str>,
    pub checks: Option<&'a str>,
    pub seed: Option<u64>,
    pub format: MessageFormat,
}

/// Runs the program; its exit code is ours, unless it is 0 and there were findings.
///
/// # Errors
/// `emulated-driver-missing`, `program-not-started`, `output-not-written`.
pub fn run(program: &[OsString], setting: &Setting<'_>) -> Result<Ended, Diagnostic> {
    let Some((name, arguments)) = program.split_first() else { return Ok(Ended::Well) };
    let folder = tempfile::tempdir().map_err(|e| Diagnostic::machine("output-not-written", e.to_string()))?;
    link(folder.path())?;
    let log = folder.path().join("launches.jsonl");
    let mut command = Command::new(name);
    command.args(arguments).env("LD_LIBRARY_PATH", search_path(folder.path())).env("MOEC_EMULATED_LOG", &log);
    if let Some(gpu) = setting.gpu {
        command.env("MOEC_EMULATED_GPU", gpu);
    }
    if let Some(checks) = setting.checks {
        command.env("MOEC_EMULATED_CHECKS", checks);
    }
    if let Some(seed) = setting.seed {
        command.env("MOEC_EMULATED_SEED", seed.to_string());
    }
    if setting.format == MessageFormat::Json {
        command.env("MOEC_EMULATED_FORMAT", "json");
    }
    let status = command.status().map_err(|e| {
        let name = Path::new(name).display();
        Diagnostic::input("program-not-started", format!("`{name}` cannot be started: {e}"))
            .help("give the program with its folder, such as `./program`")
    })?;
    let (text, findings) = summary(&std::fs::read_to_string(&log).unwrap_or_default());
    if setting.format == MessageFormat::Human {
        output::remark(&text);
    }
    Ok(match code(status) {
        0 if findings > 0 => Ended::WithFindings,
        0 => Ended::Well,
        code => Ended::As(code),
    })
}

/// Puts the driver into a folder under the names that programs and linkers look for.
///
/// # Errors
/// `emulated-driver-missing`, `output-not-written`.
pub fn link(folder: &Path) -> Result<(), Diagnostic> {
    let driver = driver()?;
    for name in ["libcuda.so.1", "libcuda.so"] {
        let place = folder.join(name);
        let made = std::fs::create_dir_all(folder).and_then(|()| symlink(&driver, &place));
        made.map_err(|e| {
            Diagnostic::input("output-not-written", format!("`{}` cannot be written: {e}", place.display()))
        })?;
    }
    Ok(())
}

#[cfg(unix)]
fn symlink(to: &Path, at: &Path) -> std::io::Result<()> {
    if at.is_symlink() {
        std::fs::remove_file(at)?;
    }
    std::os::unix::fs::symlink(to, at)
}

#[cfg(not(unix))]
fn symlink(to: &Path, at: &Path) -> std::io::Result<()> {
    std::fs::copy(to, at).map(|_| ())
}

/// The driver's file.
fn driver() -> Result<PathBuf, Diagnostic> {
    let given = std::env::var_os("MOEC_EMULATED_DRIVER").map(PathBuf::from);
    let here = std::env::current_exe().and_then(|p| p.canonicalize()).unwrap_or_default();
    let beside = here.with_file_name(FILE);
    let in_lib = here.parent().map(|bin| bin.with_file_name("lib").join(FILE)).unwrap_or_default();
    let places: Vec<PathBuf> = match given {
        Some(path) => vec![path],
        None => vec![beside, in_lib],
    };
    if let Some(found) = places.iter().find(|p| p.is_file()) {
        return Ok(found.canonicalize().unwrap_or_else(|_| found.clone()));
    }
    let looked: Vec<String> = places.iter().map(|p| format!("`{}`", p.display())).collect();
    Err(Diagnostic::machine("emulated-driver-missing", "the emulated CUDA driver was not found")
        .note(format!("looked at {}", looked.join(" and ")))
        .help("build it with `cargo build --release -p moec-emulated-driver`, and keep it beside `moec` or name it in MOEC_EMULATED_DRIVER"))
}

/// The program's search path with our folder before.
fn search_path(folder: &Path) -> OsString {
    let old = std::env::var_os("LD_LIBRARY_PATH").filter(|p| !p.is_empty());
    let mut path = folder.as_os_str().to_owned();
    if let Some(old) = old {
        path.push(OsStr::new(":"));
        path.push(old);
    }
    path
}

fn code(status: std::process::ExitStatus) -> u8 {
    #[cfg(unix)]
    if let Some(signal) = std::os::unix::process::ExitStatusExt::signal(&status) {
        return u8::try_from(128 + signal).unwrap_or(255);
    }
    u8::try_from(status.code().unwrap_or(255)).unwrap_or(255)
}

/// One line about all launches, from a line of JSON for each; and the number of findings.
fn summary(log: &str) -> (String, u64) {
    let launches: Vec<serde_json::Value> = log.lines().filter_map(|l| serde_json::from_str(l).ok()).collect();
    let sum = |key: &str| launches.iter().filter_map(|l| l[key].as_u64()).sum::<u64>();
    let stopped = launches.iter().filter(|l| l["completed"] == false).count() as u64;
    let (findings, notes) = (sum("findings"), sum("notes"));
    let mut text = format!(
        "moec: {}, {} lane instructions, {}, {}",
        counted(launches.len() as u64, "launch"),
        sum("instructions"),
        counted(findings, "finding"),
        counted(notes, "note")
    );
    if stopped > 0 {
        text += &format!(", {} stopped", counted(stopped, "launch"));
    }
    (text, findings + stopped)
}

#[cfg(test)]
mod tests {
    use super::summary;

    #[test]
    fn launches_are_summed_up() {
        let line = |completed, findings| {
            format!("{{\"completed\":{completed},\"findings\":{findings},\"notes\":1,\"instructions\":5}}\n")
        };
        let (text, findings) = summary(&(line(true, 0) + &line(false, 2) + "cut off"));
        assert_eq!(text, "moec: 2 launches, 10 lane instructions, 2 findings, 2 notes, 1 launch stopped");
        assert_eq!(findings, 3);
    }
}
