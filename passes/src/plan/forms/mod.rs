//! Forms of a program that compete: which kernels share a launch. All give the same bits.

mod merge_launches;
mod plan_after_route;
mod quantise_in_route;

use moec_ir::tile::Program;

/// A way to save launches.
#[derive(Clone, Copy)]
pub struct Merge {
    /// What it puts together.
    pub name: &'static str,
    /// Where it is made.
    pub pays: Pays,
    apply: fn(&mut Program),
}

/// Where a merge is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pays {
    /// Everywhere: the launch is all that differs.
    Always,
    /// On GPUs: on the CPU a launch costs nothing that would be worth more work in the router.
    OnGpus,
    /// Where the model says so: tiles of one launch share a schedule, tiles of two wait for each other. On the CPU always.
    Sometimes,
}

/// Every merge, in the order in which they are applied.
pub const MERGES: [Merge; 3] = [
    Merge { name: "rows rounded by the router", pays: Pays::Always, apply: quantise_in_route::quantise_in_route },
    Merge { name: "shared beside routed experts", pays: Pays::Sometimes, apply: merge_launches::merge_launches },
    Merge {
        name: "expert order by the router's last CTAs",
        pays: Pays::OnGpus,
        apply: plan_after_route::plan_after_route,
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
    let all = merged(program, |_| true);
    let some = merged(program, |m| m.pays != Pays::Sometimes);
    if some.program == all.program { vec![all] } else { vec![all, some] }
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
