//! Proofs: the chain of rewrites from the layer as it was written to the graph that is compiled, so that others can check it.
//!
//! A proof is a table of terms, and steps, each of which says that two terms are equal by a rule. Terms with equal operands are
//! equal themselves. Steps that the result does not need are left out.

mod check;
mod closure;
mod terms;

pub use check::{ProofFault, check};

use crate::normalise::{Firing, LayerEGraph};
use closure::Closure;
use moec_ir::graph::{Graph, Op};
use moec_ir::{DType, NumericClass, TensorType};
use serde::{Deserialize, Serialize};
use terms::Table;

/// Version of the format.
pub const PROOF_VERSION: u32 = 1;

/// That a layer as it was written and the graph that is compiled have equal outputs.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Proof {
    /// [`PROOF_VERSION`].
    pub version: u32,
    /// Types of the layer's inputs.
    pub inputs: Vec<TensorType>,
    /// Types of its parameters.
    pub params: Vec<TensorType>,
    /// Every value that the steps speak of; operands come first.
    pub terms: Vec<Term>,
    /// What is equal by a rule, in an order in which it was found.
    pub steps: Vec<Step>,
    /// What is equal in the end: the outputs.
    pub outputs: Vec<ProvenOutput>,
}

/// A value.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Term {
    /// The operation.
    pub op: Op,
    /// Element type of its result.
    pub dtype: DType,
    /// Terms, by their index.
    pub operands: Vec<usize>,
}

/// Two terms that are equal by a rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Step {
    /// Name of the rule.
    pub rule: String,
    /// What it does to the bits.
    pub class: NumericClass,
    /// The term that was there.
    pub before: usize,
    /// What it became.
    pub after: usize,
}

/// An output of the layer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProvenOutput {
    /// Its name.
    pub name: String,
    /// The term as written.
    pub source: usize,
    /// The term that is compiled.
    pub result: usize,
}

impl Proof {
    /// Of what an e-graph found: from `source` to `result`, by the firings of rules in their order. `None` when they do not prove it,
    /// which is a bug.
    pub(crate) fn of(source: &Graph, result: &Graph, egraph: &LayerEGraph, firings: &[Firing]) -> Option<Proof> {
        let mut table = Table::default();
        let [before, after] = [source, result].map(|g| table.of_graph(g));
        let outputs: Vec<ProvenOutput> = source
            .outputs
            .iter()
            .zip(&result.outputs)
            .map(|((name, s), (_, r))| ProvenOutput {
                name: name.clone(),
                source: before[s.index()],
                result: after[r.index()],
            })
            .collect();
        let mut steps: Vec<Step> = Vec::with_capacity(firings.len());
        for f in firings {
            let step = Step {
                rule: f.rule.to_string(),
                class: f.class,
                before: table.of_seen(egraph, &f.before, &f.seen),
                after: table.of_tree(egraph, &f.after, &f.seen),
            };
            steps.push(step);
        }
        let closure = Closure::new(&table.terms);
        let proves = |steps: &[Step]| {
            let classes = closure.of(steps.iter().map(|s| (s.before, s.after)));
            outputs.iter().all(|o| classes[o.source] == classes[o.result])
        };
        if !proves(&steps) {
            return None;
        }
        // Later steps first: those are the ways that were not taken.
        for i in (0..steps.len()).rev() {
            let step = steps.remove(i);
            if !proves(&steps) {
                steps.insert(i, step);
            }
        }
        let proof = Proof {
            version: PROOF_VERSION,
            inputs: source.inputs.iter().map(|i| i.ty.clone()).collect(),
            params: source.params.iter().map(|p| p.ty.clone()).collect(),
            terms: table.terms,
            steps,
            outputs,
        };
        Some(proof.without_unused_terms())
    }

    /// As JSON, with a line for each term, step and output.
    pub fn to_text(&self) -> String {
        let lines = |name: &str, items: Vec<String>| format!("\"{name}\": [\n{}\n]", items.join(",\n"));
        fn each<T: Serialize>(items: &[T]) -> Vec<String> {
            items.iter().map(|i| serde_json::to_string(i).unwrap_or_default()).collect()
        }
        let parts = [
            format!("\"version\": {}", self.version),
            lines("inputs", each(&self.inputs)),
            lines("params", each(&self.params)),
            lines("terms", each(&self.terms)),
            lines("steps", each(&self.steps)),
            lines("outputs", each(&self.outputs)),
        ];
        format!("{{{}}}\n", parts.join(",\n"))
    }

    /// Leaves out what nothing speaks of.
    fn without_unused_terms(mut self) -> Proof {
        let mut used = vec![false; self.terms.len()];
        self.outputs.iter().for_each(|o| [o.source, o.result].iter().for_each(|&t| used[t] = true));
        self.steps.iter().for_each(|s| [s.before, s.after].iter().for_each(|&t| used[t] = true));
        for i in (0..self.terms.len()).rev() {
            if used[i] {
                self.terms[i].operands.iter().for_each(|&t| used[t] = true);
            }
        }
        let mut number = vec![0; used.len()];
        for (next, i) in (0..used.len()).filter(|&i| used[i]).enumerate() {
            number[i] = next;
        }
        let mut keep = used.iter();
        self.terms.retain(|_| *keep.next().unwrap_or(&false));
        self.terms.iter_mut().flat_map(|t| &mut t.operands).for_each(|o| *o = number[*o]);
        self.steps.iter_mut().for_each(|s| (s.before, s.after) = (number[s.before], number[s.after]));
        self.outputs.iter_mut().for_each(|o| (o.source, o.result) = (number[o.source], number[o.result]));
        self
    }
}
