//! Captures: streams whose work becomes a graph.

use crate::call::*;
use crate::state::{CAPTURE_MODE, Capture, Graph, State, is_default, state};
use crate::structs::Handle;
use std::ffi::{c_int, c_uint, c_void};

fn begin(stream: Handle, graph: Option<Handle>, last: Vec<Handle>, mode: c_uint) -> Call {
    let mut s = state()?;
    if is_default(stream) || mode > 2 {
        // The legacy stream cannot be captured.
        return Err(if mode > 2 { INVALID_VALUE } else { STREAM_CAPTURE_UNSUPPORTED });
    }
    if s.streams.get(stream)?.capture.is_some() {
        return Err(ILLEGAL_STATE);
    }
    let graph = match graph {
        Some(graph) => graph,
        None => s.graphs.add(Graph::default()),
    };
    let (id, thread) = (s.fresh_id(), std::thread::current().id());
    let capture = Capture { graph, id, origin: true, last, mode, thread, invalid: false, shown: Box::default() };
    s.streams.get_mut(stream)?.capture = Some(capture);
    Ok(())
}

impl State {
    /// Ends a capture; gives its graph.
    fn end(&mut self, stream: Handle) -> Result<Handle, Error> {
        let s = self.streams.get_mut(stream)?;
        match &s.capture {
            None => return Err(ILLEGAL_STATE),
            Some(c) if !c.origin => return Err(STREAM_CAPTURE_UNMATCHED),
            Some(_) => {}
        }
        let Some(capture) = s.capture.take() else { return Err(ILLEGAL_STATE) };
        // Streams that were drawn into it by events: what they did last has to be waited for by something.
        let mut unjoined = false;
        let nodes = &self.nodes;
        let waited = |node: &Handle| {
            capture.last.contains(node) || nodes.iter().any(|(_, n)| n.graph == capture.graph && n.after.contains(node))
        };
        for (_, other) in self.streams.iter_mut() {
            if other.capture.as_ref().is_some_and(|c| c.id == capture.id) {
                let joined = other.capture.take();
                unjoined |= joined.is_some_and(|c| !c.last.iter().all(waited));
            }
        }
        if capture.invalid || unjoined {
            self.destroy_graph(capture.graph)?;
            return Err(if unjoined { STREAM_CAPTURE_UNJOINED } else { STREAM_CAPTURE_INVALIDATED });
        }
        Ok(capture.graph)
    }
}

api! {
    fn cuStreamBeginCapture_v2(stream: Handle, mode: c_uint) {
        begin(stream, None, Vec::new(), mode)
    }

    fn cuStreamBeginCaptureToGraph(
        stream: Handle,
        graph: Handle,
        after: *const Handle,
        _edges: *const c_void,
        n: usize,
        mode: c_uint,
    ) {
        let last = super::graph::list(after, n);
        begin(stream, Some(graph), last, mode)
    }

    fn cuStreamEndCapture(stream: Handle, place: *mut Handle) {
        let ended = state()?.end(stream);
        put(place, *ended.as_ref().unwrap_or(&0))?;
        ended.map(|_| ())
    }

    fn cuStreamIsCapturing(stream: Handle, status: *mut c_uint) {
        let s = state()?;
        let capture = if is_default(stream) { None } else { s.streams.get(stream)?.capture.as_ref() };
        put(status, capture.map_or(0, |c| if c.invalid { 2 } else { 1 }))
    }

    fn cuStreamGetCaptureInfo_v2(
        stream: Handle,
        status: *mut c_uint,
        id: *mut u64,
        graph: *mut Handle,
        last: *mut *const Handle,
        n: *mut usize,
    ) {
        let mut s = state()?;
        let capture = if is_default(stream) { None } else { s.streams.get_mut(stream)?.capture.as_mut() };
        let Some(c) = capture else { return put(status, 0) };
        c.shown = c.last.clone().into_boxed_slice();
        put(status, if c.invalid { 2 } else { 1 })?;
        put_if(id, c.id);
        put_if(graph, c.graph);
        put_if(last, c.shown.as_ptr());
        put_if(n, c.shown.len());
        Ok(())
    }

    fn cuStreamGetCaptureInfo_v3(
        stream: Handle,
        status: *mut c_uint,
        id: *mut u64,
        graph: *mut Handle,
        last: *mut *const Handle,
        edges: *mut *const c_void,
        n: *mut usize,
    ) {
        put_if(edges, std::ptr::null());
        let code = cuStreamGetCaptureInfo_v2(stream, status, id, graph, last, n);
        if code == 0 { Ok(()) } else { Err(Error(code)) }
    }

    fn cuStreamUpdateCaptureDependencies(stream: Handle, last: *const Handle, n: usize, flags: c_uint) {
        let mut s = state()?;
        let list = super::graph::list(last, n);
        let c = s.streams.get_mut(stream)?.capture.as_mut().ok_or(ILLEGAL_STATE)?;
        // 0 adds, 1 sets.
        if flags == 1 {
            c.last.clear();
        }
        c.last.extend(list);
        Ok(())
    }

    fn cuStreamUpdateCaptureDependencies_v2(
        stream: Handle,
        last: *const Handle,
        _edges: *const c_void,
        n: usize,
        flags: c_uint,
    ) {
        let code = cuStreamUpdateCaptureDependencies(stream, last, n, flags);
        if code == 0 { Ok(()) } else { Err(Error(code)) }
    }

    fn cuThreadExchangeStreamCaptureMode(mode: *mut c_uint) {
        if *mode > 2 {
            return Err(INVALID_VALUE);
        }
        *mode = CAPTURE_MODE.replace(*mode);
        Ok(())
    }

    fn cuCtxRecordEvent(_context: Handle, event: Handle) {
        let code = super::event::cuEventRecord(event, 0);
        if code == 0 { Ok(()) } else { Err(Error(code)) }
    }

    fn cuCtxWaitEvent(_context: Handle, event: Handle) {
        state()?.events.get(event).map(|_| ())
    }

    fn cuDeviceGetGraphMemAttribute(device: c_int, which: c_uint, value: *mut u64) {
        let s = state()?;
        let pool = s.pools.get(s.gpu(device)?.default_pool)?;
        put(value, if which.is_multiple_of(2) { pool.used } else { pool.high })
    }

    fn cuDeviceSetGraphMemAttribute(device: c_int, _which: c_uint, _value: *mut u64) {
        state()?.gpu(device).map(|_| ())
    }

    fn cuDeviceGraphMemTrim(device: c_int) {
        state()?.gpu(device).map(|_| ())
    }
}
