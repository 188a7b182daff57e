//! Kernels that exchange rows between GPUs through memory that they map from each other ([`moec_ir::window`]).
//!
//! ```text
//! dispatch   on a token's rank: its row and its local experts to each rank that has one of them, then a flag to every rank
//! receive    on an experts' rank: waits for every rank's flag; which rows came, and for which local experts
//! (decode)   where rows travel as codes: their floats
//! (experts)  the compiled program, on rows where they lie in the window; two where experts are cut over a group of ranks. The last product
//!            stores each slot's result at its place in the window of the token's rank
//! (share)    between the two: this rank's columns of activations to all members of its group, whose columns it waits for
//! answer     a flag to each rank that sent a row
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
use moec_ir::exchange::{Exchange, ExchangeKernel, ExchangeParam, THREADS};
use moec_ir::target::{Features, Target, TargetKind};
use moec_ir::tile::{Extent, GpuLaunch};
use moec_ir::{DType, Diagnostic};

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
    exchange.kernels().into_iter().map(|kernel| emit(kernel, exchange, target)).collect()
}

/// What builds the body of a kernel.
fn body(entry: &str) -> Option<for<'c> fn(&Exchanging<'c>)> {
    match entry {
        "moec_dispatch" => Some(dispatch::build),
        "moec_receive" => Some(receive::build),
        "moec_decode" => Some(codes::build),
        "moec_share" => Some(share::build),
        "moec_answer" => Some(answer::build),
        "moec_collect" => Some(collect::build),
        _ => None,
    }
}

/// The kernel being built.
struct Exchanging<'c> {
    builder: &'c Builder<'c>,
    params: &'c [ExchangeParam],
    exchange: Exchange,
    features: Features,
}

impl<'c> Exchanging<'c> {
    fn param(&self, which: ExchangeParam) -> Global<'c> {
        self.builder.param(self.params.iter().position(|&p| p == which).unwrap_or(usize::MAX))
    }
}

fn emit(kernel: ExchangeKernel, exchange: &Exchange, target: &Target) -> Result<ExchangeKernel, Diagnostic> {
    let ExchangeKernel { entry, params, smem_bytes, .. } = &kernel;
    let build =
        body(entry).ok_or_else(|| Diagnostic::internal("internal-error", format!("`{entry}` should have a body")))?;
    let TargetKind::Gpu { ptx_version, .. } = target.kind else {
        return Err(Diagnostic::input("not-a-gpu-target", format!("`{}` is not a GPU target", target.name)));
    };
    let launch = GpuLaunch {
        grid: [Extent::fixed(1); 3],
        block_threads: THREADS,
        cluster: 1,
        dynamic_smem_bytes: *smem_bytes,
        persistent: false,
        programmatic: false,
        tensor_maps: Vec::new(),
    };
    let context = Context::create();
    let module = context.create_module(entry);
    let broken = |what: String, ir: String| {
        Diagnostic::internal("internal-error", format!("kernel `{entry}` for {}: {what}", target.name)).note(ir)
    };
    let machine = machine::machine(target.name, ptx_version).map_err(|e| broken(e, String::new()))?;
    machine::prepare(&module, &machine);
    let pointers = vec![Param { read_only: false }; params.len()];
    let code =
        Builder::new(&context, &module, entry, &pointers, &launch, Registers::Default).with_parts(&module, entry);
    build(&Exchanging { builder: &code, params, exchange: *exchange, features: target.features() });
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
    Ok(ExchangeKernel { ptx, ..kernel })
}
