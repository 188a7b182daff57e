//! Naming devices, and which compiled target a GPU runs.

use moec_ir::diag::Diagnostic;
use moec_ir::target::{TARGETS, Target};

/// Where a layer runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Device {
    /// The host's processor, all cores.
    #[default]
    Cpu,
    /// An NVIDIA GPU.
    Cuda {
        /// Its number, as the driver counts.
        ordinal: usize,
    },
    /// The PTX of a target, executed on the host's processor with all checks.
    Emulator {
        /// Name of the target.
        target: &'static str,
    },
}

impl Device {
    /// The device called `name`: `cpu`, `cuda`, `cuda:N` or `emulator:T`, T a GPU target or chip.
    ///
    /// # Errors
    /// `unknown-device`.
    pub fn parse(name: &str) -> Result<Device, Diagnostic> {
        let unknown = || {
            let targets: Vec<&str> = TARGETS.iter().filter(|t| !t.is_cpu()).map(|t| t.name).collect();
            Diagnostic::machine("unknown-device", format!("there is no device `{name}`"))
                .help(format!("give `cpu`, `cuda`, `cuda:N` or `emulator:T`, T one of {}", targets.join(", ")))
        };
        match name.split_once(':') {
            None if name == "cpu" => Ok(Device::Cpu),
            None if name == "cuda" => Ok(Device::Cuda { ordinal: 0 }),
            Some(("cuda", n)) => n.parse().map(|ordinal| Device::Cuda { ordinal }).map_err(|_| unknown()),
            Some(("emulator", t)) => match Target::by_name(t) {
                Some(target) if !target.is_cpu() => Ok(Device::Emulator { target: target.name }),
                Some(_) | None => Err(unknown()),
            },
            Some(_) | None => Err(unknown()),
        }
    }
}

impl std::fmt::Display for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Device::Cpu => f.write_str("cpu"),
            Device::Cuda { ordinal } => write!(f, "cuda:{ordinal}"),
            Device::Emulator { target } => write!(f, "emulator:{target}"),
        }
    }
}

/// Which of `targets` a GPU of compute capability `major.minor` runs best; `None` when it runs none of them.
///
/// `sm_90` runs on 9.0 and everything later, `sm_100f` on later minor numbers of the same family, `sm_90a` on 9.0 only.
/// The newest counts, and among equals the most special.
/// Source: CUDA C programming guide, "Feature set compiler targets".
pub fn best_target<'a>(targets: impl IntoIterator<Item = &'a str>, major: u32, minor: u32) -> Option<&'a str> {
    targets
        .into_iter()
        .filter_map(|name| {
            let digits = name.strip_prefix("sm_")?;
            let (number, suffix) = match digits.strip_suffix(['a', 'f']) {
                Some(number) => (number, &digits[number.len()..]),
                None => (digits, ""),
            };
            let number: u32 = number.parse().ok()?;
            let (target_major, target_minor) = (number / 10, number % 10);
            let (runs, special) = match suffix {
                "a" => ((target_major, target_minor) == (major, minor), 2),
                "f" => (target_major == major && target_minor <= minor, 1),
                _ => ((target_major, target_minor) <= (major, minor), 0),
            };
            runs.then_some(((number, special), name))
        })
        .max_by_key(|(rank, _)| *rank)
        .map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_named_as_on_the_command_line() {
        for name in ["cpu", "cuda:0", "cuda:3", "emulator:sm_90a"] {
            assert_eq!(Device::parse(name).expect(name).to_string(), name);
        }
        assert_eq!(Device::parse("cuda").expect("cuda"), Device::Cuda { ordinal: 0 });
        assert_eq!(Device::parse("emulator:h200").expect("chip"), Device::Emulator { target: "sm_90a" });
        for name in ["", "gpu", "cuda:", "cuda:-1", "cuda:x", "cpu:0", "emulator", "emulator:cpu", "emulator:sm_12"] {
            assert_eq!(Device::parse(name).expect_err(name).code, "unknown-device", "{name}");
        }
    }

    #[test]
    fn a_gpu_runs_the_newest_target_that_it_understands() {
        let all = ["sm_80", "sm_90a", "sm_100a", "sm_100f", "sm_120f"];
        let best = |major, minor| best_target(all, major, minor);
        assert_eq!(best(7, 5), None);
        assert_eq!(best(8, 6), Some("sm_80"));
        assert_eq!(best(9, 0), Some("sm_90a"));
        assert_eq!(best(10, 0), Some("sm_100a"));
        assert_eq!(best(10, 3), Some("sm_100f"));
        // Rubin runs what is made for Blackwell's family.
        assert_eq!(best(10, 7), Some("sm_100f"));
        assert_eq!(best(11, 0), Some("sm_80"));
        assert_eq!(best(12, 1), Some("sm_120f"));
        assert_eq!(best_target(["sm_90a"], 10, 0), None);
        assert_eq!(best_target(["cpu", "sm_x", "sm_", "90"], 9, 0), None);
    }
}
