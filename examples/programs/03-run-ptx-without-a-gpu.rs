//! Runs the PTX of a layer in the emulator, with all checks, and compares it with the CPU's result.
#![allow(clippy::print_stdout, reason = "an example talks to its reader")]

use moec::{CompileRequest, Device, Diagnostic, Model, Session, Target, Weights};

fn main() -> moec::Result<()> {
    let layer = Model::open("examples/layers/softmax_top2.json")?.layer(None)?;
    let targets = ["cpu", "sm_90a"].into_iter().filter_map(Target::by_name).collect();
    let bundle = moec::compile(&CompileRequest::new(&layer.graph, targets))?.bundle;

    let input = moec::random_tensor(&layer.graph.inputs[0].ty, 5, 1, "input");
    let run = |device| -> Result<_, Diagnostic> {
        Session::load(&bundle, &Weights::Random { seed: 1 }, device, 5)?.run(&[("input", &input)])
    };
    let cpu = run(Device::Cpu)?;
    let gpu = run(Device::Emulator { target: "sm_90a" })?;
    println!("findings of the emulator: {:?}", gpu.findings);
    if let (Some(a), Some(b)) = (gpu.output("output"), cpu.output("output")) {
        println!("relative error against the CPU: {:.1e}", a.relative_error(b));
    }
    Ok(())
}
