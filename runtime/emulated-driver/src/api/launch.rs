//! Launches of kernels and of host functions.

use super::kernel::{MAX_DYNAMIC_SHARED, NON_PORTABLE_CLUSTER, USUAL_SHARED};
use crate::call::*;
use crate::state::{State, state};
use crate::structs::{Handle, HostFn, LaunchAttribute, LaunchConfig};
use crate::work::{HostData, Kernel, Work, submit};
use moec_ptx::exec::{Launch, Param};
use std::ffi::{c_uint, c_void};

/// What a launch asks for besides its kernel and arguments.
#[derive(Default)]
pub struct Shape {
    pub grid: [u32; 3],
    pub block: [u32; 3],
    pub shared_bytes: u32,
    pub cluster: Option<[u32; 3]>,
    pub cooperative: bool,
    pub events: Vec<Handle>,
}

impl Shape {
    /// Takes launch attributes in.
    pub fn attributes(&mut self, list: &[LaunchAttribute]) -> Call {
        for a in list {
            let v = &a.value.0;
            match a.id {
                2 => self.cooperative = v[0] != 0,
                4 => self.cluster = Some([v[0], v[1], v[2]]),
                // An event that the kernel triggers, or that its start does: the kernel is done when the call returns.
                7 | 12 => self.events.push(a.value.handle()),
                // Hints about caches, priority, overlap with the kernel before, domains, carveout.
                0 | 1 | 3 | 5 | 6 | 8..=11 | 14..=18 => {}
                other => {
                    tell(&format!("launch attribute {other} is not in the emulated driver"));
                    return Err(NOT_SUPPORTED);
                }
            }
        }
        Ok(())
    }
}

/// The arguments of a kernel: a pointer to each, or all in one buffer.
unsafe fn arguments(
    params: &[(u32, u32)],
    each: *const *const u8,
    extra: *const *const c_void,
) -> Result<Vec<Param>, Error> {
    let piece = |start: *const u8, n: u32| {
        // SAFETY: the program gives as many bytes as the parameter has.
        Param::Bytes(unsafe { std::slice::from_raw_parts(start, n as usize) }.to_vec())
    };
    if !each.is_null() {
        // SAFETY: the program gives a pointer for each parameter.
        let pointers = (0..params.len()).map(|i| unsafe { *each.add(i) });
        return params
            .iter()
            .zip(pointers)
            .map(|((_, n), at)| if at.is_null() { Err(INVALID_VALUE) } else { Ok(piece(at, *n)) })
            .collect();
    }
    if params.is_empty() {
        return Ok(Vec::new());
    }
    if extra.is_null() {
        return Err(INVALID_VALUE);
    }
    let (mut buffer, mut bytes, mut i) = (std::ptr::null::<u8>(), 0, 0);
    loop {
        // SAFETY: the list ends with a 0; 1 is followed by the buffer, 2 by a pointer to its size.
        unsafe {
            match *extra.add(i) as usize {
                0 => break,
                1 => buffer = (*extra.add(i + 1)).cast(),
                2 => bytes = *(*extra.add(i + 1)).cast::<usize>(),
                _ => return Err(INVALID_VALUE),
            }
        }
        i += 2;
    }
    let end = params.iter().map(|(at, n)| (at + n) as usize).max().unwrap_or(0);
    if buffer.is_null() || bytes < end {
        return Err(INVALID_VALUE);
    }
    // SAFETY: the buffer has `bytes`, and parameters end before.
    Ok(params.iter().map(|(at, n)| piece(unsafe { buffer.add(*at as usize) }, *n)).collect())
}

impl State {
    /// A launch, checked as the driver does before anything runs.
    pub unsafe fn kernel_work(
        &self,
        function: Handle,
        shape: &Shape,
        each: *const *const u8,
        extra: *const *const c_void,
    ) -> Result<Kernel, Error> {
        let f = self.functions.get(function)?;
        let program = &f.program;
        let refuse = |error: Error, why: String| {
            tell(&format!("launch of `{}`: {why}", program.entry()));
            Err(error)
        };
        let allowed = f.attributes.get(&MAX_DYNAMIC_SHARED).map_or(0, |v| *v as u32);
        let usual = USUAL_SHARED.saturating_sub(program.static_shared_bytes());
        if shape.shared_bytes > allowed.max(usual) {
            return refuse(
                INVALID_VALUE,
                format!(
                    "{} bytes of dynamic shared memory; above {usual}, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES has to be set",
                    shape.shared_bytes
                ),
            );
        }
        let set = |which| f.attributes.get(&which).map_or(0, |v| *v as u32);
        let by_attribute = [set(11), set(12), set(13)];
        let chosen = by_attribute.iter().any(|n| *n > 0).then(|| by_attribute.map(|n| n.max(1)));
        let cluster = shape.cluster.or(program.required_cluster()).or(chosen).unwrap_or([1; 3]);
        let blocks: u32 = cluster.iter().product();
        if blocks > 8 && set(NON_PORTABLE_CLUSTER) == 0 {
            return refuse(
                INVALID_CLUSTER_SIZE,
                format!(
                    "clusters of {blocks} blocks; above 8, CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED has to be set"
                ),
            );
        }
        // SAFETY: the caller's contract.
        let params = unsafe { arguments(program.params(), each, extra)? };
        let launch =
            Launch { grid: shape.grid, block: shape.block, cluster, dynamic_smem_bytes: shape.shared_bytes, params };
        Ok(Kernel { function, launch, cooperative: shape.cooperative, events: shape.events.clone() })
    }
}

unsafe fn launch(
    function: Handle,
    shape: &Shape,
    stream: Handle,
    each: *const *const u8,
    extra: *const *const c_void,
) -> Call {
    // SAFETY: the caller's contract.
    let kernel = unsafe { state()?.kernel_work(function, shape, each, extra)? };
    submit(stream, Work::Kernel(Box::new(kernel)))
}

api! {
    fn cuLaunchKernel(
        function: Handle,
        gx: c_uint,
        gy: c_uint,
        gz: c_uint,
        bx: c_uint,
        by: c_uint,
        bz: c_uint,
        shared_bytes: c_uint,
        stream: Handle,
        params: *const *const u8,
        extra: *const *const c_void,
    ) {
        let shape = Shape { grid: [gx, gy, gz], block: [bx, by, bz], shared_bytes, ..Shape::default() };
        launch(function, &shape, stream, params, extra)
    }

    fn cuLaunchCooperativeKernel(
        function: Handle,
        gx: c_uint,
        gy: c_uint,
        gz: c_uint,
        bx: c_uint,
        by: c_uint,
        bz: c_uint,
        shared_bytes: c_uint,
        stream: Handle,
        params: *const *const u8,
    ) {
        let (grid, block) = ([gx, gy, gz], [bx, by, bz]);
        let shape = Shape { grid, block, shared_bytes, cooperative: true, ..Shape::default() };
        launch(function, &shape, stream, params, std::ptr::null())
    }

    fn cuLaunchKernelEx(
        config: *const LaunchConfig,
        function: Handle,
        params: *const *const u8,
        extra: *const *const c_void,
    ) {
        let c = &*config;
        let mut shape = Shape { grid: c.grid, block: c.block, shared_bytes: c.shared_bytes, ..Shape::default() };
        if c.n_attributes > 0 {
            shape.attributes(std::slice::from_raw_parts(c.attributes, c.n_attributes as usize))?;
        }
        launch(function, &shape, c.stream, params, extra)
    }

    fn cuLaunchHostFunc(stream: Handle, function: Option<HostFn>, data: *mut c_void) {
        submit(stream, Work::Host(function.ok_or(INVALID_VALUE)?, HostData(data)))
    }
}
