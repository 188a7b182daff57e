//! The text form of tile programs. [`super::parse`] reads it back.

use super::{
    Body, BufferId, Chain, ColAccess, Combine, Contract, Groups, Kernel, Map, MapArg, Panel, Places, Plan, Program,
    Quantise, Role, RowAccess, RowMap, RowQuant,
};
use super::{RowId, RowOp, RowOpKind, RowProgram, Segment, Team};
use crate::act_quant::ActQuant;
use crate::graph::{GroupScore, Reduce, RenormRule, RowMask};
use std::fmt::{Display, Formatter, Result, Write};

impl Display for BufferId {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        write!(f, "%{}", self.0)
    }
}

impl Display for RowId {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        write!(f, "r{}", self.0)
    }
}

impl Display for Program {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        writeln!(f, "program {:?} {{", self.name)?;
        for (i, b) in self.buffers.iter().enumerate() {
            let role = match b.role {
                Role::Input(n) => format!("input {n}"),
                Role::Output(n) => format!("output {n}"),
                Role::Weight(n) => format!("weight {n}"),
                Role::WeightScale(n) => format!("weight_scale {n}"),
                Role::WeightGlobal(n) => format!("weight_global {n}"),
                Role::Workspace => "workspace".to_string(),
                Role::Counter => "counter".to_string(),
            };
            writeln!(
                f,
                "  %{i} = {}[{}, {}, {}] pitch {} {role} {:?}",
                b.dtype, b.batch, b.rows, b.cols, b.pitch, b.name
            )?;
        }
        self.kernels.iter().try_for_each(|k| write!(f, "{k}"))?;
        f.write_str("}\n")
    }
}

impl Display for Kernel {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        let s = &self.schedule;
        write!(
            f,
            "  kernel {} ({} x {} x {}, {} stages, {} warps",
            self.name, s.tile_m, s.tile_n, s.tile_k, s.stages, s.warps
        )?;
        if s.rest_m != 0 {
            write!(f, ", rest_m {}", s.rest_m)?;
        }
        match s.team {
            Team::One => {}
            Team::Pair => write!(f, ", pair")?,
            Team::TwoPairs => write!(f, ", two_pairs")?,
            Team::Neighbours => write!(f, ", neighbours")?,
            Team::SplitK => write!(f, ", split")?,
        }
        if s.k_parts != 1 {
            write!(f, ", k_parts {}", s.k_parts)?;
        }
        if s.dynamic {
            write!(f, ", dynamic")?;
        }
        if s.order_ctas != 1 {
            write!(f, ", order_ctas {}", s.order_ctas)?;
        }
        if s.logit_ctas != 1 {
            write!(f, ", logit_ctas {}", s.logit_ctas)?;
        }
        write!(f, ") ")?;
        match &self.body {
            Body::Contract(c) => write!(f, "{c}"),
            Body::Rows(p) => write!(f, "{p}"),
            Body::Plan(p) => writeln!(f, "{p}"),
            Body::Map(m) => write!(f, "{m}"),
            Body::Quantise(q) => writeln!(f, "{q}"),
            Body::Combine(c) => writeln!(f, "{c}"),
        }
    }
}

impl Display for Contract {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        f.write_str("contract {\n")?;
        self.segments.iter().try_for_each(|s| write!(f, "{s}"))?;
        for Chain { made_by, read_by, counter } in &self.chains {
            writeln!(f, "    chain {made_by} to {read_by} counted by {counter}")?;
        }
        if let Some(numbers) = self.numbers {
            writeln!(f, "    drawn from {numbers}")?;
        }
        if let Some(then) = &self.combine {
            writeln!(f, "    then {} counted by {}", then.combine, then.counter)?;
        }
        f.write_str("  }\n")
    }
}

impl Display for Segment {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        write!(f, "    {}", self.a)?;
        if let Some(q) = &self.a_quant {
            write!(f, " {q}")?;
        }
        if let Some(ActQuant { code, scale, block }) = self.a_round {
            write!(f, " rounded to {} by {}({block})", code.name(), scale.name())?;
        }
        if let RowMap::Gather(map) = self.a_rows {
            write!(f, " rows {map}")?;
        }
        match self.groups {
            Groups::Dense => f.write_str(" dense")?,
            Groups::ByExpert { offsets } => write!(f, " by {offsets}")?,
        }
        for (panel, bias) in self.panels.iter().zip(&self.biases) {
            write!(f, " * {panel}")?;
            if let Some(b) = bias {
                write!(f, " + {b}")?;
            }
        }
        write!(f, " : {} -> {}", self.epilogue, self.out)?;
        places(f, self.out_places)?;
        if let Some(q) = &self.out_quant {
            write!(f, " {q}")?;
        }
        f.write_str("\n")
    }
}

impl Display for RowQuant {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        let ActQuant { code, scale, block } = self.q;
        write!(f, "as {} by {}({block}) of {} scales {}", code.name(), scale.name(), self.cols, self.scales)?;
        self.global.map_or(Ok(()), |global| write!(f, " global {global}"))
    }
}

impl Display for Quantise {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        write!(f, "quantise {} -> {} {}", self.x, self.out, self.quant)?;
        until(f, self.until)
    }
}

impl Display for Panel {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        write!(f, "{}", self.weights)?;
        let Some(q) = &self.quant else { return Ok(()) };
        write!(f, " as {} scales {}", q.format, q.scales)?;
        if let Some(global) = q.global {
            write!(f, " global {global}")?;
        }
        write!(f, " to {}", q.round)
    }
}

impl Display for Plan {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        write!(
            f,
            "plan {} of {} -> {}, {}, {}",
            self.ids, self.n_experts, self.offsets, self.slot_to_row, self.row_to_token
        )?;
        self.places.map_or(Ok(()), |p| write!(f, " places {} to {}", p.of_slots, p.of_rows))
    }
}

impl Display for RowProgram {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        write!(f, "rows {}", self.rows)?;
        until(f, self.until)?;
        f.write_str(" {\n")?;
        for (i, op) in self.ops.iter().enumerate() {
            writeln!(f, "    r{i} = {op}")?;
        }
        for s in &self.stores {
            writeln!(f, "    store {} -> {}", s.value, s.buffer)?;
        }
        self.quantise.iter().try_for_each(|q| writeln!(f, "    {q}"))?;
        if let Some(p) = &self.plan {
            writeln!(f, "    then {} counted by {}", p.plan, p.counter)?;
        }
        if let Some(l) = &self.logits {
            f.write_str("    products in ")?;
            list(f, &l.values)?;
            writeln!(f, " counted by {}", l.counter)?;
        }
        f.write_str("  }\n")
    }
}

impl Display for RowOp {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        match &self.kind {
            RowOpKind::Load(b) => write!(f, "load {b}"),
            RowOpKind::LoadFirst(b) => write!(f, "load_first {b}"),
            RowOpKind::Linear { x, w, bias } => {
                write!(f, "linear {x} * {w}")?;
                bias.map_or(Ok(()), |b| write!(f, " + {b}"))
            }
            RowOpKind::Map { expr, args } => {
                write!(f, "map {expr} (")?;
                list(f, args)?;
                f.write_char(')')
            }
            RowOpKind::Softmax(x) => write!(f, "softmax {x}"),
            RowOpKind::RmsNorm { x, eps } => write!(f, "rms_norm {x} eps {eps}"),
            RowOpKind::GroupLimit { x, n_groups, keep, score, fill } => {
                let score = match score {
                    GroupScore::Max => "max",
                    GroupScore::Top2Sum => "top2_sum",
                };
                let fill = match fill {
                    RowMask::NegInf => "neg_inf",
                    RowMask::Zero => "zero",
                };
                write!(f, "group_limit {x} keep {keep} of {n_groups} by {score} fill {fill}")
            }
            RowOpKind::TopK(x) => write!(f, "top_k {x}"),
            RowOpKind::Gather { x, ids } => write!(f, "gather {x}, {ids}"),
            RowOpKind::Reduce { x, kind: Reduce::Max } => write!(f, "reduce max {x}"),
            RowOpKind::Reduce { x, kind: Reduce::Sum } => write!(f, "reduce sum {x}"),
            RowOpKind::MaskChosen { x, ids } => write!(f, "mask_chosen {x}, {ids}"),
            RowOpKind::Join { a, b } => write!(f, "join {a}, {b}"),
            RowOpKind::Lookup { table, index } => write!(f, "lookup {table}[{index}]"),
            RowOpKind::LocalIds { ids, first, count } => write!(f, "local_ids {first} {count} {ids}"),
            RowOpKind::SumOutside { x, ids, n_experts } => write!(f, "sum_outside {n_experts} {x}, {ids}"),
            RowOpKind::Renormalise { x, rule } => match rule {
                RenormRule::Sum { eps } => write!(f, "renormalise {x} sum {eps}"),
                RenormRule::SumAtLeast { min } => write!(f, "renormalise {x} sum_at_least {min}"),
                RenormRule::PNorm { p } => write!(f, "renormalise {x} p_norm {p}"),
            },
        }?;
        write!(f, " : {}[{}]", self.dtype, self.width)
    }
}

impl Display for Map {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        write!(f, "map {} (", self.expr)?;
        list(f, &self.args)?;
        write!(f, ") -> {}", self.out)?;
        places(f, self.out_places)?;
        until(f, self.until)?;
        f.write_str("\n")
    }
}

impl Display for MapArg {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        write!(f, "{}[", self.buffer)?;
        match self.row {
            RowAccess::Same => f.write_str("r")?,
            RowAccess::First => f.write_str("0")?,
            RowAccess::Through(map) => write!(f, "{map}[r]")?,
        }
        match self.col {
            ColAccess::From(0) => f.write_str(", c]"),
            ColAccess::From(n) => write!(f, ", c + {n}]"),
            ColAccess::First => f.write_str(", 0]"),
            ColAccess::AbsMax(n) => write!(f, ", absmax {n}]"),
        }
    }
}

impl Display for Combine {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        write!(f, "combine {}", self.y)?;
        if let Some(map) = self.slot_to_row {
            write!(f, "[{map}]")?;
        }
        write!(f, " * {} : {} (", self.weights, self.expr)?;
        list(f, &self.args)?;
        write!(f, ") -> {}", self.out)
    }
}

/// The offsets whose last entry ends the rows.
fn until(f: &mut Formatter<'_>, offsets: Option<BufferId>) -> Result {
    offsets.map_or(Ok(()), |b| write!(f, " until {b}"))
}

fn places(f: &mut Formatter<'_>, places: Option<Places>) -> Result {
    places.map_or(Ok(()), |p| write!(f, " at {} by {}", p.of_rows, p.unit))
}

fn list(f: &mut Formatter<'_>, items: &[impl Display]) -> Result {
    for (i, item) in items.iter().enumerate() {
        write!(f, "{}{item}", if i > 0 { ", " } else { "" })?;
    }
    Ok(())
}
