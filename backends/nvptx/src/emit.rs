//! From a program to PTX, one module and one LLVM context for each kernel.

use crate::builder::Builder;
use crate::engines::{blackwell, hopper, portable};
use crate::kernels::{self, Design, Kernel};
use crate::machine;
use inkwell::context::Context;
use moec_ir::target::{Target, TargetKind};
use moec_ir::tile::{self, Body, GpuLaunch, Groups, Program};
use moec_ir::{Diagnostic, Engine, engine};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// One kernel, compiled for one GPU target.
#[derive(Clone, Debug, PartialEq)]
pub struct GpuKernelImage {
    /// Index into the program's kernels.
    pub kernel: usize,
    /// Name of the `.entry`.
    pub entry: String,
    /// PTX text of a module with this one entry.
    pub ptx: String,
    /// The optimised LLVM IR, when asked for.
    pub llvm_ir: Option<String>,
    /// How it is launched.
    pub launch: GpuLaunch,
}

/// What to emit beside PTX, and how.
#[derive(Clone, Copy, Debug, Default)]
pub struct EmitOptions {
    /// Keep the optimised LLVM IR.
    pub llvm_ir: bool,
    /// Leave out the comments that say which part of a kernel a basic block comes from. The code is the same.
    pub no_comments: bool,
    /// Threads to compile on; 0 for as many as the machine has.
    pub threads: usize,
    /// Only build the kernels, and let LLVM verify what was built: images without PTX, in a fraction of the time. What this
    /// refuses is what compiling refuses.
    pub only_check: bool,
}

/// Compiles every kernel of a verified program for one GPU target. Same program and target, same bytes.
///
/// # Errors
/// `llvm-missing`; `not-a-gpu-target` for the CPU; `element-type-not-on-gpu` and `row-too-wide` for what no kernel computes;
/// `internal-error`, with the LLVM IR as a note, when LLVM refuses the code.
pub fn emit(program: &Program, target: &Target) -> Result<Vec<GpuKernelImage>, Diagnostic> {
    emit_with(program, target, &EmitOptions::default())
}

/// As [`emit`], with options.
///
/// # Errors
/// As [`emit`].
pub fn emit_with(program: &Program, target: &Target, options: &EmitOptions) -> Result<Vec<GpuKernelImage>, Diagnostic> {
    emit_all(&[program], target, options).map(|mut images| images.pop().unwrap_or_default())
}

/// As [`emit_with`], for several programs of a layer: a kernel that more than one has is compiled once.
///
/// # Errors
/// As [`emit`].
pub fn emit_all(
    programs: &[&Program],
    target: &Target,
    options: &EmitOptions,
) -> Result<Vec<Vec<GpuKernelImage>>, Diagnostic> {
    crate::llvm()?;
    programs.iter().try_for_each(|program| check_experts(program))?;
    let (jobs, job_of) = jobs(programs);
    let results: Vec<Mutex<Option<Result<GpuKernelImage, Diagnostic>>>> =
        jobs.iter().map(|_| Mutex::new(None)).collect();
    let threads = match options.threads {
        0 => std::thread::available_parallelism().map_or(1, |t| t.get()),
        given => given,
    };
    let threads = threads.min(jobs.len());
    let next = AtomicUsize::new(0);
    let work = || {
        loop {
            let i = next.fetch_add(1, Ordering::Relaxed);
            let (Some(slot), Some(&(p, k))) = (results.get(i), jobs.get(i)) else { return };
            let image = emit_kernel(programs[p], k, target, options);
            *slot.lock().unwrap_or_else(|e| e.into_inner()) = Some(image);
        }
    };
    if threads <= 1 {
        work();
    } else {
        std::thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(work))));
    }
    let missing = || Err(Diagnostic::internal("internal-error", "a kernel was never compiled"));
    let take = |slot: Mutex<Option<_>>| slot.into_inner().unwrap_or_else(|e| e.into_inner()).unwrap_or_else(missing);
    let images: Vec<GpuKernelImage> = results.into_iter().map(take).collect::<Result<_, _>>()?;
    let of_program = |jobs: &Vec<usize>| {
        let image = |(kernel, &job): (usize, &usize)| GpuKernelImage { kernel, ..images[job].clone() };
        jobs.iter().enumerate().map(image).collect()
    };
    Ok(job_of.iter().map(of_program).collect())
}

/// What there is to compile, as (program, kernel), and which of it each kernel of each program is.
fn jobs(programs: &[&Program]) -> (Vec<(usize, usize)>, Vec<Vec<usize>>) {
    let mut jobs: Vec<(usize, usize)> = Vec::new();
    let mut job_of = Vec::with_capacity(programs.len());
    for (p, program) in programs.iter().enumerate() {
        let of_program = program.kernels.iter().enumerate().map(|(k, kernel)| {
            let same =
                |&(q, l): &(usize, usize)| programs[q].kernels[l] == *kernel && programs[q].buffers == program.buffers;
            jobs.iter().position(same).unwrap_or_else(|| {
                jobs.push((p, k));
                jobs.len() - 1
            })
        });
        job_of.push(of_program.collect());
    }
    (jobs, job_of)
}

fn emit_kernel(
    program: &Program,
    n: usize,
    target: &Target,
    options: &EmitOptions,
) -> Result<GpuKernelImage, Diagnostic> {
    let TargetKind::Gpu { ptx_version, smem_bytes, .. } = target.kind else {
        return Err(Diagnostic::input("not-a-gpu-target", format!("`{}` is not a GPU target", target.name)));
    };
    let kernel = &program.kernels[n];
    kernels::check_types(program, &kernel.body)?;
    let Design { mut launch, registers, body } = design(program, kernel, target, smem_bytes)?;
    launch.programmatic = target.features().programmatic;
    let context = Context::create();
    let module = context.create_module(&kernel.name);
    let broken = |what: String, ir: String| {
        Diagnostic::internal("internal-error", format!("kernel `{}` for {}: {what}", kernel.name, target.name)).note(ir)
    };
    let machine = machine::machine(target.name, ptx_version).map_err(|e| broken(e, String::new()))?;
    machine::prepare(&module, &machine);
    let params = kernels::params(program, &kernel.body, launch.programmatic);
    let code = Builder::new(&context, &module, &kernel.name, &params, &launch, registers);
    let code = if options.no_comments { code } else { code.with_parts(&module, &kernel.name) };
    if launch.programmatic {
        code.let_successor_start();
        // A persistent kernel waits after it has set up its barriers.
        if !launch.persistent {
            code.wait_for_predecessor();
        }
    }
    body(&Kernel::new(&code, program, &kernel.body));
    if options.only_check {
        let checked = code.finish().and_then(|_| machine::verify(&module));
        checked.map_err(|e| broken(e, module.print_to_string().to_string()))?;
        let (entry, ptx) = (kernel.name.clone(), String::new());
        return Ok(GpuKernelImage { kernel: n, entry, ptx, llvm_ir: None, launch });
    }
    let parts = code
        .finish()
        .and_then(|parts| machine::optimise(&module, &machine).map(|()| parts))
        .map_err(|e| broken(e, module.print_to_string().to_string()))?;
    // Drivers refuse text of a version that they do not know, so it is the lowest that will do.
    let machine = match code.ptx_version() {
        needed if needed > ptx_version => {
            machine::machine(target.name, needed).map_err(|e| broken(e, String::new()))?
        }
        _ => machine,
    };
    let llvm_ir = options.llvm_ir.then(|| module.print_to_string().to_string());
    let ptx = machine::ptx(&module, &machine, (target.name, ptx_version), &parts)
        .map_err(|e| broken(e, module.print_to_string().to_string()))?;
    // For those who read the listing: what it was made of.
    let ptx = format!("// {}: {}\n{ptx}", kernel.name, kernel.summary());
    Ok(GpuKernelImage { kernel: n, entry: kernel.name.clone(), ptx, llvm_ir, launch })
}

/// A warp keeps where the rows of each expert begin in registers: of more experts, there are too many.
fn check_experts(program: &Program) -> Result<(), Diagnostic> {
    let grouped = |k: &tile::Kernel| match &k.body {
        Body::Contract(c) => {
            let by_expert = c.segments.iter().filter(|s| matches!(s.groups, Groups::ByExpert { .. }));
            by_expert.flat_map(|s| &s.panels).map(|p| program.buffer(p.weights).batch).max()
        }
        Body::Plan(p) => Some(p.n_experts),
        Body::Rows(r) => r.plan.as_ref().map(|p| p.plan.n_experts),
        Body::Quantise(_) | Body::Map(_) | Body::Combine(_) => None,
    };
    match program.kernels.iter().filter_map(grouped).max() {
        Some(n) if n > MOST_EXPERTS => {
            let what = format!("rows are sorted by {n} experts; kernels of a GPU take {MOST_EXPERTS} at most");
            Err(Diagnostic::input("row-too-wide", what).help("compile for `cpu`, or for fewer experts"))
        }
        Some(_) | None => Ok(()),
    }
}

/// Experts that rows are sorted by; as many as scores that top-k chooses from.
const MOST_EXPERTS: u64 = 2048;

/// How a kernel is launched and what builds it.
fn design<'p>(
    program: &'p Program,
    kernel: &'p tile::Kernel,
    target: &Target,
    smem_limit: u32,
) -> Result<Design<'p>, Diagnostic> {
    let (schedule, features) = (&kernel.schedule, target.features());
    let fitted = engine::fitted(program, kernel, target);
    if fitted != *schedule {
        return Err(Diagnostic::internal(
            "internal-error",
            format!("kernel `{}` has a schedule that is not built", kernel.name),
        )
        .note(format!("it is {schedule:?}, and the nearest that is built is {fitted:?}")));
    }
    Ok(match &kernel.body {
        Body::Contract(c) => {
            let engine = Engine::of(target, program, c).map_err(|why| no_engine(program, kernel, target, &why))?;
            let operands = kernel.body.operands();
            match engine {
                Engine::Hopper => hopper::contract(program, c, &operands, schedule, features),
                Engine::Blackwell => blackwell::contract(program, c, &operands, schedule, smem_limit, features),
                Engine::Portable | Engine::GeForce => portable::contract(program, c, schedule, features),
            }
            .map_err(|why| no_engine(program, kernel, target, &why))?
        }
        Body::Rows(p) => return kernels::rows::rows(program, p, schedule, smem_limit, features),
        Body::Plan(p) => kernels::plan::plan(program, p, schedule, smem_limit),
        Body::Quantise(q) => kernels::quantise::quantise(program, q, schedule),
        Body::Map(m) => kernels::map(program, m, schedule),
        Body::Combine(c) => kernels::combine(program, c, schedule),
    })
}

/// A product that no engine of this machine computes.
fn no_engine(program: &Program, kernel: &tile::Kernel, target: &Target, why: &str) -> Diagnostic {
    Diagnostic::internal(
        "internal-error",
        format!("kernel `{}` of `{}` is a product that {} has no kernel for", kernel.name, program.name, target.name),
    )
    .note(why)
}
