//! Checks every rewrite rule by itself: at each place of many graphs where it fires, what it makes is held against what was there.
//!
//! | class | over a [field](crate::algebra::Field) | in f32 |
//! |---|---|---|
//! | `exact` | equal | the same bits, for inputs of every [kind](inputs::Kind) |
//! | `reassociates` | equal | as near as the errors of both can be ([`Bounded`](crate::algebra::Bounded)) |
//! | `tie-sensitive` | equal | so too; other experts only where their scores are a tie |
//!
//! Conditions of a rule are counted: one that always held, or never, has not been checked.

pub mod layers;

mod compare;
mod inputs;
#[cfg(test)]
mod mutants;
mod odd;
mod subject;

use crate::normalise::{Rule, Site, Tree, Watch, catalogue};
use moec_ir::NumericClass;
use std::collections::BTreeMap;
use subject::Subject;

/// What checking one rule gave.
#[derive(Clone, Debug, serde::Serialize)]
pub struct RuleReport {
    /// Name of the rule.
    pub rule: &'static str,
    /// What it says of itself.
    pub class: NumericClass,
    /// Places where it fired.
    pub places: usize,
    /// Elements that were compared.
    pub compared: usize,
    /// The largest difference in f32, over what rounding can make of both; 0 for `exact`.
    pub worst: f64,
    /// Choices that fell on another expert of the same score.
    pub ties: usize,
    /// Its conditions.
    pub conditions: Vec<Condition>,
    /// Where it is wrong: the first of each graph.
    pub faults: Vec<Fault>,
}

/// A condition of a rule, and how often it was asked.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Condition {
    /// What it asks.
    pub about: &'static str,
    /// How often it held.
    pub held: usize,
    /// How often it did not.
    pub failed: usize,
}

/// A value that a rule changes.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Fault {
    /// The graph.
    pub graph: String,
    /// Kind of its inputs.
    pub inputs: &'static str,
    /// What was compared: `field`, `bits`, `bound`, `choice`.
    pub check: &'static str,
    /// The node that was replaced, and how the values differ.
    pub what: String,
}

impl RuleReport {
    /// Whether the rule fired and did what it says everywhere.
    pub fn is_sound(&self) -> bool {
        self.places > 0 && self.faults.is_empty()
    }

    /// Conditions that never held, or never failed.
    pub fn unexercised(&self) -> impl Iterator<Item = &Condition> {
        self.conditions.iter().filter(|c| c.held == 0 || c.failed == 0)
    }
}

/// Checks every rule of the catalogue.
pub fn verify() -> Vec<RuleReport> {
    let subjects = subject::all();
    catalogue().iter().map(|rule| verify_rule(rule, &subjects, &Watch::default(), &|tree| tree)).collect()
}

/// Checks one rule; `change` is what a mutant of it makes of its results.
fn verify_rule(rule: &Rule, subjects: &[Subject], watch: &Watch, change: &dyn Fn(Tree) -> Tree) -> RuleReport {
    let mut report = RuleReport {
        rule: rule.name,
        class: rule.class,
        places: 0,
        compared: 0,
        worst: 0.0,
        ties: 0,
        conditions: Vec::new(),
        faults: Vec::new(),
    };
    for subject in subjects {
        let known_faults = report.faults.len();
        for class in subject.egraph.classes() {
            for node in &class.nodes {
                let site = Site::new(&subject.egraph, node, watch);
                for tree in (rule.rewrite)(&site).into_iter().map(|r| change(r.tree)) {
                    // What has another type is no rewrite.
                    if tree.ty(&subject.egraph).as_ref() != Some(&class.data) {
                        continue;
                    }
                    report.places += 1;
                    compare::place(rule.class, subject, class.id, node, &tree, &mut report);
                }
            }
        }
        report.faults.truncate(known_faults + 1);
    }
    let seen: BTreeMap<_, _> = watch.seen.borrow().clone();
    report.conditions = seen.into_iter().map(|(about, (held, failed))| Condition { about, held, failed }).collect();
    report
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rule_does_what_it_says() {
        let reports = verify();
        let wrong: Vec<_> = reports.iter().filter(|r| !r.is_sound()).collect();
        assert!(wrong.is_empty(), "{wrong:#?}");
        let unexercised: Vec<_> = reports.iter().filter(|r| r.unexercised().next().is_some()).collect();
        assert!(unexercised.is_empty(), "{unexercised:#?}");
    }
}
