//! The shared memory of one CTA.

use super::SHARED_RESERVED;
use crate::exec::history::History;

/// Shared memory by address inside the CTA's window (rank bits removed). The first kilobyte belongs to the system.
pub struct SharedMemory {
    data: Vec<u8>,
    /// Which bits of each byte are unwritten.
    holes: Vec<u8>,
    /// Access history, when races or proxies are checked.
    pub history: Option<History>,
}

impl SharedMemory {
    /// `bytes` of shared memory behind the reserved part.
    pub fn new(bytes: u32, history: Option<u32>) -> SharedMemory {
        let total = (SHARED_RESERVED + bytes) as usize;
        SharedMemory {
            data: vec![0; total],
            holes: vec![0xff; total],
            history: history.map(|actors| History::new(total, actors)),
        }
    }

    /// Whether `bytes` at `offset` lie inside.
    #[inline]
    pub fn holds(&self, offset: u64, bytes: u64) -> bool {
        offset >= u64::from(SHARED_RESERVED) && offset.saturating_add(bytes) <= self.data.len() as u64
    }

    /// End of the window.
    pub fn end(&self) -> u32 {
        self.data.len() as u32
    }

    /// The value of `bytes` (1 to 8) at an offset that is inside, and whether all of them were written.
    #[inline]
    pub fn load(&self, offset: usize, bytes: usize) -> (u64, bool) {
        let mut value = [0u8; 8];
        value[..bytes].copy_from_slice(&self.data[offset..offset + bytes]);
        (u64::from_le_bytes(value), self.holes[offset..offset + bytes].iter().all(|b| *b == 0))
    }

    /// Stores the low `bytes` (1 to 8) of `value`, of which the bits in `holes` are unwritten.
    #[inline]
    pub fn store(&mut self, offset: usize, bytes: usize, value: u64, holes: u64) {
        self.data[offset..offset + bytes].copy_from_slice(&value.to_le_bytes()[..bytes]);
        self.holes[offset..offset + bytes].copy_from_slice(&holes.to_le_bytes()[..bytes]);
    }

    /// The bytes at a range that is inside.
    pub fn bytes(&self, offset: usize, bytes: usize) -> &[u8] {
        &self.data[offset..offset + bytes]
    }

    /// Copies in; the bytes count as written.
    pub fn write(&mut self, offset: usize, data: &[u8]) {
        self.data[offset..offset + data.len()].copy_from_slice(data);
        self.holes[offset..offset + data.len()].fill(0);
    }

    /// The unwritten bits of each byte of a range that is inside.
    pub fn holes(&self, offset: usize, bytes: usize) -> &[u8] {
        &self.holes[offset..offset + bytes]
    }

    /// Says whether the bytes of a range that is inside count as written.
    pub fn set_initialized(&mut self, offset: usize, bytes: usize, written: bool) {
        self.holes[offset..offset + bytes].fill(if written { 0 } else { 0xff });
    }
}
