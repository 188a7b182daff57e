//! Threads that run the kernels of a layer one after another, with little delay between them.
//!
//! A run is a list of stages (one for each kernel). Every participant walks through all stages: it takes chunks of work
//! items from the stage's counter until none is left, waits until all items of the stage are finished (by whomever), and
//! goes on. So threads are woken once a run and not once a kernel, and a thread that wakes late holds up nobody.

use super::affinity;
use super::interleave::Interleaving;
use moec_ir::abi::{CpuContext, CpuKernel};
use moec_ir::diag::Diagnostic;
use std::cell::UnsafeCell;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// Most stages of one run: counters are made once for all runs.
pub(crate) const MAX_STAGES: usize = 4096;

/// How often a thread looks again before it gives the processor away: some ten microseconds.
const SPINS: u32 = 4000;

/// One kernel of a run.
#[derive(Clone, Copy)]
pub(crate) struct Stage {
    pub kernel: CpuKernel,
    /// `scratch` is the first participant's; each further one has its own, `scratch_stride` bytes on.
    pub context: CpuContext,
    pub scratch_stride: usize,
    pub items: u64,
}

/// A set of threads. Layers may share one; runs of different layers then wait for each other.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// Held during a run: there is one list of stages.
    running: Mutex<()>,
    /// Where layers that run here have their packed weights.
    interleaving: Interleaving,
}

struct Shared {
    n_threads: usize,
    /// Written only while `open` is false and `active` is 0.
    stages: UnsafeCell<(*const Stage, usize)>,
    progress: Vec<Progress>,
    /// Whether workers may look at `stages`.
    open: AtomicBool,
    /// Workers that are looking at `open` or working.
    active: AtomicUsize,
    /// Number of the run; changes wake the workers.
    epoch: AtomicU64,
    stop: AtomicBool,
    sleeping: AtomicUsize,
    lock: Mutex<()>,
    wake: Condvar,
}

/// Counters of one stage, alone on their cache lines.
#[repr(align(128))]
#[derive(Default)]
struct Progress {
    next: AtomicU64,
    finished: AtomicU64,
}

// SAFETY: `stages` is the only field that is not `Sync`. `Pool::run` writes it while no worker may read it (see the
// protocol there), and what it points to is `Sync` by the contract of `Pool::run`.
unsafe impl Sync for Shared {}
// SAFETY: as above; nothing in it belongs to a particular thread.
unsafe impl Send for Shared {}

fn lock(m: &Mutex<()>) -> MutexGuard<'_, ()> {
    // The mutexes guard no data, so a panic while one was held leaves nothing broken.
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Most threads of a pool.
pub const MAX_THREADS: usize = 1024;

impl Pool {
    /// A pool of `n_threads` threads, the caller's among them; 0 means one for each core, up to [`MAX_THREADS`].
    ///
    /// # Errors
    /// `argument-invalid` for more than [`MAX_THREADS`]; `out-of-memory` when the machine does not start as many as were asked for.
    pub fn new(n_threads: usize) -> Result<Pool, Diagnostic> {
        if n_threads > MAX_THREADS {
            let what = format!("{n_threads} threads are asked for; a pool has up to {MAX_THREADS}");
            return Err(Diagnostic::input("argument-invalid", what).help("give 0 for one thread for each core"));
        }
        if n_threads == 0 {
            return Ok(Pool::for_all_cores());
        }
        Pool::of(n_threads, None)?.complete()
    }

    /// A pool with a thread on each of these processors, in their order, where each stays. The calling thread is the first of them:
    /// it should be the one that runs the layers. Where the processors are of several NUMA nodes, the packed weights of layers that
    /// are loaded for the pool are spread over these ([`Pool::interleaving`]).
    ///
    /// # Errors
    /// `cpu-not-available`; `argument-invalid` for none or more than [`MAX_THREADS`]; `out-of-memory` as for [`Pool::new`].
    pub fn pinned(cpus: &[usize]) -> Result<Pool, Diagnostic> {
        let Some(&first) = cpus.first().filter(|_| cpus.len() <= MAX_THREADS) else {
            let what = format!("{} processors are named; a pool has 1 to {MAX_THREADS} threads", cpus.len());
            return Err(Diagnostic::input("argument-invalid", what).help("name one for each thread"));
        };
        affinity::check(cpus)?;
        let mut pool = Pool::of(cpus.len(), Some(cpus))?.complete()?;
        affinity::pin(first)?;
        pool.interleaving = Interleaving::of(cpus);
        Ok(pool)
    }

    /// # Errors
    /// `out-of-memory` when there are fewer threads than were asked for.
    fn complete(self) -> Result<Pool, Diagnostic> {
        let n_threads = self.n_threads();
        match self.workers.len() + 1 {
            started if started < n_threads => {
                let what = format!("{n_threads} threads are asked for, but the machine started {started}");
                Err(Diagnostic::machine("out-of-memory", what).help("ask for fewer threads, or raise `ulimit -u`"))
            }
            _ => Ok(self),
        }
    }

    /// A pool of one thread for each core, up to [`MAX_THREADS`]; fewer where the machine starts no more.
    pub fn for_all_cores() -> Pool {
        let n_threads = std::thread::available_parallelism().map_or(1, usize::from).min(MAX_THREADS);
        Pool::of(n_threads, None).expect("threads that are not pinned should be what they are")
    }

    /// As many threads as start; with `cpus`, each on its own.
    ///
    /// # Errors
    /// `cpu-not-available`.
    fn of(wanted: usize, cpus: Option<&[usize]>) -> Result<Pool, Diagnostic> {
        let shared = Arc::new(Shared {
            n_threads: wanted,
            stages: UnsafeCell::new((std::ptr::null(), 0)),
            progress: (0..MAX_STAGES).map(|_| Progress::default()).collect(),
            open: AtomicBool::new(false),
            active: AtomicUsize::new(0),
            epoch: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            sleeping: AtomicUsize::new(0),
            lock: Mutex::new(()),
            wake: Condvar::new(),
        });
        // Every item is run by those threads that there are.
        let (told, tells) = std::sync::mpsc::channel();
        let workers: Vec<_> = (1..wanted)
            .map_while(|i| {
                let (shared, told, cpu) = (shared.clone(), told.clone(), cpus.map(|cpus| cpus[i]));
                let name = cpu.map_or_else(|| format!("moec-{i}"), |cpu| format!("moec-cpu{cpu}"));
                let run = move || {
                    // Whoever makes the pool waits for this.
                    let _ = told.send(cpu.map_or(Ok(()), affinity::pin));
                    worker(&shared, i);
                };
                std::thread::Builder::new().name(name).spawn(run).ok()
            })
            .collect();
        let pool = Pool { shared, workers, running: Mutex::new(()), interleaving: Interleaving::Off };
        if cpus.is_some() {
            tells.iter().take(pool.workers.len()).collect::<Result<Vec<()>, _>>()?;
        }
        Ok(pool)
    }

    /// Number of threads that take part in a run, the caller's among them.
    pub fn n_threads(&self) -> usize {
        self.shared.n_threads
    }

    /// Over which NUMA nodes the packed weights of layers are spread that are loaded for this pool.
    pub fn interleaving(&self) -> &Interleaving {
        &self.interleaving
    }

    /// Runs the stages in order; returns when all items of all stages are finished. Does not allocate.
    ///
    /// # Safety
    /// Every stage's kernel may be called from any thread with its context and any items below `items`, up to
    /// [`Pool::n_threads`] calls at once, each with scratch memory of its own: participant `i` uses
    /// `context.scratch + i * scratch_stride`.
    ///
    /// # Panics
    /// With more than [`MAX_STAGES`] stages.
    pub(crate) unsafe fn run(&self, stages: &[Stage]) {
        assert!(stages.len() <= MAX_STAGES, "a run should have at most {MAX_STAGES} stages");
        let _running = lock(&self.running);
        let s = &*self.shared;
        // SAFETY: `open` is false since the last run (or ever), and that run waited for `active` to become 0 after it
        // had closed. A worker that raises `active` since then finds `open` false and does not touch `stages`.
        unsafe { *s.stages.get() = (stages.as_ptr(), stages.len()) };
        for p in &s.progress[..stages.len()] {
            p.next.store(0, Ordering::Relaxed);
            p.finished.store(0, Ordering::Relaxed);
        }
        s.open.store(true, Ordering::SeqCst);
        s.epoch.fetch_add(1, Ordering::SeqCst);
        if s.sleeping.load(Ordering::SeqCst) > 0 {
            let _guard = lock(&s.lock);
            s.wake.notify_all();
        }
        // SAFETY: the caller's contract; the calling thread is participant 0.
        unsafe { work(s, stages, 0) };
        // From here a worker either sees that the run is closed, or has raised `active` before and is waited for: both
        // sides write first and then read, in one total order.
        s.open.store(false, Ordering::SeqCst);
        let mut spins = 0;
        while s.active.load(Ordering::SeqCst) != 0 {
            pause(&mut spins);
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.shared.epoch.fetch_add(1, Ordering::SeqCst);
        {
            let _guard = lock(&self.shared.lock);
            self.shared.wake.notify_all();
        }
        for worker in self.workers.drain(..) {
            // A worker only runs kernels, which do not unwind.
            let _ = worker.join();
        }
    }
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool").field("n_threads", &self.n_threads()).finish()
    }
}

fn pause(spins: &mut u32) {
    if *spins < SPINS {
        *spins += 1;
        std::hint::spin_loop();
    } else {
        // Another thread may need this core to finish what is waited for.
        std::thread::yield_now();
    }
}

/// Waits for a new run: looks for a while, then sleeps.
fn wait_for_run(s: &Shared, seen: u64) -> u64 {
    for _ in 0..SPINS {
        let epoch = s.epoch.load(Ordering::SeqCst);
        if epoch != seen {
            return epoch;
        }
        std::hint::spin_loop();
    }
    let mut guard = lock(&s.lock);
    s.sleeping.fetch_add(1, Ordering::SeqCst);
    // The epoch is read after `sleeping` was raised, and the caller reads `sleeping` after it raised the epoch, so one of
    // the two notices the other; the lock makes the notice arrive after the wait has begun.
    let epoch = loop {
        let epoch = s.epoch.load(Ordering::SeqCst);
        if epoch != seen {
            break epoch;
        }
        guard = s.wake.wait(guard).unwrap_or_else(PoisonError::into_inner);
    };
    s.sleeping.fetch_sub(1, Ordering::SeqCst);
    epoch
}

fn worker(s: &Shared, participant: usize) {
    let mut seen = 0;
    loop {
        seen = wait_for_run(s, seen);
        if s.stop.load(Ordering::SeqCst) {
            return;
        }
        s.active.fetch_add(1, Ordering::SeqCst);
        if s.open.load(Ordering::SeqCst) {
            // SAFETY: the run is open and waits for `active` to fall before it returns, so the stages stay where they
            // are; they were written before `open` was set. Each worker has a number of its own.
            unsafe {
                let (stages, n) = *s.stages.get();
                work(s, std::slice::from_raw_parts(stages, n), participant);
            }
        }
        s.active.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Takes part in all stages of a run.
///
/// # Safety
/// As [`Pool::run`]; `participant` is this thread's alone.
unsafe fn work(s: &Shared, stages: &[Stage], participant: usize) {
    for (stage, progress) in stages.iter().zip(&s.progress) {
        // Eight chunks for each thread even out items of unequal cost; more would only contend for the counter.
        let chunk = (stage.items / (s.n_threads as u64 * 8)).max(1);
        let mut context = stage.context;
        context.scratch = context.scratch.wrapping_add(participant * stage.scratch_stride);
        loop {
            let begin = progress.next.fetch_add(chunk, Ordering::Relaxed);
            if begin >= stage.items {
                break;
            }
            let end = (begin + chunk).min(stage.items);
            // SAFETY: the caller's contract: any items below `items`, with this participant's own scratch memory.
            unsafe { (stage.kernel)(&context, begin, end) };
            progress.finished.fetch_add(end - begin, Ordering::Release);
        }
        let mut spins = 0;
        while progress.finished.load(Ordering::Acquire) < stage.items {
            pause(&mut spins);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use moec_ir::abi::CpuMath;

    /// Adds 1 to each of its items in buffer 0, and checks that the stage before has finished all of them: an item is
    /// `u64` and must hold the stage's number, given as the token count.
    unsafe extern "C" fn step(context: *const CpuContext, begin: u64, end: u64) {
        // SAFETY: the tests give one buffer of as many items as the stage has.
        unsafe {
            let c = &*context;
            let data = (*c.buffers).cast::<AtomicU64>();
            for i in begin..end {
                // Another item than the one that is written, finished by another thread perhaps.
                let other = (*data.add(((i * 7919) % 1000) as usize)).load(Ordering::Relaxed);
                let own = (*data.add(i as usize)).fetch_add(1, Ordering::Relaxed);
                assert!(own == c.n_tokens && (other == own || other == own + 1));
            }
            *c.scratch = c.scratch.read().wrapping_add(1);
        }
    }

    fn stages<'a>(
        buffers: &'a [*mut u8],
        scratch: &'a mut [u8],
        math: &'a CpuMath,
        n: usize,
        items: u64,
    ) -> Vec<Stage> {
        (0..n)
            .map(|i| Stage {
                kernel: step,
                context: CpuContext {
                    buffers: buffers.as_ptr(),
                    n_tokens: i as u64,
                    scratch: scratch.as_mut_ptr(),
                    math,
                    // The kernel of these tests calls nothing.
                    kernels: std::ptr::null(),
                    strides: std::ptr::null(),
                },
                scratch_stride: 256,
                items,
            })
            .collect()
    }

    #[test]
    fn every_item_runs_once_and_stages_do_not_overlap() {
        for n_threads in [1, 2, 5] {
            let pool = Pool::new(n_threads).expect("threads");
            let math = CpuMath::standard();
            for _ in 0..200 {
                let data: Vec<AtomicU64> = (0..1000).map(|_| AtomicU64::new(0)).collect();
                let buffers = [data.as_ptr() as *mut u8];
                let mut scratch = vec![0u8; 256 * n_threads];
                let list = stages(&buffers, &mut scratch, &math, 12, 1000);
                // SAFETY: the kernel touches its buffer atomically and its own scratch; both outlive the run.
                unsafe { pool.run(&list) };
                assert!(data.iter().all(|x| x.load(Ordering::Relaxed) == 12));
            }
        }
    }

    #[test]
    fn stages_without_items_and_runs_without_stages_return() {
        let pool = Pool::new(3).expect("threads");
        let math = CpuMath::standard();
        let mut scratch = vec![0u8; 256 * 3];
        let list = stages(&[], &mut scratch, &math, 3, 0);
        // SAFETY: no item runs.
        unsafe {
            pool.run(&list);
            pool.run(&[]);
        }
    }

    #[test]
    fn as_many_threads_as_asked_for_or_none() {
        assert_eq!(Pool::new(7).map(|p| p.n_threads()).ok(), Some(7));
        let refused = Pool::new(MAX_THREADS + 1).expect_err("too many");
        assert_eq!(refused.code, "argument-invalid");
        assert!(refused.message.contains("1025") && refused.message.contains("1024"), "{}", refused.message);
    }

    #[test]
    fn sleeping_threads_wake_again() {
        let pool = Pool::new(2).expect("threads");
        let math = CpuMath::standard();
        for _ in 0..5 {
            std::thread::sleep(std::time::Duration::from_millis(3));
            let data: Vec<AtomicU64> = (0..1000).map(|_| AtomicU64::new(0)).collect();
            let buffers = [data.as_ptr() as *mut u8];
            let mut scratch = vec![0u8; 512];
            // SAFETY: as above.
            unsafe { pool.run(&stages(&buffers, &mut scratch, &math, 2, 1000)) };
        }
    }
}
