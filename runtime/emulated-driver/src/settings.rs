//! What the environment asks for.

use crate::call::tell;
use crate::chips::{CHIPS, Chip};
use moec_ptx::exec::{Checks, Options, Schedule};
use std::path::PathBuf;
use std::sync::OnceLock;

/// The choices of whoever starts the program.
pub struct Settings {
    /// One chip a GPU: `MOEC_EMULATED_GPU=b200` or `b200,b200`; a GPU with none is an A100.
    pub chips: Vec<Chip>,
    /// Checks (`MOEC_EMULATED_CHECKS`: all, none, a list), schedule (`MOEC_EMULATED_SEED`: a number).
    pub options: Options,
    /// Whether findings are told as JSON lines (`MOEC_EMULATED_FORMAT=json`).
    pub json: bool,
    /// A file that gets a line of JSON for each launch (`MOEC_EMULATED_LOG`).
    pub log: Option<PathBuf>,
}

/// The settings of this process; `None` when what is asked for does not exist, which was told.
pub fn settings() -> Option<&'static Settings> {
    static SETTINGS: OnceLock<Option<Settings>> = OnceLock::new();
    let read = || match read() {
        Ok(settings) => Some(settings),
        Err(why) => {
            tell(&why);
            None
        }
    };
    SETTINGS.get_or_init(read).as_ref()
}

fn read() -> Result<Settings, String> {
    let variable = |name: &str| std::env::var(name).ok().filter(|v| !v.is_empty());
    let mut chips = Vec::new();
    for name in variable("MOEC_EMULATED_GPU").as_deref().unwrap_or("a100").split(',') {
        chips.push(Chip::by_name(name).ok_or_else(|| {
            let all: Vec<&str> = CHIPS.iter().map(|c| c.name).collect();
            format!("MOEC_EMULATED_GPU: no GPU is called `{name}`; there are {}, or sm_90a", all.join(", "))
        })?);
    }
    if chips.iter().any(|c| c.sm != chips[0].sm) {
        return Err("MOEC_EMULATED_GPU: all GPUs have to be of one architecture".to_owned());
    }
    let checks = variable("MOEC_EMULATED_CHECKS");
    let checks = Checks::parse(checks.as_deref().unwrap_or("all")).map_err(|e| format!("MOEC_EMULATED_CHECKS: {e}"))?;
    let schedule = match variable("MOEC_EMULATED_SEED") {
        None => Schedule::RoundRobin,
        Some(seed) => {
            Schedule::Random(seed.parse().map_err(|_| format!("MOEC_EMULATED_SEED: `{seed}` is no whole number"))?)
        }
    };
    Ok(Settings {
        chips,
        options: Options { checks, schedule, counters: false, ..Options::default() },
        json: variable("MOEC_EMULATED_FORMAT").is_some_and(|f| f == "json"),
        log: variable("MOEC_EMULATED_LOG").map(PathBuf::from),
    })
}
