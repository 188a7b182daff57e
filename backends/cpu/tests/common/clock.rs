//! Times of work on several threads.

use super::{Compiled, Memory};
use moec_ir::abi::{CpuContext, CpuMath, Strides};
use moec_ir::tile::Program;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

/// What a piece of work took.
#[derive(Clone, Copy, Default)]
pub struct Took {
    /// Seconds from the first start to the last end.
    pub wall: f64,
    /// Seconds of processor time, as the mean over the threads, without the waiting for each other. This is what to look
    /// at on a machine that does other things too.
    pub cpu: f64,
}

/// Processor time of this thread, in seconds.
pub fn cpu_seconds() -> f64 {
    let mut t = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a live timespec.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut t) };
    t.tv_sec as f64 + t.tv_nsec as f64 * 1e-9
}

/// Runs `work(thread)` on every thread; it returns its processor time.
pub fn time(threads: usize, work: impl Fn(usize) -> f64 + Sync) -> Took {
    let (ready, done) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let one = |i: usize| {
        meet(&ready, threads);
        let cpu = work(i);
        done.fetch_add(1, Ordering::SeqCst);
        cpu
    };
    let one = &one;
    std::thread::scope(|scope| {
        let handles: Vec<_> = (1..threads).map(|i| scope.spawn(move || one(i))).collect();
        meet(&ready, threads);
        let start = Instant::now();
        let mut cpu = work(0);
        done.fetch_add(1, Ordering::SeqCst);
        while done.load(Ordering::SeqCst) < threads {
            std::thread::yield_now();
        }
        let wall = start.elapsed().as_secs_f64();
        cpu += handles.into_iter().map(|h| h.join().unwrap()).sum::<f64>();
        Took { wall, cpu: cpu / threads as f64 }
    })
}

/// Waits until all threads are here.
fn meet(ready: &AtomicUsize, threads: usize) {
    ready.fetch_add(1, Ordering::SeqCst);
    let mut turns = 0;
    while ready.load(Ordering::SeqCst) < threads {
        turns += 1;
        if turns < 1000 { std::hint::spin_loop() } else { std::thread::yield_now() }
    }
}

#[derive(Clone, Copy)]
struct Pointers<'a>(&'a [*mut u8]);
// SAFETY: the buffers outlive the threads, work items do not overlap, and each thread takes scratch memory of its own.
unsafe impl Sync for Pointers<'_> {}

impl Pointers<'_> {
    fn get(&self, i: usize) -> *mut u8 {
        self.0[i]
    }
}

/// Runs all kernels of the program on `threads` threads, which meet between kernels.
pub fn run_layer(program: &Program, code: &Compiled, buffers: &[*mut u8], n_tokens: u64, threads: usize) -> Took {
    let operands: Vec<Vec<*mut u8>> =
        program.kernels.iter().map(|k| k.body.operands().iter().map(|(b, _)| buffers[b.index()]).collect()).collect();
    let operands: Vec<Pointers> = operands.iter().map(|o| Pointers(o)).collect();
    let next: Vec<AtomicU64> = program.kernels.iter().map(|_| AtomicU64::new(0)).collect();
    let done: Vec<AtomicUsize> = program.kernels.iter().map(|_| AtomicUsize::new(0)).collect();
    let (math, kernels) = (CpuMath::standard(), moec_cpu_kernels::table());
    let strides: Vec<Vec<Strides>> = program.kernels.iter().map(|k| super::strides(program, &k.body)).collect();
    let (operands, strides) = (&operands, &strides);
    // Written before the clock runs, as that of a loaded layer has been.
    let scratch_bytes = code.kernels.iter().map(|(_, launch)| launch.scratch_bytes).max().unwrap_or(0);
    let mut scratch: Vec<Memory> = (0..threads).map(|_| Memory::new(scratch_bytes as usize)).collect();
    let scratch: Vec<*mut u8> = scratch.iter_mut().map(Memory::pointer).collect();
    let scratch = &Pointers(&scratch);
    time(threads, |thread| {
        let mut cpu = 0.0;
        let scratch = scratch.get(thread);
        for (k, (function, launch)) in code.kernels.iter().enumerate() {
            let (buffers, strides) = (operands[k].0.as_ptr(), strides[k].as_ptr());
            let context = CpuContext { buffers, n_tokens, scratch, math: &math, kernels: &kernels, strides };
            let items = launch.items.at(n_tokens);
            // As the loader's threads do.
            let piece = (items / (threads as u64 * 8)).max(1);
            let start = cpu_seconds();
            loop {
                let begin = next[k].fetch_add(piece, Ordering::Relaxed);
                if begin >= items {
                    break;
                }
                // SAFETY: the kernel was compiled for these buffers, which are as large as the program says.
                unsafe { function(&context, begin, (begin + piece).min(items)) };
            }
            cpu += cpu_seconds() - start;
            meet(&done[k], threads);
        }
        cpu
    })
}

/// The median of a figure.
pub fn median<T>(x: &[T], figure: impl Fn(&T) -> f64) -> f64 {
    let mut x: Vec<f64> = x.iter().map(figure).collect();
    x.sort_by(f64::total_cmp);
    x[x.len() / 2]
}

/// Adds up memory as fast as the compiler knows how.
pub fn read(bytes: &[u8]) -> u64 {
    let mut sums = [0u64; 16];
    for chunk in bytes.chunks_exact(128) {
        for (sum, word) in sums.iter_mut().zip(chunk.chunks_exact(8)) {
            *sum = sum.wrapping_add(u64::from_le_bytes(word.try_into().unwrap()));
        }
    }
    sums.iter().fold(0, |a, b| a.wrapping_add(*b))
}
