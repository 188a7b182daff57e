//! A stand-in for NCCL whose ranks are threads of a process and whose windows are memory of the host. It is stricter than NCCL: a wrong
//! size or order, or something not given back, ends the process. Compiled by `tests/nccl.rs` to a shared library, with `--cfg` for
//! what differs.
#![allow(non_snake_case)]

use std::alloc::{Layout, alloc, dealloc};
use std::collections::BTreeMap;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::sync::Mutex;

type Ptr = *mut c_void;

#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Id([u8; 128]);

#[repr(C)]
pub struct Team(c_int, c_int, c_int);

const IN_PROGRESS: c_int = 7;
const INVALID_ARGUMENT: c_int = 4;

#[derive(Default)]
struct State {
    ids: u8,
    /// Ranks that have come, by id.
    joined: BTreeMap<Id, Vec<c_int>>,
    comms: BTreeMap<usize, Comm>,
    memory: BTreeMap<usize, usize>,
    /// Where the address of a window is to be written, when all have registered: by id and number.
    waiting: BTreeMap<(Id, usize), Vec<(c_int, usize, usize)>>,
    windows: BTreeMap<usize, Vec<usize>>,
    next: usize,
}

struct Comm {
    id: Id,
    n: c_int,
    rank: c_int,
    windows: usize,
    open: usize,
    /// The number of the window that is being registered.
    pending: Option<usize>,
}

static STATE: Mutex<Option<State>> = Mutex::new(None);

fn with<R>(f: impl FnOnce(&mut State) -> R) -> R {
    let mut state = STATE.lock().unwrap();
    f(state.get_or_insert_with(|| State { next: 16, ..State::default() }))
}

fn must(holds: bool, what: &str) {
    if !holds {
        eprintln!("stand-in NCCL: {what}");
        std::process::abort();
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ncclGetVersion(version: *mut c_int) -> c_int {
    unsafe { *version = if cfg!(old) { 22_809 } else { 23_203 } };
    0
}

#[unsafe(no_mangle)]
extern "C" fn ncclGetLastError(_: Ptr) -> *const c_char {
    const SAID: &CStr = c"no such rank in this stand-in";
    SAID.as_ptr()
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ncclGetUniqueId(id: *mut Id) -> c_int {
    with(|s| {
        s.ids += 1;
        unsafe { *id = Id([s.ids; 128]) };
        0
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ncclCommInitRankConfig(comm: *mut Ptr, n: c_int, id: Id, rank: c_int, config: *const u32) -> c_int {
    let words = unsafe { std::slice::from_raw_parts(config, 5) };
    must(words == [88, 0, 0xcafe_beef, 22_902, 0], "the configuration is not that of 2.29, without blocking");
    if rank < 0 || rank >= n {
        return INVALID_ARGUMENT;
    }
    with(|s| {
        let joined = s.joined.entry(id).or_default();
        must(!joined.contains(&rank), "a rank came twice");
        joined.push(rank);
        s.next += 16;
        s.comms.insert(s.next, Comm { id, n, rank, windows: 0, open: 0, pending: None });
        unsafe { *comm = std::ptr::without_provenance_mut(s.next) };
        IN_PROGRESS
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ncclCommGetAsyncError(comm: Ptr, state: *mut c_int) -> c_int {
    with(|s| {
        let c = s.comms.get_mut(&comm.addr()).unwrap();
        let mut is_done = s.joined[&c.id].len() == c.n as usize;
        if let Some(number) = c.pending {
            let all = &s.waiting[&(c.id, number)];
            is_done = all.len() == c.n as usize;
            if is_done {
                c.pending = None;
                let mut addresses = all.clone();
                addresses.sort_unstable();
                let (_, _, to) = addresses[c.rank as usize];
                s.next += 16;
                s.windows.insert(s.next, addresses.iter().map(|a| a.1).collect());
                // SAFETY: whoever registered keeps the place until this is done.
                unsafe { *std::ptr::with_exposed_provenance_mut::<usize>(to) = if cfg!(no_window) { 0 } else { s.next } };
            }
        }
        unsafe { *state = if is_done { 0 } else { IN_PROGRESS } };
        0
    })
}

#[unsafe(no_mangle)]
extern "C" fn ncclTeamLsa(comm: Ptr) -> Team {
    with(|s| {
        let c = &s.comms[&comm.addr()];
        Team(if cfg!(two_domains) { c.n / 2 } else { c.n }, c.rank, 1)
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ncclMemAlloc(at: *mut Ptr, bytes: usize) -> c_int {
    let memory = unsafe { alloc(Layout::from_size_align(bytes, 4096).unwrap()) };
    // Nothing is zero of itself.
    unsafe { std::ptr::write_bytes(memory, 0xcd, bytes) };
    with(|s| s.memory.insert(memory.expose_provenance(), bytes));
    unsafe { *at = memory.cast() };
    0
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ncclMemFree(at: Ptr) -> c_int {
    let bytes = with(|s| s.memory.remove(&at.addr()));
    must(bytes.is_some(), "memory is freed that is not NCCL's");
    unsafe { dealloc(at.cast(), Layout::from_size_align(bytes.unwrap(), 4096).unwrap()) };
    0
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ncclCommWindowRegister(comm: Ptr, at: Ptr, bytes: usize, window: *mut Ptr, flags: c_int) -> c_int {
    with(|s| {
        must(s.memory.get(&at.addr()) == Some(&bytes), "a window of memory that is not NCCL's");
        must(flags == 1, "a window that is not symmetric");
        let c = s.comms.get_mut(&comm.addr()).unwrap();
        must(s.joined[&c.id].len() == c.n as usize && c.pending.is_none(), "the communicator is not ready");
        let number = c.windows;
        (c.windows, c.open, c.pending) = (number + 1, c.open + 1, Some(number));
        s.waiting.entry((c.id, number)).or_default().push((c.rank, at.addr(), window.expose_provenance()));
        IN_PROGRESS
    })
}

#[unsafe(no_mangle)]
extern "C" fn ncclCommWindowDeregister(comm: Ptr, window: Ptr) -> c_int {
    with(|s| {
        must(s.windows.remove(&window.addr()).is_some(), "a window ends that is none");
        s.comms.get_mut(&comm.addr()).unwrap().open -= 1;
        0
    })
}

#[cfg(not(bare))]
#[unsafe(no_mangle)]
unsafe extern "C" fn ncclGetPeerDevicePointer(window: Ptr, offset: usize, peer: c_int, out: *mut Ptr) -> c_int {
    with(|s| {
        let address = s.windows[&window.addr()][peer as usize] + offset;
        let far = cfg!(far) && peer == 1;
        unsafe { *out = if far { std::ptr::null_mut() } else { std::ptr::with_exposed_provenance_mut(address) } };
        0
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ncclGetLsaMultimemDevicePointer(window: Ptr, offset: usize, out: *mut Ptr) -> c_int {
    with(|s| {
        must(s.windows.contains_key(&window.addr()), "an address of no window");
        let none = cfg!(no_multicast);
        unsafe { *out = if none { std::ptr::null_mut() } else { std::ptr::without_provenance_mut(0x7000_0000 + offset) } };
        0
    })
}

#[unsafe(no_mangle)]
extern "C" fn ncclCommAbort(comm: Ptr) -> c_int {
    with(|s| must(s.comms.remove(&comm.addr()).is_some(), "a communicator ends that is none"));
    0
}

#[unsafe(no_mangle)]
extern "C" fn ncclCommDestroy(comm: Ptr) -> c_int {
    with(|s| {
        let c = s.comms.remove(&comm.addr());
        must(c.is_some_and(|c| cfg!(no_window) || c.open == 0), "a communicator ends before its windows");
    });
    0
}
