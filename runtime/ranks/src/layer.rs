//! A placed layer as it was compiled.

use crate::rows::row_bytes;
use crate::terms::fnv;
use moec_bundle::Bundle;
use moec_ir::diag::Diagnostic;
use moec_ir::graph::{Maker, Param, Placed, Source, Wire};
use moec_ir::{DType, Dim, TensorType};

/// Three programs, and what travels between them. All ranks run the same; what tells them apart is a placement map.
#[derive(Clone, Debug)]
pub struct PlacedLayer {
    pub(crate) head: Option<Bundle>,
    pub(crate) experts: Bundle,
    pub(crate) tail: Bundle,
    pub(crate) rows: Source,
    pub(crate) ids: Source,
    pub(crate) weights: Option<Source>,
    pub(crate) crossing: Vec<(String, Source)>,
    pub(crate) wire: Wire,
    pub(crate) n_experts: u32,
    pub(crate) n_local: u32,
    pub(crate) top_k: usize,
    pub(crate) stacks: Vec<Param>,
    pub(crate) outputs: Vec<(String, Maker)>,
    /// Element type and columns of a row before the experts, and of a slot's result.
    pub(crate) row: (DType, usize),
    pub(crate) slot: (DType, usize),
}

impl PlacedLayer {
    /// A layer from its graphs and what was compiled from them.
    ///
    /// # Errors
    /// `internal-error` when a bundle is not the compiled form of its graph.
    pub fn new(
        placed: &Placed,
        head: Option<Bundle>,
        experts: Bundle,
        tail: Bundle,
    ) -> Result<PlacedLayer, Diagnostic> {
        let broken = |what: &str| Diagnostic::internal("internal-error", format!("a placed layer should have {what}"));
        if head.is_some() != placed.head.is_some() {
            return Err(broken("a head where its graphs have one"));
        }
        let kind = |ty: &TensorType| Some((ty.dtype, ty.last().and_then(Dim::fixed)? as usize));
        let rows = experts.manifest().inputs.iter().find(|i| i.name == "rows").and_then(|i| kind(&i.ty));
        let slots = experts.manifest().outputs.first().and_then(|o| kind(&o.ty));
        let n_local = placed.stacks.first().and_then(|stack| {
            let local = experts.manifest().params.iter().find(|p| p.name == stack.name)?;
            local.ty.shape.first()?.fixed()
        });
        Ok(PlacedLayer {
            row: rows.ok_or_else(|| broken("rows before its experts"))?,
            slot: slots.ok_or_else(|| broken("rows behind its experts"))?,
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
            stacks: placed.stacks.clone(),
            outputs: placed.outputs.clone(),
        })
    }

    /// Experts of the whole layer.
    pub fn n_experts(&self) -> u32 {
        self.n_experts
    }

    /// Most experts that a rank has room for.
    pub fn n_local(&self) -> u32 {
        self.n_local
    }

    /// Slots of a token.
    pub fn top_k(&self) -> usize {
        self.top_k
    }

    /// Bytes of a row on its way to an expert, and of a result row on its way back.
    pub fn bytes_on_the_wire(&self) -> (usize, usize) {
        (row_bytes(self.wire, self.row.1), self.slot.0.bytes() * self.slot.1)
    }

    /// The layer's inputs that a step needs, by name, in the order in which programs ask for them.
    pub fn inputs(&self) -> Vec<(&str, &TensorType)> {
        let mut out: Vec<(&str, &TensorType)> = Vec::new();
        let head = self.head.iter().flat_map(|h| &h.manifest().inputs);
        let own = |name: &str| self.crossing.iter().any(|(n, s)| n == name && matches!(s, Source::Input(_)));
        let tail = self.tail.manifest().inputs.iter().filter(|i| own(&i.name));
        for input in head.chain(tail) {
            if out.iter().all(|(name, _)| *name != input.name) {
                out.push((&input.name, &input.ty));
            }
        }
        out
    }

    /// What decides the bits of its programs, as one number.
    pub(crate) fn fingerprint(&self) -> u64 {
        let mut text =
            format!("{:?} {:?} {:?} {:?} {:?}\n", self.wire, self.rows, self.ids, self.weights, self.crossing);
        for bundle in self.head.iter().chain([&self.experts, &self.tail]) {
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
