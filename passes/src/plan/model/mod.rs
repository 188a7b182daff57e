//! The time that a program takes on a chip: the one model that schedules, token ranges, `moec explain` and
//! `docs/time-model.md` ask.
//!
//! A launch takes as long as the resource that is busy longest, times what its last wave of tiles wastes, plus the time to
//! fill and drain it. Work is counted from what programs and their schedules say; rates are those of `chips.json`. Time on
//! the CPU is not modelled: there is one program for all token counts.

mod calibrate;
mod chip;
mod contraction;
mod fabric;
mod routing;

pub use calibrate::{Calibration, Figures, Fitted, Measured, Residual, Work, fit};
pub use chip::{Assumptions, Chip, assumptions, sources};
pub use fabric::{CodedRows, Fabric, FabricLoad};
pub use routing::{Load, Routing, Share};

use moec_ir::engine::{MmaType, plan, rows};
use moec_ir::target::{Features, Target, TargetKind};
use moec_ir::tile::{Body, BufferId, Kernel, Plan, Program, RowOpKind, RowProgram, Schedule};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

/// What a launch may wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Resource {
    /// Bytes from and to memory, each once.
    Memory,
    /// Bytes that are asked for at a time, over the time that one takes to come.
    Latency,
    /// Bytes from and to the L2.
    L2,
    /// Flops of the instructions, padding included.
    TensorCores,
    /// Bytes read and written in shared memory.
    SharedMemory,
    /// Codes that become operands, and their sums that are scaled.
    Decoding,
    /// Elements of results.
    Epilogue,
}

impl Resource {
    /// Every resource.
    pub const ALL: [Resource; 7] = [
        Resource::Memory,
        Resource::Latency,
        Resource::L2,
        Resource::TensorCores,
        Resource::SharedMemory,
        Resource::Decoding,
        Resource::Epilogue,
    ];

    /// Its name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Resource::Memory => "memory",
            Resource::Latency => "latency",
            Resource::L2 => "L2",
            Resource::TensorCores => "tensor cores",
            Resource::SharedMemory => "shared memory",
            Resource::Decoding => "decoding",
            Resource::Epilogue => "epilogue",
        }
    }
}

/// The time of one launch, by what could take it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Launch {
    /// Bytes from and to memory, each once.
    pub bytes: f64,
    /// Flops of the tensor cores' instructions, padding included.
    pub issued_flops: f64,
    /// Tiles.
    pub tiles: f64,
    /// Time of all waves of tiles over that of whole ones, for what each multiprocessor has of its own.
    pub waves: f64,
    /// The same for memory and the L2, which half of the multiprocessors take as fast as all: the last wave is as long as its
    /// bytes, or half as long as a whole one.
    pub shared_waves: f64,
    /// What follows when all tiles are done, in seconds: slots are put in expert order.
    pub tail: f64,
    /// To fill and drain it, in seconds.
    pub fill: f64,
    parts: [f64; Resource::ALL.len()],
}

impl Launch {
    /// Time at full rate of a resource, in seconds.
    pub fn part(&self, resource: Resource) -> f64 {
        self.parts[resource as usize]
    }

    /// Time of a resource with what waves of tiles waste, in seconds.
    fn time_of(&self, resource: Resource) -> f64 {
        let waves = match resource {
            Resource::Memory | Resource::L2 => self.shared_waves,
            Resource::Latency
            | Resource::TensorCores
            | Resource::SharedMemory
            | Resource::Decoding
            | Resource::Epilogue => self.waves,
        };
        self.part(resource) * waves.max(1.0)
    }

    /// The resource that takes longest.
    pub fn bound(&self) -> Resource {
        let longer = |a: Resource, b: Resource| if self.time_of(b) > self.time_of(a) { b } else { a };
        Resource::ALL.into_iter().reduce(longer).unwrap_or(Resource::Memory)
    }

    /// Without the launch itself, in seconds.
    pub fn seconds(&self) -> f64 {
        self.time_of(self.bound()) + self.tail + self.fill
    }

    fn add(&mut self, resource: Resource, seconds: f64) {
        self.parts[resource as usize] += seconds;
    }
}

/// Experts, how many of them a token chooses, and tokens.
type Routed = (Share, u64, u64);

/// The rows of experts.
type Loads = BTreeMap<Routed, Rc<Load>>;

/// A chip, what is compiled for it, and how tokens choose experts.
pub struct Model<'a> {
    /// The chip.
    pub chip: &'a Chip,
    /// What it assumes of all chips.
    pub assumptions: &'a Assumptions,
    /// What programs are compiled for.
    pub target: &'a Target,
    /// How tokens choose experts.
    pub routing: Routing,
    /// Whether products for all tokens, such as those of shared experts, count.
    pub with_shared: bool,
    loads: RefCell<Loads>,
    /// What products of them need, by how they are cut: many schedules and kernels cut alike.
    work: RefCell<BTreeMap<(Routed, contraction::Rows), contraction::Work>>,
}

impl<'a> Model<'a> {
    /// Of a chip that runs programs of `target`, with uniform routing.
    pub fn new(chip: &'a Chip, target: &'a Target) -> Model<'a> {
        Model {
            chip,
            assumptions: assumptions(),
            target,
            routing: Routing::Uniform,
            with_shared: true,
            loads: RefCell::default(),
            work: RefCell::default(),
        }
    }

    /// Of the chip that stands behind a GPU target; `None` for the CPU.
    pub fn of(target: &'a Target) -> Option<Model<'a>> {
        Some(Model::new(Chip::of(target)?, target))
    }

    /// The same with another routing.
    pub fn with_routing(self, routing: Routing) -> Model<'a> {
        Model { routing, loads: RefCell::default(), work: RefCell::default(), ..self }
    }

    /// The same with other assumptions.
    pub fn with_assumptions(self, assumptions: &'a Assumptions) -> Model<'a> {
        Model { assumptions, ..self }
    }

    /// The same without products for all tokens.
    pub fn without_shared(self) -> Model<'a> {
        Model { with_shared: false, ..self }
    }

    /// The time of a layer, in seconds: launches follow each other at the chip's launch time.
    pub fn seconds(&self, program: &Program, n_tokens: u64) -> f64 {
        program.kernels.iter().map(|k| self.kernel(program, k, &k.schedule, n_tokens)).sum()
    }

    /// The launches of a program, those for shared experts alone only where they count.
    pub fn launches<'p>(&self, program: &'p Program, n_tokens: u64) -> Vec<(&'p Kernel, Launch)> {
        let counts = |k: &&Kernel| self.with_shared || !k.name.starts_with("shared");
        let launch = |k: &'p Kernel| (k, self.launch(program, &k.body, &k.schedule, n_tokens));
        program.kernels.iter().filter(counts).map(launch).collect()
    }

    /// The time of a kernel if it had the schedule `s`, with its launch, in seconds.
    pub fn kernel(&self, program: &Program, kernel: &Kernel, s: &Schedule, n_tokens: u64) -> f64 {
        self.launch(program, &kernel.body, s, n_tokens).seconds() + self.chip.launch_s
    }

    fn launch(&self, program: &Program, body: &Body, s: &Schedule, n_tokens: u64) -> Launch {
        let launch = match body {
            Body::Contract(c) => contraction::launch(self, program, c, s, n_tokens),
            Body::Rows(r) => self.rows(program, (body, r), s, n_tokens),
            Body::Plan(p) => {
                let tail = self.order(program, p, (s.order_ctas, s.warps), n_tokens);
                Launch { tail, ..self.moved(program, body, n_tokens) }
            }
            Body::Map(_) | Body::Combine(_) | Body::Quantise(_) => self.moved(program, body, n_tokens),
        };
        Launch { fill: self.assumptions.fill_s, ..launch }
    }

    /// A launch that reads and writes its operands once.
    fn moved(&self, program: &Program, body: &Body, n_tokens: u64) -> Launch {
        let mut l = Launch {
            bytes: body.operands().iter().map(|(b, _)| bytes(program, *b, n_tokens)).sum(),
            ..Launch::default()
        };
        l.add(Resource::Memory, l.bytes / (self.chip.memory_bytes_per_s * self.assumptions.memory_share));
        l
    }

    /// A router: its rows are read by each CTA that shares the columns, its weights by all of those together, and again for each
    /// block of rows that is multiplied together. Logits that go through the L2 are stored, counted, and read by the last.
    fn rows(&self, program: &Program, (body, r): (&Body, &RowProgram), s: &Schedule, n_tokens: u64) -> Launch {
        let (chip, a) = (self.chip, self.assumptions);
        let mut l = self.moved(program, body, n_tokens);
        let features: Features = self.target.features();
        let g = rows::Geometry::of(program, r, s, features);
        let n_rows = r.rows.at(n_tokens) as f64;
        let clusters = (n_rows / f64::from(s.tile_m)).ceil();
        let ctas = f64::from(g.ctas * g.logit_ctas);
        let mut trips = 0.0;
        for op in &r.ops {
            let RowOpKind::Linear { x, w, .. } = &op.kind else { continue };
            let way = rows::Way::of(program, *x, *w);
            let at_once = f64::from(g.rows_at_once(way));
            let blocks = clusters * (f64::from(s.tile_m).min(n_rows.max(1.0)) / at_once).ceil();
            let cols_at_once = match way {
                rows::Way::Mma(_) => ctas * f64::from(g.cols),
                rows::Way::Fma => op.width as f64,
            };
            let passes = ctas * (op.width as f64 / cols_at_once).ceil();
            let l2 = blocks * bytes(program, *w, n_tokens) + passes * bytes(program, *x, n_tokens);
            l.add(Resource::L2, l2 / chip.l2_bytes_per_s);
            let flops = 2.0 * blocks * at_once * (op.width * program.buffer(*x).cols) as f64;
            l.issued_flops += flops;
            let rate = match way {
                rows::Way::Mma(MmaType::Bf16 | MmaType::F16) => {
                    chip.bf16_flops * a.tensor_share * if self.has_wgmma() { a.mma_sync_share } else { 1.0 }
                }
                rows::Way::Fma => chip.f32_flops * a.tensor_share,
            };
            l.add(Resource::TensorCores, flops / rate);
            // A warp asks for some steps along its part of k at a time.
            if let rows::Way::Mma(_) = way {
                let steps = (program.buffer(*x).cols as f64 / f64::from(32 * g.warps)).ceil();
                let at_once = rows::Geometry::steps_at_once(g.rows_at_once(way), g.fragments(op.width as u32));
                trips += blocks / clusters * passes / ctas * (steps / f64::from(at_once)).ceil();
            }
        }
        l.tiles = clusters * ctas;
        let full = l.tiles / chip.n_units;
        // Fewer CTAs than multiprocessors wait for memory, which half of them take as fast as all (a guess).
        l.waves = if full >= 1.0 { 1.0 } else { (0.5 / full.max(0.05)).max(1.0) };
        l.shared_waves = l.waves;
        // Two CTAs of a multiprocessor wait at the same time (a guess); few CTAs wait no longer than many.
        l.add(Resource::Latency, trips * a.latency_s * (full / 2.0).max(1.0) / l.waves);
        if r.logits.is_some() {
            // What is stored, how much of it, and the logits.
            l.tail += 3.0 * a.l2_latency_s;
        }
        if let Some(p) = &r.plan {
            l.tail += self.order(program, &p.plan, (s.order_ctas, s.warps), n_tokens);
        }
        l
    }

    /// So many CTAs with so many warps put slots in expert order, in seconds: a CTA issues its instructions, each warp waits for
    /// what it reads, and CTAs tell each other what they have counted.
    fn order(&self, program: &Program, p: &Plan, (ctas, warps): (u32, u32), n_tokens: u64) -> f64 {
        let TargetKind::Gpu { smem_bytes, .. } = self.target.kind else { return 0.0 };
        let cut = plan::Geometry::of(p, (ctas, warps), smem_bytes);
        let ids = program.buffer(p.ids);
        let batches = (ids.rows.at(n_tokens) * ids.cols).div_ceil(32);
        let of_warp = batches.div_ceil(u64::from(cut.ctas * cut.warps)) as f64;
        let of_cta = of_warp * f64::from(cut.warps).min(batches as f64);
        let a = self.assumptions;
        let issued = of_cta * a.order_instructions / (a.lanes_per_cycle / 32.0);
        let waited = of_warp * a.order_cycles;
        let exchange = if cut.ctas > 1 { a.order_exchange_s } else { 0.0 };
        issued.max(waited) / self.chip.clock_hz + exchange
    }

    /// Whether the chip has `wgmma`, beside which `mma.sync` is slow.
    fn has_wgmma(&self) -> bool {
        matches!(self.target.kind, TargetKind::Gpu { capability: 90, .. })
    }

    fn load(&self, routed: Routed) -> Rc<Load> {
        let mut loads = self.loads.borrow_mut();
        let new = || Rc::new(Load::new(&self.routing, routed.0, routed.1, routed.2));
        loads.entry(routed).or_insert_with(new).clone()
    }
}

/// Bytes of a buffer without padding.
fn bytes(program: &Program, id: BufferId, n_tokens: u64) -> f64 {
    let b = program.buffer(id);
    (b.batch * b.rows.at(n_tokens) * b.cols) as f64 * b.dtype.bytes() as f64
}
