//! Execution of PTX kernels on the CPU.
//!
//! [`Program::compile`] lowers a kernel once; [`Device::launch`] runs it block by block on all cores.
//!
//! ```
//! use moec_ptx::ast::Module;
//! use moec_ptx::exec::{Device, Launch, Options, Param, Program, Target};
//!
//! let ptx = ".version 8.0 .target sm_90a .address_size 64
//!     .visible .entry twice(.param .u64 x) {
//!       .reg .b32 %r<4>; .reg .b64 %rd<4>;
//!       ld.param.u64 %rd1, [x]; mov.u32 %r1, %tid.x; mul.wide.u32 %rd2, %r1, 4; add.s64 %rd3, %rd1, %rd2;
//!       ld.global.u32 %r2, [%rd3]; add.s32 %r3, %r2, %r2; st.global.u32 [%rd3], %r3; ret; }";
//! let program = Program::compile(&Module::parse(ptx)?, "twice")?;
//! let mut device = Device::new(Target::parse("sm_90a").ok_or("target")?);
//! let x = device.alloc(128)?;
//! device.upload(x, &[1u8; 128])?;
//! let report = device.launch(&program, &Launch { block: [32, 1, 1], params: vec![Param::U64(x)], ..Launch::default() }, &Options::default())?;
//! assert!(report.findings.is_empty());
//! assert_eq!(device.download(x, 4)?, [2, 2, 2, 2]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod access;
pub mod barrier;
mod call;
pub mod cluster;
pub mod context;
pub mod counters;
pub mod device;
pub mod error;
pub mod findings;
mod global_race;
pub(crate) mod heap;
mod history;
mod host_order;
pub(crate) mod interpret;
mod known;
pub mod launch;
pub mod lower;
pub mod mbarrier;
pub mod memory;
mod prepare;
pub mod program;
pub mod queue;
pub mod race;
mod ranks;
mod released;
mod report;
mod run;
pub(crate) mod schedule;
mod start;
mod streams;
pub mod tensor;
mod turn;
pub mod unwritten;
pub mod warp;
pub mod worker;

pub use call::{Launch, Options, Param, Report, Schedule, Target};
pub use counters::Counters;
pub use device::{Device, Variables};
pub use error::{CompileError, ExecError};
pub use findings::{Check, Checks, Finding};
pub use memory::global::{Moved, Traffic};
pub use program::Program;
pub use ranks::{Ranks, RanksReport, Step};

#[cfg(test)]
mod tests;
