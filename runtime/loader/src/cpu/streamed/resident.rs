//! Which matrices of experts are in memory, and which of them is let go for another.

use super::Stack;
use super::pages::{LARGE, Pages, page_bytes};
use super::readers::{PIECE, Piece, Readers};
use moec_ir::diag::Diagnostic;
use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// Of experts under a memory limit, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ExpertMemory {
    /// The limit.
    pub limit: u64,
    /// In memory now.
    pub resident: u64,
    /// Most that was in memory at once.
    pub peak: u64,
    /// Asked for since the layer was loaded: from the file, or from what the system keeps of it.
    pub asked: u64,
    /// All experts of the layer.
    pub all: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Absent,
    /// So many pieces are still to be read; whether one of them failed.
    Coming(usize, bool),
    Here,
}

/// A matrix of an expert.
#[derive(Clone, Copy, Debug)]
struct Matrix {
    state: State,
    /// When it was last multiplied with, by steps.
    used: u64,
    /// The portion of this step that needs it, if one does.
    needed: usize,
}

/// No portion of this step.
const NOT_NEEDED: usize = usize::MAX;

pub(super) struct Table {
    stacks: Vec<Vec<Matrix>>,
    pieces: VecDeque<Piece>,
    /// Matrices that are coming.
    coming: usize,
    error: Option<std::io::Error>,
    step: u64,
    stop: bool,
    memory: ExpertMemory,
}

/// What launches and readers share.
pub(super) struct Shared {
    stacks: Vec<Stack>,
    /// Nothing is ever let go.
    has_room_for_all: bool,
    table: Mutex<Table>,
    work: Condvar,
    news: Condvar,
}

/// Matrices of experts, in memory or not.
pub(super) struct Resident {
    shared: Arc<Shared>,
    readers: Readers,
}

/// The matrices that one step needs, portion by portion.
pub(super) struct Step<'a> {
    resident: &'a Resident,
    wanted: Vec<Vec<(usize, usize)>>,
}

impl Stack {
    /// All pages that hold a byte of a matrix.
    fn pages(&self, expert: usize) -> Pages {
        let page = page_bytes();
        let start = self.start.addr() + expert * self.bytes as usize;
        let end = (start + self.bytes as usize).next_multiple_of(page);
        Pages { start: start / page * page, end }
    }

    /// Most bytes that a matrix takes in memory: whole pages, of which two may be shared with its neighbours.
    fn cost(&self) -> u64 {
        ((self.bytes as usize).next_multiple_of(page_bytes()) + page_bytes()) as u64
    }

    /// The matrices that the system may have mapped along with one.
    fn around(&self, expert: usize) -> std::ops::Range<usize> {
        let (first, bytes) = (self.start.addr(), (self.bytes as usize).max(1));
        let start = (first + expert * bytes) / LARGE * LARGE;
        let end = (first + (expert + 1) * bytes).next_multiple_of(LARGE);
        start.saturating_sub(first) / bytes..((end - first).div_ceil(bytes)).min(self.n_experts)
    }

    /// Takes matrices out of memory, but for pages that they share with others.
    fn let_go(&self, experts: std::ops::Range<usize>) {
        let page = page_bytes();
        let at = |expert: usize| self.start.addr() + expert * self.bytes as usize;
        let (start, end) = (at(experts.start).next_multiple_of(page), at(experts.end) / page * page);
        if start < end {
            Pages { start, end }.let_go();
        }
    }
}

impl Shared {
    fn table(&self) -> MutexGuard<'_, Table> {
        // Nothing that unwinds happens while it is held.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next piece to read; waits for one. `None` when there will be none.
    pub fn next_piece(&self) -> Option<Piece> {
        let mut table = self.table();
        loop {
            if table.stop {
                return None;
            }
            if let Some(piece) = table.pieces.pop_front() {
                return Some(piece);
            }
            table = self.work.wait(table).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// A piece has been read, or could not be.
    pub fn finish(&self, piece: Piece, result: std::io::Result<()>) {
        let mut table = self.table();
        let matrix = &mut table.stacks[piece.stack][piece.expert];
        let State::Coming(left, mut failed) = matrix.state else { return };
        failed |= result.is_err();
        matrix.state = match (left, failed) {
            (1, false) => State::Here,
            (1, true) => State::Absent,
            _ => State::Coming(left - 1, failed),
        };
        let state = matrix.state;
        if let Err(e) = result {
            table.error.get_or_insert(e);
        }
        if left == 1 {
            table.coming -= 1;
            if state == State::Absent {
                table.memory.resident -= self.stacks[piece.stack].cost();
            }
            self.tidy(&table, piece.stack, piece.expert);
            self.news.notify_all();
        }
    }

    pub fn stop(&self) {
        self.table().stop = true;
        self.work.notify_all();
    }

    /// Asks for those of `wanted`, the matrices of portion `at`, that are neither here nor coming. Whether there is room for all.
    /// With `may_take` room is made by letting go of what a later portion needs, else only of what none does.
    fn ask(&self, table: &mut Table, wanted: &[(usize, usize)], at: usize, may_take: bool) -> bool {
        for &(stack, expert) in wanted {
            if table.stacks[stack][expert].state != State::Absent {
                continue;
            }
            let cost = self.stacks[stack].cost();
            while table.memory.resident + cost > table.memory.limit {
                if !self.let_one_go(table, if may_take { at + 1 } else { NOT_NEEDED }) {
                    return false;
                }
            }
            let memory = &mut table.memory;
            memory.resident += cost;
            memory.asked += self.stacks[stack].bytes;
            memory.peak = memory.peak.max(memory.resident);
            let Pages { start, end } = self.stacks[stack].pages(expert);
            let before = table.pieces.len();
            table.pieces.extend((start..end).step_by(PIECE).map(|start| {
                let pages = Pages { start, end: (start + PIECE).min(end) };
                Piece { stack, expert, pages }
            }));
            table.stacks[stack][expert].state = State::Coming(table.pieces.len() - before, false);
            table.coming += 1;
            self.work.notify_all();
        }
        true
    }

    /// Lets go of a matrix that no portion below `from` needs: the one that is needed last of all, or was used longest ago.
    fn let_one_go(&self, table: &mut Table, from: usize) -> bool {
        let all =
            table.stacks.iter().enumerate().flat_map(|(s, of)| of.iter().enumerate().map(move |(e, m)| (s, e, m)));
        let may_go = all.filter(|(_, _, m)| m.state == State::Here && m.needed >= from);
        let Some((stack, expert, _)) = may_go.max_by_key(|(_, _, m)| (m.needed, std::cmp::Reverse(m.used))) else {
            return false;
        };
        table.stacks[stack][expert].state = State::Absent;
        table.memory.resident -= self.stacks[stack].cost();
        self.tidy(table, stack, expert);
        true
    }

    /// Lets go of what is in memory around a matrix and is counted as absent.
    fn tidy(&self, table: &Table, stack: usize, expert: usize) {
        if self.has_room_for_all {
            return;
        }
        let (matrices, of) = (&table.stacks[stack], &self.stacks[stack]);
        let mut around = of.around(expert);
        while let Some(first) = around.find(|&e| matrices[e].state == State::Absent) {
            let last = around.find(|&e| matrices[e].state != State::Absent).unwrap_or(around.end);
            of.let_go(first..last);
        }
    }
}

impl Resident {
    pub fn new(stacks: Vec<Stack>, limit: u64) -> Resident {
        let all = stacks.iter().map(|s| s.bytes * s.n_experts as u64).sum();
        let has_room_for_all = stacks.iter().map(|s| s.cost() * s.n_experts as u64).sum::<u64>() <= limit;
        for stack in stacks.iter().filter(|_| !has_room_for_all) {
            let (first, last) = (stack.pages(0), stack.pages(stack.n_experts - 1));
            let all = Pages { start: first.start, end: last.end };
            all.map_one_by_one();
            all.let_go();
        }
        let absent = Matrix { state: State::Absent, used: 0, needed: NOT_NEEDED };
        let table = Table {
            stacks: stacks.iter().map(|s| vec![absent; s.n_experts]).collect(),
            pieces: VecDeque::new(),
            coming: 0,
            error: None,
            step: 0,
            stop: false,
            memory: ExpertMemory { limit, all, ..ExpertMemory::default() },
        };
        let shared = Arc::new(Shared {
            stacks,
            has_room_for_all,
            table: Mutex::new(table),
            work: Condvar::new(),
            news: Condvar::new(),
        });
        Resident { readers: Readers::start(shared.clone()), shared }
    }

    /// Bytes that a matrix of a stack is counted with.
    pub fn cost(&self, stack: usize) -> u64 {
        self.shared.stacks[stack].cost()
    }

    pub fn limit(&self) -> u64 {
        self.shared.table().memory.limit
    }

    pub fn memory(&self) -> ExpertMemory {
        self.shared.table().memory
    }

    /// Begins a step that needs these matrices, as (stack, expert), portion by portion. One step at a time.
    pub fn begin(&self, wanted: Vec<Vec<(usize, usize)>>) -> Step<'_> {
        let mut table = self.shared.table();
        table.step += 1;
        table.error = None;
        for (at, portion) in wanted.iter().enumerate().rev() {
            for &(stack, expert) in portion {
                table.stacks[stack][expert].needed = at;
            }
        }
        drop(table);
        Step { resident: self, wanted }
    }
}

impl Step<'_> {
    /// Waits until the matrices of portion `at` are in memory, and asks for those of later portions. Portions come in order, and
    /// what those before needed is needed no more.
    ///
    /// # Errors
    /// `experts-unreadable`.
    pub fn wait_for(&mut self, at: usize) -> Result<(), Diagnostic> {
        let shared = &*self.resident.shared;
        let mut table = shared.table();
        let step = table.step;
        for &(stack, expert) in at.checked_sub(1).map_or(&[][..], |before| &self.wanted[before]) {
            table.stacks[stack][expert].needed = NOT_NEEDED;
        }
        loop {
            if table.error.is_none() && shared.ask(&mut table, &self.wanted[at], at, true) {
                // The next one may take the place of those behind it; farther ones only what is free.
                let mut later = (at + 1..self.wanted.len()).map(|p| (p, p == at + 1));
                let _ = later.all(|(p, may_take)| shared.ask(&mut table, &self.wanted[p], p, may_take));
            }
            if let (true, Some(e)) = (table.coming == 0, &table.error) {
                return Err(unreadable(e));
            }
            let is_here = |&(stack, expert): &(usize, usize)| table.stacks[stack][expert].state == State::Here;
            if table.error.is_none() && self.wanted[at].iter().all(is_here) {
                break;
            }
            if self.resident.readers.is_empty()
                && let Some(piece) = table.pieces.pop_front()
            {
                drop(table);
                shared.finish(piece, piece.pages.bring());
                table = shared.table();
                continue;
            }
            table = shared.news.wait(table).unwrap_or_else(PoisonError::into_inner);
        }
        for &(stack, expert) in &self.wanted[at] {
            table.stacks[stack][expert].used = step;
        }
        Ok(())
    }
}

impl Drop for Step<'_> {
    fn drop(&mut self) {
        let mut table = self.resident.shared.table();
        for &(stack, expert) in self.wanted.iter().flatten() {
            table.stacks[stack][expert].needed = NOT_NEEDED;
        }
    }
}

fn unreadable(error: &std::io::Error) -> Diagnostic {
    Diagnostic::machine("experts-unreadable", format!("the weights of an expert cannot be read: {error}"))
        .help("look at the disk, and at whether the file is as it was when the layer was loaded")
}
