//! Rules that are wrong in one way each: the check has to notice every one.

use super::{Subject, subject, verify_rule};
use crate::normalise::{Rule, Tree, Watch, catalogue};
use moec_ir::expr::Real;
use moec_ir::graph::{Op, Score};
use moec_ir::{Activation, DType};

/// What is wrong.
enum Wrong {
    /// A condition is not asked.
    Without(&'static str),
    /// What the rule makes is changed.
    Makes(&'static str, fn(&mut Op, &mut DType, &mut Vec<Tree>)),
}

use Wrong::{Makes, Without};

/// Exchanges two operands.
fn exchange(children: &mut [Tree], i: usize, j: usize) {
    if children.len() > i.max(j) {
        children.swap(i, j);
    }
}

/// Each with the rule and, for those that change what the rule makes, what the change is.
const MUTANTS: &[(&str, Wrong)] = &[
    ("multiply-into-activation", Without("the activation is kept in f32")),
    (
        "multiply-into-activation",
        Makes("up as the gate", |op, _, c| {
            if matches!(op, Op::Activate(_)) {
                exchange(c, 0, 1)
            }
        }),
    ),
    (
        "multiply-into-activation",
        Makes("another curve", |op, _, _| {
            if let Op::Activate(act) = op {
                *act = Activation::SwiGlu
            }
        }),
    ),
    ("merge-gate-and-up", Without("gate and up read the same rows")),
    (
        "merge-gate-and-up",
        Makes("up over gate", |op, _, c| {
            if matches!(op, Op::Concat { .. }) {
                exchange(c, 0, 1)
            }
        }),
    ),
    (
        "merge-gate-and-up",
        Makes("the other half", |op, _, _| {
            if let Op::Half(i) = op {
                *i = 1 - *i
            }
        }),
    ),
    (
        "merge-gate-and-up",
        Makes("no bias", |op, _, c| {
            if *op == Op::Linear {
                c.truncate(2)
            }
        }),
    ),
    ("activation-into-epilogue", Without("gate and up are the halves of one product")),
    (
        "activation-into-epilogue",
        Makes("products not rounded", |op, _, _| match op {
            Op::LinearAct { round, .. } | Op::GroupedLinearAct { round, .. } => *round = DType::F32,
            _ => {}
        }),
    ),
    (
        "activation-into-epilogue",
        Makes("products rounded", |op, _, _| match op {
            Op::LinearAct { round, .. } | Op::GroupedLinearAct { round, .. } => *round = DType::BF16,
            _ => {}
        }),
    ),
    (
        "activation-into-epilogue",
        Makes("no bias", |op, _, c| match op {
            Op::LinearAct { .. } => c.truncate(2),
            Op::GroupedLinearAct { .. } => c.truncate(3),
            _ => {}
        }),
    ),
    ("permute-into-gather", Without("rows lie in the order of as many experts")),
    ("permute-into-gather", Without("rows lie in the order of the same ids")),
    ("permute-into-gather", Without("the copy does not narrow its rows")),
    (
        "permute-into-gather",
        Makes("no bias", |op, _, c| {
            if matches!(op, Op::GatherGroupedLinear) {
                c.truncate(3)
            }
        }),
    ),
    ("unpermute-into-combine", Without("the copy does not narrow its rows")),
    ("unpermute-into-combine", Without("the ids are a choice among these experts")),
    (
        "unpermute-into-combine",
        Makes("fewer experts", |op, _, _| {
            if let Op::Combine { n_experts, .. } = op {
                *n_experts -= 1
            }
        }),
    ),
    ("skip-undispatched-slots", Without("the copy does not narrow its rows")),
    (
        "skip-undispatched-slots",
        Makes("another factor", |op, _, _| {
            if let Op::Combine { scale, .. } = op {
                *scale = Real(1.001)
            }
        }),
    ),
    ("scale-into-combine", Without("the sum is kept in f32")),
    ("scale-into-combine", Without("the sum has no factor yet")),
    ("scale-into-combine", Without("nothing has been added to the sum")),
    (
        "scale-into-combine",
        Makes("no factor", |op, _, _| {
            if let Op::Combine { scale, .. } = op {
                *scale = Real(1.0)
            }
        }),
    ),
    ("shared-into-combine", Without("nothing has been added to the sum")),
    (
        "shared-into-combine",
        Makes("the sum rounded to another type", |op, _, _| {
            if let Op::Combine { round, .. } = op {
                *round = if *round == DType::F32 { DType::BF16 } else { DType::F32 };
            }
        }),
    ),
    (
        "shared-into-combine",
        Makes("nothing added", |op, _, c| {
            if let Op::Combine { .. } = op {
                c.truncate(3)
            }
        }),
    ),
    (
        "shared-gate-into-combine",
        Makes("no gate", |op, _, c| {
            if let Op::Combine { .. } = op {
                c.truncate(4)
            }
        }),
    ),
    (
        "shared-gate-into-combine",
        Makes("gated base not rounded", |op, _, _| {
            if let Op::Combine { gate_round, .. } = op {
                *gate_round = DType::F32;
            }
        }),
    ),
    ("drop-group-limit", Without("every group is kept")),
    ("score-after-gather", Without("the score is elementwise")),
    ("score-after-gather", Without("the ids are a choice among these experts")),
    (
        "score-after-gather",
        Makes("another score", |op, _, _| {
            if let Op::Score(s) = op {
                *s = if *s == Score::Sigmoid { Score::SqrtSoftplus } else { Score::Sigmoid };
            }
        }),
    ),
    (
        "choose-before-score",
        Makes("the least are chosen", |op, _, c| {
            if let Op::TopK { .. } = op {
                let minus = Tree::Node(Op::Scale(Real(-1.0)), DType::F32, c.clone());
                *c = vec![minus];
            }
        }),
    ),
    ("softmax-over-chosen", Without("the score is a softmax")),
    ("softmax-over-chosen", Without("scores are kept in f32")),
    ("softmax-over-chosen", Without("what is added to the sum is nothing beside it")),
    ("softmax-over-chosen", Without("the ids are a choice among these experts")),
    ("narrow-back", Without("the value in between is f32")),
    ("drop-unit-scale", Without("the factor is 1")),
    ("join-scales", Without("the first product is kept in f32")),
    ("join-scales", Without("the product of the factors is exact")),
    (
        "join-scales",
        Makes("half of the factor", |op, _, _| {
            if let Op::Scale(c) = op {
                *c = Real(c.0 / 2.0)
            }
        }),
    ),
];

/// A tree with every node of it changed.
fn changed(tree: Tree, change: &dyn Fn(&mut Op, &mut DType, &mut Vec<Tree>)) -> Tree {
    match tree {
        Tree::Class(id) => Tree::Class(id),
        Tree::Node(mut op, mut dtype, children) => {
            let mut children = children.into_iter().map(|c| changed(c, change)).collect();
            change(&mut op, &mut dtype, &mut children);
            Tree::Node(op, dtype, children)
        }
    }
}

/// Whether the check notices a mutant.
fn is_caught(rule: &Rule, wrong: &Wrong, subjects: &[Subject]) -> bool {
    let report = match wrong {
        Without(condition) => {
            let watch = Watch { without: Some(condition), ..Watch::default() };
            let report = verify_rule(rule, subjects, &watch, &|tree| tree);
            assert!(report.conditions.iter().any(|c| c.about == *condition), "`{}` asks no `{condition}`", rule.name);
            report
        }
        Makes(_, change) => verify_rule(rule, subjects, &Watch::default(), &|tree| changed(tree, change)),
    };
    !report.faults.is_empty()
}

#[test]
fn every_mutant_is_caught() {
    let subjects = subject::all();
    let rules = catalogue();
    let mut missed = Vec::new();
    for (name, wrong) in MUTANTS {
        let rule = rules.iter().find(|r| r.name == *name).unwrap_or_else(|| panic!("no rule {name}"));
        if !is_caught(rule, wrong, &subjects) {
            missed.push(match wrong {
                Without(what) => format!("{name} without `{what}`"),
                Makes(what, _) => format!("{name}: {what}"),
            });
        }
    }
    assert!(missed.is_empty() && MUTANTS.len() >= 30, "{missed:#?}");
}
