//! Errors of compiling and running.

use crate::ast::Pos;
use crate::parse::ParseError;

/// Why a kernel cannot be compiled for execution.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CompileError {
    /// The text is not PTX.
    #[error(transparent)]
    Parse(#[from] ParseError),
    /// The module has no such kernel.
    #[error("the module has no kernel `{name}`; it has {available}")]
    NoEntry {
        /// The asked name.
        name: String,
        /// The kernels of the module.
        available: String,
    },
    /// An instruction, form or operand that the emulator does not execute.
    #[error("line {}: unsupported: {message}\n  {text}", pos.line)]
    Unsupported {
        /// Where.
        pos: Pos,
        /// The instruction.
        text: String,
        /// What of it.
        message: String,
    },
    /// An instruction that the module's `.target` or `.version` does not have; NVIDIA's assembler refuses it too.
    #[error("line {}: {message}\n  {text}", pos.line)]
    Unavailable {
        /// Where.
        pos: Pos,
        /// The instruction.
        text: String,
        /// What is missing and where it exists.
        message: String,
    },
    /// The program contradicts itself or PTX: unknown names, wrong operand kinds.
    #[error("line {}: {message}\n  {text}", pos.line)]
    Invalid {
        /// Where.
        pos: Pos,
        /// The instruction.
        text: String,
        /// What is wrong.
        message: String,
    },
    /// The target is not one that the emulator knows.
    #[error("the target `{0}` is not known")]
    Target(String),
}

/// Why a launch cannot start or go on. What a program does wrong while it runs is a
/// [`Finding`](super::Finding) instead, where the run can go on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ExecError {
    /// The launch does not fit the kernel or the target.
    #[error("launch of `{kernel}`: {message}")]
    Launch {
        /// Kernel.
        kernel: String,
        /// What does not fit.
        message: String,
    },
    /// A device address that was not allocated.
    #[error("device address {address:#x} ({bytes} bytes) is not inside an allocation")]
    Address {
        /// Address.
        address: u64,
        /// Bytes.
        bytes: u64,
    },
    /// The device has no room.
    #[error("device memory is full: {asked} bytes asked, {free} of {total} free")]
    OutOfMemory {
        /// Bytes asked.
        asked: u64,
        /// Bytes free.
        free: u64,
        /// Bytes in all.
        total: u64,
    },
    /// The limit of executed instructions was reached.
    #[error("`{kernel}` was stopped after {executed} warp instructions (the limit)\n{state}")]
    InstructionLimit {
        /// Kernel.
        kernel: String,
        /// Executed by all warps.
        executed: u64,
        /// Where the warps stood.
        state: String,
    },
    /// No warp can go on.
    #[error("`{kernel}` is deadlocked\n{state}")]
    Deadlock {
        /// Kernel.
        kernel: String,
        /// The state of every warp.
        state: String,
    },
    /// Something happened after which no result has a meaning (a jump through a bad function pointer, `trap`).
    #[error("`{kernel}` line {line}: {message}\n  {text}")]
    Fault {
        /// Kernel.
        kernel: String,
        /// PTX line.
        line: u32,
        /// Instruction.
        text: String,
        /// What happened.
        message: String,
    },
}

impl ExecError {
    /// The same, of one of several ranks; `others` is where they stand.
    pub(super) fn of_rank(mut self, rank: usize, others: &str) -> ExecError {
        match &mut self {
            ExecError::InstructionLimit { state, .. } | ExecError::Deadlock { state, .. } => {
                *state = format!("rank {rank}:\n{state}{others}");
            }
            ExecError::Fault { message, .. } | ExecError::Launch { message, .. } => {
                *message = format!("rank {rank}: {message}");
            }
            ExecError::Address { .. } | ExecError::OutOfMemory { .. } => {}
        }
        self
    }
}
