//! A small runner for compiled programs, and random data.
#![allow(dead_code, clippy::unwrap_used)]

pub mod clock;
pub mod coded;
pub mod layer;

use memmap2::{Mmap, MmapMut};
use moec_cpu::{CpuFeatures, Jit, JitProgram, ObjectOptions, compile_object};
use moec_ir::abi::{BUFFER_ALIGN, CpuContext, CpuKernel, CpuMath, Strides};
use moec_ir::tensor::Data;
use moec_ir::tile::{Buffer, CpuLaunch, Program, Role};
use moec_ir::{DType, Tensor};
use object::{Object, ObjectSection, ObjectSymbol};

/// What stands in memory that nobody has written: NaN in every float type, -1 in integers.
const GARBAGE: u8 = 0xff;
/// Bytes behind each buffer that must stay as they are.
const GUARD: usize = 512;

/// Compiled kernels and what keeps them in memory.
pub struct Compiled {
    pub name: &'static str,
    pub kernels: Vec<(CpuKernel, CpuLaunch)>,
    _jit: Option<JitProgram>,
    _object: Option<Mmap>,
}

/// The program as native JIT code, baseline JIT code, and an object file loaded as the crate documents.
pub fn compile_all(program: &Program) -> Vec<Compiled> {
    vec![
        jit("native jit", Jit::native(), program),
        jit("baseline jit", Jit { features: CpuFeatures::Baseline }, program),
        load_object(program),
    ]
}

pub fn jit(name: &'static str, jit: Jit, program: &Program) -> Compiled {
    let code = jit.compile(program).unwrap();
    let kernels = code.kernels().iter().map(|k| (k.function, k.launch.clone())).collect();
    Compiled { name, kernels, _jit: Some(code), _object: None }
}

pub fn load_object(program: &Program) -> Compiled {
    let compiled = compile_object(program, &ObjectOptions::default()).unwrap();
    let file = object::File::parse(compiled.bytes.as_slice()).unwrap();
    for section in file.sections() {
        assert_eq!(section.relocations().count(), 0, "section {:?} should have no relocations", section.name());
    }
    let text = file.section_by_name(".text").unwrap();
    let mut memory = MmapMut::map_anon(text.data().unwrap().len()).unwrap();
    memory.copy_from_slice(text.data().unwrap());
    let code = memory.make_exec().unwrap();
    let kernels = compiled
        .kernels
        .iter()
        .map(|k| {
            let symbol = file.symbols().find(|s| s.name() == Ok(&k.symbol)).unwrap();
            let start = &code[symbol.address() as usize..][..symbol.size() as usize];
            // SAFETY: the symbol is a kernel of an object file that was just compiled; the memory outlives it.
            let function = unsafe { std::mem::transmute::<*const u8, CpuKernel>(start.as_ptr()) };
            (function, k.launch.clone())
        })
        .collect();
    Compiled { name: "object", kernels, _jit: None, _object: Some(code) }
}

/// Asks for large pages before memory is written, as the loader does for weights.
fn advise_large_pages(memory: &Vec<u8>) {
    #[cfg(target_os = "linux")]
    if memory.capacity() >= 4 << 20 {
        let start = memory.as_ptr().addr().next_multiple_of(4096);
        let len = memory.capacity() - 4096;
        // SAFETY: these whole pages are this memory's; advice changes nothing that they hold.
        unsafe { libc::madvise(std::ptr::with_exposed_provenance_mut(start), len, libc::MADV_HUGEPAGE) };
    }
    #[cfg(not(target_os = "linux"))]
    let _ = memory;
}

/// Memory aligned as buffers are.
pub struct Memory {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

impl Memory {
    pub fn new(len: usize) -> Memory {
        let align = BUFFER_ALIGN as usize;
        let mut bytes = Vec::with_capacity(len + align + GUARD);
        advise_large_pages(&bytes);
        bytes.resize(len + align + GUARD, GARBAGE);
        let start = bytes.as_ptr().align_offset(align);
        Memory { bytes, start, len }
    }

    pub fn slice(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + self.len]
    }

    pub fn pointer(&mut self) -> *mut u8 {
        self.bytes[self.start..].as_mut_ptr()
    }

    fn check_guard(&self, name: &str) {
        assert!(
            self.bytes[self.start + self.len..].iter().all(|&b| b == GARBAGE)
                && self.bytes[..self.start].iter().all(|&b| b == GARBAGE),
            "something was written outside `{name}`"
        );
    }
}

#[derive(Clone, Copy)]
struct Shared(*const CpuContext);
// SAFETY: the context and what it points to outlive the threads, and work items do not overlap.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

/// How the operands of a kernel lie that were packed for it.
pub fn strides(program: &Program, body: &moec_ir::tile::Body) -> Vec<Strides> {
    body.operands().iter().map(|&(id, _)| Strides::of(program.buffer(id))).collect()
}

/// Runs one kernel on buffers that lie as they were compiled, its items dealt out to `threads` threads in pieces.
pub fn run_kernel(
    kernel: &(CpuKernel, CpuLaunch),
    buffers: &[*mut u8],
    strides: &[Strides],
    n_tokens: u64,
    threads: u64,
) {
    let (math, kernels) = (CpuMath::standard(), moec_cpu_kernels::table());
    let items = kernel.1.items.at(n_tokens);
    let next = std::sync::atomic::AtomicU64::new(0);
    let piece = (items / (threads * 4)).max(1);
    let contexts: Vec<(CpuContext, Memory)> = (0..threads)
        .map(|_| {
            let mut scratch = Memory::new(kernel.1.scratch_bytes as usize);
            let pointer = scratch.pointer();
            let (buffers, strides) = (buffers.as_ptr(), strides.as_ptr());
            (CpuContext { buffers, n_tokens, scratch: pointer, math: &math, kernels: &kernels, strides }, scratch)
        })
        .collect();
    std::thread::scope(|scope| {
        for (context, _) in &contexts {
            let (context, next, kernel) = (Shared(context), &next, kernel.0);
            scope.spawn(move || {
                let context = context;
                loop {
                    let begin = next.fetch_add(piece, std::sync::atomic::Ordering::Relaxed);
                    if begin >= items {
                        break;
                    }
                    // SAFETY: the kernel was compiled for these buffers, which are as large as the program says.
                    unsafe { kernel(context.0, begin, (begin + piece).min(items)) };
                }
            });
        }
    });
    contexts.iter().for_each(|(_, scratch)| scratch.check_guard("scratch"));
}

/// The bytes of a tensor in the layout of a buffer: padding between rows is zero for weights, else garbage.
fn pack(buffer: &Buffer, tensor: &Tensor, to: &mut [u8]) {
    let tensor = Tensor { dtype: buffer.dtype, ..tensor.clone() };
    let bytes = tensor.to_bytes();
    let row = buffer.cols as usize * buffer.dtype.bytes();
    let pitch = buffer.pitch as usize * buffer.dtype.bytes();
    if row == 0 {
        return;
    }
    for (i, from) in bytes.chunks(row).enumerate() {
        if matches!(buffer.role, Role::Weight(_)) {
            to[i * pitch..(i + 1) * pitch].fill(0);
        }
        to[i * pitch..i * pitch + row].copy_from_slice(from);
    }
}

fn unpack(buffer: &Buffer, n_tokens: u64, from: &[u8]) -> Tensor {
    let rows = (buffer.batch * buffer.rows.at(n_tokens)) as usize;
    let row = buffer.cols as usize * buffer.dtype.bytes();
    let pitch = buffer.pitch as usize * buffer.dtype.bytes();
    let bytes: Vec<u8> = (0..rows).flat_map(|r| from[r * pitch..r * pitch + row].to_vec()).collect();
    Tensor::from_bytes(buffer.dtype, &[rows, buffer.cols as usize], &bytes).unwrap()
}

/// Runs a compiled program, and returns its outputs in the order of the graph's.
pub fn run(program: &Program, code: &Compiled, inputs: &[Tensor], params: &[Tensor], n_tokens: u64) -> Vec<Tensor> {
    let content = |b: &Buffer| match b.role {
        Role::Input(i) => Some(inputs[i as usize].clone()),
        Role::Weight(i) => Some(params[i as usize].clone()),
        Role::WeightScale(_) | Role::WeightGlobal(_) | Role::Output(_) | Role::Workspace | Role::Counter => None,
    };
    run_given(program, code, n_tokens, content)
}

/// As [`run`], with what each buffer holds at the start.
pub fn run_given(
    program: &Program,
    code: &Compiled,
    n_tokens: u64,
    content: impl Fn(&Buffer) -> Option<Tensor>,
) -> Vec<Tensor> {
    run_on(program, code, n_tokens, 3, content)
}

/// As [`run_given`], on a number of threads.
pub fn run_on(
    program: &Program,
    code: &Compiled,
    n_tokens: u64,
    threads: u64,
    content: impl Fn(&Buffer) -> Option<Tensor>,
) -> Vec<Tensor> {
    let mut memory: Vec<Memory> = program.buffers.iter().map(|b| Memory::new(b.bytes(n_tokens) as usize)).collect();
    for (b, m) in program.buffers.iter().zip(&mut memory) {
        if let Some(tensor) = content(b) {
            pack(b, &tensor, m.slice());
        }
    }
    for (kernel, compiled) in program.kernels.iter().zip(&code.kernels) {
        let pointers: Vec<*mut u8> = kernel.body.operands().iter().map(|(b, _)| memory[b.index()].pointer()).collect();
        run_kernel(compiled, &pointers, &strides(program, &kernel.body), n_tokens, threads);
    }
    let mut outputs: Vec<(u32, Tensor)> = Vec::new();
    for (b, m) in program.buffers.iter().zip(&mut memory) {
        m.check_guard(&b.name);
        if let Role::Output(i) = b.role {
            outputs.push((i, unpack(b, n_tokens, m.slice())));
        }
    }
    outputs.sort_by_key(|(i, _)| *i);
    outputs.into_iter().map(|(_, t)| t).collect()
}

/// Runs every form of the compiled program and compares each output with the reference evaluator: integers exactly, floats
/// within `tolerance` of the norm.
pub fn check(program: &Program, inputs: &[Tensor], params: &[Tensor], n_tokens: u64, tolerance: f64, case: &str) {
    let want = moec_ir::tile::evaluate(program, inputs, params, n_tokens as usize).unwrap();
    for code in compile_all(program) {
        let got = run(program, &code, inputs, params, n_tokens);
        for (i, (got, want)) in got.iter().zip(&want).enumerate() {
            if let Data::Int(_) = want.data {
                assert_eq!(got, want, "{case}, T = {n_tokens}, {}: output {i}", code.name);
            } else {
                let error = got.worst_error(want);
                assert!(error <= tolerance, "{case}, T = {n_tokens}, {}: output {i} is off by {error:e}", code.name);
            }
        }
    }
}

/// Repeatable random numbers (xorshift64*, Marsaglia 2003).
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Uniform in -1 … 1.
    pub fn float(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    /// A tensor of values within ±scale.
    pub fn tensor(&mut self, dtype: DType, shape: &[usize], scale: f32) -> Tensor {
        let n = shape.iter().product();
        Tensor::float(dtype, shape, (0..n).map(|_| self.float() * scale).collect())
    }
}
