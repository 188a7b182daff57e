//! Waiting for rows, and which of them came.

use super::parts::Terms;
use super::{Blocks, Design, Exchange, ExchangeParam as P, Exchanging, THREADS};
use moec_ir::window::{Stopped, Term};

/// A block for each source. Places where nothing came in this step are told by the number of the step that stands there.
pub fn kernel(exchange: &Exchange) -> Design {
    Design {
        entry: "moec_receive",
        params: &[P::Terms, P::Peers, P::Map, P::LocalIds, P::Report],
        blocks: Blocks::Ranks,
        smem_bytes: 0,
        exchange: *exchange,
        build,
    }
}

fn build(k: &Exchanging<'_>) {
    let c = k.builder;
    let (terms, source) = (Terms::load(k), c.block_x());
    let top_k = k.exchange.top_k;
    c.exit_if(source.ge(terms.n_ranks));
    let window = k.window(terms.rank);
    c.part("wait", || {
        c.when(c.thread().eq(0), || {
            let line = terms.line(window, Term::Arrivals, source);
            k.wait(&terms, line, source, Stopped::NoRows);
            let [version, of_map, sizes, _] = c.load_words(line.plus(16));
            let map = k.param(P::Map);
            k.expect(&terms, source, Stopped::OtherSizes, terms.word(Term::Digest), sizes);
            k.expect(&terms, source, Stopped::OtherVersion, c.load_i32(map), version);
            k.expect(&terms, source, Stopped::OtherMap, c.load_i32(map.plus(4)), of_map);
        });
        c.barrier();
    });
    c.part("local experts", || {
        let first = source * terms.max_tokens;
        let slots = terms.part(window, Term::Slots);
        c.range(c.thread(), terms.max_tokens * top_k, THREADS, |i| {
            let (row, slot) = (first + i / top_k, i % top_k);
            let came = slots.plus(row.wide() * k.slot_bytes());
            let local = c.load_i32(came.plus(4u64).plus(slot.wide() * 4));
            let local = c.select(c.load_i32(came).eq(terms.epoch), local, c.i32(u32::MAX));
            c.store_i32(k.param(P::LocalIds).plus((row * top_k + slot).wide() * 4), local);
        });
    });
}
