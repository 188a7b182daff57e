//! From a layer to its placed form.

use crate::compile::{CompileRequest, compile_reporting};
use moec_bundle::Bundle;
use moec_ir::Numerics;
use moec_ir::diag::Diagnostic;
use moec_ir::graph::{Graph, Param, Rounding, Wire, cut_columns, place, round_on_wire};
use moec_ir::target::TargetKind;
use moec_ranks::{ExpertProgram, ExpertPrograms, PlacedLayer};

/// How a layer is spread over ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spread {
    /// Most experts that a rank, or a group of ranks, has room for.
    pub n_local: u32,
    /// Ranks of a group, over which the matrices of each expert are cut; 1 where they are whole.
    pub n_members: u32,
    /// How rows are rounded on their way to the experts. Without, they travel as they are; those that the layer itself rounds
    /// before its experts travel so on CPUs, and are rounded where they arrive on GPUs, which multiply codes.
    pub wire: Option<Wire>,
}

impl Spread {
    /// Whole experts, up to `n_local` on a rank, and rows as they are.
    pub fn new(n_local: u32) -> Spread {
        Spread { n_local, n_members: 1, wire: None }
    }
}

/// Compiles a layer for ranks that share it: the same programs for all of them.
///
/// With a `wire`, the result is that of the layer that [`round_on_wire`] gives.
///
/// Unless the request is for [`Numerics::Fast`], only rewrites fire that keep all bits: the output is that of the layer compiled
/// with [`Numerics::Bitwise`], and of [`Numerics::Deterministic`] wherever that has found nothing better to do.
///
/// # Errors
/// Those of [`place`], [`round_on_wire`], [`cut_columns`] and [`crate::compile`].
pub fn compile_placed(
    request: &CompileRequest<'_>,
    spread: &Spread,
    progress: &mut dyn FnMut(&str),
) -> Result<PlacedLayer, Diagnostic> {
    let &Spread { n_local, n_members, wire } = spread;
    let rounded = wire.map(|w| round_on_wire(request.graph, w)).transpose()?;
    // GPUs have instructions for codes, which no program takes from outside yet; a wire that was asked for is kept.
    let on_gpus = request.targets.iter().any(|t| matches!(t.kind, TargetKind::Gpu { .. }));
    let rounding = if on_gpus && wire.is_none() { Rounding::AfterDispatch } else { Rounding::BeforeDispatch };
    let placed = place(rounded.as_ref().unwrap_or(request.graph), n_local, rounding)?;
    // A form that moves a rounding may pay in the tail and not in the whole layer, or the other way round.
    let numerics = if request.numerics == Numerics::Fast { Numerics::Fast } else { Numerics::Bitwise };
    let dtype = |graph: &Graph| graph.inputs.iter().map(|i| i.ty.dtype).find(|d| d.is_float());
    let mut piece = |graph: &Graph| -> Result<Bundle, Diagnostic> {
        let mut info = request.info.clone();
        info.name.clone_from(&graph.name);
        if dtype(graph) != dtype(request.graph) {
            // The config beside weights is held against a layer in the type of its input.
            info.computes.clear();
        }
        let request = CompileRequest { graph, info, numerics, ..request.clone() };
        Ok(compile_reporting(&request, progress)?.bundle)
    };
    let head = placed.head.as_ref().map(&mut piece).transpose()?;
    let mut program = |graph: &Graph, stacks: Vec<Param>| -> Result<Box<ExpertProgram>, Diagnostic> {
        Ok(Box::new(ExpertProgram { bundle: piece(graph)?, stacks }))
    };
    let mut experts = Vec::new();
    if n_members <= 1 {
        experts.push(ExpertPrograms::Whole(program(&placed.experts, placed.stacks.clone())?));
    } else {
        for member in 0..n_members {
            let columns = cut_columns(&placed, n_members, member)?;
            let (up, down) = (program(&columns.up, columns.up_stacks)?, program(&columns.down, columns.down_stacks)?);
            experts.push(ExpertPrograms::Columns { up, down });
        }
    }
    let tail = piece(&placed.tail)?;
    PlacedLayer::new(&placed, head, experts, tail)
}
