//! The access history of shared and tensor memory.
//!
//! What happened to a word is a *state*: who wrote it last, who has read it since. Tiles are written and read by few instructions, so
//! that thousands of words share a state; a word holds its number. An access turns runs of words of one state into another, and the
//! last such step is remembered for the next row of the tile.

use super::race::{AccessKind, Actor, Clock, Conflict, Takes};
use std::collections::HashMap;

const NOBODY: u16 = 0xffff;

/// Steps that are remembered.
const RECENT: usize = 4;

/// In place of a state's number: the bytes of the word have states of their own, in `parts`.
const SPLIT: u32 = u32::MAX;

/// Number of the state of words that nobody has touched; it is never freed.
const UNTOUCHED: u32 = 0;

/// An access: actor, its tick, its instruction.
type Access = (u16, u32, u32);

#[derive(Clone, Debug, PartialEq, Eq)]
struct State {
    writer: Access,
    strong: bool,
    /// Nobody, when the actor is [`NOBODY`].
    reader: Access,
    /// Readers beside that one, which are not ordered with each other.
    others: Vec<Access>,
    /// Words and bytes that are in this state.
    uses: u32,
}

const NOTHING: Access = (NOBODY, 0, 0);

/// What two accesses must have in common to have the same effect. A clock that has seen more since finds no more conflicts.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Key {
    access: Access,
    kind: AccessKind,
    takes: Takes,
}

/// The access history of one CTA's shared memory, word by word; words that were accessed in parts, byte by byte.
pub struct History {
    words: Vec<u32>,
    parts: HashMap<u32, [u32; 4]>,
    states: Vec<State>,
    free: Vec<u32>,
    /// The last steps without a conflict: the access, the state before, the state after. A tile that one instruction reads
    /// was written by several warps.
    recent: [Option<(Key, u32, u32)>; RECENT],
    /// Which of them is the oldest.
    oldest: usize,
    /// The state that a write left.
    written: Option<(Key, u32)>,
    /// Actors below this number write through the generic proxy.
    generic_actors: u32,
    /// What was released through strong writes, by word.
    released: HashMap<u32, Clock>,
}

impl History {
    /// The empty history of `bytes` of shared memory.
    pub fn new(bytes: usize, generic_actors: u32) -> History {
        let untouched = State { writer: NOTHING, strong: false, reader: NOTHING, others: Vec::new(), uses: 0 };
        History {
            words: vec![UNTOUCHED; bytes.div_ceil(4)],
            parts: HashMap::new(),
            states: vec![untouched],
            free: Vec::new(),
            recent: [None; RECENT],
            oldest: 0,
            written: None,
            generic_actors,
            released: HashMap::new(),
        }
    }

    /// Records an access of `bytes` at `offset` and returns the first conflict.
    pub fn access(&mut self, offset: u32, bytes: u32, kind: AccessKind, actor: Actor<'_>) -> Option<Conflict> {
        let tick = actor.clock.seen.get(actor.id as usize).copied().unwrap_or(0);
        let key = Key { access: (actor.id as u16, tick, actor.pc), kind, takes: actor.takes };
        if self.repeats(offset, bytes, key) {
            return None;
        }
        let mut found = None;
        let end = offset.saturating_add(bytes).min(self.words.len() as u32 * 4);
        let mut at = offset;
        while at < end {
            let word = (at / 4) as usize;
            let old = self.words[word];
            let whole_words = if at.is_multiple_of(4) { ((end - at) / 4) as usize } else { 0 };
            if whole_words > 0 && old != SPLIT {
                let run = &mut self.words[word..word + whole_words];
                let length = run.iter().position(|s| *s != old).unwrap_or(run.len());
                let (new, conflict) = self.step(old, at, key, actor);
                found = found.or(conflict);
                if new != old {
                    self.words[word..word + length].fill(new);
                    self.moved(old, new, length as u32);
                }
                at += 4 * length as u32;
            } else {
                let next = ((at / 4 + 1) * 4).min(end);
                let mut parts =
                    if old == SPLIT { self.parts.get(&(at / 4)).copied() } else { None }.unwrap_or([old; 4]);
                if old != SPLIT {
                    // One word less, four bytes more.
                    self.states[old as usize].uses += if old == UNTOUCHED { 0 } else { 3 };
                    self.words[word] = SPLIT;
                }
                for byte in at..next {
                    let part = &mut parts[(byte % 4) as usize];
                    let (new, conflict) = self.step(*part, byte, key, actor);
                    found = found.or(conflict);
                    if new != *part {
                        self.moved(*part, new, 1);
                        *part = new;
                    }
                }
                self.parts.insert(at / 4, parts);
                at = next;
            }
        }
        found
    }

    /// Does what one of the last steps did, if these are whole words in the state that was before it or is after it.
    #[inline]
    fn repeats(&mut self, offset: u32, bytes: u32, key: Key) -> bool {
        if !(offset | bytes).is_multiple_of(4) {
            return false;
        }
        let (first, n) = (offset as usize / 4, bytes as usize / 4);
        let Some(&state) = self.words.get(first) else { return false };
        let mut steps = self.recent.iter().flatten();
        let Some(&(_, before, after)) = steps.find(|s| (s.1 == state || s.2 == state) && s.0 == key) else {
            return false;
        };
        let Some(words) = self.words.get_mut(first..first + n) else { return false };
        if words.iter().all(|s| *s == before) {
            if before != after {
                words.fill(after);
                self.moved(before, after, n as u32);
            }
            return true;
        }
        words.iter().all(|s| *s == after)
    }

    /// The state after an access to something in state `old`, and the conflict.
    fn step(&mut self, old: u32, offset: u32, key: Key, actor: Actor<'_>) -> (u32, Option<Conflict>) {
        if let Some(&(.., after)) = self.recent.iter().flatten().find(|s| s.1 == old && s.0 == key) {
            return (after, None);
        }
        let state = &self.states[old as usize];
        let conflict = state.conflict(key, actor, self.generic_actors, offset);
        let new = match key.kind {
            AccessKind::StrongRead => old,
            AccessKind::Read => match state.read(key.access, actor.clock) {
                Some(next) => self.new_state(next),
                None => old,
            },
            AccessKind::Write | AccessKind::StrongWrite => match self.written {
                Some((last, state)) if last == key => state,
                Some(_) | None => {
                    let strong = key.kind == AccessKind::StrongWrite;
                    let next = State { writer: key.access, strong, reader: NOTHING, others: Vec::new(), uses: 0 };
                    let new = self.new_state(next);
                    self.written = Some((key, new));
                    new
                }
            },
        };
        if conflict.is_none() {
            self.recent[self.oldest % RECENT] = Some((key, old, new));
            self.oldest = (self.oldest + 1) % RECENT;
        }
        (new, conflict)
    }

    fn new_state(&mut self, state: State) -> u32 {
        match self.free.pop() {
            Some(i) => {
                self.states[i as usize] = state;
                i
            }
            None => {
                self.states.push(state);
                self.states.len() as u32 - 1
            }
        }
    }

    /// So many words or bytes went from one state to another.
    fn moved(&mut self, old: u32, new: u32, n: u32) {
        self.states[new as usize].uses += n;
        if old == UNTOUCHED {
            return;
        }
        let state = &mut self.states[old as usize];
        state.uses -= n;
        if state.uses == 0 {
            state.others = Vec::new();
            self.free.push(old);
            // The number may become another state's.
            for step in &mut self.recent {
                *step = step.filter(|(_, before, after)| *before != old && *after != old);
            }
            self.written = self.written.filter(|(_, state)| *state != old);
        }
    }

    /// A strong write at `offset` releases what `clock` knows.
    pub fn release(&mut self, offset: u32, clock: &Clock) {
        self.released.entry(offset / 4).and_modify(|c| c.join(clock)).or_insert_with(|| clock.clone());
    }

    /// What strong writes at `offset` have released.
    pub fn acquired(&self, offset: u32) -> Option<&Clock> {
        self.released.get(&(offset / 4))
    }
}

impl State {
    fn conflict(&self, key: Key, actor: Actor<'_>, generic_actors: u32, offset: u32) -> Option<Conflict> {
        let me = key.access.0;
        let has_seen = |(a, tick, _): Access| actor.clock.seen.get(usize::from(a)).is_some_and(|t| *t >= tick);
        let of =
            |(a, tick, pc): Access, wrote, unfenced| Conflict { actor: a.into(), tick, pc, wrote, unfenced, offset };
        let (strong, writes) = match key.kind {
            AccessKind::Read => (false, false),
            AccessKind::StrongRead => (true, false),
            AccessKind::Write => (false, true),
            AccessKind::StrongWrite => (true, true),
        };
        let writer = self.writer;
        if writer.0 != NOBODY && writer.0 != me && !(strong && self.strong) && !has_seen(writer) {
            return Some(of(writer, true, false));
        }
        // The proxy rule also binds a warp to its own writes. Writing over them needs no fence (PTX orders that by the
        // mbarrier or barrier that releases the buffer).
        if key.takes == Takes::ProxyFence
            && key.kind == AccessKind::Read
            && u32::from(writer.0) < generic_actors
            && actor.clock.proxied.get(usize::from(writer.0)).is_none_or(|t| *t < writer.1)
        {
            return Some(of(writer, true, true));
        }
        let lacks_fence = |(a, tick, _): Access| {
            key.takes == Takes::TensorFences && actor.clock.after_sync.get(usize::from(a)).is_none_or(|t| *t < tick)
        };
        let unfenced = (writer.0 != NOBODY && writer.0 != me && lacks_fence(writer)).then(|| of(writer, true, true));
        if !writes || self.reader.0 == NOBODY {
            return unfenced;
        }
        let readers = || std::iter::once(&self.reader).chain(&self.others).copied().filter(|r| r.0 != me);
        let unordered = readers().find(|r| !has_seen(*r)).map(|r| of(r, false, false));
        let unfenced = || unfenced.or_else(|| readers().find(|r| lacks_fence(*r)).map(|r| of(r, false, true)));
        unordered.or_else(unfenced)
    }

    /// The state after a weak read; `None` when it is the same.
    fn read(&self, me: Access, clock: &Clock) -> Option<State> {
        let known = std::iter::once(&self.reader).chain(&self.others).any(|r| *r == me);
        if known {
            return None;
        }
        let (old, mut others) = (self.reader, self.others.clone());
        let alone = others.is_empty();
        let is_over = old.0 == NOBODY || clock.seen.get(usize::from(old.0)).is_some_and(|t| *t >= old.1);
        let reader = if old.0 == me.0 || (alone && is_over) {
            me
        } else {
            match others.iter_mut().find(|r| r.0 == me.0) {
                Some(mine) => *mine = me,
                None => others.push(me),
            }
            old
        };
        Some(State { writer: self.writer, strong: self.strong, reader, others, uses: 0 })
    }
}

#[cfg(test)]
mod tests {
    use super::{AccessKind, Actor, Clock, History, Takes};

    fn actor(id: u32, clock: &Clock) -> Actor<'_> {
        Actor { id, clock, pc: id, takes: Takes::Nothing }
    }

    fn two_clocks() -> (Clock, Clock) {
        let (mut a, mut b) = (Clock::new(3), Clock::new(3));
        a.advance(0);
        b.advance(1);
        (a, b)
    }

    #[test]
    fn a_read_of_an_unreleased_write_is_a_race() {
        let (a, b) = two_clocks();
        let mut h = History::new(64, 2);
        assert_eq!(h.access(0, 16, AccessKind::Write, actor(0, &a)), None);
        let c = h.access(8, 4, AccessKind::Read, actor(1, &b)).unwrap();
        assert!(c.wrote && c.actor == 0 && c.offset == 8);
    }

    #[test]
    fn a_joined_clock_orders_the_read() {
        let (a, mut b) = two_clocks();
        let mut h = History::new(64, 2);
        h.access(0, 16, AccessKind::Write, actor(0, &a));
        b.join(&a);
        assert_eq!(h.access(0, 16, AccessKind::Read, actor(1, &b)), None);
    }

    #[test]
    fn halves_of_a_word_do_not_conflict() {
        let (a, b) = two_clocks();
        let mut h = History::new(64, 2);
        assert_eq!(h.access(0, 2, AccessKind::Write, actor(0, &a)), None);
        assert_eq!(h.access(2, 2, AccessKind::Write, actor(1, &b)), None);
        assert!(h.access(1, 1, AccessKind::Write, actor(1, &b)).is_some());
    }

    #[test]
    fn a_write_after_unordered_reads_is_a_race_with_each_reader() {
        let (a, mut b) = two_clocks();
        let mut h = History::new(64, 2);
        h.access(0, 4, AccessKind::Read, actor(0, &a));
        h.access(0, 4, AccessKind::Read, actor(1, &b));
        b.advance(1);
        assert_eq!(h.access(0, 4, AccessKind::Write, actor(1, &b)).unwrap().actor, 0);
    }

    #[test]
    fn the_async_proxy_needs_the_fence() {
        let (mut a, _) = two_clocks();
        let mut h = History::new(64, 2);
        h.access(0, 4, AccessKind::Write, actor(0, &a));
        let read = |h: &mut History, a: &Clock| {
            h.access(0, 4, AccessKind::Read, Actor { id: 2, clock: a, pc: 9, takes: Takes::ProxyFence })
        };
        assert!(read(&mut h, &a).unwrap().unfenced);
        a.fence_proxy();
        assert_eq!(read(&mut h, &a), None);
    }

    #[test]
    fn strong_accesses_do_not_race_with_each_other() {
        let (a, b) = two_clocks();
        let mut h = History::new(64, 2);
        h.access(0, 4, AccessKind::StrongWrite, actor(0, &a));
        assert_eq!(h.access(0, 4, AccessKind::StrongWrite, actor(1, &b)), None);
        assert!(h.access(0, 4, AccessKind::Read, actor(0, &a)).is_some());
    }

    #[test]
    fn states_are_given_back_and_words_keep_their_own() {
        let (mut a, mut b) = two_clocks();
        let mut h = History::new(256, 2);
        for round in 0..100 {
            assert_eq!(h.access(0, 128, AccessKind::Write, actor(0, &a)), None, "{round}");
            assert_eq!(h.access(128, 128, AccessKind::Write, actor(1, &b)), None, "{round}");
            a.join(&b);
            b.join(&a);
            // Rows of both, and bytes of a word.
            assert_eq!(h.access(64, 128, AccessKind::Read, actor(0, &a)), None, "{round}");
            assert_eq!(h.access(66, 1, AccessKind::Read, actor(1, &b)), None, "{round}");
            a.advance(0);
            b.advance(1);
            a.join(&b);
            b.join(&a);
        }
        assert!(h.states.len() < 12, "{}", h.states.len());
        a.advance(0);
        b.advance(1);
        h.access(0, 4, AccessKind::Write, actor(0, &a));
        assert_eq!(h.access(0, 256, AccessKind::Write, actor(1, &b)).unwrap().offset, 0);
        assert_eq!(h.access(4, 252, AccessKind::Write, actor(0, &a)).unwrap().offset, 4);
    }
}
