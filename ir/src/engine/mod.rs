//! Engines: the ways to run contractions on the tensor cores of GPUs, as data.
//!
//! What an engine takes and how it cuts a product is said here, so that schedules, verification, models of time and the
//! code generator ask the same table. A target has one engine of its own; what that one does not take, the portable one does.
//! How other kernels are cut is said beside them ([`rows`], [`plan`], [`elementwise`]).

pub mod blackwell;
pub mod elementwise;
pub mod geforce;
pub mod hopper;
pub mod plan;
pub mod portable;
pub mod rows;
mod scales;

pub use scales::ScaleWindow;

use crate::DType;
use crate::target::{Target, TargetKind};
use crate::tile::{Body, BufferId, Contract, Kernel, PanelQuant, Program, Schedule};
use serde::{Deserialize, Serialize};
use std::fmt;

/// A way to run contractions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Engine {
    /// `mma.sync` on 16-bit floats and exact f32 multiply-adds, operands by `cp.async`: every GPU.
    Portable,
    /// `wgmma`, weights by TMA: sm_90a.
    Hopper,
    /// `tcgen05`, operands by TMA: sm_100 and its kin.
    Blackwell,
    /// `mma.sync` of codes with codes: FP8 on sm_89, block-scaled too on sm_120 and its kin.
    GeForce,
}

impl Engine {
    /// The engine of a GPU target that runs a contraction.
    ///
    /// # Errors
    /// Why none does. Programs of the compiler always have one: rows of codes are made only for targets that multiply them.
    pub fn of(target: &Target, program: &Program, contract: &Contract) -> Result<Engine, String> {
        let TargetKind::Gpu { engine: own, .. } = target.kind else {
            return Err(format!("`{}` is no GPU", target.name));
        };
        own.takes(program, contract).map(|()| own).or_else(|why| {
            Engine::Portable.takes(program, contract).map(|()| Engine::Portable).map_err(|portable| {
                if own == Engine::Portable { portable } else { format!("{own}: {why}; portable: {portable}") }
            })
        })
    }

    /// Whether this engine runs a contraction.
    ///
    /// # Errors
    /// Why it does not.
    pub fn takes(self, program: &Program, contract: &Contract) -> Result<(), String> {
        let codes = contract.has_coded_rows();
        if contract.segments.iter().any(|s| s.a_round.is_some()) {
            return Err("rows are rounded as they are read by CPUs only".into());
        }
        if contract.is_chained() && !matches!(self, Engine::Blackwell | Engine::Hopper) {
            return Err("tiles wait for tiles of the same launch where copies run ahead of products only".into());
        }
        match self {
            Engine::Portable if codes => Err("rows of codes are multiplied by engines of later chips only".into()),
            Engine::Portable => Ok(()),
            Engine::Hopper => hopper::takes(program, contract),
            Engine::Blackwell => blackwell::takes(program, contract),
            Engine::GeForce if codes => contract.segments.iter().try_for_each(geforce::takes),
            Engine::GeForce => Err("its rows are floats".into()),
        }
    }

    /// The schedule nearest to `asked` that this engine builds as it stands, for CTAs of `smem_bytes`.
    pub fn fit(self, program: &Program, contract: &Contract, asked: Schedule, smem_bytes: u32) -> Schedule {
        match self {
            Engine::Portable | Engine::GeForce => portable::fit(program, contract, asked, smem_bytes),
            Engine::Hopper => hopper::fit(program, contract, asked, smem_bytes),
            Engine::Blackwell => blackwell::fit(program, contract, asked, smem_bytes),
        }
    }
}

/// Bytes of a row of a tile in a step along k for TMA: the width of the swizzle, the widest that one copy writes.
pub const ROW_BYTES: u32 = 128;

/// Bytes of the codes of one row that become the 16-bit floats of such a step: 64 or 32.
pub fn code_row_bytes(q: &PanelQuant) -> u32 {
    ROW_BYTES / 2 * q.format.code.bits() as u32 / 8
}

/// Most warps of a CTA.
const MOST_WARPS: u32 = 32;

/// Warps of a CTA as kernels that are no contractions take them: a power of two.
fn power_of_warps(warps: u32) -> u32 {
    warps.clamp(1, MOST_WARPS).next_power_of_two()
}

/// Panels of the segment with most.
fn panels(contract: &Contract) -> u32 {
    contract.segments.iter().map(|s| s.panels.len() as u32).max().unwrap_or(1).max(1)
}

/// Parts of k as near to `asked` as there is: the shortest segment has a step of `tile_k` for each.
fn k_parts(program: &Program, contract: &Contract, asked: u32, tile_k: u32) -> u32 {
    let steps = contract.segments.iter().map(|s| s.k(program).div_ceil(tile_k.into())).min().unwrap_or(1);
    u64::from(asked).min(steps).max(1) as u32
}

/// Sums of other parts of k that a CTA keeps in shared memory: with a CTA for each part those of all others, else what the
/// parts before have come to.
fn kept_sums(k_parts: u32, split: bool) -> u32 {
    if split { k_parts - 1 } else { k_parts.min(2) - 1 }
}

/// The 16-bit floats that tensor cores multiply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MmaType {
    /// 8 bits of exponent.
    Bf16,
    /// 5 bits of exponent.
    F16,
}

impl MmaType {
    /// The input type for elements of `dtype`, if the tensor cores take it exactly.
    pub fn of(dtype: DType) -> Option<MmaType> {
        match dtype {
            DType::BF16 => Some(MmaType::Bf16),
            DType::F16 => Some(MmaType::F16),
            DType::F64 | DType::F32 | DType::I32 | DType::I64 | DType::U8 => None,
        }
    }
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Engine::Portable => "portable",
            Engine::Hopper => "hopper",
            Engine::Blackwell => "blackwell",
            Engine::GeForce => "geforce",
        })
    }
}

/// Makes every schedule of a program one that is built as it stands, as near to what is asked as there is.
pub fn fit(program: &mut Program, target: &Target) {
    let fitted: Vec<_> = program.kernels.iter().map(|k| fitted(program, k, target)).collect();
    program.kernels.iter_mut().zip(fitted).for_each(|(k, s)| k.schedule = s);
}

/// The schedule nearest to a kernel's that is built as it stands; its own for a target that is no GPU, and where nothing near
/// is built: products that no engine takes, rows that do not fit in shared memory.
pub fn fitted(program: &Program, kernel: &Kernel, target: &Target) -> Schedule {
    let (asked, TargetKind::Gpu { smem_bytes, .. }) = (kernel.schedule, target.kind) else { return kernel.schedule };
    let by_element = |out: (BufferId, _), others: &[_], args: &[_]| {
        elementwise::fit(program.buffer(out.0).cols, elementwise::vector(program, out, others, args), asked)
    };
    match &kernel.body {
        Body::Contract(c) => match Engine::of(target, program, c) {
            Ok(engine) => engine.fit(program, c, asked, smem_bytes),
            Err(_) => asked,
        },
        Body::Rows(r) => rows::fit(program, r, asked, smem_bytes, target.features()).unwrap_or(asked),
        Body::Plan(p) => plan::fit(p, asked, smem_bytes, target.features()),
        Body::Quantise(_) => elementwise::fit_rows(asked),
        Body::Map(m) => by_element((m.out, m.out_places), &[], &m.args),
        Body::Combine(c) => by_element((c.out, None), &[c.y], &c.args),
    }
}
