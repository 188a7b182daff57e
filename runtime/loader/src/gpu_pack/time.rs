//! Times on a GPU, and whether graphs give the same bits.

use super::check::same_bits;
use super::report::{KernelTime, LayerTime};
use crate::cuda::{CudaIo, CudaLayer, CudaStream, Flush, RawStream};
use crate::layer::RunResult;
use moec_bundle::Manifest;
use moec_ir::Tensor;
use moec_ir::diag::Diagnostic;

/// Repetitions of which the median is taken.
const REPEATS: usize = 25;
/// Launches between two events of a warm measurement: events cost microseconds themselves.
const LAUNCHES: usize = 10;

/// Whether a captured graph gives the bits of the direct run; also when it was captured for more tokens than there are.
pub(crate) fn graph_gives_the_same(
    layer: &mut CudaLayer,
    manifest: &Manifest,
    inputs: &[(&str, &Tensor)],
    run: &RunResult,
) -> Result<bool, Diagnostic> {
    let n_tokens = layer.upload_inputs(manifest, inputs)?;
    let replay = |layer: &mut CudaLayer, at_most: u64, n: u64| -> Result<Vec<Tensor>, Diagnostic> {
        let (io_in, io_out) = layer.own_io(manifest);
        let io = CudaIo { inputs: &io_in, outputs: &io_out, token_count: layer.own_token_count() };
        let shared = &*layer;
        // SAFETY: the layer's own memory and stream; nothing else runs on them.
        let mut graph = shared.own_stream().capture(|stream| unsafe { shared.launch(&io, at_most, stream) })?;
        // SAFETY: as above; the layer outlives the launch, which `download_outputs` waits for.
        unsafe {
            shared.set_token_count(n, shared.own_stream().raw())?;
            graph.launch(shared.own_stream().raw())?;
        }
        shared.download_outputs(manifest, n)
    };
    let result = |outputs: Vec<Tensor>| RunResult {
        outputs: manifest.outputs.iter().map(|o| o.name.clone()).zip(outputs).collect(),
        findings: Vec::new(),
        target: run.target.clone(),
        variant: run.variant,
    };
    let whole = result(replay(layer, n_tokens, n_tokens)?);
    // Half of the tokens, by the graph for all of them and by a launch for all of them without a graph.
    let half = n_tokens / 2;
    let graph_half = result(replay(layer, n_tokens, half)?);
    let (io_in, io_out) = layer.own_io(manifest);
    let io = CudaIo { inputs: &io_in, outputs: &io_out, token_count: layer.own_token_count() };
    // SAFETY: as above.
    unsafe {
        layer.set_token_count(half, layer.own_stream().raw())?;
        layer.launch(&io, n_tokens, layer.own_stream().raw())?;
    }
    let direct_half = result(layer.download_outputs(manifest, half)?);
    Ok(same_bits(&whole, run) && same_bits(&graph_half, &direct_half))
}

/// Median time of one call of `work` in seconds.
fn median(
    layer: &CudaLayer,
    mut flush: Option<&mut Flush>,
    mut work: impl FnMut(RawStream) -> Result<(), Diagnostic>,
) -> Result<f64, Diagnostic> {
    let stream: &CudaStream = layer.own_stream();
    let (start, end) = (layer.device().event()?, layer.device().event()?);
    let per_sample = if flush.is_some() { 1 } else { LAUNCHES };
    for _ in 0..3 {
        work(stream.raw())?;
    }
    let mut samples = Vec::with_capacity(REPEATS);
    for _ in 0..REPEATS {
        if let Some(flush) = &mut flush {
            flush.copy(layer)?;
        }
        start.record(stream)?;
        for _ in 0..per_sample {
            work(stream.raw())?;
        }
        end.record(stream)?;
        samples.push(end.seconds_since(&start)? / per_sample as f64);
    }
    samples.sort_by(f64::total_cmp);
    Ok(samples[REPEATS / 2])
}

/// Times the layer and each of its kernels at the run's own token count; inputs are those of the last run.
pub(crate) fn time_layer(
    layer: &mut CudaLayer,
    manifest: &Manifest,
    run: &RunResult,
    n_tokens: u64,
) -> Result<(LayerTime, Vec<KernelTime>), Diagnostic> {
    let layer = &*layer;
    let (io_in, io_out) = layer.own_io(manifest);
    let io = CudaIo { inputs: &io_in, outputs: &io_out, token_count: layer.own_token_count() };
    // SAFETY: the layer's own memory and stream.
    unsafe { layer.set_token_count(n_tokens, layer.own_stream().raw())? };
    let mut flush = Flush::new(layer)?;
    // SAFETY: as above, here and below.
    let all = |stream| unsafe { layer.launch(&io, n_tokens, stream) };
    let mut graph = layer.own_stream().capture(all)?;
    let mut as_graph = |stream| unsafe { graph.launch(stream) };
    let us = |seconds: f64| seconds * 1e6;
    let weight_bytes = touched_weight_bytes(layer, run);
    let mut time = LayerTime {
        warm_us: us(median(layer, None, all)?),
        cold_us: us(median(layer, Some(&mut flush), all)?),
        graph_us: us(median(layer, None, &mut as_graph)?),
        graph_cold_us: us(median(layer, Some(&mut flush), &mut as_graph)?),
        empty_us: us(median(layer, Some(&mut flush), |_| Ok(()))?),
        weight_bytes,
        cold_gb_per_s: 0.0,
    };
    if time.graph_cold_us > 0.0 {
        time.cold_gb_per_s = weight_bytes as f64 / time.graph_cold_us / 1e3;
    }
    let mut kernels = Vec::new();
    for (k, (name, info)) in layer.kernels(n_tokens)?.into_iter().enumerate() {
        // A kernel never reads what it writes, so running one again and again after the whole layer is the same work.
        let one = |stream| unsafe { layer.launch_kernel(k, &io, n_tokens, stream) };
        kernels.push(KernelTime {
            name: name.to_string(),
            registers: info.registers,
            local_bytes: info.local_bytes,
            warm_us: us(median(layer, None, one)?),
            cold_us: us(median(layer, Some(&mut flush), one)?),
        });
    }
    Ok((time, kernels))
}

/// Bytes of weights that the run needs: all of the dense ones, and of the expert weights the share of experts chosen.
fn touched_weight_bytes(layer: &CudaLayer, run: &RunResult) -> u64 {
    let mut chosen: Vec<i64> = run.output("topk_ids").map(|t| t.ints().to_vec()).unwrap_or_default();
    chosen.sort_unstable();
    chosen.dedup();
    let used = chosen.iter().filter(|&&e| e >= 0).count() as u64;
    let bytes = |b: &moec_ir::tile::Buffer| {
        if b.batch > 1 && used > 0 { b.bytes(0) / b.batch * used.min(b.batch) } else { b.bytes(0) }
    };
    layer.plan().weights.iter().map(|w| bytes(&w.buffer)).sum()
}
