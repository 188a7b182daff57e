//! The functions of NCCL that are used, out of a library that is opened when it is needed.
//!
//! Source of names, types and values: `nccl.h` and `nccl_device/host.h` of NCCL 2.32.3. The order of calls is that of
//! `docs/expert-parallelism-design.md`.

use crate::dynamic;
use libloading::Library;
use moec_ir::diag::Diagnostic;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::path::Path;

/// `ncclComm_t` and `ncclWindow_t`.
pub(super) type Handle = *mut c_void;

/// `ncclUniqueId`, which is passed by value.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct UniqueId(pub [u8; super::ID_BYTES]);

/// `ncclTeam_t`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(super) struct Team {
    pub n_ranks: c_int,
    pub rank: c_int,
    pub stride: c_int,
}

/// `ncclConfig_t` as NCCL 2.29 has it. Newer ones copy as much as `size` says, and take defaults for the rest.
#[repr(C)]
pub(super) struct Config {
    size: usize,
    magic: u32,
    version: u32,
    blocking: c_int,
    numbers: [c_int; 3],
    net_name: *const c_char,
    share: [c_int; 2],
    comm_name: *const c_char,
    more: [c_int; 8],
}

/// What the numbers of a configuration are where they are left to NCCL.
const UNSET: c_int = c_int::MIN;

/// The oldest version with the addresses of peers, and that of [`Config`].
const LEAST: c_int = 22_902;

pub(super) const IN_PROGRESS: c_int = 7;

/// `NCCL_WIN_COLL_SYMMETRIC`.
const SYMMETRIC: c_int = 1;

const NAMES: [&str; 1] = ["libnccl.so.2"];

type Get = unsafe extern "C" fn(Handle, usize, c_int, *mut Handle) -> c_int;

/// NCCL, of a version that gives addresses of peers' windows.
pub struct Nccl {
    unique_id: unsafe extern "C" fn(*mut UniqueId) -> c_int,
    init: unsafe extern "C" fn(*mut Handle, c_int, UniqueId, c_int, *const Config) -> c_int,
    async_error: unsafe extern "C" fn(Handle, *mut c_int) -> c_int,
    abort: unsafe extern "C" fn(Handle) -> c_int,
    destroy: unsafe extern "C" fn(Handle) -> c_int,
    alloc: unsafe extern "C" fn(*mut Handle, usize) -> c_int,
    free: unsafe extern "C" fn(Handle) -> c_int,
    register: unsafe extern "C" fn(Handle, Handle, usize, *mut Handle, c_int) -> c_int,
    deregister: unsafe extern "C" fn(Handle, Handle) -> c_int,
    peer: Get,
    multicast: unsafe extern "C" fn(Handle, usize, *mut Handle) -> c_int,
    team: unsafe extern "C" fn(Handle) -> Team,
    last_error: unsafe extern "C" fn(Handle) -> *const c_char,
    /// The version that the library says it is: 23203 is 2.32.3.
    pub version: u32,
    /// Its code stays where the pointers above lead.
    _library: Library,
}

impl std::fmt::Debug for Nccl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Nccl").field("version", &self.version).finish_non_exhaustive()
    }
}

pub(super) fn unavailable(what: String) -> Diagnostic {
    Diagnostic::machine("nccl-unavailable", what)
        .help("`pip install nvidia-nccl-cu13` has the library; name the file `libnccl.so.2` where the loader does not find it")
}

/// A version as people write it.
fn written(version: c_int) -> String {
    format!("{}.{}.{}", version / 10_000, version / 100 % 100, version % 100)
}

impl Nccl {
    /// Opens the library at `path`, or the one that the loader finds. Needs no GPU.
    ///
    /// # Errors
    /// `nccl-unavailable`, also for versions before 2.29, which give no addresses of peers.
    pub fn open(path: Option<&Path>) -> Result<Nccl, Diagnostic> {
        let library =
            dynamic::open(path, &NAMES, |tried| unavailable(format!("no NCCL can be opened, tried {tried}")))?;
        let mut version = 0;
        // SAFETY: the type is that of every NCCL; the pointer is of a number. May be called before everything else.
        unsafe {
            let of: libloading::Symbol<'_, unsafe extern "C" fn(*mut c_int) -> c_int> = library
                .get(b"ncclGetVersion")
                .map_err(|_| unavailable("the library has no function `ncclGetVersion`: it is no NCCL".into()))?;
            of(&raw mut version);
        }
        if version < LEAST {
            let what = format!("NCCL is {}; moec needs {} or newer", written(version), written(LEAST));
            return Err(unavailable(what)
                .note("older versions give no addresses of windows on other ranks")
                .help("`pip install -U nvidia-nccl-cu13`, or give the file of a newer NCCL"));
        }
        macro_rules! function {
            ($name:literal) => {
                // SAFETY: the types are those of `nccl.h`, which NCCL keeps from version to version.
                *unsafe { library.get($name.as_bytes()) }.map_err(|_| {
                    let version = written(version);
                    unavailable(format!("NCCL {version} has no function `{}`, as versions from 2.29 on have", $name))
                })?
            };
        }
        Ok(Nccl {
            unique_id: function!("ncclGetUniqueId"),
            init: function!("ncclCommInitRankConfig"),
            async_error: function!("ncclCommGetAsyncError"),
            abort: function!("ncclCommAbort"),
            destroy: function!("ncclCommDestroy"),
            alloc: function!("ncclMemAlloc"),
            free: function!("ncclMemFree"),
            register: function!("ncclCommWindowRegister"),
            deregister: function!("ncclCommWindowDeregister"),
            peer: function!("ncclGetPeerDevicePointer"),
            multicast: function!("ncclGetLsaMultimemDevicePointer"),
            team: function!("ncclTeamLsa"),
            last_error: function!("ncclGetLastError"),
            version: version as u32,
            _library: library,
        })
    }

    /// The bytes that make ranks one communicator. One rank makes them, and all get them.
    ///
    /// # Errors
    /// `nccl-failed`.
    pub fn unique_id(&self) -> Result<[u8; super::ID_BYTES], Diagnostic> {
        let mut id = UniqueId([0; super::ID_BYTES]);
        // SAFETY: the pointer is of an id.
        self.done("ncclGetUniqueId", unsafe { (self.unique_id)(&raw mut id) })?;
        Ok(id.0)
    }

    /// An error as a diagnostic, with what NCCL says of it.
    pub(super) fn done(&self, call: &str, code: c_int) -> Result<(), Diagnostic> {
        if code == 0 {
            return Ok(());
        }
        // SAFETY: null stands for any communicator; the text is NCCL's and ends with 0, or there is none.
        let said = unsafe {
            let text = (self.last_error)(std::ptr::null_mut());
            if text.is_null() { String::new() } else { CStr::from_ptr(text).to_string_lossy().into_owned() }
        };
        let d = Diagnostic::machine("nccl-failed", format!("`{call}` of NCCL failed (error {code})"))
            .help("run again with NCCL_DEBUG=INFO, where NCCL says more");
        Err(if said.is_empty() { d } else { d.note(said) })
    }

    /// Begins to make a communicator; it is there when [`Nccl::is_ready`] says so.
    pub(super) fn start(&self, n_ranks: u32, rank: u32, id: [u8; super::ID_BYTES]) -> Result<Handle, Diagnostic> {
        let config = Config {
            size: size_of::<Config>(),
            magic: 0xcafe_beef,
            version: LEAST as u32,
            blocking: 0,
            numbers: [UNSET; 3],
            net_name: std::ptr::null(),
            share: [UNSET; 2],
            comm_name: std::ptr::null(),
            more: [UNSET; 8],
        };
        let mut comm = std::ptr::null_mut();
        let (n_ranks, rank) = (n_ranks as c_int, rank as c_int);
        // SAFETY: the configuration has the size and the version that it says; both pointers outlive the call.
        let code = unsafe { (self.init)(&raw mut comm, n_ranks, UniqueId(id), rank, &raw const config) };
        if code != IN_PROGRESS {
            self.done("ncclCommInitRankConfig", code)?;
        }
        Ok(comm)
    }

    /// Whether what was begun with a communicator is done.
    pub(super) fn is_ready(&self, comm: Handle) -> Result<bool, Diagnostic> {
        let mut state = 0;
        // SAFETY: the communicator is one of `start`; the pointer is of a number.
        self.done("ncclCommGetAsyncError", unsafe { (self.async_error)(comm, &raw mut state) })?;
        if state == IN_PROGRESS {
            return Ok(false);
        }
        self.done("ncclCommInitRankConfig", state).map(|()| true)
    }

    /// Ends a communicator without the other ranks.
    pub(super) fn abort(&self, comm: Handle) {
        // SAFETY: the communicator is one of `start`, and the caller uses it no more.
        unsafe { (self.abort)(comm) };
    }

    /// Ends a communicator.
    pub(super) fn destroy(&self, comm: Handle) {
        // SAFETY: as for `abort`.
        unsafe { (self.destroy)(comm) };
    }

    /// Ranks that reach each other by loads and stores.
    pub(super) fn team(&self, comm: Handle) -> Team {
        // SAFETY: the communicator is ready.
        unsafe { (self.team)(comm) }
    }

    /// Memory that a window can lie in, on the device that is current.
    pub(super) fn alloc(&self, bytes: usize) -> Result<Handle, Diagnostic> {
        let mut at = std::ptr::null_mut();
        // SAFETY: the pointer is of an address.
        self.done("ncclMemAlloc", unsafe { (self.alloc)(&raw mut at, bytes) })?;
        Ok(at)
    }

    /// Frees what [`Nccl::alloc`] gave.
    pub(super) fn free(&self, at: Handle) {
        // SAFETY: the address is one of `alloc`, and the caller uses it no more.
        unsafe { (self.free)(at) };
    }

    /// Begins to make a window of memory on all ranks; code of the call and the window, which may come later.
    pub(super) fn register(&self, comm: Handle, at: Handle, bytes: usize, window: &mut Handle) -> c_int {
        // SAFETY: the memory is of `alloc` and has so many bytes; the window stays where it is until it is there.
        unsafe { (self.register)(comm, at, bytes, std::ptr::from_mut(window), SYMMETRIC) }
    }

    /// Ends a window.
    pub(super) fn deregister(&self, comm: Handle, window: Handle) {
        // SAFETY: the window is one of `register`, and the caller uses it no more.
        unsafe { (self.deregister)(comm, window) };
    }

    /// The address of a rank's window here; null where it cannot be reached.
    pub(super) fn peer(&self, window: Handle, rank: u32) -> Result<Handle, Diagnostic> {
        let mut at = std::ptr::null_mut();
        // SAFETY: the window is there; the pointer is of an address.
        self.done("ncclGetPeerDevicePointer", unsafe { (self.peer)(window, 0, rank as c_int, &raw mut at) })?;
        Ok(at)
    }

    /// The address at which a store reaches all windows; null where there is none.
    pub(super) fn multicast(&self, window: Handle) -> Result<Handle, Diagnostic> {
        let mut at = std::ptr::null_mut();
        // SAFETY: as for `peer`.
        self.done("ncclGetLsaMultimemDevicePointer", unsafe { (self.multicast)(window, 0, &raw mut at) })?;
        Ok(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_has_the_size_of_nccl_2_29() {
        assert_eq!((size_of::<Config>(), std::mem::offset_of!(Config, blocking)), (88, 16));
        assert_eq!((std::mem::offset_of!(Config, net_name), std::mem::offset_of!(Config, comm_name)), (32, 48));
        assert_eq!(written(LEAST), "2.29.2");
    }
}
