//! What one place of a body says of another: functions by name, labels, calls.

use super::Lower;
use crate::ast::Item;
use crate::exec::error::CompileError;
use crate::exec::program::{CallTarget, Op};

impl<'m> Lower<'m> {
    /// The function that `.alias name, function;` gives for a name.
    pub(super) fn alias(&self, name: &str) -> Option<&'m str> {
        self.module.items.iter().find_map(|i| match i {
            Item::Directive(d) if d.name == "alias" && d.args.first().is_some_and(|a| a == name) => {
                d.args.get(2).map(String::as_str)
            }
            _ => None,
        })
    }

    /// The number of a function, which is then lowered too.
    pub(super) fn function_number(&mut self, name: &str) -> Option<u32> {
        if let Some(n) = self.function_index.get(name) {
            return Some(*n);
        }
        // A definition is preferred to the declaration before it, and to that an alias of the name.
        let defined = |name: &str| self.module.functions().find(|f| f.name == name && f.body.is_some());
        let f = defined(name)
            .or_else(|| defined(self.alias(name)?))
            .or_else(|| self.module.functions().find(|f| f.name == name))?;
        let n = self.bodies.len() as u32;
        self.bodies.push(f);
        self.function_index.insert(name.to_owned(), n);
        Some(n)
    }

    pub(super) fn label(&mut self, name: &str) -> Result<usize, CompileError> {
        // Function scopes are separate: the search ends at the function's own scope (index 1).
        match self.scopes[1..].iter().rev().find_map(|s| s.labels.get(name)) {
            Some(id) => Ok(*id),
            None => Err(self.invalid(format!("there is no label `{name}`"))),
        }
    }

    pub(super) fn patch(&mut self) -> Result<(), CompileError> {
        for (at, index, label) in std::mem::take(&mut self.fixups) {
            let Some(pc) = self.label_pcs[label] else {
                return Err(self.invalid("a label without a place"));
            };
            match &mut self.code[at].op {
                Op::Bra { target, .. } => *target = pc,
                Op::Brx { targets, .. } => targets[index] = pc,
                _ => {}
            }
        }
        Ok(())
    }

    /// Keeps the save lists of functions that may be active twice in one thread, and drops the others.
    pub(super) fn mark_recursion(&mut self) {
        let n = self.functions.len();
        let mut reach = vec![vec![false; n]; n];
        for (from, to) in &self.calls {
            match to {
                Some(to) => reach[*from as usize][*to as usize] = true,
                None => self.address_taken.iter().for_each(|t| reach[*from as usize][*t as usize] = true),
            }
        }
        for via in 0..n {
            let through = reach[via].clone();
            for row in &mut reach {
                if row[via] {
                    row.iter_mut().zip(&through).for_each(|(a, b)| *a |= *b);
                }
            }
        }
        for (i, row) in reach.iter().enumerate() {
            if !row[i] {
                self.functions[i].saved.clear();
                self.functions[i].saved_preds.clear();
            }
        }
    }

    pub(super) fn note_call(&mut self, target: &CallTarget) {
        let to = match target {
            CallTarget::Direct(n) => Some(*n),
            CallTarget::Indirect(_) => None,
        };
        self.calls.push((self.current_function, to));
    }
}
