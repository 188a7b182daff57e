//! `docs/time-model.md`: what the model of `moec_passes::plan::model` says of the programs that are compiled for layers of
//! known sizes, beside times that others have published.

mod cases;
mod choices;
mod hopper;
mod page;
mod rules;

pub(crate) use cases::{nvfp4, with};
pub use choices::{few_programs, regrets};
pub use hopper::slower_than_portable;
pub use page::page;

use cases::{cases, compile, variant};
use moec_ir::target::Target;
use moec_ir::tile::{Body, Kernel, Program};
use moec_passes::plan::model::{Chip, Launch, Model};

fn target(name: &str) -> &'static Target {
    Target::by_name(name).expect("a target")
}

fn chip(name: &str) -> &'static Chip {
    Chip::by_name(name).expect("a chip")
}

/// The model of the chip that stands behind a target's name.
fn model(name: &str) -> Model<'static> {
    Model::of(target(name)).expect("a GPU")
}

fn total(launches: &[(&Kernel, Launch)], chip: &Chip) -> f64 {
    launches.iter().map(|(_, l)| l.seconds() + chip.launch_s).sum()
}

fn is_product(k: &Kernel) -> bool {
    matches!(k.body, Body::Contract(_))
}

fn products(program: &Program) -> impl Iterator<Item = &Kernel> {
    program.kernels.iter().filter(|k| is_product(k))
}

/// The name of what takes longest in the first product.
fn bound(launches: &[(&Kernel, Launch)]) -> &'static str {
    launches.iter().find(|(k, _)| is_product(k)).map_or("", |(_, l)| l.bound().name())
}

/// The times of a layer that is bound by memory, and what its bytes take at the published bandwidth, in seconds.
pub fn floor_check() -> (f64, f64) {
    let model = model("b200").without_shared();
    let variants = compile(&cases()[0], model.target);
    let l = model.launches(variant(&variants, 1), 1);
    // 8 experts, three matrices, 4 bits and a scale of 8 for each 16.
    let weights = 8.0 * 3.0 * 7168.0 * 2048.0 * 0.5625;
    (total(&l, model.chip), weights / model.chip.memory_bytes_per_s)
}
