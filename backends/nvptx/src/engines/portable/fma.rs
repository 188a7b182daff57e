//! A tile in exact f32: products and sums on the ordinary units, k ascending, one fused multiply-add for each term.
//!
//! One tile of each operand is in shared memory, transposed so that a warp reads whole rows of it; the next is in
//! registers meanwhile.

use super::epilogue::Epilogue;
use crate::builder::{Bool, Builder, F32, Global, I32, Shared, Var};
use crate::kernels::Kernel;
use crate::parts::Tile;
use crate::parts::decode::{Decoder, block_of};
use moec_ir::DType;
use moec_ir::engine::portable::FmaGeometry;
use moec_ir::target::Features;
use moec_ir::tile::{Program, RowMap, Segment};

/// Computes one tile and stores it.
pub fn tile<'c>(
    k: &Kernel<'c, '_>,
    program: &Program,
    segment: &Segment,
    g: &FmaGeometry,
    tile: &Tile<'c>,
    features: Features,
) {
    let c = k.builder;
    let k_total = program.buffer(segment.a).cols as u32;
    let operands = operands(k, program, segment, g, tile, features);
    let (thread_m, thread_n) = (c.thread() / g.threads_n, c.thread() % g.threads_n);
    let (rows, cols) = (g.rows_per_thread(), g.cols_per_thread());
    let sum = || (0..cols).map(|_| c.var(c.f32(0.0))).collect::<Vec<_>>();
    let sums: Vec<Vec<Vec<Var<F32>>>> = (0..g.panels).map(|_| (0..rows).map(|_| sum()).collect()).collect();

    let fetch = |at: I32<'c>| c.part("copies", || operands.iter().for_each(|o| o.fetch(c, g, at, k_total)));
    fetch(c.i32(0));
    c.range(0, k_total, g.tile_k, |at| {
        c.part("copies", || operands.iter().for_each(|o| o.put(c, g)));
        c.barrier();
        let next = at + g.tile_k;
        c.when(next.lt(k_total), || fetch(next));
        c.part("products", || {
            c.range(0, g.tile_k, 1, |kk| {
                let line = |o: &Operand<'c>| c.shared().plus(kk * (o.pitch * 4)).at(o.smem);
                let row = line(&operands[0]).plus((thread_m * rows) << 2);
                let a: Vec<F32> = (0..rows).map(|i| c.load_f32(row.at(4 * i))).collect();
                for (operand, sums) in operands[1..].iter().zip(&sums) {
                    let col = line(operand).plus(thread_n << 2);
                    let b: Vec<F32> = (0..cols).map(|j| c.load_f32(col.at(4 * j * g.threads_n))).collect();
                    for (a, sums) in a.iter().zip(sums) {
                        b.iter().zip(sums).for_each(|(b, sum)| sum.set(a.fma(*b, sum.get())));
                    }
                }
            });
        });
        c.barrier();
    });

    c.part("results", || {
        let epilogue = Epilogue::new(k, program, segment, tile);
        for j in 0..cols {
            let col = tile.col + thread_n + j * g.threads_n;
            let biases = epilogue.biases(col, 1);
            for i in 0..rows {
                let row = thread_m * rows + i;
                let values: Vec<Vec<F32>> = sums.iter().map(|p| vec![p[i as usize][j as usize].get()]).collect();
                epilogue.store(tile.row + row, row.lt(tile.rows), col, &values, &biases);
            }
        }
    });
}

/// Marks a code outside the matrix; codes are bytes.
const MISSING: u32 = 0x100;

/// One operand: the elements that a thread brings from each tile.
struct Operand<'c> {
    dtype: DType,
    /// How the elements are made from codes, when they are.
    codes: Option<Code<'c>>,
    /// Byte offset of its tile in shared memory.
    smem: u32,
    /// f32 elements from one k to the next in shared memory.
    pitch: u32,
    parts: Vec<Part<'c>>,
    /// The element of a tile row that this thread brings.
    kk: I32<'c>,
}

struct Part<'c> {
    /// Column 0 of the row.
    from: Global<'c>,
    row: I32<'c>,
    exists: Bool<'c>,
    /// Whether the row lies in the tile at all; `None` when all do.
    in_tile: Option<Bool<'c>>,
    element: Element<'c>,
}

/// What a thread holds of an element between loading and putting it.
enum Element<'c> {
    Float(Var<'c, F32<'c>>),
    /// The byte that holds the code, or [`MISSING`]; the row of scales; the scale's own bits.
    Code {
        byte: Var<'c, I32<'c>>,
        scales: Global<'c>,
        scale: Var<'c, I32<'c>>,
    },
}

/// Codes of an operand.
struct Code<'c> {
    decoder: Decoder,
    bits: u64,
    global: Option<F32<'c>>,
    /// Columns of a block; 0 for all.
    block_cols: u64,
    scale_bytes: u64,
    /// Whether the element is the second of its byte.
    odd: Var<'c, I32<'c>>,
}

/// The addresses of a tile's rows.
struct Rows<'a, 'c> {
    from: &'a dyn Fn(I32<'c>) -> Global<'c>,
    scales: Option<&'a dyn Fn(I32<'c>) -> Global<'c>>,
}

impl<'c> Operand<'c> {
    fn new(
        c: &'c Builder<'c>,
        g: &FmaGeometry,
        (dtype, codes): (DType, Option<Code<'c>>),
        rows: u32,
        smem: u32,
        valid_rows: I32<'c>,
        address: Rows<'_, 'c>,
    ) -> Operand<'c> {
        let step = g.threads / g.tile_k;
        let (first, kk) = (c.thread() / g.tile_k, c.thread() % g.tile_k);
        let parts = (0..rows.div_ceil(step)).map(|i| {
            let row = first + i * step;
            let exists = row.lt(valid_rows);
            // Rows that do not exist stand at the first, so that every address is one that may be read.
            let first = c.select(exists, row, c.i32(0));
            let from = (address.from)(first);
            let element = match address.scales {
                None => Element::Float(c.var(c.f32(0.0))),
                Some(scales) => {
                    Element::Code { byte: c.var(c.i32(MISSING)), scales: scales(first), scale: c.var(c.i32(0)) }
                }
            };
            let in_tile = ((i + 1) * step > rows).then(|| row.lt(rows));
            Part { from, row, exists, in_tile, element }
        });
        Operand { dtype, codes, smem, pitch: rows + 1, parts: parts.collect(), kk }
    }

    /// Loads this thread's elements of the tile that begins at element `at` of the rows.
    fn fetch(&self, c: &'c Builder<'c>, g: &FmaGeometry, at: I32<'c>, k_total: u32) {
        let column = at + self.kk;
        let in_row = column.lt(k_total);
        let column = if k_total.is_multiple_of(g.tile_k) { column } else { c.select(in_row, column, c.i32(0)) };
        if let Some(codes) = &self.codes {
            return self.fetch_codes(c, codes, column, in_row);
        }
        let offset = column.wide().bytes_of(self.dtype);
        for part in &self.parts {
            if let Element::Float(var) = part.element {
                let value = c.load_elements(part.from.plus(offset), self.dtype, 1)[0];
                var.set(c.select(part.exists.and(in_row), value, c.f32(0.0)));
            }
        }
    }

    /// Loads the bytes and scales of the elements in `column`.
    fn fetch_codes(&self, c: &'c Builder<'c>, codes: &Code<'c>, column: I32<'c>, in_row: Bool<'c>) {
        let (at, odd) = if codes.bits == 4 { (column >> 1, column & 1) } else { (column, c.i32(0)) };
        codes.odd.set(odd);
        let block = block_of(c, column, codes.block_cols);
        for part in &self.parts {
            if let Element::Code { byte, scales, scale } = part.element {
                let bits = c.load_bits(part.from.plus(at.wide()), 1);
                byte.set(c.select(part.exists.and(in_row), bits, c.i32(MISSING)));
                scale.set(c.load_bits(scales.plus(block.wide() * codes.scale_bytes), codes.scale_bytes));
            }
        }
    }

    /// The element that was loaded.
    fn element(&self, c: &'c Builder<'c>, part: &Part<'c>) -> F32<'c> {
        match (&part.element, &self.codes) {
            (Element::Code { byte, scale, .. }, Some(codes)) => {
                let factor = codes.decoder.scale(c, scale.get(), codes.global);
                let value = codes.decoder.value(c, byte.get(), codes.odd.get(), factor);
                c.select(byte.get().lt(MISSING), value, c.f32(0.0))
            }
            (Element::Float(value), _) => value.get(),
            (Element::Code { .. }, None) => c.f32(0.0),
        }
    }

    /// Puts the loaded elements where the products read them.
    fn put(&self, c: &'c Builder<'c>, _: &FmaGeometry) {
        let line: Shared = c.shared().plus(self.kk * (self.pitch * 4)).at(self.smem);
        for part in &self.parts {
            let put = || c.store_f32(line.plus(part.row << 2), self.element(c, part));
            match part.in_tile {
                Some(condition) => c.when(condition, put),
                None => put(),
            }
        }
    }
}

/// Activations first, then the panels.
fn operands<'c>(
    k: &Kernel<'c, '_>,
    program: &Program,
    segment: &Segment,
    g: &FmaGeometry,
    tile: &Tile<'c>,
    features: Features,
) -> Vec<Operand<'c>> {
    let c = k.builder;
    let a = k.view(segment.a);
    let map = if let RowMap::Gather(map) = segment.a_rows { Some(k.view(map)) } else { None };
    let a_row = |row: I32<'c>| {
        let row = tile.row + row;
        a.row(map.map_or(row, |map| c.load_i32(map.nth(row))))
    };
    let a_rows = Rows { from: &a_row, scales: None };
    let mut all = vec![Operand::new(c, g, (a.dtype, None), g.tile_m, 0, tile.rows, a_rows)];
    let n = program.buffer(segment.out).cols as u32;
    let valid = (c.i32(n) - tile.col).min(g.tile_n);
    for (i, panel) in segment.panels.iter().enumerate() {
        let w = k.view(panel.weights);
        let first = tile.expert.wide() * u64::from(n) + tile.col.wide();
        let row_bytes = w.pitch * w.dtype.bytes() as u64;
        let w_row = |row: I32<'c>| w.base.plus((first + row.wide()) * row_bytes);
        let smem = (g.pitch_a() + i as u32 * g.pitch_b()) * g.tile_k * 4;
        let Some(q) = &panel.quant else {
            let rows = Rows { from: &w_row, scales: None };
            all.push(Operand::new(c, g, (w.dtype, None), g.tile_n, smem, valid, rows));
            continue;
        };
        let f = q.format;
        let (scales, scale_bytes) = (k.view(q.scales), f.scale.bytes());
        let (grid_rows, _) = f.scale_grid(n.into(), a.cols);
        let scale_row = |row: I32<'c>| {
            let block = block_of(c, tile.col + row, f.block_rows);
            scales.base.plus((tile.expert.wide() * grid_rows + block.wide()) * (scales.pitch * scale_bytes))
        };
        let codes = Code {
            decoder: Decoder::new(q, features),
            bits: f.code.bits(),
            global: q.global.map(|id| c.load_f32(k.view(id).at(c.i32(0), tile.expert))),
            block_cols: f.block_cols,
            scale_bytes,
            odd: c.var(c.i32(0)),
        };
        let rows = Rows { from: &w_row, scales: Some(&scale_row) };
        all.push(Operand::new(c, g, (w.dtype, Some(codes)), g.tile_n, smem, valid, rows));
    }
    all
}
