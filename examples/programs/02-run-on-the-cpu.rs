//! Compiles a layer in memory and runs it on the CPU, with random weights and hidden states.
#![allow(clippy::print_stdout, reason = "an example talks to its reader")]

use moec::{CompileRequest, Model, Session, Target, Weights};

fn main() -> moec::Result<()> {
    let layer = Model::open("examples/layers/softmax_top2.json")?.layer(None)?;
    let targets = Target::by_name("cpu").into_iter().collect();
    let compiled = moec::compile(&CompileRequest::new(&layer.graph, targets))?;

    let n_tokens = 5;
    let mut session = Session::jit(&compiled, &Weights::Random { seed: 1 }, n_tokens)?;
    let input = moec::random_tensor(&layer.graph.inputs[0].ty, n_tokens, 1, "input");
    let result = session.run(&[("input", &input)])?;
    for (name, tensor) in &result.outputs {
        println!("{name}: {}{:?}", tensor.dtype, tensor.shape);
    }
    Ok(())
}
