//! Device memory that all blocks share.
//!
//! Bytes live in 64-bit atomic words, so that blocks on several threads may access them without locks and aligned
//! accesses up to 8 bytes are single-copy atomic, as PTX asks. A byte of initialisation bits goes with each word.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed};

use serde::{Deserialize, Serialize};

use super::shadow::Shadow;
use super::{HEAP, HEAP_END};
use crate::exec::ExecError;

/// Bytes between allocations that belong to nobody.
const GUARD: u64 = 4096;
/// Bytes of a DRAM sector.
pub const SECTOR: u64 = 32;

/// Where the cells of an allocation lie.
enum Cells<T: 'static> {
    Own(Box<[T]>),
    /// Mapped at several addresses.
    Shared(Arc<[T]>),
    /// Memory of the host program.
    Lent(&'static [T]),
}

impl<T> std::ops::Deref for Cells<T> {
    type Target = [T];

    #[inline]
    fn deref(&self) -> &[T] {
        match self {
            Cells::Own(cells) => cells,
            Cells::Shared(cells) => cells,
            Cells::Lent(cells) => cells,
        }
    }
}

/// Memory without an address, which [`DeviceMemory::map`] gives one or several.
#[derive(Clone)]
pub struct Physical {
    words: Arc<[AtomicU64]>,
    init: Arc<[AtomicU8]>,
}

impl Physical {
    /// Memory that nobody has written; `bytes` is rounded up to whole words of 8.
    #[must_use]
    pub fn new(bytes: u64) -> Physical {
        let words = bytes.div_ceil(8);
        Physical {
            words: (0..words).map(|_| AtomicU64::new(0)).collect(),
            init: (0..words).map(|_| AtomicU8::new(0)).collect(),
        }
    }

    /// Its size.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.words.len() as u64 * 8
    }
}

/// One allocation.
pub struct Allocation {
    /// First device address.
    pub base: u64,
    /// Bytes asked for.
    pub bytes: u64,
    /// Whether kernels do not see it, as the memory of another device.
    hidden: bool,
    /// The device that it lies on, where several run together.
    pub owner: u32,
    /// Whether the kernels of other devices see it.
    pub for_all: bool,
    words: Cells<AtomicU64>,
    init: Cells<AtomicU8>,
    /// Since the last [`DeviceMemory::forget_traffic`]: of loads, then of stores.
    traffic: [Touched; 2],
    /// Who wrote and read in this launch.
    pub(crate) shadow: Shadow,
}

/// The sectors of an allocation that accesses of one kind have touched.
struct Touched {
    /// One bit for each 32-byte sector.
    sectors: Box<[AtomicU64]>,
    /// Sectors that were asked for, each time counted.
    asked: AtomicU64,
}

impl Touched {
    fn new(bytes: u64) -> Touched {
        Touched { sectors: bytemuck::zeroed_slice_box(bytes.div_ceil(SECTOR * 64) as usize), asked: AtomicU64::new(0) }
    }

    /// Bytes of the sectors touched, and of the sectors asked for.
    fn bytes(&self) -> Moved {
        let distinct: u64 = self.sectors.iter().map(|s| u64::from(s.load(Relaxed).count_ones())).sum();
        Moved { once_bytes: distinct * SECTOR, asked_bytes: self.asked.load(Relaxed) * SECTOR }
    }
}

/// What a launch moved to and from one allocation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traffic {
    /// First address of the allocation.
    pub address: u64,
    /// Loads and copies out of it.
    pub loads: Moved,
    /// Stores, copies into it, atomics and reductions.
    pub stores: Moved,
    /// Bytes of the sectors that either touched.
    pub footprint_bytes: u64,
}

/// Bytes in whole sectors that a launch moved between one allocation and the multiprocessors, in one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moved {
    /// Each sector counted once: the traffic of a cache that holds everything.
    pub once_bytes: u64,
    /// Each access of a warp or copy counted: the traffic without any cache.
    pub asked_bytes: u64,
}

impl Allocation {
    fn new(base: u64, bytes: u64) -> Allocation {
        let words = bytes.div_ceil(8) as usize;
        // Zeroed by the system when it is first touched: programs ask for more than they use.
        let (words, init) = (bytemuck::zeroed_slice_box(words), bytemuck::zeroed_slice_box(words));
        Allocation::of(base, bytes, Cells::Own(words), Cells::Own(init))
    }

    fn of(base: u64, bytes: u64, words: Cells<AtomicU64>, init: Cells<AtomicU8>) -> Allocation {
        Allocation {
            base,
            bytes,
            hidden: false,
            owner: 0,
            for_all: true,
            words,
            init,
            traffic: [Touched::new(bytes), Touched::new(bytes)],
            shadow: Shadow::default(),
        }
    }

    /// The value of `bytes` (1, 2, 4, 8) at an aligned offset, and whether every byte was ever written.
    #[inline]
    pub fn load(&self, offset: u64, bytes: u32) -> (u64, bool) {
        let (word, byte) = ((offset / 8) as usize, (offset % 8) as u32);
        let value = self.words[word].load(Relaxed) >> (8 * byte);
        let init = self.init[word].load(Relaxed);
        let need = byte_mask(bytes) << byte;
        (if bytes == 8 { value } else { value & ((1u64 << (8 * bytes)) - 1) }, init & need == need)
    }

    /// Stores the bytes of `value` that `bytes` (a mask of bytes of one word) selects, and whether they count as written.
    #[inline]
    pub fn store_word(&self, word: usize, bytes: u8, value: u64, init: bool) {
        if bytes == 0xff {
            self.words[word].store(value, Relaxed);
            self.init[word].store(if init { 0xff } else { 0 }, Relaxed);
            return;
        }
        let mask = spread(bytes);
        let cell = &self.words[word];
        let mut old = cell.load(Relaxed);
        while let Err(now) = cell.compare_exchange_weak(old, old & !mask | value & mask, Relaxed, Relaxed) {
            old = now;
        }
        let flags = &self.init[word];
        let old = flags.load(Relaxed);
        if init && old & bytes != bytes {
            flags.fetch_or(bytes, Relaxed);
        } else if !init && old & bytes != 0 {
            flags.fetch_and(!bytes, Relaxed);
        }
    }

    /// Whether these bytes of a word were written and are those of `value`.
    pub(crate) fn holds(&self, word: usize, bytes: u8, value: u64) -> bool {
        let (same, init) = (self.words[word].load(Relaxed) ^ value, self.init[word].load(Relaxed));
        same & spread(bytes) == 0 && init & bytes == bytes
    }

    /// Replaces `bytes` (1, 2, 4, 8) at an aligned offset by `f` of the old value, atomically; gives the old value and
    /// whether it had been written.
    pub fn update(&self, offset: u64, bytes: u32, mut f: impl FnMut(u64) -> u64) -> (u64, bool) {
        let (word, byte) = ((offset / 8) as usize, (offset % 8) as u32);
        let field = if bytes == 8 { u64::MAX } else { (1u64 << (8 * bytes)) - 1 };
        let cell = &self.words[word];
        let mut old = cell.load(Relaxed);
        loop {
            let value = (old >> (8 * byte)) & field;
            let new = old & !(field << (8 * byte)) | (f(value) & field) << (8 * byte);
            match cell.compare_exchange_weak(old, new, Relaxed, Relaxed) {
                Ok(_) => {
                    let need = byte_mask(bytes) << byte;
                    let init = self.init[word].load(Relaxed) & need == need;
                    return (value, init);
                }
                Err(now) => old = now,
            }
        }
    }

    /// Counts one access to the sectors of a range; gives how many they are.
    pub fn touch(&self, offset: u64, bytes: u64, write: bool) -> u64 {
        let of = &self.traffic[usize::from(write)];
        let (first, end) = (offset / SECTOR, (offset + bytes).div_ceil(SECTOR));
        let mut at = first;
        while at < end {
            let Some(cell) = of.sectors.get((at / 64) as usize) else { break };
            let next = end.min((at / 64 + 1) * 64);
            let bits = if next - at == 64 { u64::MAX } else { ((1u64 << (next - at)) - 1) << (at % 64) };
            if cell.load(Relaxed) & bits != bits {
                cell.fetch_or(bits, Relaxed);
            }
            at = next;
        }
        of.asked.fetch_add(end - first, Relaxed);
        end - first
    }

    /// What loads and stores have moved since the last [`DeviceMemory::forget_traffic`].
    pub fn traffic(&self) -> Traffic {
        let [loads, stores] = &self.traffic;
        let either = loads.sectors.iter().zip(&stores.sectors).map(|(l, s)| l.load(Relaxed) | s.load(Relaxed));
        Traffic {
            address: self.base,
            loads: loads.bytes(),
            stores: stores.bytes(),
            footprint_bytes: either.map(|s| u64::from(s.count_ones())).sum::<u64>() * SECTOR,
        }
    }

    /// Copies bytes out; false if one of them was never written.
    pub fn read(&self, offset: u64, out: &mut [u8]) -> bool {
        // Parts of a word at the ends, whole words between them.
        let head = ((8 - offset % 8) % 8).min(out.len() as u64) as usize;
        let (head, rest) = out.split_at_mut(head);
        let middle = offset + head.len() as u64;
        let mut whole = rest.chunks_exact_mut(8);
        let end = middle + 8 * whole.len() as u64;
        let first = (middle / 8) as usize;
        let mut written = 0xff;
        if whole.len() > 0 {
            let cells = self.words[first..].iter().zip(&self.init[first..]);
            for (out, (word, init)) in whole.by_ref().zip(cells) {
                out.copy_from_slice(&word.load(Relaxed).to_le_bytes());
                written &= init.load(Relaxed);
            }
        }
        let (before, after) = (self.read_part(offset, head), self.read_part(end, whole.into_remainder()));
        written == 0xff && before && after
    }

    /// [`Allocation::read`] of bytes of one word.
    fn read_part(&self, offset: u64, out: &mut [u8]) -> bool {
        if out.is_empty() {
            return true;
        }
        let (word, byte) = ((offset / 8) as usize, (offset % 8) as usize);
        out.copy_from_slice(&self.words[word].load(Relaxed).to_le_bytes()[byte..byte + out.len()]);
        let need = byte_mask(out.len() as u32) << byte;
        self.init[word].load(Relaxed) & need == need
    }

    /// Which of the bytes were written, one flag a byte.
    pub fn initialized(&self, offset: u64, out: &mut [bool]) {
        for (i, flag) in out.iter_mut().enumerate() {
            let position = offset + i as u64;
            *flag = self.init[(position / 8) as usize].load(Relaxed) >> (position % 8) & 1 == 1;
        }
    }

    /// Copies bytes in; they count as written.
    pub fn write(&self, offset: u64, data: &[u8]) {
        let mut at = 0usize;
        while at < data.len() {
            let rows = data[at..].as_chunks::<8>().0;
            if (offset + at as u64).is_multiple_of(8) && !rows.is_empty() {
                let first = ((offset + at as u64) / 8) as usize;
                let cells = self.words[first..].iter().zip(&self.init[first..]);
                for (row, (word, init)) in rows.iter().zip(cells) {
                    word.store(u64::from_le_bytes(*row), Relaxed);
                    init.store(0xff, Relaxed);
                }
                at += 8 * rows.len();
                continue;
            }
            let position = offset + at as u64;
            let (word, byte) = ((position / 8) as usize, (position % 8) as usize);
            let n = (8 - byte).min(data.len() - at);
            let mut bytes = [0u8; 8];
            bytes[byte..byte + n].copy_from_slice(&data[at..at + n]);
            self.store_word(word, byte_mask(n as u32) << byte, u64::from_le_bytes(bytes), true);
            at += n;
        }
    }
}

/// `n` low bits of a byte.
#[inline]
pub fn byte_mask(n: u32) -> u8 {
    if n >= 8 { 0xff } else { (1u8 << n) - 1 }
}

/// A byte of bits to a word of bytes.
#[inline]
fn spread(bits: u8) -> u64 {
    let mut mask = 0;
    for i in 0..8 {
        if bits >> i & 1 == 1 {
            mask |= 0xff << (8 * i);
        }
    }
    mask
}

/// A group of allocations that `multimem` instructions address as one.
pub struct Multicast {
    /// First address of the group's own range.
    pub base: u64,
    /// Bytes.
    pub bytes: u64,
    /// First address of each member's memory.
    pub members: Vec<u64>,
}

/// All device memory.
pub struct DeviceMemory {
    allocations: Vec<Allocation>,
    multicasts: Vec<Multicast>,
    next: u64,
    used: u64,
    capacity: u64,
}

impl DeviceMemory {
    /// Memory with room for `capacity` bytes.
    pub fn new(capacity: u64) -> DeviceMemory {
        DeviceMemory { allocations: Vec::new(), multicasts: Vec::new(), next: HEAP, used: 0, capacity }
    }

    /// Allocates; the address is a multiple of `align` (a power of two) and of 256.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn alloc(&mut self, bytes: u64, align: u64) -> Result<u64, ExecError> {
        let align = align.max(256);
        let free = self.capacity - self.used;
        let base = self.next.div_ceil(align) * align;
        if bytes > free || base.saturating_add(bytes).saturating_add(GUARD) > HEAP_END {
            return Err(ExecError::OutOfMemory { asked: bytes, free, total: self.capacity });
        }
        self.insert(Allocation::new(base, bytes))?;
        self.used += bytes;
        self.next = base + bytes.max(1) + GUARD;
        Ok(base)
    }

    /// As [`alloc`](DeviceMemory::alloc), on a device of several that run together; `for_all` makes it visible to the others.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn alloc_on(&mut self, owner: u32, for_all: bool, bytes: u64, align: u64) -> Result<u64, ExecError> {
        let base = self.alloc(bytes, align)?;
        if let Ok(i) = self.allocations.binary_search_by_key(&base, |a| a.base) {
            (self.allocations[i].owner, self.allocations[i].for_all) = (owner, for_all);
        }
        Ok(base)
    }

    /// Addresses for `bytes` that nothing lies at yet; a multiple of `align`, a power of two.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn reserve(&mut self, bytes: u64, align: u64) -> Result<u64, ExecError> {
        let align = align.max(4096);
        let base = self.next.div_ceil(align) * align;
        match base.checked_add(bytes).and_then(|end| end.checked_add(GUARD)).filter(|end| *end <= HEAP_END) {
            Some(end) => {
                self.next = end;
                Ok(base)
            }
            None => {
                Err(ExecError::OutOfMemory { asked: bytes, free: HEAP_END - base.min(HEAP_END), total: self.capacity })
            }
        }
    }

    /// Puts memory at a reserved address. It does not count as allocated.
    ///
    /// # Errors
    /// `Address` when something lies there.
    pub fn map(&mut self, base: u64, memory: &Physical) -> Result<(), ExecError> {
        let (words, init) = (Cells::Shared(memory.words.clone()), Cells::Shared(memory.init.clone()));
        self.insert(Allocation::of(base, memory.bytes(), words, init))
    }

    /// Makes memory of the host program visible to kernels at `base`, its address there; all of it counts as written. `base` is
    /// a multiple of 8. It does not count as allocated.
    ///
    /// # Errors
    /// `Address` when something lies there.
    pub fn lend(&mut self, base: u64, words: &'static [AtomicU64]) -> Result<(), ExecError> {
        let init = (0..words.len()).map(|_| AtomicU8::new(0xff)).collect();
        self.insert(Allocation::of(base, words.len() as u64 * 8, Cells::Lent(words), Cells::Own(init)))
    }

    fn insert(&mut self, allocation: Allocation) -> Result<(), ExecError> {
        let (base, end) = (allocation.base, allocation.base.saturating_add(allocation.bytes));
        let i = self.allocations.partition_point(|a| a.base < base);
        let below = i.checked_sub(1).and_then(|i| self.allocations.get(i));
        let overlaps =
            below.is_some_and(|a| a.base + a.bytes > base) || self.allocations.get(i).is_some_and(|a| a.base < end);
        if overlaps {
            return Err(ExecError::Address { address: base, bytes: allocation.bytes });
        }
        self.allocations.insert(i, allocation);
        Ok(())
    }

    /// Takes away what [`DeviceMemory::map`] or [`DeviceMemory::lend`] put at an address.
    ///
    /// # Errors
    /// `Address` when nothing starts there.
    pub fn unmap(&mut self, base: u64) -> Result<(), ExecError> {
        match self.allocations.binary_search_by_key(&base, |a| a.base) {
            Ok(i) => {
                self.allocations.remove(i);
                Ok(())
            }
            Err(_) => Err(ExecError::Address { address: base, bytes: 0 }),
        }
    }

    /// Hides the allocations from kernels for whose first addresses `hidden` holds, and shows the others.
    pub fn hide(&mut self, hidden: impl Fn(u64) -> bool) {
        self.allocations.iter_mut().for_each(|a| a.hidden = hidden(a.base));
    }

    /// Frees an allocation by its first address. Addresses are not reused, so that stale pointers are found.
    ///
    /// # Errors
    /// `Address` when nothing starts there.
    pub fn free(&mut self, base: u64) -> Result<(), ExecError> {
        match self.allocations.binary_search_by_key(&base, |a| a.base) {
            Ok(i) => {
                self.used -= self.allocations.remove(i).bytes;
                Ok(())
            }
            Err(_) => Err(ExecError::Address { address: base, bytes: 0 }),
        }
    }

    /// A range that stands for the same range of every member.
    ///
    /// # Errors
    /// `Address` when a member's range is not inside one allocation.
    pub fn multicast(&mut self, members: &[u64], bytes: u64) -> Result<u64, ExecError> {
        for m in members {
            self.range(*m, bytes)?;
        }
        let base = self.next.div_ceil(4096) * 4096;
        self.next = base + bytes + GUARD;
        self.multicasts.push(Multicast { base, bytes, members: members.to_vec() });
        Ok(base)
    }

    /// The multicast group that holds `bytes` at `address`.
    pub fn find_multicast(&self, address: u64, bytes: u64) -> Option<&Multicast> {
        self.multicasts.iter().find(|m| address >= m.base && address.saturating_add(bytes) <= m.base + m.bytes)
    }

    /// The allocation that holds `bytes` at `address`.
    #[inline]
    pub fn find(&self, address: u64, bytes: u64) -> Option<&Allocation> {
        let i = self.allocations.partition_point(|a| a.base <= address);
        let a = self.allocations.get(i.checked_sub(1)?)?;
        (address - a.base <= a.bytes && bytes <= a.bytes - (address - a.base) && !a.hidden).then_some(a)
    }

    /// The allocation that holds `bytes` at `address`, if kernels of the device see it.
    #[inline]
    pub fn find_for(&self, rank: u32, address: u64, bytes: u64) -> Option<&Allocation> {
        self.find(address, bytes).filter(|a| a.for_all || a.owner == rank)
    }

    /// The allocation that lies nearest below an address, for messages.
    pub fn nearest(&self, address: u64) -> Option<&Allocation> {
        let i = self.allocations.partition_point(|a| a.base <= address);
        i.checked_sub(1).and_then(|i| self.allocations.get(i))
    }

    /// As [`find`](DeviceMemory::find), with the offset inside the allocation.
    ///
    /// # Errors
    /// `Address`.
    pub fn range(&self, address: u64, bytes: u64) -> Result<(&Allocation, u64), ExecError> {
        self.find(address, bytes).map(|a| (a, address - a.base)).ok_or(ExecError::Address { address, bytes })
    }

    /// Copies bytes in from the host.
    ///
    /// # Errors
    /// `Address` when the range is not inside one allocation.
    pub fn upload(&self, address: u64, data: &[u8]) -> Result<(), ExecError> {
        let (a, at) = self.range(address, data.len() as u64)?;
        a.write(at, data);
        Ok(())
    }

    /// Copies bytes out to the host; bytes that nobody wrote are 0.
    ///
    /// # Errors
    /// `Address` when the range is not inside one allocation.
    pub fn download(&self, address: u64, bytes: usize) -> Result<Vec<u8>, ExecError> {
        let (a, at) = self.range(address, bytes as u64)?;
        let mut out = vec![0; bytes];
        a.read(at, &mut out);
        Ok(out)
    }

    /// Copies bytes between allocations; what nobody wrote stays unwritten.
    ///
    /// # Errors
    /// `Address` when one of the ranges is not inside one allocation.
    pub fn copy(&self, to: u64, from: u64, bytes: u64) -> Result<(), ExecError> {
        let ((a, from), (b, to)) = (self.range(from, bytes)?, self.range(to, bytes)?);
        let mut data = vec![0; bytes as usize];
        if a.read(from, &mut data) {
            b.write(to, &data);
            return Ok(());
        }
        let mut written = vec![false; data.len()];
        a.initialized(from, &mut written);
        b.write(to, &data);
        for (at, _) in written.iter().enumerate().filter(|(_, written)| !**written) {
            let position = to + at as u64;
            b.store_word((position / 8) as usize, 1 << (position % 8), 0, false);
        }
        Ok(())
    }

    /// Forgets who wrote and read what.
    pub(crate) fn forget_accesses(&mut self) {
        self.allocations.iter_mut().for_each(|a| a.shadow.clear());
    }

    /// Starts counting traffic anew.
    pub fn forget_traffic(&self) {
        for of in self.allocations.iter().flat_map(|a| &a.traffic) {
            of.sectors.iter().chain([&of.asked]).for_each(|cell| cell.store(0, Relaxed));
        }
    }

    /// The traffic of every allocation that was touched, in address order.
    pub fn traffic(&self) -> Vec<Traffic> {
        self.allocations.iter().map(Allocation::traffic).filter(|t| t.footprint_bytes > 0).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::DeviceMemory;

    #[test]
    fn bytes_round_trip_at_every_offset() {
        let mut m = DeviceMemory::new(1 << 20);
        let base = m.alloc(64, 1).unwrap();
        for offset in 0..16u64 {
            let (a, at) = m.range(base + offset, 11).unwrap();
            let data: Vec<u8> = (0..11).map(|i| (i * 7 + offset) as u8).collect();
            a.write(at, &data);
            let mut back = vec![0; 11];
            assert!(a.read(at, &mut back));
            assert_eq!(back, data);
        }
    }

    #[test]
    fn what_nobody_wrote_is_known() {
        let mut m = DeviceMemory::new(1 << 20);
        let base = m.alloc(16, 1).unwrap();
        let (a, _) = m.range(base, 16).unwrap();
        a.write(4, &[1, 2, 3, 4]);
        assert_eq!(a.load(4, 4), (0x0403_0201, true));
        assert!(!a.load(0, 8).1);
        assert!(m.range(base + 13, 4).is_err());
    }

    #[test]
    fn freed_memory_is_not_found() {
        let mut m = DeviceMemory::new(1 << 20);
        let a = m.alloc(16, 1).unwrap();
        let b = m.alloc(16, 1).unwrap();
        m.free(a).unwrap();
        assert!(m.find(a, 1).is_none() && m.find(b, 16).is_some());
        assert!(m.alloc(1 << 30, 1).is_err());
    }
}
