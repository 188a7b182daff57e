//! Host memory for buffers: page-aligned, zero until written.

use memmap2::MmapMut;
use moec_ir::diag::Diagnostic;

/// Memory for `bytes` bytes, aligned to a page. Pages that are never written take no memory.
pub(crate) fn allocate(bytes: u64, what: &str) -> Result<MmapMut, Diagnostic> {
    let refused = |why: String| {
        Diagnostic::machine("out-of-memory", format!("there is no room for {} of {what}: {why}", size(bytes)))
            .help("ask for fewer tokens at a time, or use a machine with more memory")
    };
    let len = usize::try_from(bytes).map_err(|e| refused(e.to_string()))?;
    let map = MmapMut::map_anon(len.max(1)).map_err(|e| refused(e.to_string()))?;
    // Large pages spare the address translation that streaming through weights is bound by. Only advice: kernels without
    // them refuse it, and nothing depends on it.
    #[cfg(target_os = "linux")]
    if len >= 4 << 20 {
        let _ = map.advise(memmap2::Advice::HugePage);
    }
    Ok(map)
}

/// A number of bytes for people.
pub(crate) fn size(bytes: u64) -> String {
    match bytes {
        0..1024 => format!("{bytes} bytes"),
        1024..0x10_0000 => format!("{:.1} KiB", bytes as f64 / 1024.0),
        0x10_0000..0x4000_0000 => format!("{:.1} MiB", bytes as f64 / (1u64 << 20) as f64),
        _ => format!("{:.1} GiB", bytes as f64 / (1u64 << 30) as f64),
    }
}
