
/// What kernels are called with.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Context {
    buffers: *const *mut u8,
    n_tokens: u64,
    scratch: *mut u8,
    math: *const Math,
    kernels: *const core::ffi::c_void,
    strides: *const [u64; 2],
}

#[repr(C)]
struct Math {
    exp: extern "C" fn(f32) -> f32,
    softplus: extern "C" fn(f32) -> f32,
    tanh: extern "C" fn(f32) -> f32,
    erf: extern "C" fn(f32) -> f32,
    pow: extern "C" fn(f32, f32) -> f32,
}

unsafe extern "C" {
    /// Of libmoec_kernels.a: the matrix products, for the processor that runs this.
    safe fn moec_kernels() -> *const core::ffi::c_void;
    #[link_name = "erf"]
    safe fn c_erf(x: f64) -> f64;
}

extern "C" fn exp(x: f32) -> f32 {
    f64::from(x).exp() as f32
}
extern "C" fn softplus(x: f32) -> f32 {
    let d = f64::from(x);
    if x.is_nan() { x } else { (d.max(0.0) + (-d.abs()).exp().ln_1p()) as f32 }
}
extern "C" fn tanh(x: f32) -> f32 {
    f64::from(x).tanh() as f32
}
extern "C" fn erf(x: f32) -> f32 {
    c_erf(f64::from(x)) as f32
}
extern "C" fn pow(x: f32, y: f32) -> f32 {
    f64::from(x).powf(f64::from(y)) as f32
}

static MATH: Math = Math { exp, softplus, tanh, erf, pow };

type Function = unsafe extern "C" fn(*const Context, u64, u64);

/// One kernel's work, as threads get it.
#[derive(Clone, Copy)]
pub struct Work {
    function: Function,
    context: Context,
    scratch_stride: u64,
}

// SAFETY: items may be done on any thread; `Threads` promises that each has scratch memory of its own.
unsafe impl Sync for Work {}

impl Work {
    /// Does the items `begin..end`.
    ///
    /// # Safety
    /// `thread` is below the number of threads, and of one thread at a time; `end` is at most the number of items.
    pub unsafe fn run(&self, begin: u64, end: u64, thread: usize) {
        let mut context = self.context;
        context.scratch = context.scratch.wrapping_add(thread * self.scratch_stride as usize);
        // SAFETY: the kernel's own work, with scratch memory that is this thread's.
        unsafe { (self.function)(&context, begin, end) };
    }
}

/// The host's threads.
pub trait Threads {
    /// How many there are.
    fn count(&self) -> usize;
    /// Has every item below `n_items` done once, by [`Work::run`], and returns when all are done.
    fn run(&self, work: &Work, n_items: u64);
}

/// The caller's thread alone.
pub struct Alone;

impl Threads for Alone {
    fn count(&self) -> usize {
        1
    }

    fn run(&self, work: &Work, n_items: u64) {
        // SAFETY: the only thread, all items.
        unsafe { work.run(0, n_items, 0) };
    }
}

fn scratch_bytes(v: &Variant) -> u64 {
    aligned(v.kernels.iter().map(|k| k.scratch_bytes).max().unwrap_or(0).max(256))
}
