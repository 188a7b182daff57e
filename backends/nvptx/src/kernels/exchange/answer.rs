//! Flags of results, which the last product has stored into the windows of the ranks that the rows came from.

use super::parts::Terms;
use super::{ExchangeParam as P, Exchanging};
use moec_ir::window::Term;

/// A block for each source, which raises its flag if any of its slots has an expert here. The product's launch has ended: what it
/// stored is released with the flag.
pub(super) fn build(k: &Exchanging<'_>) {
    let c = k.builder;
    let (terms, source) = (Terms::load(k), c.block_x());
    c.exit_if(source.ge(terms.n_ranks));
    c.part("flag", || {
        let slots = terms.max_tokens * k.exchange.top_k;
        let local_ids = k.param(P::LocalIds).plus((source * slots).wide() * 4);
        let flag = terms.line(k.window(source), Term::Answers, terms.rank);
        k.for_warp_if_any(local_ids, slots, |id| id.is_negative().not(), || c.release_flag(flag, terms.epoch));
    });
}
