//! How many blocks fit a multiprocessor.

use crate::call::*;
use crate::state::{Function, State, state};
use crate::structs::{Handle, LaunchConfig};
use moec_ptx::exec::Launch;
use std::ffi::{c_int, c_uint};

impl State {
    /// Blocks of a kernel that a multiprocessor holds: by threads, registers, shared memory and the limit of blocks.
    fn blocks(&self, f: &Function, threads: u32, dynamic: usize, device: usize) -> u32 {
        let chip = &self.gpus[device].chip;
        let most = f.program.max_threads().unwrap_or(1024);
        if threads == 0 || threads > most {
            return 0;
        }
        let warps = threads.div_ceil(32);
        let by_threads = chip.threads_per_multiprocessor() / (warps * 32);
        // Registers are given to warps in units of 256.
        let by_registers = 65536 / (warps * (f.registers() * 32).next_multiple_of(256));
        let shared = (f.program.static_shared_bytes() as usize + dynamic + 1024).next_multiple_of(128);
        let by_shared = chip.shared_per_multiprocessor() as usize / shared;
        by_threads.min(by_registers).min(by_shared as u32).min(chip.blocks_per_multiprocessor())
    }

    /// Blocks of a launch that a multiprocessor holds at once.
    pub fn resident_blocks(&self, function: Handle, launch: &Launch, device: usize) -> Result<u32, Error> {
        let threads = launch.block.iter().product();
        Ok(self.blocks(self.functions.get(function)?, threads, launch.dynamic_smem_bytes as usize, device))
    }
}

unsafe fn best(
    grid: *mut c_int,
    block: *mut c_int,
    function: Handle,
    dynamic: Option<unsafe extern "C" fn(c_int) -> usize>,
    fixed: usize,
    limit: c_int,
) -> Call {
    // SAFETY: the function is the program's, and made for this.
    let bytes = |threads: u32| dynamic.map_or(fixed, |f| unsafe { f(threads as c_int) });
    let s = state()?;
    let device = s.device()?;
    let f = s.functions.get(function)?;
    let most = f.program.max_threads().unwrap_or(1024);
    let most = if limit > 0 { most.min(limit as u32) } else { most };
    let score = |threads: &u32| (s.blocks(f, *threads, bytes(*threads), device) * threads, *threads);
    let threads = (1..=most / 32).map(|w| w * 32).max_by_key(score).unwrap_or(most);
    let blocks = s.blocks(f, threads, bytes(threads), device);
    // SAFETY: the caller's contract.
    unsafe {
        put(grid, blocks as c_int * s.gpus[device].chip.multiprocessors)?;
        put(block, threads as c_int)
    }
}

api! {
    fn cuOccupancyMaxActiveBlocksPerMultiprocessor(n: *mut c_int, function: Handle, threads: c_int, dynamic: usize) {
        let s = state()?;
        let device = s.device()?;
        put(n, s.blocks(s.functions.get(function)?, threads.max(0) as u32, dynamic, device) as c_int)
    }

    fn cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(
        n: *mut c_int,
        function: Handle,
        threads: c_int,
        dynamic: usize,
        _flags: c_uint,
    ) {
        let code = cuOccupancyMaxActiveBlocksPerMultiprocessor(n, function, threads, dynamic);
        if code == 0 { Ok(()) } else { Err(Error(code)) }
    }

    fn cuOccupancyMaxPotentialBlockSize(
        grid: *mut c_int,
        block: *mut c_int,
        function: Handle,
        dynamic: Option<unsafe extern "C" fn(c_int) -> usize>,
        fixed: usize,
        limit: c_int,
    ) {
        best(grid, block, function, dynamic, fixed, limit)
    }

    fn cuOccupancyMaxPotentialBlockSizeWithFlags(
        grid: *mut c_int,
        block: *mut c_int,
        function: Handle,
        dynamic: Option<unsafe extern "C" fn(c_int) -> usize>,
        fixed: usize,
        limit: c_int,
        _flags: c_uint,
    ) {
        best(grid, block, function, dynamic, fixed, limit)
    }

    fn cuOccupancyAvailableDynamicSMemPerBlock(bytes: *mut usize, function: Handle, blocks: c_int, _threads: c_int) {
        let s = state()?;
        let chip = &s.gpus[s.device()?].chip;
        let fixed = s.functions.get(function)?.program.static_shared_bytes() as usize + 1024;
        let each = chip.shared_per_multiprocessor() as usize / blocks.max(1) as usize;
        put(bytes, each.saturating_sub(fixed).min(chip.target().max_shared_bytes() as usize))
    }

    fn cuOccupancyMaxActiveClusters(n: *mut c_int, function: Handle, config: *const LaunchConfig) {
        let s = state()?;
        let device = s.device()?;
        let c = &*config;
        let mut shape = super::launch::Shape::default();
        if c.n_attributes > 0 {
            shape.attributes(std::slice::from_raw_parts(c.attributes, c.n_attributes as usize))?;
        }
        let f = s.functions.get(function)?;
        let cluster = shape.cluster.or(f.program.required_cluster()).unwrap_or([1; 3]);
        let blocks = s.blocks(f, c.block.iter().product(), c.shared_bytes as usize, device);
        // Clusters do not cross the groups of multiprocessors, whose sizes differ from one machine to the next; this takes
        // groups of 16, as the largest cluster needs.
        let groups = s.gpus[device].chip.multiprocessors as u32 / 16;
        put(n, (groups * (16 * blocks / cluster.iter().product::<u32>().max(1))) as c_int)
    }

    fn cuOccupancyMaxPotentialClusterSize(n: *mut c_int, function: Handle, _config: *const LaunchConfig) {
        let s = state()?;
        let allowed = s.functions.get(function)?.attributes.get(&super::kernel::NON_PORTABLE_CLUSTER);
        put(n, if allowed.is_some_and(|v| *v != 0) { 16 } else { 8 })
    }
}
