//! `moec inspect A --shares B`: which packed weights of two bundles for ranks are the same bytes, such as those of a model's prefill and
//! decode.

use crate::output::table;
use moec::Diagnostic;
use moec_bundle::manifest::{ParamInfo, TargetEntry};
use moec_bundle::{Bundle, PlacedBundle};
use moec_ir::tile::{Buffer, Role};
use moec_runtime::of_one_expert;
use std::collections::BTreeMap;

/// A packed buffer without its number, and the parameter that it holds as the checkpoint has it.
#[derive(PartialEq)]
struct Packed {
    param: ParamInfo,
    buffer: Buffer,
    /// Experts of it, where it has an axis of experts.
    experts: Option<u64>,
    bytes: u64,
}

/// A line for each packed buffer that both have, by target and program; what they share comes last.
///
/// # Errors
/// `bundles-not-comparable` when they have no target in common; those of the programs in them.
pub fn text(a: &PlacedBundle, b: &PlacedBundle) -> Result<String, Diagnostic> {
    if a.manifest().layer != b.manifest().layer {
        let layer = |of: &PlacedBundle| of.manifest().layer.name.clone();
        let what = format!("the bundles are of two layers, `{}` and `{}`", layer(a), layer(b));
        return Err(Diagnostic::input("bundles-not-comparable", what).help("give two bundles of one layer"));
    }
    let (ours, theirs) = (buffers(a)?, buffers(b)?);
    let targets = |all: &Buffers| all.keys().map(|(target, ..)| target.clone()).collect::<Vec<_>>();
    if !ours.keys().any(|k| targets(&theirs).contains(&k.0)) {
        let list = |all: &Buffers| {
            let mut names = targets(all);
            names.dedup();
            names.join(", ")
        };
        let what = format!("the bundles have no target in common: {}; {}", list(&ours), list(&theirs));
        return Err(Diagnostic::input("bundles-not-comparable", what).help("compile both for one target"));
    }
    let (mut rows, mut shared, mut all) = (Vec::new(), 0, 0);
    for ((target, program, name), x) in &ours {
        let (how, same) = match theirs.get(&(target.clone(), program.clone(), name.clone())) {
            None => ("not there", 0),
            Some(y) if (&x.param, &x.buffer) != (&y.param, &y.buffer) => ("packed differently", 0),
            Some(y) if x.experts == y.experts => ("the same bytes", x.bytes),
            Some(_) => ("the same bytes, expert by expert", x.bytes),
        };
        all += x.bytes;
        shared += same;
        rows.push(vec![target.clone(), program.clone(), name.clone(), x.bytes.to_string(), how.to_string()]);
    }
    let table = table(&["target", "program", "weights", "bytes", "in the other bundle"], &rows);
    Ok(format!("{table}{shared} of {all} bytes need to be packed once for both\n"))
}

type Buffers = BTreeMap<(String, String, String), Packed>;

fn buffers(bundle: &PlacedBundle) -> Result<Buffers, Diagnostic> {
    let m = bundle.manifest();
    let mut found = BTreeMap::new();
    let none = &[][..];
    let experts = m.experts.iter().flat_map(|of| &of.programs).map(|p| (p.file.as_str(), &p.stacks[..]));
    let others = m.head.iter().chain([&m.tail]).map(|file| (file.as_str(), none));
    for (file, stacks) in others.chain(experts) {
        let program = bundle.program(file)?;
        for target in &program.manifest().targets {
            for (name, packed) in of_target(&program, target, stacks) {
                found.insert((target.name.clone(), file.trim_end_matches(".tar").to_string(), name), packed);
            }
        }
    }
    Ok(found)
}

/// The packed weights of a program; all its variants have the same.
fn of_target(program: &Bundle, target: &TargetEntry, stacks: &[ParamInfo]) -> Vec<(String, Packed)> {
    let buffers = target.variants.first().map_or(&[][..], |v| &v.buffers);
    let packed = |buffer: &Buffer| {
        let param = &program.manifest().params[buffer.role.param()? as usize];
        let stack = stacks.iter().find(|s| s.name == param.name);
        let one = stack.map_or_else(|| buffer.clone(), |_| of_one_expert(param, buffer));
        let role = match buffer.role {
            Role::WeightScale(_) => Role::WeightScale(0),
            Role::WeightGlobal(_) => Role::WeightGlobal(0),
            _ => Role::Weight(0),
        };
        let of = Packed {
            param: stack.map_or_else(|| param.clone(), |s| ParamInfo { stored: param.stored, ..s.clone() }),
            buffer: Buffer { role, ..one },
            experts: stack.and_then(|_| param.ty.shape.first()?.fixed()),
            bytes: buffer.bytes(0),
        };
        Some((buffer.name.clone(), of))
    };
    buffers.iter().filter_map(packed).collect()
}
