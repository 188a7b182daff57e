//! Where LLVM is, and its library, opened once for the process.
//!
//! On Linux the library is looked for when the first kernel is compiled ([`llvm`]); `build.rs` says why. Elsewhere programs
//! are linked with it, and it is there as soon as they start.

use moec_ir::diag::Diagnostic;
use std::path::PathBuf;
use std::sync::OnceLock;

/// The LLVM that makes PTX in this process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Llvm {
    /// Its file; `None` where programs are linked with it.
    pub path: Option<PathBuf>,
    /// Major, minor, patch.
    pub version: (u32, u32, u32),
}

/// LLVM, opened when this is called for the first time; what was found then stays.
///
/// On Linux the first of these that is LLVM 22 is taken: the library that moec ships, in the folder of the program (or
/// of the shared library that holds moec) or in `lib` beside that folder; the one that moec was built with; and what the
/// system's loader finds as `libLLVM.so.22.1` or `libLLVM-22.so`.
///
/// # Errors
/// `llvm-missing`, with every place that was tried and why it was no good.
pub fn llvm() -> Result<&'static Llvm, Diagnostic> {
    static LLVM: OnceLock<Result<Llvm, Diagnostic>> = OnceLock::new();
    LLVM.get_or_init(open).as_ref().map_err(Clone::clone)
}

/// The major version of LLVM that `inkwell` was built for: structures that cross the border are those of this one.
const MAJOR: u32 = 22;

#[cfg(not(llvm_at_run_time))]
fn open() -> Result<Llvm, Diagnostic> {
    debug_assert_eq!(inkwell::support::get_llvm_version().0, MAJOR);
    Ok(Llvm { path: None, version: inkwell::support::get_llvm_version() })
}

#[cfg(llvm_at_run_time)]
fn open() -> Result<Llvm, Diagnostic> {
    let mut tried = Vec::new();
    for place in at_run_time::places() {
        match at_run_time::open(&place) {
            Ok(found) => return Ok(found),
            Err(why) => tried.push(format!("`{}`: {why}", place.display())),
        }
    }
    let mut diagnostic = Diagnostic::machine("llvm-missing", "there is no LLVM 22, which makes GPU code, on this machine")
        .help(format!(
            "keep `lib/{}` beside the `bin` folder of moec, or install LLVM 22 (Debian: libllvm22); `--target cpu` needs none",
            at_run_time::FILE_NAME
        ));
    diagnostic.notes = tried;
    Err(diagnostic)
}

#[cfg(llvm_at_run_time)]
mod at_run_time {
    use super::{Llvm, MAJOR};
    use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};
    use std::ffi::{CStr, OsStr, c_void};
    use std::os::unix::ffi::OsStrExt;
    use std::path::{Path, PathBuf};

    include!(concat!(env!("OUT_DIR"), "/llvm_table.rs"));

    unsafe extern "C" {
        /// Where the functions of `FUNCTIONS` are, in the same order.
        static mut moec_llvm_table: [*const c_void; N_FUNCTIONS];
    }

    /// Stands in the table until LLVM is open, and for functions that an LLVM does not have.
    extern "C" fn not_loaded() -> ! {
        panic!("a function of LLVM was called that is not there: llvm() should have been asked before")
    }

    /// Files that may be LLVM, the best first.
    pub(super) fn places() -> Vec<PathBuf> {
        let mut places = Vec::new();
        for image in [this_image(), std::env::current_exe().ok()].into_iter().flatten() {
            let Some(folder) = image.parent() else { continue };
            for place in [folder.join(FILE_NAME), folder.join("../lib").join(FILE_NAME)] {
                if !places.contains(&place) {
                    places.push(place);
                }
            }
        }
        if !BUILT_WITH.is_empty() {
            places.push(PathBuf::from(BUILT_WITH));
        }
        // Without a folder the system's loader searches.
        places.extend(["libLLVM.so.22.1", "libLLVM-22.so"].map(PathBuf::from));
        places
    }

    /// The file that this code was loaded from, when it is a shared library.
    fn this_image() -> Option<PathBuf> {
        let mut info = std::mem::MaybeUninit::<libc::Dl_info>::uninit();
        // SAFETY: the address is one of this image; the loader fills the structure when it returns non-zero.
        let info = unsafe {
            if libc::dladdr(not_loaded as *const c_void, info.as_mut_ptr()) == 0 {
                return None;
            }
            info.assume_init()
        };
        if info.dli_fname.is_null() {
            return None;
        }
        // SAFETY: the loader's own string, which lives as long as the image does.
        let name = unsafe { CStr::from_ptr(info.dli_fname) };
        // For a program this is what its caller typed, which need not be a path; `current_exe` knows better.
        std::fs::canonicalize(OsStr::from_bytes(name.to_bytes())).ok()
    }

    /// Opens one file and fills the table from it.
    pub(super) fn open(place: &Path) -> Result<Llvm, String> {
        let named = place.components().count() > 1;
        if named && !place.exists() {
            return Err("no such file".to_string());
        }
        // SAFETY: initialisers of LLVM run, as they would when linked. Local binding keeps it apart from other LLVMs of
        // this process.
        let library = unsafe { Library::open(Some(place), RTLD_NOW | RTLD_LOCAL) }.map_err(|e| e.to_string())?;
        // SAFETY: LLVM's C interface says that this is the function's type.
        let version = unsafe {
            library.get::<unsafe extern "C" fn(*mut u32, *mut u32, *mut u32)>(b"LLVMGetVersion\0").map(|get| {
                let mut version = (0, 0, 0);
                get(&raw mut version.0, &raw mut version.1, &raw mut version.2);
                version
            })
        };
        let version = version.map_err(|_| "it is no LLVM".to_string())?;
        if version.0 != MAJOR {
            return Err(format!("it is LLVM {}.{}.{}", version.0, version.1, version.2));
        }
        for (i, name) in FUNCTIONS.iter().enumerate() {
            // SAFETY: only the address is taken. The table is written by one thread, before `llvm()` returns for the
            // first time, and read by calls that come after it.
            unsafe {
                if let Ok(function) = library.get::<*const c_void>(name.to_bytes_with_nul()) {
                    (&raw mut moec_llvm_table).cast::<*const c_void>().add(i).write(function.as_raw_ptr());
                }
            }
        }
        let path = if named {
            std::fs::canonicalize(place).unwrap_or_else(|_| place.to_path_buf())
        } else {
            place.to_path_buf()
        };
        // LLVM cannot be unloaded: it keeps global state, and the table points into it.
        std::mem::forget(library);
        Ok(Llvm { path: Some(path), version })
    }

    #[cfg(test)]
    mod tests {
        #[test]
        fn what_is_no_llvm_is_told_apart() {
            let folder = std::env::temp_dir();
            let error = |place: &std::path::Path| super::open(place).expect_err("no LLVM");
            assert_eq!(error(&folder.join("no/such/libLLVM.so")), "no such file");
            assert_eq!(error("libc.so.6".as_ref()), "it is no LLVM");
        }

        #[test]
        fn the_shipped_library_comes_before_the_one_of_the_build() {
            let places = super::places();
            let at = |path: &std::path::Path| places.iter().position(|p| p == path).expect("should be a place");
            let exe = std::env::current_exe().expect("a test runs");
            let shipped = exe.parent().expect("a folder").join("../lib").join(super::FILE_NAME);
            assert!(at(&shipped) < at(super::BUILT_WITH.as_ref()));
            assert!(at(super::BUILT_WITH.as_ref()) < at("libLLVM-22.so".as_ref()));
        }
    }
}
