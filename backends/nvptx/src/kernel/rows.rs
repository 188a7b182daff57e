use super::Design;
use moec_ir::Diagnostic;
use moec_ir::tile::{Program, RowProgram, Schedule};
pub fn rows<'p>(_: &'p Program, _: &'p RowProgram, _: &Schedule, _: u32) -> Result<Design<'p>, Diagnostic> {
    Err(Diagnostic::input("row-too-wide", "x"))
}
