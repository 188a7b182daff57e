//! The end of a tile: sums to results, through shared memory to rows of floats or of codes.
//!
//! A lane's sums lie in several rows, but rows are what is stored: adjacent columns in one store, and blocks of columns
//! that have one scale.

use super::fragments::Fragments;
use crate::builder::{F32, I32, Shared, Var};
use crate::kernels::{Kernel, View};
use crate::parts::Tile;
use crate::parts::encode;
use crate::parts::math::evaluate;
use moec_ir::engine::geforce::ScaledGeometry;
use moec_ir::quant::Code;
use moec_ir::tile::{Program, RowQuant, Segment};

/// Columns that a thread stores at a time.
const VECTOR: u32 = 8;

/// Applies global scales, biases and the epilogue to the sums and stores the tile. `source_row` gives the row of the
/// activations of a row of the tile.
pub fn store<'c>(
    k: &Kernel<'c, '_>,
    program: &Program,
    segment: &Segment,
    g: &ScaledGeometry,
    tile: &Tile<'c>,
    fragments: &Fragments<'c>,
    source_row: impl Fn(I32<'c>) -> I32<'c>,
) {
    let c = k.builder;
    let n = segment.n(program) as u32;
    to_shared(k, segment, g, tile, fragments, n, source_row);
    c.barrier();
    // Threads go through the tile by vectors of columns: whole warps, so that lanes can compare.
    let per_row = g.tile_n / VECTOR;
    c.range(c.thread(), (g.tile_m * per_row).next_multiple_of(32), g.threads, |i| {
        let (row, at) = (i / per_row, (i % per_row) * VECTOR);
        let col = tile.col + at;
        let exists = row.lt(tile.rows).and(col.lt(n));
        // Fewer than 32 vectors: the last lanes read the first row.
        let row_read = if (g.tile_m * per_row).is_multiple_of(32) { row } else { c.select(exists, row, c.i32(0)) };
        let from = c.shared().plus((row_read * g.result_pitch() + at) << 2);
        // Every other four lanes read their second half first: eight lanes touch every bank once.
        let swapped = (at >> 5) & 1;
        let [first, second] = [swapped, swapped ^ 1].map(|half| c.load_words(from.plus(half << 4)));
        let in_order = swapped.eq(0);
        let halves = [(first, second), (second, first)]
            .map(|(yes, no)| std::array::from_fn::<_, 4, _>(|i| c.select(in_order, yes[i], no[i]).as_f32()));
        let values = halves.as_flattened();
        let out = k.result_of(segment, tile);
        match &segment.out_quant {
            None => c.when(exists, || store_floats(k, &out, tile.row + row, col, n, values)),
            Some(q) => store_codes(k, &out, q, tile.row + row, col, n, exists, values),
        }
    });
}

/// The results of this thread, as floats, to their places in the tile.
fn to_shared<'c>(
    k: &Kernel<'c, '_>,
    segment: &Segment,
    g: &ScaledGeometry,
    tile: &Tile<'c>,
    fragments: &Fragments<'c>,
    n: u32,
    source_row: impl Fn(I32<'c>) -> I32<'c>,
) {
    let c = k.builder;
    let first_col = fragments.column + (c.lane() >> 2);
    let first_row = fragments.token + ((c.lane() & 3) << 1);
    // The global scales of tokens: of all, or of each.
    let of_token = |row: I32<'c>| -> Option<F32<'c>> {
        let q = segment.a_quant.as_ref()?;
        let view = k.view(q.global?);
        Some(c.load_f32(if q.q.has_row() { view.row(source_row(row)) } else { view.base }))
    };
    let rows: Vec<(I32, Option<F32>)> = (0..g.frags_m())
        .flat_map(|i| [0, 1].map(|x| first_row + (i * 8 + x)))
        .map(|row| (row, of_token(row)))
        .collect();
    let globals: Vec<Option<F32>> = segment
        .panels
        .iter()
        .map(|p| p.quant.as_ref()?.global.map(|id| c.load_f32(k.view(id).at(c.i32(0), tile.expert))))
        .collect();
    let product = |a: Option<F32<'c>>, b: Option<F32<'c>>| match (a, b) {
        (Some(a), Some(b)) => Some(a * b),
        (a, b) => a.or(b),
    };
    for j in 0..g.frags_n() {
        for half in 0..2 {
            let col = first_col + (j * 16 + half * 8);
            // Columns past the end have the bias of the last.
            let at = (tile.col + col).min(n - 1);
            let bias = |b: &Option<_>| {
                let view: View = k.view((*b)?);
                Some(c.load_elements(view.at(tile.expert, at), view.dtype, 1)[0])
            };
            let biases: Vec<Option<F32>> = segment.biases.iter().map(bias).collect();
            for (i, (row, of_token)) in rows.iter().enumerate() {
                let args: Vec<F32> = (fragments.sums.iter().zip(&globals).enumerate())
                    .map(|(p, (sums, global))| {
                        let sum = sums[j as usize][i / 2][half as usize * 2 + i % 2].get();
                        let sum = product(*of_token, *global).map_or(sum, |factor| sum * factor);
                        biases.get(p).copied().flatten().map_or(sum, |bias| sum + bias)
                    })
                    .collect();
                let value = evaluate(c, &segment.epilogue, &args);
                c.store_f32(shared_at(c.shared(), g, *row, col), value);
            }
        }
    }
}

fn shared_at<'c>(base: Shared<'c>, g: &ScaledGeometry, row: I32<'c>, col: I32<'c>) -> Shared<'c> {
    base.plus((row * g.result_pitch() + col) << 2)
}

/// Stores adjacent columns in as few stores as the row's alignment allows.
fn store_floats<'c>(k: &Kernel<'c, '_>, out: &View<'c>, row: I32<'c>, col: I32<'c>, n: u32, values: &[F32<'c>]) {
    let c = k.builder;
    let fits = |v: &u32| out.unit().is_multiple_of((*v).into()) && n.is_multiple_of(*v);
    let width = [8, 4, 2].into_iter().find(fits).unwrap_or(1);
    for (i, part) in (0u32..).zip(values.chunks(width as usize)) {
        let col = col + i * width;
        let store = || c.store_elements(out.at(row, col), out.dtype, part);
        if width == VECTOR { store() } else { c.when(col.lt(n), store) }
    }
}

/// Stores the codes of adjacent columns, and the scale of their block. All lanes take part.
#[allow(clippy::too_many_arguments, reason = "what a store is made of")]
fn store_codes<'c>(
    k: &Kernel<'c, '_>,
    out: &View<'c>,
    q: &RowQuant,
    row: I32<'c>,
    col: I32<'c>,
    n: u32,
    exists: crate::builder::Bool<'c>,
    values: &[F32<'c>],
) {
    let c = k.builder;
    let values: Vec<F32> = (0u32..)
        .zip(values)
        .map(|(i, &x)| if n.is_multiple_of(VECTOR) { x } else { c.select((col + i).lt(n), x, c.f32(0.0)) })
        .collect();
    let largest = c.var(c.f32(0.0));
    c.when(exists, || largest.set(values.iter().fold(c.f32(0.0), |m, v| m.maximum(v.abs()))));
    let lanes = q.q.block / VECTOR;
    let most = (0..lanes.ilog2()).fold(Var::get(largest), |m, bit| m.maximum(c.read_peer(m.bits(), 1 << bit).as_f32()));
    c.when(exists, || {
        let global = q.global.map(|global| c.load_f32(k.view(global).base));
        let scale = encode::block_scale(c, q.q, most, global);
        let bits = 2 * q.q.code.bits() as u32;
        let pairs: Vec<I32> =
            values.chunks(2).map(|pair| encode::code_pair(c, q.q, pair[0], pair[1], scale.factor)).collect();
        let per_word = if q.q.code == Code::E2M1 { 4 } else { 2 };
        let first = out.row(row).plus(if q.q.code == Code::E2M1 { (col >> 1).wide() } else { col.wide() });
        // What lies behind the end of the row is padding.
        for (i, pairs) in (0u64..).zip(pairs.chunks(per_word)) {
            let word = (0u32..).zip(pairs).fold(c.i32(0), |word, (i, &pair)| word | (pair << (bits * i)));
            c.store_i32(first.plus(4 * i), word);
        }
        c.when((col & (q.q.block - 1)).eq(0), || {
            let scales = k.view(q.scales);
            encode::store_scale(c, q.q, scales.at(row, col / q.q.block), scale.stored);
        });
    });
}
