//! Jobs with random weights, in memory around which nothing may be touched.
#![allow(dead_code, clippy::unwrap_used)]

mod memory;

use memory::Guarded;
pub use memory::Place;
use moec_ir::abi::{CpuKernels, Encoding, PRODUCTS_SCRATCH_BYTES, Products, WeightCode, arranged_len};
use moec_ir::quant::{Code, QuantFormat, ScaleCode};
use moec_ir::{DType, Tensor};

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
}

/// How weights lie in memory.
#[derive(Clone, Copy, Debug)]
pub enum Weights {
    Floats(DType),
    Codes(QuantFormat, DType),
}

#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub rows: usize,
    pub k: usize,
    /// Columns of the matrix, and those that are multiplied.
    pub n: usize,
    pub columns: (usize, usize),
}

/// A job, what it points to, and what its weights stand for.
pub struct Case {
    pub shape: Shape,
    pub weights: Weights,
    /// Rows of activations, `k` each.
    pub x: Vec<f32>,
    /// Whether rows are bf16, as weights are.
    pub bf16_rows: bool,
    /// The type of rows that are rounded to 16-bit integers as they are arranged.
    pub int16_rows: Option<DType>,
    /// Rows of weights as floats, `k` each.
    pub values: Vec<f32>,
    codes: Guarded,
    scales: Guarded,
    global: Guarded,
    pitch: usize,
    grid_cols: usize,
    /// Where all memory of the job lies.
    place: Place,
}

impl Case {
    pub fn new(seed: u64, shape: Shape, weights: Weights) -> Case {
        Case::with_scales(seed, shape, weights, |r| 0.4 + r.float().abs())
    }

    /// With weights that are floats.
    pub fn with_floats(shape: Shape, weights: &Tensor) -> Case {
        let mut case = Case::new(1, shape, Weights::Floats(weights.dtype));
        let row_bytes = case.pitch - 16;
        for (i, row) in weights.to_bytes().chunks(row_bytes).enumerate() {
            // SAFETY: the codes have room for as many rows.
            unsafe {
                std::ptr::copy_nonoverlapping(row.as_ptr(), case.codes.pointer().add(i * case.pitch), row_bytes);
            }
        }
        case.values = weights.floats().to_vec();
        case
    }

    pub fn with_scales(seed: u64, shape: Shape, weights: Weights, mut scale: impl FnMut(&mut Random) -> f32) -> Case {
        let random = &mut Random(seed * 2 + 1);
        let Shape { rows, k, n, .. } = shape;
        let x = (0..rows * k).map(|_| random.float()).collect();
        let (codes, scales, global, values, row_bytes, grid_cols);
        match weights {
            Weights::Floats(dtype) => {
                let tensor = Tensor::float(dtype, &[n, k], (0..n * k).map(|_| random.float()).collect());
                (codes, scales, global) = (tensor.to_bytes(), Vec::new(), 1.0);
                (values, row_bytes, grid_cols) = (tensor.floats().to_vec(), k * dtype.bytes(), 0);
            }
            Weights::Codes(f, round) => {
                row_bytes = f.code.bytes(k as u64) as usize;
                let grid = f.scale_grid(n as u64, k as u64);
                grid_cols = grid.1 as usize;
                // Every code but NaN and infinity.
                codes = (0..n * row_bytes)
                    .map(|_| {
                        loop {
                            let b = (random.next() >> 32) as u8;
                            if f.code.bits() == 4 || f.code.decode(&[b], 0).is_finite() {
                                return b;
                            }
                        }
                    })
                    .collect::<Vec<u8>>();
                scales = (0..grid.0 * grid.1).flat_map(|_| f.scale.encode(scale(random))).collect::<Vec<u8>>();
                global = if f.has_global() { 0.37 } else { 1.0 };
                let mut floats = vec![0.0; n * k];
                for (row, out) in floats.chunks_mut(k.max(1)).enumerate() {
                    let codes = &codes[row * row_bytes..(row + 1) * row_bytes];
                    f.decode_row(codes, &scales, global, row as u64, (n as u64, k as u64), out);
                }
                values = Tensor::float(round, &[n, k], floats).floats().to_vec();
            }
        }
        // Columns lie a few bytes apart, as padded rows do; the last one ends at the guard.
        let pitch = row_bytes + 16;
        let mut padded = vec![0xff; n * pitch - 16];
        for (i, row) in codes.chunks(row_bytes.max(1)).enumerate() {
            padded[i * pitch..i * pitch + row.len()].copy_from_slice(row);
        }
        Case {
            shape,
            weights,
            x,
            bf16_rows: false,
            int16_rows: None,
            values,
            codes: Guarded::new(&padded, Place::default()),
            scales: Guarded::new(&scales, Place::default()),
            global: Guarded::new(&global.to_le_bytes(), Place::default()),
            pitch,
            grid_cols,
            place: Place::default(),
        }
    }

    /// The same in memory that lies elsewhere.
    pub fn placed(mut self, place: Place) -> Case {
        for memory in [&mut self.codes, &mut self.scales, &mut self.global] {
            *memory = Guarded::new(memory.bytes(), place);
        }
        Case { place, ..self }
    }

    /// The products as the kernels give them, row by row.
    pub fn run(&self, kernels: &CpuKernels) -> Vec<f32> {
        let Shape { rows, k, columns: (first, last), .. } = self.shape;
        let width = arranged_len(k as u64) as usize;
        let arranged = Guarded::new(&vec![0xff; rows * width * 4], self.place);
        let dtype = if self.bf16_rows { DType::BF16 } else { self.int16_rows.unwrap_or(DType::F32) };
        let encoding = self.with_rows(Encoding::floats(dtype).unwrap()).bits();
        let mut row = Guarded::new(&vec![0; k * dtype.bytes()], self.place);
        for r in 0..rows {
            let floats = Tensor::float(dtype, &[k], self.x[r * k..(r + 1) * k].to_vec());
            row.bytes_mut().copy_from_slice(&floats.to_bytes());
            let to = arranged.pointer().wrapping_add(r * width * 4).cast();
            // SAFETY: `row` has `k` floats, and there is room for an arranged row at `to`.
            unsafe { (kernels.arrange)(row.pointer(), encoding, k as u64, to) };
        }
        let (n_columns, padding) = (last - first, 3);
        let out = Guarded::new(&vec![0xff; (rows * (n_columns + padding) - padding) * 4], self.place);
        let (encoding, block_rows, block_cols) = match self.weights {
            Weights::Floats(dtype) => (Encoding::floats(dtype), 0, 0),
            Weights::Codes(f, round) => (Encoding::codes(&f, round), f.block_rows, f.block_cols),
        };
        let scale_bytes = match Encoding::decode(encoding.unwrap().bits()) {
            Some(WeightCode::Codes { scale, .. }) => ScaleCode::bytes(scale),
            Some(WeightCode::Floats(_)) | None => 0,
        };
        let job = Products {
            rows: arranged.pointer().cast(),
            n_rows: rows as u64,
            k: k as u64,
            weights: self.codes.pointer().wrapping_add(first * self.pitch),
            pitch: self.pitch as u64,
            n_columns: n_columns as u64,
            out: out.pointer().cast(),
            out_pitch: (n_columns + padding) as u64,
            scratch: scratch(self.place),
            encoding: self.with_rows(encoding.unwrap()).bits(),
            next: self.codes.pointer(),
            scales: self.scales.pointer(),
            scales_pitch: self.grid_cols as u64 * scale_bytes,
            global: self.global.pointer().cast(),
            first_column: first as u64,
            block_rows,
            block_cols,
            next_scales: self.scales.pointer(),
        };
        // SAFETY: everything that the job points to is as large as it says.
        unsafe { (kernels.products)(&job) };
        let all = out.floats();
        let untouched = f32::from_bits(u32::MAX).to_bits();
        (0..rows)
            .flat_map(|r| {
                let row = &all[r * (n_columns + padding)..];
                let gap = &row[n_columns..row.len().min(n_columns + padding)];
                assert!(gap.iter().all(|v| v.to_bits() == untouched), "{self:?}: wrote between rows");
                row[..n_columns].to_vec()
            })
            .collect()
    }

    /// The same with rows of bf16.
    pub fn with_bf16_rows(mut self) -> Case {
        self.bf16_rows = true;
        self.x = Tensor::float(DType::BF16, &[self.x.len()], self.x).floats().to_vec();
        self
    }

    /// The same with rows of 16-bit integers, of numbers of a type.
    pub fn with_int16_rows(mut self, dtype: DType) -> Case {
        self.int16_rows = Some(dtype);
        self.x = Tensor::float(dtype, &[self.x.len()], self.x).floats().to_vec();
        self
    }

    fn with_rows(&self, encoding: Encoding) -> Encoding {
        match self.int16_rows {
            Some(_) => encoding.with_int16_rows(),
            None if self.bf16_rows => encoding.with_bf16_rows(),
            None => encoding,
        }
    }

    /// The products in the order that `Products` documents for rows of integers, one at a time.
    pub fn integer_reference(&self) -> Vec<f32> {
        let Shape { rows, k, n, columns: (first, last) } = self.shape;
        let Weights::Codes(f, _) = self.weights else { panic!("rows of integers are multiplied with codes") };
        let unit = if f.code == Code::E2M1 { 0.5f32 } else { 1.0 };
        let (codes, scales) = (self.codes.bytes(), self.scales.bytes());
        let global = self.global.floats()[0];
        let (block, step) =
            if f.block_cols == 0 { (k.max(1), 32) } else { (f.block_cols as usize, f.block_cols.min(32) as usize) };
        let step = if k <= block { 32 } else { step };
        let one = |r: usize, c: usize| {
            let (mut sum, x) = (0.0f32, integers(&self.x[r * k..(r + 1) * k]));
            let row = &codes[c * self.pitch..];
            let grid_row = (c as u64).checked_div(f.block_rows).unwrap_or(0) as usize;
            for start in (0..k).step_by(step) {
                let code = |i: usize| (f.code.decode(row, i) / unit) as i64;
                let p: i64 = (start..k.min(start + step)).map(|i| i64::from(x.0[i]) * code(i)).sum();
                assert!(p.abs() < 1 << 24, "exact as f32");
                let factor = f.scale.decode(scales, grid_row * self.grid_cols + start / block) * global;
                sum = (p as f32 * x.1[start / 32]).mul_add(factor, sum);
            }
            sum * unit
        };
        assert!(last <= n);
        (0..rows).flat_map(|r| (first..last).map(move |c| (r, c))).map(|(r, c)| one(r, c)).collect()
    }

    /// The products in the order that `Products` documents, one at a time.
    pub fn reference(&self) -> Vec<f32> {
        let Shape { rows, k, columns: (first, last), .. } = self.shape;
        let one = |r: usize, c: usize| dot(&self.x[r * k..(r + 1) * k], &self.values[c * k..(c + 1) * k]);
        (0..rows).flat_map(|r| (first..last).map(move |c| (r, c))).map(|(r, c)| one(r, c)).collect()
    }
}

impl std::fmt::Debug for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} {:?}", self.weights, self.shape)
    }
}

/// Scratch memory of this thread, which jobs use one after the other.
fn scratch(place: Place) -> *mut u8 {
    thread_local! {
        static ALL: [Guarded; 3] =
            Place::ALL.map(|place| Guarded::new(&vec![0xff; PRODUCTS_SCRATCH_BYTES as usize], place));
    }
    let i = Place::ALL.iter().position(|&p| p == place).unwrap();
    ALL.with(|all| all[i].pointer())
}

/// A row as integers, and the scales of its blocks of 32.
pub fn integers(row: &[f32]) -> (Vec<i16>, Vec<f32>) {
    let most = |b: &[f32]| b.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    let scales: Vec<f32> = row
        .chunks(32)
        .map(|b| if b.iter().all(|v| v.is_finite()) { most(b).max(2f32.powi(-110)) / 32767.0 } else { f32::NAN })
        .collect();
    let code = |(i, v): (usize, &f32)| (v * (1.0 / scales[i / 32])).round_ties_even() as i16;
    (row.iter().enumerate().map(code).collect(), scales)
}

/// One product.
fn dot(x: &[f32], w: &[f32]) -> f32 {
    let mut total = [0.0f32; 8];
    for (x, w) in x.chunks(512).zip(w.chunks(512)) {
        let mut sum = [0.0f32; 8];
        for (x, w) in x.chunks(64).zip(w.chunks(64)) {
            for j in 0..8 {
                for (lane, sum) in sum.iter_mut().enumerate() {
                    let i = lane / 4 * 32 + j / 2 * 8 + lane % 4 * 2 + (1 - j % 2);
                    let (x, w) = (x.get(i).copied().unwrap_or(0.0), w.get(i).copied().unwrap_or(0.0));
                    *sum = w.mul_add(x, *sum);
                }
            }
        }
        (0..8).for_each(|l| total[l] += sum[l]);
    }
    let s: Vec<f32> = (0..4).map(|l| total[l] + total[l + 4]).collect();
    (s[0] + s[2]) + (s[1] + s[3])
}
