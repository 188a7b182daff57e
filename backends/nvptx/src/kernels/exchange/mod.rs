//! Kernels that exchange rows between GPUs through memory that they map from each other ([`moec_ir::window`]).
//!
//! ```text
//! dispatch   on a token's rank: its row and its local experts to each rank that has one of them, then a flag to every rank
//! receive    on an experts' rank: waits for every rank's flag; which rows came, and for which local experts
//! (decode)   where rows travel as codes: their floats
//! (experts)  the compiled program, on rows where they lie in the window; two where experts are cut over a group of ranks
//! (share)    between them: this rank's columns of activations to all members of its group, whose columns it waits for
//! answer     each slot's result, from where the product left it, to its place in the window of the token's rank, then a flag to each rank that sent a row
//! collect    on the token's rank: waits for the ranks that it sent rows to; slots that nobody has become zero
//! (tail)     the compiled program, on result rows where they lie in the window: the sum in slot order
//! ```
//!
//! Flags hold the number of the step and are never reset. Rows, slots and flags of odd steps lie apart from those of even ones: a rank
//! that has got everybody's flag of one step knows that all are done with the step before, whose memory it writes next.

mod answer;
mod codes;
mod collect;
mod dispatch;
mod parts;
mod receive;
mod share;

use crate::builder::{Builder, Global, Param};
use crate::kernels::Registers;
use crate::machine;
use inkwell::context::Context;
use moec_ir::exchange::{Blocks, Exchange, ExchangeKernel, ExchangeParam, Stage};
use moec_ir::target::{Features, Target, TargetKind};
use moec_ir::tile::{Extent, GpuLaunch};
use moec_ir::{DType, Diagnostic};

/// Threads of a block.
const THREADS: u32 = 128;

/// Compiles dispatch, receive, answer and collect for one GPU target, decode where rows travel as codes, and share where experts are
/// cut, in the order in which they run.
///
/// # Errors
/// `llvm-missing`, `not-a-gpu-target`, `element-type-not-on-gpu` for ids that are no integers of 32 or 64 bits, weights that are no
/// floats or rows of f64 that are rounded; `internal-error` when LLVM refuses the code.
pub fn emit_exchange(exchange: &Exchange, target: &Target) -> Result<Vec<ExchangeKernel>, Diagnostic> {
    crate::llvm()?;
    let of_ids = matches!(exchange.ids, DType::I32 | DType::I64);
    let is_float = |dtype: DType| matches!(dtype, DType::F32 | DType::F16 | DType::BF16);
    let of_weights = exchange.weights.is_none_or(is_float);
    if let Some(codes) = exchange.codes.filter(|c| !is_float(c.sent) || !is_float(c.read)) {
        let what =
            format!("rows are {} before they are rounded on their way, and {} behind it", codes.sent, codes.read);
        return Err(Diagnostic::input("element-type-not-on-gpu", what).help("give rows as f32, f16 or bf16"));
    }
    if !of_ids || !of_weights {
        let what = format!("experts of slots are {}, their weights {:?}", exchange.ids, exchange.weights);
        return Err(Diagnostic::input("element-type-not-on-gpu", what)
            .help("give ids as i32 or i64, and weights as f32, f16 or bf16"));
    }
    let before = [dispatch::kernel(exchange), receive::kernel(exchange)].into_iter();
    let decode = exchange.codes.map(|_| codes::kernel(exchange));
    let behind = [answer::kernel(exchange), collect::kernel(exchange)];
    let between = exchange.cut.map(|_| share::kernel(exchange));
    before.chain(decode).chain(between).chain(behind).map(|design| emit(&design, target)).collect()
}

/// A kernel before code is built for it.
struct Design {
    entry: &'static str,
    params: &'static [ExchangeParam],
    stage: Stage,
    blocks: Blocks,
    smem_bytes: u32,
    exchange: Exchange,
    build: for<'c> fn(&Exchanging<'c>),
}

/// The kernel being built.
struct Exchanging<'c> {
    builder: &'c Builder<'c>,
    params: &'static [ExchangeParam],
    exchange: Exchange,
    features: Features,
}

impl<'c> Exchanging<'c> {
    fn param(&self, which: ExchangeParam) -> Global<'c> {
        self.builder.param(self.params.iter().position(|&p| p == which).unwrap_or(usize::MAX))
    }
}

fn emit(design: &Design, target: &Target) -> Result<ExchangeKernel, Diagnostic> {
    let TargetKind::Gpu { ptx_version, .. } = target.kind else {
        return Err(Diagnostic::input("not-a-gpu-target", format!("`{}` is not a GPU target", target.name)));
    };
    let launch = GpuLaunch {
        grid: [Extent::fixed(1); 3],
        block_threads: THREADS,
        cluster: 1,
        dynamic_smem_bytes: design.smem_bytes,
        persistent: false,
        programmatic: false,
        tensor_maps: Vec::new(),
    };
    let context = Context::create();
    let module = context.create_module(design.entry);
    let broken = |what: String, ir: String| {
        Diagnostic::internal("internal-error", format!("kernel `{}` for {}: {what}", design.entry, target.name))
            .note(ir)
    };
    let machine = machine::machine(target.name, ptx_version).map_err(|e| broken(e, String::new()))?;
    machine::prepare(&module, &machine);
    let params = vec![Param { read_only: false }; design.params.len()];
    let code = Builder::new(&context, &module, design.entry, &params, &launch, Registers::Default)
        .with_parts(&module, design.entry);
    let (params, features) = (design.params, target.features());
    (design.build)(&Exchanging { builder: &code, params, exchange: design.exchange, features });
    let parts = code.finish().and_then(|parts| machine::optimise(&module, &machine).map(|()| parts));
    // As of all kernels, the lowest version that will do.
    let machine = match code.ptx_version() {
        needed if needed > ptx_version => {
            machine::machine(target.name, needed).map_err(|e| broken(e, String::new()))?
        }
        _ => machine,
    };
    let ptx = parts
        .and_then(|parts| machine::ptx(&module, &machine, (target.name, ptx_version), &parts))
        .map_err(|e| broken(e, module.print_to_string().to_string()))?;
    let Design { entry, params, stage, blocks, smem_bytes, .. } = *design;
    let (entry, params) = (entry.to_string(), params.to_vec());
    Ok(ExchangeKernel { entry, ptx, params, stage, blocks, threads: THREADS, smem_bytes })
}
