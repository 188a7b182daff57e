//! Compiles the first MoE layer of a published model for Blackwell, and says what came out.
#![allow(clippy::print_stdout, reason = "an example talks to its reader")]

use moec::{CompileRequest, Model, Target};

fn main() -> moec::Result<()> {
    let layer = Model::open("examples/models/deepseek-r1")?.layer(None)?;
    let targets = Target::by_name("gb200").into_iter().collect();
    let compiled = moec::compile(&CompileRequest::new(&layer.graph, targets))?;
    for target in &compiled.targets {
        for variant in &target.variants {
            let kernels: Vec<&str> = variant.program.kernels.iter().map(|k| k.name.as_str()).collect();
            println!(
                "{}, {} to {} tokens: {}",
                target.target.name,
                variant.tokens.0,
                variant.tokens.1,
                kernels.join(", ")
            );
        }
    }
    compiled.bundle.write("target/example-bundle")?;
    Ok(())
}
