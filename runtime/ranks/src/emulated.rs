//! All ranks of a placed layer on devices of the emulator, whose own kernels exchange rows.

use crate::comm::{Fault, not_answering};
use crate::exchange::{Kernels, RankMemory, StepMemory};
use crate::layer::{ExpertProgram, ExpertPrograms, PlacedLayer};
use crate::rank::find;
use crate::step::{StepResult, Traffic};
use moec_ir::diag::Diagnostic;
use moec_ir::exchange::Exchange;
use moec_ir::graph::{Maker, Source};
use moec_ir::window::{Stopped, WaitReport, Window};
use moec_ir::{Placement, Tensor};
use moec_ptx::exec::{ExecError, Options, Ranks, Step};
use moec_runtime::emulated_rank::{RankCode, RankProgram, Staged, place, ranks};
use moec_runtime::{SelectedExperts, Weights};
use std::sync::Arc;
use std::time::Duration;

/// All ranks of a placed layer on devices of the emulator. Their kernels run together, and each rank's in its own order.
pub struct EmulatedRanks {
    placed: Arc<PlacedLayer>,
    ranks: Ranks,
    sizes: Window,
    members: Vec<Member>,
    options: Options,
    of_rank: Vec<OfRank>,
    map: Placement,
    deadline: u32,
    /// Steps that were made.
    step: u64,
    broken: bool,
}

/// What ranks with the same columns of experts have alike; all ranks, where experts are whole.
struct Member {
    exchange: Exchange,
    kernels: Kernels,
    /// Of whole experts, or of both products of experts that are cut.
    experts: Vec<RankCode>,
}

/// What a rank has from step to step.
struct OfRank {
    head: Option<RankProgram>,
    experts: Vec<RankProgram>,
    tail: RankProgram,
    memory: RankMemory,
    map: u64,
}

/// What a rank has in one step.
struct OfStep<'p> {
    head: Option<Staged<'p>>,
    experts: Vec<Staged<'p>>,
    tail: Staged<'p>,
    steps: Vec<(&'p str, Step<'p>)>,
    sent_to: u64,
    n_tokens: usize,
    made: Vec<u64>,
}

impl EmulatedRanks {
    /// Loads a layer that was compiled with an exchange for `target`, on as many ranks, or groups of ranks, as `map` has, of up to
    /// `max_tokens` tokens each. A kernel that waits longer than `deadline` units of 1024 ns of its own clock says so and stops; the
    /// emulator's clock counts instructions, and it finds ranks that wait for each other for ever by itself.
    ///
    /// # Errors
    /// `target-not-in-bundle` for a layer without such kernels, `placement-invalid`, `emulator-refused`, and those of loading weights.
    pub fn load(
        placed: Arc<PlacedLayer>,
        map: Placement,
        weights: &Weights<'_>,
        target: &str,
        (max_tokens, deadline): (u32, u32),
        options: Options,
    ) -> Result<EmulatedRanks, Diagnostic> {
        map.check(placed.n_experts, map.n_ranks(), placed.n_local)?;
        let (n_members, own) = (placed.n_members(), u64::from(max_tokens.max(1)));
        let n_ranks = map.n_ranks() * n_members;
        let mut members = Vec::new();
        for (of, programs) in placed.exchange.iter().flat_map(|e| &e.members).zip(&placed.experts) {
            let kernels = of.kernels.iter().find(|(t, _)| t == target).map(|(_, k)| k);
            let kernels = Kernels::new(kernels.ok_or_else(|| without_kernels(&placed, target))?)?;
            members.push(Member {
                exchange: of.what,
                kernels,
                experts: code(programs, of.what, (target, own, n_ranks))?,
            });
        }
        let first = members.first().filter(|_| members.len() == n_members as usize);
        let exchange = first.ok_or_else(|| without_kernels(&placed, target))?.exchange;
        let sizes = exchange.window(n_ranks, max_tokens.max(1));
        let mut devices = ranks(target, n_ranks)?;
        let head_code = placed.head.as_ref().map(|b| RankCode::new(b, target, own)).transpose()?;
        let tail_code = RankCode::new(&placed.tail, target, own)?;
        let mut of_rank = Vec::new();
        let exchanges: Vec<Exchange> = members.iter().map(|m| m.exchange).collect();
        for (rank, memory) in (0..).zip(RankMemory::of_all(&mut devices, sizes, &exchanges, deadline)?) {
            let head = head_code.as_ref().map(|c| c.load(weights, &mut devices, rank)).transpose()?;
            let experts = local(&members, &placed, &map, rank, weights, &mut devices)?;
            let tail = tail_code.load(weights, &mut devices, rank)?;
            let map = place(&mut devices, rank, Ok(&words(&map.to_words())))?;
            of_rank.push(OfRank { head, experts, tail, memory, map });
        }
        let (ranks, step, broken) = (devices, 0, false);
        Ok(EmulatedRanks { placed, ranks, sizes, members, options, of_rank, map, deadline, step, broken })
    }

    /// Bytes of the window that each rank maps from each other.
    pub fn window_bytes(&self) -> u64 {
        self.sizes.bytes()
    }

    /// Changes what the next steps check, and in which order kernels run.
    pub fn set_options(&mut self, change: impl FnOnce(&mut Options)) {
        change(&mut self.options);
    }

    /// Takes another map from the next step on, on all ranks. Nothing is compiled.
    ///
    /// # Errors
    /// `placement-invalid`, and those of loading weights.
    pub fn set_map(&mut self, map: Placement, weights: &Weights<'_>) -> Result<(), Diagnostic> {
        map.check(self.placed.n_experts, self.map.n_ranks(), self.placed.n_local)?;
        for (rank, of) in (0..).zip(&mut self.of_rank) {
            let experts = local(&self.members, &self.placed, &map, rank, weights, &mut self.ranks)?;
            let words = place(&mut self.ranks, rank, Ok(&words(&map.to_words())))?;
            let old = std::mem::replace(&mut of.experts, experts);
            for &address in old.iter().flat_map(RankProgram::weights).chain([&of.map]) {
                self.ranks.memory_mut().free(address).map_err(stopped)?;
            }
            of.map = words;
        }
        self.map = map;
        Ok(())
    }

    /// Computes the outputs of all ranks' tokens; `inputs` are those of each rank by name.
    ///
    /// # Errors
    /// `too-many-tokens`, those of inputs, `emulator-refused`; `rank-not-answering` and `ranks-disagree` when a kernel stopped itself. After
    /// one of the latter no step can be made any more.
    pub fn step(&mut self, inputs: &[Vec<(&str, &Tensor)>]) -> Result<Vec<StepResult>, Diagnostic> {
        if self.broken || inputs.len() != self.of_rank.len() {
            let what = if self.broken { "a step failed before" } else { "a step needs the inputs of every rank" };
            return Err(Diagnostic::input("rank-not-answering", what).help("load the layer anew on all ranks"));
        }
        let mut all = Vec::new();
        let EmulatedRanks { placed, ranks, sizes, members, of_rank, step, .. } = self;
        // Steps are numbered from 1.
        let parity = ((*step + 1) & 1) as usize;
        for ((rank, of), inputs) in (0..).zip(of_rank.iter()).zip(inputs) {
            let member = &members[rank as usize % members.len()];
            all.push(stage(placed, ranks, (*sizes, member, parity), (rank, of), inputs)?);
        }
        let streams: Vec<Vec<Step<'_>>> =
            all.iter().map(|s| s.steps.iter().map(|(_, step)| step.clone()).collect()).collect();
        let report = match ranks.launch(&streams, &self.options) {
            Ok(report) => report,
            Err(e) => {
                let lines = of_rank.iter().find_map(|of| of.memory.stopped(ranks, sizes.n_ranks));
                self.broken = true;
                return Err(lines.map_or_else(|| stopped(e), |line| self.told(line)));
            }
        };
        let sent: Vec<Vec<i32>> = all.iter().map(|s| sent_to(ranks, s, placed.top_k)).collect::<Result<_, _>>()?;
        let mut results = Vec::new();
        for ((rank, of), inputs) in (0u32..).zip(&all).zip(inputs) {
            let names = of.steps.iter().map(|(name, _)| name);
            let launches = report.launches.get(rank as usize).map_or(&[][..], Vec::as_slice);
            let findings = names.zip(launches).flat_map(|(n, r)| r.findings.iter().map(move |f| format!("{n}: {f}")));
            let made = of.head.as_ref().map_or(Ok(Vec::new()), |h| h.read(ranks))?;
            let tail = of.tail.read(ranks)?;
            let outputs = outputs(placed, &made, &tail, inputs)?;
            let traffic = traffic(&members[rank as usize % members.len()].exchange, rank, &sent);
            let map_version = self.map.version();
            results.push(StepResult { outputs, traffic, map_version, findings: findings.collect() });
        }
        let made = |s: &OfStep<'_>| {
            let programs = s.head.iter().chain(&s.experts).chain([&s.tail]);
            s.made.iter().copied().chain(programs.flat_map(|p| p.made.iter().copied())).collect::<Vec<u64>>()
        };
        let made: Vec<u64> = all.iter().flat_map(made).collect();
        for address in made {
            self.ranks.memory_mut().free(address).map_err(stopped)?;
        }
        self.step += 1;
        Ok(results)
    }

    /// What a kernel said before it stopped.
    fn told(&self, line: WaitReport) -> Diagnostic {
        let WaitReport { what, rank, peer, wanted, found } = line;
        let step = self.step;
        let differ = |of: &str| {
            let what = format!("rank {peer} has another {of} than rank {rank} in step {step}: {found}, not {wanted}");
            Diagnostic::input("ranks-disagree", what).help("give all ranks the same, between the same two steps")
        };
        match what {
            Stopped::NoRows | Stopped::NoResults | Stopped::NoActivations => {
                let waited = Duration::from_nanos(u64::from(self.deadline) * 1024);
                let when = match what {
                    Stopped::NoRows => "dispatch",
                    Stopped::NoActivations => "activations",
                    _ => "combine",
                };
                let fault = Fault::Silent { ranks: vec![peer], waited };
                not_answering(
                    fault,
                    rank,
                    (&self.map, self.placed.n_members()),
                    &format!("in the {when} of step {step}"),
                )
            }
            Stopped::OtherVersion => differ("version of the placement map"),
            Stopped::OtherMap => differ("placement map of the same version"),
            Stopped::OtherSizes => differ("size of its window"),
        }
    }
}

impl std::fmt::Debug for EmulatedRanks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EmulatedRanks").field("sizes", &self.sizes).field("step", &self.step).finish()
    }
}

fn stopped(e: ExecError) -> Diagnostic {
    Diagnostic::input("emulator-refused", format!("the emulator stopped: {e}"))
        .help("a kernel of moec that does this is a bug worth reporting")
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|w| w.to_le_bytes()).collect()
}

fn without_kernels(placed: &PlacedLayer, target: &str) -> Diagnostic {
    let there = placed.exchange_targets().join(", ");
    if there.is_empty() {
        let what = format!("the layer has no kernels that exchange rows for {target}");
        return Diagnostic::input("target-not-in-bundle", what).help("compile it for GPU targets alone");
    }
    let what = format!("the layer has kernels that exchange rows for {there}, and not for {target}");
    Diagnostic::input("target-not-in-bundle", what)
        .help(format!("run it on {there}, or compile it for {target} as well"))
}

/// The experts' programs of a member, for all tokens of all ranks.
fn code(
    programs: &ExpertPrograms,
    exchange: Exchange,
    (target, max_tokens, n_ranks): (&str, u64, u32),
) -> Result<Vec<RankCode>, Diagnostic> {
    let rows = max_tokens * u64::from(n_ranks);
    let of = |program: &ExpertProgram, n| {
        let at_most = program.bundle.manifest().target(target).map_or(n, |t| t.max_tokens());
        if n > at_most {
            let (what, per_row) = if n > rows { ("slots", n / rows) } else { ("rows", 1) };
            let fits = at_most / (u64::from(n_ranks) * per_row);
            let what = format!(
                "{n_ranks} ranks of {max_tokens} tokens may send {n} {what} to one of them, and its experts were compiled for {at_most}"
            );
            let help = match fits {
                0 => format!("compile for {n_ranks} ranks, or with a larger --tokens"),
                _ => format!("give up to {fits} tokens to a rank, or compile for a mesh with as many ranks"),
            };
            return Err(Diagnostic::input("too-many-tokens", what).help(help));
        }
        RankCode::new(&program.bundle, target, n)
    };
    match programs {
        ExpertPrograms::Whole(whole) => Ok(vec![of(whole, rows)?]),
        // The second product has a row for each slot.
        ExpertPrograms::Columns { up, down } => Ok(vec![of(up, rows)?, of(down, rows * u64::from(exchange.top_k))?]),
    }
}

/// The experts of a rank.
fn local(
    members: &[Member],
    placed: &PlacedLayer,
    map: &Placement,
    rank: u32,
    weights: &Weights<'_>,
    ranks: &mut Ranks,
) -> Result<Vec<RankProgram>, Diagnostic> {
    let n = members.len() as u32;
    let (group, member) = (rank / n, (rank % n) as usize);
    let parts = placed.experts[member].parts();
    let load = |(code, part): (&RankCode, &ExpertProgram)| {
        let selected = SelectedExperts { weights, stacks: &part.stacks, experts: map.experts_of(group) };
        code.load(&Weights::Experts(selected), ranks, rank)
    };
    members[member].experts.iter().zip(parts).map(load).collect()
}

/// The stream of a rank, and its memory.
fn stage<'p>(
    placed: &PlacedLayer,
    ranks: &mut Ranks,
    (sizes, member, parity): (Window, &'p Member, usize),
    (rank, of): (u32, &'p OfRank),
    inputs: &[(&str, &Tensor)],
) -> Result<OfStep<'p>, Diagnostic> {
    let (parts, exchange) = (sizes.parts(), &member.exchange);
    let mut made = Vec::new();
    let n_tokens = inputs.first().map_or(0, |(_, t)| t.shape.first().copied().unwrap_or(0));
    if n_tokens > sizes.max_tokens as usize {
        let what =
            format!("{n_tokens} tokens are given to rank {rank}, which was loaded for up to {}", sizes.max_tokens);
        return Err(Diagnostic::input("too-many-tokens", what).help("load the ranks for more tokens"));
    }
    let n = n_tokens as u64;
    let head = match &of.head {
        Some(program) => {
            let mut given = Vec::new();
            for (name, tensor) in inputs {
                given.extend(program.put(ranks, name, tensor)?.map(|at| (*name, at)));
            }
            made.extend(given.iter().map(|(_, at)| *at));
            Some(program.stage(ranks, n, &given)?)
        }
        None => None,
    };
    let slots = n * placed.top_k as u64;
    // A value of the head is where the head makes it; an input is put there, of the type that the kernels were made for.
    let mut value = |ranks: &mut Ranks, source: &Source| match source {
        Source::Head(name) => {
            let made = head.as_ref().map(|h| h.output(name)).transpose()?;
            let missing = || Diagnostic::internal("internal-error", format!("the head should have made `{name}`"));
            made.map(|(at, _)| at).ok_or_else(missing)
        }
        Source::Input(_) => {
            let at = place(ranks, rank, Ok(&find(source, inputs, &[])?.to_bytes()))?;
            made.push(at);
            Ok(at)
        }
    };
    let (rows, ids) = (value(ranks, &placed.rows)?, value(ranks, &placed.ids)?);
    let weights = placed.weights.as_ref().map(|w| value(ranks, w)).transpose()?;
    let mut tail_put = Vec::new();
    let mut tail_inputs = vec![("slot_rows", of.memory.window + parts.results[parity])];
    for (name, source) in &placed.crossing {
        match source {
            Source::Head(_) => tail_inputs.push((name.as_str(), value(ranks, source)?)),
            Source::Input(_) => {
                let at = of.tail.put(ranks, name, find(source, inputs, &[])?)?;
                tail_put.extend(at);
                tail_inputs.extend(at.map(|at| (name.as_str(), at)));
            }
        }
    }
    made.extend(tail_put);
    let mut put = |ranks: &mut Ranks, bytes: Result<&[u8], u64>| {
        let address = place(ranks, rank, bytes)?;
        made.push(address);
        Ok::<u64, Diagnostic>(address)
    };
    let all = u64::from(sizes.n_ranks * sizes.max_tokens);
    let local_ids = put(ranks, Err(4 * all * placed.top_k as u64))?;
    let sent_to = put(ranks, Err(4 * slots))?;
    let slot_weights = put(ranks, Err(4 * slots))?;
    let count = put(ranks, Ok(&(n as u32).to_le_bytes()))?;
    // Experts read rows where they lie in the window; rows of codes have floats of their own beside it.
    let (coded, rows_at) = match exchange.codes {
        Some(_) => (put(ranks, Err(n * exchange.row_pitch()))?, of.memory.decoded),
        None => (0, of.memory.window + parts.rows[parity]),
    };
    let slot_places = of.memory.slot_places[parity];
    let rows_here = [("rows", rows_at), ("local_ids", local_ids), ("slot_places", slot_places)];
    let acts_here =
        [("act_rows", of.memory.window + parts.acts), ("local_ids", local_ids), ("slot_places", slot_places)];
    let mut experts = Vec::new();
    for program in &of.experts {
        // The first product has a row for all slots of a token, the second one for each: ids lie alike for both.
        let (n, given) = if experts.is_empty() { (all, rows_here) } else { (all * placed.top_k as u64, acts_here) };
        experts.push(program.stage(ranks, n, &given)?);
    }
    // What the last product makes goes to the tokens' ranks; what the first of two makes stays until it is shared.
    let made_by_first = |name: &str| match &experts[..] {
        [up, _] => up.output(name).map(|(at, _)| at),
        _ => Ok(0),
    };
    let (columns, slot_to_row) = (made_by_first("expert_rows")?, made_by_first("slot_to_row")?);
    if weights.is_some() {
        tail_inputs.push(("slot_weights", slot_weights));
    }
    let tail = of.tail.stage(ranks, n, &tail_inputs)?;
    let memory = StepMemory {
        map: of.map,
        rows,
        coded,
        ids,
        sent_to,
        weights: weights.unwrap_or_default(),
        slot_weights,
        local_ids,
        columns,
        slot_to_row,
        count,
        n_tokens: n as u32,
    };
    let [before, between, behind] = member.kernels.steps(sizes, &of.memory, &memory);
    let mut steps: Vec<(&'p str, Step<'p>)> = Vec::new();
    steps.extend(head.iter().flat_map(|h| h.steps.iter().cloned()));
    steps.extend(before);
    steps.extend(experts.iter().take(1).flat_map(|e| e.steps.iter().cloned()));
    steps.extend(between);
    steps.extend(experts.iter().skip(1).flat_map(|e| e.steps.iter().cloned()));
    steps.extend(behind);
    steps.extend(tail.steps.iter().cloned());
    Ok(OfStep { head, experts, tail, steps, sent_to, n_tokens, made })
}

/// Where each slot of a rank went.
fn sent_to(ranks: &Ranks, of: &OfStep<'_>, top_k: usize) -> Result<Vec<i32>, Diagnostic> {
    let bytes = ranks.download(of.sent_to, 4 * of.n_tokens * top_k).map_err(stopped)?;
    Ok(bytes.chunks_exact(4).map(|b| b.try_into().map_or(-1, i32::from_le_bytes)).collect())
}

/// What a rank sent and computed, from where all slots went: the groups, or ranks where experts are whole.
fn traffic(exchange: &Exchange, rank: u32, sent: &[Vec<i32>]) -> Traffic {
    let members = exchange.n_members();
    let own = (rank / members) as i32;
    let mut t = Traffic::default();
    for slots in sent.get(rank as usize).into_iter().flat_map(|s| s.chunks((exchange.top_k as usize).max(1))) {
        let to: std::collections::BTreeSet<i32> = slots.iter().copied().filter(|&g| g >= 0).collect();
        // All members of a group get the row; this rank has it.
        t.rows_sent += to.into_iter().map(|g| u64::from(members) - u64::from(g == own)).sum::<u64>();
        t.slots_dropped += slots.iter().filter(|g| **g < 0).count() as u64;
    }
    t.row_bytes_sent = t.rows_sent * exchange.row_bytes;
    let to_members = exchange.cut.map_or(0, |c| c.act.bytes * u64::from(c.members - 1));
    for (source, slots) in (0u32..).zip(sent) {
        let here = slots.iter().filter(|g| **g == own).count() as u64;
        t.slots_computed += here;
        let back = if source == rank { 0 } else { exchange.own_result().bytes };
        t.result_bytes_sent += here * (back + to_members);
    }
    t
}

/// The layer's outputs from what its programs made.
fn outputs(
    placed: &PlacedLayer,
    head: &[(String, Tensor)],
    tail: &[(String, Tensor)],
    inputs: &[(&str, &Tensor)],
) -> Result<Vec<(String, Tensor)>, Diagnostic> {
    let of = |(name, maker): &(String, Maker)| {
        let from = if *maker == Maker::Head { head } else { tail };
        let found = from.iter().find(|(n, _)| n == name).map(|(_, t)| t.clone());
        // An output that is an input of the layer has no program of its own.
        let found = found.or_else(|| inputs.iter().find(|(n, _)| n == name).map(|(_, t)| (*t).clone()));
        let missing = || Diagnostic::internal("internal-error", format!("`{name}` should have been made"));
        Ok((name.clone(), found.ok_or_else(missing)?))
    };
    placed.outputs.iter().map(of).collect()
}
