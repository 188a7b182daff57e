//! Rows to the ranks that have their experts.

use super::parts::Terms;
use super::{ExchangeParam as P, Exchanging, THREADS, codes};
use crate::builder::{I32, Shared};
use moec_ir::DType;
use moec_ir::window::Term;

/// A block for each token. The last of them raises the flags of all ranks, with rows there or not: who got none must know it. Where one
/// store reaches all windows, that is one message.
pub(super) fn build(k: &Exchanging<'_>) {
    let c = k.builder;
    let (terms, token) = (Terms::load(k), c.block_x());
    let top_k = k.exchange.top_k;
    let [owners, locals, firsts, number] = [0, 4, 8, 12].map(|n| c.shared().at(n * top_k));
    c.when(token.lt(c.load_i32(k.param(P::Count))), || {
        c.part("where slots go", || {
            c.range(c.thread(), top_k, THREADS, |slot| {
                let (owner, local) = replica(k, &terms, token, slot);
                c.store_i32(owners.plus(slot * 4), owner);
                c.store_i32(locals.plus(slot * 4), local);
                c.store_i32(k.param(P::SentTo).plus((token * top_k + slot).wide() * 4), owner);
            });
            c.barrier();
            c.range(c.thread(), top_k, THREADS, |slot| {
                let owner = c.load_i32(owners.plus(slot * 4));
                let is_first = c.var(owner.is_negative().not());
                c.range(0, slot, 1, |before| {
                    let same = c.load_i32(owners.plus(before * 4)).eq(owner);
                    is_first.set(is_first.get().and(same.not()));
                });
                c.store_i32(firsts.plus(slot * 4), is_first.get().as_i32());
            });
            if let Some(codes) = k.exchange.codes {
                codes::round_row(k, codes, token);
            }
            c.barrier();
        });
        c.part("rows", || {
            c.range(0, top_k, 1, |slot| {
                c.when(c.load_i32(firsts.plus(slot * 4)).ne(0), || send(k, &terms, token, slot, (owners, locals)));
            });
        });
    });
    c.part("flags", || {
        let counter = k.param(P::Counters).plus(terms.n_ranks.wide() * 4);
        c.when_last(counter, c.blocks_x(), number, || {
            let agreed = k.agreed(&terms);
            let flag = [terms.epoch, k.digest_of(agreed)];
            let line = |window| terms.line(window, Term::Arrivals, terms.rank);
            // Who has another digest reads here what of it differs.
            let [version, of_map, sizes] = agreed;
            c.when(c.thread().eq(0), || {
                c.store_words(line(k.window(terms.rank)).plus(16), [version, of_map, sizes, c.i32(0)]);
            });
            c.barrier();
            let each = || {
                c.range(c.thread(), terms.n_ranks, THREADS, |peer| c.release_flag_pair(line(k.window(peer)), flag));
            };
            if !k.features.multicast {
                return each();
            }
            let all = k.window(terms.n_ranks);
            c.either(c.is_null(all), each, || c.when(c.thread().eq(0), || c.release_flag_pair_to_all(line(all), flag)));
        });
    });
}

/// The rank, or group of ranks, and local expert that a slot goes to; -1 where nobody has its expert.
fn replica<'c>(k: &Exchanging<'c>, terms: &Terms<'c>, token: I32<'c>, slot: I32<'c>) -> (I32<'c>, I32<'c>) {
    let (c, map) = (k.builder, k.param(P::Map));
    let (n_experts, before) = (c.load_i32(map.plus(8)), map.plus(12));
    let place = token * k.exchange.top_k + slot;
    let id = match k.exchange.ids {
        // An id that is no 32-bit number is nobody's.
        DType::I64 => {
            let at = k.param(P::Ids).plus(place.wide() * 8);
            c.select(c.load_i32(at.plus(4)).eq(0), c.load_i32(at), c.i32(u32::MAX))
        }
        _ => c.load_i32(k.param(P::Ids).plus(place.wide() * 4)),
    };
    let (rank, local) = (c.var(c.i32(u32::MAX)), c.var(c.i32(u32::MAX)));
    c.when(id.lt(n_experts), || {
        let at = before.plus(id.wide() * 4);
        let (first, end) = (c.load_i32(at), c.load_i32(at.plus(4)));
        // Replicas take turns from token to token, and ranks begin with different ones.
        let turn = first + (terms.rank + token) % (end - first);
        let pair = before.plus((n_experts + 1).wide() * 4).plus(turn.wide() * 8);
        rank.set(c.load_i32(pair));
        local.set(c.load_i32(pair.plus(4)));
    });
    (rank.get(), local.get())
}

/// The row of a token and its local experts, to the ranks that have a part of the expert of `slot`.
fn send<'c>(
    k: &Exchanging<'c>,
    terms: &Terms<'c>,
    token: I32<'c>,
    slot: I32<'c>,
    (owners, locals): (Shared<'c>, Shared<'c>),
) {
    let c = k.builder;
    let (top_k, row_bytes, pitch) = (k.exchange.top_k, k.exchange.row_bytes, k.exchange.row_pitch());
    let owner = c.load_i32(owners.plus(slot * 4));
    let place = (terms.rank * terms.max_tokens + token).wide();
    let rows = k.param(if k.exchange.codes.is_some() { P::Coded } else { P::Rows });
    k.for_members(owner, |peer| {
        let window = k.window(peer);
        let slots = terms.part(window, Term::Slots).plus(place * k.slot_bytes());
        c.range(c.thread(), top_k + 1, THREADS, |i| {
            let word = c.var(terms.epoch);
            c.when(i.ne(0), || {
                let at = (i - 1) * 4;
                let here = c.load_i32(owners.plus(at)).eq(owner);
                word.set(c.select(here, c.load_i32(locals.plus(at)), c.i32(u32::MAX)));
            });
            c.store_i32(slots.plus(i.wide() * 4), word.get());
        });
        k.copy(rows.plus(token.wide() * pitch), terms.part(window, Term::Rows).plus(place * pitch), (row_bytes, pitch));
    });
}
