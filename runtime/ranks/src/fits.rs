//! That the parts of a bundle for ranks fit each other: what `placed.json` says of its programs and kernels is what these are. Hashes do
//! not tell, since whoever changes the file may make them anew.

use crate::layer::{ExpertPrograms, PlacedLayer};
use moec_bundle::PlacedManifest;
use moec_bundle::manifest::{Manifest, ParamInfo, TensorInfo};
use moec_ir::exchange::{Exchange, ExchangeKernel, Piece};
use moec_ir::graph::{Maker, Param, Source, Wire};
use moec_ir::weights::{WeightSource, WeightStep};
use moec_ir::{DType, Dim, TensorType};
use std::fmt::Display;

/// # Errors
/// What does not fit, in words.
pub(crate) fn check(layer: &PlacedLayer, m: &PlacedManifest) -> Result<(), String> {
    let parts = Parts { layer, m };
    parts.travels()?;
    parts.head()?;
    for (member, of) in layer.experts.iter().enumerate() {
        parts.experts(member, of)?;
    }
    parts.tail()?;
    parts.outputs()?;
    for (of, programs) in layer.exchange.iter().flat_map(|e| &e.members).zip(&layer.experts) {
        parts.kernels(&of.what, programs)?;
        for (target, kernels) in &of.kernels {
            launches(&of.what, kernels).map_err(|why| format!("its kernels for {target}: {why}"))?;
        }
    }
    Ok(())
}

fn ensure(holds: bool, why: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(why()) }
}

fn find<'m>(list: &'m [TensorInfo], name: &str) -> Option<&'m TensorType> {
    list.iter().find(|t| t.name == name).map(|t| &t.ty)
}

fn rows_of(rows: Dim, dtype: DType, cols: usize) -> TensorType {
    TensorType::new(dtype, [rows, Dim::Fixed(cols as u64)])
}

/// The inputs of `program` are these, in any order.
fn takes(program: &Manifest, what: &str, wanted: &[(&str, TensorType)]) -> Result<(), String> {
    for input in &program.inputs {
        let of = wanted.iter().find(|(name, _)| *name == input.name);
        let (_, ty) = of.ok_or_else(|| format!("{what} takes `{}`, which nobody gives", input.name))?;
        ensure(*ty == input.ty, || format!("{what} takes `{}` as {}, and it is {ty}", input.name, input.ty))?;
    }
    let missing = wanted.iter().find(|(name, _)| find(&program.inputs, name).is_none());
    missing.map_or(Ok(()), |(name, _)| Err(format!("{what} does not take `{name}`")))
}

/// Kernels are given what they read, in their order, and run in theirs.
fn launches(what: &Exchange, kernels: &[ExchangeKernel]) -> Result<(), String> {
    let wanted = what.kernels();
    ensure(wanted.len() == kernels.len(), || format!("there are {}, and {} are needed", kernels.len(), wanted.len()))?;
    for (wanted, kernel) in wanted.into_iter().zip(kernels) {
        let bare = ExchangeKernel { ptx: String::new(), ..kernel.clone() };
        let said = |what: &str, found: &dyn Display, wanted: &dyn Display| {
            format!("`{}` has {what} {found}, and {wanted} are needed", kernel.entry)
        };
        ensure(bare.entry == wanted.entry, || format!("there is `{}` where `{}` runs", kernel.entry, wanted.entry))?;
        ensure(bare.threads == wanted.threads, || said("threads", &bare.threads, &wanted.threads))?;
        ensure(bare.smem_bytes == wanted.smem_bytes, || {
            said("bytes of shared memory", &bare.smem_bytes, &wanted.smem_bytes)
        })?;
        ensure(bare == wanted, || {
            format!("`{}` is given other parameters than it reads, or another grid", kernel.entry)
        })?;
    }
    Ok(())
}

struct Parts<'a> {
    layer: &'a PlacedLayer,
    m: &'a PlacedManifest,
}

impl Parts<'_> {
    /// The type of a value that crosses between programs.
    fn ty(&self, source: &Source) -> Result<&TensorType, String> {
        let found = match source {
            Source::Input(name) => find(&self.m.inputs, name),
            Source::Head(name) => self.layer.head.as_ref().and_then(|h| find(&h.manifest().outputs, name)),
        };
        found.ok_or_else(|| match source {
            Source::Input(name) => format!("the layer has no input `{name}`"),
            Source::Head(name) => format!("its head does not make `{name}`"),
        })
    }

    /// Rows, ids and weights are of the types that dispatch sends.
    fn travels(&self) -> Result<(), String> {
        let PlacedLayer { top_k, row, wire, .. } = self.layer;
        let rows = self.ty(&self.m.rows)?;
        let sent = match wire {
            Wire::Rows(dtype) => *dtype,
            Wire::Codes(_) => rows.dtype,
        };
        ensure(*rows == rows_of(Dim::TOKENS, sent, row.1) && sent.is_float(), || {
            format!("rows are {rows}, and are sent as {sent}, {} elements each", row.1)
        })?;
        if let Wire::Rows(dtype) = wire {
            ensure(*dtype == row.0, || format!("rows are sent as {dtype}, and its experts read {}", row.0))?;
        }
        let slots = |what: &str, ty: &TensorType, fits: bool| {
            ensure(fits && ty.shape == [Dim::TOKENS, Dim::Fixed(*top_k as u64)], || {
                format!("{what} are {ty}, and a token has {top_k} slots")
            })
        };
        let ids = self.ty(&self.m.ids)?;
        slots("ids", ids, matches!(ids.dtype, DType::I32 | DType::I64))?;
        if let Some(weights) = &self.m.weights {
            let weights = self.ty(weights)?;
            slots("weights", weights, weights.dtype.is_float())?;
        }
        let experts = self.m.layer.facts.get("experts");
        ensure(experts.is_none_or(|n| *n == u64::from(self.m.n_experts)), || {
            format!("the layer has {} experts, and its stacks {}", experts.copied().unwrap_or(0), self.m.n_experts)
        })
    }

    fn head(&self) -> Result<(), String> {
        let Some(head) = self.layer.head.as_ref().map(|h| h.manifest()) else { return Ok(()) };
        let inputs: Vec<_> = self.m.inputs.iter().map(|t| (t.name.as_str(), t.ty.clone())).collect();
        let used: Vec<_> = inputs.into_iter().filter(|(name, _)| find(&head.inputs, name).is_some()).collect();
        takes(head, "its head", &used)
    }

    fn experts(&self, member: usize, of: &ExpertPrograms) -> Result<(), String> {
        let PlacedLayer { row, slot, top_k, .. } = *self.layer;
        // Kernels give a row with all slots of its token, the host one for each slot.
        let slots = if self.layer.exchange.is_some() { top_k } else { 1 };
        let acts: usize = self.layer.experts.iter().map(|e| e.columns().0).sum();
        let (own_act, own_slot) = of.columns();
        let rows = rows_of(Dim::TOKENS, row.0, row.1);
        let ids = |slots: usize| rows_of(Dim::TOKENS, DType::I32, slots);
        let given = match of {
            ExpertPrograms::Whole(_) => vec![("rows", rows, slots, "slot_rows", (slot.0, own_slot))],
            ExpertPrograms::Columns { .. } => {
                let act = self.layer.act_type();
                vec![
                    ("rows", rows, slots, "columns", (act, own_act)),
                    ("act_rows", rows_of(Dim::TOKENS, act, acts), 1, "slot_rows", (slot.0, own_slot)),
                ]
            }
        };
        for (part, (input, ty, slots, output, (dtype, cols))) in of.parts().into_iter().zip(given) {
            let (program, what) = (part.bundle.manifest(), format!("the experts' program of member {member}"));
            let made = rows_of(Dim::PerToken(slots as u64), dtype, cols);
            let mut inputs = vec![(input, ty), ("local_ids", ids(slots))];
            // The last product stores results where it is told to; kernels take activations where the first of two leaves them.
            let wanted = match (&self.layer.exchange, output) {
                (Some(_), "slot_rows") => {
                    inputs.push(("slot_places", rows_of(Dim::TOKENS, DType::I64, slots)));
                    vec![("expert_rows", made)]
                }
                (Some(_), _) => vec![("expert_rows", made), ("slot_to_row", ids(slots))],
                (None, _) => vec![(output, made)],
            };
            takes(program, &what, &inputs)?;
            let makes = |(i, (name, ty)): (usize, &(&str, TensorType))| {
                program.outputs.get(i).is_some_and(|o| (o.name.as_str(), &o.ty) == (*name, ty))
            };
            ensure(wanted.len() == program.outputs.len() && wanted.iter().enumerate().all(makes), || {
                let (name, ty) = &wanted[0];
                format!("{what} does not make `{name}` {ty} alone")
            })?;
            self.stacks(program, &part.stacks).map_err(|why| format!("{what}: {why}"))?;
        }
        Ok(())
    }

    /// The matrices of all experts are those of the program with another number of experts, and none of its is missing.
    fn stacks(&self, program: &Manifest, stacks: &[Param]) -> Result<(), String> {
        let (all, local) = (Dim::Fixed(self.m.n_experts.into()), Dim::Fixed(self.m.n_local.into()));
        ensure(!stacks.is_empty(), || "it has no matrices of experts".into())?;
        for (i, stack) in stacks.iter().enumerate() {
            let fits = |p: &ParamInfo| {
                let axes = |ty: &TensorType| ty.shape.split_first().map(|(n, rest)| (*n, rest.to_vec()));
                let (Some((n, rest)), Some((n_here, rest_here))) = (axes(&stack.ty), axes(&p.ty)) else { return false };
                (n, n_here) == (all, local)
                    && (stack.ty.dtype, rest) == (p.ty.dtype, rest_here)
                    && self.are_some_of(&p.source, &stack.source)
            };
            let found = program.params.iter().find(|p| p.name == stack.name);
            ensure(found.is_some_and(fits), || format!("`{}` is not the matrices that it multiplies by", stack.name))?;
            ensure(stacks[..i].iter().all(|s| s.name != stack.name), || format!("`{}` is there twice", stack.name))?;
        }
        let of_experts = |p: &&ParamInfo| p.ty.shape.len() > 1 && p.ty.shape.first() == Some(&local);
        let missing = program.params.iter().filter(of_experts).find(|p| stacks.iter().all(|s| s.name != p.name));
        missing.map_or(Ok(()), |p| Err(format!("`{}` of all experts is missing", p.name)))
    }

    /// Whether `local` is what `all` is, of the first local experts.
    fn are_some_of(&self, local: &WeightSource, all: &WeightSource) -> bool {
        let (n_local, n_experts) = (u64::from(self.m.n_local), u64::from(self.m.n_experts));
        match (local, all) {
            (WeightSource::Tensor { names, steps }, WeightSource::Tensor { names: of, steps: whole }) => {
                // The step that keeps them may stand before those that cut columns.
                let step = WeightStep::Slice { axis: 0, start: 0, step: 1, len: n_local, of: Some(n_experts) };
                let mut steps = steps.clone();
                if n_local < n_experts {
                    let Some(at) = steps.iter().rposition(|s| *s == step) else { return false };
                    steps.remove(at);
                }
                names == of && steps == *whole
            }
            (
                WeightSource::PerExpert { names, first, count, steps },
                WeightSource::PerExpert { names: of, first: from, count: n, steps: whole },
            ) => (names, first, count, steps, n) == (of, from, &n_local, whole, &n_experts),
            (WeightSource::FirstOf(local), WeightSource::FirstOf(all)) => {
                local.len() == all.len() && local.iter().zip(all).all(|(l, a)| self.are_some_of(l, a))
            }
            (WeightSource::LargestInputScale(_), WeightSource::LargestInputScale(_)) => local == all,
            _ => false,
        }
    }

    fn tail(&self) -> Result<(), String> {
        let PlacedLayer { slot, top_k, .. } = *self.layer;
        let mut wanted = vec![("slot_rows", rows_of(Dim::PerToken(top_k as u64), slot.0, slot.1))];
        if let Some(weights) = &self.m.weights {
            wanted.push(("slot_weights", self.ty(weights)?.clone()));
        }
        for crossing in &self.m.crossing {
            wanted.push((crossing.name.as_str(), self.ty(&crossing.source)?.clone()));
        }
        takes(self.layer.tail.manifest(), "its tail", &wanted)?;
        // What is named twice would be one of the two.
        let named_twice = wanted.iter().enumerate().find(|(i, (name, _))| wanted[..*i].iter().any(|(n, _)| n == name));
        named_twice.map_or(Ok(()), |(_, (name, _))| Err(format!("its tail gets `{name}` twice")))
    }

    fn outputs(&self) -> Result<(), String> {
        let tail = &self.layer.tail.manifest().outputs;
        for (i, output) in self.m.outputs.iter().enumerate() {
            let name = &output.name;
            let twice = self.m.outputs[..i].iter().any(|o| o.name == *name);
            ensure(!twice, || format!("it has the output `{name}` twice"))?;
            let made = match output.made_by {
                Maker::Tail => find(tail, name).is_some(),
                // An input of the layer may be an output of it, which no program makes.
                Maker::Head => {
                    self.ty(&Source::Head(name.clone())).is_ok() || self.ty(&Source::Input(name.clone())).is_ok()
                }
            };
            ensure(made, || format!("no program makes the output `{name}`"))?;
        }
        let told = |t: &TensorInfo| self.m.outputs.iter().any(|o| o.name == t.name && o.made_by == Maker::Tail);
        let untold = tail.iter().find(|t| !told(t));
        untold.map_or(Ok(()), |t| Err(format!("its tail makes `{}`, which is no output", t.name)))
    }

    /// What kernels that exchange were made for is what the programs make and read.
    fn kernels(&self, what: &Exchange, programs: &ExpertPrograms) -> Result<(), String> {
        let PlacedLayer { row, slot, top_k, wire, .. } = *self.layer;
        let other = |of: &str| format!("its kernels are for other {of}");
        ensure(what.top_k as usize == top_k, || other("slots"))?;
        ensure(what.result_bytes == (slot.0.bytes() * slot.1) as u64, || other("results"))?;
        ensure(what.row_bytes == wire.row_bytes(row.1 as u64), || other("rows"))?;
        let codes = match (wire, what.codes) {
            (Wire::Rows(_), None) => true,
            (Wire::Codes(q), Some(c)) => {
                let sent = self.ty(&self.m.rows)?.dtype;
                (c.quant, u64::from(c.cols), c.sent, c.read) == (q, row.1 as u64, sent, row.0)
            }
            _ => false,
        };
        ensure(codes, || other("rows"))?;
        ensure(what.ids == self.ty(&self.m.ids)?.dtype, || other("ids"))?;
        let weights = self.m.weights.as_ref().map(|w| self.ty(w)).transpose()?.map(|ty| ty.dtype);
        ensure(what.weights == weights, || other("weights"))?;
        let Some(cut) = what.cut else { return Ok(()) };
        let acts: usize = self.layer.experts.iter().map(|e| e.columns().0).sum();
        let (act, (own_act, own_slot)) = (self.layer.act_type().bytes(), programs.columns());
        // Members have their columns in order, one behind the other.
        let before = |columns: fn(&ExpertPrograms) -> usize| -> usize {
            self.layer.experts.iter().take(cut.member as usize).map(columns).sum()
        };
        let piece = |bytes: usize, first: usize, own: usize| Piece {
            first: (bytes * first) as u64,
            bytes: (bytes * own) as u64,
        };
        let fits = cut.act_bytes == (act * acts) as u64
            && cut.act == piece(act, before(|e| e.columns().0), own_act)
            && cut.result == piece(slot.0.bytes(), before(|e| e.columns().1), own_slot);
        ensure(fits, || other("columns"))
    }
}
