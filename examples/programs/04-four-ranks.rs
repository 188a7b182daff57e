//! Spreads a layer over four ranks, threads here, and compares with one rank, bit for bit; then lets experts move.
#![allow(clippy::print_stdout, reason = "an example talks to its reader")]

use moec::ranks::{Comm, RankLayer, RankOptions, place_experts, split_evenly, split_tokens, threads};
use moec::{CompileRequest, Device, Model, Placement, Session, Spread, Target, Weights};
use std::sync::Arc;
use std::time::Duration;

fn main() -> moec::Result<()> {
    let layer = Model::open("examples/layers/softmax_top2.json")?.layer(None)?;
    let request = CompileRequest::new(&layer.graph, Target::by_name("cpu").into_iter().collect());
    let weights = Weights::Random { seed: 1 };
    let (n_ranks, n_tokens) = (4, 10);
    let input = moec::random_tensor(&layer.graph.inputs[0].ty, n_tokens, 1, "input");

    // One rank.
    let compiled = moec::compile(&request)?;
    let alone = Session::load(&compiled.bundle, &weights, Device::Cpu, n_tokens)?.run(&[("input", &input)])?;

    // Four: the same programs on all of them, with room for three experts each.
    let placed = Arc::new(moec::compile_placed(&request, &Spread::new(3), &mut |_| {})?);
    let n_experts = placed.n_experts();
    let even = Placement::even(n_experts, n_ranks)?;
    // Later, another map: as if the first expert had most of the tokens.
    let counts: Vec<u64> = (0..u64::from(n_experts)).map(|e| 100 / (e + 1)).collect();
    let moved = place_experts(&counts, n_ranks, 2, even.version() + 1)?;
    let own = split_tokens(&input, &split_evenly(n_tokens as usize, n_ranks))?;
    let ranks = threads::run(threads::connect(n_ranks, Duration::from_secs(10)), |comm| {
        let rank = comm.rank() as usize;
        let options = RankOptions::new(Device::Cpu, n_tokens);
        let mut layer = RankLayer::join(placed.clone(), comm, even.clone(), &weights, options)?;
        let new = layer.loader().load(moved.clone(), &weights)?;
        layer.stage(new)?;
        // In the first step ranks tell each other that they have the new map; the second is computed with it.
        Ok([layer.step(&[("input", &own[rank])])?, layer.step(&[("input", &own[rank])])?])
    })?;
    for (step, name) in [(0, "equal ranges"), (1, "as placed")] {
        let outputs: Vec<_> = ranks.iter().map(|r| &r[step].outputs[0].1).collect();
        let output = moec::ranks::join_tokens(&outputs);
        let sent: u64 = ranks.iter().map(|r| r[step].traffic.rows_sent).sum();
        let same = output.as_ref() == alone.output("output");
        println!("map {} ({name}): {sent} rows sent, the bits of one rank: {same}", ranks[0][step].map_version);
    }
    Ok(())
}
