//! Streams. Everything in them is done when a call returns.

use crate::call::*;
use crate::state::{Stream, current, is_default, state};
use crate::structs::{Handle, HostFn, LaunchValue};
use crate::work::{HostData, Work, submit};
use std::collections::BTreeMap;
use std::ffi::{c_int, c_uint, c_void};

fn create(place: *mut Handle, flags: c_uint, priority: c_int) -> Call {
    if flags > 1 {
        return Err(INVALID_VALUE);
    }
    let context = current()?;
    let priority = priority.clamp(-5, 0);
    let stream = Stream { context, flags, priority, capture: None, attributes: BTreeMap::new() };
    let stream = state()?.streams.add(stream);
    // SAFETY: the contract of the calls that use this.
    unsafe { put(place, stream) }
}

/// Waits for a stream: tells what a launch of its context left behind.
fn wait(stream: Handle) -> Call {
    let mut s = state()?;
    let context = s.context_of(stream)?;
    if !is_default(stream)
        && let Some(c) = &mut s.streams.get_mut(stream)?.capture
    {
        c.invalid = true;
        return Err(STREAM_CAPTURE_UNSUPPORTED);
    }
    s.waited(context)
}

/// Waits for, or writes, a value in memory.
unsafe fn value(stream: Handle, address: u64, value: u64, bytes: u64, write: bool, flags: c_uint) -> Call {
    if write {
        let low = (value & 0xffff_ffff) as u32;
        let set = |dst, value| crate::work::Set { dst, pitch: 0, value, element_bytes: 4, width: 1, height: 1 };
        submit(stream, Work::Set(Box::new(set(address, low))))?;
        if bytes == 8 {
            submit(stream, Work::Set(Box::new(set(address + 4, (value >> 32) as u32))))?;
        }
        return Ok(());
    }
    let mut now = [0; 8];
    state()?.read(address, &mut now[..bytes as usize])?;
    let now = u64::from_le_bytes(now);
    // Greater or equal (in a circle), equal, and, nor.
    let holds = match flags & 3 {
        0 if bytes == 4 => (now as u32).wrapping_sub(value as u32) as i32 >= 0,
        0 => now.wrapping_sub(value) as i64 >= 0,
        1 => now == value,
        2 => now & value != 0,
        _ => !(now | value) != 0,
    };
    if holds {
        return Ok(());
    }
    tell(
        "a stream waits for a value that nothing in the emulated driver can still write: everything before it is done",
    );
    Err(LAUNCH_TIMEOUT)
}

api! {
    fn cuStreamCreate(place: *mut Handle, flags: c_uint) {
        create(place, flags, 0)
    }

    fn cuStreamCreateWithPriority(place: *mut Handle, flags: c_uint, priority: c_int) {
        create(place, flags, priority)
    }

    fn cuStreamDestroy_v2(stream: Handle) {
        state()?.streams.remove(stream).map(|_| ())
    }

    fn cuStreamSynchronize(stream: Handle) {
        wait(stream)
    }

    fn cuStreamQuery(stream: Handle) {
        wait(stream)
    }

    fn cuStreamGetFlags(stream: Handle, flags: *mut c_uint) {
        put(flags, if is_default(stream) { 0 } else { state()?.streams.get(stream)?.flags })
    }

    fn cuStreamGetPriority(stream: Handle, priority: *mut c_int) {
        put(priority, if is_default(stream) { 0 } else { state()?.streams.get(stream)?.priority })
    }

    fn cuStreamGetId(stream: Handle, id: *mut u64) {
        state()?.context_of(stream)?;
        put(id, stream as u64)
    }

    fn cuStreamGetCtx(stream: Handle, context: *mut Handle) {
        let of = state()?.context_of(stream)?;
        put(context, of)
    }

    fn cuStreamGetCtx_v2(stream: Handle, context: *mut Handle, green: *mut Handle) {
        let of = state()?.context_of(stream)?;
        put_if(green, 0);
        put(context, of)
    }

    fn cuStreamGetDevice(stream: Handle, device: *mut c_int) {
        let s = state()?;
        let context = s.context_of(stream)?;
        put(device, s.contexts.get(context)?.device as c_int)
    }

    fn cuStreamAddCallback(
        stream: Handle,
        callback: Option<unsafe extern "C" fn(Handle, c_uint, *mut c_void)>,
        data: *mut c_void,
        _flags: c_uint,
    ) {
        state()?.context_of(stream)?;
        // Outside of the state: it is the program's function.
        callback.ok_or(INVALID_VALUE)?(stream, 0, data);
        Ok(())
    }

    fn cuLaunchHostFunc_v2(stream: Handle, function: Option<HostFn>, data: *mut c_void, _mode: c_uint) {
        submit(stream, Work::Host(function.ok_or(INVALID_VALUE)?, HostData(data)))
    }

    fn cuStreamSetAttribute(stream: Handle, which: c_uint, value: *const LaunchValue) {
        if !is_default(stream) {
            state()?.streams.get_mut(stream)?.attributes.insert(which, *value);
        }
        Ok(())
    }

    fn cuStreamGetAttribute(stream: Handle, which: c_uint, value: *mut LaunchValue) {
        let known = if is_default(stream) { None } else { state()?.streams.get(stream)?.attributes.get(&which).copied() };
        put(value, known.unwrap_or(LaunchValue([0; 16])))
    }

    fn cuStreamCopyAttributes(to: Handle, from: Handle) {
        let mut s = state()?;
        let attributes = s.streams.get(from)?.attributes.clone();
        s.streams.get_mut(to)?.attributes = attributes;
        Ok(())
    }

    fn cuStreamWriteValue32_v2(stream: Handle, address: u64, v: u32, flags: c_uint) {
        value(stream, address, u64::from(v), 4, true, flags)
    }

    fn cuStreamWriteValue64_v2(stream: Handle, address: u64, v: u64, flags: c_uint) {
        value(stream, address, v, 8, true, flags)
    }

    fn cuStreamWaitValue32_v2(stream: Handle, address: u64, v: u32, flags: c_uint) {
        value(stream, address, u64::from(v), 4, false, flags)
    }

    fn cuStreamWaitValue64_v2(stream: Handle, address: u64, v: u64, flags: c_uint) {
        value(stream, address, v, 8, false, flags)
    }
}
