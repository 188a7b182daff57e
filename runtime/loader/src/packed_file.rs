//! The packed weights of a layer as a file, for programs that launch kernels without this crate.

use crate::memory::allocate;
use crate::plan::{Plan, WeightSlot, find_target};
use crate::weights::Weights;
use moec_bundle::manifest::{Manifest, TargetEntry};
use moec_bundle::{Bundle, MAX_TOKENS};
use moec_ir::DType;
use moec_ir::diag::Diagnostic;
use moec_ir::files::{Scratch, not_written, sibling};
use moec_ir::tile::Buffer;
use std::io::Write;
use std::path::Path;

/// The buffers of a target that are packed from parameters: what all variants together read, in a fixed order, by names that
/// are unique. Buffers of one layout are one.
///
/// # Errors
/// `target-not-in-bundle`.
pub fn weight_buffers(manifest: &Manifest, target: &str) -> Result<Vec<(String, Buffer)>, Diagnostic> {
    let target = find_target(manifest, target)?;
    Ok(named(&all(target)?.weights))
}

fn all(target: &TargetEntry) -> Result<Plan, Diagnostic> {
    Plan::new(target, target.max_tokens().min(MAX_TOKENS), None)
}

fn named(slots: &[WeightSlot]) -> Vec<(String, Buffer)> {
    let mut out: Vec<(String, Buffer)> = Vec::with_capacity(slots.len());
    for slot in slots {
        let name = &slot.buffer.name;
        let before = slots[..out.len()].iter().filter(|s| s.buffer.name == *name).count();
        let name = if before == 0 { name.clone() } else { format!("{name}.{}", before + 1) };
        out.push((name, slot.buffer.clone()));
    }
    out
}

/// Packs every weight of a target and writes them as a safetensors file: a tensor for each of [`weight_buffers`], of its type,
/// `[batch, rows, pitch]`, byte for byte what kernels read. One weight at a time is in memory.
///
/// # Errors
/// `target-not-in-bundle`, those of packing, `out-of-memory`, `output-not-written`.
pub fn write_packed(bundle: &Bundle, target: &str, weights: &Weights<'_>, path: &Path) -> Result<(), Diagnostic> {
    let manifest = bundle.manifest();
    let plan = all(find_target(manifest, target)?)?;
    let found = weights.find(manifest)?;
    let fail = |e: std::io::Error| not_written(path, &e);
    let fresh = Scratch::new(sibling(path, "new"));
    let mut file = std::io::BufWriter::new(std::fs::File::create(fresh.path()).map_err(fail)?);
    let names = named(&plan.weights);
    let header = header(&names);
    file.write_all(&(header.len() as u64).to_le_bytes())
        .and_then(|()| file.write_all(header.as_bytes()))
        .map_err(fail)?;
    for (slot, (name, _)) in plan.weights.iter().zip(&names) {
        let (param, bytes) = (&manifest.params[slot.param], slot.buffer.bytes(0));
        found.begin(param, &slot.buffer);
        let mut memory = allocate(bytes, &format!("the weight `{name}`"))?;
        found.pack(param, &slot.buffer, &mut memory[..bytes as usize])?;
        file.write_all(&memory[..bytes as usize]).map_err(fail)?;
    }
    file.flush().map_err(fail)?;
    drop(file);
    std::fs::rename(fresh.path(), path).map_err(fail)
}

/// The header of a safetensors file: types, shapes and places; padded so that data begins at a multiple of 64.
fn header(buffers: &[(String, Buffer)]) -> String {
    let mut entries = serde_json::Map::new();
    let mut at = 0;
    for (name, b) in buffers {
        let dtype = match b.dtype {
            DType::F64 => "F64",
            DType::F32 => "F32",
            DType::F16 => "F16",
            DType::BF16 => "BF16",
            DType::I32 => "I32",
            DType::I64 => "I64",
            DType::U8 => "U8",
        };
        let end = at + b.bytes(0);
        let entry = serde_json::json!({
            "dtype": dtype, "shape": [b.batch, b.rows.at(0), b.pitch], "data_offsets": [at, end],
        });
        entries.insert(name.clone(), entry);
        at = end;
    }
    let mut text = serde_json::Value::Object(entries).to_string();
    text.extend(std::iter::repeat_n(' ', (text.len() + 8).next_multiple_of(64) - text.len() - 8));
    text
}
