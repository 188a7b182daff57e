//! Memory that ranks map from each other: how large it is, and where what lies in it.
//!
//! ```text
//! arrivals  [2][R]       a line for each source: epoch, and a digest of what ranks must have alike; in its own window, from byte 16 on,
//!                        also that itself: version and digest of its map, digest of its sizes
//! answers   [2][R]       a line for each owner of experts: epoch
//! slots     [2][R][T]    for each token of each source: epoch, and K local experts, negative where they are elsewhere
//! rows      [2][R][T]    the token's row as it travels
//! results   [2][T][K]    for each slot of an own token its result row
//! shares    [M]          where experts are cut: a line for each member of the group: epoch
//! acts      [R][T][K]    the activations of each slot that came, the columns of all members
//! ```
//!
//! The 2 is the parity of the epoch: the next step needs no barrier. Activations need no second place: a member writes them after it has
//! got every rank's rows of the step, and a rank sends these when it is done with the step before. Everything is as large as it can ever
//! have to be, all tokens of all ranks on one of them, so that no count is read back.

/// Bytes of a flag, and what stands beside it: a line of a GPU's cache, so that no two ranks write one.
pub const FLAG_BYTES: u64 = 128;

/// The sizes that a window follows from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Ranks of the mesh.
    pub n_ranks: u32,
    /// Most tokens of a rank in a step.
    pub max_tokens: u32,
    /// Slots of a token.
    pub top_k: u32,
    /// Bytes from one row on its way to its experts to the next ([`crate::exchange::Exchange::row_pitch`]).
    pub row_bytes: u64,
    /// Bytes of a result row on its way back.
    pub result_bytes: u64,
    /// Ranks of a group that share the matrices of an expert; 1 where they are whole.
    pub n_members: u32,
    /// Bytes of a row of activations, which members exchange; 0 where experts are whole.
    pub act_bytes: u64,
}

/// Byte offsets of a window's parts, for both parities where there are two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WindowParts {
    /// Of `arrivals`.
    pub arrivals: [u64; 2],
    /// Of `answers`.
    pub answers: [u64; 2],
    /// Of `slots`.
    pub slots: [u64; 2],
    /// Of `rows`.
    pub rows: [u64; 2],
    /// Of `results`.
    pub results: [u64; 2],
    /// Of `shares`.
    pub shares: u64,
    /// Of `acts`.
    pub acts: u64,
    /// Of the whole window: a multiple of 4096.
    pub bytes: u64,
}

impl Window {
    /// Bytes of what stands for a token's slots: epoch and local experts, rounded up to 16.
    pub fn slot_bytes(self) -> u64 {
        (4 * (u64::from(self.top_k) + 1)).next_multiple_of(16)
    }

    /// Where what lies. Parts begin at multiples of 256 bytes.
    pub fn parts(self) -> WindowParts {
        let (r, t, k) = (u64::from(self.n_ranks), u64::from(self.max_tokens), u64::from(self.top_k));
        let mut end = 0u64;
        let mut one = |bytes: u64| {
            let first = end;
            end += bytes.next_multiple_of(256);
            first
        };
        let mut two = |bytes: u64| [one(bytes), one(bytes)];
        let (arrivals, answers) = (two(r * FLAG_BYTES), two(r * FLAG_BYTES));
        let (slots, rows) = (two(r * t * self.slot_bytes()), two(r * t * self.row_bytes));
        let results = two(t * k * self.result_bytes);
        let (shares, acts) = match self.act_bytes {
            0 => (one(0), one(0)),
            row => (one(u64::from(self.n_members) * FLAG_BYTES), one(r * t * k * row)),
        };
        WindowParts { arrivals, answers, slots, rows, results, shares, acts, bytes: end.next_multiple_of(4096) }
    }

    /// Bytes that a rank maps for all of it.
    pub fn bytes(self) -> u64 {
        self.parts().bytes
    }

    /// One number for all sizes, so that ranks find out whether they have the same.
    pub fn digest(self) -> u32 {
        let Window { n_ranks, max_tokens, top_k, row_bytes, result_bytes, n_members, act_bytes } = self;
        let words: [u64; 7] =
            [n_ranks.into(), max_tokens.into(), top_k.into(), row_bytes, result_bytes, n_members.into(), act_bytes];
        fnv32(words.into_iter().flat_map(u64::to_le_bytes))
    }
}

/// FNV-1a of 32 bits, by which ranks find out whether they have the same.
pub(crate) fn fnv32(bytes: impl Iterator<Item = u8>) -> u32 {
    bytes.fold(0x811c_9dc5, |hash, b| (hash ^ u32::from(b)).wrapping_mul(0x0100_0193))
}

/// What a kernel is told of the rank that it runs on: 32-bit words in this order, in the rank's own memory. Offsets are in units of
/// 128 bytes, for both parities where there are two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RankTerms {
    /// The rank.
    pub rank: u32,
    /// The number of the next step, from 1. The last kernel of a step adds 1, and goes on with 2 when the numbers are used up.
    pub epoch: u32,
    /// Longest time to wait for a rank, in units of 1024 ns.
    pub deadline: u32,
    /// Sizes, the same on all ranks.
    pub window: Window,
}

/// The words of [`RankTerms`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Term {
    /// The rank.
    Rank,
    /// How many there are.
    Ranks,
    /// Most tokens of a rank.
    MaxTokens,
    /// The number of the step.
    Epoch,
    /// Longest wait.
    Deadline,
    /// [`Window::digest`].
    Digest,
    /// [`WindowParts::arrivals`], of even epochs and, behind it, of odd ones; so are the four that follow.
    Arrivals,
    /// [`WindowParts::answers`].
    Answers = 8,
    /// [`WindowParts::slots`].
    Slots = 10,
    /// [`WindowParts::rows`].
    Rows = 12,
    /// [`WindowParts::results`].
    Results = 14,
    /// [`WindowParts::shares`].
    Shares = 16,
    /// [`WindowParts::acts`].
    Acts,
}

impl RankTerms {
    /// Bytes of the words.
    pub const BYTES: usize = 72;

    /// The words; `None` when the window is too large for them, from 512 GiB.
    pub fn to_bytes(self) -> Option<Vec<u8>> {
        let w = self.window;
        let p = w.parts();
        let offsets = [p.arrivals, p.answers, p.slots, p.rows, p.results, [p.shares, p.acts]].concat();
        let offsets: Vec<u32> = offsets.into_iter().map(|at| u32::try_from(at / 128).ok()).collect::<Option<_>>()?;
        let words = [self.rank, w.n_ranks, w.max_tokens, self.epoch, self.deadline, w.digest()];
        Some(words.into_iter().chain(offsets).flat_map(u32::to_le_bytes).collect())
    }
}

/// What a kernel that waits too long, or gets what is not for it, writes before it stops: the words of a line for each rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WaitReport {
    /// What happened.
    pub what: Stopped,
    /// The rank that waited.
    pub rank: u32,
    /// The rank that it waited for.
    pub peer: u32,
    /// What it waited for: an epoch, a version or a digest.
    pub wanted: u32,
    /// What it found.
    pub found: u32,
}

/// Why a kernel stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Stopped {
    /// A rank's rows did not arrive in time.
    NoRows = 1,
    /// A rank's results did not arrive in time.
    NoResults,
    /// A rank has a map of another version.
    OtherVersion,
    /// A rank has another map of the same version.
    OtherMap,
    /// A rank has other sizes: ranks, tokens, slots or rows.
    OtherSizes,
    /// The activations of a member of the group did not arrive in time.
    NoActivations,
}

impl Stopped {
    const ALL: [Stopped; 6] = [
        Stopped::NoRows,
        Stopped::NoResults,
        Stopped::OtherVersion,
        Stopped::OtherMap,
        Stopped::OtherSizes,
        Stopped::NoActivations,
    ];
}

impl WaitReport {
    /// Bytes of a line.
    pub const BYTES: usize = 32;

    /// The first line that is not empty.
    pub fn find(lines: &[u8]) -> Option<WaitReport> {
        let word = |line: &[u8], i: usize| Some(u32::from_le_bytes(line.get(4 * i..4 * i + 4)?.try_into().ok()?));
        lines.chunks_exact(Self::BYTES).find_map(|line| {
            let code = word(line, 0)?;
            let what = Stopped::ALL.into_iter().find(|s| *s as u32 == code)?;
            let (rank, peer, wanted, found) = (word(line, 1)?, word(line, 2)?, word(line, 3)?, word(line, 4)?);
            Some(WaitReport { what, rank, peer, wanted, found })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_do_not_meet_and_sizes_are_those_of_the_formula() {
        let w = Window {
            n_ranks: 8,
            max_tokens: 128,
            top_k: 8,
            row_bytes: 2 * 7168,
            result_bytes: 2 * 7168,
            n_members: 1,
            act_bytes: 0,
        };
        let p = w.parts();
        let all = [p.arrivals, p.answers, p.slots, p.rows, p.results].concat();
        assert!(all.is_sorted() && all.iter().all(|at| at.is_multiple_of(256)));
        assert_eq!(p.rows[1] - p.rows[0], 8 * 128 * 14336);
        assert_eq!(p.bytes, (4u64 * 8 * 128 + 2 * (8 * 128 * (14336 + 48) + 128 * 8 * 14336)).next_multiple_of(4096));
        assert_ne!(w.digest(), Window { max_tokens: 127, ..w }.digest());
        let cut = Window { n_members: 2, act_bytes: 2 * 2048, ..w };
        let c = cut.parts();
        assert_eq!((c.shares, c.acts), (c.results[1] + (128 * 8 * 14336), c.shares + 256));
        assert_eq!(c.bytes, (c.acts + 8 * 128 * 8 * 4096).next_multiple_of(4096));
        assert_ne!(w.digest(), cut.digest());
        let terms = RankTerms { rank: 3, epoch: 1, deadline: 9, window: w };
        let words = terms.to_bytes().unwrap_or_default();
        assert_eq!(words.len(), RankTerms::BYTES);
        let at = 4 * (Term::Rows as usize + 1);
        assert_eq!(words[at..at + 4], ((p.rows[1] / 128) as u32).to_le_bytes());
        let cut = RankTerms { window: cut, ..terms }.to_bytes().unwrap_or_default();
        assert_eq!(cut[4 * Term::Acts as usize..], ((c.acts / 128) as u32).to_le_bytes());
        let huge = Window { max_tokens: 1 << 24, ..w };
        assert_eq!(RankTerms { window: huge, ..terms }.to_bytes(), None);
    }
}
