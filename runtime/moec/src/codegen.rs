//! Hands tile programs to the backend of their target, and the results to the bundle.

use crate::compile::{CompileRequest, Keep};
use moec_bundle::{BundleBuilder, CpuKernelPart, CpuVariantPart, GpuKernelPart, GpuVariantPart};
use moec_cpu::{CpuArch, ObjectOptions, compile_objects};
use moec_ir::diag::Diagnostic;
use moec_ir::numerics::NumericClass;
use moec_ir::target::{Target, TargetKind};
use moec_ir::tile::{Body, GpuLaunch, Kernel, Program, RowOpKind};
use moec_nvptx::EmitOptions;
use moec_passes::Variant;

/// Compiles every variant of one target and adds it to the bundle. Symbols of object files begin with `prefix`.
pub(crate) fn add_target(
    builder: &mut BundleBuilder,
    target: &'static Target,
    variants: &[Variant],
    request: &CompileRequest<'_>,
    prefix: &str,
) -> Result<(), Diagnostic> {
    match target.kind {
        TargetKind::Cpu => add_cpu(builder, variants, request.cpu_arch, request.keep, prefix),
        TargetKind::Gpu { .. } => {
            let options =
                EmitOptions { llvm_ir: request.keep.llvm_ir, only_check: request.only_check, ..EmitOptions::default() };
            add_gpu(builder, target, variants, request.keep, &options)
        }
    }
}

fn add_cpu(
    builder: &mut BundleBuilder,
    variants: &[Variant],
    arch: CpuArch,
    keep: Keep,
    prefix: &str,
) -> Result<(), Diagnostic> {
    let programs: Vec<&Program> = variants.iter().map(|v| &v.program).collect();
    let object = compile_objects(&programs, &ObjectOptions { arch, ..ObjectOptions::default() }, prefix)?;
    let mut parts: Vec<CpuVariantPart<'_>> = variants
        .iter()
        .map(|v| CpuVariantPart {
            tokens: v.tokens,
            program: &v.program,
            kernels: Vec::new(),
            tile_text: keep.tile_text.then(|| v.program.to_string()),
        })
        .collect();
    for image in object.kernels {
        let class = class_of(&variants[image.program].program.kernels[image.kernel]);
        parts[image.program].kernels.push(CpuKernelPart { symbol: image.symbol, launch: image.launch, class });
    }
    let requires: Vec<&str> = object.requires.iter().map(String::as_str).collect();
    builder.add_cpu_target(Some(object.bytes), &requires, parts)
}

fn add_gpu(
    builder: &mut BundleBuilder,
    target: &'static Target,
    variants: &[Variant],
    keep: Keep,
    options: &EmitOptions,
) -> Result<(), Diagnostic> {
    let mut parts = Vec::with_capacity(variants.len());
    let programs: Vec<&Program> = variants.iter().map(|v| &v.program).collect();
    // Every program is right for every token count of the target.
    let most_tokens = variants.last().map_or(0, |v| v.tokens.1);
    for (v, images) in variants.iter().zip(moec_nvptx::emit_all(&programs, target, options)?) {
        let mut kernels = Vec::with_capacity(images.len());
        for image in images {
            let kernel = &v.program.kernels[image.kernel];
            if !image.launch.grid_fits(most_tokens) {
                return Err(grid_too_large(kernel, target, &image.launch, most_tokens));
            }
            if let Some(text) = image.llvm_ir {
                let path = format!("{}/{}-{}-{}.ll", target.name, kernel.name, v.tokens.0, v.tokens.1);
                builder.add_file(path, text.into_bytes());
            }
            let class = class_of(kernel);
            kernels.push(GpuKernelPart { entry: image.entry, ptx: image.ptx, launch: image.launch, class });
        }
        let tile_text = keep.tile_text.then(|| v.program.to_string());
        parts.push(GpuVariantPart { tokens: v.tokens, program: &v.program, kernels, tile_text });
    }
    builder.add_gpu_target(target.name, parts)
}

fn grid_too_large(kernel: &Kernel, target: &Target, launch: &GpuLaunch, n_tokens: u64) -> Diagnostic {
    let blocks = launch.grid.map(|e| e.checked_at(n_tokens).map_or("more than 2^64".to_string(), |n| n.to_string()));
    let (blocks, most) = (blocks.join(" by "), GpuLaunch::MOST_BLOCKS.map(|n| n.to_string()).join(" by "));
    let what = format!("kernel `{}` for {} takes {blocks} blocks for {n_tokens} tokens", kernel.name, target.name);
    Diagnostic::input("grid-too-large", what)
        .note(format!("a GPU takes {most} at most"))
        .help("compile for fewer tokens with --tokens, or for `cpu`")
}

/// What a kernel does to the bits, compared with the reference evaluator: a backend sums dot products in its own order.
fn class_of(kernel: &Kernel) -> NumericClass {
    match &kernel.body {
        Body::Contract(_) | Body::Combine(_) => NumericClass::Reassociates,
        Body::Rows(p) => {
            let sums = |kind: &RowOpKind| {
                matches!(
                    kind,
                    RowOpKind::Linear { .. }
                        | RowOpKind::Softmax(_)
                        | RowOpKind::RmsNorm { .. }
                        | RowOpKind::Renormalise { .. }
                )
            };
            if p.ops.iter().any(|op| sums(&op.kind)) { NumericClass::Reassociates } else { NumericClass::Exact }
        }
        Body::Plan(_) | Body::Map(_) | Body::Quantise(_) => NumericClass::Exact,
    }
}
