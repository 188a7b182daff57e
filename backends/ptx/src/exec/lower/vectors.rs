//! Vector registers: `.reg .v4 .f32 v;` declares `v.x`, `v.y`, `v.z`, `v.w`, which are also `v.r`, `v.g`, `v.b`, `v.a`.

use super::Lower;
use crate::ast::{Address, Instruction, Operand};
use crate::exec::error::CompileError;

const ELEMENTS: [&str; 4] = ["x", "y", "z", "w"];
const COLOURS: [&str; 4] = ["r", "g", "b", "a"];

/// The names of the elements of a vector.
pub(super) fn elements(count: u32) -> impl Iterator<Item = &'static str> {
    ELEMENTS.into_iter().take(count as usize)
}

impl Lower<'_> {
    /// Lowers an instruction with vector registers written out.
    pub(super) fn with_vectors(&mut self, i: &Instruction) -> Result<(), CompileError> {
        let operands: Vec<Operand> = i.operands.iter().map(|o| self.written_out(o, i)).collect();
        let moves = i.opcode == "mov" && (i.has("v2") || i.has("v4"));
        if !moves {
            return self.dispatch(&Instruction { operands, ..i.clone() });
        }
        let [Operand::Vector(to), Operand::Vector(from)] = operands.as_slice() else {
            return Err(self.invalid("a vector is moved to a vector"));
        };
        if to.len() != from.len() {
            return Err(self.invalid(format!("a vector of {} is moved to one of {}", from.len(), to.len())));
        }
        let words: Vec<String> = i.modifiers.iter().filter(|m| !matches!(m.as_str(), "v2" | "v4")).cloned().collect();
        for (d, a) in to.iter().zip(from).filter(|(d, _)| **d != Operand::Sink) {
            self.dispatch(&Instruction {
                modifiers: words.clone(),
                operands: vec![d.clone(), a.clone()],
                ..i.clone()
            })?;
        }
        Ok(())
    }

    fn vector(&self, name: &str) -> Option<u32> {
        self.scopes.iter().rev().find_map(|s| s.vectors.get(name)).copied()
    }

    fn written_out(&self, o: &Operand, i: &Instruction) -> Operand {
        match o {
            Operand::Name(n) => {
                if let Some(count) = self.vector(n) {
                    return Operand::Vector(elements(count).map(|e| Operand::Name(format!("{n}.{e}"))).collect());
                }
                // A special register that is a vector as a whole.
                if i.has("v4") && matches!(n.as_str(), "%tid" | "%ntid" | "%ctaid" | "%nctaid") {
                    return Operand::Vector(elements(4).map(|e| Operand::Name(format!("{n}.{e}"))).collect());
                }
                match n.rsplit_once('.') {
                    Some((stem, colour)) if self.vector(stem).is_some() => {
                        let at = COLOURS.iter().position(|c| *c == colour);
                        at.map_or_else(|| o.clone(), |at| Operand::Name(format!("{stem}.{}", ELEMENTS[at])))
                    }
                    _ => o.clone(),
                }
            }
            Operand::Vector(list) => Operand::Vector(list.iter().map(|o| self.written_out(o, i)).collect()),
            Operand::Address(a) => {
                Operand::Address(Address { base: Box::new(self.written_out(&a.base, i)), offset: a.offset.clone() })
            }
            o => o.clone(),
        }
    }
}
