//! Experts under a memory limit that lie in no file as kernels read them: they are written to one.

use super::{Interleaving, WeightMemory};
use memmap2::Mmap;
use moec_bundle::manifest::ParamInfo;
use moec_ir::diag::Diagnostic;
use moec_ir::files::Scratch;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Where weights may lie, and how much memory they may take.
#[derive(Clone, Debug)]
pub(crate) struct Room {
    /// Most bytes of routed experts in memory.
    pub limit: Option<u64>,
    /// Where files may be made for those that have none.
    pub folder: Option<PathBuf>,
    /// Nodes that memory is taken from.
    pub nodes: Interleaving,
}

impl Room {
    /// That there is a folder for files.
    ///
    /// # Errors
    /// `memory-limit-needs-file`.
    pub fn check(&self, param: &ParamInfo) -> Result<(), Diagnostic> {
        if self.folder.is_some() {
            return Ok(());
        }
        let what = format!(
            "memory is limited, but no file has the weight `{}`, {}, as kernels read it: experts come from files then",
            param.name, param.ty
        );
        Err(Diagnostic::input("memory-limit-needs-file", what)
            .help("give a folder for packed weights (--weight-cache DIR), or no limit"))
    }

    /// The same weight in a file, mapped. The file has no name any more and goes with the layer.
    ///
    /// # Errors
    /// `memory-limit-needs-file`; `weight-cache-unusable`.
    pub fn spill(&self, param: &ParamInfo, weights: &[u8]) -> Result<WeightMemory, Diagnostic> {
        self.check(param)?;
        let folder = self.folder.clone().unwrap_or_default();
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let name = format!("experts.{}.{}.new", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let write = || {
            std::fs::create_dir_all(&folder)?;
            let path = Scratch::new(folder.join(name));
            let mut file = std::fs::OpenOptions::new().read(true).write(true).create_new(true).open(path.path())?;
            file.write_all(weights)?;
            // Pages that are on the disk can be taken back when memory runs short.
            file.sync_data()?;
            // SAFETY: nobody else has the file, which loses its name here.
            unsafe { Mmap::map(&file) }
        };
        let map = write().map_err(|e| crate::weight_cache::unusable(&folder, &e))?;
        Ok(WeightMemory::Mapped(map.as_ptr(), Arc::new(map)))
    }
}
