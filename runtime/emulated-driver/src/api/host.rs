//! Memory of the host that kernels see: pinned, managed, registered. It has one address for both.

use crate::call::*;
use crate::state::{Kind, State, current, number, state};
use std::ffi::{c_int, c_uint, c_void};
use std::sync::atomic::AtomicU64;

/// Where pages for pinned and managed memory are asked for: outside of all windows of the emulator.
const PAGES: usize = 0x6000_0000_0000;

/// Pages of zeros that kernels see.
fn allocate(s: &mut State, bytes: usize, kind: Kind) -> Result<u64, Error> {
    let device = s.device()?;
    s.no_capture()?;
    let room = bytes.checked_next_multiple_of(4096).filter(|_| bytes > 0).ok_or(INVALID_VALUE)?;
    // Without MAP_FIXED this is a wish; the next free place above the last one.
    let last = s.allocations.range(PAGES as u64..0x7000_0000_0000).next_back();
    let wish = last.map_or(PAGES, |(at, a)| (at + a.bytes) as usize + 4096).next_multiple_of(4096);
    let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    // SAFETY: asks for new pages.
    let at = unsafe { libc::mmap(wish as *mut c_void, room, protection, flags, -1, 0) };
    if at == libc::MAP_FAILED {
        return Err(OUT_OF_MEMORY);
    }
    // SAFETY: the pages are there until `free`, which takes them from the emulator first.
    let words = unsafe { std::slice::from_raw_parts(at.cast::<AtomicU64>(), room / 8) };
    let address = number(at);
    s.emulator.memory_mut().lend(address, &words[..bytes.div_ceil(8)]).map_err(|_| OUT_OF_MEMORY)?;
    s.know(address, bytes as u64, device, kind);
    Ok(address)
}

/// Gives pages back.
pub fn free(s: &mut State, address: u64) -> Call {
    let a = *s.allocations.get(&address).ok_or(INVALID_VALUE)?;
    if !matches!(a.kind, Kind::Pinned | Kind::Managed) {
        return Err(INVALID_VALUE);
    }
    s.emulator.memory_mut().unmap(address).map_err(|_| INVALID_VALUE)?;
    s.allocations.remove(&address);
    // SAFETY: mapped by `allocate` with this size; the emulator does not know it any more.
    unsafe { libc::munmap(address as *mut c_void, (a.bytes as usize).next_multiple_of(4096)) };
    Ok(())
}

api! {
    fn cuMemAllocHost_v2(place: *mut u64, bytes: usize) {
        let address = allocate(&mut *state()?, bytes, Kind::Pinned)?;
        put(place, address)
    }

    fn cuMemHostAlloc(place: *mut u64, bytes: usize, flags: c_uint) {
        let mut s = state()?;
        let address = allocate(&mut s, bytes, Kind::Pinned)?;
        if let Some(a) = s.allocations.get_mut(&address) {
            a.flags = flags;
        }
        put(place, address)
    }

    fn cuMemAllocManaged(place: *mut u64, bytes: usize, _flags: c_uint) {
        let address = allocate(&mut *state()?, bytes, Kind::Managed)?;
        put(place, address)
    }

    fn cuMemFreeHost(address: *mut c_void) {
        if address.is_null() {
            return Ok(());
        }
        free(&mut *state()?, number(address))
    }

    fn cuMemHostGetDevicePointer_v2(place: *mut u64, address: *mut c_void, _flags: c_uint) {
        let s = state()?;
        s.around(number(address)).ok_or(INVALID_VALUE)?;
        put(place, number(address))
    }

    fn cuMemHostGetFlags(flags: *mut c_uint, address: *mut c_void) {
        let (_, a) = state()?.around(number(address)).ok_or(INVALID_VALUE)?;
        put(flags, a.flags)
    }

    fn cuMemHostRegister_v2(address: *mut c_void, bytes: usize, flags: c_uint) {
        let mut s = state()?;
        let device = s.device()?;
        let given = number(address);
        if given == 0 || bytes == 0 {
            return Err(INVALID_VALUE);
        }
        // Whole words: the page around them is the program's.
        let (start, end) = (given & !7, (given + bytes as u64).next_multiple_of(8));
        let words = std::slice::from_raw_parts(start as *const AtomicU64, ((end - start) / 8) as usize);
        s.emulator.memory_mut().lend(start, words).map_err(|_| HOST_MEMORY_ALREADY_REGISTERED)?;
        s.know(start, end - start, device, Kind::Registered(given));
        if let Some(a) = s.allocations.get_mut(&start) {
            a.flags = flags;
        }
        Ok(())
    }

    fn cuMemHostUnregister(address: *mut c_void) {
        let mut s = state()?;
        let start = number(address) & !7;
        match s.allocations.get(&start).map(|a| a.kind) {
            Some(Kind::Registered(given)) if given == number(address) => {}
            _ => return Err(HOST_MEMORY_NOT_REGISTERED),
        }
        s.emulator.memory_mut().unmap(start).map_err(|_| HOST_MEMORY_NOT_REGISTERED)?;
        s.allocations.remove(&start);
        Ok(())
    }

    fn cuStreamAttachMemAsync(_stream: usize, address: u64, _bytes: usize, _flags: c_uint) {
        current()?;
        state()?.around(address).map(|_| ()).ok_or(INVALID_VALUE)
    }

    fn cuMemRangeGetAttribute(data: *mut c_void, bytes: usize, which: c_uint, address: u64, _count: usize) {
        state()?.around(address).ok_or(INVALID_VALUE)?;
        if bytes != 4 {
            return Err(INVALID_VALUE);
        }
        // Nothing was advised: no read-mostly copies, no preferred and no last location.
        put(data.cast::<c_int>(), if which == 1 { 0 } else { -2 })
    }
}
