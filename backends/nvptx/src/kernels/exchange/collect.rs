//! Waiting for results.

use super::parts::Terms;
use super::{ExchangeParam as P, Exchanging, THREADS};
use moec_ir::window::{Stopped, Term};

/// A block for each rank: it waits for that rank if rows went there, and makes the slots that nobody has zero, of some of the
/// tokens. The last block ends the step.
pub(super) fn build(k: &Exchanging<'_>) {
    let c = k.builder;
    let (terms, peer) = (Terms::load(k), c.block_x());
    let (top_k, bytes) = (k.exchange.top_k, k.exchange.result_bytes);
    c.exit_if(peer.ge(terms.n_ranks));
    let n_tokens = c.load_i32(k.param(P::Count));
    let group = k.group_of(peer);
    let (window, sent_to) = (k.window(terms.rank), k.param(P::SentTo));
    c.part("wait", || {
        k.for_warp_if_any(
            sent_to,
            n_tokens * top_k,
            |owner| owner.eq(group),
            || {
                let flag = terms.line(window, Term::Answers, peer);
                k.wait(&terms, peer, Stopped::NoResults, || c.load_flag(flag));
            },
        );
    });
    c.part("slots that nobody has", || {
        let results = terms.part(window, Term::Results);
        c.range(peer, n_tokens, terms.n_ranks, |token| {
            let first = token * top_k;
            if let Some(dtype) = k.exchange.weights {
                let (n, minus_zero) = (dtype.bytes() as u64, c.i32(if dtype.bytes() == 4 { 1 << 31 } else { 1 << 15 }));
                c.range(c.thread(), top_k, THREADS, |slot| {
                    let at = (first + slot).wide();
                    let weight = c.load_bits(k.param(P::Weights).plus(at * n), n);
                    let nowhere = c.load_i32(sent_to.plus(at * 4)).is_negative();
                    // Added to a sum, -0 times the zeros of such a slot changes none of its bits.
                    c.store_bits(k.param(P::SlotWeights).plus(at * n), c.select(nowhere, minus_zero, weight), n);
                });
            }
            c.range(0, top_k, 1, |slot| {
                let at = (first + slot).wide();
                c.when(c.load_i32(sent_to.plus(at * 4)).is_negative(), || k.clear(results.plus(at * bytes), bytes));
            });
        });
    });
    c.part("end of the step", || {
        let counter = k.param(P::Counters).plus(terms.n_ranks.wide() * 4);
        c.when_last(counter, terms.n_ranks, c.shared(), || {
            // 0 is in memory that nobody has written yet: 2 comes behind the last odd number.
            let next = terms.epoch + 1;
            let next = c.select(next.eq(0), c.i32(2), next);
            c.when(c.thread().eq(0), || c.store_i32(terms.place(Term::Epoch), next));
        });
    });
}
