//! A model of the time that a layer takes on machines that nobody here has: `docs/time-model.md`.
//!
//! It counts what the programs and their schedules say (bytes, tiles, instructions), and divides by rates of the machine.
//! Everything else is an assumption with a name, a value and a source, below.

mod cases;
mod hopper;
mod page;
mod pairs;

pub use page::page;
pub use pairs::pairs_that_do_not_pay;

use cases::{cases, compile, variant};
use moec_ir::Dim;
use moec_ir::engine::{self, Engine};
use moec_ir::quant::Code;
use moec_ir::target::{Machine, Target, TargetKind};
use moec_ir::tile::{Body, BufferId, Contract, Groups, Kernel, Program, RowMap, ScaledProduct, Segment, Team};

/// Part of the published memory bandwidth that long reads reach. Reads of H200 and B200 are said to reach 90 to 93 %.
const MEMORY_SHARE: f64 = 0.92;
/// Part of the published tensor-core rate that large products sustain within the power limit; libraries reach 65 to 80 %.
const TENSOR_SHARE: f64 = 0.75;
/// Bytes of shared memory that a multiprocessor reads in a cycle, for tensor cores as for threads (CUDA programming guide).
const SHARED_BYTES_PER_CYCLE: f64 = 128.0;
/// Lane instructions of a multiprocessor in a cycle: four schedulers of 32 lanes.
const LANES_PER_CYCLE: f64 = 128.0;
/// Cycles per second. B200 boosts to 1.85 GHz or so; the RTX 5090's 2.4 GHz would flatter it under tensor load.
const CLOCK: f64 = 1.85e9;
/// Part of the tensor-core rate of sm_90 that `mma.sync` reaches, on average; `wgmma` is assumed to reach all of it. Source: Luo et
/// al., Benchmarking and Dissecting the Nvidia Hopper GPU Architecture via Microbenchmarking (2024).
const MMA_SYNC_SHARE: f64 = 0.63;
/// Bytes per second that the L2 gives, over the memory's. Not published; a guess from measurements of Hopper.
const L2_OVER_MEMORY: f64 = 1.5;
/// Instructions of a lane for a code that warps turn into a float: those of the loop over the steps of k, as `nvdisasm` shows
/// it for two panels of DeepSeek-R1, gpt-oss-120b, Mistral Large 3 and Kimi K2, by the 64 codes that it decodes. Loads,
/// barriers and scales are in it.
const fn decode_instructions(code: Code) -> f64 {
    match code {
        Code::E4M3 | Code::E5M2 => 3.9,
        Code::E2M1 => 4.5,
        Code::Int4 => 3.6,
    }
}
/// Lane instructions for an element of the result: load, expression, rounding, store. A guess.
const EPILOGUE_INSTRUCTIONS: f64 = 30.0;
/// Multiprocessors of a group (GPC), in which a cluster has to lie: B200 has 148 in eight groups, how many in each is not
/// published. A guess.
const GROUP: f64 = 18.0;
/// From the start of a kernel to its first product and from its last to its end, in seconds: two latencies of memory.
const FILL_S: f64 = 1.5e-6;

/// The time of one launch, in seconds, by what could take it.
#[derive(Clone, Debug)]
pub struct KernelTime {
    /// The kernel.
    pub name: String,
    /// Bytes from and to memory, each once.
    pub bytes: f64,
    /// Flops of the tensor-core instructions, padding included.
    pub issued_flops: f64,
    /// Tiles.
    pub tiles: f64,
    /// Time at full rate, by resource.
    pub parts: Vec<(&'static str, f64)>,
    /// Time of all waves of tiles over that of whole ones.
    pub waves: f64,
}

impl KernelTime {
    /// The resource that takes longest.
    pub fn bound(&self) -> (&'static str, f64) {
        self.parts.iter().copied().fold(("nothing", 0.0), |a, b| if b.1 > a.1 { b } else { a })
    }

    /// Without the launch itself.
    pub fn seconds(&self) -> f64 {
        self.bound().1 * self.waves + FILL_S
    }
}

/// Rows of an expert, when `n` tokens choose it with probability `p` each: the mean of `f` over the binomial distribution.
fn expect(n: u64, p: f64, f: impl Fn(f64) -> f64) -> f64 {
    if p >= 1.0 {
        return f(n as f64);
    }
    let mean = n as f64 * p;
    let wide = 9.0 * (mean * (1.0 - p)).sqrt() + 12.0;
    let (low, high) = ((mean - wide).max(0.0) as u64, ((mean + wide) as u64).min(n));
    let ln = |x: u64| (1..=x).map(|i| (i as f64).ln()).sum::<f64>();
    // Logarithm of the probability of `low`, and from there by ratios.
    let mut log = ln(n) - ln(low) - ln(n - low) + low as f64 * p.ln() + (n - low) as f64 * (1.0 - p).ln();
    let mut sum = 0.0;
    for x in low..=high {
        sum += log.exp() * f(x as f64);
        log += ((n - x).max(1) as f64 / (x + 1) as f64 * p / (1.0 - p)).ln();
    }
    sum
}

struct Cut {
    tile_rows: f64,
    tile_cols: f64,
    /// Rows of an instruction come in these; where there are `row_steps`, those count.
    rows_in: f64,
    /// The rows that a tile's products may have.
    row_steps: Vec<f64>,
    /// Columns of an instruction that reads its rows from shared memory; 0 where products read registers.
    cols_at_once: f64,
    /// Blocks that make a tile.
    blocks: f64,
    /// Pairs of neighbouring rows that get their weights by one copy (multicast).
    row_neighbours: f64,
}

impl Cut {
    /// Rows of instructions for `rows` rows of an expert.
    fn issued(&self, rows: f64) -> f64 {
        // Neighbours have half of a tile's rows each.
        let tile = self.tile_rows * self.row_neighbours;
        let whole = (rows / tile).floor() * tile;
        let rest = (rows - whole) / self.row_neighbours;
        match self.row_steps.iter().find(|&&n| n >= rest) {
            _ if self.row_steps.is_empty() => ceil_to(rows, self.rows_in),
            _ if rest == 0.0 => whole,
            Some(n) => whole + n * self.row_neighbours,
            None => ceil_to(rows, self.rows_in),
        }
    }
}

/// As the engines cut a schedule.
fn cut(kernel: &Kernel, c: &Contract, engine: Engine) -> Cut {
    let panels = c.segments.iter().map(|s| s.panels.len() as u32).max().unwrap_or(1);
    let asked = kernel.schedule.tile_m;
    let plain = Cut {
        tile_rows: f64::from(asked),
        tile_cols: f64::from(kernel.schedule.tile_n),
        rows_in: 8.0,
        row_steps: Vec::new(),
        cols_at_once: 0.0,
        blocks: 1.0,
        row_neighbours: 1.0,
    };
    match engine {
        Engine::Portable | Engine::GeForce => return plain,
        Engine::Hopper => {
            let steps = engine::hopper::row_steps(asked).into_iter().map(f64::from).collect();
            let row_neighbours = if kernel.schedule.team == Team::Neighbours { 2.0 } else { 1.0 };
            return Cut { row_steps: steps, cols_at_once: 64.0, row_neighbours, ..plain };
        }
        Engine::Blackwell => {}
    }
    let most = match (c.scaled_product(), panels) {
        (None, 1) => 256,
        (None, _) => 128,
        (Some(ScaledProduct::Fp8), 1) => 128,
        (Some(ScaledProduct::Fp8), _) => 64,
        (Some(_), 1) => 192,
        (Some(_), _) => 96,
    };
    let decodes = |s: &Segment| s.a_quant.is_none() && s.panels.iter().any(|p| p.quant.is_some());
    let (blocks, row_neighbours) = match kernel.schedule.team {
        Team::One | Team::Neighbours | Team::SplitK => (1.0, 1.0),
        Team::TwoPairs if !c.segments.iter().any(decodes) => (2.0, 2.0),
        Team::Pair | Team::TwoPairs => (2.0, 1.0),
    };
    let rows = if asked <= 16 && blocks == 1.0 { 16 } else { asked.next_multiple_of(32).min(most) };
    let (tile_cols, rows_in) = (128.0 * blocks, 16.0 * blocks * row_neighbours);
    Cut { tile_rows: rows.into(), tile_cols, rows_in, cols_at_once: tile_cols, blocks, row_neighbours, ..plain }
}

fn ceil_to(x: f64, step: f64) -> f64 {
    (x / step).ceil() * step
}

/// Bytes of a buffer without padding.
fn bytes(program: &Program, id: BufferId, n_tokens: u64) -> f64 {
    let b = program.buffer(id);
    (b.batch * b.rows.at(n_tokens) * b.cols) as f64 * b.dtype.bytes() as f64
}

fn contraction(program: &Program, kernel: &Kernel, c: &Contract, on: &On<'_>, n_tokens: u64) -> KernelTime {
    let m = on.machine;
    let engine = on.engine_of(program, c);
    let cut = cut(kernel, c, engine);
    // A cluster lies in one group of multiprocessors.
    let cluster = cut.blocks * cut.row_neighbours;
    let units = f64::from(m.n_units) * (GROUP / cluster).floor() * cluster / GROUP;
    let (mut memory, mut l2, mut flops, mut tensor, mut shared, mut decode, mut outputs, mut tiles) =
        (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0);
    let segments = c.segments.iter().filter(|s| on.with_shared || matches!(s.groups, Groups::ByExpert { .. }));
    for s in segments {
        let out = program.buffer(s.out);
        let (experts, tokens, p) = match (s.groups, out.rows) {
            (Groups::ByExpert { .. }, Dim::PerToken(k)) => {
                let e = program.buffer(s.panels[0].weights).batch;
                (e as f64, n_tokens, k as f64 / e as f64)
            }
            _ => (1.0, out.rows.at(n_tokens), 1.0),
        };
        let touched = experts * expect(tokens, p, |x| f64::from(x > 0.0));
        let row_clusters = experts * expect(tokens, p, |x| (x / (cut.tile_rows * cut.row_neighbours)).ceil());
        let row_tiles = row_clusters * cut.row_neighbours;
        let issued_rows = experts * expect(tokens, p, |x| cut.issued(x));
        let rows = experts * tokens as f64 * p;
        let (cols, k) = (out.cols as f64, values(program, s));
        let col_tiles = (cols / cut.tile_cols).ceil();
        let panels = s.panels.len() as f64;
        let weights: f64 = s
            .panels
            .iter()
            .flat_map(|p| [Some(p.weights), p.quant.as_ref().map(|q| q.scales)])
            .flatten()
            .map(|b| bytes(program, b, n_tokens) / experts)
            .sum();
        let row_bytes = bytes(program, s.a, n_tokens) / program.buffer(s.a).rows.at(n_tokens).max(1) as f64;
        // Rows of several experts are read once from memory.
        let read_rows = if matches!(s.a_rows, RowMap::Gather(_)) { n_tokens as f64 } else { rows };
        let result = rows * cols * out.dtype.bytes() as f64;
        memory += touched * weights + read_rows * row_bytes + result;
        l2 += row_clusters * weights + rows * col_tiles * row_bytes + result;
        let element = element(s);
        let products = 2.0 * issued_rows * ceil_to(cols, cut.tile_cols) * k * panels;
        flops += products;
        let reached = if engine == Engine::Portable { on.mma_sync_share() } else { 1.0 };
        tensor += products / (element.rate(m) * TENSOR_SHARE * reached);
        if cut.cols_at_once > 0.0 {
            // 32 bytes along k of the columns and of the rows, for each instruction: a pair reads rows once for both blocks.
            let instructions = col_tiles * panels * k * element.bytes() / 32.0;
            let times = cut.tile_cols / cut.cols_at_once;
            // What becomes floats in registers is read once, as codes.
            let in_registers =
                engine == Engine::Hopper && s.a_quant.is_none() && s.panels.iter().any(|p| p.quant.is_some());
            let columns = if in_registers { 0.0 } else { cut.tile_cols * row_tiles };
            let read = instructions * 32.0 * (columns + issued_rows * times);
            shared += read / (SHARED_BYTES_PER_CYCLE * CLOCK * units);
            // And once written.
            shared += (row_tiles * weights + rows * col_tiles * row_bytes) / (SHARED_BYTES_PER_CYCLE * CLOCK * units);
        }
        if let (None, Some(q)) = (&s.a_quant, s.panels.iter().find_map(|p| p.quant.as_ref())) {
            let codes = row_tiles * ceil_to(cols, cut.tile_cols) * k * panels;
            decode += codes * decode_instructions(q.format.code) / (LANES_PER_CYCLE * CLOCK * units);
        }
        outputs += rows * cols;
        tiles += row_tiles * col_tiles * cut.blocks;
    }
    // A block for each part of k.
    let blocks = if kernel.schedule.team == Team::SplitK { tiles * f64::from(kernel.schedule.k_parts) } else { tiles };
    let parts = vec![
        ("memory", memory / (m.memory_bytes_per_s * MEMORY_SHARE)),
        ("L2", l2 / (m.memory_bytes_per_s * on.l2)),
        ("tensor cores", tensor),
        ("shared memory", shared),
        ("decoding", decode),
        ("epilogue", outputs * EPILOGUE_INSTRUCTIONS / (LANES_PER_CYCLE * CLOCK * units)),
    ];
    // Fewer tiles than multiprocessors: memory serves half of them as fast as all (a guess).
    let full = blocks / units;
    let waves = if full >= 1.0 { full.ceil() / full } else { (0.5 / full.max(0.05)).max(1.0) };
    KernelTime { name: kernel.name.clone(), bytes: memory, issued_flops: flops, tiles, parts, waves }
}

/// Elements along K.
fn values(program: &Program, s: &Segment) -> f64 {
    let a = program.buffer(s.a);
    match &s.a_quant {
        Some(q) => q.cols as f64,
        None => a.cols as f64,
    }
}

/// What tensor cores multiply.
#[derive(Clone, Copy)]
enum Element {
    Half,
    Fp8,
    Fp4,
}

impl Element {
    fn rate(self, m: &Machine) -> f64 {
        match self {
            Element::Half => m.bf16_flops,
            Element::Fp8 => m.fp8_flops,
            Element::Fp4 => m.fp4_flops,
        }
    }

    fn bytes(self) -> f64 {
        match self {
            Element::Half => 2.0,
            Element::Fp8 => 1.0,
            Element::Fp4 => 0.5,
        }
    }
}

fn element(s: &Segment) -> Element {
    let four_bits = |code: Option<Code>| code == Some(Code::E2M1);
    match &s.a_quant {
        None => Element::Half,
        Some(a)
            if four_bits(Some(a.q.code))
                && s.panels.iter().all(|p| four_bits(p.quant.as_ref().map(|q| q.format.code))) =>
        {
            Element::Fp4
        }
        Some(_) => Element::Fp8,
    }
}

#[derive(Clone, Copy)]
struct On<'m> {
    machine: &'m Machine,
    /// What programs are compiled for.
    target: &'m Target,
    /// Bytes per second of the L2 over those of memory.
    l2: f64,
    /// Whether dense segments beside the experts count.
    with_shared: bool,
}

impl<'m> On<'m> {
    fn new(machine: &'m Machine, target: &'m Target) -> On<'m> {
        On { machine, target, l2: L2_OVER_MEMORY, with_shared: true }
    }

    /// Part of the tensor cores' rate that `mma.sync` reaches: chips with `wgmma` have other instructions for all of it.
    fn mma_sync_share(&self) -> f64 {
        if matches!(self.target.kind, TargetKind::Gpu { capability: 90, .. }) { MMA_SYNC_SHARE } else { 1.0 }
    }

    fn engine_of(&self, program: &Program, c: &Contract) -> Engine {
        Engine::of(self.target, program, c).unwrap_or(Engine::Portable)
    }
}

/// The launches of a program.
fn launches(program: &Program, on: &On<'_>, n_tokens: u64) -> Vec<KernelTime> {
    let m = on.machine;
    let one = |k: &Kernel| match &k.body {
        Body::Contract(c) => contraction(program, k, c, on, n_tokens),
        Body::Rows(_) | Body::Plan(_) | Body::Map(_) | Body::Combine(_) | Body::Quantise(_) => {
            let bytes: f64 = k.body.operands().iter().map(|(b, _)| bytes(program, *b, n_tokens)).sum();
            let parts = vec![("memory", bytes / (m.memory_bytes_per_s * MEMORY_SHARE))];
            KernelTime { name: k.name.clone(), bytes, issued_flops: 0.0, tiles: 0.0, parts, waves: 1.0 }
        }
    };
    // Launches that serve the shared expert alone.
    let counts = |k: &&Kernel| on.with_shared || !k.name.starts_with("shared");
    program.kernels.iter().filter(counts).map(one).collect()
}

fn products(program: &Program) -> impl Iterator<Item = &Kernel> {
    program.kernels.iter().filter(|k| matches!(k.body, Body::Contract(_)))
}

fn total(launches: &[KernelTime], m: &Machine) -> f64 {
    launches.iter().map(|l| l.seconds() + m.launch_s).sum()
}

/// The times of a layer that is bound by memory, and what its bytes take at the published bandwidth, in seconds.
pub fn floor_check() -> (f64, f64) {
    let target = Target::by_name("b200").expect("a target");
    let case = &cases()[0];
    let variants = compile(case, target);
    let on = On { with_shared: false, ..On::new(&target.machine, target) };
    let l = launches(variant(&variants, 1), &on, 1);
    // 8 experts, three matrices, 4 bits and a scale of 8 for each 16.
    let weights = 8.0 * 3.0 * 7168.0 * 2048.0 * 0.5625;
    (total(&l, on.machine), weights / target.machine.memory_bytes_per_s)
}
