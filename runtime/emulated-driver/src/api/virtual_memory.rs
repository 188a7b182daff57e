//! Addresses and physical memory apart: reserve, create, map.

use crate::call::*;
use crate::state::{Kind, Memory, State, state};
use crate::structs::{AccessDesc, AllocationProp, Handle, Location};
use moec_ptx::exec::memory::global::Physical;
use std::ffi::c_uint;

/// The granularity of everything here.
const PAGE: usize = 2 << 20;

/// Gives up one use of physical memory, which ends with the last.
pub fn drop_use(s: &mut State, handle: Handle) -> Call {
    let memory = s.memories.get_mut(handle)?;
    memory.users -= 1;
    if memory.users == 0 {
        let memory = s.memories.remove(handle)?;
        let device = memory.prop.location.id as usize;
        s.gpus[device].used -= memory.physical.bytes();
    }
    Ok(())
}

api! {
    fn cuMemGetAllocationGranularity(bytes: *mut usize, prop: *const AllocationProp, _option: c_uint) {
        state()?.gpu((*prop).location.id)?;
        put(bytes, PAGE)
    }

    fn cuMemAddressReserve(place: *mut u64, bytes: usize, align: usize, _wish: u64, _flags: u64) {
        let mut s = state()?;
        if bytes == 0 || !bytes.is_multiple_of(PAGE) || !(align == 0 || align.is_power_of_two()) {
            return Err(INVALID_VALUE);
        }
        let align = align.max(PAGE) as u64;
        let address = s.emulator.memory_mut().reserve(bytes as u64, align).map_err(|_| OUT_OF_MEMORY)?;
        s.reserved.insert(address, bytes as u64);
        put(place, address)
    }

    fn cuMemAddressFree(address: u64, bytes: usize) {
        let mut s = state()?;
        if s.reserved.get(&address) != Some(&(bytes as u64)) {
            return Err(INVALID_VALUE);
        }
        s.reserved.remove(&address);
        Ok(())
    }

    fn cuMemCreate(place: *mut Handle, bytes: usize, prop: *const AllocationProp, _flags: u64) {
        let mut s = state()?;
        let prop = *prop;
        if prop.kind != 1 || prop.location.kind != 1 || bytes == 0 || !bytes.is_multiple_of(PAGE) {
            return Err(INVALID_VALUE);
        }
        if prop.handle_types != 0 {
            tell("memory that other processes share is not in the emulated driver");
            return Err(NOT_SUPPORTED);
        }
        let gpu = s.gpu_mut(prop.location.id)?;
        if gpu.chip.memory_bytes - gpu.used < bytes as u64 {
            return Err(OUT_OF_MEMORY);
        }
        gpu.used += bytes as u64;
        let handle = s.memories.add(Memory { physical: Physical::new(bytes as u64), prop, users: 1 });
        put(place, handle)
    }

    fn cuMemRelease(handle: Handle) {
        drop_use(&mut *state()?, handle)
    }

    fn cuMemMap(address: u64, bytes: usize, offset: usize, handle: Handle, _flags: u64) {
        let mut s = state()?;
        let bytes = bytes as u64;
        let inside = s.reserved.range(..=address).next_back();
        inside.filter(|(at, n)| address + bytes <= **at + **n).ok_or(INVALID_VALUE)?;
        let memory = s.memories.get_mut(handle)?;
        if offset != 0 || bytes != memory.physical.bytes() {
            return Err(INVALID_VALUE);
        }
        let (physical, device) = (memory.physical.clone(), memory.prop.location.id as usize);
        s.emulator.memory_mut().map(address, &physical).map_err(|_| INVALID_VALUE)?;
        s.memories.get_mut(handle)?.users += 1;
        s.know(address, bytes, device, Kind::Mapped(handle));
        Ok(())
    }

    fn cuMemUnmap(address: u64, bytes: usize) {
        let mut s = state()?;
        let range = address..address + bytes as u64;
        let mapped: Vec<(u64, Handle)> = s
            .allocations
            .range(range)
            .filter_map(|(at, a)| match a.kind {
                Kind::Mapped(handle) => Some((*at, handle)),
                _ => None,
            })
            .collect();
        if mapped.is_empty() {
            return Err(INVALID_VALUE);
        }
        for (at, handle) in mapped {
            s.emulator.memory_mut().unmap(at).map_err(|_| INVALID_VALUE)?;
            s.allocations.remove(&at);
            drop_use(&mut s, handle)?;
        }
        Ok(())
    }

    fn cuMemSetAccess(address: u64, bytes: usize, access: *const AccessDesc, n: usize) {
        let mut s = state()?;
        let range = address..address + bytes as u64;
        if n == 0 || s.allocations.range(range.clone()).next().is_none() {
            return Err(INVALID_VALUE);
        }
        for i in 0..n {
            let desc = *access.add(i);
            s.gpu(desc.location.id)?;
            let bit = 1 << desc.location.id;
            for (_, a) in s.allocations.range_mut(range.clone()) {
                a.flags = if desc.flags == 0 { a.flags & !bit } else { a.flags | bit };
            }
        }
        Ok(())
    }

    fn cuMemGetAccess(flags: *mut u64, location: *const Location, address: u64) {
        let s = state()?;
        let (_, a) = s.around(address).ok_or(INVALID_VALUE)?;
        put(flags, if a.device as i32 == (*location).id { 3 } else { 0 })
    }

    fn cuMemRetainAllocationHandle(place: *mut Handle, address: u64) {
        let mut s = state()?;
        let (_, a) = s.around(address).ok_or(INVALID_VALUE)?;
        let Kind::Mapped(handle) = a.kind else { return Err(INVALID_VALUE) };
        s.memories.get_mut(handle)?.users += 1;
        put(place, handle)
    }

    fn cuMemGetAllocationPropertiesFromHandle(prop: *mut AllocationProp, handle: Handle) {
        put(prop, state()?.memories.get(handle)?.prop)
    }
}
