//! What has to hold of a layer's tensors together: each may be right alone, and another checkpoint's.

use crate::config::{Packing, Published};
use crate::decode::{Elements, Integers, integers::word};
use crate::formats::stem;
use crate::read::checkpoint::Checkpoint;
use crate::resolve::Piece;
use moec_ir::diag::Diagnostic;
use moec_ir::quant::{Code, ScaleCode};
use std::collections::BTreeSet;

/// Looks at the pieces of all parameters of a layer.
///
/// # Errors
/// `quantised-scale-mismatch`, `quantised-scale-missing`, `adapter-not-merged`.
pub(crate) fn check(
    checkpoint: &Checkpoint,
    published: Option<&Published>,
    pieces: &[&Piece<'_>],
) -> Result<(), Diagnostic> {
    one_scheme(checkpoint, pieces)?;
    one_order(checkpoint, pieces)?;
    inputs_scaled(checkpoint, published, pieces)?;
    no_adapter(checkpoint, pieces)
}

/// Refuses matrices whose scales are of different types: no tool writes such, and one of them would be read wrong. Matrices may
/// have different codes, in mixtures; of one kind of codes and blocks they have one type of scales in the whole layer.
fn one_scheme(checkpoint: &Checkpoint, pieces: &[&Piece<'_>]) -> Result<(), Diagnostic> {
    /// Bits, the code unless it is an integer, rows and columns of a block.
    type Kind = (u64, Option<Code>, (u64, u64));
    let mut seen: Vec<(Kind, ScaleCode, &Piece<'_>)> = Vec::new();
    for piece in pieces.iter().copied() {
        let (kind, scale) = match &piece.elements {
            Elements::Blocks(b) => {
                let blocks = (b.format.block_rows, b.format.block_cols);
                ((b.format.code.bits(), Some(b.format.code), blocks), b.format.scale)
            }
            Elements::Integers(i) => ((u64::from(i.bits), None, (1, 0)), i.scale),
            Elements::Plain(..) | Elements::Ggml(_) => continue,
        };
        match seen.iter().find(|(other, ..)| *other == kind) {
            None => seen.push((kind, scale, piece)),
            Some((_, other, _)) if *other == scale => {}
            Some((_, _, first)) => {
                let at = checkpoint.path().display();
                let (name, stored, other) = (&piece.name, &piece.stored, &first.stored);
                return Err(Diagnostic::input(
                    "quantised-scale-mismatch",
                    format!("`{name}` in `{at}` is {stored}, but `{}` is {other}", first.name),
                )
                .note("tools write scales of one type for all matrices of a layer that have the same codes")
                .help("the checkpoint is damaged or was put together from several; download or quantise it again"));
            }
        }
    }
    Ok(())
}

/// The integers of a piece, when its columns have several groups.
fn integers<'p, 'a>(p: &'p Piece<'a>) -> Option<&'p Integers<'a>> {
    match &p.elements {
        Elements::Integers(q) if q.n_groups > 1 => Some(q),
        Elements::Integers(_) | Elements::Blocks(_) | Elements::Plain(..) | Elements::Ggml(_) => None,
    }
}

/// Refuses columns in an order of their own in some matrices, where others do not say which they have: tools that reorder columns
/// store the groups of all.
fn one_order(checkpoint: &Checkpoint, pieces: &[&Piece<'_>]) -> Result<(), Diagnostic> {
    let reordered = |q: &Integers<'_>| {
        let moved = |g: &[u8]| (0..q.k).any(|i| u64::from(word(g, i)) != i / q.group_size);
        q.group_of.is_some_and(moved)
    };
    let Some(first) = pieces.iter().find(|p| integers(p).is_some_and(reordered)) else { return Ok(()) };
    // Codes that kernels read as they are have groups in order.
    let in_order = |p: &Piece<'_>| match &p.elements {
        Elements::Blocks(b) => b.format.code == Code::Int4 && b.format.block_cols > 0,
        Elements::Integers(_) | Elements::Plain(..) | Elements::Ggml(_) => false,
    };
    let other = pieces.iter().find(|p| integers(p).is_some_and(|q| q.group_of.is_none()) || in_order(p));
    let Some(other) = other else { return Ok(()) };
    let gptq = integers(other).is_some_and(|q| q.packing != Packing::Rows);
    let name = if gptq { format!("{}.g_idx", stem(&other.name)) } else { format!("{}_g_idx", other.name) };
    let at = checkpoint.path().display();
    let message = format!("`{at}` does not say which group each column of `{}` has (`{name}`)", other.tensor);
    Err(Diagnostic::input("quantised-scale-missing", message)
        .note(format!("columns of `{}` have an order of their own, and tools store it for all matrices", first.tensor))
        .help("give the checkpoint whole: a shard may be missing, or the file may have been cut"))
}

/// Refuses a layer without `pre_quant_scale` where the config says that inputs are scaled.
fn inputs_scaled(
    checkpoint: &Checkpoint,
    published: Option<&Published>,
    pieces: &[&Piece<'_>],
) -> Result<(), Diagnostic> {
    let said =
        published.is_some_and(|p| p.source.config.get("pre_quant_scale").and_then(|v| v.as_bool()) == Some(true));
    let scaled = |p: &Piece<'_>| match &p.elements {
        Elements::Blocks(b) => Some(!b.column_scales.is_empty()),
        Elements::Integers(i) => Some(!i.column_scales.is_empty()),
        Elements::Plain(..) | Elements::Ggml(_) => None,
    };
    let quantised: Vec<bool> = pieces.iter().filter_map(|p| scaled(p)).collect();
    if !said || quantised.is_empty() || quantised.contains(&true) {
        return Ok(());
    }
    let message = format!(
        "no weight of the layer in `{}` has a `pre_quant_scale`, but the config says that inputs are scaled",
        checkpoint.path().display()
    );
    Err(Diagnostic::input("quantised-scale-missing", message)
        .note("looked for `….pre_quant_scale` beside each matrix: floats, one for each column")
        .help("give the checkpoint whole: a shard may be missing, or the file may have been cut"))
}

/// Words in the names of what an adapter adds to a matrix.
const ADAPTERS: &[&str] = &["lora_", ".base_layer.", ".modules_to_save.", "_svdquant_"];

/// Refuses parts of an adapter that stand among the layer's weights.
fn no_adapter(checkpoint: &Checkpoint, pieces: &[&Piece<'_>]) -> Result<(), Diagnostic> {
    let stems: BTreeSet<&str> = pieces.iter().map(|p| stem(&p.name)).collect();
    let at = checkpoint.path().display();
    let module = common_module(&stems);
    let within = |name: &str| name.strip_prefix(module).is_some_and(|rest| rest.starts_with('.'));
    if let Some(name) = checkpoint.names().find(|n| ADAPTERS.iter().any(|a| n.contains(a)) && within(n)) {
        return Err(Diagnostic::input("adapter-not-merged", format!("`{at}` holds a part of an adapter, `{name}`"))
            .note("its product is added to that of a weight of the layer, which moec does not do")
            .help("merge the adapter into the model (`merge_and_unload` of PEFT), and give the merged checkpoint"));
    }
    Ok(())
}

/// The module that holds all of `stems`: `model.layers.3.mlp`.
fn common_module<'s>(stems: &BTreeSet<&'s str>) -> &'s str {
    let (Some(first), Some(last)) = (stems.first(), stems.last()) else { return "" };
    // In order of names, what the first and the last have in common all have.
    let common = first.bytes().zip(last.bytes()).take_while(|(a, b)| a == b).count();
    match first.get(..common) {
        Some(whole) if whole == *first => first,
        Some(part) => part.rfind('.').map_or("", |dot| &part[..dot]),
        None => "",
    }
}
