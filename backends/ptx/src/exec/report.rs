//! What the host threads of a launch collected, joined.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use super::call::Report;
use super::counters::Counters;
use super::findings::{Check, Finding};
use super::program::Program;
use super::worker::Worker;

/// Joins the findings of one host thread with those of the others.
fn merge(all: &mut BTreeMap<(u32, Check), Finding>, some: BTreeMap<(u32, Check), Finding>) {
    for (key, finding) in some {
        match all.entry(key) {
            Entry::Vacant(v) => {
                v.insert(finding);
            }
            Entry::Occupied(mut o) => {
                let known = o.get_mut();
                let count = known.count + finding.count;
                // The occurrence of the lowest block is shown, whichever thread met it.
                if finding.block.iter().rev().lt(known.block.iter().rev()) {
                    *known = finding;
                }
                known.count = count;
            }
        }
    }
}

pub(crate) fn collect(program: &Program, workers: Vec<Worker>) -> Report {
    let mut findings = BTreeMap::new();
    let mut notes = BTreeMap::new();
    let mut printed = String::new();
    let mut counters = Counters::default();
    let mut profile = vec![(0u64, 0u64); program.code.len()];
    for w in workers {
        counters.add(&w.counters);
        counters.async_operations += w.async_issued;
        for (sum, n) in profile.iter_mut().zip(&w.executed) {
            sum.0 += n.0;
            sum.1 += n.1;
        }
        printed.push_str(&w.printed);
        merge(&mut findings, w.findings);
        merge(&mut notes, w.notes);
    }
    for (n, source) in profile.iter().zip(&program.source) {
        if n.0 > 0 {
            counters.warp_instructions += n.0;
            counters.lane_instructions += n.1;
            *counters.by_class.entry(source.class).or_default() += n.0;
        }
    }
    let (findings, notes) = (findings.into_values().collect(), notes.into_values().collect());
    let instructions = counters.lane_instructions;
    Report { findings, notes, printed, instructions, counters, profile, traffic: Vec::new() }
}
