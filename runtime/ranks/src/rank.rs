//! One rank of a placed layer.

use crate::comm::{Comm, not_answering};
use crate::experts::{ExpertLoader, Loaded, LoadedExperts, check, load_options, run_slots};
use crate::gather;
use crate::layer::PlacedLayer;
use crate::message::{self, Incoming, Outgoing};
use crate::rows::{Sender, join, received};
use crate::step::{RankOptions, StepResult, Traffic};
use crate::terms::{Terms, map_terms};
use moec_bundle::Bundle;
use moec_ir::diag::Diagnostic;
use moec_ir::graph::{Maker, Source};
use moec_ir::tensor::Data;
use moec_ir::{Placement, Tensor};
use moec_runtime::{Layer, Weights};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Experts of a rank that joins.
enum Experts {
    ToLoad(Placement),
    Loaded(Loaded),
}

/// One rank of a placed layer, ready for steps.
pub struct RankLayer<C> {
    placed: Arc<PlacedLayer>,
    comm: C,
    options: RankOptions,
    head: Option<Layer>,
    tail: Layer,
    /// The map that tokens are sent by, and the experts of this rank by it.
    now: Loaded,
    /// Newer maps whose experts are loaded, by version.
    staged: BTreeMap<u64, Loaded>,
    fingerprint: u64,
    step: u64,
    /// Set when a step failed: ranks are no longer at the same place.
    broken: Option<String>,
}

impl<C: Comm> RankLayer<C> {
    /// Loads a rank's programs, with the weights of the experts that `map` gives it. Ranks find out whether they agree before
    /// any of them loads.
    ///
    /// # Errors
    /// `placement-invalid`, `ranks-disagree`, `rank-not-answering`, and those of [`Layer::load`].
    pub fn join(
        placed: Arc<PlacedLayer>,
        comm: C,
        map: Placement,
        weights: &Weights<'_>,
        options: RankOptions,
    ) -> Result<RankLayer<C>, Diagnostic> {
        RankLayer::join_as(placed, comm, Experts::ToLoad(map), weights, options)
    }

    /// The same with experts that are loaded already, and that other layers of this rank may have as well: of several clients, each with
    /// an exchange, steps, windows and faults of its own, on one set of expert ranks. They compute one after the other.
    ///
    /// # Errors
    /// Those of [`RankLayer::join`]; `placement-invalid` for experts of another rank or layer.
    pub fn join_pool(
        placed: Arc<PlacedLayer>,
        comm: C,
        experts: Loaded,
        weights: &Weights<'_>,
        options: RankOptions,
    ) -> Result<RankLayer<C>, Diagnostic> {
        RankLayer::join_as(placed, comm, Experts::Loaded(experts), weights, options)
    }

    fn join_as(
        placed: Arc<PlacedLayer>,
        mut comm: C,
        experts: Experts,
        weights: &Weights<'_>,
        options: RankOptions,
    ) -> Result<RankLayer<C>, Diagnostic> {
        let fingerprint = placed.fingerprint();
        let loaded = (|| -> Result<(Option<Layer>, Layer, Loaded), Diagnostic> {
            let map = match &experts {
                Experts::ToLoad(map) => map.clone(),
                Experts::Loaded(loaded) => {
                    loaded.check(fingerprint, comm.rank(), comm.n_ranks())?;
                    loaded.map.clone()
                }
            };
            check(&placed, &map, comm.n_ranks())?;
            let members = placed.n_members();
            let own = map_terms(&map);
            let terms = Terms { fingerprint, max_tokens: options.max_tokens, step: 0, map: own, ready: own };
            let hello = vec![terms.to_bytes(); comm.n_ranks() as usize];
            let all = comm.exchange(hello);
            let all = all.map_err(|f| not_answering(f, comm.rank(), (&map, members), "before the first step"))?;
            for (rank, bytes) in (0u32..).zip(&all) {
                terms.check(comm.rank(), rank, Terms::from_bytes(bytes).as_ref())?;
            }
            let load = |bundle: &Bundle| Layer::load(bundle, weights, load_options(&options, options.max_tokens));
            let head = placed.head.as_ref().map(load).transpose()?;
            let tail = load(&placed.tail)?;
            let now = match experts {
                Experts::Loaded(loaded) => loaded,
                Experts::ToLoad(map) => {
                    let loader = ExpertLoader::new(placed.clone(), comm.rank(), comm.n_ranks(), options.clone());
                    loader.load(map, weights)?
                }
            };
            Ok((head, tail, now))
        })();
        match loaded {
            Ok((head, tail, now)) => Ok(RankLayer {
                placed,
                comm,
                options,
                head,
                tail,
                now,
                staged: BTreeMap::new(),
                fingerprint,
                step: 0,
                broken: None,
            }),
            Err(d) => {
                comm.end(&d.message);
                Err(d)
            }
        }
    }

    /// The map that the next step is computed with, unless all ranks are ready for a newer one.
    pub fn map(&self) -> &Placement {
        &self.now.map
    }

    /// Gives the first rank what every rank got in a step; nothing on the others. All ranks call it.
    ///
    /// # Errors
    /// `rank-not-answering`, `ranks-disagree`.
    pub fn gather(&mut self, step: &StepResult) -> Result<Option<Vec<StepResult>>, Diagnostic> {
        let mut parts = vec![Vec::new(); self.comm.n_ranks() as usize];
        parts[0] = gather::to_bytes(step);
        let own = self.comm.rank();
        let came = self.comm.exchange(parts);
        let came = came.map_err(|f| not_answering(f, own, self.holders(), "when results were gathered"))?;
        if own != 0 {
            return Ok(None);
        }
        let read = came.iter().map(|bytes| gather::from_bytes(bytes, step)).collect::<Option<_>>();
        read.map(Some).ok_or_else(|| {
            let what = "a rank sent results that the first one cannot read";
            Diagnostic::input("ranks-disagree", what).help("run the same moec on all ranks")
        })
    }

    /// What loads the experts of a map for this rank, on any thread, while steps go on.
    pub fn loader(&self) -> ExpertLoader {
        ExpertLoader::new(self.placed.clone(), self.comm.rank(), self.comm.n_ranks(), self.options.clone())
    }

    /// Hands this rank a newer map with its experts. It is used from the step on that follows the one in which all ranks say
    /// that they have it; until then, the old one is.
    ///
    /// # Errors
    /// `placement-invalid` for a map that is not newer than the one in use, and for experts of another rank or layer.
    pub fn stage(&mut self, loaded: Loaded) -> Result<(), Diagnostic> {
        loaded.check(self.fingerprint, self.comm.rank(), self.comm.n_ranks())?;
        let (new, old) = (loaded.map.version(), self.now.map.version());
        if new <= old {
            let what = format!("a placement map of version {new} is handed to a rank that has version {old}");
            return Err(Diagnostic::input("placement-invalid", what).help("give every new map a larger version"));
        }
        self.staged.insert(new, loaded);
        Ok(())
    }

    /// Computes the outputs of this rank's tokens. `inputs` are found by name, as by [`Layer::run_host`]. All ranks take part
    /// in every step, with no tokens where they have none.
    ///
    /// # Errors
    /// `ranks-disagree` and `rank-not-answering`, before this rank has made an output; `too-many-tokens`, and those of
    /// [`Layer::run_host`]. After an error the rank takes part in no more steps.
    pub fn step(&mut self, inputs: &[(&str, &Tensor)]) -> Result<StepResult, Diagnostic> {
        if let Some(why) = &self.broken {
            let what = format!("rank {} takes part in no more steps: {why}", self.comm.rank());
            return Err(Diagnostic::input("rank-not-answering", what).help("load the layer anew on all ranks"));
        }
        let result = self.try_step(inputs);
        if let Err(d) = &result {
            self.broken = Some(d.message.clone());
            self.comm.end(&d.message);
        }
        result
    }

    fn try_step(&mut self, inputs: &[(&str, &Tensor)]) -> Result<StepResult, Diagnostic> {
        let mut findings = Vec::new();
        let mut traffic = Traffic::default();
        let made = match &mut self.head {
            Some(head) => {
                let run = head.run_host(inputs)?;
                findings.extend(run.findings);
                run.outputs
            }
            None => Vec::new(),
        };
        let value = |source: &Source| find(source, inputs, &made);
        let (rows, ids) = (value(&self.placed.rows)?, value(&self.placed.ids)?);
        let n_tokens = ids.shape.first().copied().unwrap_or(0);
        if n_tokens as u64 > self.options.max_tokens {
            let what = format!("{n_tokens} tokens are given to rank {}", self.comm.rank());
            let what = format!("{what}, which was loaded for up to {}", self.options.max_tokens);
            return Err(Diagnostic::input("too-many-tokens", what).help("load the ranks for more tokens"));
        }
        let outgoing = self.dispatch(rows, ids, &mut traffic);
        let (answers, ready) = self.exchange_rows(&outgoing, &mut traffic, &mut findings)?;
        let slots = self.combine(&outgoing, &answers, n_tokens)?;
        let weights = self.placed.weights.as_ref().map(value).transpose()?;
        let weights = weights.map(|w| without_dropped(w, &outgoing));
        let mut tail: Vec<(&str, &Tensor)> = vec![("slot_rows", &slots)];
        tail.extend(weights.as_ref().map(|w| ("slot_weights", w)));
        for (name, source) in &self.placed.crossing {
            tail.push((name, value(source)?));
        }
        let run = self.tail.run_host(&tail)?;
        findings.extend(run.findings);
        let of = |name: &str, maker: Maker| {
            let from = if maker == Maker::Head { &made } else { &run.outputs };
            // An output that is an input of the layer has no program of its own.
            let found = from.iter().find(|(n, _)| n == name).map(|(_, t)| t.clone());
            found.or_else(|| inputs.iter().find(|(n, _)| *n == name).map(|(_, t)| (*t).clone()))
        };
        let mut outputs = Vec::new();
        for (name, maker) in &self.placed.outputs {
            let missing = || Diagnostic::internal("internal-error", format!("`{name}` should have been made"));
            outputs.push((name.clone(), of(name, *maker).ok_or_else(missing)?));
        }
        let map_version = self.now.map.version();
        self.step += 1;
        self.adopt(ready)?;
        Ok(StepResult { outputs, traffic, map_version, findings })
    }

    /// Sorts the slots of this rank's tokens by the groups of ranks that hold their experts.
    fn dispatch(&self, rows: &Tensor, ids: &Tensor, traffic: &mut Traffic) -> Vec<Outgoing> {
        let (own, k) = (self.comm.rank(), self.placed.top_k.max(1));
        let mut outgoing = vec![Outgoing::default(); self.now.map.n_ranks() as usize];
        let sender = Sender::new(rows, self.placed.wire);
        for (slot, &id) in ids.ints().iter().enumerate() {
            let token = slot / k;
            let replica = u32::try_from(id).ok().and_then(|e| self.now.map.replica_for(e, own, token as u32));
            let Some((group, local)) = replica else {
                traffic.slots_dropped += 1;
                continue;
            };
            outgoing[group as usize].add(token, slot, local, |out| sender.write(token, out));
        }
        let members = u64::from(self.placed.n_members());
        for (group, out) in (0u32..).zip(&outgoing) {
            // All members of a group get the row; this rank has it.
            let others = members - u64::from(group == own / self.placed.n_members());
            traffic.rows_sent += others * out.n_rows();
            traffic.row_bytes_sent += others * out.row_bytes();
        }
        outgoing
    }

    /// Sends rows to the experts' ranks, computes what came here, and sends the results back. Returns the results that came
    /// back, by rank, and the map that all ranks have.
    #[allow(clippy::type_complexity, reason = "bytes by rank, and a version with its digest")]
    fn exchange_rows(
        &mut self,
        outgoing: &[Outgoing],
        traffic: &mut Traffic,
        findings: &mut Vec<String>,
    ) -> Result<(Vec<Vec<u8>>, (u64, u64)), Diagnostic> {
        let own = self.comm.rank();
        let newest = self.staged.values().next_back().unwrap_or(&self.now);
        let terms = Terms {
            fingerprint: self.fingerprint,
            max_tokens: self.options.max_tokens,
            step: self.step,
            map: map_terms(&self.now.map),
            ready: map_terms(&newest.map),
        };
        let members = self.placed.n_members() as usize;
        let messages = outgoing.iter().flat_map(|o| vec![o.to_message(&terms); members]).collect();
        let step = self.step;
        let came = self.comm.exchange(messages);
        let came =
            came.map_err(|f| not_answering(f, own, self.holders(), &format!("in the dispatch of step {step}")))?;
        let mut ready = terms.ready;
        let n_own = self.now.map.experts_of(own / self.placed.n_members()).len() as u32;
        let bytes = self.placed.wire.row_bytes(self.placed.row.1 as u64) as usize;
        let mut incoming = Vec::with_capacity(came.len());
        for (rank, message) in (0u32..).zip(&came) {
            let theirs = Terms::from_bytes(message);
            terms.check(own, rank, theirs.as_ref())?;
            // All ranks see the same versions, so that all go over to the same map after the same step.
            ready = theirs.map_or(ready, |t| ready.min(t.ready));
            let read = message::read(message, bytes, n_own);
            incoming.push(read.ok_or_else(|| {
                let what = format!("rank {rank} sent rows that rank {own} cannot read, in step {step}");
                Diagnostic::input("ranks-disagree", what).help("run the same moec on all ranks")
            })?);
        }
        let answers = self.compute(&incoming, traffic, findings)?;
        let answered = (0u32..).zip(&answers).filter(|(rank, _)| *rank != own);
        traffic.result_bytes_sent += answered.map(|(_, a)| a.len() as u64).sum::<u64>();
        let back = self.comm.exchange(answers);
        let back =
            back.map_err(|f| not_answering(f, own, self.holders(), &format!("in the combine of step {step}")))?;
        Ok((back, ready))
    }

    /// The result rows of slots that came, for each rank that sent some.
    fn compute(
        &mut self,
        incoming: &[Incoming<'_>],
        traffic: &mut Traffic,
        findings: &mut Vec<String>,
    ) -> Result<Vec<Vec<u8>>, Diagnostic> {
        let (dtype, cols) = self.placed.row;
        let bytes = self.placed.wire.row_bytes(cols as u64) as usize;
        let (mut rows, mut which, mut ids) = (Vec::new(), Vec::new(), Vec::new());
        for from in incoming {
            let before = rows.len() / bytes.max(1);
            rows.extend(from.rows);
            which.extend(from.slots.iter().map(|&(row, _)| before + row as usize));
            ids.extend(from.slots.iter().map(|&(_, local)| i64::from(local)));
        }
        let broken = || Diagnostic::internal("internal-error", "rows that were read should have their length");
        let rows = received(self.placed.wire, cols, dtype, &rows).ok_or_else(broken)?;
        traffic.slots_computed += ids.len() as u64;
        let (first, is_cut) = match &mut *self.now.experts() {
            LoadedExperts::Whole(experts) => (run_slots(experts, ("rows", &rows), &which, &ids, findings)?, false),
            LoadedExperts::Columns(up, _) => (run_slots(up, ("rows", &rows), &which, &ids, findings)?, true),
        };
        let results = if is_cut {
            let act = self.join_columns(first, ids.len(), traffic)?;
            let which: Vec<usize> = (0..ids.len()).collect();
            let mut experts = self.now.experts();
            let LoadedExperts::Columns(_, down) = &mut *experts else { return Err(broken()) };
            run_slots(down, ("act_rows", &act), &which, &ids, findings)?
        } else {
            first
        };
        let member = &self.placed.experts[(self.comm.rank() % self.placed.n_members()) as usize];
        let width = self.placed.slot.0.bytes() * member.columns().1;
        let mut at = 0;
        let answers = incoming.iter().map(|from| {
            let range = at..at + from.slots.len() * width;
            at = range.end;
            results.get(range).map(<[u8]>::to_vec)
        });
        answers.collect::<Option<_>>().ok_or_else(broken)
    }

    /// The activations of slots, whole: the columns of all members of this rank's group.
    fn join_columns(&mut self, own_columns: Vec<u8>, n: usize, traffic: &mut Traffic) -> Result<Tensor, Diagnostic> {
        let (own, members) = (self.comm.rank(), self.placed.n_members());
        let first = own / members * members;
        let group = first as usize..(first + members) as usize;
        let mut parts = vec![Vec::new(); self.comm.n_ranks() as usize];
        traffic.result_bytes_sent += own_columns.len() as u64 * u64::from(members - 1);
        parts[group.clone()].iter_mut().for_each(|p| p.clone_from(&own_columns));
        let step = self.step;
        let came = self.comm.exchange(parts);
        let came =
            came.map_err(|f| not_answering(f, own, self.holders(), &format!("in the activations of step {step}")))?;
        let dtype = self.placed.act_type();
        let widths: Vec<usize> = self.placed.experts.iter().map(|e| e.columns().0).collect();
        join(dtype, n, &widths, came[group].iter()).ok_or_else(|| {
            let what =
                format!("a rank of the group of rank {own} sent other activations than it waits for, in step {step}");
            Diagnostic::input("ranks-disagree", what).help("run the same moec on all ranks")
        })
    }

    /// The results in their slots; slots without an expert are zero.
    fn combine(&self, outgoing: &[Outgoing], answers: &[Vec<u8>], n_tokens: usize) -> Result<Tensor, Diagnostic> {
        let (dtype, cols) = self.placed.slot;
        let n_slots = n_tokens * self.placed.top_k;
        let members = self.placed.n_members() as usize;
        let widths: Vec<usize> = self.placed.experts.iter().map(|e| e.columns().1).collect();
        let width = dtype.bytes() * cols;
        let mut slots = vec![0u8; n_slots * width];
        for ((group, out), parts) in outgoing.iter().enumerate().zip(answers.chunks(members)) {
            let rows = join(dtype, out.places.len(), &widths, parts.iter()).ok_or_else(|| {
                let (own, rows, got) = (self.comm.rank(), out.places.len(), parts.iter().map(Vec::len).max());
                let who = if members == 1 { format!("rank {group}") } else { format!("the ranks of group {group}") };
                let what = format!("{who} answered {rows} rows of rank {own} with {} bytes", got.unwrap_or(0));
                Diagnostic::input("ranks-disagree", what).help("run the same moec on all ranks")
            })?;
            for (&place, row) in out.places.iter().zip(rows.to_bytes().chunks_exact(width.max(1))) {
                slots[place * width..(place + 1) * width].copy_from_slice(row);
            }
        }
        Tensor::from_bytes(dtype, &[n_slots, cols], &slots)
            .ok_or_else(|| Diagnostic::internal("internal-error", "slots should fill their tensor"))
    }

    /// Who holds what, for messages.
    fn holders(&self) -> (&Placement, u32) {
        (&self.now.map, self.placed.n_members())
    }

    /// Goes over to the map that all ranks have.
    fn adopt(&mut self, ready: (u64, u64)) -> Result<(), Diagnostic> {
        if ready.0 <= self.now.map.version() {
            return Ok(());
        }
        let Some(next) = self.staged.remove(&ready.0).filter(|l| map_terms(&l.map) == ready) else {
            let (own, version) = (self.comm.rank(), ready.0);
            let what =
                format!("rank {own} has no placement map of version {version}, or another one than the other ranks");
            return Err(Diagnostic::input("ranks-disagree", what)
                .help("hand every map to all ranks, in the same order, under a version of its own"));
        };
        self.now = next;
        self.staged = self.staged.split_off(&(ready.0 + 1));
        Ok(())
    }
}

impl<C: Comm> std::fmt::Debug for RankLayer<C> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut s = f.debug_struct("RankLayer");
        s.field("rank", &self.comm.rank()).field("map", &self.now.map.version()).field("step", &self.step).finish()
    }
}

pub(crate) fn find<'t>(
    source: &Source,
    inputs: &'t [(&str, &Tensor)],
    made: &'t [(String, Tensor)],
) -> Result<&'t Tensor, Diagnostic> {
    match source {
        Source::Input(name) => inputs.iter().find(|(n, _)| n == name).map(|(_, t)| *t).ok_or_else(|| {
            Diagnostic::input("input-missing", format!("the layer needs the input `{name}`, and it was not given"))
        }),
        Source::Head(name) => made
            .iter()
            .find(|(n, _)| n == name)
            .map(|(_, t)| t)
            .ok_or_else(|| Diagnostic::internal("internal-error", format!("the head should have made `{name}`"))),
    }
}

/// The weights, with -0 for slots that no expert has: added to a sum, -0 times the zeros in such a slot changes none of its
/// bits, whatever the weight was.
fn without_dropped(weights: &Tensor, outgoing: &[Outgoing]) -> Tensor {
    let mut sent = vec![false; weights.elements()];
    outgoing.iter().flat_map(|o| &o.places).for_each(|&slot| sent[slot] = true);
    let mut out = weights.clone();
    if let Data::Float(values) = &mut out.data {
        values.iter_mut().zip(&sent).filter(|(_, sent)| !**sent).for_each(|(w, _)| *w = -0.0);
    }
    out
}
