//! Waiting for rows, and which of them came.

use super::parts::Terms;
use super::{ExchangeParam as P, Exchanging, THREADS};
use moec_ir::window::{Stopped, Term};

/// A block for each source. Places where nothing came in this step are told by the number of the step that stands there.
pub(super) fn build(k: &Exchanging<'_>) {
    let c = k.builder;
    let (terms, source) = (Terms::load(k), c.block_x());
    let top_k = k.exchange.top_k;
    c.exit_if(source.ge(terms.n_ranks));
    let window = k.window(terms.rank);
    c.part("wait", || {
        c.when(c.thread().eq(0), || {
            let line = |window| terms.line(window, Term::Arrivals, source);
            let digest = c.var(c.i32(0));
            let flag = line(window);
            k.wait(&terms, source, Stopped::NoRows, || {
                let [epoch, of_source] = c.load_flag_pair(flag);
                digest.set(of_source);
                epoch
            });
            let agreed = k.agreed(&terms);
            c.when(digest.get().ne(k.digest_of(agreed)), || {
                let [version, of_map, sizes, _] = c.load_words(line(k.window(source)).plus(16));
                k.expect(&terms, source, Stopped::OtherSizes, agreed[2], sizes);
                k.expect(&terms, source, Stopped::OtherVersion, agreed[0], version);
                k.expect(&terms, source, Stopped::OtherMap, agreed[1], of_map);
            });
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
