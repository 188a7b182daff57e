//! What the kernels of a layer moved, multiplied and executed in the emulator, for people and as JSON.

use moec_ptx::exec::Counters;
use moec_runtime::emulator::EmulatorLayer;
use serde_json::{Value, json};
use std::fmt::Write;

/// Bank conflicts of a kernel: passes over shared memory beyond the least, and the PTX lines where they are.
fn conflicts(counters: &Counters) -> (u64, Vec<u32>) {
    let bad = counters.banks.iter().filter(|(_, b)| b.passes > b.ideal_passes);
    bad.fold((0, Vec::new()), |(sum, mut lines), (line, b)| {
        lines.push(*line);
        (sum + b.passes - b.ideal_passes, lines)
    })
}

/// A table of the last run: a line for each kernel, and below it one for each of its buffers.
pub fn table(layer: &EmulatorLayer) -> String {
    let mut out = format!(
        "{:<28}{:>14}{:>14}{:>14}{:>14}{:>16}{:>16}\n",
        "bytes in 32-byte sectors", "read once", "read in all", "written once", "in all", "tensor flops", "warp instr"
    );
    for (name, report) in layer.reports() {
        let c = &report.counters;
        let flops: u64 = c.tensor.values().map(|t| t.flops).sum();
        // Writing to a string cannot fail.
        let _ = writeln!(
            out,
            "{name:<28}{:>14}{:>14}{:>14}{:>14}{flops:>16}{:>16}",
            c.dram_read_bytes,
            c.global_load_sectors * 32,
            c.dram_write_bytes,
            c.global_store_sectors * 32,
            c.warp_instructions
        );
        for b in layer.traffic(report) {
            let (l, s) = (b.traffic.loads, b.traffic.stores);
            let _ = writeln!(
                out,
                "  {:<26}{:>14}{:>14}{:>14}{:>14}",
                b.buffer.name, l.once_bytes, l.asked_bytes, s.once_bytes, s.asked_bytes
            );
        }
        let (passes, lines) = conflicts(c);
        if passes > 0 {
            let lines: Vec<String> = lines.iter().map(u32::to_string).collect();
            let _ = writeln!(out, "  bank conflicts: {passes} passes too many, at PTX lines {}", lines.join(", "));
        }
    }
    out
}

/// All counters of the last run: an object for each kernel, in launch order.
pub fn json(layer: &EmulatorLayer) -> String {
    let kernels: Vec<Value> = layer
        .reports()
        .iter()
        .map(|(name, report)| {
            let buffers: Vec<Value> = layer
                .traffic(report)
                .into_iter()
                .map(|b| json!({ "buffer": b.buffer.name, "loads": b.traffic.loads, "stores": b.traffic.stores }))
                .collect();
            json!({ "kernel": name, "buffers": buffers, "counters": report.counters })
        })
        .collect();
    format!("{:#}\n", Value::Array(kernels))
}
