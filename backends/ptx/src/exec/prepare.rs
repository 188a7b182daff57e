//! A launch before it runs: checked, its variables placed, its constants known.

use std::sync::atomic::AtomicU64;

use super::call::{Launch, Options, Target};
use super::device::Variables;
use super::error::ExecError;
use super::heap::{HEAP_BYTES, Heap};
use super::launch::LaunchState;
use super::memory::global::DeviceMemory;
use super::memory::{FUNCTION_WINDOW, SHARED_RESERVED};
use super::program::{Constant, DataSymbol, Lanes, Program, RelocationTarget, WARP};
use super::run::{Run, Span};

/// What a launch asks for, checked.
pub(crate) struct Plan {
    pub cluster: [u32; 3],
    dynamic_start: u32,
    shared_bytes: u32,
    params: Vec<u8>,
}

/// What a launch has of device memory.
#[derive(Default)]
pub(crate) struct Placed {
    /// Variables of the module, then those of the kernel, then the heap.
    pub globals: Vec<u64>,
    const_bank: Vec<u8>,
    heap_base: u64,
}

/// A launch that is ready to run.
pub(crate) struct Ready<'a> {
    pub program: &'a Program,
    pub launch: &'a Launch,
    pub plan: Plan,
    pub placed: Placed,
    pub rank: u32,
}

/// Checks a launch against its kernel and the target.
///
/// # Errors
/// `Launch`.
pub(crate) fn plan(target: Target, program: &Program, launch: &Launch) -> Result<Plan, ExecError> {
    let refuse = |message: String| Err(ExecError::Launch { kernel: program.entry.clone(), message });
    if !target.runs(program.target) {
        return refuse(format!("code for {} does not run on {}", program.target, target));
    }
    let product = |v: [u32; 3]| v.iter().map(|n| u64::from(*n)).product::<u64>();
    let threads = product(launch.block);
    if threads == 0 || threads > 1024 {
        return refuse(format!("{threads} threads in a block (1 to 1024)"));
    }
    if product(launch.grid) == 0 || launch.grid[0] > 0x7fff_ffff || launch.grid[1] > 65535 || launch.grid[2] > 65535 {
        return refuse(format!("grid {:?}", launch.grid));
    }
    if let Some(required) = program.required_block
        && required != launch.block
    {
        return refuse(format!("block {:?}, but the kernel requires {required:?} (.reqntid)", launch.block));
    }
    if let Some(max) = program.max_block.filter(|m| threads > u64::from(*m)) {
        return refuse(format!("{threads} threads in a block, but the kernel allows {max} (.maxntid)"));
    }
    let cluster = match program.required_cluster {
        Some(required) if launch.cluster == [1; 3] || launch.cluster == required => required,
        Some(required) => {
            return refuse(format!(
                "clusters of {:?}, but the kernel requires {required:?} (.reqnctapercluster)",
                launch.cluster
            ));
        }
        None => launch.cluster,
    };
    let size = product(cluster);
    if size == 0 || size > 16 || (size > 1 && target.sm < 90) {
        return refuse(format!("clusters of {size} CTAs"));
    }
    if (0..3).any(|d| !launch.grid[d].is_multiple_of(cluster[d])) {
        return refuse(format!("grid {:?} is not a multiple of the cluster {cluster:?}", launch.grid));
    }
    // Compilers rely on swizzle atoms of 1024 bytes starting with the dynamic part.
    let static_end = SHARED_RESERVED + program.static_shared_bytes;
    let dynamic_start = static_end.div_ceil(1024.max(program.dynamic_align)) * 1024.max(program.dynamic_align);
    let used = u64::from(program.static_shared_bytes) + u64::from(launch.dynamic_smem_bytes);
    if used > u64::from(target.max_shared_bytes()) {
        return refuse(format!("{used} bytes of shared memory; {} has {}", target, target.max_shared_bytes()));
    }
    let shared_bytes = if launch.dynamic_smem_bytes == 0 {
        program.static_shared_bytes
    } else {
        dynamic_start - SHARED_RESERVED + launch.dynamic_smem_bytes
    };
    if launch.params.len() != program.params.len() {
        return refuse(format!("{} arguments for {} parameters", launch.params.len(), program.params.len()));
    }
    let mut params = vec![0u8; program.param_bytes as usize];
    for (n, (arg, (at, bytes))) in launch.params.iter().zip(&program.params).enumerate() {
        let data = arg.bytes();
        if data.len() != *bytes as usize {
            return refuse(format!("argument {n} has {} bytes, the parameter {bytes}", data.len()));
        }
        params[*at as usize..(*at + *bytes) as usize].copy_from_slice(&data);
    }
    Ok(Plan { cluster, dynamic_start, shared_bytes, params })
}

/// Places the variables that a launch needs, and gives them their values; those of `variables` are where they were. What was placed
/// is in `placed` after an error too.
///
/// # Errors
/// `OutOfMemory`.
pub(crate) fn place(
    memory: &mut DeviceMemory,
    program: &Program,
    variables: Option<&Variables>,
    placed: &mut Placed,
) -> Result<(), ExecError> {
    placed.globals = variables.map_or_else(Vec::new, |v| v.globals.clone());
    let n_given = placed.globals.len();
    for g in program.globals.iter().skip(n_given) {
        placed.globals.push(memory.alloc(g.bytes.len() as u64, g.align)?);
    }
    let globals = &placed.globals;
    for (i, (g, address)) in program.globals.iter().zip(globals).enumerate() {
        let bytes = relocated(g, globals);
        if i >= n_given {
            memory.upload(*address, &bytes)?;
            continue;
        }
        // Functions are numbered anew in each kernel.
        for r in g.relocations.iter().filter(|r| matches!(r.target, RelocationTarget::Function(_))) {
            memory.upload(*address + r.at as u64, &bytes[r.at..r.at + r.bytes])?;
        }
    }
    placed.const_bank = relocated(&program.const_bank, globals);
    if let Some(v) = variables {
        let mut bank = memory.download(v.bank, program.const_bank.bytes.len())?;
        for r in program.const_bank.relocations.iter().filter(|r| matches!(r.target, RelocationTarget::Function(_))) {
            let piece = r.at..r.at + r.bytes;
            bank[piece.clone()].copy_from_slice(&placed.const_bank[piece]);
        }
        placed.const_bank = bank;
    }
    if program.uses_heap {
        placed.heap_base = memory.alloc(HEAP_BYTES, 256)?;
        placed.globals.push(placed.heap_base);
    }
    Ok(())
}

impl<'a> Ready<'a> {
    /// The launch in the numbering of the run.
    pub fn span(&self, first: u64, step: u32) -> Span {
        Span {
            first,
            rank: self.rank,
            step,
            kernel: self.program.entry.clone(),
            grid: self.launch.grid,
            cluster: self.plan.cluster,
            warps_per_cta: self.launch.block.iter().product::<u32>().div_ceil(WARP as u32),
        }
    }

    pub fn n_clusters(&self) -> u64 {
        let size: u32 = self.plan.cluster.iter().product();
        self.launch.grid.iter().map(|n| u64::from(*n)).product::<u64>() / u64::from(size)
    }

    /// What is fixed for the whole of the launch, whose first cluster has the number `first`.
    pub fn state(
        self,
        run: &'a Run,
        memory: &'a DeviceMemory,
        options: &'a Options,
        (first, step): (u64, u32),
    ) -> LaunchState<'a> {
        let n_clusters = self.n_clusters();
        let Ready { program, launch, plan, placed, rank } = self;
        let threads: u32 = launch.block.iter().product();
        let size: u32 = plan.cluster.iter().product();
        let constant = |c: &Constant| -> u64 {
            match *c {
                Constant::Bits(b) => b,
                Constant::Global(index, offset) => placed.globals[index].wrapping_add_signed(offset),
                Constant::GridDim(d) => u64::from(launch.grid[d as usize]),
                Constant::BlockDim(d) => u64::from(launch.block[d as usize]),
                Constant::ClusterDim(d) => u64::from(plan.cluster[d as usize]),
                Constant::ClusterSize => u64::from(size),
                Constant::GridClusters(d) => u64::from(launch.grid[d as usize] / plan.cluster[d as usize]),
                Constant::WarpCount => u64::from(threads.div_ceil(WARP as u32)),
                Constant::DynamicSharedBytes => u64::from(launch.dynamic_smem_bytes),
                Constant::TotalSharedBytes => u64::from(plan.shared_bytes),
            }
        };
        let constants: Vec<Lanes> = program.constants.iter().map(|c| [constant(c); WARP]).collect();
        let several = launch.grid.iter().any(|n| *n > 1) || run.has_ranks();
        LaunchState {
            run,
            rank,
            step,
            first,
            program,
            memory,
            options,
            grid: launch.grid,
            block: launch.block,
            cluster: plan.cluster,
            params: plan.params,
            constants,
            const_bank: placed.const_bank,
            shared_bytes: plan.shared_bytes,
            dynamic_start: plan.dynamic_start,
            next_cluster: AtomicU64::new(0),
            n_clusters,
            orders_global: options.checks.races && several,
            heap: Heap::default(),
            heap_base: placed.heap_base,
        }
    }
}

/// A symbol's bytes with addresses filled in.
pub(crate) fn relocated(symbol: &DataSymbol, globals: &[u64]) -> Vec<u8> {
    let mut bytes = symbol.bytes.clone();
    for r in &symbol.relocations {
        let value = match r.target {
            RelocationTarget::Global(i) => globals.get(i).copied().unwrap_or(0),
            RelocationTarget::Const(c) => c,
            RelocationTarget::Function(n) => FUNCTION_WINDOW + u64::from(n) * 16,
        };
        let value = (value.wrapping_add_signed(r.addend) >> r.shift).to_le_bytes();
        bytes[r.at..r.at + r.bytes].copy_from_slice(&value[..r.bytes]);
    }
    bytes
}
