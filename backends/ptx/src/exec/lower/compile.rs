//! A kernel of a module to a program.

use rustc_hash::FxHashMap;

use super::{Current, Lower, Scope, availability};
use crate::ast::{Module, Pos};
use crate::exec::Target;
use crate::exec::counters::Class;
use crate::exec::error::CompileError;
use crate::exec::program::{DataSymbol, PredSrc, Preset, Program, Slot};

impl Program {
    /// Lowers a kernel for execution.
    ///
    /// # Errors
    /// No such kernel; an instruction or form that is not executed, by name and line; a program that contradicts itself.
    pub fn compile(module: &Module, entry: &str) -> Result<Program, CompileError> {
        let Some(kernel) = module.entries().find(|f| f.name == entry) else {
            let names: Vec<&str> = module.entries().map(|f| f.name.as_str()).collect();
            let available = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
            return Err(CompileError::NoEntry { name: entry.to_owned(), available });
        };
        let name = module.target.first().map_or("", String::as_str);
        let target = Target::parse(name).ok_or_else(|| CompileError::Target(name.to_owned()))?;
        let mut lower = Lower {
            module,
            target,
            lacks: availability::Lacks::new(target, module.version),
            code: Vec::new(),
            source: Vec::new(),
            constants: Vec::new(),
            constant_index: FxHashMap::default(),
            presets: FxHashMap::default(),
            n_slots: 0,
            slot_bits: Vec::new(),
            // Slot 0 is the predicate that always holds.
            n_preds: 1,
            scopes: Vec::new(),
            label_pcs: Vec::new(),
            fixups: Vec::new(),
            functions: Vec::new(),
            bodies: vec![kernel],
            function_index: FxHashMap::default(),
            calls: Vec::new(),
            address_taken: Vec::new(),
            current_function: 0,
            register_returns: Vec::new(),
            frame_bytes: 0,
            globals: Vec::new(),
            data_bytes: 0,
            const_bank: DataSymbol { align: 256, ..DataSymbol::default() },
            n_module_globals: 0,
            consts: Vec::new(),
            static_shared: crate::exec::memory::SHARED_RESERVED,
            shared_variables: Vec::new(),
            dynamic_align: 1,
            uses_cluster: false,
            uses_heap: false,
            has_vectors: false,
            uses_stack: false,
            waits_for_tmem_loads: false,
            fences_tmem: false,
            current: Current::Text(Pos::default(), String::new()),
            loc: None,
            class: Class::Move,
            guard: PredSrc::TRUE,
        };
        lower.scopes.push(Scope::default());
        lower.module_data()?;
        let params = lower.kernel_params(kernel)?;
        let mut next = 0;
        while next < lower.bodies.len() {
            lower.function(next as u32)?;
            next += 1;
        }
        lower.patch()?;
        lower.mark_recursion();
        let three = |name: &str| {
            kernel.directive(name).map(|v| {
                let at = |i: usize| v.get(i).copied().unwrap_or(1).min(u64::from(u32::MAX)) as u32;
                [at(0), at(1), at(2)]
            })
        };
        let files = lower.files();
        let mut presets: Vec<(Slot, Preset)> = lower.presets.into_iter().map(|(p, s)| (s, p)).collect();
        presets.sort_by_key(|(s, _)| *s);
        Ok(Program {
            entry: entry.to_owned(),
            code: lower.code,
            files,
            source: lower.source,
            functions: lower.functions,
            n_slots: lower.n_slots,
            slot_bits: lower.slot_bits,
            n_preds: lower.n_preds,
            constants: lower.constants,
            presets,
            globals: lower.globals,
            const_bank: lower.const_bank,
            n_module_globals: lower.n_module_globals,
            consts: lower.consts,
            param_bytes: params.last().map_or(0, |(at, n)| at + n),
            params,
            static_shared_bytes: lower.static_shared - crate::exec::memory::SHARED_RESERVED,
            dynamic_align: lower.dynamic_align,
            uses_cluster: lower.uses_cluster,
            uses_heap: lower.uses_heap,
            uses_stack: lower.uses_stack,
            waits_for_tmem_loads: lower.waits_for_tmem_loads,
            fences_tmem: lower.fences_tmem,
            required_cluster: three("reqnctapercluster").filter(|c| c.iter().all(|n| *n > 0)),
            required_block: three("reqntid"),
            max_block: three("maxntid").map(|b| b.iter().product()),
            target,
        })
    }
}
