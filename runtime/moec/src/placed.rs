//! From a layer to its placed form.

use crate::compile::{CompileRequest, compile_reporting};
use moec_bundle::Bundle;
use moec_ir::Numerics;
use moec_ir::diag::Diagnostic;
use moec_ir::graph::{Graph, Wire, place, round_on_wire};
use moec_ranks::PlacedLayer;

/// Compiles a layer for ranks that share it, each with room for `n_local` of its experts: the same programs for all of them.
///
/// With a `wire`, rows are rounded to it on their way to the experts; the result is that of the layer
/// [`round_on_wire`] gives. Without, they travel as they are, or as the layer itself rounds them before its experts.
///
/// Unless the request is for [`Numerics::Fast`], only rewrites fire that keep all bits: the output is that of the layer compiled
/// with [`Numerics::Bitwise`], and of [`Numerics::Deterministic`] wherever that has found nothing better to do.
///
/// # Errors
/// Those of [`place`], [`round_on_wire`] and [`crate::compile`].
pub fn compile_placed(
    request: &CompileRequest<'_>,
    n_local: u32,
    wire: Option<Wire>,
    progress: &mut dyn FnMut(&str),
) -> Result<PlacedLayer, Diagnostic> {
    let rounded = wire.map(|w| round_on_wire(request.graph, w)).transpose()?;
    let placed = place(rounded.as_ref().unwrap_or(request.graph), n_local)?;
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
    let (experts, tail) = (piece(&placed.experts)?, piece(&placed.tail)?);
    PlacedLayer::new(&placed, head, experts, tail)
}
