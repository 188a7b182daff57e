//! What the system is told of pages that a file is mapped to.

use moec_ir::diag::Diagnostic;

/// A range of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pages {
    pub start: usize,
    pub end: usize,
}

/// The largest page of the system's cache of files: with a page that is asked for, it maps all that lies between multiples of this.
pub(super) const LARGE: usize = 2 << 20;

/// That the system can be told.
///
/// # Errors
/// `memory-limit-unsupported`.
pub(super) fn check() -> Result<(), Diagnostic> {
    if cfg!(target_os = "linux") {
        return Ok(());
    }
    Err(Diagnostic::machine("memory-limit-unsupported", "only Linux is told to let pages of experts go")
        .help("load without a memory limit"))
}

#[cfg(target_os = "linux")]
pub(super) fn page_bytes() -> usize {
    // SAFETY: a number of the system.
    usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096)
}

#[cfg(target_os = "linux")]
impl Pages {
    fn advise(self, advice: libc::c_int) -> std::io::Result<()> {
        let start = std::ptr::without_provenance_mut(self.start);
        // SAFETY: the range is mapped to a file and only read; none of the pieces of advice given here changes what is read there.
        match unsafe { libc::madvise(start, self.end - self.start, advice) } {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        }
    }

    /// Has the pages mapped one by one: a large page that is mapped as a whole can be let go
    /// as a whole only, with experts that are needed. They must begin at a page.
    pub fn map_one_by_one(self) {
        // A system that refuses has no large pages.
        let _ = self.advise(libc::MADV_NOHUGEPAGE);
    }

    /// Brings the pages into memory and waits. They must begin at a page.
    ///
    /// # Errors
    /// Those of reading, also where a file has become shorter.
    pub fn bring(self) -> std::io::Result<()> {
        // Just these pages: reading at a fault brings megabytes around it.
        let _ = self.advise(libc::MADV_WILLNEED);
        match self.advise(libc::MADV_POPULATE_READ) {
            // Linux before 5.14 does not know it; the kernels then fault in what has been asked for.
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => Ok(()),
            // It is no bad address but a page that the file does not have.
            Err(e) if e.raw_os_error() == Some(libc::EFAULT) => Err(std::io::ErrorKind::UnexpectedEof.into()),
            result => result,
        }
    }

    /// Takes the pages out of the memory of this process. They must begin at a page.
    pub fn let_go(self) {
        // Failing is no error: pages that are locked into memory stay there.
        let _ = self.advise(libc::MADV_DONTNEED);
    }
}

#[cfg(not(target_os = "linux"))]
pub(super) fn page_bytes() -> usize {
    4096
}

#[cfg(not(target_os = "linux"))]
impl Pages {
    /// Not called: [`check`] refuses.
    pub fn map_one_by_one(self) {}

    /// Not called: [`check`] refuses.
    pub fn bring(self) -> std::io::Result<()> {
        Err(std::io::ErrorKind::Unsupported.into())
    }

    /// Not called: [`check`] refuses.
    pub fn let_go(self) {}
}
