//! A device: memory that lasts over launches, and launching.

use std::collections::BTreeMap;

use super::call::{Launch, Options, Report, Target};
use super::error::ExecError;
use super::memory::global::DeviceMemory;
use super::prepare::{Placed, Ready, place, plan, relocated};
use super::program::Program;
use super::streams::run_streams;

/// Where the variables of a module lie over several launches.
#[derive(Clone, Debug, Default)]
pub struct Variables {
    pub(super) globals: Vec<u64>,
    pub(super) bank: u64,
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
        self.memory.upload(address, data)
    }

    /// Copies bytes from the device; bytes that nobody wrote are 0.
    ///
    /// # Errors
    /// `Address` when the range is not inside one allocation.
    pub fn download(&self, address: u64, bytes: usize) -> Result<Vec<u8>, ExecError> {
        self.memory.download(address, bytes)
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
        let plan = plan(self.target, program, launch)?;
        let mut placed = Placed::default();
        let result = place(&mut self.memory, program, variables, &mut placed);
        let own = placed.globals.get(variables.map_or(0, |v| v.globals.len())..).unwrap_or_default().to_vec();
        let result = result.and_then(|()| {
            let ready = Ready { program, launch, plan, placed, rank: 0 };
            let mut report = run_streams(&mut self.memory, vec![vec![ready]], options)?.concat().remove(0);
            if options.counters {
                report.traffic = self.memory.traffic();
                for t in &report.traffic {
                    report.counters.dram_read_bytes += t.loads.once_bytes;
                    report.counters.dram_write_bytes += t.stores.once_bytes;
                    report.counters.l2_footprint_bytes += t.footprint_bytes;
                }
            }
            Ok(report)
        });
        for address in own {
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
}
