//! LLVM's NVPTX machine: set up once, then optimise, verify and print one module at a time.

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

/// A machine for one architecture.
///
/// # Errors
/// LLVM's reason why there is none.
pub fn machine(cpu: &str, ptx_version: u32) -> Result<TargetMachine, String> {
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

/// Checks and optimises the module.
///
/// # Errors
/// What LLVM's verifier or a pass said.
pub fn optimise(module: &Module, machine: &TargetMachine) -> Result<(), String> {
    module.verify().map_err(|e| e.to_string())?;
    module.run_passes(PASSES, machine, PassBuilderOptions::create()).map_err(|e| e.to_string())
}

/// The module as PTX text.
///
/// # Errors
/// What LLVM's code generator said.
pub fn ptx(module: &Module, machine: &TargetMachine) -> Result<String, String> {
    let buffer = machine.write_to_memory_buffer(module, FileType::Assembly).map_err(|e| e.to_string())?;
    let text = String::from_utf8_lossy(buffer.as_slice());
    Ok(text.trim_end_matches('\0').to_string())
}
