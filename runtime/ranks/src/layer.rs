//! A placed layer as it was compiled.

use crate::terms::fnv;
use moec_bundle::Bundle;
use moec_ir::diag::Diagnostic;
use moec_ir::exchange::{Exchange, ExchangeKernel};
use moec_ir::graph::{Maker, Param, Placed, Source, Wire};
use moec_ir::{DType, Dim};

/// Three programs, and what travels between them. All ranks run the same; what tells them apart is a placement map.
#[derive(Clone, Debug)]
pub struct PlacedLayer {
    pub(crate) head: Option<Bundle>,
    /// What each member of a group computes of its experts.
    pub(crate) experts: Vec<ExpertPrograms>,
    pub(crate) tail: Bundle,
    pub(crate) rows: Source,
    pub(crate) ids: Source,
    pub(crate) weights: Option<Source>,
    pub(crate) crossing: Vec<(String, Source)>,
    pub(crate) wire: Wire,
    pub(crate) n_experts: u32,
    pub(crate) n_local: u32,
    pub(crate) top_k: usize,
    pub(crate) outputs: Vec<(String, Maker)>,
    /// Element type and columns of a row before the experts, and of a slot's result.
    pub(crate) row: (DType, usize),
    pub(crate) slot: (DType, usize),
    /// Kernels that exchange rows. With them, the experts' program takes all slots of a row at once.
    pub(crate) exchange: Option<ExchangeKernels>,
}

/// Kernels that exchange the rows of a layer.
#[derive(Clone, Debug)]
pub struct ExchangeKernels {
    /// Those of each member of a group, one where experts are whole.
    pub members: Vec<MemberKernels>,
}

/// The kernels of the ranks that have the same columns of experts.
#[derive(Clone, Debug)]
pub struct MemberKernels {
    /// What they were made for.
    pub what: Exchange,
    /// In the order in which they run, by target.
    pub kernels: Vec<(String, Vec<ExchangeKernel>)>,
}

/// A program of local experts.
#[derive(Clone, Debug)]
pub struct ExpertProgram {
    /// As it was compiled.
    pub bundle: Bundle,
    /// Its parameters that have an axis of experts, with all experts.
    pub stacks: Vec<Param>,
}

/// What a rank computes of the experts that it has a part in.
#[derive(Clone, Debug)]
pub enum ExpertPrograms {
    /// From rows to slot rows.
    Whole(Box<ExpertProgram>),
    /// Some of the columns of both products ([`moec_ir::graph::cut_columns`]).
    Columns {
        /// From rows to columns of activations.
        up: Box<ExpertProgram>,
        /// From whole activations to columns of slot rows.
        down: Box<ExpertProgram>,
    },
}

impl ExpertPrograms {
    /// The programs, in the order in which they run.
    pub(crate) fn parts(&self) -> Vec<&ExpertProgram> {
        match self {
            ExpertPrograms::Whole(whole) => vec![whole],
            ExpertPrograms::Columns { up, down } => vec![up, down],
        }
    }

    /// Experts that they have room for.
    pub(crate) fn n_local(&self) -> Option<u64> {
        let parts = self.parts();
        let part = parts.first()?;
        let stack = part.stacks.first()?;
        let local = part.bundle.manifest().params.iter().find(|p| p.name == stack.name)?;
        local.ty.shape.first()?.fixed()
    }

    /// Element type and columns of the rows that come.
    pub(crate) fn input_row(&self) -> Option<(DType, usize)> {
        let parts = self.parts();
        let rows = parts.first()?.bundle.manifest().inputs.iter().find(|i| i.name == "rows")?;
        Some((rows.ty.dtype, rows.ty.last()?.fixed()? as usize))
    }

    /// Element type of what the first part makes.
    pub(crate) fn act_type(&self) -> Option<DType> {
        Some(self.parts().first()?.bundle.manifest().outputs.first()?.ty.dtype)
    }

    /// Element type of results.
    pub(crate) fn result_type(&self) -> Option<DType> {
        Some(self.parts().last()?.bundle.manifest().outputs.first()?.ty.dtype)
    }

    /// Columns of the result of the first part and of the last.
    pub(crate) fn columns(&self) -> (usize, usize) {
        let of = |bundle: &Bundle| {
            let ty = bundle.manifest().outputs.first().and_then(|o| o.ty.last()).and_then(Dim::fixed);
            ty.unwrap_or(0) as usize
        };
        let parts = self.parts();
        (parts.first().map_or(0, |p| of(&p.bundle)), parts.last().map_or(0, |p| of(&p.bundle)))
    }
}

impl PlacedLayer {
    /// A layer from its graphs and what was compiled from them.
    ///
    /// `experts` has what each member of a group of ranks computes; one, where experts are not cut.
    ///
    /// # Errors
    /// `internal-error` when a bundle is not the compiled form of its graph.
    pub fn new(
        placed: &Placed,
        head: Option<Bundle>,
        experts: Vec<ExpertPrograms>,
        tail: Bundle,
    ) -> Result<PlacedLayer, Diagnostic> {
        let broken = |what: &str| Diagnostic::internal("internal-error", format!("a placed layer should have {what}"));
        if head.is_some() != placed.head.is_some() {
            return Err(broken("a head where its graphs have one"));
        }
        let n_local = experts.first().and_then(ExpertPrograms::n_local);
        let (row, slot) = placed.widths();
        let slot_type = placed.experts.ty(placed.experts.outputs[0].1).dtype;
        if experts.iter().map(|e| e.columns().1).sum::<usize>() != slot as usize {
            return Err(broken("all columns of its slots"));
        }
        Ok(PlacedLayer {
            row: (placed.experts.inputs[0].ty.dtype, row as usize),
            slot: (slot_type, slot as usize),
            n_local: n_local.ok_or_else(|| broken("weights of experts"))? as u32,
            head,
            experts,
            tail,
            rows: placed.rows.clone(),
            ids: placed.ids.clone(),
            weights: placed.weights.clone(),
            crossing: placed.crossing.clone(),
            wire: placed.wire,
            n_experts: placed.n_experts,
            top_k: placed.top_k as usize,
            outputs: placed.outputs.clone(),
            exchange: None,
        })
    }

    /// The same layer, whose experts' program, or the first of two, takes all slots of a row ([`moec_ir::graph::experts_of_tokens`]), with
    /// kernels that exchange rows for each target, and leaves results in expert order ([`moec_ir::graph::results_in_expert_order`]).
    #[must_use]
    pub fn with_exchange(self, exchange: ExchangeKernels) -> PlacedLayer {
        PlacedLayer { exchange: Some(exchange), ..self }
    }

    /// The targets that it has kernels for which exchange rows; none where the host does.
    pub fn exchange_targets(&self) -> Vec<&str> {
        let first = self.exchange.iter().flat_map(|e| &e.members).next();
        first.iter().flat_map(|of| &of.kernels).map(|(target, _)| target.as_str()).collect()
    }

    /// Experts of the whole layer.
    pub fn n_experts(&self) -> u32 {
        self.n_experts
    }

    /// Most experts that a rank has room for.
    pub fn n_local(&self) -> u32 {
        self.n_local
    }

    /// Ranks of a group that share the matrices of an expert.
    pub fn n_members(&self) -> u32 {
        self.experts.len() as u32
    }

    /// Slots of a token.
    pub fn top_k(&self) -> usize {
        self.top_k
    }

    /// Bytes of a row on its way to an expert, and of a result row on its way back.
    pub fn bytes_on_the_wire(&self) -> (usize, usize) {
        (self.wire.row_bytes(self.row.1 as u64) as usize, self.slot.0.bytes() * self.slot.1)
    }

    /// The element type of activations that members of a group exchange.
    pub(crate) fn act_type(&self) -> DType {
        self.experts.first().and_then(ExpertPrograms::act_type).unwrap_or(self.slot.0)
    }

    /// What decides the bits of its programs, as one number.
    pub(crate) fn fingerprint(&self) -> u64 {
        let mut text =
            format!("{:?} {:?} {:?} {:?} {:?}\n", self.wire, self.rows, self.ids, self.weights, self.crossing);
        let experts = self.experts.iter().flat_map(ExpertPrograms::parts).map(|part| &part.bundle);
        for bundle in self.head.iter().chain(experts).chain([&self.tail]) {
            let m = bundle.manifest();
            text += &format!("{} {}\n", m.moec_version, m.layer.name);
            for param in &m.params {
                text += &format!("{} {:?}\n", param.name, param.source);
            }
            for target in &m.targets {
                let prints = target.fingerprint.iter().flat_map(|f| &f.outputs);
                prints.for_each(|(name, hash)| text += &format!("{} {name} {hash}\n", target.name));
            }
        }
        fnv(&text)
    }
}
