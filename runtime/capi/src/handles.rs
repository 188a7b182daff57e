//! Handles that can be checked: numbers in the shape of pointers, which nobody follows.
//!
//! A number is given once and never again, so a handle that was freed is told from a living one, whatever was made since.

use moec_ir::diag::Diagnostic;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

/// The next number; shared by all kinds, so that a handle of one kind is none of another.
static NEXT: AtomicUsize = AtomicUsize::new(1);

/// All living handles of one kind.
pub(crate) struct Handles<T> {
    /// What it is called in errors.
    what: &'static str,
    living: RwLock<BTreeMap<usize, Arc<T>>>,
}

impl<T> Handles<T> {
    pub const fn new(what: &'static str) -> Handles<T> {
        Handles { what, living: RwLock::new(BTreeMap::new()) }
    }

    /// A handle for `value`. Odd, so that no pointer to anything is one.
    pub fn add(&self, value: T) -> usize {
        let handle = NEXT.fetch_add(1, Ordering::Relaxed) * 2 + 1;
        self.living.write().unwrap_or_else(PoisonError::into_inner).insert(handle, Arc::new(value));
        handle
    }

    /// What a handle stands for; it lives as long as somebody works with it.
    ///
    /// # Errors
    /// `argument-null`, `handle-invalid`.
    pub fn get(&self, handle: usize) -> Result<Arc<T>, Diagnostic> {
        if handle == 0 {
            return Err(Diagnostic::input("argument-null", format!("the handle of a {} is null", self.what)));
        }
        let living = self.living.read().unwrap_or_else(PoisonError::into_inner);
        living.get(&handle).cloned().ok_or_else(|| {
            Diagnostic::input(
                "handle-invalid",
                format!("{handle:#x} is no {}: it was freed, or is something else", self.what),
            )
        })
    }

    /// Forgets a handle; null is none.
    ///
    /// # Errors
    /// `handle-invalid`.
    pub fn free(&self, handle: usize) -> Result<(), Diagnostic> {
        if handle == 0 {
            return Ok(());
        }
        let gone = self.living.write().unwrap_or_else(PoisonError::into_inner).remove(&handle);
        // Dropped here, after the lock: to free a layer takes time.
        gone.map(drop).ok_or_else(|| {
            Diagnostic::input("handle-invalid", format!("{handle:#x} is no {}, or was freed before", self.what))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handle_is_known_until_it_is_freed_and_never_again() {
        static SOME: Handles<u32> = Handles::new("thing");
        static OTHER: Handles<u32> = Handles::new("other");
        let h = SOME.add(7);
        assert_eq!(*SOME.get(h).unwrap(), 7);
        assert_eq!(OTHER.get(h).unwrap_err().code, "handle-invalid");
        let held = SOME.get(h).unwrap();
        SOME.free(h).unwrap();
        assert_eq!(*held, 7);
        assert_eq!(SOME.get(h).unwrap_err().code, "handle-invalid");
        assert_eq!(SOME.free(h).unwrap_err().code, "handle-invalid");
        assert_ne!(SOME.add(8), h);
        assert_eq!(SOME.get(0).unwrap_err().code, "argument-null");
        assert!(SOME.free(0).is_ok());
    }
}
