//! Checks everything that a manifest says before anything is computed from it.

use crate::manifest::{FORMAT, KernelEntry, Launch, Manifest, ParamInfo, TargetEntry, Variant};
use moec_ir::DType;
use moec_ir::diag::Diagnostic;
use moec_ir::quant::Code;
use moec_ir::shape::{Dim, TensorType};
use moec_ir::tile::{Buffer, Role, TensorMap};
use moec_ir::weights::{WeightSource, WeightStep};
use std::collections::BTreeSet;

/// Largest token count that a bundle may be compiled for: token counts are u32 in device memory, slots i32.
pub const MAX_TOKENS: u64 = 1 << 30;
/// Largest size of one buffer; keeps every sum of sizes far from overflowing.
const MAX_BYTES: u64 = 1 << 46;
/// Most parameters of a kernel, the token count included: what fits a launch without allocating.
pub const MAX_KERNEL_PARAMS: usize = 64;
/// Most tensor maps of a GPU kernel.
pub const MAX_TENSOR_MAPS: usize = 16;
/// Most operands and kernels are a handful; a list longer than this is not a program.
const MAX_LIST: usize = 4096;

/// Checks that every index, path, size and range of a manifest is possible. After this a loader may trust it, as far as
/// its own files go.
///
/// # Errors
/// `bundle-version-unsupported`, `bundle-invalid`.
pub fn verify_manifest(m: &Manifest) -> Result<(), Diagnostic> {
    if m.moec_bundle != FORMAT {
        return Err(version((m.moec_bundle.into(), FORMAT), &m.moec_version));
    }
    check(m).map_err(|why| {
        Diagnostic::input("bundle-invalid", format!("the manifest of the bundle says something impossible: {why}"))
            .help("compile the layer again with this version of moec")
    })
}

pub(crate) fn version((found, format): (u64, u32), by: &str) -> Diagnostic {
    Diagnostic::input(
        "bundle-version-unsupported",
        format!(
            "the bundle has format {found} (written by moec {by}), but this is moec {}, which reads format {format}",
            env!("CARGO_PKG_VERSION")
        ),
    )
    .help("compile the layer again with this version of moec")
}

fn ensure(ok: bool, why: impl FnOnce() -> String) -> Result<(), String> {
    if ok { Ok(()) } else { Err(why()) }
}

fn check(m: &Manifest) -> Result<(), String> {
    unique("input", m.inputs.iter().map(|t| &t.name))?;
    unique("output", m.outputs.iter().map(|t| &t.name))?;
    unique("parameter", m.params.iter().map(|t| &t.name))?;
    unique("target", m.targets.iter().map(|t| &t.name))?;
    for t in m.inputs.iter().chain(&m.outputs) {
        matrix(&t.ty).ok_or_else(|| format!("`{}` has the type {}", t.name, t.ty))?;
    }
    for p in &m.params {
        ensure(p.ty.shape.iter().all(|d| d.fixed().is_some()) && matrix(&p.ty).is_some(), || {
            format!("the parameter `{}` has the type {}", p.name, p.ty)
        })?;
        source(&p.source).map_err(|why| format!("the source of `{}` {why}", p.name))?;
    }
    for (path, info) in &m.files {
        ensure(is_safe_path(path), || format!("the file name `{path}` leaves the bundle or has odd characters"))?;
        ensure(info.sha256.len() == 64 && info.sha256.bytes().all(|b| b.is_ascii_hexdigit()), || {
            format!("`{path}` has no SHA-256")
        })?;
    }
    if let Some(proof) = &m.proof {
        ensure(m.files.contains_key(proof), || format!("its proof `{proof}` is not in the bundle"))?;
    }
    for target in &m.targets {
        check_target(m, target).map_err(|why| format!("target `{}`: {why}", target.name))?;
    }
    Ok(())
}

fn check_target(m: &Manifest, target: &TargetEntry) -> Result<(), String> {
    ensure(!target.variants.is_empty(), || "it has no variants".into())?;
    if let Some(object) = &target.object {
        ensure(m.files.contains_key(object), || format!("its object file `{object}` is not in the bundle"))?;
    }
    if let Some(print) = &target.fingerprint {
        let file = &print.file;
        ensure(m.files.contains_key(file), || format!("its fingerprint `{file}` is not in the bundle"))?;
        let outputs: BTreeSet<&String> = m.outputs.iter().map(|o| &o.name).collect();
        ensure(print.outputs.keys().collect::<BTreeSet<_>>() == outputs, || {
            "its fingerprint is not of the layer's outputs".into()
        })?;
    }
    let mut previous: Option<u64> = None;
    for v in &target.variants {
        let (min, max) = (v.tokens.min, v.tokens.max);
        ensure(min <= max && max <= MAX_TOKENS && previous.is_none_or(|p| min > p), || {
            format!("the token range {min}..={max} is empty, too large, or out of order")
        })?;
        previous = Some(max);
    }
    let max = target.max_tokens();
    for v in &target.variants {
        check_variant(m, target, v, max).map_err(|why| format!("variant `{}`: {why}", v.name))?;
    }
    Ok(())
}

fn check_variant(m: &Manifest, target: &TargetEntry, v: &Variant, max_tokens: u64) -> Result<(), String> {
    ensure(v.buffers.len() <= MAX_LIST && v.kernels.len() <= MAX_LIST, || "it has thousands of buffers".into())?;
    unique("buffer", v.buffers.iter().map(|b| &b.name))?;
    unique("kernel", v.kernels.iter().map(|k| &k.name))?;
    if let Some(text) = &v.tile_text {
        ensure(m.files.contains_key(text), || format!("its text `{text}` is not in the bundle"))?;
    }
    let (mut given, mut made) = (BTreeSet::new(), BTreeSet::new());
    for b in &v.buffers {
        size(b, max_tokens).ok_or_else(|| format!("the buffer `{}` has an impossible size", b.name))?;
        let (what, ty) = match b.role {
            Role::Workspace | Role::Counter => continue,
            Role::Input(i) => {
                ensure(given.insert(i), || format!("input {i} has two buffers"))?;
                ("input", m.inputs.get(i as usize).map(|t| &t.ty))
            }
            Role::Output(i) => {
                ensure(made.insert(i), || format!("output {i} has two buffers"))?;
                ("output", m.outputs.get(i as usize).map(|t| &t.ty))
            }
            Role::Weight(_) if b.dtype != DType::U8 => {
                ("parameter", b.role.param().and_then(|i| m.params.get(i as usize)).map(|t| &t.ty))
            }
            Role::Weight(i) | Role::WeightScale(i) | Role::WeightGlobal(i) => {
                let param = m.params.get(i as usize);
                let param =
                    param.ok_or_else(|| format!("the buffer `{}` is for a parameter that does not exist", b.name))?;
                ensure(part_fits(b, param), || {
                    let (name, stored) = (&param.name, param.stored.map_or("floats".into(), |f| f.to_string()));
                    format!(
                        "the buffer `{}`, {}[{}, {}, {}], is for a part of `{name}`, {}, stored as {stored}",
                        b.name, b.dtype, b.batch, b.rows, b.cols, param.ty
                    )
                })?;
                continue;
            }
        };
        let ty = ty.ok_or_else(|| format!("the buffer `{}` is for an {what} that does not exist", b.name))?;
        ensure(fits(b, ty), || {
            format!("the buffer `{}`, {}[{}, {}, {}], is for the {what} {ty}", b.name, b.dtype, b.batch, b.rows, b.cols)
        })?;
    }
    for i in 0..m.outputs.len() as u32 {
        ensure(made.contains(&i), || format!("output {i} has no buffer"))?;
    }
    for k in &v.kernels {
        check_kernel(m, target, v, k, max_tokens).map_err(|why| format!("kernel `{}`: {why}", k.name))?;
    }
    Ok(())
}

fn check_kernel(
    m: &Manifest,
    target: &TargetEntry,
    v: &Variant,
    k: &KernelEntry,
    max_tokens: u64,
) -> Result<(), String> {
    let symbol = |s: &str| {
        !s.is_empty()
            && s.len() < 1024
            && s.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'$' | b'.'))
    };
    ensure(symbol(&k.entry), || format!("`{}` is no symbol name", k.entry))?;
    ensure(k.operands.len() < MAX_KERNEL_PARAMS, || format!("it has {} operands", k.operands.len()))?;
    for o in &k.operands {
        let buffer = v.buffers.get(o.buffer.index());
        let buffer = buffer.ok_or_else(|| format!("it names buffer {}, which does not exist", o.buffer.0))?;
        let constant = matches!(buffer.role, Role::Input(_)) || buffer.role.param().is_some();
        ensure(!(o.written && constant), || format!("it writes `{}`, which is not its to write", buffer.name))?;
        ensure(!o.strided || buffer.role.param().is_some(), || format!("`{}` is no weight with strides", buffer.name))?;
    }
    match &k.launch {
        Launch::Gpu { file, launch } => {
            ensure(target.name != "cpu", || "it is for a GPU".into())?;
            ensure(m.files.contains_key(file), || format!("its PTX `{file}` is not in the bundle"))?;
            ensure(launch.grid_fits(max_tokens), || "its grid is larger than a GPU takes".into())?;
            ensure((1..=1024).contains(&launch.block_threads), || format!("it has {} threads", launch.block_threads))?;
            ensure((1..=16).contains(&launch.cluster), || format!("its cluster has {} blocks", launch.cluster))?;
            ensure(launch.dynamic_smem_bytes <= 1 << 20, || "it asks for more shared memory than there is".into())?;
            let maps = launch.tensor_maps.len();
            let few = maps <= MAX_TENSOR_MAPS && k.operands.len() + maps < MAX_KERNEL_PARAMS;
            ensure(few, || format!("it has {maps} tensor maps"))?;
            launch.tensor_maps.iter().try_for_each(|map| check_map(v, k, map, max_tokens))
        }
        Launch::Cpu { launch } => {
            ensure(target.name == "cpu", || "it is for the CPU".into())?;
            let items = launch.items.checked_at(max_tokens).filter(|n| *n <= MAX_BYTES);
            ensure(items.is_some(), || "its number of work items overflows".into())?;
            ensure(launch.scratch_bytes <= 1 << 32, || format!("it asks for {} bytes of scratch", launch.scratch_bytes))
        }
    }
}

/// A tensor map is one that the driver encodes, and shows nothing outside of its buffer.
fn check_map(v: &Variant, k: &KernelEntry, map: &TensorMap, max_tokens: u64) -> Result<(), String> {
    let operand = k.operands.get(map.operand as usize).and_then(|o| v.buffers.get(o.buffer.index()));
    let buffer = operand.ok_or_else(|| format!("a tensor map names operand {}, which does not exist", map.operand))?;
    let wrong = |what: &str| format!("the tensor map of `{}` has {what}", buffer.name);
    let rank = map.dims.len();
    ensure((1..=TensorMap::MAX_RANK).contains(&rank), || wrong("no rank from 1 to 5"))?;
    ensure(map.strides.len() + 1 == rank && map.box_dims.len() == rank, || wrong("lists of different lengths"))?;
    let strides = map.strides.iter().all(|s| s.is_multiple_of(16) && *s < 1 << 40);
    ensure(strides, || wrong("a stride that is no multiple of 16 bytes"))?;
    ensure(map.box_dims.iter().all(|n| (1..=256).contains(n)), || wrong("a box that is empty or too large"))?;
    let inner = map.elem.bytes() * u64::from(map.box_dims[0]);
    let swizzle = u64::from(map.swizzle_bytes);
    ensure(matches!(swizzle, 0 | 32 | 64 | 128) && (swizzle == 0 || inner <= swizzle), || wrong("a wrong swizzle"))?;
    ensure(inner.is_multiple_of(16), || wrong("a box whose rows are no multiple of 16 bytes"))?;
    for n_tokens in [1, max_tokens.max(1)] {
        let bytes = size(buffer, n_tokens).unwrap_or(0);
        let small = map.dims_at(n_tokens).all(|n| n <= 1 << 32);
        let fits = map.span(n_tokens).is_some_and(|span| span <= bytes);
        ensure(small && fits, || wrong("more elements than the buffer"))?;
    }
    Ok(())
}

/// Size of a buffer in bytes, when it is possible at all.
fn size(b: &Buffer, n_tokens: u64) -> Option<u64> {
    let rows = match b.rows {
        Dim::Fixed(n) => n,
        Dim::PerToken(k) => k.checked_mul(n_tokens)?,
    };
    let bytes = b.batch.checked_mul(rows)?.checked_mul(b.pitch)?.checked_mul(b.dtype.bytes() as u64)?;
    (b.pitch >= b.cols && bytes <= MAX_BYTES && b.pitch <= MAX_BYTES && b.batch <= MAX_BYTES).then_some(bytes)
}

/// A type as rows and columns, when its size is possible.
fn matrix(ty: &TensorType) -> Option<(Vec<Dim>, Dim)> {
    let mut elements: u64 = 1;
    for d in &ty.shape {
        let n = match d {
            Dim::Fixed(n) => *n,
            Dim::PerToken(k) => k.checked_mul(MAX_TOKENS)?,
        };
        elements = elements.checked_mul(n.max(1))?;
    }
    elements.checked_mul(ty.dtype.bytes() as u64)?;
    let (last, leading) = ty.shape.split_last().map_or((Dim::Fixed(1), &[][..]), |(l, rest)| (*l, rest));
    Some((leading.to_vec(), last))
}

/// Whether a buffer has the shape of a tensor: the same columns, and as many rows in all.
fn fits(b: &Buffer, ty: &TensorType) -> bool {
    // One number for each token: a column.
    if let [Dim::PerToken(k)] = ty.shape[..] {
        return (b.batch, b.rows, b.cols) == (1, Dim::PerToken(k), 1) && b.dtype.is_float() == ty.dtype.is_float();
    }
    let Some((leading, last)) = matrix(ty) else { return false };
    let (mut fixed, mut per_token) = (1u64, false);
    for d in leading {
        match d {
            Dim::Fixed(n) => fixed = fixed.saturating_mul(n),
            Dim::PerToken(k) if !per_token => (fixed, per_token) = (fixed.saturating_mul(k), true),
            Dim::PerToken(_) => return false,
        }
    }
    let rows = match b.rows {
        Dim::Fixed(n) if !per_token => n,
        Dim::PerToken(k) if per_token => k,
        Dim::Fixed(_) | Dim::PerToken(_) => return false,
    };
    b.batch.checked_mul(rows) == Some(fixed)
        && last.fixed() == Some(b.cols)
        && b.dtype.is_float() == ty.dtype.is_float()
}

/// Whether a buffer has the shape of the codes, scales or global scales of a parameter.
fn part_fits(b: &Buffer, param: &ParamInfo) -> bool {
    let (Some(format), Some((leading, Dim::Fixed(k)))) = (param.stored, matrix(&param.ty)) else { return false };
    let Some((Dim::Fixed(n), stack)) = leading.split_last().map(|(n, stack)| (*n, stack)) else { return false };
    let matrices = stack.iter().try_fold(1u64, |a, d| a.checked_mul(d.fixed()?));
    let (grid_rows, grid_cols) = format.scale_grid(n, k);
    let shape = (Some(b.batch), b.rows, b.cols);
    match b.role {
        Role::Weight(_) if !Code::ALL.contains(&format.code) => false,
        Role::Weight(_) => b.dtype == DType::U8 && shape == (matrices, Dim::Fixed(n), format.code.bytes(k)),
        Role::WeightScale(_) => {
            b.dtype == format.scale.dtype() && shape == (matrices, Dim::Fixed(grid_rows), grid_cols)
        }
        Role::WeightGlobal(_) => {
            b.dtype == DType::F32 && b.batch == 1 && b.rows == Dim::Fixed(1) && Some(b.cols) == matrices
        }
        Role::Input(_) | Role::Output(_) | Role::Workspace | Role::Counter => false,
    }
}

fn source(s: &WeightSource) -> Result<(), String> {
    let (names, steps) = match s {
        WeightSource::Tensor { names, steps } => (names, steps),
        WeightSource::PerExpert { names, first, count, steps } => {
            let most = 1 << 20;
            ensure(*count <= most && *first <= most, || format!("asks for {count} experts from {first} on"))?;
            ensure(names.iter().all(|n| n.contains("{e}")), || "has a name without `{e}`".into())?;
            (names, steps)
        }
        WeightSource::FirstOf(list) => {
            ensure(!list.is_empty(), || "is an empty choice".into())?;
            return list.iter().try_for_each(source);
        }
        WeightSource::LargestInputScale(list) => {
            ensure(!list.is_empty(), || "is a scale of nothing".into())?;
            return list.iter().try_for_each(source);
        }
    };
    ensure(!names.is_empty(), || "has no names".into())?;
    for step in steps {
        if let WeightStep::Reshape { shape } = step {
            let n = shape.iter().try_fold(1u64, |n, &d| n.checked_mul(d));
            ensure(n.is_some() && shape.len() <= 16, || format!("has the shape {shape:?}"))?;
        }
    }
    Ok(())
}

/// A relative path of plain parts: no `..`, no drive, no backslash, nothing hidden.
pub(crate) fn is_safe_path(path: &str) -> bool {
    let part = |p: &str| {
        !p.is_empty()
            && !p.starts_with('.')
            && p.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b'+'))
    };
    path.len() < 1024
        && path.split('/').all(part)
        && path != crate::manifest::MANIFEST_FILE
        && path != crate::manifest::SUMS_FILE
}

fn unique<'a>(what: &str, names: impl Iterator<Item = &'a String>) -> Result<(), String> {
    let mut seen = BTreeSet::new();
    for name in names {
        ensure(seen.insert(name), || format!("two {what}s are called `{name}`"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_that_leave_the_bundle_are_refused() {
        for path in ["../a", "a/../b", "/a", "a//b", "", ".hidden", "a/./b", "a\\b", "c:a", "a\nb", "manifest.json"] {
            assert!(!is_safe_path(path), "{path:?}");
        }
        for path in ["cpu/layer.o", "sm_90a/gemm1-0123.ptx", "graph.json"] {
            assert!(is_safe_path(path), "{path}");
        }
    }
}
