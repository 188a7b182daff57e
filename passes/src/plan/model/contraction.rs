//! The time of matrix products, from how engines cut them.

use super::chip::Assumptions;
use super::routing::{Load, Share};
use super::{Launch, Model, Resource, bytes};
use moec_ir::engine::{self, Engine, portable};
use moec_ir::quant::Code;
use moec_ir::target::TargetKind;
use moec_ir::tile::{
    Body, Combine, Contract, Groups, Panel, Program, RowMap, RowOp, RowOpKind, Schedule, Segment, Team,
};
use moec_ir::{DType, Dim};

/// A contraction, cut.
struct Cut {
    engine: Engine,
    /// Rows of a CTA's tile.
    tile_rows: f64,
    /// Columns of a tile, of all CTAs that make it.
    tile_cols: f64,
    /// Rows of a tile that are multiplied come in these, where there are no steps.
    rows_in: f64,
    /// The rows that a tile's products may have, smallest first.
    row_steps: Vec<f64>,
    /// Columns of an instruction that reads its rows from shared memory; 0 where warps load fragments.
    cols_at_once: f64,
    /// CTAs that make a tile.
    ctas: f64,
    /// CTAs (or pairs) of neighbouring rows that get their weights by one copy.
    neighbours: f64,
    /// CTAs of a multiprocessor.
    resident: f64,
}

impl Cut {
    fn new(model: &Model<'_>, program: &Program, c: &Contract, s: &Schedule) -> Cut {
        let engine = Engine::of(model.target, program, c).unwrap_or(Engine::Portable);
        let smem_bytes = match model.target.kind {
            TargetKind::Gpu { smem_bytes, .. } => smem_bytes,
            TargetKind::Cpu => 0,
        };
        let (tile_rows, tile_cols) = (f64::from(s.tile_m), f64::from(s.tile_n));
        // Warps of these engines multiply all fragments of a tile.
        let plain = Cut {
            engine,
            tile_rows,
            tile_cols,
            rows_in: tile_rows,
            row_steps: Vec::new(),
            cols_at_once: 0.0,
            ctas: 1.0,
            neighbours: 1.0,
            resident: 1.0,
        };
        match engine {
            Engine::Portable | Engine::GeForce => {
                let of_cta = portable::smem_of(program, c, s).max(1);
                // A multiprocessor has 64 K registers; kernels may take 255 for each thread.
                let by_registers = 65536 / (255 * 32 * s.warps).max(1);
                let row_steps = s.heights().map(f64::from).collect();
                Cut { row_steps, resident: f64::from((smem_bytes / of_cta).min(by_registers).max(1)), ..plain }
            }
            Engine::Hopper => {
                let row_steps = engine::hopper::row_steps(s.tile_m).into_iter().map(f64::from).collect();
                let neighbours = if s.team == Team::Neighbours { 2.0 } else { 1.0 };
                Cut { row_steps, cols_at_once: 64.0, neighbours, ..plain }
            }
            Engine::Blackwell => {
                let ctas = if matches!(s.team, Team::Pair | Team::TwoPairs) { 2.0 } else { 1.0 };
                let neighbours = if s.team == Team::TwoPairs { 2.0 } else { 1.0 };
                Cut { rows_in: 16.0 * ctas, cols_at_once: tile_cols, ctas, neighbours, ..plain }
            }
        }
    }

    /// What decides how rows are cut.
    fn rows(&self) -> Rows {
        let least = self.row_steps.first().copied().unwrap_or(0.0);
        (self.engine as u8, [self.tile_rows, self.rows_in, self.neighbours, least].map(|x| x as u32))
    }

    /// Rows of instructions for `rows` rows of an expert.
    fn issued(&self, rows: f64) -> f64 {
        let tile = self.tile_rows * self.neighbours;
        let whole = (rows / tile).floor() * tile;
        // Neighbours share the rest.
        let rest = (rows - whole) / self.neighbours;
        if rest == 0.0 {
            return whole;
        }
        let step = self.row_steps.iter().find(|&&n| n >= rest).copied();
        whole + step.unwrap_or((rest / self.rows_in).ceil() * self.rows_in) * self.neighbours
    }
}

/// What decides how rows are cut: the engine, rows of a tile, those that are multiplied at a time, and neighbours.
pub(super) type Rows = (u8, [u32; 4]);

/// What a segment needs, summed over its experts.
#[derive(Clone, Copy)]
pub(super) struct Work {
    touched: f64,
    /// Tiles of neighbouring rows that share weights.
    row_clusters: f64,
    /// How far their number lies from that.
    spread: f64,
    issued_rows: f64,
    rows: f64,
}

impl Work {
    fn new(cut: &Cut, load: &Load) -> Work {
        let clusters = |x: f64| (x / (cut.tile_rows * cut.neighbours)).ceil();
        Work {
            touched: load.sum(|x| f64::from(x > 0.0)),
            row_clusters: load.sum(clusters),
            spread: load.spread(clusters),
            issued_rows: load.sum(|x| cut.issued(x)),
            rows: load.sum(|x| x),
        }
    }
}

/// A segment's product with a schedule.
struct Product<'p> {
    program: &'p Program,
    segment: &'p Segment,
    work: Work,
    element: Element,
    k: f64,
    cols: f64,
    panels: f64,
    col_tiles: f64,
    /// Tiles along the rows.
    row_tiles: f64,
    /// Bytes of an expert's weights and scales, of a row of activations, and of all results.
    weight_bytes: f64,
    row_bytes: f64,
    result_bytes: f64,
}

impl<'p> Product<'p> {
    fn new(model: &Model<'_>, program: &'p Program, segment: &'p Segment, cut: &Cut, n_tokens: u64) -> Product<'p> {
        let (work, experts) = work(model, program, segment, cut, n_tokens);
        let parts_of = |p: &Panel| [Some(p.weights), p.quant.as_ref().map(|q| q.scales)];
        let weights = segment.panels.iter().flat_map(parts_of).flatten();
        let rows = program.buffer(segment.a).rows.at(n_tokens).max(1) as f64;
        let (cols, out) = (segment.n(program) as f64, program.buffer(segment.out));
        Product {
            program,
            segment,
            element: Element::of(program, segment),
            k: segment.k(program) as f64,
            cols,
            panels: segment.panels.len() as f64,
            col_tiles: (cols / cut.tile_cols).ceil(),
            row_tiles: work.row_clusters * cut.neighbours,
            weight_bytes: weights.map(|b| bytes(program, b, n_tokens) / experts).sum(),
            row_bytes: bytes(program, segment.a, n_tokens) / rows,
            result_bytes: work.rows * out.cols as f64 * out.dtype.bytes() as f64,
            work,
        }
    }

    /// Bytes from and to memory, each once.
    fn memory_bytes(&self, n_tokens: u64) -> f64 {
        // Rows of several experts are read once from memory.
        let rows = if matches!(self.segment.a_rows, RowMap::Gather(_)) { n_tokens as f64 } else { self.work.rows };
        self.work.touched * self.weight_bytes + rows * self.row_bytes + self.result_bytes
    }

    fn l2_bytes(&self) -> f64 {
        let rows = self.work.rows * self.col_tiles * self.row_bytes;
        self.work.row_clusters * self.weight_bytes + rows + self.result_bytes
    }

    fn padded_cols(&self, cut: &Cut) -> f64 {
        self.col_tiles * cut.tile_cols
    }

    /// Flops of the instructions.
    fn flops(&self, cut: &Cut) -> f64 {
        2.0 * self.work.issued_rows * self.padded_cols(cut) * self.k * self.panels * self.times_issued(cut)
    }

    /// How often an element takes part in an instruction: half of those of one that has two groups of scales are zeros.
    fn times_issued(&self, cut: &Cut) -> f64 {
        if is_widened(cut, self.segment) && self.groups() > 4.0 { 2.0 } else { 1.0 }
    }

    /// Groups of weights with one scale in 128 elements along k; 1 where they are larger.
    fn groups(&self) -> f64 {
        let blocks = self.segment.panels.iter().filter_map(|p| p.quant.as_ref()).map(|q| q.format.block_cols);
        blocks.filter(|b| *b > 0).map(|b| 128.0 / b as f64).fold(1.0, f64::max)
    }

    /// Bytes that are read and written in shared memory.
    fn shared_bytes(&self, cut: &Cut, s: &Schedule) -> f64 {
        let read = match cut.cols_at_once {
            0.0 => portable::Geometry::of(self.program, self.segment, s).map_or(0.0, |g| {
                // The fragments of all warps, for each element along k of a tile.
                g.fragment_bytes() * self.k * self.row_tiles * self.col_tiles
            }),
            at_once => {
                // 32 bytes along k of the columns and of the rows, for each instruction: a pair reads rows once for both CTAs.
                let times = cut.tile_cols / at_once;
                let in_registers = is_widened(cut, self.segment) || becomes_floats_in_registers(cut, self.segment);
                let columns = if in_registers { 0.0 } else { cut.tile_cols * self.row_tiles };
                let rows = self.work.issued_rows * times * self.times_issued(cut);
                self.col_tiles * self.panels * self.k * self.element.bytes() * (columns + rows)
            }
        };
        // And each stage is written once.
        read + self.row_tiles * self.weight_bytes + self.work.rows * self.col_tiles * self.row_bytes
    }

    /// Lane instructions of the loop over k: for codes that become operands, and for sums that are scaled.
    fn lane_instructions(&self, cut: &Cut, a: &Assumptions) -> f64 {
        let Some(q) = self.segment.panels.iter().find_map(|p| p.quant.as_ref()) else { return 0.0 };
        let codes = self.row_tiles * self.padded_cols(cut) * self.k * self.panels;
        if self.segment.codes_become_floats() {
            return codes * a.decode_instructions(q.format.code);
        }
        if !is_widened(cut, self.segment) {
            return 0.0;
        }
        let sums = self.work.issued_rows * self.padded_cols(cut) * self.panels * (self.k / 128.0).ceil();
        codes * a.widen_instructions(q.format.code) + sums * (self.groups() + 1.0)
    }

    /// Bytes of weights that a multiprocessor asks for at a time.
    fn in_flight(&self, cut: &Cut, s: &Schedule) -> f64 {
        let of_stage =
            cut.tile_cols / cut.ctas * f64::from(s.tile_k) * self.weight_bytes / (self.cols * self.k).max(1.0);
        f64::from(s.stages) * of_stage * cut.resident
    }
}

/// The launch of a contraction with a schedule that its engine builds.
pub(super) fn launch(model: &Model<'_>, program: &Program, c: &Contract, s: &Schedule, n_tokens: u64) -> Launch {
    let (chip, a) = (model.chip, model.assumptions);
    let cut = Cut::new(model, program, c, s);
    // A cluster lies in one group of multiprocessors.
    let cluster = f64::from(s.blocks());
    let units = chip.n_units * ((a.group / cluster).floor() * cluster / a.group).max(cluster / a.group);
    let shared_rate = a.shared_bytes_per_cycle * chip.clock_hz * units;
    let lane_rate = a.lanes_per_cycle * chip.clock_hz * units;
    let mut l = Launch::default();
    let (mut in_flight, mut spread) = (0.0, 0.0);
    // Tiles, and how far their number lies from that: of segments that others read, and of the rest.
    let mut chained = [[0.0; 2]; 2];
    for (i, segment) in c.segments.iter().enumerate().filter(|(_, s)| model.with_shared || is_grouped(s)) {
        let p = Product::new(model, program, segment, &cut, n_tokens);
        l.bytes += p.memory_bytes(n_tokens);
        l.issued_flops += p.flops(&cut);
        l.add(Resource::L2, p.l2_bytes() / chip.l2_bytes_per_s);
        l.add(Resource::TensorCores, p.flops(&cut) / p.element.rate(model, cut.engine));
        l.add(Resource::SharedMemory, p.shared_bytes(&cut, s) / shared_rate);
        l.add(Resource::Decoding, p.lane_instructions(&cut, a) / lane_rate);
        l.add(Resource::Epilogue, p.work.rows * p.cols * a.epilogue_instructions / lane_rate);
        l.tiles += p.row_tiles * p.col_tiles * cut.ctas;
        in_flight += p.in_flight(&cut, s) * units / c.segments.len() as f64;
        let own = [p.row_tiles * p.col_tiles * cut.ctas, p.work.spread * cut.neighbours * p.col_tiles * cut.ctas];
        spread += own[1];
        let phase = &mut chained[usize::from(c.chain_from(i).is_none())];
        phase.iter_mut().zip(own).for_each(|(sum, x)| *sum += x);
    }
    l.add(Resource::Memory, l.bytes / (chip.memory_bytes_per_s * a.memory_share));
    l.add(Resource::Latency, l.bytes / (in_flight / a.latency_s).max(1.0));
    // A CTA for each part of k.
    let parts = if s.team == Team::SplitK { f64::from(s.k_parts) } else { 1.0 };
    [l.waves, l.shared_waves] = if c.is_chained() {
        // Those that wait are counted as a launch of their own: what they overlap with the others is not known.
        let of = |n: [f64; 2]| waves(n[0], n[1], units, cut.resident).map(|w| w * n[0] / l.tiles.max(1.0));
        let [made, read] = chained.map(of);
        [made[0] + read[0], made[1] + read[1]]
    } else {
        waves(l.tiles * parts, spread * parts, units, cut.resident)
    };
    if c.is_chained() {
        // A number is drawn, behind a fence; results are stored and counted, and the count is read: copies of weights run ahead
        // meanwhile, as far as there are stages.
        l.tail += 5.0 * a.l2_latency_s;
    }
    if let Some(then) = &c.combine {
        l.tail += combine_tail(model, program, &then.combine, (&cut, s), n_tokens);
        let out = bytes(program, then.combine.out, n_tokens);
        l.bytes += out;
        l.add(Resource::Memory, out / (chip.memory_bytes_per_s * a.memory_share));
    }
    l
}

/// Whoever stores the last rows of a run of columns adds up the slots of all tokens there, in seconds. Those wait for the L2, one
/// access after the other: what is stored and how much of it, then for as many tokens as are added up at once the rows of their
/// slots and the values; or for the values of many tokens to come from memory, which a few CTAs ask for.
fn combine_tail(
    model: &Model<'_>,
    program: &Program,
    sum: &Combine,
    (cut, s): (&Cut, &Schedule),
    n_tokens: u64,
) -> f64 {
    let (chip, a) = (model.chip, model.assumptions);
    let vector = f64::from(engine::elementwise::vector(program, (sum.out, None), &[sum.y], &sum.args));
    let (lanes, cols) = match cut.engine {
        Engine::Blackwell => (32.0, 32.0),
        Engine::Hopper => (32.0, 16.0),
        Engine::Portable | Engine::GeForce => (32.0 * f64::from(s.warps), cut.tile_cols),
    };
    let accesses = 2.0 + 2.0 * (n_tokens as f64 * cols / (vector * lanes)).ceil();
    let ctas = program.buffer(sum.out).cols as f64 / cut.tile_cols * cut.ctas;
    // Half of the multiprocessors read as fast as all.
    let rate = chip.memory_bytes_per_s * a.memory_share * (2.0 * ctas / chip.n_units).min(1.0);
    (accesses * a.l2_latency_s).max(bytes(program, sum.y, n_tokens) / rate)
}

/// Time of all waves of CTAs over that of whole ones, on an average over numbers of CTAs that lie so far from the expected one:
/// of what each multiprocessor has of its own, and of what all share.
fn waves(ctas: f64, spread: f64, units: f64, resident: f64) -> [f64; 2] {
    let of = |ctas: f64| {
        let full = ctas / (units * resident);
        // Fewer CTAs than multiprocessors: memory serves half of them as fast as all (a guess).
        if full < 1.0 {
            return [(0.5 / (ctas / units).max(0.05)).max(1.0); 2];
        }
        // So it does in the last wave.
        let rest = full - full.floor();
        let last = if rest > 0.0 { rest.max(0.5 / resident) } else { 0.0 };
        [full.ceil() / full, (full.floor() + last) / full]
    };
    let at = |deviations: f64| of((ctas + deviations * spread).max(1.0));
    if spread == 0.0 {
        return of(ctas);
    }
    let all = [-1.5, -0.75, 0.0, 0.75, 1.5].map(at);
    [0, 1].map(|i| all.iter().map(|w| w[i]).sum::<f64>() / 5.0)
}

fn is_grouped(s: &Segment) -> bool {
    matches!(s.groups, Groups::ByExpert { .. })
}

/// What a segment's rows need, and how many experts it has.
fn work(model: &Model<'_>, program: &Program, s: &Segment, cut: &Cut, n_tokens: u64) -> (Work, f64) {
    match (s.groups, program.buffer(s.out).rows) {
        (Groups::ByExpert { .. }, Dim::PerToken(k)) => {
            let here = program.buffer(s.panels[0].weights).batch;
            let routed = (Share { here, of: chosen_from(program).max(here) }, k, n_tokens);
            let key = (routed, cut.rows());
            let known = model.work.borrow().get(&key).copied();
            let work = known.unwrap_or_else(|| {
                let work = Work::new(cut, &model.load(routed));
                model.work.borrow_mut().insert(key, work);
                work
            });
            (work, here as f64)
        }
        (_, rows) => (Work::new(cut, &Load::dense(rows.at(n_tokens))), 1.0),
    }
}

/// How many experts the router chooses from; 0 where ids are given, or rows of other ranks come.
fn chosen_from(program: &Program) -> u64 {
    let ops = program.kernels.iter().filter_map(|k| if let Body::Rows(r) = &k.body { Some(&r.ops) } else { None });
    let of = |ops: &Vec<RowOp>, op: &RowOp| match op.kind {
        RowOpKind::TopK(scores) => ops.get(scores.0 as usize).map(|x| x.width),
        _ => None,
    };
    ops.flat_map(|ops| ops.iter().filter_map(move |op| of(ops, op))).max().unwrap_or(0)
}

/// Whether weights are read from shared memory as codes, once, and multiplied from registers.
fn becomes_floats_in_registers(cut: &Cut, s: &Segment) -> bool {
    cut.engine == Engine::Hopper && s.codes_become_floats()
}

/// Whether 4-bit codes become FP8 in registers.
fn is_widened(cut: &Cut, s: &Segment) -> bool {
    cut.engine == Engine::Hopper && engine::hopper::is_widened(s)
}

/// What is multiplied.
#[derive(Clone, Copy)]
enum Element {
    Single,
    Half,
    Fp8,
    Fp4,
}

impl Element {
    fn of(program: &Program, s: &Segment) -> Element {
        let four_bits = |code: Option<Code>| code == Some(Code::E2M1);
        match &s.a_quant {
            None if program.buffer(s.a).dtype == DType::F32 => Element::Single,
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

    /// Flops per second that products reach.
    fn rate(self, model: &Model<'_>, engine: Engine) -> f64 {
        let (chip, a) = (model.chip, model.assumptions);
        let published = match self {
            Element::Single => chip.f32_flops,
            Element::Half => chip.bf16_flops,
            Element::Fp8 => chip.fp8_flops,
            Element::Fp4 => chip.fp4_flops,
        };
        let reached = if engine == Engine::Portable && model.has_wgmma() { a.mma_sync_share } else { 1.0 };
        published.max(1.0) * a.tensor_share * reached
    }

    fn bytes(self) -> f64 {
        match self {
            Element::Single => 4.0,
            Element::Half => 2.0,
            Element::Fp8 => 1.0,
            Element::Fp4 => 0.5,
        }
    }
}
