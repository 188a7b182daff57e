//! A device: memory that lasts over launches, and launching.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64};

use super::call::{Launch, Options, Report, Target};
use super::counters::Counters;
use super::error::ExecError;
use super::findings::{Check, Finding};
use super::heap::{HEAP_BYTES, Heap};
use super::host_order::HostOrder;
use super::launch::LaunchState;
use super::memory::global::DeviceMemory;
use super::memory::{FUNCTION_WINDOW, SHARED_RESERVED};
use super::program::{Constant, DataSymbol, Lanes, Program, RelocationTarget, WARP};
use super::released::Released;
use super::schedule;

/// Where the variables of a module lie over several launches.
#[derive(Clone, Debug, Default)]
pub struct Variables {
    globals: Vec<u64>,
    bank: u64,
    pieces: Vec<(u64, u64)>,
    names: BTreeMap<String, (u64, u64)>,
}

impl Variables {
    /// Address and bytes of a variable. What is written to a `.const` variable is what the next launch reads.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<(u64, u64)> {
        self.names.get(name).copied()
    }

    /// Address and bytes of each piece of memory that they take.
    pub fn all(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.pieces.iter().copied()
    }
}

/// An emulated GPU: a target and memory that lasts over launches.
pub struct Device {
    target: Target,
    memory: DeviceMemory,
}

impl Device {
    /// A device with 8 GiB of memory; allocations take host memory.
    pub fn new(target: Target) -> Device {
        Device::with_capacity(target, 8 << 30)
    }

    /// A device with room for `bytes`.
    pub fn with_capacity(target: Target, bytes: u64) -> Device {
        Device { target, memory: DeviceMemory::new(bytes) }
    }

    /// The target.
    pub fn target(&self) -> Target {
        self.target
    }

    /// The memory.
    pub fn memory(&self) -> &DeviceMemory {
        &self.memory
    }

    /// The memory, to allocate with special alignment or make multicast groups.
    pub fn memory_mut(&mut self) -> &mut DeviceMemory {
        &mut self.memory
    }

    /// Allocates bytes that nobody has written; the address is a multiple of 256.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn alloc(&mut self, bytes: u64) -> Result<u64, ExecError> {
        self.memory.alloc(bytes, 256)
    }

    /// Frees an allocation.
    ///
    /// # Errors
    /// `Address` when nothing starts there.
    pub fn free(&mut self, address: u64) -> Result<(), ExecError> {
        self.memory.free(address)
    }

    /// Copies bytes to the device.
    ///
    /// # Errors
    /// `Address` when the range is not inside one allocation.
    pub fn upload(&self, address: u64, data: &[u8]) -> Result<(), ExecError> {
        let (a, at) = self.memory.range(address, data.len() as u64)?;
        a.write(at, data);
        Ok(())
    }

    /// Copies bytes from the device; bytes that nobody wrote are 0.
    ///
    /// # Errors
    /// `Address` when the range is not inside one allocation.
    pub fn download(&self, address: u64, bytes: usize) -> Result<Vec<u8>, ExecError> {
        let (a, at) = self.memory.range(address, bytes as u64)?;
        let mut out = vec![0; bytes];
        a.read(at, &mut out);
        Ok(out)
    }

    /// Runs a kernel to its end.
    ///
    /// # Errors
    /// A launch that does not fit, a deadlock, the instruction limit, a fault. Findings of checks are no errors.
    pub fn launch(&mut self, program: &Program, launch: &Launch, options: &Options) -> Result<Report, ExecError> {
        // Module variables get their initial values at every launch.
        self.run(program, launch, options, None)
    }

    /// As [`launch`](Device::launch), with the module's variables where they were placed, as earlier launches left them.
    ///
    /// # Errors
    /// As [`launch`](Device::launch).
    pub fn launch_placed(
        &mut self,
        program: &Program,
        launch: &Launch,
        options: &Options,
        variables: &Variables,
    ) -> Result<Report, ExecError> {
        self.run(program, launch, options, Some(variables))
    }

    fn run(
        &mut self,
        program: &Program,
        launch: &Launch,
        options: &Options,
        variables: Option<&Variables>,
    ) -> Result<Report, ExecError> {
        let plan = self.plan(program, launch)?;
        let mut globals = variables.map_or_else(Vec::new, |v| v.globals.clone());
        let placed = globals.len();
        let result = self.with_globals(program, launch, options, &plan, &mut globals, variables);
        for address in globals.drain(placed..) {
            self.memory.free(address)?;
        }
        result
    }

    /// Places the variables of a kernel's module in memory, with their initial values.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn place_variables(&mut self, program: &Program) -> Result<Variables, ExecError> {
        let of_module = &program.globals[..program.n_module_globals];
        let mut globals = Vec::new();
        for g in of_module {
            globals.push(self.memory.alloc(g.bytes.len() as u64, g.align)?);
        }
        for (g, address) in of_module.iter().zip(&globals) {
            self.upload(*address, &relocated(g, &globals))?;
        }
        let bank = self.memory.alloc(program.const_bank.bytes.len() as u64, 256)?;
        self.upload(bank, &relocated(&program.const_bank, &globals))?;
        let of_globals = of_module.iter().zip(&globals).map(|(g, at)| (g.name.clone(), (*at, g.bytes.len() as u64)));
        let of_bank = program.consts.iter().map(|(name, at, n)| (name.clone(), (bank + u64::from(*at), u64::from(*n))));
        let names = of_globals.chain(of_bank).collect();
        let sizes = of_module.iter().map(|g| g.bytes.len() as u64);
        let pieces =
            globals.iter().copied().zip(sizes).chain([(bank, program.const_bank.bytes.len() as u64)]).collect();
        Ok(Variables { globals, bank, pieces, names })
    }

    /// Frees the variables of a module.
    ///
    /// # Errors
    /// `Address` when they were freed before.
    pub fn free_variables(&mut self, variables: &Variables) -> Result<(), ExecError> {
        variables.globals.iter().chain([&variables.bank]).try_for_each(|address| self.memory.free(*address))
    }

    fn plan(&self, program: &Program, launch: &Launch) -> Result<Plan, ExecError> {
        let refuse = |message: String| Err(ExecError::Launch { kernel: program.entry.clone(), message });
        if !self.target.runs(program.target) {
            return refuse(format!("code for {} does not run on {}", program.target, self.target));
        }
        let product = |v: [u32; 3]| v.iter().map(|n| u64::from(*n)).product::<u64>();
        let threads = product(launch.block);
        if threads == 0 || threads > 1024 {
            return refuse(format!("{threads} threads in a block (1 to 1024)"));
        }
        if product(launch.grid) == 0 || launch.grid[0] > 0x7fff_ffff || launch.grid[1] > 65535 || launch.grid[2] > 65535
        {
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
        if size == 0 || size > 16 || (size > 1 && self.target.sm < 90) {
            return refuse(format!("clusters of {size} CTAs"));
        }
        if (0..3).any(|d| !launch.grid[d].is_multiple_of(cluster[d])) {
            return refuse(format!("grid {:?} is not a multiple of the cluster {cluster:?}", launch.grid));
        }
        // Compilers rely on swizzle atoms of 1024 bytes starting with the dynamic part.
        let static_end = SHARED_RESERVED + program.static_shared_bytes;
        let dynamic_start = static_end.div_ceil(1024.max(program.dynamic_align)) * 1024.max(program.dynamic_align);
        let used = u64::from(program.static_shared_bytes) + u64::from(launch.dynamic_smem_bytes);
        if used > u64::from(self.target.max_shared_bytes()) {
            return refuse(format!(
                "{used} bytes of shared memory; {} has {}",
                self.target,
                self.target.max_shared_bytes()
            ));
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

    fn with_globals(
        &mut self,
        program: &Program,
        launch: &Launch,
        options: &Options,
        plan: &Plan,
        globals: &mut Vec<u64>,
        variables: Option<&Variables>,
    ) -> Result<Report, ExecError> {
        let placed = globals.len();
        for g in program.globals.iter().skip(placed) {
            globals.push(self.memory.alloc(g.bytes.len() as u64, g.align)?);
        }
        for (i, (g, address)) in program.globals.iter().zip(globals.iter()).enumerate() {
            let bytes = relocated(g, globals);
            if i >= placed {
                self.upload(*address, &bytes)?;
                continue;
            }
            // Functions are numbered anew in each kernel.
            for r in g.relocations.iter().filter(|r| matches!(r.target, RelocationTarget::Function(_))) {
                self.upload(*address + r.at as u64, &bytes[r.at..r.at + r.bytes])?;
            }
        }
        let const_bank = match variables {
            None => relocated(&program.const_bank, globals),
            Some(v) => {
                let mut bank = self.download(v.bank, program.const_bank.bytes.len())?;
                let anew = relocated(&program.const_bank, globals);
                for r in program.const_bank.relocations.iter() {
                    if matches!(r.target, RelocationTarget::Function(_)) {
                        bank[r.at..r.at + r.bytes].copy_from_slice(&anew[r.at..r.at + r.bytes]);
                    }
                }
                bank
            }
        };
        let threads: u32 = launch.block.iter().product();
        let size: u32 = plan.cluster.iter().product();
        let constant = |c: &Constant| -> u64 {
            match *c {
                Constant::Bits(b) => b,
                Constant::Global(index, offset) => globals[index].wrapping_add_signed(offset),
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
        if options.counters {
            self.memory.forget_traffic();
        }
        self.memory.forget_accesses();
        let heap_base = if program.uses_heap { self.memory.alloc(HEAP_BYTES, 256)? } else { 0 };
        if program.uses_heap {
            globals.push(heap_base);
        }
        let host_threads = if options.threads == 0 {
            std::thread::available_parallelism().map_or(1, usize::from)
        } else {
            options.threads
        };
        let state = LaunchState {
            host_order: HostOrder::new(host_threads),
            program,
            memory: &self.memory,
            options,
            grid: launch.grid,
            block: launch.block,
            cluster: plan.cluster,
            params: plan.params.clone(),
            constants,
            const_bank,
            shared_bytes: plan.shared_bytes,
            dynamic_start: plan.dynamic_start,
            next_cluster: AtomicU64::new(0),
            n_clusters: launch.grid.iter().map(|n| u64::from(*n)).product::<u64>() / u64::from(size),
            executed: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            orders_global: options.checks.races && launch.grid.iter().any(|n| *n > 1),
            released: Released::default(),
            wide: Mutex::new(()),
            heap: Heap::default(),
            heap_base,
        };
        let workers = schedule::run(&state, host_threads)?;
        let mut report = collect(program, workers);
        if options.counters {
            report.traffic = self.memory.traffic();
            for t in &report.traffic {
                report.counters.dram_read_bytes += t.loads.once_bytes;
                report.counters.dram_write_bytes += t.stores.once_bytes;
                report.counters.l2_footprint_bytes += t.footprint_bytes;
            }
        }
        Ok(report)
    }
}

struct Plan {
    cluster: [u32; 3],
    dynamic_start: u32,
    shared_bytes: u32,
    params: Vec<u8>,
}

/// A symbol's bytes with addresses filled in.
fn relocated(symbol: &DataSymbol, globals: &[u64]) -> Vec<u8> {
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

/// Joins the findings of one host thread with those of the others.
fn merge(all: &mut BTreeMap<(u32, Check), Finding>, some: BTreeMap<(u32, Check), Finding>) {
    for (key, finding) in some {
        match all.entry(key) {
            Entry::Vacant(v) => {
                v.insert(finding);
            }
            Entry::Occupied(mut o) => {
                let known = o.get_mut();
                let count = known.count + finding.count;
                // The occurrence of the lowest block is shown, whichever thread met it.
                if finding.block.iter().rev().lt(known.block.iter().rev()) {
                    *known = finding;
                }
                known.count = count;
            }
        }
    }
}

fn collect(program: &Program, workers: Vec<super::worker::Worker>) -> Report {
    let mut findings = BTreeMap::new();
    let mut notes = BTreeMap::new();
    let mut printed = String::new();
    let mut counters = Counters::default();
    let mut profile = vec![(0u64, 0u64); program.code.len()];
    for w in workers {
        counters.add(&w.counters);
        counters.async_operations += w.async_issued;
        for (sum, n) in profile.iter_mut().zip(&w.executed) {
            sum.0 += n.0;
            sum.1 += n.1;
        }
        printed.push_str(&w.printed);
        merge(&mut findings, w.findings);
        merge(&mut notes, w.notes);
    }
    for (n, source) in profile.iter().zip(&program.source) {
        if n.0 > 0 {
            counters.warp_instructions += n.0;
            counters.lane_instructions += n.1;
            *counters.by_class.entry(source.class).or_default() += n.0;
        }
    }
    let (findings, notes) = (findings.into_values().collect(), notes.into_values().collect());
    let instructions = counters.lane_instructions;
    Report { findings, notes, printed, instructions, counters, profile, traffic: Vec::new() }
}
