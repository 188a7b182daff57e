//! Reads the text form of tile programs, as [`super::print`] writes it.

use super::{
    Body, Buffer, BufferId, Chain, ColAccess, Combine, Contract, ContractCombine, Groups, Kernel, Map, MapArg, Places,
    Plan, Program, Quantise, SlotPlaces,
};
use super::{
    Panel, PanelQuant, Role, RowAccess, RowId, RowLogits, RowMap, RowOp, RowOpKind, RowPlan, RowProgram, RowQuant,
    RowStore, Schedule, Segment, Team,
};
use crate::act_quant::{ActQuant, ActScale};
use crate::diag::Diagnostic;
use crate::expr::Real;
use crate::graph::{GroupScore, Reduce, RenormRule, RowMask};
use crate::quant::Code;
use crate::text::Cursor;

/// The program that `text` spells. It is well formed as text; [`super::verify`] says whether it is valid.
///
/// # Errors
/// `text-syntax`, with line and column.
pub fn parse(text: &str) -> Result<Program, Diagnostic> {
    let mut c = Cursor::new(text);
    c.expect("program")?;
    let name = c.string()?;
    c.expect("{")?;
    let mut program = Program { name, buffers: Vec::new(), kernels: Vec::new() };
    while !c.take("}") {
        if c.take("kernel") {
            program.kernels.push(kernel(&mut c)?);
        } else {
            let n = buffer_id(&mut c)?;
            if n.index() != program.buffers.len() {
                return Err(c.error(&format!("buffers in order, %{} next", program.buffers.len())));
            }
            program.buffers.push(buffer(&mut c)?);
        }
    }
    if c.at_end() { Ok(program) } else { Err(c.error("the end")) }
}

type Parsed<T> = Result<T, Diagnostic>;

fn buffer_id(c: &mut Cursor) -> Parsed<BufferId> {
    c.expect("%")?;
    Ok(BufferId(c.small()?))
}

fn row_id(c: &mut Cursor) -> Parsed<RowId> {
    match c.word()?.strip_prefix('r').and_then(|n| n.parse().ok()) {
        Some(n) => Ok(RowId(n)),
        None => Err(c.error("a row, r0 or later, before this")),
    }
}

fn real(c: &mut Cursor) -> Parsed<Real> {
    Ok(Real(c.real()?))
}

fn buffer(c: &mut Cursor) -> Parsed<Buffer> {
    c.expect("=")?;
    let dtype = c.dtype()?;
    c.expect("[")?;
    let batch = c.integer()?;
    c.expect(",")?;
    let rows = c.dim()?;
    c.expect(",")?;
    let cols = c.integer()?;
    c.expect("]")?;
    c.expect("pitch")?;
    let pitch = c.integer()?;
    let role = if c.take("input") {
        Role::Input(c.small()?)
    } else if c.take("output") {
        Role::Output(c.small()?)
    } else if c.take("weight") {
        Role::Weight(c.small()?)
    } else if c.take("weight_scale") {
        Role::WeightScale(c.small()?)
    } else if c.take("weight_global") {
        Role::WeightGlobal(c.small()?)
    } else if c.take("counter") {
        Role::Counter
    } else {
        c.expect("workspace")?;
        Role::Workspace
    };
    Ok(Buffer { name: c.string()?, dtype, batch, rows, cols, pitch, role })
}

fn kernel(c: &mut Cursor) -> Parsed<Kernel> {
    let name = c.word()?.to_string();
    c.expect("(")?;
    let tile_m = c.small()?;
    c.expect("x")?;
    let tile_n = c.small()?;
    c.expect("x")?;
    let tile_k = c.small()?;
    c.expect(",")?;
    let stages = c.small()?;
    c.expect("stages")?;
    c.expect(",")?;
    let warps = c.small()?;
    c.expect("warps")?;
    let mut schedule = Schedule::new(tile_m, tile_n, tile_k, stages, warps);
    while !c.take(")") {
        c.expect(",")?;
        match c.word()? {
            "rest_m" => schedule.rest_m = c.small()?,
            "pair" => schedule.team = Team::Pair,
            "two_pairs" => schedule.team = Team::TwoPairs,
            "neighbours" => schedule.team = Team::Neighbours,
            "split" => schedule.team = Team::SplitK,
            "k_parts" => schedule.k_parts = c.small()?,
            "dynamic" => schedule.dynamic = true,
            "order_ctas" => schedule.order_ctas = c.small()?,
            "logit_ctas" => schedule.logit_ctas = c.small()?,
            _ => {
                let known = "rest_m, pair, two_pairs, neighbours, split, k_parts, dynamic, order_ctas or logit_ctas before this";
                return Err(c.error(known));
            }
        }
    }
    let body = match c.word()? {
        "contract" => Body::Contract(contract(c)?),
        "rows" => Body::Rows(rows(c)?),
        "plan" => Body::Plan(plan(c)?),
        "map" => {
            let expr = c.expr()?;
            let args = args(c)?;
            c.expect("->")?;
            let (out, out_places) = (buffer_id(c)?, places(c)?);
            Body::Map(Map { args, expr, out, until: until(c)?, out_places })
        }
        "quantise" => Body::Quantise(quantise(c)?),
        "combine" => Body::Combine(combine(c)?),
        _ => return Err(c.error("contract, rows, plan, map, quantise or combine before this")),
    };
    Ok(Kernel { name, body, schedule })
}

fn contract(c: &mut Cursor) -> Parsed<Contract> {
    c.expect("{")?;
    let mut all = Contract::of(Vec::new());
    while !c.take("}") {
        if c.take("then") {
            c.expect("combine")?;
            let combine = combine(c)?;
            c.expect("counted")?;
            c.expect("by")?;
            all.combine = Some(ContractCombine { combine, counter: buffer_id(c)? });
            continue;
        }
        if c.take("chain") {
            let made_by = c.small()?;
            c.expect("to")?;
            let read_by = c.small()?;
            c.expect("counted")?;
            c.expect("by")?;
            all.chains.push(Chain { made_by, read_by, counter: buffer_id(c)? });
            continue;
        }
        if c.take("drawn") {
            c.expect("from")?;
            all.numbers = Some(buffer_id(c)?);
            continue;
        }
        let a = buffer_id(c)?;
        let a_quant = row_quant(c)?;
        let a_round = if c.take("rounded") {
            c.expect("to")?;
            Some(row_format(c)?)
        } else {
            None
        };
        let a_rows = if c.take("rows") { RowMap::Gather(buffer_id(c)?) } else { RowMap::Same };
        let groups = if c.take("dense") {
            Groups::Dense
        } else {
            c.expect("by")?;
            Groups::ByExpert { offsets: buffer_id(c)? }
        };
        let (mut panels, mut biases) = (Vec::new(), Vec::new());
        while c.take("*") {
            panels.push(panel(c)?);
            biases.push(if c.take("+") { Some(buffer_id(c)?) } else { None });
        }
        c.expect(":")?;
        let epilogue = c.expr()?;
        c.expect("->")?;
        let out = buffer_id(c)?;
        let out_places = places(c)?;
        let out_quant = row_quant(c)?;
        all.segments.push(Segment {
            a,
            a_quant,
            a_round,
            a_rows,
            groups,
            panels,
            biases,
            epilogue,
            out,
            out_quant,
            out_places,
        });
    }
    Ok(all)
}

/// Codes, scales and the columns of a block.
fn row_format(c: &mut Cursor) -> Parsed<ActQuant> {
    let Some(code) = Code::from_name(c.word()?) else { return Err(c.error("a code before this")) };
    c.expect("by")?;
    let Some(scale) = ActScale::from_name(c.word()?) else { return Err(c.error("a scale before this")) };
    c.expect("(")?;
    let block = c.small()?;
    c.expect(")")?;
    Ok(ActQuant { code, scale, block })
}

/// What follows a buffer of codes; nothing where there are none.
fn row_quant(c: &mut Cursor) -> Parsed<Option<RowQuant>> {
    if !c.take("as") {
        return Ok(None);
    }
    let q = row_format(c)?;
    c.expect("of")?;
    let cols = c.integer()?;
    c.expect("scales")?;
    let scales = buffer_id(c)?;
    let global = if c.take("global") { Some(buffer_id(c)?) } else { None };
    Ok(Some(RowQuant { q, cols, scales, global }))
}

/// The offsets whose last entry ends the rows, where they end before the buffer.
fn until(c: &mut Cursor) -> Parsed<Option<BufferId>> {
    if c.take("until") { buffer_id(c).map(Some) } else { Ok(None) }
}

fn places(c: &mut Cursor) -> Parsed<Option<Places>> {
    if !c.take("at") {
        return Ok(None);
    }
    let of_rows = buffer_id(c)?;
    c.expect("by")?;
    Ok(Some(Places { of_rows, unit: c.integer()? }))
}

fn quantise(c: &mut Cursor) -> Parsed<Quantise> {
    let x = buffer_id(c)?;
    c.expect("->")?;
    let out = buffer_id(c)?;
    match row_quant(c)? {
        Some(quant) => Ok(Quantise { x, out, quant, until: until(c)? }),
        None => Err(c.error("`as` and the codes")),
    }
}

fn panel(c: &mut Cursor) -> Parsed<Panel> {
    let weights = buffer_id(c)?;
    if !c.take("as") {
        return Ok(Panel::dense(weights));
    }
    let format = c.quant_format()?;
    c.expect("scales")?;
    let scales = buffer_id(c)?;
    let global = if c.take("global") { Some(buffer_id(c)?) } else { None };
    c.expect("to")?;
    Ok(Panel { weights, quant: Some(PanelQuant { format, scales, global, round: c.dtype()? }) })
}

fn rows(c: &mut Cursor) -> Parsed<RowProgram> {
    let (rows, until) = (c.dim()?, until(c)?);
    c.expect("{")?;
    let mut p = RowProgram { until, ..RowProgram::of(rows, Vec::new(), Vec::new()) };
    while !c.take("}") {
        if c.take("then") {
            c.expect("plan")?;
            let plan = plan(c)?;
            c.expect("counted")?;
            c.expect("by")?;
            p.plan = Some(RowPlan { plan, counter: buffer_id(c)? });
            continue;
        }
        if c.take("products") {
            c.expect("in")?;
            let mut values = vec![buffer_id(c)?];
            while c.take(",") {
                values.push(buffer_id(c)?);
            }
            c.expect("counted")?;
            c.expect("by")?;
            p.logits = Some(RowLogits { values, counter: buffer_id(c)? });
            continue;
        }
        if c.take("quantise") {
            p.quantise.push(quantise(c)?);
            continue;
        }
        if c.take("store") {
            let value = row_id(c)?;
            c.expect("->")?;
            p.stores.push(RowStore { value, buffer: buffer_id(c)? });
            continue;
        }
        if row_id(c)?.0 as usize != p.ops.len() {
            return Err(c.error(&format!("rows in order, r{} before this", p.ops.len())));
        }
        c.expect("=")?;
        let kind = row_op(c)?;
        c.expect(":")?;
        let dtype = c.dtype()?;
        c.expect("[")?;
        let width = c.integer()?;
        c.expect("]")?;
        p.ops.push(RowOp { kind, width, dtype });
    }
    Ok(p)
}

fn row_op(c: &mut Cursor) -> Parsed<RowOpKind> {
    Ok(match c.word()? {
        "load" => RowOpKind::Load(buffer_id(c)?),
        "load_first" => RowOpKind::LoadFirst(buffer_id(c)?),
        "linear" => {
            let x = buffer_id(c)?;
            c.expect("*")?;
            let w = buffer_id(c)?;
            let bias = if c.take("+") { Some(buffer_id(c)?) } else { None };
            RowOpKind::Linear { x, w, bias }
        }
        "map" => {
            let expr = c.expr()?;
            c.expect("(")?;
            let mut args = Vec::new();
            while !c.take(")") {
                if !args.is_empty() {
                    c.expect(",")?;
                }
                args.push(row_id(c)?);
            }
            RowOpKind::Map { expr, args }
        }
        "softmax" => RowOpKind::Softmax(row_id(c)?),
        "rms_norm" => {
            let x = row_id(c)?;
            c.expect("eps")?;
            RowOpKind::RmsNorm { x, eps: real(c)? }
        }
        "group_limit" => {
            let x = row_id(c)?;
            c.expect("keep")?;
            let keep = c.small()?;
            c.expect("of")?;
            let n_groups = c.small()?;
            c.expect("by")?;
            let score = if c.take("max") {
                GroupScore::Max
            } else {
                c.expect("top2_sum")?;
                GroupScore::Top2Sum
            };
            c.expect("fill")?;
            let fill = if c.take("zero") {
                RowMask::Zero
            } else {
                c.expect("neg_inf")?;
                RowMask::NegInf
            };
            RowOpKind::GroupLimit { x, n_groups, keep, score, fill }
        }
        "top_k" => RowOpKind::TopK(row_id(c)?),
        "gather" => {
            let x = row_id(c)?;
            c.expect(",")?;
            RowOpKind::Gather { x, ids: row_id(c)? }
        }
        "reduce" => {
            let kind = if c.take("max") {
                Reduce::Max
            } else {
                c.expect("sum")?;
                Reduce::Sum
            };
            RowOpKind::Reduce { x: row_id(c)?, kind }
        }
        "mask_chosen" => {
            let x = row_id(c)?;
            c.expect(",")?;
            RowOpKind::MaskChosen { x, ids: row_id(c)? }
        }
        "join" => {
            let a = row_id(c)?;
            c.expect(",")?;
            RowOpKind::Join { a, b: row_id(c)? }
        }
        "lookup" => {
            let table = buffer_id(c)?;
            c.expect("[")?;
            let index = buffer_id(c)?;
            c.expect("]")?;
            RowOpKind::Lookup { table, index }
        }
        "sum_outside" => {
            let n_experts = c.small()?;
            let x = row_id(c)?;
            c.expect(",")?;
            RowOpKind::SumOutside { x, ids: row_id(c)?, n_experts }
        }
        "local_ids" => {
            let (first, count) = (c.small()?, c.small()?);
            RowOpKind::LocalIds { ids: row_id(c)?, first, count }
        }
        "renormalise" => {
            let x = row_id(c)?;
            let rule = match c.word()? {
                "sum" => RenormRule::Sum { eps: real(c)? },
                "sum_at_least" => RenormRule::SumAtLeast { min: real(c)? },
                "p_norm" => RenormRule::PNorm { p: real(c)? },
                _ => return Err(c.error("sum, sum_at_least or p_norm before this")),
            };
            RowOpKind::Renormalise { x, rule }
        }
        _ => return Err(c.error("a row operation before this")),
    })
}

fn plan(c: &mut Cursor) -> Parsed<Plan> {
    let ids = buffer_id(c)?;
    c.expect("of")?;
    let n_experts = c.integer()?;
    c.expect("->")?;
    let offsets = buffer_id(c)?;
    c.expect(",")?;
    let slot_to_row = buffer_id(c)?;
    c.expect(",")?;
    let row_to_token = buffer_id(c)?;
    let places = if c.take("places") {
        let of_slots = buffer_id(c)?;
        c.expect("to")?;
        Some(SlotPlaces { of_slots, of_rows: buffer_id(c)? })
    } else {
        None
    };
    Ok(Plan { ids, n_experts, offsets, slot_to_row, row_to_token, places })
}

fn args(c: &mut Cursor) -> Parsed<Vec<MapArg>> {
    c.expect("(")?;
    let mut args = Vec::new();
    while !c.take(")") {
        if !args.is_empty() {
            c.expect(",")?;
        }
        let buffer = buffer_id(c)?;
        c.expect("[")?;
        let row = if c.take("r") {
            RowAccess::Same
        } else if c.take("0") {
            RowAccess::First
        } else {
            let map = buffer_id(c)?;
            c.expect("[")?;
            c.expect("r")?;
            c.expect("]")?;
            RowAccess::Through(map)
        };
        c.expect(",")?;
        let col = if c.take("c") {
            ColAccess::From(if c.take("+") { c.integer()? } else { 0 })
        } else if c.take("absmax") {
            ColAccess::AbsMax(c.integer()?)
        } else {
            c.expect("0")?;
            ColAccess::First
        };
        c.expect("]")?;
        args.push(MapArg { buffer, row, col });
    }
    Ok(args)
}

fn combine(c: &mut Cursor) -> Parsed<Combine> {
    let y = buffer_id(c)?;
    let slot_to_row = if c.take("[") {
        let map = buffer_id(c)?;
        c.expect("]")?;
        Some(map)
    } else {
        None
    };
    c.expect("*")?;
    let weights = buffer_id(c)?;
    c.expect(":")?;
    let expr = c.expr()?;
    let args = args(c)?;
    c.expect("->")?;
    Ok(Combine { y, slot_to_row, weights, args, expr, out: buffer_id(c)? })
}
