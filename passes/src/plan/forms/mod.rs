//! Forms of a program that compete: which kernels share a launch, and who makes the router's logits. All give the same bits.

mod combine_after_product;
mod logits_by_many;
mod merge_launches;
mod plan_after_route;
mod products_in_one;
mod quantise_in_route;

use moec_ir::DType;
use moec_ir::shape::Dim;
use moec_ir::tile::{Buffer, BufferId, Program, Role};

/// A way to save launches, or to have more of the machine take part in one.
#[derive(Clone, Copy)]
pub struct Merge {
    /// What it puts together, or shares.
    pub name: &'static str,
    /// Whether there is something to choose.
    pub pays: Pays,
    /// Whether it is made on the CPU, where a launch costs nothing that would be worth other work.
    pub on_cpu: bool,
    apply: fn(&mut Program),
}

/// When a merge pays on GPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pays {
    /// Always: the launch is all that differs.
    Always,
    /// Where the model says so.
    Sometimes,
}

/// Every merge, in the order in which they are applied.
pub const MERGES: [Merge; 6] = [
    Merge {
        name: "rows rounded by the router",
        pays: Pays::Always,
        on_cpu: true,
        apply: quantise_in_route::quantise_in_route,
    },
    // Tiles of one launch share a schedule, tiles of two wait for each other.
    Merge {
        name: "shared beside routed experts",
        pays: Pays::Sometimes,
        on_cpu: true,
        apply: merge_launches::merge_launches,
    },
    Merge {
        name: "expert order by the router's last CTAs",
        pays: Pays::Always,
        on_cpu: false,
        apply: plan_after_route::plan_after_route,
    },
    // No launch less, but a router that is no wider than a cluster, or a CTA, reads slowly.
    Merge { name: "logits by many CTAs", pays: Pays::Sometimes, on_cpu: false, apply: logits_by_many::logits_by_many },
    // A launch less, but the last to store a run of columns adds up all tokens.
    Merge {
        name: "slots added up by the down product's last CTAs",
        pays: Pays::Sometimes,
        on_cpu: false,
        apply: combine_after_product::combine_after_product,
    },
    // A launch less, but all tiles share a schedule and wait for each other.
    Merge {
        name: "gate, up and down in one launch",
        pays: Pays::Sometimes,
        on_cpu: false,
        apply: products_in_one::products_in_one,
    },
];

/// A program with some of the merges.
#[derive(Clone, Debug, PartialEq)]
pub struct Form {
    /// Names of the merges that changed it.
    pub merges: Vec<&'static str>,
    /// The program, without schedules.
    pub program: Program,
}

/// The forms of a lowered program that compete on GPUs, with most merges first; those that are equal once.
pub fn forms(program: &Program) -> Vec<Form> {
    let choices: Vec<&str> = MERGES.iter().filter(|m| m.pays == Pays::Sometimes).map(|m| m.name).collect();
    let mut all: Vec<Form> = Vec::new();
    for without in 0..1usize << choices.len() {
        let left_out = |name: &str| choices.iter().position(|c| *c == name).is_some_and(|i| without >> i & 1 == 1);
        let form = merged(program, |m| !left_out(m.name));
        if all.iter().all(|other| other.program != form.program) {
            all.push(form);
        }
    }
    all
}

/// The form with the merges that `wanted` takes.
pub fn merged(program: &Program, wanted: impl Fn(&Merge) -> bool) -> Form {
    let mut form = Form { merges: Vec::new(), program: program.clone() };
    for merge in MERGES.iter().filter(|m| wanted(m)) {
        let before = form.program.clone();
        (merge.apply)(&mut form.program);
        if form.program != before {
            form.merges.push(merge.name);
        }
    }
    form
}

/// Adds a buffer of workspace, or counters, to a program.
fn buffer(program: &mut Program, name: &str, role: Role, dtype: DType, (rows, cols): (Dim, u64)) -> BufferId {
    let of = |i: u32| if i == 0 { name.to_string() } else { format!("{name}_{i}") };
    let name = (0u32..).map(of).find(|name| program.buffers.iter().all(|b| b.name != *name)).unwrap_or_default();
    program.buffers.push(Buffer { name, dtype, batch: 1, rows, cols, pitch: cols, role });
    BufferId(program.buffers.len() as u32 - 1)
}

/// Adds so many rows of so many counters to a program.
fn counter(program: &mut Program, name: &str, shape: (Dim, u64)) -> BufferId {
    buffer(program, name, Role::Counter, DType::I32, shape)
}
