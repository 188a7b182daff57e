//! `moec explain MODEL --mesh`: the modelled time of a layer over the ranks of a fabric.

use super::Options;
use moec::{Diagnostic, Mesh, ModelLayer, Target};
use moec_passes::plan::PlacedPrograms;
use moec_passes::plan::model::Fabric;
use std::fmt::Write;

pub(super) fn parse_fabric(name: &str) -> Result<&'static Fabric, String> {
    Fabric::by_name(name).ok_or_else(|| {
        let names: Vec<&str> = Fabric::all().iter().map(|f| f.name.as_str()).collect();
        format!("fabrics are {}", names.join(", "))
    })
}

/// The times of a step, part by part.
pub(super) fn text(layer: &ModelLayer, mesh: Mesh, options: &Options) -> Result<String, Diagnostic> {
    let (fabric, n_ranks, n_tokens) = (options.fabric, u64::from(mesh.n_ranks()), options.tokens);
    if n_ranks > fabric.n_ranks {
        let d = Diagnostic::input("mesh-invalid", format!("the time of {mesh} on {} is not modelled", fabric.name));
        return Err(d.help(format!("give ep=N or ep=N,tp=M with 1 to {} ranks", fabric.n_ranks)));
    }
    let target = Target::by_name(&fabric.chip.target)
        .ok_or_else(|| Diagnostic::internal("internal-error", "a chip should have a target".to_string()))?;
    let step = PlacedPrograms::new(&layer.graph, mesh, target)?.step(fabric, mesh.ep.into(), n_tokens);
    let mut out = format!(
        "On {n_ranks} of {} ({}, {}) with {n_tokens} tokens each and uniform routing, modelled:\n\n",
        fabric.name, fabric.chip.name, target.name
    );
    let lines = [
        ("head", step.head, "the router"),
        ("dispatch", step.dispatch, "a row to each rank that has one of its experts"),
        ("decode", step.decode, "rows of codes become floats where they arrive"),
        ("experts", step.experts, "the products of the rank with most slots"),
        ("share", step.share, "activations to the ranks that have other columns of the experts"),
        ("combine", step.combine, "a row back for each slot: what is left of the way when its product ends"),
        ("tail", step.tail, "the sum in slot order, and shared experts"),
        ("in turn", step.in_turn(), "one after the other, as it is launched"),
        ("overlapped", step.overlapped(), "if rows travelled while experts multiply"),
    ];
    for (name, seconds, what) in lines.into_iter().filter(|(name, ..)| *name != "share" || mesh.tp > 1) {
        let _ = writeln!(out, "{name:<10}  {:>8.1} us  {what}", seconds * 1e6);
    }
    let _ = writeln!(
        out,
        "\nThe busiest rank gets and sends {:.2} MB over its link, of {:.0} GB/s each way; {:.0} % of the time in turn is spent on the way.",
        step.bytes / 1e6,
        fabric.link_bytes_per_s / 1e9,
        step.exposed() * 100.0
    );
    Ok(out)
}
