//! LLVM's NVPTX machine: set up once, then optimise, verify and print one module at a time.

use crate::builder::annotate;
use inkwell::OptimizationLevel;
use inkwell::module::Module;
use inkwell::passes::PassBuilderOptions;
use inkwell::targets::{
    CodeModel, FileType, InitializationConfig, RelocMode, Target as LlvmTarget, TargetMachine, TargetTriple,
};
use std::sync::Once;

const TRIPLE: &str = "nvptx64-nvidia-cuda";

/// What kernels written by this crate need: variables into registers, common addresses shared, branches of one block
/// folded. The rest (strength reduction, loads in vectors, loop addresses) is part of LLVM's own NVPTX pipeline.
const PASSES: &str =
    "function(sroa,early-cse<memssa>,instcombine<no-verify-fixpoint>,simplifycfg),strip-dead-prototypes";

/// Targets that LLVM does not know, which would make it write text for its oldest one: the target whose instructions they have, and
/// the version of PTX that is asked for them.
const UNKNOWN_TO_LLVM: &[(&str, &str, u32)] = &[("sm_107f", "sm_100f", 88)];

/// A machine for one target. What it writes becomes text for the target by [`ptx`].
///
/// # Errors
/// LLVM's reason why there is none.
pub fn machine(target: &str, ptx_version: u32) -> Result<TargetMachine, String> {
    let kin = UNKNOWN_TO_LLVM.iter().find(|(name, ..)| *name == target);
    let (cpu, ptx_version) = kin.map_or((target, ptx_version), |&(_, kin, version)| (kin, version));
    static INITIALISED: Once = Once::new();
    INITIALISED.call_once(|| LlvmTarget::initialize_nvptx(&InitializationConfig::default()));
    let triple = TargetTriple::create(TRIPLE);
    let target = LlvmTarget::from_triple(&triple).map_err(|e| e.to_string())?;
    target
        .create_target_machine(
            &triple,
            cpu,
            &format!("+ptx{ptx_version}"),
            OptimizationLevel::Default,
            RelocMode::Default,
            CodeModel::Default,
        )
        .ok_or_else(|| format!("LLVM has no machine for {cpu}"))
}

/// Makes the module one for this machine.
pub fn prepare(module: &Module, machine: &TargetMachine) {
    module.set_triple(&machine.get_triple());
    module.set_data_layout(&machine.get_target_data().get_data_layout());
}

/// Checks the module.
///
/// # Errors
/// What LLVM's verifier said.
pub fn verify(module: &Module) -> Result<(), String> {
    module.verify().map_err(|e| e.to_string())
}

/// Checks and optimises the module.
///
/// # Errors
/// What LLVM's verifier or a pass said.
pub fn optimise(module: &Module, machine: &TargetMachine) -> Result<(), String> {
    verify(module)?;
    module.run_passes(PASSES, machine, PassBuilderOptions::create()).map_err(|e| e.to_string())
}

/// The module as PTX text for a target, whose own version is `ptx_version`, with comments that name its parts.
///
/// # Errors
/// What LLVM's code generator said.
pub fn ptx(
    module: &Module,
    machine: &TargetMachine,
    (target, ptx_version): (&str, u32),
    parts: &[String],
) -> Result<String, String> {
    let buffer = machine.write_to_memory_buffer(module, FileType::Assembly).map_err(|e| e.to_string())?;
    let text = String::from_utf8_lossy(buffer.as_slice());
    let text = annotate(text.trim_end_matches('\0'), parts);
    let Some((_, kin, version)) = UNKNOWN_TO_LLVM.iter().find(|(name, ..)| *name == target) else {
        return Ok(text);
    };
    let header = |version: u32, target: &str| format!(".version {}.{}\n.target {target}\n", version / 10, version % 10);
    let theirs = header(*version, kin);
    if !text.contains(&theirs) {
        return Err(format!("the text does not begin with {theirs:?}"));
    }
    Ok(text.replacen(&theirs, &header(ptx_version, target), 1))
}
