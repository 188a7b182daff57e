//! Runs launches: a stream of them on each rank, the ranks together.

use super::call::{Options, Report};
use super::error::ExecError;
use super::launch::LaunchState;
use super::memory::global::DeviceMemory;
use super::prepare::Ready;
use super::report::collect;
use super::run::Run;
use super::schedule::{self, Stream};

/// Runs the launches of every rank, one after the other, the ranks together; gives a report for each launch.
///
/// # Errors
/// What ends a launch ends all.
pub(crate) fn run_streams(
    memory: &mut DeviceMemory,
    streams: Vec<Vec<Ready<'_>>>,
    options: &Options,
) -> Result<Vec<Vec<Report>>, ExecError> {
    if options.counters {
        memory.forget_traffic();
    }
    let reports = run_together(memory, streams, options);
    // They take as much memory as what was written, and only accesses of one run race with each other.
    memory.forget_accesses();
    reports
}

fn run_together(
    memory: &DeviceMemory,
    streams: Vec<Vec<Ready<'_>>>,
    options: &Options,
) -> Result<Vec<Vec<Report>>, ExecError> {
    let host_threads = match options.threads {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        n => n,
    };
    let (mut spans, mut first) = (Vec::new(), 0);
    for stream in &streams {
        for (step, ready) in stream.iter().enumerate() {
            spans.push(ready.span(first, step as u32));
            first += ready.n_clusters();
        }
    }
    let run = Run::new(streams.len() as u32, host_threads, spans);
    let mut firsts = run.spans.iter().map(|s| (s.first, s.step));
    let streams: Vec<Stream<'_>> = streams
        .into_iter()
        .map(|s| s.into_iter().zip(&mut firsts).map(|(r, at)| r.state(&run, memory, options, at)).collect())
        .collect();
    let mut workers = schedule::run(&run, &streams, host_threads)?;
    let report = |(rank, stream): (usize, &Stream<'_>)| {
        let of = |(step, launch): (usize, &LaunchState<'_>)| {
            collect(launch.program, workers.iter_mut().filter_map(|w| w.remove(&(rank, step))).collect())
        };
        stream.iter().enumerate().map(of).collect()
    };
    Ok(streams.iter().enumerate().map(report).collect())
}
