//! Congruence closure: which terms are equal, given that some are.

use super::Term;
use std::collections::HashMap;

/// Terms, with their operations numbered.
pub struct Closure<'a> {
    terms: &'a [Term],
    /// Equal numbers for equal operations of equal types.
    kinds: Vec<usize>,
}

impl<'a> Closure<'a> {
    /// For a table whose operands come first.
    pub fn new(terms: &'a [Term]) -> Closure<'a> {
        let mut known = HashMap::new();
        let kinds = terms.iter().map(|t| {
            let next = known.len();
            *known.entry((&t.op, t.dtype)).or_insert(next)
        });
        let kinds = kinds.collect();
        Closure { terms, kinds }
    }

    /// A number for each term: the same for those that are equal when these pairs are, and no others.
    pub fn of(&self, equal: impl Iterator<Item = (usize, usize)>) -> Vec<usize> {
        let mut parent: Vec<usize> = (0..self.terms.len()).collect();
        equal.for_each(|(a, b)| join(&mut parent, a, b));
        loop {
            let mut seen: HashMap<(usize, Vec<usize>), usize> = HashMap::with_capacity(self.terms.len());
            let mut changed = false;
            for (i, term) in self.terms.iter().enumerate() {
                let operands = term.operands.iter().map(|&o| root(&parent, o)).collect();
                let first = *seen.entry((self.kinds[i], operands)).or_insert(i);
                if root(&parent, first) != root(&parent, i) {
                    join(&mut parent, first, i);
                    changed = true;
                }
            }
            if !changed {
                return (0..parent.len()).map(|i| root(&parent, i)).collect();
            }
        }
    }
}

fn root(parent: &[usize], mut i: usize) -> usize {
    while parent[i] != i {
        i = parent[i];
    }
    i
}

fn join(parent: &mut [usize], a: usize, b: usize) {
    let (a, b) = (root(parent, a), root(parent, b));
    // The lesser one stays, so chains stay short.
    parent[a.max(b)] = a.min(b);
}
