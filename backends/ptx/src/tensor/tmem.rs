//! Tensor memory of one CTA: 128 lanes × 512 columns of 32-bit cells, with its allocator.

use super::{TensorError, invalid};

/// Lanes of tensor memory.
pub const LANES: usize = 128;
/// Columns of tensor memory.
pub const COLUMNS: usize = 512;
/// Granule of allocation in columns.
const GRANULE: usize = 32;

/// A tensor memory address split into lane and column.
#[must_use]
pub fn split_address(address: u32) -> (usize, usize) {
    ((address >> 16) as usize, (address & 0xffff) as usize)
}

/// Why an access is refused or worth a finding.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TmemFault {
    /// Lane or column beyond tensor memory.
    #[error("tensor memory lane {lane}, column {column} does not exist")]
    OutOfRange {
        /// Lane.
        lane: usize,
        /// Column.
        column: usize,
    },
    /// The column is not allocated.
    #[error("tensor memory column {column} is not allocated")]
    NotAllocated {
        /// Column.
        column: usize,
    },
    /// A cell is read that nobody wrote.
    #[error("tensor memory lane {lane}, column {column} is read but was never written")]
    Unwritten {
        /// Lane.
        lane: usize,
        /// Column.
        column: usize,
    },
}

/// Tensor memory of one CTA.
#[derive(Debug, Clone)]
pub struct Tmem {
    cells: Vec<u32>,
    written: Vec<bool>,
    /// For each granule, the first column and the size of the allocation it belongs to.
    owner: [Option<(u16, u16)>; COLUMNS / GRANULE],
    relinquished: bool,
}

impl Default for Tmem {
    fn default() -> Self {
        Self::new()
    }
}

impl Tmem {
    /// Unallocated, unwritten tensor memory.
    #[must_use]
    pub fn new() -> Self {
        Self {
            cells: vec![0xdead_beef; LANES * COLUMNS],
            written: vec![false; LANES * COLUMNS],
            owner: [None; COLUMNS / GRANULE],
            relinquished: false,
        }
    }

    /// Reserves columns; `None` when no free run is long enough (the instruction then waits).
    ///
    /// # Errors
    /// `Invalid` for a column count that is not a power of two from 32 to 512, or after the permit was given up.
    pub fn allocate(&mut self, columns: u32) -> Result<Option<u32>, TensorError> {
        if !(32..=512).contains(&columns) || !columns.is_power_of_two() {
            return invalid(format!("tcgen05.alloc of {columns} columns: must be a power of two from 32 to 512"));
        }
        if self.relinquished {
            return invalid("tcgen05.alloc after tcgen05.relinquish_alloc_permit");
        }
        let run = columns as usize / GRANULE;
        let free = (0..self.owner.len()).step_by(run).find(|&g| self.owner[g..g + run].iter().all(Option::is_none));
        let Some(first) = free else { return Ok(None) };
        let start = (first * GRANULE) as u16;
        self.owner[first..first + run].fill(Some((start, columns as u16)));
        for lane in 0..LANES {
            self.written[lane * COLUMNS + first * GRANULE..][..columns as usize].fill(false);
        }
        Ok(Some(u32::from(start)))
    }

    /// Frees an allocation.
    ///
    /// # Errors
    /// `Invalid` when address and count do not name one whole allocation.
    pub fn free(&mut self, address: u32, columns: u32) -> Result<(), TensorError> {
        let (lane, column) = split_address(address);
        let granule = column / GRANULE;
        let exact = lane == 0
            && column.is_multiple_of(GRANULE)
            && self.owner.get(granule).copied().flatten() == Some((column as u16, columns as u16));
        if !exact {
            return invalid(format!("tcgen05.dealloc of {columns} columns at {address:#x}: no such allocation"));
        }
        self.owner[granule..granule + columns as usize / GRANULE].fill(None);
        Ok(())
    }

    /// Gives up the right to allocate.
    pub fn relinquish(&mut self) {
        self.relinquished = true;
    }

    /// Columns still allocated.
    #[must_use]
    pub fn allocated_columns(&self) -> usize {
        self.owner.iter().flatten().count() * GRANULE
    }

    /// Checks that `count` cells from `column` exist and are allocated.
    ///
    /// # Errors
    /// The first fault.
    pub fn check(&self, lane: usize, column: usize, count: usize) -> Result<(), TmemFault> {
        if lane >= LANES || column + count > COLUMNS {
            return Err(TmemFault::OutOfRange { lane, column: column + count - 1 });
        }
        if count == 0 {
            return Ok(());
        }
        for granule in column / GRANULE..=(column + count - 1) / GRANULE {
            if self.owner[granule].is_none() {
                return Err(TmemFault::NotAllocated { column: column.max(granule * GRANULE) });
            }
        }
        Ok(())
    }

    /// The first cell of a run that nobody wrote.
    #[must_use]
    pub fn first_unwritten(&self, lane: usize, column: usize, count: usize) -> Option<usize> {
        let written = &self.written[lane * COLUMNS + column..][..count];
        // Nearly always all of them.
        if !bytemuck::cast_slice::<bool, u8>(written).contains(&0) {
            return None;
        }
        written.iter().position(|w| !w).map(|i| column + i)
    }

    /// The cells of a run; call [`Self::check`] first.
    ///
    /// # Panics
    /// When the run leaves tensor memory.
    #[must_use]
    pub fn row(&self, lane: usize, column: usize, count: usize) -> &[u32] {
        &self.cells[lane * COLUMNS + column..][..count]
    }

    /// The cells of a run for writing; marks them written. Call [`Self::check`] first.
    ///
    /// # Panics
    /// When the run leaves tensor memory.
    pub fn row_mut(&mut self, lane: usize, column: usize, count: usize) -> &mut [u32] {
        self.written[lane * COLUMNS + column..][..count].fill(true);
        &mut self.cells[lane * COLUMNS + column..][..count]
    }

    /// Marks a run as never written (for tests of what an instruction leaves undefined).
    pub fn forget(&mut self, lane: usize, column: usize, count: usize) {
        self.written[lane * COLUMNS + column..][..count].fill(false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn allocation_is_aligned_exclusive_and_returned() {
        let mut t = Tmem::new();
        let a = t.allocate(128).unwrap().unwrap();
        let b = t.allocate(256).unwrap().unwrap();
        assert_eq!((a, b), (0, 256));
        assert_eq!(t.allocate(256).unwrap(), None);
        assert_eq!(t.allocate(128).unwrap(), Some(128));
        assert!(t.free(64, 64).is_err());
        assert!(t.free(a, 64).is_err());
        t.free(b, 256).unwrap();
        assert_eq!(t.allocated_columns(), 256);
        assert_eq!(t.check(0, 300, 1), Err(TmemFault::NotAllocated { column: 300 }));
        assert!(t.allocate(48).is_err());
        t.relinquish();
        assert!(t.allocate(32).is_err());
    }

    #[test]
    fn unwritten_cells_are_known_and_reallocation_forgets() {
        let mut t = Tmem::new();
        let a = t.allocate(32).unwrap().unwrap() as usize;
        assert_eq!(t.first_unwritten(5, a, 4), Some(a));
        t.row_mut(5, a, 3).fill(7);
        assert_eq!(t.first_unwritten(5, a, 4), Some(a + 3));
        t.free(a as u32, 32).unwrap();
        t.allocate(32).unwrap();
        assert_eq!(t.first_unwritten(5, a, 1), Some(a));
        assert_eq!(t.check(128, 0, 1), Err(TmemFault::OutOfRange { lane: 128, column: 0 }));
    }
}
