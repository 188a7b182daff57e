//! A layer for ranks on disk: its programs, each a bundle in a tar; the kernels that exchange rows; and what ties them together.

use crate::bundle::Bundle;
use crate::canonical::{canonical_text, sha256};
use crate::folder::{self, corrupt};
use crate::manifest::{FileInfo, LayerInfo, ParamInfo, SUMS_FILE, TensorInfo};
use crate::verify::is_safe_path;
use moec_ir::Mesh;
use moec_ir::diag::Diagnostic;
use moec_ir::exchange::{Exchange, ExchangeKernel};
use moec_ir::graph::{Maker, Source, Wire};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// The format that this version reads and writes.
pub const PLACED_FORMAT: u32 = 2;

/// Name of the manifest within a bundle for ranks.
pub const PLACED_FILE: &str = "placed.json";

/// What a bundle for ranks is: the content of `placed.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlacedManifest {
    /// Format version: [`PLACED_FORMAT`].
    pub moec_placed: u32,
    /// Version of the compiler that wrote it.
    pub moec_version: String,
    /// The whole layer.
    pub layer: LayerInfo,
    /// The mesh that it was compiled for. Its groups may be more or fewer at run time; their members may not.
    pub mesh: Mesh,
    /// Most tokens of a rank in a step.
    pub max_tokens: u64,
    /// Experts of the whole layer.
    pub n_experts: u32,
    /// Most experts that a rank, or a group, has room for.
    pub n_local: u32,
    /// Slots of a token.
    pub top_k: u64,
    /// The layer's inputs, in order.
    pub inputs: Vec<TensorInfo>,
    /// Its outputs, in order, and which program makes them.
    pub outputs: Vec<PlacedOutput>,
    /// The row of each token that is dispatched.
    pub rows: Source,
    /// The experts of each token.
    pub ids: Source,
    /// The weights of the slots.
    pub weights: Option<Source>,
    /// The tail's other inputs.
    pub crossing: Vec<Crossing>,
    /// What a dispatched row is on its way.
    pub wire: Wire,
    /// The file of the head's bundle.
    pub head: Option<String>,
    /// What each member of a group runs of its experts; one entry where experts are whole.
    pub experts: Vec<PlacedExperts>,
    /// The file of the tail's bundle.
    pub tail: String,
    /// The kernels that exchange rows, of each member of a group; none where the host exchanges them.
    pub exchange: Vec<PlacedExchange>,
    /// Every other file by its path.
    pub files: BTreeMap<String, FileInfo>,
}

/// An output of a layer for ranks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlacedOutput {
    /// Its name.
    pub name: String,
    /// Which program makes it.
    pub made_by: Maker,
}

/// An input of the tail.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Crossing {
    /// Its name in the tail.
    pub name: String,
    /// What it is.
    pub source: Source,
}

/// Programs of local experts, in the order in which they run: one of whole experts, or that of the columns of the first products and
/// that of the second.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlacedExperts {
    /// One or two.
    pub programs: Vec<PlacedProgram>,
}

/// A program of local experts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlacedProgram {
    /// The file of its bundle.
    pub file: String,
    /// Its parameters that have an axis of experts, with all experts.
    pub stacks: Vec<ParamInfo>,
}

/// Kernels that exchange rows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlacedExchange {
    /// What they were made for.
    pub what: Exchange,
    /// By target, in the order in which they run. Their PTX is in the files of [`PlacedBundle::kernel_path`].
    pub kernels: BTreeMap<String, Vec<ExchangeKernel>>,
}

/// A compiled layer for ranks. What it holds has been checked as in a [`Bundle`].
#[derive(Clone, Debug, PartialEq)]
pub struct PlacedBundle {
    manifest: PlacedManifest,
    files: BTreeMap<String, Vec<u8>>,
}

impl PlacedBundle {
    /// A bundle from its parts; sizes and hashes of the file table are filled in.
    ///
    /// # Errors
    /// `bundle-invalid`.
    pub fn new(mut manifest: PlacedManifest, files: BTreeMap<String, Vec<u8>>) -> Result<PlacedBundle, Diagnostic> {
        let info = |content: &Vec<u8>| FileInfo { bytes: content.len() as u64, sha256: sha256(content) };
        manifest.files = files.iter().map(|(path, content)| (path.clone(), info(content))).collect();
        verify(&manifest)?;
        Ok(PlacedBundle { manifest, files })
    }

    /// Whether there is a bundle for ranks in a folder.
    pub fn is_at(path: &Path) -> bool {
        path.join(PLACED_FILE).is_file()
    }

    /// Where the PTX of a kernel that exchanges rows lies.
    pub fn kernel_path(target: &str, member: usize, entry: &str) -> String {
        format!("exchange/{target}/{member}/{entry}.ptx")
    }

    /// Reads the bundle in the folder at `path`, and checks all of it.
    ///
    /// # Errors
    /// `bundle-not-found`, `bundle-corrupt`, `bundle-version-unsupported`, `bundle-invalid`.
    pub fn open(path: impl AsRef<Path>) -> Result<PlacedBundle, Diagnostic> {
        let dir = path.as_ref();
        if !PlacedBundle::is_at(dir) {
            let what = format!("there is no bundle for ranks at `{}`", dir.display());
            return Err(Diagnostic::input("bundle-not-found", what)
                .note(format!("it is a folder with a `{PLACED_FILE}`"))
                .help("give the folder that `moec compile MODEL --mesh ep=N -o DIR` wrote"));
        }
        let at = dir.join(PLACED_FILE);
        let text = folder::read_limited(&at, folder::MAX_MANIFEST_BYTES)?;
        folder::check_version(&at, &text, "moec_placed", PLACED_FORMAT)?;
        let manifest: PlacedManifest =
            serde_json::from_slice(&text).map_err(|e| corrupt(&at, format!("it is no manifest: {e}")))?;
        if canonical_text(&manifest).as_bytes() != text {
            return Err(corrupt(&at, "it is not as moec wrote it".into()));
        }
        verify(&manifest)?;
        let files = folder::gather(dir, &manifest.files, |name, limit| folder::read_limited(&dir.join(name), limit))?;
        let bundle = PlacedBundle { manifest, files };
        let want = bundle.sums_text();
        if folder::read_limited(&dir.join(SUMS_FILE), want.len() as u64)? != want.as_bytes() {
            let why = format!("it does not have the hashes of `{PLACED_FILE}` and its files");
            return Err(corrupt(&dir.join(SUMS_FILE), why));
        }
        Ok(bundle)
    }

    /// Writes it to the folder `dir`, all or nothing; an older bundle there is replaced. The same bundle gives the same bytes.
    ///
    /// # Errors
    /// `output-not-a-bundle`, `output-not-written`.
    pub fn write(&self, dir: impl AsRef<Path>) -> Result<(), Diagnostic> {
        let own = [(PLACED_FILE, canonical_text(&self.manifest)), (SUMS_FILE, self.sums_text())];
        let files = self.files.iter().map(|(path, content)| (path.as_str(), content.as_slice()));
        crate::write::write_folder(dir.as_ref(), files.chain(own.iter().map(|(p, t)| (*p, t.as_bytes()))))
    }

    fn sums_text(&self) -> String {
        folder::sums_text((PLACED_FILE, &canonical_text(&self.manifest)), &self.manifest.files)
    }

    /// What it is.
    pub fn manifest(&self) -> &PlacedManifest {
        &self.manifest
    }

    /// The program in a file of it.
    ///
    /// # Errors
    /// `bundle-invalid`, `bundle-corrupt`, `bundle-version-unsupported`.
    pub fn program(&self, file: &str) -> Result<Bundle, Diagnostic> {
        Bundle::from_archive(self.file(file)?).map_err(|d| d.note(format!("in `{file}` of a bundle for ranks")))
    }

    /// The content of a file that the manifest names.
    ///
    /// # Errors
    /// `bundle-invalid` when there is no such file.
    pub fn file(&self, path: &str) -> Result<&[u8], Diagnostic> {
        let found = self.files.get(path).map(Vec::as_slice);
        found.ok_or_else(|| Diagnostic::input("bundle-invalid", format!("the bundle has no file `{path}`")))
    }
}

impl PlacedManifest {
    /// The files of its programs, in the order in which they run: those of all members where there are several.
    pub fn programs(&self) -> impl Iterator<Item = &str> {
        let experts = self.experts.iter().flat_map(|of| &of.programs).map(|p| p.file.as_str());
        self.head.iter().map(String::as_str).chain(experts).chain([self.tail.as_str()])
    }
}

/// That a manifest is one of a layer for ranks, and names what is there.
fn verify(m: &PlacedManifest) -> Result<(), Diagnostic> {
    let ensure = |holds: bool, why: &str| {
        let what = || format!("the bundle of `{}` for ranks is not one that moec writes: {why}", m.layer.name);
        if holds { Ok(()) } else { Err(Diagnostic::input("bundle-invalid", what()).help("compile the layer again")) }
    };
    ensure(m.mesh.ep >= 1 && m.mesh.tp >= 1, "its mesh has no ranks")?;
    ensure(
        m.mesh.ep.checked_mul(m.mesh.tp).is_some_and(|n| n <= moec_ir::placement::MAX_RANKS),
        "its mesh has too many ranks",
    )?;
    ensure((1..=m.n_experts).contains(&m.n_local), "ranks have room for no experts, or for more than there are")?;
    ensure((1..=u64::from(u32::MAX)).contains(&m.top_k), "tokens have no slots, or too many")?;
    ensure(m.max_tokens <= crate::MAX_TOKENS, "ranks have too many tokens")?;
    ensure(m.experts.len() == m.mesh.tp as usize, "it has not the experts of each member of a group")?;
    let n = if m.mesh.tp > 1 { 2 } else { 1 };
    ensure(m.experts.iter().all(|of| of.programs.len() == n), "a member has not the programs of its experts")?;
    ensure(m.exchange.is_empty() || m.exchange.len() == m.experts.len(), "it has not the kernels of each member")?;
    let mut needed: BTreeSet<String> = m.programs().map(str::to_string).collect();
    for (member, of) in m.exchange.iter().enumerate() {
        let cut = of.what.cut.map(|c| (c.members, c.member as usize));
        ensure(cut == (m.mesh.tp > 1).then_some((m.mesh.tp, member)), "its kernels are those of another mesh")?;
        ensure(u64::from(of.what.top_k) == m.top_k, "its kernels are for other slots")?;
        let paths = of.kernels.iter().flat_map(|(target, kernels)| {
            kernels.iter().map(move |k| PlacedBundle::kernel_path(target, member, &k.entry))
        });
        needed.extend(paths);
    }
    ensure(m.files.keys().all(|p| is_safe_path(p) && p != PLACED_FILE), "a file name leaves the bundle")?;
    ensure(needed.iter().eq(m.files.keys()), "its files are not those that it names")
}
