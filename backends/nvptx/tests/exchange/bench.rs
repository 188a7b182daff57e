//! The kernels of an exchange on several ranks of the emulator, between experts and a tail that are easy to check.

use moec_ir::exchange::{
    Blocks, Cut, Exchange, ExchangeKernel, ExchangeParam as P, Piece, RowCodes, Stage, slot_places,
};
use moec_ir::window::{RankTerms, Term, WaitReport, Window};
use moec_ir::{ActQuant, DType, Placement, target::Target};
use moec_nvptx::emit_exchange;
use moec_ptx::ast::Module;
use moec_ptx::exec::{ExecError, Launch, Options, Param, Program, Ranks, RanksReport, Step};

pub const MINUS_ZERO: u32 = 1 << 31;

/// An exchange: `ids(epoch, rank, token, slot)` are the experts of slots, -1 for none.
#[derive(Clone)]
pub struct Case {
    /// Tokens of each rank.
    pub counts: Vec<u32>,
    pub max_tokens: u32,
    pub top_k: u32,
    /// Ranks of a group, over which experts are cut.
    pub members: u32,
    /// 32-bit words of a row: numbers, or f32 that are rounded on their way.
    pub words: u32,
    /// How they are rounded.
    pub codes: Option<ActQuant>,
    pub target: &'static str,
    /// The map of each step, of groups of ranks.
    pub maps: Vec<Placement>,
    pub ids: fn(u32, u32, u32, u32) -> i64,
    pub wide_ids: bool,
    /// This rank does nothing from this stage of this step on.
    pub dies: Option<(u32, usize, Stage)>,
    /// This rank has this map instead, in all steps.
    pub other_map: Option<(u32, Placement)>,
    /// This rank was made for so many tokens.
    pub other_size: Option<(u32, u32)>,
    pub deadline: u32,
    /// Whether a store can reach all windows.
    pub multicast: bool,
    /// The number of the first step.
    pub first_epoch: u32,
    /// What whoever launches the kernels does wrong.
    pub slip: Option<Slip>,
}

/// What can be wrong with where results are stored, and when they are said to be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slip {
    /// Flags are sent before the last product.
    FlagsFirst,
    /// Results are stored where those of the steps before and behind lie.
    OtherParity,
    /// Each slot's result is stored at the place of the slot behind it.
    NextSlot,
    /// Places begin an element behind where they do.
    OneElementFurther,
}

pub struct Kernels {
    /// Of each member of a group.
    exchange: Vec<Vec<(ExchangeKernel, Program)>>,
    experts: Program,
    up: Program,
    down: Program,
    tail: Program,
}

/// What a run gave.
pub struct Ran {
    pub report: Result<RanksReport, ExecError>,
    /// The first thing that is not as it should be.
    pub wrong: Option<String>,
    pub stopped: Vec<WaitReport>,
    /// What kernels of each rank wrote to others in the first step, by name.
    pub sent: Vec<Vec<(String, u64)>>,
}

impl Ran {
    /// Bytes that a kernel of a rank wrote to other ranks in the first step.
    pub fn bytes(&self, rank: u32, kernel: &str) -> u64 {
        self.sent[rank as usize].iter().filter(|(name, _)| name.ends_with(kernel)).map(|(_, bytes)| bytes).sum()
    }
}

impl Case {
    /// Words of a row of activations.
    pub fn act_words(&self) -> u32 {
        self.words + 1
    }

    /// The words of a row of `words` that a member computes: its first, and how many.
    pub fn piece(&self, member: u32, words: u32) -> (u32, u32) {
        let at = |m: u32| words * m / self.members;
        (at(member), at(member + 1) - at(member))
    }

    pub fn exchange(&self, member: u32) -> Exchange {
        let piece = |words| {
            let (first, n) = self.piece(member, words);
            Piece { first: 4 * u64::from(first), bytes: 4 * u64::from(n) }
        };
        let act = self.act_words();
        let cut = Cut {
            members: self.members,
            member,
            act_bytes: 4 * u64::from(act),
            act: piece(act),
            result: piece(self.words),
        };
        let bytes = u64::from(self.words) * 4;
        let ids = if self.wide_ids { DType::I64 } else { DType::I32 };
        let codes = |quant| RowCodes { quant, cols: self.words, sent: DType::F32, read: DType::F32 };
        let codes = self.codes.map(codes);
        Exchange {
            top_k: self.top_k,
            row_bytes: codes.map_or(bytes, RowCodes::bytes),
            codes,
            result_bytes: bytes,
            ids,
            weights: Some(DType::F32),
            cut: (self.members > 1).then_some(cut),
        }
    }

    pub fn n_ranks(&self) -> u32 {
        self.counts.len() as u32
    }

    pub fn window(&self) -> Window {
        self.exchange(0).window(self.n_ranks(), self.max_tokens)
    }

    /// A row before it is sent.
    fn row(&self, step: usize, rank: u32, token: u32) -> Vec<u32> {
        let x = |word| 1_000_000 * (step as u32 + 1) + 100_000 * rank + 1000 * token + word;
        (0..self.words).map(|word| if self.codes.is_some() { float(x(word)).to_bits() } else { x(word) }).collect()
    }

    /// What experts read of it.
    fn arrived(&self, step: usize, rank: u32, token: u32) -> Vec<u32> {
        let row = self.row(step, rank, token);
        let Some(q) = self.codes else { return row };
        let row: Vec<f32> = row.into_iter().map(f32::from_bits).collect();
        q.quantise(&row, 1.0).into_iter().map(f32::to_bits).collect()
    }

    /// Where a slot goes: the rank, or the group.
    pub fn owner(&self, step: usize, rank: u32, token: u32, slot: u32) -> Option<(u32, u32)> {
        let id = (self.ids)(step as u32, rank, token, slot);
        self.maps[step].replica_for(u32::try_from(id).ok()?, rank, token)
    }
}

/// Numbers of many sizes, and blocks of zeros.
fn float(x: u32) -> f32 {
    let bits = x.wrapping_mul(0x9e37_79b1) ^ (x / 61).wrapping_mul(0x85eb_ca6b);
    let magnitude = 2f32.powi(((x / 16) % 40) as i32 - 20);
    if (x / 64).is_multiple_of(7) { 0.0 } else { ((bits >> 8) as f32 / 8_388_608.0 - 1.0) * magnitude }
}

/// The kernels of each member of a group.
pub fn emitted(case: &Case) -> Vec<Vec<ExchangeKernel>> {
    let target = Target::by_name(case.target).expect("a target");
    (0..case.members).map(|m| emit_exchange(&case.exchange(m), target).expect("kernels")).collect()
}

pub fn compiled(kernels: Vec<Vec<ExchangeKernel>>) -> Kernels {
    let compile = |text: &str, name: &str| {
        let module = Module::parse(text).unwrap_or_else(|e| panic!("{name}: {e}\n{text}"));
        Program::compile(&module, name).unwrap_or_else(|e| panic!("{name}: {e}\n{text}"))
    };
    let layer = include_str!("layer.ptx");
    Kernels {
        exchange: kernels
            .into_iter()
            .map(|of| of.into_iter().map(|k| (k.clone(), compile(&k.ptx, &k.entry))).collect())
            .collect(),
        experts: compile(layer, "experts"),
        up: compile(layer, "up"),
        down: compile(layer, "down"),
        tail: compile(layer, "tail"),
    }
}

fn words(words: impl IntoIterator<Item = u32>) -> Vec<u8> {
    words.into_iter().flat_map(u32::to_le_bytes).collect()
}

pub fn run(case: &Case, kernels: &Kernels, options: &Options) -> Ran {
    let mut ranks = Ranks::new(moec_ptx::exec::Target::parse(case.target).expect("a target"), case.n_ranks());
    let n = case.n_ranks();
    let parts = case.window().parts();
    let (t, k, w) = (case.max_tokens, case.top_k, case.words);
    let windows: Vec<u64> = (0..n).map(|r| ranks.window(r, parts.bytes).expect("room")).collect();
    for &window in &windows {
        ranks.upload(window, &vec![0; parts.bytes as usize]).expect("zeros");
    }
    let all = if case.multicast { ranks.memory_mut().multicast(&windows, parts.bytes).expect("a group") } else { 0 };
    let peers: Vec<u8> = windows.iter().chain([&all]).flat_map(|a| a.to_le_bytes()).collect();
    let (mut streams, mut outs, mut reports) = (Vec::new(), Vec::new(), Vec::new());
    for rank in 0..n {
        let mut put = |bytes: &[u8]| {
            let at = ranks.alloc(rank, bytes.len().max(1) as u64).expect("room");
            ranks.upload(at, bytes).expect("bytes");
            at
        };
        let count = case.counts[rank as usize];
        let sizes = match case.other_size {
            Some((of, max_tokens)) if of == rank => Window { max_tokens, ..case.window() },
            _ => case.window(),
        };
        let terms = RankTerms { rank, epoch: case.first_epoch, deadline: case.deadline, window: case.window() };
        let mut terms = terms.to_bytes().expect("small");
        // Sizes that are told wrong; memory stays what it is.
        terms[4 * Term::Digest as usize..][..4].copy_from_slice(&sizes.digest().to_le_bytes());
        let (terms, peers, count_at) = (put(&terms), put(&peers), put(&count.to_le_bytes()));
        let counters = put(&words(vec![0; n as usize + 1]));
        let report = put(&vec![0; WaitReport::BYTES * n as usize]);
        reports.push(report);
        let (group, member) = (rank / case.members, rank % case.members);
        let (first_act, n_acts) = case.piece(member, case.act_words());
        let (first_result, n_results) = case.piece(member, w);
        let mut places = slot_places(&case.exchange(member), &case.window(), &windows);
        match case.slip {
            Some(Slip::OtherParity) => places.swap(0, 1),
            Some(Slip::NextSlot) => places.iter_mut().for_each(|of| of.rotate_left(1)),
            Some(Slip::OneElementFurther) => places.iter_mut().flatten().for_each(|at| *at += 4),
            Some(Slip::FlagsFirst) | None => {}
        }
        let places = places.map(|of| put(&of.into_iter().flat_map(u64::to_le_bytes).collect::<Vec<u8>>()));
        let mut stream = Vec::new();
        for (step, map) in case.maps.iter().enumerate() {
            let is_dead = |stage| case.dies == Some((rank, step, stage));
            if is_dead(Stage::Before) {
                break;
            }
            let map = case.other_map.as_ref().filter(|(of, _)| *of == rank).map_or(map, |(_, m)| m);
            let mut put = |bytes: &[u8]| {
                let at = ranks.alloc(rank, bytes.len().max(1) as u64).expect("room");
                ranks.upload(at, bytes).expect("bytes");
                at
            };
            let slots = || (0..count).flat_map(|token| (0..k).map(move |slot| (token, slot)));
            let rows = put(&words((0..count).flat_map(|token| case.row(step, rank, token))));
            let ids: Vec<i64> = slots().map(|(token, slot)| (case.ids)(step as u32, rank, token, slot)).collect();
            let ids: Vec<u8> = match case.wide_ids {
                true => ids.into_iter().flat_map(i64::to_le_bytes).collect(),
                false => words(ids.into_iter().map(|i| i as u32)),
            };
            let ids = put(&ids);
            let weights = put(&words(slots().map(|(token, slot)| (token * k + slot + 1) << 8)));
            let map = put(&words(map.to_words()));
            let parity = (case.first_epoch as usize + step) & 1;
            let mut room = |bytes: u32| ranks.alloc(rank, u64::from(bytes.max(4))).expect("room");
            let (sent_to, slot_weights) = (room(count * k * 4), room(count * k * 4));
            let (local_ids, slot_to_row) = (room(n * t * k * 4), room(n * t * k * 4));
            let columns = room(n * t * k * n_acts * 4);
            let out = room(count * k * w * 4);
            let (coded, decoded) = (room(count * case.window().row_bytes as u32), room(n * t * w * 4));
            outs.push((rank, step, out, slot_weights));
            let param = |p: &P| match p {
                P::Terms => terms,
                P::Peers => peers,
                P::Map => map,
                P::Rows => rows,
                P::Coded => coded,
                P::Decoded => decoded,
                P::Ids => ids,
                P::SentTo => sent_to,
                P::Weights => weights,
                P::SlotWeights => slot_weights,
                P::LocalIds => local_ids,
                P::Columns => columns,
                P::SlotToRow => slot_to_row,
                P::Counters => counters,
                P::Report => report,
                P::Count => count_at,
            };
            let window = windows[rank as usize];
            let steps = |stage: Stage| {
                let kernels = kernels.exchange[member as usize].iter().filter(move |(k, _)| k.stage == stage);
                kernels.map(move |(kernel, program)| {
                    let blocks = match kernel.blocks {
                        Blocks::Tokens => count.max(1),
                        Blocks::Ranks => n,
                        Blocks::AllTokens => n * t,
                    };
                    let params = kernel.params.iter().map(|p| Param::U64(param(p))).collect();
                    let (block, dynamic_smem_bytes) = ([kernel.threads, 1, 1], kernel.smem_bytes);
                    let launch =
                        Launch { grid: [blocks, 1, 1], block, dynamic_smem_bytes, params, ..Launch::default() };
                    Step { program, launch }
                })
            };
            stream.extend(steps(Stage::Before));
            let small = |grid: u32, params: Vec<Param>| Launch {
                grid: [grid, 1, 1],
                block: [32, 1, 1],
                params,
                ..Launch::default()
            };
            let rows = if case.codes.is_some() { decoded } else { window + parts.rows[parity] };
            let product = |program, pointers: &[u64], words: &[u32]| {
                let words = words.iter().map(|&w| Param::U32(w));
                let params = pointers.iter().map(|&p| Param::U64(p)).chain(words).collect();
                Step { program, launch: small(n * t * k, params) }
            };
            let (ids, acts, places) = (local_ids, window + parts.acts, places[parity]);
            let n_flags_first = usize::from(case.slip == Some(Slip::FlagsFirst));
            if case.members == 1 {
                stream.extend(steps(Stage::Behind).take(n_flags_first));
                stream.push(product(&kernels.experts, &[rows, ids, places], &[rank, k, w]));
            } else {
                let of_up = [group, k, w, first_act, n_acts];
                stream.push(product(&kernels.up, &[rows, ids, columns, slot_to_row], &of_up));
                if is_dead(Stage::Between) {
                    break;
                }
                stream.extend(steps(Stage::Between));
                stream.extend(steps(Stage::Behind).take(n_flags_first));
                let of_down = [case.act_words(), first_result, n_results];
                stream.push(product(&kernels.down, &[acts, ids, places], &of_down));
            }
            stream.extend(steps(Stage::Behind).skip(n_flags_first));
            if count > 0 {
                let results = window + parts.results[parity];
                let params = vec![Param::U64(results), Param::U64(out), Param::U32(w)];
                stream.push(Step { program: &kernels.tail, launch: small(count * k, params) });
            }
        }
        streams.push(stream);
    }
    let report = ranks.launch(&streams, options);
    let lines = reports.iter().map(|&at| ranks.download(at, WaitReport::BYTES * n as usize).expect("lines"));
    let stopped = lines.filter_map(|lines| WaitReport::find(&lines)).collect();
    let mut wrong = None;
    for (rank, step, out, slot_weights) in outs {
        let count = case.counts[rank as usize];
        let read = |at: u64, n: u32| -> Vec<u32> {
            let bytes = ranks.download(at, 4 * n as usize).expect("words");
            bytes.chunks_exact(4).map(|b| u32::from_le_bytes(b.try_into().expect("4"))).collect()
        };
        let (rows, weights) = (read(out, count * k * w), read(slot_weights, count * k));
        let mut arrived = Vec::new();
        for (i, got) in rows.iter().enumerate() {
            let (place, word) = (i as u32 / w, i as u32 % w);
            let (token, slot) = (place / k, place % k);
            let owner = case.owner(step, rank, token, slot);
            let row = if word == 0 { case.arrived(step, rank, token) } else { std::mem::take(&mut arrived) };
            // Experts that are cut give their activations backwards, one more than the row has.
            let from = if case.members == 1 { word } else { (w - word) % w };
            let want = owner.map_or(0, |(r, local)| row[from as usize].wrapping_add(1000 * (16 * r + local)));
            arrived = row;
            if *got != want && wrong.is_none() {
                wrong = Some(format!("rank {rank}, step {step}, token {token}, slot {slot}: {got}, not {want}"));
            }
        }
        for (i, got) in weights.iter().enumerate() {
            let owner = case.owner(step, rank, i as u32 / k, i as u32 % k);
            let want = if owner.is_some() { (i as u32 + 1) << 8 } else { MINUS_ZERO };
            if *got != want && wrong.is_none() {
                wrong = Some(format!("rank {rank}, step {step}: weight {i} is {got:#x}, not {want:#x}"));
            }
        }
    }
    let of_rank = |(rank, launches): (usize, &Vec<moec_ptx::exec::Report>)| {
        let kernels = &kernels.exchange[rank % case.members as usize];
        let of = |stage: Stage| kernels.iter().filter(move |(k, _)| k.stage == stage).map(|(k, _)| k.entry.as_str());
        let products: [&[&str]; 2] = if case.members == 1 { [&["experts"], &[]] } else { [&["up"], &["down"]] };
        let [first, last] = products.map(|names| names.iter().copied());
        // The launches of the first step.
        let names = of(Stage::Before).chain(first).chain(of(Stage::Between)).chain(last).chain(of(Stage::Behind));
        names.zip(launches).map(|(name, r)| (name.to_string(), r.counters.far_store_bytes)).collect()
    };
    let sent = report.as_ref().map(|r| r.launches.iter().enumerate().map(of_rank).collect()).unwrap_or_default();
    Ran { report, wrong, stopped, sent }
}
