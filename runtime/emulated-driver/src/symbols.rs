//! The names of the driver's interface, and the functions that stand for them.

use crate::api::*;
use crate::call::{NOT_SUPPORTED, tell};
use std::collections::BTreeSet;
use std::ffi::c_uint;
use std::sync::{Mutex, PoisonError};

/// A function that programs may ask for by name.
pub struct Symbol {
    /// As the library exports it: `cuMemAlloc_v2`.
    pub name: &'static str,
    /// The version of CUDA, as 1000 · major + 10 · minor, whose `cuMemAlloc` it is.
    pub since: i32,
    /// The function.
    pub address: Address,
}

/// The address of a function.
pub struct Address(pub *const ());

// SAFETY: code may be called from any thread.
unsafe impl Sync for Address {}

/// Tells once that a call is missing.
fn lacks(name: &'static str) -> c_uint {
    static TOLD: Mutex<BTreeSet<&str>> = Mutex::new(BTreeSet::new());
    if TOLD.lock().unwrap_or_else(PoisonError::into_inner).insert(name) {
        tell(&format!("{name} is not in the emulated driver"));
    }
    NOT_SUPPORTED.0
}

macro_rules! lacking {
    ($name:ident) => {
        #[unsafe(no_mangle)]
        pub extern "C" fn $name() -> c_uint {
            lacks(stringify!($name))
        }
    };
}

macro_rules! per_thread {
    ($name:ident, $of:ident) => {
        /// The call under its other name.
        #[unsafe(no_mangle)]
        #[unsafe(naked)]
        pub unsafe extern "C" fn $name() {
            #[cfg(target_arch = "x86_64")]
            std::arch::naked_asm!("jmp {}", sym $of);
            #[cfg(target_arch = "aarch64")]
            std::arch::naked_asm!("b {}", sym $of);
        }
    };
}

include!(concat!(env!("OUT_DIR"), "/symbols.rs"));

/// The function that a program for `version` means by `name`: the newest that is not newer than it.
pub fn find(name: &str, version: i32) -> Option<*const ()> {
    // What the header calls `cuGraphInstantiate` since 12.0 has another name.
    if name == "cuGraphInstantiate" && version >= 12000 {
        return find("cuGraphInstantiateWithFlags", version);
    }
    let is_named = |s: &&Symbol| s.name.strip_prefix(name).is_some_and(|rest| rest.is_empty() || is_version(rest));
    let known = SYMBOLS.iter().filter(is_named).filter(|s| s.since <= version).max_by_key(|s| s.since);
    known.or_else(|| SYMBOLS.iter().find(|s| s.name == name)).map(|s| s.address.0)
}

fn is_version(suffix: &str) -> bool {
    suffix.strip_prefix("_v").is_some_and(|digits| digits.parse::<u8>().is_ok())
}
