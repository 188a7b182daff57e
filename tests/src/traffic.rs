//! What layers with the proportions of well-known models move and multiply in the emulator, against the least possible.
//!
//! H and I are those of the model divided by 4 to 16, so that a run takes a second: their ratio stays, as far as whole tiles
//! and blocks of scales allow. Tokens are to be divided likewise: bytes of activations grow with the size, those of weights
//! with its square, so that 4 tokens here stand for some 50 of the model, and 256 for some 3000.
//!
//! **The least of a launch** is each operand once, without padding: of weights, scales and biases of routed experts the share
//! of the experts that some token chose; of all else everything. **What a launch moves** is the 32-byte sectors that it
//! touches, each once for reading and once for writing, which is what memory gives and takes when the L2 holds what several
//! blocks read; and, in a second figure, sectors as often as they are asked for, which is the traffic without any cache.

use moec::{CompileRequest, Device, Session, Weights};
use moec_frontend::{LayerOptions, ModelConfig};
use moec_ir::diag::Diagnostic;
use moec_ir::graph::quantise_activations;
use moec_ir::target::Target;
use moec_ir::tile::{Body, BufferId, Groups, Kernel, Program};
use moec_ir::{ActQuant, DType, Tensor};
use moec_ptx::exec::{Checks, Counters, Traffic};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// A layer in the proportions of a model.
pub struct Proportions {
    /// The model.
    pub name: &'static str,
    /// Its config, scaled down.
    pub config: Value,
    /// Token counts of decode and of prefill.
    pub tokens: [u64; 2],
}

/// How tokens choose experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Routing {
    /// Independent tokens.
    Independent,
    /// Tokens that are alike, so that a few experts get most of them.
    Alike,
}

fn merge(mut base: Value, more: Value) -> Value {
    if let (Value::Object(base), Value::Object(more)) = (&mut base, more) {
        base.extend(more);
    }
    base
}

/// DeepSeek-V3, Kimi K2, gpt-oss-120b, Qwen3-235B and Mixtral 8x7B.
pub fn models() -> Vec<Proportions> {
    let deepseek = json!({
        "model_type": "deepseek_v3", "hidden_size": 512, "moe_intermediate_size": 128, "intermediate_size": 1024,
        "n_routed_experts": 32, "num_experts_per_tok": 2, "n_shared_experts": 1, "n_group": 8, "topk_group": 4,
        "norm_topk_prob": true, "scoring_func": "sigmoid", "topk_method": "noaux_tc", "routed_scaling_factor": 2.5,
        "first_k_dense_replace": 0, "moe_layer_freq": 1, "num_hidden_layers": 1, "hidden_act": "silu",
        "torch_dtype": "bfloat16",
        "quantization_config": { "quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic",
                                 "weight_block_size": [128, 128] },
    });
    let kimi = json!({ "model_type": "kimi_k2", "n_routed_experts": 48, "n_group": 1, "topk_group": 1 });
    let gpt_oss = json!({
        "model_type": "gpt_oss", "hidden_size": 448, "intermediate_size": 448, "num_local_experts": 16,
        "num_experts_per_tok": 2, "num_hidden_layers": 1, "hidden_act": "silu", "swiglu_alpha": 1.702, "swiglu_limit": 7.0,
        "torch_dtype": "bfloat16",
        "quantization_config": { "quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.mlp.router"] },
    });
    let qwen = json!({
        "model_type": "qwen3_moe", "hidden_size": 1024, "moe_intermediate_size": 384, "intermediate_size": 1024,
        "num_experts": 16, "num_experts_per_tok": 2, "norm_topk_prob": true, "num_hidden_layers": 1, "hidden_act": "silu",
        "decoder_sparse_step": 1, "mlp_only_layers": [], "torch_dtype": "bfloat16",
    });
    let mixtral = json!({
        "model_type": "mixtral", "hidden_size": 256, "intermediate_size": 896, "num_local_experts": 8,
        "num_experts_per_tok": 2, "num_hidden_layers": 1, "hidden_act": "silu", "torch_dtype": "bfloat16",
    });
    let model = |name, config, tokens| Proportions { name, config, tokens };
    vec![
        model("DeepSeek-V3, FP8", deepseek.clone(), [4, 320]),
        model("Kimi K2, FP8", merge(deepseek, kimi), [4, 320]),
        model("gpt-oss-120b, MXFP4", gpt_oss, [4, 256]),
        model("Qwen3-235B, bf16", qwen, [4, 256]),
        model("Mixtral 8x7B, bf16", mixtral, [4, 192]),
    ]
}

/// A kernel of a run.
pub struct Launch {
    /// The kernel's name.
    pub name: String,
    /// Whether it multiplies the experts' matrices.
    pub is_contraction: bool,
    /// Everything that was counted.
    pub counters: Counters,
    /// What it moved.
    pub buffers: Vec<Moved>,
    /// Its text.
    pub ptx: String,
}

impl Launch {
    /// Passes over shared memory beyond the least, by line of the PTX.
    pub fn conflicts(&self) -> Vec<(u32, u64)> {
        let extra = self.counters.banks.iter().map(|(line, b)| (*line, b.passes - b.ideal_passes));
        extra.filter(|(_, n)| *n > 0).collect()
    }

    /// The lines of innermost loops that hold a product of matrices: from a label to the last branch back to it.
    pub fn product_loops(&self) -> Vec<std::ops::RangeInclusive<u32>> {
        let lines: Vec<&str> = self.ptx.lines().map(str::trim).collect();
        // Behind a label there may be a comment.
        let label = |l: &str| l.split_once(':').map(|l| l.0).filter(|l| l.starts_with('$')).map(str::to_string);
        let labels: BTreeMap<String, usize> =
            lines.iter().enumerate().filter_map(|(i, l)| Some((label(l)?, i))).collect();
        let back = lines.iter().enumerate().filter_map(|(i, l)| {
            let target = l.split_once("bra")?.1.trim_start_matches(".uni").trim().trim_end_matches(';');
            labels.get(target).filter(|&&at| at < i).map(|&at| (at, i))
        });
        let mut loops: Vec<(usize, usize)> = back.collect();
        loops.retain(|&(from, to)| lines[from..=to].iter().any(|l| l.contains("mma.")));
        let inner =
            |&&(from, to): &&(usize, usize)| !loops.iter().any(|&(f, t)| (f, t) != (from, to) && from <= f && t <= to);
        loops.iter().filter(inner).map(|&(from, to)| from as u32 + 1..=to as u32 + 1).collect()
    }
}

/// A buffer of a launch.
pub struct Moved {
    /// Its name.
    pub name: String,
    /// What it is for.
    pub kind: Kind,
    /// Bytes of it that any program would have to move.
    pub least: u64,
    /// Sectors.
    pub traffic: Traffic,
}

/// What a buffer of a launch is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Weights, scales, biases.
    Weights,
    /// Inputs and outputs of the layer.
    Outside,
    /// Intermediates.
    Between,
    /// What CTAs count for each other.
    Counters,
}

/// A run.
pub struct Measured {
    /// Its launches.
    pub launches: Vec<Launch>,
    /// Experts that some token chose, of how many.
    pub touched: (u64, u64),
    /// Rows of the expert that has most, over the mean of all experts.
    pub busiest: f64,
    /// Flops that the experts' products need: 2·K·N for each row, panel and product.
    pub useful_flops: u64,
    /// Flops of the tensor-core instructions.
    pub issued_flops: u64,
}

impl Measured {
    /// Bytes that all launches move through sectors touched once, over their least.
    pub fn over_launches(&self) -> f64 {
        let (moved, least) = self.sum(|_| true);
        moved as f64 / least as f64
    }

    /// The same bytes, over the least of the layer as a whole: weights, input and output, nothing between launches.
    pub fn over_layer(&self) -> f64 {
        let (moved, _) = self.sum(|_| true);
        let mut seen = BTreeSet::new();
        let all = self.launches.iter().flat_map(|l| &l.buffers);
        let least: u64 = all.filter(|b| b.kind != Kind::Between && seen.insert(&b.name)).map(|b| b.least).sum();
        moved as f64 / least as f64
    }

    /// Bytes of weights asked for, with no cache at all, over the weights of the touched experts.
    pub fn weights_asked(&self) -> f64 {
        self.asked(|b| b.kind == Kind::Weights && !b.name.contains("scale") && !b.name.contains("bias"))
    }

    /// Bytes of all else that contractions ask for, over its least.
    pub fn activations_asked(&self) -> f64 {
        self.asked(|b| matches!(b.kind, Kind::Outside | Kind::Between))
    }

    fn asked(&self, which: impl Fn(&Moved) -> bool) -> f64 {
        let contractions = self.launches.iter().filter(|l| l.is_contraction);
        let of = contractions.flat_map(|l| &l.buffers).filter(|b| which(b));
        let (asked, least) = of.fold((0, 0), |(asked, least), b| {
            (asked + b.traffic.loads.asked_bytes + b.traffic.stores.asked_bytes, least + b.least)
        });
        asked as f64 / least as f64
    }

    fn sum(&self, which: impl Fn(&Moved) -> bool) -> (u64, u64) {
        let of = self.launches.iter().flat_map(|l| &l.buffers).filter(|b| which(b));
        of.fold((0, 0), |(moved, least), b| {
            (moved + b.traffic.loads.once_bytes + b.traffic.stores.once_bytes, least + b.least)
        })
    }

    /// Useful over issued flops.
    pub fn useful(&self) -> f64 {
        self.useful_flops as f64 / self.issued_flops as f64
    }
}

/// A compiled layer.
pub struct Ready {
    graph: moec_ir::graph::Graph,
    compiled: moec::Compiled,
    target: &'static Target,
}

/// Compiles a layer.
///
/// # Panics
/// When it does not compile.
pub fn compile(model: &Proportions, target: &str) -> Ready {
    compile_with(model, target, None).unwrap_or_else(|d| panic!("{}: {d:?}", model.name))
}

/// Compiles a layer whose activations are rounded to a format, when there is one.
///
/// # Errors
/// Those of the compiler: what the target has no kernel for.
pub fn compile_with(model: &Proportions, target: &str, format: Option<ActQuant>) -> Result<Ready, Diagnostic> {
    let config = ModelConfig::from_text(model.name, model.config.to_string()).unwrap_or_else(|d| panic!("{d:?}"));
    let layer = config.layer(None, &LayerOptions::default()).unwrap_or_else(|d| panic!("{d:?}"));
    let graph = format.map_or(Ok(layer.graph.clone()), |f| quantise_activations(&layer.graph, f))?;
    let target = Target::by_name(target).expect("a known target");
    let tokens = (model.tokens[0], model.tokens[1]);
    let request = CompileRequest { tokens, ..CompileRequest::new(&graph, vec![target]) };
    let compiled = moec::compile(&request)?;
    Ok(Ready { graph, compiled, target })
}

impl Ready {
    /// The PTX of all its kernels.
    pub fn texts(&self) -> Vec<String> {
        let variants = self.compiled.bundle.manifest().targets.iter().flat_map(|t| &t.variants);
        let files: BTreeSet<&str> = variants
            .flat_map(|v| &v.kernels)
            .filter_map(|k| match &k.launch {
                moec_bundle::manifest::Launch::Gpu { file, .. } => Some(file.as_str()),
                moec_bundle::manifest::Launch::Cpu { .. } => None,
            })
            .collect();
        files.into_iter().map(|f| self.compiled.bundle.text(f).expect("PTX").to_string()).collect()
    }
}

/// Runs a layer with random weights in the emulator and counts.
///
/// # Panics
/// When the layer does not run.
pub fn measure(ready: &Ready, n_tokens: u64, routing: Routing) -> Measured {
    let Ready { graph, compiled, target } = ready;
    let device = Device::Emulator { target: target.name };
    let mut session = Session::load(&compiled.bundle, &Weights::Random { seed: 1 }, device, n_tokens).expect("loads");
    if let Some(emulator) = session.layer().as_emulator() {
        emulator.set_options(|o| {
            o.counters = true;
            o.checks = Checks::NONE;
            // Which CTA takes which tile, and so how often lists of tiles are read, depends on who comes first.
            o.threads = 1;
        });
    }
    let input = rows(&graph.inputs[0].ty, n_tokens, routing);
    let result = session.run(&[(graph.inputs[0].name.as_str(), &input)]).expect("runs");
    let ids = result.output("topk_ids").expect("a layer with chosen experts");
    let touched: BTreeSet<i64> = ids.ints().iter().copied().collect();
    let program = &compiled.targets[0].variants[result.variant].program;
    let emulator = session.layer().as_emulator().expect("an emulator");
    let n_experts = program.kernels.iter().find_map(|k| n_experts(program, k)).expect("experts");
    let share = (touched.len() as u64, n_experts);
    let rows_of = |e: &i64| ids.ints().iter().filter(|id| *id == e).count() as f64;
    let busiest = touched.iter().map(rows_of).fold(0.0, f64::max) * n_experts as f64 / ids.ints().len() as f64;
    let entries = &compiled.bundle.manifest().targets[0].variants[result.variant].kernels;
    let mut launches = Vec::new();
    for (name, report) in emulator.reports() {
        let kernel = program.kernels.iter().find(|k| k.name == *name).expect("a kernel of the program");
        let of_experts = expert_buffers(kernel);
        let buffers = emulator.traffic(report).into_iter().map(|moved| {
            let b = moved.buffer;
            let id = program.buffers.iter().position(|x| x.name == b.name).expect("a buffer of the program");
            let whole = b.batch * b.rows.at(n_tokens) * b.cols * b.dtype.bytes() as u64;
            let least = if of_experts.contains(&BufferId(id as u32)) { whole * share.0 / share.1 } else { whole };
            let kind = match (b.role.param(), &b.role) {
                (Some(_), _) => Kind::Weights,
                (None, moec_ir::tile::Role::Input(_) | moec_ir::tile::Role::Output(_)) => Kind::Outside,
                (None, moec_ir::tile::Role::Counter) => Kind::Counters,
                (None, _) => Kind::Between,
            };
            Moved { name: b.name.clone(), kind, least, traffic: moved.traffic }
        });
        let is_contraction = matches!(kernel.body, Body::Contract(_));
        let (buffers, counters) = (buffers.collect(), report.counters.clone());
        let entry = entries.iter().find(|e| e.name == *name).expect("a kernel of the bundle");
        let moec_bundle::manifest::Launch::Gpu { file, .. } = &entry.launch else { panic!("{name} is for GPUs") };
        let ptx = compiled.bundle.text(file).expect("PTX").to_string();
        launches.push(Launch { name: name.clone(), is_contraction, counters, buffers, ptx });
    }
    let contractions = launches.iter().filter(|l| l.is_contraction);
    let issued_flops = contractions.flat_map(|l| l.counters.tensor.values()).map(|t| t.flops).sum();
    let useful_flops = program.kernels.iter().map(|k| flops(program, k, n_tokens)).sum();
    Measured { launches, touched: share, busiest, useful_flops, issued_flops }
}

/// Rows of hidden states. Those that are alike share three quarters of their length with each other.
fn rows(ty: &moec_ir::TensorType, n_tokens: u64, routing: Routing) -> Tensor {
    let own = moec::random_tensor(ty, n_tokens, 3, "rows");
    if routing == Routing::Independent {
        return own;
    }
    let common = moec::random_tensor(ty, 1, 4, "common");
    let cols = common.floats().len();
    let mixed = own.floats().iter().enumerate().map(|(i, x)| 0.5 * x + 0.75f32.sqrt() * common.floats()[i % cols]);
    Tensor::float(DType::BF16, &own.shape, mixed.collect())
}

fn n_experts(program: &Program, kernel: &Kernel) -> Option<u64> {
    let Body::Contract(c) = &kernel.body else { return None };
    let grouped = c.segments.iter().find(|s| matches!(s.groups, Groups::ByExpert { .. }))?;
    Some(program.buffer(grouped.panels[0].weights).batch)
}

/// Buffers of which a launch needs the part of the touched experts.
fn expert_buffers(kernel: &Kernel) -> BTreeSet<BufferId> {
    let Body::Contract(c) = &kernel.body else { return BTreeSet::new() };
    let grouped = c.segments.iter().filter(|s| matches!(s.groups, Groups::ByExpert { .. }));
    grouped
        .flat_map(|s| {
            let panels = s.panels.iter().flat_map(|p| {
                let quant = p.quant.as_ref();
                [Some(p.weights), quant.map(|q| q.scales), quant.and_then(|q| q.global)].into_iter().flatten()
            });
            panels.chain(s.biases.iter().flatten().copied())
        })
        .collect()
}

/// Flops that a kernel's products need, when every slot is dispatched.
fn flops(program: &Program, kernel: &Kernel, n_tokens: u64) -> u64 {
    let Body::Contract(c) = &kernel.body else { return 0 };
    let of = |s: &moec_ir::tile::Segment| {
        let (a, out) = (program.buffer(s.a), program.buffer(s.out));
        2 * out.rows.at(n_tokens) * a.cols * out.cols * s.panels.len() as u64
    };
    c.segments.iter().map(of).sum()
}
