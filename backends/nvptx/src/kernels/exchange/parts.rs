//! What the kernels of an exchange share: the rank's terms, places in windows, copies, and waits that end.

use super::{ExchangeParam, Exchanging, THREADS};
use crate::builder::{Bool, Builder, Global, I32};
use moec_ir::window::{FLAG_BYTES, Stopped, Term, WaitReport};

/// What a kernel knows of its rank and step.
#[derive(Clone, Copy)]
pub struct Terms<'c> {
    builder: &'c Builder<'c>,
    words: Global<'c>,
    pub rank: I32<'c>,
    pub n_ranks: I32<'c>,
    pub max_tokens: I32<'c>,
    pub epoch: I32<'c>,
}

impl<'c> Terms<'c> {
    pub fn load(k: &Exchanging<'c>) -> Terms<'c> {
        let (c, words) = (k.builder, k.param(ExchangeParam::Terms));
        let word = |term: Term| c.load_i32(words.plus(4 * term as u64));
        let (rank, n_ranks, max_tokens) = (word(Term::Rank), word(Term::Ranks), word(Term::MaxTokens));
        Terms { builder: c, words, rank, n_ranks, max_tokens, epoch: word(Term::Epoch) }
    }

    pub fn word(&self, term: Term) -> I32<'c> {
        self.builder.load_i32(self.place(term))
    }

    pub fn place(&self, term: Term) -> Global<'c> {
        self.words.plus(4 * term as u64)
    }

    /// Where a part of this step's parity begins in the window at `window`.
    pub fn part(&self, window: Global<'c>, part: Term) -> Global<'c> {
        let at = self.place(part).plus((self.epoch & 1).wide() * 4);
        window.plus(self.builder.load_i32(at).wide() * 128)
    }

    /// A rank's line among `part`, which are flags.
    pub fn line(&self, window: Global<'c>, part: Term, rank: I32<'c>) -> Global<'c> {
        self.part(window, part).plus(rank.wide() * FLAG_BYTES)
    }

    /// Where a part begins that is the same in all steps.
    pub fn single(&self, window: Global<'c>, part: Term) -> Global<'c> {
        window.plus(self.word(part).wide() * 128)
    }

    /// A line among such flags.
    pub fn single_line(&self, window: Global<'c>, part: Term, i: I32<'c>) -> Global<'c> {
        self.single(window, part).plus(i.wide() * FLAG_BYTES)
    }
}

impl<'c> Exchanging<'c> {
    /// The window of a rank; of the rank behind the last, all of them as one ([`moec_ir::exchange::ExchangeParam::Peers`]).
    pub fn window(&self, rank: I32<'c>) -> Global<'c> {
        self.builder.load_address(self.param(ExchangeParam::Peers).plus(rank.wide() * 8))
    }

    /// The group of a rank, of those that the placement map is of.
    pub fn group_of(&self, rank: I32<'c>) -> I32<'c> {
        match self.exchange.n_members() {
            1 => rank,
            members => rank / members,
        }
    }

    /// Runs `then` for each rank of a group.
    pub fn for_members(&self, group: I32<'c>, then: impl FnOnce(I32<'c>)) {
        match self.exchange.n_members() {
            1 => then(group),
            members => self.builder.range(0, members, 1, |member| then(group * members + member)),
        }
    }

    /// Bytes of what stands for a token's slots.
    pub fn slot_bytes(&self) -> u64 {
        self.exchange.window(1, 1).slot_bytes()
    }

    /// What all ranks must have alike: version and digest of the placement map, digest of the sizes.
    pub fn agreed(&self, terms: &Terms<'c>) -> [I32<'c>; 3] {
        let (c, map) = (self.builder, self.param(ExchangeParam::Map));
        [c.load_i32(map), c.load_i32(map.plus(4)), terms.word(Term::Digest)]
    }

    /// One word for that, which stands beside the number of the step.
    pub fn digest_of(&self, agreed: [I32<'c>; 3]) -> I32<'c> {
        // FNV-1a by words.
        agreed.into_iter().fold(self.builder.i32(0x811c_9dc5), |digest, word| (digest ^ word) * 0x0100_0193)
    }

    /// Copies a row of `bytes`, all threads of the block together. Rows begin at multiples of `unit` bytes.
    pub fn copy(&self, from: Global<'c>, to: Global<'c>, (bytes, unit): (u64, u64)) {
        let mut done = 0;
        // Wide pieces, then what is left of the row in narrower ones.
        for width in [16, 4, 2, 1].into_iter().filter(|n| unit.is_multiple_of(*n)) {
            let end = bytes / width * width;
            if end > done {
                self.copy_pieces(from, to, (done as u32, end as u32), width as u32);
                done = end;
            }
        }
    }

    fn copy_pieces(&self, from: Global<'c>, to: Global<'c>, (first, end): (u32, u32), width: u32) {
        let c = self.builder;
        c.range(c.thread() * width + first, end, THREADS * width, |at| {
            let (from, to) = (from.plus(at.wide()), to.plus(at.wide()));
            match width {
                16 => c.store_words(to, c.load_words(from)),
                _ => c.store_bits(to, c.load_bits(from, width.into()), width.into()),
            }
        });
    }

    /// Makes a row zero, all threads of the block together.
    pub fn clear(&self, to: Global<'c>, bytes: u64) {
        let (c, width) = (self.builder, widest(bytes));
        c.range(c.thread() * width, bytes as u32, THREADS * width, |at| match width {
            16 => c.store_words(to.plus(at.wide()), [c.i32(0); 4]),
            _ => c.store_bits(to.plus(at.wide()), c.i32(0), width.into()),
        });
    }

    /// Waits until `load` gives this step's number from a flag of `peer`; what the peer wrote before can be read then. For one thread.
    pub fn wait(&self, terms: &Terms<'c>, peer: I32<'c>, otherwise: Stopped, load: impl FnOnce() -> I32<'c>) {
        let c = self.builder;
        let (start, deadline) = (c.global_timer(), terms.word(Term::Deadline));
        c.repeat(|| {
            let found = load();
            let waits = found.ne(terms.epoch);
            let late = waits.and(c.is_later(c.global_timer(), start, deadline));
            c.when(late, || self.stop(terms, peer, otherwise, (terms.epoch, found)));
            waits
        });
        c.fence_system();
    }

    /// Runs `then` on one thread of the block if any of `n` words at `words` is one that `is` holds for.
    pub fn for_warp_if_any(
        &self,
        words: Global<'c>,
        n: I32<'c>,
        is: impl FnOnce(I32<'c>) -> Bool<'c>,
        then: impl FnOnce(),
    ) {
        let c = self.builder;
        c.when(c.warp().eq(0), || {
            let (first, found) = (c.var(c.i32(0)), c.var(c.bool(false)));
            c.when(n.ne(0), || {
                c.repeat(|| {
                    let i = first.get() + c.lane();
                    c.when(i.lt(n), || found.set(is(c.load_i32(words.plus(i.wide() * 4)))));
                    // The first that is one ends the search.
                    found.set(c.ballot(found.get()).ne(0));
                    first.set(first.get() + 32);
                    found.get().not().and(first.get().lt(n))
                });
            });
            c.when(found.get().and(c.lane().eq(0)), then);
        });
    }

    /// Stops unless `found` is what is `wanted`. For one thread.
    pub fn expect(&self, terms: &Terms<'c>, peer: I32<'c>, otherwise: Stopped, wanted: I32<'c>, found: I32<'c>) {
        self.builder.when(found.ne(wanted), || self.stop(terms, peer, otherwise, (wanted, found)));
    }

    fn stop(&self, terms: &Terms<'c>, peer: I32<'c>, what: Stopped, (wanted, found): (I32<'c>, I32<'c>)) {
        let c = self.builder;
        let line = self.param(ExchangeParam::Report).plus(peer.wide() * WaitReport::BYTES as u64);
        let words = [terms.rank, peer, wanted, found];
        words.into_iter().zip(1u64..).for_each(|(word, i)| c.store_i32(line.plus(4 * i), word));
        c.store_i32(line, c.i32(what as u32));
        // The line may lie in memory of the host, which reads it when the device has stopped.
        c.fence_system();
        c.trap();
    }
}

/// What all of these are multiples of, up to the widest access.
pub fn alignment(bytes: [u64; 3]) -> u64 {
    [16, 8, 4, 2].into_iter().find(|n| bytes.iter().all(|b| b.is_multiple_of(*n))).unwrap_or(1)
}

/// The widest access that divides rows of so many bytes.
fn widest(bytes: u64) -> u32 {
    [16, 4, 2].into_iter().find(|&n| bytes.is_multiple_of(n.into())).unwrap_or(1)
}
