//! Activations to the ranks that have other columns of the same experts.

use super::parts::{Terms, alignment};
use super::{ExchangeParam as P, Exchanging};
use crate::builder::I32;
use moec_ir::exchange::Cut;
use moec_ir::window::{Stopped, Term};

/// A block for each row that may have come, with its columns of the row's slots for all members of the group. The last block raises a
/// flag for each other member, and waits for theirs: what is launched behind it reads whole activations.
pub(super) fn build<'c>(k: &Exchanging<'c>) {
    let Some(cut) = k.exchange.cut else { return k.builder.fail("whole experts exchange no activations") };
    let Cut { members, member, act_bytes, act, .. } = cut;
    let c = k.builder;
    let (terms, row) = (Terms::load(k), c.block_x());
    let top_k = k.exchange.top_k;
    let n_rows = terms.n_ranks * terms.max_tokens;
    c.exit_if(row.ge(n_rows));
    let first = terms.rank - member;
    c.part("columns", || {
        c.range(0, top_k, 1, |slot| {
            let came = row * top_k + slot;
            let at = c.load_i32(k.param(P::SlotToRow).plus(came.wide() * 4));
            c.when(at.is_negative().not(), || {
                let from = k.param(P::Columns).plus(at.wide() * act.bytes);
                c.range(0, members, 1, |peer| {
                    let acts = terms.single(k.window(first + peer), Term::Acts);
                    let to = acts.plus(came.wide() * act_bytes).plus(act.first);
                    k.copy(from, to, (act.bytes, alignment([act.bytes, act_bytes, act.first])));
                });
            });
        });
    });
    c.part("flags", || {
        let counter = k.param(P::Counters).plus(terms.n_ranks.wide() * 4);
        c.when_last(counter, n_rows, c.shared(), || {
            let line = |of: I32<'c>, from: I32<'c>| terms.single_line(k.window(first + of), Term::Shares, from);
            let others = |then: &dyn Fn(I32<'c>)| {
                c.range(0, members, 1, |peer| c.when(peer.ne(c.i32(member)), || then(peer)));
            };
            c.when(c.thread().eq(0), || {
                others(&|peer| c.release_flag(line(peer, c.i32(member)), terms.epoch));
                others(&|peer| {
                    let flag = line(c.i32(member), peer);
                    k.wait(&terms, first + peer, Stopped::NoActivations, || c.load_flag(flag));
                });
            });
        });
    });
}
