//! The time of a layer whose tokens and experts live on the ranks of a fabric: its three programs, and the way between them.

use super::model::{CodedRows, Fabric, FabricLoad, Model};
use crate::{CompileOptions, Variant, compile};
use moec_ir::graph::{Graph, Placed, Rounding, Wire, place, results_in_expert_order};
use moec_ir::target::Target;
use moec_ir::tile::Body;
use moec_ir::{Diagnostic, Numerics};

/// The programs of a placed layer, for ranks that hold as many experts each.
#[derive(Clone, Debug)]
pub struct PlacedPrograms {
    placed: Placed,
    target: &'static Target,
    n_local: u64,
    head: Vec<Variant>,
    experts: Vec<Variant>,
    tail: Vec<Variant>,
}

/// A step of a placed layer, in seconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    /// The router.
    pub head: f64,
    /// Rows on their way to experts.
    pub dispatch: f64,
    /// Rows of codes that become floats, for products that round them again.
    pub decode: f64,
    /// The products of the rank with most slots.
    pub experts: f64,
    /// Of these, the last product.
    pub last_product: f64,
    /// Result rows on their way back.
    pub combine: f64,
    /// The sum in slot order, and shared experts.
    pub tail: f64,
    /// The tail without the products of shared experts.
    pub sum: f64,
    /// Bytes that cross the fabric to and from the busiest rank.
    pub bytes: f64,
}

impl Step {
    /// One after the other, as it is launched.
    pub fn in_turn(&self) -> f64 {
        self.head + self.dispatch + self.decode + self.experts + self.combine + self.tail
    }

    /// With products that start as rows arrive, and rows that go back as they are made: the longest of the three.
    pub fn overlapped(&self) -> f64 {
        self.head + self.longest() + self.tail
    }

    /// From rows to sums, without router and shared experts, one after the other.
    pub fn routed(&self) -> f64 {
        self.dispatch + self.decode + self.experts + self.combine + self.sum
    }

    /// The same with a last product that stores its results into the windows of the tokens' ranks: the longer of it and of the way back.
    pub fn routed_stored_afar(&self) -> f64 {
        self.routed() - self.last_product.min(self.combine)
    }

    /// The same, overlapped.
    pub fn routed_overlapped(&self) -> f64 {
        self.longest() + self.sum
    }

    /// The part of a step in which nothing but rows on their way is waited for.
    pub fn exposed(&self) -> f64 {
        (self.dispatch + self.combine) / self.in_turn()
    }

    fn longest(&self) -> f64 {
        (self.decode + self.experts).max(self.dispatch).max(self.combine)
    }
}

impl PlacedPrograms {
    /// Those of `graph`, a layer in the unfused form, on `n_ranks` ranks. Experts are spread evenly; where their number is no
    /// multiple of that of the ranks, copies of some fill the places that are left.
    ///
    /// # Errors
    /// Those of [`place`] and [`compile`].
    pub fn new(graph: &Graph, n_ranks: u64, target: &'static Target) -> Result<PlacedPrograms, Diagnostic> {
        let n_experts = u64::from(place(graph, 1, Rounding::AfterDispatch)?.n_experts);
        let n_local = n_experts.div_ceil(n_ranks.max(1));
        let placed = place(graph, n_local as u32, Rounding::AfterDispatch)?;
        // As placed layers are compiled: bits do not depend on the placement.
        let options = CompileOptions { numerics: Numerics::Bitwise, ..CompileOptions::default() };
        let programs = |graph: &Graph| compile(graph, target, &options);
        let head = placed.head.as_ref().map(programs).transpose()?.unwrap_or_default();
        // Results are sent from where the last product leaves them.
        let (experts, tail) = (programs(&results_in_expert_order(&placed.experts)?)?, programs(&placed.tail)?);
        Ok(PlacedPrograms { placed, target, n_local, head, experts, tail })
    }

    /// A step of `n_tokens` tokens of each of `n_ranks` ranks, which choose experts evenly.
    pub fn step(&self, fabric: &Fabric, n_ranks: u64, n_tokens: u64) -> Step {
        let (row, slot) = self.placed.widths();
        let slot_type = self.placed.experts.ty(self.placed.experts.outputs[0].1).dtype;
        let read_bytes = self.placed.experts.inputs[0].ty.dtype.bytes() as f64;
        let codes = match self.placed.wire {
            Wire::Rows(_) => None,
            // They are rounded where they arrive as well: what experts read is what the layer had.
            Wire::Codes(q) => {
                Some(CodedRows { cols: row as f64, code_bits: q.code.bits(), sent_bytes: read_bytes, read_bytes })
            }
        };
        let load = FabricLoad {
            n_ranks,
            n_local: self.n_local,
            n_tokens,
            top_k: self.placed.top_k,
            row_bytes: self.placed.wire.row_bytes(row) as f64,
            slot_bytes: (slot * slot_type.bytes() as u64) as f64,
            codes,
        };
        let model = Model::new(fabric.chip, self.target);
        let of = |variants: &[Variant], n: u64| variant(variants, n).map_or(0.0, |v| model.seconds(&v.program, n));
        let sum = variant(&self.tail, n_tokens).map_or(0.0, |v| {
            let launches = model.launches(&v.program, n_tokens);
            let others = launches.iter().filter(|(k, _)| !matches!(k.body, Body::Contract(_)));
            others.map(|(_, l)| l.seconds() + fabric.chip.launch_s).sum()
        });
        let most_slots = load.most_slots().round() as u64;
        let last_product = variant(&self.experts, most_slots).map_or(0.0, |v| {
            let launches = model.launches(&v.program, most_slots);
            let last = launches.iter().rev().find(|(k, _)| matches!(k.body, Body::Contract(_)));
            last.map_or(0.0, |(_, l)| l.seconds() + fabric.chip.launch_s)
        });
        Step {
            head: of(&self.head, n_tokens),
            dispatch: load.dispatch_s(fabric),
            decode: load.decode_s(fabric),
            experts: of(&self.experts, most_slots),
            last_product,
            combine: load.combine_s(fabric),
            tail: of(&self.tail, n_tokens),
            sum,
            bytes: load.dispatch_bytes() + load.combine_bytes(),
        }
    }
}

/// The variant for a token count.
fn variant(variants: &[Variant], n_tokens: u64) -> Option<&Variant> {
    variants.iter().find(|v| v.tokens.1 >= n_tokens)
}
