//! Graphs as a whole: making, instantiating, launching, updating.

use crate::call::*;
use crate::state::{Exec, Graph, Node, State, Step, is_default, state};
use crate::structs::{Handle, UpdateResult};
use crate::work::{Work, perform};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{c_char, c_uint, c_void};

/// A list of handles that the program gives.
pub unsafe fn list(start: *const Handle, n: usize) -> Vec<Handle> {
    if start.is_null() || n == 0 {
        return Vec::new();
    }
    // SAFETY: the program gives `n` of them.
    unsafe { std::slice::from_raw_parts(start, n) }.to_vec()
}

/// Fills a list of the program, or says how long it would be.
pub unsafe fn fill(place: *mut Handle, n: *mut usize, items: &[Handle]) -> Call {
    if n.is_null() {
        return Err(INVALID_VALUE);
    }
    if !place.is_null() {
        // SAFETY: there is room for as many as the program says.
        unsafe {
            let room = *n;
            items.iter().take(room).enumerate().for_each(|(i, item)| *place.add(i) = *item);
            (items.len()..room).for_each(|i| *place.add(i) = 0);
        }
    }
    // SAFETY: not null.
    unsafe { *n = items.len() };
    Ok(())
}

impl State {
    /// Destroys a graph and its nodes.
    pub fn destroy_graph(&mut self, graph: Handle) -> Call {
        for node in self.graphs.remove(graph)?.nodes {
            self.nodes.remove(node)?;
        }
        Ok(())
    }

    /// Nodes of a graph in an order that dependencies allow: among those that may come next, the oldest does.
    fn ordered(&self, graph: Handle) -> Result<Vec<Handle>, Error> {
        let nodes = &self.graphs.get(graph)?.nodes;
        let (mut done, mut order) = (BTreeSet::new(), Vec::with_capacity(nodes.len()));
        while order.len() < nodes.len() {
            let before = order.len();
            for node in nodes {
                if !done.contains(node) && self.nodes.get(*node)?.after.iter().all(|n| done.contains(n)) {
                    done.insert(*node);
                    order.push(*node);
                }
            }
            if order.len() == before {
                // A circle.
                return Err(INVALID_VALUE);
            }
        }
        Ok(order)
    }

    fn steps(&self, graph: Handle) -> Result<Vec<Step>, Error> {
        let step = |node| {
            let n = self.nodes.get(node)?;
            Ok(Step { node, work: self.flattened(&n.work)?, context: n.context, enabled: true })
        };
        self.ordered(graph)?.into_iter().map(step).collect()
    }

    /// Work whose child graphs have the work that they have now.
    fn flattened(&self, work: &Work) -> Result<Work, Error> {
        let Work::Child(graph, _) = work else { return Ok(work.clone()) };
        let steps = self.steps(*graph)?.into_iter().map(|s| (s.work, s.context)).collect();
        Ok(Work::Child(*graph, steps))
    }

    /// A copy of a graph, with nodes of its own.
    pub fn cloned(&mut self, graph: Handle) -> Result<Handle, Error> {
        let order = self.graphs.get(graph)?.nodes.clone();
        let copy = self.graphs.add(Graph::default());
        let mut of = BTreeMap::new();
        for node in &order {
            let n = self.nodes.get(*node)?;
            let (work, context) = (n.work.clone(), n.context);
            of.insert(*node, self.nodes.add(Node { graph: copy, work, after: Vec::new(), context }));
        }
        for node in &order {
            let after = self.nodes.get(*node)?.after.iter().filter_map(|n| of.get(n).copied()).collect();
            let mine = of[node];
            self.nodes.get_mut(mine)?.after = after;
            self.graphs.get_mut(copy)?.nodes.push(mine);
        }
        Ok(copy)
    }

    fn instantiate(&mut self, graph: Handle, flags: u64) -> Result<Handle, Error> {
        // 1: free memory at launch; 2: upload; 4: launch from the device, which excludes 1; 8: priorities of nodes.
        if flags > 0xf || flags & 5 == 5 {
            return Err(INVALID_VALUE);
        }
        let steps = self.steps(graph)?;
        Ok(self.execs.add(Exec { steps, flags }))
    }

    /// Takes the work of a graph over into an executable one of the same form.
    fn update(&mut self, exec: Handle, graph: Handle) -> Result<Result<(), (c_uint, Handle)>, Error> {
        let steps = self.steps(graph)?;
        let known = self.execs.get_mut(exec)?;
        if steps.len() != known.steps.len() {
            // The topology differs.
            return Ok(Err((2, 0)));
        }
        for (old, new) in known.steps.iter().zip(&steps) {
            if std::mem::discriminant(&old.work) != std::mem::discriminant(&new.work) {
                return Ok(Err((3, new.node)));
            }
        }
        for (old, new) in known.steps.iter_mut().zip(steps) {
            (old.work, old.context) = (new.work, new.context);
        }
        Ok(Ok(()))
    }
}

/// Launches an executable graph, or puts it into a capture as a child.
fn launch(exec: Handle, stream: Handle) -> Call {
    let steps: Vec<(Work, Handle)> = {
        let s = state()?;
        let steps = &s.execs.get(exec)?.steps;
        steps.iter().filter(|s| s.enabled).map(|s| (s.work.clone(), s.context)).collect()
    };
    if !is_default(stream) && state()?.streams.get(stream)?.capture.is_some() {
        return Err(STREAM_CAPTURE_UNSUPPORTED);
    }
    state()?.context_of(stream)?;
    steps.iter().try_for_each(|(work, context)| perform(work, *context))
}

api! {
    fn cuGraphCreate(place: *mut Handle, _flags: c_uint) {
        let graph = state()?.graphs.add(Graph::default());
        put(place, graph)
    }

    fn cuGraphDestroy(graph: Handle) {
        state()?.destroy_graph(graph)
    }

    fn cuGraphClone(place: *mut Handle, graph: Handle) {
        let copy = state()?.cloned(graph)?;
        put(place, copy)
    }

    fn cuGraphInstantiateWithFlags(place: *mut Handle, graph: Handle, flags: u64) {
        let exec = state()?.instantiate(graph, flags)?;
        put(place, exec)
    }

    fn cuGraphInstantiateWithParams(place: *mut Handle, graph: Handle, params: *mut u64) {
        // Flags, stream, node with an error, result.
        let exec = state()?.instantiate(graph, *params)?;
        *params.add(2) = 0;
        *params.add(3) = 0;
        put(place, exec)
    }

    fn cuGraphInstantiate_v2(
        place: *mut Handle,
        graph: Handle,
        error: *mut Handle,
        _log: *mut c_char,
        _bytes: usize,
    ) {
        put_if(error, 0);
        let exec = state()?.instantiate(graph, 0)?;
        put(place, exec)
    }

    fn cuGraphExecDestroy(exec: Handle) {
        state()?.execs.remove(exec).map(|_| ())
    }

    fn cuGraphExecGetFlags(exec: Handle, flags: *mut u64) {
        put(flags, state()?.execs.get(exec)?.flags)
    }

    fn cuGraphUpload(exec: Handle, stream: Handle) {
        let s = state()?;
        s.execs.get(exec)?;
        s.context_of(stream).map(|_| ())
    }

    fn cuGraphLaunch(exec: Handle, stream: Handle) {
        launch(exec, stream)
    }

    fn cuGraphExecUpdate_v2(exec: Handle, graph: Handle, info: *mut UpdateResult) {
        match state()?.update(exec, graph)? {
            Ok(()) => put(info, UpdateResult { result: 0, error_node: 0, error_from: 0 }),
            Err((result, error_node)) => {
                put(info, UpdateResult { result, error_node, error_from: 0 })?;
                Err(GRAPH_EXEC_UPDATE_FAILURE)
            }
        }
    }

    fn cuGraphGetNodes(graph: Handle, nodes: *mut Handle, n: *mut usize) {
        let s = state()?;
        fill(nodes, n, &s.graphs.get(graph)?.nodes)
    }

    fn cuGraphGetRootNodes(graph: Handle, nodes: *mut Handle, n: *mut usize) {
        let s = state()?;
        let is_root = |h: &&Handle| s.nodes.get(**h).is_ok_and(|n| n.after.is_empty());
        let roots: Vec<Handle> = s.graphs.get(graph)?.nodes.iter().filter(is_root).copied().collect();
        fill(nodes, n, &roots)
    }

    fn cuGraphGetEdges(graph: Handle, from: *mut Handle, to: *mut Handle, n: *mut usize) {
        let s = state()?;
        let mut edges = Vec::new();
        for node in &s.graphs.get(graph)?.nodes {
            edges.extend(s.nodes.get(*node)?.after.iter().map(|before| (*before, *node)));
        }
        let (a, b): (Vec<Handle>, Vec<Handle>) = edges.into_iter().unzip();
        let mut room = if n.is_null() { return Err(INVALID_VALUE) } else { *n };
        fill(from, &mut room, &a)?;
        fill(to, n, &b)
    }

    fn cuGraphGetEdges_v2(graph: Handle, from: *mut Handle, to: *mut Handle, _edges: *mut c_void, n: *mut usize) {
        let code = cuGraphGetEdges(graph, from, to, n);
        if code == 0 { Ok(()) } else { Err(Error(code)) }
    }

    fn cuGraphDebugDotPrint(graph: Handle, path: *const c_char, _flags: c_uint) {
        let s = state()?;
        let mut text = String::from("digraph graph_1 {\n");
        for node in &s.graphs.get(graph)?.nodes {
            let n = s.nodes.get(*node)?;
            text += &format!("  n{node} [label=\"{}\"];\n", super::graph_nodes::kind(&n.work).1);
            n.after.iter().for_each(|before| text += &format!("  n{before} -> n{node};\n"));
        }
        text += "}\n";
        std::fs::write(&*std::ffi::CStr::from_ptr(path).to_string_lossy(), text).map_err(|_| Error(304))
    }
}
