//! Packed weights on disk: a layer that was packed once is mapped the next time.
//!
//! One file for each packed buffer, named after everything that decides its bytes: the shards of the checkpoint (path, size and
//! time of change), what the config says about their format, the recipe of the parameter, the layout of the buffer, and the
//! version of the packing. A file appears under its name when it is complete, and ends with check sums: a damaged one is made anew.
//! Weights are mapped and not read, so that the sums of a file are looked at once for each state of it: what the file system said
//! of the file then stands in a small one beside it (`.seen`). Whatever is written to a file, or to its time of change, shows there.
//! That scales of a checkpoint are good ones is kept as well (`.checked`), so that they are read once for each state of its files.

use crate::memory::allocate;
use memmap2::Mmap;
use moec_bundle::manifest::ParamInfo;
use moec_ir::diag::Diagnostic;
use moec_ir::tile::Buffer;
use moec_weights::{Checkpoint, Plan, file_state};
use rayon::prelude::*;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Raised when packing gives other bytes for the same checkpoint, parameter and buffer, or refuses scales that it took.
const PACKING_VERSION: u32 = 2;

/// A file begins with the magic and its own key; the weights follow at the first page, then the CRC-32 of each piece of them.
const MAGIC: &[u8; 16] = b"moec weights v2\n";
const HEADER_BYTES: usize = 4096;

/// Bytes that a check sum is of: enough of them for all cores to have some.
const PIECE: usize = 1 << 20;

/// Bytes that are looked at before their pages are let go, a multiple of [`PIECE`].
const AT_ONCE: usize = 16 << 20;

/// A checkpoint whose packed weights are kept in a directory.
#[derive(Debug)]
pub struct CachedWeights {
    checkpoint: Arc<Checkpoint>,
    dir: PathBuf,
    /// What tells this checkpoint from others.
    identity: String,
}

/// A packed buffer, mapped.
#[derive(Debug)]
pub(crate) struct Packed {
    map: Mmap,
    bytes: usize,
}

impl Packed {
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.map[HEADER_BYTES..HEADER_BYTES + self.bytes]
    }

    /// Whether the check sums are those of the weights. Pages that have been looked at are let go, so that a file of any size
    /// takes little memory meanwhile; the system keeps them as long as it has room.
    fn is_sound(&self) -> bool {
        let sums_of = |at: usize| &self.map[HEADER_BYTES + self.bytes..][at / PIECE * 4..];
        self.bytes().chunks(AT_ONCE).enumerate().all(|(i, weights)| {
            let is_sound = sums_of(i * AT_ONCE).starts_with(&sums(weights));
            #[cfg(unix)]
            // SAFETY: the map is of a file and never written, so that dropped pages come back with the same bytes; the range lies
            // within it. Failing is no error: the pages stay.
            let _ = unsafe {
                let at = HEADER_BYTES + i * AT_ONCE;
                self.map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, at, weights.len())
            };
            is_sound
        })
    }
}

impl CachedWeights {
    /// Keeps the packed weights of `checkpoint` in `dir`, which is made when it is not there. Whoever is first packs;
    /// several processes may share a directory. Files of checkpoints that have changed stay until somebody deletes them:
    /// everything in the directory may be deleted at any time when no layer is loaded. A file that has changed since it was last
    /// looked at is read whole, to see whether it is damaged.
    ///
    /// # Errors
    /// `weight-cache-unusable` when the directory cannot be made or a shard cannot be looked at.
    pub fn new(checkpoint: Arc<Checkpoint>, dir: impl AsRef<Path>) -> Result<CachedWeights, Diagnostic> {
        let dir = dir.as_ref().to_path_buf();
        std::fs::create_dir_all(&dir).map_err(|e| unusable(&dir, &e))?;
        let identity = checkpoint.identity().map_err(|e| unusable(&dir, &e))?;
        Ok(CachedWeights { checkpoint, dir, identity })
    }

    /// The checkpoint.
    pub fn checkpoint(&self) -> &Arc<Checkpoint> {
        &self.checkpoint
    }

    /// The packed form of a parameter, from the cache or made now.
    ///
    /// # Errors
    /// Those of [`Plan::pack`]; `weight-cache-unusable` when files cannot be written or read.
    pub(crate) fn packed(&self, plan: &Plan<'_>, param: &ParamInfo, buffer: &Buffer) -> Result<Packed, Diagnostic> {
        let key = self.name(plan, &format!("{param:?}\n{buffer:?}"));
        let path = self.dir.join(format!("{key}.packed"));
        let bytes = buffer.bytes(0);
        if let Some(found) = self.open(&path, &key, bytes)? {
            return Ok(found);
        }
        let mut memory = allocate(bytes, &format!("the weight `{}`", param.name))?;
        plan.pack(&param.name, buffer, &mut memory[..bytes as usize])?;
        let file = self.write(&path, &key, &memory[..bytes as usize]).map_err(|e| unusable(&self.dir, &e))?;
        let map = self.map(&file)?;
        Ok(Packed { map, bytes: bytes as usize })
    }

    /// Looks at every scale of a plan, once for each state of the checkpoint.
    ///
    /// # Errors
    /// Those of [`Plan::check_scales`].
    pub(crate) fn check_scales(&self, plan: &Plan<'_>, params: &[ParamInfo]) -> Result<(), Diagnostic> {
        if !plan.has_scales() {
            return Ok(());
        }
        let checked = self.dir.join(format!("{}.checked", self.name(plan, &format!("scales of {params:?}"))));
        let state = self.checkpoint.state();
        if state.is_some() && std::fs::read_to_string(&checked).ok() == state {
            return Ok(());
        }
        plan.check_scales()?;
        if let Some(state) = state {
            // Where it cannot be written, as in a directory that is only read, every load looks at them.
            let _ = std::fs::write(checked, state);
        }
        Ok(())
    }

    /// The name of what is kept of `what`, for these weights in their state.
    fn name(&self, plan: &Plan<'_>, what: &str) -> String {
        let (version, packing) = (env!("CARGO_PKG_VERSION"), PACKING_VERSION.to_string());
        let parts = [version, &packing, &self.identity, &plan.identity(), what];
        moec_bundle::sha256(parts.join("\n").as_bytes())
    }

    /// The file, when it is there, complete, and as it was written.
    fn open(&self, path: &Path, key: &str, bytes: u64) -> Result<Option<Packed>, Diagnostic> {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(unusable(&self.dir, &e)),
        };
        let map = self.map(&file)?;
        let complete = map.len() as u64 == HEADER_BYTES as u64 + bytes + 4 * bytes.div_ceil(PIECE as u64)
            && map.starts_with(MAGIC)
            && map[MAGIC.len()..].starts_with(key.as_bytes());
        if !complete {
            return Ok(None);
        }
        let packed = Packed { map, bytes: bytes as usize };
        let (state, seen) = (file.metadata().ok().and_then(|m| file_state(&m)), path.with_extension("seen"));
        if state.is_some() && std::fs::read_to_string(&seen).ok() == state {
            return Ok(Some(packed));
        }
        let sound = packed.is_sound();
        if let (true, Some(state)) = (sound, state) {
            // Where it cannot be written, as in a directory that is only read, every load looks at the sums.
            let _ = std::fs::write(seen, state);
        }
        Ok(sound.then_some(packed))
    }

    fn map(&self, file: &File) -> Result<Mmap, Diagnostic> {
        // SAFETY: a file is not written again once it has its name; whoever changes it all the same breaks the promise
        // that the directory belongs to moec while layers are loaded.
        unsafe { Mmap::map(file) }.map_err(|e| unusable(&self.dir, &e))
    }

    /// The file, written, with its name, and open to be read.
    fn write(&self, path: &Path, key: &str, weights: &[u8]) -> std::io::Result<File> {
        let mut named = tempfile::Builder::new();
        named.prefix(key).suffix(".new");
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            // Who may read it is said by the mask of the process, as for any file; directories of caches are shared.
            named.permissions(std::fs::Permissions::from_mode(0o666));
        }
        // A name of its own: another process, or another machine, may be writing the same file.
        let mut file = named.tempfile_in(&self.dir)?;
        let mut header = [0; HEADER_BYTES];
        header[..MAGIC.len()].copy_from_slice(MAGIC);
        header[MAGIC.len()..MAGIC.len() + key.len()].copy_from_slice(key.as_bytes());
        file.write_all(&header)?;
        let (written, sums) = rayon::join(|| file.write_all(weights), || sums(weights));
        written?;
        file.write_all(&sums)?;
        file.as_file().sync_all()?;
        Ok(file.persist(path)?)
    }
}

/// The check sums of all pieces, one after another.
fn sums(weights: &[u8]) -> Vec<u8> {
    weights.par_chunks(PIECE).flat_map_iter(|piece| crc32fast::hash(piece).to_le_bytes()).collect()
}

pub(crate) fn unusable(dir: &Path, error: &std::io::Error) -> Diagnostic {
    Diagnostic::machine(
        "weight-cache-unusable",
        format!("packed weights cannot be kept in `{}`: {error}", dir.display()),
    )
    .help("give a directory with room for them, or load without a cache")
}
