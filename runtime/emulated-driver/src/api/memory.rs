//! Device memory, and what pointers are.

use crate::call::*;
use crate::state::{Kind, current, state};
use crate::structs::Handle;
use crate::work::on_device;
use std::ffi::{c_int, c_uint, c_void};

/// Bytes of a row that start aligned for copies and textures.
const PITCH: usize = 512;

/// Writes an attribute of a pointer; `None` for those that this pointer has not.
unsafe fn attribute(data: *mut c_void, which: c_uint, pointer: u64) -> Call {
    let s = state()?;
    let found = s.around(pointer);
    let (start, a) = found.ok_or(INVALID_VALUE)?;
    let of_host = matches!(a.kind, Kind::Pinned | Kind::Registered(_));
    // SAFETY: the program gave a place of the size that the attribute has.
    unsafe {
        match which {
            1 => put(data.cast::<Handle>(), a.context),
            // Host, device.
            2 => put(data.cast::<c_uint>(), if of_host { 1 } else { 2 }),
            3 => put(data.cast::<u64>(), pointer),
            4 if on_device(pointer) => Err(INVALID_VALUE),
            4 => put(data.cast::<u64>(), pointer),
            6 | 10 | 15 | 21 => put(data.cast::<u8>(), 0),
            7 => put(data.cast::<u64>(), a.id),
            8 => put(data.cast::<u8>(), u8::from(a.kind == Kind::Managed)),
            9 => put(data.cast::<c_int>(), a.device as c_int),
            11 => put(data.cast::<u64>(), start),
            12 => put(data.cast::<usize>(), a.bytes as usize),
            13 => put(data.cast::<u8>(), 1),
            14 => put(data.cast::<u64>(), 0),
            16 => put(data.cast::<c_uint>(), 3),
            17 => match a.kind {
                Kind::Pool(pool) => put(data.cast::<Handle>(), pool),
                _ => put(data.cast::<Handle>(), 0),
            },
            18 => put(data.cast::<usize>(), a.bytes as usize),
            19 => put(data.cast::<u64>(), start),
            20 => put(data.cast::<u64>(), a.id),
            _ => Err(INVALID_VALUE),
        }
    }
}

api! {
    fn cuMemAlloc_v2(place: *mut u64, bytes: usize) {
        let mut s = state()?;
        let device = s.device()?;
        s.no_capture()?;
        if bytes == 0 {
            return Err(INVALID_VALUE);
        }
        let address = s.allocate(device, bytes as u64, Kind::Device)?;
        put(place, address)
    }

    fn cuMemAllocPitch_v2(place: *mut u64, pitch: *mut usize, width: usize, height: usize, element: c_uint) {
        let mut s = state()?;
        let device = s.device()?;
        s.no_capture()?;
        let row = width.next_multiple_of(PITCH);
        if width == 0 || height == 0 || !matches!(element, 4 | 8 | 16) {
            return Err(INVALID_VALUE);
        }
        let address = s.allocate(device, row.checked_mul(height).ok_or(OUT_OF_MEMORY)? as u64, Kind::Device)?;
        put(pitch, row)?;
        put(place, address)
    }

    fn cuMemFree_v2(address: u64) {
        if address == 0 {
            return Ok(());
        }
        let mut s = state()?;
        let kind = s.allocations.get(&address).ok_or(INVALID_VALUE)?.kind;
        match kind {
            Kind::Device | Kind::Pool(_) => s.release(address),
            Kind::Managed => super::host::free(&mut s, address),
            _ => Err(INVALID_VALUE),
        }
    }

    fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize) {
        let s = state()?;
        let gpu = &s.gpus[s.device()?];
        put_if(free, (gpu.chip.memory_bytes - gpu.used) as usize);
        put_if(total, gpu.chip.memory_bytes as usize);
        Ok(())
    }

    fn cuMemGetAddressRange_v2(base: *mut u64, bytes: *mut usize, address: u64) {
        let (start, a) = state()?.around(address).ok_or(NOT_FOUND)?;
        put_if(base, start);
        put_if(bytes, a.bytes as usize);
        Ok(())
    }

    fn cuPointerGetAttribute(data: *mut c_void, which: c_uint, pointer: u64) {
        current()?;
        attribute(data, which, pointer)
    }

    fn cuPointerGetAttributes(n: c_uint, which: *const c_uint, data: *mut *mut c_void, pointer: u64) {
        for i in 0..n as usize {
            // What a pointer of the host has no answer for is 0, and no error.
            let (which, place) = (*which.add(i), *data.add(i));
            if attribute(place, which, pointer).is_err() {
                let bytes = match which {
                    6 | 8 | 10 | 13 | 15 | 21 => 1,
                    2 | 9 | 16 => 4,
                    _ => 8,
                };
                std::ptr::write_bytes(place.cast::<u8>(), 0, bytes);
                if which == 9 {
                    put(place.cast::<c_int>(), -2)?;
                }
            }
        }
        Ok(())
    }

    fn cuPointerSetAttribute(_value: *const c_void, which: c_uint, pointer: u64) {
        state()?.around(pointer).ok_or(INVALID_VALUE)?;
        // Synchronous memory operations: all are.
        if which == 6 { Ok(()) } else { Err(INVALID_VALUE) }
    }

    fn cuMemAdvise_v2(_address: u64, _bytes: usize, _advice: c_uint, _location: u64) {
        Ok(())
    }

    fn cuMemAdvise(_address: u64, _bytes: usize, _advice: c_uint, _device: c_int) {
        Ok(())
    }

    fn cuMemPrefetchAsync_v2(_address: u64, _bytes: usize, _location: u64, _flags: c_uint, _stream: Handle) {
        Ok(())
    }

    fn cuMemPrefetchAsync(_address: u64, _bytes: usize, _device: c_int, _stream: Handle) {
        Ok(())
    }
}
