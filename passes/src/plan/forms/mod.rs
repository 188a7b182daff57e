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
    /// Whether it pays on the CPU, where a launch costs nothing that would be worth more work in the router.
    pub on_cpu: bool,
    apply: fn(&mut Program),
}

/// Every merge, in the order in which they are applied.
pub const MERGES: [Merge; 3] = [
    Merge { name: "rows rounded by the router", on_cpu: true, apply: quantise_in_route::quantise_in_route },
    Merge { name: "shared beside routed experts", on_cpu: true, apply: merge_launches::merge_launches },
    Merge { name: "expert order by the router's last CTA", on_cpu: false, apply: plan_after_route::plan_after_route },
];

/// A program with some of the merges.
#[derive(Clone, Debug, PartialEq)]
pub struct Form {
    /// Names of the merges that changed it.
    pub merges: Vec<&'static str>,
    /// The program, without schedules.
    pub program: Program,
}

/// Every form of a lowered program, with most merges first; those that are equal once.
pub fn forms(program: &Program) -> Vec<Form> {
    let n = MERGES.len();
    let mut subsets: Vec<usize> = (0..1 << n).collect();
    subsets.sort_by_key(|s| (n as u32 - s.count_ones(), !s));
    let mut forms: Vec<Form> = Vec::new();
    for subset in subsets {
        let form = merged(program, |i, _| subset >> i & 1 == 1);
        if forms.iter().all(|f| f.program != form.program) {
            forms.push(form);
        }
    }
    forms
}

/// The form with the merges that `wanted` takes, which gets their numbers too.
pub fn merged(program: &Program, wanted: impl Fn(usize, &Merge) -> bool) -> Form {
    let mut form = Form { merges: Vec::new(), program: program.clone() };
    for (_, merge) in MERGES.iter().enumerate().filter(|(i, m)| wanted(*i, m)) {
        let before = form.program.clone();
        (merge.apply)(&mut form.program);
        if form.program != before {
            form.merges.push(merge.name);
        }
    }
    form
}
