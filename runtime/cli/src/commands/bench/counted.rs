//! What an emulator counted in one run.

use moec::{Diagnostic, Layer, RunResult, Tensor};
use moec_ptx::exec::Counters;
use serde_json::Value;

/// Counters of each kernel of a layer that had something to do, by name.
pub(super) type Counted = Vec<(String, Counters)>;

/// Runs a layer of the emulator with counters; gives them and the result. The next runs do not count.
///
/// # Errors
/// Those of [`Layer::run_host`].
pub(super) fn count(layer: &mut Layer, inputs: &[(&str, &Tensor)]) -> Result<(Counted, RunResult), Diagnostic> {
    let switch = |layer: &mut Layer, on: bool| {
        if let Some(layer) = layer.as_emulator() {
            layer.set_options(|o| o.counters = on);
        }
    };
    switch(layer, true);
    let result = layer.run_host(inputs);
    switch(layer, false);
    let result = result?;
    let counted =
        layer.as_emulator().map(|l| l.reports().iter().map(|(n, r)| (n.clone(), r.counters.clone())).collect());
    Ok((counted.unwrap_or_default(), result))
}

/// Titles of [`cells`].
pub(super) const TITLES: [&str; 7] =
    ["bytes read", "written", "tensor flops", "warp instr", "blocks", "bank conflicts", "async"];

/// Names of [`figures`] in JSON.
const NAMES: [&str; 7] = [
    "bytes_read",
    "bytes_written",
    "tensor_flops",
    "warp_instructions",
    "blocks",
    "bank_conflicts",
    "async_operations",
];

fn figures(c: &Counters) -> [u64; 7] {
    let (read, written) = (c.dram_read_bytes, c.dram_write_bytes);
    [read, written, flops(c), c.warp_instructions, c.blocks, conflicts(c), c.async_operations]
}

/// What is counted of a kernel or a layer, for a row of a table.
pub(super) fn cells(c: &Counters) -> [String; 7] {
    figures(c).map(|n| n.to_string())
}

/// The same as JSON.
pub(super) fn json(c: &Counters) -> Value {
    NAMES
        .iter()
        .zip(figures(c))
        .map(|(name, n)| ((*name).to_string(), Value::from(n)))
        .collect::<serde_json::Map<_, _>>()
        .into()
}

/// The sum over kernels. Lines of different kernels are the same numbers, so where bank conflicts are is lost.
pub(super) fn sum(counted: &Counted) -> Counters {
    let mut all = Counters::default();
    counted.iter().for_each(|(_, c)| all.add(c));
    all
}

fn flops(c: &Counters) -> u64 {
    c.tensor.values().map(|t| t.flops).sum()
}

/// Passes over shared memory beyond the least.
fn conflicts(c: &Counters) -> u64 {
    c.banks.values().map(|b| b.passes - b.ideal_passes).sum()
}
