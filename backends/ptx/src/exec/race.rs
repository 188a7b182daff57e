//! Vector clocks and the access history of shared memory.
//!
//! Every warp of a cluster is an actor with a tick that grows when it releases (barrier, mbarrier arrival, release
//! fence). Asynchronous operations act under actors of their own, so that data which nobody waited for is not ordered
//! before its reader. An access is ordered after an earlier one if the accessor's clock has seen the earlier actor's
//! tick (the FastTrack rule, Flanagan and Freund 2009). A generic-proxy write is visible to the async proxy once a
//! `fence.proxy.async` on the causality path has copied what its warp has seen into `proxied`.

use std::collections::HashMap;

/// What an actor knows of the others.
#[derive(Clone, Debug, Default)]
pub struct Clock {
    /// Tick of each actor whose accesses happened before.
    pub seen: Vec<u32>,
    /// Tick of each actor whose generic-proxy accesses are visible to the async proxy.
    pub proxied: Vec<u32>,
}

impl Clock {
    /// The clock that has seen nothing of `n` actors.
    pub fn new(n: usize) -> Clock {
        Clock { seen: vec![0; n], proxied: vec![0; n] }
    }

    /// Learns what `other` knows.
    pub fn join(&mut self, other: &Clock) {
        for (a, b) in self.seen.iter_mut().zip(&other.seen) {
            *a = (*a).max(*b);
        }
        for (a, b) in self.proxied.iter_mut().zip(&other.proxied) {
            *a = (*a).max(*b);
        }
    }

    /// `fence.proxy.async`: everything seen becomes visible to the async proxy.
    pub fn fence_proxy(&mut self) {
        self.proxied.copy_from_slice(&self.seen);
    }

    /// Starts a new tick of the actor itself, so that later accesses are told from released ones.
    pub fn advance(&mut self, actor: u32) {
        if let Some(t) = self.seen.get_mut(actor as usize) {
            *t += 1;
        }
    }
}

/// How an access takes part in race detection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccessKind {
    /// A weak load.
    Read,
    /// A weak store.
    Write,
    /// An atomic, or a volatile, relaxed, acquire or release access that reads.
    StrongRead,
    /// The same that writes.
    StrongWrite,
}

/// Who accesses, and what it has seen.
#[derive(Clone, Copy)]
pub struct Actor<'c> {
    /// Index into the clocks.
    pub id: u32,
    /// The accessor's clock; its own entry is its tick.
    pub clock: &'c Clock,
    /// Instruction, for reports.
    pub pc: u32,
    /// Reads through the async proxy.
    pub async_proxy: bool,
}

/// Two accesses without an order, or without the proxy fence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// The earlier actor.
    pub actor: u32,
    /// The earlier instruction.
    pub pc: u32,
    /// The earlier access was a write.
    pub wrote: bool,
    /// Ordered, but the async proxy may not see it.
    pub proxy_only: bool,
    /// Byte offset of the conflict.
    pub offset: u32,
}

const NOBODY: u16 = 0xffff;
const MANY: u16 = 0xfffe;
const SPLIT: u16 = 0xfffd;

#[derive(Clone, Copy)]
struct Cell {
    write_tick: u32,
    write_pc: u32,
    /// Tick of the only reader, or index into `readers` if `reader == MANY`.
    read_tick: u32,
    read_pc: u32,
    writer: u16,
    reader: u16,
    strong: bool,
}

const EMPTY: Cell =
    Cell { write_tick: 0, write_pc: 0, read_tick: 0, read_pc: 0, writer: NOBODY, reader: NOBODY, strong: false };

type Readers = Vec<(u16, u32, u32)>;

/// The access history of one CTA's shared memory, word by word; words that were accessed in parts, byte by byte.
pub struct History {
    cells: Vec<Cell>,
    parts: HashMap<u32, [Cell; 4]>,
    readers: Vec<Readers>,
    free: Vec<u32>,
    /// Actors below this number write through the generic proxy.
    generic_actors: u32,
    /// What was released through strong writes, by word.
    released: HashMap<u32, Clock>,
}

impl History {
    /// The empty history of `bytes` of shared memory.
    pub fn new(bytes: usize, generic_actors: u32) -> History {
        History {
            cells: vec![EMPTY; bytes.div_ceil(4)],
            parts: HashMap::new(),
            readers: Vec::new(),
            free: Vec::new(),
            generic_actors,
            released: HashMap::new(),
        }
    }

    /// Records an access of `bytes` at `offset` and returns the first conflict.
    pub fn access(&mut self, offset: u32, bytes: u32, kind: AccessKind, actor: Actor<'_>) -> Option<Conflict> {
        let mut found = None;
        let end = offset.saturating_add(bytes).min(self.cells.len() as u32 * 4);
        let mut at = offset;
        while at < end {
            let word = at / 4;
            let next = ((word + 1) * 4).min(end);
            let whole = at.is_multiple_of(4) && next - at == 4;
            let mut cell = self.cells[word as usize];
            if whole && cell.writer != SPLIT {
                if let Some(conflict) = self.touch(&mut cell, at, kind, actor) {
                    found = found.or(Some(conflict));
                }
                self.cells[word as usize] = cell;
            } else {
                let mut parts = if cell.writer == SPLIT {
                    self.parts.get(&word).copied().unwrap_or([EMPTY; 4])
                } else {
                    self.split(cell)
                };
                for byte in at..next {
                    let part = &mut parts[(byte % 4) as usize];
                    if let Some(conflict) = self.touch(part, byte, kind, actor) {
                        found = found.or(Some(conflict));
                    }
                }
                self.parts.insert(word, parts);
                self.cells[word as usize].writer = SPLIT;
            }
            at = next;
        }
        found
    }

    /// Four byte cells with the history of a word cell.
    fn split(&mut self, cell: Cell) -> [Cell; 4] {
        let mut parts = [cell; 4];
        if cell.reader == MANY {
            let list = self.readers[cell.read_tick as usize].clone();
            for part in &mut parts[1..] {
                part.read_tick = self.new_readers(list.clone());
            }
        }
        parts
    }

    fn new_readers(&mut self, list: Readers) -> u32 {
        match self.free.pop() {
            Some(i) => {
                self.readers[i as usize] = list;
                i
            }
            None => {
                self.readers.push(list);
                self.readers.len() as u32 - 1
            }
        }
    }

    fn touch(&mut self, cell: &mut Cell, offset: u32, kind: AccessKind, actor: Actor<'_>) -> Option<Conflict> {
        let strong = matches!(kind, AccessKind::StrongRead | AccessKind::StrongWrite);
        let me = actor.id as u16;
        let tick = actor.clock.seen.get(actor.id as usize).copied().unwrap_or(0);
        let mut conflict = None;
        if cell.writer != NOBODY && cell.writer != me && !(strong && cell.strong) {
            let writer = usize::from(cell.writer);
            let seen = actor.clock.seen.get(writer).is_some_and(|t| *t >= cell.write_tick);
            if !seen {
                conflict =
                    Some(Conflict { actor: writer as u32, pc: cell.write_pc, wrote: true, proxy_only: false, offset });
            }
        }
        // The proxy rule also binds a warp to its own writes. Writing over them needs no fence (PTX orders that by the
        // mbarrier or barrier that releases the buffer).
        if conflict.is_none()
            && actor.async_proxy
            && kind == AccessKind::Read
            && u32::from(cell.writer) < self.generic_actors
        {
            let writer = usize::from(cell.writer);
            if actor.clock.proxied.get(writer).is_none_or(|t| *t < cell.write_tick) {
                conflict =
                    Some(Conflict { actor: writer as u32, pc: cell.write_pc, wrote: true, proxy_only: true, offset });
            }
        }
        match kind {
            AccessKind::StrongRead => {}
            AccessKind::Read => {
                if cell.reader == me {
                    cell.read_tick = tick;
                    cell.read_pc = actor.pc;
                } else if cell.reader == NOBODY
                    || (cell.reader != MANY
                        && actor.clock.seen.get(usize::from(cell.reader)).is_some_and(|t| *t >= cell.read_tick))
                {
                    cell.reader = me;
                    cell.read_tick = tick;
                    cell.read_pc = actor.pc;
                } else if cell.reader == MANY {
                    let list = &mut self.readers[cell.read_tick as usize];
                    match list.iter_mut().find(|(a, _, _)| *a == me) {
                        Some(entry) => *entry = (me, tick, actor.pc),
                        None => list.push((me, tick, actor.pc)),
                    }
                } else {
                    let list = vec![(cell.reader, cell.read_tick, cell.read_pc), (me, tick, actor.pc)];
                    cell.read_tick = self.new_readers(list);
                    cell.reader = MANY;
                }
            }
            AccessKind::Write | AccessKind::StrongWrite => {
                let unordered = |a: u16, t: u32| a != me && actor.clock.seen.get(usize::from(a)).is_none_or(|s| *s < t);
                if cell.reader == MANY {
                    if conflict.is_none() {
                        let list = &self.readers[cell.read_tick as usize];
                        if let Some((a, _, pc)) = list.iter().find(|(a, t, _)| unordered(*a, *t)) {
                            conflict = Some(Conflict {
                                actor: u32::from(*a),
                                pc: *pc,
                                wrote: false,
                                proxy_only: false,
                                offset,
                            });
                        }
                    }
                    self.free.push(cell.read_tick);
                } else if cell.reader != NOBODY && conflict.is_none() && unordered(cell.reader, cell.read_tick) {
                    conflict = Some(Conflict {
                        actor: u32::from(cell.reader),
                        pc: cell.read_pc,
                        wrote: false,
                        proxy_only: false,
                        offset,
                    });
                }
                *cell = Cell {
                    write_tick: tick,
                    write_pc: actor.pc,
                    read_tick: 0,
                    read_pc: 0,
                    writer: me,
                    reader: NOBODY,
                    strong,
                };
            }
        }
        conflict
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

#[cfg(test)]
mod tests {
    use super::{AccessKind, Actor, Clock, History};

    fn actor(id: u32, clock: &Clock) -> Actor<'_> {
        Actor { id, clock, pc: id, async_proxy: false }
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
            h.access(0, 4, AccessKind::Read, Actor { id: 2, clock: a, pc: 9, async_proxy: true })
        };
        assert!(read(&mut h, &a).unwrap().proxy_only);
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
}
