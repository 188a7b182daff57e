//! What a launch costs beside its kernels: no allocation, and little time.

mod common;

use common::{Io, archive, create, load, must};
use moec_c::*;
use std::alloc::{GlobalAlloc, Layout, System};
use std::hint::black_box;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

struct Counting;

// SAFETY: the system's allocator, counted.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller's contract.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// One after the other: the first counts what the whole process allocates.
#[test]
fn a_launch_costs_little() {
    a_launch_does_not_allocate();
    figures();
}

fn a_launch_does_not_allocate() {
    let layer = create(&archive(), 4);
    load(layer);
    must(moec_layer_finish(layer));
    for n in [0i64, 1, 4] {
        let mut io = Io::new(layer, n);
        let tensors = io.tensors();
        let list: Vec<*const moec_tensor> = tensors.iter().map(|t| &raw const *t).collect();
        let launch = moec_launch {
            struct_size: size_of::<moec_launch>(),
            inputs: list.as_ptr(),
            n_inputs: 1,
            outputs: list[1..].as_ptr(),
            n_outputs: 3,
            workspace: io.workspace.as_mut_ptr().cast(),
            workspace_bytes: io.workspace.len() as u64,
            stream: std::ptr::null_mut(),
        };
        // SAFETY: tensors that live as long as the calls.
        let run = || must(unsafe { moec_layer_launch(black_box(layer), black_box(&launch)) });
        run();
        let before = ALLOCATIONS.load(Ordering::SeqCst);
        (0..100).for_each(|_| run());
        assert_eq!(ALLOCATIONS.load(Ordering::SeqCst), before, "{n} tokens");
    }
    must(moec_layer_free(layer));
}

/// Not an assertion, which a busy machine would fail: the least of many, for `docs/embedding.md`. `cargo test --release -p
/// moec-capi --test launch_cost -- --nocapture` on a quiet machine.
#[allow(clippy::print_stdout, reason = "figures")]
fn figures() {
    let (bundle, mut layer) = (common::open(&archive()), std::ptr::null_mut());
    let options = moec_layer_options { n_threads: 1, ..common::options(4) };
    // SAFETY: a handle, options and a place.
    must(unsafe { moec_layer_create(bundle, &options, &mut layer) });
    load(layer);
    must(moec_layer_finish(layer));
    for n in [0i64, 1] {
        let mut io = Io::new(layer, n);
        let mut least = f64::INFINITY;
        for _ in 0..200 {
            let start = Instant::now();
            (0..20).for_each(|_| must(io.launch(layer, |_, _| {})));
            least = least.min(start.elapsed().as_secs_f64() / 20.0);
        }
        println!("a launch of {n} tokens through C: {:.2} µs", least * 1e6);
    }
    must(moec_layer_free(layer));
    must(moec_bundle_free(bundle));
}
