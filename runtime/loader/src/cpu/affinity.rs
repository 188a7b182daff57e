//! Which processors threads run on.

use moec_ir::diag::Diagnostic;

/// The processors of a list as `taskset` takes it: `0-3,8`. Their order is that of the threads.
///
/// # Errors
/// `cpu-list-invalid`, also for a processor that is named twice.
pub fn parse_cpus(text: &str) -> Result<Vec<usize>, Diagnostic> {
    let invalid = |why: String| {
        Diagnostic::machine("cpu-list-invalid", format!("`{text}` is no list of processors: {why}"))
            .help("give numbers and ranges with commas between them, as in 0-3,8")
    };
    let mut cpus = Vec::new();
    for part in text.split(',') {
        let number = |n: &str| {
            let number = n.parse::<usize>().ok().filter(|n| *n < MAX_CPUS);
            number.ok_or_else(|| invalid(format!("`{n}` is no number below {MAX_CPUS}")))
        };
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (number(first)?, number(last)?);
        if first > last {
            return Err(invalid(format!("`{part}` ends before it begins")));
        }
        for cpu in first..=last {
            if cpus.contains(&cpu) {
                return Err(invalid(format!("{cpu} is in it twice")));
            }
            cpus.push(cpu);
        }
    }
    Ok(cpus)
}

/// Most processors that a set of Linux has room for.
const MAX_CPUS: usize = 1024;

/// That this thread may run on all of these.
///
/// # Errors
/// `cpu-not-available`, naming those that there are.
pub(super) fn check(cpus: &[usize]) -> Result<(), Diagnostic> {
    let allowed = allowed()?;
    let Some(missing) = cpus.iter().find(|cpu| !allowed.contains(cpu)) else { return Ok(()) };
    let list: Vec<String> = allowed.iter().map(usize::to_string).collect();
    let what = format!("processor {missing} is not one of those that this process may use: {}", list.join(", "));
    Err(Diagnostic::machine("cpu-not-available", what)
        .help("name others, or start the process with more (taskset, cpusets)"))
}

#[cfg(target_os = "linux")]
fn allowed() -> Result<Vec<usize>, Diagnostic> {
    // SAFETY: a set is plain bits, for which zeros are a value; the system writes as many bytes as it is told.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        if libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &mut set) != 0 {
            return Err(refused(&std::io::Error::last_os_error()));
        }
        Ok((0..MAX_CPUS).filter(|&cpu| libc::CPU_ISSET(cpu, &set)).collect())
    }
}

/// Lets the calling thread run on one processor only.
///
/// # Errors
/// `cpu-not-available` when the system refuses.
#[cfg(target_os = "linux")]
pub(super) fn pin(cpu: usize) -> Result<(), Diagnostic> {
    // SAFETY: as above; `cpu` is below the number of bits of a set (`parse_cpus`, `check`).
    let done = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu, &mut set);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set)
    };
    if done == 0 { Ok(()) } else { Err(refused(&std::io::Error::last_os_error())) }
}

#[cfg(not(target_os = "linux"))]
fn allowed() -> Result<Vec<usize>, Diagnostic> {
    Err(refused(&std::io::ErrorKind::Unsupported.into()))
}

#[cfg(not(target_os = "linux"))]
pub(super) fn pin(_: usize) -> Result<(), Diagnostic> {
    Err(refused(&std::io::ErrorKind::Unsupported.into()))
}

fn refused(error: &std::io::Error) -> Diagnostic {
    Diagnostic::machine("cpu-not-available", format!("threads cannot be kept on processors here: {error}"))
        .help("leave out the list of processors")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read_in_their_order() {
        for (text, cpus) in [("0", &[0][..]), ("0-3,8", &[0, 1, 2, 3, 8]), ("5,2-2,0", &[5, 2, 0])] {
            assert_eq!(parse_cpus(text).expect(text), cpus);
        }
        for wrong in ["", "a", "1-", "-1", "3-1", "0,,1", "0-2,1", "1024", "0 1"] {
            assert_eq!(parse_cpus(wrong).expect_err(wrong).code, "cpu-list-invalid", "{wrong}");
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn threads_of_a_pool_stay_on_their_processors() {
        use crate::cpu::Pool;
        // In a thread of its own, which is pinned as well.
        let pinned = || {
            let cpus = allowed().expect("Linux says");
            let pool = Pool::pinned(&cpus).expect("these are allowed");
            assert_eq!(pool.n_threads(), cpus.len());
            assert_eq!(allowed().expect("Linux says"), cpus[..1], "this thread is the first");
            let mut seen = 0;
            for task in std::fs::read_dir("/proc/self/task").expect("Linux") {
                let read = |file: &str| std::fs::read_to_string(task.as_ref().expect("task").path().join(file));
                // Threads of other tests come and go.
                let (Ok(name), Ok(status)) = (read("comm"), read("status")) else { continue };
                let Some(cpu) = name.trim().strip_prefix("moec-cpu") else { continue };
                let line = status.lines().find_map(|l| l.strip_prefix("Cpus_allowed_list:")).expect("a list");
                assert_eq!(line.trim(), cpu);
                seen += 1;
            }
            assert_eq!(seen, cpus.len() - 1);
            let missing = (0..MAX_CPUS).find(|cpu| !cpus.contains(cpu)).expect("no machine has so many");
            let d = Pool::pinned(&[cpus[0], missing]).expect_err("there is none");
            assert_eq!(d.code, "cpu-not-available");
            assert!(d.message.contains(&format!("processor {missing} ")), "{}", d.message);
        };
        std::thread::scope(|s| s.spawn(pinned).join()).expect("as it should be");
    }
}
