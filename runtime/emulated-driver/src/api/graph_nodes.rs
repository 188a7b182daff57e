//! Nodes of graphs: kernels, copies, fills, host functions, children, events.

use super::copy::three;
use super::graph::{fill, list};
use super::launch::Shape;
use crate::call::*;
use crate::state::{Node, State, current, state};
use crate::structs::{Handle, HostNode, KernelNode, LaunchAttribute, LaunchValue, Memcpy3d, MemsetNode, NodeParams};
use crate::work::{HostData, Kernel, Set, Work};
use std::ffi::{c_uint, c_void};

/// The number and the name of a kind of work.
pub fn kind(work: &Work) -> (c_uint, &'static str) {
    match work {
        Work::Kernel(_) => (0, "kernel"),
        Work::Copy(_) => (1, "memcpy"),
        Work::Set(_) => (2, "memset"),
        Work::Host(..) => (3, "host"),
        Work::Child(..) => (4, "graph"),
        Work::Empty => (5, "empty"),
        Work::Wait(_) => (6, "wait event"),
        Work::Record(_) => (7, "event record"),
        Work::Alloc => (10, "memory allocation"),
        Work::Free(_) => (11, "memory free"),
    }
}

impl State {
    /// Adds a node after others of its graph.
    fn add(&mut self, graph: Handle, after: Vec<Handle>, work: Work, context: Handle) -> Result<Handle, Error> {
        self.graphs.get(graph)?;
        for node in &after {
            if self.nodes.get(*node)?.graph != graph {
                return Err(INVALID_VALUE);
            }
        }
        let node = self.nodes.add(Node { graph, work, after, context });
        self.graphs.get_mut(graph)?.nodes.push(node);
        Ok(node)
    }

    unsafe fn kernel_node(&self, p: &KernelNode, with_kernel: bool, keeps: Option<&Kernel>) -> Result<Work, Error> {
        let function = if p.function == 0 && with_kernel { p.kernel } else { p.function };
        let mut shape = Shape { grid: p.grid, block: p.block, shared_bytes: p.shared_bytes, ..Shape::default() };
        if let Some(known) = keeps {
            shape.cooperative = known.cooperative;
            shape.cluster = Some(known.launch.cluster);
        }
        // SAFETY: the caller's contract.
        Ok(Work::Kernel(Box::new(unsafe { self.kernel_work(function, &shape, p.params, p.extra)? })))
    }
}

fn set(p: &MemsetNode) -> Result<Work, Error> {
    if !matches!(p.element_bytes, 1 | 2 | 4) {
        return Err(INVALID_VALUE);
    }
    let (width, height) = (p.width as u64, p.height.max(1) as u64);
    let (pitch, element_bytes) = (p.pitch as u64, u64::from(p.element_bytes));
    Ok(Work::Set(Box::new(Set { dst: p.dst, pitch, value: p.value, element_bytes, width, height })))
}

fn host(p: &HostNode) -> Result<Work, Error> {
    Ok(Work::Host(p.function.ok_or(INVALID_VALUE)?, HostData(p.data)))
}

unsafe fn add(place: *mut Handle, graph: Handle, after: (*const Handle, usize), work: Work, context: Handle) -> Call {
    let context = if context == 0 { current()? } else { context };
    // SAFETY: the caller's contract.
    unsafe {
        let node = state()?.add(graph, list(after.0, after.1), work, context)?;
        put(place, node)
    }
}

/// The work that a node's parameters say; `keeps` is what the node had before.
unsafe fn work_of(params: &NodeParams, keeps: Option<&Work>) -> Result<(Work, Handle), Error> {
    let union = params.union.as_ptr();
    // SAFETY: the union holds what its kind says, and is as large as each of them.
    unsafe {
        Ok(match params.kind {
            0 => {
                let p = *union.cast::<KernelNode>();
                let keeps = match keeps {
                    Some(Work::Kernel(k)) => Some(&**k),
                    _ => None,
                };
                (state()?.kernel_node(&p, true, keeps)?, p.context)
            }
            1 => (three(&*union.add(2).cast::<Memcpy3d>())?, *union.add(1) as Handle),
            2 => (set(&*union.cast::<MemsetNode>())?, *union.add(5) as Handle),
            3 => (host(&*union.cast::<HostNode>())?, 0),
            4 => (Work::Child(*union as Handle, Vec::new()), 0),
            5 => (Work::Empty, 0),
            6 => (Work::Wait(*union as Handle), 0),
            7 => (Work::Record(*union as Handle), 0),
            other => {
                tell(&format!("graph nodes of type {other} are not in the emulated driver"));
                return Err(NOT_SUPPORTED);
            }
        })
    }
}

/// Changes the work of a node of a graph.
fn change(node: Handle, work: Work) -> Call {
    let mut s = state()?;
    let known = s.nodes.get_mut(node)?;
    if kind(&known.work).0 != kind(&work).0 {
        return Err(INVALID_VALUE);
    }
    known.work = work;
    Ok(())
}

/// Changes the work of a node of an executable graph.
fn change_exec(exec: Handle, node: Handle, work: Work) -> Call {
    let mut s = state()?;
    let step = s.execs.get_mut(exec)?.steps.iter_mut().find(|s| s.node == node).ok_or(INVALID_VALUE)?;
    if kind(&step.work).0 != kind(&work).0 {
        return Err(INVALID_VALUE);
    }
    step.work = work;
    Ok(())
}

/// The launch of a kernel node.
fn launch_of(node: Handle) -> Result<Kernel, Error> {
    match &state()?.nodes.get(node)?.work {
        Work::Kernel(k) => Ok((**k).clone()),
        _ => Err(INVALID_VALUE),
    }
}

api! {
    fn cuGraphAddKernelNode_v2(
        place: *mut Handle,
        graph: Handle,
        after: *const Handle,
        n: usize,
        params: *const KernelNode,
    ) {
        let p = *params;
        let work = state()?.kernel_node(&p, true, None)?;
        add(place, graph, (after, n), work, p.context)
    }

    fn cuGraphAddKernelNode(
        place: *mut Handle,
        graph: Handle,
        after: *const Handle,
        n: usize,
        params: *const KernelNode,
    ) {
        // The older struct ends before the kernel.
        let p = KernelNode { kernel: 0, context: 0, ..short(params) };
        let work = state()?.kernel_node(&p, false, None)?;
        add(place, graph, (after, n), work, 0)
    }

    fn cuGraphAddMemcpyNode(
        place: *mut Handle,
        graph: Handle,
        after: *const Handle,
        n: usize,
        copy: *const Memcpy3d,
        context: Handle,
    ) {
        add(place, graph, (after, n), three(&*copy)?, context)
    }

    fn cuGraphAddMemsetNode(
        place: *mut Handle,
        graph: Handle,
        after: *const Handle,
        n: usize,
        params: *const MemsetNode,
        context: Handle,
    ) {
        add(place, graph, (after, n), set(&*params)?, context)
    }

    fn cuGraphAddHostNode(
        place: *mut Handle,
        graph: Handle,
        after: *const Handle,
        n: usize,
        params: *const HostNode,
    ) {
        add(place, graph, (after, n), host(&*params)?, 0)
    }

    fn cuGraphAddChildGraphNode(place: *mut Handle, graph: Handle, after: *const Handle, n: usize, child: Handle) {
        let copy = state()?.cloned(child)?;
        add(place, graph, (after, n), Work::Child(copy, Vec::new()), 0)
    }

    fn cuGraphAddEmptyNode(place: *mut Handle, graph: Handle, after: *const Handle, n: usize) {
        add(place, graph, (after, n), Work::Empty, 0)
    }

    fn cuGraphAddEventRecordNode(place: *mut Handle, graph: Handle, after: *const Handle, n: usize, event: Handle) {
        add(place, graph, (after, n), Work::Record(event), 0)
    }

    fn cuGraphAddEventWaitNode(place: *mut Handle, graph: Handle, after: *const Handle, n: usize, event: Handle) {
        add(place, graph, (after, n), Work::Wait(event), 0)
    }

    fn cuGraphEventRecordNodeGetEvent(node: Handle, event: *mut Handle) {
        match state()?.nodes.get(node)?.work {
            Work::Record(of) => put(event, of),
            _ => Err(INVALID_VALUE),
        }
    }

    fn cuGraphEventWaitNodeGetEvent(node: Handle, event: *mut Handle) {
        match state()?.nodes.get(node)?.work {
            Work::Wait(of) => put(event, of),
            _ => Err(INVALID_VALUE),
        }
    }

    fn cuGraphMemFreeNodeGetParams(node: Handle, address: *mut u64) {
        match state()?.nodes.get(node)?.work {
            Work::Free(of) => put(address, of),
            _ => Err(INVALID_VALUE),
        }
    }

    fn cuGraphAddMemFreeNode(place: *mut Handle, graph: Handle, after: *const Handle, n: usize, address: u64) {
        add(place, graph, (after, n), Work::Free(address), 0)
    }

    fn cuGraphAddNode(place: *mut Handle, graph: Handle, after: *const Handle, n: usize, params: *mut NodeParams) {
        let (mut work, context) = work_of(&*params, None)?;
        if let Work::Child(child, _) = work {
            work = Work::Child(state()?.cloned(child)?, Vec::new());
        }
        add(place, graph, (after, n), work, context)
    }

    fn cuGraphAddNode_v2(
        place: *mut Handle,
        graph: Handle,
        after: *const Handle,
        _edges: *const c_void,
        n: usize,
        params: *mut NodeParams,
    ) {
        let code = cuGraphAddNode(place, graph, after, n, params);
        if code == 0 { Ok(()) } else { Err(Error(code)) }
    }

    fn cuGraphNodeSetParams(node: Handle, params: *mut NodeParams) {
        let before = state()?.nodes.get(node)?.work.clone();
        change(node, work_of(&*params, Some(&before))?.0)
    }

    fn cuGraphExecNodeSetParams(exec: Handle, node: Handle, params: *mut NodeParams) {
        let before = state()?.nodes.get(node)?.work.clone();
        change_exec(exec, node, work_of(&*params, Some(&before))?.0)
    }

    fn cuGraphKernelNodeSetParams_v2(node: Handle, params: *const KernelNode) {
        let before = launch_of(node)?;
        let work = state()?.kernel_node(&*params, true, Some(&before))?;
        change(node, work)
    }

    fn cuGraphExecKernelNodeSetParams_v2(exec: Handle, node: Handle, params: *const KernelNode) {
        let before = launch_of(node)?;
        let work = state()?.kernel_node(&*params, true, Some(&before))?;
        change_exec(exec, node, work)
    }

    fn cuGraphExecMemcpyNodeSetParams(exec: Handle, node: Handle, copy: *const Memcpy3d, _context: Handle) {
        change_exec(exec, node, three(&*copy)?)
    }

    fn cuGraphExecMemsetNodeSetParams(exec: Handle, node: Handle, params: *const MemsetNode, _context: Handle) {
        change_exec(exec, node, set(&*params)?)
    }

    fn cuGraphExecHostNodeSetParams(exec: Handle, node: Handle, params: *const HostNode) {
        change_exec(exec, node, host(&*params)?)
    }

    fn cuGraphMemcpyNodeSetParams(node: Handle, copy: *const Memcpy3d) {
        change(node, three(&*copy)?)
    }

    fn cuGraphMemsetNodeSetParams(node: Handle, params: *const MemsetNode) {
        change(node, set(&*params)?)
    }

    fn cuGraphMemsetNodeGetParams(node: Handle, params: *mut MemsetNode) {
        let s = state()?;
        let Work::Set(set) = &s.nodes.get(node)?.work else { return Err(INVALID_VALUE) };
        put(params, MemsetNode {
            dst: set.dst,
            pitch: set.pitch as usize,
            value: set.value,
            element_bytes: set.element_bytes as c_uint,
            width: set.width as usize,
            height: set.height as usize,
        })
    }

    fn cuGraphHostNodeSetParams(node: Handle, params: *const HostNode) {
        change(node, host(&*params)?)
    }

    fn cuGraphKernelNodeSetAttribute(node: Handle, which: c_uint, value: *const LaunchValue) {
        let mut shape = Shape::default();
        shape.attributes(&[LaunchAttribute { id: which, padding: 0, value: *value }])?;
        let mut s = state()?;
        let Work::Kernel(kernel) = &mut s.nodes.get_mut(node)?.work else { return Err(INVALID_VALUE) };
        match which {
            2 => kernel.cooperative = shape.cooperative,
            4 => kernel.launch.cluster = shape.cluster.unwrap_or([1; 3]),
            _ => {}
        }
        Ok(())
    }

    fn cuGraphKernelNodeGetAttribute(node: Handle, which: c_uint, value: *mut LaunchValue) {
        let kernel = launch_of(node)?;
        let mut out = LaunchValue([0; 16]);
        match which {
            2 => out.0[0] = c_uint::from(kernel.cooperative),
            4 => out.0[..3].copy_from_slice(&kernel.launch.cluster),
            _ => {}
        }
        put(value, out)
    }

    fn cuGraphNodeGetType(node: Handle, place: *mut c_uint) {
        put(place, kind(&state()?.nodes.get(node)?.work).0)
    }

    fn cuGraphNodeSetEnabled(exec: Handle, node: Handle, enabled: c_uint) {
        let mut s = state()?;
        let step = s.execs.get_mut(exec)?.steps.iter_mut().find(|s| s.node == node).ok_or(INVALID_VALUE)?;
        step.enabled = enabled != 0;
        Ok(())
    }

    fn cuGraphNodeGetEnabled(exec: Handle, node: Handle, enabled: *mut c_uint) {
        let s = state()?;
        let step = s.execs.get(exec)?.steps.iter().find(|s| s.node == node).ok_or(INVALID_VALUE)?;
        put(enabled, c_uint::from(step.enabled))
    }

    fn cuGraphChildGraphNodeGetGraph(node: Handle, place: *mut Handle) {
        match &state()?.nodes.get(node)?.work {
            Work::Child(graph, _) => put(place, *graph),
            _ => Err(INVALID_VALUE),
        }
    }

    fn cuGraphDestroyNode(node: Handle) {
        let mut s = state()?;
        let graph = s.nodes.remove(node)?.graph;
        s.graphs.get_mut(graph)?.nodes.retain(|n| *n != node);
        s.nodes.iter_mut().for_each(|(_, n)| n.after.retain(|a| *a != node));
        Ok(())
    }

    fn cuGraphAddDependencies(graph: Handle, from: *const Handle, to: *const Handle, n: usize) {
        let mut s = state()?;
        s.graphs.get(graph)?;
        for (a, b) in list(from, n).into_iter().zip(list(to, n)) {
            s.nodes.get(a)?;
            let after = &mut s.nodes.get_mut(b)?.after;
            if after.contains(&a) {
                return Err(INVALID_VALUE);
            }
            after.push(a);
        }
        Ok(())
    }

    fn cuGraphAddDependencies_v2(
        graph: Handle,
        from: *const Handle,
        to: *const Handle,
        _edges: *const c_void,
        n: usize,
    ) {
        let code = cuGraphAddDependencies(graph, from, to, n);
        if code == 0 { Ok(()) } else { Err(Error(code)) }
    }

    fn cuGraphRemoveDependencies(graph: Handle, from: *const Handle, to: *const Handle, n: usize) {
        let mut s = state()?;
        s.graphs.get(graph)?;
        for (a, b) in list(from, n).into_iter().zip(list(to, n)) {
            s.nodes.get_mut(b)?.after.retain(|x| *x != a);
        }
        Ok(())
    }

    fn cuGraphRemoveDependencies_v2(
        graph: Handle,
        from: *const Handle,
        to: *const Handle,
        _edges: *const c_void,
        n: usize,
    ) {
        let code = cuGraphRemoveDependencies(graph, from, to, n);
        if code == 0 { Ok(()) } else { Err(Error(code)) }
    }

    fn cuGraphNodeGetDependencies(node: Handle, places: *mut Handle, n: *mut usize) {
        let s = state()?;
        fill(places, n, &s.nodes.get(node)?.after)
    }

    fn cuGraphNodeGetDependencies_v2(node: Handle, places: *mut Handle, _edges: *mut c_void, n: *mut usize) {
        let code = cuGraphNodeGetDependencies(node, places, n);
        if code == 0 { Ok(()) } else { Err(Error(code)) }
    }

    fn cuGraphNodeGetDependentNodes(node: Handle, places: *mut Handle, n: *mut usize) {
        let s = state()?;
        let of: Vec<Handle> = s.nodes.iter().filter(|(_, x)| x.after.contains(&node)).map(|(h, _)| *h).collect();
        fill(places, n, &of)
    }

    fn cuGraphNodeGetDependentNodes_v2(node: Handle, places: *mut Handle, _edges: *mut c_void, n: *mut usize) {
        let code = cuGraphNodeGetDependentNodes(node, places, n);
        if code == 0 { Ok(()) } else { Err(Error(code)) }
    }
}

/// The fields of the older struct of kernel nodes, which has no others.
unsafe fn short(params: *const KernelNode) -> KernelNode {
    let mut p = std::mem::MaybeUninit::<KernelNode>::zeroed();
    let bytes = std::mem::offset_of!(KernelNode, kernel);
    // SAFETY: the older struct has these bytes; the rest is zero, which every field may be.
    unsafe {
        std::ptr::copy_nonoverlapping(params.cast::<u8>(), p.as_mut_ptr().cast::<u8>(), bytes);
        p.assume_init()
    }
}
