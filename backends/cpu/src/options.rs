//! Which processor code is generated for.

use crate::error::internal;
use cranelift_codegen::isa::{self, OwnedTargetIsa};
use cranelift_codegen::settings::{self, Configurable};
use moec_ir::Diagnostic;
use std::str::FromStr;
use target_lexicon::Triple;

/// The instruction set of an object file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CpuArch {
    /// x86-64 with the System V calling convention.
    #[default]
    X86_64,
    /// 64-bit Arm with the AAPCS64 calling convention.
    Aarch64,
}

/// Which instructions beyond the architecture's first version may be used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CpuFeatures {
    /// x86-64-v3 (AVX2, FMA, BMI: Intel since 2013, AMD since 2015); plain Armv8-A on aarch64. The same on every host.
    #[default]
    Baseline,
    /// What the machine has that compiles. Bytes then depend on that machine.
    Native,
}

/// What an object file is compiled for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ObjectOptions {
    /// Instruction set.
    pub arch: CpuArch,
    /// Extensions of it. [`CpuFeatures::Native`] needs `arch` to be the compiling machine's own.
    pub features: CpuFeatures,
}

impl CpuArch {
    /// The name in manifests: `x86_64`, `aarch64`.
    pub fn name(self) -> &'static str {
        match self {
            CpuArch::X86_64 => "x86_64",
            CpuArch::Aarch64 => "aarch64",
        }
    }

    /// The architecture of this process, if code can be generated for it.
    pub fn host() -> Option<CpuArch> {
        if cfg!(all(target_arch = "x86_64", unix)) {
            Some(CpuArch::X86_64)
        } else if cfg!(all(target_arch = "aarch64", unix)) {
            Some(CpuArch::Aarch64)
        } else {
            None
        }
    }

    fn triple(self) -> &'static str {
        match self {
            CpuArch::X86_64 => "x86_64-unknown-linux-gnu",
            CpuArch::Aarch64 => "aarch64-unknown-linux-gnu",
        }
    }
}

/// A configured code generator.
pub(crate) struct Machine {
    pub isa: OwnedTargetIsa,
    /// Whether a fused multiply-add is one instruction.
    pub fma: bool,
    /// What a processor must have to run the code, for people and manifests: `x86_64 avx2 fma`.
    pub requires: Vec<String>,
}

/// The extensions of x86-64-v3 that Cranelift knows.
const X86_FEATURES: [&str; 12] =
    ["sse3", "ssse3", "sse41", "sse42", "popcnt", "avx", "avx2", "fma", "bmi1", "bmi2", "lzcnt", "cmpxchg16b"];

/// A code generator for `arch` with `features`.
///
/// # Errors
/// `cpu-native-features` when native code is asked for another architecture than this machine's.
pub(crate) fn machine(arch: CpuArch, features: CpuFeatures) -> Result<Machine, Diagnostic> {
    let mut flags = settings::builder();
    for (name, value) in [("opt_level", "speed"), ("enable_verifier", "true"), ("is_pic", "true")] {
        flags.set(name, value).map_err(|e| internal(format!("Cranelift setting {name}: {e}")))?;
    }
    let triple = Triple::from_str(arch.triple()).map_err(|e| internal(format!("triple {}: {e}", arch.triple())))?;
    let mut builder = isa::lookup(triple).map_err(|e| internal(format!("Cranelift has no {}: {e}", arch.name())))?;
    match (features, arch) {
        (CpuFeatures::Baseline, CpuArch::X86_64) => {
            // One by one: Cranelift's preset of that name leaves AVX itself out, and then uses neither AVX2 nor FMA.
            for feature in X86_FEATURES {
                builder.enable(&format!("has_{feature}")).map_err(|e| internal(format!("feature {feature}: {e}")))?;
            }
        }
        (CpuFeatures::Baseline, CpuArch::Aarch64) => {}
        (CpuFeatures::Native, _) if CpuArch::host() == Some(arch) => {
            cranelift_native::infer_native_flags(&mut builder).map_err(|e| {
                Diagnostic::machine("cpu-native-features", format!("this processor is not usable: {e}"))
            })?;
        }
        (CpuFeatures::Native, _) => {
            return Err(Diagnostic::machine(
                "cpu-native-features",
                format!("native code for {} cannot be made on this machine", arch.name()),
            )
            .help("ask for baseline features, or compile on such a machine"));
        }
    }
    let isa = builder.finish(settings::Flags::new(flags)).map_err(|e| internal(format!("Cranelift settings: {e}")))?;
    let on = |feature: &str| {
        let name = format!("has_{feature}");
        isa.isa_flags().iter().any(|v| v.name == name && v.as_bool() == Some(true))
    };
    let mut requires = vec![arch.name().to_string()];
    let fma = match arch {
        CpuArch::X86_64 => {
            requires.extend(X86_FEATURES.iter().filter(|f| on(f)).map(|f| f.to_string()));
            on("fma") && on("avx")
        }
        CpuArch::Aarch64 => true,
    };
    Ok(Machine { fma, requires, isa })
}
