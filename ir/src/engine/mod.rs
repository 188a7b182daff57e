//! Engines: the ways to run contractions on the tensor cores of GPUs, as data.
//!
//! What an engine takes and how it cuts a product is said here, so that schedules, verification, models of time and the
//! code generator ask the same table. A target has one engine of its own; what that one does not take, the portable one does.

pub mod hopper;
mod scales;

pub use scales::ScaleWindow;

use crate::target::{Target, TargetKind};
use crate::tile::{Body, Contract, Program};
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
    /// Block-scaled `mma.sync` of codes with codes: sm_120 and its kin.
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
        match self {
            Engine::Portable if codes => Err("rows of codes are multiplied by engines of later chips only".into()),
            Engine::Portable => Ok(()),
            Engine::Hopper => hopper::takes(program, contract),
            Engine::Blackwell if codes => contract.one_scaled_product(),
            Engine::Blackwell if contract.is_tma_addressable(program) => Ok(()),
            Engine::Blackwell => Err("its operands are not what TMA addresses".into()),
            Engine::GeForce if codes => Ok(()),
            Engine::GeForce => Err("its rows are floats".into()),
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

/// Makes every schedule of a program one that its engine builds as it stands, as near to what is asked as there is.
pub fn fit(program: &mut Program, target: &Target) {
    let fitted: Vec<_> = program
        .kernels
        .iter()
        .map(|k| match &k.body {
            Body::Contract(c) => match (Engine::of(target, program, c), target.kind) {
                (Ok(Engine::Hopper), TargetKind::Gpu { smem_bytes, .. }) => {
                    hopper::fit(program, c, k.schedule, smem_bytes)
                }
                _ => k.schedule,
            },
            _ => k.schedule,
        })
        .collect();
    program.kernels.iter_mut().zip(fitted).for_each(|(k, s)| k.schedule = s);
}
