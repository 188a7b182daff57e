//! Variables of module and function scope: sizes, initial bytes, addresses.

use super::operand::literal_bits;
use super::{Current, Lower, Symbol, Ty, types};
use crate::ast::{Declarator, Function, Initializer, Number, Space, Variable};
use crate::exec::error::CompileError;
use crate::exec::memory::CONST_WINDOW;
use crate::exec::program::{DataSymbol, Relocation, RelocationTarget};

/// Bytes of initialised data beyond which a module is refused.
const MAX_DATA: u64 = 1 << 28;

/// Which byte a mask such as `0xff00` selects.
fn byte_of_mask(mask: &str) -> Option<u32> {
    let digits = mask.to_ascii_lowercase();
    let value = u64::from_str_radix(digits.strip_prefix("0x")?.trim_end_matches('u'), 16).ok()?;
    (0..8).find(|b| value == 0xff << (8 * b))
}

/// Whether a variable is another module's.
pub(super) fn is_elsewhere(v: &Variable, d: &Declarator) -> bool {
    v.linkage.iter().any(|l| l == "extern") && d.init.is_none()
}

impl<'m> Lower<'m> {
    pub(super) fn module_data(&mut self) -> Result<(), CompileError> {
        let module = self.module;
        // Addresses in initialisers may name later variables, so all of them are placed first.
        for v in module.variables() {
            self.current = Current::Text(v.pos, v.to_string());
            for d in &v.names {
                self.declare_data(v, d)?;
            }
        }
        self.n_module_globals = self.globals.len();
        Ok(())
    }

    /// Bytes of a declared name; 0 for `x[]` without initial values.
    pub(super) fn variable_bytes(&self, v: &Variable, d: &Declarator) -> Result<u32, CompileError> {
        let Some(bits) = types::type_bits(&v.ty) else {
            return Err(self.unsupported(format!("variables of type `.{}`", v.ty)));
        };
        let mut bytes = u64::from(bits.div_ceil(8)) * u64::from(v.vector);
        for dim in &d.dims {
            let n = match dim.as_ref().map(|l| l.value) {
                Some(Number::Int(n)) => n as u64,
                Some(Number::F32(_) | Number::F64(_)) => return Err(self.invalid("a dimension is a whole number")),
                None => match &d.init {
                    Some(Initializer::List(list)) => list.len() as u64,
                    _ => 0,
                },
            };
            bytes = bytes.saturating_mul(n);
        }
        if bytes > MAX_DATA {
            return Err(self.unsupported(format!("`{}` with {bytes} bytes", d.name)));
        }
        Ok(bytes as u32)
    }

    pub(super) fn declare_data(&mut self, v: &'m Variable, d: &'m Declarator) -> Result<(), CompileError> {
        let bytes = self.variable_bytes(v, d)?;
        if matches!(v.space, Space::Global | Space::Const) {
            self.data_bytes += u64::from(bytes);
            if self.data_bytes > MAX_DATA {
                return Err(self.unsupported(format!("module variables of more than {MAX_DATA} bytes")));
            }
        }
        let natural = types::type_bits(&v.ty).unwrap_or(8).div_ceil(8) * v.vector;
        let align = v.align.unwrap_or(natural).max(1);
        let symbol = match v.space {
            Space::Shared if bytes == 0 => {
                self.dynamic_align = self.dynamic_align.max(align);
                Symbol::DynamicShared
            }
            Space::Shared => {
                self.shared_variables.push((bytes, align, None));
                Symbol::SharedVariable(self.shared_variables.len() - 1)
            }
            Space::Global => {
                // What nobody uses is nobody's loss; a use says that it is not declared here.
                if is_elsewhere(v, d) {
                    return Ok(());
                }
                let index = self.globals.len();
                self.globals.push(DataSymbol {
                    name: d.name.clone(),
                    align: u64::from(align),
                    bytes: vec![0; bytes as usize],
                    relocations: Vec::new(),
                });
                // The name must be known to initialisers that point at it.
                self.scope().symbols.insert(d.name.clone(), Symbol::Global(index));
                if let Some(init) = &d.init {
                    let mut symbol = std::mem::take(&mut self.globals[index]);
                    let mut at = 0;
                    self.initialize(&mut symbol, init, &v.ty, &mut at)?;
                    self.globals[index] = symbol;
                }
                return Ok(());
            }
            Space::Const if is_elsewhere(v, d) => return Ok(()),
            Space::Const => {
                let start = (self.const_bank.bytes.len() as u32).div_ceil(align) * align;
                self.const_bank.bytes.resize((start + bytes) as usize, 0);
                self.consts.push((d.name.clone(), start, bytes));
                self.scope().symbols.insert(d.name.clone(), Symbol::Const(start));
                if let Some(init) = &d.init {
                    let mut bank = std::mem::take(&mut self.const_bank);
                    let mut at = start as usize;
                    let result = self.initialize(&mut bank, init, &v.ty, &mut at);
                    self.const_bank = bank;
                    result?;
                }
                return Ok(());
            }
            Space::Reg | Space::Local | Space::Param => {
                return Err(self.invalid(format!("`.{}` at module scope", v.space.keyword())));
            }
        };
        self.scope().symbols.insert(d.name.clone(), symbol);
        Ok(())
    }

    /// The offset of a `.shared` variable in the CTA's window.
    pub(super) fn place_shared(&mut self, number: usize) -> Option<u32> {
        let (bytes, align, place) = *self.shared_variables.get(number)?;
        if place.is_some() {
            return place;
        }
        let at = self.static_shared.div_ceil(align) * align;
        let end = u64::from(at) + u64::from(bytes);
        if end > 256 << 10 {
            return None;
        }
        self.static_shared = end as u32;
        self.shared_variables[number].2 = Some(at);
        Some(at)
    }

    fn initialize(
        &mut self,
        data: &mut DataSymbol,
        init: &Initializer,
        ty: &str,
        at: &mut usize,
    ) -> Result<(), CompileError> {
        let bits = types::type_bits(ty).unwrap_or(8);
        let bytes = bits.div_ceil(8) as usize;
        match init {
            Initializer::List(list) => {
                for i in list {
                    self.initialize(data, i, ty, at)?;
                }
                return Ok(());
            }
            Initializer::Literal(l) => {
                let Some(value) = Ty::parse(ty).and_then(|t| literal_bits(l, t)) else {
                    return Err(self.invalid(format!("`{}` is not a `.{ty}`", l.text)));
                };
                let Some(room) = data.bytes.get_mut(*at..*at + bytes) else {
                    return Err(self.invalid("more initial values than elements"));
                };
                room.copy_from_slice(&value.to_le_bytes()[..bytes]);
            }
            Initializer::Symbol { operator, name, offset } => {
                let addend = offset.as_ref().map_or(0, |o| o.value);
                let generic = operator.as_deref() == Some("generic");
                // `0xff00(name)`: the second byte of the address.
                let shift = match operator.as_deref().filter(|_| !generic) {
                    Some(mask) => match byte_of_mask(mask) {
                        Some(byte) => byte * 8,
                        None => return Err(self.invalid(format!("`{mask}` does not select one byte of an address"))),
                    },
                    None => 0,
                };
                let target = match self.symbol(name).or_else(|| self.later_symbol(name)) {
                    Some(Symbol::Global(i)) => RelocationTarget::Global(i),
                    Some(Symbol::Const(c)) => {
                        RelocationTarget::Const(u64::from(c) + if generic { CONST_WINDOW } else { 0 })
                    }
                    Some(Symbol::Function(n)) => {
                        self.address_taken.push(n);
                        RelocationTarget::Function(n)
                    }
                    _ => return Err(self.unsupported(format!("the address of `{name}` as an initial value"))),
                };
                if *at + bytes > data.bytes.len() {
                    return Err(self.invalid("more initial values than elements"));
                }
                data.relocations.push(Relocation { at: *at, bytes, target, addend, shift });
            }
        }
        *at += bytes;
        Ok(())
    }

    /// A `.global` that stands after its use in an initialiser: its index is its position among the globals.
    fn later_symbol(&mut self, name: &str) -> Option<Symbol> {
        let position = self
            .module
            .variables()
            .filter(|v| v.space == Space::Global)
            .flat_map(|v| v.names.iter().filter(|d| !is_elsewhere(v, d)))
            .position(|d| d.name == name)?;
        Some(Symbol::Global(position))
    }

    /// Lays the kernel's parameters out; gives offset and bytes of each.
    pub(super) fn kernel_params(&mut self, kernel: &'m Function) -> Result<Vec<(u32, u32)>, CompileError> {
        let mut list = Vec::new();
        let mut end = 0u32;
        for v in kernel.params.as_deref().unwrap_or_default() {
            self.current = Current::Text(v.pos, v.to_string());
            for d in &v.names {
                let bytes = self.variable_bytes(v, d)?;
                let align =
                    v.align.unwrap_or_else(|| types::type_bits(&v.ty).unwrap_or(8).div_ceil(8) * v.vector).max(1);
                let at = end.div_ceil(align) * align;
                end = at + bytes;
                // 32764 bytes is PTX's limit since 8.1.
                if end > 32764 {
                    return Err(self.invalid("more than 32764 bytes of parameters"));
                }
                list.push((at, bytes));
                self.scope().symbols.insert(d.name.clone(), Symbol::Param(at));
            }
        }
        Ok(list)
    }
}
