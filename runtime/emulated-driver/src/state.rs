//! Everything that handles name.

use crate::call::*;
use crate::chips::Chip;
use crate::settings::settings;
use crate::structs::{AllocationProp, Handle};
use crate::work::Work;
use moec_ptx::ast::Module as Ptx;
use moec_ptx::exec::memory::global::Physical;
use moec_ptx::exec::{Device, Program, Variables};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{c_int, c_uint, c_void};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::ThreadId;
use std::time::Instant;

/// Things by handle. Handles are not used again, and those of one kind are no handles of another.
pub struct Table<T> {
    kind: usize,
    next: usize,
    items: BTreeMap<Handle, T>,
}

impl<T> Table<T> {
    fn new(kind: usize) -> Table<T> {
        Table { kind, next: 1, items: BTreeMap::new() }
    }

    pub fn add(&mut self, item: T) -> Handle {
        let handle = self.kind << 40 | self.next << 4;
        self.next += 1;
        self.items.insert(handle, item);
        handle
    }

    pub fn get(&self, handle: Handle) -> Result<&T, Error> {
        self.items.get(&handle).ok_or(INVALID_HANDLE)
    }

    pub fn get_mut(&mut self, handle: Handle) -> Result<&mut T, Error> {
        self.items.get_mut(&handle).ok_or(INVALID_HANDLE)
    }

    pub fn remove(&mut self, handle: Handle) -> Result<T, Error> {
        self.items.remove(&handle).ok_or(INVALID_HANDLE)
    }

    pub fn iter_mut(&mut self) -> impl Iterator<Item = (&Handle, &mut T)> {
        self.items.iter_mut()
    }

    pub fn iter(&self) -> impl Iterator<Item = (&Handle, &T)> {
        self.items.iter()
    }
}

/// A context.
pub struct Context {
    pub device: usize,
    pub flags: c_uint,
    /// Devices whose memory kernels of this context may use.
    pub peers: BTreeSet<usize>,
    /// What a launch that failed left behind for the calls that wait.
    pub failed: Option<Error>,
    pub limits: BTreeMap<c_uint, usize>,
}

/// A device.
pub struct Gpu {
    pub chip: Chip,
    pub primary: Option<Handle>,
    pub primary_users: usize,
    pub primary_flags: c_uint,
    /// Bytes allocated.
    pub used: u64,
    pub default_pool: Handle,
    pub pool: Handle,
}

/// A module, or a library: they differ in who owns the variables only.
pub struct Module {
    pub ptx: Arc<Ptx>,
    pub kernels: BTreeMap<String, Handle>,
    /// Where its variables lie on each device that has asked.
    pub variables: BTreeMap<usize, Variables>,
}

/// A kernel.
pub struct Function {
    pub module: Handle,
    pub program: Arc<Program>,
    pub attributes: BTreeMap<c_uint, c_int>,
    /// Its name, for programs that ask.
    pub name: std::ffi::CString,
}

/// A stream.
pub struct Stream {
    pub context: Handle,
    pub flags: c_uint,
    pub priority: c_int,
    pub capture: Option<Capture>,
    pub attributes: BTreeMap<c_uint, crate::structs::LaunchValue>,
}

/// What a capturing stream knows.
pub struct Capture {
    pub graph: Handle,
    pub id: u64,
    /// Whether this stream began it.
    pub origin: bool,
    /// Nodes that the next one depends on.
    pub last: Vec<Handle>,
    pub mode: c_uint,
    pub thread: ThreadId,
    /// Whether something was done that a capture forbids.
    pub invalid: bool,
    /// The handles of `last` where the program may look at them.
    pub shown: Box<[Handle]>,
}

/// An event.
#[derive(Default)]
pub struct Event {
    pub context: Handle,
    pub flags: c_uint,
    pub recorded: Option<Instant>,
    /// The capture and the nodes that it stands for.
    pub captured: Option<(u64, Vec<Handle>)>,
}

/// A node of a graph.
pub struct Node {
    pub graph: Handle,
    pub work: Work,
    pub after: Vec<Handle>,
    /// Of the device that launches it.
    pub context: Handle,
}

/// A graph.
#[derive(Default)]
pub struct Graph {
    pub nodes: Vec<Handle>,
}

/// An executable graph: its work in an order that dependencies allow.
pub struct Exec {
    pub steps: Vec<Step>,
    pub flags: u64,
}

/// One node of an executable graph.
pub struct Step {
    pub node: Handle,
    pub work: Work,
    pub context: Handle,
    pub enabled: bool,
}

/// A memory pool.
pub struct Pool {
    pub device: usize,
    pub attributes: BTreeMap<c_uint, u64>,
    pub used: u64,
    pub high: u64,
}

/// Whose memory an allocation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Device,
    Pool(Handle),
    /// Pages of the host that this library mapped.
    Pinned,
    Managed,
    /// Memory of the program that it registered: its own address.
    Registered(u64),
    /// A mapping of physical memory.
    Mapped(Handle),
    /// A variable of a module.
    Variable,
}

/// What is known of an allocation.
#[derive(Clone, Copy, Debug)]
pub struct Allocation {
    pub bytes: u64,
    pub device: usize,
    pub context: Handle,
    pub kind: Kind,
    pub id: u64,
    pub flags: c_uint,
}

/// Physical memory of the virtual-memory calls.
pub struct Memory {
    pub physical: Physical,
    pub prop: AllocationProp,
    /// The handle is released; mappings keep it.
    pub users: usize,
}

/// The whole of it.
pub struct State {
    pub gpus: Vec<Gpu>,
    /// The memory of all devices, and what runs kernels.
    pub emulator: Device,
    pub allocations: BTreeMap<u64, Allocation>,
    pub next_id: u64,
    pub contexts: Table<Context>,
    pub modules: Table<Module>,
    pub functions: Table<Function>,
    pub streams: Table<Stream>,
    pub events: Table<Event>,
    pub nodes: Table<Node>,
    pub graphs: Table<Graph>,
    pub execs: Table<Exec>,
    pub pools: Table<Pool>,
    pub memories: Table<Memory>,
    /// Linkers: the modules that were added, and the text of the first or of what came out.
    pub links: Table<(Vec<Ptx>, Vec<u8>)>,
    pub reserved: BTreeMap<u64, u64>,
}

thread_local! {
    /// Contexts of this thread, the current one last.
    pub static CONTEXTS: RefCell<Vec<Handle>> = const { RefCell::new(Vec::new()) };
    /// How strict captures are about what this thread does: `CUstreamCaptureMode`.
    pub static CAPTURE_MODE: Cell<c_uint> = const { Cell::new(0) };
}

static STATE: OnceLock<Option<Mutex<State>>> = OnceLock::new();

/// Starts the driver.
pub fn initialize() -> Call {
    STATE.get_or_init(|| settings().map(|s| Mutex::new(State::new(&s.chips)))).as_ref().map(|_| ()).ok_or(Error(100))
}

/// The state, for the length of a call.
pub fn state() -> Result<MutexGuard<'static, State>, Error> {
    let state = STATE.get().and_then(Option::as_ref).ok_or(NOT_INITIALIZED)?;
    Ok(state.lock().unwrap_or_else(PoisonError::into_inner))
}

/// The current context of this thread.
pub fn current() -> Result<Handle, Error> {
    CONTEXTS.with_borrow(|c| c.last().copied()).filter(|c| *c != 0).ok_or(INVALID_CONTEXT)
}

impl State {
    fn new(chips: &[Chip]) -> State {
        let target = chips[0].target();
        let bytes = chips.iter().map(|c| c.memory_bytes).sum();
        let mut pools = Table::new(9);
        let pool = |(device, chip): (usize, &Chip)| {
            let pool = pools.add(Pool { device, attributes: BTreeMap::new(), used: 0, high: 0 });
            Gpu { chip: *chip, primary: None, primary_users: 0, primary_flags: 0, used: 0, default_pool: pool, pool }
        };
        let gpus = chips.iter().enumerate().map(pool).collect();
        State {
            gpus,
            emulator: Device::with_capacity(target, bytes),
            allocations: BTreeMap::new(),
            next_id: 1,
            contexts: Table::new(1),
            modules: Table::new(2),
            functions: Table::new(3),
            streams: Table::new(4),
            events: Table::new(5),
            nodes: Table::new(6),
            graphs: Table::new(7),
            execs: Table::new(8),
            pools,
            memories: Table::new(10),
            links: Table::new(11),
            reserved: BTreeMap::new(),
        }
    }

    pub fn gpu(&self, device: c_int) -> Result<&Gpu, Error> {
        usize::try_from(device).ok().and_then(|d| self.gpus.get(d)).ok_or(INVALID_DEVICE)
    }

    pub fn gpu_mut(&mut self, device: c_int) -> Result<&mut Gpu, Error> {
        usize::try_from(device).ok().and_then(|d| self.gpus.get_mut(d)).ok_or(INVALID_DEVICE)
    }

    /// The device of the current context.
    pub fn device(&self) -> Result<usize, Error> {
        Ok(self.contexts.get(current()?).map_err(|_| INVALID_CONTEXT)?.device)
    }

    /// The context of a stream: of the current one for the default streams.
    pub fn context_of(&self, stream: Handle) -> Result<Handle, Error> {
        match is_default(stream) {
            true => current(),
            false => Ok(self.streams.get(stream)?.context),
        }
    }

    /// A number that no other allocation, context or stream has.
    pub fn fresh_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    /// Memory of a device. Kinds of other memory have calls of their own.
    pub fn allocate(&mut self, device: usize, bytes: u64, kind: Kind) -> Result<u64, Error> {
        let room = self.gpus[device].chip.memory_bytes - self.gpus[device].used;
        if bytes > room {
            return Err(OUT_OF_MEMORY);
        }
        let address = self.emulator.memory_mut().alloc(bytes, 512).map_err(|_| OUT_OF_MEMORY)?;
        self.gpus[device].used += bytes;
        self.know(address, bytes, device, kind);
        Ok(address)
    }

    /// Remembers what lies at an address.
    pub fn know(&mut self, address: u64, bytes: u64, device: usize, kind: Kind) {
        let (context, id) = (current().unwrap_or(0), self.fresh_id());
        self.allocations.insert(address, Allocation { bytes, device, context, kind, id, flags: 0 });
    }

    /// Frees memory of a device.
    pub fn release(&mut self, address: u64) -> Call {
        let a = *self.allocations.get(&address).ok_or(INVALID_VALUE)?;
        self.emulator.free(address).map_err(|_| INVALID_VALUE)?;
        self.gpus[a.device].used -= a.bytes;
        if let Kind::Pool(pool) = a.kind
            && let Ok(pool) = self.pools.get_mut(pool)
        {
            pool.used -= a.bytes;
        }
        self.allocations.remove(&address);
        Ok(())
    }

    /// The allocation around an address, and where it starts.
    pub fn around(&self, address: u64) -> Option<(u64, Allocation)> {
        let (start, a) = self.allocations.range(..=address).next_back()?;
        (address - start < a.bytes.max(1)).then_some((*start, *a))
    }

    /// The variables of a kernel's module on a device, placed when they are first asked for.
    pub fn variables(&mut self, function: Handle, device: usize) -> Result<Variables, Error> {
        let f = self.functions.get(function)?;
        let (module, program) = (f.module, f.program.clone());
        let m = self.modules.get_mut(module)?;
        if let Some(known) = m.variables.get(&device) {
            return Ok(known.clone());
        }
        let placed = self.emulator.place_variables(&program).map_err(|_| OUT_OF_MEMORY)?;
        m.variables.insert(device, placed.clone());
        for (address, bytes) in placed.all() {
            self.know(address, bytes, device, Kind::Variable);
        }
        Ok(placed)
    }

    /// Refuses what a capture that is under way forbids this thread, and spoils the capture: allocations, waits.
    pub fn no_capture(&mut self) -> Call {
        let (mode, me) = (CAPTURE_MODE.get(), std::thread::current().id());
        let mut refused = false;
        for (_, stream) in self.streams.iter_mut() {
            // 0: every capture in global mode counts; 1: those of this thread; 2: none.
            let Some(c) = stream.capture.as_mut().filter(|c| c.mode < 2 && mode < 2) else { continue };
            if c.thread == me || c.mode == 0 && mode == 0 {
                c.invalid = true;
                refused = true;
            }
        }
        if refused { Err(STREAM_CAPTURE_UNSUPPORTED) } else { Ok(()) }
    }

    /// What a failed launch of the context left behind; it is told once. On a machine nothing would work any more.
    pub fn waited(&mut self, context: Handle) -> Call {
        self.contexts.get_mut(context)?.failed.take().map_or(Ok(()), Err)
    }
}

/// Whether a handle of a stream is one of the default streams: null, `CU_STREAM_LEGACY`, `CU_STREAM_PER_THREAD`.
pub fn is_default(stream: Handle) -> bool {
    stream <= 2
}

/// A pointer of the program as a number.
pub fn number<T>(pointer: *const T) -> u64 {
    pointer.cast::<c_void>() as u64
}
