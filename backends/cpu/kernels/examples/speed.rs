//! How fast products are on one core: bytes of weights a second with one row, multiply-adds with many.
//!
//! `cargo run --release -p moec-cpu-kernels --example speed [-- FORMAT [KIB [INSTRUCTIONS]]]`. Every job has 64 columns of 2048 elements,
//! from 96 MiB of memory, which no cache holds, or from `KIB`. Formats with ` i16` are multiplied with rows of 16-bit integers.
#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "a program for people")]

use moec_cpu_kernels::{Instructions, with};
use moec_ir::DType;
use moec_ir::abi::{CpuKernels, Encoding, PRODUCTS_SCRATCH_BYTES, Products, arranged_len};
use moec_ir::quant::{Code, QuantFormat, ScaleCode};

const K: u64 = 2048;
const COLUMNS: u64 = 64;
const ROWS: [u64; 8] = [1, 2, 3, 4, 8, 16, 32, 64];
const MEMORY: u64 = 96 << 20;
const ROUNDS: usize = 11;

struct Aligned(Vec<u8>, usize);

impl Aligned {
    fn new(bytes: u64) -> Aligned {
        let v = vec![0u8; bytes as usize + 256];
        let start = v.as_ptr().align_offset(256);
        Aligned(v, start)
    }

    fn pointer(&mut self) -> *mut u8 {
        self.0[self.1..].as_mut_ptr()
    }
}

fn main() {
    let only = std::env::args().nth(1);
    let memory = std::env::args().nth(2).map_or(MEMORY, |kib| kib.parse::<u64>().unwrap() << 10);
    let which = std::env::args().nth(3);
    let coded = |code, scale, block_rows, block_cols| Some(QuantFormat { code, scale, block_rows, block_cols });
    let mxfp4 = coded(Code::E2M1, ScaleCode::E8M0, 1, 32);
    let nvfp4 = coded(Code::E2M1, ScaleCode::E4M3, 1, 16);
    let int4 = |block| coded(Code::Int4, ScaleCode::BF16, 1, block);
    let formats = [
        ("bf16", None, false),
        ("FP8 128x128", coded(Code::E4M3, ScaleCode::F32, 128, 128), false),
        ("MXFP8", coded(Code::E4M3, ScaleCode::E8M0, 1, 32), false),
        ("MXFP4", mxfp4, false),
        ("NVFP4", nvfp4, false),
        ("INT4 g32", int4(32), false),
        ("INT4 g128", int4(128), false),
        ("MXFP4 i16", mxfp4, true),
        ("NVFP4 i16", nvfp4, true),
        ("INT4 g32 i16", int4(32), true),
        ("INT4 g128 i16", int4(128), true),
    ];
    let mut weights = Aligned::new(MEMORY);
    let p = weights.pointer();
    // bf16 of about ±2⁻⁵; no NaN of e4m3.
    for i in 0..MEMORY {
        let random = (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 33) as u8;
        let byte = if i % 2 == 1 { random & 0x80 | 0x3c } else { random & 0xbf };
        // SAFETY: within the memory.
        unsafe { *p.add(i as usize) = byte };
    }
    println!("{:13} {:10} GB/s with one row; then Gflop/s with {ROWS:?} rows", "", "");
    for (name, format, integers) in formats {
        if only.as_ref().is_some_and(|o| !name.contains(o.as_str())) {
            continue;
        }
        for instructions in Instructions::here().into_iter().skip(1) {
            if which.as_ref().is_some_and(|w| format!("{instructions:?}") != *w) {
                continue;
            }
            let kernels = with(instructions).unwrap();
            let times = ROWS.map(|rows| time(&kernels, (format, integers), rows, p, memory));
            let bytes = format.map_or(K * 2 * COLUMNS, |f| f.matrix_bytes(COLUMNS, K)) as f64;
            let flops = |rows: u64| 2.0 * (rows * K * COLUMNS) as f64;
            let speeds: Vec<String> =
                ROWS.iter().zip(times).map(|(&r, t)| format!("{:6.1}", flops(r) / t / 1e9)).collect();
            let instructions = format!("{instructions:?}");
            println!("{name:13} {instructions:10} {:6.2}   {}", bytes / times[0] / 1e9, speeds.join(" "));
        }
    }
}

/// Processor time of this thread, in seconds.
fn cpu_seconds() -> f64 {
    let mut t = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a live timespec.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut t) };
    t.tv_sec as f64 + t.tv_nsec as f64 * 1e-9
}

/// Seconds of processor time of a job.
fn time(
    kernels: &CpuKernels,
    (format, integers): (Option<QuantFormat>, bool),
    rows: u64,
    weights: *mut u8,
    memory: u64,
) -> f64 {
    let with_rows = |e: Encoding| if integers { e.with_int16_rows() } else { e.with_bf16_rows() }.bits();
    let width = arranged_len(K);
    let mut x = Aligned::new(rows * width * 4);
    let row: Vec<u8> = [0x80, 0x3f].repeat(K as usize);
    for r in 0..rows {
        let to = x.pointer().wrapping_add((r * width * 4) as usize).cast();
        // SAFETY: there are `K` elements, and room for as many floats.
        unsafe { (kernels.arrange)(row.as_ptr(), with_rows(Encoding::floats(DType::BF16).unwrap()), K, to) };
    }
    let mut out = Aligned::new(rows * COLUMNS * 4);
    let mut scratch = Aligned::new(PRODUCTS_SCRATCH_BYTES);
    let mut scales = Aligned::new(COLUMNS * K / 4);
    let one = format.map_or(vec![0], |f| f.scale.encode(0.015625));
    let (at, n) = (scales.1, (COLUMNS * K / 4) as usize / one.len() * one.len());
    scales.0[at..at + n].chunks_exact_mut(one.len()).for_each(|c| c.copy_from_slice(&one));
    let global = 1.0f32;
    let (encoding, pitch, grid) = match format {
        None => (Encoding::floats(DType::BF16), K * 2, 0),
        Some(f) => {
            let cells = f.scale_grid(COLUMNS, K).1;
            (Encoding::codes(&f, DType::BF16), f.code.bytes(K), cells * f.scale.bytes())
        }
    };
    let mut job = Products {
        rows: x.pointer().cast(),
        n_rows: rows,
        k: K,
        weights,
        pitch,
        n_columns: COLUMNS,
        out: out.pointer().cast(),
        out_pitch: COLUMNS,
        scratch: scratch.pointer(),
        encoding: with_rows(encoding.unwrap()),
        next: std::ptr::null(),
        scales: scales.pointer(),
        scales_pitch: grid,
        global: &raw const global,
        first_column: 0,
        block_rows: format.map_or(0, |f| f.block_rows),
        block_cols: format.map_or(0, |f| f.block_cols),
        next_scales: std::ptr::null(),
    };
    let (places, jobs) = (memory / (pitch * COLUMNS), 2 + 2000 / rows);
    let mut times: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            let start = cpu_seconds();
            for i in 0..jobs {
                job.weights = weights.wrapping_add((i % places * pitch * COLUMNS) as usize);
                // SAFETY: everything that the job points to is as large as it says.
                unsafe { (kernels.products)(&job) };
            }
            (cpu_seconds() - start) / jobs as f64
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times[ROUNDS / 2]
}
