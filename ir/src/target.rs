//! The machines that moec compiles for.

use crate::act_quant::ActQuant;
use crate::engine::Engine;
use crate::quant::QuantFormat;
use crate::tile::ScaledProduct;
use serde::{Deserialize, Serialize};

/// A target: a PTX architecture, or the CPU.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Target {
    /// Name on the command line and in bundles: `sm_100f`, `cpu`.
    pub name: &'static str,
    /// What kind of machine.
    pub kind: TargetKind,
    /// What the cost model assumes of the machine that stands behind the name.
    pub machine: Machine,
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
        }
    }
}

/// Figures of a machine for the cost model. Dense rates, without sparsity.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Machine {
    /// The chip they belong to.
    pub chip: &'static str,
    /// Memory bandwidth in bytes per second.
    pub memory_bytes_per_s: f64,
    /// bf16 multiply-add operations, counted as two flops, per second.
    pub bf16_flops: f64,
    /// FP8 flops per second with sums in f32; 0 where there are none.
    pub fp8_flops: f64,
    /// FP4 flops per second with sums in f32; 0 where there are none.
    pub fp4_flops: f64,
    /// f32 flops per second outside the tensor cores.
    pub f32_flops: f64,
    /// Time between the start of a launch and the start of the next, in seconds.
    pub launch_s: f64,
    /// Streaming multiprocessors, or cores.
    pub n_units: u32,
}

const A100: Machine = Machine {
    chip: "A100 SXM",
    memory_bytes_per_s: 2.0e12,
    bf16_flops: 312e12,
    fp8_flops: 0.0,
    fp4_flops: 0.0,
    f32_flops: 19.5e12,
    launch_s: 2.5e-6,
    n_units: 108,
};
/// Source of this and the next: NVIDIA's data sheets; 16-bit products with sums in f32.
const A10: Machine =
    Machine { chip: "A10", memory_bytes_per_s: 0.6e12, bf16_flops: 125e12, f32_flops: 31.2e12, n_units: 72, ..A100 };
const L40S: Machine = Machine {
    chip: "L40S",
    memory_bytes_per_s: 0.864e12,
    bf16_flops: 362e12,
    f32_flops: 91.6e12,
    n_units: 142,
    ..A100
};
const H200: Machine = Machine {
    chip: "H200 SXM",
    memory_bytes_per_s: 4.8e12,
    bf16_flops: 989e12,
    fp8_flops: 1979e12,
    fp4_flops: 0.0,
    f32_flops: 67e12,
    launch_s: 2.0e-6,
    n_units: 132,
};
const B200: Machine = Machine {
    chip: "B200",
    memory_bytes_per_s: 8.0e12,
    bf16_flops: 2250e12,
    fp8_flops: 4500e12,
    fp4_flops: 9000e12,
    f32_flops: 75e12,
    launch_s: 2.0e-6,
    n_units: 148,
};
/// The superchip's higher power limit.
pub const GB200: Machine =
    Machine { chip: "GB200", bf16_flops: 2500e12, fp8_flops: 5000e12, fp4_flops: 10000e12, ..B200 };
// Public sources give 13 to 15 Pflop/s in FP4.
const B300: Machine = Machine { chip: "B300", fp4_flops: 13000e12, n_units: 160, ..B200 };
/// As announced: sources disagree by up to two on what is dense. FP4 and FP8 are the figures for
/// training, bf16 is half of FP8, multiprocessors and launch time are guesses.
pub const RUBIN: Machine = Machine {
    chip: "Rubin (announced)",
    memory_bytes_per_s: 22.0e12,
    bf16_flops: 8750e12,
    fp8_flops: 17500e12,
    fp4_flops: 35000e12,
    n_units: 224,
    ..B200
};
const RTX5090: Machine = Machine {
    chip: "RTX 5090",
    memory_bytes_per_s: 1.79e12,
    bf16_flops: 209.5e12,
    fp8_flops: 419e12,
    fp4_flops: 1676e12,
    f32_flops: 104.8e12,
    launch_s: 2.5e-6,
    n_units: 170,
};
const HOST: Machine = Machine {
    chip: "host CPU",
    memory_bytes_per_s: 20e9,
    bf16_flops: 100e9,
    fp8_flops: 0.0,
    fp4_flops: 0.0,
    f32_flops: 100e9,
    launch_s: 5e-6,
    n_units: 2,
};

const fn gpu(
    name: &'static str,
    (ptx_version, capability): (u32, u32),
    smem_kib: u32,
    engine: Engine,
    machine: Machine,
) -> Target {
    Target { name, kind: TargetKind::Gpu { ptx_version, capability, smem_bytes: smem_kib * 1024, engine }, machine }
}

/// Every target, oldest first. Shared memory: CUDA C programming guide, table of technical specifications.
pub const TARGETS: &[Target] = &[
    Target { name: "cpu", kind: TargetKind::Cpu, machine: HOST },
    gpu("sm_80", (70, 80), 163, Engine::Portable, A100),
    gpu("sm_86", (71, 86), 99, Engine::Portable, A10),
    gpu("sm_89", (78, 89), 99, Engine::GeForce, L40S),
    gpu("sm_90a", (80, 90), 227, Engine::Hopper, H200),
    gpu("sm_100a", (86, 100), 227, Engine::Blackwell, B200),
    gpu("sm_100f", (88, 100), 227, Engine::Blackwell, B200),
    gpu("sm_103a", (88, 103), 227, Engine::Blackwell, B300),
    gpu("sm_107f", (94, 107), 227, Engine::Blackwell, RUBIN),
    gpu("sm_120a", (87, 120), 99, Engine::GeForce, RTX5090),
    gpu("sm_120f", (88, 120), 99, Engine::GeForce, RTX5090),
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
        let product = ScaledProduct::of(rows, weights)?;
        match engine {
            Engine::Portable => None,
            // f32 scales are no part of an instruction.
            Engine::Hopper | Engine::Blackwell | Engine::GeForce => {
                (product == ScaledProduct::Fp8 || self.features().block_scales).then_some(product)
            }
        }
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
