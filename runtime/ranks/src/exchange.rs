//! The kernels that exchange rows, on the ranks of an emulator: their memory, and their launches.

use moec_ir::diag::Diagnostic;
use moec_ir::exchange::{Blocks, Exchange, ExchangeKernel, ExchangeParam as P, Stage, slot_places};
use moec_ir::window::{RankTerms, WaitReport, Window};
use moec_ptx::ast::Module;
use moec_ptx::exec::{Launch, Param, Program, Ranks, Step};
use moec_runtime::emulated_rank::place;

/// The kernels, ready to be launched.
pub(crate) struct Kernels(Vec<(ExchangeKernel, Program)>);

/// What the kernels have on a rank from step to step.
pub(crate) struct RankMemory {
    pub window: u64,
    /// Where results of slots that came go, in steps of each parity.
    pub slot_places: [u64; 2],
    terms: u64,
    peers: u64,
    counters: u64,
    report: u64,
    /// Floats of rows of codes that came, where rows travel so.
    pub decoded: u64,
}

/// What they have in one step.
#[derive(Clone, Copy)]
pub(crate) struct StepMemory {
    pub map: u64,
    pub rows: u64,
    pub coded: u64,
    pub ids: u64,
    pub sent_to: u64,
    pub weights: u64,
    pub slot_weights: u64,
    pub local_ids: u64,
    pub columns: u64,
    pub slot_to_row: u64,
    pub count: u64,
    pub n_tokens: u32,
}

impl Kernels {
    pub fn new(kernels: &[ExchangeKernel]) -> Result<Kernels, Diagnostic> {
        let refused = |k: &ExchangeKernel, why: String| {
            Diagnostic::machine("emulator-refused", format!("the emulator cannot execute `{}`", k.entry)).note(why)
        };
        let compile = |k: &ExchangeKernel| {
            let module = Module::parse(&k.ptx).map_err(|e| refused(k, e.to_string()))?;
            Ok((k.clone(), Program::compile(&module, &k.entry).map_err(|e| refused(k, e.to_string()))?))
        };
        kernels.iter().map(compile).collect::<Result<_, Diagnostic>>().map(Kernels)
    }

    /// The launches on a rank before its experts, between their products, and behind them.
    pub fn steps(&self, sizes: Window, rank: &RankMemory, step: &StepMemory) -> [Vec<(&str, Step<'_>)>; 3] {
        [Stage::Before, Stage::Between, Stage::Behind].map(|stage| {
            let kernels = self.0.iter().filter(|(k, _)| k.stage == stage);
            kernels.map(|kernel| launch(kernel, sizes, rank, step)).collect()
        })
    }
}

fn launch<'k>(
    (kernel, program): &'k (ExchangeKernel, Program),
    sizes: Window,
    rank: &RankMemory,
    step: &StepMemory,
) -> (&'k str, Step<'k>) {
    let blocks = match kernel.blocks {
        Blocks::Tokens => step.n_tokens.max(1),
        Blocks::Ranks => sizes.n_ranks,
        Blocks::AllTokens => sizes.n_ranks * sizes.max_tokens,
    };
    let at = |p: &P| match p {
        P::Terms => rank.terms,
        P::Peers => rank.peers,
        P::Counters => rank.counters,
        P::Report => rank.report,
        P::Map => step.map,
        P::Rows => step.rows,
        P::Coded => step.coded,
        P::Ids => step.ids,
        P::SentTo => step.sent_to,
        P::Weights => step.weights,
        P::SlotWeights => step.slot_weights,
        P::LocalIds => step.local_ids,
        P::Decoded => rank.decoded,
        P::Columns => step.columns,
        P::SlotToRow => step.slot_to_row,
        P::Count => step.count,
    };
    let launch = Launch {
        grid: [blocks, 1, 1],
        block: [kernel.threads, 1, 1],
        dynamic_smem_bytes: kernel.smem_bytes,
        params: kernel.params.iter().map(|p| Param::U64(at(p))).collect(),
        ..Launch::default()
    };
    (&kernel.entry, Step { program, launch })
}

impl RankMemory {
    /// Windows that all ranks see, full of zeros, and what the kernels of each rank keep.
    /// `exchanges` are those of the members of a group.
    pub fn of_all(
        ranks: &mut Ranks,
        sizes: Window,
        exchanges: &[Exchange],
        deadline: u32,
    ) -> Result<Vec<RankMemory>, Diagnostic> {
        let full = |e: moec_ptx::exec::ExecError| {
            Diagnostic::machine("emulator-refused", format!("a window of {} bytes has no room: {e}", sizes.bytes()))
                .help("give each rank fewer tokens")
        };
        let n = sizes.n_ranks as usize;
        let zeros = vec![0u8; sizes.bytes() as usize];
        let mut windows = Vec::with_capacity(n);
        for rank in 0..sizes.n_ranks {
            let window = ranks.window(rank, sizes.bytes()).map_err(full)?;
            ranks.upload(window, &zeros).map_err(full)?;
            windows.push(window);
        }
        let all = ranks.memory_mut().multicast(&windows, sizes.bytes()).map_err(full)?;
        let table: Vec<u8> = windows.iter().chain([&all]).flat_map(|w| w.to_le_bytes()).collect();
        let of_rank = |(rank, window): (u32, u64)| {
            let terms = RankTerms { rank, epoch: 1, deadline, window: sizes }.to_bytes().ok_or_else(|| {
                Diagnostic::input("too-many-tokens", format!("a window of {} bytes is too large", sizes.bytes()))
                    .help("give each rank fewer tokens")
            })?;
            let exchange = &exchanges[rank as usize % exchanges.len()];
            let codes = exchange.codes;
            let mut put = |bytes: &[u8]| place(ranks, rank, Ok(bytes));
            let [even, odd] = slot_places(exchange, &sizes, &windows)
                .map(|places| places.into_iter().flat_map(u64::to_le_bytes).collect::<Vec<u8>>());
            Ok(RankMemory {
                window,
                slot_places: [put(&even)?, put(&odd)?],
                terms: put(&terms)?,
                peers: put(&table)?,
                counters: put(&vec![0; 4 * (n + 1)])?,
                report: put(&vec![0; WaitReport::BYTES * n])?,
                // Programs may read places where nothing came, and use nothing of them.
                decoded: put(&vec![
                    0;
                    codes.map_or(0, |c| n
                        * sizes.max_tokens as usize
                        * c.cols as usize
                        * c.read.bytes())
                ])?,
            })
        };
        (0..sizes.n_ranks).zip(windows.clone()).map(of_rank).collect()
    }

    /// What a kernel wrote before it stopped.
    pub fn stopped(&self, ranks: &Ranks, n_ranks: u32) -> Option<WaitReport> {
        WaitReport::find(&ranks.download(self.report, WaitReport::BYTES * n_ranks as usize).ok()?)
    }
}
