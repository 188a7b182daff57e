//! From a layer to its placed form.

use crate::compile::{CompileRequest, compile_reporting};
use moec_bundle::Bundle;
use moec_ir::diag::Diagnostic;
use moec_ir::exchange::{Cut, Exchange, Piece, RowCodes};
use moec_ir::graph::{
    Columns, Graph, Param, Placed, Rounding, Source, Wire, cut_columns, experts_of_tokens, place, results_at_places,
    results_in_expert_order, round_on_wire,
};
use moec_ir::placement::MAX_RANKS;
use moec_ir::target::{Target, TargetKind};
use moec_ir::{DType, Dim, Numerics};
use moec_nvptx::emit_exchange;
use moec_ranks::{ExchangeKernels, ExpertProgram, ExpertPrograms, MemberKernels, PlacedLayer};

/// How a layer is spread over ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spread {
    /// Most experts that a rank, or a group of ranks, has room for.
    pub n_local: u32,
    /// Ranks of a group, over which the matrices of each expert are cut; 1 where they are whole.
    pub n_members: u32,
    /// How rows are rounded on their way to the experts. Without, they travel as they are; those that the layer itself rounds
    /// before its experts travel so on CPUs. On GPUs, which multiply codes, they are rounded where they arrive, and travel as codes
    /// if these can be found again.
    pub wire: Option<Wire>,
    /// Ranks that may send rows: programs of experts are for so many times the tokens of the request.
    pub n_ranks: u32,
}

impl Spread {
    /// Whole experts, up to `n_local` on a rank, and rows as they are, from any number of ranks.
    pub fn new(n_local: u32) -> Spread {
        Spread { n_local, n_members: 1, wire: None, n_ranks: MAX_RANKS }
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
    let placed = placed_of(request, spread)?;
    let experts = ExpertGraphs::of(&placed, spread.n_members)?;
    // The host gives experts a row for each slot.
    let rows = (u64::from(spread.n_ranks) * placed.top_k, u64::from(spread.n_ranks) * placed.top_k);
    programs(request, &placed, (experts, rows), progress)
}

/// Compiles a layer for ranks whose kernels exchange rows, with those kernels, for the GPU targets of the request; `Err` of the inner
/// result says in words why the kernels do not do this layer, which [`compile_placed`] and an exchange on the host then do.
///
/// # Errors
/// Those of [`compile_placed`] and [`emit_exchange`].
pub fn compile_exchanging(
    request: &CompileRequest<'_>,
    spread: &Spread,
    progress: &mut dyn FnMut(&str),
) -> Result<Result<PlacedLayer, String>, Diagnostic> {
    let placed = placed_of(request, spread)?;
    if placed.top_k > u64::from(MOST_SLOTS) {
        return Ok(Err(format!("a token has {} slots, and the kernels take {MOST_SLOTS}", placed.top_k)));
    }
    let dtype = |source: &Source| match source {
        Source::Input(name) => request.graph.inputs.iter().find(|i| i.name == *name).map(|i| i.ty.dtype),
        Source::Head(name) => {
            placed.head.as_ref().and_then(|h| h.outputs.iter().find(|(n, _)| n == name).map(|(_, v)| h.ty(*v).dtype))
        }
    };
    let missing = || Diagnostic::internal("internal-error", "ids and weights of slots should have types");
    let (ids, weights) = (dtype(&placed.ids), placed.weights.as_ref().map(dtype));
    let (row, result) = placed.widths();
    let bytes = |dtype: DType, cols: u64| cols * dtype.bytes() as u64;
    let read = placed.experts.inputs[0].ty.dtype;
    let codes = match placed.wire {
        Wire::Rows(_) => None,
        Wire::Codes(quant) => {
            Some(RowCodes { quant, cols: row as u32, sent: dtype(&placed.rows).ok_or_else(missing)?, read })
        }
    };
    if let Some(c) = codes.filter(|c| !c.has_whole_words()) {
        let words = c.word_elems();
        return Ok(Err(format!(
            "rows are rounded in blocks of {} columns, and kernels take multiples of {words}",
            c.quant.block
        )));
    }
    let slot_type = placed.experts.ty(placed.experts.outputs[0].1).dtype;
    let exchange = Exchange {
        top_k: placed.top_k as u32,
        row_bytes: codes.map_or_else(|| bytes(read, row), RowCodes::bytes),
        codes,
        result_bytes: bytes(slot_type, result),
        ids: ids.ok_or_else(missing)?,
        weights: weights.map(|w| w.ok_or_else(missing)).transpose()?,
        cut: None,
    };
    let mut experts = ExpertGraphs::of(&placed, spread.n_members)?;
    let cuts = cuts(&experts);
    for (of, &cut) in experts.iter_mut().zip(&cuts) {
        let unit = Exchange { cut, ..exchange }.result_unit(slot_type.bytes() as u64);
        match of {
            ExpertGraphs::Whole(whole, _) => {
                *whole = results_at_places(&experts_of_tokens(whole, placed.top_k)?, unit)?;
            }
            ExpertGraphs::Columns(Columns { up, down, .. }) => {
                *up = results_in_expert_order(&experts_of_tokens(up, placed.top_k)?)?;
                *down = results_at_places(down, unit)?;
            }
        }
    }
    // Kernels give them a row for each token, and the second product of experts that are cut a row for each slot.
    let rows = (u64::from(spread.n_ranks), u64::from(spread.n_ranks) * placed.top_k);
    let layer = programs(request, &placed, (experts, rows), progress)?;
    progress("kernels that exchange rows");
    let targets: Vec<&Target> =
        request.targets.iter().copied().filter(|t| matches!(t.kind, TargetKind::Gpu { .. })).collect();
    let of_member = |cut| {
        let what = Exchange { cut, ..exchange };
        let kernels = targets.iter().map(|t| Ok((t.name.to_string(), emit_exchange(&what, t)?)));
        Ok(MemberKernels { what, kernels: kernels.collect::<Result<_, Diagnostic>>()? })
    };
    let members = cuts.into_iter().map(of_member).collect::<Result<_, Diagnostic>>()?;
    Ok(Ok(layer.with_exchange(ExchangeKernels { members })))
}

/// What each member of a group has of rows of activations and results.
fn cuts(experts: &[ExpertGraphs]) -> Vec<Option<Cut>> {
    let bytes = |graph: &Graph| {
        let ty = graph.ty(graph.outputs[0].1);
        ty.last().and_then(Dim::fixed).unwrap_or(0) * ty.dtype.bytes() as u64
    };
    let (mut act, mut result) = (0, 0);
    let piece = |end: &mut u64, graph: &Graph| {
        let first = *end;
        *end += bytes(graph);
        Piece { first, bytes: bytes(graph) }
    };
    let mut pieces = Vec::new();
    for of in experts {
        let ExpertGraphs::Columns(c) = of else { return vec![None; experts.len()] };
        pieces.push((piece(&mut act, &c.up), piece(&mut result, &c.down)));
    }
    let members = pieces.len() as u32;
    let cut = |(member, (of_act, result))| Some(Cut { members, member, act_bytes: act, act: of_act, result });
    (0..).zip(pieces).map(cut).collect()
}

/// Slots of a token that kernels which exchange rows take: what they know of each lies in shared memory.
const MOST_SLOTS: u32 = 1024;

fn placed_of(request: &CompileRequest<'_>, spread: &Spread) -> Result<Placed, Diagnostic> {
    let rounded = spread.wire.map(|w| round_on_wire(request.graph, w)).transpose()?;
    let graph = rounded.as_ref().unwrap_or(request.graph);
    // GPUs have instructions for codes, which are made where the rows arrive; codes that were asked for travel.
    if request.targets.iter().any(|t| matches!(t.kind, TargetKind::Gpu { .. })) {
        let placed = place(graph, spread.n_local, Rounding::AfterDispatch)?;
        let codes = |wire| matches!(wire, Wire::Codes(_));
        if codes(placed.wire) || !spread.wire.is_some_and(codes) {
            return Ok(placed);
        }
    }
    place(graph, spread.n_local, Rounding::BeforeDispatch)
}

/// The graphs of a member's experts, and their parameters that have an axis of experts.
enum ExpertGraphs {
    Whole(Graph, Vec<Param>),
    Columns(Columns),
}

impl ExpertGraphs {
    /// Those of each member of a group.
    fn of(placed: &Placed, n_members: u32) -> Result<Vec<ExpertGraphs>, Diagnostic> {
        if n_members <= 1 {
            return Ok(vec![ExpertGraphs::Whole(placed.experts.clone(), placed.stacks.clone())]);
        }
        (0..n_members).map(|member| cut_columns(placed, n_members, member).map(ExpertGraphs::Columns)).collect()
    }
}

/// The three programs of a placed layer.
fn programs(
    request: &CompileRequest<'_>,
    placed: &Placed,
    (graphs, (rows, act_rows)): (Vec<ExpertGraphs>, (u64, u64)),
    progress: &mut dyn FnMut(&str),
) -> Result<PlacedLayer, Diagnostic> {
    // A form that moves a rounding may pay in the tail and not in the whole layer, or the other way round.
    let numerics = if request.numerics == Numerics::Fast { Numerics::Fast } else { Numerics::Bitwise };
    let dtype = |graph: &Graph| graph.inputs.iter().map(|i| i.ty.dtype).find(|d| d.is_float());
    let mut piece = |graph: &Graph, times: u64| -> Result<Bundle, Diagnostic> {
        // Memory of ranks has room for a token, where none has any.
        let most = request.tokens.1.max(1).saturating_mul(times).min(moec_passes::MAX_TOKENS);
        let tokens = (request.tokens.0, most);
        let mut info = request.info.clone();
        info.name.clone_from(&graph.name);
        if dtype(graph) != dtype(request.graph) {
            // The config beside weights is held against a layer in the type of its input.
            info.computes.clear();
        }
        let request = CompileRequest { graph, info, numerics, tokens, ..request.clone() };
        Ok(compile_reporting(&request, progress)?.bundle)
    };
    let head = placed.head.as_ref().map(|graph| piece(graph, 1)).transpose()?;
    let mut program = |graph: &Graph, stacks: Vec<Param>, times| -> Result<Box<ExpertProgram>, Diagnostic> {
        Ok(Box::new(ExpertProgram { bundle: piece(graph, times)?, stacks }))
    };
    let mut experts = Vec::new();
    for of in graphs {
        experts.push(match of {
            ExpertGraphs::Whole(graph, stacks) => ExpertPrograms::Whole(program(&graph, stacks, rows)?),
            ExpertGraphs::Columns(c) => ExpertPrograms::Columns {
                up: program(&c.up, c.up_stacks, rows)?,
                down: program(&c.down, c.down_stacks, act_rows)?,
            },
        });
    }
    let tail = piece(&placed.tail, 1)?;
    PlacedLayer::new(placed, head, experts, tail)
}
