//! What goes into a stream or a graph, and doing it.

use crate::call::*;
use crate::settings::settings;
use crate::state::{Allocation, Kind, Node, State, is_default, state};
use crate::structs::{Handle, HostFn};
use moec_ptx::exec::memory::{HEAP, HEAP_END};
use moec_ptx::exec::{ExecError, Launch, Report, findings};
use std::ffi::c_void;
use std::io::Write;
use std::time::Instant;

/// A thing to do.
#[derive(Clone, Debug)]
pub enum Work {
    Kernel(Box<Kernel>),
    Copy(Box<Copy>),
    Set(Box<Set>),
    Host(HostFn, HostData),
    Record(Handle),
    Wait(Handle),
    /// Memory that was allocated when the node was made.
    Alloc,
    Free(u64),
    /// A child graph: its work in order.
    Child(Handle, Vec<(Work, Handle)>),
    Empty,
}

/// A launch of a kernel.
#[derive(Clone, Debug)]
pub struct Kernel {
    pub function: Handle,
    pub launch: Launch,
    pub cooperative: bool,
    /// Events that the launch records.
    pub events: Vec<Handle>,
}

/// What a host function is given; it is the program's.
#[derive(Clone, Copy, Debug)]
pub struct HostData(pub *mut c_void);

// SAFETY: the driver gives it to a function of the program, on a thread of the driver's choice.
unsafe impl Send for HostData {}

/// One side of a copy: an address of the host or a device, and bytes from row to row and from slice to slice.
#[derive(Clone, Copy, Debug)]
pub struct Side {
    pub address: u64,
    pub pitch: u64,
    pub slice: u64,
}

/// A copy of `depth` slices of `height` rows of `width` bytes.
#[derive(Clone, Copy, Debug)]
pub struct Copy {
    pub dst: Side,
    pub src: Side,
    pub width: u64,
    pub height: u64,
    pub depth: u64,
}

impl Copy {
    /// Bytes in one piece.
    pub fn flat(dst: u64, src: u64, bytes: u64) -> Work {
        let side = |address| Side { address, pitch: 0, slice: 0 };
        Work::Copy(Box::new(Copy { dst: side(dst), src: side(src), width: bytes, height: 1, depth: 1 }))
    }
}

/// Sets `height` rows of `width` elements.
#[derive(Clone, Copy, Debug)]
pub struct Set {
    pub dst: u64,
    pub pitch: u64,
    pub value: u32,
    pub element_bytes: u64,
    pub width: u64,
    pub height: u64,
}

/// Whether an address is one of device memory; others are the host's.
pub fn on_device(address: u64) -> bool {
    (HEAP..HEAP_END).contains(&address)
}

/// Does it now, or puts it into the capture of the stream.
pub fn submit(stream: Handle, work: Work) -> Call {
    let context = {
        let mut s = state()?;
        let context = s.context_of(stream)?;
        if is_default(stream) {
            s.no_implicit(context)?;
        } else if s.streams.get(stream)?.capture.is_some() {
            return s.capture(stream, work).map(|_| ());
        }
        context
    };
    perform(&work, context)
}

impl State {
    /// The legacy stream waits for all others, which those that capture cannot bear.
    fn no_implicit(&mut self, context: Handle) -> Call {
        const NON_BLOCKING: u32 = 1;
        let mut refused = false;
        for (_, stream) in self.streams.iter_mut().filter(|(_, s)| s.context == context && s.flags & NON_BLOCKING == 0)
        {
            if let Some(c) = &mut stream.capture {
                c.invalid = true;
                refused = true;
            }
        }
        if refused { Err(STREAM_CAPTURE_IMPLICIT) } else { Ok(()) }
    }

    /// Adds a node to the graph that a stream captures.
    pub fn capture(&mut self, stream: Handle, work: Work) -> Result<Handle, Error> {
        let s = self.streams.get_mut(stream)?;
        let context = s.context;
        let Some(c) = &mut s.capture else { return Err(ILLEGAL_STATE) };
        if c.invalid {
            return Err(STREAM_CAPTURE_INVALIDATED);
        }
        let (graph, after) = (c.graph, std::mem::take(&mut c.last));
        let node = self.nodes.add(Node { graph, work, after, context });
        self.graphs.get_mut(graph)?.nodes.push(node);
        if let Some(c) = &mut self.streams.get_mut(stream)?.capture {
            c.last = vec![node];
        }
        Ok(node)
    }

    /// Bytes from the host or a device.
    pub fn read(&self, from: u64, out: &mut [u8]) -> Call {
        if !on_device(from) {
            // SAFETY: the program says that there are so many bytes of its memory.
            unsafe { std::ptr::copy_nonoverlapping(from as *const u8, out.as_mut_ptr(), out.len()) };
            return Ok(());
        }
        self.pieces(from, out.len() as u64, |at, offset, n| {
            let bytes = self.emulator.download(at, n)?;
            out[offset..offset + n].copy_from_slice(&bytes);
            Ok(())
        })
    }

    /// Bytes to the host or a device.
    pub fn write(&mut self, to: u64, bytes: &[u8]) -> Call {
        if !on_device(to) {
            // SAFETY: as in `read`.
            unsafe { std::ptr::copy(bytes.as_ptr(), to as *mut u8, bytes.len()) };
            return Ok(());
        }
        self.pieces(to, bytes.len() as u64, |at, offset, n| self.emulator.upload(at, &bytes[offset..offset + n]))
    }

    /// Calls `each` with address, offset and bytes of the part of a range that lies in each allocation.
    fn pieces(
        &self,
        address: u64,
        bytes: u64,
        mut each: impl FnMut(u64, usize, usize) -> Result<(), ExecError>,
    ) -> Call {
        let mut at = 0;
        while at < bytes {
            let Some(a) = self.emulator.memory().find(address + at, 1) else {
                tell(&format!("a copy of {bytes} bytes at {address:#x} leaves the memory that is allocated there"));
                return Err(INVALID_VALUE);
            };
            let n = (a.base + a.bytes - (address + at)).min(bytes - at);
            each(address + at, at as usize, n as usize).map_err(|_| INVALID_VALUE)?;
            at += n;
        }
        Ok(())
    }

    fn copy(&mut self, c: &Copy) -> Call {
        let rows = (0..c.depth).flat_map(|z| (0..c.height).map(move |y| (z, y)));
        for (z, y) in rows {
            let at = |side: &Side| side.address + z * side.slice + y * side.pitch;
            let (dst, src) = (at(&c.dst), at(&c.src));
            let memory = self.emulator.memory();
            if on_device(dst) && on_device(src) && memory.copy(dst, src, c.width).is_ok() {
                // What nobody wrote stays unwritten.
                continue;
            }
            let mut row = vec![0; c.width as usize];
            self.read(src, &mut row)?;
            self.write(dst, &row)?;
        }
        Ok(())
    }

    fn set(&mut self, s: &Set) -> Call {
        let element = &s.value.to_le_bytes()[..s.element_bytes as usize];
        let row = element.repeat(s.width as usize);
        (0..s.height).try_for_each(|y| self.write(s.dst + y * s.pitch, &row))
    }
}

/// Does a thing. The state is not held while functions of the program run.
pub fn perform(work: &Work, context: Handle) -> Call {
    match work {
        Work::Kernel(k) => state()?.run(k, context),
        Work::Copy(c) => state()?.copy(c),
        Work::Set(s) => state()?.set(s),
        Work::Host(function, data) => {
            // SAFETY: the program gave both for this.
            unsafe { function(data.0) };
            Ok(())
        }
        Work::Record(event) => {
            state()?.events.get_mut(*event)?.recorded = Some(Instant::now());
            Ok(())
        }
        Work::Free(address) => state()?.release(*address),
        Work::Child(_, steps) => steps.iter().try_for_each(|(work, context)| perform(work, *context)),
        Work::Wait(_) | Work::Alloc | Work::Empty => Ok(()),
    }
}

impl State {
    /// Hides from kernels of a context what they may not touch: memory of other devices without peer access, mappings without
    /// access. Says whether there can be any.
    fn hide(&mut self, context: Handle, device: usize) -> Result<bool, Error> {
        let mapped = |a: &Allocation| matches!(a.kind, Kind::Mapped(_));
        if self.gpus.len() == 1 && !self.allocations.values().any(mapped) {
            return Ok(false);
        }
        let (peers, allocations) = (&self.contexts.get(context)?.peers, &self.allocations);
        self.emulator.memory_mut().hide(|base| {
            allocations.get(&base).is_some_and(|a| match a.kind {
                Kind::Mapped(_) => a.flags >> device & 1 == 0,
                Kind::Pinned | Kind::Managed | Kind::Registered(_) => false,
                Kind::Device | Kind::Pool(_) | Kind::Variable => a.device != device && !peers.contains(&a.device),
            })
        });
        Ok(true)
    }

    fn run(&mut self, k: &Kernel, context: Handle) -> Call {
        let device = self.contexts.get(context)?.device;
        let f = self.functions.get(k.function)?;
        let (program, settings) = (f.program.clone(), settings().ok_or(NOT_INITIALIZED)?);
        if k.cooperative {
            let blocks: u64 = k.launch.grid.iter().map(|n| u64::from(*n)).product();
            let fit = self.resident_blocks(k.function, &k.launch, device)?;
            if blocks > u64::from(fit) * self.gpus[device].chip.multiprocessors as u64 {
                return Err(COOPERATIVE_LAUNCH_TOO_LARGE);
            }
        }
        let variables = self.variables(k.function, device)?;
        let hides = self.hide(context, device)?;
        let done = self.emulator.launch_placed(&program, &k.launch, &settings.options, &variables);
        if hides {
            self.emulator.memory_mut().hide(|_| false);
        }
        let result = match done {
            Ok(report) => tell_report(program.entry(), &report),
            Err(e) => {
                tell(&e.to_string());
                log(program.entry(), None);
                Err(match e {
                    ExecError::Launch { .. } => INVALID_VALUE,
                    ExecError::OutOfMemory { .. } => OUT_OF_MEMORY,
                    ExecError::InstructionLimit { .. } | ExecError::Deadlock { .. } => LAUNCH_TIMEOUT,
                    _ => LAUNCH_FAILED,
                })
            }
        };
        match result {
            Err(e) if e != INVALID_VALUE && e != OUT_OF_MEMORY => self.contexts.get_mut(context)?.failed = Some(e),
            _ => {
                for event in &k.events {
                    self.events.get_mut(*event)?.recorded = Some(Instant::now());
                }
            }
        }
        result
    }
}

/// Tells what a launch printed and what was found.
fn tell_report(kernel: &str, report: &Report) -> Call {
    let json = settings().is_some_and(|s| s.json);
    if !report.printed.is_empty() {
        let mut out = std::io::stdout().lock();
        // A program that closed its output does not want it.
        let _ = out.write_all(report.printed.as_bytes()).and_then(|()| out.flush());
    }
    let shown = |severity, list: &[_]| match json {
        true => findings::json_lines(severity, list),
        false => findings::pictures(severity, list),
    };
    eprint!("{}{}", shown("error", &report.findings), shown("note", &report.notes));
    log(kernel, Some(report));
    if report.findings.is_empty() { Ok(()) } else { Err(LAUNCH_FAILED) }
}

/// Adds a line about a launch to the file that was asked for.
fn log(kernel: &str, report: Option<&Report>) {
    let Some(path) = settings().and_then(|s| s.log.as_deref()) else { return };
    let line = serde_json::json!({
        "kernel": kernel,
        "completed": report.is_some(),
        "findings": report.map_or(0, |r| findings::grouped(&r.findings).len()),
        "notes": report.map_or(0, |r| findings::grouped(&r.notes).len()),
        "instructions": report.map_or(0, |r| r.instructions),
    });
    let file = std::fs::OpenOptions::new().create(true).append(true).open(path);
    if file.and_then(|mut f| writeln!(f, "{line}")).is_err() {
        tell(&format!("cannot write {}", path.display()));
    }
}
