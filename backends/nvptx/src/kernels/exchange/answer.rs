//! Results to the ranks that the rows came from.

use super::parts::{Terms, alignment};
use super::{ExchangeParam as P, Exchanging};
use moec_ir::window::Term;

/// A block for each row that may have come, which reads results where the last product of the experts left them. The last of a source's
/// blocks raises its flag, if it sent any.
pub(super) fn build(k: &Exchanging<'_>) {
    let c = k.builder;
    let (terms, row) = (Terms::load(k), c.block_x());
    let (top_k, bytes, own) = (k.exchange.top_k, k.exchange.result_bytes, k.exchange.own_result());
    c.exit_if(row.ge(terms.n_ranks * terms.max_tokens));
    let (source, token) = (row / terms.max_tokens, row % terms.max_tokens);
    let rows_of_slots = k.param(P::SlotToRow);
    let window = k.window(source);
    c.part("results", || {
        let to = terms.part(window, Term::Results);
        c.range(0, top_k, 1, |slot| {
            let came = row * top_k + slot;
            let at = c.load_i32(rows_of_slots.plus(came.wide() * 4));
            c.when(at.is_negative().not(), || {
                let from = k.param(P::ExpertRows).plus(at.wide() * own.bytes);
                let to = to.plus((token * top_k + slot).wide() * bytes).plus(own.first);
                k.copy(from, to, (own.bytes, alignment([own.bytes, bytes, own.first])));
            });
        });
    });
    c.part("flag", || {
        let counter = k.param(P::Counters).plus(source.wide() * 4);
        c.when_last(counter, terms.max_tokens, c.shared(), || {
            let first = source * terms.max_tokens * top_k;
            k.for_warp_if_any(
                rows_of_slots.plus(first.wide() * 4),
                terms.max_tokens * top_k,
                |row| row.is_negative().not(),
                || c.release_flag(terms.line(window, Term::Answers, terms.rank), terms.epoch),
            );
        });
    });
}
