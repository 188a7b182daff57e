//! Reads and runs the recipe of several devices.

use std::collections::BTreeMap;

use serde_json::Value;

use super::emulate::{EmulateError, Hold, Memory};
use super::json::{At, CALL, Result};
use super::spec::{LaunchError, RanksLaunch};
use crate::ast::Module;
use crate::buffers::{Buffer, Buffers};
use crate::exec::{ExecError, Options, Program, Ranks, RanksReport, Step};

/// What came of the launches of all ranks.
#[derive(Debug)]
pub struct RanksEmulation {
    /// The buffers that the recipe names as outputs, after all launches.
    pub outputs: Buffers,
    /// Findings and counters of each launch of each rank.
    pub report: RanksReport,
}

/// Reads a recipe with `ranks`; `None` when it is one of a single launch.
///
/// # Errors
/// As [`parse`](super::parse).
pub fn parse_ranks(text: &str) -> Result<Option<RanksLaunch>> {
    let root: Value = serde_json::from_str(text).map_err(|error| LaunchError::Json(error.to_string()))?;
    if root.get("ranks").is_none() {
        return Ok(None);
    }
    let root = At::root(&root);
    let object = root.object(&["target", "ranks", "windows", "outputs", "tolerance", "note", "source"])?;
    let mut ranks = Vec::new();
    for stream in root.need(object, "ranks")?.list()? {
        let call = |at: &At<'_>| at.call(at.object(&CALL)?);
        ranks.push(stream.list()?.iter().map(call).collect::<Result<Vec<_>>>()?);
    }
    if ranks.is_empty() {
        return Err(root.need(object, "ranks")?.unlike("a list of launches for each rank"));
    }
    let at = root.need(object, "windows")?;
    let windows = at.list()?.iter().map(At::strings).collect::<Result<Vec<_>>>()?;
    if windows.len() != ranks.len() {
        let expected = format!("a list for each of the {} ranks", ranks.len());
        return Err(at.wrong(format!("{} lists", windows.len()), &expected));
    }
    let (outputs, tolerance) = root.results(object)?;
    Ok(Some(RanksLaunch { target: root.need(object, "target")?.string()?, ranks, windows, outputs, tolerance }))
}

/// The memory of a rank.
struct OfRank<'a> {
    ranks: &'a mut Ranks,
    rank: u32,
    windows: &'a [Vec<String>],
    /// The rank that has a private buffer.
    owners: &'a mut BTreeMap<String, u32>,
}

impl Hold for OfRank<'_> {
    fn put(&mut self, name: Option<&str>, bytes: &[u8]) -> std::result::Result<u64, ExecError> {
        let window = name.and_then(|name| self.windows.iter().position(|of| of.iter().any(|w| w == name)));
        let address = match window {
            Some(owner) => self.ranks.window(owner as u32, (bytes.len() as u64).max(1))?,
            None => {
                self.owners.extend(name.map(|name| (name.to_owned(), self.rank)));
                self.ranks.alloc(self.rank, (bytes.len() as u64).max(1))?
            }
        };
        self.ranks.upload(address, bytes)?;
        Ok(address)
    }

    /// Pointers to private memory of other ranks are refused where they are made.
    fn may_name(&self, name: &str) -> std::result::Result<(), String> {
        match self.owners.get(name).filter(|owner| **owner != self.rank) {
            Some(owner) => Err(format!(
                "`{name}` is memory of rank {owner}, which rank {} does not see; make it one of the `windows`",
                self.rank
            )),
            None => Ok(()),
        }
    }
}

/// Runs the launches of all ranks on `ptx`.
///
/// # Errors
/// As [`emulate_launch`](super::emulate_launch), with the path of the field from the root of the recipe.
pub fn emulate_ranks(
    ptx: &str,
    recipe: &RanksLaunch,
    buffers: &Buffers,
    options: &Options,
) -> std::result::Result<RanksEmulation, EmulateError> {
    let module = Module::parse(ptx)?;
    let mut ranks = Ranks::new(super::emulate::target(&recipe.target)?, recipe.ranks.len() as u32);
    let (mut owners, mut addresses) = (BTreeMap::new(), BTreeMap::new());
    let mut programs: BTreeMap<&str, Program> = BTreeMap::new();
    for launch in recipe.ranks.iter().flatten() {
        if !programs.contains_key(launch.entry.as_str()) {
            programs.insert(&launch.entry, Program::compile(&module, &launch.entry)?);
        }
    }
    let mut streams = Vec::new();
    for (rank, launches) in recipe.ranks.iter().enumerate() {
        let mut stream = Vec::new();
        for (n, launch) in launches.iter().enumerate() {
            let mut hold =
                OfRank { ranks: &mut ranks, rank: rank as u32, windows: &recipe.windows, owners: &mut owners };
            let mut memory = Memory { hold: &mut hold, buffers, addresses: &mut addresses };
            let call = memory.launch(&format!("ranks[{rank}][{n}]."), &module, launch)?;
            if let Some(program) = programs.get(launch.entry.as_str()) {
                stream.push(Step { program, launch: call });
            }
        }
        streams.push(stream);
    }
    let known = |name: &String| addresses.contains_key(name) && buffers.contains_key(name);
    if let Some(index) = recipe.outputs.iter().position(|name| !known(name)) {
        let what = format!("no launch names `{}`", recipe.outputs[index]);
        return Err(LaunchError::Mismatch { field: format!("outputs[{index}]"), what }.into());
    }
    let report = ranks.launch(&streams, options)?;
    let mut outputs = Buffers::new();
    for name in &recipe.outputs {
        let (Some(address), Some(buffer)) = (addresses.get(name), buffers.get(name)) else { continue };
        let bytes = ranks.download(*address, buffer.bytes.len())?;
        outputs.insert(name.clone(), Buffer { dtype: buffer.dtype, shape: buffer.shape.clone(), bytes });
    }
    Ok(RanksEmulation { outputs, report })
}
