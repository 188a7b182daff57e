//! Which part of a kernel an instruction comes from, told by comments in its PTX.
//!
//! A part is the line of a debug location, so that LLVM carries it through its passes and, as debug information must, makes the same code
//! with it and without. In the text [`annotate`] turns the locations of a basic block into one comment and takes the rest out.

use super::Builder;
use inkwell::builder::Builder as LlvmBuilder;
use inkwell::context::Context;
use inkwell::debug_info::{
    AsDIScope, DIFlagsConstants, DIScope, DWARFEmissionKind, DWARFSourceLanguage, DebugInfoBuilder,
};
use inkwell::module::{FlagBehavior, Module};
use inkwell::values::FunctionValue;
use std::cell::RefCell;
use std::fmt::Write;

/// Parts that a comment names; a block of more says so.
const MOST_NAMES: usize = 4;

/// The parts of a kernel that were named so far.
pub struct Origins<'c> {
    debug: DebugInfoBuilder<'c>,
    scope: DIScope<'c>,
    names: RefCell<Vec<String>>,
}

impl<'c> Origins<'c> {
    /// For a function whose text will be annotated.
    pub fn new(context: &'c Context, module: &Module<'c>, function: FunctionValue<'c>, name: &str) -> Origins<'c> {
        let version = context.i32_type().const_int(inkwell::debug_info::debug_metadata_version().into(), false);
        module.add_basic_value_flag("Debug Info Version", FlagBehavior::Warning, version);
        let (debug, unit) = module.create_debug_info_builder(
            true,
            DWARFSourceLanguage::C,
            name,
            "",
            "moec",
            true,
            "",
            0,
            "",
            DWARFEmissionKind::LineTablesOnly,
            0,
            false,
            false,
            "",
            "",
        );
        let file = unit.get_file();
        let ty = debug.create_subroutine_type(file, None, &[], inkwell::debug_info::DIFlags::ZERO);
        let flags = inkwell::debug_info::DIFlags::ZERO;
        let scope =
            debug.create_function(unit.as_debug_info_scope(), name, None, file, 1, ty, true, true, 1, flags, true);
        function.set_subprogram(scope);
        Origins { debug, scope: scope.as_debug_info_scope(), names: RefCell::new(Vec::new()) }
    }

    /// Line 1 is the kernel's own; the n-th name is line n + 2.
    fn line(&self, name: &str) -> u32 {
        let mut names = self.names.borrow_mut();
        let at = names.iter().position(|n| n == name).unwrap_or_else(|| {
            names.push(name.to_string());
            names.len() - 1
        });
        at as u32 + 2
    }

    /// The names, by line from 2 on.
    pub fn finish(&self) -> Vec<String> {
        self.debug.finalize();
        self.names.borrow().clone()
    }

    /// Instructions that follow belong to a line.
    pub fn locate(&self, context: &'c Context, llvm: &LlvmBuilder<'c>, line: u32) {
        llvm.set_current_debug_location(self.debug.create_debug_location(context, line, 0, self.scope, None));
    }
}

impl<'c> Builder<'c> {
    /// Builds a part of the kernel, by whose name a reader of its PTX finds it: a step of the tile program, or what a role of warps does.
    pub fn part<R>(&'c self, name: &str, body: impl FnOnce() -> R) -> R {
        let Some(origins) = &self.origins else { return body() };
        let outer = self.llvm.get_current_debug_location();
        origins.locate(self.context, &self.llvm, origins.line(name));
        let result = body();
        match outer {
            Some(outer) => self.llvm.set_current_debug_location(outer),
            None => self.llvm.unset_current_debug_location(),
        }
        result
    }
}

/// The text without debug information, with a comment at the start of each basic block that names the parts which its instructions come
/// from, in the order of their first one.
pub fn annotate(ptx: &str, names: &[String]) -> String {
    let mut out = String::with_capacity(ptx.len());
    let mut section = false;
    // Where the comment of the current block belongs, and the names of its instructions; the name of the next instruction.
    let (mut at, mut found, mut current): (Option<usize>, Vec<&str>, Option<&str>) = (None, Vec::new(), None);
    for line in ptx.lines() {
        let text = line.trim();
        if section || text.starts_with(".section") {
            // A section is a brace on a line of its own, data, and another one.
            section = text != "}";
            continue;
        }
        if let Some(location) = text.strip_prefix(".loc") {
            let number = location.split_whitespace().nth(1).and_then(|n| n.parse::<usize>().ok());
            current = number.and_then(|n| names.get(n.checked_sub(2)?)).map(String::as_str);
            continue;
        }
        if text.starts_with(".file") || is_label_of_debug(text) {
            continue;
        }
        let is_start = is_block(text) || line == "{";
        if is_start || line == "}" {
            comment(&mut out, at.take(), &found);
            found.clear();
        } else if let Some(name) = current.filter(|name| is_instruction(text) && !found.contains(name)) {
            found.push(name);
        }
        // LLVM writes that for any debug information; it would make an assembler leave code as it is.
        let line = if text.starts_with(".target") { line.trim_end_matches(", debug") } else { line };
        out.push_str(line);
        if is_start {
            at = Some(out.len());
        }
        out.push('\n');
    }
    out
}

/// Writes the comment of a block where it belongs.
fn comment(out: &mut String, at: Option<usize>, found: &[&str]) {
    let Some(at) = at.filter(|_| !found.is_empty()) else { return };
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = write!(text, " // {}", found[..found.len().min(MOST_NAMES)].join("; "));
    if found.len() > MOST_NAMES {
        text.push_str("; …");
    }
    out.insert_str(at, &text);
}

fn is_instruction(text: &str) -> bool {
    text.starts_with(|c: char| c == '@' || c.is_ascii_lowercase())
}

/// A label of a basic block.
fn is_block(text: &str) -> bool {
    text.starts_with("$L__BB") && text.split_whitespace().next().is_some_and(|word| word.ends_with(':'))
}

/// A label that only debug information refers to.
fn is_label_of_debug(text: &str) -> bool {
    let label = text.split_whitespace().next().unwrap_or_default();
    let debug = ["$L__tmp", "$L__func_begin", "$L__func_end", "$L__debug", "$L__info", "$L__sec_end", "$L__section"];
    label.ends_with(':') && debug.iter().any(|prefix| label.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use super::annotate;

    #[test]
    fn a_block_names_its_parts() {
        let text = ".target sm_80, debug\n\t.file\t1 \"k\"\n.visible .entry k()\n{\n\t.loc\t1 1 0\n$L__func_begin0:\n\tmov.u32 %r1, 0;\n\t.loc\t1 2 0\n$L__tmp1:\n\tadd;\n\
                    $L__BB0_1:\n\t.loc\t1 3 0\n\tmul;\n\t.loc\t1 2 0\n\tadd;\n\t.loc\t1 3 0\n\tret;\n$L__BB0_2:\n\tret;\n$L__func_end0:\n}\n\
                    \t.section\t.debug_abbrev\n\t{\n.b8 1\n\t}\n\t.section\t.debug_info\n\t{\n.b8 2\n\t}\n";
        let names = ["copy".to_string(), "product".to_string()];
        let want = ".target sm_80\n.visible .entry k()\n{ // copy\n\tmov.u32 %r1, 0;\n\tadd;\n$L__BB0_1: // product; copy\n\tmul;\n\tadd;\n\tret;\n$L__BB0_2: // product\n\tret;\n}\n";
        assert_eq!(annotate(text, &names), want);
    }
}
