//! A model of the time that a layer takes on machines that nobody here has: `docs/time-model.md`.
//!
//! It counts what the programs and their schedules say (bytes, tiles, instructions), and divides by rates of the machine.
//! Everything else is an assumption with a name, a value and a source, below.

use moec_frontend::{LayerOptions, ModelConfig};
use moec_ir::engine::{Engine, hopper};
use moec_ir::graph::{Graph, quantise_activations};
use moec_ir::quant::Code;
use moec_ir::target::{GB200, Machine, RUBIN, Target, TargetKind};
use moec_ir::tile::{Body, BufferId, Contract, Groups, Kernel, Program, RowMap, ScaledProduct, Segment, Team};
use moec_ir::{ActQuant, Dim};
use moec_passes::{CompileOptions, Variant};
use serde_json::{Value, json};
use std::fmt::Write;

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
/// Part of the tensor-core rate of sm_90 that `mma.sync` reaches; `wgmma` reaches all of it. Source: Luo et al., Benchmarking and
/// Dissecting the Nvidia Hopper GPU Architecture via Microbenchmarking (2024), 62 to 65 % for dense 16-bit products.
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
            let steps = hopper::row_steps(asked).into_iter().map(f64::from).collect();
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
        let in_series =
            if on.target.machine.chip.starts_with("H200") && engine == Engine::Portable { MMA_SYNC_SHARE } else { 1.0 };
        tensor += products / (element.rate(m) * TENSOR_SHARE * in_series);
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

/// A model, and the format of its activations.
struct Case {
    name: &'static str,
    config: Value,
    activations: Option<&'static str>,
}

fn nvfp4() -> Value {
    let weights = json!({ "num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16, "symmetric": true,
                          "dynamic": false });
    json!({ "quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized", "ignore": ["lm_head"],
            "config_groups": { "group_0": { "targets": ["Linear"], "weights": weights } } })
}

fn with(mut base: Value, more: &Value) -> Value {
    if let (Value::Object(base), Value::Object(more)) = (&mut base, more) {
        base.extend(more.clone());
    }
    base
}

fn cases() -> Vec<Case> {
    let sized = |prefix: &str, sizes: Value| {
        let models = crate::traffic::models();
        let base = models.into_iter().find(|m| m.name.starts_with(prefix)).expect("a model of the table");
        with(base.config, &sizes)
    };
    let v3 = json!({ "hidden_size": 7168, "moe_intermediate_size": 2048, "n_routed_experts": 256, "num_experts_per_tok": 8 });
    let deepseek = sized("DeepSeek", v3.clone());
    let kimi = sized("Kimi", with(v3, &json!({ "n_routed_experts": 384 })));
    let gpt =
        json!({ "hidden_size": 2880, "intermediate_size": 2880, "num_local_experts": 128, "num_experts_per_tok": 4 });
    let gpt = sized("gpt-oss", gpt);
    let qwen =
        json!({ "hidden_size": 4096, "moe_intermediate_size": 1536, "num_experts": 128, "num_experts_per_tok": 8 });
    let qwen = sized("Qwen3", qwen);
    let mixtral = sized("Mixtral", json!({ "hidden_size": 4096, "intermediate_size": 14336 }));
    let in_nvfp4 = |config: &Value| with(config.clone(), &json!({ "quantization_config": nvfp4() }));
    let case = |name, config, activations| Case { name, config, activations };
    vec![
        case("DeepSeek-V3, NVFP4 × NVFP4", in_nvfp4(&deepseek), Some("nvfp4")),
        case("DeepSeek-V3, NVFP4 weights", in_nvfp4(&deepseek), None),
        case("DeepSeek-V3, FP8 × FP8", deepseek.clone(), Some("fp8-block")),
        case("DeepSeek-V3, FP8 weights", deepseek, None),
        case("Kimi K2, NVFP4 × NVFP4", in_nvfp4(&kimi), Some("nvfp4")),
        case("gpt-oss-120b, MXFP4 × MXFP8", gpt.clone(), Some("mxfp8")),
        case("gpt-oss-120b, MXFP4 weights", gpt, None),
        case("Qwen3-235B, NVFP4 × NVFP4", in_nvfp4(&qwen), Some("nvfp4")),
        case("Qwen3-235B, bf16", qwen, None),
        case("Mixtral 8x7B, bf16", mixtral, None),
    ]
}

/// A rank of a tensor-parallel group: width of its part of an expert, and the model.
fn ranks() -> [(u32, Case); 3] {
    let all = cases();
    let of = |name: &str, sizes: Value| {
        let case = all.iter().find(|c| c.name == name).expect("a case");
        Case { name: case.name, config: with(case.config.clone(), &sizes), activations: None }
    };
    [
        (8, of("Mixtral 8x7B, bf16", json!({ "intermediate_size": 14336 / 8 }))),
        (8, of("Qwen3-235B, bf16", json!({ "moe_intermediate_size": 1536 / 8 }))),
        (4, of("gpt-oss-120b, MXFP4 weights", json!({ "intermediate_size": 2880 / 4 }))),
    ]
}

fn graph(case: &Case) -> Graph {
    let config = ModelConfig::from_text(case.name, case.config.to_string()).unwrap_or_else(|d| panic!("{d:?}"));
    let graph = config.layer(None, &LayerOptions::default()).unwrap_or_else(|d| panic!("{d:?}")).graph;
    let format = case.activations.map(|a| ActQuant::from_name(a).expect("a known format"));
    format.map_or(Ok(graph.clone()), |f| quantise_activations(&graph, f)).unwrap_or_else(|d| panic!("{d:?}"))
}

fn variant(variants: &[Variant], n_tokens: u64) -> &Program {
    &variants.iter().find(|v| v.tokens.1 >= n_tokens).expect("a variant for any token count").program
}

/// FlashInfer on B200, DeepSeek-V3 in NVFP4 with all 256 experts, in a CUDA graph: tokens, and milliseconds of the better of
/// its CuTe DSL and trtllm-gen kernels. Source: flashinfer, `docs/design_docs/flashinfer_moe_api.md`.
const FLASHINFER: [(u64, f64); 9] = [
    (1, 0.042),
    (16, 0.365),
    (64, 0.822),
    (128, 0.901),
    (512, 0.942),
    (1024, 1.199),
    (2048, 1.226),
    (4096, 1.624),
    (16384, 3.742),
];

const TOKENS: [u64; 6] = [1, 16, 128, 1024, 4096, 16384];

/// The page.
pub fn page() -> String {
    let b200 = Target::by_name("b200").expect("a target");
    let options = CompileOptions::default();
    let cases = cases();
    let compile = |case: &Case, target: &Target| -> Vec<Variant> {
        moec_passes::compile(&graph(case), target, &options).unwrap_or_else(|d| panic!("{}: {d:?}", case.name))
    };
    let mut out = format!(
        "# A model of the time\n\n\
         **Everything here is modelled, nothing is measured**: nobody has run these kernels on a Blackwell GPU. \
         `MOEC_BLESS=1 cargo test -p moec-tests --test blackwell time` (`cargo xtask time-model`) makes this page from the \
         programs that moec compiles, the chips of `ir/src/target.rs` and the assumptions below (`tests/src/time_model.rs`); the \
         test holds that it is current.\n\n\
         ## The model\n\n\
         A launch takes as long as its slowest resource, times what its last wave of tiles wastes, plus {:.1} µs to fill and \
         drain; launches follow each other at the chip's launch time (programmatic dependent launch is not credited). Tokens \
         choose experts independently and evenly: rows of an expert are binomial.\n\n\
         | resource | work | rate |\n|---|---|---|\n\
         | memory | weights and scales of touched experts, activations in and out, each once | {:.0} % of the published bandwidth |\n\
         | L2 | weights for every row tile, activations for every column tile | {L2_OVER_MEMORY} × the published memory bandwidth: **a guess** |\n\
         | tensor cores | 2·M·N·K of the instructions, rows rounded up to 16 (32 for pairs, 8 on sm_120), columns to tiles | {:.0} % of the published rate |\n\
         | shared memory | both operands for each instruction (sm_100; rows once for both blocks of a pair), each stage written once | 128 bytes a cycle and multiprocessor, {:.2} GHz |\n\
         | decoding | lane instructions for a code that becomes a float, counted in the machine code: {:.1} for FP8, {:.1} for FP4, {:.1} for INT4 | 128 lanes a cycle and multiprocessor |\n\
         | epilogue | {EPILOGUE_INSTRUCTIONS} lane instructions for an element of the result: **a guess** | the same |\n\n",
        FILL_S * 1e6,
        MEMORY_SHARE * 100.0,
        TENSOR_SHARE * 100.0,
        CLOCK / 1e9,
        decode_instructions(Code::E4M3),
        decode_instructions(Code::E2M1),
        decode_instructions(Code::Int4),
    );
    out += "What it cannot know: latencies of barriers and descriptors, how well roles overlap, clocks under load, hit rates of a \
            finite L2 (it assumes that re-read weights always hit), banks and queues of memory, skewed routing, and every \
            mistake that only a machine shows. Figures of one chip are comparable; a prediction may be off by a factor of 1.5.\n\n";
    out += "| chip | memory TB/s | bf16 | FP8 | FP4 Tflop/s | multiprocessors | launch µs |\n|---|--:|--:|--:|--:|--:|--:|\n";
    let chip = |name: &str| Target::by_name(name).expect("a chip").machine;
    let (b300, rtx5090) = (chip("b300"), chip("rtx5090"));
    for m in [&b200.machine, &GB200, &b300, &RUBIN, &rtx5090] {
        let t = |x: f64| format!("{:.0}", x / 1e12);
        writeln!(
            out,
            "| {} | {:.2} | {} | {} | {} | {} | {:.1} |",
            m.chip,
            m.memory_bytes_per_s / 1e12,
            t(m.bf16_flops),
            t(m.fp8_flops),
            t(m.fp4_flops),
            m.n_units,
            m.launch_s * 1e6
        )
        .expect("memory");
    }
    out += "\nRubin's figures are announced ones, and public sources disagree by up to two on what is dense: FP4 and FP8 are those \
            for training, bf16 is half of FP8, multiprocessors and launch time are guesses. It runs the programs of B200 \
            (`sm_100f` assembles for `sm_107`).\n\n";
    out += "## Against published times: DeepSeek-V3 in NVFP4 on B200, all 256 experts, without the shared expert\n\n\
            The published figures are measured, ours are modelled. They are those of FlashInfer's documentation (the better of \
            its CuTe DSL and trtllm-gen kernels, in a CUDA graph).\n\n\
            | tokens | published µs, measured | ours µs, modelled | published ÷ ours | with twice the L2 | bound of gate and up | of down |\n\
            |--:|--:|--:|--:|--:|---|---|\n";
    let v3 = compile(&cases[0], b200);
    let on = On { with_shared: false, ..On::new(&b200.machine, b200) };
    for (n_tokens, ms) in FLASHINFER {
        let l = launches(variant(&v3, n_tokens), &on, n_tokens);
        let ours = total(&l, on.machine) * 1e6;
        let faster = launches(variant(&v3, n_tokens), &On { l2: 2.0 * L2_OVER_MEMORY, ..on }, n_tokens);
        let twice = ms * 1e3 / (total(&faster, on.machine) * 1e6);
        let bounds: Vec<&str> = l.iter().filter(|l| l.issued_flops > 0.0).map(|l| l.bound().0).collect();
        writeln!(
            out,
            "| {n_tokens} | {:.0} | {ours:.0} | {:.2} | {twice:.2} | {} |",
            ms * 1e3,
            ms * 1e3 / ours,
            bounds.join(" | ")
        )
        .expect("memory");
    }
    out += "\nAt 4096 tokens and more the L2 decides, whose rate is a guess: with tiles of 256 columns and 96 or 192 rows each byte \
            that it gives is multiplied too few times. At one token the launches decide: NVFP4 with a scale for each row needs a \
            launch to quantise between the products.\n";
    out += "\n## Pairs of blocks, and multicast\n\n\
            B200, layers in µs, shared experts included. Pairs (`cta_group::2`) bring rows once for 256 columns; they are scheduled \
            where an expert has 64 rows or more. Two pairs of neighbouring rows get their weights by one copy (`.multicast::cluster`); \
            they are scheduled from 128 rows on, but not where FP4 is spread among FP8, which shared memory holds up, nor where codes \
            are decoded, which each block does by itself.\n\n\
            | layer | tokens | one block | pairs | two pairs |\n|---|--:|--:|--:|--:|\n";
    for case in cases.iter().filter(|c| !c.name.starts_with("Kimi")) {
        let variants = compile(case, b200);
        for n_tokens in [1024, 2048, 4096, 16384] {
            let times = teams(variant(&variants, n_tokens), n_tokens).map(|s| format!("{:.0}", s * 1e6));
            writeln!(out, "| {} | {n_tokens} | {} |", case.name, times.join(" | ")).expect("memory");
        }
    }
    out += &format!(
        "\nA pair cannot make higher tiles: two sets of sums fill tensor memory as for one block. Where two panels leave 64 to 128 \
         rows to a tile, weights are what the L2 gives most of. A cluster of four leaves multiprocessors over: of a group of \
         {GROUP:.0} (**a guess**) two, which the model counts.\n"
    );
    out += &hopper_section(&cases);
    out += "\n## Launches of that layer, µs at full rate by resource\n\n\
            | tokens | kernel | MB | useful flops | tiles | waves | memory | L2 | tensor | shared | decoding | epilogue | all |\n\
            |--:|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n";
    for n_tokens in TOKENS {
        for l in launches(variant(&v3, n_tokens), &on, n_tokens) {
            let part = |name: &str| l.parts.iter().find(|(n, _)| *n == name).map_or(0.0, |(_, s)| s * 1e6);
            let names = ["memory", "L2", "tensor cores", "shared memory", "decoding", "epilogue"];
            let parts: Vec<String> = names.iter().map(|n| format!("{:.1}", part(n))).collect();
            let useful = if l.issued_flops > 0.0 {
                let rows = (n_tokens * 8) as f64;
                let panels = if l.name.contains("down") { 1.0 } else { 2.0 };
                format!("{:.2}", 2.0 * rows * panels * 7168.0 * 2048.0 / l.issued_flops)
            } else {
                "—".to_string()
            };
            writeln!(
                out,
                "| {n_tokens} | {} | {:.1} | {useful} | {:.0} | {:.2} | {} | {:.1} |",
                l.name,
                l.bytes / 1e6,
                l.tiles,
                l.waves,
                parts.join(" | "),
                l.seconds() * 1e6
            )
            .expect("memory");
        }
    }
    out += "\n## Tensor-parallel ranks at one token, µs on B200\n\n\
            A rank has a part of each expert, and so few tiles that most multiprocessors would have none. Parts of k give them work \
            (`Schedule::k_parts`); with half of the multiprocessors busy memory counts as saturated (a guess).\n\n\
            | layer | ranks | parts, gate and up | parts, down | blocks | one sum | in parts |\n|---|--:|--:|--:|--:|--:|--:|\n";
    for (n, case) in ranks() {
        let on = On::new(&b200.machine, b200);
        let parts = variant(&compile(&case, b200), 1).clone();
        let mut whole = parts.clone();
        whole.kernels.iter_mut().for_each(|k| (k.schedule.team, k.schedule.k_parts) = (Team::One, 1));
        let k_parts: Vec<u32> = products(&parts).map(|k| k.schedule.k_parts).collect();
        let l = launches(&parts, &on, 1);
        let blocks: Vec<String> = l
            .iter()
            .filter(|l| l.issued_flops > 0.0)
            .zip(&k_parts)
            .map(|(l, p)| format!("{:.0}", l.tiles * f64::from(*p)))
            .collect();
        writeln!(
            out,
            "| {} | {n} | {} | {} | {} | {:.1} | {:.1} |",
            case.name,
            k_parts[0],
            k_parts[1],
            blocks.join(", "),
            total(&launches(&whole, &on, 1), on.machine) * 1e6,
            total(&l, on.machine) * 1e6
        )
        .expect("memory");
    }
    out += "\n## Layers, µs, shared experts included\n\nIn brackets what takes longest in gate and up.\n\n";
    let machines = [
        (&b200.machine, "sm_100f"),
        (&GB200, "sm_100f"),
        (&b300, "sm_103a"),
        (&RUBIN, "sm_100f"),
        (&rtx5090, "sm_120f"),
    ];
    for (machine, target) in machines {
        let target = Target::by_name(target).expect("a target");
        let heads: Vec<String> = TOKENS.iter().map(|t| format!("T = {t}")).collect();
        writeln!(out, "| {} | {} |\n|---|{}", machine.chip, heads.join(" | "), "--:|".repeat(TOKENS.len()))
            .expect("memory");
        let on = On::new(machine, target);
        for case in &cases {
            let variants = compile(case, target);
            let cells: Vec<String> = TOKENS
                .iter()
                .map(|&t| {
                    let l = launches(variant(&variants, t), &on, t);
                    let bound = l.iter().find(|l| l.issued_flops > 0.0).map_or("", |l| l.bound().0);
                    format!("{:.0} ({bound})", total(&l, machine) * 1e6)
                })
                .collect();
            writeln!(out, "| {} | {} |", case.name, cells.join(" | ")).expect("memory");
        }
        out.push('\n');
    }
    out.truncate(out.trim_end().len());
    out.push('\n');
    out
}

/// vLLM's Triton kernels on H100, Mixtral 8x7B of two tensor-parallel ranks in bf16, tuned: tokens and µs. Source: vllm PR #24700.
const VLLM_MIXTRAL: [(u64, f64); 5] = [(1, 144.0), (8, 435.0), (64, 483.0), (256, 537.0), (1024, 834.0)];

/// Hopper: its own engine against the portable one, and against published times.
fn hopper_section(cases: &[Case]) -> String {
    let h200 = Target::by_name("h200").expect("a target");
    let TargetKind::Gpu { ptx_version, capability, smem_bytes, .. } = h200.kind else { return String::new() };
    let kind = TargetKind::Gpu { ptx_version, capability, smem_bytes, engine: Engine::Portable };
    let portable = Target { kind, ..*h200 };
    let h100 = Machine { chip: "H100 SXM", memory_bytes_per_s: 3.35e12, ..h200.machine };
    let compile = |case: &Case, target: &Target| -> Vec<Variant> {
        moec_passes::compile(&graph(case), target, &CompileOptions::default())
            .unwrap_or_else(|d| panic!("{}: {d:?}", case.name))
    };
    let mut out = format!(
        "\n## Hopper\n\nH200, layers in µs, shared experts included: the portable engine (`mma.sync`, {:.0} % of the tensor \
         cores' rate) and Hopper's own (`wgmma`); in brackets what takes longest in gate and up.\n\n\
         | layer | tokens | portable | hopper | portable ÷ hopper | Tflop/s | of the memory's bandwidth |\n|---|--:|--:|--:|--:|--:|--:|\n",
        MMA_SYNC_SHARE * 100.0
    );
    let fits = |c: &&Case| !c.name.contains("NVFP4 ×") && !c.name.contains("MXFP8");
    for case in cases.iter().filter(fits) {
        let all = [&portable, h200].map(|target| (target, compile(case, target)));
        for n_tokens in [1, 64, 1024, 4096, 8192] {
            let times = all.each_ref().map(|(target, variants)| {
                let l = launches(variant(variants, n_tokens), &On::new(&target.machine, target), n_tokens);
                let bound = l.iter().find(|l| l.issued_flops > 0.0).map_or("", |l| l.bound().0);
                let useful = useful_flops(variant(variants, n_tokens), n_tokens);
                (total(&l, &target.machine), bound, useful, l.iter().map(|l| l.bytes).sum::<f64>())
            });
            let [(before, before_bound, ..), (now, bound, flops, bytes)] = times;
            writeln!(
                out,
                "| {} | {n_tokens} | {:.0} ({before_bound}) | {:.0} ({bound}) | {:.2} | {:.0} | {:.0} % |",
                case.name,
                before * 1e6,
                now * 1e6,
                before / now,
                flops / now / 1e12,
                bytes / now / h200.machine.memory_bytes_per_s * 100.0
            )
            .expect("memory");
        }
    }
    out += "\nAgainst published times, measured, of vLLM's tuned Triton kernels on H100 (one of two tensor-parallel ranks of Mixtral 8x7B, \
            bf16): how far off the model is where memory bounds both shows what it forgets.\n\n\
            | tokens | published µs | ours µs, modelled | published ÷ ours |\n|--:|--:|--:|--:|\n";
    let mixtral = cases.iter().find(|c| c.name.starts_with("Mixtral")).expect("a case");
    let half = Case {
        name: mixtral.name,
        config: with(mixtral.config.clone(), &json!({ "intermediate_size": 14336 / 2 })),
        activations: None,
    };
    let variants = compile(&half, h200);
    for (n_tokens, us) in VLLM_MIXTRAL {
        let ours = total(&launches(variant(&variants, n_tokens), &On::new(&h100, h200), n_tokens), &h100) * 1e6;
        writeln!(out, "| {n_tokens} | {us:.0} | {ours:.0} | {:.2} |", us / ours).expect("memory");
    }
    out
}

/// Flops of the matrix products of a layer, without padding.
fn useful_flops(program: &Program, n_tokens: u64) -> f64 {
    let one = |s: &Segment| {
        let rows = program.buffer(s.out).rows.at(n_tokens) as f64;
        2.0 * rows * s.n(program) as f64 * values(program, s) * s.panels.len() as f64
    };
    products(program)
        .filter_map(|k| if let Body::Contract(c) = &k.body { Some(c) } else { None })
        .flat_map(|c| &c.segments)
        .map(one)
        .sum()
}

/// A program whose contractions are made by so many blocks a tile.
fn by(mut program: Program, team: Team) -> Program {
    for kernel in program.kernels.iter_mut().filter(|k| matches!(k.body, Body::Contract(_))) {
        kernel.schedule.team = team;
    }
    program
}

/// Times of a layer on B200, in seconds: tiles by one block, by pairs, and by two pairs that share weights.
fn teams(program: &Program, n_tokens: u64) -> [f64; 3] {
    let b200 = Target::by_name("b200").expect("a target");
    let on = On::new(&b200.machine, b200);
    [Team::One, Team::Pair, Team::TwoPairs]
        .map(|team| total(&launches(&by(program.clone(), team), &on, n_tokens), on.machine))
}

/// Where pairs, or two pairs, are scheduled though fewer blocks would be faster by the model. A variant is one schedule for many
/// token counts: with the fewest of them it may lose up to a tenth, if it gains more than that with more.
pub fn pairs_that_do_not_pay() -> Vec<String> {
    let b200 = Target::by_name("b200").expect("a target");
    let on = On::new(&b200.machine, b200);
    let mut out = Vec::new();
    for case in &cases() {
        let variants =
            moec_passes::compile(&graph(case), b200, &CompileOptions::default()).unwrap_or_else(|d| panic!("{d:?}"));
        for counts in [[256, 512, 1024], [2048, 4096, 16384]] {
            let program = variant(&variants, counts[2]);
            let has = |team| program.kernels.iter().any(|k| k.schedule.team == team);
            if !has(Team::Pair) && !has(Team::TwoPairs) {
                continue;
            }
            let ratios = counts.map(|n_tokens| {
                let [one, pair, _] = teams(program, n_tokens);
                let fewer = if has(Team::TwoPairs) { one.min(pair) } else { one };
                total(&launches(program, &on, n_tokens), on.machine) / fewer
            });
            if ratios.iter().product::<f64>() > 1.01 || ratios.iter().any(|&r| r > 1.1) {
                out.push(format!("{} at {counts:?} tokens takes {ratios:.2?} of the time of fewer blocks", case.name));
            }
        }
    }
    out
}

/// The times of a layer that is bound by memory, and what its bytes take at the published bandwidth, in seconds.
pub fn floor_check() -> (f64, f64) {
    let target = Target::by_name("b200").expect("a target");
    let case = &cases()[0];
    let variants =
        moec_passes::compile(&graph(case), target, &CompileOptions::default()).unwrap_or_else(|d| panic!("{d:?}"));
    let on = On { with_shared: false, ..On::new(&target.machine, target) };
    let l = launches(variant(&variants, 1), &on, 1);
    // 8 experts, three matrices, 4 bits and a scale of 8 for each 16.
    let weights = 8.0 * 3.0 * 7168.0 * 2048.0 * 0.5625;
    (total(&l, on.machine), weights / target.machine.memory_bytes_per_s)
}
