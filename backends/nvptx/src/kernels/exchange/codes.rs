//! Rows that travel as codes: rounded where their token lives, floats again where its experts are.

use super::{ExchangeParam as P, Exchanging, THREADS};
use crate::builder::{Builder, F32, Global, I32};
use crate::parts::coded_row::CodedRow;
use crate::parts::decode::{Decoder, block_of};
use crate::parts::encode::Conversions;
use moec_ir::exchange::RowCodes;

/// Rounds the row of `token`, all warps of the block together.
pub fn round_row<'c>(k: &Exchanging<'c>, codes: RowCodes, token: I32<'c>) {
    let c = k.builder;
    if !codes.has_whole_words() {
        return c.fail("blocks of rows are no whole words of codes");
    }
    let row = k.param(P::Coded).plus(token.wide() * k.exchange.row_pitch());
    let coded = CodedRow {
        builder: c,
        format: codes.quant,
        conversions: Conversions::of(k.features),
        x: k.param(P::Rows).plus(token.wide() * (u64::from(codes.cols) * codes.sent.bytes() as u64)),
        dtype: codes.sent,
        cols: codes.cols,
        whole_words: codes.cols.is_multiple_of(codes.word_elems()),
        codes: row,
        scales: row.plus(codes.scales_at()),
        warps: THREADS / 32,
    };
    // Every warp finds it for itself: they would wait longer for each other.
    let global = codes.quant.has_row().then(|| coded.own_global());
    if let Some(global) = global {
        c.when(c.thread().eq(0), || c.store_f32(row.plus(codes.global_at()), global));
    }
    coded.write(global);
}

/// A block for each row that may have come.
pub(super) fn build(k: &Exchanging<'_>) {
    let Some(codes) = k.exchange.codes else { return k.builder.fail("rows that are no codes cannot be decoded") };
    let (c, row) = (k.builder, k.builder.block_x());
    let terms = super::parts::Terms::load(k);
    c.exit_if(row.ge(terms.n_ranks * terms.max_tokens));
    let came = c.var(c.bool(false));
    let local_ids = k.param(P::LocalIds).plus((row * k.exchange.top_k).wide() * 4);
    c.range(0, k.exchange.top_k, 1, |slot| {
        came.set(came.get().or(c.load_i32(local_ids.plus(slot.wide() * 4)).is_negative().not()));
    });
    c.exit_if(came.get().not());
    c.part("floats of codes", || {
        let rows = terms.part(k.window(terms.rank), moec_ir::window::Term::Rows);
        let from = Received::new(k, codes, rows.plus(row.wide() * k.exchange.row_pitch()));
        let to = k.param(P::Decoded).plus(row.wide() * (u64::from(codes.cols) * codes.read.bytes() as u64));
        let width = codes.word_elems();
        let store = |col: I32<'_>, values: &[F32<'_>]| {
            c.store_elements(to.plus(col.wide() * codes.read.bytes() as u64), codes.read, values);
        };
        c.range(c.thread() * width, codes.cols, THREADS * width, |col| {
            let values = from.word(col);
            if codes.cols.is_multiple_of(width) {
                return store(col, &values);
            }
            for (i, value) in (0..width).zip(values) {
                c.when((col + i).lt(codes.cols), || store(col + i, &[value]));
            }
        });
    });
}

/// A row that came.
struct Received<'c> {
    builder: &'c Builder<'c>,
    decoder: Decoder,
    codes: RowCodes,
    row: Global<'c>,
    global: Option<F32<'c>>,
}

impl<'c> Received<'c> {
    fn new(k: &Exchanging<'c>, codes: RowCodes, row: Global<'c>) -> Received<'c> {
        let global = codes.quant.has_row().then(|| k.builder.load_f32(row.plus(codes.global_at())));
        let decoder = Decoder::of_rows(codes.quant, codes.read, k.features);
        Received { builder: k.builder, decoder, codes, row, global }
    }

    /// The floats of the word of codes that begins at `col`.
    fn word(&self, col: I32<'c>) -> Vec<F32<'c>> {
        let c = self.builder;
        let word = c.load_i32(self.row.plus(((col / self.codes.word_elems()) * 4).wide()));
        let scale = self.scale(col);
        self.decoder.values(c, word).into_iter().map(|v| self.scaled(v, scale)).collect()
    }

    /// The factor of the block of a column.
    fn scale(&self, col: I32<'c>) -> F32<'c> {
        let (c, bytes) = (self.builder, self.codes.quant.stored().scale.bytes());
        let block = block_of(c, col, self.codes.quant.block.into());
        let bits = c.load_bits(self.row.plus(self.codes.scales_at()).plus(block.wide() * bytes), bytes);
        self.decoder.scale(c, bits, self.global)
    }

    fn scaled(&self, value: F32<'c>, scale: F32<'c>) -> F32<'c> {
        if self.global.is_none() {
            return value * scale;
        }
        // As `ActQuant::expr`: a block whose scale is 0 has no zeros of the other sign.
        let is_zero = scale.abs().gt(0.0).or(scale.is_nan()).not();
        self.builder.select(is_zero, scale, value * scale)
    }
}
