//! The time of a layer whose tokens and experts live on the ranks of a fabric: its three programs, and the way between them.

use super::model::{CodedRows, Fabric, FabricLoad, Model};
use crate::{CompileOptions, Variant, compile};
use moec_ir::graph::{
    Columns, Graph, Placed, Rounding, Wire, cut_columns, place, results_at_places, results_in_expert_order,
};
use moec_ir::target::Target;
use moec_ir::tile::{Body, Role};
use moec_ir::{Diagnostic, Mesh, Numerics};

/// The programs of a placed layer, for ranks that hold as many experts each.
#[derive(Clone, Debug)]
pub struct PlacedPrograms {
    placed: Placed,
    target: &'static Target,
    n_local: u64,
    head: Vec<Variant>,
    n_members: u64,
    /// Of whole experts; or of the columns of both products that the first member of a group has, which are the most.
    experts: Vec<Vec<Variant>>,
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
    /// Activations on their way between members of a group, where experts are cut.
    pub share: f64,
    /// What result rows take that the last product has stored into the windows of the tokens' ranks, behind it.
    pub combine: f64,
    /// Result rows on their way back, if that began when the last product has ended.
    pub way_back: f64,
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
        self.head + self.dispatch + self.decode + self.experts + self.share + self.combine + self.tail
    }

    /// With products that start as rows arrive, and rows that go back as they are made: the longest of the three.
    pub fn overlapped(&self) -> f64 {
        self.head + self.longest() + self.tail
    }

    /// From rows to sums, without router and shared experts, one after the other.
    pub fn routed(&self) -> f64 {
        self.dispatch + self.decode + self.experts + self.share + self.combine + self.sum
    }

    /// The same with a last product that leaves its results on its rank, and a launch that copies them to the tokens' ranks.
    pub fn routed_copied(&self) -> f64 {
        self.routed() - self.combine + self.way_back
    }

    /// The same, overlapped.
    pub fn routed_overlapped(&self) -> f64 {
        self.longest() + self.sum
    }

    /// The part of a step in which nothing but rows on their way is waited for.
    pub fn exposed(&self) -> f64 {
        (self.dispatch + self.share + self.combine) / self.in_turn()
    }

    fn longest(&self) -> f64 {
        (self.decode + self.experts).max(self.dispatch).max(self.share).max(self.way_back)
    }
}

impl PlacedPrograms {
    /// Those of `graph`, a layer in the unfused form, on the ranks of `mesh`. Experts are spread evenly; where their number is no
    /// multiple of that of the groups, copies of some fill the places that are left.
    ///
    /// # Errors
    /// Those of [`place`], [`cut_columns`] and [`compile`].
    pub fn new(graph: &Graph, mesh: Mesh, target: &'static Target) -> Result<PlacedPrograms, Diagnostic> {
        let n_experts = u64::from(place(graph, 1, Rounding::AfterDispatch)?.n_experts);
        let n_local = n_experts.div_ceil(u64::from(mesh.ep.max(1)));
        let placed = place(graph, n_local as u32, Rounding::AfterDispatch)?;
        // As placed layers are compiled: bits do not depend on the placement.
        let options = CompileOptions { numerics: Numerics::Bitwise, ..CompileOptions::default() };
        let programs = |graph: &Graph| compile(graph, target, &options);
        let head = placed.head.as_ref().map(programs).transpose()?.unwrap_or_default();
        // The last product stores results where they are wanted.
        let stored = |graph: &Graph| programs(&results_at_places(graph, 8)?);
        let experts = match mesh.tp {
            0 | 1 => vec![stored(&placed.experts)?],
            members => {
                let Columns { up, down, .. } = cut_columns(&placed, members, 0)?;
                vec![programs(&results_in_expert_order(&up)?)?, stored(&down)?]
            }
        };
        let tail = programs(&placed.tail)?;
        Ok(PlacedPrograms { placed, target, n_local, n_members: mesh.tp.max(1).into(), head, experts, tail })
    }

    /// A step of `n_tokens` tokens of each of the ranks of `n_groups` groups, which choose experts evenly.
    pub fn step(&self, fabric: &Fabric, n_groups: u64, n_tokens: u64) -> Step {
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
            n_groups,
            n_members: self.n_members,
            n_local: self.n_local,
            n_tokens,
            top_k: self.placed.top_k,
            row_bytes: self.placed.wire.row_bytes(row) as f64,
            slot_bytes: (slot * slot_type.bytes() as u64) as f64,
            act_bytes: self.act_bytes(),
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
        let last_product = self.experts.last().and_then(|of| variant(of, most_slots)).map_or(0.0, |v| {
            let launches = model.launches(&v.program, most_slots);
            let last = launches.iter().rev().find(|(k, _)| matches!(k.body, Body::Contract(_)));
            last.map_or(0.0, |(_, l)| l.seconds())
        });
        Step {
            head: of(&self.head, n_tokens),
            dispatch: load.dispatch_s(fabric),
            decode: load.decode_s(fabric),
            experts: self.experts.iter().map(|variants| of(variants, most_slots)).sum(),
            share: load.share_s(fabric),
            combine: load.combine_s(fabric, last_product),
            way_back: load.way_back_s(fabric),
            tail: of(&self.tail, n_tokens),
            sum,
            bytes: load.dispatch_bytes() + load.share_bytes() + load.combine_bytes(),
        }
    }

    /// Bytes of a row of activations of all members, which the second of two products reads.
    fn act_bytes(&self) -> f64 {
        let [_, down] = &self.experts[..] else { return 0.0 };
        let buffers = down.first().map_or(&[][..], |v| &v.program.buffers);
        let acts = buffers.iter().find(|b| b.role == Role::Input(0));
        acts.map_or(0.0, |b| (b.cols * b.dtype.bytes() as u64) as f64)
    }
}

/// The variant for a token count.
fn variant(variants: &[Variant], n_tokens: u64) -> Option<&Variant> {
    variants.iter().find(|v| v.tokens.1 >= n_tokens)
}
