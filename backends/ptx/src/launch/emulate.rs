//! Runs a launch recipe: PTX text, recipe and buffers in, results and findings out.

use std::collections::BTreeMap;

use super::json::parse;
use super::spec::{Launch, LaunchError, Param, Patch, PatchValue, TensorMap};
use crate::ast::{Function, Module, Number, Variable};
use crate::buffers::{Buffer, Buffers};
use crate::exec::{self, CompileError, Counters, Device, ExecError, Program, Report, Target};
use crate::parse::ParseError;

pub use crate::exec::Options;

/// What came of a launch.
#[derive(Debug)]
pub struct Emulation {
    /// The buffers that the recipe names as outputs, after the launch.
    pub outputs: Buffers,
    /// Findings of the checks, and what was counted.
    pub report: Report,
}

impl Emulation {
    /// What the launch executed and moved.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.report.counters
    }
}

/// Why a launch could not be carried out. What the kernel does wrong while it runs is a finding in the [`Report`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EmulateError {
    /// The recipe is malformed or does not fit the PTX or the buffers.
    #[error(transparent)]
    Launch(#[from] LaunchError),
    /// The text is not PTX.
    #[error("line {0}")]
    Parse(#[from] ParseError),
    /// The kernel holds something that the emulator does not execute.
    #[error(transparent)]
    Compile(#[from] CompileError),
    /// The launch went wrong: deadlock, instruction limit, no memory.
    #[error(transparent)]
    Exec(#[from] ExecError),
}

/// Runs the recipe `launch_json` on `ptx` with the initial contents `buffers`.
///
/// # Errors
/// As [`emulate_launch`]; also when the recipe is malformed.
pub fn emulate(ptx: &str, launch_json: &str, buffers: &Buffers, options: &Options) -> Result<Emulation, EmulateError> {
    emulate_launch(ptx, &parse(launch_json)?, buffers, options)
}

/// Runs `launch` on `ptx`. Every buffer that a parameter names must be in `buffers`; each gets an allocation of its own.
///
/// # Errors
/// [`EmulateError::Parse`] and [`EmulateError::Compile`] with the PTX line, [`EmulateError::Launch`] with the field of the
/// recipe, [`EmulateError::Exec`] when the launch cannot start or go on.
pub fn emulate_launch(
    ptx: &str,
    launch: &Launch,
    buffers: &Buffers,
    options: &Options,
) -> Result<Emulation, EmulateError> {
    let module = Module::parse(ptx)?;
    let program = Program::compile(&module, &launch.entry)?;
    let mut device = Device::new(target(&launch.target)?);
    let mut addresses = BTreeMap::new();
    let mut memory = Memory { hold: &mut device, buffers, addresses: &mut addresses };
    let call = memory.launch("", &module, launch)?;
    for (index, name) in launch.outputs.iter().enumerate() {
        memory.address(&format!("outputs[{index}]"), name)?;
    }
    let report = device.launch(&program, &call, options)?;
    let mut outputs = Buffers::new();
    for name in &launch.outputs {
        let (Some(address), Some(buffer)) = (addresses.get(name), buffers.get(name)) else { continue };
        let bytes = device.download(*address, buffer.bytes.len())?;
        outputs.insert(name.clone(), Buffer { dtype: buffer.dtype, shape: buffer.shape.clone(), bytes });
    }
    Ok(Emulation { outputs, report })
}

/// The machine of a recipe.
pub(super) fn target(name: &str) -> Result<Target, LaunchError> {
    Target::parse(name).ok_or_else(|| LaunchError::Field {
        field: "target".to_string(),
        found: format!("\"{name}\""),
        expected: "a machine from sm_80 on, such as sm_90a".to_string(),
    })
}

/// Compares number and sizes of the parameters with those that the PTX declares. Fields of the launch stand behind `path`.
fn check_params(path: &str, launch: &Launch, entry: &Function) -> Result<(), LaunchError> {
    let declared = entry.params.as_deref().unwrap_or_default();
    if declared.len() != launch.params.len() {
        let what =
            format!("{} are given, but the entry `{}` declares {}", launch.params.len(), entry.name, declared.len());
        return Err(LaunchError::Mismatch { field: format!("{path}params"), what });
    }
    for (index, (given, variable)) in launch.params.iter().zip(declared).enumerate() {
        let Some(want) = size_bytes(variable) else { continue };
        let have = given.size_bytes() as u64;
        if want != have {
            let name = variable.names.first().map_or("", |declarator| declarator.name.as_str());
            let what = format!("{have} bytes are given, but `{name}` takes {want}");
            return Err(LaunchError::Mismatch { field: format!("{path}params[{index}]"), what });
        }
    }
    Ok(())
}

/// Bytes of a parameter; `None` for what has no fixed size.
fn size_bytes(variable: &Variable) -> Option<u64> {
    let digits = variable.ty.trim_start_matches(|c: char| c.is_ascii_alphabetic());
    let element: u64 = digits.parse::<u64>().ok()? / 8 * u64::from(variable.vector.max(1));
    let mut extents = variable.names.first()?.dims.iter().map(|extent| match extent.as_ref()?.value {
        Number::Int(value) => u64::try_from(value).ok(),
        Number::F32(_) | Number::F64(_) => None,
    });
    extents.try_fold(element, |size, extent| size.checked_mul(extent?))
}

/// What holds buffers.
pub(super) trait Hold {
    /// Allocates and fills a buffer, one of the recipe's if it has a name.
    fn put(&mut self, name: Option<&str>, bytes: &[u8]) -> Result<u64, ExecError>;

    /// Whether a parameter may name a buffer that is there, or why not.
    fn may_name(&self, name: &str) -> Result<(), String>;
}

impl Hold for Device {
    fn put(&mut self, _: Option<&str>, bytes: &[u8]) -> Result<u64, ExecError> {
        let address = self.alloc((bytes.len() as u64).max(1))?;
        self.upload(address, bytes)?;
        Ok(address)
    }

    fn may_name(&self, _: &str) -> Result<(), String> {
        Ok(())
    }
}

/// Device memory with the buffers that were placed in it so far.
pub(super) struct Memory<'a> {
    pub hold: &'a mut dyn Hold,
    pub buffers: &'a Buffers,
    pub addresses: &'a mut BTreeMap<String, u64>,
}

impl Memory<'_> {
    /// Checks a launch against the PTX and places what its parameters name. Its fields stand behind `path`.
    pub fn launch(&mut self, path: &str, module: &Module, launch: &Launch) -> Result<exec::Launch, EmulateError> {
        if let Some(entry) = module.entries().find(|function| function.name == launch.entry) {
            check_params(path, launch, entry)?;
        }
        let mut params = Vec::with_capacity(launch.params.len());
        for (index, param) in launch.params.iter().enumerate() {
            params.push(self.param(&format!("{path}params[{index}]"), param)?);
        }
        Ok(exec::Launch {
            grid: launch.grid,
            block: launch.block,
            cluster: launch.cluster,
            dynamic_smem_bytes: launch.dynamic_smem_bytes,
            params,
        })
    }

    /// Address of a buffer, which is allocated and filled when it is first named.
    fn address(&mut self, field: &str, name: &str) -> Result<u64, EmulateError> {
        let mismatch = |what| EmulateError::from(LaunchError::Mismatch { field: field.to_string(), what });
        self.hold.may_name(name).map_err(mismatch)?;
        if let Some(address) = self.addresses.get(name) {
            return Ok(*address);
        }
        let Some(buffer) = self.buffers.get(name) else {
            let have = self.buffers.keys().cloned().collect::<Vec<_>>().join(", ");
            let what = format!("no buffer `{name}` is given; there are {have}");
            return Err(mismatch(what));
        };
        let address = self.hold.put(Some(name), &buffer.bytes)?;
        self.addresses.insert(name.to_string(), address);
        Ok(address)
    }

    fn byte(&mut self, field: &str, name: &str, offset: u64) -> Result<u64, EmulateError> {
        let address = self.address(field, name)?;
        let size = self.buffers.get(name).map_or(0, |buffer| buffer.bytes.len() as u64);
        if offset > size {
            let what = format!("byte {offset} is outside of `{name}`, which has {size}");
            return Err(LaunchError::Mismatch { field: format!("{field}.offset_bytes"), what }.into());
        }
        Ok(address + offset)
    }

    fn tensor_map(&mut self, field: &str, map: &TensorMap) -> Result<[u8; 128], EmulateError> {
        let address = self.byte(field, &map.buffer, map.offset_bytes)?;
        map.encode(address)
            .map_err(|error| LaunchError::Mismatch { field: field.to_string(), what: error.to_string() }.into())
    }

    fn patch(&mut self, field: &str, patch: &Patch, bytes: &mut [u8]) -> Result<(), EmulateError> {
        let value = match &patch.value {
            PatchValue::Buffer { name, offset_bytes } => self.byte(field, name, *offset_bytes)?.to_le_bytes().to_vec(),
            PatchValue::TensorMap(map) => self.tensor_map(field, map)?.to_vec(),
        };
        let size = bytes.len();
        let Some(place) = bytes.get_mut(patch.at..).and_then(|rest| rest.get_mut(..value.len())) else {
            let what = format!("{} bytes at {} do not fit in {size}", value.len(), patch.at);
            return Err(LaunchError::Mismatch { field: field.to_string(), what }.into());
        };
        place.copy_from_slice(&value);
        Ok(())
    }

    fn param(&mut self, field: &str, param: &Param) -> Result<exec::Param, EmulateError> {
        Ok(match param {
            Param::Buffer { name, offset_bytes } => exec::Param::U64(self.byte(field, name, *offset_bytes)?),
            Param::Pointers(names) => {
                let mut table = Vec::with_capacity(8 * names.len());
                for name in names {
                    table.extend(self.address(field, name)?.to_le_bytes());
                }
                exec::Param::U64(self.hold.put(None, &table)?)
            }
            Param::Null => exec::Param::U64(0),
            Param::Scalar(bytes) => exec::Param::Bytes(bytes.clone()),
            Param::Bytes { bytes, patches } => {
                let mut bytes = bytes.clone();
                for (index, patch) in patches.iter().enumerate() {
                    self.patch(&format!("{field}.patch[{index}]"), patch, &mut bytes)?;
                }
                exec::Param::Bytes(bytes)
            }
            Param::TensorMap(map) => exec::Param::Bytes(self.tensor_map(field, map)?.to_vec()),
        })
    }
}
