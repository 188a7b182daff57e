//! What of this process is in memory, as Linux counts it.

/// A line of `/proc/self/status`, in bytes.
fn status(name: &str) -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let line = text.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(':')).expect(name);
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1024
}

/// By how much resident memory was higher, at most, while something was done, than before it.
pub fn peak<T>(what: impl FnOnce() -> T) -> (u64, T) {
    // The peak begins anew. Source: proc(5), clear_refs.
    std::fs::write("/proc/self/clear_refs", "5").expect("the peak is reset");
    let before = status("VmRSS");
    let result = what();
    (status("VmHWM").saturating_sub(before), result)
}
