//! A program on one of several devices of the emulator, as launches for the stream of a rank.

use crate::emulator::{Code, architecture, failed};
use crate::host;
use crate::plan::Place;
use crate::weights::Weights;
use moec_bundle::manifest::TensorInfo;
use moec_bundle::{Bundle, Manifest};
use moec_ir::diag::Diagnostic;
use moec_ir::tile::{Buffer, Role};
use moec_ir::{DType, Tensor};
use moec_ptx::exec::{Ranks, Step};
use std::sync::Arc;

/// A program of a bundle, read once for all ranks.
#[derive(Clone)]
pub struct RankCode {
    code: Arc<Code>,
    manifest: Arc<Manifest>,
}

/// A program with the weights of a rank.
pub struct RankProgram {
    code: RankCode,
    rank: u32,
    /// Addresses of the packed weights.
    weights: Vec<u64>,
}

/// A run of a program before it is launched.
pub struct Staged<'p> {
    /// The name of each kernel, and its launch.
    pub steps: Vec<(&'p str, Step<'p>)>,
    /// What was allocated for it.
    pub made: Vec<u64>,
    program: &'p RankProgram,
    n_tokens: u64,
    outputs: Vec<(&'p TensorInfo, &'p Buffer, u64)>,
}

/// A device for each rank.
///
/// # Errors
/// `emulator-refused` for a target that the emulator does not know.
pub fn ranks(target: &str, n_ranks: u32) -> Result<Ranks, Diagnostic> {
    Ok(Ranks::new(architecture(target)?, n_ranks))
}

/// Memory of a rank with these bytes in it, or with nothing written in it.
///
/// # Errors
/// `emulator-refused` when the devices are full.
pub fn place(ranks: &mut Ranks, rank: u32, bytes: Result<&[u8], u64>) -> Result<u64, Diagnostic> {
    let n = bytes.map_or_else(|n| n, |b| b.len() as u64);
    let address = ranks.alloc(rank, n.max(1)).map_err(failed)?;
    if let Ok(bytes) = bytes
        && !bytes.is_empty()
    {
        ranks.upload(address, bytes).map_err(failed)?;
    }
    Ok(address)
}

impl RankCode {
    /// Reads the kernels of a GPU target of a bundle.
    ///
    /// # Errors
    /// `target-not-in-bundle`, `too-many-tokens`, `emulator-refused`.
    pub fn new(bundle: &Bundle, target: &str, max_tokens: u64) -> Result<RankCode, Diagnostic> {
        let code = Arc::new(Code::new(bundle, target, max_tokens)?);
        Ok(RankCode { code, manifest: Arc::new(bundle.manifest().clone()) })
    }

    /// Packs a rank's weights.
    ///
    /// # Errors
    /// Those of packing; `emulator-refused` when the devices are full.
    pub fn load(&self, weights: &Weights<'_>, ranks: &mut Ranks, rank: u32) -> Result<RankProgram, Diagnostic> {
        let found = weights.find(&self.manifest)?;
        let mut addresses = Vec::new();
        for slot in &self.code.plan.weights {
            let param = &self.manifest.params[slot.param];
            found.begin(param, &slot.buffer);
            let mut packed = vec![0; slot.buffer.bytes(0) as usize];
            found.pack(param, &slot.buffer, &mut packed)?;
            addresses.push(place(ranks, rank, Ok(&packed))?);
        }
        Ok(RankProgram { code: self.clone(), rank, weights: addresses })
    }
}

impl RankProgram {
    /// Puts a tensor where a run takes it as the input of this name from; nothing where the program has no such input.
    ///
    /// # Errors
    /// `input-type-mismatch`, `emulator-refused`.
    pub fn put(&self, ranks: &mut Ranks, name: &str, tensor: &Tensor) -> Result<Option<u64>, Diagnostic> {
        let Some(info) = self.code.manifest.inputs.iter().find(|i| i.name == name) else { return Ok(None) };
        place(ranks, self.rank, Ok(&host::convert(info, tensor)?.to_bytes())).map(Some)
    }

    /// Addresses of its packed weights.
    pub fn weights(&self) -> &[u64] {
        &self.weights
    }

    /// Makes a run of `n_tokens` tokens, with the inputs of these names at these addresses, row after row.
    ///
    /// # Errors
    /// `input-missing`, `too-many-tokens`, `emulator-refused`; `internal-error` for an input that the program wants with gaps between its rows.
    pub fn stage(&self, ranks: &mut Ranks, n_tokens: u64, inputs: &[(&str, u64)]) -> Result<Staged<'_>, Diagnostic> {
        let (code, manifest) = (&self.code.code, &self.code.manifest);
        let v = code.plan.variant_for(n_tokens)?;
        let (mut addresses, mut made, mut outputs) = (Vec::new(), Vec::new(), Vec::new());
        for (buffer, place_of) in code.plan.variants[v].buffers.iter().zip(&code.plan.places[v]) {
            let mut fresh = |content: Result<&[u8], u64>| {
                let address = place(ranks, self.rank, content)?;
                made.push(address);
                Ok::<u64, Diagnostic>(address)
            };
            let address = match (*place_of, &buffer.role) {
                (Place::Weight(w), _) => self.weights[w],
                (_, Role::Input(i)) => {
                    dense(buffer)?;
                    let name = &manifest.inputs[*i as usize].name;
                    let given = inputs.iter().find(|(n, _)| n == name).map(|(_, a)| *a);
                    given.ok_or_else(|| {
                        Diagnostic::input("input-missing", format!("the layer needs the input `{name}`"))
                    })?
                }
                (_, Role::Counter) => fresh(Ok(&vec![0; buffer.bytes(n_tokens) as usize]))?,
                _ => fresh(Err(buffer.bytes(n_tokens)))?,
            };
            if let Role::Output(i) = buffer.role {
                outputs.push((&manifest.outputs[i as usize], buffer, address));
            }
            addresses.push(address);
        }
        let count = place(ranks, self.rank, Ok(&(n_tokens as u32).to_le_bytes()))?;
        made.push(count);
        let mut steps = Vec::new();
        for step in &code.variants[v] {
            if let Some(launch) = step.launch(n_tokens, &addresses, count)? {
                steps.push((step.name.as_str(), Step { program: &code.programs[step.program], launch }));
            }
        }
        Ok(Staged { steps, made, program: self, n_tokens, outputs })
    }
}

impl Staged<'_> {
    /// Where the output of this name will be, row after row, and its element type.
    ///
    /// # Errors
    /// `internal-error` when there is none, or one with gaps between its rows.
    pub fn output(&self, name: &str) -> Result<(u64, DType), Diagnostic> {
        let found = self.outputs.iter().find(|(info, ..)| info.name == name);
        let missing = || Diagnostic::internal("internal-error", format!("`{name}` should have been made"));
        let (_, buffer, address) = found.ok_or_else(missing)?;
        dense(buffer)?;
        Ok((*address, buffer.dtype))
    }

    /// The outputs, after the launch.
    ///
    /// # Errors
    /// `emulator-refused`.
    pub fn read(&self, ranks: &Ranks) -> Result<Vec<(String, Tensor)>, Diagnostic> {
        let mut out = Vec::new();
        for info in &self.program.code.manifest.outputs {
            let Some((_, buffer, address)) = self.outputs.iter().find(|(i, ..)| i.name == info.name) else { continue };
            let bytes = ranks.download(*address, buffer.bytes(self.n_tokens) as usize).map_err(failed)?;
            out.push((info.name.clone(), host::read_rows(info, buffer, self.n_tokens, &bytes)?));
        }
        Ok(out)
    }
}

fn dense(buffer: &Buffer) -> Result<(), Diagnostic> {
    if buffer.pitch == buffer.cols {
        return Ok(());
    }
    Err(Diagnostic::internal("internal-error", format!("`{}` has gaps between its rows", buffer.name)))
}
