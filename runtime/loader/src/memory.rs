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

/// A number of bytes as people write it: `8GiB`, `1.5 GB`, `4096`.
///
/// # Errors
/// `size-invalid`.
pub fn parse_bytes(text: &str) -> Result<u64, Diagnostic> {
    let invalid = || {
        Diagnostic::machine("size-invalid", format!("`{text}` is not a number of bytes"))
            .help("give a number and B, KiB, MiB, GiB, TiB (by 1024) or kB, MB, GB, TB (by 1000), as in 8GiB")
    };
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = (&text[..digits], text[digits..].trim());
    let unit: u64 = match unit {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1 << 40,
        "kB" | "KB" => 1000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "TB" => 1_000_000_000_000,
        _ => return Err(invalid()),
    };
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(unit).ok_or_else(invalid);
    }
    let bytes = number.parse::<f64>().map_err(|_| invalid())? * unit as f64;
    // Far more than any machine has, and exact as a float.
    if bytes <= (1u64 << 53) as f64 { Ok(bytes as u64) } else { Err(invalid()) }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_read_in_every_unit() {
        let cases = [("0", 0), ("4096", 4096), ("7B", 7), ("8GiB", 8 << 30), ("1.5KiB", 1536), ("2 MiB", 2 << 20)];
        for (text, bytes) in cases.into_iter().chain([("1TiB", 1 << 40), ("3kB", 3000), ("0.5GB", 500_000_000)]) {
            assert_eq!(parse_bytes(text).expect(text), bytes);
        }
        for wrong in ["", "GiB", "8G", "8 gib", "-1", "1e9", "1.2.3MB", "nan", "8GiB ish", "99999999TiB", "1.5e3"] {
            assert_eq!(parse_bytes(wrong).expect_err(wrong).code, "size-invalid", "{wrong}");
        }
    }
}
