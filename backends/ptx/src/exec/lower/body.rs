//! Bodies of functions: scopes, declarations, labels, statements in order.

use super::{Current, Lower, Range, Scope, Symbol, types, vectors};
use crate::ast::{Space, Statement, Variable};
use crate::exec::counters::Class;
use crate::exec::error::CompileError;
use crate::exec::program::{FunctionInfo, Op, PredSlot, PredSrc, Slot};

impl<'m> Lower<'m> {
    pub(super) fn function(&mut self, number: u32) -> Result<(), CompileError> {
        let f = self.bodies[number as usize];
        let Some(body) = f.body.as_ref() else {
            self.current = Current::Text(f.pos, f.name.clone());
            return Err(self.unsupported(format!("function `{}` has no body", f.name)));
        };
        self.current_function = number;
        self.loc = None;
        self.frame_bytes = 0;
        while self.functions.len() <= number as usize {
            self.functions.push(FunctionInfo::default());
        }
        let (first_slot, first_pred) = (self.n_slots, self.n_preds);
        self.scopes.push(Scope::default());
        if number > 0 {
            let params = self.frame_variables(f.params.as_deref().unwrap_or_default())?;
            let returns = self.frame_variables(f.returns.as_deref().unwrap_or_default())?;
            self.functions[number as usize].params = params;
            self.functions[number as usize].returns = returns;
        }
        self.functions[number as usize].name.clone_from(&f.name);
        self.functions[number as usize].entry_pc = self.code.len() as u32;
        self.register_returns.clear();
        if number > 0 {
            self.register_params(f)?;
        }
        self.block(body)?;
        // Falling off the end is a return.
        self.guard = PredSrc::TRUE;
        self.class = Class::Control;
        self.current = Current::Text(f.pos, "ret".to_owned());
        self.store_returns()?;
        self.emit(Op::Ret);
        self.scopes.pop();
        let info = &mut self.functions[number as usize];
        info.frame_bytes = self.frame_bytes.div_ceil(16) * 16;
        // Presets hold the same in every activation; saving them with the rest does no harm.
        info.saved = (first_slot..self.n_slots).map(Slot).collect();
        info.saved_preds = (first_pred..self.n_preds).map(PredSlot).collect();
        Ok(())
    }

    pub(super) fn frame_variables(&mut self, list: &'m [Variable]) -> Result<Vec<(u32, u32)>, CompileError> {
        let mut at = Vec::new();
        for v in list {
            self.current = Current::Text(v.pos, v.to_string());
            for d in &v.names {
                let bytes = self.variable_bytes(v, d)?;
                let offset = self.frame_room(bytes, v)?;
                self.scope().symbols.insert(d.name.clone(), Symbol::Frame(offset, bytes));
                at.push((offset, bytes));
            }
        }
        Ok(at)
    }

    pub(super) fn scope(&mut self) -> &mut Scope {
        let last = self.scopes.len() - 1;
        &mut self.scopes[last]
    }

    pub(super) fn block(&mut self, body: &'m [Statement]) -> Result<(), CompileError> {
        // Labels and tables are visible in the whole scope, also before they stand.
        let mut label = None;
        for s in body {
            match s {
                Statement::Label(pos, name) => {
                    let id = self.label_pcs.len();
                    self.label_pcs.push(None);
                    if self.scope().labels.insert(name.clone(), id).is_some() {
                        self.current = Current::Text(*pos, format!("{name}:"));
                        return Err(self.invalid(format!("label `{name}` stands twice")));
                    }
                    label = Some(name);
                }
                Statement::Targets { names, .. } => {
                    if let Some(label) = label {
                        self.scope().targets.insert(label.clone(), names.clone());
                    }
                }
                _ => {}
            }
        }
        for s in body {
            self.statement(s)?;
        }
        Ok(())
    }

    pub(super) fn statement(&mut self, s: &'m Statement) -> Result<(), CompileError> {
        match s {
            Statement::Label(_, name) => {
                let pc = self.code.len() as u32;
                if let Some(id) = self.scope().labels.get(name).copied() {
                    self.label_pcs[id] = Some(pc);
                }
                Ok(())
            }
            Statement::Instruction(i) => self.instruction(i),
            Statement::Variable(v) => {
                self.current = Current::Text(v.pos, v.to_string());
                self.declare(v)
            }
            Statement::Scope(_, inner) => {
                self.scopes.push(Scope::default());
                self.block(inner)?;
                self.scopes.pop();
                Ok(())
            }
            Statement::Directive(d) => {
                if let ("loc", [file, line, ..]) = (d.name.as_str(), &d.integers()[..]) {
                    // Line 0 is code that no line stands for.
                    let place = u32::try_from(*file).ok().zip(u32::try_from(*line).ok());
                    self.loc = place.filter(|(_, line)| *line > 0);
                }
                Ok(())
            }
            Statement::Targets { .. } | Statement::Prototype { .. } => Ok(()),
        }
    }

    pub(super) fn declare(&mut self, v: &'m Variable) -> Result<(), CompileError> {
        for d in &v.names {
            match v.space {
                Space::Reg => {
                    let scope = self.scope();
                    match &d.range {
                        Some(range) => {
                            let count = match range.value {
                                crate::ast::Number::Int(n) => n as u64,
                                crate::ast::Number::F32(_) | crate::ast::Number::F64(_) => 0,
                            };
                            scope.ranges.insert(d.name.clone(), Range { count, ty: v.ty.clone() });
                        }
                        None if v.vector > 1 => {
                            for element in vectors::elements(v.vector) {
                                let name = format!("{}.{element}", d.name);
                                scope.registers.remove(&name);
                                scope.declared.insert(name, v.ty.clone());
                            }
                            scope.vectors.insert(d.name.clone(), v.vector);
                            self.has_vectors = true;
                        }
                        None => {
                            scope.declared.insert(d.name.clone(), v.ty.clone());
                            scope.registers.remove(&d.name);
                        }
                    }
                }
                Space::Local => {
                    let bytes = self.variable_bytes(v, d)?;
                    let at = self.frame_room(bytes, v)?;
                    self.scope().symbols.insert(d.name.clone(), Symbol::Local(at));
                }
                Space::Param => {
                    let bytes = self.variable_bytes(v, d)?;
                    let at = self.frame_room(bytes, v)?;
                    self.scope().symbols.insert(d.name.clone(), Symbol::Frame(at, bytes));
                }
                Space::Shared | Space::Global | Space::Const => self.declare_data(v, d)?,
            }
        }
        Ok(())
    }

    /// Reserves frame bytes.
    pub(super) fn frame_room(&mut self, bytes: u32, v: &Variable) -> Result<u32, CompileError> {
        let align = v.align.unwrap_or_else(|| types::type_bits(&v.ty).unwrap_or(8).div_ceil(8) * v.vector).max(1);
        let at = self.frame_bytes.div_ceil(align) * align;
        // 512 KiB is PTX's limit of local memory of a thread.
        if at.checked_add(bytes).is_none_or(|end| end > 512 << 10) {
            return Err(self.unsupported("more than 512 KiB of local memory"));
        }
        self.frame_bytes = at + bytes;
        Ok(at)
    }
}
