//! The functions of MPI's standard ABI that are used, out of a library that is opened when it is needed.
//!
//! Source of names, types and values: MPI 5.0, chapter 20 and `mpi_abi.h` of MPICH 5.0.2.

use crate::dynamic;
use libloading::Library;
use moec_ir::diag::Diagnostic;
use std::ffi::{c_int, c_void};
use std::path::Path;

/// A handle of the standard ABI: a pointer-sized number.
pub(super) type Handle = *mut c_void;

/// `MPI_Status`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(super) struct Status {
    source: c_int,
    tag: c_int,
    error: c_int,
    internal: [c_int; 5],
}

const COMM_WORLD: usize = 0x101;
const ERRORS_RETURN: usize = 0x143;
const REQUEST_NULL: usize = 0x180;
const BYTE: usize = 0x247;
const THREAD_SERIALIZED: c_int = 2048;
const ABI: c_int = 1;

/// Names that a loader may find.
const NAMES: [&str; 2] = ["libmpi_abi.so.1", "libmpi_abi.so"];

type Send = unsafe extern "C" fn(*const c_void, i64, Handle, c_int, c_int, Handle, *mut Handle) -> c_int;
type Probe = unsafe extern "C" fn(c_int, c_int, Handle, *mut c_int, *mut Handle, *mut Status) -> c_int;

/// An MPI that has been started.
pub(super) struct Mpi {
    isend: Send,
    improbe: Probe,
    imrecv: unsafe extern "C" fn(*mut c_void, i64, Handle, *mut Handle, *mut Handle) -> c_int,
    get_count: unsafe extern "C" fn(*const Status, Handle, *mut i64) -> c_int,
    test: unsafe extern "C" fn(*mut Handle, *mut c_int, *mut Status) -> c_int,
    finalize: unsafe extern "C" fn() -> c_int,
    pub rank: u32,
    pub n_ranks: u32,
    /// Its code stays where the pointers above lead.
    _library: Library,
}

/// Bytes under way to or from a rank. Whoever drops one before it is done leaks its bytes: MPI still has their address.
pub(super) struct Request {
    handle: Handle,
    bytes: std::mem::ManuallyDrop<Vec<u8>>,
}

fn unavailable(what: String) -> Diagnostic {
    Diagnostic::machine("mpi-unavailable", what).help(
        "`pip install mpich` has the library and `mpirun`; name the file with --ranks mpi:/path/to/lib/libmpi_abi.so.1",
    )
}

fn handle(number: usize) -> Handle {
    std::ptr::without_provenance_mut(number)
}

impl Mpi {
    /// Opens the library at `path`, or the one that the loader finds, and starts MPI.
    ///
    /// # Errors
    /// `mpi-unavailable`.
    pub fn start(path: Option<&Path>) -> Result<Mpi, Diagnostic> {
        let library = dynamic::open(path, &NAMES, |tried| {
            unavailable(format!("no MPI library of the standard ABI can be opened, tried {tried}"))
        })?;
        macro_rules! function {
            ($name:literal) => {
                // SAFETY: the types are those of the standard ABI, which a library that has `MPI_Abi_get_version` keeps.
                *unsafe { library.get($name.as_bytes()) }.map_err(|_| {
                    unavailable(format!("the MPI library has no function `{}`: its standard ABI is not complete", $name))
                })?
            };
        }
        let abi: unsafe extern "C" fn(*mut c_int, *mut c_int) -> c_int = function!("MPI_Abi_get_version");
        let init: unsafe extern "C" fn(*mut c_int, *mut c_void, c_int, *mut c_int) -> c_int =
            function!("MPI_Init_thread");
        let number: [unsafe extern "C" fn(Handle, *mut c_int) -> c_int; 2] =
            [function!("MPI_Comm_rank"), function!("MPI_Comm_size")];
        let errors: unsafe extern "C" fn(Handle, Handle) -> c_int = function!("MPI_Comm_set_errhandler");
        let (mut major, mut minor, mut provided) = (0, 0, 0);
        // SAFETY: may be called before MPI is started; both pointers are of numbers.
        unsafe { abi(&raw mut major, &raw mut minor) };
        if major != ABI {
            return Err(unavailable(format!(
                "the MPI library has version {major}.{minor} of the ABI; moec knows {ABI}"
            )));
        }
        // SAFETY: null stands for no arguments; MPI refuses a second start with an error.
        let started = unsafe { init(std::ptr::null_mut(), std::ptr::null_mut(), THREAD_SERIALIZED, &raw mut provided) };
        if started != 0 || provided < THREAD_SERIALIZED {
            return Err(unavailable(format!(
                "MPI does not start for ranks on a thread of their own (error {started})"
            )));
        }
        let of = |f: unsafe extern "C" fn(Handle, *mut c_int) -> c_int| {
            let mut n = 0;
            // SAFETY: MPI has been started; the pointer is of a number.
            unsafe { f(handle(COMM_WORLD), &raw mut n) };
            u32::try_from(n).unwrap_or(0)
        };
        // SAFETY: both are handles of the standard ABI. Errors come back as numbers instead of ending the process.
        unsafe { errors(handle(COMM_WORLD), handle(ERRORS_RETURN)) };
        Ok(Mpi {
            rank: of(number[0]),
            n_ranks: of(number[1]),
            isend: function!("MPI_Isend_c"),
            improbe: function!("MPI_Improbe"),
            imrecv: function!("MPI_Imrecv_c"),
            get_count: function!("MPI_Get_count_c"),
            test: function!("MPI_Test"),
            finalize: function!("MPI_Finalize"),
            _library: library,
        })
    }

    /// Begins to send bytes; `None` when MPI refuses.
    pub fn send(&self, bytes: Vec<u8>, to: u32, tag: c_int) -> Option<Request> {
        let mut request = Request { handle: handle(REQUEST_NULL), bytes: std::mem::ManuallyDrop::new(bytes) };
        let (at, n) = (request.bytes.as_ptr().cast(), request.bytes.len() as i64);
        // SAFETY: the bytes stay where they are until the request is done, or for ever.
        let error =
            unsafe { (self.isend)(at, n, handle(BYTE), to as c_int, tag, handle(COMM_WORLD), &raw mut request.handle) };
        (error == 0).then_some(request)
    }

    /// Begins to receive what `from` has sent under `tag`; nothing where it has not.
    pub fn receive(&self, from: u32, tag: c_int) -> Option<Request> {
        let (mut there, mut message, mut status, mut n) = (0, handle(0), Status::default(), 0i64);
        // SAFETY: all pointers are of what the ABI says.
        let error = unsafe {
            (self.improbe)(from as c_int, tag, handle(COMM_WORLD), &raw mut there, &raw mut message, &raw mut status)
        };
        if error != 0 || there == 0 {
            return None;
        }
        // SAFETY: the status is of the message that was found.
        unsafe { (self.get_count)(&raw const status, handle(BYTE), &raw mut n) };
        let bytes = vec![0u8; usize::try_from(n).unwrap_or(0)];
        let mut request = Request { handle: handle(REQUEST_NULL), bytes: std::mem::ManuallyDrop::new(bytes) };
        let at = request.bytes.as_mut_ptr().cast();
        // SAFETY: there is room for the message, which stays where it is until the request is done, or for ever.
        let error = unsafe { (self.imrecv)(at, n, handle(BYTE), &raw mut message, &raw mut request.handle) };
        (error == 0).then_some(request)
    }

    /// Whether a request is done.
    pub fn is_done(&self, request: &mut Request) -> bool {
        let (mut done, mut status) = (0, Status::default());
        // SAFETY: the handle is a request's, or null once it was done, which counts as done.
        unsafe { (self.test)(&raw mut request.handle, &raw mut done, &raw mut status) == 0 && done != 0 }
    }

    /// Ends MPI; waits for the other ranks to do the same.
    pub fn finish(&self) {
        // SAFETY: MPI has been started, and the caller uses it no more.
        unsafe { (self.finalize)() };
    }
}

impl Request {
    /// Frees the bytes of a request that is done.
    pub fn release(&mut self) {
        *self.bytes = Vec::new();
    }

    /// The bytes of a request that is done.
    pub fn into_bytes(self) -> Vec<u8> {
        std::mem::ManuallyDrop::into_inner(self.bytes)
    }
}
