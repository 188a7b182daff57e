//! The machines that moec compiles for.

use crate::act_quant::ActQuant;
use crate::engine::Engine;
use crate::quant::QuantFormat;
use crate::tile::ScaledProduct;
use serde::{Deserialize, Serialize};

/// A target: a PTX architecture, or the CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// Name on the command line and in bundles: `sm_100f`, `cpu`.
    pub name: &'static str,
    /// What kind of machine.
    pub kind: TargetKind,
}

/// What kind of machine a target is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TargetKind {
    /// The host's own processor.
    Cpu,
    /// An NVIDIA GPU.
    Gpu {
        /// Lowest PTX ISA version that has the target, times ten; a kernel's text has a higher one where its instructions do.
        ptx_version: u32,
        /// Compute capability of the oldest chip that runs it, times ten.
        capability: u32,
        /// Largest dynamic shared memory of a block, in bytes.
        smem_bytes: u32,
        /// How it runs the contractions that its own engine takes.
        engine: Engine,
    },
}

/// What chips of a target have beside tensor cores, by compute capability.
///
/// Source: PTX ISA, the `Target ISA Notes` of the instructions that are named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features {
    /// A kernel starts while the one before runs (`griddepcontrol`).
    pub programmatic: bool,
    /// Clusters of more than one CTA share their memory (`mapa`); on sm_120 they are of one.
    pub clusters: bool,
    /// Converts e4m3 (`cvt.rn.f16x2.e4m3x2`).
    pub e4m3: bool,
    /// Converts e2m1 (`cvt.rn.f16x2.e2m1x2`).
    pub e2m1: bool,
    /// Multiplies codes with block scales (`.block_scale`).
    pub block_scales: bool,
    /// Stores to the memory of several chips at once (`multimem`).
    pub multicast: bool,
}

impl Features {
    /// Those of compute capability `n`, times ten.
    const fn of(n: u32) -> Features {
        Features {
            programmatic: n >= 90,
            clusters: n >= 90 && n < 120,
            e4m3: n >= 89,
            e2m1: n >= 100,
            block_scales: n >= 100,
            multicast: n >= 90,
        }
    }
}

const fn gpu(name: &'static str, (ptx_version, capability): (u32, u32), smem_kib: u32, engine: Engine) -> Target {
    Target { name, kind: TargetKind::Gpu { ptx_version, capability, smem_bytes: smem_kib * 1024, engine } }
}

/// Every target, oldest first. Shared memory: CUDA C programming guide, table of technical specifications.
pub const TARGETS: &[Target] = &[
    Target { name: "cpu", kind: TargetKind::Cpu },
    gpu("sm_80", (70, 80), 163, Engine::Portable),
    gpu("sm_86", (71, 86), 99, Engine::Portable),
    gpu("sm_89", (78, 89), 99, Engine::GeForce),
    gpu("sm_90a", (80, 90), 227, Engine::Hopper),
    gpu("sm_100a", (86, 100), 227, Engine::Blackwell),
    gpu("sm_100f", (88, 100), 227, Engine::Blackwell),
    gpu("sm_103a", (88, 103), 227, Engine::Blackwell),
    gpu("sm_107f", (94, 107), 227, Engine::Blackwell),
    gpu("sm_120a", (87, 120), 99, Engine::GeForce),
    gpu("sm_120f", (88, 120), 99, Engine::GeForce),
];

/// Names that stand for a target: `(alias, target)`. Chips, and architectures that a target serves.
///
/// Source: CUDA GPU compute capability table; CUDA programming guide, "Feature set compiler targets", for families.
pub const ALIASES: &[(&str, &str)] = &[
    ("a100", "sm_80"),
    ("a10", "sm_86"),
    ("a40", "sm_86"),
    ("rtx3090", "sm_86"),
    ("l4", "sm_89"),
    ("l40s", "sm_89"),
    ("rtx4090", "sm_89"),
    ("sm_90", "sm_90a"),
    ("h20", "sm_90a"),
    ("h100", "sm_90a"),
    ("h200", "sm_90a"),
    ("gh200", "sm_90a"),
    ("sm_100", "sm_100f"),
    ("sm_103", "sm_100f"),
    ("b200", "sm_100f"),
    ("gb200", "sm_100f"),
    ("b300", "sm_103a"),
    ("gb300", "sm_103a"),
    ("sm_107", "sm_107f"),
    ("sm_107a", "sm_107f"),
    ("rubin", "sm_107f"),
    ("vera-rubin", "sm_107f"),
    ("sm_120", "sm_120f"),
    ("sm_121", "sm_120f"),
    ("rtx5090", "sm_120f"),
    ("gb10", "sm_120f"),
];

/// Chips that no target serves, and why.
pub const UNSERVED: &[(&str, &str)] = &[
    ("thor", "Jetson Thor is sm_110, a family of its own"),
    ("sm_110", "sm_110 is a family of its own"),
    ("v100", "before sm_80 there is no `cp.async`"),
    ("t4", "before sm_80 there is no `cp.async`"),
];

impl Target {
    /// The target or chip called `name`.
    pub fn by_name(name: &str) -> Option<&'static Target> {
        let name = ALIASES.iter().find(|(alias, _)| *alias == name).map_or(name, |(_, target)| target);
        TARGETS.iter().find(|t| t.name == name)
    }

    /// How kernels of this target multiply codes of rows with codes of weights; `None` where they make floats of them first.
    pub fn scaled_product(&self, rows: ActQuant, weights: QuantFormat) -> Option<ScaledProduct> {
        let TargetKind::Gpu { engine, .. } = self.kind else { return None };
        match engine {
            Engine::Portable => None,
            Engine::Hopper => ScaledProduct::of_fp8(rows, weights),
            Engine::Blackwell | Engine::GeForce => {
                let product = ScaledProduct::of(rows, weights)?;
                // f32 scales are no part of an instruction.
                (product == ScaledProduct::Fp8 || self.features().block_scales).then_some(product)
            }
        }
    }

    /// Whether products round rows to this format as they read them.
    pub fn rounds_rows_as_read(&self, rows: ActQuant) -> bool {
        self.is_cpu() && !rows.is_stored()
    }

    /// What its chips have; nothing on the CPU.
    pub fn features(&self) -> Features {
        match self.kind {
            TargetKind::Gpu { capability, .. } => Features::of(capability),
            TargetKind::Cpu => Features::of(0),
        }
    }

    /// Whether this is the CPU.
    pub fn is_cpu(&self) -> bool {
        self.kind == TargetKind::Cpu
    }
}
