//! Contexts, primary and others, and access between devices.

use crate::call::*;
use crate::state::{CONTEXTS, Context, current, state};
use crate::structs::Handle;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{c_int, c_uint, c_void};

fn context(device: usize, flags: c_uint) -> Context {
    Context { device, flags, peers: BTreeSet::new(), failed: None, limits: BTreeMap::new() }
}

/// A new context, which becomes the current one.
fn create(place: *mut Handle, flags: c_uint, device: c_int) -> Call {
    let mut s = state()?;
    s.gpu(device)?;
    let made = s.contexts.add(context(device as usize, flags));
    CONTEXTS.with_borrow_mut(|c| c.push(made));
    // SAFETY: the contract of the calls that use this.
    unsafe { put(place, made) }
}

/// The default of a limit: stack, printf buffer, heap; others are 0.
fn limit(which: c_uint) -> Option<usize> {
    Some(match which {
        0 => 1024,
        1 => 1 << 20,
        2 => 8 << 20,
        3 => 2,
        4 => 2048,
        5 => 64,
        6..=9 => 0,
        _ => return None,
    })
}

api! {
    fn cuCtxCreate_v2(place: *mut Handle, flags: c_uint, device: c_int) {
        create(place, flags, device)
    }

    fn cuCtxCreate_v3(place: *mut Handle, _affinity: *mut c_void, n: c_int, flags: c_uint, device: c_int) {
        if n != 0 {
            return Err(NOT_SUPPORTED);
        }
        create(place, flags, device)
    }

    fn cuCtxCreate_v4(place: *mut Handle, _params: *mut c_void, flags: c_uint, device: c_int) {
        create(place, flags, device)
    }

    fn cuCtxDestroy_v2(context: Handle) {
        let mut s = state()?;
        s.contexts.remove(context).map_err(|_| INVALID_CONTEXT)?;
        CONTEXTS.with_borrow_mut(|c| c.retain(|other| *other != context));
        Ok(())
    }

    fn cuCtxPushCurrent_v2(context: Handle) {
        state()?.contexts.get(context).map_err(|_| INVALID_CONTEXT)?;
        CONTEXTS.with_borrow_mut(|c| c.push(context));
        Ok(())
    }

    fn cuCtxPopCurrent_v2(place: *mut Handle) {
        drop(state()?);
        let popped = CONTEXTS.with_borrow_mut(Vec::pop).ok_or(INVALID_CONTEXT)?;
        put_if(place, popped);
        Ok(())
    }

    fn cuCtxSetCurrent(context: Handle) {
        if context != 0 {
            state()?.contexts.get(context).map_err(|_| INVALID_CONTEXT)?;
        }
        CONTEXTS.with_borrow_mut(|c| {
            c.pop();
            if context != 0 {
                c.push(context);
            }
        });
        Ok(())
    }

    fn cuCtxGetCurrent(place: *mut Handle) {
        drop(state()?);
        put(place, current().unwrap_or(0))
    }

    fn cuCtxGetDevice(device: *mut c_int) {
        put(device, state()?.device()? as c_int)
    }

    fn cuCtxGetDevice_v2(device: *mut c_int, context: Handle) {
        let s = state()?;
        let context = if context == 0 { current()? } else { context };
        put(device, s.contexts.get(context).map_err(|_| INVALID_CONTEXT)?.device as c_int)
    }

    fn cuCtxGetFlags(flags: *mut c_uint) {
        put(flags, state()?.contexts.get(current()?)?.flags)
    }

    fn cuCtxSetFlags(flags: c_uint) {
        state()?.contexts.get_mut(current()?)?.flags = flags;
        Ok(())
    }

    fn cuCtxGetId(context: Handle, id: *mut u64) {
        let context = if context == 0 { current()? } else { context };
        state()?.contexts.get(context)?;
        put(id, context as u64)
    }

    fn cuCtxGetApiVersion(context: Handle, version: *mut c_uint) {
        state()?.contexts.get(context).map_err(|_| INVALID_CONTEXT)?;
        put(version, 3020)
    }

    fn cuCtxSynchronize() {
        let mut s = state()?;
        s.no_capture()?;
        s.waited(current()?)
    }

    fn cuCtxSynchronize_v2(context: Handle) {
        let mut s = state()?;
        s.no_capture()?;
        s.waited(if context == 0 { current()? } else { context })
    }

    fn cuCtxGetLimit(value: *mut usize, which: c_uint) {
        let s = state()?;
        let set = s.contexts.get(current()?)?.limits.get(&which).copied();
        put(value, set.or_else(|| limit(which)).ok_or(INVALID_VALUE)?)
    }

    fn cuCtxSetLimit(which: c_uint, value: usize) {
        limit(which).ok_or(INVALID_VALUE)?;
        state()?.contexts.get_mut(current()?)?.limits.insert(which, value);
        Ok(())
    }

    fn cuCtxGetCacheConfig(config: *mut c_uint) {
        put(config, 0)
    }

    fn cuCtxSetCacheConfig(_config: c_uint) {
        Ok(())
    }

    fn cuCtxGetSharedMemConfig(config: *mut c_uint) {
        put(config, 1)
    }

    fn cuCtxSetSharedMemConfig(_config: c_uint) {
        Ok(())
    }

    fn cuCtxResetPersistingL2Cache() {
        Ok(())
    }

    fn cuCtxGetStreamPriorityRange(least: *mut c_int, greatest: *mut c_int) {
        put_if(least, 0);
        put_if(greatest, -5);
        Ok(())
    }

    fn cuDevicePrimaryCtxRetain(place: *mut Handle, device: c_int) {
        let mut s = state()?;
        let gpu = s.gpu(device)?;
        let (known, flags) = (gpu.primary, gpu.primary_flags);
        let primary = known.unwrap_or_else(|| s.contexts.add(context(device as usize, flags)));
        let gpu = s.gpu_mut(device)?;
        gpu.primary = Some(primary);
        gpu.primary_users += 1;
        put(place, primary)
    }

    fn cuDevicePrimaryCtxRelease_v2(device: c_int) {
        let mut s = state()?;
        let gpu = s.gpu_mut(device)?;
        gpu.primary_users = gpu.primary_users.checked_sub(1).ok_or(INVALID_CONTEXT)?;
        Ok(())
    }

    fn cuDevicePrimaryCtxReset_v2(device: c_int) {
        let mut s = state()?;
        if let Some(primary) = s.gpu(device)?.primary
            && let Ok(context) = s.contexts.get_mut(primary)
        {
            context.failed = None;
        }
        Ok(())
    }

    fn cuDevicePrimaryCtxSetFlags_v2(device: c_int, flags: c_uint) {
        state()?.gpu_mut(device)?.primary_flags = flags;
        Ok(())
    }

    fn cuDevicePrimaryCtxGetState(device: c_int, flags: *mut c_uint, active: *mut c_int) {
        let s = state()?;
        let gpu = s.gpu(device)?;
        put_if(flags, gpu.primary_flags);
        put_if(active, c_int::from(gpu.primary_users > 0));
        Ok(())
    }

    fn cuCtxEnablePeerAccess(peer: Handle, flags: c_uint) {
        let mut s = state()?;
        let device = s.contexts.get(peer).map_err(|_| INVALID_CONTEXT)?.device;
        let me = s.contexts.get_mut(current()?)?;
        if flags != 0 || me.device == device {
            return Err(INVALID_VALUE);
        }
        if me.peers.insert(device) { Ok(()) } else { Err(PEER_ACCESS_ALREADY_ENABLED) }
    }

    fn cuCtxDisablePeerAccess(peer: Handle) {
        let mut s = state()?;
        let device = s.contexts.get(peer).map_err(|_| INVALID_CONTEXT)?.device;
        if s.contexts.get_mut(current()?)?.peers.remove(&device) { Ok(()) } else { Err(PEER_ACCESS_NOT_ENABLED) }
    }
}
