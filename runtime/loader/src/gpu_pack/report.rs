//! What running a pack gives, as data and as a table.

use super::check::Check;
use crate::device::Device;
use moec_ir::diag::Diagnostic;
use serde::{Deserialize, Serialize};

/// The results of a pack.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PackReport {
    /// Version of this program.
    pub moec_version: String,
    /// Name of the device, with figures.
    pub device: String,
    /// CUDA version of the driver, as `major * 1000 + minor * 10`; 0 without one.
    pub driver_version: u32,
    /// One for each case of the pack, in order.
    pub cases: Vec<CaseReport>,
}

/// The results of one case.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CaseReport {
    /// The case.
    pub name: String,
    /// The target that ran; empty when it did not come to that.
    pub target: String,
    /// Tokens.
    pub n_tokens: u64,
    /// Index of the variant that was chosen.
    pub variant: usize,
    /// Comparisons with what was expected.
    pub checks: Vec<Check>,
    /// What the emulator's checks found.
    pub findings: Vec<String>,
    /// Whether a second run gave the same bits.
    pub same_bits_again: Option<bool>,
    /// CUDA: whether a captured graph gave the same bits, at the token count and at a smaller one.
    pub same_bits_in_graph: Option<bool>,
    /// CUDA: times of the whole layer.
    pub layer: Option<LayerTime>,
    /// CUDA: times of each kernel.
    pub kernels: Vec<KernelTime>,
    /// Why the case could not be run.
    pub error: Option<String>,
}

/// Medians over repetitions, in microseconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayerTime {
    /// One launch of all kernels after another, caches as the last left them.
    pub warm_us: f64,
    /// One launch after the second-level cache was overwritten; events before and after included.
    pub cold_us: f64,
    /// As `warm_us`, launched as a CUDA graph.
    pub graph_us: f64,
    /// As `cold_us`, launched as a CUDA graph.
    pub graph_cold_us: f64,
    /// What `cold_us` measures when nothing is launched between the events.
    pub empty_us: f64,
    /// Bytes of weights that the run's tokens need: of expert weights only the chosen experts.
    pub weight_bytes: u64,
    /// `weight_bytes` over `graph_cold_us`, in GB/s.
    pub cold_gb_per_s: f64,
}

/// Times of one kernel, as in [`LayerTime`], and what the driver made of it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KernelTime {
    /// The kernel.
    pub name: String,
    /// Registers of a thread.
    pub registers: u32,
    /// Local memory of a thread in bytes; more than 0 means spilled registers.
    pub local_bytes: u32,
    /// Caches as the last launch of the same kernel left them.
    pub warm_us: f64,
    /// After the second-level cache was overwritten.
    pub cold_us: f64,
}

impl PackReport {
    /// An empty report for a device.
    ///
    /// # Errors
    /// On CUDA, when the device cannot be opened.
    pub(crate) fn new(device: &Device) -> Result<PackReport, Diagnostic> {
        let (name, driver_version) = match device {
            #[cfg(feature = "cuda")]
            Device::Cuda { ordinal } => {
                let opened = crate::cuda::CudaDevice::open(*ordinal)?;
                let i = opened.info();
                let (major, minor) = i.capability;
                let name = format!(
                    "{} (compute capability {major}.{minor}, {} SMs, {} MiB of L2)",
                    i.name,
                    i.n_sms,
                    i.l2_bytes >> 20
                );
                (name, i.driver_version)
            }
            other => (other.to_string(), 0),
        };
        let moec_version = env!("CARGO_PKG_VERSION").to_string();
        Ok(PackReport { moec_version, device: name, driver_version, cases: Vec::new() })
    }

    /// Whether there are cases, every one ran and was compared, and nothing differed from what was expected.
    pub fn all_ok(&self) -> bool {
        !self.cases.is_empty() && self.cases.iter().all(CaseReport::ok)
    }
}

impl CaseReport {
    /// Whether the case ran, there was something to compare and every comparison held, and repetitions gave the same bits.
    pub fn ok(&self) -> bool {
        self.error.is_none()
            && !self.checks.is_empty()
            && self.checks.iter().all(|c| c.ok)
            && self.findings.is_empty()
            && self.same_bits_again != Some(false)
            && self.same_bits_in_graph != Some(false)
    }
}

/// The report as text for people.
pub fn table(report: &PackReport) -> String {
    let mut out = format!("{}\n", report.device);
    if report.driver_version > 0 {
        let v = report.driver_version;
        out += &format!("driver for CUDA {}.{}\n", v / 1000, v % 1000 / 10);
    }
    out += &format!("\n{:<40} {:<9} {:>7}  {:<6} {}\n", "case", "target", "tokens", "result", "largest error");
    for c in &report.cases {
        let worst = c.checks.iter().filter(|k| k.tolerance > 0.0).map(|k| k.error).fold(0.0, f64::max);
        let verdict = if c.ok() { "ok" } else { "WRONG" };
        out += &format!("{:<40} {:<9} {:>7}  {:<6} ", c.name, c.target, c.n_tokens, verdict);
        out += &if c.checks.is_empty() { "nothing to compare\n".to_string() } else { format!("{worst:.2e}\n") };
        let wrong = c.checks.iter().filter(|k| !k.ok);
        let mut reasons: Vec<String> =
            wrong.map(|k| format!("{}: error {:.2e}, at most {:.2e}", k.what, k.error, k.tolerance)).collect();
        reasons.extend(c.error.clone());
        reasons.extend(c.findings.iter().take(10).cloned());
        if c.same_bits_again == Some(false) {
            reasons.push("a second run gave other bits".into());
        }
        if c.same_bits_in_graph == Some(false) {
            reasons.push("the captured graph gave other bits".into());
        }
        reasons.iter().for_each(|r| out += &format!("    {r}\n"));
    }
    if report.cases.iter().any(|c| c.layer.is_some()) {
        out += &format!(
            "\n{:<40} {:>7} {:>10} {:>10} {:>10} {:>10} {:>9}\n",
            "microseconds", "tokens", "warm", "cold", "graph", "graph cold", "GB/s cold"
        );
    }
    for c in &report.cases {
        let Some(t) = &c.layer else { continue };
        out += &format!(
            "{:<40} {:>7} {:>10.1} {:>10.1} {:>10.1} {:>10.1} {:>9.0}\n",
            c.name, c.n_tokens, t.warm_us, t.cold_us, t.graph_us, t.graph_cold_us, t.cold_gb_per_s
        );
        for k in &c.kernels {
            let spilled =
                if k.local_bytes > 0 { format!(", {} bytes of local memory", k.local_bytes) } else { String::new() };
            out += &format!(
                "  {:<38} {:>7} {:>10.1} {:>10.1}   {} registers{spilled}\n",
                k.name, "", k.warm_us, k.cold_us, k.registers
            );
        }
    }
    out
}
