//! Events: points in time, and joints of captures.

use crate::call::*;
use crate::state::{Event, current, is_default, state};
use crate::structs::Handle;
use crate::work::{Work, perform};
use std::ffi::c_uint;

/// `CU_EVENT_DISABLE_TIMING`
const NO_TIMING: c_uint = 2;

unsafe fn elapsed(milliseconds: *mut f32, start: Handle, end: Handle) -> Call {
    let s = state()?;
    let (a, b) = (s.events.get(start)?, s.events.get(end)?);
    if (a.flags | b.flags) & NO_TIMING != 0 {
        return Err(INVALID_HANDLE);
    }
    let (from, to) = (a.recorded.ok_or(INVALID_HANDLE)?, b.recorded.ok_or(INVALID_HANDLE)?);
    let seconds = match to.checked_duration_since(from) {
        Some(later) => later.as_secs_f32(),
        None => -from.duration_since(to).as_secs_f32(),
    };
    // SAFETY: the caller's contract.
    unsafe { put(milliseconds, seconds * 1e3) }
}

fn record(event: Handle, stream: Handle) -> Call {
    let mut s = state()?;
    s.events.get(event)?;
    if !is_default(stream)
        && let Some(c) = &s.streams.get(stream)?.capture
    {
        let captured = Some((c.id, c.last.clone()));
        s.events.get_mut(event)?.captured = captured;
        return Ok(());
    }
    let context = s.context_of(stream)?;
    s.events.get_mut(event)?.captured = None;
    drop(s);
    perform(&Work::Record(event), context)
}

api! {
    fn cuEventCreate(place: *mut Handle, flags: c_uint) {
        let event = Event { context: current()?, flags, ..Event::default() };
        let event = state()?.events.add(event);
        put(place, event)
    }

    fn cuEventDestroy_v2(event: Handle) {
        state()?.events.remove(event).map(|_| ())
    }

    fn cuEventRecord(event: Handle, stream: Handle) {
        record(event, stream)
    }

    fn cuEventRecordWithFlags(event: Handle, stream: Handle, _flags: c_uint) {
        record(event, stream)
    }

    fn cuEventQuery(event: Handle) {
        let mut s = state()?;
        let e = s.events.get(event)?;
        if e.captured.is_some() {
            return Err(CAPTURED_EVENT);
        }
        let context = e.context;
        s.waited(context)
    }

    fn cuEventSynchronize(event: Handle) {
        let mut s = state()?;
        let e = s.events.get(event)?;
        if e.captured.is_some() {
            return Err(CAPTURED_EVENT);
        }
        let context = e.context;
        s.waited(context)
    }

    fn cuEventElapsedTime(milliseconds: *mut f32, start: Handle, end: Handle) {
        elapsed(milliseconds, start, end)
    }

    fn cuEventElapsedTime_v2(milliseconds: *mut f32, start: Handle, end: Handle) {
        elapsed(milliseconds, start, end)
    }

    fn cuStreamWaitEvent(stream: Handle, event: Handle, _flags: c_uint) {
        let mut s = state()?;
        let captured = s.events.get(event)?.captured.clone();
        if is_default(stream) {
            return if captured.is_some() { Err(STREAM_CAPTURE_IMPLICIT) } else { Ok(()) };
        }
        let own = s.streams.get(stream)?.capture.as_ref().map(|c| c.id);
        let Some((id, nodes)) = captured else {
            // Work outside of a capture cannot be waited for inside of one.
            return if own.is_some() { Err(STREAM_CAPTURE_ISOLATION) } else { Ok(()) };
        };
        match own {
            Some(own) if own == id => {
                if let Some(c) = &mut s.streams.get_mut(stream)?.capture {
                    nodes.into_iter().for_each(|n| if !c.last.contains(&n) { c.last.push(n) });
                }
                Ok(())
            }
            // Two captures cannot become one.
            Some(_) => Err(Error(902)),
            None => s.join(stream, id, nodes),
        }
    }
}

impl crate::state::State {
    /// Draws a stream into a capture that is under way.
    fn join(&mut self, stream: Handle, id: u64, last: Vec<Handle>) -> Call {
        let of =
            |s: &crate::state::Stream| s.capture.as_ref().filter(|c| c.id == id).map(|c| (c.graph, c.mode, c.thread));
        let (graph, mode, thread) = self.streams.iter().find_map(|(_, s)| of(s)).ok_or(CAPTURED_EVENT)?;
        let capture = crate::state::Capture {
            graph,
            id,
            origin: false,
            last,
            mode,
            thread,
            invalid: false,
            shown: Box::default(),
        };
        self.streams.get_mut(stream)?.capture = Some(capture);
        Ok(())
    }
}
