//! Memory in the order of streams, and its pools.

use crate::call::*;
use crate::state::{Kind, Pool, state};
use crate::structs::{AccessDesc, Handle, Location, PoolProps};
use crate::work::{Work, submit};
use std::collections::BTreeMap;
use std::ffi::{c_uint, c_void};

/// Memory of a pool, in a stream; a capture gets a node and the address now.
fn allocate(place: *mut u64, bytes: usize, pool: Option<Handle>, stream: Handle) -> Call {
    let address = {
        let mut s = state()?;
        let context = s.context_of(stream)?;
        let device = s.contexts.get(context)?.device;
        let pool = pool.unwrap_or(s.gpus[device].pool);
        let of = s.pools.get(pool)?.device;
        // A pool may give nothing for no bytes; the address is one of its own.
        let address = s.allocate(of, (bytes as u64).max(1), Kind::Pool(pool))?;
        let p = s.pools.get_mut(pool)?;
        p.used += bytes as u64;
        p.high = p.high.max(p.used);
        address
    };
    submit(stream, Work::Alloc)?;
    // SAFETY: the contract of the calls that use this.
    unsafe { put(place, address) }
}

api! {
    fn cuMemAllocAsync(place: *mut u64, bytes: usize, stream: Handle) {
        allocate(place, bytes, None, stream)
    }

    fn cuMemAllocFromPoolAsync(place: *mut u64, bytes: usize, pool: Handle, stream: Handle) {
        allocate(place, bytes, Some(pool), stream)
    }

    fn cuMemFreeAsync(address: u64, stream: Handle) {
        if address == 0 {
            return Ok(());
        }
        match state()?.allocations.get(&address).ok_or(INVALID_VALUE)?.kind {
            Kind::Pool(_) | Kind::Device => {}
            _ => return Err(INVALID_VALUE),
        }
        submit(stream, Work::Free(address))
    }

    fn cuMemPoolCreate(place: *mut Handle, props: *const PoolProps) {
        let mut s = state()?;
        let location = (*props).location;
        if location.kind != 1 {
            tell("memory pools of the host are not in the emulated driver");
            return Err(NOT_SUPPORTED);
        }
        s.gpu(location.id)?;
        let pool = s.pools.add(Pool { device: location.id as usize, attributes: BTreeMap::new(), used: 0, high: 0 });
        put(place, pool)
    }

    fn cuMemPoolDestroy(pool: Handle) {
        let mut s = state()?;
        if s.gpus.iter().any(|g| g.default_pool == pool) {
            return Err(INVALID_VALUE);
        }
        let device = s.pools.remove(pool)?.device;
        let default = s.gpus[device].default_pool;
        let gpu = &mut s.gpus[device];
        if gpu.pool == pool {
            gpu.pool = default;
        }
        Ok(())
    }

    fn cuMemPoolTrimTo(pool: Handle, _keep: usize) {
        state()?.pools.get(pool).map(|_| ())
    }

    fn cuMemPoolSetAttribute(pool: Handle, which: c_uint, value: *const c_void) {
        let mut s = state()?;
        let p = s.pools.get_mut(pool)?;
        match which {
            1..=3 => p.attributes.insert(which, u64::from(value.cast::<c_uint>().read_unaligned())),
            4 => p.attributes.insert(which, value.cast::<u64>().read_unaligned()),
            // High-water marks, which may be set to 0 only.
            6 | 8 => {
                p.high = p.used;
                None
            }
            _ => return Err(INVALID_VALUE),
        };
        Ok(())
    }

    fn cuMemPoolGetAttribute(pool: Handle, which: c_uint, value: *mut c_void) {
        let s = state()?;
        let p = s.pools.get(pool)?;
        match which {
            1..=3 => put(value.cast::<c_uint>(), p.attributes.get(&which).map_or(1, |v| *v as c_uint)),
            4 => put(value.cast::<u64>(), p.attributes.get(&4).copied().unwrap_or(0)),
            5 | 7 => put(value.cast::<u64>(), p.used),
            6 | 8 => put(value.cast::<u64>(), p.high),
            _ => Err(INVALID_VALUE),
        }
    }

    fn cuMemPoolSetAccess(pool: Handle, _access: *const AccessDesc, _n: usize) {
        state()?.pools.get(pool).map(|_| ())
    }

    fn cuMemPoolGetAccess(flags: *mut c_uint, pool: Handle, location: *const Location) {
        let s = state()?;
        let own = s.pools.get(pool)?.device as i32 == (*location).id;
        put(flags, if own { 3 } else { 0 })
    }
}
