//! What is in a message from a token's rank to an expert's.
//!
//! Behind the sender's terms: numbers of rows and slots (u32 each), the rows, and for each slot its row and its local
//! expert (u32 each). A row is there once, however many experts of the receiver it goes to. The answer is one result row
//! for each slot, in the same order.

use crate::terms::Terms;

/// Rows for one rank, in the making.
#[derive(Clone, Debug, Default)]
pub(crate) struct Outgoing {
    rows: Vec<u8>,
    n_rows: u32,
    /// Row and local expert of each slot.
    slots: Vec<(u32, u32)>,
    /// Number of each slot on the sender.
    pub places: Vec<usize>,
    /// The token whose row was added last.
    last: Option<usize>,
}

impl Outgoing {
    /// Adds slot number `place` of `token`, for local expert `local`. `row` gives the token's row on its way. Tokens come in
    /// ascending order.
    pub fn add(&mut self, token: usize, place: usize, local: u32, row: impl FnOnce(&mut Vec<u8>)) {
        if self.last != Some(token) {
            self.last = Some(token);
            self.n_rows += 1;
            row(&mut self.rows);
        }
        self.slots.push((self.n_rows - 1, local));
        self.places.push(place);
    }

    /// Rows, each once.
    pub fn n_rows(&self) -> u64 {
        u64::from(self.n_rows)
    }

    /// Bytes of the rows.
    pub fn row_bytes(&self) -> u64 {
        self.rows.len() as u64
    }

    pub fn to_message(&self, terms: &Terms) -> Vec<u8> {
        let mut out = terms.to_bytes();
        out.reserve(8 + self.rows.len() + 8 * self.slots.len());
        out.extend(self.n_rows.to_le_bytes());
        out.extend((self.slots.len() as u32).to_le_bytes());
        out.extend(&self.rows);
        for (row, local) in &self.slots {
            out.extend(row.to_le_bytes());
            out.extend(local.to_le_bytes());
        }
        out
    }
}

/// Rows from one rank.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Incoming<'m> {
    pub rows: &'m [u8],
    /// Row and local expert of each slot.
    pub slots: Vec<(u32, u32)>,
}

/// Reads a message behind its terms. Rows have `row_bytes` bytes each, and local experts are below `n_local`; `None` for
/// anything else.
pub(crate) fn read(message: &[u8], row_bytes: usize, n_local: u32) -> Option<Incoming<'_>> {
    let word = |at: usize| Some(u32::from_le_bytes(message.get(at..at + 4)?.try_into().ok()?));
    let at = Terms::BYTES;
    let (n_rows, n_slots) = (word(at)?, word(at + 4)? as usize);
    let end = at + 8 + (n_rows as usize).checked_mul(row_bytes)?;
    let rows = message.get(at + 8..end)?;
    if message.len() != n_slots.checked_mul(8)?.checked_add(end)? {
        return None;
    }
    let slots = (0..n_slots).map(|i| Some((word(end + 8 * i)?, word(end + 8 * i + 4)?)));
    let slots: Vec<(u32, u32)> = slots.collect::<Option<_>>()?;
    slots.iter().all(|&(row, local)| row < n_rows && local < n_local).then_some(Incoming { rows, slots })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_travels_once_to_a_rank() {
        let terms = Terms { fingerprint: 1, max_tokens: 8, step: 3, map: (2, 9), ready: (2, 9) };
        let mut out = Outgoing::default();
        for (token, place, local) in [(0, 0, 1), (0, 1, 0), (2, 5, 1)] {
            out.add(token, place, local, |to| to.extend([token as u8; 3]));
        }
        let message = out.to_message(&terms);
        let read_back = read(&message, 3, 2).unwrap();
        assert_eq!(read_back, Incoming { rows: &[0, 0, 0, 2, 2, 2], slots: vec![(0, 1), (0, 0), (1, 1)] });
        assert_eq!((out.n_rows(), out.row_bytes(), out.places.as_slice()), (2, 6, &[0, 1, 5][..]));
        // Another row length, too few local experts, a byte too many or too few.
        let longer = [&message[..], &[0]].concat();
        for (m, bytes, local) in [(&message[..], 4, 2), (&message, 3, 1), (&longer, 3, 2), (&message[..70], 3, 2)] {
            assert_eq!(read(m, bytes, local), None);
        }
        assert!(read(&Outgoing::default().to_message(&terms), 3, 0).is_some());
    }
}
